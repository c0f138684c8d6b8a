//! From documents to rows: what the read model indexes, what must be unique, what refers to what.
//!
//! Pure, so the store's rows, the filter's evaluation in memory and the tests have one source.

use std::fmt;

use serde_json::Value;

use crate::ids::ResourceId;
use crate::scim::fold::{fold, index_value};
use crate::scim::resource::Document;
use crate::scim::schema::{Attribute, ResourceType};

/// One simple value of a resource in sortable text (see [`index_value`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexRow {
    /// The attribute's key: `emails.value`.
    pub key: String,
    /// Which element of a multi-valued attribute, the primary one first; 0 for single values.
    pub element: i32,
    /// The encoded value.
    pub value: String,
}

/// The index rows of a document: one per simple value, sorted. An element that could be primary and does
/// not say so gets `false` (RFC 7643 §2.4), so `primary eq false` finds it.
pub fn index_rows(resource_type: &ResourceType, document: &Document) -> Vec<IndexRow> {
    let mut rows = schema_rows(resource_type, document);
    for attribute in resource_type.attributes().filter(|a| a.is_stored()) {
        if let Some(value) = document.get(attribute) {
            attribute_rows(attribute, value, &mut rows);
        }
    }
    rows.sort();
    rows.dedup();
    rows
}

fn schema_rows(resource_type: &ResourceType, document: &Document) -> Vec<IndexRow> {
    let urns = document.schemas(resource_type).into_iter().enumerate();
    urns.map(|(at, urn)| IndexRow { key: "schemas".to_owned(), element: position(at), value: fold(urn) })
        .collect()
}

fn attribute_rows(attribute: &Attribute, value: &Value, rows: &mut Vec<IndexRow>) {
    match value {
        Value::Array(list) if attribute.multi_valued => {
            // The primary element is number 0, else the first one: by its rows lists are sorted (SO-002).
            let is_primary = |element: &Value| element.get("primary").and_then(Value::as_bool) == Some(true);
            let lead = list.iter().position(is_primary).unwrap_or(0);
            let (before, rest) = list.split_at(lead.min(list.len()));
            let led = rest.iter().take(1).chain(before).chain(rest.iter().skip(1));
            for (at, element) in led.enumerate() {
                element_rows(attribute, element, position(at), rows);
            }
        }
        _ => element_rows(attribute, value, 0, rows),
    }
}

/// The rows of one value: that of a single-valued attribute, or an element of a list.
pub(crate) fn element_rows(attribute: &Attribute, value: &Value, element: i32, rows: &mut Vec<IndexRow>) {
    if !attribute.is_complex() {
        let row = |value| IndexRow { key: attribute.key.clone(), element, value };
        rows.extend(index_value(attribute, value).map(row));
        return;
    }
    for sub in &attribute.sub_attributes {
        match value.get(&sub.name) {
            // A simple part may be a list; its values share the element of the whole.
            Some(Value::Array(list)) if sub.multi_valued => {
                list.iter().for_each(|value| element_rows(sub, value, element, rows));
            }
            Some(value) => element_rows(sub, value, element, rows),
            None if sub.name == "primary" && attribute.multi_valued => {
                rows.push(IndexRow { key: sub.key.clone(), element, value: false.to_string() });
            }
            None => {}
        }
    }
}

/// Lists are bounded by the size of a request, far below this bound.
fn position(at: usize) -> i32 {
    i32::try_from(at).unwrap_or(i32::MAX)
}

/// By which value a resource can be looked up without the read model (D2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LookupKind {
    /// A user's `userName`.
    UserName,
    /// The client's own identifier.
    ExternalId,
    /// A group's `displayName`.
    DisplayName,
}

impl LookupKind {
    /// Every kind there is.
    pub const ALL: [LookupKind; 3] = [Self::UserName, Self::ExternalId, Self::DisplayName];

    /// The stable name, as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserName => "username",
            Self::ExternalId => "externalid",
            Self::DisplayName => "displayname",
        }
    }

    /// Which kind an attribute of a resource type is, by the attribute's key.
    pub fn of(resource_type: &ResourceType, key: &str) -> Option<Self> {
        match key {
            "username" if resource_type.core("userName").is_some() => Some(Self::UserName),
            "externalid" => Some(Self::ExternalId),
            "displayname" if resource_type.link_attribute().is_some() => Some(Self::DisplayName),
            _ => None,
        }
    }
}

impl fmt::Display for LookupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A value by which a resource can be looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lookup {
    /// What kind of value.
    pub kind: LookupKind,
    /// The value, encoded as in index rows.
    pub value: String,
    /// Whether no other resource of the type may have it.
    pub exclusive: bool,
}

/// What a tenant says about uniqueness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupSettings {
    /// Whether `externalId` is unique within a resource type (CS-008).
    pub external_id_unique: bool,
    /// Whether the `displayName` of groups is unique (idp-quirks §1).
    pub group_name_unique: bool,
}

/// The look-ups of a document: `userName` of users, `displayName` of groups, `externalId` of all. A value
/// is folded where its attribute is not case-exact.
pub fn lookups(resource_type: &ResourceType, document: &Document, settings: &LookupSettings) -> Vec<Lookup> {
    let lookup = |name: &str| {
        let attribute = resource_type.core(name)?;
        let kind = LookupKind::of(resource_type, &attribute.key)?;
        let value = index_value(attribute, document.get(attribute)?)?;
        let exclusive = match kind {
            LookupKind::UserName => true,
            LookupKind::ExternalId => settings.external_id_unique,
            LookupKind::DisplayName => settings.group_name_unique,
        };
        Some(Lookup { kind, value, exclusive })
    };
    ["userName", "externalId", "displayName"].into_iter().filter_map(lookup).collect()
}

/// The resources a document refers to, by the name of the attribute: `manager`. Members are no part of a
/// document.
pub fn references(resource_type: &ResourceType, document: &Document) -> Vec<(String, ResourceId)> {
    let mut found = Vec::new();
    for attribute in resource_type.attributes().filter(|a| a.resource_ref && a.is_stored()) {
        let elements = match document.get(attribute) {
            Some(Value::Array(list)) => list.as_slice(),
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        let ids = elements.iter().filter_map(|element| element.get("value")?.as_str());
        found.extend(ids.map(|id| (attribute.name.clone(), ResourceId::from_text(id))));
    }
    found
}

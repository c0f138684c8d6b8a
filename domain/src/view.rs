//! From documents to rows: what the read model indexes, what must be unique, what refers to what.
//!
//! Pure, so the store's rows, the filter's evaluation in memory and the tests have one source.

use std::fmt;

use serde_json::Value;

use crate::ids::ResourceId;
use crate::scim::fold::{fold, index_value};
use crate::scim::resource::Document;
use crate::scim::schema::{Attribute, ENTERPRISE_USER, ResourceType, Uniqueness};

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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LookupKind {
    /// A user's `userName`.
    UserName,
    /// The client's own identifier.
    ExternalId,
    /// A group's `displayName`.
    DisplayName,
    /// An attribute of a tenant's own schema that is unique (RFC 7643 §7), by its key.
    Unique(String),
}

impl LookupKind {
    /// The stable name, as stored.
    pub fn as_str(&self) -> &str {
        match self {
            Self::UserName => "username",
            Self::ExternalId => "externalid",
            Self::DisplayName => "displayname",
            Self::Unique(key) => key,
        }
    }

    /// Which kind an attribute of a resource type is, by the attribute's key.
    pub fn of(resource_type: &ResourceType, key: &str) -> Option<Self> {
        let attribute = resource_type.attribute(key)?;
        match key {
            "externalid" => Some(Self::ExternalId),
            "username" if attribute.uniqueness != Uniqueness::None => Some(Self::UserName),
            "displayname" if resource_type.link_attribute().is_some() => Some(Self::DisplayName),
            _ if attribute.is_unique() => Some(Self::Unique(key.to_owned())),
            _ => None,
        }
    }

    /// Which of several look-ups to ask first.
    pub fn rank(&self) -> u8 {
        match self {
            Self::UserName => 0,
            Self::Unique(_) => 1,
            Self::ExternalId => 2,
            Self::DisplayName => 3,
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
    /// The attribute's path, for the client's error.
    pub attribute: String,
}

/// What a tenant says about uniqueness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupSettings {
    /// Whether `externalId` is unique within a resource type (CS-008).
    pub external_id_unique: bool,
    /// Whether the `displayName` of groups is unique (idp-quirks §1).
    pub group_name_unique: bool,
}

/// The look-ups of a document: `userName` of users, `displayName` of groups, `externalId` of all, and what a
/// tenant's schemas declare unique. A value is folded where its attribute is not case-exact.
pub fn lookups(resource_type: &ResourceType, document: &Document, settings: &LookupSettings) -> Vec<Lookup> {
    let lookup = |attribute: &Attribute| {
        let kind = LookupKind::of(resource_type, &attribute.key)?;
        let value = index_value(attribute, document.get(attribute)?)?;
        let exclusive = match kind {
            LookupKind::UserName | LookupKind::Unique(_) => true,
            LookupKind::ExternalId => settings.external_id_unique,
            LookupKind::DisplayName => settings.group_name_unique,
        };
        Some(Lookup { kind, value, exclusive, attribute: attribute.path.clone() })
    };
    let stored = resource_type.attributes().filter(|attribute| attribute.is_stored());
    let mut found: Vec<Lookup> = stored.filter_map(lookup).collect();
    found.sort_by_key(|lookup| lookup.kind.rank());
    found
}

/// The resources a document refers to, by the name of the link: `manager`. Members are no part of a
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
        found.extend(ids.map(|id| (link_name(attribute), ResourceId::from_text(id))));
    }
    found
}

/// The name under which an attribute's references are kept as links. Two schemas of a tenant may use one name,
/// so their attributes have their key.
pub fn link_name(attribute: &Attribute) -> String {
    match attribute.extension.as_deref() {
        Some(ENTERPRISE_USER) | None => attribute.name.clone(),
        Some(_) => attribute.key.clone(),
    }
}

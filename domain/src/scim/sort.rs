//! The order of lists (RFC 7644 §3.4.2.3): by an attribute, or by creation.
//!
//! A resource's [`Place`] says where it stands. Places of one order are total, and they depend on the
//! resource alone, so a list can be continued after a place whatever was created, changed or deleted
//! meanwhile (RFC 9865).

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::dialect::Dialect;
use super::error::ScimError;
use super::filter::Subject;
use super::path::{Named, PathError, comparable, resolve};
use super::resource::etag;
use super::schema::{AttrType, Attribute, Registry, ResourceType, Returned};
use crate::ids::{Position, ResourceId};
use crate::view::LookupKind;

/// Characters of a value that decide about its place; those with the same beginning are ordered by id.
/// As many as the read model indexes.
pub const SORT_CHARS_MAX: usize = 256;

/// By which attribute, and which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sort {
    /// What each resource type of the query is sorted by, in the query's order of types; `None`: the type
    /// does not have the attribute, so its resources have no value.
    pub keys: Vec<Option<SortKey>>,
    /// The exact reverse of ascending: what has no value comes first (SO-003).
    pub descending: bool,
}

/// What a resource type is sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SortKey {
    /// The index row of an attribute: that of the primary element, else of the first one (SO-002).
    Value {
        /// The attribute's key.
        key: String,
        /// No resource of the type can be without it.
        always: bool,
    },
    /// The id.
    Id,
    /// `meta.created`, which is the order of creation.
    Created,
    /// `meta.lastModified`.
    LastModified,
    /// `meta.version`, as the text of the entity tag.
    Version,
    /// `meta.resourceType`.
    ResourceType,
}

/// A value to sort by, encoded so that its order is the attribute's (SO-004).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SortValue {
    /// Milliseconds since 1970.
    Number(i64),
    /// Encoded as in index rows, cut after [`SORT_CHARS_MAX`].
    Text(String),
}

/// Where a resource stands in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In the order of creation: the journal position at which it was created.
    #[serde(rename = "c")]
    Created(Position),
    /// In the order of an attribute.
    #[serde(rename = "s")]
    Sorted {
        /// Its value, if it has one.
        #[serde(rename = "v")]
        value: Option<SortValue>,
        /// Its id, which orders those with the same value (SO-005).
        id: ResourceId,
    },
}

impl Sort {
    /// Reads `sortBy` and `sortOrder` for some resource types.
    ///
    /// # Errors
    /// 400 `invalidValue`: the order is neither `ascending` nor `descending` (SO-001); no type has the
    /// attribute, it is never returned (SO-006), it has parts and none is named (SO-002), or the server
    /// derives it when it is read.
    pub fn bind(
        sort_by: &str,
        sort_order: Option<&str>,
        registry: &Registry,
        resource_types: &[&ResourceType],
        dialect: &mut Dialect,
    ) -> Result<Sort, ScimError> {
        let descending = match sort_order.map(str::trim) {
            None => false,
            Some(order) if order.eq_ignore_ascii_case("ascending") => false,
            Some(order) if order.eq_ignore_ascii_case("descending") => true,
            Some(order) => {
                let detail = format!("sortOrder must be ascending or descending, not {order:?}");
                return Err(ScimError::invalid_value(detail));
            }
        };
        let mut keys = Vec::with_capacity(resource_types.len());
        let mut unknown = None;
        for resource_type in resource_types {
            match resolve(registry, resource_type, sort_by.trim(), dialect) {
                Ok(named) => keys.push(Some(key(resource_type, named)?)),
                Err(error @ PathError::Unknown(..)) => {
                    unknown = Some(error);
                    keys.push(None);
                }
                Err(error) => return Err(ScimError::invalid_value(format!("sortBy: {error}"))),
            }
        }
        match unknown {
            Some(error) if keys.iter().all(Option::is_none) => {
                Err(ScimError::invalid_value(format!("sortBy: {error}")))
            }
            _ => Ok(Sort { keys, descending }),
        }
    }

    /// Whether this is the order of creation, or its reverse.
    pub fn is_creation(&self) -> bool {
        self.keys.iter().all(|key| matches!(key, Some(SortKey::Created)))
    }
}

fn key(resource_type: &ResourceType, named: Named<'_>) -> Result<SortKey, ScimError> {
    let (attribute, sub) = match named {
        Named::Attribute { attribute, sub } => (attribute, sub),
        Named::Extension(urn) => {
            return Err(ScimError::invalid_value(format!("sortBy: {urn} is a schema; name an attribute")));
        }
    };
    let refused = |attribute: &Attribute, why: &str| {
        ScimError::invalid_value(format!("sortBy: {} {why}", attribute.path))
    };
    let whole = sub.unwrap_or(attribute);
    if attribute.returned == Returned::Never || whole.returned == Returned::Never {
        return Err(refused(whole, "cannot be sorted by"));
    }
    if attribute.is_linked() {
        return Err(refused(whole, "cannot be sorted by: its values are joined when they are read"));
    }
    let leaf = comparable(whole)
        .filter(|leaf| leaf.kind != AttrType::Complex)
        .ok_or_else(|| refused(whole, "has parts and no value of its own; name one of them"))?;
    Ok(match leaf.key.as_str() {
        "id" => SortKey::Id,
        "meta.created" => SortKey::Created,
        "meta.lastmodified" => SortKey::LastModified,
        "meta.version" => SortKey::Version,
        "meta.resourcetype" => SortKey::ResourceType,
        "schemas" => SortKey::Value { key: leaf.key.clone(), always: true },
        _ if leaf.is_read_only() || attribute.is_read_only() => {
            return Err(refused(leaf, "cannot be sorted by: the server derives it when it is read"));
        }
        key => {
            let always = LookupKind::of(resource_type, key) == Some(LookupKind::UserName);
            SortKey::Value { key: key.to_owned(), always }
        }
    })
}

impl SortKey {
    /// The value of a resource; none if it has none, or in the order of creation.
    fn value(&self, subject: &Subject<'_>) -> Option<SortValue> {
        let text = |text: &str| Some(SortValue::Text(text.to_owned()));
        match self {
            SortKey::Value { key, .. } => {
                let row = subject.rows.iter().find(|row| row.key == *key && row.element == 0)?;
                Some(SortValue::Text(row.value.chars().take(SORT_CHARS_MAX).collect()))
            }
            SortKey::Id => text(subject.id.as_str()),
            SortKey::Created => None,
            SortKey::LastModified => Some(SortValue::Number(subject.last_modified.0)),
            SortKey::Version => text(&etag(subject.version)),
            SortKey::ResourceType => text(subject.resource_type),
        }
    }
}

impl Place {
    /// The place of a resource. `key` is what its type is sorted by, `created` the journal position at
    /// which it was created; the subject's rows must be sorted.
    pub fn of(sort: Option<&Sort>, key: Option<&SortKey>, subject: &Subject<'_>, created: Position) -> Place {
        match sort {
            Some(sort) if !sort.is_creation() => {
                Place::Sorted { value: key.and_then(|key| key.value(subject)), id: subject.id.clone() }
            }
            _ => Place::Created(created),
        }
    }

    /// How two places of one order compare: without a value last, and the reverse of all that if
    /// `descending`.
    pub fn compare(&self, other: &Place, descending: bool) -> Ordering {
        let ascending = match (self, other) {
            (Place::Created(a), Place::Created(b)) => a.cmp(b),
            (Place::Sorted { value: a, id: x }, Place::Sorted { value: b, id: y }) => {
                a.is_none().cmp(&b.is_none()).then_with(|| a.cmp(b)).then_with(|| x.cmp(y))
            }
            // Never of one order.
            (Place::Created(_), Place::Sorted { .. }) => Ordering::Less,
            (Place::Sorted { .. }, Place::Created(_)) => Ordering::Greater,
        };
        if descending { ascending.reverse() } else { ascending }
    }
}

//! Identifiers as types, so that no bare string or UUID crosses a function by mistake.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// An identifier that does not have the form its kind demands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct InvalidId {
    /// What kind of identifier was expected.
    pub kind: &'static str,
    /// What was given, cut to 64 characters.
    pub value: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

fn slug_ok(s: &str) -> bool {
    (1..=32).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !s.starts_with('-')
        && !s.ends_with('-')
}

macro_rules! slug {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", example = "acme")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes a slug: 1–32 of `a-z`, `0-9`, `-`, not at the ends. A slug is a legal
            /// NATS subject token, a legal path segment, and free of `_` (Okta refuses it, OK-003).
            pub fn new(value: &str) -> Result<Self, InvalidId> {
                if slug_ok(value) {
                    Ok(Self(value.into()))
                } else {
                    Err(InvalidId {
                        kind: $kind,
                        value: value.chars().take(64).collect(),
                        rule: "1 to 32 of a-z, 0-9 and '-', not starting or ending with '-'",
                    })
                }
            }

            /// The slug as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(&value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0.to_string()
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                Self::new(s)
            }
        }
    };
}

slug! {
    /// A tenant: the isolation boundary, first column of every key.
    TenantId, "tenant"
}
slug! {
    /// A connection: one identity provider's link into a tenant, with its client profile and tokens.
    ConnectionId, "connection"
}
slug! {
    /// A downstream application of a tenant.
    AppId, "app"
}

/// The id of a resource: opaque text, assigned by us as a UUID version 7, compared exactly (CS-005).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceId(Arc<str>);

impl ResourceId {
    /// Longest id we look up, in bytes. Ours have 36; a longer one names nothing.
    pub const LEN_BYTES_MAX: usize = 128;

    /// Takes any text as the name of a resource, which may or may not exist.
    pub fn from_text(value: &str) -> Self {
        Self(value.into())
    }

    /// The id of a UUID, hyphenated lower case.
    pub fn from_uuid(value: Uuid) -> Self {
        Self(value.hyphenated().to_string().into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ResourceId {
    type Err = std::convert::Infallible;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(Self::from_text(s))
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A place in the journal: 1, 2, 3, … in commit order, without gaps. 0 is "before the first event".
pub type Position = i64;

/// How many events an entity has had; its ETag is `W/"<version>"`. 0 is "does not exist yet".
pub type Version = i64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_subject_tokens() {
        for good in ["a", "acme", "acme-eu-1", "0"] {
            assert!(TenantId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Acme", "a_b", "a.b", "a b", "é", &"x".repeat(33)] {
            assert!(TenantId::new(bad).is_err(), "{bad}");
        }
    }
}

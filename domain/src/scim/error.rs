//! SCIM errors (RFC 7644 §3.12): what went wrong, in the words a client's administrator will read.

use serde_json::{Value, json};

use super::message::ERROR;

/// The detail error keyword (RFC 7644 Table 9, RFC 9865 §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScimType {
    /// The filter is malformed or does not fit the attribute.
    InvalidFilter,
    /// More results than the server is willing to compute.
    TooMany,
    /// The value is in use.
    Uniqueness,
    /// The attribute cannot be changed this way.
    Mutability,
    /// The body's structure is wrong.
    InvalidSyntax,
    /// The PATCH path is malformed or names nothing the schema defines.
    InvalidPath,
    /// The PATCH path selects nothing to work on.
    NoTarget,
    /// A value is missing or does not fit its attribute.
    InvalidValue,
    /// The protocol version is not supported.
    InvalidVers,
    /// The request would put sensitive data into a URI.
    Sensitive,
    /// The cursor is not one of ours.
    InvalidCursor,
    /// The cursor is too old.
    ExpiredCursor,
    /// The count is not valid, or differs between pages.
    InvalidCount,
}

impl ScimType {
    /// The keyword as it stands in `scimType`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidFilter => "invalidFilter",
            Self::TooMany => "tooMany",
            Self::Uniqueness => "uniqueness",
            Self::Mutability => "mutability",
            Self::InvalidSyntax => "invalidSyntax",
            Self::InvalidPath => "invalidPath",
            Self::NoTarget => "noTarget",
            Self::InvalidValue => "invalidValue",
            Self::InvalidVers => "invalidVers",
            Self::Sensitive => "sensitive",
            Self::InvalidCursor => "invalidCursor",
            Self::ExpiredCursor => "expiredCursor",
            Self::InvalidCount => "invalidCount",
        }
    }

    /// The HTTP status that goes with the keyword.
    pub fn status(self) -> u16 {
        match self {
            Self::Uniqueness => 409,
            Self::Sensitive => 403,
            _ => 400,
        }
    }
}

/// Longest `detail` that is sent, in characters: it may quote what the client sent, which may be long.
const DETAIL_CHARS_MAX: usize = 1_000;

/// An error as the client sees it. `detail` never repeats a password or a token (ER-003).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ScimError {
    /// The HTTP status.
    pub status: u16,
    /// The keyword, if one fits.
    pub scim_type: Option<ScimType>,
    /// One sentence for the administrator.
    pub detail: String,
}

impl ScimError {
    /// A request that the client must change; the status follows from the keyword.
    pub fn bad(scim_type: ScimType, detail: impl Into<String>) -> Self {
        Self { status: scim_type.status(), scim_type: Some(scim_type), detail: detail.into() }
    }

    /// An error for which Table 9 has no keyword.
    pub fn status(status: u16, detail: impl Into<String>) -> Self {
        Self { status, scim_type: None, detail: detail.into() }
    }

    /// 404: no such resource, or none that the client may know of.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::status(404, detail)
    }

    /// 409: the value is in use (RFC 7644 §3.3).
    pub fn uniqueness(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::Uniqueness, detail)
    }

    /// 412: the resource's version is not the one the client knew (RFC 7644 §3.14).
    pub fn precondition_failed(detail: impl Into<String>) -> Self {
        Self::status(412, detail)
    }

    /// 400 `invalidValue`.
    pub fn invalid_value(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::InvalidValue, detail)
    }

    /// 400 `invalidSyntax`.
    pub fn invalid_syntax(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::InvalidSyntax, detail)
    }

    /// 400 `invalidFilter`.
    pub fn invalid_filter(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::InvalidFilter, detail)
    }

    /// 400 `invalidPath`.
    pub fn invalid_path(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::InvalidPath, detail)
    }

    /// 400 `mutability`.
    pub fn mutability(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::Mutability, detail)
    }

    /// 400 `noTarget`.
    pub fn no_target(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::NoTarget, detail)
    }

    /// The same error, with the place it happened in front (PA-005: the operation's index).
    #[must_use]
    pub fn within(mut self, place: &str) -> Self {
        self.detail = format!("{place}: {}", self.detail);
        self
    }

    /// The body (ER-001 to ER-003): four members at most, the status as a string.
    pub fn to_json(&self) -> Value {
        let mut detail: String = self.detail.chars().take(DETAIL_CHARS_MAX).collect();
        if detail.len() < self.detail.len() {
            detail.push('…');
        }
        let mut body = json!({
            "schemas": [ERROR],
            "status": self.status.to_string(),
            "detail": detail,
        });
        if let Some(scim_type) = self.scim_type {
            body["scimType"] = json!(scim_type.as_str());
        }
        body
    }
}

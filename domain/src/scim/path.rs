//! Attribute paths (RFC 7644 §3.10) and PATCH paths (§3.5.2): from text to the attribute it names.

use super::dialect::{Dialect, Quirk};
use super::filter::{self, Budget, Filter};
use super::schema::{AttrType, Attribute, Registry, ResourceType};

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Named<'a> {
    /// A whole extension, by its URN.
    Extension(&'a str),
    /// An attribute, perhaps one of its parts.
    Attribute {
        /// The attribute.
        attribute: &'a Attribute,
        /// The part.
        sub: Option<&'a Attribute>,
    },
}

/// Why a path names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not have the form of a path.
    #[error("{0:?} is not an attribute path")]
    Malformed(String),
    /// It names nothing the resource type has.
    #[error("{1} has no attribute {0:?}")]
    Unknown(String, String),
    /// It would name something in another profile.
    #[error("{0:?} must be written in full, as {1:?}")]
    Unqualified(String, String),
}

/// Whether a text is an attribute name: a letter or `$`, then letters, digits, `-`, `_`, `$` (CS-021).
pub fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '$')
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '$'))
}

/// Finds what a path names: `name`, `name.sub`, either behind a registered URN and `:` (longest first,
/// FI-004), or an extension's URN alone. Nothing is split at the last `:` or the first `.`, as URNs
/// contain both.
pub fn resolve<'a>(
    registry: &Registry,
    resource_type: &'a ResourceType,
    text: &str,
    dialect: &mut Dialect,
) -> Result<Named<'a>, PathError> {
    if let Some(extension) = resource_type.extension(dialect.modern_urn(resource_type, text)) {
        return Ok(Named::Extension(&extension.schema));
    }
    let unknown = || PathError::Unknown(text.to_owned(), resource_type.name.clone());
    let (urn, rest) = match registry.split_urn(text, &[':', '.']) {
        Some((schema, ':', rest)) => (Some(schema.id.as_str()), rest),
        Some((schema, _, rest)) if dialect.allow(Quirk::DottedUrn) => (Some(schema.id.as_str()), rest),
        _ => (None, text),
    };
    let (name, sub_name) = match rest.split_once('.') {
        Some((name, sub)) => (name, Some(sub)),
        None => (rest, None),
    };
    if urn.is_none() && text.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("urn:")) {
        return Err(unknown());
    }
    if !is_name(name) || !sub_name.is_none_or(is_name) {
        return Err(PathError::Malformed(text.to_owned()));
    }
    let attribute = match urn {
        None => match resource_type.core(name) {
            Some(attribute) => attribute,
            None => bare(resource_type, name, text, dialect)?,
        },
        Some(urn) if urn == resource_type.schema => resource_type.core(name).ok_or_else(unknown)?,
        Some(urn) => resource_type.extension_attribute(urn, name).ok_or_else(unknown)?,
    };
    let sub = match sub_name {
        None => None,
        Some(sub_name) => Some(attribute.sub(sub_name).ok_or_else(unknown)?),
    };
    Ok(Named::Attribute { attribute, sub })
}

fn bare<'a>(
    resource_type: &'a ResourceType,
    name: &str,
    text: &str,
    dialect: &mut Dialect,
) -> Result<&'a Attribute, PathError> {
    let Some(attribute) = resource_type.bare_extension_attribute(name) else {
        return Err(PathError::Unknown(text.to_owned(), resource_type.name.clone()));
    };
    if !dialect.allow(Quirk::BareExtensionNames) {
        let urn = attribute.extension.as_deref().unwrap_or_default();
        let part = text.get(name.len()..).unwrap_or_default();
        let full = format!("{urn}:{}{part}", attribute.name);
        return Err(PathError::Unqualified(text.to_owned(), full));
    }
    Ok(attribute)
}

/// A PATCH path, split but not resolved: `attrPath`, or `attrPath[filter]` with an optional `.sub`.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchPath {
    /// The path in front of the filter.
    pub attribute: String,
    /// The filter that selects elements.
    pub filter: Option<Filter>,
    /// The part of the selected elements.
    pub sub: Option<String>,
}

/// Why a PATCH path cannot be read: RFC 7644 keeps two keywords apart.
#[derive(Clone, Debug, PartialEq)]
pub enum PatchPathError {
    /// The path's form is wrong: `invalidPath`.
    Path(String),
    /// The filter inside it is wrong: `invalidFilter`.
    Filter(super::error::ScimError),
}

impl PatchPath {
    /// Splits a path and reads its filter.
    pub fn parse(text: &str) -> Result<Self, PatchPathError> {
        let malformed = |why: &str| PatchPathError::Path(format!("path {text:?}: {why}"));
        let text = text.trim();
        if text.is_empty() {
            return Err(malformed("it is empty"));
        }
        let Some((attribute, rest)) = text.split_once('[') else {
            return Ok(Self { attribute: text.to_owned(), filter: None, sub: None });
        };
        let (inner, after) = close_bracket(rest).ok_or_else(|| malformed("'[' is not closed"))?;
        let sub = match after.strip_prefix('.') {
            Some(sub) if is_name(sub) => Some(sub.to_owned()),
            None if after.is_empty() => None,
            _ => return Err(malformed("after ']' only '.' and a sub-attribute may follow")),
        };
        let filter = filter::parse_inner(inner, Budget::default()).map_err(PatchPathError::Filter)?;
        Ok(Self { attribute: attribute.trim().to_owned(), filter: Some(filter), sub })
    }
}

/// Splits at the first `]` that is not inside a string.
fn close_bracket(text: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ']' if !quoted => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

/// The attribute that a comparison with the attribute itself means: its `value` if it is complex and
/// has one (FI-009), the attribute if it is simple.
pub fn comparable(attribute: &Attribute) -> Option<&Attribute> {
    if attribute.kind == AttrType::Complex { attribute.sub("value") } else { Some(attribute) }
}

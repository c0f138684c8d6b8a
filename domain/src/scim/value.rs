//! From JSON as sent to canonical values: the schema's spelling, the schema's types, nothing empty.
//!
//! A canonical value never is `null`, `[]` or `{}` (CS-033); it holds no readOnly part and no `$ref` to
//! a resource, as the server fills those in; an empty string is a value. Case and form are kept as sent,
//! as clients compare what they read with what they wrote (EN-014); only dates become UTC (CS-026).

use std::collections::HashSet;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};
use serde_json::{Map, Value, json};

use super::dialect::{Dialect, Quirk};
use super::error::ScimError;
use super::fold::{index_value, parse_datetime};
use super::schema::{AttrType, Attribute};
use crate::ids::ResourceId;

/// Base64 with or without padding (CS-027).
const LENIENT: GeneralPurposeConfig =
    general_purpose::PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// The canonical form of a value for an attribute; `None` unassigns it.
pub fn canonical(
    attribute: &Attribute,
    value: &Value,
    dialect: &mut Dialect,
) -> Result<Option<Value>, ScimError> {
    if attribute.multi_valued { list(attribute, value, dialect) } else { one(attribute, value, dialect) }
}

/// The canonical form of one value: that of a single-valued attribute, or an element of a list.
pub fn one(attribute: &Attribute, value: &Value, dialect: &mut Dialect) -> Result<Option<Value>, ScimError> {
    if value.is_null() || value.as_array().is_some_and(Vec::is_empty) {
        return Ok(None);
    }
    if !attribute.is_complex() {
        return simple(attribute, value, dialect).map(Some);
    }
    let Given::Parts(parts) = parts(attribute, value, dialect)? else { return Ok(None) };
    let object: Map<_, _> =
        parts.into_iter().filter_map(|(sub, value)| Some((sub.name.clone(), value?))).collect();
    if object.is_empty() {
        return Ok(None);
    }
    check_required_parts(attribute, &object)?;
    Ok(Some(Value::Object(object)))
}

/// Refuses an object that lacks a required part (CH-013: only if the object itself is there).
pub fn check_required_parts(attribute: &Attribute, object: &Map<String, Value>) -> Result<(), ScimError> {
    let missing = |sub: &&Attribute| sub.required && !sub.is_read_only() && !object.contains_key(&sub.name);
    match attribute.sub_attributes.iter().find(missing) {
        Some(sub) => Err(ScimError::invalid_value(format!("{} is required", sub.path))),
        None => Ok(()),
    }
}

fn list(attribute: &Attribute, value: &Value, dialect: &mut Dialect) -> Result<Option<Value>, ScimError> {
    let mut list = Vec::new();
    for element in elements(attribute, value, dialect)? {
        list.extend(one(attribute, element, dialect)?);
    }
    check_primary(attribute, &mut list, dialect)?;
    // CS-035: nothing is gained by the same element twice.
    let mut seen = HashSet::with_capacity(list.len());
    list.retain(|element| seen.insert(identity(attribute, element)));
    check_len(attribute, &list)?;
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}

/// Most elements of a multi-valued attribute. Members are links and not bound by it; what a person has
/// many of is tens. It bounds the work of a PATCH, which looks at every element in every operation.
pub const ELEMENTS_MAX: usize = 2_000;

/// Refuses a list that is too long.
pub(crate) fn check_len(attribute: &Attribute, list: &[Value]) -> Result<(), ScimError> {
    if list.len() <= ELEMENTS_MAX {
        return Ok(());
    }
    let detail = format!("{} has more than {ELEMENTS_MAX} elements", attribute.path);
    Err(ScimError::invalid_value(detail))
}

/// The elements of a list as sent; what is no list is wrapped if the dialect allows it (CR-008).
pub fn elements<'v>(
    attribute: &Attribute,
    value: &'v Value,
    dialect: &mut Dialect,
) -> Result<&'v [Value], ScimError> {
    let wrappable = match value {
        Value::Null => return Ok(&[]),
        Value::Array(elements) => return Ok(elements),
        Value::Object(_) => attribute.is_complex(),
        Value::String(_) => !attribute.is_complex() || attribute.resource_ref,
        _ => !attribute.is_complex(),
    };
    if wrappable && dialect.allow(Quirk::WrapUnwrap) {
        return Ok(std::slice::from_ref(value));
    }
    Err(wrong_type(attribute, "an array", value))
}

/// What an object, or what stands for one, says about a complex attribute.
pub enum Given<'a> {
    /// The whole attribute loses its value.
    Unassign,
    /// The parts it mentions; `None` unassigns one.
    Parts(Vec<(&'a Attribute, Option<Value>)>),
}

/// The parts that a value for one complex value mentions. Where the id of a resource is meant, a bare
/// string and a one-element list stand for the object, and `$ref` stands for `value`.
pub fn parts<'a>(
    attribute: &'a Attribute,
    value: &Value,
    dialect: &mut Dialect,
) -> Result<Given<'a>, ScimError> {
    let single = !attribute.multi_valued;
    let reference = attribute.resource_ref;
    match value {
        Value::Null => Ok(Given::Unassign),
        Value::Object(object) => object_parts(attribute, object, dialect),
        Value::String(text) if text.is_empty() && single && dialect.allow(Quirk::EmptyUnassigns) => {
            Ok(Given::Unassign)
        }
        Value::String(text) if !text.is_empty() && reference && dialect.allow(Quirk::WrapUnwrap) => {
            object_parts(attribute, &Map::from_iter([("value".to_owned(), json!(text))]), dialect)
        }
        Value::Array(list) if list.is_empty() => Ok(Given::Unassign),
        Value::Array(list) if list.len() == 1 && single && reference && !list[0].is_array() => {
            if dialect.allow(Quirk::WrapUnwrap) {
                parts(attribute, &list[0], dialect)
            } else {
                Err(wrong_type(attribute, "an object", value))
            }
        }
        _ => Err(wrong_type(attribute, "an object", value)),
    }
}

fn object_parts<'a>(
    attribute: &'a Attribute,
    object: &Map<String, Value>,
    dialect: &mut Dialect,
) -> Result<Given<'a>, ScimError> {
    check_keys(object, &attribute.path)?;
    let unwrapped = unwrap_role(attribute, object, dialect);
    let object = unwrapped.as_ref().unwrap_or(object);
    let mut parts: Vec<(&Attribute, Option<Value>)> = Vec::new();
    let mut reference = None;
    for (key, value) in object {
        let Some(sub) = part(attribute, key, dialect)? else { continue };
        if attribute.resource_ref && sub.name == "$ref" {
            reference = value.as_str().and_then(referenced_id);
        } else if !sub.is_read_only() {
            parts.push((sub, canonical(sub, value, dialect)?));
        }
    }
    if attribute.resource_ref {
        let at = parts.iter().position(|(sub, _)| sub.name == "value");
        match (at, reference, attribute.sub("value")) {
            (None, Some(id), Some(sub)) => parts.push((sub, canonical(sub, &json!(id), dialect)?)),
            (Some(at), ..) if parts[at].1 == Some(json!("")) => {
                if attribute.multi_valued || !dialect.allow(Quirk::EmptyUnassigns) {
                    return Err(ScimError::invalid_value(format!("{}.value is empty", attribute.path)));
                }
                return Ok(Given::Unassign);
            }
            _ => {}
        }
        for (sub, value) in parts.iter().filter(|(sub, _)| sub.name == "value") {
            check_id(sub, value.as_ref())?;
        }
    }
    Ok(Given::Parts(parts))
}

/// Refuses what cannot be the id of a resource. It would be kept as a link, whose index takes no more.
pub(crate) fn check_id(attribute: &Attribute, value: Option<&Value>) -> Result<(), ScimError> {
    const MAX: usize = ResourceId::LEN_BYTES_MAX;
    if value.and_then(Value::as_str).is_some_and(|id| id.len() > MAX) {
        let detail = format!("{} is longer than {MAX} bytes, so it is no id", attribute.path);
        return Err(ScimError::invalid_value(detail));
    }
    Ok(())
}

/// The part a key means, or nothing if it is to be ignored.
fn part<'a>(
    attribute: &'a Attribute,
    key: &str,
    dialect: &mut Dialect,
) -> Result<Option<&'a Attribute>, ScimError> {
    if let Some(sub) = attribute.sub(key) {
        return Ok(Some(sub));
    }
    let single_ref = attribute.resource_ref && !attribute.multi_valued;
    if single_ref && key.eq_ignore_ascii_case("managerId") && dialect.allow(Quirk::ManagerId) {
        return Ok(attribute.sub("value"));
    }
    let role = attribute.key == "roles" && key.eq_ignore_ascii_case("displayName");
    if role && dialect.allow(Quirk::RoleDisplayName) {
        return Ok(attribute.sub("display"));
    }
    if dialect.allow(Quirk::UnknownAttributes) {
        return Ok(None);
    }
    Err(ScimError::invalid_syntax(format!("{} has no sub-attribute {key:?}", attribute.path)))
}

/// Entra's roles as JSON inside `value` (P60), if the tenant wants them split.
fn unwrap_role(
    attribute: &Attribute,
    object: &Map<String, Value>,
    dialect: &mut Dialect,
) -> Option<Map<String, Value>> {
    if attribute.key != "roles" || !dialect.has(Quirk::UnwrapRoleJson) {
        return None;
    }
    let inner: Map<String, Value> = serde_json::from_str(object.get("value")?.as_str()?).ok()?;
    let mut out = object.clone();
    out.insert("value".to_owned(), inner.get("value")?.clone());
    if let Some(display) = inner.get("displayName") {
        out.insert("display".to_owned(), display.clone());
    }
    dialect.allow(Quirk::UnwrapRoleJson);
    Some(out)
}

/// The id at the end of a resource's URI: `https://h/v2/Users/u3`, `../Users/u3` (CS-028).
pub fn referenced_id(uri: &str) -> Option<&str> {
    let path = uri.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    path.rsplit('/').next().filter(|id| !id.is_empty())
}

fn simple(attribute: &Attribute, value: &Value, dialect: &mut Dialect) -> Result<Value, ScimError> {
    let wrong = |expected| Err(wrong_type(attribute, expected, value));
    match (attribute.kind, value) {
        (AttrType::String | AttrType::Reference, Value::String(text)) => {
            check_text(attribute, text)?;
            Ok(value.clone())
        }
        (AttrType::Binary, Value::String(text)) => {
            if BASE64.decode(text).is_err() && BASE64_URL.decode(text).is_err() {
                return wrong("base64");
            }
            Ok(value.clone())
        }
        (AttrType::DateTime, Value::String(text)) => match parse_datetime(text) {
            Some(moment) => Ok(json!(moment.to_rfc3339())),
            None => wrong("a date and time such as \"2026-01-10T08:00:00Z\""),
        },
        (AttrType::Boolean, Value::Bool(_)) => Ok(value.clone()),
        (AttrType::Boolean, Value::String(text)) => match boolean(text) {
            Some(b) if dialect.allow(Quirk::StringBoolean) => Ok(json!(b)),
            _ => wrong("true or false"),
        },
        (AttrType::Integer, Value::Number(number)) if number.is_i64() => Ok(value.clone()),
        (AttrType::Decimal, Value::Number(_)) => Ok(value.clone()),
        (AttrType::Integer | AttrType::Decimal, Value::String(text)) => match number(attribute, text) {
            Some(number) if dialect.allow(Quirk::StringNumber) => Ok(number),
            _ => wrong("a number"),
        },
        (AttrType::Integer, _) => wrong("a number without fraction and exponent"),
        (AttrType::Decimal, _) => wrong("a number"),
        (AttrType::Boolean, _) => wrong("true or false"),
        _ => wrong("a string"),
    }
}

/// A boolean written as text, in any case (CS-024).
pub(crate) fn boolean(text: &str) -> Option<bool> {
    [true, false].into_iter().find(|b| b.to_string().eq_ignore_ascii_case(text))
}

/// A number written as text, if it fits the attribute's type.
pub(crate) fn number(attribute: &Attribute, text: &str) -> Option<Value> {
    let number: serde_json::Number = serde_json::from_str(text).ok()?;
    (attribute.kind == AttrType::Decimal || number.is_i64()).then_some(Value::Number(number))
}

fn check_text(attribute: &Attribute, text: &str) -> Result<(), ScimError> {
    if text.contains('\0') {
        // IN-005: PostgreSQL cannot store it, and no name needs it.
        return Err(ScimError::invalid_value(format!("{} contains U+0000", attribute.path)));
    }
    if attribute.closed && !attribute.canonical_values.iter().any(|v| v.eq_ignore_ascii_case(text)) {
        let allowed = attribute.canonical_values.join(", ");
        return Err(ScimError::invalid_value(format!("{} must be one of: {allowed}", attribute.path)));
    }
    Ok(())
}

/// The error for a value of the wrong JSON type. The value itself is not repeated (ER-003).
pub fn wrong_type(attribute: &Attribute, expected: &str, value: &Value) -> ScimError {
    let given = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    ScimError::invalid_value(format!("{} must be {expected}; given was {given}", attribute.path))
}

/// Refuses the same name twice in different spelling (CS-022).
pub fn check_keys(object: &Map<String, Value>, place: &str) -> Result<(), ScimError> {
    let mut seen = HashSet::with_capacity(object.len());
    match object.keys().find(|key| !seen.insert(key.to_ascii_lowercase())) {
        Some(key) => Err(ScimError::invalid_syntax(format!("{place}: {key:?} is given twice"))),
        None => Ok(()),
    }
}

/// Whether an element says it is the primary one.
pub fn is_primary(element: &Value) -> bool {
    element.get("primary").and_then(Value::as_bool).unwrap_or(false)
}

/// At most one element is primary (CS-034); one address sent twice as primary is one (PI-003).
pub fn check_primary(
    attribute: &Attribute,
    list: &mut [Value],
    dialect: &mut Dialect,
) -> Result<(), ScimError> {
    let mut first: Option<Option<Value>> = None;
    for element in list.iter_mut().filter(|e| is_primary(e)) {
        let value = element.get("value").cloned();
        match &first {
            None => first = Some(value),
            Some(known) if value.is_some() && *known == value && dialect.allow(Quirk::DuplicatePrimary) => {
                element["primary"] = json!(false);
            }
            Some(_) => {
                let detail = format!("{}: more than one element is primary", attribute.path);
                return Err(ScimError::invalid_value(detail));
            }
        }
    }
    Ok(())
}

/// Whether two canonical values of an attribute, or two of its elements, are the same.
pub fn same(attribute: &Attribute, a: &Value, b: &Value) -> bool {
    a == b || identity(attribute, a) == identity(attribute, b)
}

/// A text that is equal for values that are the same by the attribute's types and its case rule. A missing
/// `primary` is false. U+0000 separates, as no value contains it (IN-005).
pub fn identity(attribute: &Attribute, value: &Value) -> String {
    if let Value::Array(list) = value {
        return list.iter().map(|element| identity(attribute, element) + "\0\0").collect();
    }
    if !attribute.is_complex() {
        return index_value(attribute, value).unwrap_or_else(|| value.to_string());
    }
    let part = |sub: &Attribute| {
        let value = value.get(&sub.name)?;
        let identity = match value {
            Value::Bool(false) if sub.name == "primary" => return None,
            one => identity(sub, one),
        };
        Some(format!("{}\0{identity}\0", sub.name))
    };
    attribute.sub_attributes.iter().filter_map(part).collect()
}

/// A text that is equal for elements about the same thing (the duplicate rule of PATCH `add`): those of
/// equal `value` and `type`, or of equal id where the value is one; without a value, equal altogether.
pub fn element_key(attribute: &Attribute, element: &Value) -> String {
    let part = |name: &str| {
        let sub = attribute.sub(name).filter(|_| attribute.is_complex())?;
        Some(identity(sub, element.get(&sub.name)?))
    };
    match (part("value"), part("type")) {
        (Some(value), _) if attribute.resource_ref => format!("\0{value}"),
        (Some(value), Some(kind)) => format!("\0{value}\0{kind}"),
        (Some(value), None) => format!("\0{value}\0"),
        (None, _) => identity(attribute, element),
    }
}

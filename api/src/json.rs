//! JSON from strangers: bounded depth, no repeated names, no text that is none.

use std::fmt;

use annals_domain::scim::error::ScimError;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deepest nesting that can be configured: serde_json itself stops at 128.
const DEPTH_CEILING: usize = 127;
/// Longest attribute name that an error repeats, in characters.
const NAME_SHOWN_CHARS_MAX: usize = 64;

/// Reads a body (MT-001, IN-005, CS-022).
///
/// The depth is checked on the bytes before anything recurses, so that 10,000 brackets cost a loop and no
/// stack.
pub(crate) fn parse(bytes: &[u8], depth_max: usize) -> Result<Value, ScimError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ScimError::invalid_syntax("the body is empty"));
    }
    let text =
        std::str::from_utf8(bytes).map_err(|_| ScimError::invalid_syntax("the body is not valid UTF-8"))?;
    check_depth(bytes, depth_max.min(DEPTH_CEILING))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    let value =
        value.map_err(|error| ScimError::invalid_syntax(format!("the body is not valid JSON: {error}")))?;
    check_text(&value, "")?;
    Ok(value)
}

fn check_depth(bytes: &[u8], depth_max: usize) -> Result<(), ScimError> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for &byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                if depth > depth_max {
                    let detail =
                        format!("the body is nested deeper than {depth_max} levels (json_depth_max)");
                    return Err(ScimError::invalid_syntax(detail));
                }
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// U+0000 is legal JSON, but no text we can keep (IN-005).
fn check_text(value: &Value, path: &str) -> Result<(), ScimError> {
    let refuse = |what: &str| {
        let place = if path.is_empty() { "the body" } else { path };
        Err(ScimError::invalid_value(format!("{place}: {what} contains U+0000")))
    };
    match value {
        Value::String(text) if text.contains('\0') => refuse("a text"),
        Value::Array(list) => list.iter().try_for_each(|value| check_text(value, path)),
        Value::Object(object) => object.iter().try_for_each(|(name, value)| {
            if name.contains('\0') {
                return refuse("a name");
            }
            let dot = if path.is_empty() { "" } else { "." };
            check_text(value, &format!("{path}{dot}{}", shown(name)))
        }),
        _ => Ok(()),
    }
}

fn shown(name: &str) -> String {
    name.chars().take(NAME_SHOWN_CHARS_MAX).collect()
}

/// A JSON value in which no object has a name twice; serde_json would keep the last one in silence.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("{:?} is there twice", shown(&name))));
            }
            let value = map.next_value_seed(Strict)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(text: &[u8]) -> (String, Option<&'static str>) {
        let error = parse(text, 8).unwrap_err();
        (error.detail, error.scim_type.map(|t| t.as_str()))
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let text = r#"{"a":[1,-2,3.5,true,null,"\u00e9"],"b":{"c":{}}}"#;
        assert_eq!(parse(text.as_bytes(), 8), Ok(json!({"a":[1,-2,3.5,true,null,"é"],"b":{"c":{}}})));
    }

    #[test]
    fn deep_nesting_is_refused_before_anything_recurses() {
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        let error = error(deep.as_bytes());
        assert_eq!(error.1, Some("invalidSyntax"));
        assert!(error.0.contains("deeper than 8 levels"), "{}", error.0);
        assert!(parse(br#"["[[[[[[[[[[[[", "\"[[[[[[["]"#, 2).is_ok(), "brackets in texts do not nest");
    }

    #[test]
    fn bad_text_is_named() {
        assert!(error(b"").0.contains("empty"));
        assert!(error(b"\xff\xfe").0.contains("UTF-8"));
        assert!(error(br#"{"a":1,"a":2}"#).0.contains("\"a\" is there twice"));
        assert!(error(br#"{"a":1} x"#).0.contains("trailing"));
        assert_eq!(error(br#"{"a":"\ud800"}"#).1, Some("invalidSyntax"));
        assert_eq!(error(b"{\"a\":\"\0\"}").1, Some("invalidSyntax"));
        let nul = error(br#"{"a":{"b":["x\u0000"]}}"#);
        assert_eq!(nul, ("a.b: a text contains U+0000".to_owned(), Some("invalidValue")));
    }
}

//! PATCH (RFC 7644 §3.5.2): a request becomes operations, operations become a new document and a change
//! of members. Nothing here decides about uniqueness or about which members exist.

mod apply;
mod elements;
mod members;

use std::fmt;

use secrecy::SecretString;
use serde_json::Value;

pub use apply::apply;
pub use members::LinkDelta;

use super::dialect::{Dialect, Quirk};
use super::error::ScimError;
use super::message::PATCH_OP;
use super::resource::Document;
use super::schema::member;
use super::value::check_keys;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Adds to what is there.
    Add,
    /// Takes away.
    Remove,
    /// Puts in the place of what is there.
    Replace,
}

impl Op {
    /// The operation as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Replace => "replace",
        }
    }
}

/// One operation, its path not yet resolved: each operation sees what the one before left (PA-005).
#[derive(Clone, PartialEq)]
pub struct Operation {
    /// What it does.
    pub op: Op,
    /// Where, as sent.
    pub path: Option<String>,
    /// With what. An explicit null is a value: it unassigns.
    pub value: Option<Value>,
}

/// The value is left out: it may be a password.
impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").field("op", &self.op).field("path", &self.path).finish_non_exhaustive()
    }
}

/// What becomes of the password.
#[derive(Clone, Debug)]
pub enum PasswordChange {
    /// There is a new one.
    Set(SecretString),
    /// There is none any more.
    Clear,
}

/// What a PATCH makes of a resource.
#[derive(Debug)]
pub struct Patched {
    /// The new content.
    pub document: Document,
    /// The change of the password, if there is one.
    pub password: Option<PasswordChange>,
    /// The change of the members.
    pub members: LinkDelta,
}

/// Reads the body of a PATCH (PA-001 to PA-004).
pub fn parse_request(body: &Value, dialect: &mut Dialect) -> Result<Vec<Operation>, ScimError> {
    let body = body.as_object().ok_or_else(|| ScimError::invalid_syntax("the body is no JSON object"))?;
    check_keys(body, "the body")?;
    let named = match field(body, "schemas", dialect) {
        None | Some(Value::Null) => false,
        Some(Value::Array(urns)) => {
            urns.iter().any(|urn| urn.as_str().is_some_and(|urn| urn.eq_ignore_ascii_case(PATCH_OP)))
        }
        Some(_) => return Err(ScimError::invalid_syntax("schemas must be an array of strings")),
    };
    if !named && !dialect.allow(Quirk::MissingSchemas) {
        return Err(ScimError::invalid_syntax(format!("schemas must name {PATCH_OP}")));
    }
    let operations = match field(body, "Operations", dialect) {
        Some(Value::Array(operations)) if !operations.is_empty() => operations,
        _ => return Err(ScimError::invalid_syntax("Operations must be an array of at least one operation")),
    };
    let read = |(at, operation)| parse_operation(operation, dialect).map_err(|e| at_operation(e, at));
    operations.iter().enumerate().map(read).collect()
}

fn parse_operation(operation: &Value, dialect: &mut Dialect) -> Result<Operation, ScimError> {
    let operation =
        operation.as_object().ok_or_else(|| ScimError::invalid_syntax("an operation must be an object"))?;
    check_keys(operation, "the operation")?;
    let word = field(operation, "op", dialect).and_then(Value::as_str).unwrap_or_default();
    let known = [Op::Add, Op::Remove, Op::Replace].into_iter().find(|op| {
        op.as_str() == word || (op.as_str().eq_ignore_ascii_case(word) && dialect.allow(Quirk::OpCase))
    });
    let op = known.ok_or_else(|| ScimError::invalid_syntax("op must be add, remove or replace"))?;
    let path = match field(operation, "path", dialect) {
        None | Some(Value::Null) => None,
        Some(Value::String(path)) => Some(path.clone()),
        Some(_) => return Err(ScimError::invalid_syntax("path must be a string")),
    };
    let value = field(operation, "value", dialect).cloned();
    if value.is_none() && op != Op::Remove {
        return Err(ScimError::invalid_value(format!("{} needs a value", op.as_str())));
    }
    Ok(Operation { op, path, value })
}

/// A member of a PATCH message, by its exact name or, in a tolerant dialect, by that name in any case.
fn field<'a>(
    object: &'a serde_json::Map<String, Value>,
    name: &str,
    dialect: &mut Dialect,
) -> Option<&'a Value> {
    object.get(name).or_else(|| member(object, name).filter(|_| dialect.allow(Quirk::MemberCase)))
}

/// The error with the operation it happened in, counted from 0 as in the array (PA-005).
fn at_operation(error: ScimError, at: usize) -> ScimError {
    error.within(&format!("Operations[{at}]"))
}

//! What a request says: bodies with exactly the members that there are, patches, pages.

use annals_domain::scim::error::{ScimError, ScimType};
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::app::App;
use crate::error::{ApiError, Result};
use crate::extract::{Query, check_media_type, read_within};
use crate::json;

/// Largest body, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 256 * 1024;
/// Entries on a page if the client names no `limit`.
pub(crate) const PAGE_DEFAULT: usize = 100;
/// Most entries on a page.
pub(crate) const PAGE_MAX: usize = 500;

/// A body of that shape, and with no member besides.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: Serialize + DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let (parts, body) = request.into_parts();
        let value = read(&parts.headers, body, app, &["application/json"]).await?;
        Ok(Json(shaped(value)?))
    }
}

/// A JSON Merge Patch (RFC 7396): what it names is replaced, what it sets to null goes back to its default.
pub(crate) struct MergePatch(Map<String, Value>);

impl FromRequest<App> for MergePatch {
    type Rejection = ApiError;
    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let (parts, body) = request.into_parts();
        let known = ["application/merge-patch+json", "application/json"];
        match read(&parts.headers, body, app, &known).await? {
            Value::Object(patch) => Ok(MergePatch(patch)),
            _ => Err(invalid("the body is no JSON object")),
        }
    }
}

impl MergePatch {
    /// What an entity becomes.
    ///
    /// # Errors
    /// 400 if the result is none of its kind, or has another `id`.
    pub(crate) fn apply<E: Serialize + DeserializeOwned>(&self, entity: &E) -> Result<E, ScimError> {
        let mut value = serde_json::to_value(entity).map_err(|_| wrong("this cannot be patched"))?;
        let id = value.get("id").cloned();
        merge(&mut value, &Value::Object(self.0.clone()));
        if value.get("id").cloned() != id {
            return Err(wrong("id: it cannot be changed"));
        }
        shaped(value)
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(name)),
            value => merge(target.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}

async fn read(headers: &HeaderMap, body: Body, app: &App, known: &[&str]) -> Result<Value> {
    check_media_type(headers, known)?;
    let bytes = read_within(headers, body, app, BODY_BYTES_MAX, "the bound of administration").await?;
    Ok(json::parse(&bytes, app.options.json_depth_max)?)
}

/// A value of that shape without members that the shape does not have.
fn shaped<T: Serialize + DeserializeOwned>(value: Value) -> Result<T, ScimError> {
    let mut unknown = None;
    let shaped: Result<T, _> = serde_ignored::deserialize(&value, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    });
    let shaped = shaped.map_err(|error| wrong(error.to_string()))?;
    match unknown {
        Some(name) => return Err(wrong(format!("{name}: there is no such member"))),
        None => check_objects(&value, &serde_json::to_value(&shaped).unwrap_or_default(), "the body")?,
    }
    Ok(shaped)
}

/// serde takes a list of values in order for an object; nobody means that.
fn check_objects(given: &Value, read: &Value, name: &str) -> Result<(), ScimError> {
    match (given, read) {
        (Value::Array(_), Value::Object(_)) => Err(wrong(format!("{name}: this must be an object"))),
        (Value::Object(given), Value::Object(read)) => given
            .iter()
            .filter_map(|(name, given)| Some((name, given, read.get(name)?)))
            .try_for_each(|(name, given, read)| check_objects(given, read, name)),
        (Value::Array(given), Value::Array(read)) => {
            given.iter().zip(read).try_for_each(|(given, read)| check_objects(given, read, name))
        }
        _ => Ok(()),
    }
}

/// 400 for a body or parameter.
pub(crate) fn invalid(detail: impl Into<String>) -> ApiError {
    wrong(detail).into()
}

fn wrong(detail: impl Into<String>) -> ScimError {
    ScimError::bad(ScimType::InvalidValue, detail)
}

/// Which page of a list: `limit` and `cursor`.
pub(crate) struct Page {
    /// At most so many entries.
    pub(crate) limit: usize,
    /// Those after this key.
    pub(crate) after: Option<String>,
}

impl FromRequestParts<App> for Page {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self> {
        let query = Query::of(parts);
        let limit = match query.integer("limit")? {
            None => PAGE_DEFAULT,
            Some(limit) => match usize::try_from(limit) {
                Ok(limit) if (1..=PAGE_MAX).contains(&limit) => limit,
                _ => return Err(invalid(format!("limit must be a whole number from 1 to {PAGE_MAX}"))),
            },
        };
        let opened = |cursor: String| {
            let text = hex::decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            text.filter(|text| !text.contains('\0'))
                .ok_or_else(|| invalid("cursor is not one that an earlier page has given"))
        };
        let after = query.get("cursor")?.map(opened).transpose()?;
        Ok(Page { limit, after })
    }
}

/// The last parameter of the path: which entity. `{tenant}` is [`super::auth::InTenant`]'s.
pub(crate) struct Key(pub(crate) String);

impl FromRequestParts<App> for Key {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self> {
        let params = RawPathParams::from_request_parts(parts, &()).await;
        let params = params.map_err(|_| ApiError::not_found("no such path"))?;
        let last = params.iter().last().map(|(_, value)| value.to_owned());
        Ok(Key(last.unwrap_or_default()))
    }
}

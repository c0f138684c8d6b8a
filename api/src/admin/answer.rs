//! What administration answers: entities with their versions, lists page by page.

use annals_domain::clock::Timestamp;
use annals_store::tenants::Stored;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::Administrator;
use crate::extract::none_match_hits;
use crate::respond::PLAIN_JSON;

/// An entity with what the journal knows of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Entry<E: ToSchema> {
    /// What it is.
    #[serde(flatten)]
    pub(crate) entity: E,
    /// How many events it has had; the `ETag` in quotes.
    #[schema(minimum = 1)]
    pub(crate) version: i64,
    /// When it was made.
    #[schema(format = DateTime)]
    pub(crate) created: String,
    /// When it was changed last.
    #[schema(format = DateTime)]
    pub(crate) modified: String,
}

impl<E: ToSchema> Entry<E> {
    /// Of what is stored.
    pub(crate) fn of(stored: Stored<E>) -> Entry<E> {
        let Stored { entity, version, created, modified } = stored;
        Entry { entity, version, created: time(created), modified: time(modified) }
    }
}

/// A moment as administration writes it (RFC 3339).
pub(crate) fn time(at: Timestamp) -> String {
    at.to_rfc3339()
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct List<T: ToSchema> {
    /// The entries, in the order of their keys.
    pub(crate) items: Vec<T>,
    /// What `cursor` must be for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_cursor: Option<String>,
}

impl<T: ToSchema> List<T> {
    /// Of one entry more than the page has, if there are more; `key` is what the next page begins after.
    pub(crate) fn of(mut items: Vec<T>, limit: usize, key: impl Fn(&T) -> String) -> List<T> {
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|last| hex::encode(key(last)));
        List { items, next_cursor }
    }
}

/// A body as it is.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(body).unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PLAIN_JSON));
    // Some of it is a secret, and all of it changes.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Nothing but success.
pub(crate) fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn tagged(mut response: Response, version: i64) -> Response {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// 200 with an entity, or 304 if the client has this version.
pub(crate) fn found<E: Serialize + ToSchema>(headers: &HeaderMap, entry: &Entry<E>) -> Response {
    let etag = format!("\"{}\"", entry.version);
    if none_match_hits(headers, &etag) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return tagged(response, entry.version);
    }
    tagged(json(StatusCode::OK, entry), entry.version)
}

/// 200 with a changed entity.
pub(crate) fn changed<E: Serialize + ToSchema>(entry: &Entry<E>) -> Response {
    tagged(json(StatusCode::OK, entry), entry.version)
}

/// 201 with a new entity, whose place is below [`super::BASE`].
pub(crate) fn created(
    administrator: &Administrator,
    path: &str,
    version: i64,
    body: &impl Serialize,
) -> Response {
    let mut response = tagged(json(StatusCode::CREATED, body), version);
    let headers: [(HeaderName, String); 1] = [(LOCATION, administrator.location(path))];
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

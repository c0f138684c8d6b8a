//! Errors of administration: problem details (RFC 9457) instead of SCIM's error bodies.
//!
//! What failed is decided where all failures are ([`crate::error`]); only the form of the body differs.

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Told;

/// The media type of problem details.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not served (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem<'a> {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    pub(crate) kind: &'static str,
    /// The status in words.
    pub(crate) title: &'a str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub(crate) status: u16,
    /// What was wrong with this request.
    pub(crate) detail: &'a str,
    /// The request's id, as in `X-Request-Id` and in the log.
    pub(crate) request_id: &'a str,
}

/// Whether a path belongs to administration.
pub(crate) fn is_below(path: &str) -> bool {
    path == "/admin" || path.starts_with("/admin/")
}

/// Gives an error response the form that administration has.
pub(crate) fn settle_error(response: &mut Response, request_id: &str) {
    let Some(Told(detail)) = response.extensions_mut().remove::<Told>() else { return };
    let status = response.status();
    let problem = Problem {
        kind: "about:blank",
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail: &detail,
        request_id,
    };
    *response.body_mut() = Body::from(serde_json::to_vec(&problem).unwrap_or_default());
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
}

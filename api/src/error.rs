//! The single place where failures become the error bodies of RFC 7644 §3.12.
//!
//! The client's mistakes come as [`ScimError`], from the domain or through the store. What is ours becomes
//! 500 or 503 with a fixed sentence; the chain of causes goes to the log, once, and never to the client.

use annals_domain::scim::error::{ScimError, ScimType};
use annals_store::StoreError;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::respond::SCIM_JSON;

/// Seconds after which writes that an operator stopped may be tried again.
const HALTED_RETRY_AFTER_S: u64 = 60;
/// Seconds after which an unreachable database may be tried again.
const UNAVAILABLE_RETRY_AFTER_S: u64 = 5;
/// Seconds after which a server without a free slot may be tried again.
const OVERLOADED_RETRY_AFTER_S: u64 = 1;

/// Why a request was not served.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The request is wrong, or what it asks for cannot be.
    Scim(ScimError),
    /// Storage failed, or refused.
    Store(StoreError),
    /// The client did not prove who it is, or may not do this (RFC 6750 §3).
    Auth(AuthError),
    /// Come back later (429, 503).
    Later {
        /// 429 or 503.
        status: StatusCode,
        /// When, in seconds.
        retry_after_s: u64,
        /// Why.
        detail: &'static str,
    },
    /// A handler panicked.
    Panic,
}

/// A challenge (SE-003).
#[derive(Debug)]
pub(crate) struct AuthError {
    /// 400, 401 or 403.
    pub(crate) status: StatusCode,
    /// The `error` of RFC 6750; none if there were no credentials at all.
    pub(crate) error: Option<&'static str>,
    /// For the SCIM body and `error_description`: printable ASCII without `"` and `\`.
    pub(crate) detail: &'static str,
    /// The scope that is missing.
    pub(crate) scope: Option<&'static str>,
}

/// Result of handlers.
pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    /// 404 with a sentence.
    pub(crate) fn not_found(detail: impl Into<String>) -> ApiError {
        ApiError::Scim(ScimError::not_found(detail))
    }

    /// Any status without a keyword.
    pub(crate) fn status(status: u16, detail: impl Into<String>) -> ApiError {
        ApiError::Scim(ScimError::status(status, detail))
    }

    /// 400 and a keyword.
    pub(crate) fn bad(scim_type: ScimType, detail: impl Into<String>) -> ApiError {
        ApiError::Scim(ScimError::bad(scim_type, detail))
    }

    /// 503: every slot is taken.
    pub(crate) fn overloaded() -> ApiError {
        ApiError::Later {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after_s: OVERLOADED_RETRY_AFTER_S,
            detail: "the server is busy",
        }
    }
}

impl From<ScimError> for ApiError {
    fn from(error: ScimError) -> ApiError {
        ApiError::Scim(error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        ApiError::Store(error)
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> ApiError {
        ApiError::Auth(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            ApiError::Scim(error) => respond(&error),
            ApiError::Store(error) => store_error(error),
            ApiError::Auth(error) => {
                let mut response = respond(&scim(error.status, error.detail));
                if let Ok(challenge) = HeaderValue::from_str(&error.challenge()) {
                    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                }
                response
            }
            ApiError::Later { status, retry_after_s, detail } => later(status, retry_after_s, detail),
            ApiError::Panic => respond(&internal()),
        }
    }
}

impl AuthError {
    fn challenge(&self) -> String {
        let mut challenge = String::from("Bearer realm=\"annals\"");
        if let Some(error) = self.error {
            challenge.push_str(&format!(", error=\"{error}\", error_description=\"{}\"", self.detail));
        }
        if let Some(scope) = self.scope {
            challenge.push_str(&format!(", scope=\"{scope}\""));
        }
        challenge
    }
}

fn store_error(error: StoreError) -> Response {
    let (error, retry_after_s) = told(error);
    let mut response = respond(&error);
    if let Some(seconds) = retry_after_s {
        // Integer seconds: Okta cannot read dates (OK-005).
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// What the client is told of a failure of storage, and after how many seconds it may come back. The rest
/// goes to the log.
pub(crate) fn told(error: StoreError) -> (ScimError, Option<u64>) {
    let later = |retry_after_s: u64, detail: &str| {
        (scim(StatusCode::SERVICE_UNAVAILABLE, &later_detail(retry_after_s, detail)), Some(retry_after_s))
    };
    match error {
        StoreError::Refused(error) => (error, None),
        StoreError::NoTenant(_) => (ScimError::not_found("no such tenant"), None),
        StoreError::Busy { what, retry_after_s } => {
            tracing::warn!(what, retry_after_s, "the request was put off");
            later(retry_after_s, "the server is busy")
        }
        StoreError::Halted(reason) => {
            tracing::warn!(reason, "a write was refused, as writes are stopped");
            let detail = "writes are stopped until an operator has recovered the journal; reads work";
            later(HALTED_RETRY_AFTER_S, detail)
        }
        // What the server of a database says has a code; without one, there was nobody to say anything.
        StoreError::Database(ref cause) if cause.as_database_error().is_none() => {
            tracing::error!(error = chain(&error), "the database is out of reach");
            later(UNAVAILABLE_RETRY_AFTER_S, "the server cannot reach its database")
        }
        error => {
            tracing::error!(error = chain(&error), "the request failed");
            (internal(), None)
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // `#[error(transparent)]` says the same twice.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

fn internal() -> ScimError {
    ScimError::status(500, "the server failed; its log has the cause under the id in X-Request-Id")
}

fn scim(status: StatusCode, detail: &str) -> ScimError {
    ScimError::status(status.as_u16(), detail)
}

fn later_detail(retry_after_s: u64, detail: &str) -> String {
    format!("{detail}: try again in {retry_after_s} s")
}

fn later(status: StatusCode, retry_after_s: u64, detail: &str) -> Response {
    let mut response = respond(&scim(status, &later_detail(retry_after_s, detail)));
    // Integer seconds: Okta cannot read dates (OK-005).
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
    response
}

fn respond(error: &ScimError) -> Response {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::new(Body::from(error.to_json().to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(SCIM_JSON));
    response.extensions_mut().insert(Told(error.detail.clone()));
    response
}

/// What an error response says, for those who say it in another form.
#[derive(Clone, Debug)]
pub(crate) struct Told(pub(crate) String);

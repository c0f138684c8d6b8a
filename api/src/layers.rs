//! What surrounds every request: its id, its span, its place among the requests in flight, its metrics,
//! and the promise that even a panic is answered.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use annals_domain::scim::dialect::ResponseMediaType;
use annals_domain::scim::schema::Registry;
use annals_store::tenants::Principal;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::Instrument;

use crate::admin;
use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Accepts, accepts};
use crate::rates::Level;
use crate::respond::{PLAIN_JSON, SCIM_JSON};

/// Longest `X-Request-Id` of a client that is kept, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is known about a request from its beginning, and learnt on its way.
#[derive(Debug, Default)]
pub(crate) struct RequestContext {
    /// Its id, the client's or ours.
    pub(crate) id: String,
    /// W3C `traceparent`, if the client sent a well-formed one.
    pub(crate) traceparent: Option<String>,
    /// How its token's rate stands, if that is limited.
    pub(crate) rate: OnceLock<Level>,
    /// Whose it turned out to be.
    pub(crate) principal: OnceLock<Arc<Principal>>,
    /// The schemas that its tenant has.
    pub(crate) registry: OnceLock<Arc<Registry>>,
}

/// Marks a request whose path was spelt in another case than ours: a strict client may not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Respelt;

/// Gives a request its id, span, metrics and final media type.
pub(crate) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let context = Arc::new(RequestContext {
        id: request_id(request.headers()).unwrap_or_else(|| new_request_id(&app)),
        traceparent: traceparent(request.headers()),
        rate: OnceLock::new(),
        principal: OnceLock::new(),
        registry: OnceLock::new(),
    });
    request.extensions_mut().insert(context.clone());
    let method = request.method().clone();
    let accept = request.headers().get(ACCEPT).cloned();
    let administers = admin::is_below(request.uri().path());
    // The template, never the path: ids and query values are personal.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", |m| m.as_str()).to_owned();
    let span = tracing::info_span!(
        "request",
        method = label(&method),
        route,
        request_id = context.id,
        tenant = tracing::field::Empty,
    );
    let handled = AssertUnwindSafe(next.run(request).instrument(span.clone())).catch_unwind().await;
    let _entered = span.enter();
    let mut response = handled.unwrap_or_else(|_| {
        // The panic's own message went to the log by the panic hook.
        tracing::error!("a handler panicked");
        ApiError::Panic.into_response()
    });
    if administers {
        admin::settle_error(&mut response, &context.id);
    }
    settle_media_type(&mut response, accept, context.principal.get().map(|p| &**p));
    if let Ok(id) = HeaderValue::from_str(&context.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if let Some(rate) = context.rate.get() {
        tell_rate(response.headers_mut(), rate);
    }
    let status = response.status().as_u16();
    let elapsed = started.elapsed();
    let method = label(&method);
    let labels = [("method", method.to_owned()), ("route", route.clone()), ("status", status.to_string())];
    metrics::counter!("annals_http_requests_total", &labels).increment(1);
    metrics::histogram!("annals_http_request_duration_seconds", &labels[..2]).record(elapsed.as_secs_f64());
    let duration_ms = elapsed.as_millis() as u64;
    tracing::info!(status, duration_ms, "{method} {route} answered {status} in {duration_ms} ms");
    response
}

/// SP-006: how many requests a second the token may make, how many of them are left, and in how many seconds
/// all will be there again; besides `Retry-After`.
fn tell_rate(headers: &mut HeaderMap, rate: &Level) {
    let told = [
        ("x-rate-limit-limit", Some(u64::from(rate.max))),
        ("x-rate-limit-remaining", Some(u64::from(rate.left))),
        ("x-rate-limit-reset", Some(rate.full_in_s)),
        ("x-rate-limit-retry-after-seconds", rate.retry_after_s),
    ];
    for (name, value) in told {
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
        }
    }
}

/// The method as a label: a client may invent methods, but no time series.
fn label(method: &Method) -> &str {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    if known.contains(method) { method.as_str() } else { "other" }
}

/// Refuses a request at once if too many are being served. Health and metrics are outside of it.
pub(crate) async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    match app.slots.clone().try_acquire_owned() {
        Ok(permit) => {
            let response = next.run(request).await;
            // A streamed body goes on after this; its pages are bounded by themselves.
            drop(permit);
            response
        }
        Err(_) => {
            metrics::counter!("annals_http_overloaded_total").increment(1);
            ApiError::overloaded().into_response()
        }
    }
}

/// MT-003: handlers answer `application/scim+json`; a client that takes only plain JSON gets that, and so
/// does one whose profile says so.
fn settle_media_type(response: &mut Response, accept: Option<HeaderValue>, principal: Option<&Principal>) {
    let scim = response.headers().get(CONTENT_TYPE).is_some_and(|v| v.as_bytes() == SCIM_JSON.as_bytes());
    let wanted = principal.map(|p| p.connection.client.response_media_type());
    let plain = match wanted.unwrap_or(ResponseMediaType::Negotiate) {
        ResponseMediaType::Scim => false,
        ResponseMediaType::Json => true,
        ResponseMediaType::Negotiate => {
            let headers: HeaderMap = accept.into_iter().map(|value| (ACCEPT, value)).collect();
            accepts(&headers) == Accepts::JsonOnly
        }
    };
    if scim && plain {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PLAIN_JSON));
    }
}

fn new_request_id(app: &App) -> String {
    app.store.entropy().uuid_v7(app.store.now()).hyphenated().to_string()
}

/// The client's own id, if it is a harmless word.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    (!id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(legal)).then(|| id.to_owned())
}

/// `00-<32 hex>-<16 hex>-<2 hex>` (W3C Trace Context §3.2), neither id all zero.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-');
    let mut part = |len: usize| {
        let part = parts.next()?;
        let hex = part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (part.len() == len && hex).then_some(part)
    };
    let (version, trace, parent, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let zero = |id: &str| id.bytes().all(|b| b == b'0');
    (version == "00" && parts.next().is_none() && !zero(trace) && !zero(parent)).then(|| text.to_owned())
}

/// The path as routes know it: no empty segments (`//Users`, `/Users/`), with our version if none is named
/// (VB-003), and the segment after the base in our spelling (`/users`, EP-006). Ids are left alone.
pub(crate) fn canonical_uri(uri: &Uri, endpoints: &[String]) -> Option<(Uri, bool)> {
    let path = uri.path();
    let mut segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let base = match segments.as_slice() {
        ["scim", ..] => 1,
        ["t", _, "scim", ..] => 3,
        _ => segments.len(),
    };
    let ours = |segment: &str| endpoints.iter().find(|e| e.eq_ignore_ascii_case(segment));
    // What looks like a version is one; everything else may be a tenant's own endpoint.
    if segments.get(base).is_some_and(|segment| !is_version(segment)) {
        segments.insert(base, "v2");
    }
    let mut respelt = false;
    if segments.get(base) == Some(&"v2")
        && let Some(given) = segments.get_mut(base + 1)
        && let Some(ours) = ours(given)
        && ours != given
    {
        *given = ours;
        respelt = true;
    }
    let canonical = format!("/{}", segments.join("/"));
    if canonical == path {
        return None;
    }
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{canonical}{query}").parse().ok()?);
    Some((Uri::from_parts(parts).ok()?, respelt))
}

/// `v2`, `V10`.
fn is_version(segment: &str) -> bool {
    let digits = segment.strip_prefix(['v', 'V']).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_brought_to_our_spelling() {
        let endpoints = ["Users".to_owned(), "Schemas".to_owned()];
        let of = |text: &str| {
            canonical_uri(&text.parse().unwrap(), &endpoints).map(|(uri, respelt)| (uri.to_string(), respelt))
        };
        assert_eq!(of("/scim/v2/Users?x=1"), None);
        assert_eq!(of("/scim/v2/users?x=1"), Some(("/scim/v2/Users?x=1".into(), true)));
        assert_eq!(of("/scim/v2//Users/"), Some(("/scim/v2/Users".into(), false)));
        assert_eq!(of("/scim/v2/?filter=a%20b"), Some(("/scim/v2?filter=a%20b".into(), false)));
        assert_eq!(of("/t/acme/scim/v2/USERS/AbC"), Some(("/t/acme/scim/v2/Users/AbC".into(), true)));
        assert_eq!(of("/scim/v2/Users/users"), None);
        assert_eq!(of("/scim/Users/1"), Some(("/scim/v2/Users/1".into(), false)));
        assert_eq!(of("/t/acme/scim/Schemas"), Some(("/t/acme/scim/v2/Schemas".into(), false)));
        assert_eq!(of("/scim/v1/Users"), None);
        assert_eq!(of("/scim/Devices"), Some(("/scim/v2/Devices".into(), false)));
        assert_eq!(of("/"), None);
    }

    #[test]
    fn foreign_trace_ids_are_checked() {
        let of = |text: &'static str| {
            traceparent(
                &[(HeaderName::from_static("traceparent"), HeaderValue::from_static(text))]
                    .into_iter()
                    .collect(),
            )
        };
        assert!(of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").is_some());
        assert!(of("00-00000000000000000000000000000000-00f067aa0ba902b7-01").is_none());
        assert!(of("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01").is_none());
        assert!(of("garbage").is_none());
    }
}

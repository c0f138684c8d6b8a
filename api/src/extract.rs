//! What a request says: path, query, body, conditions. Each extractor knows its rules and its limit, and
//! answers a breach itself.

use std::sync::Arc;

use annals_domain::ids::{ResourceId, Version};
use annals_domain::scim::error::{ScimError, ScimType};
use annals_domain::scim::schema::ResourceType;
use annals_store::{Idempotency, IfMatch};
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::{
    ACCEPT, AsHeaderName, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, IF_MATCH, IF_NONE_MATCH,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::app::{ApiOptions, App};
use crate::auth::{authenticate, no_credentials};
use crate::auth::{refuse_respelt, registry};
use crate::error::{ApiError, Result};
use crate::json;

/// Longest `Idempotency-Key`, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// A parameter of the matched route, percent-decoded once; `None` if the route has none of that name.
///
/// # Errors
/// 404 if any of them is not valid UTF-8: no such path was ever given out.
pub(crate) async fn path_param(parts: &mut Parts, name: &str) -> Result<Option<String>> {
    let params = RawPathParams::from_request_parts(parts, &()).await;
    let params = params.map_err(|_| ApiError::not_found("no such path"))?;
    Ok(params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()))
}

/// The resource type that the path names.
pub(crate) struct Endpoint(pub(crate) Arc<ResourceType>);

impl<S: Sync> FromRequestParts<S> for Endpoint {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let name = path_param(parts, "endpoint").await?.unwrap_or_default();
        let unknown = || ApiError::not_found("no such path");
        let resource_type = registry(parts).by_endpoint(&name).cloned().ok_or_else(unknown)?;
        if name != resource_type.endpoint.trim_start_matches('/') {
            refuse_respelt(parts)?;
        }
        Ok(Endpoint(resource_type))
    }
}

/// The resource that the path names; it may not exist.
pub(crate) struct Target {
    /// Its type.
    pub(crate) resource_type: Arc<ResourceType>,
    /// Its id, compared exactly (EP-006).
    pub(crate) id: ResourceId,
}

impl<S: Sync> FromRequestParts<S> for Target {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let Endpoint(resource_type) = Endpoint::from_request_parts(parts, state).await?;
        let id = path_param(parts, "id").await?.unwrap_or_default();
        Ok(Target { resource_type, id: ResourceId::from_text(&id) })
    }
}

impl Target {
    /// 404 for this resource. A name that cannot be ours is not repeated.
    pub(crate) fn not_found(&self) -> ApiError {
        let name = &self.resource_type.name;
        let plain = |c: char| c.is_ascii_graphic();
        if self.id.as_str().len() <= ResourceId::LEN_BYTES_MAX && self.id.as_str().chars().all(plain) {
            ApiError::not_found(format!("{name} {} not found", self.id))
        } else {
            ApiError::not_found(format!("{name} not found"))
        }
    }
}

/// The absolute URI in front of `/Users`: as configured, or as the client named us.
pub(crate) async fn base_of(parts: &mut Parts, options: &ApiOptions) -> Result<Arc<str>> {
    let prefix = match path_param(parts, "tenant").await? {
        Some(tenant) => format!("/t/{tenant}/scim/v2"),
        None => "/scim/v2".to_owned(),
    };
    Ok(format!("{}{prefix}", origin_of(parts, options)?).into())
}

/// Scheme and authority of our URIs: as configured, or as the client named us.
pub(crate) fn origin_of(parts: &Parts, options: &ApiOptions) -> Result<String> {
    if let Some(base) = &options.base_url {
        return Ok(base.trim_end_matches('/').to_owned());
    }
    let forwarded = |name: &str| {
        let value = parts.headers.get(name).filter(|_| options.trust_forwarded)?.to_str().ok()?;
        value.split(',').next().map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned)
    };
    let https = match forwarded("x-forwarded-proto") {
        Some(scheme) => scheme.eq_ignore_ascii_case("https"),
        None => options.https,
    };
    let header = || parts.headers.get(HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
    let host = forwarded("x-forwarded-host")
        .or_else(header)
        .or_else(|| parts.uri.authority().map(|a| a.as_str().to_owned()))
        .unwrap_or_else(|| "localhost".to_owned());
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if host.is_empty() || !host.bytes().all(legal) {
        return Err(ApiError::status(400, "the Host header is malformed"));
    }
    Ok(format!("{}://{host}", if https { "https" } else { "http" }))
}

/// The query string. Unknown parameters are ignored (EP-007), `+` is a blank (EN-007).
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Query {
    /// The query string of a request.
    pub(crate) fn of(parts: &Parts) -> Query {
        Query::parse(parts.uri.query().unwrap_or_default())
    }

    fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| match pair.split_once('=') {
                    Some((name, value)) => (percent_decode(name), Some(percent_decode(value))),
                    None => (percent_decode(pair), None),
                })
                .collect(),
        )
    }

    /// Whether a parameter is there, with or without value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(given, _)| given == name.as_bytes())
    }

    /// The value of a parameter; none if it is not there or has no `=`.
    pub(crate) fn get(&self, name: &str) -> Result<Option<String>> {
        let mut values = self.values(name)?.into_iter();
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(ApiError::bad(ScimType::InvalidValue, format!("{name} is given more than once"))),
        }
    }

    /// The values of a list parameter, joined by commas; it may be repeated.
    pub(crate) fn list(&self, name: &str) -> Result<Option<String>> {
        let values = self.values(name)?;
        Ok((!values.is_empty()).then(|| values.join(",")))
    }

    fn values(&self, name: &str) -> Result<Vec<String>> {
        let given = self.0.iter().filter(|(given, _)| given == name.as_bytes());
        given
            .filter_map(|(_, value)| value.clone())
            .map(|value| match String::from_utf8(value) {
                Ok(text) if !text.contains('\0') => Ok(text),
                _ => Err(ApiError::bad(ScimType::InvalidValue, format!("{name} is not valid UTF-8 text"))),
            })
            .collect()
    }

    /// A whole number, of any size: beyond 64 bits it is the nearest one we have (PG-006).
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>> {
        self.get(name)?.map(|text| integer(name, text.trim())).transpose()
    }
}

fn integer(name: &str, text: &str) -> Result<i64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ApiError::bad(ScimType::InvalidValue, format!("{name} must be a whole number")));
    }
    let bound = if text.starts_with('-') { i64::MIN } else { i64::MAX };
    Ok(text.parse().unwrap_or(bound))
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Ok(Query::of(parts))
    }
}

/// Decodes `%XX` and `+`. A `%` without two digits stands for itself, as in browsers.
fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _, _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    out
}

/// A JSON body: media type, size, depth and text are checked before anything looks at it.
pub(crate) struct ScimBody {
    /// The body.
    pub(crate) json: Value,
    /// Its digest, for `Idempotency-Key`.
    pub(crate) digest: [u8; 32],
}

impl FromRequest<App> for ScimBody {
    type Rejection = ApiError;
    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let (mut parts, body) = request.into_parts();
        let (bytes_max, name) = limit(&mut parts, app).await?;
        ScimBody::read(&parts.headers, body, app, bytes_max, name).await
    }
}

impl ScimBody {
    async fn read(
        headers: &HeaderMap,
        body: Body,
        app: &App,
        bytes_max: usize,
        name: &str,
    ) -> Result<ScimBody> {
        check_media_type(headers, &["application/scim+json", "application/json"])?;
        let bytes = read_within(headers, body, app, bytes_max, name).await?;
        let json = json::parse(&bytes, app.options.json_depth_max)?;
        Ok(ScimBody { json, digest: Sha256::digest(&bytes).into() })
    }
}

/// Reads a body within its bounds of size and time.
pub(crate) async fn read_within(
    headers: &HeaderMap,
    body: Body,
    app: &App,
    bytes_max: usize,
    name: &str,
) -> Result<Bytes> {
    check_length(headers, bytes_max, name)?;
    let read = read_body(body, bytes_max, name);
    match tokio::time::timeout(app.options.body_timeout, read).await {
        Ok(bytes) => bytes,
        Err(_) => Err(ApiError::status(408, "the body took too long to arrive")),
    }
}

/// The body of a bulk request, which has a bound of its own (BU-005).
pub(crate) struct BulkBody(pub(crate) ScimBody);

impl FromRequest<App> for BulkBody {
    type Rejection = ApiError;
    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let (mut parts, body) = request.into_parts();
        let caller = authenticate(&mut parts, app).await?.ok_or_else(no_credentials)?;
        let bounds = caller.bounds(app);
        if bounds.bulk_operations_max == 0 {
            let detail = "bulk requests are not supported; see ServiceProviderConfig";
            return Err(ApiError::status(501, detail));
        }
        let bytes_max = bounds.bulk_body_bytes_max;
        Ok(BulkBody(ScimBody::read(&parts.headers, body, app, bytes_max, "maxPayloadSize").await?))
    }
}

/// MT-004: one of the known types, such as SCIM or plain JSON, whatever the parameters; no type at all is
/// accepted.
pub(crate) fn check_media_type(headers: &HeaderMap, known: &[&str]) -> Result<()> {
    if let Some(value) = headers.get(CONTENT_TYPE) {
        let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !essence.is_empty() && !known.iter().any(|k| essence.eq_ignore_ascii_case(k)) {
            let detail = format!("Content-Type must be {}", known.join(" or "));
            return Err(ApiError::status(415, detail));
        }
    }
    let encoding = headers.get(CONTENT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("identity");
    if !encoding.trim().eq_ignore_ascii_case("identity") {
        return Err(ApiError::status(415, "compressed bodies are not supported: send no Content-Encoding"));
    }
    Ok(())
}

/// How much the request may bring, and the name of that bound.
async fn limit(parts: &mut Parts, app: &App) -> Result<(usize, &'static str)> {
    let options = &app.options;
    let changes = parts.method == Method::PUT || parts.method == Method::PATCH;
    let has_members = match path_param(parts, "endpoint").await? {
        Some(name) if changes => {
            registry(parts).by_endpoint(&name).is_some_and(|rt| rt.link_attribute().is_some())
        }
        _ => false,
    };
    Ok(match has_members {
        true => (options.group_body_bytes_max, "group_body_bytes_max"),
        false => (options.body_bytes_max, "body_bytes_max"),
    })
}

fn too_large(bytes_max: usize, name: &str) -> ApiError {
    ApiError::status(413, format!("the body is larger than {bytes_max} bytes ({name})"))
}

fn check_length(headers: &HeaderMap, bytes_max: usize, name: &str) -> Result<()> {
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    match length {
        Some(length) if length > bytes_max as u64 => Err(too_large(bytes_max, name)),
        _ => Ok(()),
    }
}

/// Reads frame by frame and stops at the bound, whatever `Content-Length` said or did not say.
async fn read_body(mut body: Body, bytes_max: usize, name: &str) -> Result<Bytes> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::status(400, "the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        if read.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max, name));
        }
        read.extend_from_slice(&data);
    }
    Ok(read.freeze())
}

/// All values of a header in one line.
fn joined(headers: &HeaderMap, name: impl AsHeaderName) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().map(|v| v.to_str().unwrap_or("?")).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// What `If-Match` demands (VE-003, VE-004, VE-006): a malformed tag matches nothing.
pub(crate) fn if_match(headers: &HeaderMap, strict: bool) -> IfMatch {
    if_match_text(joined(headers, IF_MATCH).as_deref(), strict)
}

/// The same for the `version` of a bulk operation (BU-001).
pub(crate) fn if_match_text(text: Option<&str>, strict: bool) -> IfMatch {
    match text {
        None => IfMatch::Absent,
        Some(text) if text.trim() == "*" => IfMatch::Exists,
        Some(text) => IfMatch::Versions(text.split(',').filter_map(|tag| version(tag, strict)).collect()),
    }
}

/// Whether `If-None-Match` names the present tag: the client has what we would send (VE-002).
pub(crate) fn none_match_hits(headers: &HeaderMap, etag: &str) -> bool {
    let Some(text) = joined(headers, IF_NONE_MATCH) else { return false };
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
    text.trim() == "*" || text.split(',').any(|tag| opaque(tag) == opaque(etag))
}

/// The version of an entity tag, compared weakly: with or without `W/`, and for all but strict clients
/// with or without quotes.
fn version(tag: &str, strict: bool) -> Option<Version> {
    let tag = tag.trim();
    let tag = tag.strip_prefix("W/").or_else(|| tag.strip_prefix("w/")).unwrap_or(tag);
    let quoted = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    let digits = match quoted {
        Some(inner) => inner,
        None if strict => return None,
        None => tag,
    };
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// The client's idempotency key with what must not change when it comes again: method, path and body.
pub(crate) fn idempotency(parts: &RequestLine, body: Option<&[u8; 32]>) -> Result<Option<Idempotency>> {
    let mut values = parts.headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default().trim();
    let legal = !key.is_empty()
        && key.len() <= IDEMPOTENCY_KEY_BYTES_MAX
        && key.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if !legal || values.next().is_some() {
        let detail =
            format!("Idempotency-Key must be one text of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} ASCII characters");
        return Err(ScimError::invalid_value(detail).into());
    }
    let mut request = format!("{} {}\n", parts.method, parts.path).into_bytes();
    request.extend_from_slice(body.map_or(&[], |digest| digest.as_slice()));
    Ok(Some(Idempotency { key: key.to_owned(), request }))
}

/// Method, path below the base and headers: what handlers that change something look at.
pub(crate) struct RequestLine {
    /// The method.
    pub(crate) method: Method,
    /// The path below the base, without query.
    pub(crate) path: String,
    /// The headers.
    pub(crate) headers: HeaderMap,
}

impl<S: Sync> FromRequestParts<S> for RequestLine {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let (method, headers) = (parts.method.clone(), parts.headers.clone());
        Ok(RequestLine { method, path: parts.uri.path().to_owned(), headers })
    }
}

/// What `Accept` allows of the two media types we have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepts {
    /// `application/scim+json`, among others or as anything goes.
    Scim,
    /// Of ours only `application/json`.
    JsonOnly,
    /// Neither.
    Nothing,
}

/// Reads `Accept` (MT-002, MT-003). Ranges with `q=0` are refused ones; no header is `*/*`.
pub(crate) fn accepts(headers: &HeaderMap) -> Accepts {
    let Some(text) = joined(headers, ACCEPT).filter(|t| !t.trim().is_empty()) else { return Accepts::Scim };
    let allowed = |wanted: &str| {
        let mut best: Option<(usize, bool)> = None;
        for range in text.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let refused = parts.any(|p| {
                let q = p.strip_prefix("q=").or_else(|| p.strip_prefix("Q="));
                q.and_then(|q| q.trim().parse::<f32>().ok()) == Some(0.0)
            });
            // The most specific range decides (RFC 9110 §12.5.1).
            let rank = match name.as_str() {
                "*/*" | "*" => 0,
                "application/*" => 1,
                name if name == wanted => 2,
                _ => continue,
            };
            if best.is_none_or(|(known, _)| rank >= known) {
                best = Some((rank, !refused));
            }
        }
        best.is_some_and(|(_, allowed)| allowed)
    };
    if allowed("application/scim+json") {
        Accepts::Scim
    } else if allowed("application/json") {
        Accepts::JsonOnly
    } else {
        Accepts::Nothing
    }
}

/// Whether `Prefer` has `return=representation` (RFC 7240).
pub(crate) fn wants_representation(headers: &HeaderMap) -> bool {
    joined(headers, "prefer").is_some_and(|text| {
        text.split([',', ';'])
            .any(|p| p.replace([' ', '"'], "").eq_ignore_ascii_case("return=representation"))
    })
}

/// 406 for a strict client that accepts nothing we have; all others get SCIM JSON (EN-005).
pub(crate) fn check_accept(headers: &HeaderMap, strict: bool) -> Result<()> {
    if strict && accepts(headers) == Accepts::Nothing {
        let status = StatusCode::NOT_ACCEPTABLE.as_u16();
        return Err(ApiError::status(status, "Accept must allow application/scim+json or application/json"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn a_query_knows_plus_and_parameters_without_value() {
        let query = Query::parse("aadOptscim062020&filter=userName+eq+%22a%2Bb%22&&x=%zz&count=");
        assert_eq!(query.get("filter").unwrap().as_deref(), Some("userName eq \"a+b\""));
        assert!(query.has("aadOptscim062020"));
        assert_eq!(query.get("aadOptscim062020").unwrap(), None);
        assert_eq!(query.get("x").unwrap().as_deref(), Some("%zz"));
        assert_eq!(query.get("count").unwrap().as_deref(), Some(""));
        assert!(query.integer("count").is_err());
    }

    #[test]
    fn numbers_beyond_64_bits_are_clamped() {
        let query = Query::parse("a=99999999999999999999&b=-99999999999999999999&c=1.5&d=-3");
        assert_eq!(query.integer("a").unwrap(), Some(i64::MAX));
        assert_eq!(query.integer("b").unwrap(), Some(i64::MIN));
        assert!(query.integer("c").is_err());
        assert_eq!(query.integer("d").unwrap(), Some(-3));
    }

    #[test]
    fn entity_tags_are_read_leniently() {
        let strict = |value| if_match(&headers("if-match", value), true);
        let lenient = |value| if_match(&headers("if-match", value), false);
        assert_eq!(lenient("W/\"5\""), IfMatch::Versions(vec![5]));
        assert_eq!(lenient("\"5\", W/6 , 7"), IfMatch::Versions(vec![5, 6, 7]));
        assert_eq!(strict("\"5\", W/6 , 7"), IfMatch::Versions(vec![5]));
        assert_eq!(lenient("*"), IfMatch::Exists);
        assert_eq!(lenient("nonsense"), IfMatch::Versions(vec![]));
        assert_eq!(lenient(""), IfMatch::Versions(vec![]));
        assert_eq!(if_match(&HeaderMap::new(), false), IfMatch::Absent);
        assert!(none_match_hits(&headers("if-none-match", "\"4\", W/\"5\""), "W/\"5\""));
        assert!(!none_match_hits(&headers("if-none-match", "W/\"50\""), "W/\"5\""));
    }

    #[test]
    fn accept_is_negotiated() {
        let of = |value| accepts(&headers("accept", value));
        assert_eq!(accepts(&HeaderMap::new()), Accepts::Scim);
        assert_eq!(of("*/*"), Accepts::Scim);
        assert_eq!(of("application/json"), Accepts::JsonOnly);
        assert_eq!(of("application/json, application/scim+json"), Accepts::Scim);
        assert_eq!(of("application/json, text/plain, */*"), Accepts::Scim);
        assert_eq!(of("application/*, application/scim+json;q=0"), Accepts::JsonOnly);
        assert_eq!(of("text/html"), Accepts::Nothing);
    }
}

//! Who speaks: from the bearer token to a [`Principal`], and what it may do (SE-003 to SE-006, D13).
//!
//! The token alone decides the tenant. A tenant in the path must be the token's own; any other is 404, as
//! if it did not exist.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use annals_domain::event::{Actor, Cause};
use annals_domain::ids::{ResourceId, TenantId};
use annals_domain::scim::dialect::{Client, Dialect, Profile, Quirk};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::schema::{Registry, ResourceType};
use annals_domain::tenant::{Scope, TenantSettings};
use annals_store::IfMatch;
use annals_store::tenants::{Authentication, Principal};
use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use secrecy::SecretString;

use crate::app::{App, Peer};
use crate::bounds::Bounds;
use crate::error::{ApiError, AuthError, Result};
use crate::extract::{Query, base_of, path_param};
use crate::layers::{RequestContext, Respelt};

/// Longest token that is looked up, in bytes. Ours are far shorter.
const TOKEN_BYTES_MAX: usize = 4_096;

/// A client whose token is valid, and the request's circumstances.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Who.
    pub(crate) principal: Arc<Principal>,
    /// The absolute URI in front of `/Users`.
    pub(crate) base: Arc<str>,
    /// The tenant's schemas, the same throughout the request.
    pub(crate) registry: Arc<Registry>,
    context: Arc<RequestContext>,
}

impl Caller {
    /// The tenant.
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.principal.tenant
    }

    /// The client profile.
    pub(crate) fn profile(&self) -> Profile {
        self.principal.connection.client.profile
    }

    /// How the client's requests are read.
    pub(crate) fn client(&self) -> &Client {
        &self.principal.connection.client
    }

    /// The bounds of the tenant's requests.
    pub(crate) fn bounds(&self, app: &App) -> Bounds {
        Bounds::of(&app.options, &self.principal.settings)
    }

    /// A dialect for this request.
    pub(crate) fn dialect(&self) -> Dialect {
        Dialect::new(self.client().clone())
    }

    /// Whether the letter of the RFCs holds.
    pub(crate) fn is_strict(&self) -> bool {
        self.profile() == Profile::Strict
    }

    /// Who acts, for events.
    pub(crate) fn actor(&self) -> Actor {
        Actor::connection(&self.principal.connection.id)
    }

    /// Why, for events.
    pub(crate) fn cause(&self, operation: &str, quirks: &BTreeSet<Quirk>) -> Cause {
        Cause {
            request_id: self.context.id.clone(),
            traceparent: self.context.traceparent.clone(),
            operation: operation.to_owned(),
            profile: Some(self.profile().to_string()),
            quirks: quirks.iter().map(ToString::to_string).collect(),
            bulk_index: None,
            token: None,
        }
    }

    /// 428 for a change that names no version, on a connection that demands one (RFC 6585 §3).
    pub(crate) fn check_condition(&self, if_match: &IfMatch) -> std::result::Result<(), ScimError> {
        if *if_match == IfMatch::Absent && self.client().has(Quirk::RequireIfMatch) {
            let status = StatusCode::PRECONDITION_REQUIRED.as_u16();
            let detail =
                "If-Match is required on this connection: name the version to change, as in its ETag";
            return Err(ScimError::status(status, detail));
        }
        Ok(())
    }

    /// Whether two groups may not have the same name.
    pub(crate) fn group_name_unique(&self) -> bool {
        self.principal.settings.group_name_unique || self.client().has(Quirk::GroupNameUnique)
    }

    /// The URI of a resource.
    pub(crate) fn location(&self, resource_type: &ResourceType, id: &ResourceId) -> String {
        format!("{}{}/{id}", self.base, resource_type.endpoint)
    }
}

macro_rules! caller_with {
    ($(#[$doc:meta])* $name:ident, $scope:expr) => {
        $(#[$doc])*
        pub(crate) struct $name(pub(crate) Caller);

        impl Deref for $name {
            type Target = Caller;
            fn deref(&self) -> &Caller {
                &self.0
            }
        }

        impl FromRequestParts<App> for $name {
            type Rejection = ApiError;
            async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
                let caller = authenticate(parts, app).await?.ok_or_else(no_credentials)?;
                if !caller.principal.scopes.contains(&$scope) {
                    return Err(insufficient($scope).into());
                }
                Ok($name(caller))
            }
        }
    };
}

caller_with! {
    /// A client that may read.
    Reader, Scope::Read
}
caller_with! {
    /// A client that may change.
    Writer, Scope::Write
}
caller_with! {
    /// An application that may check passwords.
    Verifier, Scope::Verify
}

/// Anybody, or a client with a valid token: an invalid one is refused even where none is needed (DI-004).
pub(crate) struct Visitor {
    /// The client, if it showed a token.
    pub(crate) caller: Option<Caller>,
    /// The absolute URI in front of `/Users`.
    pub(crate) base: Arc<str>,
    /// The schemas of the tenant that the token or the path names, or what every tenant has.
    pub(crate) registry: Arc<Registry>,
    /// The settings of that tenant.
    pub(crate) settings: TenantSettings,
}

impl FromRequestParts<App> for Visitor {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let caller = authenticate(parts, app).await?;
        if caller.is_none() && !app.options.discovery_public {
            return Err(no_credentials());
        }
        let (base, registry, settings) = match &caller {
            Some(caller) => (caller.base.clone(), caller.registry.clone(), caller.principal.settings.clone()),
            None => {
                let tenant =
                    path_param(parts, "tenant").await?.and_then(|tenant| TenantId::new(&tenant).ok());
                let (registry, known) = match tenant {
                    Some(tenant) => (app.store.registry_of(&tenant).await?, app.store.tenant(&tenant).await?),
                    None => (Registry::standard(), None),
                };
                let settings = known.map(|tenant| tenant.settings.clone()).unwrap_or_default();
                (base_of(parts, &app.options).await?, registry, settings)
            }
        };
        Ok(Visitor { caller, base, registry, settings })
    }
}

/// The client of a SCIM request; `None` if it shows no credentials at all.
pub(crate) async fn authenticate(parts: &mut Parts, app: &App) -> Result<Option<Caller>> {
    let Some((principal, context)) = identify(parts, app).await? else { return Ok(None) };
    if let Some(tenant) = path_param(parts, "tenant").await?
        && tenant != principal.tenant.as_str()
    {
        return Err(ApiError::not_found("no such tenant"));
    }
    if principal.connection.client.profile == Profile::Strict && parts.extensions.get::<Respelt>().is_some() {
        return Err(ApiError::not_found("no such path; upper and lower case differ"));
    }
    let base = base_of(parts, &app.options).await?;
    let registry = match context.registry.get() {
        Some(registry) => registry.clone(),
        None => app.store.registry_of(&principal.tenant).await?,
    };
    let registry = context.registry.get_or_init(|| registry).clone();
    Ok(Some(Caller { principal, base, registry, context }))
}

/// Whose token a request shows, whatever it is for; `None` if it shows no credentials at all.
pub(crate) async fn identify(
    parts: &mut Parts,
    app: &App,
) -> Result<Option<(Arc<Principal>, Arc<RequestContext>)>> {
    let query = Query::of(parts);
    if query.has("access_token") {
        // RFC 6750 §2.3 allows it, but URIs end up in logs (SE-005).
        let detail = "a token must stand in the Authorization header, never in the URI";
        return Err(invalid_request(detail));
    }
    let shown = match bearer(&parts.headers) {
        Ok(None) => return Ok(None),
        Ok(Some((scheme, token))) => known(app, scheme, &token).await,
        Err(error) => Err(error),
    };
    let principal = match shown {
        Err(ApiError::Auth(error)) if error.status == StatusCode::UNAUTHORIZED => {
            return Err(refused(parts, app, error));
        }
        shown => shown?,
    };
    let context = parts.extensions.get::<Arc<RequestContext>>().cloned().unwrap_or_default();
    // A second extractor of the same request brings the same principal.
    let first = context.principal.set(principal.clone()).is_ok();
    tracing::Span::current().record("tenant", principal.tenant.as_str());
    if first {
        let key = (principal.tenant.clone(), principal.token_id.clone());
        if let Some(level) = app.rates.level(key, app.store.now()) {
            // Nobody else has set it: this is the first.
            let _ = context.rate.set(level);
            if let Some(retry_after_s) = level.retry_after_s {
                return Err(too_many(retry_after_s, "this token makes too many requests"));
            }
        }
    }
    Ok(Some((principal, context)))
}

/// The schemas of the request's tenant; without a valid token those that every tenant has, as whoever needs
/// more is refused anyway.
pub(crate) fn registry(parts: &Parts) -> Arc<Registry> {
    let context = parts.extensions.get::<Arc<RequestContext>>();
    context.and_then(|context| context.registry.get().cloned()).unwrap_or_else(Registry::standard)
}

/// EP-006: a strict client may not spell a path in another case than ours.
pub(crate) fn refuse_respelt(parts: &Parts) -> Result<()> {
    let context = parts.extensions.get::<Arc<RequestContext>>();
    let principal = context.and_then(|context| context.principal.get());
    if principal.is_some_and(|principal| principal.connection.client.profile == Profile::Strict) {
        return Err(ApiError::not_found("no such path; upper and lower case differ"));
    }
    Ok(())
}

/// Whose a token is.
async fn known(app: &App, scheme: Scheme, token: &SecretString) -> Result<Arc<Principal>> {
    match app.store.authenticate(token).await? {
        // A word without scheme is a token only on connections that say so (OK-002); on all others it is
        // no credentials of ours, whatever word it is.
        Authentication::Valid(principal) | Authentication::Expired(principal)
            if scheme == Scheme::None && !principal.connection.client.has(Quirk::BareToken) =>
        {
            Err(unusable())
        }
        Authentication::Unknown if scheme == Scheme::None => Err(unusable()),
        Authentication::Valid(principal) => Ok(principal),
        Authentication::Expired(_) => Err(invalid_token("the token has expired")),
        Authentication::Unknown => Err(invalid_token("the token is not known or was revoked")),
    }
}

/// SE-010: an address that shows token after token that is none is told to wait. It is asked only about
/// tokens that were refused already, so that nobody with a valid one is ever slowed by a neighbour.
fn refused(parts: &Parts, app: &App, error: AuthError) -> ApiError {
    let Some(address) = client_address(parts, app.options.trust_forwarded) else { return error.into() };
    match app.guesses.take(address, app.store.now()) {
        Ok(()) => error.into(),
        Err(retry_after_s) => {
            metrics::counter!("annals_auth_guesses_refused_total").increment(1);
            too_many(retry_after_s, "too many requests without a valid token came from this address")
        }
    }
}

fn too_many(retry_after_s: u64, detail: &'static str) -> ApiError {
    ApiError::Later { status: StatusCode::TOO_MANY_REQUESTS, retry_after_s, detail }
}

/// Where a request came from: the connection's other end, or what a trusted proxy says of it. Of IPv6 the
/// network of 64 bits, which one guesser has to himself.
fn client_address(parts: &Parts, trust_forwarded: bool) -> Option<IpAddr> {
    let Peer(peer) = parts.extensions.get::<Peer>()?;
    let forwarded = parts.headers.get_all("x-forwarded-for").iter().next_back().filter(|_| trust_forwarded);
    // The last entry is the one that the nearest proxy wrote.
    let said = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    Some(match said.unwrap_or(*peer).to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        v4 => v4,
    })
}

/// How a token was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// `Bearer <token>`
    Bearer,
    /// `<token>`
    None,
}

fn unusable() -> ApiError {
    ApiError::Auth(AuthError {
        status: StatusCode::UNAUTHORIZED,
        error: None,
        detail: "Authorization must be: Bearer, a blank, and a token",
        scope: None,
    })
}

/// The token of `Authorization: Bearer …`, or the one word that stands there. Anything else in that header
/// is no credentials of ours.
fn bearer(headers: &HeaderMap) -> Result<Option<(Scheme, SecretString)>> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid_request("Authorization is given more than once"));
    }
    let text = value.to_str().map_err(|_| unusable())?.trim();
    let (scheme, token) = match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            (Scheme::Bearer, token.trim_start())
        }
        None if !text.eq_ignore_ascii_case("bearer") => (Scheme::None, text),
        _ => return Err(unusable()),
    };
    if token.is_empty() {
        return Err(unusable());
    }
    if token.len() > TOKEN_BYTES_MAX || !token.bytes().all(is_token_byte) {
        return Err(match scheme {
            Scheme::Bearer => invalid_token("the token is malformed"),
            Scheme::None => unusable(),
        });
    }
    Ok(Some((scheme, SecretString::from(token.to_owned()))))
}

/// The characters of `b64token` (RFC 6750 §2.1).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

pub(crate) fn no_credentials() -> ApiError {
    ApiError::Auth(AuthError {
        status: StatusCode::UNAUTHORIZED,
        error: None,
        detail: "a bearer token is needed in the Authorization header",
        scope: None,
    })
}

fn invalid_token(detail: &'static str) -> ApiError {
    metrics::counter!("annals_auth_failures_total").increment(1);
    ApiError::Auth(AuthError {
        status: StatusCode::UNAUTHORIZED,
        error: Some("invalid_token"),
        detail,
        scope: None,
    })
}

fn invalid_request(detail: &'static str) -> ApiError {
    ApiError::Auth(AuthError {
        status: StatusCode::BAD_REQUEST,
        error: Some("invalid_request"),
        detail,
        scope: None,
    })
}

pub(crate) fn insufficient(scope: Scope) -> AuthError {
    AuthError {
        status: StatusCode::FORBIDDEN,
        error: Some("insufficient_scope"),
        detail: "the token is valid but may not do this",
        scope: Some(scope.as_str()),
    }
}

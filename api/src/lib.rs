//! What comes in: SCIM over HTTP, health and metrics.
//!
//! [`router`] lists every route. A handler reads as extract → command or query → answer: [`auth`] finds
//! out who speaks, [`extract`] what is said, [`respond`] writes the answer, [`error`] is the one place
//! where failures become RFC 7644 bodies. Nothing here knows the bus.

mod admin;
mod app;
mod auth;
mod bounds;
mod bulk;
mod cursor;
mod discovery;
mod error;
mod extract;
mod health;
mod json;
mod layers;
mod me;
mod openapi;
mod rates;
mod resources;
mod respond;
mod search;
mod verify;

use std::convert::Infallible;

use annals_domain::scim::error::ScimType;
use annals_domain::scim::schema::Registry;
use axum::Router;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, any, get, post};
use tower::{ServiceBuilder, ServiceExt};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;

pub use app::{ApiOptions, App, Peer, Readiness, RenderMetrics};
pub use openapi::openapi;

use auth::Visitor;
use error::ApiError;
use layers::Respelt;

/// A route below the base: its path, its methods, its handlers.
type Route = (&'static str, &'static [&'static str], MethodRouter<App>);

/// Every route below `/scim/v2` and `/t/{tenant}/scim/v2`.
fn scim_table() -> Vec<Route> {
    let me = get(me::get).put(me::replace).patch(me::patch).delete(me::delete).post(not_implemented);
    let one = get(resources::get).put(resources::replace).patch(resources::patch).delete(resources::delete);
    vec![
        ("/", &["GET"], get(search::get_root)),
        ("/.search", &["POST"], post(search::post_root)),
        ("/ServiceProviderConfig", &["GET"], get(discovery::config)),
        ("/ServiceProviderConfigs", &["GET"], get(discovery::config)),
        ("/ResourceTypes", &["GET"], get(discovery::resource_types)),
        ("/ResourceTypes/{id}", &["GET"], get(discovery::resource_type)),
        ("/Schemas", &["GET"], get(discovery::schemas)),
        ("/Schemas/{id}", &["GET"], get(discovery::schema)),
        ("/Bulk", &["POST"], post(bulk::bulk)),
        ("/Me", &["GET", "POST", "PUT", "PATCH", "DELETE"], me),
        ("/{endpoint}", &["GET", "POST"], get(search::get).post(resources::create)),
        ("/{endpoint}/.search", &["POST"], post(search::post)),
        ("/{endpoint}/{id}", &["GET", "PUT", "PATCH", "DELETE"], one),
    ]
}

/// The paths below the base with their methods, for tests that must not miss one.
pub fn scim_routes() -> Vec<(&'static str, &'static [&'static str])> {
    scim_table().into_iter().map(|(path, methods, _)| (path, methods)).collect()
}

/// What machines next door ask.
fn health_routes() -> Router<App> {
    Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
}

/// What neither SCIM nor administration is: the paths with their methods, for tests that must not miss one.
pub fn other_routes() -> Vec<(&'static str, &'static [&'static str])> {
    vec![
        ("/health/live", &["GET"]),
        ("/health/ready", &["GET"]),
        ("/metrics", &["GET"]),
        ("/openapi.json", &["GET"]),
        ("/auth/v1/verify-password", &["POST"]),
    ]
}

/// Health and metrics alone, for processes without SCIM.
pub fn health_router(app: App) -> Router {
    health_routes().fallback(unknown_path).method_not_allowed_fallback(wrong_method).with_state(app)
}

/// The whole HTTP surface.
///
/// Requests to SCIM are bounded in number ([`ApiOptions::requests_in_flight_max`]); health and metrics
/// answer always.
pub fn router(app: App) -> Router {
    let scim = scim_table()
        .into_iter()
        .fold(Router::new(), |router, (path, _, handlers)| router.route(path, handlers));
    let scim = scim.layer(from_fn_with_state(app.clone(), layers::admit));
    let auth = Router::new().route("/auth/v1/verify-password", post(verify::verify_password));
    let auth = auth.layer(from_fn_with_state(app.clone(), layers::admit));
    let (admin, _) = admin::routes().split_for_parts();
    let admin = admin.layer(from_fn_with_state(app.clone(), layers::admit));
    let routes = health_routes()
        .route("/openapi.json", get(openapi::serve))
        .merge(auth)
        .merge(admin)
        .nest("/scim/v2", scim.clone())
        .nest("/t/{tenant}/scim/v2", scim)
        .route("/scim/{*rest}", any(other_version))
        .route("/t/{tenant}/scim/{*rest}", any(other_version))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), layers::observe))
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE]))
        .with_state(app.clone());
    // Paths are brought to our spelling before they are routed.
    let fixed = scim_table().into_iter().map(|(path, ..)| path.trim_start_matches('/'));
    let mut endpoints: Vec<String> = fixed.filter(|path| plain(path)).map(str::to_owned).collect();
    endpoints.extend(Registry::standard().resource_types().map(|rt| rt.endpoint[1..].to_owned()));
    let respell = move |mut request: Request| {
        if let Some((uri, respelt)) = layers::canonical_uri(request.uri(), &endpoints) {
            *request.uri_mut() = uri;
            if respelt {
                request.extensions_mut().insert(Respelt);
            }
        }
        request
    };
    let service = ServiceBuilder::new().map_request(respell).service(routes);
    Router::new().fallback_service(service.map_err(|never: Infallible| match never {}))
}

/// Whether a route is one fixed segment.
fn plain(path: &str) -> bool {
    !path.is_empty() && !path.contains(['/', '{', '.'])
}

/// POST on `/Me` (ME-003): nobody makes the user that a token is to stand for with that token (EP-003).
async fn not_implemented(visitor: Visitor) -> ApiError {
    if visitor.caller.is_none() {
        return auth::no_credentials();
    }
    ApiError::status(501, "POST /Me is not supported: users are created at /Users")
}

/// VB-002: another version than ours is refused, not missed.
async fn other_version(request: Request) -> ApiError {
    let path = request.uri().path();
    let version = path.split('/').skip_while(|s| *s != "scim").nth(1).unwrap_or_default();
    let digits = version.strip_prefix(['v', 'V']).unwrap_or_default();
    if !digits.is_empty() && digits != "2" && digits.bytes().all(|b| b.is_ascii_digit()) {
        return ApiError::bad(ScimType::InvalidVers, "only version 2 of SCIM is served: use /scim/v2");
    }
    ApiError::not_found("no such path; SCIM is at /scim/v2")
}

async fn unknown_path() -> ApiError {
    ApiError::not_found("no such path")
}

async fn wrong_method() -> ApiError {
    ApiError::status(405, "this path has no such method; see Allow")
}

//! Administration over HTTP: what the command line does over [`annals_store::Store`], below `/admin/v1`.
//!
//! [`routes`] lists every route with its description. Answers are JSON, errors problem details (RFC 9457);
//! [`auth`] says who may do what, [`extract`] reads what is said, [`answer`] writes entities with their
//! versions and lists page by page.

mod answer;
mod apps;
mod auth;
mod connections;
mod definitions;
mod deliveries;
mod doc;
mod extract;
mod problem;
mod status;
mod tenants;
mod tokens;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use problem::{Problem, is_below, settle_error};

use crate::app::App;

/// Where administration lives.
pub(crate) const BASE: &str = "/admin/v1";

/// Every route below [`BASE`], described.
pub(crate) fn routes() -> OpenApiRouter<App> {
    let below = OpenApiRouter::new()
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::get, tenants::change))
        .routes(routes!(connections::list, connections::create))
        .routes(routes!(connections::get, connections::change))
        .routes(routes!(definitions::list_schemas))
        .routes(routes!(definitions::get_schema, definitions::put_schema, definitions::retire_schema))
        .routes(routes!(definitions::list_types))
        .routes(routes!(definitions::get_type, definitions::put_type, definitions::retire_type))
        .routes(routes!(tokens::list, tokens::issue))
        .routes(routes!(tokens::get, tokens::revoke))
        .routes(routes!(apps::list, apps::create))
        .routes(routes!(apps::get, apps::change, apps::delete))
        .routes(routes!(apps::set_credential))
        .routes(routes!(apps::replay))
        .routes(routes!(apps::status))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::redrive))
        .routes(routes!(deliveries::get))
        .routes(routes!(status::all))
        .routes(routes!(status::of_tenant))
        .routes(routes!(status::verify))
        .routes(routes!(tokens::list_operators, tokens::issue_operator))
        .routes(routes!(tokens::get_operator, tokens::revoke_operator));
    OpenApiRouter::new().nest(BASE, below)
}

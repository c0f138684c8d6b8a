//! Parameters and patches as the OpenAPI document describes them. [`super::extract`] reads them.

use std::collections::BTreeMap;

use annals_domain::ids::{AppId, ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Driver, TenantSettings};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

/// Which page of a list.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageParams {
    /// At most so many entries.
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: Option<u32>,
    /// `nextCursor` of the page before.
    #[param(pattern = "^([0-9a-f]{2})+$")]
    cursor: Option<String>,
}

/// The tenant of a path.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct TenantParam {
    /// The tenant.
    tenant: TenantId,
}

/// The connection of a path.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct ConnectionParam {
    /// The tenant.
    tenant: TenantId,
    /// The connection.
    connection: ConnectionId,
}

/// The schema of a path.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct SchemaParam {
    /// The tenant.
    tenant: TenantId,
    /// Its URN.
    urn: String,
}

/// The resource type of a path.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct ResourceTypeParam {
    /// The tenant.
    tenant: TenantId,
    /// Its name.
    name: String,
}

/// The token of a path.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct TokenParam {
    /// The tenant.
    tenant: TenantId,
    /// The token's public id.
    token: String,
}

/// The operator's token of a path.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct OperatorTokenParam {
    /// The token's public id.
    token: String,
}

/// What to change of a tenant.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantPatch {
    /// Settings to change; null = the default.
    settings: Option<TenantSettings>,
}

/// What to change of a connection.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConnectionPatch {
    /// The new profile.
    profile: Option<Profile>,
    /// Switches to change; null = what the profile says.
    switches: Option<BTreeMap<String, Option<bool>>>,
}

/// The app of a path.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct AppParam {
    /// The tenant.
    tenant: TenantId,
    /// The application.
    app: AppId,
}

/// The delivery of a path.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct DeliveryParam {
    /// The tenant.
    tenant: TenantId,
    /// The application.
    app: AppId,
    /// The entity's id.
    id: String,
}

/// Which deliveries.
#[derive(Debug, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeliveryParams {
    /// Only this application's.
    app: Option<AppId>,
    /// Only this entity's.
    id: Option<String>,
    /// Only those in this state.
    #[param(inline)]
    state: Option<DeliveryState>,
}

/// Where a delivery stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "it describes; `LaneState` is what is read")]
pub(crate) enum DeliveryState {
    Due,
    Leased,
    Idle,
    Waiting,
    Quarantined,
}

/// What to change of an app.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppPatch {
    /// How it is fed.
    driver: Option<Driver>,
    /// Resource types it gets; empty = all.
    resource_types: Option<Vec<String>>,
    /// Nothing is sent until resumed; what is due stays due.
    paused: Option<bool>,
    /// Most requests in flight at once.
    #[schema(minimum = 1, maximum = 1000)]
    concurrency_max: Option<usize>,
    /// Most requests a second; 0 = no limit.
    rate_per_second_max: Option<u32>,
}

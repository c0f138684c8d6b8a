//! Deliveries: one entity on its way to one application.

use annals_domain::ids::{AppId, ResourceId};
use annals_store::lanes::{Attempt, Delivery, DeliveryFilter, LaneKey, LaneState};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{List, json, time};
use super::auth::InTenant;
use super::doc::{DeliveryParam, DeliveryParams, PageParams, TenantParam};
use super::extract::{Json, Page, invalid};
use crate::app::App;
use crate::error::{ApiError, Result};
use crate::extract::{Query, path_param};

/// A delivery.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeliveryView {
    app: AppId,
    /// The entity's id.
    id: String,
    resource_type: String,
    /// `state`: the newest state is sent; `log`: every version is.
    kind: &'static str,
    /// `due`, `leased`, `idle`, `waiting` (for another entity's id at the application) or `quarantined`.
    state: &'static str,
    /// The newest version planned.
    wanted_version: i64,
    /// The version the application has.
    applied_version: i64,
    /// When it is looked at next.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    due_at: Option<String>,
    /// Failures in a row.
    failures: i64,
    /// The entity's id at the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    remote_id: Option<String>,
    /// Why it failed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    last_error: Option<String>,
    /// Whether the newest planned event is a deletion.
    deleted: bool,
}

/// A delivery with its last attempts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeliveryDetail {
    #[serde(flatten)]
    delivery: DeliveryView,
    /// The last attempts, the newest first.
    #[serde(rename = "lastAttempts")]
    last_attempts: Vec<AttemptView>,
}

/// One attempt to deliver.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttemptView {
    /// 1, 2, 3, … of its delivery.
    number: i64,
    /// When it began.
    #[schema(format = DateTime)]
    at: String,
    /// What it came to.
    outcome: String,
    /// The last HTTP status; absent = there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    status: Option<i64>,
    duration_ms: i64,
    /// What happened.
    detail: String,
}

/// Which deliveries get another try; absent = all.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Redrive {
    /// Only this application's.
    app: Option<AppId>,
    /// Only this entity's.
    #[schema(min_length = 1, max_length = 128)]
    id: Option<String>,
}

/// How many deliveries get another try.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Redriven {
    redriven: u64,
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> DeliveryView {
        DeliveryView {
            app: delivery.key.app,
            id: delivery.key.id.to_string(),
            resource_type: delivery.resource_type,
            kind: delivery.kind.as_str(),
            state: delivery.state.as_str(),
            wanted_version: delivery.wanted_version,
            applied_version: delivery.applied_version,
            due_at: delivery.due_at.map(time),
            failures: delivery.attempts,
            remote_id: delivery.remote_id,
            last_error: delivery.last_error,
            deleted: delivery.deleted,
        }
    }
}

impl From<Attempt> for AttemptView {
    fn from(attempt: Attempt) -> AttemptView {
        let Attempt { number, at, outcome, status, duration_ms, detail } = attempt;
        AttemptView { number, at: time(at), outcome, status, duration_ms, detail }
    }
}

fn app_id(text: &str) -> Result<AppId> {
    AppId::new(text).map_err(|error| invalid(error.to_string()))
}

/// A tenant's deliveries by application and entity.
#[utoipa::path(get, path = "/tenants/{tenant}/deliveries", tag = "deliveries",
    operation_id = "listDeliveries", params(TenantParam, PageParams, DeliveryParams),
    responses((status = 200, body = List<DeliveryView>)))]
pub(crate) async fn list(
    State(app): State<App>,
    scope: InTenant,
    page: Page,
    query: Query,
) -> Result<Response> {
    let state = match query.get("state")? {
        Some(name) => Some(LaneState::parse(&name).ok_or_else(|| {
            let names = LaneState::ALL.map(LaneState::as_str).join(", ");
            invalid(format!("state: it is one of {names}"))
        })?),
        None => None,
    };
    let after = match page.after.as_deref().map(|key| key.split_once(' ')) {
        Some(Some((app, id))) => {
            Some(LaneKey { tenant: scope.tenant.clone(), app: app_id(app)?, id: ResourceId::from_text(id) })
        }
        Some(None) => return Err(invalid("cursor is of another list")),
        None => None,
    };
    let filter = DeliveryFilter {
        tenant: Some(scope.tenant.clone()),
        app: query.get("app")?.as_deref().map(app_id).transpose()?,
        id: query.get("id")?.as_deref().map(ResourceId::from_text),
        state,
        after,
    };
    let found = app.store.deliveries(&filter, page.limit + 1).await?;
    let items = found.into_iter().map(DeliveryView::from).collect();
    let key = |delivery: &DeliveryView| format!("{} {}", delivery.app, delivery.id);
    Ok(json(StatusCode::OK, &List::of(items, page.limit, key)))
}

/// The delivery that the path names.
pub(crate) struct Lane(LaneKey);

impl axum::extract::FromRequestParts<App> for Lane {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut axum::http::request::Parts, app: &App) -> Result<Self> {
        let tenant = InTenant::from_request_parts(parts, app).await?.tenant;
        let key = path_param(parts, "app").await?.unwrap_or_default();
        let id = path_param(parts, "id").await?.unwrap_or_default();
        let app = AppId::new(&key).map_err(|_| missing())?;
        Ok(Lane(LaneKey { tenant, app, id: ResourceId::from_text(&id) }))
    }
}

fn missing() -> ApiError {
    ApiError::not_found("no such delivery")
}

/// A delivery with its last attempts.
#[utoipa::path(get, path = "/tenants/{tenant}/deliveries/{app}/{id}", tag = "deliveries",
    operation_id = "getDelivery", params(DeliveryParam), responses((status = 200, body = DeliveryDetail)))]
pub(crate) async fn get(State(app): State<App>, Lane(key): Lane) -> Result<Response> {
    let delivery = app.store.delivery(&key).await?.ok_or_else(missing)?;
    let attempts = app.store.attempts(&key.tenant, &key.app, &key.id).await?;
    let last_attempts = attempts.into_iter().map(AttemptView::from).collect();
    Ok(json(StatusCode::OK, &DeliveryDetail { delivery: delivery.into(), last_attempts }))
}

/// Gives quarantined deliveries another try.
#[utoipa::path(post, path = "/tenants/{tenant}/deliveries/redrive", tag = "deliveries",
    operation_id = "redriveDeliveries", params(TenantParam), request_body = Redrive,
    responses((status = 200, body = Redriven)))]
pub(crate) async fn redrive(
    State(app): State<App>,
    scope: InTenant,
    Json(which): Json<Redrive>,
) -> Result<Response> {
    let filter = DeliveryFilter {
        tenant: Some(scope.tenant.clone()),
        app: which.app,
        id: which.id.as_deref().map(ResourceId::from_text),
        ..DeliveryFilter::default()
    };
    let redriven = app.store.redrive(&filter).await?;
    scope.log("deliveries were given another try");
    Ok(json(StatusCode::OK, &Redriven { redriven }))
}

//! How far everything is, and whether the journal is what it was.

use annals_domain::ids::Position;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{json, time};
use super::auth::{InTenant, Operator};
use super::doc::TenantParam;
use crate::app::App;
use crate::error::{ApiError, Result};

/// How far the installation is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    journal: JournalStatus,
    read_model: ReadModelStatus,
    deliveries: DeliveriesStatus,
}

/// The journal's end.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JournalStatus {
    /// Position of the last event, 0 if there is none.
    position: Position,
    /// Raised when a restored journal is recovered.
    epoch: i64,
    /// Why writes are stopped; absent = they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    writes_stopped: Option<String>,
}

/// How far queries see.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReadModelStatus {
    /// Everything up to this position is applied.
    position: Position,
    /// How many positions the journal is ahead.
    lag_positions: i64,
    /// Entities whose rows are old as an event of theirs could not be applied.
    parked_entities: i64,
    /// `annals rebuild` is needed.
    rebuild_needed: bool,
}

/// How far downstream applications are.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeliveriesStatus {
    /// Everything up to this position is planned.
    planned_position: Position,
    /// How many positions the journal is ahead.
    lag_positions: i64,
    due: i64,
    leased: i64,
    quarantined: i64,
    /// Since when the oldest is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    oldest_due: Option<String>,
}

/// How far a tenant is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantStatus {
    /// Position of the tenant's last event.
    position: Position,
    /// Whether queries see it.
    read_model_has_it: bool,
    /// Whether its deliveries are planned.
    deliveries_are_planned: bool,
}

/// What a verification saw.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verified {
    /// Nothing was found.
    sound: bool,
    /// Events walked.
    events: i64,
    /// Batches walked.
    batches: i64,
    /// Entities replayed.
    entities: i64,
    /// Hash of the last batch: keep it elsewhere, and compare it later.
    root: String,
    /// What is not as it should be; at most 100 are told.
    findings: Vec<FindingView>,
    /// Events were written meanwhile: findings at the journal's end may be these.
    grew_meanwhile: bool,
}

/// One thing that is not as it should be.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FindingView {
    /// A position, an entity or a tenant.
    place: String,
    /// What is wrong there.
    what: String,
}

/// How far the installation is.
#[utoipa::path(get, path = "/status", tag = "status", operation_id = "getStatus",
    responses((status = 200, body = Status)))]
pub(crate) async fn all(State(app): State<App>, _: Operator) -> Result<Response> {
    let head = app.store.head().await?;
    let model = app.store.model_health().await?;
    let planner = app.store.planner_checkpoint().await?;
    let lanes = app.store.lane_counts().await?;
    let behind = |position: Position| (head.position - position).max(0);
    let status = Status {
        read_model: ReadModelStatus {
            position: model.checkpoint,
            lag_positions: behind(model.checkpoint),
            parked_entities: model.parked,
            rebuild_needed: model.rebuild_needed,
        },
        deliveries: DeliveriesStatus {
            planned_position: planner.position,
            lag_positions: behind(planner.position),
            due: lanes.due,
            leased: lanes.leased,
            quarantined: lanes.quarantined,
            oldest_due: lanes.oldest_due.map(time),
        },
        journal: JournalStatus { position: head.position, epoch: head.epoch, writes_stopped: head.halted },
    };
    Ok(json(StatusCode::OK, &status))
}

/// How far a tenant is.
#[utoipa::path(get, path = "/tenants/{tenant}/status", tag = "status", operation_id = "getTenantStatus",
    params(TenantParam), responses((status = 200, body = TenantStatus)))]
pub(crate) async fn of_tenant(State(app): State<App>, scope: InTenant) -> Result<Response> {
    let position = app.store.tenant_position(&scope.tenant).await?;
    let status = TenantStatus {
        position,
        read_model_has_it: app.store.model_health().await?.checkpoint >= position,
        deliveries_are_planned: app.store.planner_checkpoint().await?.position >= position,
    };
    Ok(json(StatusCode::OK, &status))
}

/// Walks the whole journal: positions, times, hashes, heads; then replays every entity and compares. Takes
/// as long as the journal is; one at a time in each process. Ends when the client hangs up.
#[utoipa::path(post, path = "/audit/verify", tag = "audit", operation_id = "verifyJournal",
    responses((status = 200, body = Verified), (status = 409, description = "Another verification runs")))]
pub(crate) async fn verify(State(app): State<App>, operator: Operator) -> Result<Response> {
    let Ok(_only) = app.verifications.try_acquire() else {
        return Err(ApiError::status(409, "another verification is running in this process"));
    };
    operator.log("the journal is verified");
    let before = app.store.head().await?.position;
    let seen = app.store.verify().await?;
    let grew_meanwhile = app.store.head().await?.position != before;
    let findings = seen.findings.into_iter();
    let verified = Verified {
        sound: findings.len() == 0,
        events: seen.events,
        batches: seen.batches,
        entities: seen.entities,
        root: seen.root,
        findings: findings.map(|finding| FindingView { place: finding.place, what: finding.what }).collect(),
        grew_meanwhile,
    };
    Ok(json(StatusCode::OK, &verified))
}

//! What operators see of lanes, and what they do to them.

use annals_domain::clock::Timestamp;
use annals_domain::ids::{AppId, ResourceId, TenantId, Version};

use super::{LaneKey, LaneKind, LaneState, app_id};
use crate::Store;
use crate::backend::{Area, Row, Sql, sql};
use crate::error::Result;
use crate::journal::append::tenant_id;
use crate::wake::Topic;

/// How many attempts of a lane are kept.
pub const ATTEMPTS_KEPT: i64 = 20;

/// Most lanes one [`Store::deliveries`] returns.
pub const DELIVERIES_MAX: usize = 1_000;

/// Lanes changed in one transaction by [`Store::redrive`].
const REDRIVE_PAGE: usize = 1_000;

/// Which lanes; none of a field = all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Of this app.
    pub app: Option<AppId>,
    /// Of this entity.
    pub id: Option<ResourceId>,
    /// In this state.
    pub state: Option<LaneState>,
    /// After this lane, in the order of tenant, app and id.
    pub after: Option<LaneKey>,
}

/// A lane as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Which lane.
    pub key: LaneKey,
    /// The entity's type.
    pub resource_type: String,
    /// What the lane means.
    pub kind: LaneKind,
    /// Where it stands.
    pub state: LaneState,
    /// The newest version planned.
    pub wanted_version: Version,
    /// The version the target has.
    pub applied_version: Version,
    /// When it is looked at next.
    pub due_at: Option<Timestamp>,
    /// Failures in a row.
    pub attempts: i64,
    /// The entity's id at the target.
    pub remote_id: Option<String>,
    /// Why it failed last.
    pub last_error: Option<String>,
    /// Whether the newest planned event is a deletion.
    pub deleted: bool,
}

/// One attempt to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// 1, 2, 3, … of its lane.
    pub number: i64,
    /// When it began.
    pub at: Timestamp,
    /// What it came to: an [`super::Outcome`] by its name.
    pub outcome: String,
    /// The last HTTP status, if there was an answer.
    pub status: Option<i64>,
    /// How long it took, in milliseconds.
    pub duration_ms: i64,
    /// What happened.
    pub detail: String,
}

/// The breaker of an app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetStatus {
    /// Nothing is sent before this moment; then one lane is the probe.
    pub open_until: Option<Timestamp>,
    /// Failures in a row.
    pub failures: i64,
    /// Why.
    pub reason: Option<String>,
}

/// How many lanes stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Due by now.
    pub due: i64,
    /// In a deliverer's hands.
    pub leased: i64,
    /// In quarantine.
    pub quarantined: i64,
    /// The time of the lane that is due for longest.
    pub oldest_due: Option<Timestamp>,
}

const DELIVERY: &str = "l.tenant, l.app, l.id, l.resource_type, l.kind, l.state, l.wanted_version, \
     l.applied_version, l.due_at, l.attempts, l.remote_id, l.last_error, l.deleted";

/// The filter as `$1` … `$7`; whatever is empty matches all.
const MATCHES: &str = "($1 = '' OR l.tenant = $1) AND ($2 = '' OR l.app = $2) AND ($3 = '' OR l.id = $3) \
     AND ($4 = '' OR l.state = $4) AND (l.tenant, l.app, l.id) > ($5, $6, $7)";

fn bind(select: Sql, filter: &DeliveryFilter) -> Sql {
    let after = filter.after.as_ref();
    select
        .bind(filter.tenant.as_ref().map_or("", TenantId::as_str))
        .bind(filter.app.as_ref().map_or("", AppId::as_str))
        .bind(filter.id.as_ref().map_or("", ResourceId::as_str))
        .bind(filter.state.map_or("", LaneState::as_str))
        .bind(after.map_or("", |key| key.tenant.as_str()))
        .bind(after.map_or("", |key| key.app.as_str()))
        .bind(after.map_or("", |key| key.id.as_str()))
}

fn key(row: &Row) -> Result<LaneKey> {
    Ok(LaneKey {
        tenant: tenant_id(&row.text(0)?)?,
        app: app_id(&row.text(1)?)?,
        id: ResourceId::from_text(&row.text(2)?),
    })
}

fn delivery(row: &Row) -> Result<Delivery> {
    Ok(Delivery {
        key: key(row)?,
        resource_type: row.text(3)?,
        kind: LaneKind::parse(&row.text(4)?)?,
        state: LaneState::stored(&row.text(5)?)?,
        wanted_version: row.int(6)?,
        applied_version: row.int(7)?,
        due_at: row.opt_int(8)?.map(Timestamp),
        attempts: row.int(9)?,
        remote_id: row.opt_text(10)?,
        last_error: row.opt_text(11)?,
        deleted: row.flag(12)?,
    })
}

impl Store {
    /// The lanes a filter matches, in the order of tenant, app and id, at most `max` and
    /// [`DELIVERIES_MAX`].
    pub async fn deliveries(&self, filter: &DeliveryFilter, max: usize) -> Result<Vec<Delivery>> {
        let select = sql(format!(
            "SELECT {DELIVERY} FROM lanes.lane l WHERE {MATCHES} ORDER BY l.tenant, l.app, l.id LIMIT $8"
        ));
        let select = bind(select, filter).bind(max.min(DELIVERIES_MAX));
        self.backend().fetch_all(Area::Lanes, select).await?.iter().map(delivery).collect()
    }

    /// One lane.
    pub async fn delivery(&self, lane: &LaneKey) -> Result<Option<Delivery>> {
        let select = sql(format!(
            "SELECT {DELIVERY} FROM lanes.lane l WHERE l.tenant = $1 AND l.app = $2 AND l.id = $3"
        ))
        .bind(&lane.tenant)
        .bind(&lane.app)
        .bind(&lane.id);
        self.backend().fetch_optional(Area::Lanes, select).await?.as_ref().map(delivery).transpose()
    }

    /// The last attempts of a lane, the newest first; at most [`ATTEMPTS_KEPT`] are kept.
    pub async fn attempts(&self, tenant: &TenantId, app: &AppId, id: &ResourceId) -> Result<Vec<Attempt>> {
        let select = sql("SELECT a.number, a.at, a.outcome, a.status, a.duration_ms, a.detail \
             FROM lanes.attempt a WHERE a.tenant = $1 AND a.app = $2 AND a.id = $3 ORDER BY a.number DESC")
        .bind(tenant)
        .bind(app)
        .bind(id);
        let rows = self.backend().fetch_all(Area::Lanes, select).await?;
        rows.iter()
            .map(|row| {
                Ok(Attempt {
                    number: row.int(0)?,
                    at: Timestamp(row.int(1)?),
                    outcome: row.text(2)?,
                    status: row.opt_int(3)?,
                    duration_ms: row.int(4)?,
                    detail: row.text(5)?,
                })
            })
            .collect()
    }

    /// Gives lanes in quarantine, and lanes with references the target refused, another try. Returns how
    /// many. The filter's state does not matter.
    pub async fn redrive(&self, filter: &DeliveryFilter) -> Result<u64> {
        let now = self.now();
        let mut filter = DeliveryFilter { state: None, ..filter.clone() };
        let mut redriven = 0;
        loop {
            let mut tx = self.backend().begin_write(Area::Lanes).await?;
            let select = sql(format!(
                "SELECT l.tenant, l.app, l.id FROM lanes.lane l WHERE {MATCHES} AND (l.state = 'quarantined' \
                 OR (l.state = 'waiting' AND EXISTS (SELECT 1 FROM lanes.pending_member p \
                 WHERE p.tenant = l.tenant AND p.app = l.app AND p.group_id = l.id AND p.parked = 1))) \
                 ORDER BY l.tenant, l.app, l.id LIMIT $8 {{for_update}}"
            ));
            let found = tx.fetch_all(bind(select, &filter).bind(REDRIVE_PAGE)).await?;
            let Some(last) = found.last() else { break };
            filter.after = Some(key(last)?);
            for row in &found {
                let lane = key(row)?;
                let unpark = sql("UPDATE lanes.pending_member SET parked = 0 \
                     WHERE tenant = $1 AND app = $2 AND group_id = $3")
                .bind(&lane.tenant)
                .bind(&lane.app)
                .bind(&lane.id);
                tx.execute(unpark).await?;
                let update = sql("UPDATE lanes.lane SET state = 'due', due_at = $4, attempts = 0 \
                     WHERE tenant = $1 AND app = $2 AND id = $3")
                .bind(&lane.tenant)
                .bind(&lane.app)
                .bind(&lane.id)
                .bind(now);
                redriven += tx.execute(update).await?;
            }
            tx.notify(Topic::Lanes.channel(), "").await?;
            tx.commit().await?;
            self.wakes().wake(Topic::Lanes);
        }
        Ok(redriven)
    }

    /// How the target of an app is.
    pub async fn target_status(&self, tenant: &TenantId, app: &AppId) -> Result<TargetStatus> {
        let select = sql("SELECT t.open_until, t.failures, t.reason FROM lanes.target t \
             WHERE t.tenant = $1 AND t.app = $2")
        .bind(tenant)
        .bind(app);
        let row = self.backend().fetch_optional(Area::Lanes, select).await?;
        row.map_or(Ok(TargetStatus::default()), |row| {
            Ok(TargetStatus {
                open_until: row.opt_int(0)?.map(Timestamp),
                failures: row.int(1)?,
                reason: row.opt_text(2)?,
            })
        })
    }

    /// Lets the lanes of an app go on at once, because an operator has repaired what its breaker opened
    /// for. One lane is the probe.
    pub async fn probe_target(&self, tenant: &TenantId, app: &AppId) -> Result<()> {
        let update = sql("UPDATE lanes.target SET open_until = $3 \
             WHERE tenant = $1 AND app = $2 AND open_until > $3")
        .bind(tenant)
        .bind(app)
        .bind(self.now());
        self.backend().execute(Area::Lanes, update).await?;
        self.wakes().wake(Topic::Lanes);
        Ok(())
    }

    /// How many lanes stand where, for metrics and health. Reads indexes only, but all of what it counts.
    pub async fn lane_counts(&self) -> Result<LaneCounts> {
        let select = sql("SELECT \
             (SELECT COUNT(*) FROM lanes.lane l WHERE l.due_at <= $1 AND l.due_at IS NOT NULL \
               AND l.state <> 'leased'), \
             (SELECT COUNT(*) FROM lanes.lane l WHERE l.state = 'leased'), \
             (SELECT COUNT(*) FROM lanes.lane l WHERE l.state = 'quarantined'), \
             (SELECT MIN(l.due_at) FROM lanes.lane l WHERE l.due_at <= $1 AND l.due_at IS NOT NULL \
               AND l.state <> 'leased')")
        .bind(self.now());
        let row = self.backend().fetch_optional(Area::Lanes, select).await?;
        row.map_or(Ok(LaneCounts::default()), |row| {
            Ok(LaneCounts {
                due: row.int(0)?,
                leased: row.int(1)?,
                quarantined: row.int(2)?,
                oldest_due: row.opt_int(3)?.map(Timestamp),
            })
        })
    }
}

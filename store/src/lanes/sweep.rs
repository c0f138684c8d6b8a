//! Work on all lanes of an app, page by page, so that no step and no transaction is unbounded.

use annals_domain::clock::Timestamp;
use annals_domain::ids::{AppId, TenantId};

use super::plan::SweepMode;
use super::{LaneKind, app_id};
use crate::Store;
use crate::backend::{Area, Col, Rows, Tx, sql};
use crate::error::Result;
use crate::journal::append::tenant_id;
use crate::wake::Topic;

/// Lanes swept in one step.
pub const SWEEP_PAGE_MAX: usize = 1_000;

struct Sweep {
    tenant: TenantId,
    app: AppId,
    ordinal: i64,
    resource_type: String,
    mode: SweepMode,
    kind: LaneKind,
    after: String,
}

const PAGE: &[(&str, Col)] = &[("id", Col::Text), ("version", Col::Int), ("position", Col::Int)];

impl Store {
    /// Sweeps a page of an app's lanes; returns how many rows that took, 0 when there is nothing to
    /// sweep. Several processes may do so at once.
    pub async fn sweep_step(&self) -> Result<usize> {
        let select = sql("SELECT s.tenant, s.app, s.ordinal, s.resource_type, s.mode, s.kind, s.after \
             FROM lanes.sweep s ORDER BY s.tenant, s.app, s.ordinal LIMIT 1");
        let Some(row) = self.backend().fetch_optional(Area::Lanes, select).await? else { return Ok(0) };
        let sweep = Sweep {
            tenant: tenant_id(&row.text(0)?)?,
            app: app_id(&row.text(1)?)?,
            ordinal: row.int(2)?,
            resource_type: row.text(3)?,
            mode: SweepMode::parse(&row.text(4)?)?,
            kind: LaneKind::parse(&row.text(5)?)?,
            after: row.text(6)?,
        };
        if sweep.mode == SweepMode::Remove { self.remove_page(&sweep).await } else { self.page(&sweep).await }
    }

    async fn page(&self, sweep: &Sweep) -> Result<usize> {
        let select = sql("SELECT s.id, s.version, s.position FROM journal.state s \
             WHERE s.tenant = $1 AND s.resource_type = $2 AND s.id > $3 AND s.deleted = 0 \
             ORDER BY s.id LIMIT $4")
        .bind(&sweep.tenant)
        .bind(&sweep.resource_type)
        .bind(&sweep.after)
        .bind(SWEEP_PAGE_MAX);
        let mut rows = Rows::new(PAGE);
        let mut last = String::new();
        for row in self.backend().fetch_all(Area::Journal, select).await? {
            last = row.text(0)?;
            rows.push(vec![(&last).into(), row.int(1)?.into(), row.int(2)?.into()]);
        }
        let found = rows.len();
        let mut tx = self.backend().begin_write(Area::Lanes).await?;
        let moved = if found < SWEEP_PAGE_MAX {
            sql("DELETE FROM lanes.sweep WHERE tenant = $1 AND app = $2 AND ordinal = $3 AND after = $4 \
                 AND mode = $5")
        } else {
            sql("UPDATE lanes.sweep SET after = $6 WHERE tenant = $1 AND app = $2 AND ordinal = $3 \
                 AND after = $4 AND mode = $5")
        }
        .bind(&sweep.tenant)
        .bind(&sweep.app)
        .bind(sweep.ordinal)
        .bind(&sweep.after)
        .bind(sweep.mode.as_str());
        let moved = if found < SWEEP_PAGE_MAX { moved } else { moved.bind(&last) };
        // Another process swept this page, or an operator began anew.
        if tx.execute(moved).await? == 0 {
            tx.rollback().await?;
            return Ok(1);
        }
        if found > 0 {
            raise(&mut tx, self.now(), sweep, rows).await?;
            tx.notify(Topic::Lanes.channel(), "").await?;
        }
        tx.commit().await?;
        self.wakes().wake(Topic::Lanes);
        Ok(found.max(1))
    }

    async fn remove_page(&self, sweep: &Sweep) -> Result<usize> {
        let mut tx = self.backend().begin_write(Area::Lanes).await?;
        let mut removed = 0;
        for (table, columns) in [
            ("attempt", "tenant, app, id, number"),
            ("pending_member", "tenant, app, member_id, group_id, attribute"),
            ("lane", "tenant, app, id"),
        ] {
            let delete = sql(format!(
                "DELETE FROM lanes.{table} WHERE ({columns}) IN (SELECT {columns} FROM lanes.{table} \
                 WHERE tenant = $1 AND app = $2 LIMIT $3)"
            ))
            .bind(&sweep.tenant)
            .bind(&sweep.app)
            .bind(SWEEP_PAGE_MAX);
            removed += tx.execute(delete).await?;
        }
        if removed == 0 {
            for table in ["target", "sweep"] {
                let delete = sql(format!("DELETE FROM lanes.{table} WHERE tenant = $1 AND app = $2"))
                    .bind(&sweep.tenant)
                    .bind(&sweep.app);
                tx.execute(delete).await?;
            }
        }
        tx.commit().await?;
        Ok(usize::try_from(removed).unwrap_or(usize::MAX).max(1))
    }
}

async fn raise(tx: &mut Tx, now: Timestamp, sweep: &Sweep, rows: Rows) -> Result<()> {
    if sweep.kind == LaneKind::Log && sweep.mode != SweepMode::Resend {
        // A log target has got what its lanes say; what came before them was not for it.
        let update = sql("UPDATE lanes.lane AS l SET state = 'due', due_at = $3, attempts = 0 FROM {rows} \
             WHERE l.tenant = $1 AND l.app = $2 AND l.id = r.id AND l.state = 'quarantined'")
        .bind(&sweep.tenant)
        .bind(&sweep.app)
        .bind(now)
        .rows(rows);
        return tx.execute(update).await.map(drop);
    }
    // What a lane at rest is woken for: to be behind, or to be compared, or to be sent as if for the
    // first time. A lane in someone's hands is not done before a later lease in the last case.
    let wakes = match sweep.mode {
        SweepMode::Replay | SweepMode::Resend => "l.state <> 'leased'",
        _ => "l.state IN ('idle', 'waiting') AND excluded.wanted_version > l.wanted_version",
    };
    let anew = match sweep.mode {
        SweepMode::Resend => {
            "applied_version = 0, applied_position = 0, applied_hash = NULL, snapshot_version = NULL, \
             snapshot_after = NULL, resync_fence = l.lease_fence, "
        }
        _ => "",
    };
    let upsert = sql(format!(
        "INSERT INTO lanes.lane AS l (tenant, app, id, resource_type, kind, wanted_version, \
         wanted_position, applied_version, applied_position, state, due_at, lease_fence, attempts, runs, \
         deleted) \
         SELECT $1, $2, r.id, $3, $4, r.version, r.position, 0, 0, 'due', $5, 0, 0, 0, 0 \
         FROM {{rows}} WHERE true \
         ON CONFLICT (tenant, app, id) DO UPDATE SET {anew}\
         wanted_version = CASE WHEN excluded.wanted_version > l.wanted_version \
           THEN excluded.wanted_version ELSE l.wanted_version END, \
         wanted_position = CASE WHEN excluded.wanted_version > l.wanted_version \
           THEN excluded.wanted_position ELSE l.wanted_position END, \
         state = CASE WHEN {wakes} THEN 'due' ELSE l.state END, \
         due_at = CASE WHEN {wakes} THEN excluded.due_at ELSE l.due_at END, \
         attempts = CASE WHEN {wakes} THEN 0 ELSE l.attempts END"
    ))
    .bind(&sweep.tenant)
    .bind(&sweep.app)
    .bind(&sweep.resource_type)
    .bind(sweep.kind.as_str())
    .bind(now)
    .rows(rows);
    tx.execute(upsert).await.map(drop)
}

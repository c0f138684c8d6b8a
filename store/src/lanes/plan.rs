//! Planning: wishes and the planner's checkpoint, in one transaction.

use annals_domain::clock::Timestamp;
use annals_domain::ids::{AppId, Position, ResourceId, TenantId, Version};
use annals_domain::tenant::App;

use super::{LaneKey, LaneKind, taken_types};
use crate::Store;
use crate::backend::{Area, Col, Rows, Tx, sql};
use crate::error::{Result, StoreError};
use crate::wake::Topic;

/// That a lane shall reach a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneWish {
    /// Which lane.
    pub key: LaneKey,
    /// The entity's type.
    pub resource_type: String,
    /// What the lane means.
    pub kind: LaneKind,
    /// The first version wanted: where a new log lane begins.
    pub first_version: Version,
    /// The newest version wanted.
    pub version: Version,
    /// Its position.
    pub position: Position,
    /// Whether it is a deletion.
    pub deleted: bool,
}

/// What is done to all lanes of an app, page by page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SweepMode {
    /// Everything that exists gets a lane.
    Backfill,
    /// Everything that exists is compared again; what the target has is not sent.
    Replay,
    /// Everything is sent again.
    Resend,
    /// The lanes are removed.
    Remove,
}

impl SweepMode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            SweepMode::Backfill => "backfill",
            SweepMode::Replay => "replay",
            SweepMode::Resend => "resend",
            SweepMode::Remove => "remove",
        }
    }

    pub(super) fn parse(name: &str) -> Result<SweepMode> {
        [SweepMode::Backfill, SweepMode::Replay, SweepMode::Resend, SweepMode::Remove]
            .into_iter()
            .find(|mode| mode.as_str() == name)
            .ok_or_else(|| StoreError::corrupt("a sweep's mode", "it is unknown"))
    }
}

/// That all lanes of an app shall be swept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepWish {
    /// The tenant.
    pub tenant: TenantId,
    /// The app.
    pub app: AppId,
    /// What is done.
    pub mode: SweepMode,
    /// What the app's lanes mean.
    pub kind: LaneKind,
    /// The resource types, in order; none for a removal.
    pub resource_types: Vec<String>,
}

/// What planning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    /// The checkpoint is here now.
    Advanced(Position),
    /// Another planner was faster; the checkpoint is there, nothing was written.
    Lost {
        /// Where it is.
        actual: Position,
    },
}

/// Where the planner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannerCheckpoint {
    /// Everything up to this position is planned.
    pub position: Position,
    /// In this epoch of the journal.
    pub epoch: i64,
}

const WISH: &[(&str, Col)] = &[
    ("tenant", Col::Text),
    ("app", Col::Text),
    ("id", Col::Text),
    ("resource_type", Col::Text),
    ("kind", Col::Text),
    ("version", Col::Int),
    ("position", Col::Int),
    ("applied", Col::Int),
    ("deleted", Col::Int),
];

/// Log lanes whose entity's versions are looked up at once.
const RESYNC_PAGE: usize = 1_000;

impl Store {
    /// Where the planner is.
    pub async fn planner_checkpoint(&self) -> Result<PlannerCheckpoint> {
        let select = sql("SELECT p.position, p.journal_epoch FROM lanes.planner p WHERE p.id = 1");
        let row = self.backend().fetch_optional(Area::Lanes, select).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("the planner's checkpoint", "it is missing"))?;
        Ok(PlannerCheckpoint { position: row.int(0)?, epoch: row.int(1)? })
    }

    /// Moves the checkpoint and raises the lanes, or does nothing if the checkpoint is not where it is
    /// expected: however many planners there are, everything is planned once.
    pub async fn plan(
        &self,
        expected: Position,
        upto: Position,
        wishes: &[LaneWish],
        sweeps: &[SweepWish],
    ) -> Result<Planned> {
        let now = self.now();
        let mut tx = self.backend().begin_write(Area::Lanes).await?;
        let advance = sql("UPDATE lanes.planner SET position = $1 WHERE id = 1 AND position = $2")
            .bind(upto)
            .bind(expected);
        if tx.execute(advance).await? == 0 {
            tx.rollback().await?;
            return Ok(Planned::Lost { actual: self.planner_checkpoint().await?.position });
        }
        wish(&mut tx, now, wishes).await?;
        for sweep in sweeps {
            begin_sweep(&mut tx, sweep).await?;
        }
        if !wishes.is_empty() {
            tx.notify(Topic::Lanes.channel(), "").await?;
        }
        tx.commit().await?;
        if !wishes.is_empty() {
            self.wakes().wake(Topic::Lanes);
        }
        Ok(Planned::Advanced(upto))
    }

    /// Gives an app lanes for everything that exists; [`Store::sweep_step`] does it page by page. Log
    /// targets begin with the next event instead.
    pub async fn backfill_app(&self, tenant: &TenantId, app: &App) -> Result<()> {
        self.sweep(self.sweep_of(tenant, app, SweepMode::Backfill).await?).await
    }

    /// Compares everything with what the app has got. Content whose hash is that of the last delivery is
    /// not sent again, unless `force`. False: there is no such app.
    ///
    /// A log target gets nothing without `force`, and every event from the first on with it, under the
    /// same ids.
    pub async fn replay_app(&self, tenant: &TenantId, app: &AppId, force: bool) -> Result<bool> {
        let Some(app) = self.apps(tenant).await?.into_iter().find(|known| known.id == *app) else {
            return Ok(false);
        };
        let mode = if force { SweepMode::Resend } else { SweepMode::Replay };
        self.sweep(self.sweep_of(tenant, &app, mode).await?).await?;
        Ok(true)
    }

    /// The sweep of an app in a mode.
    pub async fn sweep_of(&self, tenant: &TenantId, app: &App, mode: SweepMode) -> Result<SweepWish> {
        let resource_types = match mode {
            SweepMode::Remove => Vec::new(),
            _ => taken_types(app, &*self.registry_of(tenant).await?),
        };
        Ok(SweepWish {
            tenant: tenant.clone(),
            app: app.id.clone(),
            mode,
            kind: LaneKind::of(app),
            resource_types,
        })
    }

    async fn sweep(&self, sweep: SweepWish) -> Result<()> {
        let mut tx = self.backend().begin_write(Area::Lanes).await?;
        begin_sweep(&mut tx, &sweep).await?;
        tx.commit().await
    }

    /// Follows the journal into a new epoch (D5): positions and versions beyond `head` may mean something
    /// else now. State lanes are compared with their target again; log lanes go back to what their entity
    /// has; the checkpoint goes back to `head` if it is ahead of it.
    pub async fn follow_epoch(&self, from: PlannerCheckpoint, epoch: i64, head: Position) -> Result<()> {
        let now = self.now();
        let position = from.position.min(head);
        let mut tx = self.backend().begin_write(Area::Lanes).await?;
        let advance = sql("UPDATE lanes.planner SET position = $1, journal_epoch = $2 \
             WHERE id = 1 AND position = $3 AND journal_epoch = $4")
        .bind(position)
        .bind(epoch)
        .bind(from.position)
        .bind(from.epoch);
        if tx.execute(advance).await? == 0 {
            return tx.rollback().await;
        }
        let compare = sql("UPDATE lanes.lane SET applied_version = 0, applied_position = 0, \
             wanted_version = 0, wanted_position = 0, resync_fence = lease_fence, \
             snapshot_version = NULL, snapshot_after = NULL, state = 'due', due_at = $1, \
             lease_owner = NULL, lease_until = NULL, lease_fence = lease_fence + 1 WHERE kind = 'state'")
        .bind(now);
        tx.execute(compare).await?;
        let mut after = (String::new(), String::new(), String::new());
        loop {
            let select = sql("SELECT l.tenant, l.app, l.id FROM lanes.lane l WHERE l.kind = 'log' \
                 AND l.wanted_position > $1 AND (l.tenant, l.app, l.id) > ($2, $3, $4) \
                 ORDER BY l.tenant, l.app, l.id LIMIT $5")
            .bind(head)
            .bind(&after.0)
            .bind(&after.1)
            .bind(&after.2)
            .bind(RESYNC_PAGE);
            let page = tx.fetch_all(select).await?;
            let Some(last) = page.last() else { break };
            after = (last.text(0)?, last.text(1)?, last.text(2)?);
            for row in &page {
                self.shorten_log(&mut tx, now, &row.text(0)?, &row.text(1)?, &row.text(2)?).await?;
            }
        }
        tx.commit().await?;
        self.wakes().wake(Topic::Lanes);
        Ok(())
    }

    async fn shorten_log(
        &self,
        tx: &mut Tx,
        now: Timestamp,
        tenant: &str,
        app: &str,
        id: &str,
    ) -> Result<()> {
        let tenant_id = crate::journal::append::tenant_id(tenant)?;
        let state = self.state(&tenant_id, &ResourceId::from_text(id)).await?;
        let version = state.map_or(0, |state| state.version);
        let update = sql("UPDATE lanes.lane SET wanted_version = $4, \
             applied_version = CASE WHEN applied_version > $4 THEN $4 ELSE applied_version END, \
             state = CASE WHEN applied_version >= $4 THEN 'idle' ELSE 'due' END, \
             due_at = CASE WHEN applied_version >= $4 THEN NULL ELSE $5 END, \
             lease_owner = NULL, lease_until = NULL, lease_fence = lease_fence + 1 \
             WHERE tenant = $1 AND app = $2 AND id = $3")
        .bind(tenant)
        .bind(app)
        .bind(id)
        .bind(version)
        .bind(now);
        tx.execute(update).await.map(drop)
    }
}

/// Raises lanes to what is wanted. A state lane in quarantine gets a new try: its content is new.
async fn wish(tx: &mut Tx, now: Timestamp, wishes: &[LaneWish]) -> Result<()> {
    if wishes.is_empty() {
        return Ok(());
    }
    let mut sorted: Vec<&LaneWish> = wishes.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let mut rows = Rows::new(WISH);
    for wish in sorted {
        let applied = match wish.kind {
            LaneKind::State => 0,
            LaneKind::Log => (wish.first_version - 1).max(0),
        };
        rows.push(vec![
            (&wish.key.tenant).into(),
            (&wish.key.app).into(),
            (&wish.key.id).into(),
            (&wish.resource_type).into(),
            wish.kind.as_str().into(),
            wish.version.into(),
            wish.position.into(),
            applied.into(),
            wish.deleted.into(),
        ]);
    }
    // Wakes a lane that is at rest and behind, and nothing else.
    const WAKES: &str = "excluded.wanted_version > l.wanted_version \
         AND (l.state IN ('idle', 'waiting') OR (l.state = 'quarantined' AND l.kind = 'state'))";
    let upsert = sql(format!(
        "INSERT INTO lanes.lane AS l (tenant, app, id, resource_type, kind, wanted_version, \
         wanted_position, applied_version, applied_position, state, due_at, lease_fence, attempts, runs, \
         deleted) \
         SELECT r.tenant, r.app, r.id, r.resource_type, r.kind, r.version, r.position, r.applied, 0, 'due', \
         $1, 0, 0, 0, r.deleted FROM {{rows}} WHERE true \
         ON CONFLICT (tenant, app, id) DO UPDATE SET \
         wanted_version = CASE WHEN excluded.wanted_version > l.wanted_version \
           THEN excluded.wanted_version ELSE l.wanted_version END, \
         wanted_position = CASE WHEN excluded.wanted_version > l.wanted_version \
           THEN excluded.wanted_position ELSE l.wanted_position END, \
         deleted = CASE WHEN excluded.wanted_version > l.wanted_version \
           THEN excluded.deleted ELSE l.deleted END, \
         state = CASE WHEN {WAKES} THEN 'due' ELSE l.state END, \
         due_at = CASE WHEN {WAKES} THEN excluded.due_at ELSE l.due_at END, \
         attempts = CASE WHEN {WAKES} THEN 0 ELSE l.attempts END"
    ))
    .bind(now)
    .rows(rows);
    tx.execute(upsert).await.map(drop)
}

async fn begin_sweep(tx: &mut Tx, sweep: &SweepWish) -> Result<()> {
    if sweep.mode == SweepMode::Remove {
        let delete = sql("DELETE FROM lanes.sweep WHERE tenant = $1 AND app = $2")
            .bind(&sweep.tenant)
            .bind(&sweep.app);
        tx.execute(delete).await?;
    }
    let removal = [String::new()];
    let types = if sweep.mode == SweepMode::Remove { &removal[..] } else { &sweep.resource_types };
    for (ordinal, resource_type) in types.iter().enumerate() {
        // One that is under way begins again; the stronger of the two counts.
        let upsert = sql("INSERT INTO lanes.sweep AS s \
             (tenant, app, ordinal, resource_type, mode, kind, after) VALUES ($1, $2, $3, $4, $5, $6, '') \
             ON CONFLICT (tenant, app, ordinal) DO UPDATE SET resource_type = excluded.resource_type, \
             mode = CASE WHEN s.mode = 'resend' THEN s.mode ELSE excluded.mode END, after = ''")
        .bind(&sweep.tenant)
        .bind(&sweep.app)
        .bind(ordinal)
        .bind(resource_type)
        .bind(sweep.mode.as_str())
        .bind(sweep.kind.as_str());
        tx.execute(upsert).await?;
    }
    Ok(())
}

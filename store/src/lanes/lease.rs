//! Leasing due lanes, and reporting on them under the lease's fence.

use std::collections::HashMap;
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::ids::{AppId, ResourceId, TenantId};

use super::{
    DETAIL_BYTES_MAX, LaneKey, LaneKind, LaneState, LaneWork, Leased, Next, Pending, PendingChange, RemoteId,
    Report, Snapshot, TargetReport, cut,
};
use crate::Store;
use crate::backend::{Area, Col, Row, Rows, Tx, sql};
use crate::error::Result;
use crate::lanes::list::ATTEMPTS_KEPT;
use crate::wake::Topic;

/// How often a waiting lane is looked at even if nothing woke it, in milliseconds.
pub const LANE_LOOK_MS: i64 = 6 * 60 * 60 * 1_000;

/// Longest remote id we keep, in bytes; a longer one is no id.
pub const REMOTE_ID_BYTES_MAX: usize = 1_024;

/// What an app may have in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The tenant.
    pub tenant: TenantId,
    /// The app.
    pub app: AppId,
    /// Most lanes leased at once, over all processes.
    pub concurrency_max: usize,
    /// Most requests a second, over all processes; 0 = no limit.
    pub rate_per_second_max: u32,
    /// Lanes of it that this deliverer has in work.
    pub in_flight: usize,
}

/// What saving under a lease came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is written, and the lease ends later now.
    Until(Timestamp),
    /// The lease was lost: nothing was written, and nothing more must be sent.
    Lost,
}

/// What finishing a lease came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It is written; the lane is in this state.
    As(LaneState),
    /// The lease was lost to another deliverer: the lane becomes due again, so that the newest is sent
    /// last.
    Lost,
    /// The lane exists no more: its app was removed.
    Gone,
}

const APP: &[(&str, Col)] = &[("tenant", Col::Text), ("app", Col::Text)];
const KEY: &[(&str, Col)] = &[("id", Col::Text)];

const LEASED: &str = "l.id, l.resource_type, l.kind, l.wanted_version, l.wanted_position, l.deleted, \
     l.lease_fence, l.attempts, l.resync_fence, l.state, l.applied_version, l.applied_position, \
     l.applied_hash, l.remote_id, l.snapshot_version, l.snapshot_after, l.remote_home";

/// The breaker and the rate of an app, locked.
struct Target {
    open_until: Option<i64>,
    failures: i64,
    free_us: i64,
}

/// A request's price in microseconds.
fn request_us(rate_per_second_max: u32) -> i64 {
    if rate_per_second_max == 0 { 0 } else { 1_000_000 / i64::from(rate_per_second_max) }
}

/// How many requests may be sent at once after a pause: a second's worth.
fn burst(rate_per_second_max: u32) -> i64 {
    i64::from(rate_per_second_max.max(1))
}

/// How many requests the rate allows at this moment (a leaky bucket as GCRA).
fn allowed(free_us: i64, now: Timestamp, rate_per_second_max: u32) -> usize {
    let price = request_us(rate_per_second_max);
    if price == 0 {
        return usize::MAX;
    }
    let debt = (free_us - now.0.saturating_mul(1_000)).max(0);
    usize::try_from((burst(rate_per_second_max) * price - debt) / price).unwrap_or(0)
}

/// When the rate allows the next request.
fn allowed_at(free_us: i64, rate_per_second_max: u32) -> Timestamp {
    let price = request_us(rate_per_second_max);
    if price == 0 {
        return Timestamp(0);
    }
    let at = free_us - (burst(rate_per_second_max) - 1) * price;
    Timestamp(at.div_euclid(1_000) + i64::from(at.rem_euclid(1_000) > 0))
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

impl Store {
    /// Leases due lanes, at most `max` and what the apps' quotas allow. Lanes whose lease has ended are
    /// taken over with a higher fence. An app whose breaker was open gets one lane, as a probe.
    pub async fn lease_lanes(
        &self,
        owner: &str,
        ttl: Duration,
        quotas: &[Quota],
        max: usize,
    ) -> Result<Vec<Leased>> {
        let now = self.now();
        let mut rows = Rows::new(APP);
        for quota in quotas {
            rows.push(vec![(&quota.tenant).into(), (&quota.app).into()]);
        }
        if rows.is_empty() || max == 0 {
            return Ok(Vec::new());
        }
        let select = sql("SELECT r.tenant, r.app FROM {rows} LEFT JOIN lanes.target t \
             ON t.tenant = r.tenant AND t.app = r.app \
             WHERE COALESCE(t.open_until, 0) <= $1 AND EXISTS (SELECT 1 FROM lanes.lane l \
             WHERE l.tenant = r.tenant AND l.app = r.app AND l.due_at <= $1)")
        .bind(now)
        .rows(rows);
        let mut due: Vec<(String, String)> = Vec::new();
        for row in self.backend().fetch_all(Area::Lanes, select).await? {
            due.push((row.text(0)?, row.text(1)?));
        }
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let is_due = |q: &Quota| due.iter().any(|(t, a)| t == q.tenant.as_str() && a == q.app.as_str());
        // Every app that is due or at work has the same share: those that hang cannot take it all.
        let capacity = max + quotas.iter().map(|quota| quota.in_flight).sum::<usize>();
        let active = quotas.iter().filter(|quota| quota.in_flight > 0 || is_due(quota)).count();
        let share = (capacity / active.max(1)).max(1);
        let mut chosen: Vec<(&Quota, usize)> = quotas
            .iter()
            .filter(|quota| is_due(quota))
            .map(|quota| (quota, share.saturating_sub(quota.in_flight)))
            .filter(|(_, most)| *most > 0)
            .collect();
        if chosen.len() > max {
            let mut random = [0; 8];
            self.entropy().fill(&mut random);
            let start = usize::from_le_bytes(random) % chosen.len();
            chosen.rotate_left(start);
            chosen.truncate(max);
        }
        // Two deliverers take targets' rows in the same order.
        chosen.sort_by(|(a, _), (b, _)| (&a.tenant, &a.app).cmp(&(&b.tenant, &b.app)));
        let mut tx = self.backend().begin_write(Area::Lanes).await?;
        let mut leased = Vec::new();
        for (quota, most) in chosen {
            let most = most.min(max - leased.len());
            if most > 0 {
                lease_of_app(&mut tx, owner, now, now.plus_ms(ms(ttl)), quota, most, &mut leased).await?;
            }
        }
        tx.commit().await?;
        Ok(leased)
    }

    /// When the next lane of these apps can be leased, as far as is known now.
    pub async fn next_due(&self, quotas: &[Quota]) -> Result<Option<Timestamp>> {
        let mut rows = Rows::new(APP);
        for quota in quotas {
            rows.push(vec![(&quota.tenant).into(), (&quota.app).into()]);
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let select = sql("SELECT r.tenant, r.app, COALESCE(t.open_until, 0), COALESCE(t.free_at, 0), \
             (SELECT MIN(l.due_at) FROM lanes.lane l WHERE l.tenant = r.tenant AND l.app = r.app \
             AND l.due_at IS NOT NULL) \
             FROM {rows} LEFT JOIN lanes.target t ON t.tenant = r.tenant AND t.app = r.app")
        .rows(rows);
        let mut next: Option<Timestamp> = None;
        for row in self.backend().fetch_all(Area::Lanes, select).await? {
            let Some(due) = row.opt_int(4)? else { continue };
            let (tenant, app) = (row.text(0)?, row.text(1)?);
            let rate = quotas
                .iter()
                .find(|q| q.tenant.as_str() == tenant && q.app.as_str() == app)
                .map_or(0, |q| q.rate_per_second_max);
            let at = Timestamp(due.max(row.int(2)?)).max(allowed_at(row.int(3)?, rate));
            next = Some(next.map_or(at, |known| known.min(at)));
        }
        Ok(next)
    }

    /// Waits until lanes were planned or woken, in this process or another, or the time is over.
    pub async fn wait_lanes(&self, timeout: Duration) {
        let mut woken = self.wakes().subscribe(Topic::Lanes);
        woken.mark_unchanged();
        tokio::select! {
            _ = woken.changed() => {}
            () = tokio::time::sleep(timeout) => {}
        }
    }

    /// Writes down what is done so far, and makes the lease longer. The pending changes are taken out of
    /// the lease's work.
    pub async fn save_lane(&self, leased: &mut Leased, ttl: Duration) -> Result<Saved> {
        let now = self.now();
        let (mut tx, _, row) = self.lock(leased).await?;
        let Some(row) = row.filter(|row| row.is_held(leased)) else {
            tx.rollback().await?;
            return Ok(Saved::Lost);
        };
        let until = now.plus_ms(ms(ttl));
        let woken = write_work(&mut tx, now, leased, &row).await?;
        let update = sql("UPDATE lanes.lane SET lease_until = $4, due_at = $4 \
             WHERE tenant = $1 AND app = $2 AND id = $3")
        .bind(&leased.key.tenant)
        .bind(&leased.key.app)
        .bind(&leased.key.id)
        .bind(until);
        tx.execute(update).await?;
        self.commit_lane(tx, woken).await?;
        leased.work.pending.clear();
        leased.until = until;
        Ok(Saved::Until(until))
    }

    /// Reports on a lane and gives the lease back.
    pub async fn finish_lane(&self, leased: &Leased, report: &Report) -> Result<Finished> {
        let now = self.now();
        let (mut tx, target, row) = self.lock(leased).await?;
        let Some(row) = row else {
            tx.rollback().await?;
            return Ok(Finished::Gone);
        };
        report_on_target(&mut tx, now, leased, &target, report).await?;
        record(&mut tx, leased, row.runs + 1, report).await?;
        if !row.is_held(leased) {
            let woken = lose(&mut tx, now, leased, &row).await?;
            self.commit_lane(tx, woken).await?;
            return Ok(Finished::Lost);
        }
        let mut woken = write_work(&mut tx, now, leased, &row).await?;
        let home = leased.work.remote.as_ref().map_or("", |remote| remote.home.as_str());
        let (waits, ready) = waiting(&mut tx, &leased.key, home).await?;
        let (state, due_at, attempts) = after(leased, &row, report, waits, ready, now);
        let error = report.error.as_deref().map(|error| cut(error, DETAIL_BYTES_MAX));
        let update = sql("UPDATE lanes.lane SET state = $4, due_at = $5, attempts = $6, runs = $7, \
             last_error = $8, lease_owner = NULL, lease_until = NULL, \
             resync_fence = CASE WHEN $9 = 1 AND resync_fence < $10 THEN NULL ELSE resync_fence END \
             WHERE tenant = $1 AND app = $2 AND id = $3")
        .bind(&leased.key.tenant)
        .bind(&leased.key.app)
        .bind(&leased.key.id)
        .bind(state.as_str())
        .bind(due_at.map(|at| at.0))
        .bind(attempts)
        .bind(row.runs + 1)
        .bind(error)
        .bind(report.next == Next::Done)
        .bind(leased.fence);
        tx.execute(update).await?;
        woken |= due_at.is_some_and(|at| at <= now);
        self.commit_lane(tx, woken).await?;
        Ok(Finished::As(state))
    }

    /// The ids that entities have at an app's target, of those that have one.
    pub async fn remote_ids(
        &self,
        tenant: &TenantId,
        app: &AppId,
        home: &str,
        ids: &[ResourceId],
    ) -> Result<HashMap<ResourceId, String>> {
        let mut rows = Rows::new(KEY);
        for id in ids {
            rows.push(vec![id.into()]);
        }
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let select = sql("SELECT l.id, l.remote_id FROM {rows} CROSS JOIN lanes.lane l \
             WHERE l.tenant = $1 AND l.app = $2 AND l.id = r.id AND l.remote_home = $3")
        .bind(tenant)
        .bind(app)
        .bind(home)
        .rows(rows);
        let found = self.backend().fetch_all(Area::Lanes, select).await?;
        found.iter().map(|row| Ok((ResourceId::from_text(&row.text(0)?), row.text(1)?))).collect()
    }

    /// Another entity that is linked to this id at the app's target, and where its lane stands. One that
    /// was deleted there is linked no more.
    pub async fn linked_to(
        &self,
        key: &LaneKey,
        remote: &RemoteId,
    ) -> Result<Option<(ResourceId, LaneState)>> {
        let select = sql("SELECT l.id, l.state FROM lanes.lane l WHERE l.tenant = $1 AND l.app = $2 \
             AND l.remote_id = $3 AND l.remote_home = $4 AND l.id <> $5 \
             AND NOT (l.deleted = 1 AND l.state = 'idle') ORDER BY l.id LIMIT 1")
        .bind(&key.tenant)
        .bind(&key.app)
        .bind(&remote.id)
        .bind(&remote.home)
        .bind(&key.id);
        let row = self.backend().fetch_optional(Area::Lanes, select).await?;
        row.map(|row| Ok((ResourceId::from_text(&row.text(0)?), LaneState::stored(&row.text(1)?)?)))
            .transpose()
    }

    /// The references of a lane's entity that wait for other lanes' ids at the target, after one given, at
    /// most `max`.
    pub async fn pending(
        &self,
        key: &LaneKey,
        home: &str,
        after: Option<(&str, &ResourceId)>,
        max: usize,
    ) -> Result<Vec<Pending>> {
        let (attribute, member) = after.map_or(("", ""), |(attribute, id)| (attribute, id.as_str()));
        let select = sql("SELECT p.attribute, p.member_id, m.remote_id, p.parked \
             FROM lanes.pending_member p LEFT JOIN lanes.lane m \
             ON m.tenant = p.tenant AND m.app = p.app AND m.id = p.member_id AND m.remote_home = $7 \
             WHERE p.tenant = $1 AND p.app = $2 AND p.group_id = $3 AND (p.attribute, p.member_id) > ($4, $5) \
             ORDER BY p.attribute, p.member_id LIMIT $6")
        .bind(&key.tenant)
        .bind(&key.app)
        .bind(&key.id)
        .bind(attribute)
        .bind(member)
        .bind(max)
        .bind(home);
        let rows = self.backend().fetch_all(Area::Lanes, select).await?;
        rows.iter()
            .map(|row| {
                Ok(Pending {
                    attribute: row.text(0)?,
                    member: ResourceId::from_text(&row.text(1)?),
                    remote_id: row.opt_text(2)?,
                    parked: row.flag(3)?,
                })
            })
            .collect()
    }

    /// Locks the target's row, then the lane, and with it those that wait for a remote id it got.
    async fn lock(&self, leased: &Leased) -> Result<(Tx, Target, Option<Held>)> {
        let key = &leased.key;
        let mut tx = self.backend().begin_write(Area::Lanes).await?;
        let target = lock_target(&mut tx, &key.tenant, &key.app).await?;
        let select = sql("SELECT l.id, l.state, l.lease_fence, l.wanted_version, l.wanted_position, \
             l.applied_version, l.applied_position, l.resync_fence, l.runs, l.remote_id, l.remote_home \
             FROM lanes.lane l \
             WHERE l.tenant = $1 AND l.app = $2 AND (l.id = $3 OR ($4 = 1 AND l.id IN (SELECT p.group_id \
             FROM lanes.pending_member p WHERE p.tenant = $1 AND p.app = $2 AND p.member_id = $3))) \
             ORDER BY l.id {for_update}")
        .bind(&key.tenant)
        .bind(&key.app)
        .bind(&key.id)
        .bind(leased.work.remote.is_some());
        let mut own = None;
        for row in tx.fetch_all(select).await? {
            if row.text(0)? == key.id.as_str() {
                own = Some(Held::read(&row)?);
            }
        }
        Ok((tx, target, own))
    }

    async fn commit_lane(&self, mut tx: Tx, woken: bool) -> Result<()> {
        if woken {
            tx.notify(Topic::Lanes.channel(), "").await?;
        }
        tx.commit().await?;
        if woken {
            self.wakes().wake(Topic::Lanes);
        }
        Ok(())
    }
}

/// A lane's row as it is when a deliverer reports.
struct Held {
    state: LaneState,
    fence: i64,
    wanted_version: i64,
    wanted_position: i64,
    applied_version: i64,
    applied_position: i64,
    resync_fence: Option<i64>,
    runs: i64,
    remote: Option<RemoteId>,
}

impl Held {
    fn read(row: &Row) -> Result<Held> {
        Ok(Held {
            state: LaneState::stored(&row.text(1)?)?,
            fence: row.int(2)?,
            wanted_version: row.int(3)?,
            wanted_position: row.int(4)?,
            applied_version: row.int(5)?,
            applied_position: row.int(6)?,
            resync_fence: row.opt_int(7)?,
            runs: row.int(8)?,
            remote: remote(row.opt_text(9)?, row.opt_text(10)?),
        })
    }

    /// Whether the lease is still the deliverer's own. One that ended, but that nobody else took, is.
    fn is_held(&self, leased: &Leased) -> bool {
        self.state == LaneState::Leased && self.fence == leased.fence
    }

    /// Whether something happened during this lease that only a later one can make good.
    fn is_stale(&self, leased: &Leased) -> bool {
        self.resync_fence.is_some_and(|fence| fence >= leased.fence)
    }

    /// The version applied after the report.
    fn applied(&self, leased: &Leased) -> i64 {
        if self.is_stale(leased) { self.applied_version } else { leased.work.applied_version }
    }
}

fn remote(id: Option<String>, home: Option<String>) -> Option<RemoteId> {
    Some(RemoteId { id: id?, home: home? })
}

async fn lock_target(tx: &mut Tx, tenant: &TenantId, app: &AppId) -> Result<Target> {
    let insert = sql("INSERT INTO lanes.target (tenant, app, failures, free_at) VALUES ($1, $2, 0, 0) \
         ON CONFLICT (tenant, app) DO NOTHING")
    .bind(tenant)
    .bind(app);
    tx.execute(insert).await?;
    let select = sql("SELECT t.open_until, t.failures, t.free_at FROM lanes.target t \
         WHERE t.tenant = $1 AND t.app = $2 {for_update}")
    .bind(tenant)
    .bind(app);
    let row = tx.fetch_optional(select).await?;
    row.map_or(Ok(Target { open_until: None, failures: 0, free_us: 0 }), |row| {
        Ok(Target { open_until: row.opt_int(0)?, failures: row.int(1)?, free_us: row.int(2)? })
    })
}

async fn lease_of_app(
    tx: &mut Tx,
    owner: &str,
    now: Timestamp,
    until: Timestamp,
    quota: &Quota,
    share: usize,
    leased: &mut Vec<Leased>,
) -> Result<()> {
    let target = lock_target(tx, &quota.tenant, &quota.app).await?;
    if target.open_until.is_some_and(|until| until > now.0) {
        return Ok(());
    }
    let count = sql("SELECT COUNT(*) FROM lanes.lane l \
         WHERE l.tenant = $1 AND l.app = $2 AND l.state = 'leased' AND l.lease_until > $3")
    .bind(&quota.tenant)
    .bind(&quota.app)
    .bind(now);
    let in_flight = tx.fetch_optional(count).await?.map_or(Ok(0), |row| row.int(0))?;
    let most = if target.failures > 0 { 1 } else { quota.concurrency_max.max(1) };
    let free = most.saturating_sub(usize::try_from(in_flight).unwrap_or(usize::MAX));
    let max = free.min(share).min(allowed(target.free_us, now, quota.rate_per_second_max));
    if max == 0 {
        return Ok(());
    }
    let select = sql(format!(
        "SELECT {LEASED} FROM lanes.lane l WHERE l.tenant = $1 AND l.app = $2 AND l.due_at <= $3 \
         ORDER BY l.due_at, l.id LIMIT $4 {{skip_locked}}"
    ))
    .bind(&quota.tenant)
    .bind(&quota.app)
    .bind(now)
    .bind(max);
    let found = tx.fetch_all(select).await?;
    if found.is_empty() {
        return Ok(());
    }
    let price = request_us(quota.rate_per_second_max);
    let mut rows = Rows::new(KEY);
    for row in &found {
        let mut lane = read_leased(row, quota, until)?;
        lane.target_failures = target.failures;
        lane.request_us = price;
        rows.push(vec![(&lane.key.id).into()]);
        leased.push(lane);
    }
    let update = sql("UPDATE lanes.lane AS l SET state = 'leased', lease_owner = $3, lease_until = $4, \
         due_at = $4, lease_fence = l.lease_fence + 1 FROM {rows} \
         WHERE l.tenant = $1 AND l.app = $2 AND l.id = r.id")
    .bind(&quota.tenant)
    .bind(&quota.app)
    .bind(owner)
    .bind(until)
    .rows(rows);
    tx.execute(update).await?;
    if price > 0 {
        pay(tx, &quota.tenant, &quota.app, now, &target, price * found.len() as i64).await?;
    }
    Ok(())
}

async fn pay(
    tx: &mut Tx,
    tenant: &TenantId,
    app: &AppId,
    now: Timestamp,
    target: &Target,
    price_us: i64,
) -> Result<()> {
    let free = target.free_us.max(now.0.saturating_mul(1_000)) + price_us;
    let update = sql("UPDATE lanes.target SET free_at = $3 WHERE tenant = $1 AND app = $2")
        .bind(tenant)
        .bind(app)
        .bind(free);
    tx.execute(update).await.map(drop)
}

fn read_leased(row: &Row, quota: &Quota, until: Timestamp) -> Result<Leased> {
    let applied_version = row.int(10)?;
    let state = LaneState::stored(&row.text(9)?)?;
    let snapshot = match (row.opt_int(14)?, row.opt_text(15)?) {
        (Some(version), Some(after)) => Some(Snapshot { version, after }),
        _ => None,
    };
    Ok(Leased {
        key: LaneKey {
            tenant: quota.tenant.clone(),
            app: quota.app.clone(),
            id: ResourceId::from_text(&row.text(0)?),
        },
        resource_type: row.text(1)?,
        kind: LaneKind::parse(&row.text(2)?)?,
        wanted_version: row.int(3)?,
        wanted_position: row.int(4)?,
        deleted: row.flag(5)?,
        fence: row.int(6)? + 1,
        until,
        attempts: row.int(7)?,
        resync: row.opt_int(8)?.is_some(),
        was_waiting: state == LaneState::Waiting,
        target_failures: 0,
        request_us: 0,
        start_version: applied_version,
        work: LaneWork {
            applied_version,
            applied_position: row.int(11)?,
            // Who held it and vanished may have sent something since.
            applied_hash: row.opt_bytes(12)?.filter(|_| state != LaneState::Leased),
            remote: remote(row.opt_text(13)?, row.opt_text(16)?),
            snapshot,
            pending: Vec::new(),
        },
    })
}

/// Writes a deliverer's work into its lane; says whether other lanes were woken.
async fn write_work(tx: &mut Tx, now: Timestamp, leased: &Leased, row: &Held) -> Result<bool> {
    let (key, work) = (&leased.key, &leased.work);
    let stale = row.is_stale(leased);
    let applied = row.applied(leased);
    let applied_position = if stale { row.applied_position } else { work.applied_position };
    let (wanted, wanted_position) = if applied > row.wanted_version {
        (applied, applied_position)
    } else {
        (row.wanted_version, row.wanted_position)
    };
    let snapshot = work.snapshot.as_ref().filter(|_| !stale);
    let update = sql("UPDATE lanes.lane SET applied_version = $4, applied_position = $5, \
         wanted_version = $6, wanted_position = $7, applied_hash = $8, remote_id = $9, \
         snapshot_version = $10, snapshot_after = $11, remote_home = $12 WHERE tenant = $1 AND app = $2 AND id = $3")
    .bind(&key.tenant)
    .bind(&key.app)
    .bind(&key.id)
    .bind(applied)
    .bind(applied_position)
    .bind(wanted)
    .bind(wanted_position)
    .bind(work.applied_hash.clone().filter(|_| !stale))
    .bind(work.remote.as_ref().map(|remote| remote.id.as_str()))
    .bind(snapshot.map(|snapshot| snapshot.version))
    .bind(snapshot.map(|snapshot| snapshot.after.as_str()))
    .bind(work.remote.as_ref().map(|remote| remote.home.as_str()));
    tx.execute(update).await?;
    write_pending(tx, key, &work.pending).await?;
    if work.remote.is_none() || work.remote == row.remote {
        return Ok(false);
    }
    // Whoever waited for this remote id goes on. A parked reference gets another try: the id is new.
    let unpark = sql("UPDATE lanes.pending_member SET parked = 0 \
         WHERE tenant = $1 AND app = $2 AND member_id = $3 AND parked = 1")
    .bind(&key.tenant)
    .bind(&key.app)
    .bind(&key.id);
    tx.execute(unpark).await?;
    let wake = sql("UPDATE lanes.lane SET state = 'due', due_at = $4 \
         WHERE tenant = $1 AND app = $2 AND state IN ('idle', 'waiting') AND id IN (SELECT p.group_id \
         FROM lanes.pending_member p WHERE p.tenant = $1 AND p.app = $2 AND p.member_id = $3)")
    .bind(&key.tenant)
    .bind(&key.app)
    .bind(&key.id)
    .bind(now);
    Ok(tx.execute(wake).await? > 0)
}

async fn write_pending(tx: &mut Tx, key: &LaneKey, changes: &[PendingChange]) -> Result<()> {
    const PENDING: &[(&str, Col)] =
        &[("attribute", Col::Text), ("member_id", Col::Text), ("parked", Col::Int)];
    let mut add = Rows::new(PENDING);
    let mut done = Rows::new(PENDING);
    for change in changes {
        match change {
            PendingChange::Wait { attribute, member } => {
                add.push(vec![attribute.into(), member.into(), false.into()]);
            }
            PendingChange::Park { attribute, member } => {
                add.push(vec![attribute.into(), member.into(), true.into()]);
            }
            PendingChange::Done { attribute, member } => {
                done.push(vec![attribute.into(), member.into(), false.into()]);
            }
            PendingChange::Renew { attribute, holder } => {
                let insert = sql("INSERT INTO lanes.pending_member \
                     (tenant, app, member_id, group_id, attribute, parked) VALUES ($1, $2, $3, $4, $5, 0) \
                     ON CONFLICT (tenant, app, member_id, group_id, attribute) DO UPDATE SET parked = 0")
                .bind(&key.tenant)
                .bind(&key.app)
                .bind(&key.id)
                .bind(holder)
                .bind(attribute);
                tx.execute(insert).await?;
            }
            PendingChange::ClearMembers => {
                let delete = sql("DELETE FROM lanes.pending_member \
                     WHERE tenant = $1 AND app = $2 AND group_id = $3 AND attribute = 'members'")
                .bind(&key.tenant)
                .bind(&key.app)
                .bind(&key.id);
                tx.execute(delete).await?;
            }
            PendingChange::ClearReferences => {
                let delete = sql("DELETE FROM lanes.pending_member \
                     WHERE tenant = $1 AND app = $2 AND group_id = $3 AND attribute <> 'members'")
                .bind(&key.tenant)
                .bind(&key.app)
                .bind(&key.id);
                tx.execute(delete).await?;
            }
            PendingChange::ClearAll => {
                let delete = sql("DELETE FROM lanes.pending_member \
                     WHERE tenant = $1 AND app = $2 AND group_id = $3")
                .bind(&key.tenant)
                .bind(&key.app)
                .bind(&key.id);
                tx.execute(delete).await?;
            }
        }
    }
    if !done.is_empty() {
        let delete = sql("DELETE FROM lanes.pending_member {keyed: tenant = $1, app = $2, group_id = $3, \
             attribute = r.attribute, member_id = r.member_id}")
        .bind(&key.tenant)
        .bind(&key.app)
        .bind(&key.id)
        .rows(done);
        tx.execute(delete).await?;
    }
    if !add.is_empty() {
        let insert = sql("INSERT INTO lanes.pending_member \
             (tenant, app, member_id, group_id, attribute, parked) \
             SELECT $1, $2, r.member_id, $3, r.attribute, MAX(r.parked) FROM {rows} WHERE true \
             GROUP BY r.member_id, r.attribute \
             ON CONFLICT (tenant, app, member_id, group_id, attribute) DO UPDATE SET parked = excluded.parked")
        .bind(&key.tenant)
        .bind(&key.app)
        .bind(&key.id)
        .rows(add);
        tx.execute(insert).await?;
    }
    Ok(())
}

/// Whether references of the lane's entity wait, and whether one could be sent by now.
async fn waiting(tx: &mut Tx, key: &LaneKey, home: &str) -> Result<(bool, bool)> {
    let select = sql("SELECT \
         CASE WHEN EXISTS (SELECT 1 FROM lanes.pending_member p \
           WHERE p.tenant = $1 AND p.app = $2 AND p.group_id = $3) THEN CAST(1 AS BIGINT) ELSE 0 END, \
         CASE WHEN EXISTS (SELECT 1 FROM lanes.pending_member p CROSS JOIN lanes.lane m \
           WHERE p.tenant = $1 AND p.app = $2 AND p.group_id = $3 AND p.parked = 0 \
           AND m.tenant = $1 AND m.app = $2 AND m.id = p.member_id AND m.remote_home = $4) \
         THEN CAST(1 AS BIGINT) ELSE 0 END")
    .bind(&key.tenant)
    .bind(&key.app)
    .bind(&key.id)
    .bind(home);
    let row = tx.fetch_optional(select).await?;
    row.map_or(Ok((false, false)), |row| Ok((row.flag(0)?, row.flag(1)?)))
}

/// The state, the time, and the count of failures a report leaves a lane with.
fn after(
    leased: &Leased,
    row: &Held,
    report: &Report,
    waits: bool,
    ready: bool,
    now: Timestamp,
) -> (LaneState, Option<Timestamp>, i64) {
    let newer = row.wanted_version > leased.wanted_version;
    match report.next {
        Next::Done if row.is_stale(leased) || row.applied(leased) < row.wanted_version || ready => {
            (LaneState::Due, Some(now), 0)
        }
        Next::Done if waits => (LaneState::Waiting, Some(now.plus_ms(LANE_LOOK_MS)), 0),
        Next::Done => (LaneState::Idle, None, 0),
        Next::Later { at, failed: false } => (LaneState::Due, Some(at), leased.attempts),
        Next::Later { at, failed: true } => (LaneState::Due, Some(at), leased.attempts + 1),
        // The content that was refused is not the newest any more.
        Next::Quarantine if newer && leased.kind == LaneKind::State => (LaneState::Due, Some(now), 0),
        Next::Quarantine => (LaneState::Quarantined, None, leased.attempts + 1),
    }
}

/// A deliverer reports that lost its lease: what it sent may have overwritten what the new owner sent.
async fn lose(tx: &mut Tx, now: Timestamp, leased: &Leased, row: &Held) -> Result<bool> {
    let key = &leased.key;
    let runs = sql("UPDATE lanes.lane SET runs = $4 WHERE tenant = $1 AND app = $2 AND id = $3")
        .bind(&key.tenant)
        .bind(&key.app)
        .bind(&key.id)
        .bind(row.runs + 1);
    tx.execute(runs).await?;
    // A log target drops what comes twice by its id, and order is the new owner's.
    if leased.kind == LaneKind::Log {
        return Ok(false);
    }
    let update = sql("UPDATE lanes.lane SET resync_fence = lease_fence, applied_hash = NULL, \
         applied_version = CASE WHEN applied_version > $4 THEN $4 ELSE applied_version END, \
         state = CASE WHEN state IN ('idle', 'waiting') THEN 'due' ELSE state END, \
         due_at = CASE WHEN state IN ('idle', 'waiting') THEN $5 ELSE due_at END \
         WHERE tenant = $1 AND app = $2 AND id = $3")
    .bind(&key.tenant)
    .bind(&key.app)
    .bind(&key.id)
    .bind(leased.start_version)
    .bind(now);
    tx.execute(update).await?;
    Ok(true)
}

async fn report_on_target(
    tx: &mut Tx,
    now: Timestamp,
    leased: &Leased,
    target: &Target,
    report: &Report,
) -> Result<()> {
    let (tenant, app) = (&leased.key.tenant, &leased.key.app);
    // One request was paid for with the lease.
    let extra = report.requests as i64 - 1;
    if leased.request_us > 0 && extra != 0 {
        pay(tx, tenant, app, Timestamp(0), target, leased.request_us * extra).await?;
    }
    match &report.target {
        TargetReport::Silent => Ok(()),
        // Only a probe closes a breaker: an answer to what was sent before it opened does not.
        TargetReport::Well if target.open_until.is_some_and(|until| until <= now.0) => {
            let close = sql("UPDATE lanes.target SET open_until = NULL, failures = 0, reason = NULL \
                 WHERE tenant = $1 AND app = $2")
            .bind(tenant)
            .bind(app);
            tracing::info!(%tenant, %app, "the target answers again");
            tx.execute(close).await.map(drop)
        }
        TargetReport::Well => Ok(()),
        TargetReport::Open { until, reason } => {
            let open = target.open_until.is_some_and(|until| until > now.0);
            let failures = if open { target.failures } else { target.failures + 1 };
            let until = target.open_until.map_or(until.0, |known| known.max(until.0));
            if !open {
                tracing::warn!(%tenant, %app, %reason, failures, "the target is paused");
            }
            let update = sql("UPDATE lanes.target SET open_until = $3, failures = $4, reason = $5 \
                 WHERE tenant = $1 AND app = $2")
            .bind(tenant)
            .bind(app)
            .bind(until)
            .bind(failures)
            .bind(cut(reason, DETAIL_BYTES_MAX));
            tx.execute(update).await.map(drop)
        }
    }
}

async fn record(tx: &mut Tx, leased: &Leased, number: i64, report: &Report) -> Result<()> {
    let key = &leased.key;
    let insert = sql("INSERT INTO lanes.attempt \
         (tenant, app, id, number, at, outcome, status, duration_ms, detail) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
    .bind(&key.tenant)
    .bind(&key.app)
    .bind(&key.id)
    .bind(number)
    .bind(report.at)
    .bind(report.outcome.as_str())
    .bind(report.status.map(i64::from))
    .bind(report.duration_ms)
    .bind(cut(&report.detail, DETAIL_BYTES_MAX));
    tx.execute(insert).await?;
    let forget = sql("DELETE FROM lanes.attempt \
         WHERE tenant = $1 AND app = $2 AND id = $3 AND number <= $4")
    .bind(&key.tenant)
    .bind(&key.app)
    .bind(&key.id)
    .bind(number - ATTEMPTS_KEPT);
    tx.execute(forget).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept() {
        let now = Timestamp(1_000);
        assert_eq!(allowed(0, now, 0), usize::MAX);
        assert_eq!(allowed(0, now, 5), 5);
        // Three of five paid for at this moment: two are left, the next one is free after 200 ms.
        let paid = now.0 * 1_000 + 3 * 200_000;
        assert_eq!(allowed(paid, now, 5), 2);
        assert_eq!(allowed(now.0 * 1_000 + 5 * 200_000, now, 5), 0);
        assert_eq!(allowed_at(now.0 * 1_000 + 5 * 200_000, 5), now.plus_ms(200));
        assert_eq!(allowed(now.0 * 1_000 + 5 * 200_000, now.plus_ms(200), 5), 1);
        assert_eq!(allowed_at(0, 0), Timestamp(0));
    }

    #[test]
    fn a_debt_is_waited_for() {
        // A group sent 20 requests in one go at 10 a second: the next lane comes 1.1 s later.
        let free = 20 * 100_000;
        assert_eq!(allowed(free, Timestamp(1_000), 10), 0);
        assert_eq!(allowed_at(free, 10), Timestamp(1_100));
        assert_eq!(allowed(free, Timestamp(1_100), 10), 1);
    }
}

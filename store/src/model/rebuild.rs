//! Rebuilding the read model beside the live one (D11).
//!
//! A run clears the idle slot, copies state rows and links from *one* snapshot of the journal, whose
//! counter row is where it starts to follow (two snapshots would lose members), catches up, compares,
//! and changes the pointer. Each page is fenced by the run's row, so a later run ends an earlier one. A
//! run that stops while it copies starts over, as its snapshot is gone; one that stops later goes on.
//! Live projection never waits for any of it.
//!
//! It compares while it follows: before each page of keys the slot is brought to the position of a fresh
//! snapshot of the journal, and nobody else moves the slot, so both sides of the page are of one position
//! whatever happens meanwhile. What was compared changes afterwards only by events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use annals_domain::ids::{Position, ResourceId};
use annals_domain::tenant::is_administrative;
use serde_json::Value;

use super::apply::{
    Change, Entity, Key, PAGE_EVENTS_MAX, Place, lock, numbered, origin_of, park_rows, poisonous, rows_of,
};
use super::index::{Indexed, Inherited, inherit_indexes};
use super::{INDEX_FORMAT, MEMBERS, ModelApplied, Slot, pointer};
use crate::Store;
use crate::backend::{Area, Col, Row, Rows, Tx, sql};
use crate::error::{Result, StoreError};
use crate::journal::append::tenant_id;
use crate::journal::read::{ORIGINS, STATE_COLUMNS, StateRow};
use crate::wake::Topic;

/// Rows cleared from each table in one step.
const CLEARED_PER_STEP_MAX: i64 = 20_000;
/// State rows copied in one step.
const STATES_PER_STEP_MAX: i64 = 1_000;
/// Links copied in one step.
const LINKS_PER_STEP_MAX: usize = 10_000;
/// Keys compared in one step: entities by version, links as they are.
const COMPARED_PER_STEP_MAX: usize = 5_000;
/// Entities of a page whose documents and rows are compared too.
const SAMPLE_MAX: usize = 256;
/// Tables of a slot with their keys.
const TABLES: [(&str, &str); 5] = [
    ("indexed", "tenant, path"),
    ("attribute", "tenant, id, path, element, ordinal"),
    ("link", "tenant, attribute, from_id, to_id"),
    ("parked", "tenant, id"),
    ("resource", "tenant, id"),
];

/// A rebuild in progress. Dropped, it stops where it is and never becomes live.
pub struct RebuildRun {
    id: String,
    slot: Slot,
    epoch: i64,
    phase: Phase,
    compared: Compared,
    /// Keys compared in one step.
    page: usize,
}

impl fmt::Debug for RebuildRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RebuildRun").field("id", &self.id).field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl RebuildRun {
    /// Compares so many keys in one step instead of 5,000.
    #[must_use]
    pub fn comparing(mut self, keys: usize) -> RebuildRun {
        self.page = keys.clamp(1, COMPARED_PER_STEP_MAX);
        self
    }
}

enum Phase {
    Clearing,
    Copying(Box<Copying>),
    Following,
}

struct Copying {
    snapshot: Tx,
    start: Position,
    /// Last state row copied; `None` once all are.
    states_after: Option<(String, String)>,
    /// Last link copied: tenant, from, to.
    links_after: (String, String, String),
}

/// How far a run has compared.
#[derive(Debug)]
enum Compared {
    /// Entities up to this key.
    Entities(EntityKey),
    /// All entities, and links up to this key.
    Links(LinkKey),
    /// Everything.
    All,
}

/// Tenant and id, as they are ordered.
type EntityKey = (String, String);
/// Tenant, from and to, as they are ordered.
type LinkKey = (String, String, String);

impl Default for Compared {
    fn default() -> Compared {
        Compared::Entities(Default::default())
    }
}

/// What of an entity is compared without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Brief {
    version: i64,
    position: Position,
    deleted: bool,
}

/// Two pages in the order of their keys, each of at most so many rows: what of them can be compared, and
/// where to go on. `None`: everything is.
fn comparable<K: Ord + Clone, A, B>(
    ours: &mut BTreeMap<K, A>,
    theirs: &mut BTreeMap<K, B>,
    max: usize,
) -> Option<K> {
    let end = |len: usize, last: Option<&K>| if len < max { None } else { last.cloned() };
    let ends = [end(ours.len(), ours.keys().next_back()), end(theirs.len(), theirs.keys().next_back())];
    // Beyond the end of the shorter page nothing is known of it.
    let end = ends.into_iter().flatten().min()?;
    ours.retain(|key, _| *key <= end);
    theirs.retain(|key, _| *key <= end);
    Some(end)
}

/// Stored values by path, element and ordinal.
type Values = BTreeMap<(i64, i64, i64), String>;

/// The positions of the events that created entities.
type Origins = BTreeMap<Key, Position>;

/// What a step of copying came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Rows cleared or copied.
    pub rows: usize,
    /// Everything is copied; now it can catch up.
    pub finished: bool,
}

/// What a step of catching up came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaughtUp {
    /// Events applied.
    pub applied: usize,
    /// Events the journal is ahead.
    pub behind: i64,
}

/// What an attempt to go live came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switched {
    /// The rebuilt slot is live; the generation.
    Live(i64),
    /// The journal is more than a page ahead: catch up first.
    Behind,
    /// So many keys were compared, and there are more: once again.
    Compared(usize),
    /// It is not what the journal says; the reason, without values. The next run starts over.
    Different(String),
}

impl Store {
    /// Begins a rebuild, or goes on with one that has copied everything. An earlier run that is still at
    /// work ends with its next page.
    pub async fn rebuild_begin(&self) -> Result<RebuildRun> {
        let epoch = self.head().await?.epoch;
        let id = self.entropy().uuid_v7(self.now()).hyphenated().to_string();
        let mut tx = self.backend().begin_write(Area::Model).await?;
        let (live, _) = lock(&mut tx, Place::Live).await?;
        let slot = live.other();
        let select = sql("SELECT b.phase, b.journal_epoch, b.index_format, b.slot FROM model.rebuild b \
             WHERE b.id = 1 {for_update}");
        let goes_on = match tx.fetch_optional(select).await? {
            Some(row) => {
                row.text(0)? == "following"
                    && row.int(1)? == epoch
                    && row.int(2)? == INDEX_FORMAT
                    && row.text(3)? == slot.letter()
            }
            None => false,
        };
        let upsert = sql("INSERT INTO model.rebuild (id, run, slot, phase, journal_epoch, index_format) \
             VALUES (1, $1, $2, $3, $4, $5) ON CONFLICT (id) DO UPDATE SET run = excluded.run, \
             slot = excluded.slot, phase = excluded.phase, journal_epoch = excluded.journal_epoch, \
             index_format = excluded.index_format")
        .bind(&id)
        .bind(slot.letter())
        .bind(if goes_on { "following" } else { "copying" })
        .bind(epoch)
        .bind(INDEX_FORMAT);
        tx.execute(upsert).await?;
        tx.commit().await?;
        tracing::info!(run = id, goes_on, "a rebuild of the read model begins");
        let phase = if goes_on { Phase::Following } else { Phase::Clearing };
        let (compared, page) = (Compared::default(), COMPARED_PER_STEP_MAX);
        Ok(RebuildRun { id, slot, epoch, phase, compared, page })
    }

    /// Does one bounded piece of clearing and copying.
    pub async fn rebuild_copy(&self, run: &mut RebuildRun) -> Result<Copied> {
        match &mut run.phase {
            Phase::Following => return Ok(Copied { rows: 0, finished: true }),
            Phase::Clearing => {
                let mut tx = self.backend().begin_write(Area::Model).await?;
                tx.commit_lazily().await?;
                lock(&mut tx, Place::Rebuild(&run.id)).await?;
                let rows = clear(&mut tx, run.slot).await?;
                tx.commit().await?;
                if rows > 0 {
                    return Ok(Copied { rows, finished: false });
                }
                let mut tx = self.backend().begin_write(Area::Model).await?;
                lock(&mut tx, Place::Rebuild(&run.id)).await?;
                inherit_indexes(&mut tx, run.slot, Inherited::Complete).await?;
                tx.commit().await?;
                run.phase = Phase::Copying(Box::new(self.open_snapshot(run.epoch).await?));
            }
            Phase::Copying(_) => {}
        }
        let Phase::Copying(copying) = &mut run.phase else { return Ok(Copied { rows: 0, finished: false }) };
        let place = Place::Rebuild(&run.id);
        if let Some((tenant, id)) = &copying.states_after {
            let select = sql(format!(
                "SELECT {STATE_COLUMNS} FROM journal.state s WHERE (s.tenant, s.id) > ($1, $2) \
                 ORDER BY s.tenant, s.id LIMIT $3"
            ));
            let select = select.bind(tenant).bind(id).bind(STATES_PER_STEP_MAX);
            let rows = copying.snapshot.fetch_all(select).await?;
            copying.states_after = match rows.last() {
                Some(last) => Some((last.text(0)?, last.text(1)?)),
                None => None,
            };
            let mut states = self.open_state_rows(rows).await?;
            states.retain(|state| !is_administrative(&state.resource_type));
            let origins = origins(&mut copying.snapshot, &states).await?;
            self.copy_states(place, &states, &origins).await?;
            return Ok(Copied { rows: states.len(), finished: false });
        }
        let (tenant, from, to) = &copying.links_after;
        let select = sql("SELECT l.tenant, l.from_id, l.to_id FROM journal.link l \
             WHERE l.attribute = $1 AND (l.tenant, l.attribute, l.from_id, l.to_id) > ($2, $1, $3, $4) \
             ORDER BY l.tenant, l.attribute, l.from_id, l.to_id LIMIT $5");
        let select = select.bind(MEMBERS).bind(tenant).bind(from).bind(to).bind(LINKS_PER_STEP_MAX);
        let links = copying.snapshot.fetch_all(select).await?;
        if let Some(last) = links.last() {
            copying.links_after = (last.text(0)?, last.text(1)?, last.text(2)?);
        }
        let finished = links.len() < LINKS_PER_STEP_MAX;
        self.copy_links(place, &links, finished.then_some(copying.start)).await?;
        if finished {
            run.phase = Phase::Following;
        }
        Ok(Copied { rows: links.len(), finished })
    }

    /// Applies the next page of events to the rebuilt slot. Poison is parked as in the live one.
    pub async fn rebuild_catch_up(&self, run: &mut RebuildRun) -> Result<CaughtUp> {
        let at = self.rebuild_position(run).await?;
        let events = self.read_events(at, PAGE_EVENTS_MAX).await?;
        let at = match self.project(Place::Rebuild(&run.id), at, &events).await? {
            ModelApplied::Advanced(position) => position,
            ModelApplied::Lost { actual } => actual,
        };
        Ok(CaughtUp { applied: events.len(), behind: self.head().await?.position - at })
    }

    /// Brings the rebuilt slot to one position of the journal and compares a page of it with a fresh snapshot
    /// of that position; once all of it is compared, makes it live.
    pub async fn rebuild_compare_and_switch(&self, run: &mut RebuildRun) -> Result<Switched> {
        let mut snapshot = self.backend().begin_read(Area::Journal).await?;
        let (target, epoch) = counter(&mut snapshot).await?;
        let at = self.rebuild_position(run).await?;
        let different = if epoch != run.epoch || at > target {
            Some("the journal was restored meanwhile".to_owned())
        } else {
            let missing = usize::try_from(target - at).unwrap_or(usize::MAX);
            if missing > PAGE_EVENTS_MAX {
                return Ok(Switched::Behind);
            }
            let events = self.read_events(at, missing).await?;
            match self.project(Place::Rebuild(&run.id), at, &events).await? {
                ModelApplied::Advanced(position) if position == target => {}
                _ => return Ok(Switched::Behind),
            }
            let (keys, different) = self.compare_page(run, &mut snapshot).await?;
            if different.is_none() && !matches!(run.compared, Compared::All) {
                return Ok(Switched::Compared(keys));
            }
            different
        };
        snapshot.rollback().await?;
        if different.is_none() {
            self.analyze(run.slot).await;
        }

        let mut tx = self.backend().begin_write(Area::Model).await?;
        lock(&mut tx, Place::Live).await?;
        lock(&mut tx, Place::Rebuild(&run.id)).await?;
        if let Some(reason) = different {
            // Not to be gone on with.
            tx.execute(sql("UPDATE model.rebuild SET phase = 'copying' WHERE id = 1")).await?;
            tx.commit().await?;
            tracing::error!(run = run.id, reason, "the rebuilt read model differs from the journal");
            return Ok(Switched::Different(reason));
        }
        let update = sql("UPDATE model.pointer SET live = $1, generation = generation + 1, \
             journal_epoch = $2, index_format = $3 WHERE id = 1");
        tx.execute(update.bind(run.slot.letter()).bind(run.epoch).bind(INDEX_FORMAT)).await?;
        inherit_indexes(&mut tx, run.slot, Inherited::Late).await?;
        tx.execute(sql("DELETE FROM model.rebuild WHERE id = 1")).await?;
        tx.notify(Topic::Model.channel(), "").await?;
        let generation = pointer(&mut tx).await?.generation;
        tx.commit().await?;
        self.wakes().wake(Topic::Model);
        tracing::info!(run = run.id, generation, "the rebuilt read model is live");
        Ok(Switched::Live(generation))
    }

    /// Gives a rebuild up. What it has written is swept away later.
    pub async fn rebuild_cancel(&self, run: RebuildRun) -> Result<()> {
        let delete = sql("DELETE FROM model.rebuild WHERE id = 1 AND run = $1").bind(&run.id);
        self.backend().execute(Area::Model, delete).await.map(drop)
    }

    /// Clears a piece of the slot that is neither live nor being rebuilt; 0 = it is empty. Old
    /// generations must not keep what later events erase.
    pub async fn model_sweep(&self) -> Result<usize> {
        let mut tx = self.backend().begin_write(Area::Model).await?;
        tx.commit_lazily().await?;
        let (live, _) = lock(&mut tx, Place::Live).await?;
        let running = tx.fetch_optional(sql("SELECT b.run FROM model.rebuild b WHERE b.id = 1")).await?;
        let rows = if running.is_none() { clear(&mut tx, live.other()).await? } else { 0 };
        tx.commit().await?;
        Ok(rows)
    }

    async fn open_snapshot(&self, epoch: i64) -> Result<Copying> {
        let mut snapshot = self.backend().begin_read(Area::Journal).await?;
        let (start, now) = counter(&mut snapshot).await?;
        if now != epoch {
            return Err(StoreError::Busy { what: "the journal's epoch changed", retry_after_s: 1 });
        }
        let (states_after, links_after) = (Some(Default::default()), Default::default());
        Ok(Copying { snapshot, start, states_after, links_after })
    }

    async fn rebuild_position(&self, run: &RebuildRun) -> Result<Position> {
        let select = sql("SELECT c.position FROM model.checkpoint c WHERE c.slot = $1");
        let row = self.backend().fetch_optional(Area::Model, select.bind(run.slot.letter())).await?;
        row.map_or(Ok(0), |row| row.int(0))
    }

    /// Writes a page of states; where the page fails, each alone, and parks those that fail.
    async fn copy_states(&self, place: Place<'_>, states: &[StateRow], origins: &Origins) -> Result<()> {
        match self.copy_page(place, states, origins).await {
            Err(error) if poisonous(&error) => {}
            result => return result,
        }
        for state in states {
            match self.copy_page(place, std::slice::from_ref(state), origins).await {
                Err(error) if poisonous(&error) => {
                    tracing::error!(id = %state.id, %error, "a state cannot be copied; the entity is parked");
                    let mut tx = self.backend().begin_write(Area::Model).await?;
                    let (slot, _) = lock(&mut tx, place).await?;
                    let key = (state.tenant.clone(), state.id.clone());
                    let reason = format!("copying its state failed: {error}");
                    park_rows(&mut tx, slot, &[(key, state.position)], &reason, false).await?;
                    tx.commit().await?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    async fn copy_page(&self, place: Place<'_>, states: &[StateRow], origins: &Origins) -> Result<()> {
        let registries = self.registries_of(states.iter().map(|state| &state.tenant)).await?;
        let mut tx = self.backend().begin_write(Area::Model).await?;
        tx.commit_lazily().await?;
        let (slot, _) = lock(&mut tx, place).await?;
        let indexed = Indexed::load(&mut tx, slot, states.iter().map(|state| &state.tenant)).await?;
        let mut change = Change::default();
        for state in states {
            let key = (state.tenant.clone(), state.id.clone());
            let entity = Entity::of_state(state, origin_of(origins.get(&key).copied(), &state.id)?);
            let rows = rows_of(&registries, &indexed, &state.tenant, &entity)?;
            change.rows.push((key.clone(), Vec::new(), rows));
            change.entities.push((key, entity));
        }
        change.write(&mut tx, slot, &indexed).await?;
        tx.commit().await
    }

    /// Writes a page of links; with the last one the slot begins to follow from `start`.
    async fn copy_links(&self, place: Place<'_>, links: &[Row], start: Option<Position>) -> Result<()> {
        let mut rows = Rows::new(&[("tenant", Col::Text), ("from_id", Col::Text), ("to_id", Col::Text)]);
        for link in links {
            rows.push(vec![link.text(0)?.into(), link.text(1)?.into(), link.text(2)?.into()]);
        }
        let mut tx = self.backend().begin_write(Area::Model).await?;
        let (slot, _) = lock(&mut tx, place).await?;
        if !rows.is_empty() {
            let insert = slot.sql(
                "INSERT INTO model.link_@ (tenant, attribute, from_id, to_id) \
                 SELECT r.tenant, $1, r.from_id, r.to_id FROM {rows} WHERE true ON CONFLICT DO NOTHING",
            );
            tx.execute(insert.bind(MEMBERS).rows(rows)).await?;
        }
        if let Some(start) = start {
            let update = sql("UPDATE model.checkpoint SET position = $1 WHERE slot = $2");
            tx.execute(update.bind(start).bind(slot.letter())).await?;
            tx.execute(sql("UPDATE model.rebuild SET phase = 'following' WHERE id = 1")).await?;
        }
        tx.commit().await
    }

    /// Compares the next page of the slot with the journal's snapshot of the same position: how many keys,
    /// and how they differ, if they do.
    async fn compare_page(&self, run: &mut RebuildRun, journal: &mut Tx) -> Result<(usize, Option<String>)> {
        let mut model = self.backend().begin_read(Area::Model).await?;
        let compared = match &run.compared {
            Compared::Entities(after) => {
                let after = after.clone();
                self.compare_entities(run, journal, &mut model, &after).await?
            }
            Compared::Links(after) => {
                let after = after.clone();
                self.compare_links(run, journal, &mut model, &after).await?
            }
            Compared::All => (0, None),
        };
        model.rollback().await?;
        Ok(compared)
    }

    async fn compare_entities(
        &self,
        run: &mut RebuildRun,
        journal: &mut Tx,
        model: &mut Tx,
        after: &EntityKey,
    ) -> Result<(usize, Option<String>)> {
        let select = sql("SELECT s.tenant, s.id, s.version, s.position, s.deleted, s.resource_type \
             FROM journal.state s WHERE (s.tenant, s.id) > ($1, $2) ORDER BY s.tenant, s.id LIMIT $3");
        let select = select.bind(&after.0).bind(&after.1).bind(run.page);
        let mut wanted: BTreeMap<EntityKey, Option<Brief>> = BTreeMap::new();
        for row in journal.fetch_all(select).await? {
            let brief = Brief { version: row.int(2)?, position: row.int(3)?, deleted: row.flag(4)? };
            let brief = Some(brief).filter(|_| !row.text(5).is_ok_and(|kind| is_administrative(&kind)));
            wanted.insert((row.text(0)?, row.text(1)?), brief);
        }
        let select = run.slot.sql(
            "SELECT m.tenant, m.id, m.version, m.position, m.deleted FROM model.resource_@ m \
             WHERE (m.tenant, m.id) > ($1, $2) ORDER BY m.tenant, m.id LIMIT $3",
        );
        let select = select.bind(&after.0).bind(&after.1).bind(run.page);
        let mut found: BTreeMap<EntityKey, Brief> = BTreeMap::new();
        for row in model.fetch_all(select).await? {
            let brief = Brief { version: row.int(2)?, position: row.int(3)?, deleted: row.flag(4)? };
            found.insert((row.text(0)?, row.text(1)?), brief);
        }
        let end = comparable(&mut wanted, &mut found, run.page);
        let keys = wanted.len();
        // Administration is not in the read model.
        let wanted: BTreeMap<EntityKey, Brief> =
            wanted.into_iter().filter_map(|(key, brief)| Some((key, brief?))).collect();
        let all: BTreeSet<&EntityKey> = wanted.keys().chain(found.keys()).collect();
        let differing: Vec<&EntityKey> =
            all.into_iter().filter(|key| wanted.get(*key) != found.get(*key)).collect();
        if !differing.is_empty() {
            let parked = parked(model, run.slot, &differing).await?;
            for key in differing {
                let excused = parked.contains(key)
                    || match (wanted.get(key), found.get(key)) {
                        // Repaired since the snapshot.
                        (Some(wanted), Some(found)) if found.position > wanted.position => true,
                        // Its person was erased since: the live projector empties this slot, too.
                        (Some(_), Some(found)) if found.deleted => self.is_gone(key).await?,
                        _ => false,
                    };
                if !excused {
                    let (wanted, found) = (wanted.get(key), found.get(key));
                    let (tenant, id) = key;
                    let reason = format!("{id} of tenant {tenant} is {found:?}, in the journal {wanted:?}");
                    return Ok((keys, Some(reason)));
                }
            }
        }

        let sample = self.sample(wanted.into_keys().collect());
        let different = self.sample_difference(run, &sample, journal, model).await?;
        run.compared = match end {
            Some(end) => Compared::Entities(end),
            None => Compared::Links(Default::default()),
        };
        Ok((keys, different))
    }

    /// A few of these keys, evenly spread from a random one on.
    fn sample(&self, keys: Vec<EntityKey>) -> Vec<EntityKey> {
        let pace = keys.len().div_ceil(SAMPLE_MAX).max(1);
        let mut random = [0u8; 8];
        self.entropy().fill(&mut random);
        let first = usize::from_le_bytes(random) % pace;
        keys.into_iter().skip(first).step_by(pace).collect()
    }

    async fn is_gone(&self, (tenant, id): &EntityKey) -> Result<bool> {
        let state = self.state(&tenant_id(tenant)?, &ResourceId::from_text(id)).await?;
        Ok(state.is_some_and(|state| state.document().is_none()))
    }

    async fn compare_links(
        &self,
        run: &mut RebuildRun,
        journal: &mut Tx,
        model: &mut Tx,
        after: &LinkKey,
    ) -> Result<(usize, Option<String>)> {
        // Links of deleted groups are left out: each side clears them away in its own time.
        let text = |link: &str, entity: &str| {
            format!(
                "SELECT l.tenant, l.from_id, l.to_id, CAST(CASE WHEN EXISTS (SELECT 1 FROM {entity} g \
                 WHERE g.tenant = l.tenant AND g.id = l.from_id AND g.deleted = 1) THEN 1 ELSE 0 END AS BIGINT) \
                 FROM {link} l WHERE l.attribute = $1 \
                 AND (l.tenant, l.attribute, l.from_id, l.to_id) > ($2, $1, $3, $4) \
                 ORDER BY l.tenant, l.attribute, l.from_id, l.to_id LIMIT $5"
            )
        };
        let page_keys = run.page;
        let page = |select: crate::backend::Sql| {
            let select = select.bind(MEMBERS).bind(&after.0).bind(&after.1).bind(&after.2);
            select.bind(page_keys)
        };
        let mut wanted =
            links_of(journal.fetch_all(page(sql(text("journal.link", "journal.state")))).await?)?;
        let select = run.slot.sql(&text("model.link_@", "model.resource_@"));
        let mut found = links_of(model.fetch_all(page(select)).await?)?;
        let end = comparable(&mut wanted, &mut found, run.page);
        let keys = wanted.len();
        let all: BTreeSet<&LinkKey> = wanted.keys().chain(found.keys()).collect();
        let is_there = |links: &BTreeMap<LinkKey, bool>, key: &LinkKey| links.get(key) == Some(&false);
        let differing: Vec<&LinkKey> =
            all.into_iter().filter(|key| is_there(&wanted, key) != is_there(&found, key)).collect();
        if !differing.is_empty() {
            let groups: Vec<EntityKey> =
                differing.iter().map(|(tenant, from, _)| (tenant.clone(), from.clone())).collect();
            let parked = parked(model, run.slot, &groups.iter().collect::<Vec<_>>()).await?;
            for ((tenant, from, to), group) in differing.into_iter().zip(&groups) {
                // A parked group's rows are old; one that was erased since is empty here already.
                if !parked.contains(group) && !self.is_gone(group).await? {
                    let reason = format!("the link from {from} to {to} of tenant {tenant}");
                    return Ok((keys, Some(reason)));
                }
            }
        }
        run.compared = end.map_or(Compared::All, Compared::Links);
        Ok((keys, None))
    }

    /// How some entities' documents and rows differ from the journal, if they do.
    async fn sample_difference(
        &self,
        run: &RebuildRun,
        keys: &[EntityKey],
        journal: &mut Tx,
        model: &mut Tx,
    ) -> Result<Option<String>> {
        if keys.is_empty() {
            return Ok(None);
        }
        let rows = || {
            let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
            for (tenant, id) in keys {
                rows.push(vec![tenant.into(), id.into()]);
            }
            rows
        };
        let select = sql(format!(
            "SELECT {STATE_COLUMNS} FROM {{rows}} CROSS JOIN journal.state s \
             WHERE s.tenant = r.tenant AND s.id = r.id"
        ));
        let states = journal.fetch_all(select.rows(rows())).await?;
        let states = self.open_state_rows(states).await?;
        let origins = origins(journal, &states).await?;
        let registries = self.registries_of(states.iter().map(|state| &state.tenant)).await?;

        let indexed = Indexed::load(model, run.slot, states.iter().map(|state| &state.tenant)).await?;
        let select = run.slot.sql(
            "SELECT r.tenant, r.id, m.version, m.position, m.document, p.position, m.origin FROM {rows} \
             LEFT JOIN model.resource_@ m ON m.tenant = r.tenant AND m.id = r.id \
             LEFT JOIN model.parked_@ p ON p.tenant = r.tenant AND p.id = r.id",
        );
        let mut resources = BTreeMap::new();
        for row in model.fetch_all(select.rows(rows())).await? {
            resources.insert((row.text(0)?, row.text(1)?), row);
        }
        let select = run.slot.sql(
            "SELECT a.tenant, a.id, a.path, a.element, a.ordinal, a.value, a.rest FROM {rows} \
             CROSS JOIN model.attribute_@ a WHERE a.tenant = r.tenant AND a.id = r.id",
        );
        let mut attributes: BTreeMap<(String, String), Values> = BTreeMap::new();
        for row in model.fetch_all(select.rows(rows())).await? {
            let value = row.text(5)? + row.opt_text(6)?.as_deref().unwrap_or_default();
            let at = (row.int(2)?, row.int(3)?, row.int(4)?);
            attributes.entry((row.text(0)?, row.text(1)?)).or_default().insert(at, value);
        }

        for state in &states {
            let key = (state.tenant.as_str().to_owned(), state.id.as_str().to_owned());
            let differs =
                |what: &str| Ok(Some(format!("the {what} of {} in tenant {}", state.id, state.tenant)));
            let Some(row) = resources.get(&key) else { return differs("row") };
            let ahead = row.opt_int(3)?.is_some_and(|position| position > state.position);
            if row.opt_int(5)?.is_some() || ahead {
                // Parked, or repaired since the snapshot.
                continue;
            }
            let origin = origins.get(&(state.tenant.clone(), state.id.clone())).copied();
            let entity = Entity::of_state(state, origin_of(origin, &state.id)?);
            if row.opt_int(2)? != Some(entity.version) {
                return differs("version");
            }
            if row.opt_int(6)? != Some(entity.origin) {
                return differs("origin");
            }
            let document = row.opt_text(4)?.map(|text| serde_json::from_str::<Value>(&text)).transpose();
            let document =
                document.map_err(|e| StoreError::corrupt(format!("the row of {}", state.id), e))?;
            let is_emptied = document.is_none() || entity.document.is_none();
            if document != entity.document.clone().map(|d| Value::Object(d.0)) {
                if is_emptied && self.is_gone(&key).await? {
                    // Erased since the snapshot: key and rows go at once.
                    continue;
                }
                return differs("document");
            }
            let wanted = rows_of(&registries, &indexed, &state.tenant, &entity)?;
            let found = attributes.remove(&key).unwrap_or_default();
            let wanted = indexed.of(&state.tenant).map(|paths| numbered(&wanted, paths)).unwrap_or_default();
            if !found.iter().map(|(at, value)| (*at, value.as_str())).eq(wanted) {
                return differs("attribute rows");
            }
        }
        Ok(None)
    }
}

/// Position and epoch of the journal, and with that the beginning of the transaction's snapshot.
async fn counter(tx: &mut Tx) -> Result<(Position, i64)> {
    let select = sql("SELECT c.position, m.epoch FROM journal.counter c CROSS JOIN journal.meta m \
         WHERE c.id = 1 AND m.id = 1");
    let row = tx.fetch_optional(select).await?;
    let row = row.ok_or_else(|| StoreError::corrupt("the counter row", "it is missing"))?;
    Ok((row.int(0)?, row.int(1)?))
}

/// Where the journal has the beginning of these entities, as the transaction sees it.
async fn origins(journal: &mut Tx, states: &[StateRow]) -> Result<Origins> {
    let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
    for state in states {
        rows.push(vec![(&state.tenant).into(), (&state.id).into()]);
    }
    if rows.is_empty() {
        return Ok(Origins::new());
    }
    let found = journal.fetch_all(sql(ORIGINS).rows(rows)).await?;
    let entry =
        |row: &Row| Ok(((tenant_id(&row.text(0)?)?, ResourceId::from_text(&row.text(1)?)), row.int(2)?));
    found.iter().map(entry).collect()
}

/// Those of the entities that are parked in the slot.
async fn parked(model: &mut Tx, slot: Slot, keys: &[&EntityKey]) -> Result<BTreeSet<EntityKey>> {
    let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
    for (tenant, id) in keys.iter().copied().collect::<BTreeSet<_>>() {
        rows.push(vec![tenant.into(), id.into()]);
    }
    let select = slot.sql(
        "SELECT p.tenant, p.id FROM {rows} CROSS JOIN model.parked_@ p \
         WHERE p.tenant = r.tenant AND p.id = r.id",
    );
    let found = model.fetch_all(select.rows(rows)).await?;
    found.iter().map(|row| Ok((row.text(0)?, row.text(1)?))).collect()
}

/// Links, and whether each is a deleted group's.
fn links_of(rows: Vec<Row>) -> Result<BTreeMap<LinkKey, bool>> {
    let links = rows.iter().map(|row| Ok(((row.text(0)?, row.text(1)?, row.text(2)?), row.flag(3)?)));
    links.collect()
}

/// Deletes a bounded number of rows of each table. Readers that still have the slot as their live one
/// keep their snapshot, so nothing is truncated.
async fn clear(tx: &mut Tx, slot: Slot) -> Result<usize> {
    let mut rows = 0;
    for (table, key) in TABLES {
        let delete = slot.sql(&format!(
            "DELETE FROM model.{table}_@ WHERE ({key}) IN \
             (SELECT {key} FROM model.{table}_@ ORDER BY {key} LIMIT $1)"
        ));
        rows += usize::try_from(tx.execute(delete.bind(CLEARED_PER_STEP_MAX)).await?).unwrap_or(usize::MAX);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_compared_up_to_the_end_of_the_shorter_one() {
        let page = |keys: &[u32]| keys.iter().map(|key| (*key, ())).collect::<BTreeMap<u32, ()>>();
        let cut = |ours: &[u32], theirs: &[u32]| {
            let (mut ours, mut theirs) = (page(ours), page(theirs));
            let end = comparable(&mut ours, &mut theirs, 3);
            (end, ours.into_keys().collect::<Vec<_>>(), theirs.into_keys().collect::<Vec<_>>())
        };
        assert_eq!(cut(&[1, 2, 3], &[1, 2, 3]), (Some(3), vec![1, 2, 3], vec![1, 2, 3]));
        assert_eq!(cut(&[1, 2, 3], &[2, 3, 4]), (Some(3), vec![1, 2, 3], vec![2, 3]));
        assert_eq!(cut(&[7, 8, 9], &[1, 2, 3]), (Some(3), vec![], vec![1, 2, 3]));
        // A page that is not full is all there is.
        assert_eq!(cut(&[1, 2, 3], &[1, 9]), (Some(3), vec![1, 2, 3], vec![1]));
        assert_eq!(cut(&[1], &[1, 9]), (None, vec![1], vec![1, 9]));
    }
}

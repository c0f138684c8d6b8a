//! Events into rows (D11): a page of events is one transaction that moves the checkpoint with its rows.
//!
//! The checkpoint is compared and set, so a second projector does no harm. Documents are guarded by the
//! position of their last event, so a page applied again changes nothing. Member links are set
//! operations without a position of their own: they are always applied, and end right because pages are
//! contiguous.
//!
//! An event that cannot be applied must not stop the others: its entity is rewritten from the state row,
//! or parked with its old rows ([`Store::model_project`]).

use std::collections::{BTreeMap, BTreeSet};

use annals_domain::clock::Timestamp;
use annals_domain::event::{Body, Event, Recorded};
use annals_domain::ids::{Position, ResourceId, TenantId, Version};
use annals_domain::resource;
use annals_domain::scim::resource::Document;
use annals_domain::tenant::is_administrative;
use annals_domain::view::{IndexRow, index_rows};
use serde_json::Value;

use super::filter_sql::split;
use super::index::Indexed;
use super::{MEMBERS, Paths, Slot, pointer};
use crate::Store;
use crate::backend::{Area, Col, Rows, Tx, sql};
use crate::error::{Result, StoreError};
use crate::journal::append::tenant_id;
use crate::journal::read::StateRow;
use crate::registry::Registries;
use crate::wake::Topic;

/// Most events one transaction applies.
pub const PAGE_EVENTS_MAX: usize = 1_000;
/// Most links of a deleted group that go with it; what is left is invisible, and gone after a rebuild.
const LINKS_PURGED_MAX: i64 = 50_000;
/// Most parked entities that are tried again after a page that touched them.
const HEALS_PER_PAGE_MAX: usize = 16;
/// Up to this position, statistics are gathered anew whenever it has doubled; beyond, a tenth of the
/// rows is enough for autovacuum to do it in time.
const ANALYZED_UNTIL: Position = 1 << 20;

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelApplied {
    /// It is applied; this is the checkpoint now.
    Advanced(Position),
    /// The checkpoint is elsewhere: another projector is active, a crash rewound it, or a rebuilt model
    /// went live. Nothing was written.
    Lost {
        /// Where it is.
        actual: Position,
    },
}

/// What trying parked entities again came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// Entities whose rows are right again.
    pub repaired: usize,
    /// Entities that failed again.
    pub failed: usize,
}

/// Which slot a page goes to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// The live one.
    Live,
    /// The one that this rebuild fills.
    Rebuild(&'a str),
}

/// An entity on its way into the read model.
#[derive(Clone, Debug)]
pub(super) struct Entity {
    pub(super) resource_type: String,
    pub(super) version: Version,
    pub(super) position: Position,
    /// The position of the event that created it.
    pub(super) origin: Position,
    pub(super) created: Timestamp,
    pub(super) modified: Timestamp,
    /// `None`: a tombstone.
    pub(super) document: Option<Document>,
}

pub(super) type Key = (TenantId, ResourceId);

impl Entity {
    /// `origin` is the position of the event that created it.
    pub(super) fn of_state(state: &StateRow, origin: Position) -> Entity {
        Entity {
            resource_type: state.resource_type.clone(),
            version: state.version,
            position: state.position,
            origin,
            created: state.created,
            modified: state.modified,
            document: state.document().cloned(),
        }
    }

    /// Folds an event in; says whether anything changed.
    fn fold(entity: &mut Option<Entity>, event: &Recorded) -> Result<bool> {
        if entity.as_ref().is_some_and(|e| event.position <= e.position) {
            return Ok(false);
        }
        let is_start = matches!(event.body, Body::Open(Event::Created { .. }));
        let is_end = matches!(event.body, Body::Erased | Body::Open(Event::Deleted | Event::Erased));
        let mut next = match entity.take() {
            Some(entity) => entity,
            None if is_start || is_end => Entity {
                resource_type: event.stream.resource_type.clone(),
                version: 0,
                position: 0,
                origin: event.position,
                created: event.at,
                modified: event.at,
                document: None,
            },
            None => {
                let what = format!("the read model's row of {}", event.stream);
                return Err(StoreError::corrupt(what, format!("it is missing at {}", event.position)));
            }
        };
        let exists = next.document.is_some();
        let mut document = next.document.take().unwrap_or_default();
        let exists = match &event.body {
            Body::Open(event) => resource::apply(&mut document, event, exists),
            // Nobody can read it any more, so nobody may find it.
            Body::Erased => false,
        };
        next.document = exists.then_some(document);
        if is_start {
            next.created = event.at;
        }
        next.version = event.version;
        next.position = event.position;
        next.modified = event.at;
        *entity = Some(next);
        Ok(true)
    }
}

/// What became of a page.
struct Applied {
    what: ModelApplied,
    slot: Slot,
    /// The parked entities it touched.
    touched: Vec<Key>,
}

impl Store {
    /// Applies events to the live read model, in pages of [`PAGE_EVENTS_MAX`]. They must be the ones
    /// that follow `expected`, without gaps; nothing happens unless the checkpoint is `expected`.
    /// Applying a page again, after the checkpoint was set back, changes nothing.
    ///
    /// # Errors
    /// All or nothing of a page. [`StoreError::Upgrade`] for a resource type this build does not know.
    pub async fn model_apply(&self, expected: Position, events: &[Recorded]) -> Result<ModelApplied> {
        self.apply_all(Place::Live, expected, events).await
    }

    /// As [`Store::model_apply`], but an event that cannot be applied does not stop the others: its
    /// entity's rows are written from the state row, or the entity is parked and keeps its old rows.
    ///
    /// # Errors
    /// Those that say nothing about an event: the database is out of reach, or a newer build is needed.
    pub async fn model_project(&self, expected: Position, events: &[Recorded]) -> Result<ModelApplied> {
        self.project(Place::Live, expected, events).await
    }

    /// Parks the entity of an event that cannot be applied, and moves the checkpoint beyond the event.
    /// Members it adds or removes are still written, if they can be.
    pub async fn model_park(
        &self,
        expected: Position,
        event: &Recorded,
        reason: &str,
    ) -> Result<ModelApplied> {
        self.park(Place::Live, expected, event, reason).await
    }

    /// Writes the rows of parked entities from their state rows; at most `max` of them.
    pub async fn redrive_parked(&self, max: usize) -> Result<Redriven> {
        let mut tx = self.backend().begin_read(Area::Model).await?;
        let live = pointer(&mut tx).await?.live;
        let select = live.sql("SELECT p.tenant, p.id FROM model.parked_@ p ORDER BY p.tenant, p.id LIMIT $1");
        let rows = tx.fetch_all(select.bind(max)).await?;
        tx.rollback().await?;
        let mut redriven = Redriven::default();
        for row in &rows {
            let key = (tenant_id(&row.text(0)?)?, ResourceId::from_text(&row.text(1)?));
            match self.repair(Place::Live, &key).await {
                Ok(true) => redriven.repaired += 1,
                Ok(false) => redriven.failed += 1,
                Err(error) if poisonous(&error) => redriven.failed += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(redriven)
    }

    async fn apply_all(
        &self,
        place: Place<'_>,
        expected: Position,
        events: &[Recorded],
    ) -> Result<ModelApplied> {
        if (expected + 1..).zip(events).any(|(position, event)| event.position != position) {
            return Err(StoreError::corrupt("a page for the read model", "its positions have gaps"));
        }
        let mut checkpoint = expected;
        for page in events.chunks(PAGE_EVENTS_MAX) {
            match self.apply_page(place, checkpoint, page).await? {
                ModelApplied::Advanced(position) => checkpoint = position,
                lost => return Ok(lost),
            }
        }
        Ok(ModelApplied::Advanced(checkpoint))
    }

    async fn apply_page(
        &self,
        place: Place<'_>,
        expected: Position,
        events: &[Recorded],
    ) -> Result<ModelApplied> {
        let Applied { what, slot, touched } = self.apply_once(place, expected, events).await?;
        if matches!(place, Place::Live) {
            self.wakes().wake(Topic::Model);
            if let ModelApplied::Advanced(now) = what
                && has_doubled(expected, now)
            {
                self.analyze(slot).await;
            }
        }
        self.heal(place, touched).await;
        Ok(what)
    }

    /// Tries parked entities again whose events came by.
    async fn heal(&self, place: Place<'_>, touched: Vec<Key>) {
        for key in touched.into_iter().take(HEALS_PER_PAGE_MAX) {
            match self.repair(place, &key).await {
                Ok(true) => tracing::info!(tenant = %key.0, id = %key.1, "a parked entity is repaired"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(tenant = %key.0, id = %key.1, %error, "a parked entity stays parked");
                }
            }
        }
    }

    async fn apply_once(&self, place: Place<'_>, expected: Position, events: &[Recorded]) -> Result<Applied> {
        let registries = self.registries_of(events.iter().map(|event| &event.tenant)).await?;
        let mut tx = self.backend().begin_write(Area::Model).await?;
        tx.commit_lazily().await?;
        let (slot, actual) = lock(&mut tx, place).await?;
        if actual != expected {
            tx.rollback().await?;
            return Ok(Applied { what: ModelApplied::Lost { actual }, slot, touched: Vec::new() });
        }

        let last = events.last().map_or(expected, |event| event.position);
        let scim = || events.iter().filter(|event| !is_administrative(&event.stream.resource_type));
        let keys: BTreeSet<Key> = scim().map(key_of).collect();
        let indexed = Indexed::load(&mut tx, slot, keys.iter().map(|(tenant, _)| tenant)).await?;
        let (mut entities, parked) = load(&mut tx, slot, &keys).await?;
        let mut old_rows: BTreeMap<Key, Vec<IndexRow>> = BTreeMap::new();
        let mut changed: BTreeSet<Key> = BTreeSet::new();
        let mut emptied: BTreeSet<Key> = BTreeSet::new();
        let mut erased: BTreeSet<Key> = BTreeSet::new();
        let mut ended_groups: BTreeSet<Key> = BTreeSet::new();
        let mut links = Links::default();
        for event in scim() {
            let key = key_of(event);
            links.note(event);
            if parked.contains(&key) {
                continue;
            }
            let entity = entities.entry(key.clone()).or_default();
            if !old_rows.contains_key(&key) {
                let rows =
                    entity.as_ref().map_or(Ok(Vec::new()), |e| rows_of(&registries, &indexed, &key.0, e))?;
                old_rows.insert(key.clone(), rows);
            }
            if !Entity::fold(entity, event)? {
                continue;
            }
            if entity.as_ref().is_some_and(|e| e.document.is_none()) {
                emptied.insert(key.clone());
                if matches!(event.body, Body::Erased | Body::Open(Event::Erased)) {
                    erased.insert(key.clone());
                }
                let known = registries.resource_type(&key.0, &event.stream.resource_type);
                if known.is_some_and(|rt| rt.link_attribute().is_some()) {
                    ended_groups.insert(key.clone());
                }
            } else {
                emptied.remove(&key);
            }
            changed.insert(key);
        }

        let mut change = Change { emptied, ..Change::default() };
        for key in &changed {
            if let Some(Some(entity)) = entities.remove(key) {
                let old = old_rows.remove(key).unwrap_or_default();
                let new = rows_of(&registries, &indexed, &key.0, &entity)?;
                change.entities.push((key.clone(), entity));
                change.rows.push((key.clone(), old, new));
            }
        }
        change.write(&mut tx, slot, &indexed).await?;
        links.write(&mut tx, slot).await?;
        purge_links(&mut tx, slot, &ended_groups).await?;
        if matches!(place, Place::Live) {
            // Rows of an older generation must not outlive a person's erasure.
            erase(&mut tx, slot.other(), &erased).await?;
        }
        advance(&mut tx, place, slot, expected, last).await?;
        tx.commit().await?;
        let touched = keys.into_iter().filter(|key| parked.contains(key)).collect();
        Ok(Applied { what: ModelApplied::Advanced(last), slot, touched })
    }

    /// Applies events; narrows a page that fails down to the event at fault and parks its entity.
    pub(super) async fn project(
        &self,
        place: Place<'_>,
        expected: Position,
        events: &[Recorded],
    ) -> Result<ModelApplied> {
        let (mut at, mut rest, mut size) = (expected, events, PAGE_EVENTS_MAX);
        while !rest.is_empty() {
            let (page, following) = rest.split_at(size.min(rest.len()));
            let applied = match (self.apply_all(place, at, page).await, page) {
                (Err(error), [event]) if poisonous(&error) => {
                    let reason = reason(&error);
                    let (position, kind) = (event.position, &event.kind);
                    tracing::error!(
                        position,
                        kind,
                        reason,
                        "an event cannot be applied; its entity is parked"
                    );
                    metrics::counter!("annals_model_parked_total").increment(1);
                    let parked = self.park(place, at, event, &reason).await?;
                    self.heal(place, vec![key_of(event)]).await;
                    size = PAGE_EVENTS_MAX;
                    parked
                }
                (Err(error), _) if poisonous(&error) => {
                    size = page.len() / 2;
                    continue;
                }
                (result, _) => result?,
            };
            match applied {
                ModelApplied::Advanced(position) => (at, rest) = (position, following),
                lost => return Ok(lost),
            }
        }
        Ok(ModelApplied::Advanced(at))
    }

    async fn park(
        &self,
        place: Place<'_>,
        expected: Position,
        event: &Recorded,
        reason: &str,
    ) -> Result<ModelApplied> {
        let applied = match self.park_once(place, expected, event, reason, true).await {
            Err(error) if poisonous(&error) => self.park_once(place, expected, event, reason, false).await?,
            result => result?,
        };
        if matches!(place, Place::Live) {
            self.wakes().wake(Topic::Model);
        }
        Ok(applied)
    }

    async fn park_once(
        &self,
        place: Place<'_>,
        expected: Position,
        event: &Recorded,
        reason: &str,
        with_links: bool,
    ) -> Result<ModelApplied> {
        let mut tx = self.backend().begin_write(Area::Model).await?;
        let (slot, actual) = lock(&mut tx, place).await?;
        if actual != expected || event.position != expected + 1 {
            tx.rollback().await?;
            return Ok(ModelApplied::Lost { actual });
        }
        let mut links = Links::default();
        links.note(event);
        let lost = !with_links && !links.0.is_empty();
        if with_links {
            links.write(&mut tx, slot).await?;
        }
        park_rows(&mut tx, slot, &[(key_of(event), event.position)], reason, lost).await?;
        advance(&mut tx, place, slot, expected, event.position).await?;
        tx.commit().await?;
        Ok(ModelApplied::Advanced(event.position))
    }

    /// Writes an entity's rows from its state row and ends its being parked; `false` if only a rebuild
    /// can do that.
    pub(super) async fn repair(&self, place: Place<'_>, key: &Key) -> Result<bool> {
        let registries = self.registries_of(std::iter::once(&key.0)).await?;
        let mut tx = self.backend().begin_write(Area::Model).await?;
        let (slot, _) = lock(&mut tx, place).await?;
        let select = slot.sql("SELECT p.links_lost FROM model.parked_@ p WHERE p.tenant = $1 AND p.id = $2");
        let parked = tx.fetch_optional(select.bind(&key.0).bind(&key.1)).await?;
        if parked.map_or(Ok(false), |row| row.flag(0))? {
            tx.rollback().await?;
            return Ok(false);
        }
        let indexed = Indexed::load(&mut tx, slot, std::iter::once(&key.0)).await?;
        // Read under the lock: the checkpoint stands still, so the state is no older than it, and
        // every event that was skipped while parked is in it.
        let mut change = Change::default();
        if let Some(state) = self.state(&key.0, &key.1).await? {
            let origins = self.origins(&key.0, std::slice::from_ref(&key.1)).await?;
            let entity = Entity::of_state(&state, origin_of(origins.get(&key.1).copied(), &key.1)?);
            change.rows.push((key.clone(), Vec::new(), rows_of(&registries, &indexed, &key.0, &entity)?));
            change.entities.push((key.clone(), entity));
        }
        change.emptied.insert(key.clone());
        change.write(&mut tx, slot, &indexed).await?;
        let delete = slot.sql("DELETE FROM model.parked_@ WHERE tenant = $1 AND id = $2");
        tx.execute(delete.bind(&key.0).bind(&key.1)).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// The attribute rows an entity should have: those of the attributes that its tenant asks for.
pub(super) fn rows_of(
    registries: &Registries,
    indexed: &Indexed,
    tenant: &TenantId,
    entity: &Entity,
) -> Result<Vec<IndexRow>> {
    let Some(document) = &entity.document else { return Ok(Vec::new()) };
    let name = &entity.resource_type;
    let known = registries.resource_type(tenant, name).ok_or_else(|| StoreError::Upgrade {
        position: entity.position,
        reason: format!("resource type {name:?} is unknown to this build"),
    })?;
    let Some(paths) = indexed.of(tenant) else { return Ok(Vec::new()) };
    let mut rows = index_rows(known, document);
    rows.retain(|row| paths.number(&row.key).is_some());
    Ok(rows)
}

fn key_of(event: &Recorded) -> Key {
    (event.tenant.clone(), event.stream.id.clone())
}

/// The position of the event that created an entity, which the journal has for every state row.
pub(super) fn origin_of(origin: Option<Position>, id: &ResourceId) -> Result<Position> {
    origin.ok_or_else(|| StoreError::corrupt(format!("the events of {id}"), "the first one is missing"))
}

fn has_doubled(from: Position, to: Position) -> bool {
    (1_024..=ANALYZED_UNTIL).contains(&to) && from.max(1).ilog2() != to.ilog2()
}

/// Takes the slot's lock and gives the slot with its checkpoint. On PostgreSQL the pointer row is the
/// mutex of projectors and of the switch; a rebuild has its own row and runs beside them.
pub(super) async fn lock(tx: &mut Tx, place: Place<'_>) -> Result<(Slot, Position)> {
    let slot = match place {
        Place::Live => {
            let select = sql("SELECT p.live FROM model.pointer p WHERE p.id = 1 {for_update}");
            let row = tx.fetch_optional(select).await?;
            let row =
                row.ok_or_else(|| StoreError::corrupt("the pointer of the read model", "it is missing"))?;
            Slot::of_letter(&row.text(0)?)?
        }
        Place::Rebuild(run) => {
            let select = sql("SELECT b.slot FROM model.rebuild b WHERE b.id = 1 AND b.run = $1 {for_update}")
                .bind(run);
            let row = tx.fetch_optional(select).await?.ok_or(StoreError::Busy {
                what: "another rebuild of the read model has begun, or this one was cancelled",
                retry_after_s: 60,
            })?;
            Slot::of_letter(&row.text(0)?)?
        }
    };
    let select = sql("SELECT c.position FROM model.checkpoint c WHERE c.slot = $1 {for_update}");
    let row = tx.fetch_optional(select.bind(slot.letter())).await?;
    let row = row.ok_or_else(|| StoreError::corrupt("the checkpoint of the read model", "it is missing"))?;
    Ok((slot, row.int(0)?))
}

async fn advance(tx: &mut Tx, place: Place<'_>, slot: Slot, from: Position, to: Position) -> Result<()> {
    let update = sql("UPDATE model.checkpoint SET position = $1 WHERE slot = $2 AND position = $3");
    if tx.execute(update.bind(to).bind(slot.letter()).bind(from)).await? != 1 {
        return Err(StoreError::corrupt("the checkpoint of the read model", "it moved under its lock"));
    }
    if matches!(place, Place::Live) {
        tx.notify(Topic::Model.channel(), "").await?;
    }
    Ok(())
}

/// The entities as the slot has them, and those of them that are parked.
async fn load(
    tx: &mut Tx,
    slot: Slot,
    keys: &BTreeSet<Key>,
) -> Result<(BTreeMap<Key, Option<Entity>>, BTreeSet<Key>)> {
    let (mut entities, mut parked) = (BTreeMap::new(), BTreeSet::new());
    if keys.is_empty() {
        return Ok((entities, parked));
    }
    let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
    for (tenant, id) in keys {
        rows.push(vec![tenant.into(), id.into()]);
    }
    let select = slot.sql(
        "SELECT r.tenant, r.id, m.resource_type, m.version, m.position, m.created, m.modified, m.document, \
         p.position, m.origin FROM {rows} \
         LEFT JOIN model.resource_@ m ON m.tenant = r.tenant AND m.id = r.id \
         LEFT JOIN model.parked_@ p ON p.tenant = r.tenant AND p.id = r.id",
    );
    for row in tx.fetch_all(select.rows(rows)).await? {
        let key = (tenant_id(&row.text(0)?)?, ResourceId::from_text(&row.text(1)?));
        if row.opt_int(8)?.is_some() {
            parked.insert(key);
            continue;
        }
        let Some(resource_type) = row.opt_text(2)? else { continue };
        let document = match row.opt_text(7)? {
            Some(text) => Some(serde_json::from_str(&text).map_err(|_| {
                StoreError::corrupt(format!("the read model's row of {}", key.1), "it is no document")
            })?),
            None => None,
        };
        let entity = Entity {
            resource_type,
            version: row.int(3)?,
            position: row.int(4)?,
            origin: row.int(9)?,
            created: Timestamp(row.int(5)?),
            modified: Timestamp(row.int(6)?),
            document,
        };
        entities.insert(key, Some(entity));
    }
    Ok((entities, parked))
}

/// Rows to write to a slot.
#[derive(Default)]
pub(super) struct Change {
    pub(super) entities: Vec<(Key, Entity)>,
    /// Old and new attribute rows.
    pub(super) rows: Vec<(Key, Vec<IndexRow>, Vec<IndexRow>)>,
    /// Entities whose attribute rows are all removed first, whatever they are.
    pub(super) emptied: BTreeSet<Key>,
}

impl Change {
    pub(super) async fn write(self, tx: &mut Tx, slot: Slot, indexed: &Indexed) -> Result<()> {
        let mut writes = Vec::new();
        let mut resources = Rows::new(&[
            ("tenant", Col::Text),
            ("id", Col::Text),
            ("resource_type", Col::Text),
            ("version", Col::Int),
            ("position", Col::Int),
            ("origin", Col::Int),
            ("created", Col::Int),
            ("modified", Col::Int),
            ("deleted", Col::Int),
            ("display", Col::Text),
            ("document", Col::Text),
        ]);
        for ((tenant, id), entity) in self.entities {
            let document = entity.document.as_ref();
            let display = document.and_then(|d| d.0.get("displayName")).and_then(Value::as_str);
            let text = document.map(serde_json::to_string).transpose();
            let text = text.map_err(|e| StoreError::corrupt(format!("the document of {id}"), e))?;
            resources.push(vec![
                (&tenant).into(),
                (&id).into(),
                entity.resource_type.into(),
                entity.version.into(),
                entity.position.into(),
                entity.origin.into(),
                entity.created.into(),
                entity.modified.into(),
                document.is_none().into(),
                display.into(),
                text.into(),
            ]);
        }
        if !resources.is_empty() {
            let upsert = slot.sql(
                "INSERT INTO model.resource_@ (tenant, id, resource_type, version, position, origin, created, \
                 modified, deleted, display, document) \
                 SELECT r.tenant, r.id, r.resource_type, r.version, r.position, r.origin, r.created, \
                 r.modified, r.deleted, r.display, r.document FROM {rows} WHERE true \
                 ON CONFLICT (tenant, id) DO UPDATE SET version = excluded.version, \
                 position = excluded.position, origin = excluded.origin, created = excluded.created, \
                 modified = excluded.modified, deleted = excluded.deleted, display = excluded.display, document = excluded.document",
            );
            writes.push(upsert.rows(resources));
        }

        if !self.emptied.is_empty() {
            remove_attributes(tx, slot, &self.emptied).await?;
        }
        const KEY: [(&str, Col); 5] = [
            ("tenant", Col::Text),
            ("id", Col::Text),
            ("path", Col::Int),
            ("element", Col::Int),
            ("ordinal", Col::Int),
        ];
        let mut removed = Rows::new(&KEY);
        let mut written =
            Rows::new(&[KEY[0], KEY[1], KEY[2], KEY[3], KEY[4], ("value", Col::Text), ("rest", Col::Text)]);
        for (key, old, new) in &self.rows {
            let Some(paths) = indexed.of(&key.0) else { continue };
            let (old, new) = (numbered(old, paths), numbered(new, paths));
            let row_key = |(path, element, ordinal): &(i64, i64, i64)| {
                vec![(&key.0).into(), (&key.1).into(), (*path).into(), (*element).into(), (*ordinal).into()]
            };
            for at in old.keys().filter(|at| !new.contains_key(at) && !self.emptied.contains(key)) {
                removed.push(row_key(at));
            }
            for (at, value) in new.iter().filter(|(at, value)| old.get(at) != Some(value)) {
                let (head, rest) = split(value);
                let mut row = row_key(at);
                row.extend([head.into(), Some(rest).filter(|rest| !rest.is_empty()).into()]);
                written.push(row);
            }
        }
        if !removed.is_empty() {
            let delete = slot.sql(
                "DELETE FROM model.attribute_@ {keyed: tenant = r.tenant, id = r.id, path = r.path, \
                 element = r.element, ordinal = r.ordinal}",
            );
            writes.push(delete.rows(removed));
        }
        if !written.is_empty() {
            let upsert = slot.sql(
                "INSERT INTO model.attribute_@ (tenant, id, path, element, ordinal, value, rest) \
                 SELECT r.tenant, r.id, r.path, r.element, r.ordinal, r.value, r.rest FROM {rows} WHERE true \
                 ON CONFLICT (tenant, id, path, element, ordinal) \
                 DO UPDATE SET value = excluded.value, rest = excluded.rest",
            );
            writes.push(upsert.rows(written));
        }
        tx.execute_all(writes).await
    }
}

/// Index rows by path number, element and ordinal. They come sorted.
pub(super) fn numbered<'a>(rows: &'a [IndexRow], paths: &Paths) -> BTreeMap<(i64, i64, i64), &'a str> {
    let mut found = BTreeMap::new();
    let mut before: Option<&IndexRow> = None;
    let mut ordinal = 0;
    for row in rows {
        let same = before.is_some_and(|b| b.key == row.key && b.element == row.element);
        ordinal = if same { ordinal + 1 } else { 0 };
        before = Some(row);
        if let Some(number) = paths.number(&row.key) {
            found.insert((number, i64::from(row.element), ordinal), row.value.as_str());
        }
    }
    found
}

fn key_rows(keys: &BTreeSet<Key>) -> Rows {
    let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
    for (tenant, id) in keys {
        rows.push(vec![tenant.into(), id.into()]);
    }
    rows
}

async fn remove_attributes(tx: &mut Tx, slot: Slot, keys: &BTreeSet<Key>) -> Result<()> {
    let delete =
        slot.sql("DELETE FROM model.attribute_@ {keyed: tenant = r.tenant, id = r.id}").rows(key_rows(keys));
    tx.execute(delete).await.map(drop)
}

/// Takes all content of entities out of a slot that nobody projects into.
async fn erase(tx: &mut Tx, slot: Slot, keys: &BTreeSet<Key>) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    remove_attributes(tx, slot, keys).await?;
    let update = slot.sql(
        "UPDATE model.resource_@ AS t SET deleted = 1, display = NULL, document = NULL \
         FROM {rows} WHERE t.tenant = r.tenant AND t.id = r.id",
    );
    tx.execute(update.rows(key_rows(keys))).await.map(drop)
}

/// Removes the links of ended groups, up to a bound; no query sees the rest.
async fn purge_links(tx: &mut Tx, slot: Slot, groups: &BTreeSet<Key>) -> Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    let delete = slot.sql(
        "DELETE FROM model.link_@ WHERE (tenant, attribute, from_id, to_id) IN ( \
         SELECT l.tenant, l.attribute, l.from_id, l.to_id FROM {rows} CROSS JOIN model.link_@ l \
         WHERE l.tenant = r.tenant AND l.attribute = $1 AND l.from_id = r.id LIMIT $2)",
    );
    tx.execute(delete.bind(MEMBERS).bind(LINKS_PURGED_MAX).rows(key_rows(groups))).await.map(drop)
}

pub(super) async fn park_rows(
    tx: &mut Tx,
    slot: Slot,
    parked: &[(Key, Position)],
    reason: &str,
    links_lost: bool,
) -> Result<()> {
    let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text), ("position", Col::Int)]);
    for ((tenant, id), position) in parked {
        rows.push(vec![tenant.into(), id.into(), (*position).into()]);
    }
    let insert = slot.sql(
        "INSERT INTO model.parked_@ (tenant, id, position, reason, links_lost) \
         SELECT r.tenant, r.id, r.position, $1, $2 FROM {rows} WHERE true \
         ON CONFLICT (tenant, id) DO UPDATE SET position = excluded.position, reason = excluded.reason, \
         links_lost = CASE WHEN excluded.links_lost = 1 THEN 1 ELSE parked_@.links_lost END",
    );
    tx.execute(insert.bind(reason).bind(links_lost).rows(rows)).await.map(drop)
}

/// The net of a page's member events: what each link ends as.
#[derive(Default)]
struct Links(BTreeMap<(TenantId, ResourceId, ResourceId), bool>);

impl Links {
    fn note(&mut self, event: &Recorded) {
        let (members, added) = match &event.body {
            Body::Open(Event::MembersAdded { members }) => (members, true),
            Body::Open(Event::MembersRemoved { members }) => (members, false),
            _ => return,
        };
        for member in members {
            let link = (event.tenant.clone(), event.stream.id.clone(), member.clone());
            self.0.insert(link, added);
        }
    }

    async fn write(&self, tx: &mut Tx, slot: Slot) -> Result<()> {
        let rows = |added: bool| {
            let mut rows = Rows::new(&[("tenant", Col::Text), ("from_id", Col::Text), ("to_id", Col::Text)]);
            for ((tenant, from, to), _) in self.0.iter().filter(|(_, is)| **is == added) {
                rows.push(vec![tenant.into(), from.into(), to.into()]);
            }
            rows
        };
        let (removed, added) = (rows(false), rows(true));
        if !removed.is_empty() {
            let delete = slot.sql(
                "DELETE FROM model.link_@ \
                 {keyed: tenant = r.tenant, attribute = $1, from_id = r.from_id, to_id = r.to_id}",
            );
            tx.execute(delete.bind(MEMBERS).rows(removed)).await?;
        }
        if !added.is_empty() {
            let insert = slot.sql(
                "INSERT INTO model.link_@ (tenant, attribute, from_id, to_id) \
                 SELECT r.tenant, $1, r.from_id, r.to_id FROM {rows} WHERE true ON CONFLICT DO NOTHING",
            );
            tx.execute(insert.bind(MEMBERS).rows(added)).await?;
        }
        Ok(())
    }
}

/// Whether an error is about the event or row at hand, so that trying again is no use and leaving it
/// out is. What concerns the database as a whole, the keys or this build is not.
pub(super) fn poisonous(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt { .. } | StoreError::Bind(_) => true,
        StoreError::Database(sqlx::Error::Database(error)) => {
            let code = error.code();
            let code = code.as_deref().unwrap_or_default();
            match code.parse::<u32>() {
                // SQLite: TOOBIG, CONSTRAINT, MISMATCH and their extended codes.
                Ok(number) if code.len() < 5 => matches!(number & 0xff, 18..=20),
                // PostgreSQL: data exceptions, integrity violations, program limits.
                _ => matches!(code.get(..2), Some("22" | "23" | "54")),
            }
        }
        StoreError::Database(sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => true,
        _ => false,
    }
}

/// Why an entity is parked, without any value: databases quote values in their messages.
fn reason(error: &StoreError) -> String {
    match error {
        StoreError::Database(sqlx::Error::Database(database)) => {
            format!("{error}: code {}", database.code().unwrap_or_default())
        }
        other => other.to_string(),
    }
}

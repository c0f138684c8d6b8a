//! Proof that nothing was touched: positions, times, hashes, heads, and whether the state rows, look-ups
//! and links equal a replay of the events (D1, D2, D9).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use annals_domain::event::{Body, Event};
use annals_domain::ids::{Position, ResourceId, TenantId};
use annals_domain::resource::apply;
use annals_domain::scim::resource::Document;
use annals_domain::tenant::{is_administrative, is_definition};
use annals_domain::view::{LookupSettings, lookups, references};

use super::append::{MEMBERS, tenant_id};
use super::read::{READ_EVENTS_MAX, STATE_COLUMNS, StateRow};
use super::{BodyParts, batch_hash, chain_hash, lookup_kind, merkle_root};
use crate::Store;
use crate::audit::note::{SignedCheckpoint, VerifierKey};
use crate::audit::tree::Tree;
use crate::backend::{Area, Row, sql};
use crate::error::Result;

/// Findings are reported up to this many.
pub const FINDINGS_MAX: usize = 100;
const PAGE_EVENTS: usize = 1_000;
const PAGE_STATES: usize = 200;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where: a position, an entity, a tenant.
    pub place: String,
    /// What is wrong there.
    pub what: String,
}

/// What a verification saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Events walked.
    pub events: i64,
    /// Batches walked.
    pub batches: i64,
    /// Entities replayed.
    pub entities: i64,
    /// Signed checkpoints that were compared with the events they cover.
    pub checkpoints: i64,
    /// Hash of the last batch: keep it elsewhere, and compare it later.
    pub root: String,
    /// What is wrong; empty = nothing.
    pub findings: Vec<Finding>,
}

impl Verification {
    fn find(&mut self, place: impl Into<String>, what: impl Into<String>) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { place: place.into(), what: what.into() });
        }
    }
}

struct Walk {
    position: Position,
    at: i64,
    chains: HashMap<TenantId, (Vec<u8>, Position, i64, Position)>,
    entities: HashMap<(TenantId, String), (i64, Position)>,
    leaves: Vec<[u8; 32]>,
    /// Over all events so far, as it is signed.
    tree: Tree,
}

impl Store {
    /// Walks the whole journal and compares every hash, order and head; then replays every entity and
    /// compares its state row, look-ups and links. Reads page by page: memory grows with the number of
    /// entities, not with that of events. Run on a journal at rest, or accept findings at its growing end.
    /// Every signed checkpoint is compared with the events it covers.
    pub async fn verify(&self) -> Result<Verification> {
        self.verify_with(&[]).await
    }

    /// [`Store::verify`], and compares checkpoints that come from outside as well.
    pub async fn verify_with(&self, held: &[SignedCheckpoint]) -> Result<Verification> {
        let mut seen = Verification::default();
        self.verify_chain(held, &mut seen).await?;
        self.verify_states(&mut seen).await?;
        Ok(seen)
    }

    async fn verify_chain(&self, held: &[SignedCheckpoint], seen: &mut Verification) -> Result<()> {
        let mut walk = Walk {
            position: 0,
            at: 0,
            chains: HashMap::new(),
            entities: HashMap::new(),
            leaves: Vec::new(),
            tree: Tree::default(),
        };
        let keys: Vec<VerifierKey> = self.audit_keys().await?.into_iter().map(|key| key.public).collect();
        let mut last_hash = vec![0u8; 32];
        let mut batches = self.batches_after(0).await?.into_iter();
        let mut batch = batches.next();
        loop {
            let select = sql("SELECT e.position, e.event_id, e.commit_id, e.tenant, e.resource_type, e.id, \
                 e.version, e.kind, e.schema_version, e.at, e.actor, e.cause, e.key_id, e.payload, \
                 e.body_hash, e.chain_hash, e.previous_of_entity, e.previous_of_tenant \
                 FROM journal.event e WHERE e.position > $1 ORDER BY e.position LIMIT $2")
            .bind(walk.position)
            .bind(PAGE_EVENTS);
            let rows = self.backend().fetch_all(Area::Journal, select).await?;
            if rows.is_empty() {
                break;
            }
            let mut marks = self.marks(walk.position, row_end(&rows)?, held).await?.into_iter().peekable();
            for row in &rows {
                walk.event(row, seen)?;
                while let Some(mark) = marks.next_if(|mark| mark.checkpoint.size <= walk.tree.size()) {
                    verify_mark(&mark, &walk, &keys, seen);
                }
                let Some((first, last, root, hash)) = &batch else {
                    seen.find(format!("position {}", walk.position), "belongs to no batch");
                    continue;
                };
                if walk.position < *last {
                    continue;
                }
                let expected_root = merkle_root(&walk.leaves);
                let first_leaf = walk.position - walk.leaves.len() as i64 + 1;
                let expected = batch_hash(&last_hash, *first, *last, &expected_root);
                if *first != first_leaf || root[..] != expected_root || hash[..] != expected {
                    seen.find(format!("batch {first}..{last}"), "its hash is not that of its events");
                }
                last_hash = hash.clone();
                walk.leaves.clear();
                seen.batches += 1;
                batch = batches.next();
                if batch.is_none() {
                    batches = self.batches_after(walk.position).await?.into_iter();
                    batch = batches.next();
                }
            }
        }
        for mark in self.marks(walk.position, Position::MAX, held).await? {
            let size = mark.checkpoint.size;
            let what =
                format!("covers {size} events, the journal ends at {}: history was cut", walk.position);
            seen.find(format!("checkpoint {size}"), what);
        }
        seen.events = walk.position;
        seen.root = hex::encode(&last_hash);
        self.verify_heads(&walk, &last_hash, seen).await
    }

    /// The checkpoints of sizes above `after` up to `to`, our own and those from outside, by size.
    async fn marks(
        &self,
        after: Position,
        to: Position,
        held: &[SignedCheckpoint],
    ) -> Result<Vec<SignedCheckpoint>> {
        let within = |mark: &SignedCheckpoint| {
            i64::try_from(mark.checkpoint.size).is_ok_and(|size| size > after && size <= to)
        };
        let mut marks = self.checkpoints(after, PAGE_EVENTS).await?;
        marks.extend(held.iter().cloned());
        marks.retain(within);
        marks.sort_by_key(|mark| mark.checkpoint.size);
        Ok(marks)
    }

    async fn batches_after(&self, after: Position) -> Result<Vec<(Position, Position, Vec<u8>, Vec<u8>)>> {
        let select =
            sql("SELECT b.first_position, b.last_position, b.merkle_root, b.hash FROM journal.batch b \
             WHERE b.last_position > $1 ORDER BY b.last_position LIMIT $2")
            .bind(after)
            .bind(PAGE_EVENTS);
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        rows.iter().map(|r| Ok((r.int(0)?, r.int(1)?, r.bytes(2)?, r.bytes(3)?))).collect()
    }

    async fn verify_heads(&self, walk: &Walk, last_hash: &[u8], seen: &mut Verification) -> Result<()> {
        let counter =
            sql("SELECT c.position, c.at, c.batch_hash, c.definition FROM journal.counter c WHERE c.id = 1");
        if let Some(row) = self.backend().fetch_optional(Area::Journal, counter).await? {
            if row.int(0)? != walk.position {
                let what = format!("says {}, the last event is {}", row.int(0)?, walk.position);
                seen.find("the counter row", what);
            }
            if row.bytes(2)? != last_hash {
                seen.find("the counter row", "its hash is not that of the last batch");
            }
            if row.int(3)? != walk.chains.values().map(|chain| chain.3).max().unwrap_or(0) {
                seen.find("the counter row", "its definition is not the newest schema or resource type");
            }
        }
        let heads = sql("SELECT h.tenant, h.position, h.events, h.chain_hash, h.definition \
             FROM journal.tenant_head h");
        let mut tenants = BTreeSet::new();
        for row in self.backend().fetch_all(Area::Journal, heads).await? {
            let tenant = tenant_id(&row.text(0)?)?;
            let stored = (row.bytes(3)?, row.int(1)?, row.int(2)?, row.int(4)?);
            if walk.chains.get(&tenant) != Some(&stored) {
                seen.find(format!("tenant {tenant}"), "its head is not that of its events");
            }
            tenants.insert(tenant);
        }
        for tenant in walk.chains.keys().filter(|t| !tenants.contains(*t)) {
            seen.find(format!("tenant {tenant}"), "its head is missing");
        }
        Ok(())
    }

    async fn verify_states(&self, seen: &mut Verification) -> Result<()> {
        let mut after = (String::new(), String::new());
        loop {
            let select = sql(format!(
                "SELECT {STATE_COLUMNS} FROM journal.state s WHERE s.tenant > $1 OR (s.tenant = $1 AND s.id > $2) \
                 ORDER BY s.tenant, s.id LIMIT $3"
            ))
            .bind(&after.0)
            .bind(&after.1)
            .bind(PAGE_STATES);
            let rows = self.backend().fetch_all(Area::Journal, select).await?;
            let states = self.open_state_rows(rows).await?;
            let Some(last) = states.last() else { return Ok(()) };
            after = (last.tenant.to_string(), last.id.to_string());
            for state in &states {
                self.verify_entity(state, seen).await?;
                seen.entities += 1;
            }
        }
    }

    async fn verify_entity(&self, state: &StateRow, seen: &mut Verification) -> Result<()> {
        let place = format!("{} {}/{}", state.tenant, state.resource_type, state.id);
        let mut replay = Replay::default();
        loop {
            let page = self.read_stream(&state.tenant, &state.id, replay.version, READ_EVENTS_MAX).await?;
            if page.is_empty() {
                break;
            }
            for recorded in page {
                replay.version = recorded.version;
                replay.position = recorded.position;
                replay.modified = recorded.at.0;
                if recorded.version == 1 {
                    replay.created = recorded.at.0;
                }
                replay.event(&recorded.body);
            }
        }
        if (replay.version, replay.position) != (state.version, state.position) {
            seen.find(&place, "its state row's version or position is not that of its last event");
        }
        if (replay.created, replay.modified) != (state.created.0, state.modified.0) {
            seen.find(&place, "its state row's times are not those of its events");
        }
        if replay.erased {
            return Ok(());
        }
        if replay.exists == state.deleted {
            seen.find(&place, "its state row and its events disagree on whether it exists");
        }
        let document = replay.exists.then_some(&replay.document);
        if document != state.document() {
            seen.find(&place, "its state document is not a replay of its events");
        }
        self.verify_lookups(state, document, &place, seen).await?;
        self.verify_links(state, document, &replay.members, &place, seen).await
    }

    async fn verify_lookups(
        &self,
        state: &StateRow,
        document: Option<&Document>,
        place: &str,
        seen: &mut Verification,
    ) -> Result<()> {
        let mut expected = BTreeSet::new();
        let registry = self.registry_of(&state.tenant).await?;
        if let (Some(document), Some(rt)) = (document, registry.resource_type(&state.resource_type)) {
            let keys = self.keys().tenant(&state.tenant).await?;
            for lookup in lookups(rt, document, &LookupSettings::default()) {
                let kind = lookup_kind(&state.resource_type, lookup.kind.as_str());
                let hash = keys.lookup_hash(&kind, &lookup.value);
                expected.insert((kind, hash));
            }
        }
        let select = sql("SELECT l.kind, l.value FROM journal.lookup l WHERE l.tenant = $1 AND l.owner = $2")
            .bind(&state.tenant)
            .bind(&state.id);
        let mut stored = BTreeSet::new();
        for row in self.backend().fetch_all(Area::Journal, select).await? {
            let kind = row.text(0)?;
            // Scoped to a connection, which no event names; its plain twin is compared.
            if !kind.contains('@') {
                stored.insert((kind, row.bytes(1)?));
            }
        }
        if stored != expected {
            seen.find(place, "its look-ups are not those of its document");
        }
        Ok(())
    }

    async fn verify_links(
        &self,
        state: &StateRow,
        document: Option<&Document>,
        members: &BTreeSet<ResourceId>,
        place: &str,
        seen: &mut Verification,
    ) -> Result<()> {
        // Links of what is deleted are dead: readers join them away, the janitor removes them.
        let Some(document) = document else { return Ok(()) };
        let mut expected: BTreeMap<String, BTreeSet<ResourceId>> = BTreeMap::new();
        if !members.is_empty() {
            expected.insert(MEMBERS.to_owned(), members.clone());
        }
        let registry = self.registry_of(&state.tenant).await?;
        if !is_administrative(&state.resource_type)
            && let Some(rt) = registry.resource_type(&state.resource_type)
        {
            for (attribute, to) in references(rt, document) {
                expected.entry(attribute).or_default().insert(to);
            }
        }
        let select =
            sql("SELECT l.attribute, l.to_id FROM journal.link l WHERE l.tenant = $1 AND l.from_id = $2")
                .bind(&state.tenant)
                .bind(&state.id);
        let mut stored: BTreeMap<String, BTreeSet<ResourceId>> = BTreeMap::new();
        for row in self.backend().fetch_all(Area::Journal, select).await? {
            stored.entry(row.text(0)?).or_default().insert(ResourceId::from_text(&row.text(1)?));
        }
        for (attribute, to) in &expected {
            let there = stored.entry(attribute.clone()).or_default();
            if attribute == MEMBERS {
                continue;
            }
            // A reference that its schema does not let go of outlives what it refers to, without a link.
            for id in to.difference(&there.clone()) {
                if self.state(&state.tenant, id).await?.is_some_and(|state| state.deleted) {
                    there.insert(id.clone());
                }
            }
        }
        stored.retain(|_, to| !to.is_empty());
        if stored != expected {
            seen.find(place, "its links are not those of its events");
        }
        Ok(())
    }
}

fn row_end(rows: &[Row]) -> Result<Position> {
    rows.last().map_or(Ok(0), |row| row.int(0))
}

/// Compares a checkpoint with the events it covers: the walk stands at its size.
fn verify_mark(mark: &SignedCheckpoint, walk: &Walk, keys: &[VerifierKey], seen: &mut Verification) {
    let place = format!("checkpoint {}", mark.checkpoint.size);
    if let Err(error) = mark.verify_any(keys) {
        seen.find(&place, error.to_string());
    }
    if (mark.checkpoint.size, mark.checkpoint.root) != (walk.tree.size(), walk.tree.root()) {
        seen.find(&place, "the events it covers are not those that were signed");
    }
    seen.checkpoints += 1;
}

#[derive(Default)]
struct Replay {
    version: i64,
    position: Position,
    created: i64,
    modified: i64,
    exists: bool,
    erased: bool,
    document: Document,
    members: BTreeSet<ResourceId>,
}

impl Replay {
    fn event(&mut self, body: &Body) {
        let Body::Open(event) = body else {
            self.erased = true;
            return;
        };
        match event {
            Event::MembersAdded { members } => self.members.extend(members.iter().cloned()),
            Event::MembersRemoved { members } => {
                for id in members {
                    self.members.remove(id);
                }
            }
            _ => {}
        }
        self.exists = apply(&mut self.document, event, self.exists);
    }
}

impl Walk {
    fn event(&mut self, row: &Row, seen: &mut Verification) -> Result<()> {
        let position = row.int(0)?;
        let place = format!("position {position}");
        if position != self.position + 1 {
            seen.find(&place, format!("follows {}: positions are missing", self.position));
        }
        self.position = position;
        let at = row.int(9)?;
        if at < self.at {
            seen.find(&place, "its time lies before that of its predecessor");
        }
        self.at = at;
        let (event_id, commit_id) = (row.text(1)?, row.text(2)?);
        let (tenant, resource_type, id) = (row.text(3)?, row.text(4)?, row.text(5)?);
        let (version, kind) = (row.int(6)?, row.text(7)?);
        let (actor, cause, key_id, payload) =
            (row.text(10)?, row.text(11)?, row.opt_text(12)?, row.bytes(13)?);
        let body = BodyParts {
            event_id: &event_id,
            tenant: &tenant,
            resource_type: &resource_type,
            id: &id,
            kind: &kind,
            schema_version: u32::try_from(row.int(8)?).unwrap_or(u32::MAX),
            actor: &actor,
            cause: &cause,
            key_id: key_id.as_deref(),
            payload: &payload,
        }
        .hash();
        if row.bytes(14)? != body {
            seen.find(&place, "its content was changed: the body hash differs");
        }
        let tenant = tenant_id(&tenant)?;
        let (chain, last_of_tenant, events, definition) =
            self.chains.entry(tenant.clone()).or_insert_with(|| (vec![0; 32], 0, 0, 0));
        let expected = chain_hash(chain, &row.bytes(14)?, position, version, at, &commit_id);
        let stored = row.bytes(15)?;
        if stored != expected {
            seen.find(&place, "the chain is broken here");
        }
        if row.int(17)? != *last_of_tenant {
            seen.find(&place, "does not name the tenant's previous event");
        }
        // What is stored goes on, so that one fault is reported once.
        *chain = stored;
        *last_of_tenant = position;
        *events += 1;
        if is_definition(&resource_type) {
            *definition = position;
        }
        let entity = self.entities.entry((tenant, id)).or_insert((0, 0));
        if version != entity.0 + 1 || row.int(16)? != entity.1 {
            seen.find(&place, "does not follow the entity's previous version");
        }
        *entity = (version, position);
        let leaf: [u8; 32] = chain.as_slice().try_into().unwrap_or([0; 32]);
        self.leaves.push(leaf);
        self.tree.push(&leaf);
        Ok(())
    }
}

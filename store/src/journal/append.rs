//! One batch of commits in one transaction (D1).
//!
//! The counter row is locked first and held to the end: it is the writers' mutex, so the order of
//! commits is the order of positions, and a rollback leaves no gap. Under it all is plain: read what the
//! commits touch (one set-based query each), check each commit in memory in arrival order, seeing the
//! earlier ones, then write what passed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use annals_domain::clock::{Clock, Entropy};
use annals_domain::event::Event;
use annals_domain::ids::{Position, ResourceId, TenantId, Version};
use annals_domain::resource::member_events;
use annals_domain::tenant::is_definition;
use annals_domain::upcast::SCHEMA_VERSION;

use super::chain::{Answer, Work};
use super::{
    BodyParts, Commit, Expect, MembersWrite, Receipt, Rejection, Replaced, StateWrite, StreamReceipt,
    StreamWrite, TokenWrite, batch_hash, chain_hash, merkle_root,
};
use uuid::Uuid;

use crate::backend::{Backend, Col, CommitError, Row, Rows, Sql, Tx, sql};
use crate::error::{Result, StoreError};
use crate::wake::Topic;

/// Removals that a delete records in its own commit; the janitor does the rest (D4).
pub(crate) const DELETE_UNLINKS_MAX: usize = 1_000;

/// The attribute whose links are recorded by events.
pub(crate) const MEMBERS: &str = "members";

/// How a batch failed as a whole.
pub(crate) enum BatchError {
    /// Before COMMIT was sent: nothing of it is there.
    Before(StoreError),
    /// COMMIT was sent and its outcome is unknown. The answers hold if the batch is there.
    Unknown(StoreError, Vec<Answer>, Mark),
}

/// By what a batch is found again.
pub(crate) enum Mark {
    /// By the row of its events: nobody else's has this hash.
    Events { last: Position, hash: Vec<u8> },
    /// It has no events, so each of its commits is in the log.
    Commits,
}

type Key = (TenantId, ResourceId);
type Outcome = std::result::Result<Receipt, Rejection>;
/// Receipts and fingerprints by commit id.
pub(crate) type Receipts = HashMap<String, (Receipt, Option<Vec<u8>>)>;

/// What the writer needs to append.
pub(crate) struct Appender {
    pub(crate) backend: Arc<Backend>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) links_max: usize,
}

impl Appender {
    /// Writes a batch. Each commit gets its own outcome; a refused one does not disturb the others.
    pub(crate) async fn append(&self, works: &[Work]) -> std::result::Result<Vec<Answer>, BatchError> {
        let commits: Vec<Arc<Commit>> = works.iter().flat_map(Work::commits).cloned().collect();
        let mut tx = self.backend.begin_append().await.map_err(BatchError::Before)?;
        let (answers, end) = match self.append_in(&mut tx, works, &commits).await {
            Ok(done) => done,
            Err(error) => {
                // Dropping would roll back as well; doing it here frees the row sooner.
                let _ = tx.rollback().await;
                return Err(BatchError::Before(error));
            }
        };
        match end {
            None => tx.rollback().await.map_err(BatchError::Before)?,
            Some(End { writes, head, mark }) => {
                match tx.commit_with(writes, Topic::Journal.channel(), &head.to_string()).await {
                    Ok(()) => {}
                    Err(CommitError::Before(error)) => return Err(BatchError::Before(error)),
                    Err(CommitError::Unknown(error)) => {
                        return Err(BatchError::Unknown(error, answers, mark));
                    }
                }
            }
        }
        Ok(answers)
    }

    /// Whether a batch with these answers is in the journal. The counter row is taken first, so a
    /// transaction that is still ending is waited for and the answer is final.
    pub(crate) async fn is_there(&self, works: &[Work], answers: &[Answer], mark: &Mark) -> Result<bool> {
        let mut tx = self.backend.begin_append().await?;
        tx.fetch_all(sql("SELECT position FROM journal.counter WHERE id = 1 {for_update}")).await?;
        let found = match mark {
            Mark::Events { last, hash } => {
                let select = sql("SELECT b.last_position FROM journal.batch b \
                     WHERE b.last_position = $1 AND b.hash = $2");
                tx.fetch_optional(select.bind(*last).bind(&hash[..])).await?.is_some()
            }
            Mark::Commits => {
                let written = works.iter().zip(answers).flat_map(|(work, answer)| work.written(answer));
                match select_receipts(written.map(|commit| commit.id)) {
                    Some(select) => !tx.fetch_all(select).await?.is_empty(),
                    None => false,
                }
            }
        };
        tx.rollback().await?;
        Ok(found)
    }

    /// Checks a batch under the counter row. What ends it is still to be written; none if nothing is.
    pub(super) async fn append_in(
        &self,
        tx: &mut Tx,
        works: &[Work],
        commits: &[Arc<Commit>],
    ) -> Result<(Vec<Answer>, Option<End>)> {
        let writes = || commits.iter().flat_map(|commit| &commit.writes);
        let mut batch = Batch {
            links_max: self.links_max,
            events: Vec::with_capacity(writes().map(|w| w.events.len()).sum()),
            receipts: Vec::with_capacity(commits.len()),
            heads: HashMap::with_capacity(writes().count()),
            states: HashMap::with_capacity(writes().count()),
            lookups_add: HashMap::with_capacity(writes().map(|w| w.lookups_add.len()).sum()),
            ..Batch::default()
        };
        batch.read(tx, commits).await?;
        batch.at = batch.at.max(self.clock.now().0);
        let head_before = batch.head;
        let mut answers = Vec::with_capacity(works.len());
        for work in works {
            answers.push(work.carry_out(|commit| batch.check(commit, &*self.entropy)));
        }
        if batch.events.is_empty() && batch.accepted == 0 {
            return Ok((answers, None));
        }
        let end = batch.write(tx, head_before).await?;
        Ok((answers, Some(end)))
    }
}

/// What ends a batch.
pub(super) struct End {
    /// To be executed together, with nothing between them and COMMIT.
    pub(super) writes: Vec<Sql>,
    /// The last position afterwards.
    pub(super) head: Position,
    mark: Mark,
}

/// The answer to one question of [`Batch::read`].
enum Asked {
    Counter,
    Receipts,
    Tenants,
    GroupsOf(Key),
    Members,
    AllMembers(Key),
    Lookups,
}

/// Asks for the receipts of commits; none if there are none to ask for.
pub(crate) fn select_receipts(commits: impl Iterator<Item = Uuid>) -> Option<Sql> {
    let mut rows = Rows::new(&[("commit_id", Col::Text)]);
    for id in commits {
        rows.push(vec![id.into()]);
    }
    let select = "SELECT c.commit_id, c.receipt, c.fingerprint FROM {rows} \
         {each: journal.commit_log c: c.commit_id = r.commit_id}";
    (!rows.is_empty()).then(|| sql(select).rows(rows))
}

/// The answer to [`select_receipts`].
pub(crate) fn receipts(rows: Vec<Row>) -> Result<Receipts> {
    let mut found = HashMap::new();
    for row in rows {
        let mut receipt: Receipt =
            serde_json::from_str(&row.text(1)?).map_err(|e| StoreError::corrupt("a commit's receipt", e))?;
        receipt.replayed = true;
        found.insert(row.text(0)?, (receipt, row.opt_bytes(2)?));
    }
    Ok(found)
}

#[derive(Clone, Debug)]
struct HeadRow {
    resource_type: String,
    version: Version,
    created: i64,
    modified: i64,
    position: Position,
    deleted: bool,
}

#[derive(Clone, Debug)]
struct TenantHead {
    position: Position,
    events: i64,
    chain: Vec<u8>,
    /// Of its newest schema or resource type.
    definition: Position,
    touched: bool,
}

struct EventRow {
    position: Position,
    event_id: String,
    commit_id: String,
    tenant: TenantId,
    resource_type: String,
    id: ResourceId,
    version: Version,
    kind: String,
    actor: String,
    cause: String,
    key_id: Option<String>,
    payload: Vec<u8>,
    body_hash: Vec<u8>,
    chain_hash: [u8; 32],
    previous_of_entity: Position,
    previous_of_tenant: Position,
}

struct StateOut {
    head: HeadRow,
    /// `None`: the document stays as it is in the table.
    document: Option<(Option<String>, Option<Vec<u8>>)>,
}

fn select_tenants(commits: &[Arc<Commit>]) -> Sql {
    let tenants: BTreeSet<&TenantId> = commits.iter().map(|c| &c.tenant).collect();
    let mut rows = Rows::new(&[("tenant", Col::Text)]);
    for tenant in tenants {
        rows.push(vec![tenant.into()]);
    }
    sql("SELECT h.tenant, h.position, h.events, h.chain_hash, h.definition \
         FROM {rows} {each: journal.tenant_head h: h.tenant = r.tenant}")
    .rows(rows)
}

fn select_links_to_deleted(commits: &[Arc<Commit>], alone: &mut Vec<(Asked, Sql)>) {
    let deleted = commits.iter().flat_map(|c| {
        c.writes
            .iter()
            .filter(|w| matches!(w.state, StateWrite::Tombstone))
            .map(|w| (c.tenant.clone(), w.stream.id.clone()))
    });
    // One bounded query each: a set-based one could not bound each entity by itself.
    for (tenant, id) in deleted.collect::<BTreeSet<_>>() {
        let select = sql("SELECT l.from_id FROM journal.link l WHERE l.tenant = $1 AND l.to_id = $2 \
             AND l.attribute = 'members' ORDER BY l.from_id LIMIT $3")
        .bind(&tenant)
        .bind(&id)
        .bind(DELETE_UNLINKS_MAX);
        alone.push((Asked::GroupsOf((tenant, id)), select));
    }
}

/// Who has the names that commits want for themselves.
fn select_lookups(commits: &[Arc<Commit>]) -> Option<Sql> {
    let mut rows = Rows::new(&[("tenant", Col::Text), ("kind", Col::Text), ("value", Col::Bytes)]);
    for commit in commits {
        for add in commit.writes.iter().flat_map(|w| &w.lookups_add) {
            if add.exclusive {
                rows.push(vec![(&commit.tenant).into(), (&add.kind).into(), add.value.clone().into()]);
            }
        }
    }
    let select = "SELECT l.tenant, l.kind, l.value, l.owner FROM {rows} \
         {each: journal.lookup l: l.tenant = r.tenant AND l.kind = r.kind AND l.value = r.value}";
    (!rows.is_empty()).then(|| sql(select).rows(rows))
}

/// What is known under the counter row, and what will be written.
#[derive(Default)]
struct Batch {
    at: i64,
    head: Position,
    /// Hash of the batch before.
    last_hash: Vec<u8>,
    /// Of the newest schema or resource type of any tenant.
    definition: Position,
    links_max: usize,
    /// Commits to log, including ones without events.
    accepted: usize,
    known_commits: Receipts,
    heads: HashMap<Key, HeadRow>,
    tenants: HashMap<TenantId, TenantHead>,
    /// (tenant, kind, value) → owners.
    lookups: HashMap<(TenantId, String, Vec<u8>), BTreeSet<ResourceId>>,
    /// Present members among those asked about, by group.
    members: HashMap<Key, HashSet<ResourceId>>,
    /// Groups with a deleted entity among their members, by that entity.
    groups_of: HashMap<Key, BTreeSet<ResourceId>>,

    events: Vec<EventRow>,
    states: HashMap<Key, StateOut>,
    lookups_add: HashMap<(TenantId, String, Vec<u8>, ResourceId), bool>,
    lookups_remove: HashSet<(TenantId, String, Vec<u8>, ResourceId)>,
    owners_removed: HashSet<Key>,
    /// (tenant, attribute, from, to) → added or removed.
    links: HashMap<(TenantId, String, ResourceId, ResourceId), bool>,
    pending_removals: BTreeSet<(TenantId, ResourceId)>,
    receipts: Vec<(Arc<Commit>, Receipt)>,
}

impl Batch {
    /// Takes the counter row and reads what the commits touch, in two trips, and one more for each entity that
    /// is deleted or loses all members.
    async fn read(&mut self, tx: &mut Tx, commits: &[Arc<Commit>]) -> Result<()> {
        let counter = sql("SELECT c.position, c.at, c.batch_hash, m.halted, c.definition \
             FROM journal.counter c CROSS JOIN journal.meta m WHERE c.id = 1 AND m.id = 1 {for_update}");
        // The counter row is the writers' mutex, so it comes first: what follows is read under it.
        let mut asked = vec![(Asked::Counter, counter)];
        let keyed = commits.iter().filter(|commit| commit.fingerprint.is_some());
        asked.extend(select_receipts(keyed.map(|commit| commit.id)).map(|select| (Asked::Receipts, select)));
        asked.push((Asked::Tenants, select_tenants(commits)));
        // A text for each number of them would be prepared anew, and remembered.
        let mut alone = Vec::new();
        select_links_to_deleted(commits, &mut alone);
        self.select_members(commits, &mut asked, &mut alone);
        asked.extend(select_lookups(commits).map(|select| (Asked::Lookups, select)));
        let (asked, statements): (Vec<Asked>, Vec<Sql>) = asked.into_iter().unzip();
        let found = tx.fetch_each(statements).await?;
        for (asked, rows) in asked.into_iter().zip(found) {
            self.learn(asked, rows)?;
        }
        for (asked, select) in alone {
            let rows = tx.fetch_all(select).await?;
            self.learn(asked, rows)?;
        }
        self.read_heads(tx, commits).await
    }

    fn learn(&mut self, asked: Asked, rows: Vec<Row>) -> Result<()> {
        match asked {
            Asked::Counter => {
                let Some(row) = rows.first() else {
                    return Err(StoreError::corrupt("the counter row", "it is missing"));
                };
                if let Some(reason) = row.opt_text(3)? {
                    return Err(StoreError::Halted(reason));
                }
                (self.head, self.at, self.last_hash) = (row.int(0)?, row.int(1)?, row.bytes(2)?);
                self.definition = row.int(4)?;
            }
            Asked::Receipts => self.known_commits = receipts(rows)?,
            Asked::Tenants => {
                for row in rows {
                    let head = TenantHead {
                        position: row.int(1)?,
                        events: row.int(2)?,
                        chain: row.bytes(3)?,
                        definition: row.int(4)?,
                        touched: false,
                    };
                    self.tenants.insert(tenant_id(&row.text(0)?)?, head);
                }
            }
            Asked::GroupsOf(key) => {
                let mut groups = BTreeSet::new();
                for row in rows {
                    groups.insert(ResourceId::from_text(&row.text(0)?));
                }
                self.groups_of.insert(key, groups);
            }
            Asked::Members => {
                for row in rows {
                    let key = (tenant_id(&row.text(0)?)?, ResourceId::from_text(&row.text(1)?));
                    self.members.entry(key).or_default().insert(ResourceId::from_text(&row.text(2)?));
                }
            }
            Asked::AllMembers(group) => {
                let members = self.members.entry(group).or_default();
                for row in rows {
                    members.insert(ResourceId::from_text(&row.text(0)?));
                }
            }
            Asked::Lookups => {
                for row in rows {
                    let key = (tenant_id(&row.text(0)?)?, row.text(1)?, row.bytes(2)?);
                    self.lookups.entry(key).or_default().insert(ResourceId::from_text(&row.text(3)?));
                }
            }
        }
        Ok(())
    }

    fn select_members(
        &mut self,
        commits: &[Arc<Commit>],
        asked: &mut Vec<(Asked, Sql)>,
        alone: &mut Vec<(Asked, Sql)>,
    ) {
        let mut some = Rows::new(&[("tenant", Col::Text), ("from_id", Col::Text), ("to_id", Col::Text)]);
        let mut whole = BTreeSet::new();
        for commit in commits {
            for write in &commit.writes {
                let Some(MembersWrite { delta, .. }) = &write.members else { continue };
                let key = (commit.tenant.clone(), write.stream.id.clone());
                self.members.entry(key.clone()).or_default();
                if delta.clear {
                    whole.insert(key);
                    continue;
                }
                for to in delta.add.iter().chain(&delta.remove) {
                    some.push(vec![(&commit.tenant).into(), (&write.stream.id).into(), to.into()]);
                }
            }
        }
        if !some.is_empty() {
            let select = sql("SELECT l.tenant, l.from_id, l.to_id FROM {rows} \
                 {each: journal.link l: l.tenant = r.tenant AND l.attribute = 'members' \
                 AND l.from_id = r.from_id AND l.to_id = r.to_id}");
            asked.push((Asked::Members, select.rows(some)));
        }
        for (tenant, group) in whole {
            let select = sql("SELECT l.to_id FROM journal.link l \
                 WHERE l.tenant = $1 AND l.attribute = 'members' AND l.from_id = $2 LIMIT $3")
            .bind(&tenant)
            .bind(&group)
            .bind(self.links_max * 2 + 1);
            alone.push((Asked::AllMembers((tenant, group)), select));
        }
    }

    async fn read_heads(&mut self, tx: &mut Tx, commits: &[Arc<Commit>]) -> Result<()> {
        let mut wanted: HashSet<Key> = HashSet::new();
        for commit in commits {
            for write in &commit.writes {
                if write.expect != Expect::Fresh {
                    wanted.insert((commit.tenant.clone(), write.stream.id.clone()));
                }
                if let Some(MembersWrite { delta, must_exist: true }) = &write.members {
                    wanted.extend(delta.add.iter().map(|id| (commit.tenant.clone(), id.clone())));
                }
            }
        }
        for ((tenant, _), groups) in &self.groups_of {
            wanted.extend(groups.iter().map(|id| (tenant.clone(), id.clone())));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
        for (tenant, id) in &wanted {
            rows.push(vec![tenant.into(), id.into()]);
        }
        let select = sql("SELECT s.tenant, s.id, s.resource_type, s.version, s.created, s.modified, \
             s.position, s.deleted FROM {rows} \
             {each: journal.state s: s.tenant = r.tenant AND s.id = r.id}")
        .rows(rows);
        for row in tx.fetch_all(select).await? {
            let head = HeadRow {
                resource_type: row.text(2)?,
                version: row.int(3)?,
                created: row.int(4)?,
                modified: row.int(5)?,
                position: row.int(6)?,
                deleted: row.flag(7)?,
            };
            self.heads.insert((tenant_id(&row.text(0)?)?, ResourceId::from_text(&row.text(1)?)), head);
        }
        Ok(())
    }

    /// Checks one commit against what is known, and records what it changes if it passes.
    fn check(&mut self, commit: &Arc<Commit>, entropy: &dyn Entropy) -> Outcome {
        let commit_id = commit.id.hyphenated().to_string();
        if let Some((receipt, fingerprint)) = self.known_commits.get(&commit_id) {
            return if *fingerprint == commit.fingerprint {
                Ok(Receipt { replayed: true, ..receipt.clone() })
            } else {
                Err(Rejection::OtherRequest)
            };
        }
        let tenant = self.tenants.get(&commit.tenant);
        let (head, definition) = tenant.map_or((0, 0), |head| (head.position, head.definition));
        if commit.definition.is_some_and(|by| by != definition) || commit.head.is_some_and(|at| at != head) {
            return Err(Rejection::Stale);
        }
        let mut narrowed = Vec::with_capacity(commit.writes.len());
        for (at, write) in commit.writes.iter().enumerate() {
            let allowed = self.may(commit, at, write).and_then(|()| self.narrow(commit, write));
            narrowed.push(allowed.map_err(|why| match commit.writes.len() {
                0 | 1 => why,
                _ => Rejection::InWrite { at, why: Box::new(why) },
            })?);
        }
        // From here on nothing can fail: the batch takes the commit over.
        let first = self.head + 1;
        let mut streams = Vec::with_capacity(commit.writes.len());
        for (write, (removed, added)) in commit.writes.iter().zip(narrowed) {
            streams.push(self.take(commit, write, removed, added, entropy));
        }
        let last = self.head;
        let (first, last) = if last >= first { (first, last) } else { (0, 0) };
        let receipt = Receipt { first, last, streams, replayed: false };
        if commit.fingerprint.is_some() {
            self.known_commits.insert(commit_id, (receipt.clone(), commit.fingerprint.clone()));
        }
        if first > 0 || !commit.secrets.is_empty() || !commit.tokens.is_empty() {
            self.accepted += 1;
            self.receipts.push((commit.clone(), receipt.clone()));
        }
        Ok(receipt)
    }

    /// Whether a write, the `at`-th of its commit, may happen, by version, uniqueness and existence.
    fn may(&self, commit: &Commit, at: usize, write: &StreamWrite) -> std::result::Result<(), Rejection> {
        let tenant = &commit.tenant;
        let head = self.heads.get(&(tenant.clone(), write.stream.id.clone()));
        match (write.expect, head) {
            (Expect::Fresh, _) | (Expect::Absent, None) => {}
            (Expect::Absent, Some(_)) => return Err(Rejection::Exists),
            (_, None) => return Err(Rejection::Gone),
            (Expect::Deleted, Some(head)) if head.deleted => {}
            (Expect::Deleted, Some(_)) => return Err(Rejection::Moved),
            (_, Some(head)) if head.deleted || head.resource_type != write.stream.resource_type => {
                return Err(Rejection::Gone);
            }
            (Expect::Version(version), Some(head)) if head.version != version => {
                return Err(Rejection::Moved);
            }
            (Expect::Version(_) | Expect::Alive, Some(_)) => {}
        }
        for add in write.lookups_add.iter().filter(|l| l.exclusive) {
            let key = (tenant.clone(), add.kind.clone(), add.value.clone());
            let owners = self.lookups.get(&key);
            if owners.is_some_and(|owners| owners.iter().any(|owner| *owner != write.stream.id)) {
                return Err(Rejection::Taken { attribute: add.attribute.clone() });
            }
            // The commit's own writes are not among the known owners yet.
            let earlier = commit.writes.iter().take(at).flat_map(|w| &w.lookups_add);
            if earlier.into_iter().any(|e| e.exclusive && e.kind == add.kind && e.value == add.value) {
                return Err(Rejection::Taken { attribute: add.attribute.clone() });
            }
        }
        Ok(())
    }

    /// What a membership change truly changes: (removed, added).
    fn narrow(
        &self,
        commit: &Commit,
        write: &StreamWrite,
    ) -> std::result::Result<(Vec<ResourceId>, Vec<ResourceId>), Rejection> {
        let Some(MembersWrite { delta, must_exist }) = &write.members else {
            return Ok((Vec::new(), Vec::new()));
        };
        let tenant = &commit.tenant;
        let empty = HashSet::new();
        let present = self.members.get(&(tenant.clone(), write.stream.id.clone())).unwrap_or(&empty);
        let added: Vec<ResourceId> = delta.add.iter().filter(|id| !present.contains(id)).cloned().collect();
        let removed: Vec<ResourceId> = if delta.clear {
            present.iter().filter(|id| !delta.add.contains(id)).cloned().collect()
        } else {
            delta.remove.iter().filter(|id| present.contains(id)).cloned().collect()
        };
        if added.len() + removed.len() > self.links_max {
            return Err(Rejection::TooManyLinks { max: self.links_max });
        }
        if *must_exist {
            // Members that this very commit creates: the groups and users of a reference cycle.
            let fresh: HashSet<&ResourceId> = match commit.writes.len() {
                0 | 1 => HashSet::new(),
                _ => {
                    let fresh = commit.writes.iter().filter(|w| w.expect == Expect::Fresh);
                    fresh.map(|w| &w.stream.id).collect()
                }
            };
            let dead = |id: &&ResourceId| {
                !fresh.contains(id)
                    && self.heads.get(&(tenant.clone(), (*id).clone())).is_none_or(|head| {
                        head.deleted || annals_domain::tenant::is_administrative(&head.resource_type)
                    })
            };
            let dangling: Vec<ResourceId> = added.iter().filter(dead).take(10).cloned().collect();
            if !dangling.is_empty() {
                return Err(Rejection::Dangling { ids: dangling });
            }
        }
        Ok((removed, added))
    }

    fn take(
        &mut self,
        commit: &Arc<Commit>,
        write: &StreamWrite,
        removed: Vec<ResourceId>,
        added: Vec<ResourceId>,
        entropy: &dyn Entropy,
    ) -> StreamReceipt {
        let tenant = &commit.tenant;
        let key = (tenant.clone(), write.stream.id.clone());
        let before = self.head;
        let replaces = write.members.as_ref().is_some_and(|members| members.delta.clear);
        let replaced = replaces.then(|| Replaced {
            removed: removed.len(),
            before: self.members.get(&key).map_or(0, HashSet::len),
        });
        let cause = write.cause.as_ref().unwrap_or(&commit.cause);
        for event in &write.events {
            let event_id = event.event_id.hyphenated().to_string();
            self.push_event(
                commit,
                cause,
                &write.stream.resource_type,
                &write.stream.id,
                event_id,
                event.kind.clone(),
                event.key_id.clone(),
                event.payload.clone(),
                event.body_hash.clone(),
            );
        }
        self.push_member_events(
            commit,
            cause,
            &write.stream.resource_type,
            &write.stream.id,
            removed,
            added,
            entropy,
        );
        let events = usize::try_from(self.head - before).unwrap_or(0);
        match &write.state {
            StateWrite::Keep => {}
            StateWrite::Put { key_id, document } => {
                if let Some(state) = self.states.get_mut(&key) {
                    state.document = Some((key_id.clone(), Some(document.clone())));
                }
            }
            StateWrite::Tombstone => self.bury(commit, write, entropy),
        }
        for (kind, value) in &write.lookups_remove {
            let place = (tenant.clone(), kind.clone(), value.clone());
            if let Some(owners) = self.lookups.get_mut(&place) {
                owners.remove(&write.stream.id);
            }
            let row = (place.0, place.1, place.2, write.stream.id.clone());
            self.lookups_add.remove(&row);
            self.lookups_remove.insert(row);
        }
        for add in &write.lookups_add {
            let place = (tenant.clone(), add.kind.clone(), add.value.clone());
            self.lookups.entry(place.clone()).or_default().insert(write.stream.id.clone());
            let row = (place.0, place.1, place.2, write.stream.id.clone());
            self.lookups_remove.remove(&row);
            self.lookups_add.insert(row, add.exclusive);
        }
        for (references, present) in [(&write.references_remove, false), (&write.references_add, true)] {
            for (attribute, to) in references {
                let link = (tenant.clone(), attribute.clone(), write.stream.id.clone(), to.clone());
                self.links.insert(link, present);
            }
        }
        let head = self.heads.get(&key).cloned().unwrap_or(HeadRow {
            resource_type: write.stream.resource_type.clone(),
            version: 0,
            created: self.at,
            modified: self.at,
            position: 0,
            deleted: false,
        });
        StreamReceipt {
            resource_type: write.stream.resource_type.clone(),
            id: write.stream.id.clone(),
            version: head.version,
            created: head.created,
            modified: head.modified,
            position: head.position,
            events,
            replaced,
        }
    }

    /// Marks an entity deleted, frees its names, and records its removal from groups.
    fn bury(&mut self, commit: &Arc<Commit>, write: &StreamWrite, entropy: &dyn Entropy) {
        let key = (commit.tenant.clone(), write.stream.id.clone());
        if let Some(state) = self.states.get_mut(&key) {
            state.document = Some((None, None));
            state.head.deleted = true;
        }
        if let Some(head) = self.heads.get_mut(&key) {
            head.deleted = true;
        }
        for ((tenant, _, _), owners) in &mut self.lookups {
            if *tenant == key.0 {
                owners.remove(&key.1);
            }
        }
        self.lookups_add.retain(|row, _| !(row.0 == key.0 && row.3 == key.1));
        self.owners_removed.insert(key.clone());
        let groups = self.groups_of.get(&key).cloned().unwrap_or_default();
        for group in groups {
            let group_key = (key.0.clone(), group.clone());
            let gone_already =
                self.links.get(&(key.0.clone(), MEMBERS.to_owned(), group.clone(), key.1.clone()))
                    == Some(&false);
            let Some(head) = self.heads.get(&group_key).cloned() else { continue };
            if head.deleted || gone_already {
                continue;
            }
            let removed = vec![key.1.clone()];
            let cause = write.cause.as_ref().unwrap_or(&commit.cause);
            self.push_member_events(commit, cause, &head.resource_type, &group, removed, Vec::new(), entropy);
        }
        // Links from a deleted group, and whatever a bounded commit left: the janitor's work.
        self.pending_removals.insert(key);
    }

    #[expect(clippy::too_many_arguments, reason = "what an event needs besides its members")]
    fn push_member_events(
        &mut self,
        commit: &Arc<Commit>,
        cause: &str,
        resource_type: &str,
        id: &ResourceId,
        removed: Vec<ResourceId>,
        added: Vec<ResourceId>,
        entropy: &dyn Entropy,
    ) {
        let tenant = commit.tenant.clone();
        let members = self.members.entry((tenant.clone(), id.clone())).or_default();
        for (ids, present) in [(&removed, false), (&added, true)] {
            for to in ids {
                if present {
                    members.insert(to.clone());
                    // A delete later in this batch must see the link.
                    self.groups_of.entry((tenant.clone(), to.clone())).or_default().insert(id.clone());
                } else {
                    members.remove(to);
                }
                let link = (tenant.clone(), MEMBERS.to_owned(), id.clone(), to.clone());
                self.links.insert(link, present);
            }
        }
        for event in member_events(removed, added) {
            let kind = event.kind(resource_type);
            let payload = event_payload(&event);
            let event_id = entropy.uuid_v7(annals_domain::clock::Timestamp(self.at)).hyphenated().to_string();
            let body_hash = BodyParts {
                event_id: &event_id,
                tenant: tenant.as_str(),
                resource_type,
                id: id.as_str(),
                kind: &kind,
                schema_version: SCHEMA_VERSION,
                actor: &commit.actor,
                cause,
                key_id: None,
                payload: &payload,
            }
            .hash()
            .to_vec();
            self.push_event(commit, cause, resource_type, id, event_id, kind, None, payload, body_hash);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of an event, each used once")]
    fn push_event(
        &mut self,
        commit: &Commit,
        cause: &str,
        resource_type: &str,
        id: &ResourceId,
        event_id: String,
        kind: String,
        key_id: Option<String>,
        payload: Vec<u8>,
        body_hash: Vec<u8>,
    ) {
        let key = (commit.tenant.clone(), id.clone());
        let at = self.at;
        let head = self.heads.entry(key.clone()).or_insert_with(|| HeadRow {
            resource_type: resource_type.to_owned(),
            version: 0,
            created: at,
            modified: at,
            position: 0,
            deleted: false,
        });
        let tenant_head = self.tenants.entry(commit.tenant.clone()).or_insert_with(|| TenantHead {
            position: 0,
            events: 0,
            chain: vec![0; 32],
            definition: 0,
            touched: false,
        });
        self.head += 1;
        let position = self.head;
        let previous_of_entity = head.position;
        let previous_of_tenant = tenant_head.position;
        head.version += 1;
        head.modified = at;
        head.position = position;
        let commit_id = commit.id.hyphenated().to_string();
        let chain = chain_hash(&tenant_head.chain, &body_hash, position, head.version, at, &commit_id);
        tenant_head.chain = chain.to_vec();
        tenant_head.position = position;
        tenant_head.events += 1;
        tenant_head.touched = true;
        if is_definition(resource_type) {
            tenant_head.definition = position;
            self.definition = position;
        }
        let head = head.clone();
        self.events.push(EventRow {
            position,
            event_id,
            commit_id,
            tenant: commit.tenant.clone(),
            resource_type: resource_type.to_owned(),
            id: id.clone(),
            version: head.version,
            kind,
            actor: commit.actor.clone(),
            cause: cause.to_owned(),
            key_id,
            payload,
            body_hash,
            chain_hash: chain,
            previous_of_entity,
            previous_of_tenant,
        });
        match self.states.get_mut(&key) {
            Some(state) => {
                let deleted = state.head.deleted;
                state.head = HeadRow { deleted, ..head };
            }
            None => drop(self.states.insert(key, StateOut { head, document: None })),
        }
    }

    /// Writes what must be there before the rest, and puts the rest together.
    async fn write(&mut self, tx: &mut Tx, head_before: Position) -> Result<End> {
        // Before the inserts: a name freed in this batch may be taken by another commit of it.
        let removals = self.removals();
        tx.execute_all(removals).await?;
        // One after the other: two commits of a batch may set the same secret.
        self.write_secrets(tx).await?;
        let mut writes = Vec::new();
        self.write_events(&mut writes);
        self.write_states(&mut writes);
        self.write_lookups(&mut writes);
        self.write_links(&mut writes);
        self.write_heads(&mut writes);
        self.write_receipts(&mut writes)?;
        let (hash, mark) = if self.events.is_empty() {
            (self.last_hash.clone(), Mark::Commits)
        } else {
            let leaves: Vec<[u8; 32]> = self.events.iter().map(|e| e.chain_hash).collect();
            let root = merkle_root(&leaves);
            let hash = batch_hash(&self.last_hash, head_before + 1, self.head, &root);
            let insert = sql("INSERT INTO journal.batch (last_position, first_position, merkle_root, hash) \
                 VALUES ($1, $2, $3, $4)")
            .bind(self.head)
            .bind(head_before + 1)
            .bind(&root[..])
            .bind(&hash[..]);
            writes.push(insert);
            (hash.to_vec(), Mark::Events { last: self.head, hash: hash.to_vec() })
        };
        let update = sql("UPDATE journal.counter SET position = $1, at = $2, batch_hash = $3, \
             definition = $4 WHERE id = 1")
        .bind(self.head)
        .bind(self.at)
        .bind(hash)
        .bind(self.definition);
        writes.push(update);
        Ok(End { writes, head: self.head, mark })
    }

    fn write_events(&mut self, writes: &mut Vec<Sql>) {
        if self.events.is_empty() {
            return;
        }
        let mut rows = Rows::new(&[
            ("position", Col::Int),
            ("event_id", Col::Text),
            ("commit_id", Col::Text),
            ("tenant", Col::Text),
            ("resource_type", Col::Text),
            ("id", Col::Text),
            ("version", Col::Int),
            ("kind", Col::Text),
            ("actor", Col::Text),
            ("cause", Col::Text),
            ("key_id", Col::Text),
            ("payload", Col::Bytes),
            ("body_hash", Col::Bytes),
            ("chain_hash", Col::Bytes),
            ("previous_of_entity", Col::Int),
            ("previous_of_tenant", Col::Int),
        ]);
        for e in &mut self.events {
            rows.push(vec![
                e.position.into(),
                std::mem::take(&mut e.event_id).into(),
                std::mem::take(&mut e.commit_id).into(),
                (&e.tenant).into(),
                std::mem::take(&mut e.resource_type).into(),
                (&e.id).into(),
                e.version.into(),
                std::mem::take(&mut e.kind).into(),
                std::mem::take(&mut e.actor).into(),
                std::mem::take(&mut e.cause).into(),
                e.key_id.take().into(),
                std::mem::take(&mut e.payload).into(),
                std::mem::take(&mut e.body_hash).into(),
                e.chain_hash.to_vec().into(),
                e.previous_of_entity.into(),
                e.previous_of_tenant.into(),
            ]);
        }
        let insert =
            sql("INSERT INTO journal.event (position, event_id, commit_id, tenant, resource_type, id, \
             version, kind, schema_version, at, actor, cause, key_id, payload, body_hash, chain_hash, \
             previous_of_entity, previous_of_tenant) \
             SELECT r.position, r.event_id, r.commit_id, r.tenant, r.resource_type, r.id, r.version, r.kind, \
             $1, $2, r.actor, r.cause, r.key_id, r.payload, r.body_hash, r.chain_hash, \
             r.previous_of_entity, r.previous_of_tenant FROM {rows}")
            .bind(SCHEMA_VERSION)
            .bind(self.at)
            .rows(rows);
        writes.push(insert);
    }

    fn write_states(&mut self, writes: &mut Vec<Sql>) {
        let mut whole = Rows::new(&[
            ("tenant", Col::Text),
            ("id", Col::Text),
            ("resource_type", Col::Text),
            ("version", Col::Int),
            ("created", Col::Int),
            ("modified", Col::Int),
            ("position", Col::Int),
            ("key_id", Col::Text),
            ("document", Col::Bytes),
            ("deleted", Col::Int),
        ]);
        let mut moved = Rows::new(&[
            ("tenant", Col::Text),
            ("id", Col::Text),
            ("version", Col::Int),
            ("modified", Col::Int),
            ("position", Col::Int),
        ]);
        for ((tenant, id), state) in self.states.drain() {
            let head = state.head;
            match state.document {
                Some((key_id, document)) => whole.push(vec![
                    (&tenant).into(),
                    (&id).into(),
                    head.resource_type.into(),
                    head.version.into(),
                    head.created.into(),
                    head.modified.into(),
                    head.position.into(),
                    key_id.into(),
                    document.into(),
                    head.deleted.into(),
                ]),
                None => moved.push(vec![
                    (&tenant).into(),
                    (&id).into(),
                    head.version.into(),
                    head.modified.into(),
                    head.position.into(),
                ]),
            }
        }
        if !whole.is_empty() {
            let upsert =
                sql("INSERT INTO journal.state (tenant, id, resource_type, version, created, modified, \
                 position, key_id, document, deleted) \
                 SELECT r.tenant, r.id, r.resource_type, r.version, r.created, r.modified, r.position, \
                 r.key_id, r.document, r.deleted FROM {rows} WHERE true \
                 ON CONFLICT (tenant, id) DO UPDATE SET version = excluded.version, \
                 modified = excluded.modified, position = excluded.position, \
                 key_id = COALESCE(excluded.key_id, state.key_id), document = excluded.document, deleted = excluded.deleted")
                .rows(whole);
            writes.push(upsert);
        }
        if !moved.is_empty() {
            let update = sql("UPDATE journal.state AS s SET version = r.version, modified = r.modified, \
                 position = r.position FROM {rows} WHERE s.tenant = r.tenant AND s.id = r.id")
            .rows(moved);
            writes.push(update);
        }
    }

    /// Look-ups to take away.
    fn removals(&mut self) -> Vec<Sql> {
        let mut removals = Vec::new();
        if !self.owners_removed.is_empty() {
            let mut rows = Rows::new(&[("tenant", Col::Text), ("owner", Col::Text)]);
            for (tenant, owner) in &self.owners_removed {
                rows.push(vec![tenant.into(), owner.into()]);
            }
            let delete =
                sql("DELETE FROM journal.lookup {keyed: tenant = r.tenant, owner = r.owner}").rows(rows);
            removals.push(delete);
        }
        if !self.lookups_remove.is_empty() {
            let mut rows = Rows::new(&LOOKUP_KEY);
            for (tenant, kind, value, owner) in self.lookups_remove.drain() {
                rows.push(vec![(&tenant).into(), kind.into(), value.into(), (&owner).into()]);
            }
            let delete = sql("DELETE FROM journal.lookup \
                 {keyed: tenant = r.tenant, kind = r.kind, value = r.value, owner = r.owner}")
            .rows(rows);
            removals.push(delete);
        }
        removals
    }

    fn write_lookups(&mut self, writes: &mut Vec<Sql>) {
        if !self.lookups_add.is_empty() {
            let mut rows = Rows::new(&[
                ("tenant", Col::Text),
                ("kind", Col::Text),
                ("value", Col::Bytes),
                ("owner", Col::Text),
                ("scope", Col::Text),
            ]);
            for ((tenant, kind, value, owner), exclusive) in self.lookups_add.drain() {
                rows.push(vec![
                    (&tenant).into(),
                    kind.into(),
                    value.into(),
                    (&owner).into(),
                    if exclusive { "" } else { owner.as_str() }.into(),
                ]);
            }
            let insert = sql("INSERT INTO journal.lookup (tenant, kind, value, owner, scope) \
                 SELECT r.tenant, r.kind, r.value, r.owner, r.scope FROM {rows} WHERE true \
                 ON CONFLICT (tenant, owner, kind, value) DO UPDATE SET scope = excluded.scope")
            .rows(rows);
            writes.push(insert);
        }
    }

    fn write_links(&mut self, writes: &mut Vec<Sql>) {
        let mut add = Rows::new(&LINK_KEY);
        let mut remove = Rows::new(&LINK_KEY);
        for ((tenant, attribute, from, to), present) in self.links.drain() {
            let row = vec![(&tenant).into(), attribute.into(), (&from).into(), (&to).into()];
            if present { add.push(row) } else { remove.push(row) }
        }
        if !remove.is_empty() {
            let delete = sql("DELETE FROM journal.link \
                 {keyed: tenant = r.tenant, attribute = r.attribute, from_id = r.from_id, to_id = r.to_id}")
            .rows(remove);
            writes.push(delete);
        }
        if !add.is_empty() {
            let insert = sql("INSERT INTO journal.link (tenant, attribute, from_id, to_id) \
                 SELECT r.tenant, r.attribute, r.from_id, r.to_id FROM {rows} WHERE true \
                 ON CONFLICT (tenant, attribute, from_id, to_id) DO NOTHING")
            .rows(add);
            writes.push(insert);
        }
        if !self.pending_removals.is_empty() {
            let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
            for (tenant, id) in &self.pending_removals {
                rows.push(vec![tenant.into(), id.into()]);
            }
            let insert = sql("INSERT INTO journal.pending_removal (tenant, id) \
                 SELECT r.tenant, r.id FROM {rows} WHERE true ON CONFLICT (tenant, id) DO NOTHING")
            .rows(rows);
            writes.push(insert);
        }
    }

    async fn write_secrets(&mut self, tx: &mut Tx) -> Result<()> {
        for (commit, _) in &self.receipts {
            for secret in &commit.secrets {
                let statement = match &secret.sealed {
                    Some(sealed) => sql("INSERT INTO journal.secret (tenant, id, name, key_id, sealed) \
                         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant, id, name) DO UPDATE \
                         SET key_id = excluded.key_id, sealed = excluded.sealed")
                    .bind(&commit.tenant)
                    .bind(&secret.id)
                    .bind(secret.name)
                    .bind(secret.key_id.clone())
                    .bind(sealed.clone()),
                    None => sql("DELETE FROM journal.secret WHERE tenant = $1 AND id = $2 AND name = $3")
                        .bind(&commit.tenant)
                        .bind(&secret.id)
                        .bind(secret.name),
                };
                tx.execute(statement).await?;
            }
            for token in &commit.tokens {
                let statement = match token {
                    TokenWrite::Add { digest, id, connection, scopes, expires } => {
                        sql("INSERT INTO journal.token (digest, tenant, id, connection, scopes, expires) \
                             VALUES ($1, $2, $3, $4, $5, $6)")
                        .bind(digest.clone())
                        .bind(&commit.tenant)
                        .bind(id)
                        .bind(connection)
                        .bind(scopes)
                        .bind(*expires)
                    }
                    TokenWrite::Remove { id } => {
                        sql("DELETE FROM journal.token WHERE tenant = $1 AND id = $2")
                            .bind(&commit.tenant)
                            .bind(id)
                    }
                };
                tx.execute(statement).await?;
            }
        }
        for (tenant, id) in &self.owners_removed {
            let delete =
                sql("DELETE FROM journal.secret WHERE tenant = $1 AND id = $2").bind(tenant).bind(id);
            tx.execute(delete).await?;
        }
        Ok(())
    }

    fn write_heads(&mut self, writes: &mut Vec<Sql>) {
        let mut rows = Rows::new(&[
            ("tenant", Col::Text),
            ("position", Col::Int),
            ("events", Col::Int),
            ("chain_hash", Col::Bytes),
            ("definition", Col::Int),
        ]);
        for (tenant, head) in self.tenants.iter().filter(|(_, head)| head.touched) {
            rows.push(vec![
                tenant.into(),
                head.position.into(),
                head.events.into(),
                head.chain.clone().into(),
                head.definition.into(),
            ]);
        }
        if rows.is_empty() {
            return;
        }
        let upsert =
            sql("INSERT INTO journal.tenant_head (tenant, position, events, chain_hash, definition) \
             SELECT r.tenant, r.position, r.events, r.chain_hash, r.definition FROM {rows} WHERE true \
             ON CONFLICT (tenant) DO UPDATE SET position = excluded.position, events = excluded.events, \
             chain_hash = excluded.chain_hash, definition = excluded.definition")
            .rows(rows);
        writes.push(upsert);
    }

    fn write_receipts(&mut self, writes: &mut Vec<Sql>) -> Result<()> {
        let mut rows = Rows::new(&[
            ("commit_id", Col::Text),
            ("tenant", Col::Text),
            ("first_position", Col::Int),
            ("last_position", Col::Int),
            ("fingerprint", Col::Bytes),
            ("receipt", Col::Text),
        ]);
        // The others are found again by their events.
        let logged =
            self.receipts.iter().filter(|(commit, _)| commit.fingerprint.is_some() || self.events.is_empty());
        for (commit, receipt) in logged {
            let text =
                serde_json::to_string(receipt).map_err(|e| StoreError::corrupt("a commit's receipt", e))?;
            rows.push(vec![
                commit.id.into(),
                (&commit.tenant).into(),
                receipt.first.into(),
                receipt.last.into(),
                commit.fingerprint.clone().into(),
                text.into(),
            ]);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let insert = sql("INSERT INTO journal.commit_log (commit_id, tenant, at, first_position, \
             last_position, fingerprint, receipt) \
             SELECT r.commit_id, r.tenant, $1, r.first_position, r.last_position, r.fingerprint, r.receipt \
             FROM {rows}")
        .bind(self.at)
        .rows(rows);
        writes.push(insert);
        Ok(())
    }
}

const LOOKUP_KEY: [(&str, Col); 4] =
    [("tenant", Col::Text), ("kind", Col::Text), ("value", Col::Bytes), ("owner", Col::Text)];
const LINK_KEY: [(&str, Col); 4] =
    [("tenant", Col::Text), ("attribute", Col::Text), ("from_id", Col::Text), ("to_id", Col::Text)];

/// An event's payload as stored: JSON.
pub(crate) fn event_payload(event: &Event) -> Vec<u8> {
    event.payload().to_string().into_bytes()
}

/// A tenant id as the database has it.
pub(crate) fn tenant_id(text: &str) -> Result<TenantId> {
    TenantId::new(text).map_err(|e| StoreError::corrupt("a tenant id", e))
}

//! Many commands of one request (RFC 7644 §3.7), at the price of few commits.
//!
//! The operations are cut into chains (`journal/chain.rs`). Those of one chain are decided and sealed first,
//! each on what the earlier ones will have left if they pass, and then handed to the writer together: one
//! hold of the counter row, one COMMIT. Where a guess was wrong the chain stops, and the rest is decided
//! again on what is there now. So the outcome is that of one operation after the other (BU-009), and nothing
//! beyond `failOnErrors` is ever written (BU-004).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use annals_domain::ids::{ConnectionId, ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::bulk::{Method, Plan, Unit};
use annals_domain::scim::error::ScimError;
use futures::{StreamExt, stream};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{
    Decided, Decision, Executed, Idempotency, IfMatch, Request, hashed_commit_id, other_request, refusal,
    state_after, warn_of_mass_removal,
};
use crate::Store;
use crate::backend::Area;
use crate::error::{Result, StoreError};
use crate::journal::append::{receipts, select_receipts};
use crate::journal::chain::{Chain, Item, ItemWork, Outcome};
use crate::journal::read::StateRow;
use crate::journal::{AppendError, Commit, Expect, Receipt, Rejection};
use crate::keys::SubjectKey;

/// Tasks of a chain that run at once: they take all processors, and as many passwords are hashed at once.
const TASKS_AT_ONCE: usize = 8;
/// Most operations that one task decides or seals.
const OPERATIONS_PER_TASK_MAX: usize = 16;
/// Operations that are decided at once even where chains stop early.
const OPERATIONS_MIN: usize = 8;

/// A bulk request.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// Whose resources.
    pub tenant: TenantId,
    /// The connection, which scopes idempotency keys.
    pub connection: Option<ConnectionId>,
    /// The operations and their order.
    pub plan: Arc<Plan>,
    /// The key of the whole request. Each unit's commit gets an id of its own from it, so a repeated request
    /// replays what was carried out and goes on with what was not.
    pub idempotency: Option<Idempotency>,
    /// How long one operation is tried again when others move its resource; none = the store's limit.
    pub deadline: Option<Duration>,
}

/// What became of an operation; none if it was not processed, as too many failed before it.
pub type BulkOutcome = Option<Result<Executed>>;

impl Store {
    /// Carries a bulk request out. `prepare` makes the command of an operation, given its index and the ids
    /// of all new resources by the index of the operation that creates them; it may be asked again with
    /// other ids. What it refuses fails that operation alone. A request's own idempotency key is not looked
    /// at. The outcomes are in the given order.
    ///
    /// # Errors
    /// Only what befalls the request before any operation was carried out: [`StoreError::Busy`],
    /// [`StoreError::Halted`], the database, or an idempotency key of another request (422). Later, the
    /// operations that could not be carried out have the error.
    pub async fn execute_bulk<P>(&self, bulk: Bulk, prepare: P) -> Result<Vec<BulkOutcome>>
    where
        P: Fn(usize, &[ResourceId]) -> std::result::Result<Request, ScimError> + Send + Sync,
    {
        let plan = bulk.plan.clone();
        let nobody = ResourceId::from_text("");
        let new_id = |method| match method {
            Method::Post => ResourceId::from_uuid(self.entropy().uuid_v7(self.now())),
            _ => nobody.clone(),
        };
        let mut run = Run {
            store: self,
            ids: plan.operations.iter().map(|operation| new_id(operation.method)).collect(),
            outcomes: plan.operations.iter().map(|_| None).collect(),
            replays: vec![None; plan.operations.len()],
            reactivated: HashSet::new(),
            replay_met: false,
            operations_max: self.limits().batch_commits_max,
            fingerprint: None,
            failures: 0,
            failures_max: plan.fail_on_errors.unwrap_or(usize::MAX),
            plan: &plan,
            bulk: &bulk,
            prepare,
        };
        run.read_receipts().await?;
        run.carry_out().await?;
        run.read_replays().await?;
        Ok(run.outcomes)
    }
}

struct Run<'a, P> {
    store: &'a Store,
    bulk: &'a Bulk,
    plan: &'a Plan,
    prepare: P,
    /// Of new resources, by operation.
    ids: Vec<ResourceId>,
    outcomes: Vec<BulkOutcome>,
    /// The resources of operations that an earlier request carried out: their state is read at the end.
    replays: Vec<Option<ResourceId>>,
    /// Operations whose id is that of a user they bring back (`reactivate-on-create`).
    reactivated: HashSet<usize>,
    /// The writer met a commit of another request with the same key.
    replay_met: bool,
    /// Most operations to decide at once. It shrinks while chains stop early, so that nothing is decided
    /// over and over.
    operations_max: usize,
    fingerprint: Option<Vec<u8>>,
    failures: usize,
    failures_max: usize,
}

/// Units that become one chain.
#[derive(Default)]
struct Segment {
    items: Vec<Draft>,
    /// The item that creates what an operation brings, by operation.
    item_of: HashMap<usize, usize>,
    /// The last item that changes an entity.
    changed_by: HashMap<ResourceId, usize>,
}

/// What the items so far leave of an entity.
struct Left {
    item: usize,
    /// None: deleted.
    state: Option<StateRow>,
}

impl Segment {
    fn left(&self, id: &ResourceId) -> Option<Left> {
        let item = *self.changed_by.get(id)?;
        let Verdict::Change(parts) = &self.items.get(item)?.verdict else { return None };
        let part = parts.iter().rfind(|part| part.request.id == *id)?;
        Some(Left { item, state: part.leaves() })
    }
}

/// An item before it is sealed.
struct Draft {
    unit: usize,
    basis: Option<usize>,
    needs: Vec<usize>,
    conditional: bool,
    again_if_taken: bool,
    verdict: Verdict,
}

/// A unit before it is decided.
struct Prepared {
    unit: usize,
    requests: Vec<std::result::Result<Request, ScimError>>,
    /// One of them brings an inactive user back instead of creating one (`reactivate-on-create`).
    reactivates: bool,
    /// The decision on the only request, if it was taken ahead of its turn.
    ahead: Option<Result<Decision>>,
}

enum Verdict {
    /// One decision for each operation.
    Change(Vec<Part>),
    Unchanged(StateRow),
    /// One error for each operation.
    Refused(Vec<StoreError>),
}

struct Part {
    request: Request,
    decision: Decision,
    key: Option<SubjectKey>,
}

/// What is kept of a part to tell its outcome.
struct Sealed {
    request: Request,
    decided: Decided,
}

/// What is kept of an item to tell its outcome.
enum Kept {
    Change(Vec<Sealed>),
    Unchanged(StateRow),
    Refused(Vec<StoreError>),
}

/// Why a chain did not come to outcomes.
enum Broken {
    /// Something about these operations.
    Here,
    /// Nothing can be written at present.
    All(StoreError),
}

impl<P> Run<'_, P>
where
    P: Fn(usize, &[ResourceId]) -> std::result::Result<Request, ScimError> + Send + Sync,
{
    fn commit_id(&self, unit: &Unit) -> Uuid {
        match (&self.bulk.idempotency, unit.operations.first()) {
            (Some(idempotency), Some(first)) => {
                let connection = self.bulk.connection.as_ref().map_or("", |c| c.as_str());
                let tenant = self.bulk.tenant.as_str();
                let index = first.to_string();
                hashed_commit_id(&["annals bulk 1", tenant, connection, &idempotency.key, &index])
            }
            _ => self.store.entropy().uuid_v7(self.store.now()),
        }
    }

    /// Finds what an earlier request with the same key carried out, in one round trip.
    async fn read_receipts(&mut self) -> Result<()> {
        let Some(idempotency) = &self.bulk.idempotency else { return Ok(()) };
        let keys = self.store.keys().tenant(&self.bulk.tenant).await?;
        let fingerprint = keys.fingerprint(&idempotency.request);
        let units: HashMap<Uuid, &Unit> =
            self.plan.units.iter().map(|unit| (self.commit_id(unit), unit)).collect();
        if let Some(select) = select_receipts(units.keys().copied()) {
            let found = receipts(self.store.backend().fetch_all(Area::Journal, select).await?)?;
            for (id, (receipt, of)) in found {
                if of.as_ref() != Some(&fingerprint) {
                    return Err(other_request());
                }
                if let Some(unit) = Uuid::parse_str(&id).ok().and_then(|id| units.get(&id)) {
                    self.replayed(unit, &receipt);
                }
            }
        }
        self.fingerprint = Some(fingerprint);
        Ok(())
    }

    fn replayed(&mut self, unit: &Unit, receipt: &Receipt) {
        for (at, stream) in unit.operations.iter().zip(&receipt.streams) {
            if let Some(id) = self.ids.get_mut(*at) {
                *id = stream.id.clone();
            }
            if let Some(replay) = self.replays.get_mut(*at) {
                *replay = Some(stream.id.clone());
            }
        }
    }

    /// Gives replayed operations the state their resources have now.
    async fn read_replays(&mut self) -> Result<()> {
        let ids: Vec<ResourceId> = self.replays.iter().flatten().cloned().collect();
        let states = self.store.states(&self.bulk.tenant, &ids).await?;
        let states: HashMap<&ResourceId, &StateRow> = states.iter().map(|state| (&state.id, state)).collect();
        for (at, id) in self.replays.iter().enumerate() {
            let Some(id) = id else { continue };
            let state = states.get(id).copied().cloned();
            let state =
                state.ok_or_else(|| StoreError::corrupt("a commit's receipt", "it names no entity"))?;
            let position = state.position;
            self.outcomes[at] = Some(Ok(Executed::replayed(state, position)));
        }
        Ok(())
    }

    async fn carry_out(&mut self) -> Result<()> {
        let plan = self.plan;
        let deadline = self.bulk.deadline.unwrap_or(self.store.limits().execute_timeout);
        let longest = self.operations_max;
        let (mut next, mut alone_until) = (0, 0);
        let mut stuck: Option<tokio::time::Instant> = None;
        while next < plan.units.len() && self.failures < self.failures_max {
            if self.is_replay(&plan.units[next]) {
                next += 1;
                continue;
            }
            self.store.pace(&self.bulk.tenant).await;
            // After a failure of the database each unit is tried alone, so that one cannot fail the others.
            let operations_max = if next < alone_until { 1 } else { self.operations_max };
            let begun = next;
            match self.carry_out_segment(&mut next, operations_max).await {
                Ok(()) if next > begun => {
                    stuck = None;
                    self.operations_max = (2 * (next - begun)).clamp(OPERATIONS_MIN, longest);
                    if std::mem::take(&mut self.replay_met) {
                        self.read_receipts().await?;
                    }
                }
                Ok(()) => {
                    metrics::counter!("annals_execute_retries_total").increment(1);
                    if stuck.get_or_insert_with(tokio::time::Instant::now).elapsed() >= deadline {
                        let what = "the resource changes too fast";
                        self.fail(&plan.units[next], || StoreError::Busy { what, retry_after_s: 1 });
                        next += 1;
                        stuck = None;
                    }
                }
                Err(Broken::Here) if next >= alone_until && begun + 1 < plan.units.len() => {
                    alone_until = (begun + operations_max).min(plan.units.len());
                }
                Err(Broken::Here) => {
                    let what = "the journal cannot be written";
                    self.fail(&plan.units[next], || StoreError::Busy { what, retry_after_s: 2 });
                    next += 1;
                }
                Err(Broken::All(error)) if !self.has_begun() => return Err(error),
                Err(Broken::All(error)) => {
                    tracing::warn!(%error, "a bulk request could not be carried out to its end");
                    for unit in &plan.units[next..] {
                        if self.failures < self.failures_max && !self.is_replay(unit) {
                            self.fail(unit, || put_off(&error));
                        }
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn has_begun(&self) -> bool {
        self.replays.iter().any(Option::is_some) || self.outcomes.iter().any(Option::is_some)
    }

    fn is_replay(&self, unit: &Unit) -> bool {
        unit.operations.first().is_some_and(|at| self.replays[*at].is_some())
    }

    fn fail(&mut self, unit: &Unit, error: impl Fn() -> StoreError) {
        for at in &unit.operations {
            self.settle(*at, Err(error()));
        }
    }

    fn settle(&mut self, at: usize, outcome: Result<Executed>) {
        self.failures += usize::from(outcome.is_err());
        self.outcomes[at] = Some(outcome);
    }

    /// Whether an operation is known to have failed.
    fn has_failed(&self, at: usize) -> bool {
        matches!(self.outcomes.get(at), Some(Some(Err(_))))
    }

    /// Decides, seals and writes as many units as fit into a chain, and moves `next` beyond those that have
    /// an outcome.
    async fn carry_out_segment(
        &mut self,
        next: &mut usize,
        operations_max: usize,
    ) -> std::result::Result<(), Broken> {
        let segment = self.gather(*next, operations_max).await.map_err(Broken::All)?;
        let (chain, kept) = self.seal(segment).await.map_err(Broken::All)?;
        let commits = chain.items.iter().filter(|item| matches!(item.work, ItemWork::Commit(_))).count();
        let outcomes = if commits == 0 {
            // Nothing to write, so nothing to ask the writer for.
            chain.walk(|_| Err(Rejection::Gone))
        } else {
            let writer = &self.store.inner.writer;
            match writer.append_chain(self.bulk.tenant.clone(), chain).await {
                Ok(outcomes) => outcomes,
                Err(AppendError::Failed(reason)) => {
                    tracing::error!(reason, "commits of a bulk request failed");
                    return Err(Broken::Here);
                }
                Err(AppendError::Halted(reason)) => return Err(Broken::All(StoreError::Halted(reason))),
                Err(AppendError::Full | AppendError::Rejected(_)) => {
                    let what = "the journal's queue is full";
                    return Err(Broken::All(StoreError::Busy { what, retry_after_s: 1 }));
                }
            }
        };
        let plan = self.plan;
        for (outcome, (unit, basis, kept)) in outcomes.into_iter().zip(kept) {
            self.record(&plan.units[unit], basis, kept, outcome);
            *next = unit + 1;
        }
        Ok(())
    }

    /// Decides units from `first` on, until the chain is long enough or one rests on what cannot be guessed.
    async fn gather(&mut self, first: usize, operations_max: usize) -> Result<Segment> {
        let plan = self.plan;
        let mut window = Vec::with_capacity(operations_max.min(plan.units.len()));
        let mut operations = 0;
        for (number, unit) in plan.units.iter().enumerate().skip(first) {
            if operations > 0 && operations + unit.operations.len() > operations_max {
                break;
            }
            if self.is_replay(unit) {
                continue;
            }
            operations += unit.operations.len();
            window.push(Box::new(self.prepare_unit(number).await?));
        }
        // What a segment is decided by is looked at anew: the last one may have stopped because of it.
        self.store.registry_of(&self.bulk.tenant).await?;
        let states = self.read_states(&window).await?;
        let store = self.store.clone();
        let window = side_by_side(window, move |prepared| decide_ahead(store.clone(), prepared)).await?;
        let mut segment = Segment::default();
        for prepared in window {
            if !self.decide_unit(&mut segment, &states, *prepared).await? {
                break;
            }
        }
        Ok(segment)
    }

    /// Makes the commands of a unit. Where the connection wants it, a create of somebody who is there and
    /// inactive becomes the replacement of that user, whose id everything else of the request gets to see.
    async fn prepare_unit(&mut self, number: usize) -> Result<Prepared> {
        let operations = &self.plan.units[number].operations;
        let mut requests: Vec<_> = operations.iter().map(|at| (self.prepare)(*at, &self.ids)).collect();
        let (mut brought_back, mut renamed) = (Vec::new(), false);
        for (nth, at) in operations.iter().enumerate() {
            let Some(request) = requests[nth].as_ref().ok().filter(|r| r.may_reactivate()) else { continue };
            if let Some(instead) = self.store.reactivation(request).await? {
                renamed |= self.ids[*at] != instead.id;
                self.ids[*at] = instead.id;
                self.reactivated.insert(*at);
                brought_back.push(nth);
            } else if self.reactivated.remove(at) {
                // It was to bring somebody back who is active or gone by now.
                self.ids[*at] = ResourceId::from_uuid(self.store.entropy().uuid_v7(self.store.now()));
                renamed = true;
            }
        }
        if renamed {
            requests = operations.iter().map(|at| (self.prepare)(*at, &self.ids)).collect();
        }
        for nth in &brought_back {
            if let Ok(request) = &requests[*nth]
                && let Some(instead) = self.store.reactivation(request).await?
            {
                requests[*nth] = Ok(instead);
            }
        }
        Ok(Prepared { unit: number, requests, reactivates: !brought_back.is_empty(), ahead: None })
    }

    /// The states of all resources that are there to be changed, in one round trip.
    async fn read_states(&self, window: &[Box<Prepared>]) -> Result<HashMap<ResourceId, StateRow>> {
        let requests = window.iter().flat_map(|prepared| prepared.requests.iter().flatten());
        let present = requests.filter(|r| !matches!(r.command, Command::Create { .. }));
        let mut ids: Vec<ResourceId> = present
            .map(|r| r.id.clone())
            .filter(|id| id.as_str().len() <= ResourceId::LEN_BYTES_MAX)
            .collect();
        ids.sort();
        ids.dedup();
        let states = self.store.states(&self.bulk.tenant, &ids).await?;
        Ok(states.into_iter().map(|state| (state.id.clone(), state)).collect())
    }

    /// Decides one unit as the next item. False: it must wait for what the segment so far comes to.
    async fn decide_unit(
        &mut self,
        segment: &mut Segment,
        states: &HashMap<ResourceId, StateRow>,
        prepared: Prepared,
    ) -> Result<bool> {
        let Prepared { unit: number, requests, reactivates, mut ahead } = prepared;
        let unit = &self.plan.units[number];
        let item = segment.items.len();
        let left = match requests.as_slice() {
            [Ok(request)] => segment.left(&request.id),
            _ => None,
        };
        // Who is inactive is known of what was committed only.
        if reactivates && !segment.items.is_empty() {
            return Ok(false);
        }
        let again_if_taken =
            !segment.items.is_empty() && requests.iter().flatten().any(Request::may_reactivate);
        let versions = |request: &Request| matches!(request.if_match, IfMatch::Versions(_));
        let conditional = !reactivates && requests.iter().flatten().any(versions);
        if left.as_ref().is_some_and(|left| left.state.is_none() || conditional) {
            return Ok(false);
        }
        let basis = left.as_ref().map(|left| left.item);
        let mut parts = Vec::with_capacity(requests.len());
        let mut errors: Vec<Option<StoreError>> = Vec::with_capacity(requests.len());
        let failed = unit.needs.iter().find(|at| self.has_failed(**at));
        let mut unchanged = None;
        for request in requests {
            let before = match (&request, &left) {
                (Ok(_), Some(left)) => left.state.clone(),
                (Ok(request), None) => states.get(&request.id).cloned(),
                (Err(_), _) => None,
            };
            let decided = match (failed, request) {
                (Some(on), _) => Err(StoreError::Refused(self.plan.reference_failed(*on))),
                (None, Err(error)) => Err(StoreError::Refused(error)),
                (None, Ok(request)) => {
                    let (request, decision) = match ahead.take() {
                        Some(decision) => (request, decision),
                        None => decide_now(self.store, request, before).await,
                    };
                    self.part(request, decision, left.is_some()).await
                }
            };
            match decided {
                Ok(part) => {
                    unchanged = part.decision.unchanged().cloned();
                    parts.push(part);
                    errors.push(None);
                }
                // Somebody else was faster: it is looked up again who that is now.
                Err(StoreError::Refused(moved)) if reactivates && moved.status == 412 => return Ok(false),
                Err(error @ StoreError::Refused(_)) => errors.push(Some(error)),
                Err(error) => return Err(error),
            }
        }
        let verdict = if errors.iter().any(Option::is_some) {
            Verdict::Refused(errors_of_unit(self.plan, unit, errors))
        } else if let Some(state) = unchanged {
            Verdict::Unchanged(state)
        } else {
            for part in &parts {
                segment.changed_by.insert(part.request.id.clone(), item);
            }
            Verdict::Change(parts)
        };
        let needs = unit.needs.iter().filter_map(|at| segment.item_of.get(at).copied()).collect();
        segment.item_of.extend(unit.operations.iter().map(|at| (*at, item)));
        segment.items.push(Draft { unit: number, basis, needs, conditional, again_if_taken, verdict });
        Ok(true)
    }

    /// `guessed`: the state is what an earlier item will leave, so that its password is not stored yet.
    async fn part(&self, request: Request, decision: Result<Decision>, guessed: bool) -> Result<Part> {
        let mut decision = decision?;
        if !guessed {
            decision = self.store.settle_password(&request, decision).await?;
        }
        let key = match decision.unchanged() {
            Some(_) => None,
            None => self.store.key_of(&request, decision.before.as_ref()).await?,
        };
        Ok(Part { request, decision, key })
    }

    /// Seals what was decided. What turns out to be refused only now is an item that failed.
    async fn seal(&self, segment: Segment) -> Result<(Arc<Chain>, Vec<(usize, Option<usize>, Kept)>)> {
        let first_of: Vec<usize> =
            segment.items.iter().map(|draft| self.plan.units[draft.unit].operations[0]).collect();
        let (store, plan) = (self.store.clone(), self.bulk.plan.clone());
        let seal = move |draft| seal_draft(store.clone(), plan.clone(), draft);
        let sealed = side_by_side(segment.items, seal).await?;
        let mut items = Vec::with_capacity(sealed.len());
        let mut kept = Vec::with_capacity(sealed.len());
        for sealed in sealed {
            let (draft, mut what) = sealed?;
            let unit = &self.plan.units[draft.unit];
            let work = match &mut what {
                Kept::Unchanged(_) => ItemWork::Unchanged,
                Kept::Refused(_) => ItemWork::Refused,
                Kept::Change(parts) => ItemWork::Commit(Arc::new(self.commit(unit, parts, draft.basis))),
            };
            items.push(Item {
                work,
                basis: draft.basis,
                needs: draft.needs,
                operations: unit.operations.len(),
                conditional: draft.conditional,
                again_if_taken: draft.again_if_taken,
            });
            kept.push((draft.unit, draft.basis.map(|item| first_of[item]), what));
        }
        let refusals_max = self.failures_max.saturating_sub(self.failures);
        Ok((Arc::new(Chain { items, refusals_max }), kept))
    }

    /// One commit of all parts of a unit. The writes are moved out of the parts.
    fn commit(&self, unit: &Unit, parts: &mut [Sealed], basis: Option<usize>) -> Commit {
        let alone = parts.len() == 1;
        let mut whole = Commit {
            id: self.commit_id(unit),
            tenant: self.bulk.tenant.clone(),
            actor: String::new(),
            cause: String::new(),
            writes: Vec::with_capacity(parts.len()),
            secrets: Vec::new(),
            tokens: Vec::new(),
            fingerprint: self.fingerprint.clone(),
            definition: None,
            head: None,
        };
        for Sealed { decided, .. } in parts {
            let part = &mut decided.commit;
            whole.actor = std::mem::take(&mut part.actor);
            whole.cause.clone_from(&part.cause);
            // Parts decided by different schemas cannot all be up to date: the older ones tell.
            whole.definition =
                whole.definition.map_or(part.definition, |by| part.definition.map(|p| p.min(by)));
            for mut write in part.writes.drain(..) {
                // The version is known only when the earlier item has passed; nobody comes in between.
                if basis.is_some() && write.expect != Expect::Fresh {
                    write.expect = Expect::Alive;
                }
                write.cause = (!alone).then(|| part.cause.clone());
                whole.writes.push(write);
            }
            whole.secrets.append(&mut part.secrets);
        }
        whole
    }

    /// Notes what became of a unit; `basis` is the operation on whose outcome it was decided.
    fn record(&mut self, unit: &Unit, basis: Option<usize>, kept: Kept, outcome: Outcome) {
        match (outcome, kept) {
            (Outcome::Done(receipt), Kept::Change(_)) if receipt.replayed => {
                self.replay_met = true;
                self.replayed(unit, &receipt);
            }
            (Outcome::Done(receipt), Kept::Change(parts)) => {
                self.store.inner.pacer.wrote(&self.bulk.tenant, receipt.last);
                for ((at, part), result) in unit.operations.iter().zip(parts).zip(&receipt.streams) {
                    warn_of_mass_removal(&part.request, Some(result));
                    let Decided { document, before, .. } = part.decided;
                    let stream = annals_domain::event::StreamId {
                        resource_type: result.resource_type.clone(),
                        id: result.id.clone(),
                    };
                    let state = state_after(&self.bulk.tenant, Some(stream), Some(result), document, before);
                    let (changed, position) = (result.events > 0, result.position);
                    let created = matches!(part.request.command, Command::Create { .. });
                    self.settle(*at, Ok(Executed { state, changed, created, replayed: false, position }));
                }
            }
            (Outcome::Unchanged, Kept::Unchanged(state)) => {
                // Decided on what another item left: the version is the one that item got.
                let state = match basis.and_then(|at| self.outcomes[at].as_ref()) {
                    Some(Ok(executed)) => executed.state.clone(),
                    _ => state,
                };
                for at in &unit.operations {
                    let state = state.clone();
                    self.settle(*at, Ok(Executed::unchanged(state)));
                }
            }
            (Outcome::Rejected(rejection), Kept::Change(parts)) => self.rejected(unit, parts, rejection),
            (Outcome::Refused, Kept::Refused(errors)) => {
                for (at, error) in unit.operations.iter().zip(errors) {
                    self.settle(*at, Err(error));
                }
            }
            // Whatever was decided: what it refers to is not there.
            (_, _) => {
                let on = unit.needs.iter().copied().find(|at| self.has_failed(*at)).unwrap_or_default();
                let error = self.plan.reference_failed(on);
                self.fail(unit, || StoreError::Refused(error.clone()));
            }
        }
    }

    fn rejected(&mut self, unit: &Unit, parts: Vec<Sealed>, rejection: Rejection) {
        let (write, why) = match rejection {
            Rejection::InWrite { at, why } => (Some(at), *why),
            all => (None, all),
        };
        let failed = write.and_then(|write| unit.operations.get(write).copied());
        for (at, part) in unit.operations.iter().zip(parts) {
            let error = match failed {
                Some(failed) if failed != *at => StoreError::Refused(self.plan.cycle_failed(failed)),
                _ => refusal(&part.request, AppendError::Rejected(why.clone())),
            };
            self.settle(*at, Err(error));
        }
    }
}

/// Does the same with many things, some at once and on all processors. The results are in the given order.
async fn side_by_side<T, R, F>(
    things: Vec<T>,
    work: impl Fn(T) -> F + Clone + Send + 'static,
) -> Result<Vec<R>>
where
    T: Send + 'static,
    R: Send + 'static,
    F: Future<Output = R> + Send,
{
    let some = |things: Vec<T>| {
        let work = work.clone();
        async move {
            let mut done = Vec::with_capacity(things.len());
            for thing in things {
                done.push(work(thing).await);
            }
            done
        }
    };
    let len = things.len();
    if len <= 1 {
        return Ok(some(things).await);
    }
    let share = len.div_ceil(TASKS_AT_ONCE).min(OPERATIONS_PER_TASK_MAX);
    let mut things = things.into_iter();
    let chunks = std::iter::from_fn(|| {
        let chunk: Vec<T> = things.by_ref().take(share).collect();
        (!chunk.is_empty()).then_some(chunk)
    });
    let tasks = chunks.map(|chunk| AbortOnDropHandle::new(tokio::spawn(some(chunk))));
    let mut done = Vec::with_capacity(len);
    let mut results = stream::iter(tasks).buffered(TASKS_AT_ONCE);
    while let Some(result) = results.next().await {
        match result {
            Ok(results) => done.extend(results),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => {
                    return Err(StoreError::Busy { what: "the process is stopping", retry_after_s: 1 });
                }
            },
        }
    }
    Ok(done)
}

/// Decides a unit ahead of its turn if it rests on nothing but itself, as a create does.
async fn decide_ahead(store: Store, mut prepared: Box<Prepared>) -> Box<Prepared> {
    let creates = |request: &Request| matches!(request.command, Command::Create { .. });
    if matches!(prepared.requests.as_slice(), [Ok(request)] if creates(request))
        && let Some(Ok(request)) = prepared.requests.pop()
    {
        let (request, decision) = decide_now(&store, request, None).await;
        prepared.requests.push(Ok(request));
        prepared.ahead = Some(decision);
    }
    prepared
}

/// Decides by the schemas as they are now; the request comes back as they understand it.
async fn decide_now(
    store: &Store,
    request: Request,
    before: Option<StateRow>,
) -> (Request, Result<Decision>) {
    let creating = matches!(request.command, Command::Create { .. });
    let known = match store.registry_known(&request.tenant).await {
        Ok(known) => known,
        Err(error) => return (request, Err(error)),
    };
    let request = match known.current(&request) {
        Ok(current) => current.unwrap_or(request),
        Err(error) => return (request, Err(error)),
    };
    let decision = store.decide(&request, &known, before.filter(|_| !creating)).await;
    (request, decision)
}

/// Seals what was decided on a unit. What turns out to be refused only now refuses all of it.
async fn seal_draft(store: Store, plan: Arc<Plan>, mut draft: Draft) -> Result<(Draft, Kept)> {
    let verdict = std::mem::replace(&mut draft.verdict, Verdict::Refused(Vec::new()));
    let parts = match verdict {
        Verdict::Change(parts) => parts,
        Verdict::Unchanged(state) => return Ok((draft, Kept::Unchanged(state))),
        Verdict::Refused(errors) => return Ok((draft, Kept::Refused(errors))),
    };
    let mut sealed = Vec::with_capacity(parts.len());
    let mut errors = Vec::with_capacity(parts.len());
    for Part { request, decision, key } in parts {
        match store.seal(&request, decision, key.as_ref()).await {
            Ok(decided) => {
                sealed.push(Sealed { request, decided });
                errors.push(None);
            }
            Err(error @ StoreError::Refused(_)) => errors.push(Some(error)),
            Err(error) => return Err(error),
        }
    }
    if errors.iter().any(Option::is_some) {
        let errors = errors_of_unit(&plan, &plan.units[draft.unit], errors);
        return Ok((draft, Kept::Refused(errors)));
    }
    Ok((draft, Kept::Change(sealed)))
}

/// The errors of a unit of which at least one operation is refused: the others fail with it.
fn errors_of_unit(plan: &Plan, unit: &Unit, errors: Vec<Option<StoreError>>) -> Vec<StoreError> {
    let failed = unit.operations.iter().zip(&errors).find(|(_, error)| error.is_some());
    let failed = failed.map_or(0, |(at, _)| *at);
    let others = || StoreError::Refused(plan.cycle_failed(failed));
    errors.into_iter().map(|error| error.unwrap_or_else(others)).collect()
}

impl Part {
    /// What the entity is when this has passed; its version is not known yet.
    fn leaves(&self) -> Option<StateRow> {
        if matches!(self.request.command, Command::Delete) {
            return None;
        }
        let stream = annals_domain::event::StreamId {
            resource_type: self.request.resource_type.name.clone(),
            id: self.request.id.clone(),
        };
        let document = self.decision.document.clone();
        let mut state = state_after(&self.request.tenant, Some(stream), None, document, None);
        state.key_id = self.key.as_ref().map(|key| key.id.clone());
        Some(state)
    }
}

/// The same failure for an operation that was not reached.
fn put_off(error: &StoreError) -> StoreError {
    match error {
        StoreError::Halted(reason) => StoreError::Halted(reason.clone()),
        StoreError::Busy { what, retry_after_s } => StoreError::Busy { what, retry_after_s: *retry_after_s },
        _ => StoreError::Busy { what: "the database failed", retry_after_s: 5 },
    }
}

//! A client's command, from the state row to the commit: load → handle → append (D1).
//!
//! Deciding, hashing a password and sealing happen before the journal's row is taken. If another commit
//! moved the version in between, the command is decided again on the new state until the request's time
//! ends; with `If-Match` it is refused with 412 instead.

mod bulk;

use std::sync::Arc;
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::event::{Actor, Cause, EVENT_BYTES_MAX, Event, StreamId};
use annals_domain::ids::{ConnectionId, Position, ResourceId, TenantId, Version};
use annals_domain::resource::{
    Command, Custom, Group, Kind, Proposal, Resource, Services, User, new_password,
};
use annals_domain::scim::error::{ScimError, ScimType};
use annals_domain::scim::resource::Document;
use annals_domain::scim::schema::ResourceType;
use annals_domain::tenant::TenantSettings;
use annals_domain::upcast::SCHEMA_VERSION;
use annals_domain::view::{Lookup, LookupKind, LookupSettings, lookups, references};
use cqrs_es::Aggregate;
use cqrs_es::event_sink::EventSink;
use secrecy::ExposeSecret as _;
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use bulk::{Bulk, BulkOutcome};

use crate::Store;
use crate::backend::{Area, sql};
use crate::error::{Result, StoreError};
use crate::journal::append::event_payload;
use crate::journal::read::{Content, StateRow, event_aad, secret_aad, state_aad};
use crate::journal::{
    AppendError, BodyParts, Commit, Expect, LookupWrite, MembersWrite, NewEvent, Receipt, Rejection,
    SecretWrite, StateWrite, StreamReceipt, StreamWrite, lookup_kind,
};
use crate::keys::SubjectKey;
use crate::password::PASSWORD;
use crate::registry::Known;

/// What `If-Match` demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IfMatch {
    /// The header is absent.
    #[default]
    Absent,
    /// `*`: the resource must exist.
    Exists,
    /// One of these versions; an empty list matches nothing (a malformed header, VE-006).
    Versions(Vec<Version>),
}

/// What `Idempotency-Key` brings.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The key as sent.
    pub key: String,
    /// What must be the same when the key comes again: method, path and body.
    pub request: Vec<u8>,
}

/// A command with all that is needed to carry it out.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose resource.
    pub tenant: TenantId,
    /// Its type.
    pub resource_type: Arc<ResourceType>,
    /// Its id; for a create, the id to give.
    pub id: ResourceId,
    /// What to do.
    pub command: Command,
    /// Precondition.
    pub if_match: IfMatch,
    /// Who.
    pub actor: Actor,
    /// Why; the quirks are added here.
    pub cause: Cause,
    /// The connection, which scopes unique external ids and idempotency keys.
    pub connection: Option<ConnectionId>,
    /// The tenant's switches.
    pub settings: TenantSettings,
    /// Whether the client profile wants group names unique (EN-021).
    pub group_name_unique: bool,
    /// The client's idempotency key.
    pub idempotency: Option<Idempotency>,
    /// How long to try again when others move the version; none = the store's limit.
    pub deadline: Option<Duration>,
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Executed {
    /// The entity afterwards.
    pub state: StateRow,
    /// False: the command changed nothing, no event was written.
    pub changed: bool,
    /// The entity came into being with this very commit.
    pub created: bool,
    /// True: the idempotency key was known, this is what the first request came to.
    pub replayed: bool,
    /// Position of the commit's last event, 0 if there is none.
    pub position: Position,
}

impl Executed {
    /// Nothing had to be written.
    fn unchanged(state: StateRow) -> Executed {
        Executed { state, changed: false, created: false, replayed: false, position: 0 }
    }

    /// An earlier request with the same key has done it.
    fn replayed(state: StateRow, position: Position) -> Executed {
        Executed { state, changed: true, created: false, replayed: true, position }
    }
}

/// What the aggregate decided, not sealed yet.
struct Decision {
    /// The state it was decided on.
    before: Option<StateRow>,
    document: Document,
    proposal: Proposal,
    events: Vec<Event>,
    /// Position of the tenant's newest schema or resource type that it was decided by.
    definition: Position,
}

impl Decision {
    /// The state, if it stays as it is.
    fn unchanged(&self) -> Option<&StateRow> {
        let nothing = self.events.is_empty() && self.proposal.members.is_empty();
        self.before.as_ref().filter(|_| nothing)
    }
}

/// A decision, sealed and ready to commit.
struct Decided {
    commit: Commit,
    document: Document,
    /// The state it was decided on.
    before: Option<StateRow>,
}

enum Attempt {
    Done(Executed),
    Moved,
}

impl Store {
    /// Carries a command out. On success it is durable.
    ///
    /// # Errors
    /// [`StoreError::Refused`] is the client's: 400, 404, 409, 412, 413. [`StoreError::Busy`] and
    /// [`StoreError::Halted`] mean "later".
    pub async fn execute(&self, request: Request) -> Result<Executed> {
        if let Some(idempotency) = &request.idempotency
            && let Some(done) = self.replay(&request, idempotency).await?
        {
            return Ok(done);
        }
        self.pace(&request.tenant).await;
        let done = self.decided(&request).await;
        if let (Err(StoreError::Refused(_)), Some(idempotency)) = (&done, &request.idempotency)
            && let Some(first) = self.replay(&request, idempotency).await?
        {
            // An earlier try, whose client went away, was written since it was looked for: a delete finds
            // nothing any more, a create its own name taken.
            return Ok(first);
        }
        done
    }

    async fn decided(&self, request: &Request) -> Result<Executed> {
        match self.carry_out(request).await {
            Err(StoreError::Refused(refusal)) if refusal.scim_type == Some(ScimType::Uniqueness) => {
                let Some(instead) = self.reactivation(request).await? else {
                    return Err(StoreError::Refused(refusal));
                };
                match self.carry_out(&instead).await {
                    // Someone else was faster: the name is in use now.
                    Err(StoreError::Refused(moved)) if moved.status == 412 => {
                        Err(StoreError::Refused(refusal))
                    }
                    done => done,
                }
            }
            done => done,
        }
    }

    /// Decides and appends until others leave the resource alone, or the time is up.
    async fn carry_out(&self, request: &Request) -> Result<Executed> {
        let deadline =
            tokio::time::Instant::now() + request.deadline.unwrap_or(self.limits().execute_timeout);
        loop {
            let attempt = self.attempt(request).await?;
            match attempt {
                Attempt::Done(done) => return Ok(done),
                Attempt::Moved if tokio::time::Instant::now() >= deadline => {
                    return Err(StoreError::Busy { what: "the resource changes too fast", retry_after_s: 1 });
                }
                Attempt::Moved => metrics::counter!("annals_execute_retries_total").increment(1),
            }
        }
    }

    async fn attempt(&self, request: &Request) -> Result<Attempt> {
        let known = self.registry_known(&request.tenant).await?;
        let current = known.current(request)?;
        let request = current.as_ref().unwrap_or(request);
        let creating = matches!(request.command, Command::Create { .. });
        let before = if creating { None } else { self.state(&request.tenant, &request.id).await? };
        let decision = self.decide(request, &known, before).await?;
        let decision = self.settle_password(request, decision).await?;
        if let Some(state) = decision.unchanged() {
            return Ok(Attempt::Done(Executed::unchanged(state.clone())));
        }
        let key = self.key_of(request, decision.before.as_ref()).await?;
        let decided = self.seal(request, decision, key.as_ref()).await?;
        let tenant = decided.commit.tenant.clone();
        let stream = decided.commit.writes.first().map(|w| w.stream.clone());
        match self.inner.writer.append(decided.commit).await {
            Ok(receipt) if receipt.replayed => {
                let state = self.replayed_state(&tenant, &receipt).await?;
                Ok(Attempt::Done(Executed::replayed(state, receipt.last)))
            }
            Ok(receipt) => {
                self.inner.pacer.wrote(&tenant, receipt.last);
                let result = receipt.streams.first();
                warn_of_mass_removal(request, result);
                let state = state_after(&tenant, stream, result, decided.document, decided.before);
                let changed = result.is_some_and(|r| r.events > 0);
                let position = receipt.last;
                Ok(Attempt::Done(Executed { state, changed, created: creating, replayed: false, position }))
            }
            Err(AppendError::Rejected(Rejection::Moved)) => match request.if_match {
                IfMatch::Versions(_) => Err(precondition_failed(request)),
                _ => Ok(Attempt::Moved),
            },
            Err(AppendError::Rejected(Rejection::Stale)) => {
                self.registry_of(&request.tenant).await?;
                Ok(Attempt::Moved)
            }
            Err(error) => Err(refusal(request, error)),
        }
    }

    /// Lets the aggregate decide on a state, tombstones included; a create is decided on none.
    async fn decide(&self, request: &Request, known: &Known, before: Option<StateRow>) -> Result<Decision> {
        match request.resource_type.name.as_str() {
            "User" => self.decide_as::<User>(request, known, before).await,
            "Group" => self.decide_as::<Group>(request, known, before).await,
            _ => self.decide_as::<Custom>(request, known, before).await,
        }
    }

    async fn decide_as<A: CommandTarget>(
        &self,
        request: &Request,
        known: &Known,
        before: Option<StateRow>,
    ) -> Result<Decision> {
        let creating = matches!(request.command, Command::Create { .. });
        let mut aggregate = match &before {
            _ if creating => A::default(),
            Some(state) if state.resource_type == request.resource_type.name => match state.document() {
                Some(document) => A::of(document.clone()),
                None => return Err(not_found(request)),
            },
            _ => return Err(not_found(request)),
        };
        if let (IfMatch::Versions(versions), Some(state)) = (&request.if_match, &before)
            && !versions.contains(&state.version)
        {
            return Err(precondition_failed(request));
        }
        let services =
            Services { registry: known.registry.clone(), resource_type: request.resource_type.clone() };
        let sink = EventSink::default();
        aggregate.handle(request.command.clone(), &services, &sink).await?;
        let events = sink.collect().await;
        let (document, proposal) = (aggregate.document().clone(), aggregate.proposal().clone());
        let shortest = request.settings.password_characters_min as usize;
        if new_password(&proposal.password).is_some_and(|p| p.expose_secret().chars().count() < shortest) {
            let detail = format!("password: this tenant wants at least {shortest} characters");
            return Err(StoreError::Refused(ScimError::invalid_value(detail)));
        }
        Ok(Decision { before, document, proposal, events, definition: known.definition })
    }

    /// A password that the user has already, or the lack of one, is no change (PA-011).
    async fn settle_password(&self, request: &Request, mut decision: Decision) -> Result<Decision> {
        if decision.before.is_some()
            && let Some(change) = &decision.proposal.password
            && self.is_present_password(&request.tenant, &request.id, change).await?
        {
            decision.proposal.password = None;
            decision.events.retain(|event| *event != Event::PasswordSet);
        }
        Ok(decision)
    }

    /// Seals what was decided and puts it into a commit.
    async fn seal(&self, request: &Request, decision: Decision, key: Option<&SubjectKey>) -> Result<Decided> {
        let (tenant, id, rt) = (&request.tenant, &request.id, &request.resource_type);
        let Decision { before, document, proposal, events, definition } = decision;
        let mut cause = request.cause.clone();
        cause.quirks.extend(proposal.quirks.iter().map(ToString::to_string));
        let header = Header::new(request, &cause)?;
        let secrets = self.secrets(request, &proposal, key).await?;
        let sealed = self.new_events(&header, tenant, id, rt, &events, key)?;
        let deleting = matches!(request.command, Command::Delete);
        let content_changed = events.iter().any(Event::holds_content);
        let state = if deleting {
            StateWrite::Tombstone
        } else if content_changed {
            self.put(tenant, id, &document, key)?
        } else {
            StateWrite::Keep
        };
        let old = before.as_ref().and_then(StateRow::document);
        let keys = self.keys().tenant(tenant).await?;
        let empty = Document::default();
        let lookups = |document: &Document| request.lookups(document);
        let old_lookups = old.map(lookups).unwrap_or_default();
        // A delete frees all of the owner's look-ups at once.
        let new_lookups = if deleting { old_lookups.clone() } else { lookups(&document) };
        let hash = |l: &(String, Lookup)| (l.0.clone(), keys.lookup_hash(&l.0, &l.1.value));
        let gone =
            |l: &&(String, Lookup)| !new_lookups.iter().any(|n| (&n.0, &n.1.value) == (&l.0, &l.1.value));
        let come =
            |l: &&(String, Lookup)| !old_lookups.iter().any(|o| (&o.0, &o.1.value) == (&l.0, &l.1.value));
        let (old_refs, new_refs) = (
            references(rt, old.unwrap_or(&empty)),
            if deleting { Vec::new() } else { references(rt, &document) },
        );
        let write = StreamWrite {
            cause: None,
            stream: StreamId { resource_type: rt.name.clone(), id: id.clone() },
            expect: expectation(request, before.as_ref(), &events),
            lookups_remove: old_lookups.iter().filter(gone).map(hash).collect(),
            lookups_add: new_lookups.iter().filter(come).map(|l| lookup_write(l, hash(l).1)).collect(),
            references_remove: old_refs.iter().filter(|r| !new_refs.contains(r)).cloned().collect(),
            references_add: new_refs.iter().filter(|r| !old_refs.contains(r)).cloned().collect(),
            members: (!proposal.members.is_empty()).then_some(MembersWrite {
                delta: proposal.members,
                must_exist: !request.settings.dangling_members,
            }),
            events: sealed,
            state,
        };
        let fingerprint = request.idempotency.as_ref().map(|i| keys.fingerprint(&i.request));
        let commit = Commit {
            id: self.commit_id(request),
            tenant: tenant.clone(),
            actor: header.actor,
            cause: header.cause,
            writes: vec![write],
            secrets,
            tokens: Vec::new(),
            fingerprint,
            definition: Some(definition),
            head: None,
        };
        Ok(Decided { commit, document, before })
    }

    async fn key_of(&self, request: &Request, before: Option<&StateRow>) -> Result<Option<SubjectKey>> {
        match before.and_then(|state| state.key_id.as_deref()) {
            // The key may have been destroyed since the state was read: then the person is gone.
            Some(id) => match self.keys().subject(&request.tenant, id).await? {
                Some(key) => Ok(Some(key)),
                None => Err(not_found(request)),
            },
            None if !request.resource_type.personal => Ok(None),
            None => Ok(Some(self.keys().take(&request.tenant).await?)),
        }
    }

    fn put(
        &self,
        tenant: &TenantId,
        id: &ResourceId,
        document: &Document,
        key: Option<&SubjectKey>,
    ) -> Result<StateWrite> {
        let bytes = serde_json::to_vec(document).map_err(|e| StoreError::corrupt("a document", e))?;
        Ok(match key {
            Some(key) => StateWrite::Put {
                key_id: Some(key.id.clone()),
                document: key.key.seal(&state_aad(tenant, id), &bytes, &**self.entropy())?,
            },
            None => StateWrite::Put { key_id: None, document: bytes },
        })
    }

    /// Gives events their ids, seals what holds content, and hashes.
    fn new_events(
        &self,
        header: &Header,
        tenant: &TenantId,
        id: &ResourceId,
        rt: &ResourceType,
        events: &[Event],
        key: Option<&SubjectKey>,
    ) -> Result<Vec<NewEvent>> {
        let now = self.now();
        events
            .iter()
            .map(|event| {
                let kind = event.kind(&rt.name);
                let event_id = self.entropy().uuid_v7(now);
                let text = event_id.hyphenated().to_string();
                let plain = event_payload(event);
                if plain.len() > EVENT_BYTES_MAX - 64 {
                    let detail = format!("the change is larger than {EVENT_BYTES_MAX} bytes");
                    return Err(StoreError::Refused(ScimError::status(413, detail)));
                }
                let (key_id, payload) = match key.filter(|_| event.holds_content()) {
                    Some(key) => {
                        let aad = event_aad(tenant, id, &text, &kind);
                        (Some(key.id.clone()), key.key.seal(&aad, &plain, &**self.entropy())?)
                    }
                    None => (None, plain),
                };
                let body_hash = BodyParts {
                    event_id: &text,
                    tenant: tenant.as_str(),
                    resource_type: &rt.name,
                    id: id.as_str(),
                    kind: &kind,
                    schema_version: SCHEMA_VERSION,
                    actor: &header.actor,
                    cause: &header.cause,
                    key_id: key_id.as_deref(),
                    payload: &payload,
                }
                .hash()
                .to_vec();
                Ok(NewEvent { event_id, kind, key_id, payload, body_hash })
            })
            .collect()
    }

    async fn secrets(
        &self,
        request: &Request,
        proposal: &Proposal,
        key: Option<&SubjectKey>,
    ) -> Result<Vec<SecretWrite>> {
        if proposal.password.is_none() {
            return Ok(Vec::new());
        }
        let (key_id, sealing) = match key {
            Some(key) => (Some(key.id.clone()), key.key.clone()),
            None => (None, self.keys().tenant(&request.tenant).await?.secret().clone()),
        };
        let sealed = match new_password(&proposal.password) {
            Some(password) => {
                let hash = self.hash_password(password.clone()).await?;
                let aad = secret_aad(&request.tenant, &request.id, PASSWORD);
                Some(sealing.seal(&aad, hash.as_bytes(), &**self.entropy())?)
            }
            None => None,
        };
        Ok(vec![SecretWrite { id: request.id.clone(), name: PASSWORD, key_id, sealed }])
    }

    fn commit_id(&self, request: &Request) -> Uuid {
        match &request.idempotency {
            Some(idempotency) => keyed_commit_id(request, &idempotency.key),
            None => self.entropy().uuid_v7(self.now()),
        }
    }

    /// What the first request with this idempotency key came to, if it was carried out.
    async fn replay(&self, request: &Request, idempotency: &Idempotency) -> Result<Option<Executed>> {
        let id = keyed_commit_id(request, &idempotency.key);
        let select =
            sql("SELECT c.receipt, c.fingerprint FROM journal.commit_log c WHERE c.commit_id = $1").bind(id);
        let Some(row) = self.backend().fetch_optional(Area::Journal, select).await? else {
            return Ok(None);
        };
        let expected = self.keys().tenant(&request.tenant).await?.fingerprint(&idempotency.request);
        if row.opt_bytes(1)? != Some(expected) {
            return Err(other_request());
        }
        let receipt: Receipt =
            serde_json::from_str(&row.text(0)?).map_err(|e| StoreError::corrupt("a commit's receipt", e))?;
        let state = self.replayed_state(&request.tenant, &receipt).await?;
        Ok(Some(Executed::replayed(state, receipt.last)))
    }

    async fn replayed_state(&self, tenant: &TenantId, receipt: &Receipt) -> Result<StateRow> {
        let state = match receipt.streams.first() {
            Some(stream) => self.state(tenant, &stream.id).await?,
            None => None,
        };
        state.ok_or_else(|| StoreError::corrupt("a commit's receipt", "it names no entity"))
    }
}

/// An aggregate that takes SCIM commands; all kinds of [`Resource`] do.
trait CommandTarget: Aggregate<Command = Command, Event = Event, Error = ScimError, Services = Services> {
    fn of(document: Document) -> Self;
    fn document(&self) -> &Document;
    fn proposal(&self) -> &Proposal;
}

impl<K: Kind> CommandTarget for Resource<K> {
    fn of(document: Document) -> Self {
        Resource::of(document)
    }
    fn document(&self) -> &Document {
        &self.document
    }
    fn proposal(&self) -> &Proposal {
        &self.proposal
    }
}

/// Actor and cause as JSON, as every event of the commit carries them.
pub(crate) struct Header {
    pub(crate) actor: String,
    pub(crate) cause: String,
}

impl Header {
    fn new(request: &Request, cause: &Cause) -> Result<Header> {
        Header::of(&request.actor, cause)
    }

    pub(crate) fn of(actor: &Actor, cause: &Cause) -> Result<Header> {
        let json = |e| StoreError::corrupt("an event's metadata", e);
        Ok(Header {
            actor: serde_json::to_string(actor).map_err(json)?,
            cause: serde_json::to_string(cause).map_err(json)?,
        })
    }
}

impl Known {
    /// The request with the resource type as the tenant has it now; none if it has that already.
    pub(crate) fn current(&self, request: &Request) -> Result<Option<Request>> {
        let resource_type = self.registry.resource_type(&request.resource_type.name);
        match resource_type.filter(|rt| !rt.retired) {
            Some(same) if Arc::ptr_eq(same, &request.resource_type) => Ok(None),
            Some(other) => Ok(Some(Request { resource_type: other.clone(), ..request.clone() })),
            None => {
                let detail = format!("there is no resource type {}", request.resource_type.name);
                Err(StoreError::Refused(ScimError::not_found(detail)))
            }
        }
    }
}

impl Request {
    /// The look-ups of a document with the kinds they are stored under.
    fn lookups(&self, document: &Document) -> Vec<(String, Lookup)> {
        let settings = LookupSettings {
            external_id_unique: false,
            group_name_unique: self.settings.group_name_unique || self.group_name_unique,
        };
        let mut found = Vec::new();
        for lookup in lookups(&self.resource_type, document, &settings) {
            let kind = lookup_kind(&self.resource_type.name, lookup.kind.as_str());
            if lookup.kind == LookupKind::ExternalId
                && self.settings.external_id_unique
                && let Some(connection) = &self.connection
            {
                // Unique within its provisioning domain (CS-007), found without it.
                let scoped = format!("{kind}@{connection}");
                found.push((scoped, Lookup { exclusive: true, ..lookup.clone() }));
            }
            found.push((kind, lookup));
        }
        found
    }
}

fn lookup_write(lookup: &(String, Lookup), value: Vec<u8>) -> LookupWrite {
    LookupWrite {
        kind: lookup.0.clone(),
        value,
        exclusive: lookup.1.exclusive,
        attribute: lookup.1.attribute.clone(),
    }
}

fn expectation(request: &Request, before: Option<&StateRow>, events: &[Event]) -> Expect {
    let Some(before) = before else { return Expect::Fresh };
    let conditional = matches!(request.if_match, IfMatch::Versions(_));
    let delta_alone = events.is_empty() || matches!(request.command, Command::Delete);
    if conditional || !delta_alone { Expect::Version(before.version) } else { Expect::Alive }
}

/// The state that a write left.
fn state_after(
    tenant: &TenantId,
    stream: Option<StreamId>,
    result: Option<&StreamReceipt>,
    document: Document,
    before: Option<StateRow>,
) -> StateRow {
    let deleted = document == Document::default() && before.is_some();
    let stream =
        stream.unwrap_or_else(|| StreamId { resource_type: String::new(), id: ResourceId::from_text("") });
    StateRow {
        tenant: tenant.clone(),
        id: stream.id,
        resource_type: stream.resource_type,
        version: result.map_or(0, |r| r.version),
        created: Timestamp(result.map_or(0, |r| r.created)),
        modified: Timestamp(result.map_or(0, |r| r.modified)),
        position: result.map_or(0, |r| r.position),
        content: Content::Open(document),
        deleted,
        key_id: before.and_then(|b| b.key_id),
    }
}

/// EN-075: a client that replaces the members of a group by the one it wanted to add is told of. The RFC's
/// meaning stands; `merge-members` gives it the other one.
fn warn_of_mass_removal(request: &Request, result: Option<&StreamReceipt>) {
    let Some(result) = result else { return };
    let Some(replaced) = result.replaced.filter(|replaced| replaced.is_mass_removal()) else { return };
    let connection = request.connection.as_ref().map_or("", |connection| connection.as_str());
    metrics::counter!("annals_group_mass_removals_total").increment(1);
    tracing::warn!(
        tenant = %request.tenant, connection, group = %result.id, request_id = request.cause.request_id,
        removed = replaced.removed, members = replaced.before,
        "one request replaced the members of a group and removed most of them; if the client meant to add, \
         switch merge-members on for its connection"
    );
}

fn keyed_commit_id(request: &Request, key: &str) -> Uuid {
    let connection = request.connection.as_ref().map_or("", |c| c.as_str());
    hashed_commit_id(&["annals idempotency 1", request.tenant.as_str(), connection, key])
}

fn hashed_commit_id(parts: &[&str]) -> Uuid {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn not_found(request: &Request) -> StoreError {
    let detail = format!("{} {} not found", request.resource_type.name, request.id);
    StoreError::Refused(ScimError::not_found(detail))
}

fn precondition_failed(request: &Request) -> StoreError {
    let detail = format!(
        "{} {} has another version than If-Match names; nothing was changed",
        request.resource_type.name, request.id
    );
    StoreError::Refused(ScimError::precondition_failed(detail))
}

fn other_request() -> StoreError {
    let detail = "this Idempotency-Key was used for another request; use a new key";
    StoreError::Refused(ScimError::status(422, detail))
}

/// What a failed append means to the client.
fn refusal(request: &Request, error: AppendError) -> StoreError {
    match error {
        AppendError::Rejected(rejection) => match rejection {
            Rejection::Moved => precondition_failed(request),
            Rejection::Stale => {
                StoreError::Busy { what: "the tenant's schemas change too fast", retry_after_s: 1 }
            }
            Rejection::Gone => not_found(request),
            Rejection::Exists => StoreError::Refused(ScimError::uniqueness(format!(
                "{} {} exists already",
                request.resource_type.name, request.id
            ))),
            Rejection::Taken { attribute } => StoreError::Refused(ScimError::uniqueness(format!(
                "{attribute}: the value is in use by another {}",
                request.resource_type.name
            ))),
            Rejection::Dangling { ids } => {
                let ids: Vec<&str> = ids.iter().map(ResourceId::as_str).collect();
                let detail = format!("members: no user or group has the id {}", ids.join(", "));
                StoreError::Refused(ScimError::invalid_value(detail))
            }
            Rejection::TooManyLinks { max } => {
                let detail = format!("members: a request may change at most {max} members");
                StoreError::Refused(ScimError::status(413, detail))
            }
            Rejection::OtherRequest => other_request(),
            Rejection::InWrite { why, .. } => refusal(request, AppendError::Rejected(*why)),
        },
        AppendError::Full => StoreError::Busy { what: "the journal's queue is full", retry_after_s: 1 },
        AppendError::Halted(reason) => StoreError::Halted(reason),
        AppendError::Failed(reason) => {
            tracing::error!(reason, "a commit failed");
            StoreError::Busy { what: "the journal cannot be written", retry_after_s: 2 }
        }
    }
}

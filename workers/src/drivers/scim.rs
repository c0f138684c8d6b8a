//! SCIM targets: kept in step with the newest state, by the rules of the outbound client (OC-01 … OC-20).
//!
//! What a run does: nothing if the content's keyed hash is that of the last delivery; else a PATCH of
//! the paths that changed in our journal, a comparison with what the target has where that is not
//! enough, or a PUT where the target knows no PATCH. Before a create the target is asked whether it has
//! the entity already, so a create whose answer was lost makes no second one. A group is created empty;
//! its members follow in bounded requests, and whoever has no id at the target yet is waited for.

pub mod requests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use annals_domain::clock::Timestamp;
use annals_domain::event::{Body, Event, Recorded};
use annals_domain::ids::ResourceId;
use annals_domain::resource::has_members;
use annals_domain::scim::resource::Document;
use annals_domain::scim::schema::ResourceType;
use annals_domain::view::references;
use annals_store::StateRow;
use annals_store::lanes::{
    LaneKey, LaneState, LaneWork, Outcome, PendingChange, REMOTE_ID_BYTES_MAX, RemoteId, Snapshot, takes,
};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::requests::{
    Desired, Listed, add_members, changed_paths, desired, filter_query, hash, id_of, id_of_location, is_hit,
    listed, net_members, operations_against, operations_for, patch_body, reference_paths, remove_members,
    resources, supports_patch,
};
use super::{Ran, Run, Stop, texts};
use crate::delivery::{Class, Failure, classify_scim};
use crate::http::{Answer, secret_header};

/// How long a target's configuration is remembered, in milliseconds.
const CAPABILITIES_MS: i64 = 60 * 60 * 1_000;
/// Events read at once.
const PAGE_EVENTS: usize = 50;
/// Events looked at to find out what changed; beyond that the target is read.
const CHANGE_EVENTS_MAX: usize = 500;
/// Members handled between two saves, about.
const PAGE_MEMBERS: usize = 1_000;
/// Pages of members handled in one run.
const PAGES_PER_RUN: usize = 20;
/// References of one entity that are waited for, read at once.
const PENDING_MAX: usize = 1_000;
/// Members the target refuses one by one before the group counts as refused.
const PARKED_PER_RUN_MAX: usize = 20;
/// Members of a group that are sent to a target that only knows PUT.
const PUT_MEMBERS_MAX: usize = 20_000;
/// How often a precondition that failed is tried again in one run (OC-11).
const PRECONDITION_TRIES: usize = 2;

/// What is known of a target.
#[derive(Clone, Debug)]
pub(crate) struct Capabilities {
    base_url: String,
    read_at: Timestamp,
    /// Whether it knows PATCH, as its configuration says.
    patch: bool,
    /// Types for which it turned out not to.
    no_patch: BTreeSet<String>,
    /// Most members in a request, if it turned out to be fewer than configured.
    members_max: Option<usize>,
    /// Where it has types of a tenant's own, by our name of the type.
    endpoints: BTreeMap<String, String>,
}

/// A target as one run sees it.
struct Target {
    base: Url,
    headers: HeaderMap,
    key: LaneKey,
    base_url: String,
    resource_type: std::sync::Arc<ResourceType>,
    /// `Users`, as the target calls it.
    endpoint: String,
    members_per_request_max: usize,
    /// Whose ids the target's are: another address is another target.
    home: String,
    known: Option<Capabilities>,
    /// What becomes of references that wait, once the content is sent.
    references: Vec<PendingChange>,
}

/// Brings the target up to the newest state.
pub(crate) async fn deliver(run: &mut Run, base_url: &str, members_per_request_max: usize) -> Ran {
    let mut target = Target::of(run, base_url, members_per_request_max).await?;
    if run.lease.work.remote.as_ref().is_some_and(|remote| remote.home != target.home) {
        run.note("the app has another target now");
        run.lease.work = LaneWork::default();
    }
    let key = target.key.clone();
    let state = run.store.state(&key.tenant, &key.id).await?;
    match state {
        Some(state) => match state.document().cloned() {
            Some(document) => target.upsert(run, &state, &document).await,
            None => target.delete(run, state.version, state.position).await,
        },
        // The journal was restored to a point before this entity.
        None => {
            let (version, position) = (run.lease.wanted_version, run.lease.wanted_position);
            target.delete(run, version, position).await
        }
    }
}

impl Target {
    async fn of(run: &Run, base_url: &str, members_per_request_max: usize) -> Result<Target, Stop> {
        let base =
            Url::parse(base_url).map_err(|error| Run::misconfigured(format!("the base URL: {error}")))?;
        if base.cannot_be_a_base() {
            return Err(Run::misconfigured("the base URL has no path"));
        }
        let bearer = format!("Bearer {}", run.credential.expose_secret());
        let bearer =
            secret_header(&bearer).ok_or_else(|| Run::misconfigured("the token cannot stand in a header"))?;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, bearer);
        headers.insert(ACCEPT, HeaderValue::from_static("application/scim+json, application/json;q=0.9"));
        let name = &run.lease.resource_type;
        let resource_type =
            run.store.registry_of(&run.lease.key.tenant).await?.resource_type(name).cloned().ok_or_else(
                || Failure::new(Class::Hopeless, format!("this build knows no resource type {name}")),
            )?;
        Ok(Target {
            base,
            headers,
            key: run.lease.key.clone(),
            base_url: base_url.to_owned(),
            endpoint: resource_type.endpoint.trim_matches('/').to_owned(),
            resource_type,
            members_per_request_max: members_per_request_max.max(1),
            home: home(base_url),
            known: None,
            references: Vec::new(),
        })
    }

    fn remote_id(&self, id: String) -> RemoteId {
        RemoteId { id, home: self.home.clone() }
    }

    /// The entity's id at the target.
    fn remote(&self, run: &Run) -> Option<String> {
        run.lease.work.remote.as_ref().map(|remote| remote.id.clone())
    }

    fn url(&self, parts: &[&str], query: Option<&str>) -> Result<Url, Stop> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url.set_query(query);
        Ok(url)
    }

    async fn send(
        &self,
        run: &mut Run,
        method: Method,
        id: Option<&str>,
        query: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, Stop> {
        let parts: Vec<&str> = self.endpoint.split('/').chain(id).collect();
        let url = self.url(&parts, query)?;
        let mut headers = self.headers.clone();
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/scim+json"));
        }
        let what = what(&method, &self.endpoint, id.is_some(), query.is_some());
        run.send(&what, method, url, headers, body.map(|body| body.to_string().into_bytes())).await
    }

    fn failure(&self, run: &mut Run, method: &Method, answer: &Answer, body: Option<&Value>) -> Stop {
        if let Some(body) = body {
            texts(body, &mut run.hide);
        }
        let class = classify_scim(answer.status, run.retry_after_ms(answer));
        let what = what(method, &self.endpoint, *method != Method::POST, false);
        run.refused(&what, answer, class).into()
    }

    /// What the target can do: remembered, or read from `/ServiceProviderConfig`. Its silence means yes.
    async fn capabilities(&mut self, run: &mut Run) -> Result<Capabilities, Stop> {
        if let Some(known) = &self.known {
            return Ok(known.clone());
        }
        let remembered = run.memory.capabilities((&self.key.tenant, &self.key.app));
        let now = run.now();
        let fresh = remembered
            .filter(|known| known.base_url == self.base_url && now < known.read_at.plus_ms(CAPABILITIES_MS));
        let capabilities = match fresh {
            Some(known) => known,
            None => {
                let url = self.url(&["ServiceProviderConfig"], None)?;
                let what = "GET ServiceProviderConfig";
                let answer = run.send(what, Method::GET, url, self.headers.clone(), None).await?;
                match classify_scim(answer.status, run.retry_after_ms(&answer)) {
                    _ if answer.is_success() => {}
                    // Many targets have none.
                    Class::Object | Class::Hopeless => {}
                    class => return Err(run.refused(what, &answer, class).into()),
                }
                let patch = !answer.is_success() || supports_patch(&answer.body);
                let base_url = self.base_url.clone();
                Capabilities {
                    base_url,
                    read_at: now,
                    patch,
                    no_patch: BTreeSet::new(),
                    members_max: None,
                    endpoints: BTreeMap::new(),
                }
            }
        };
        self.learn(run, capabilities.clone());
        Ok(capabilities)
    }

    fn learn(&mut self, run: &Run, capabilities: Capabilities) {
        run.memory.learn((&self.key.tenant, &self.key.app), capabilities.clone());
        self.known = Some(capabilities);
    }

    /// Finds out where the target has a type of the tenant's own: by its schema, as `/ResourceTypes` says
    /// (RFC 7643 §6). A target that has no such list is expected to have it where we have it. False: the
    /// target says that it has no such type. That is not remembered, as it may get one.
    async fn locate(&mut self, run: &mut Run) -> Result<bool, Stop> {
        let name = self.resource_type.name.clone();
        if matches!(name.as_str(), "User" | "Group") {
            return Ok(true);
        }
        let mut known = self.capabilities(run).await?;
        if let Some(endpoint) = known.endpoints.get(&name) {
            self.endpoint.clone_from(endpoint);
            return Ok(true);
        }
        let url = self.url(&["ResourceTypes"], None)?;
        let what = "GET ResourceTypes";
        let answer = run.send(what, Method::GET, url, self.headers.clone(), None).await?;
        let said = match classify_scim(answer.status, run.retry_after_ms(&answer)) {
            _ if answer.is_success() && answer.is_cut => Listed::Unclear,
            _ if answer.is_success() => listed(&answer.body, &self.resource_type.schema),
            Class::Object | Class::Hopeless => Listed::Unclear,
            class => return Err(run.refused(what, &answer, class).into()),
        };
        match said {
            Listed::At(endpoint) => self.endpoint = endpoint,
            Listed::Nowhere => return Ok(false),
            Listed::Unclear => {}
        }
        known.endpoints.insert(name, self.endpoint.clone());
        self.learn(run, known);
        Ok(true)
    }

    /// The target has no such resources, and cannot be given any.
    fn no_such_type(&self, how: &str) -> Stop {
        let (name, schema) = (&self.resource_type.name, &self.resource_type.schema);
        let message =
            format!("UnknownResourceType: the target has no resources of type {name} ({schema}): {how}");
        Failure::new(Class::Hopeless, message).into()
    }

    async fn patches(&mut self, run: &mut Run) -> Result<bool, Stop> {
        let known = self.capabilities(run).await?;
        Ok(known.patch && !known.no_patch.contains(&self.resource_type.name))
    }

    /// PATCH is not routed: an operator should know, the work goes on with PUT (OC-06).
    async fn forgo_patch(&mut self, run: &mut Run) -> Result<(), Stop> {
        let mut known = self.capabilities(run).await?;
        known.no_patch.insert(self.resource_type.name.clone());
        tracing::warn!(
            tenant = %self.key.tenant, app = %self.key.app, kind = self.resource_type.name,
            "the target does not take PATCH; using PUT"
        );
        run.note("the target does not take PATCH: using PUT");
        self.learn(run, known);
        Ok(())
    }

    // Deleting.

    async fn delete(&mut self, run: &mut Run, version: i64, position: i64) -> Ran {
        let mut remote = self.remote(run);
        // Where it has no such type any more, DELETE is answered with 404.
        if (remote.is_some() || run.lease.fence > 1) && !self.locate(run).await? {
            run.note("the target has no such type");
        }
        // An earlier lease may have created it without being able to write that down.
        if remote.is_none() && run.lease.fence > 1 {
            let own = self.key.id.as_str().to_owned();
            remote =
                self.search(run, "externalId", &own, true).await?.into_iter().find_map(|hit| id_of(&hit));
        }
        let mut outcome = Outcome::Unchanged;
        if let Some(remote) = &remote {
            let answer = self.send(run, Method::DELETE, Some(remote), None, None).await?;
            // 404: it was lost already, which is just as well (OC-07).
            if !answer.is_success() && answer.status != 404 {
                return Err(self.failure(run, &Method::DELETE, &answer, None));
            }
            outcome = Outcome::Deleted;
        }
        let work = &mut run.lease.work;
        // The id stays: a group's lane that comes later has yet to take the member away.
        work.applied_hash = None;
        work.snapshot = None;
        work.applied_version = version;
        work.applied_position = position;
        work.pending.push(PendingChange::ClearAll);
        Ok(outcome)
    }

    // Creating and changing.

    async fn upsert(&mut self, run: &mut Run, state: &StateRow, document: &Document) -> Ran {
        if !self.locate(run).await? {
            return Err(self.no_such_type("its /ResourceTypes does not name the schema"));
        }
        let desired = self.desired(run, document).await?;
        let hash = hash(run.credential.expose_secret(), &desired.body);
        let with_members = has_members(&self.resource_type);
        let same = run.lease.work.applied_hash.as_ref() == Some(&hash) && !run.lease.resync;
        let mut outcome = Outcome::Unchanged;
        let known_before = run.lease.work.remote.is_some();
        if run.lease.work.remote.is_none() {
            outcome = self.create(run, state, &desired).await?;
        } else if !same && (!with_members || self.patches(run).await?) {
            outcome = self.update(run, state, &desired).await?;
        }
        // Not before: what failed is to be tried with the same references.
        run.lease.work.pending.append(&mut self.references);
        // A group that is PUT as a whole is not done before its members are.
        let put_whole = with_members && !self.patches(run).await?;
        if !put_whole {
            run.lease.work.applied_hash = Some(hash.clone());
        }
        if with_members {
            if outcome != Outcome::Unchanged {
                // Whoever waits for this group's id need not wait for its members.
                run.save().await?;
            }
            let sent = if put_whole {
                self.put_group(run, state, &desired, same).await?
            } else {
                self.members(run, state, known_before).await?
            };
            run.lease.work.applied_hash = Some(hash);
            if sent && outcome == Outcome::Unchanged {
                outcome = Outcome::Updated;
            }
        } else {
            run.lease.work.applied_version = state.version;
            run.lease.work.applied_position = state.position;
        }
        Ok(outcome)
    }

    /// What is wanted, with references as far as the target has what they name. The others are waited
    /// for, if they can come at all.
    async fn desired(&mut self, run: &Run, document: &Document) -> Result<Desired, Stop> {
        let (tenant, app) = (&self.key.tenant, &self.key.app);
        let named: Vec<ResourceId> =
            references(&self.resource_type, document).into_iter().map(|(_, id)| id).collect();
        let remote = run.store.remote_ids(tenant, app, &self.home, &named).await?;
        let desired = desired(&self.resource_type, &self.key.id, document, &remote);
        let waited = run.store.pending(&self.key, &self.home, None, PENDING_MAX).await?;
        if desired.missing.is_empty() && waited.iter().all(|pending| pending.attribute == "members") {
            return Ok(desired);
        }
        let missing: Vec<ResourceId> = desired.missing.iter().map(|(_, id)| id.clone()).collect();
        let will_come = self.will_come(run, &missing).await?;
        self.references.push(PendingChange::ClearReferences);
        for (attribute, member) in &desired.missing {
            if will_come.contains(member) {
                let (attribute, member) = (attribute.clone(), member.clone());
                self.references.push(PendingChange::Wait { attribute, member });
            }
        }
        Ok(desired)
    }

    /// Those of the entities that exist and that this app gets.
    async fn will_come(&self, run: &Run, ids: &[ResourceId]) -> Result<BTreeSet<ResourceId>, Stop> {
        let states = run.store.states(&self.key.tenant, ids).await?;
        let coming =
            states.into_iter().filter(|state| !state.deleted && takes(&run.app, &state.resource_type));
        Ok(coming.map(|state| state.id).collect())
    }

    async fn create(&mut self, run: &mut Run, state: &StateRow, desired: &Desired) -> Ran {
        if let Some(found) = self.find(run, desired).await? {
            return self.link(run, state, desired, found).await;
        }
        let body = Value::Object(desired.body.clone());
        let answer = self.send(run, Method::POST, None, None, Some(&body)).await?;
        if answer.is_success() {
            let from_body = serde_json::from_slice::<Map<String, Value>>(&answer.body).ok();
            let id = from_body
                .and_then(|created| id_of(&created))
                .or_else(|| answer.header("location").and_then(id_of_location))
                .filter(|id| is_usable_id(id));
            let id = match id {
                Some(id) => Some(id),
                // It did not say which id it gave (OC-04).
                None => self.find(run, desired).await?.and_then(|found| id_of(&found)),
            };
            let Some(id) = id else {
                let message = "the target created it, but does not say under which id";
                return Err(Failure::new(Class::Object, message).into());
            };
            run.lease.work.remote = Some(self.remote_id(id));
            return Ok(Outcome::Created);
        }
        if answer.status == 409 {
            return match self.find(run, desired).await? {
                Some(found) => self.link(run, state, desired, found).await,
                None => Err(self.conflict(run, &Method::POST, desired, &answer).await?),
            };
        }
        // Nothing else has been asked of this endpoint that would answer 404 for want of a resource.
        if matches!(answer.status, 404 | 405 | 501) && self.name(desired).is_none() {
            let how = format!("POST /{} was answered with {}", self.endpoint, answer.status);
            return Err(self.no_such_type(&how));
        }
        Err(self.failure(run, &Method::POST, &answer, Some(&body)))
    }

    /// The target says that there is one already, but none that could be this entity (OC-05).
    async fn conflict(
        &mut self,
        run: &mut Run,
        method: &Method,
        desired: &Desired,
        answer: &Answer,
    ) -> Result<Stop, Stop> {
        texts(&Value::Object(desired.body.clone()), &mut run.hide);
        // Perhaps another entity of ours still has the name there, and is about to give it up.
        let busy = self.is_name_in_motion(run, desired).await?;
        let class = if busy { Class::Transient } else { Class::Object };
        let mut failure = run.refused(method.as_str(), answer, class);
        failure.message = format!("EntryConflict: {}", failure.message);
        Ok(failure.into())
    }

    async fn is_name_in_motion(&self, run: &mut Run, desired: &Desired) -> Result<bool, Stop> {
        let Some((attribute, value)) = self.name(desired) else { return Ok(false) };
        for hit in self.search(run, attribute, &value, false).await? {
            if let Some(owner) = self.owner(run, &hit).await?
                && matches!(owner, LaneState::Due | LaneState::Leased)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The attribute a target knows an entity by, and its value.
    fn name(&self, desired: &Desired) -> Option<(&'static str, String)> {
        let attribute = match self.resource_type.name.as_str() {
            "User" => "userName",
            "Group" => "displayName",
            _ => return None,
        };
        Some((attribute, desired.body.get(attribute)?.as_str()?.to_owned()))
    }

    /// The one resource of the target that is this entity, by its name or by our id.
    async fn find(&mut self, run: &mut Run, desired: &Desired) -> Result<Option<Map<String, Value>>, Stop> {
        let own = ("externalId", self.key.id.as_str().to_owned());
        for (attribute, value) in self.name(desired).into_iter().chain([own]) {
            let mut hits = Vec::new();
            for hit in self.search(run, attribute, &value, attribute == "externalId").await? {
                // What belongs to another entity of ours is no match.
                if self.owner(run, &hit).await?.is_none() {
                    hits.push(hit);
                }
            }
            match hits.len() {
                0 => {}
                1 => return Ok(hits.pop()),
                many => {
                    let message = format!("DuplicateTargetEntries: {many} resources have this {attribute}");
                    return Err(Failure::new(Class::Hopeless, message).into());
                }
            }
        }
        Ok(None)
    }

    /// Searches by one attribute and verifies the hits. A target that cannot search finds nothing.
    async fn search(
        &self,
        run: &mut Run,
        attribute: &str,
        value: &str,
        case_exact: bool,
    ) -> Result<Vec<Map<String, Value>>, Stop> {
        let mut query = filter_query(attribute, value);
        if has_members(&self.resource_type) {
            query.push_str("&excludedAttributes=members");
        }
        let answer = self.send(run, Method::GET, None, Some(&query), None).await?;
        run.hide.push(value.to_owned());
        if !answer.is_success() {
            return match classify_scim(answer.status, run.retry_after_ms(&answer)) {
                Class::Object => Ok(Vec::new()),
                _ => Err(self.failure(run, &Method::GET, &answer, None)),
            };
        }
        let Some(found) = resources(&answer.body).filter(|_| !answer.is_cut) else {
            return Err(Failure::new(Class::Transient, "the target's answer to a search is no list").into());
        };
        let usable = |hit: &Map<String, Value>| id_of(hit).is_some_and(|id| is_usable_id(&id));
        Ok(found.into_iter().filter(|hit| is_hit(hit, attribute, value, case_exact) && usable(hit)).collect())
    }

    /// Where the lane of another entity of ours stands, if a resource of the target is linked to it, or
    /// carries its id.
    async fn owner(&self, run: &Run, hit: &Map<String, Value>) -> Result<Option<LaneState>, Stop> {
        if let Some(id) = id_of(hit)
            && let Some((_, state)) = run.store.linked_to(&self.key, &self.remote_id(id)).await?
        {
            return Ok(Some(state));
        }
        let Some(external) = requests::member(hit, "externalId").and_then(Value::as_str) else {
            return Ok(None);
        };
        if external == self.key.id.as_str() || external.len() > ResourceId::LEN_BYTES_MAX {
            return Ok(None);
        }
        let lane = LaneKey { id: ResourceId::from_text(external), ..self.key.clone() };
        // A lane that is done with deleting it does not own it any more.
        let owner = run.store.delivery(&lane).await?;
        Ok(owner.filter(|lane| !(lane.deleted && lane.state == LaneState::Idle)).map(|lane| lane.state))
    }

    /// Takes over what the target has, and brings it up to date.
    async fn link(
        &mut self,
        run: &mut Run,
        state: &StateRow,
        desired: &Desired,
        found: Map<String, Value>,
    ) -> Ran {
        run.lease.work.remote = id_of(&found).map(|id| self.remote_id(id));
        run.note("linked to what the target has");
        self.change(run, state, desired, Some(found)).await?;
        Ok(Outcome::Linked)
    }

    async fn update(&mut self, run: &mut Run, state: &StateRow, desired: &Desired) -> Ran {
        self.change(run, state, desired, None).await
    }

    /// Sends the difference: to `there` if that is known, else what changed in our journal, else to
    /// what a GET brings.
    async fn change(
        &mut self,
        run: &mut Run,
        state: &StateRow,
        desired: &Desired,
        mut there: Option<Map<String, Value>>,
    ) -> Ran {
        let references = reference_paths(&self.resource_type);
        let history = self.history(run, state).await?;
        let mut by_history = there.is_none() && self.is_trusted(run);
        let mut preconditions = 0;
        loop {
            let Some(remote) = self.remote(run) else {
                return Err(Stop::Yield);
            };
            if !self.patches(run).await? {
                return self.put(run, state, desired, &remote).await;
            }
            let mut operations = match &history {
                Some(history) if by_history => {
                    let paths = self.with_references(history, &references, &desired.body);
                    operations_for(&paths, &references, &desired.body)
                }
                _ => Vec::new(),
            };
            if operations.is_empty() {
                by_history = false;
                if there.is_none() {
                    there = self.read(run, &remote).await?;
                }
                let Some(there) = &there else {
                    return self.recreate(run, state, desired).await;
                };
                let gone = |(path, _): (&String, &bool)| path.clone();
                let cleared = history.iter().flatten().map(gone).collect();
                operations = operations_against(there, &desired.body, &references, &cleared);
            }
            if operations.is_empty() {
                return Ok(Outcome::Unchanged);
            }
            let body = patch_body(&operations);
            let answer = self.send(run, Method::PATCH, Some(&remote), None, Some(&body)).await?;
            match answer.status {
                200..=299 => return Ok(Outcome::Updated),
                404 => match self.read(run, &remote).await? {
                    None => return self.recreate(run, state, desired).await,
                    // The resource is there: it is the method that is not (OC-06).
                    Some(_) => self.forgo_patch(run).await?,
                },
                405 | 501 => self.forgo_patch(run).await?,
                // The target is not where our journal thinks it is: compare.
                400 if by_history => {
                    by_history = false;
                    there = None;
                    run.note("comparing with what the target has");
                    // Empty history makes the comparison decide.
                    if let Some(read) = self.read(run, &remote).await? {
                        there = Some(read);
                    }
                }
                412 if preconditions < PRECONDITION_TRIES => {
                    preconditions += 1;
                    by_history = false;
                    there = None;
                }
                409 => return Err(self.conflict(run, &Method::PATCH, desired, &answer).await?),
                _ => return Err(self.failure(run, &Method::PATCH, &answer, Some(&body))),
            }
        }
    }

    /// The changed paths, and the references that were waited for: one of them may be known by now.
    fn with_references(
        &self,
        history: &BTreeMap<String, bool>,
        references: &[String],
        body: &Map<String, Value>,
    ) -> BTreeMap<String, bool> {
        let mut paths = history.clone();
        if !self.references.is_empty() {
            for path in references.iter().filter(|path| requests::value_at(body, path).is_some()) {
                paths.entry(path.clone()).or_insert(false);
            }
        }
        paths
    }

    async fn put(&mut self, run: &mut Run, state: &StateRow, desired: &Desired, remote: &str) -> Ran {
        if has_members(&self.resource_type) {
            // It goes with its members.
            return Ok(Outcome::Updated);
        }
        let mut body = desired.body.clone();
        body.insert("id".into(), json!(remote));
        let body = Value::Object(body);
        let answer = self.send(run, Method::PUT, Some(remote), None, Some(&body)).await?;
        if answer.is_success() {
            return Ok(Outcome::Updated);
        }
        if answer.status == 404 && self.read(run, remote).await?.is_none() {
            return self.recreate(run, state, desired).await;
        }
        if answer.status == 409 {
            return Err(self.conflict(run, &Method::PUT, desired, &answer).await?);
        }
        Err(self.failure(run, &Method::PUT, &answer, Some(&body)))
    }

    /// Whether what the lane says of the target can be relied on.
    fn is_trusted(&self, run: &Run) -> bool {
        let work = &run.lease.work;
        !run.lease.resync && work.applied_version > 0 && work.applied_hash.is_some()
    }

    /// The paths that changed since what was applied. None: too much, or not readable.
    async fn history(&self, run: &Run, state: &StateRow) -> Result<Option<BTreeMap<String, bool>>, Stop> {
        let mut after = run.lease.work.applied_version;
        let mut events: Vec<Recorded> = Vec::new();
        loop {
            let page = run.store.read_stream(&self.key.tenant, &self.key.id, after, PAGE_EVENTS).await?;
            let Some(last) = page.last() else { break };
            after = last.version;
            let is_first = |event: &Recorded| matches!(event.body, Body::Open(Event::Created { .. }));
            events.extend(page.into_iter().filter(|e| e.version <= state.version && !is_first(e)));
            if after >= state.version {
                break;
            }
            if events.len() > CHANGE_EVENTS_MAX {
                return Ok(None);
            }
        }
        Ok(changed_paths(&events))
    }

    /// The resource as the target has it; none = 404.
    async fn read(&self, run: &mut Run, remote: &str) -> Result<Option<Map<String, Value>>, Stop> {
        let query = has_members(&self.resource_type).then_some("excludedAttributes=members");
        let answer = self.send(run, Method::GET, Some(remote), query, None).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        if !answer.is_success() {
            return Err(self.failure(run, &Method::GET, &answer, None));
        }
        match serde_json::from_slice::<Map<String, Value>>(&answer.body) {
            Ok(resource) if !answer.is_cut => Ok(Some(resource)),
            _ => Err(Failure::new(Class::Transient, "the target's answer to GET is no resource").into()),
        }
    }

    /// The target lost it: forget the link and begin again (OC-06).
    async fn recreate(&mut self, run: &mut Run, state: &StateRow, desired: &Desired) -> Ran {
        run.note("the target lost it");
        self.unlink(run).await?;
        Box::pin(self.create(run, state, desired)).await
    }

    async fn unlink(&self, run: &mut Run) -> Result<(), Stop> {
        let work = &mut run.lease.work;
        work.remote = None;
        work.applied_hash = None;
        work.snapshot = None;
        if has_members(&self.resource_type) {
            work.applied_version = 0;
            work.applied_position = 0;
        }
        // With the resource its memberships went.
        let own = std::slice::from_ref(&self.key.id);
        for group in run.store.groups_of(&self.key.tenant, own).await? {
            if group.direct && takes(&run.app, "Group") {
                let attribute = "members".to_owned();
                run.lease.work.pending.push(PendingChange::Renew { attribute, holder: group.group });
            }
        }
        Ok(())
    }

    // Members.

    /// Sends what changed among the members: those waited for that have an id now, then everyone if the
    /// group is new, then what happened since. Says whether anything was sent.
    async fn members(&mut self, run: &mut Run, state: &StateRow, known_before: bool) -> Result<bool, Stop> {
        let mut pages = 0;
        let mut sent = false;
        if run.lease.work.applied_version > 0 || run.lease.work.snapshot.is_some() {
            sent = self.members_waited_for(run, &mut pages).await?;
        } else {
            if known_before {
                sent = self.remove_strangers(run).await?;
            }
            // Everyone is sent, so nobody waits from an earlier beginning.
            run.lease.work.pending.push(PendingChange::ClearMembers);
            run.lease.work.snapshot = Some(Snapshot { version: state.version, after: String::new() });
        }
        while let Some(snapshot) = run.lease.work.snapshot.clone() {
            bound(&mut pages)?;
            let chunk = self.chunk(run).await?;
            // Whole requests, so that no page ends with a small one.
            let max = (PAGE_MEMBERS / chunk).max(1) * chunk;
            let after = (!snapshot.after.is_empty()).then(|| ResourceId::from_text(&snapshot.after));
            let (tenant, group) = (self.key.tenant.clone(), self.key.id.clone());
            let page = run.store.members(&tenant, &group, after.as_ref(), max).await?;
            let ids: Vec<ResourceId> = page.iter().map(|member| member.id.clone()).collect();
            sent |= self.add(run, &ids).await?;
            if ids.len() < max {
                run.lease.work.snapshot = None;
                run.lease.work.applied_version = snapshot.version;
                let position = if snapshot.version == state.version { state.position } else { 0 };
                run.lease.work.applied_position = position;
            } else if let Some(last) = ids.last() {
                let after = last.as_str().to_owned();
                run.lease.work.snapshot = Some(Snapshot { version: snapshot.version, after });
            }
            run.save().await?;
        }
        loop {
            let applied = run.lease.work.applied_version;
            let page = run.store.read_stream(&self.key.tenant, &self.key.id, applied, PAGE_EVENTS).await?;
            // What came after the content that was read is the next lease's, as a whole.
            let page: Vec<Recorded> = page.into_iter().filter(|e| e.version <= state.version).collect();
            let Some(last) = page.last() else { break };
            bound(&mut pages)?;
            let (added, removed) = net_members(&page);
            sent |= self.add(run, &added).await?;
            sent |= self.remove(run, &removed).await?;
            run.lease.work.applied_version = last.version;
            run.lease.work.applied_position = last.position;
            if last.version < state.version {
                run.save().await?;
            }
        }
        Ok(sent)
    }

    /// Before a group that the target has already is sent as if for the first time: takes away who of ours is
    /// a member there and not here. An earlier beginning that nobody could write down may have added them.
    async fn remove_strangers(&mut self, run: &mut Run) -> Result<bool, Stop> {
        let Some(remote) = self.remote(run) else { return Ok(false) };
        let answer = self.send(run, Method::GET, Some(&remote), Some("attributes=members"), None).await?;
        if answer.status == 404 {
            return Ok(false);
        }
        if !answer.is_success() {
            return Err(self.failure(run, &Method::GET, &answer, None));
        }
        let group = serde_json::from_slice::<Map<String, Value>>(&answer.body).unwrap_or_default();
        let members = requests::member(&group, "members").and_then(Value::as_array);
        let there: Vec<&str> = members.into_iter().flatten().filter_map(|m| m["value"].as_str()).collect();
        if answer.is_cut || there.len() > PUT_MEMBERS_MAX {
            run.note("the target has too many members to compare them");
            return Ok(false);
        }
        let mut strangers: BTreeMap<ResourceId, String> = BTreeMap::new();
        for id in there.into_iter().filter(|id| is_usable_id(id)) {
            if let Some((ours, _)) = run.store.linked_to(&self.key, &self.remote_id(id.to_owned())).await? {
                strangers.insert(ours, id.to_owned());
            }
        }
        let mut after: Option<ResourceId> = None;
        while !strangers.is_empty() {
            let (tenant, group) = (&self.key.tenant, &self.key.id);
            let page = run.store.members(tenant, group, after.as_ref(), PAGE_MEMBERS).await?;
            for member in &page {
                strangers.remove(&member.id);
            }
            after = match page.last() {
                Some(last) => Some(last.id.clone()),
                None => break,
            };
        }
        let strangers: Vec<(ResourceId, String)> = strangers.into_iter().collect();
        self.send_members(run, &strangers, false).await?;
        Ok(!strangers.is_empty())
    }

    async fn members_waited_for(&mut self, run: &mut Run, pages: &mut usize) -> Result<bool, Stop> {
        let mut sent = false;
        let mut after: Option<(String, ResourceId)> = None;
        loop {
            let from = after.as_ref().map(|(attribute, id)| (attribute.as_str(), id));
            let page = run.store.pending(&self.key, &self.home, from, PENDING_MAX).await?;
            let Some(last) = page.last() else { return Ok(sent) };
            after = Some((last.attribute.clone(), last.member.clone()));
            let ready: Vec<(ResourceId, String)> = page
                .into_iter()
                .filter(|p| p.attribute == "members" && (!p.parked || run.lease.was_waiting))
                .filter_map(|p| Some((p.member, p.remote_id?)))
                .collect();
            if ready.is_empty() {
                continue;
            }
            bound(pages)?;
            self.send_members(run, &ready, true).await?;
            // Not before: what failed still waits.
            run.lease.work.pending.extend(ready.iter().map(|(member, _)| done(member)));
            sent = true;
            run.save().await?;
        }
    }

    /// Adds members, and waits for those the target does not have yet.
    async fn add(&mut self, run: &mut Run, ids: &[ResourceId]) -> Result<bool, Stop> {
        let remote = run.store.remote_ids(&self.key.tenant, &self.key.app, &self.home, ids).await?;
        let mut waits = self.waits(run, ids, &remote).await?;
        run.lease.work.pending.append(&mut waits);
        let known: Vec<(ResourceId, String)> =
            ids.iter().filter_map(|id| Some((id.clone(), remote.get(id)?.clone()))).collect();
        self.send_members(run, &known, true).await?;
        Ok(!known.is_empty())
    }

    /// That those members are waited for which have no id at the target, but will.
    async fn waits(
        &self,
        run: &Run,
        ids: &[ResourceId],
        remote: &HashMap<ResourceId, String>,
    ) -> Result<Vec<PendingChange>, Stop> {
        let missing: Vec<ResourceId> = ids.iter().filter(|id| !remote.contains_key(*id)).cloned().collect();
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let coming = self.will_come(run, &missing).await?;
        let wait = |member| PendingChange::Wait { attribute: "members".into(), member };
        Ok(coming.into_iter().map(wait).collect())
    }

    /// Removes members. One that the target never had is no member there.
    async fn remove(&mut self, run: &mut Run, ids: &[ResourceId]) -> Result<bool, Stop> {
        let remote = run.store.remote_ids(&self.key.tenant, &self.key.app, &self.home, ids).await?;
        for id in ids {
            run.lease.work.pending.push(done(id));
        }
        let known: Vec<(ResourceId, String)> =
            ids.iter().filter_map(|id| Some((id.clone(), remote.get(id)?.clone()))).collect();
        self.send_members(run, &known, false).await?;
        Ok(!known.is_empty())
    }

    async fn chunk(&mut self, run: &mut Run) -> Result<usize, Stop> {
        let known = self.capabilities(run).await?;
        Ok(known.members_max.unwrap_or(usize::MAX).min(self.members_per_request_max).max(1))
    }

    /// Sends members in requests of bounded size. A request that is too large is halved, and so is one
    /// that is refused, until the members that the target does not take stand alone (OC-14).
    async fn send_members(
        &mut self,
        run: &mut Run,
        members: &[(ResourceId, String)],
        add: bool,
    ) -> Result<(), Stop> {
        let Some(group) = self.remote(run) else { return Err(Stop::Yield) };
        let chunk = self.chunk(run).await?;
        let mut stack: Vec<&[(ResourceId, String)]> = members.chunks(chunk).rev().collect();
        let mut parked = 0;
        while let Some(part) = stack.pop() {
            let ids: Vec<&str> = part.iter().map(|(_, remote)| remote.as_str()).collect();
            let body = patch_body(&if add { add_members(&ids) } else { remove_members(&ids) });
            let answer = self.send(run, Method::PATCH, Some(&group), None, Some(&body)).await?;
            let halves = part.split_at(part.len() / 2);
            match answer.status {
                200..=299 => {}
                404 if self.read(run, &group).await?.is_none() => {
                    run.note("the target lost the group");
                    self.unlink(run).await?;
                    return Err(Stop::Yield);
                }
                404 if part.len() == 1 && !add => {}
                405 | 501 => {
                    self.forgo_patch(run).await?;
                    return Err(Stop::Yield);
                }
                413 if part.len() > 1 => {
                    let mut known = self.capabilities(run).await?;
                    known.members_max = Some(halves.1.len());
                    self.learn(run, known);
                    stack.extend([halves.1, halves.0]);
                }
                400 | 404 | 409 | 422 if part.len() > 1 => stack.extend([halves.1, halves.0]),
                // It is no member there, which is what was wanted.
                400 | 409 | 422 if !add => {}
                400 | 404 | 409 | 422 if parked < PARKED_PER_RUN_MAX => {
                    parked += 1;
                    let (member, _) = &part[0];
                    run.note("the target refuses a member");
                    let (attribute, member) = ("members".to_owned(), member.clone());
                    run.lease.work.pending.push(PendingChange::Park { attribute, member });
                }
                _ => return Err(self.failure(run, &Method::PATCH, &answer, Some(&body))),
            }
        }
        Ok(())
    }

    /// A target without PATCH gets the whole group.
    async fn put_group(
        &mut self,
        run: &mut Run,
        state: &StateRow,
        desired: &Desired,
        same: bool,
    ) -> Result<bool, Stop> {
        let Some(remote_group) = self.remote(run) else { return Err(Stop::Yield) };
        let waited = run.store.pending(&self.key, &self.home, None, PENDING_MAX).await?;
        let ready =
            waited.iter().any(|pending| pending.attribute == "members" && pending.remote_id.is_some());
        if same && !ready && run.lease.work.applied_version >= state.version {
            return Ok(false);
        }
        let mut members = Vec::new();
        let mut after: Option<ResourceId> = None;
        let mut pending = vec![PendingChange::ClearMembers];
        loop {
            let (tenant, group) = (self.key.tenant.clone(), self.key.id.clone());
            let page = run.store.members(&tenant, &group, after.as_ref(), PAGE_MEMBERS).await?;
            let ids: Vec<ResourceId> = page.iter().map(|member| member.id.clone()).collect();
            let remote = run.store.remote_ids(&tenant, &self.key.app, &self.home, &ids).await?;
            pending.extend(self.waits(run, &ids, &remote).await?);
            members.extend(ids.iter().filter_map(|id| Some(json!({ "value": remote.get(id)? }))));
            if members.len() > PUT_MEMBERS_MAX {
                let message =
                    format!("the target knows no PATCH, and the group has over {PUT_MEMBERS_MAX} members");
                return Err(Failure::new(Class::Hopeless, message).into());
            }
            match ids.last() {
                Some(last) if ids.len() == PAGE_MEMBERS => after = Some(last.clone()),
                _ => break,
            }
        }
        let mut body = desired.body.clone();
        body.insert("id".into(), json!(remote_group));
        body.insert("members".into(), Value::Array(members));
        let body = Value::Object(body);
        let answer = self.send(run, Method::PUT, Some(&remote_group), None, Some(&body)).await?;
        if answer.status == 404 && self.read(run, &remote_group).await?.is_none() {
            self.unlink(run).await?;
            return Err(Stop::Yield);
        }
        if !answer.is_success() {
            return Err(self.failure(run, &Method::PUT, &answer, Some(&body)));
        }
        run.lease.work.pending.append(&mut pending);
        run.lease.work.snapshot = None;
        run.lease.work.applied_version = state.version;
        run.lease.work.applied_position = state.position;
        Ok(true)
    }
}

fn done(member: &ResourceId) -> PendingChange {
    PendingChange::Done { attribute: "members".into(), member: member.clone() }
}

/// Counts a page; a run that has had its share ends.
fn bound(pages: &mut usize) -> Result<(), Stop> {
    *pages += 1;
    if *pages > PAGES_PER_RUN { Err(Stop::Yield) } else { Ok(()) }
}

/// A short name for the target at an address.
fn home(base_url: &str) -> String {
    let digest = Sha256::digest(base_url.trim_end_matches('/').as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What a request is called in logs and attempts: no id and no value.
fn what(method: &Method, endpoint: &str, one: bool, filtered: bool) -> String {
    let tail = match (one, filtered) {
        (true, _) => "/…",
        (false, true) => "?filter=…",
        (false, false) => "",
    };
    format!("{method} {endpoint}{tail}")
}

/// Whether a target's id can be a path segment of its own.
fn is_usable_id(id: &str) -> bool {
    !matches!(id, "" | "." | "..") && id.len() <= REMOTE_ID_BYTES_MAX && !id.chars().any(char::is_control)
}

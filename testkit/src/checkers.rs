//! The checkers (design §5): what must hold of any installation at rest, whatever happened to it before.
//!
//! They look from outside: at the tables, the stream's messages, the downstream's records. Where the house
//! has a check of its own (`Store::verify`), it is run besides, never instead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use annals_bus::message;
use annals_domain::clock::Timestamp;
use annals_domain::event::{Body, Event, Recorded};
use annals_domain::ids::{Position, TenantId};
use annals_domain::tenant::is_administrative;
use annals_store::backend::{Area, Backend, Row, sql};
use annals_store::model::Switched;
use annals_store::{Database, Store};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::child::find_program;
use crate::downstream::{Downstream, sequence};
use crate::load::Acknowledged;
use crate::scim::ENTERPRISE;

const PAGE_EVENTS: usize = 1_000;
/// Longest anyone may have to wait for a lane to be looked at again.
const DUE_MS_MAX: i64 = 25 * 60 * 60 * 1_000;

/// Looks at one installation.
#[derive(Debug)]
pub struct Checkers {
    store: Store,
    database: Database,
    raw: Backend,
    nats: Option<async_nats::Client>,
}

/// Every row of a query as text, for comparing and searching.
async fn table(raw: &Backend, area: Area, text: &str, columns: usize) -> Result<Vec<Vec<String>>> {
    let rows = raw.fetch_all(area, sql(text)).await.with_context(|| format!("reading: {text}"))?;
    rows.iter().map(|row| (0..columns).map(|column| as_text(row, column)).collect()).collect()
}

fn as_text(row: &Row, column: usize) -> Result<String> {
    if let Ok(text) = row.opt_text(column) {
        return Ok(text.unwrap_or_else(|| "∅".to_owned()));
    }
    Ok(row.opt_int(column)?.map_or_else(|| "∅".to_owned(), |number| number.to_string()))
}

impl Checkers {
    /// Opens an installation's database beside its processes, and its bus if it has one.
    ///
    /// # Errors
    /// Database or bus are out of reach.
    pub async fn open(store: &Store, database: &Database, nats_url: Option<&str>) -> Result<Checkers> {
        let raw = Backend::connect(database).await.context("opening the tables")?;
        let nats = match nats_url {
            Some(url) => {
                let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
                Some(options.connect(url).await.context("connecting to NATS")?)
            }
            None => None,
        };
        Ok(Checkers { store: store.clone(), database: database.clone(), raw, nats })
    }

    /// Closes what it opened.
    pub async fn close(&self) {
        self.raw.close().await;
    }

    /// Everything below that needs no record from outside.
    ///
    /// # Errors
    /// Names the first thing that does not hold.
    pub async fn all(&self) -> Result<()> {
        self.journal().await?;
        self.read_model().await?;
        self.lanes_can_move().await?;
        self.tenants_are_apart().await?;
        if self.nats.is_some() {
            self.stream().await?;
        }
        Ok(())
    }

    /// Every event of the journal, in order.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn events(&self) -> Result<Vec<Recorded>> {
        let mut events: Vec<Recorded> = Vec::new();
        loop {
            let after = events.last().map_or(0, |event| event.position);
            let page = self.store.read_events(after, PAGE_EVENTS).await.context("reading the journal")?;
            if page.is_empty() {
                return Ok(events);
            }
            events.extend(page);
        }
    }

    /// Positions are 1…n without gaps and time never falls; versions and back references fit; the chain
    /// verifies; state rows, look-ups and live links equal a replay.
    ///
    /// # Errors
    /// Names the first thing that does not hold.
    pub async fn journal(&self) -> Result<()> {
        let events = self.events().await?;
        let mut at = Timestamp(0);
        let mut entities: BTreeMap<(String, String), (i64, Position)> = BTreeMap::new();
        let mut tenants: BTreeMap<String, Position> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for (expected, event) in (1..).zip(&events) {
            ensure!(event.position == expected, "position {expected} is {}", event.position);
            ensure!(event.at >= at, "time falls at position {expected}: {at} to {}", event.at);
            at = event.at;
            ensure!(ids.insert(event.event_id), "event id {} is there twice", event.event_id);
            let entity = (event.tenant.to_string(), event.stream.id.to_string());
            let (version, before) = entities.get(&entity).copied().unwrap_or_default();
            ensure!(event.version == version + 1, "{entity:?}: version {} after {version}", event.version);
            ensure!(event.previous_of_entity == before, "position {expected}: previous of its entity");
            entities.insert(entity, (event.version, expected));
            let before = tenants.insert(event.tenant.to_string(), expected).unwrap_or(0);
            ensure!(event.previous_of_tenant == before, "position {expected}: previous of its tenant");
        }
        let head = self.store.head().await.context("reading the head")?;
        ensure!(
            head.position == events.len() as i64,
            "the head is {}, {} events",
            head.position,
            events.len()
        );
        let verified = self.store.verify().await.context("verifying the journal")?;
        ensure!(verified.findings.is_empty(), "the journal does not verify: {:#?}", verified.findings);
        ensure!(verified.events == head.position, "verify saw {} of {}", verified.events, head.position);
        Ok(())
    }

    /// The live read model holds exactly what a rebuild from the journal makes. The rebuilt one is live
    /// afterwards.
    ///
    /// # Errors
    /// Shows rows that differ, or says that something is parked.
    pub async fn read_model(&self) -> Result<()> {
        let health = self.store.model_health().await.context("the read model's health")?;
        ensure!(health.parked == 0, "{} entities are parked", health.parked);
        ensure!(!health.rebuild_needed, "the read model asks for a rebuild");
        let before = self.model_rows().await?;
        // What was asked for while the other slot was filled is complete in one of them only.
        let indexed = &before["indexed"];
        const TRIES_MAX: usize = 50;
        let mut live = false;
        for _ in 0..TRIES_MAX {
            let mut run = self.store.rebuild_begin().await.context("beginning a rebuild")?;
            while !self.store.rebuild_copy(&mut run).await.context("copying")?.finished {}
            while self.store.rebuild_catch_up(&mut run).await.context("catching up")?.behind > 0 {}
            let switched = loop {
                match self.store.rebuild_compare_and_switch(&mut run).await.context("switching")? {
                    Switched::Compared(_) => {}
                    switched => break switched,
                }
            };
            match switched {
                Switched::Live(_) => {
                    live = true;
                    break;
                }
                Switched::Behind | Switched::Compared(_) => {}
                Switched::Different(reason) => bail!("the rebuilt read model differs: {reason}"),
            }
        }
        ensure!(live, "the rebuild never caught up");
        let after = self.model_rows().await?;
        for (name, rows) in &before {
            let rebuilt = &after[name];
            let has_rows = |row: &&Vec<String>| {
                *name != "attribute" || indexed.contains(&vec![row[0].clone(), row[2].clone()])
            };
            let rows: BTreeSet<_> = rows.iter().filter(has_rows).collect();
            let rebuilt: BTreeSet<_> = rebuilt.iter().filter(has_rows).collect();
            if *name == "indexed" {
                ensure!(rows.is_subset(&rebuilt), "a rebuild lost an index: {rows:?}, then {rebuilt:?}");
                continue;
            }
            let only_live: Vec<_> = rows.difference(&rebuilt).take(5).collect();
            let only_rebuilt: Vec<_> = rebuilt.difference(&rows).take(5).collect();
            ensure!(
                only_live.is_empty() && only_rebuilt.is_empty(),
                "{name} differs from a rebuild: live only {only_live:?}, rebuilt only {only_rebuilt:?}"
            );
        }
        Ok(())
    }

    async fn model_rows(&self) -> Result<BTreeMap<&'static str, BTreeSet<Vec<String>>>> {
        let live = table(&self.raw, Area::Model, "SELECT p.live FROM model.pointer p", 1).await?;
        let slot = live.first().and_then(|row| row.first()).context("the pointer is missing")?.clone();
        let queries = [
            (
                "resource",
                "SELECT m.tenant, m.id, m.resource_type, m.version, m.created, m.modified, m.display, \
                 m.document FROM model.resource_@ m WHERE m.deleted = 0",
                8,
            ),
            (
                "attribute",
                "SELECT a.tenant, a.id, p.name, a.element, a.ordinal, a.value, a.rest \
                 FROM model.attribute_@ a JOIN model.path p ON p.number = a.path",
                7,
            ),
            (
                "indexed",
                "SELECT i.tenant, p.name FROM model.indexed_@ i JOIN model.path p ON p.number = i.path \
                 WHERE i.after IS NULL",
                2,
            ),
            // A deleted end joins the link away; the janitor takes the row itself away in its own time.
            (
                "link",
                "SELECT l.tenant, l.attribute, l.from_id, l.to_id FROM model.link_@ l \
                 WHERE NOT EXISTS (SELECT 1 FROM model.resource_@ d WHERE d.tenant = l.tenant \
                 AND d.id IN (l.from_id, l.to_id) AND d.deleted = 1)",
                4,
            ),
        ];
        let mut all = BTreeMap::new();
        for (name, text, columns) in queries {
            let mut rows = table(&self.raw, Area::Model, &text.replace('@', &slot), columns).await?;
            for row in &mut rows {
                if name == "resource" {
                    // Documents are compared as JSON: the order of members says nothing.
                    let parsed: Option<Value> = serde_json::from_str(&row[7]).ok();
                    row[7] = parsed.map_or_else(|| row[7].clone(), |value| sorted(&value).to_string());
                }
            }
            all.insert(name, rows.into_iter().collect());
        }
        Ok(all)
    }

    /// Every user name and title that was acknowledged is in exactly one event; users, memberships and
    /// deletions are as acknowledged.
    ///
    /// # Errors
    /// Names what was lost or happened twice.
    pub async fn acknowledged(&self, tenant: &TenantId, acknowledged: &Acknowledged) -> Result<()> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut added: BTreeMap<(String, String), usize> = BTreeMap::new();
        for event in self.events().await? {
            if event.tenant != *tenant || is_administrative(&event.stream.resource_type) {
                continue;
            }
            let Body::Open(body) = &event.body else { continue };
            match body {
                Event::Created { document } => {
                    for name in ["userName", "title"] {
                        if let Some(Value::String(text)) = document.0.get(name) {
                            *seen.entry(text.clone()).or_default() += 1;
                        }
                    }
                }
                Event::Changed { changes } => {
                    for change in changes {
                        if let Some(Value::String(text)) = &change.new {
                            *seen.entry(text.clone()).or_default() += 1;
                        }
                    }
                }
                Event::MembersAdded { members } => {
                    for member in members {
                        let pair = (event.stream.id.to_string(), member.to_string());
                        *added.entry(pair).or_default() += 1;
                    }
                }
                _ => {}
            }
        }
        for marker in &acknowledged.markers {
            let times = seen.get(marker).copied().unwrap_or(0);
            ensure!(times == 1, "{marker} was acknowledged and is in {times} events");
        }
        for pair in &acknowledged.members {
            let times = added.get(pair).copied().unwrap_or(0);
            ensure!(times == 1, "member {pair:?} was acknowledged and is in {times} events");
        }
        let mut states = BTreeMap::new();
        for state in self.states(tenant).await? {
            states.insert(state.0.clone(), state);
        }
        for (id, name, title) in &acknowledged.users {
            let Some((_, _, document)) = states.get(id) else { bail!("{name} ({id}) is gone") };
            ensure!(document.get("userName") == Some(&json!(name)), "{id} is not {name}");
            if let Some(title) = title {
                ensure!(document.get("title") == Some(&json!(title)), "{name} has lost {title}");
            }
        }
        for id in &acknowledged.deleted {
            ensure!(!states.contains_key(id), "{id} was deleted and is there");
        }
        Ok(())
    }

    /// The tenant's live resources as the journal's state rows have them: id, type, content.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn states(&self, tenant: &TenantId) -> Result<Vec<(String, String, Map<String, Value>)>> {
        let select = "SELECT s.id, s.resource_type FROM journal.state s \
             WHERE s.tenant = '@' AND s.deleted = 0 ORDER BY s.id"
            .replace('@', tenant.as_str());
        let rows = table(&self.raw, Area::Journal, &select, 2).await?;
        let ids: Vec<_> = rows
            .iter()
            .filter(|row| !is_administrative(&row[1]))
            .map(|row| annals_domain::ids::ResourceId::from_text(&row[0]))
            .collect();
        let mut states = Vec::new();
        for page in ids.chunks(PAGE_EVENTS) {
            for state in self.store.states(tenant, page).await.context("reading state rows")? {
                if let Some(document) = state.document() {
                    states.push((state.id.to_string(), state.resource_type.clone(), document.0.clone()));
                }
            }
        }
        Ok(states)
    }

    /// Whether the planner has seen every event and no lane has anything to do.
    ///
    /// # Errors
    /// Says what is left.
    pub async fn lanes_are_done(&self) -> Result<()> {
        let head = self.store.head().await.context("reading the head")?.position;
        let planner = table(&self.raw, Area::Lanes, "SELECT p.position FROM lanes.planner p", 1).await?;
        let at: i64 = planner.first().and_then(|row| row[0].parse().ok()).context("the planner's row")?;
        ensure!(at >= head, "the planner is at {at} of {head}");
        let sweeps = table(&self.raw, Area::Lanes, "SELECT s.app, s.mode FROM lanes.sweep s", 2).await?;
        ensure!(sweeps.is_empty(), "sweeps are at work: {sweeps:?}");
        let busy = "SELECT l.app, l.id, l.resource_type, l.state, l.applied_version, l.wanted_version, \
             l.attempts, l.due_at, l.last_error FROM lanes.lane l WHERE l.state <> 'idle' LIMIT 5";
        let busy = table(&self.raw, Area::Lanes, busy, 9).await?;
        ensure!(busy.is_empty(), "lanes are not done: {busy:?}");
        Ok(())
    }

    /// Whether the janitor has finished every delete.
    ///
    /// # Errors
    /// Says what is left.
    pub async fn nothing_is_pending(&self) -> Result<()> {
        let select = "SELECT p.tenant, p.id FROM journal.pending_removal p LIMIT 5";
        let pending = table(&self.raw, Area::Journal, select, 2).await?;
        ensure!(pending.is_empty(), "deletes are not finished: {pending:?}");
        Ok(())
    }

    /// No lane waits without a time at which someone looks at it, and that time is not far.
    ///
    /// # Errors
    /// Names such lanes.
    pub async fn lanes_can_move(&self) -> Result<()> {
        let select = format!(
            "SELECT l.app, l.id, l.state, l.due_at FROM lanes.lane l WHERE l.state <> 'idle' \
             AND l.state <> 'quarantined' AND (l.due_at IS NULL OR l.due_at > {}) LIMIT 5",
            self.store.now().0 + DUE_MS_MAX
        );
        let stuck = table(&self.raw, Area::Lanes, &select, 4).await?;
        ensure!(stuck.is_empty(), "lanes wait without a wake-up: {stuck:?}");
        let targets = table(
            &self.raw,
            Area::Lanes,
            "SELECT t.app, t.open_until FROM lanes.target t WHERE t.failures > 0 AND t.open_until IS NULL",
            2,
        )
        .await?;
        ensure!(targets.is_empty(), "breakers stay open: {targets:?}");
        Ok(())
    }

    /// Links and lanes never lead from one tenant to another, and no row belongs to a tenant that the
    /// journal does not have.
    ///
    /// # Errors
    /// Names such rows.
    pub async fn tenants_are_apart(&self) -> Result<()> {
        let heads = table(&self.raw, Area::Journal, "SELECT h.tenant FROM journal.tenant_head h", 1).await?;
        let known: BTreeSet<String> = heads.into_iter().flatten().collect();
        let owned = "SELECT s.tenant, s.id FROM journal.state s";
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        for row in table(&self.raw, Area::Journal, owned, 2).await? {
            let [tenant, id] = &row[..] else { continue };
            // Administrative ids are slugs and repeat; those of resources are unique in the world.
            if !id.contains('.')
                && let Some(other) = owners.insert(id.clone(), tenant.clone())
            {
                bail!("{id} belongs to {tenant} and to {other}");
            }
        }
        let live = table(&self.raw, Area::Model, "SELECT p.live FROM model.pointer p", 1).await?;
        let slot = live.first().and_then(|row| row.first()).context("the pointer is missing")?.clone();
        let tables = [
            (Area::Journal, "journal.event".to_owned(), "id"),
            (Area::Journal, "journal.link".to_owned(), "from_id"),
            (Area::Journal, "journal.link".to_owned(), "to_id"),
            (Area::Journal, "journal.lookup".to_owned(), "owner"),
            (Area::Journal, "journal.secret".to_owned(), "id"),
            (Area::Model, format!("model.resource_{slot}"), "id"),
            (Area::Model, format!("model.attribute_{slot}"), "id"),
            (Area::Model, format!("model.link_{slot}"), "to_id"),
            (Area::Lanes, "lanes.lane".to_owned(), "id"),
        ];
        for (area, name, column) in tables {
            let select = format!("SELECT DISTINCT x.tenant, x.{column} FROM {name} x");
            for row in table(&self.raw, area, &select, 2).await? {
                let (tenant, id) = (&row[0], &row[1]);
                ensure!(known.contains(tenant), "{name} has a row of the unknown tenant {tenant}");
                let owner = owners.get(id);
                ensure!(owner.is_none_or(|owner| owner == tenant), "{name}: {tenant} has {owner:?}'s {id}");
            }
        }
        Ok(())
    }

    /// Whether the stream reaches to the end of the journal.
    ///
    /// # Errors
    /// Says how far it is.
    pub async fn stream_is_complete(&self) -> Result<()> {
        let (mut stream, offset) = self.open_stream().await?;
        let last = stream.info().await.context("reading the stream")?.state.last_sequence as i64;
        let head = self.store.head().await.context("reading the head")?.position;
        ensure!(last + offset == head, "the stream is at {} of {head}", last + offset);
        Ok(())
    }

    /// Each message of the stream equals the event at its position: nothing missing, double or changed.
    ///
    /// # Errors
    /// Names the first message that does not.
    pub async fn stream(&self) -> Result<()> {
        self.stream_is_complete().await?;
        let (mut stream, offset) = self.open_stream().await?;
        let state = stream.info().await.context("reading the stream")?.state.clone();
        let subjects = stream.cached_info().config.subjects.clone();
        let prefix = subjects.first().and_then(|s| s.strip_suffix(".>")).context("the stream's subjects")?;
        let first = state.first_sequence;
        if state.messages == 0 {
            return Ok(());
        }
        ensure!(
            state.messages == (state.last_sequence + 1).saturating_sub(first),
            "the stream has gaps: {} messages from {first} to {}",
            state.messages,
            state.last_sequence
        );
        let events: BTreeMap<Position, Recorded> =
            self.events().await?.into_iter().map(|event| (event.position, event)).collect();
        for sequence in first..=state.last_sequence {
            let stored = stream.get_raw_message(sequence).await.context("reading a message")?;
            let position = sequence as i64 + offset;
            let event =
                events.get(&position).with_context(|| format!("position {position} is only in NATS"))?;
            let header = |name: &str| stored.headers.get(name).map(|value| value.as_str().to_owned());
            ensure!(
                header(message::header::SEQUENCE).and_then(|text| text.parse().ok()) == Some(position)
                    && header(message::header::ID) == Some(event.event_id.to_string()),
                "sequence {sequence} is not position {position}: {:?}",
                stored.headers
            );
            let subject = message::subject(prefix, &event.tenant, &event.stream.resource_type, &event.kind);
            ensure!(stored.subject.as_str() == subject, "position {position} is on {}", stored.subject);
            let decoded = message::decode(prefix, &stored.subject, &stored.headers, &stored.payload)
                .with_context(|| format!("reading the message of position {position}"))?;
            let opened = message::open(&self.store, vec![decoded]).await.context("opening a message")?;
            // A person may have been erased since the message was published.
            let same = opened.first().is_some_and(|published| {
                published == event || (event.body == Body::Erased && published.event_id == event.event_id)
            });
            ensure!(same, "position {position} differs: {opened:?} is not {event:?}");
        }
        Ok(())
    }

    async fn open_stream(&self) -> Result<(async_nats::jetstream::stream::Stream, i64)> {
        let client = self.nats.clone().context("this installation has no bus")?;
        let epoch = self.store.bus_epoch().await.context("reading the bus epoch")?;
        let epoch = epoch.context("nothing was published yet")?;
        let stream = async_nats::jetstream::new(client).get_stream(&epoch.stream).await;
        let stream = stream.with_context(|| format!("opening the stream {}", epoch.stream))?;
        Ok((stream, epoch.offset))
    }

    /// Deletes the stream behind everyone's back.
    ///
    /// # Errors
    /// It is not there.
    pub async fn delete_stream(&self) -> Result<()> {
        let client = self.nats.clone().context("this installation has no bus")?;
        let epoch = self.store.bus_epoch().await?.context("nothing was published yet")?;
        let context = async_nats::jetstream::new(client);
        context.delete_stream(&epoch.stream).await.context("deleting the stream")?;
        Ok(())
    }

    /// A webhook that the tenant had before its first resource got every event of the tenant's
    /// resources once, each entity's in order, and nothing else.
    ///
    /// # Errors
    /// Names what is missing or too much.
    pub async fn webhook(&self, tenant: &TenantId, downstream: &Downstream) -> Result<()> {
        downstream.check_events(false)?;
        self.webhook_is_complete(tenant, downstream).await
    }

    /// Likewise where workers were killed: an event may come again, under the same id and unchanged.
    ///
    /// # Errors
    /// Names what is missing, too much, or out of order.
    pub async fn webhook_with_repeats(&self, tenant: &TenantId, downstream: &Downstream) -> Result<()> {
        downstream.check_events(true)?;
        self.webhook_is_complete(tenant, downstream).await
    }

    async fn webhook_is_complete(&self, tenant: &TenantId, downstream: &Downstream) -> Result<()> {
        let mut wanted: BTreeSet<i64> = BTreeSet::new();
        for event in self.events().await? {
            if event.tenant == *tenant && !is_administrative(&event.stream.resource_type) {
                wanted.insert(event.position);
            }
        }
        let got: BTreeSet<i64> =
            downstream.received().iter().filter_map(|received| sequence(&received.event)).collect();
        let missing: Vec<_> = wanted.difference(&got).take(5).collect();
        let extra: Vec<_> = got.difference(&wanted).take(5).collect();
        ensure!(
            missing.is_empty() && extra.is_empty(),
            "{} of {} events arrived; missing {missing:?}, not the tenant's {extra:?}",
            got.len(),
            wanted.len()
        );
        Ok(())
    }

    /// A SCIM application holds the tenant's users and groups: same names, same activity, same members,
    /// nothing double.
    ///
    /// # Errors
    /// Names what differs.
    pub async fn converged(
        &self,
        tenant: &TenantId,
        users: &BTreeMap<String, Map<String, Value>>,
        groups: &BTreeMap<String, Map<String, Value>>,
    ) -> Result<()> {
        let states = self.states(tenant).await?;
        let name_of = |document: &Map<String, Value>, key: &str| {
            document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let mut here: BTreeMap<String, Value> = BTreeMap::new();
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for (id, kind, document) in &states {
            let key = if kind == "Group" { "displayName" } else { "userName" };
            names.insert(id.clone(), name_of(document, key));
        }
        for (_, _, document) in states.iter().filter(|(_, kind, _)| kind == "User") {
            let manager = manager_of(document).and_then(|id| names.get(id).cloned());
            here.insert(name_of(document, "userName"), compared(document, manager));
        }
        let mut there: BTreeMap<String, Value> = BTreeMap::new();
        for user in users.values() {
            let name = name_of(user, "userName");
            let manager = manager_of(user).and_then(|id| users.get(id)).map(|user| name_of(user, "userName"));
            let user = compared(user, manager);
            ensure!(there.insert(name.clone(), user).is_none(), "{name} is there twice");
        }
        for name in here.keys().chain(there.keys()) {
            let (ours, theirs) = (here.get(name), there.get(name));
            ensure!(ours == theirs, "user {name}: ours {ours:?}, theirs {theirs:?}");
        }
        let there_name = |id: &str| {
            let user = users.get(id).map(|user| name_of(user, "userName"));
            user.or_else(|| groups.get(id).map(|group| name_of(group, "displayName")))
        };
        let mut our_groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (id, kind, document) in &states {
            if kind != "Group" {
                continue;
            }
            let group = annals_domain::ids::ResourceId::from_text(id);
            let mut members = BTreeSet::new();
            let mut after = None;
            loop {
                let page = self.store.members(tenant, &group, after.as_ref(), PAGE_EVENTS).await?;
                let Some(last) = page.last() else { break };
                after = Some(last.id.clone());
                for member in &page {
                    members.insert(names.get(member.id.as_str()).cloned().unwrap_or_default());
                }
            }
            our_groups.insert(name_of(document, "displayName"), members);
        }
        let mut their_groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for group in groups.values() {
            let members = group.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
            let ids: Vec<&str> = members.iter().filter_map(|member| member["value"].as_str()).collect();
            let set: BTreeSet<String> =
                ids.iter().map(|id| there_name(id).unwrap_or_else(|| format!("?{id}"))).collect();
            let name = name_of(group, "displayName");
            ensure!(set.len() == ids.len(), "{name} has double members");
            ensure!(their_groups.insert(name.clone(), set).is_none(), "group {name} is there twice");
        }
        for name in our_groups.keys().chain(their_groups.keys()) {
            let (ours, theirs) = (our_groups.get(name), their_groups.get(name));
            ensure!(ours == theirs, "group {name}: ours {ours:?}, theirs {theirs:?}");
        }
        Ok(())
    }

    /// Neither set of tables of the read model holds one of these values of erased persons.
    ///
    /// # Errors
    /// Names the value and where it is.
    pub async fn forgotten(&self, tenant: &TenantId, values: &[&str]) -> Result<()> {
        for slot in ["a", "b"] {
            let queries = [
                format!("SELECT m.id, m.document FROM model.resource_{slot} m WHERE m.tenant = '{tenant}'"),
                format!("SELECT m.id, m.value FROM model.attribute_{slot} m WHERE m.tenant = '{tenant}'"),
            ];
            for select in queries {
                for row in table(&self.raw, Area::Model, &select, 2).await? {
                    let left = values.iter().find(|value| row[1].contains(**value));
                    ensure!(left.is_none(), "slot {slot} still has {left:?} of {}", row[0]);
                }
            }
        }
        Ok(())
    }

    /// A dump of the journal's database holds none of these personal values, in any encoding a dump has.
    /// Short texts hit by chance: give values of eight characters or more.
    ///
    /// # Errors
    /// Names the values found, or the dump fails.
    pub async fn dump_is_sealed(&self, personal: &[&str]) -> Result<()> {
        let mut dumps: Vec<(String, Vec<u8>)> = Vec::new();
        match &self.database {
            Database::Sqlite { dir } => {
                for area in ["journal", "keys"] {
                    for end in ["db", "db-wal"] {
                        let file = dir.join(format!("{area}.{end}"));
                        if file.exists() {
                            dumps.push((file.display().to_string(), std::fs::read(&file)?));
                        }
                    }
                }
            }
            Database::Postgres { url, .. } => {
                let program = pg_dump().context("pg_dump is not installed: run ./test")?;
                let url = url.clone();
                let dump = tokio::task::spawn_blocking(move || {
                    Command::new(program)
                        .args(["--schema=journal", "--schema=keys", "--inserts", &url])
                        .output()
                });
                let dump = dump.await.context("the runtime")?.context("running pg_dump")?;
                ensure!(dump.status.success(), "pg_dump: {}", String::from_utf8_lossy(&dump.stderr));
                dumps.push(("pg_dump".to_owned(), dump.stdout));
            }
        }
        ensure!(dumps.iter().any(|(_, bytes)| bytes.len() > 1_000), "the dump is empty");
        for value in personal {
            ensure!(value.len() >= 8, "{value} is too short to search for");
            let lower = value.to_lowercase();
            for text in [value.as_bytes(), lower.as_bytes()] {
                let encodings = [text.to_vec(), hex::encode(text).into_bytes()];
                for (place, bytes) in &dumps {
                    let found = encodings.iter().any(|needle| contains(bytes, needle));
                    ensure!(!found, "{place} holds {value:?}");
                }
            }
        }
        Ok(())
    }

    /// Everything that an installation leaves anywhere, by place: every file below `folders` (data, write-ahead
    /// logs, logs), a dump of the whole database, every message of the stream with its headers.
    ///
    /// # Errors
    /// Something cannot be read.
    pub async fn everything_left(&self, folders: &[&Path]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut left = Vec::new();
        let mut open: Vec<PathBuf> = folders.iter().map(|folder| folder.to_path_buf()).collect();
        while let Some(path) = open.pop() {
            if path.is_dir() {
                let entries = std::fs::read_dir(&path).with_context(|| path.display().to_string())?;
                open.extend(entries.flatten().map(|entry| entry.path()));
            } else if let Ok(bytes) = std::fs::read(&path) {
                left.push((path.display().to_string(), bytes));
            }
        }
        if let Database::Postgres { url, .. } = &self.database {
            let program = pg_dump().context("pg_dump is not installed: run ./test")?;
            let url = url.clone();
            let dump = move || Command::new(program).args(["--inserts", &url]).output();
            let dump = tokio::task::spawn_blocking(dump).await.context("the runtime")??;
            ensure!(dump.status.success(), "pg_dump: {}", String::from_utf8_lossy(&dump.stderr));
            // It writes bytes in hexadecimal.
            left.push(("pg_dump".to_owned(), dump.stdout));
        }
        if self.nats.is_some() {
            let (mut stream, _) = self.open_stream().await?;
            let state = stream.info().await.context("reading the stream")?.state.clone();
            ensure!(state.messages > 0, "the stream is empty");
            for sequence in state.first_sequence..=state.last_sequence {
                let message = stream.get_raw_message(sequence).await.context("reading a message")?;
                let mut bytes = format!("{} {:?}\n", message.subject, message.headers).into_bytes();
                bytes.extend_from_slice(&message.payload);
                left.push((format!("message {sequence}"), bytes));
            }
        }
        Ok(left)
    }
}

/// No place holds one of these values, in any form it could have been written down: as it is, in capital or
/// small letters, escaped for a URI, in hexadecimal or base64, or as a list of numbers.
///
/// # Errors
/// Names the place and the number of the value, not the value.
pub fn hold_none_of(places: &[(String, Vec<u8>)], secrets: &[&str]) -> Result<()> {
    use base64::Engine as _;
    for (number, secret) in secrets.iter().enumerate() {
        ensure!(secret.len() >= 8, "value {number} is too short to search for");
        let bytes = secret.as_bytes();
        let numbers: Vec<String> = bytes.iter().map(ToString::to_string).collect();
        let base64 = base64::engine::general_purpose::STANDARD_NO_PAD;
        // In the middle of other bytes base64 begins at one of three places; what depends on the neighbours
        // is left out.
        let shifted = (0..3).map(|shift: usize| {
            let text = base64.encode([vec![0; shift], bytes.to_vec()].concat());
            let (from, to) = (usize::from(shift > 0) * 4, text.len().saturating_sub(4));
            text.get(from..to).unwrap_or_default().to_owned()
        });
        let forms = [
            (*secret).to_owned(),
            secret.to_lowercase(),
            secret.to_uppercase(),
            crate::scim::encode(secret),
            hex::encode(bytes),
            hex::encode_upper(bytes),
            numbers.join(", "),
            numbers.join(","),
        ];
        for form in forms.into_iter().chain(shifted).filter(|form| form.len() >= 8) {
            for (place, bytes) in places {
                ensure!(
                    !contains(bytes, form.as_bytes()),
                    "{place} holds value {number} as a text of {} bytes",
                    form.len()
                );
            }
        }
    }
    Ok(())
}

fn pg_dump() -> Option<PathBuf> {
    let folders = ["/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin"];
    find_program("pg_dump", &folders)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return false };
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| byte == first) {
        let at = from + at;
        if haystack[at..].starts_with(needle) {
            return true;
        }
        from = at + 1;
    }
    false
}

fn manager_of(user: &Map<String, Value>) -> Option<&str> {
    user.get(ENTERPRISE)?.get("manager")?.get("value")?.as_str()
}

/// What of a user an application must have as we do.
fn compared(user: &Map<String, Value>, manager: Option<String>) -> Value {
    let enterprise = user.get(ENTERPRISE).cloned().unwrap_or_default();
    let pick = |name: &str| user.get(name).cloned().unwrap_or_default();
    let name = user.get("name").and_then(Value::as_object).cloned().unwrap_or_default();
    let emails = user.get("emails").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut emails: Vec<String> =
        emails.iter().filter_map(|email| email["value"].as_str().map(str::to_owned)).collect();
    emails.sort();
    json!({
        "active": user.get("active").and_then(Value::as_bool).unwrap_or(true),
        "displayName": pick("displayName"),
        "title": pick("title"),
        "givenName": name.get("givenName"),
        "familyName": name.get("familyName"),
        "emails": emails,
        "department": enterprise["department"],
        "manager": manager,
    })
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<&String, Value> = map.iter().map(|(k, v)| (k, sorted(v))).collect();
            ordered.into_iter().map(|(k, v)| (k.clone(), v)).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.iter().map(sorted).collect::<Vec<_>>().into(),
        other => other.clone(),
    }
}

//! Reading the journal: events in order, state rows, look-ups and links. All of it is linearizable: it
//! is written in the same transaction as the events.

use std::collections::HashMap;
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::event::{Actor, Body, Cause, Event, EventError, Recorded, StreamId};
use annals_domain::ids::{Position, ResourceId, TenantId, Version};
use annals_domain::scim::resource::Document;
use annals_domain::upcast::upcast;
use annals_domain::view::LookupKind;
use serde_json::Value;
use uuid::Uuid;

use super::append::tenant_id;
use super::lookup_kind;
use crate::Store;
use crate::backend::{Area, Col, Row, Rows, Sql, sql};
use crate::error::{Result, StoreError};
use crate::keys::Key;
use crate::wake::Topic;

/// Most events one read returns.
pub const READ_EVENTS_MAX: usize = 5_000;
/// How deep `groups` follows groups in groups.
pub const GROUP_DEPTH_MAX: i64 = 10;
/// Most groups reported for one member.
pub const GROUPS_PER_READ_MAX: usize = 10_000;

/// The end of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Position of the last event, 0 if there is none.
    pub position: Position,
    /// Its time.
    pub at: Timestamp,
    /// The journal's epoch: raised when a restored journal is recovered (D5).
    pub epoch: i64,
    /// Why writes are stopped, if they are.
    pub halted: Option<String>,
}

/// An event as stored: the payload may be sealed.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Place in the journal.
    pub position: Position,
    /// Unique id.
    pub event_id: Uuid,
    /// The commit it came with.
    pub commit_id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The entity.
    pub stream: StreamId,
    /// The entity's version after it.
    pub version: Version,
    /// `user.created`, …
    pub kind: String,
    /// Version of the payload's shape.
    pub schema_version: u32,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// Why.
    pub cause: Cause,
    /// Position of the entity's previous event.
    pub previous_of_entity: Position,
    /// Position of the tenant's previous event.
    pub previous_of_tenant: Position,
    /// The key that seals the payload; none = it is readable JSON.
    pub key_id: Option<String>,
    /// The payload.
    pub payload: Vec<u8>,
}

/// The content of a state row.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Readable.
    Open(Document),
    /// A tombstone, or the person was erased.
    Erased,
}

/// The present state of an entity.
#[derive(Clone, Debug, PartialEq)]
pub struct StateRow {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its id.
    pub id: ResourceId,
    /// Its type.
    pub resource_type: String,
    /// How many events it has had.
    pub version: Version,
    /// Time of its first event.
    pub created: Timestamp,
    /// Time of its last event.
    pub modified: Timestamp,
    /// Position of its last event.
    pub position: Position,
    /// Its content.
    pub content: Content,
    /// Deleted: only the tombstone is left.
    pub deleted: bool,
    pub(crate) key_id: Option<String>,
}

impl StateRow {
    /// The content of an entity that exists.
    pub fn document(&self) -> Option<&Document> {
        match &self.content {
            Content::Open(document) if !self.deleted => Some(document),
            _ => None,
        }
    }
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Its id.
    pub id: ResourceId,
    /// `User`, `Group`, …; empty if it does not exist and the tenant allows that.
    pub resource_type: String,
}

/// A group that has a member, directly or through other groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    /// The member asked about.
    pub member: ResourceId,
    /// The group.
    pub group: ResourceId,
    /// The group's `displayName`.
    pub display: Option<String>,
    /// Whether the member is the group's own, and not a nested group's.
    pub direct: bool,
}

pub(crate) const EVENT_COLUMNS: &str = "e.position, e.event_id, e.commit_id, e.tenant, e.resource_type, e.id, \
     e.version, e.kind, e.schema_version, e.at, e.actor, e.cause, e.previous_of_entity, \
     e.previous_of_tenant, e.key_id, e.payload";

/// The columns of a state row `s`, in the order [`Store::open_state_rows`] reads them.
pub(crate) const STATE_COLUMNS: &str = "s.tenant, s.id, s.resource_type, s.version, s.created, s.modified, \
     s.position, s.key_id, s.document, s.deleted";

/// Tenant, id and position of the events that created the entities of `{rows}`, which has tenant and id.
pub(crate) const ORIGINS: &str = "SELECT e.tenant, e.id, e.position FROM {rows} \
     CROSS JOIN journal.event e WHERE e.tenant = r.tenant AND e.id = r.id AND e.version = 1";

/// Who has a value. In the order of the index of values: in that of owners SQLite would read all look-ups of
/// the tenant by the primary key, so as not to sort.
const OWNERS: &str = "SELECT l.owner FROM journal.lookup l \
     WHERE l.tenant = $1 AND l.kind = $2 AND l.value = $3 ORDER BY l.scope LIMIT $4";

/// What an event's seal is bound to.
pub(crate) fn event_aad(tenant: &TenantId, id: &ResourceId, event_id: &str, kind: &str) -> String {
    format!("event|{tenant}|{id}|{event_id}|{kind}")
}

/// What a state document's seal is bound to.
pub(crate) fn state_aad(tenant: &TenantId, id: &ResourceId) -> String {
    format!("state|{tenant}|{id}")
}

/// What a secret's seal is bound to.
pub(crate) fn secret_aad(tenant: &TenantId, id: &ResourceId, name: &str) -> String {
    format!("secret|{tenant}|{id}|{name}")
}

pub(crate) fn stored_event(row: &Row) -> Result<StoredEvent> {
    let position = row.int(0)?;
    let corrupt = |what: &str, e: &dyn std::fmt::Display| {
        StoreError::corrupt(format!("{what} of position {position}"), e)
    };
    let uuid = |text: String, what: &str| Uuid::parse_str(&text).map_err(|e| corrupt(what, &e));
    Ok(StoredEvent {
        position,
        event_id: uuid(row.text(1)?, "the event id")?,
        commit_id: uuid(row.text(2)?, "the commit id")?,
        tenant: tenant_id(&row.text(3)?)?,
        stream: StreamId { resource_type: row.text(4)?, id: ResourceId::from_text(&row.text(5)?) },
        version: row.int(6)?,
        kind: row.text(7)?,
        schema_version: u32::try_from(row.int(8)?).map_err(|e| corrupt("the schema version", &e))?,
        at: Timestamp(row.int(9)?),
        actor: serde_json::from_str(&row.text(10)?).map_err(|e| corrupt("the actor", &e))?,
        cause: serde_json::from_str(&row.text(11)?).map_err(|e| corrupt("the cause", &e))?,
        previous_of_entity: row.int(12)?,
        previous_of_tenant: row.int(13)?,
        key_id: row.opt_text(14)?,
        payload: row.bytes(15)?,
    })
}

/// Opens one event with its key (`None`: destroyed).
fn open_event(stored: StoredEvent, key: Option<&Option<Key>>) -> Result<Recorded> {
    let body = match (&stored.key_id, key) {
        (Some(_), Some(None)) => Body::Erased,
        (Some(id), None) => return Err(StoreError::KeyMissing { key: id.clone() }),
        (Some(_), Some(Some(key))) => {
            let event_id = stored.event_id.hyphenated().to_string();
            let aad = event_aad(&stored.tenant, &stored.stream.id, &event_id, &stored.kind);
            Body::Open(read_payload(&stored, &key.open(&aad, &stored.payload)?)?)
        }
        (None, _) => Body::Open(read_payload(&stored, &stored.payload)?),
    };
    Ok(Recorded {
        position: stored.position,
        event_id: stored.event_id,
        commit_id: stored.commit_id,
        tenant: stored.tenant,
        stream: stored.stream,
        version: stored.version,
        kind: stored.kind,
        schema_version: stored.schema_version,
        at: stored.at,
        actor: stored.actor,
        cause: stored.cause,
        previous_of_entity: stored.previous_of_entity,
        previous_of_tenant: stored.previous_of_tenant,
        body,
    })
}

fn read_payload(stored: &StoredEvent, bytes: &[u8]) -> Result<Event> {
    let position = stored.position;
    let payload: Value = serde_json::from_slice(bytes)
        .map_err(|_| StoreError::corrupt(format!("the payload of position {position}"), "it is not JSON"))?;
    let payload = upcast(&stored.kind, stored.schema_version, payload)
        .map_err(|e| StoreError::Upgrade { position, reason: e.to_string() })?;
    Event::from_payload(&stored.kind, payload).map_err(|e| match e {
        EventError::UnknownKind(_) => StoreError::Upgrade { position, reason: e.to_string() },
        EventError::Payload { .. } => StoreError::corrupt(format!("position {position}"), e),
    })
}

impl Store {
    /// The end of the journal.
    pub async fn head(&self) -> Result<Head> {
        let select = sql("SELECT c.position, c.at, m.epoch, m.halted \
             FROM journal.counter c CROSS JOIN journal.meta m WHERE c.id = 1 AND m.id = 1");
        let row = self.backend().fetch_optional(Area::Journal, select).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("the counter row", "it is missing"))?;
        Ok(Head {
            position: row.int(0)?,
            at: Timestamp(row.int(1)?),
            epoch: row.int(2)?,
            halted: row.opt_text(3)?,
        })
    }

    /// Position of the tenant's last event, 0 if it has none.
    pub async fn tenant_position(&self, tenant: &TenantId) -> Result<Position> {
        let select = sql("SELECT h.position FROM journal.tenant_head h WHERE h.tenant = $1").bind(tenant);
        let row = self.backend().fetch_optional(Area::Journal, select).await?;
        row.map_or(Ok(0), |row| row.int(0))
    }

    /// Stops writes until an operator recovers the journal (D5).
    pub async fn halt(&self, reason: &str) -> Result<()> {
        tracing::error!(reason, "writes are stopped");
        let update = sql("UPDATE journal.meta SET halted = $1 WHERE id = 1 AND halted IS NULL").bind(reason);
        self.backend().execute(Area::Journal, update).await.map(drop)
    }

    /// The events after a position, opened and upcast, in order and without gaps; at most `max` and
    /// [`READ_EVENTS_MAX`].
    pub async fn read_events(&self, after: Position, max: usize) -> Result<Vec<Recorded>> {
        let stored = self.read_stored(after, max).await?;
        self.open_events(stored).await
    }

    /// The events after a position as stored, in order and without gaps.
    pub async fn read_stored(&self, after: Position, max: usize) -> Result<Vec<StoredEvent>> {
        let select = sql(format!(
            "SELECT {EVENT_COLUMNS} FROM journal.event e WHERE e.position > $1 ORDER BY e.position LIMIT $2"
        ))
        .bind(after)
        .bind(max.min(READ_EVENTS_MAX));
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        let events = rows.iter().map(stored_event).collect::<Result<Vec<_>>>()?;
        for (expected, event) in (after + 1..).zip(&events) {
            if event.position != expected {
                return Err(StoreError::corrupt(format!("position {expected}"), "it is missing"));
            }
        }
        Ok(events)
    }

    /// The last position written before a moment; 0 if there is none. A search by halves, as positions
    /// and times rise together; where a clock was set back, near it.
    pub async fn last_position_before(&self, at: Timestamp) -> Result<Position> {
        let (mut before, mut not_before) = (0, self.head().await?.position + 1);
        while not_before - before > 1 {
            let middle = before + (not_before - before) / 2;
            let select = sql("SELECT at FROM journal.event WHERE position = $1").bind(middle);
            let row = self.backend().fetch_optional(Area::Journal, select).await?;
            let row =
                row.ok_or_else(|| StoreError::corrupt(format!("position {middle}"), "it is missing"))?;
            if row.int(0)? < at.0 {
                before = middle;
            } else {
                not_before = middle;
            }
        }
        Ok(before)
    }

    /// The events of one entity after a version, in order.
    pub async fn read_stream(
        &self,
        tenant: &TenantId,
        id: &ResourceId,
        after: Version,
        max: usize,
    ) -> Result<Vec<Recorded>> {
        let select = sql(format!(
            "SELECT {EVENT_COLUMNS} FROM journal.event e \
             WHERE e.tenant = $1 AND e.id = $2 AND e.version > $3 ORDER BY e.version LIMIT $4"
        ))
        .bind(tenant)
        .bind(id)
        .bind(after)
        .bind(max.min(READ_EVENTS_MAX));
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        let stored = rows.iter().map(stored_event).collect::<Result<Vec<_>>>()?;
        self.open_events(stored).await
    }

    /// Opens events: sealed payloads with their keys, erased ones as such.
    pub async fn open_events(&self, stored: Vec<StoredEvent>) -> Result<Vec<Recorded>> {
        let wanted = stored.iter().filter_map(|event| event.key_id.as_deref().map(|id| (&event.tenant, id)));
        let keys = self.keys().subjects(wanted).await?;
        stored
            .into_iter()
            .map(|event| {
                let key = event.key_id.as_deref().and_then(|id| keys.get(id));
                open_event(event, key)
            })
            .collect()
    }

    /// Waits until the journal goes beyond a position, at most `timeout`; returns where it ends.
    pub async fn wait_journal(&self, after: Position, timeout: Duration) -> Result<Position> {
        let mut woken = self.wakes().subscribe(Topic::Journal);
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            woken.mark_unchanged();
            let select = sql("SELECT c.position FROM journal.counter c WHERE c.id = 1");
            let row = self.backend().fetch_optional(Area::Journal, select).await?;
            let position = row.map_or(Ok(0), |row| row.int(0))?;
            if position > after || tokio::time::Instant::now() >= deadline {
                return Ok(position);
            }
            let next = (tokio::time::Instant::now() + self.limits().poll_interval).min(deadline);
            tokio::select! {
                _ = woken.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// The state of an entity, tombstones included.
    pub async fn state(&self, tenant: &TenantId, id: &ResourceId) -> Result<Option<StateRow>> {
        if id.as_str().len() > ResourceId::LEN_BYTES_MAX || id.as_str().contains('\0') {
            return Ok(None);
        }
        let select =
            sql(format!("SELECT {STATE_COLUMNS} FROM journal.state s WHERE s.tenant = $1 AND s.id = $2"))
                .bind(tenant)
                .bind(id);
        Ok(self.open_state(select).await?.into_iter().next())
    }

    /// The states of several entities, tombstones included, in no particular order.
    pub async fn states(&self, tenant: &TenantId, ids: &[ResourceId]) -> Result<Vec<StateRow>> {
        let mut rows = Rows::new(&[("id", Col::Text)]);
        for id in ids.iter().filter(|id| !id.as_str().contains('\0')) {
            rows.push(vec![id.into()]);
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let select = sql(format!(
            "SELECT {STATE_COLUMNS} FROM {{rows}} CROSS JOIN journal.state s WHERE s.tenant = $1 AND s.id = r.id"
        ))
        .bind(tenant)
        .rows(rows);
        self.open_state(select).await
    }

    /// The positions of the events that created these entities: the order of lists without `sortBy`.
    pub async fn origins(
        &self,
        tenant: &TenantId,
        ids: &[ResourceId],
    ) -> Result<HashMap<ResourceId, Position>> {
        let mut rows = Rows::new(&[("tenant", Col::Text), ("id", Col::Text)]);
        for id in ids.iter().filter(|id| !id.as_str().contains('\0')) {
            rows.push(vec![tenant.into(), id.into()]);
        }
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let found = self.backend().fetch_all(Area::Journal, sql(ORIGINS).rows(rows)).await?;
        found.iter().map(|row| Ok((ResourceId::from_text(&row.text(1)?), row.int(2)?))).collect()
    }

    async fn open_state(&self, select: Sql) -> Result<Vec<StateRow>> {
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        self.open_state_rows(rows).await
    }

    /// Opens rows of [`STATE_COLUMNS`].
    pub(crate) async fn open_state_rows(&self, rows: Vec<Row>) -> Result<Vec<StateRow>> {
        let mut states = Vec::with_capacity(rows.len());
        for row in &rows {
            let state = StateRow {
                tenant: tenant_id(&row.text(0)?)?,
                id: ResourceId::from_text(&row.text(1)?),
                resource_type: row.text(2)?,
                version: row.int(3)?,
                created: Timestamp(row.int(4)?),
                modified: Timestamp(row.int(5)?),
                position: row.int(6)?,
                key_id: row.opt_text(7)?,
                content: Content::Erased,
                deleted: row.flag(9)?,
            };
            states.push((state, row.opt_bytes(8)?));
        }
        let wanted = states
            .iter()
            .filter(|(_, document)| document.is_some())
            .filter_map(|(state, _)| state.key_id.as_deref().map(|id| (&state.tenant, id)));
        let keys = self.keys().subjects(wanted).await?;
        let mut opened = Vec::with_capacity(states.len());
        for (mut state, document) in states {
            if let Some(bytes) = document {
                state.content = open_document(&state, bytes, &keys)?;
            }
            opened.push(state);
        }
        Ok(opened)
    }

    /// Ids of the live resources of a type with this value. `value` is encoded as in index rows
    /// (`fold::index_value`).
    pub async fn find_by_lookup(
        &self,
        tenant: &TenantId,
        resource_type: &str,
        kind: LookupKind,
        value: &str,
    ) -> Result<Vec<ResourceId>> {
        let kind = lookup_kind(resource_type, kind.as_str());
        let hash = self.keys().tenant(tenant).await?.lookup_hash(&kind, value);
        let select = sql(OWNERS).bind(tenant).bind(kind).bind(hash).bind(READ_EVENTS_MAX);
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        let owners = rows.iter().map(|row| Ok(ResourceId::from_text(&row.text(0)?)));
        let mut owners = owners.collect::<Result<Vec<_>>>()?;
        owners.sort();
        Ok(owners)
    }

    /// A page of a group's live members by id, after a given one. Members that were deleted are joined
    /// away at once, whatever the janitor still has to do.
    pub async fn members(
        &self,
        tenant: &TenantId,
        group: &ResourceId,
        after: Option<&ResourceId>,
        max: usize,
    ) -> Result<Vec<MemberRow>> {
        let select = sql("SELECT l.to_id, COALESCE(s.resource_type, '') FROM journal.link l \
             LEFT JOIN journal.state s ON s.tenant = l.tenant AND s.id = l.to_id \
             WHERE l.tenant = $1 AND l.attribute = 'members' AND l.from_id = $2 AND l.to_id > $3 \
             AND COALESCE(s.deleted, 0) = 0 ORDER BY l.to_id LIMIT $4")
        .bind(tenant)
        .bind(group)
        .bind(after.map_or("", |id| id.as_str()))
        .bind(max);
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        rows.iter()
            .map(|row| {
                Ok(MemberRow { id: ResourceId::from_text(&row.text(0)?), resource_type: row.text(1)? })
            })
            .collect()
    }

    /// The groups that have these members, directly or through groups in groups
    /// (at most [`GROUP_DEPTH_MAX`] deep, [`GROUPS_PER_READ_MAX`] in all).
    pub async fn groups_of(&self, tenant: &TenantId, members: &[ResourceId]) -> Result<Vec<GroupRow>> {
        let mut rows = Rows::new(&[("id", Col::Text)]);
        for id in members {
            rows.push(vec![id.into()]);
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let select = sql("WITH RECURSIVE up(member, grp, depth) AS ( \
               SELECT r.id, l.from_id, CAST(1 AS BIGINT) FROM {rows} CROSS JOIN journal.link l CROSS JOIN journal.state g \
               WHERE l.tenant = $1 AND l.to_id = r.id AND l.attribute = 'members' \
               AND g.tenant = $1 AND g.id = l.from_id AND g.deleted = 0 \
             UNION \
               SELECT up.member, l.from_id, up.depth + 1 FROM up CROSS JOIN journal.link l \
               CROSS JOIN journal.state g \
               WHERE l.tenant = $1 AND l.to_id = up.grp AND l.attribute = 'members' AND up.depth < $2 \
               AND g.tenant = $1 AND g.id = l.from_id AND g.deleted = 0 \
             ) SELECT up.member, up.grp, MIN(up.depth) FROM up GROUP BY up.member, up.grp \
             ORDER BY up.member, MIN(up.depth), up.grp LIMIT $3")
        .bind(tenant)
        .bind(GROUP_DEPTH_MAX)
        .bind(GROUPS_PER_READ_MAX)
        .rows(rows);
        let found = self.backend().fetch_all(Area::Journal, select).await?;
        let mut groups = Vec::with_capacity(found.len());
        for row in &found {
            groups.push(GroupRow {
                member: ResourceId::from_text(&row.text(0)?),
                group: ResourceId::from_text(&row.text(1)?),
                display: None,
                direct: row.int(2)? == 1,
            });
        }
        let mut ids: Vec<ResourceId> = groups.iter().map(|g| g.group.clone()).collect();
        ids.sort();
        ids.dedup();
        let names: HashMap<ResourceId, Option<String>> = self
            .states(tenant, &ids)
            .await?
            .into_iter()
            .map(|state| {
                let name = state.document().and_then(|d| d.0.get("displayName")).and_then(Value::as_str);
                (state.id.clone(), name.map(str::to_owned))
            })
            .collect();
        for group in &mut groups {
            group.display = names.get(&group.group).cloned().flatten();
        }
        Ok(groups)
    }
}

fn open_document(state: &StateRow, bytes: Vec<u8>, keys: &HashMap<String, Option<Key>>) -> Result<Content> {
    let plain = match &state.key_id {
        None => bytes,
        Some(id) => match keys.get(id) {
            Some(Some(key)) => key.open(&state_aad(&state.tenant, &state.id), &bytes)?,
            Some(None) => return Ok(Content::Erased),
            None => return Err(StoreError::KeyMissing { key: id.clone() }),
        },
    };
    let document = serde_json::from_slice(&plain)
        .map_err(|_| StoreError::corrupt(format!("the state of {}", state.id), "it is no document"))?;
    Ok(Content::Open(document))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Database};

    #[tokio::test]
    async fn a_value_is_looked_up_by_its_index() {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::connect(&Database::Sqlite { dir: dir.path().to_owned() }).await.unwrap();
        backend.migrate().await.unwrap();
        let explain = sql(OWNERS).bind("acme").bind("User.username").bind(vec![1u8]).bind(10i64);
        let plan = backend.fetch_all(Area::Journal, explain.prefixed("EXPLAIN QUERY PLAN ")).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.text(3).unwrap()).collect();
        let wanted = "INDEX lookup_value (tenant=? AND kind=? AND value=?)";
        assert!(plan.len() == 1 && plan[0].contains(wanted), "{plan:?}");
        backend.close().await;
    }
}

//! Recorded events: what happened, to whom, when, by whom and why (D8).
//!
//! A resource's events carry old and new values, so that a state can be rolled forwards and back
//! without a schema. Times, versions and positions live in the envelope ([`Recorded`]), never in a
//! payload; an envelope holds no secret and no personal value.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::ids::{ConnectionId, Position, ResourceId, TenantId, Version};
use crate::scim::resource::{Change, Document};

/// The event stream of one entity: its type and id. The tenant stands beside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId {
    /// Resource type name as in `meta.resourceType`: `User`, `Group`, `Tenant`, …
    pub resource_type: String,
    /// The entity's id.
    pub id: ResourceId,
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.resource_type, self.id)
    }
}

/// Most ids one `members_added` or `members_removed` event names (D4); more become more events.
pub const MEMBERS_PER_EVENT_MAX: usize = 1_000;

/// Largest stored event, in bytes (D5): NATS takes messages of 1 MiB, and the relay must never meet one
/// it cannot publish.
pub const EVENT_BYTES_MAX: usize = 512 * 1024;

/// What can happen to an entity. One shape serves users, groups, custom types and our own
/// administration (tenants, connections, tokens, apps).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// It came to be, with this content.
    Created {
        /// The whole content. Never a password; a group's members follow as `MembersAdded`.
        document: Document,
    },
    /// Attributes changed, other than the ones named by the variants below.
    Changed {
        /// Old and new value per path.
        changes: Vec<Change>,
    },
    /// `active` became true.
    Activated {
        /// The one change, of `active`.
        changes: Vec<Change>,
    },
    /// `active` was true or unset and became false.
    Deactivated {
        /// The one change, of `active`.
        changes: Vec<Change>,
    },
    /// `roles` or `entitlements` changed.
    RolesChanged {
        /// The whole old and new lists.
        changes: Vec<Change>,
    },
    /// A password was set or cleared. Neither it nor its hash is in any event.
    PasswordSet,
    /// These became members. Only ids that truly were not members before.
    MembersAdded {
        /// Ids of users or groups, sorted, at most [`MEMBERS_PER_EVENT_MAX`].
        members: Vec<ResourceId>,
    },
    /// These ceased to be members. Only ids that truly were members before.
    MembersRemoved {
        /// Ids of users or groups, sorted, at most [`MEMBERS_PER_EVENT_MAX`].
        members: Vec<ResourceId>,
    },
    /// It was deleted; its id is never given again.
    Deleted,
    /// The person was erased: the key of their events is destroyed.
    Erased,
}

/// An event kind or payload that this build does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Written by a newer build: readers stop and say so, they never skip it.
    #[error("event kind {0:?} is unknown to this build: upgrade")]
    UnknownKind(String),
    /// A known kind whose payload does not fit.
    #[error("payload of {kind} cannot be read: {reason}")]
    Payload {
        /// The kind.
        kind: String,
        /// What was wrong, without any value.
        reason: String,
    },
}

impl Event {
    /// The last part of the kind: `created`, `members_added`, …
    pub fn what(&self) -> &'static str {
        match self {
            Event::Created { .. } => "created",
            Event::Changed { .. } => "changed",
            Event::Activated { .. } => "activated",
            Event::Deactivated { .. } => "deactivated",
            Event::RolesChanged { .. } => "roles_changed",
            Event::PasswordSet => "password_set",
            Event::MembersAdded { .. } => "members_added",
            Event::MembersRemoved { .. } => "members_removed",
            Event::Deleted => "deleted",
            Event::Erased => "erased",
        }
    }

    /// The full kind on the bus and in the journal: `user.created`, `costcenter.changed`, …
    pub fn kind(&self, resource_type: &str) -> String {
        format!("{}.{}", resource_type.to_lowercase(), self.what())
    }

    /// The payload as JSON: `{"document":…}`, `{"changes":[…]}`, `{"members":[…]}` or `{}`.
    pub fn payload(&self) -> Value {
        match self {
            Event::Created { document } => json!({ "document": document }),
            Event::Changed { changes }
            | Event::Activated { changes }
            | Event::Deactivated { changes }
            | Event::RolesChanged { changes } => json!({ "changes": changes }),
            Event::MembersAdded { members } | Event::MembersRemoved { members } => {
                json!({ "members": members })
            }
            Event::PasswordSet | Event::Deleted | Event::Erased => json!({}),
        }
    }

    /// The event of a kind and a payload of the current schema version (see [`crate::upcast`]).
    pub fn from_payload(kind: &str, payload: Value) -> Result<Event, EventError> {
        fn field<T: serde::de::DeserializeOwned>(
            kind: &str,
            mut payload: Value,
            name: &str,
        ) -> Result<T, EventError> {
            let value = payload.get_mut(name).map(Value::take).ok_or_else(|| EventError::Payload {
                kind: kind.to_owned(),
                reason: format!("member {name:?} is missing"),
            })?;
            // serde's own message may quote a value, which may be personal.
            serde_json::from_value(value).map_err(|_| EventError::Payload {
                kind: kind.to_owned(),
                reason: format!("member {name:?} has another shape"),
            })
        }
        let (_, what) = kind.rsplit_once('.').ok_or_else(|| EventError::UnknownKind(kind.to_owned()))?;
        Ok(match what {
            "created" => Event::Created { document: field(kind, payload, "document")? },
            "changed" => Event::Changed { changes: field(kind, payload, "changes")? },
            "activated" => Event::Activated { changes: field(kind, payload, "changes")? },
            "deactivated" => Event::Deactivated { changes: field(kind, payload, "changes")? },
            "roles_changed" => Event::RolesChanged { changes: field(kind, payload, "changes")? },
            "password_set" => Event::PasswordSet,
            "members_added" => Event::MembersAdded { members: field(kind, payload, "members")? },
            "members_removed" => Event::MembersRemoved { members: field(kind, payload, "members")? },
            "deleted" => Event::Deleted,
            "erased" => Event::Erased,
            _ => return Err(EventError::UnknownKind(kind.to_owned())),
        })
    }

    /// Whether the payload may hold values of the person, and so is sealed for personal types.
    pub fn holds_content(&self) -> bool {
        matches!(
            self,
            Event::Created { .. }
                | Event::Changed { .. }
                | Event::Activated { .. }
                | Event::Deactivated { .. }
                | Event::RolesChanged { .. }
        )
    }
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Actor {
    /// `connection`, `operator` (command line), `system` (janitor and the like).
    pub kind: ActorKind,
    /// The connection's slug, the operator's account name, or the part of the system.
    pub name: String,
}

/// The kinds of [`Actor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActorKind {
    /// A SCIM client, by its connection's token.
    Connection,
    /// A person at the command line, or an operator's token.
    Operator,
    /// Annals itself.
    System,
}

impl Actor {
    /// A SCIM client.
    pub fn connection(id: &ConnectionId) -> Actor {
        Actor { kind: ActorKind::Connection, name: id.as_str().to_owned() }
    }
    /// Annals itself: `janitor`, `bootstrap`, …
    pub fn system(part: &str) -> Actor {
        Actor { kind: ActorKind::System, name: part.to_owned() }
    }
    /// A person at the command line, or an operator's token by its holder's name.
    pub fn operator(account: &str) -> Actor {
        Actor { kind: ActorKind::Operator, name: account.to_owned() }
    }
}

/// Why it happened: enough to explain a rewritten value, never a value itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// The request's id, as answered in `X-Request-Id`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// W3C `traceparent`, if the client sent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// `create`, `replace`, `patch`, `delete`, `bulk`, or what the system did: decides the RFC 9967 URI.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub operation: String,
    /// The client profile that read the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Names of the quirks that rewrote something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quirks: Vec<String>,
    /// The operation's index in its bulk request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulk_index: Option<u32>,
    /// Public id of the token that administered; none at the command line and for SCIM clients, whose
    /// connection is the actor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// The payload of a [`Recorded`] event, as a reader gets it.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Readable, upcast to the current schema version.
    Open(Event),
    /// The key was destroyed: readers skip the content and keep the fact.
    Erased,
}

/// An event with its envelope, as the journal has it and every feed hands it on.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Place in the journal.
    pub position: Position,
    /// Unique id of the event (UUID version 7).
    pub event_id: Uuid,
    /// The commit it came with; all of a commit's events are adjacent.
    pub commit_id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The entity.
    pub stream: StreamId,
    /// The entity's version after this event.
    pub version: Version,
    /// `user.created`, `group.members_added`, …
    pub kind: String,
    /// Version of the payload's shape as stored.
    pub schema_version: u32,
    /// When, as the journal has it: never falls as positions rise.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// Why.
    pub cause: Cause,
    /// Position of the entity's previous event, 0 if none.
    pub previous_of_entity: Position,
    /// Position of the tenant's previous event, 0 if none.
    pub previous_of_tenant: Position,
    /// What.
    pub body: Body,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Event> {
        let changes = vec![Change { path: "title".into(), old: None, new: Some(json!("Boss")) }];
        vec![
            Event::Created { document: Document::default() },
            Event::Changed { changes: changes.clone() },
            Event::Activated { changes: changes.clone() },
            Event::Deactivated { changes: changes.clone() },
            Event::RolesChanged { changes },
            Event::PasswordSet,
            Event::MembersAdded { members: vec![ResourceId::from_text("u1")] },
            Event::MembersRemoved { members: vec![ResourceId::from_text("u1")] },
            Event::Deleted,
            Event::Erased,
        ]
    }

    #[test]
    fn every_event_survives_its_payload() {
        for event in one_of_each() {
            let kind = event.kind("User");
            assert_eq!(Event::from_payload(&kind, event.payload()), Ok(event), "{kind}");
        }
    }

    #[test]
    fn an_unknown_kind_says_upgrade() {
        let error = Event::from_payload("user.teleported", json!({})).unwrap_err();
        assert_eq!(error.to_string(), "event kind \"user.teleported\" is unknown to this build: upgrade");
    }

    #[test]
    fn a_payload_error_quotes_no_value() {
        let error = Event::from_payload("user.changed", json!({"changes": "secret"})).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

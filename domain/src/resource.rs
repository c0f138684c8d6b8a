//! The aggregate of every SCIM resource: a command and a state become events (D8, D10).
//!
//! One shape serves users, groups and custom types, as the schema registry carries what differs.
//! [`User`], [`Group`] and [`Custom`] are that shape under the three names the field knows.
//!
//! Membership is not part of the state (D4): a group of a million members loads as fast as an empty
//! one. The aggregate *proposes* a [`LinkDelta`]; under the journal's counter row it is narrowed to
//! what truly changes by [`member_events`].

use std::marker::PhantomData;
use std::sync::Arc;

use cqrs_es::event_sink::EventSink;
use cqrs_es::{Aggregate, DomainEvent};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::event::{Event, MEMBERS_PER_EVENT_MAX};
use crate::ids::ResourceId;
use crate::scim::dialect::{Client, Dialect, Quirk};
use crate::scim::error::ScimError;
use crate::scim::patch::{LinkDelta, Operation, PasswordChange};
use crate::scim::resource::{Change, Document, apply_changes, diff, parse, parse_replacement};
use crate::scim::schema::{Registry, ResourceType};
use crate::scim::{patch, schema::Attribute};

/// What a client wants of a resource.
#[derive(Clone)]
pub enum Command {
    /// POST: the body as sent.
    Create {
        /// The id to give.
        id: ResourceId,
        /// The JSON body.
        body: Value,
        /// How the client's requests are read.
        client: Client,
    },
    /// PUT: the body as sent.
    Replace {
        /// The resource's own id (a group must not become its own member).
        id: ResourceId,
        /// The JSON body.
        body: Value,
        /// How the client's requests are read.
        client: Client,
    },
    /// PATCH: operations that were already read from the body.
    Patch {
        /// The resource's own id.
        id: ResourceId,
        /// The operations, in order.
        operations: Vec<Operation>,
        /// How the client's requests are read.
        client: Client,
    },
    /// DELETE.
    Delete,
}

/// Says what, and not with which values: a body may hold a password.
impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, id) = match self {
            Command::Create { id, .. } => ("Create", Some(id)),
            Command::Replace { id, .. } => ("Replace", Some(id)),
            Command::Patch { id, .. } => ("Patch", Some(id)),
            Command::Delete => ("Delete", None),
        };
        f.debug_struct(name).field("id", &id).finish_non_exhaustive()
    }
}

/// What an aggregate needs to know of its tenant to decide.
#[derive(Clone, Debug)]
pub struct Services {
    /// The tenant's schemas.
    pub registry: Arc<Registry>,
    /// The resource type at hand.
    pub resource_type: Arc<ResourceType>,
}

/// What a decision proposes besides its events. None of it is part of the state.
#[derive(Clone, Debug, Default)]
pub struct Proposal {
    /// A password to hash and keep as a sealed secret.
    pub password: Option<PasswordChange>,
    /// Membership to narrow under the counter row.
    pub members: LinkDelta,
    /// The quirks that rewrote something, for the events' cause.
    pub quirks: Vec<Quirk>,
}

/// Which name an aggregate goes by.
pub trait Kind: Default + Clone + std::fmt::Debug + Send + Sync {
    /// The aggregate's type.
    const TYPE: &'static str;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $alias:ident, $kind:ident, $name:literal;)*) => {$(
        /// Marks the aggregate of its name.
        #[derive(Clone, Debug, Default)]
        pub struct $kind;
        impl Kind for $kind {
            const TYPE: &'static str = $name;
        }
        $(#[$doc])*
        pub type $alias = Resource<$kind>;
    )*};
}

kinds! {
    /// The aggregate of a user (RFC 7643 §4.1).
    User, UserKind, "User";
    /// The aggregate of a group (RFC 7643 §4.2), without its members.
    Group, GroupKind, "Group";
    /// The aggregate of a tenant's own resource type.
    Custom, CustomKind, "Resource";
}

/// The state of a resource: folded from its events, or read from its state row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Resource<K: Kind> {
    /// Whether it exists: created and not deleted.
    pub exists: bool,
    /// Its content, without id, meta, password and members.
    pub document: Document,
    /// What the last command proposed besides its events.
    #[serde(skip)]
    pub proposal: Proposal,
    #[serde(skip)]
    kind: PhantomData<K>,
}

impl<K: Kind> Resource<K> {
    /// The state of a resource that exists, as its state row has it.
    pub fn of(document: Document) -> Self {
        Self { exists: true, document, proposal: Proposal::default(), kind: PhantomData }
    }
}

impl DomainEvent for Event {
    fn event_type(&self) -> String {
        self.what().to_owned()
    }

    fn event_version(&self) -> String {
        crate::upcast::SCHEMA_VERSION.to_string()
    }
}

impl<K: Kind> Aggregate for Resource<K> {
    const TYPE: &'static str = K::TYPE;
    type Command = Command;
    type Event = Event;
    type Error = ScimError;
    type Services = Services;

    async fn handle(
        &mut self,
        command: Command,
        services: &Services,
        sink: &EventSink<Self>,
    ) -> Result<(), ScimError> {
        let decision = decide(self.exists, &self.document, command, services)?;
        for event in decision.events {
            sink.write(event, self).await;
        }
        self.proposal = decision.proposal;
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        self.exists = apply(&mut self.document, &event, self.exists);
    }
}

/// Folds one event into a content; says whether the entity exists afterwards. Projections and replays
/// use the same function as the aggregate, so they cannot disagree with it.
pub fn apply(document: &mut Document, event: &Event, exists: bool) -> bool {
    match event {
        Event::Created { document: new } => {
            *document = new.clone();
            true
        }
        Event::Changed { changes }
        | Event::Activated { changes }
        | Event::Deactivated { changes }
        | Event::RolesChanged { changes } => {
            apply_changes(document, changes);
            exists
        }
        Event::PasswordSet | Event::MembersAdded { .. } | Event::MembersRemoved { .. } => exists,
        Event::Deleted | Event::Erased => {
            *document = Document::default();
            false
        }
    }
}

struct Decision {
    events: Vec<Event>,
    proposal: Proposal,
}

fn decide(
    exists: bool,
    current: &Document,
    command: Command,
    services: &Services,
) -> Result<Decision, ScimError> {
    let (registry, resource_type) = (&*services.registry, &*services.resource_type);
    match command {
        Command::Create { id, body, client } => {
            if exists {
                return Err(ScimError::uniqueness(format!("{} {id} exists already", resource_type.name)));
            }
            let mut dialect = Dialect::new(client);
            let parsed = parse(registry, resource_type, &body, &mut dialect)?;
            let mut events = vec![Event::Created { document: parsed.document }];
            // There is nothing yet that a null could take away.
            let password = parsed.password.filter(|p| matches!(p, PasswordChange::Set(_)));
            events.extend(password.is_some().then_some(Event::PasswordSet));
            let add = parsed.members.unwrap_or_default().into_iter().collect();
            let members = LinkDelta { clear: false, add, remove: Default::default() };
            finish(&id, events, password, members, dialect)
        }
        _ if !exists => Err(ScimError::not_found(format!("{} not found", resource_type.name))),
        Command::Replace { id, body, client } => {
            let mut dialect = Dialect::new(client);
            let parsed = parse_replacement(registry, resource_type, current, &body, &mut dialect)?;
            let mut events = change_events(&diff(current, &parsed.document));
            let password = parsed.password;
            events.extend(password.is_some().then_some(Event::PasswordSet));
            let members = match parsed.members {
                Some(ids) if has_members(resource_type) => {
                    LinkDelta { clear: true, add: ids.into_iter().collect(), remove: Default::default() }
                }
                _ => LinkDelta::default(),
            };
            finish(&id, events, password, members, dialect)
        }
        Command::Patch { id, operations, client } => {
            let mut dialect = Dialect::new(client);
            let patched = patch::apply(registry, resource_type, &id, current, &operations, &mut dialect)?;
            let mut events = change_events(&diff(current, &patched.document));
            events.extend(patched.password.is_some().then_some(Event::PasswordSet));
            finish(&id, events, patched.password, patched.members, dialect)
        }
        Command::Delete => Ok(Decision { events: vec![Event::Deleted], proposal: Proposal::default() }),
    }
}

fn finish(
    id: &ResourceId,
    events: Vec<Event>,
    password: Option<PasswordChange>,
    members: LinkDelta,
    dialect: Dialect,
) -> Result<Decision, ScimError> {
    if members.add.contains(id) {
        let detail = format!("members: group {id} cannot be a member of itself");
        return Err(ScimError::bad(crate::scim::error::ScimType::InvalidValue, detail));
    }
    let quirks = dialect.applied.into_iter().collect();
    Ok(Decision { events, proposal: Proposal { password, members, quirks } })
}

/// Whether the type keeps its members as links.
pub fn has_members(resource_type: &ResourceType) -> bool {
    resource_type.attributes().any(|a: &Attribute| a.link)
}

/// Sorts changes into the events that say what happened: the change of `active` is an activation or a
/// deactivation, those of `roles` and `entitlements` are a change of roles, the rest is a change.
pub fn change_events(changes: &[Change]) -> Vec<Event> {
    let mut plain = Vec::new();
    let mut roles = Vec::new();
    let mut active = None;
    for change in changes {
        match change.path.as_str() {
            "active" => active = Some(change.clone()),
            "roles" | "entitlements" => roles.push(change.clone()),
            _ => plain.push(change.clone()),
        }
    }
    let mut events = Vec::new();
    let active = match active {
        Some(change) if change.new == Some(json!(true)) => Some(Event::Activated { changes: vec![change] }),
        Some(change) if change.new == Some(json!(false)) => {
            Some(Event::Deactivated { changes: vec![change] })
        }
        // `active` lost its value: neither of the two.
        Some(change) => {
            plain.push(change);
            None
        }
        None => None,
    };
    if !plain.is_empty() {
        events.push(Event::Changed { changes: plain });
    }
    if !roles.is_empty() {
        events.push(Event::RolesChanged { changes: roles });
    }
    events.extend(active);
    events
}

/// The member events of a narrowed change: removals first, then additions, in bounded pieces. `removed`
/// must hold only present members and `added` only absent ones; both empty means nothing happened.
pub fn member_events(mut removed: Vec<ResourceId>, mut added: Vec<ResourceId>) -> Vec<Event> {
    removed.sort();
    added.sort();
    let removals =
        removed.chunks(MEMBERS_PER_EVENT_MAX).map(|ids| Event::MembersRemoved { members: ids.to_vec() });
    let additions =
        added.chunks(MEMBERS_PER_EVENT_MAX).map(|ids| Event::MembersAdded { members: ids.to_vec() });
    removals.chain(additions).collect()
}

/// The secret of a password change, if it sets one.
pub fn new_password(change: &Option<PasswordChange>) -> Option<&SecretString> {
    match change {
        Some(PasswordChange::Set(password)) => Some(password),
        _ => None,
    }
}

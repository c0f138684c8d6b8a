//! The journal: one table of events in commit order, without gaps, hash-chained (D1).
//!
//! [`writer`] gathers commits into batches, [`chain`] keeps those of a bulk request in order, [`append`]
//! writes a batch in one transaction that begins by locking the counter row, [`read`] hands events, state rows and links out, [`verify`] proves that
//! nothing was touched.

pub(crate) mod append;
pub(crate) mod chain;
mod erase;
mod janitor;
pub mod read;
mod recover;
pub mod verify;
pub(crate) mod writer;

use annals_domain::event::{Event, StreamId};
use annals_domain::ids::{Position, ResourceId, TenantId, Version};
use annals_domain::scim::patch::LinkDelta;
use annals_domain::upcast::SCHEMA_VERSION;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::execute::Header;

/// A commit: all or nothing, its events adjacent. Everything that costs time (deciding, hashing
/// passwords, sealing, body hashes) was done before it is handed to the writer.
#[derive(Debug)]
pub(crate) struct Commit {
    /// Unique. From `Idempotency-Key` if the client sent one, else random.
    pub(crate) id: Uuid,
    pub(crate) tenant: TenantId,
    /// JSON.
    pub(crate) actor: String,
    /// JSON.
    pub(crate) cause: String,
    pub(crate) writes: Vec<StreamWrite>,
    pub(crate) secrets: Vec<SecretWrite>,
    pub(crate) tokens: Vec<TokenWrite>,
    /// Keyed hash of the request, if the client sent an idempotency key: then the id may come twice.
    pub(crate) fingerprint: Option<Vec<u8>>,
    /// Position of the tenant's newest schema or resource type that this was decided by; none: by none.
    pub(crate) definition: Option<Position>,
    /// The tenant's last event when this was decided; none: it does not matter.
    pub(crate) head: Option<Position>,
}

/// What a commit does to one entity.
#[derive(Debug)]
pub(crate) struct StreamWrite {
    pub(crate) stream: StreamId,
    pub(crate) expect: Expect,
    pub(crate) events: Vec<NewEvent>,
    pub(crate) state: StateWrite,
    pub(crate) lookups_add: Vec<LookupWrite>,
    pub(crate) lookups_remove: Vec<(String, Vec<u8>)>,
    pub(crate) members: Option<MembersWrite>,
    /// Links that follow from the document, such as `manager`.
    pub(crate) references_add: Vec<(String, ResourceId)>,
    pub(crate) references_remove: Vec<(String, ResourceId)>,
    /// JSON; none: the commit's. The operations of a reference cycle share a commit, not a cause.
    pub(crate) cause: Option<String>,
}

/// What must be true of the entity under the counter row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// A random id that was made for this commit: nothing to look up.
    Fresh,
    /// No such entity, not even a tombstone.
    Absent,
    /// Exactly this version.
    Version(Version),
    /// Any version, but alive: a delta alone (D4).
    Alive,
    /// Only its tombstone is left.
    Deleted,
}

/// An event that has no position yet.
#[derive(Debug)]
pub(crate) struct NewEvent {
    pub(crate) event_id: Uuid,
    pub(crate) kind: String,
    pub(crate) key_id: Option<String>,
    /// Sealed if there is a key id.
    pub(crate) payload: Vec<u8>,
    pub(crate) body_hash: Vec<u8>,
}

impl NewEvent {
    /// An event that holds nothing personal, so its payload is not sealed.
    pub(crate) fn plain(
        event_id: Uuid,
        tenant: &TenantId,
        stream: &StreamId,
        event: &Event,
        header: &Header,
    ) -> NewEvent {
        let kind = event.kind(&stream.resource_type);
        let payload = append::event_payload(event);
        let body_hash = BodyParts {
            event_id: &event_id.hyphenated().to_string(),
            tenant: tenant.as_str(),
            resource_type: &stream.resource_type,
            id: stream.id.as_str(),
            kind: &kind,
            schema_version: SCHEMA_VERSION,
            actor: &header.actor,
            cause: &header.cause,
            key_id: None,
            payload: &payload,
        }
        .hash()
        .to_vec();
        NewEvent { event_id, kind, key_id: None, payload, body_hash }
    }
}

/// What becomes of the document in the state row.
#[derive(Debug)]
pub(crate) enum StateWrite {
    Keep,
    Put { key_id: Option<String>, document: Vec<u8> },
    Tombstone,
}

/// A look-up to add.
#[derive(Debug)]
pub(crate) struct LookupWrite {
    pub(crate) kind: String,
    pub(crate) value: Vec<u8>,
    pub(crate) exclusive: bool,
    /// The attribute's path, for the client's error.
    pub(crate) attribute: String,
}

/// A change of membership, to be narrowed to what truly changes.
#[derive(Debug)]
pub(crate) struct MembersWrite {
    pub(crate) delta: LinkDelta,
    /// Whether added members must exist.
    pub(crate) must_exist: bool,
}

/// A sealed secret to keep, or to forget.
#[derive(Debug)]
pub(crate) struct SecretWrite {
    pub(crate) id: ResourceId,
    pub(crate) name: &'static str,
    pub(crate) key_id: Option<String>,
    pub(crate) sealed: Option<Vec<u8>>,
}

/// A token's digest to add, or all of a token's digests to remove.
#[derive(Debug)]
pub(crate) enum TokenWrite {
    Add { digest: Vec<u8>, id: ResourceId, connection: String, scopes: String, expires: Option<i64> },
    Remove { id: ResourceId },
}

/// What a commit came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// Position of its first event; 0 if nothing changed.
    pub(crate) first: Position,
    /// Position of its last event; 0 if nothing changed.
    pub(crate) last: Position,
    pub(crate) streams: Vec<StreamReceipt>,
    /// The commit was found in the journal already.
    #[serde(skip)]
    pub(crate) replayed: bool,
}

/// What a commit came to for one entity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StreamReceipt {
    pub(crate) resource_type: String,
    pub(crate) id: ResourceId,
    pub(crate) version: Version,
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) position: Position,
    /// How many events the entity got; 0 = unchanged.
    pub(crate) events: usize,
    /// Where the whole list of members was replaced: how many of how many left.
    #[serde(skip)]
    pub(crate) replaced: Option<Replaced>,
}

/// What a new list of members did to the one before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Replaced {
    pub(crate) removed: usize,
    pub(crate) before: usize,
}

impl Replaced {
    /// More than half, and more than five (EN-075).
    pub(crate) fn is_mass_removal(self) -> bool {
        const REMOVED_MIN: usize = 6;
        self.removed >= REMOVED_MIN && 2 * self.removed > self.before
    }
}

/// Why a commit was refused under the counter row. Nothing of it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rejection {
    /// The entity has another version than expected.
    Moved,
    /// The entity does not exist, or no more.
    Gone,
    /// The tenant's schemas are others than it was decided by, or the tenant has had events since.
    Stale,
    /// An entity of this id exists or existed.
    Exists,
    /// A unique value belongs to another entity.
    Taken { attribute: String },
    /// Members that do not exist.
    Dangling { ids: Vec<ResourceId> },
    /// More links than a commit may change.
    TooManyLinks { max: usize },
    /// The idempotency key was used for another request.
    OtherRequest,
    /// One of several writes of a commit is the reason.
    InWrite { at: usize, why: Box<Rejection> },
}

impl Rejection {
    /// Whether it must be decided again on the present state. With `If-Match` a moved version is the
    /// client's error instead.
    pub(crate) fn is_stale(&self, conditional: bool) -> bool {
        match self {
            Rejection::Stale => true,
            Rejection::Moved => !conditional,
            Rejection::InWrite { why, .. } => why.is_stale(conditional),
            _ => false,
        }
    }

    /// Whether a unique value was in use.
    pub(crate) fn is_taken(&self) -> bool {
        match self {
            Rejection::InWrite { why, .. } => why.is_taken(),
            other => matches!(other, Rejection::Taken { .. }),
        }
    }
}

/// How an append failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// Refused; the caller decides what it means.
    #[error("the commit was refused: {0:?}")]
    Rejected(Rejection),
    /// The queue is full, or the writer is closed.
    #[error("the journal's queue is full")]
    Full,
    /// Writes are stopped.
    #[error("writes are stopped: {0}")]
    Halted(String),
    /// The database failed for this commit alone, too.
    #[error("the journal could not be written: {0}")]
    Failed(String),
}

/// SHA-256 over length-prefixed parts, so that no two lists of parts give the same bytes.
pub(crate) fn hash(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update((domain.len() as u64).to_be_bytes());
    hasher.update(domain.as_bytes());
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// What an event's body hash covers: all that is known before its place is.
pub(crate) struct BodyParts<'a> {
    pub(crate) event_id: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) resource_type: &'a str,
    pub(crate) id: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) schema_version: u32,
    pub(crate) actor: &'a str,
    pub(crate) cause: &'a str,
    pub(crate) key_id: Option<&'a str>,
    pub(crate) payload: &'a [u8],
}

impl BodyParts<'_> {
    pub(crate) fn hash(&self) -> [u8; 32] {
        hash(
            "annals body 1",
            &[
                self.event_id.as_bytes(),
                self.tenant.as_bytes(),
                self.resource_type.as_bytes(),
                self.id.as_bytes(),
                self.kind.as_bytes(),
                &self.schema_version.to_be_bytes(),
                self.actor.as_bytes(),
                self.cause.as_bytes(),
                self.key_id.unwrap_or_default().as_bytes(),
                self.payload,
            ],
        )
    }
}

/// The hash that chains an event to the tenant's previous one.
pub(crate) fn chain_hash(
    previous: &[u8],
    body: &[u8],
    position: Position,
    version: Version,
    at: i64,
    commit_id: &str,
) -> [u8; 32] {
    hash(
        "annals chain 1",
        &[
            previous,
            body,
            &position.to_be_bytes(),
            &version.to_be_bytes(),
            &at.to_be_bytes(),
            commit_id.as_bytes(),
        ],
    )
}

/// Root of the Merkle tree over a batch's chain hashes (leaves and nodes are told apart, RFC 9162 §2.1.1).
pub(crate) fn merkle_root(leaves: &[[u8; 32]]) -> [u8; 32] {
    let mut level: Vec<[u8; 32]> = leaves.iter().map(|leaf| hash("annals leaf 1", &[leaf])).collect();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => hash("annals node 1", &[left, right]),
                [single] => *single,
                _ => [0; 32],
            })
            .collect();
    }
    level.first().copied().unwrap_or([0; 32])
}

/// The hash of a batch row, over the previous one.
pub(crate) fn batch_hash(previous: &[u8], first: Position, last: Position, root: &[u8]) -> [u8; 32] {
    hash("annals batch 1", &[previous, &first.to_be_bytes(), &last.to_be_bytes(), root])
}

/// The kind under which a look-up is stored: `User.userName`.
pub(crate) fn lookup_kind(resource_type: &str, name: &str) -> String {
    format!("{resource_type}.{name}")
}

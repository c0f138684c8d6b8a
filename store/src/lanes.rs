//! Delivery as a ledger of lanes (D12): one lane per downstream app and entity.
//!
//! The planner turns events into wishes ([`Store::plan`]), in the transaction of its checkpoint. A
//! deliverer leases due lanes ([`Store::lease_lanes`]), works with no transaction open, and reports
//! ([`Store::save_lane`], [`Store::finish_lane`]) under the fence of its lease.
//!
//! ```text
//!          plan                    lease                 finish
//!  idle ─────────▶ due ◀──────────────────▶ leased ─────────────▶ idle
//!                   ▲  expired, failed, more                 ├──▶ waiting      for another lane's remote id
//!                   └──────────── redrive, plan ─────────────┴──▶ quarantined
//! ```
//!
//! A transaction that finishes a lane locks the app's target row first, then lanes in the order of
//! their ids, as the planner does: no deadlock, and no reference is forgotten between one lane that
//! waits for a remote id and another that gets it.

mod lease;
mod list;
mod plan;
mod sweep;

use annals_domain::clock::Timestamp;
use annals_domain::ids::{AppId, Position, ResourceId, TenantId, Version};
use annals_domain::scim::schema::Registry;
use annals_domain::tenant::{App, Driver, is_administrative};

use crate::error::{Result, StoreError};

pub use lease::{Finished, LANE_LOOK_MS, Quota, REMOTE_ID_BYTES_MAX, Saved};
pub use list::{ATTEMPTS_KEPT, Attempt, DELIVERIES_MAX, Delivery, DeliveryFilter, LaneCounts, TargetStatus};
pub use plan::{LaneWish, Planned, PlannerCheckpoint, SweepMode, SweepWish};
pub use sweep::SWEEP_PAGE_MAX;

/// Longest detail of an attempt, and longest error of a lane, in bytes.
pub const DETAIL_BYTES_MAX: usize = 4_096;

/// How an app is fed, which decides what its lanes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneKind {
    /// It converges on the newest state; bursts collapse.
    State,
    /// It gets every version, one after the other.
    Log,
}

impl LaneKind {
    /// The kind of an app's lanes.
    pub fn of(app: &App) -> LaneKind {
        match app.driver {
            Driver::Scim { .. } => LaneKind::State,
            Driver::Webhook { .. } => LaneKind::Log,
        }
    }

    /// Its name in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            LaneKind::State => "state",
            LaneKind::Log => "log",
        }
    }

    fn parse(name: &str) -> Result<LaneKind> {
        match name {
            "state" => Ok(LaneKind::State),
            "log" => Ok(LaneKind::Log),
            _ => Err(StoreError::corrupt("a lane's kind", "it is neither state nor log")),
        }
    }
}

/// Where a lane stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneState {
    /// To be worked on, now or at its time.
    Due,
    /// Somebody works on it.
    Leased,
    /// All that was wanted is applied.
    Idle,
    /// All that was wanted is applied, but for references to what the target does not have yet.
    Waiting,
    /// It failed for good: an operator looks at it.
    Quarantined,
}

impl LaneState {
    /// All states.
    pub const ALL: [LaneState; 5] =
        [LaneState::Due, LaneState::Leased, LaneState::Idle, LaneState::Waiting, LaneState::Quarantined];

    /// Its name in the tables and at the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            LaneState::Due => "due",
            LaneState::Leased => "leased",
            LaneState::Idle => "idle",
            LaneState::Waiting => "waiting",
            LaneState::Quarantined => "quarantined",
        }
    }

    /// The state of a name.
    pub fn parse(name: &str) -> Option<LaneState> {
        LaneState::ALL.into_iter().find(|state| state.as_str() == name)
    }

    fn stored(name: &str) -> Result<LaneState> {
        LaneState::parse(name).ok_or_else(|| StoreError::corrupt("a lane's state", "it is unknown"))
    }
}

/// Which lane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    /// The tenant.
    pub tenant: TenantId,
    /// The downstream app.
    pub app: AppId,
    /// The entity.
    pub id: ResourceId,
}

/// A group whose members are being sent from the journal's links rather than from its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The group's version when this began: its later events are applied afterwards.
    pub version: Version,
    /// The last member handled; empty at first.
    pub after: String,
}

/// An entity's id at a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteId {
    /// The id.
    pub id: String,
    /// Which target gave it: an app may be pointed at another one, where the id is somebody else's.
    pub home: String,
}

/// What a deliverer learns and changes about a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneWork {
    /// The version the target has.
    pub applied_version: Version,
    /// Its position.
    pub applied_position: Position,
    /// Keyed hash of the content the target has; none = not known.
    pub applied_hash: Option<Vec<u8>>,
    /// The entity's id at the target.
    pub remote: Option<RemoteId>,
    /// Where the sending of a group's members stands.
    pub snapshot: Option<Snapshot>,
    /// Changes of what waits for other lanes; not state, but written with it and then emptied.
    pub pending: Vec<PendingChange>,
}

/// A lane in the hands of a deliverer.
#[derive(Clone, Debug)]
pub struct Leased {
    /// Which lane.
    pub key: LaneKey,
    /// The entity's type.
    pub resource_type: String,
    /// What the lane means.
    pub kind: LaneKind,
    /// The newest version that was planned.
    pub wanted_version: Version,
    /// Its position.
    pub wanted_position: Position,
    /// Whether the newest planned event was a deletion.
    pub deleted: bool,
    /// Number of this lease: what is reported under an older one is refused.
    pub fence: i64,
    /// When the lease ends.
    pub until: Timestamp,
    /// Failures in a row before this lease.
    pub attempts: i64,
    /// Whether someone else may have written to the target since: compare, do not trust the hash.
    pub resync: bool,
    /// Whether this is the occasional look at a lane that waits.
    pub was_waiting: bool,
    /// Failures in a row of the target.
    pub target_failures: i64,
    /// Microseconds a request costs by the app's rate; 0 = no limit.
    pub request_us: i64,
    /// The version applied when the lease began.
    pub start_version: Version,
    /// The deliverer's to change.
    pub work: LaneWork,
}

/// Which reference waits: from the lane's entity, by an attribute, to another entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingChange {
    /// It waits until the other entity's lane has a remote id.
    Wait {
        /// `members`, `manager`, …
        attribute: String,
        /// The entity referred to.
        member: ResourceId,
    },
    /// The target refuses it: it stays visible, but wakes nothing up.
    Park {
        /// `members`, `manager`, …
        attribute: String,
        /// The entity referred to.
        member: ResourceId,
    },
    /// It waits no longer.
    Done {
        /// `members`, `manager`, …
        attribute: String,
        /// The entity referred to.
        member: ResourceId,
    },
    /// The other way round: another entity refers to the lane's own and is to send that again, because
    /// the target forgot it.
    Renew {
        /// `members`, `manager`, …
        attribute: String,
        /// The entity that refers to the lane's own.
        holder: ResourceId,
    },
    /// No member waits.
    ClearMembers,
    /// Nothing waits but members.
    ClearReferences,
    /// Nothing waits.
    ClearAll,
}

/// A reference that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// `members`, `manager`, …
    pub attribute: String,
    /// The entity referred to.
    pub member: ResourceId,
    /// That entity's id at the target, if it has one by now.
    pub remote_id: Option<String>,
    /// The target refused it.
    pub parked: bool,
}

/// What becomes of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// What was leased is applied.
    Done,
    /// To be gone on with at this time.
    Later {
        /// When.
        at: Timestamp,
        /// Whether this counts as a failure of the lane.
        failed: bool,
    },
    /// No more tries until an operator, or a new version of a state lane, asks for them.
    Quarantine,
}

/// What a delivery says about its target as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TargetReport {
    /// Nothing.
    #[default]
    Silent,
    /// It answers: the breaker may close.
    Well,
    /// Nothing is to be sent to it for a while.
    Open {
        /// Until when.
        until: Timestamp,
        /// Why, for operators.
        reason: String,
    },
}

/// What a delivery attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The entity was created at the target.
    Created,
    /// The target had it already: it was linked, and brought up to date if it differed.
    Linked,
    /// The entity was changed at the target.
    Updated,
    /// The entity was deleted at the target.
    Deleted,
    /// Events were delivered.
    Delivered,
    /// The target had everything already.
    Unchanged,
    /// Part of the work was done, the rest follows.
    Partial,
    /// The target asked for patience, or is out of reach: the whole target pauses.
    Throttled,
    /// The target refuses us: the whole target pauses.
    Refused,
    /// It failed and will be tried again.
    Failed,
    /// It failed for good.
    Quarantined,
}

impl Outcome {
    /// Its name in the tables, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Created => "created",
            Outcome::Linked => "linked",
            Outcome::Updated => "updated",
            Outcome::Deleted => "deleted",
            Outcome::Delivered => "delivered",
            Outcome::Unchanged => "unchanged",
            Outcome::Partial => "partial",
            Outcome::Throttled => "throttled",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::Quarantined => "quarantined",
        }
    }
}

/// A deliverer's report on a lane.
#[derive(Clone, Debug)]
pub struct Report {
    /// What becomes of the lane.
    pub next: Next,
    /// What it came to.
    pub outcome: Outcome,
    /// When the work began.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: i64,
    /// The last HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What happened, without secrets and personal values; cut to [`DETAIL_BYTES_MAX`].
    pub detail: String,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// What it says about the target.
    pub target: TargetReport,
    /// Requests sent.
    pub requests: usize,
}

/// Whether an app is fed with a resource type. An empty list means users and groups for SCIM targets
/// (others rarely have an endpoint for a tenant's own types) and every resource for webhooks; what
/// administration does is only sent to a webhook that names it.
pub fn takes(app: &App, resource_type: &str) -> bool {
    if !app.resource_types.is_empty() {
        let named = app.resource_types.iter().any(|name| name == resource_type);
        return named && (LaneKind::of(app) == LaneKind::Log || !is_administrative(resource_type));
    }
    match LaneKind::of(app) {
        LaneKind::State => matches!(resource_type, "User" | "Group"),
        LaneKind::Log => !is_administrative(resource_type),
    }
}

/// The resource types an app is fed with, those that others refer to first.
pub fn taken_types(app: &App, registry: &Registry) -> Vec<String> {
    let mut names: Vec<String> =
        registry.resource_types().map(|t| t.name.clone()).filter(|name| takes(app, name)).collect();
    names.sort_by_key(|name| match name.as_str() {
        "User" => 0,
        "Group" => 2,
        _ => 1,
    });
    names
}

/// Cuts a text to at most `max` bytes, at a character's end.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

fn app_id(text: &str) -> Result<AppId> {
    AppId::new(text).map_err(|error| StoreError::corrupt("an app's id in a lane", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(driver: Driver, resource_types: &[&str]) -> App {
        App {
            id: AppId::new("a").unwrap(),
            driver,
            resource_types: resource_types.iter().map(|s| (*s).to_owned()).collect(),
            paused: false,
            concurrency_max: 1,
            rate_per_second_max: 0,
        }
    }

    #[test]
    fn administration_is_only_told_to_those_who_ask() {
        let hook = || Driver::Webhook { url: String::new() };
        let scim = || Driver::Scim { base_url: String::new(), members_per_request_max: 1 };
        assert!(takes(&app(hook(), &[]), "User"));
        assert!(takes(&app(hook(), &[]), "Device"));
        assert!(!takes(&app(hook(), &[]), "Token"));
        assert!(takes(&app(hook(), &["Token"]), "Token"));
        assert!(!takes(&app(hook(), &["Token"]), "User"));
        assert!(takes(&app(scim(), &[]), "Group"));
        assert!(!takes(&app(scim(), &[]), "Device"));
        assert!(takes(&app(scim(), &["Device"]), "Device"));
        assert!(!takes(&app(scim(), &["Token"]), "Token"));
    }

    #[test]
    fn a_cut_keeps_characters_whole() {
        assert_eq!(cut("añb", 2), "a");
        assert_eq!(cut("añb", 9), "añb");
    }
}

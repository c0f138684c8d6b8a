//! Feeds of recorded events: the journal itself, or a NATS JetStream stream that mirrors it (D5–D7).
//!
//! [`Feed`] is the one seam between a single process and many. Both feeds give the same events in the
//! same order without gaps; the stream is a faster way to many readers, never the truth, so whatever
//! surprises its reader is answered by the journal. `docs/events.md` is the contract with outsiders.

pub mod jetstream_feed;
pub mod journal_feed;
pub mod message;
pub mod nats;

use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::event::Recorded;
use annals_domain::ids::Position;
use annals_store::StoreError;

pub use jetstream_feed::JetStreamFeed;
pub use journal_feed::JournalFeed;
pub use message::MessageError;
pub use nats::{Nats, NatsError, NatsOptions};

/// Most events one [`Feed::next`] returns, whatever was asked for.
pub const FEED_EVENTS_MAX: usize = 1_000;

/// What a step came to. A step does bounded work; only the lifecycle module loops over steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many things were done.
    pub done: usize,
    /// Before this moment there is nothing to do. None = step again at once: there may be more, or the
    /// step waits for work by itself, a second at most.
    pub wake_at: Option<Timestamp>,
}

impl Progress {
    /// Something was done, and there may be more.
    pub fn done(done: usize) -> Progress {
        Progress { done, wake_at: None }
    }

    /// Something was done, and what comes may gather until `at`, so that the next step does more at once.
    pub fn done_until(done: usize, at: Timestamp) -> Progress {
        Progress { done, wake_at: Some(at) }
    }

    /// Nothing to do before `at`.
    pub fn idle_until(at: Timestamp) -> Progress {
        Progress { done: 0, wake_at: Some(at) }
    }
}

/// Result of the bus.
pub type Result<T> = std::result::Result<T, BusError>;

/// What can go wrong between the journal and its readers.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The journal could not be read.
    #[error("reading the journal failed")]
    Store(#[from] StoreError),
    /// NATS refused, or is out of reach.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// An event cannot become a message, or a message is no event of ours.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The stream holds what the journal does not: this relay must not write to it.
    #[error(
        "stream {stream} cannot mirror this journal: {reason}; delete the stream, or name another one in \
         the configuration"
    )]
    ForeignStream {
        /// The stream's name.
        stream: String,
        /// What was found.
        reason: String,
    },
    /// Stream or reader know events that the journal does not have, or has otherwise: it was restored
    /// from a backup. Writes stop until an operator has recovered it (D5, docs/operating.md).
    #[error(
        "the journal was restored to an earlier point: {reason}; see \"Backup and restore\" in docs/operating.md"
    )]
    Diverged {
        /// What was found.
        reason: String,
    },
}

/// Recorded events in the order of their positions.
#[derive(Debug)]
pub enum Feed {
    /// The journal's table, and wake-ups.
    Journal(JournalFeed),
    /// A JetStream stream, with the journal behind it.
    JetStream(JetStreamFeed),
}

impl Feed {
    /// The events at `after + 1` and on: contiguous, in order, at most `max` and [`FEED_EVENTS_MAX`].
    /// Returns as soon as there is one; empty if none came within `wait`.
    ///
    /// # Errors
    /// The journal cannot be read, an event was written by a newer build, or `after` lies ahead of the
    /// journal ([`BusError::Diverged`]). A NATS outage is no error: the journal answers.
    pub async fn next(&mut self, after: Position, max: usize, wait: Duration) -> Result<Vec<Recorded>> {
        match self {
            Feed::Journal(feed) => feed.next(after, max, wait).await,
            Feed::JetStream(feed) => feed.next(after, max, wait).await,
        }
    }
}

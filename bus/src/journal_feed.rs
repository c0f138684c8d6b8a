//! The journal as a feed: its table, and wake-ups.

use std::time::Duration;

use annals_domain::event::Recorded;
use annals_domain::ids::Position;
use annals_store::Store;

use crate::{BusError, FEED_EVENTS_MAX, Result};

/// Reads the journal's table. It holds no position: one feed may serve several readers in turn.
#[derive(Clone, Debug)]
pub struct JournalFeed {
    store: Store,
}

impl JournalFeed {
    /// A feed of the store's journal.
    pub fn new(store: Store) -> JournalFeed {
        JournalFeed { store }
    }

    /// See [`crate::Feed::next`].
    ///
    /// # Errors
    /// The journal cannot be read, or `after` lies ahead of it.
    pub async fn next(&mut self, after: Position, max: usize, wait: Duration) -> Result<Vec<Recorded>> {
        let max = max.clamp(1, FEED_EVENTS_MAX);
        let events = self.store.read_events(after, max).await?;
        if !events.is_empty() {
            return Ok(events);
        }
        let head = self.store.wait_journal(after, wait).await?;
        if head < after {
            return Err(BusError::Diverged {
                reason: format!("a reader is at position {after}, the journal ends at {head}"),
            });
        }
        if head == after {
            return Ok(Vec::new());
        }
        Ok(self.store.read_events(after, max).await?)
    }
}

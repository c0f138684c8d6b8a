//! Pacing (D3): a tenant far ahead of a living projector has its writes slowed, so that a bulk load does
//! not turn its neighbours' queries into 503.
//!
//! A projector that does not move is not waited for: writes go on when it is away.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use annals_domain::ids::{Position, TenantId};
use tokio::time::Instant;

use crate::Store;
use crate::wake::Topic;

/// How far a tenant may be ahead of the read model before its writes are slowed.
const AHEAD_EVENTS_MAX: Position = 5_000;
/// Longest one write is held.
const HELD_MAX: Duration = Duration::from_secs(1);
/// A checkpoint that has not moved for so long belongs to a projector that is away.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Seen {
    /// Last position each tenant wrote through this process.
    tenants: HashMap<TenantId, Position>,
    checkpoint: Position,
    looked: Option<Instant>,
    moved: Option<Instant>,
}

/// What this process knows of its tenants' lead over the read model.
#[derive(Debug)]
pub(crate) struct Pacer {
    seen: Mutex<Seen>,
}

impl Default for Pacer {
    fn default() -> Self {
        let seen = Seen { tenants: HashMap::new(), checkpoint: 0, looked: None, moved: None };
        Pacer { seen: Mutex::new(seen) }
    }
}

impl Pacer {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        // Only numbers are kept, and each step leaves them sound.
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Remembers where a tenant's last write went.
    pub(crate) fn wrote(&self, tenant: &TenantId, position: Position) {
        if position > 0 {
            let mut seen = self.seen();
            match seen.tenants.get_mut(tenant) {
                Some(last) => *last = position.max(*last),
                None => drop(seen.tenants.insert(tenant.clone(), position)),
            }
        }
    }

    fn is_ahead(&self, tenant: &TenantId) -> bool {
        let seen = self.seen();
        seen.tenants.get(tenant).is_some_and(|last| last - seen.checkpoint > AHEAD_EVENTS_MAX)
    }

    /// Whether it is time to look at the checkpoint again, and this caller is the one to do it.
    fn may_look(&self, every: Duration) -> bool {
        let mut seen = self.seen();
        let due = seen.looked.is_none_or(|at| at.elapsed() >= every);
        if due {
            seen.looked = Some(Instant::now());
        }
        due
    }

    fn looked(&self, checkpoint: Position) {
        let mut seen = self.seen();
        if checkpoint != seen.checkpoint || seen.moved.is_none() {
            seen.checkpoint = checkpoint;
            seen.moved = Some(Instant::now());
        }
    }

    fn is_alive(&self) -> bool {
        self.seen().moved.is_none_or(|at| at.elapsed() < ALIVE_WITHIN)
    }
}

impl Store {
    /// Holds a write while its tenant is too far ahead of a projector that moves.
    pub(crate) async fn pace(&self, tenant: &TenantId) {
        if !self.inner.pacer.is_ahead(tenant) {
            return;
        }
        let begun = Instant::now();
        let mut woken = self.wakes().subscribe(Topic::Model);
        while begun.elapsed() < HELD_MAX && self.inner.pacer.is_ahead(tenant) {
            woken.mark_unchanged();
            if self.inner.pacer.may_look(self.limits().poll_interval) {
                match self.model_checkpoint().await {
                    Ok(checkpoint) => self.inner.pacer.looked(checkpoint),
                    // Without an answer there is nothing to pace by.
                    Err(_) => return,
                }
            }
            if !self.inner.pacer.is_alive() {
                return;
            }
            tokio::select! {
                _ = woken.changed() => {}
                () = tokio::time::sleep(self.limits().poll_interval) => {}
            }
        }
        metrics::histogram!("annals_write_paced_seconds").record(begun.elapsed().as_secs_f64());
    }
}

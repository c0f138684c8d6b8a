//! Signs the journal from time to time (D9).

use std::time::Duration;

use annals_bus::Progress;
use annals_domain::clock::Timestamp;
use annals_store::Store;
use annals_store::audit::tree::Tree;

use crate::WorkerError;

/// Longest pause after a failure, and between looks for new events, in milliseconds.
const LOOK_MS: i64 = 60_000;

/// Extends the journal's Merkle tree by a bounded piece, and signs a checkpoint when the last one is old
/// enough and there are new events. Several may run at once: equal trees give equal checkpoints.
#[derive(Debug)]
pub struct Notary {
    store: Store,
    interval_ms: i64,
    /// The tree as far as it was read; none = go on from the last checkpoint.
    tree: Option<Tree>,
    /// Before this, nothing is due.
    due: Option<Timestamp>,
}

impl Notary {
    /// A notary that signs once an interval at most.
    pub fn new(store: Store, interval: Duration) -> Notary {
        let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX);
        Notary { store, interval_ms, tree: None, due: None }
    }

    /// Does a piece of work.
    ///
    /// # Errors
    /// The database fails, or the last checkpoint does not fit the journal: then nothing more is signed
    /// until an operator has looked (`annals audit verify`).
    pub async fn step(&mut self) -> Result<Progress, WorkerError> {
        let now = self.store.now();
        if let Some(due) = self.due.filter(|due| now < *due) {
            return Ok(Progress::idle_until(due));
        }
        let stepped = self.sign(now).await;
        if stepped.is_err() {
            // What is wrong stays wrong until an operator has looked: one line a minute is enough.
            metrics::counter!("annals_audit_checkpoint_errors_total").increment(1);
            self.tree = None;
            self.due = Some(now.plus_ms(LOOK_MS));
        }
        stepped
    }

    async fn sign(&mut self, now: Timestamp) -> Result<Progress, WorkerError> {
        let last = self.store.last_checkpoint().await?;
        let signed = last.as_ref().map_or(0, |(note, _)| note.checkpoint.size);
        if let Some(due) = last.map(|(_, at)| at.plus_ms(self.interval_ms)).filter(|due| now < *due) {
            self.due = Some(due);
            return Ok(Progress::idle_until(due));
        }
        let mut tree = match self.tree.take() {
            Some(tree) if tree.size() >= signed => tree,
            _ => self.store.audit_tree().await?,
        };
        let added = self.store.extend_audit_tree(&mut tree).await?;
        if added > 0 {
            self.tree = Some(tree);
            return Ok(Progress::done(added));
        }
        if tree.size() > signed {
            let note = self.store.sign_checkpoint(&tree).await?;
            tracing::debug!(size = note.checkpoint.size, "signed a checkpoint");
            self.due = Some(now.plus_ms(self.interval_ms));
        } else {
            self.due = Some(now.plus_ms(self.interval_ms.min(LOOK_MS)));
        }
        Ok(self.due.map_or_else(Progress::default, Progress::idle_until))
    }
}

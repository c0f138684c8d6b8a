//! Finishes what deletes left behind.

use annals_bus::Progress;
use annals_store::Store;

use crate::WorkerError;

/// Deleted entities looked after in one step.
const DELETES_PER_STEP: usize = 20;
/// How often an idle janitor looks, in milliseconds.
const LOOK_MS: i64 = 1_000;

/// Drives [`Store::janitor_step`]: memberships and references of deleted entities, a bounded piece at a
/// time. Several may run at once.
#[derive(Clone, Debug)]
pub struct Janitor {
    store: Store,
}

impl Janitor {
    /// A janitor of this store.
    pub fn new(store: Store) -> Janitor {
        Janitor { store }
    }

    /// Does a piece of work.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn step(&mut self) -> Result<Progress, WorkerError> {
        match self.store.janitor_step(DELETES_PER_STEP).await? {
            0 => Ok(Progress::idle_until(self.store.now().plus_ms(LOOK_MS))),
            done => Ok(Progress::done(done)),
        }
    }
}

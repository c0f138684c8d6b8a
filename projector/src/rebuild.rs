//! A rebuild of the read model, step by step (D11).

use annals_store::Store;
use annals_store::model::{PAGE_EVENTS_MAX, RebuildRun, Switched};

use crate::ProjectorError;

/// What a step of a rebuild came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebuilding {
    /// So many rows or events were done, and there is more to do.
    Working(usize),
    /// The rebuilt read model is live; its generation.
    Live(i64),
    /// The rebuilt rows are not what the journal says; why, without values. The old ones stay live, and
    /// the next step starts over.
    Different(String),
}

/// Builds the read model anew beside the live one and makes it live. Dropped half-way it does no harm;
/// once everything is copied, a new one goes on where it was.
#[derive(Debug)]
pub struct Rebuild {
    store: Store,
    run: Option<RebuildRun>,
    copied: bool,
}

impl Rebuild {
    /// A rebuild that has not begun.
    pub fn new(store: Store) -> Rebuild {
        Rebuild { store, run: None, copied: false }
    }

    /// Does the next bounded piece of work. A rebuild that is begun elsewhere ends this one.
    ///
    /// # Errors
    /// The database fails, the journal cannot be read, or another rebuild has begun.
    pub async fn step(&mut self) -> Result<Rebuilding, ProjectorError> {
        let run = match &mut self.run {
            Some(run) => run,
            None => {
                self.copied = false;
                self.run.insert(self.store.rebuild_begin().await?)
            }
        };
        if !self.copied {
            let step = self.store.rebuild_copy(run).await?;
            self.copied = step.finished;
            return Ok(Rebuilding::Working(step.rows));
        }
        let step = self.store.rebuild_catch_up(run).await?;
        // A page behind is close enough: the rest is applied for the comparison.
        if step.behind > PAGE_EVENTS_MAX as i64 {
            return Ok(Rebuilding::Working(step.applied));
        }
        match self.store.rebuild_compare_and_switch(run).await? {
            Switched::Live(generation) => {
                self.run = None;
                Ok(Rebuilding::Live(generation))
            }
            Switched::Behind => Ok(Rebuilding::Working(step.applied)),
            Switched::Compared(keys) => Ok(Rebuilding::Working(step.applied + keys)),
            Switched::Different(reason) => {
                self.run = None;
                Ok(Rebuilding::Different(reason))
            }
        }
    }

    /// Gives the rebuild up. The projector sweeps away what it has written.
    ///
    /// # Errors
    /// The database fails.
    pub async fn cancel(self) -> Result<(), ProjectorError> {
        if let Some(run) = self.run {
            self.store.rebuild_cancel(run).await?;
        }
        Ok(())
    }
}

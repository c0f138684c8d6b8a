//! Journal to stream, feed to read model: everything that follows the journal and can be repeated.
//!
//! A [`Projector`] applies events to the read model, a [`Rebuild`] makes a new read model beside the live
//! one. Each is driven by its `step`; none loops or sleeps by itself.

mod project;
mod rebuild;
pub mod recover;
mod relay;

use annals_bus::BusError;
use annals_store::StoreError;

pub use project::Projector;
pub use rebuild::{Rebuild, Rebuilding};
pub use relay::{LowestCheckpoint, Relay, WINDOW_BYTES_MAX, WINDOW_MESSAGES_MAX};

/// What stops a step. The caller tries again later.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    /// The database failed, or the read model cannot go on with this build.
    #[error("projecting into the read model failed")]
    Store(#[from] StoreError),
    /// The feed gave no events.
    #[error("reading the feed of events failed")]
    Feed(#[from] BusError),
}

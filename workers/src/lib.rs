//! What leaves the house (D12): the planner raises lanes, the deliverer works on them, the janitor
//! finishes deletes, the notary signs the journal.
//!
//! Each is driven by its `step`; none loops by itself. What an answer means ([`delivery`]), when to try
//! again ([`retry`]) and which requests bring a target up to date ([`drivers`]) is decided without I/O.

pub mod delivery;
pub mod drivers;
pub mod http;
pub mod retry;

mod deliver;
mod janitor;
mod notary;
mod plan;

use annals_bus::BusError;
use annals_store::StoreError;

pub use deliver::{Deliverer, WorkerOptions};
pub use http::HttpError;
pub use janitor::Janitor;
pub use notary::Notary;
pub use plan::Planner;

/// What stops a step. The caller tries again later.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The database failed.
    #[error("working on lanes failed")]
    Store(#[from] StoreError),
    /// The feed gave no events.
    #[error("reading the feed of events failed")]
    Feed(#[from] BusError),
    /// There is no HTTP client.
    #[error(transparent)]
    Http(#[from] HttpError),
}

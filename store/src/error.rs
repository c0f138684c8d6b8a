//! What can go wrong in storage, said as what was attempted, with its cause.

use std::path::PathBuf;

use annals_domain::ids::{Position, TenantId};
use annals_domain::scim::error::ScimError;

/// Result of storage functions.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A failure of storage. Look-ups that find nothing are `None`, not errors.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed or is out of reach.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// Migrations failed.
    #[error("bringing the tables up to date failed")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A value could not be handed to the database.
    #[error("an argument could not be encoded: {0}")]
    Bind(String),
    /// The folder of SQLite could not be made.
    #[error("making the folder {path} failed")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The system gave no thread.
    #[error("starting {what} failed")]
    Thread {
        /// What was to run.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A stored value does not have the form this build knows.
    #[error("{what} cannot be read: {reason}")]
    Corrupt {
        /// What was read.
        what: String,
        /// Why, without any value.
        reason: String,
    },
    /// An event was written by a newer build.
    #[error("position {position}: {reason}")]
    Upgrade {
        /// Where.
        position: Position,
        /// What is unknown.
        reason: String,
    },
    /// A key is missing, which is not the same as erased: readers stop.
    #[error("the key {key} is missing: restore the key store before going on")]
    KeyMissing {
        /// Its id.
        key: String,
    },
    /// A sealed value does not open: wrong root key, or it was tampered with.
    #[error("{what} does not open with its key")]
    Unsealable {
        /// What.
        what: String,
    },
    /// The tenant does not exist.
    #[error("tenant {0} does not exist")]
    NoTenant(TenantId),
    /// The request's time ended before it could be done, or a queue is full: come back later.
    #[error("{what}: try again in {retry_after_s} s")]
    Busy {
        /// What was waited for.
        what: &'static str,
        /// When to come back, in seconds.
        retry_after_s: u64,
    },
    /// Writes are stopped until an operator recovers the journal (D5).
    #[error("writes are stopped: {0}")]
    Halted(String),
    /// An export could not be written.
    #[error("writing the export failed")]
    Export(#[source] std::io::Error),
    /// The decision was no; this is for the client.
    #[error(transparent)]
    Refused(#[from] ScimError),
}

impl StoreError {
    pub(crate) fn bind(error: sqlx::error::BoxDynError) -> StoreError {
        StoreError::Bind(error.to_string())
    }

    pub(crate) fn corrupt(what: impl Into<String>, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Corrupt { what: what.into(), reason: reason.to_string() }
    }
}

//! All SQL of Annals, behind one type: [`Store`].
//!
//! Four places of data ([`backend::Area`]): the journal (events, state rows, look-ups, links: the only
//! truth), the keys, the read models and the delivery lanes. Two back ends, SQLite and PostgreSQL, run
//! the same SQL; [`backend`] lists every difference.

pub mod audit;
pub mod backend;
pub mod bench;
pub mod error;
pub mod journal;
pub mod keys;
pub mod lanes;
pub mod model;
pub mod tenants;

mod bus_epoch;
pub mod definitions;
mod execute;
mod pace;
mod password;
mod reactivate;
mod registry;
mod wake;

use std::sync::Arc;
use std::time::Duration;

use annals_domain::clock::{Clock, Entropy, Timestamp};

pub use backend::Database;
pub use bus_epoch::BusEpoch;
pub use error::{Result, StoreError};
pub use execute::{Bulk, BulkOutcome, Executed, Idempotency, IfMatch, Request};
pub use journal::read::{Content, GroupRow, Head, MemberRow, StateRow, StoredEvent};
pub use journal::verify::{Finding, Verification};
pub use keys::RootKey;
pub use password::Account;

use backend::Backend;
use journal::writer::Writer;
use keys::Keys;
use wake::Wakes;

/// What a [`Store`] is opened with.
#[derive(Clone)]
pub struct StoreOptions {
    /// Which database.
    pub database: Database,
    /// The key that wraps every tenant's key.
    pub root_key: RootKey,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of the store's queues and waits.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most commits waiting for the writer, over all tenants.
    pub queue_commits_max: usize,
    /// Most commits in one transaction.
    pub batch_commits_max: usize,
    /// Most links one commit may change (D1): about a second of the counter row.
    pub commit_links_max: usize,
    /// How long a request may be tried again when others moved its versions.
    pub execute_timeout: Duration,
    /// How often waiting readers look for themselves, should a wake-up be lost.
    pub poll_interval: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            queue_commits_max: 4_096,
            batch_commits_max: 1_024,
            commit_links_max: 100_000,
            execute_timeout: Duration::from_secs(10),
            poll_interval: Duration::from_millis(25),
        }
    }
}

/// The storage of one Annals installation. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<Backend>,
    keys: Keys,
    writer: Writer,
    wakes: Arc<Wakes>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    limits: Limits,
    model: model::ModelCache,
    tenants: tenants::TenantCache,
    registries: registry::RegistryCache,
    pacer: pace::Pacer,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("postgres", &self.backend().is_postgres()).finish_non_exhaustive()
    }
}

impl Store {
    /// Connects. Tables are not touched: see [`Store::migrate`].
    ///
    /// # Errors
    /// The database is out of reach, or SQLite's folder cannot be made.
    pub async fn open(options: StoreOptions) -> Result<Store> {
        let backend = Arc::new(Backend::connect(&options.database).await?);
        let wakes = Wakes::start(&backend);
        let keys =
            Keys::new(backend.clone(), options.root_key, options.clock.clone(), options.entropy.clone());
        let writer = Writer::start(
            backend.clone(),
            wakes.clone(),
            options.clock.clone(),
            options.entropy.clone(),
            options.limits.clone(),
        )?;
        Ok(Store {
            inner: Arc::new(Inner {
                backend,
                keys,
                writer,
                wakes,
                clock: options.clock,
                entropy: options.entropy,
                limits: options.limits,
                model: model::ModelCache::default(),
                tenants: tenants::TenantCache::default(),
                registries: registry::RegistryCache::default(),
                pacer: pace::Pacer::default(),
            }),
        })
    }

    /// Brings the tables up to date; several processes may do so at once.
    pub async fn migrate(&self) -> Result<()> {
        self.backend().migrate().await
    }

    /// Whether the tables are those of this build.
    pub async fn is_migrated(&self) -> Result<bool> {
        self.backend().is_migrated().await
    }

    /// Whether the database is PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        self.backend().is_postgres()
    }

    /// The present moment, by the clock given at the start.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// The source of chance given at the start.
    pub fn entropy(&self) -> &Arc<dyn Entropy> {
        &self.inner.entropy
    }

    /// The clock given at the start.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// Bounds given at the start.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Ends the writer after its queue is empty, and closes every connection.
    pub async fn close(&self) {
        self.inner.writer.close().await;
        self.inner.wakes.stop();
        self.backend().close().await;
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.inner.backend
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    pub(crate) fn wakes(&self) -> &Wakes {
        &self.inner.wakes
    }
}

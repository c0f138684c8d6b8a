//! A whole installation in one process, driven by hand: production's steps, a clock that stands still until
//! it is moved, chance from a seed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use annals_api::{ApiOptions, Readiness};
use annals_bus::{Feed, JetStreamFeed, JournalFeed, Nats, NatsOptions, Progress};
use annals_domain::clock::{Clock as _, Timestamp};
use annals_domain::ids::TenantId;
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{App, Driver};
use annals_projector::{Projector, Relay};
use annals_store::{Database, Limits, RootKey, Store, StoreOptions};
use annals_workers::{Deliverer, Janitor, Planner, WorkerOptions};
use anyhow::{Context as _, Result, bail, ensure};
use secrecy::ExposeSecret as _;
use tempfile::TempDir;

use crate::checkers::Checkers;
use crate::clock::{ManualClock, SeededEntropy};
use crate::process::{make_app, make_tenant};
use crate::scim::Scim;
use crate::{nats, postgres};

const ROOT_KEY: [u8; 32] = [7; 32];
/// Longest that [`World::settle`] drives, in the time of the wall: real sockets are in it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
const LEASE_TTL: Duration = Duration::from_secs(30);

/// A part of the system that is driven by steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Journal to stream; only with [`World::nats`].
    Relay,
    /// Events to read model.
    Projector,
    /// Events to lanes.
    Planner,
    /// Lanes to applications.
    Deliverer,
    /// What deletes leave behind.
    Janitor,
}

/// All parts, in the order in which an event passes them.
pub const PARTS: [Part; 5] = [Part::Relay, Part::Projector, Part::Planner, Part::Deliverer, Part::Janitor];

struct Parts {
    relay: Option<Relay>,
    projector: Projector,
    planner: Planner,
    deliverer: Deliverer,
    janitor: Janitor,
}

/// An installation in this process.
pub struct World {
    /// Its storage.
    pub store: Store,
    /// Its time.
    pub clock: Arc<ManualClock>,
    /// Its tenant, `acme`.
    pub tenant: TenantId,
    /// The tenant's token, with every scope.
    pub token: String,
    /// Look at it from outside.
    pub checkers: Checkers,
    /// Its bus, if it has one.
    pub nats: Option<nats::Server>,
    database: Database,
    entropy: Arc<SeededEntropy>,
    parts: Parts,
    /// How often it was started: every start has its own name in leases.
    starts: u32,
    _folder: Option<TempDir>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("database", &self.database).finish_non_exhaustive()
    }
}

impl World {
    /// On SQLite, with chance from `seed`.
    ///
    /// # Errors
    /// The store does not open.
    pub async fn sqlite(seed: u64) -> Result<World> {
        let folder = tempfile::Builder::new().prefix("annals-world-").tempdir().context("making a folder")?;
        let database = Database::Sqlite { dir: folder.path().to_owned() };
        Self::start(database, seed, Some(folder)).await
    }

    /// On a fresh database of the shared PostgreSQL, with chance from `seed`.
    ///
    /// # Errors
    /// The store does not open.
    pub async fn postgres(seed: u64) -> Result<World> {
        let url = postgres::shared().await.create_database().await?;
        Self::start(Database::Postgres { url, connections_max: 8 }, seed, None).await
    }

    async fn start(database: Database, seed: u64, folder: Option<TempDir>) -> Result<World> {
        let clock = ManualClock::new();
        let entropy = SeededEntropy::new(seed);
        let store = open(&database, &clock, &entropy).await?;
        let tenant = TenantId::new("acme")?;
        let token = make_tenant(&store, &tenant, Profile::Generic).await?.expose_secret().to_owned();
        let checkers = Checkers::open(&store, &database, None).await?;
        let parts = build(&store, None, 1).await?;
        Ok(World {
            store,
            clock,
            tenant,
            token,
            checkers,
            nats: None,
            database,
            entropy,
            parts,
            starts: 1,
            _folder: folder,
        })
    }

    /// With this nats-server as its bus.
    ///
    /// # Errors
    /// The server is out of reach.
    pub async fn nats(mut self, server: nats::Server) -> Result<World> {
        self.nats = Some(server);
        self.restart().await?;
        Ok(self)
    }

    /// Throws every part away and opens the store anew, as a process that starts again.
    ///
    /// # Errors
    /// The store does not open.
    pub async fn restart(&mut self) -> Result<()> {
        self.store.close().await;
        self.starts += 1;
        self.store = open(&self.database, &self.clock, &self.entropy).await?;
        let url = self.nats.as_ref().map(nats::Server::url);
        self.parts = build(&self.store, url.as_deref(), self.starts).await?;
        self.checkers = Checkers::open(&self.store, &self.database, url.as_deref()).await?;
        Ok(())
    }

    /// A client of the API, without a socket.
    pub fn api(&self) -> Scim {
        let app = annals_api::App::new(self.store.clone(), ApiOptions::default(), Readiness::new());
        Scim::router(annals_api::router(app), &self.token)
    }

    /// Gives the tenant an application.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn add_app(&self, id: &str, driver: Driver, credential: &str) -> Result<App> {
        make_app(&self.store, &self.tenant, id, driver, credential).await
    }

    /// One step of a part.
    ///
    /// # Errors
    /// The step failed; the next one may do better.
    pub async fn step(&mut self, part: Part) -> Result<Progress> {
        Ok(match part {
            Part::Relay => match &mut self.parts.relay {
                Some(relay) => relay.step().await?,
                None => Progress::idle_until(Timestamp(i64::MAX)),
            },
            Part::Projector => self.parts.projector.step().await?,
            Part::Planner => self.parts.planner.step().await?,
            Part::Deliverer => self.parts.deliverer.step().await?,
            Part::Janitor => self.parts.janitor.step().await?,
        })
    }

    /// Drives every part until nothing is left to do, moving the clock to whatever is waited for.
    ///
    /// # Errors
    /// It does not come to rest; the error says what is left.
    pub async fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut rounds = 0u32;
        loop {
            rounds += 1;
            let mut done = 0;
            let mut wake_at = Timestamp(i64::MAX);
            let mut failed = None;
            let mut in_flight = false;
            for part in PARTS {
                match self.step(part).await {
                    Ok(progress) => {
                        done += progress.done;
                        // A deliverer with requests under way wants to be stepped again at once; what any
                        // other part says of the present moment is that it waits by itself.
                        let now = self.clock.now();
                        let later = progress.wake_at.filter(|at| *at > now);
                        in_flight |= part == Part::Deliverer && progress.wake_at.is_some() && later.is_none();
                        wake_at = later.map_or(wake_at, |at| wake_at.min(at));
                    }
                    Err(error) => failed = Some(error.context(format!("{part:?}"))),
                }
            }
            if (done > 0 || in_flight) && Instant::now() < deadline {
                continue;
            }
            match (failed, self.is_at_rest().await) {
                (None, Ok(())) => return Ok(()),
                (Some(error), _) | (None, Err(error)) if Instant::now() >= deadline => {
                    let now = self.clock.now().0;
                    let why = format!("no rest after {rounds} rounds; it is {now} ms");
                    return Err(error.context(why));
                }
                _ if wake_at < Timestamp(i64::MAX) => self.clock.advance_to(wake_at),
                _ => self.clock.advance(Duration::from_secs(1)),
            }
        }
    }

    async fn is_at_rest(&self) -> Result<()> {
        let head = self.store.head().await?;
        if let Some(reason) = head.halted {
            bail!("writes are stopped: {reason}");
        }
        let checkpoint = self.store.model_checkpoint().await?;
        ensure!(checkpoint == head.position, "the read model is at {checkpoint} of {}", head.position);
        self.checkers.lanes_are_done().await?;
        if self.nats.is_some() {
            self.checkers.stream_is_complete().await?;
        }
        Ok(())
    }
}

async fn open(database: &Database, clock: &Arc<ManualClock>, entropy: &Arc<SeededEntropy>) -> Result<Store> {
    let options = StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes(ROOT_KEY),
        clock: clock.clone(),
        entropy: entropy.clone(),
        limits: Limits::default(),
    };
    let store = Store::open(options).await.context("opening the store")?;
    store.migrate().await.context("making the tables")?;
    Ok(store)
}

async fn build(store: &Store, nats_url: Option<&str>, start: u32) -> Result<Parts> {
    let nats = match nats_url {
        Some(url) => {
            let options = NatsOptions { servers: vec![url.to_owned()], ..NatsOptions::default() };
            Some(Nats::connect(options).await.context("connecting to NATS")?)
        }
        None => None,
    };
    let feed = |name: &str| match &nats {
        Some(nats) => Feed::JetStream(JetStreamFeed::new(store.clone(), nats.clone(), name)),
        None => Feed::Journal(JournalFeed::new(store.clone())),
    };
    // Over sockets an event takes a moment; the journal itself has it at once or not at all.
    let wait = if nats.is_some() { Duration::from_millis(20) } else { Duration::ZERO };
    let owner = format!("world-{start}");
    let options = WorkerOptions {
        owner: owner.clone(),
        allow_private: true,
        request_timeout: Duration::from_secs(5),
        lease_ttl: LEASE_TTL,
        ..WorkerOptions::default()
    };
    Ok(Parts {
        relay: nats.clone().map(|nats| Relay::new(store.clone(), nats, owner).with_idle_wait(wait)),
        projector: Projector::new(store.clone(), feed("projector")).with_wait(wait),
        planner: Planner::new(store.clone(), feed("planner")).waiting(wait),
        deliverer: Deliverer::new(store.clone(), options).context("preparing deliveries")?,
        janitor: Janitor::new(store.clone()),
    })
}

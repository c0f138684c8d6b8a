//! A whole installation in one process, driven by hand: production's steps on two nodes that share one
//! database, a clock that stands still until it is moved, chance from a seed, and crashes at any point.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use annals_api::{ApiOptions, Readiness};
use annals_bus::{Feed, JetStreamFeed, JournalFeed, Nats, NatsOptions, Progress};
use annals_domain::clock::{Clock, Timestamp};
use annals_domain::ids::TenantId;
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{App, Driver};
use annals_projector::{Projector, Rebuild, Rebuilding, Relay};
use annals_store::backend::{Area, Backend, sql};
use annals_store::{Database, Limits, RootKey, Store, StoreOptions};
use annals_workers::{Deliverer, Janitor, Notary, Planner, WorkerOptions};
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
/// How long applications may take to answer, in the time of the wall.
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(300);
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(120);

/// Nodes that share the database.
pub const NODES: usize = 2;
/// How far the nodes' clocks are from [`World::clock`], in ms.
const CLOCK_SKEW_MS: [i64; NODES] = [0, 700];
/// More than the skew.
const SKEW_MARGIN_MS: i64 = 1_000;

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
    /// Signed checkpoints of the journal.
    Notary,
    /// A rebuild of the read model, if one was begun: [`World::begin_rebuild`].
    Rebuild,
}

/// All parts, in the order in which an event passes them.
pub const PARTS: [Part; 7] = [
    Part::Relay,
    Part::Projector,
    Part::Planner,
    Part::Deliverer,
    Part::Janitor,
    Part::Notary,
    Part::Rebuild,
];

struct Parts {
    relay: Option<Relay>,
    projector: Projector,
    planner: Planner,
    deliverer: Deliverer,
    janitor: Janitor,
    notary: Notary,
    rebuild: Option<Rebuild>,
}

struct Node {
    store: Store,
    nats: Option<Nats>,
    parts: Parts,
    /// Its name in leases: no two starts have the same.
    owner: String,
}

/// A tenant with a token that has every scope.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// Its token.
    pub token: String,
}

/// A copy of the read model, to be put back.
#[derive(Debug)]
pub struct SavedModel(Vec<(PathBuf, Vec<u8>)>);

/// An installation in this process.
pub struct World {
    /// Its time. The nodes' own clocks are a little off.
    pub clock: Arc<ManualClock>,
    /// Its tenants.
    pub tenants: Vec<Tenant>,
    /// Look at it from outside.
    pub checkers: Checkers,
    /// Its bus, if it has one.
    pub nats: Option<nats::Server>,
    database: Database,
    entropy: Arc<SeededEntropy>,
    nodes: Vec<Node>,
    /// How often nodes were started.
    starts: u32,
    _folder: Option<TempDir>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("database", &self.database).finish_non_exhaustive()
    }
}

/// A clock that is off by so many ms.
struct Skewed(Arc<ManualClock>, i64);

impl Clock for Skewed {
    fn now(&self) -> Timestamp {
        self.0.now().plus_ms(self.1)
    }
}

/// Runs a future until it has waited `waits` times, then drops it where it is, as a crash would. `None`: it
/// was dropped.
pub async fn cut<F: Future>(future: F, waits: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut left = waits;
    std::future::poll_fn(move |context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

impl World {
    /// On SQLite, with chance from `seed`, and a tenant for each name.
    ///
    /// # Errors
    /// The store does not open.
    pub async fn sqlite(seed: u64, tenants: &[&str]) -> Result<World> {
        let folder = tempfile::Builder::new().prefix("annals-world-").tempdir().context("making a folder")?;
        let database = Database::Sqlite { dir: folder.path().to_owned() };
        Self::start(database, seed, Some(folder), tenants).await
    }

    /// On a fresh database of the shared PostgreSQL, with chance from `seed`, and a tenant for each name.
    ///
    /// # Errors
    /// The store does not open.
    pub async fn postgres(seed: u64, tenants: &[&str]) -> Result<World> {
        let url = postgres::shared().await.create_database().await?;
        Self::start(Database::Postgres { url, connections_max: 8 }, seed, None, tenants).await
    }

    async fn start(
        database: Database,
        seed: u64,
        folder: Option<TempDir>,
        tenants: &[&str],
    ) -> Result<World> {
        let clock = ManualClock::new();
        let entropy = SeededEntropy::new(seed);
        let store = open(&database, &clock, &entropy, 0).await?;
        let mut made = Vec::new();
        for name in tenants {
            let id = TenantId::new(name)?;
            let token = make_tenant(&store, &id, Profile::Generic).await?.expose_secret().to_owned();
            made.push(Tenant { id, token });
        }
        let checkers = Checkers::open(&store, &database, None).await?;
        store.close().await;
        let mut world = World {
            clock,
            tenants: made,
            checkers,
            nats: None,
            database,
            entropy,
            nodes: Vec::new(),
            starts: 0,
            _folder: folder,
        };
        world.start_nodes().await?;
        Ok(world)
    }

    /// With this nats-server as its bus.
    ///
    /// # Errors
    /// The server is out of reach.
    pub async fn nats(mut self, server: nats::Server) -> Result<World> {
        self.nats = Some(server);
        self.stop_nodes().await;
        self.start_nodes().await?;
        Ok(self)
    }

    /// The storage as a node sees it.
    pub fn store(&self, node: usize) -> &Store {
        &self.nodes[node].store
    }

    /// Stops every node in good order.
    async fn stop_nodes(&mut self) {
        for node in std::mem::take(&mut self.nodes) {
            drop(node.parts);
            node.store.close().await;
        }
    }

    async fn start_nodes(&mut self) -> Result<()> {
        for number in 0..NODES {
            let node = self.start_node(number).await?;
            self.nodes.push(node);
        }
        self.look_anew().await
    }

    async fn start_node(&mut self, number: usize) -> Result<Node> {
        self.starts += 1;
        let owner = format!("node-{number}-{}", self.starts);
        let store = open(&self.database, &self.clock, &self.entropy, number).await?;
        let nats = match &self.nats {
            Some(server) => {
                let options = NatsOptions { servers: vec![server.url()], ..NatsOptions::default() };
                Some(Nats::connect(options).await.context("connecting to NATS")?)
            }
            None => None,
        };
        let parts = Parts {
            relay: relay(&store, nats.as_ref(), &owner),
            projector: projector(&store, nats.as_ref()),
            planner: planner(&store, nats.as_ref()),
            deliverer: deliverer(&store, &owner)?,
            janitor: Janitor::new(store.clone()),
            notary: Notary::new(store.clone(), CHECKPOINT_INTERVAL),
            rebuild: None,
        };
        Ok(Node { store, nats, parts, owner })
    }

    async fn look_anew(&mut self) -> Result<()> {
        let url = self.nats.as_ref().map(nats::Server::url);
        self.checkers = Checkers::open(&self.nodes[0].store, &self.database, url.as_deref()).await?;
        Ok(())
    }

    /// A node dies with everything that is in work, and starts again. What its writer has taken is written.
    ///
    /// # Errors
    /// The store does not open.
    pub async fn crash(&mut self, number: usize) -> Result<()> {
        // While the old one still lies there, nobody closes what it had open.
        self.nodes[number] = self.start_node(number).await?;
        arrive().await;
        self.look_anew().await
    }

    /// Stops everything in good order and starts it again.
    ///
    /// # Errors
    /// The store does not open.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop_nodes().await;
        self.start_nodes().await
    }

    /// A client of a node's API, without a socket.
    pub fn api(&self, node: usize, tenant: usize) -> Scim {
        let store = self.nodes[node].store.clone();
        let app = annals_api::App::new(store, ApiOptions::default(), Readiness::new());
        Scim::router(annals_api::router(app), &self.tenants[tenant].token)
    }

    /// Gives a tenant an application.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn add_app(&self, tenant: usize, id: &str, driver: Driver, credential: &str) -> Result<App> {
        make_app(&self.nodes[0].store, &self.tenants[tenant].id, id, driver, credential).await
    }

    /// One step of a part.
    ///
    /// # Errors
    /// The step failed; the next one may do better.
    pub async fn step(&mut self, node: usize, part: Part) -> Result<Progress> {
        self.nodes[node].step(part).await
    }

    /// One step of a part on every node, at the same time.
    pub async fn step_everywhere(&mut self, part: Part) -> Vec<Result<Progress>> {
        futures::future::join_all(self.nodes.iter_mut().map(|node| node.step(part))).await
    }

    /// A step that ends in a crash of its part after it has waited `waits` times. `false`: it was faster.
    ///
    /// # Errors
    /// The part cannot be made anew.
    pub async fn crash_step(&mut self, node: usize, part: Part, waits: usize) -> Result<bool> {
        let node = &mut self.nodes[node];
        let ended = cut(node.step(part), waits).await.is_some();
        node.renew(part)?;
        arrive().await;
        Ok(!ended)
    }

    /// Runs a request while a node's projector works, as it may wait for that.
    ///
    /// # Errors
    /// A projector's step failed.
    pub async fn with_projector<T: Send + 'static>(
        &mut self,
        node: usize,
        request: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        // A task of its own: what it holds while it waits, the projector may wait for.
        let request = tokio::spawn(request);
        while !request.is_finished() {
            self.nodes[node].step(Part::Projector).await.context("a projector's step")?;
            tokio::task::yield_now().await;
        }
        request.await.context("the request's task")
    }

    /// Begins a rebuild of the read model on a node.
    pub fn begin_rebuild(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.parts.rebuild.get_or_insert_with(|| Rebuild::new(node.store.clone()));
    }

    /// Gives a node's rebuild up.
    ///
    /// # Errors
    /// The database fails.
    pub async fn cancel_rebuild(&mut self, node: usize) -> Result<()> {
        if let Some(rebuild) = self.nodes[node].parts.rebuild.take() {
            rebuild.cancel().await.context("cancelling a rebuild")?;
        }
        Ok(())
    }

    /// Copies the read model, between a stop and a start of everything.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn save_model(&mut self) -> Result<SavedModel> {
        self.stop_nodes().await;
        let mut saved = Vec::new();
        match &self.database {
            Database::Sqlite { .. } => {
                for file in self.model_files() {
                    if file.exists() {
                        let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
                        saved.push((file, bytes));
                    }
                }
            }
            Database::Postgres { .. } => {
                let raw = Backend::connect(&self.database).await.context("opening the tables")?;
                let tables = tables_of_model(&raw).await?;
                raw.execute(Area::Model, sql("DROP SCHEMA IF EXISTS saved CASCADE")).await?;
                raw.execute(Area::Model, sql("CREATE SCHEMA saved")).await?;
                for table in tables {
                    let copy = format!("CREATE TABLE saved.{table} AS SELECT * FROM model.{table}");
                    raw.execute(Area::Model, sql(copy)).await?;
                }
                raw.close().await;
            }
        }
        self.start_nodes().await?;
        Ok(SavedModel(saved))
    }

    /// Puts a read model of an earlier time back, between a stop and a start of everything.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn restore_model(&mut self, saved: &SavedModel) -> Result<()> {
        self.stop_nodes().await;
        match &self.database {
            Database::Sqlite { .. } => {
                // The checkers hold the files open.
                self.checkers.close().await;
                for file in self.model_files() {
                    if file.exists() {
                        std::fs::remove_file(&file).with_context(|| file.display().to_string())?;
                    }
                }
                for (file, bytes) in &saved.0 {
                    std::fs::write(file, bytes).with_context(|| file.display().to_string())?;
                }
            }
            Database::Postgres { .. } => {
                let raw = Backend::connect(&self.database).await.context("opening the tables")?;
                let tables = tables_of_model(&raw).await?;
                let mut tx = raw.begin_write(Area::Model).await?;
                for table in tables {
                    tx.execute(sql(format!("DELETE FROM model.{table}"))).await?;
                    tx.execute(sql(format!("INSERT INTO model.{table} SELECT * FROM saved.{table}"))).await?;
                }
                tx.commit().await?;
                raw.close().await;
            }
        }
        self.start_nodes().await
    }

    fn model_files(&self) -> Vec<PathBuf> {
        let Database::Sqlite { dir } = &self.database else { return Vec::new() };
        ["model.db", "model.db-wal", "model.db-shm"].map(|name| dir.join(name)).to_vec()
    }

    /// Drives every part until nothing is left to do, moving the clock to whatever is waited for.
    ///
    /// # Errors
    /// It does not come to rest; the error says what is left. Or a rebuild differs from the journal.
    pub async fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut rounds = 0u32;
        loop {
            rounds += 1;
            let mut done = 0;
            let mut wake_at = Timestamp(i64::MAX);
            let mut failed = None;
            let mut in_flight = false;
            for node in &mut self.nodes {
                for part in PARTS {
                    match node.step(part).await {
                        Ok(progress) => {
                            done += progress.done;
                            // A deliverer with requests under way wants to be stepped again at once; what
                            // any other part says of the present moment is that it waits by itself.
                            let now = node.store.now();
                            let later = progress.wake_at.filter(|at| *at > now);
                            in_flight |=
                                part == Part::Deliverer && progress.wake_at.is_some() && later.is_none();
                            if part != Part::Notary {
                                wake_at = later.map_or(wake_at, |at| wake_at.min(at));
                            }
                        }
                        Err(error) if error.is::<Differs>() => return Err(error),
                        Err(error) => failed = Some(error.context(format!("{part:?}"))),
                    }
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
                _ if wake_at < Timestamp(i64::MAX) => {
                    let at = wake_at.max(self.clock.now());
                    self.clock.advance_to(at.plus_ms(SKEW_MARGIN_MS));
                }
                _ => self.clock.advance(Duration::from_secs(1)),
            }
        }
    }

    async fn is_at_rest(&self) -> Result<()> {
        let store = &self.nodes[0].store;
        let head = store.head().await?;
        if let Some(reason) = head.halted {
            bail!("writes are stopped: {reason}");
        }
        let checkpoint = store.model_checkpoint().await?;
        ensure!(checkpoint == head.position, "the read model is at {checkpoint} of {}", head.position);
        self.checkers.lanes_are_done().await?;
        self.checkers.nothing_is_pending().await?;
        if self.nats.is_some() {
            self.checkers.stream_is_complete().await?;
        }
        Ok(())
    }
}

/// A rebuild came to other rows than the journal says.
#[derive(Debug)]
pub struct Differs(String);

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a rebuilt read model differs from the journal: {}", self.0)
    }
}

impl std::error::Error for Differs {}

impl Node {
    async fn step(&mut self, part: Part) -> Result<Progress> {
        let parts = &mut self.parts;
        let nothing = Progress::idle_until(Timestamp(i64::MAX));
        Ok(match part {
            Part::Relay => match &mut parts.relay {
                Some(relay) => relay.step().await?,
                None => nothing,
            },
            Part::Projector => parts.projector.step().await?,
            Part::Planner => parts.planner.step().await?,
            Part::Deliverer => parts.deliverer.step().await?,
            Part::Janitor => parts.janitor.step().await?,
            Part::Notary => parts.notary.step().await?,
            Part::Rebuild => {
                let Some(rebuild) = &mut parts.rebuild else { return Ok(nothing) };
                match rebuild.step().await {
                    Ok(Rebuilding::Working(done)) => Progress::done(done.max(1)),
                    Ok(Rebuilding::Live(_)) => {
                        parts.rebuild = None;
                        Progress::done(1)
                    }
                    Ok(Rebuilding::Different(reason)) => return Err(Differs(reason).into()),
                    // Another one began, or the database failed: an operator would begin anew.
                    Err(error) => {
                        parts.rebuild = None;
                        return Err(error.into());
                    }
                }
            }
        })
    }

    /// Makes a part anew, as a process that starts.
    fn renew(&mut self, part: Part) -> Result<()> {
        let (store, nats) = (&self.store, self.nats.as_ref());
        match part {
            Part::Relay => self.parts.relay = relay(store, nats, &self.owner),
            Part::Projector => self.parts.projector = projector(store, nats),
            Part::Planner => self.parts.planner = planner(store, nats),
            Part::Deliverer => self.parts.deliverer = deliverer(store, &self.owner)?,
            Part::Janitor => self.parts.janitor = Janitor::new(store.clone()),
            Part::Notary => self.parts.notary = Notary::new(store.clone(), CHECKPOINT_INTERVAL),
            Part::Rebuild => self.parts.rebuild = None,
        }
        Ok(())
    }
}

/// Lets applications take what a deliverer sent before it died. A request is under way for less time than its
/// lease lasts, but here the clock may jump at any moment.
async fn arrive() {
    const TURNS: usize = 1_000;
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// Over sockets an event takes a moment; the journal itself has it at once or not at all.
fn wait(nats: Option<&Nats>) -> Duration {
    if nats.is_some() { Duration::from_millis(20) } else { Duration::ZERO }
}

fn feed(store: &Store, nats: Option<&Nats>, name: &str) -> Feed {
    match nats {
        Some(nats) => Feed::JetStream(JetStreamFeed::new(store.clone(), nats.clone(), name)),
        None => Feed::Journal(JournalFeed::new(store.clone())),
    }
}

fn relay(store: &Store, nats: Option<&Nats>, owner: &str) -> Option<Relay> {
    let relay = Relay::new(store.clone(), nats?.clone(), owner);
    Some(relay.with_idle_wait(wait(nats)))
}

fn projector(store: &Store, nats: Option<&Nats>) -> Projector {
    Projector::new(store.clone(), feed(store, nats, "projector")).with_wait(wait(nats))
}

fn planner(store: &Store, nats: Option<&Nats>) -> Planner {
    Planner::new(store.clone(), feed(store, nats, "planner")).waiting(wait(nats))
}

fn deliverer(store: &Store, owner: &str) -> Result<Deliverer> {
    let options = WorkerOptions {
        owner: owner.to_owned(),
        allow_private: true,
        request_timeout: REQUEST_TIMEOUT,
        lease_ttl: LEASE_TTL,
        ..WorkerOptions::default()
    };
    Deliverer::new(store.clone(), options).context("preparing deliveries")
}

async fn tables_of_model(raw: &Backend) -> Result<Vec<String>> {
    let select = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'model'";
    let rows = raw.fetch_all(Area::Model, sql(select)).await.context("listing the read model's tables")?;
    rows.iter().map(|row| Ok(row.text(0)?)).collect()
}

async fn open(
    database: &Database,
    clock: &Arc<ManualClock>,
    entropy: &Arc<SeededEntropy>,
    node: usize,
) -> Result<Store> {
    let options = StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes(ROOT_KEY),
        clock: Arc::new(Skewed(clock.clone(), CLOCK_SKEW_MS[node])),
        entropy: entropy.clone(),
        limits: Limits::default(),
    };
    let store = Store::open(options).await.context("opening the store")?;
    store.migrate().await.context("making the tables")?;
    Ok(store)
}

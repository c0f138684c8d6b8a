//! The real `annals` binary as child processes: what a user would run, killed as a machine would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use annals_domain::event::Actor;
use annals_domain::ids::{AppId, ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{App, Connection, Driver, Scope, TenantSettings};
use annals_store::{Database, Limits, RootKey, Store, StoreOptions};
use anyhow::{Context as _, Result, ensure};
use secrecy::{ExposeSecret as _, SecretString};
use tempfile::TempDir;

use crate::child::{Child, free_port, wait_for};
use crate::clock::{OsEntropy, SystemClock};
use crate::scim::Scim;
use crate::{http, nats, postgres};

const ROOT_KEY_HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// A process may take its whole grace to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// What a process of Annals is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything in one process.
    Serve,
    /// The SCIM endpoint.
    Api,
    /// Relay and read models.
    Projector,
    /// Delivery.
    Worker,
}

impl Role {
    fn command(self) -> &'static str {
        match self {
            Role::Serve => "serve",
            Role::Api => "api",
            Role::Projector => "projector",
            Role::Worker => "worker",
        }
    }
}

/// One installation: a database, a configuration, and a folder for its logs. Its processes are started
/// from it and share it.
#[derive(Debug)]
pub struct Installation {
    binary: PathBuf,
    folder: TempDir,
    database: Database,
    environment: Vec<(String, String)>,
}

impl Installation {
    /// On SQLite, in a temporary folder. `binary` is `env!("CARGO_BIN_EXE_annals")`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn sqlite(binary: impl Into<PathBuf>) -> Result<Installation> {
        let folder = tempfile::Builder::new().prefix("annals-").tempdir().context("making a folder")?;
        let dir = folder.path().join("data");
        let mut installation = Self::new(binary.into(), folder, Database::Sqlite { dir: dir.clone() })?;
        installation.set("ANNALS_STORAGE__DATA_DIR", dir.display());
        Ok(installation)
    }

    /// On a fresh database of the shared PostgreSQL.
    ///
    /// # Errors
    /// The database cannot be made.
    pub async fn postgres(binary: impl Into<PathBuf>) -> Result<Installation> {
        let url = postgres::shared().await.create_database().await?;
        let folder = tempfile::Builder::new().prefix("annals-").tempdir().context("making a folder")?;
        let database = Database::Postgres { url: url.clone(), connections_max: 8 };
        let mut installation = Self::new(binary.into(), folder, database)?;
        installation.set("ANNALS_STORAGE__URL", url);
        installation.set("ANNALS_STORAGE__CONNECTIONS_MAX", 8);
        Ok(installation)
    }

    fn new(binary: PathBuf, folder: TempDir, database: Database) -> Result<Installation> {
        let key_file = folder.path().join("root.key");
        std::fs::write(&key_file, ROOT_KEY_HEX).context("writing the root key")?;
        let mut installation = Installation { binary, folder, database, environment: Vec::new() };
        installation.set("ANNALS_STORAGE__ROOT_KEY_FILE", key_file.display());
        // Downstream applications of the tests live on loopback, without TLS.
        installation.set("ANNALS_WORKERS__ALLOW_PRIVATE", true);
        // A killed worker's leases last longer than a request may take.
        installation.set("ANNALS_WORKERS__REQUEST_TIMEOUT_S", 5);
        Ok(installation)
    }

    /// Sets a variable for every process started from now on.
    pub fn set(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Takes a variable away again.
    pub fn unset(&mut self, name: &str) -> &mut Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// With this nats-server as its bus.
    #[must_use]
    pub fn with_nats(mut self, server: &nats::Server) -> Installation {
        self.set("ANNALS_NATS__URL", server.url());
        self
    }

    /// Its folder: logs, and on SQLite the data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Which database it uses.
    pub fn database(&self) -> &Database {
        &self.database
    }

    fn prepare(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        // No setting of the one who runs the tests leaks in, least of all a proxy.
        let keep = ["PATH", "HOME", "TMPDIR", "LANG", "TZ"];
        let kept = keep.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        command.args(arguments).env_clear().envs(kept).current_dir(self.folder.path());
        command.env("NO_COLOR", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command of the binary to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.prepare(arguments);
        command.stdin(Stdio::null());
        let name = arguments.join(" ");
        let output = tokio::task::spawn_blocking(move || command.output()).await.context("the runtime")?;
        output.with_context(|| format!("running annals {name}"))
    }

    /// Starts a process and waits until it is ready.
    ///
    /// # Errors
    /// It ends or does not become ready; the error shows its log.
    pub async fn start(&self, role: Role) -> Result<Process> {
        let process = self.spawn(role, free_port()?)?;
        process.ready().await
    }

    /// Starts a process without waiting for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, role: Role, port: u16) -> Result<Process> {
        let address = format!("127.0.0.1:{port}");
        let mut command = self.prepare(&[role.command()]);
        match role {
            Role::Serve | Role::Api => command.env("ANNALS_HTTP__LISTEN", &address),
            Role::Projector | Role::Worker => command.env("ANNALS_HTTP__HEALTH_LISTEN", &address),
        };
        let log = self.folder.path().join(format!("{}-{port}.log", role.command()));
        let child = Child::spawn(role.command(), &mut command, &log, Some(self.folder.path()))?;
        Ok(Process { role, port, child })
    }

    /// Starts a process again where the given one was: same role, same port, same log.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn restart(&self, mut process: Process) -> Result<Process> {
        process.kill_9();
        self.spawn(process.role, process.port)?.ready().await
    }

    /// Everything that its processes have logged.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        let entries = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "log")) {
            let bytes = std::fs::read(&path).unwrap_or_default();
            all.push_str(&format!("== {}\n{}", path.display(), String::from_utf8_lossy(&bytes)));
        }
        all
    }

    /// Opens its database from the test, beside whatever process runs, with the tables up to date.
    ///
    /// # Errors
    /// The database is out of reach.
    pub async fn open_store(&self) -> Result<Store> {
        let options = StoreOptions {
            database: self.database.clone(),
            root_key: RootKey::from_hex(ROOT_KEY_HEX).context("the test's root key")?,
            clock: Arc::new(SystemClock),
            entropy: Arc::new(OsEntropy),
            limits: Limits::default(),
        };
        let store = Store::open(options).await.context("opening the installation's store")?;
        store.migrate().await.context("making the installation's tables")?;
        Ok(store)
    }
}

/// A running process of Annals.
#[derive(Debug)]
pub struct Process {
    role: Role,
    port: u16,
    child: Child,
}

impl Process {
    /// Its root URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its SCIM base URL.
    pub fn scim_url(&self) -> String {
        format!("{}/scim/v2", self.url())
    }

    /// A client with that token.
    pub fn scim(&self, token: &str) -> Scim {
        Scim::http(&self.scim_url(), token)
    }

    /// What it is there for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it logged, and its predecessors at this port.
    pub fn log(&self) -> String {
        self.child.log()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.ended().is_none()
    }

    /// Waits until `/health/ready` answers 200.
    ///
    /// # Errors
    /// It ends before, or the time does; the error shows the log.
    pub async fn ready(mut self) -> Result<Process> {
        let client = http::client();
        let url = format!("{}/health/ready", self.url());
        let ready =
            wait_for(&format!("annals {} to be ready", self.role.command()), READY_TIMEOUT, async || {
                if let Some(status) = self.child.ended() {
                    return Ok(Err(anyhow::anyhow!("it ended: {status}")));
                }
                let answer = client.get(&url).timeout(Duration::from_secs(5)).send().await?;
                let status = answer.status();
                ensure!(status.is_success(), "{status}: {}", answer.text().await.unwrap_or_default());
                Ok(Ok(()))
            })
            .await;
        match ready.and_then(|inner| inner) {
            Ok(()) => Ok(self),
            Err(error) => Err(error.context(format!("annals {}\n{}", self.role.command(), self.log()))),
        }
    }

    /// `kill -9`.
    pub fn kill_9(&mut self) {
        self.child.kill_9();
    }

    /// Sends a signal by name.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        self.child.signal(name)
    }

    /// SIGTERM, and waits for an orderly end.
    ///
    /// # Errors
    /// It does not end, or not with success.
    pub fn terminate(mut self) -> Result<()> {
        let status = self.child.terminate(STOP_TIMEOUT)?;
        ensure!(status.success(), "annals {} ended with {status}\n{}", self.role.command(), self.log());
        Ok(())
    }
}

/// A tenant with one connection and a token, made behind the API's back.
///
/// # Errors
/// The store refuses.
pub async fn make_tenant(store: &Store, tenant: &TenantId, profile: Profile) -> Result<SecretString> {
    let actor = Actor::operator("test");
    let settings = TenantSettings::default();
    store.create_tenant(tenant, settings, actor.clone()).await.context("making the tenant")?;
    let id = ConnectionId::new("idp")?;
    let connection = Connection::new(id.clone(), profile);
    store.create_connection(tenant, connection, actor.clone()).await.context("making the connection")?;
    let scopes = vec![Scope::Read, Scope::Write, Scope::Admin, Scope::Events];
    let issued = store.issue_token(tenant, &id, scopes, None, actor).await.context("issuing a token")?;
    Ok(SecretString::from(issued.secret.expose_secret().to_owned()))
}

/// An application of a tenant, fed by `driver`.
///
/// # Errors
/// The store refuses.
pub async fn make_app(
    store: &Store,
    tenant: &TenantId,
    id: &str,
    driver: Driver,
    credential: &str,
) -> Result<App> {
    let app = App {
        id: AppId::new(id)?,
        driver,
        resource_types: Vec::new(),
        paused: false,
        concurrency_max: 8,
        rate_per_second_max: 0,
    };
    let credential = SecretString::from(credential.to_owned());
    let actor = Actor::operator("test");
    store.create_app(tenant, app.clone(), credential, actor).await.context("making the application")?;
    Ok(app)
}

//! A whole running system in one line: its processes, its servers, a tenant with a client.

use std::path::PathBuf;
use std::time::Duration;

use annals_domain::ids::TenantId;
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{App, Driver};
use annals_store::Store;
use anyhow::{Context as _, Result, ensure};
use secrecy::ExposeSecret as _;

use crate::checkers::Checkers;
use crate::child::wait_for;
use crate::nats;
use crate::process::{Installation, Process, Role, make_app, make_tenant};
use crate::scim::Scim;

/// How long a system may take to deliver everything once it is left alone.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(180);

/// The processes of [`Cluster::scaled`].
pub const SCALED: [Role; 5] = [Role::Api, Role::Api, Role::Projector, Role::Worker, Role::Worker];

/// A running system.
#[derive(Debug)]
pub struct Cluster {
    /// What its processes are started from.
    pub installation: Installation,
    /// Its bus, if it has one.
    pub nats: Option<nats::Server>,
    /// Its processes. An embedded system has one.
    pub processes: Vec<Process>,
    /// Its database, opened beside the processes.
    pub store: Store,
    /// Looks at it from outside.
    pub checkers: Checkers,
    /// The tenant.
    pub tenant: TenantId,
    /// The tenant's token, with every scope.
    pub token: String,
}

impl Cluster {
    /// `annals serve` on SQLite.
    ///
    /// # Errors
    /// It does not start.
    pub async fn embedded(binary: impl Into<PathBuf>, profile: Profile) -> Result<Cluster> {
        let installation = Installation::sqlite(binary)?;
        Self::start(installation, None, profile, &[Role::Serve]).await
    }

    /// Two `api`, one `projector` and two `worker` on PostgreSQL and NATS.
    ///
    /// # Errors
    /// It does not start.
    pub async fn scaled(binary: impl Into<PathBuf>, profile: Profile) -> Result<Cluster> {
        let nats = nats::Server::start().await?;
        Self::scaled_on(binary, profile, nats).await
    }

    /// Likewise, on the given nats-server.
    ///
    /// # Errors
    /// It does not start.
    pub async fn scaled_on(
        binary: impl Into<PathBuf>,
        profile: Profile,
        nats: nats::Server,
    ) -> Result<Cluster> {
        let installation = Installation::postgres(binary).await?.with_nats(&nats);
        Self::start(installation, Some(nats), profile, &SCALED).await
    }

    /// Processes of these roles on an installation that was set up by hand.
    ///
    /// # Errors
    /// One does not start.
    pub async fn start(
        installation: Installation,
        nats: Option<nats::Server>,
        profile: Profile,
        roles: &[Role],
    ) -> Result<Cluster> {
        let store = installation.open_store().await?;
        let tenant = TenantId::new("acme")?;
        let token = make_tenant(&store, &tenant, profile).await?.expose_secret().to_owned();
        let mut processes = Vec::new();
        for role in roles {
            processes.push(installation.start(*role).await?);
        }
        let nats_url = nats.as_ref().map(nats::Server::url);
        let checkers = Checkers::open(&store, installation.database(), nats_url.as_deref()).await?;
        Ok(Cluster { installation, nats, processes, store, checkers, tenant, token })
    }

    /// One client for each process that serves SCIM.
    pub fn clients(&self) -> Vec<Scim> {
        let serving = self.processes.iter().filter(|p| matches!(p.role(), Role::Serve | Role::Api));
        serving.map(|process| process.scim(&self.token)).collect()
    }

    /// A client of the first process that serves SCIM.
    pub fn scim(&self) -> Scim {
        self.clients().swap_remove(0)
    }

    /// Gives the tenant an application.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn add_app(&self, id: &str, driver: Driver, credential: &str) -> Result<App> {
        make_app(&self.store, &self.tenant, id, driver, credential).await
    }

    /// Kills a process by its number and starts it again.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn crash(&mut self, number: usize) -> Result<()> {
        self.processes[number].kill_9();
        let (role, port) = (self.processes[number].role(), self.processes[number].port());
        self.processes[number] = self.installation.spawn(role, port)?.ready().await?;
        Ok(())
    }

    /// Waits until everything written so far is applied, published and delivered.
    ///
    /// # Errors
    /// It does not come to rest; the error says what is left, with the processes' logs.
    pub async fn settle(&self) -> Result<()> {
        let settled = wait_for("the system to come to rest", SETTLE_TIMEOUT, async || {
            let head = self.store.head().await?;
            ensure!(head.halted.is_none(), "writes are stopped: {:?}", head.halted);
            let checkpoint = self.store.model_checkpoint().await?;
            ensure!(checkpoint >= head.position, "the read model is at {checkpoint} of {}", head.position);
            self.checkers.lanes_are_done().await?;
            if self.nats.is_some() {
                self.checkers.stream_is_complete().await?;
            }
            let now = self.store.head().await?.position;
            ensure!(now == head.position, "the journal still grows");
            Ok(())
        })
        .await;
        settled.with_context(|| self.tail())
    }

    /// Proves everything about the system at rest (design: "Checkers").
    ///
    /// # Errors
    /// Names what does not hold.
    pub async fn check(&self) -> Result<()> {
        self.settle().await?;
        self.checkers.all().await.with_context(|| self.tail())
    }

    /// The end of every process's log, for a failing test to show: what is not about single requests.
    fn tail(&self) -> String {
        const LINES: usize = 25;
        let mut all = String::new();
        for process in &self.processes {
            let log = process.log();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" answered ")).collect();
            let last = lines.len().saturating_sub(LINES);
            all.push_str(&format!(
                "== {:?} {}\n{}\n",
                process.role(),
                process.url(),
                lines[last..].join("\n")
            ));
        }
        all
    }
}

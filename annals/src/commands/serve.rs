//! `annals serve`, `api`, `projector` and `worker`: the same process with more or fewer roles.

use std::sync::Arc;

use annals_api::{App, Readiness};
use annals_domain::event::Actor;
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Connection, Scope, TenantSettings};
use annals_store::Store;
use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::telemetry::{self, OsEntropy, SystemClock};
use crate::wiring;

/// Which parts a process runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roles {
    api: bool,
    projector: bool,
    worker: bool,
}

impl Roles {
    /// Everything.
    pub(crate) const ALL: Roles = Roles { api: true, projector: true, worker: true };
    /// SCIM over HTTP.
    pub(crate) const API: Roles = Roles { api: true, projector: false, worker: false };
    /// Relay and read model.
    pub(crate) const PROJECTOR: Roles = Roles { api: false, projector: true, worker: false };
    /// Deliveries.
    pub(crate) const WORKER: Roles = Roles { api: false, projector: false, worker: true };

    fn name(self) -> &'static str {
        match (self.api, self.projector, self.worker) {
            (true, true, true) => "serve",
            (true, ..) => "api",
            (_, true, _) => "projector",
            _ => "worker",
        }
    }
}

/// Runs until told to stop.
pub(crate) async fn run(config: Config, roles: Roles) -> anyhow::Result<()> {
    if config.is_embedded() && !(roles.api && roles.projector && roles.worker) {
        bail!(
            "SQLite is for one process: run `annals serve`, or set storage.url to a PostgreSQL database to \
             run `annals {}` by itself",
            roles.name()
        );
    }
    let metrics = telemetry::start_metrics()?;
    let store = config.open_store(Arc::new(SystemClock), Arc::new(OsEntropy)).await?;
    prepare(&config, &store).await?;
    // Taken before anything is printed: an address in use must be the only thing said.
    let listener = listen(&config, roles).await?;
    let greeting = match (roles.api && roles.projector, &listener) {
        (true, Some(listener)) => first_start(&config, &store, listener).await?,
        _ => None,
    };
    if let Some(reason) = store.head().await?.halted {
        tracing::error!(reason, "writes are stopped: see what `annals recover` says");
    }
    let mut lifecycle = Lifecycle::new()?;
    let readiness = Readiness::new();
    wiring::start_parts(&mut lifecycle, &config, &store, roles.projector, roles.worker).await?;
    if let Some(listener) = listener {
        let address = listener.local_addr()?;
        let render = metrics.clone();
        let app = App::new(store.clone(), wiring::api_options(&config), readiness.clone())
            .with_metrics(Arc::new(move || render.render()));
        let router = if roles.api { annals_api::router(app) } else { annals_api::health_router(app) };
        let (stop, readiness) = (lifecycle.stop_token(), readiness.clone());
        let bounds = wiring::connection_bounds(&config);
        lifecycle.run(async move {
            crate::server::serve(listener, router, bounds, stop, || readiness.stop()).await;
        });
        tracing::info!(role = roles.name(), %address, "annals is listening");
    }
    if let Some(greeting) = greeting {
        println!("{greeting}");
    }
    let upkeep = metrics.clone();
    let stop = lifecycle.stop_token();
    lifecycle.run(async move {
        let mut tick = tokio::time::interval(std::time::Duration::from_secs(5));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => upkeep.run_upkeep(),
            }
        }
    });
    lifecycle.wait().await;
    store.close().await;
    tracing::info!("stopped");
    Ok(())
}

async fn prepare(config: &Config, store: &Store) -> anyhow::Result<()> {
    if config.storage.migrate_at_start {
        store.migrate().await.context("bringing the tables up to date")?;
    } else if !store.is_migrated().await? {
        bail!("the tables are not up to date: run `annals migrate`");
    }
    Ok(())
}

async fn listen(config: &Config, roles: Roles) -> anyhow::Result<Option<TcpListener>> {
    let address = if roles.api {
        config.check_tls()?;
        config.http.listen.to_string()
    } else if config.http.health_listen.is_empty() {
        return Ok(None);
    } else {
        config.http.health_listen.clone()
    };
    let listener = TcpListener::bind(&address).await.with_context(|| {
        format!("listening on {address} (another address: ANNALS_HTTP__LISTEN=127.0.0.1:8081)")
    })?;
    Ok(Some(listener))
}

/// On an empty store: makes a tenant, a connection and a token, and says how to use them, once.
async fn first_start(
    config: &Config,
    store: &Store,
    listener: &TcpListener,
) -> anyhow::Result<Option<String>> {
    if store.head().await?.position > 0 {
        return Ok(None);
    }
    let actor = Actor::system("first-start");
    let (tenant, connection) = (TenantId::new("default")?, ConnectionId::new("idp")?);
    store.create_tenant(&tenant, TenantSettings::default(), actor.clone()).await?;
    let entity = Connection::new(connection.clone(), Profile::Generic);
    store.create_connection(&tenant, entity, actor.clone()).await?;
    let scopes = vec![Scope::Read, Scope::Write];
    let issued = store.issue_token(&tenant, &connection, scopes, None, actor).await?;
    let base = match config.http.base_url.is_empty() {
        true => format!("http://{}", listener.local_addr()?),
        false => config.http.base_url.trim_end_matches('/').to_owned(),
    };
    Ok(Some(greeting(&base, &tenant, &issued.secret)))
}

fn greeting(base: &str, tenant: &TenantId, token: &SecretString) -> String {
    let token = token.expose_secret();
    format!(
        "\nAnnals is ready, with everything in this one process.\n\n\
         \x20 SCIM base URL  {base}/scim/v2\n\
         \x20 tenant         {tenant}\n\
         \x20 token          {token}\n\n\
         The token is shown this once. More: annals connection token-issue {tenant} idp\n\
         Try it:\n\n\
         curl -i {base}/scim/v2/Users -H 'Authorization: Bearer {token}' \
         -H 'Content-Type: application/scim+json' \
         -d '{{\"schemas\":[\"urn:ietf:params:scim:schemas:core:2.0:User\"],\"userName\":\"ada@example.com\"}}'\n"
    )
}

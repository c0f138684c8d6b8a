//! `annals bench`: what is claimed about speed, measured where you are (docs/performance.md).

mod bulk;
mod client;
mod creates;
mod queries;
mod sizes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use annals_domain::event::Actor;
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Connection, Scope, TenantSettings};
use annals_store::Store;
use anyhow::bail;
use axum::Router;
use clap::Subcommand;
use secrecy::ExposeSecret;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::telemetry::{OsEntropy, SystemClock};

/// What to measure, on the configured storage, which must be empty: users are left behind.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A thousand creates one by one over one connection, beside the same in one bulk request.
    Bulk(bulk::Args),
    /// Durable creates a second over HTTP, beside a bare handler on the same database.
    Creates(creates::Args),
    /// What filters, orders and pages cost in a large tenant.
    Queries(queries::Args),
    /// What one request costs as groups and tenants grow.
    Sizes(sizes::Args),
}

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Bulk(args) => bulk::run(config, args).await,
        Command::Creates(args) => creates::run(config, args).await,
        Command::Queries(args) => queries::run(config, args).await,
        Command::Sizes(args) => sizes::run(config, args).await,
    }
}

async fn open_empty(config: &Config) -> anyhow::Result<Store> {
    let store = config.open_store(Arc::new(SystemClock), Arc::new(OsEntropy)).await?;
    store.migrate().await?;
    if store.head().await?.position > 0 {
        bail!("the benchmark leaves users behind: point it at an empty database or folder");
    }
    Ok(store)
}

fn bench_tenant() -> anyhow::Result<TenantId> {
    Ok(TenantId::new("bench")?)
}

async fn tenant(store: &Store) -> anyhow::Result<String> {
    let actor = Actor::system("bench");
    let (tenant, connection) = (bench_tenant()?, ConnectionId::new("idp")?);
    store.create_tenant(&tenant, TenantSettings::default(), actor.clone()).await?;
    let entity = Connection::new(connection.clone(), Profile::Generic);
    store.create_connection(&tenant, entity, actor.clone()).await?;
    let token = store.issue_token(&tenant, &connection, vec![Scope::Read, Scope::Write], None, actor).await?;
    Ok(token.secret.expose_secret().to_owned())
}

async fn spawn(router: Router) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            let _ = stream.set_nodelay(true);
        });
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the benchmark's server failed");
        }
    });
    Ok(address)
}

/// A user as a directory sends it: a name, two addresses, a department.
fn user_body(prefix: &str, n: u64) -> String {
    format!(
        "{{\"schemas\":[\"urn:ietf:params:scim:schemas:core:2.0:User\",\
         \"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User\"],\
         \"userName\":\"{prefix}n{n}@bench.test\",\"externalId\":\"{prefix}-{n}\",\"active\":true,\
         \"displayName\":\"Bench User {n}\",\"title\":\"Engineer\",\
         \"name\":{{\"givenName\":\"Bench\",\"familyName\":\"User {n}\"}},\
         \"emails\":[{{\"value\":\"{prefix}n{n}@bench.test\",\"type\":\"work\",\"primary\":true}}],\
         \"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User\":\
         {{\"employeeNumber\":\"{n}\",\"department\":\"R&D\"}}}}"
    )
}

/// Waits until the read model has all that was written; returns for how long.
async fn drain(store: &Store) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let head = store.head().await?.position;
    while store.model_checkpoint().await? < head {
        if begun.elapsed() > Duration::from_secs(120) {
            bail!("the read model did not catch up within two minutes");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(begun.elapsed())
}

//! One file per subcommand.

pub(crate) mod app;
pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod connection;
pub(crate) mod deliveries;
pub(crate) mod doctor;
pub(crate) mod erase;
pub(crate) mod events;
pub(crate) mod operator;
pub(crate) mod rebuild;
pub(crate) mod recover;
pub(crate) mod schema;
pub(crate) mod serve;
pub(crate) mod tenant;

use std::sync::Arc;

use annals_domain::event::Actor;
use annals_store::Store;
use anyhow::{Context, bail};

use crate::config::Config;
use crate::telemetry::{OsEntropy, SystemClock};

/// Opens the store for an operator's command.
///
/// # Errors
/// The tables are not those of this build: the command says what to run first.
pub(crate) async fn open(config: &Config) -> anyhow::Result<Store> {
    let store = config.open_store(Arc::new(SystemClock), Arc::new(OsEntropy)).await?;
    if !store.is_migrated().await? {
        if config.is_embedded() && config.storage.migrate_at_start {
            store.migrate().await?;
        } else {
            bail!("the tables are not up to date: run `annals migrate`");
        }
    }
    Ok(store)
}

/// Who runs a command: the account's name.
pub(crate) fn operator() -> Actor {
    Actor::operator(&std::env::var("USER").unwrap_or_else(|_| "operator".to_owned()))
}

/// `annals migrate`
pub(crate) async fn migrate(config: &Config) -> anyhow::Result<()> {
    let store = config.open_store(Arc::new(SystemClock), Arc::new(OsEntropy)).await?;
    store.migrate().await.context("bringing the tables up to date")?;
    println!("The tables are up to date.");
    store.close().await;
    Ok(())
}

/// `annals config --check`
pub(crate) fn check_config(config: &Config) -> anyhow::Result<()> {
    println!("The configuration is valid.");
    if config.is_embedded() {
        println!("Data: SQLite in {}", config.storage.data_dir.display());
    } else {
        println!("Data: PostgreSQL at storage.url");
    }
    let bus = if config.nats.url.is_empty() { "the journal itself" } else { "NATS JetStream at nats.url" };
    println!("Feed: {bus}");
    println!("HTTP: {}", config.http.listen);
    Ok(())
}

//! `annals deliveries`

use annals_domain::ids::{AppId, ResourceId, TenantId};
use annals_store::Store;
use annals_store::lanes::{Delivery, DeliveryFilter, LaneKey, LaneState};
use anyhow::{Context, bail};
use clap::Subcommand;

use super::open;
use crate::config::Config;

/// What to do with deliveries. A delivery is a lane: one entity on its way to one app.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists lanes, and apps on hold.
    List {
        /// Only this tenant's.
        tenant: Option<TenantId>,
        /// Only this app's.
        #[arg(long)]
        app: Option<AppId>,
        /// Only in this state: due, leased, idle, waiting or quarantined.
        #[arg(long)]
        state: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        max: usize,
    },
    /// One lane with its last attempts.
    Show {
        /// The tenant.
        tenant: TenantId,
        /// The app.
        app: AppId,
        /// The entity's id.
        id: ResourceId,
    },
    /// Gives quarantined lanes another try.
    Redrive {
        /// The tenant.
        tenant: TenantId,
        /// Only this app's.
        #[arg(long)]
        app: Option<AppId>,
        /// Only this entity's.
        #[arg(long)]
        id: Option<ResourceId>,
    },
}

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let store = open(config).await?;
    match command {
        Command::List { tenant, app, state, max } => list(&store, tenant, app, state, max).await?,
        Command::Show { tenant, app, id } => show(&store, LaneKey { tenant, app, id }).await?,
        Command::Redrive { tenant, app, id } => {
            let filter = DeliveryFilter { tenant: Some(tenant), app, id, ..DeliveryFilter::default() };
            println!("{} lanes are due again.", store.redrive(&filter).await?);
        }
    }
    store.close().await;
    Ok(())
}

async fn list(
    store: &Store,
    tenant: Option<TenantId>,
    app: Option<AppId>,
    state: Option<String>,
    max: usize,
) -> anyhow::Result<()> {
    let state = match state {
        Some(name) => match LaneState::parse(&name) {
            Some(state) => Some(state),
            None => bail!("{name:?} is no state: due, leased, idle, waiting or quarantined"),
        },
        None => None,
    };
    for (owner, known) in store.all_apps().await?.iter() {
        let of_interest =
            tenant.as_ref().is_none_or(|t| t == owner) && app.as_ref().is_none_or(|a| *a == known.id);
        let status = store.target_status(owner, &known.id).await?;
        if let (true, Some(until)) = (of_interest && status.failures > 0, status.open_until) {
            let reason = status.reason.unwrap_or_default();
            println!(
                "# {owner}/{} is on hold until {until} after {} failures: {reason}",
                known.id, status.failures
            );
        }
    }
    let filter = DeliveryFilter { tenant, app, state, ..DeliveryFilter::default() };
    for delivery in store.deliveries(&filter, max).await? {
        println!("{}", line(&delivery));
    }
    Ok(())
}

fn line(delivery: &Delivery) -> String {
    let LaneKey { tenant, app, id } = &delivery.key;
    let due = delivery.due_at.map_or(String::new(), |at| format!(" at {at}"));
    let error = delivery.last_error.as_deref().map_or(String::new(), |error| format!("\t{error}"));
    format!(
        "{tenant}/{app}\t{} {id}\t{}{due}\t{} of {}\t{} failures{error}",
        delivery.resource_type,
        delivery.state.as_str(),
        delivery.applied_version,
        delivery.wanted_version,
        delivery.attempts,
    )
}

async fn show(store: &Store, key: LaneKey) -> anyhow::Result<()> {
    let delivery = store.delivery(&key).await?.context("there is no such delivery")?;
    println!("{}", line(&delivery));
    if let Some(remote) = &delivery.remote_id {
        println!("id at the app: {remote}");
    }
    for attempt in store.attempts(&key.tenant, &key.app, &key.id).await? {
        let status = attempt.status.map_or("no answer".to_owned(), |status| format!("HTTP {status}"));
        println!(
            "{}\t{}\t{}\t{status}\t{} ms\t{}",
            attempt.number, attempt.at, attempt.outcome, attempt.duration_ms, attempt.detail
        );
    }
    Ok(())
}

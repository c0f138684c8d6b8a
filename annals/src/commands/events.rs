//! `annals events`

use std::time::Duration;

use annals_domain::event::{Body, Recorded};
use annals_domain::ids::{Position, TenantId};
use clap::Subcommand;
use serde_json::json;

use super::open;
use crate::config::Config;

/// What to do with the journal's events.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints events as JSON, one a line, and goes on as new ones come.
    Tail {
        /// Begin after this position; default: the last ten events.
        #[arg(long)]
        after: Option<Position>,
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Print payloads, which may be personal.
        #[arg(long)]
        payload: bool,
        /// End at the journal's end instead of waiting.
        #[arg(long)]
        no_follow: bool,
    },
}

const PAGE_EVENTS: usize = 500;
const LAST_EVENTS: Position = 10;

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let Command::Tail { after, tenant, payload, no_follow } = command;
    let store = open(config).await?;
    let head = store.head().await?.position;
    let mut after = after.unwrap_or_else(|| (head - LAST_EVENTS).max(0));
    loop {
        let page = store.read_events(after, PAGE_EVENTS).await?;
        for event in &page {
            after = event.position;
            if tenant.as_ref().is_none_or(|tenant| *tenant == event.tenant) {
                println!("{}", line(event, payload));
            }
        }
        if page.is_empty() {
            if no_follow {
                break;
            }
            tokio::select! {
                waited = store.wait_journal(after, Duration::from_secs(60)) => drop(waited?),
                _ = tokio::signal::ctrl_c() => break,
            }
        }
    }
    store.close().await;
    Ok(())
}

fn line(event: &Recorded, payload: bool) -> serde_json::Value {
    let mut line = json!({
        "position": event.position,
        "at": event.at.to_rfc3339(),
        "tenant": event.tenant,
        "kind": event.kind,
        "id": event.stream.id,
        "version": event.version,
        "actor": event.actor,
        "cause": event.cause,
    });
    if payload {
        line["payload"] = match &event.body {
            Body::Open(body) => body.payload(),
            Body::Erased => json!("erased"),
        };
    }
    line
}

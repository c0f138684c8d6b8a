//! `annals audit`

use std::process::ExitCode;

use clap::Subcommand;

use super::open;
use crate::config::Config;

/// What to prove.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Walks the whole journal: positions, times, hashes, heads; then replays every entity and compares
    /// its state, look-ups and links. Exit code 1 if anything is not as it should be.
    Verify,
}

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<ExitCode> {
    let Command::Verify = command;
    let store = open(config).await?;
    let seen = store.verify().await?;
    store.close().await;
    println!("{} events in {} batches, {} entities", seen.events, seen.batches, seen.entities);
    println!("root {} at position {}", seen.root, seen.events);
    if seen.findings.is_empty() {
        println!("Nothing was touched.");
        return Ok(ExitCode::SUCCESS);
    }
    for finding in &seen.findings {
        println!("{}: {}", finding.place, finding.what);
    }
    println!("{} findings: history was changed, or the disk lost something.", seen.findings.len());
    Ok(ExitCode::FAILURE)
}

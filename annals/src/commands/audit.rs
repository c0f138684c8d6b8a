//! `annals audit`

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use annals_store::audit::note::{NOTE_BYTES_MAX, SignedCheckpoint, VerifierKey};
use annals_store::audit::proof::check_export;
use anyhow::{Context, bail};
use clap::Subcommand;

use super::open;
use crate::config::Config;

/// What to prove.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Walks the whole journal: positions, times, hashes, heads, signed checkpoints; then replays every
    /// entity and compares its state, look-ups and links. Exit code 1 if anything is not as it should be.
    Verify {
        /// A signed checkpoint that was kept elsewhere; may be given several times.
        #[arg(long, value_name = "FILE")]
        checkpoint: Vec<PathBuf>,
    },
    /// Signs the journal as it is now, and prints the checkpoint: keep it where nobody of this house
    /// can reach it.
    Checkpoint,
    /// Prints the public keys that checkpoints are verified with, the present one last.
    Keys,
    /// Makes the next signing key; the present one names it as its successor and is destroyed.
    RotateKey,
    /// Writes an export that an outsider checks with `annals audit check`, to standard output.
    Export {
        /// The signed checkpoint that the outsider holds.
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
        /// Put every event into it, personal content sealed, so that each hash can be computed anew.
        #[arg(long)]
        events: bool,
    },
    /// Checks an export, without any access to Annals: that its checkpoint is signed, and that nothing was
    /// changed, cut or put in another order since an older checkpoint.
    Check {
        /// The export.
        file: PathBuf,
        /// A public key that is trusted; may be given several times.
        #[arg(long, required = true, value_name = "KEY")]
        key: Vec<VerifierKey>,
        /// The signed checkpoint that was kept from the last time.
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// Where to write the new checkpoint if all is well, for the next time.
        #[arg(long, value_name = "FILE")]
        keep: Option<PathBuf>,
    },
}

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Verify { checkpoint } => return verify(config, &checkpoint).await,
        Command::Checkpoint => {
            let store = open(config).await?;
            print!("{}", store.checkpoint_now().await?);
            store.close().await;
        }
        Command::Keys => {
            let store = open(config).await?;
            for key in store.audit_keys().await? {
                println!("{}", key.public);
            }
            store.close().await;
        }
        Command::RotateKey => {
            let store = open(config).await?;
            let key = store.rotate_audit_key().await?;
            println!("{}", key.public);
            store.close().await;
        }
        Command::Export { since, events } => {
            let since = since.map(|file| read_checkpoint(&file)).transpose()?;
            let store = open(config).await?;
            let mut out = std::io::BufWriter::new(std::io::stdout());
            let since = since.map_or(0, |note| note.checkpoint.size);
            store.audit_export(since, events, &mut out).await?;
            out.flush().context("writing the export")?;
            store.close().await;
        }
        Command::Check { file, key, checkpoint, keep } => check(&file, &key, checkpoint, keep)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(config: &Config, held: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let held = held.iter().map(|file| read_checkpoint(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let store = open(config).await?;
    let seen = store.verify_with(&held).await?;
    store.close().await;
    println!("{} events in {} batches, {} entities", seen.events, seen.batches, seen.entities);
    println!("{} signed checkpoints", seen.checkpoints);
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

fn check(
    file: &Path,
    keys: &[VerifierKey],
    held: Option<PathBuf>,
    keep: Option<PathBuf>,
) -> anyhow::Result<()> {
    let held = held.map(|file| read_checkpoint(&file)).transpose()?;
    let export = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let checked = check_export(BufReader::new(export), keys, held.as_ref())?;
    let now = &checked.checkpoint.checkpoint;
    println!("{}: {} events are signed.", now.origin, now.size);
    if checked.events > 0 {
        println!("The content of all {} was hashed anew and is what was signed.", checked.events);
    }
    match &held {
        Some(held) => println!("The first {} are those that were signed before.", held.checkpoint.size),
        None => println!("No older checkpoint was given: nothing is proven about the time before."),
    }
    for key in checked.keys.iter().filter(|key| !keys.contains(key)) {
        println!("A trusted key names its successor, trust it from now on: {key}");
    }
    if let Some(keep) = keep {
        std::fs::write(&keep, checked.checkpoint.to_string())
            .with_context(|| format!("writing {}", keep.display()))?;
    }
    Ok(())
}

fn read_checkpoint(file: &Path) -> anyhow::Result<SignedCheckpoint> {
    let reading = || format!("reading the checkpoint {}", file.display());
    if std::fs::metadata(file).with_context(reading)?.len() > NOTE_BYTES_MAX as u64 {
        bail!("{} is too large for a checkpoint", file.display());
    }
    std::fs::read_to_string(file).with_context(reading)?.parse().with_context(reading)
}

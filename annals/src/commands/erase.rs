//! `annals erase`

use annals_domain::ids::{ResourceId, TenantId};
use anyhow::bail;

use super::{open, operator};
use crate::config::Config;

/// Whom to erase.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The tenant.
    tenant: TenantId,
    /// The user's id.
    id: ResourceId,
    /// There is no way back: say so.
    #[arg(long)]
    for_good: bool,
}

/// Runs it.
pub(crate) async fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    if !args.for_good {
        bail!("this destroys the key of everything recorded about {}: add --for-good", args.id);
    }
    let store = open(config).await?;
    store.erase(&args.tenant, &args.id, operator()).await?;
    println!(
        "{} was erased. Messages already on the bus are readable until its retention ends; backups of the \
         key store until they expire.",
        args.id
    );
    store.close().await;
    Ok(())
}

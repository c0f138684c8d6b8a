//! `annals rebuild`

use annals_projector::{Rebuild, Rebuilding};
use annals_store::Store;
use anyhow::bail;

use super::open;
use crate::config::Config;

/// Rebuilds the read model beside the live one. Queries go on meanwhile; stopped early, the old one stays.
pub(crate) async fn run(config: &Config) -> anyhow::Result<()> {
    let store = open(config).await?;
    let result = tokio::select! {
        result = rebuild(&store) => result,
        _ = tokio::signal::ctrl_c() => {
            println!("Stopped; the live read model is as it was.");
            Ok(())
        }
    };
    store.close().await;
    result
}

async fn rebuild(store: &Store) -> anyhow::Result<()> {
    let mut rebuild = Rebuild::new(store.clone());
    loop {
        match rebuild.step().await? {
            Rebuilding::Working(_) => {}
            Rebuilding::Live(generation) => {
                println!("The read model was rebuilt, compared and switched: generation {generation}.");
                return Ok(());
            }
            Rebuilding::Different(reason) => {
                bail!(
                    "the rebuilt read model is not what the journal says ({reason}); the old one stays live"
                )
            }
        }
    }
}

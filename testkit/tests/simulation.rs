//! Production's steps on two nodes in an order that a seed decides, with crashes at any point, competing
//! parts, lost streams, rewound read models and applications that lie. A model in memory says what every
//! command must be answered with and what every read must show. Then everything is healed, driven to rest,
//! and every checker must hold.
//!
//! `ANNALS_TEST_SEED=n` repeats one run; `ANNALS_TEST_SEEDS=n` runs so many, from
//! `ANNALS_TEST_SEED_FIRST` on. `ANNALS_TEST_LOG=warn` shows what production logs.

mod simulation {
    pub(crate) mod commands;
    pub(crate) mod run;
}

use annals_testkit::nats;
use annals_testkit::world::World;
use anyhow::{Context as _, Result};
use simulation::run::{TENANTS, simulate};

/// What production logs, if `ANNALS_TEST_LOG` has a filter such as `warn`.
fn log() {
    if let Ok(filter) = std::env::var("ANNALS_TEST_LOG") {
        let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        drop(format.try_init());
    }
}

fn seeds(default: u64) -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (first, count) = match number("ANNALS_TEST_SEED") {
        Some(seed) => (seed, 1),
        None => {
            (number("ANNALS_TEST_SEED_FIRST").unwrap_or(1), number("ANNALS_TEST_SEEDS").unwrap_or(default))
        }
    };
    (first..first + count).inspect(|seed| println!("ANNALS_TEST_SEED={seed}"))
}

#[tokio::test]
async fn on_sqlite() -> Result<()> {
    log();
    for seed in seeds(5) {
        let world = World::sqlite(seed, &TENANTS).await?;
        simulate(world, seed).await.with_context(|| format!("ANNALS_TEST_SEED={seed}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn on_postgres_and_nats() -> Result<()> {
    log();
    for seed in seeds(2) {
        let world = World::postgres(seed, &TENANTS).await?.nats(nats::Server::start().await?).await?;
        simulate(world, seed).await.with_context(|| format!("ANNALS_TEST_SEED={seed}"))?;
    }
    Ok(())
}

//! `kill -9` of anything at any moment, again and again, under load. Afterwards every acknowledged write is
//! there once, and every checker holds.

use std::time::Duration;

use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::Driver;
use annals_testkit::clock::{rng, seed};
use annals_testkit::cluster::Cluster;
use annals_testkit::downstream::Downstream;
use annals_testkit::load::{Load, Plan};
use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const APP_TOKEN: &str = "app-token";
const WRITERS: usize = 6;
/// Writes between two crashes, so that each hits a system at work.
const WRITES_BETWEEN: usize = 30;
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(90);

fn rounds() -> usize {
    if std::env::var("ANNALS_TEST_LONG").is_ok_and(|v| v == "1") { 100 } else { 20 }
}

async fn crash(mut cluster: Cluster, rounds: usize) -> Result<()> {
    let seed = seed(11);
    let mut rng = rng(seed);
    let app = Downstream::scim(APP_TOKEN).await?;
    let hook = Downstream::webhook(SECRET).await?;
    let scim = Driver::Scim { base_url: app.url(), members_per_request_max: 50 };
    cluster.add_app("app", scim, APP_TOKEN).await?;
    cluster.add_app("hook", Driver::Webhook { url: hook.url() }, SECRET).await?;
    let nodes = cluster.clients();
    let group = nodes[0].create_group("Everyone").await?;
    let load = Load::start(&nodes, &Plan { writers: WRITERS, seed, group, prefix: "crash".into() });

    let victims = cluster.processes.len() + usize::from(cluster.nats.is_some());
    for round in 0..rounds {
        load.more_writes(WRITES_BETWEEN, PROGRESS_TIMEOUT).await.with_context(|| format!("round {round}"))?;
        let victim = rng.random_range(0..victims);
        let down = Duration::from_millis(rng.random_range(0..400));
        // The moment of the blow is chance, not a condition that could be waited for.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..200))).await;
        if victim < cluster.processes.len() {
            cluster.processes[victim].kill_9();
            tokio::time::sleep(down).await;
            cluster.crash(victim).await.with_context(|| format!("round {round}"))?;
        } else if let Some(nats) = &mut cluster.nats {
            nats.kill_9();
            tokio::time::sleep(down).await;
            nats.restart().await.with_context(|| format!("round {round}"))?;
        }
    }
    load.more_writes(WRITES_BETWEEN, PROGRESS_TIMEOUT).await?;
    let acknowledged = load.stop().await?;
    println!("{} writes, {} tries repeated", acknowledged.writes, acknowledged.repeats);
    ensure!(acknowledged.writes >= rounds * WRITES_BETWEEN);

    cluster.check().await?;
    cluster.checkers.acknowledged(&cluster.tenant, &acknowledged).await?;
    cluster.checkers.converged(&cluster.tenant, &app.users(), &app.groups()).await?;
    // A worker that dies between sending and recording sends again, under the same id.
    cluster.checkers.webhook_with_repeats(&cluster.tenant, &hook).await?;
    let names: Vec<&str> = acknowledged.users.iter().map(|(_, name, _)| name.as_str()).take(20).collect();
    cluster.checkers.dump_is_sealed(&names).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_process_on_sqlite() -> Result<()> {
    crash(Cluster::embedded(BINARY, Profile::Generic).await?, rounds()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_processes_and_nats() -> Result<()> {
    crash(Cluster::scaled(BINARY, Profile::Generic).await?, rounds()).await
}

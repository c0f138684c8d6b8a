//! NATS goes away under load: writes and reads by key do not notice. It comes back: everything converges,
//! nothing is double. Its stream is deleted: it is rebuilt from the journal.

use std::time::Duration;

use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::Driver;
use annals_testkit::child::wait_for;
use annals_testkit::clock::seed;
use annals_testkit::cluster::Cluster;
use annals_testkit::downstream::Downstream;
use annals_testkit::load::{Load, Plan};
use annals_testkit::nats;
use annals_testkit::scim::{Scim, encode};
use anyhow::{Context as _, Result, bail, ensure};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const WRITERS: usize = 4;

/// How the bus goes away.
#[derive(Clone, Copy, Debug)]
enum Outage {
    /// The server dies.
    Killed,
    /// The server freezes: connections stay, nothing is answered.
    Frozen,
}

fn outage_lasts() -> Duration {
    let long = std::env::var("ANNALS_TEST_LONG").is_ok_and(|value| value == "1");
    Duration::from_secs(if long { 60 } else { 8 })
}

async fn outage(nats: nats::Server, how: Outage) -> Result<()> {
    let mut cluster = Cluster::scaled_on(BINARY, Profile::Generic, nats).await?;
    let hook = Downstream::webhook(SECRET).await?;
    cluster.add_app("hook", Driver::Webhook { url: hook.url() }, SECRET).await?;
    let nodes = cluster.clients();
    let group = nodes[0].create_group("Everyone").await?;
    let plan = Plan { writers: WRITERS, seed: seed(5), group, prefix: format!("{how:?}").to_lowercase() };
    let load = Load::start(&nodes, &plan);
    load.more_writes(50, Duration::from_secs(60)).await?;

    let bus = cluster.nats.as_mut().context("no bus")?;
    match how {
        Outage::Killed => bus.kill_9(),
        Outage::Frozen => bus.pause()?,
    }
    let before = load.writes();
    let end = tokio::time::Instant::now() + outage_lasts();
    let mut number = 0;
    while tokio::time::Instant::now() < end {
        number += 1;
        let name = format!("during-{how:?}-{number}").to_lowercase();
        let (write, read) = (&nodes[number % 2], &nodes[(number + 1) % 2]);
        let id = write.create_user(&name).await.context("a write while the bus is down")?;
        let user = read.get(&format!("/Users/{id}")).await?.expect(200)?.json();
        ensure!(user["userName"] == name.as_str(), "{user}");
        let found = read.find("/Users", &format!("userName eq \"{name}\""), "").await?;
        ensure!(found.len() == 1, "{name} is not found by name while the bus is down");
        if number % 20 == 1 {
            reads_whole_or_not_at_all(read, &name).await?;
        }
    }
    // Sooner or later the readers follow the journal itself.
    wait_for("filters to answer without the bus", Duration::from_secs(60), async || {
        ensure!(reads_whole_or_not_at_all(&nodes[0], "during-").await? == 200, "503");
        Ok(())
    })
    .await?;
    ensure!(number > 10, "only {number} writes in {:?}", outage_lasts());
    ensure!(load.writes() > before, "the writers stood still");
    let bus = cluster.nats.as_mut().context("no bus")?;
    match how {
        Outage::Killed => bus.restart().await?,
        Outage::Frozen => bus.resume()?,
    }
    load.more_writes(50, Duration::from_secs(60)).await?;
    let acknowledged = load.stop().await?;
    ensure!(acknowledged.repeats == 0, "{} writes had to be repeated", acknowledged.repeats);

    cluster.check().await?;
    cluster.checkers.acknowledged(&cluster.tenant, &acknowledged).await?;
    cluster.checkers.webhook(&cluster.tenant, &hook).await
}

/// What needs the read model may have to wait; it never answers with less than was written.
async fn reads_whole_or_not_at_all(scim: &Scim, prefix: &str) -> Result<u16> {
    let filter = format!("userName sw \"{prefix}\" and not (title eq \"x\")");
    let answer = scim.get(&format!("/Users?filter={}", encode(&filter))).await?;
    match answer.status {
        200 => ensure!(answer.json()["totalResults"] != 0, "{prefix} was written and is not found"),
        503 => {
            let after = answer.headers.get("retry-after").and_then(|value| value.to_str().ok());
            ensure!(after.is_some_and(|v| v.parse::<u64>().is_ok()), "503 without integer Retry-After");
        }
        other => bail!("{}: {other}", answer.asked),
    }
    Ok(answer.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed() -> Result<()> {
    for nats in nats::Server::start_each().await? {
        outage(nats, Outage::Killed).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen() -> Result<()> {
    outage(nats::Server::start().await?, Outage::Frozen).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_stream_is_rebuilt_from_the_journal() -> Result<()> {
    for nats in nats::Server::start_each().await? {
        let mut cluster = Cluster::scaled_on(BINARY, Profile::Generic, nats).await?;
        let hook = Downstream::webhook(SECRET).await?;
        cluster.add_app("hook", Driver::Webhook { url: hook.url() }, SECRET).await?;
        let scim = cluster.scim();
        for n in 0..40 {
            scim.create_user(&format!("before-{n}")).await?;
        }
        cluster.settle().await?;
        let first = cluster.store.bus_epoch().await?.context("no bus epoch")?;

        cluster.checkers.delete_stream().await?;
        for n in 0..40 {
            scim.create_user(&format!("after-{n}")).await?;
        }
        reaches_epoch(&cluster, first.epoch + 1).await?;
        cluster.check().await?;

        // The whole server with its disk, this time.
        let bus = cluster.nats.as_mut().context("no bus")?;
        bus.kill_9();
        bus.lose_data()?;
        bus.restart().await?;
        for n in 0..40 {
            scim.create_user(&format!("again-{n}")).await?;
        }
        reaches_epoch(&cluster, first.epoch + 2).await?;
        cluster.check().await?;
        // Others than our own readers subscribe as well: the new stream holds everything, not the rest.
        let again = cluster.store.bus_epoch().await?.context("no bus epoch")?;
        ensure!(again.offset == 0, "the new stream begins after position {}", again.offset);
        cluster.checkers.webhook(&cluster.tenant, &hook).await?;
    }
    Ok(())
}

async fn reaches_epoch(cluster: &Cluster, wanted: i64) -> Result<()> {
    wait_for("a new bus epoch", Duration::from_secs(60), async || {
        let epoch = cluster.store.bus_epoch().await?.context("no bus epoch")?.epoch;
        ensure!(epoch >= wanted, "epoch {epoch} of {wanted}");
        Ok(())
    })
    .await
}

//! `annals bench creates`: durable creates over HTTP, beside a bare handler on the same database.
//!
//! Both are measured in one run, in turns, so that what else the machine does hits both alike. The bare
//! handler only writes the same JSON in a group-commit transaction; what it is faster by is the price of
//! deciding, sealing, look-ups, state rows, the hash chain, and of relay, projector and worker beside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use annals_api::{App, Readiness};
use annals_store::Store;
use annals_store::bench::BareWriter;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::task::JoinSet;

use super::client::{Connection, quantile_ms};
use super::{drain, open_empty, spawn, tenant, user_body};
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::wiring;

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds of load on each of the two, in all.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Keep-alive connections.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Turns the load is cut into.
    #[arg(long, default_value_t = 1)]
    turns: u64,
}

/// What one run of load came to.
#[derive(Default)]
struct Load {
    requests: u64,
    errors: u64,
    seconds: f64,
    /// Processor time of the whole process meanwhile, clients included; 0 where it cannot be read.
    processor_seconds: f64,
    latencies: Vec<Duration>,
}

impl Load {
    fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.requests as f64 / self.seconds } else { 0.0 }
    }

    fn processor_us(&self) -> f64 {
        self.processor_seconds * 1e6 / self.requests.max(1) as f64
    }

    fn add(&mut self, other: Load) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.seconds += other.seconds;
        self.processor_seconds += other.processor_seconds;
        self.latencies.extend(other.latencies);
    }
}

/// Runs it against the configured storage, which must be empty: it leaves users behind.
pub(crate) async fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    let store = open_empty(config).await?;
    let token = tenant(&store).await?;
    let mut lifecycle = Lifecycle::new()?;
    wiring::start_parts(&mut lifecycle, config, &store, true, true).await?;
    let stop = lifecycle.stop_token();
    let app = App::new(store.clone(), wiring::api_options(config), Readiness::new());
    let annals = spawn(annals_api::router(app)).await?;
    let writer = BareWriter::start(&store).await?;
    let bare = spawn(Router::new().route("/bare", post(bare_create)).with_state(writer)).await?;
    let lag = Arc::new(Lag::default());
    let watching = tokio::spawn(watch_lag(store.clone(), lag.clone(), stop.clone()));

    let turn = Duration::from_secs_f64(args.seconds as f64 / args.turns.max(1) as f64);
    let (mut ours, mut theirs) = (Load::default(), Load::default());
    for number in 0..args.turns.max(1) {
        theirs.add(load(bare, "/bare", &token, args.connections, turn, number * 2).await);
        let before = ours.requests;
        ours.add(load(annals, "/scim/v2/Users", &token, args.connections, turn, number * 2 + 1).await);
        eprintln!("turn {}: {} creates, lag now {}", number + 1, ours.requests - before, lag.now());
    }
    let drained = drain(&store).await?;
    stop.cancel();
    let _ = watching.await;
    let place = if config.is_embedded() { "SQLite" } else { "PostgreSQL" };
    let bus = if config.nats.url.is_empty() { "journal feed" } else { "NATS JetStream" };
    println!("{place}, {bus}, {} connections, {} s each", args.connections, args.seconds);
    println!("handler\trequests\terrors\tper second\tp50 ms\tp99 ms\tprocessor µs each");
    for (name, load) in [("bare", &mut theirs), ("annals", &mut ours)] {
        let (p50, p99) = (quantile_ms(&mut load.latencies, 0.5), quantile_ms(&mut load.latencies, 0.99));
        let rate = load.per_second();
        let (requests, errors, us) = (load.requests, load.errors, load.processor_us());
        println!("{name}\t{requests}\t{errors}\t{rate:.0}\t{p50:.2}\t{p99:.2}\t{us:.0}");
    }
    println!("ratio\t{:.2}", ours.per_second() / theirs.per_second().max(1.0));
    println!(
        "read model lag: at most {} events; {:.1} s to catch up after the load",
        lag.max.load(Ordering::Relaxed),
        drained.as_secs_f64()
    );
    lifecycle.wait().await;
    store.close().await;
    Ok(())
}

async fn bare_create(State(writer): State<BareWriter>, body: String) -> StatusCode {
    match writer.write(body).await {
        Ok(()) => StatusCode::CREATED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[derive(Default)]
struct Lag {
    now: AtomicU64,
    max: AtomicU64,
}

impl Lag {
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

async fn watch_lag(store: Store, lag: Arc<Lag>, stop: tokio_util::sync::CancellationToken) {
    while !stop.is_cancelled() {
        if let (Ok(head), Ok(at)) = (store.head().await, store.model_checkpoint().await) {
            let behind = u64::try_from(head.position - at).unwrap_or(0);
            lag.now.store(behind, Ordering::Relaxed);
            lag.max.fetch_max(behind, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn load(
    address: SocketAddr,
    path: &'static str,
    token: &str,
    connections: usize,
    time: Duration,
    round: u64,
) -> Load {
    let over = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let processor = processor_seconds();
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let (token, over) = (token.to_owned(), over.clone());
        let prefix = format!("r{round}c{number}");
        tasks.spawn(async move { client(address, path, &token, &prefix, &over).await });
    }
    tokio::time::sleep(time).await;
    over.store(true, Ordering::Relaxed);
    let mut sum = Load::default();
    for done in tasks.join_all().await {
        match done {
            Ok(done) => sum.add(done),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "a client of the benchmark failed");
                sum.errors += 1;
            }
        }
    }
    sum.seconds = begun.elapsed().as_secs_f64();
    sum.processor_seconds = processor_seconds() - processor;
    sum
}

/// Processor time of this process so far, in seconds; 0 where the system does not tell (Linux does).
fn processor_seconds() -> f64 {
    /// `USER_HZ`: the unit of proc_pid_stat(5), the same on every Linux.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold anything; user and system time are the 12th and 13th after it.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

/// One keep-alive connection, one request after the other.
async fn client(
    address: SocketAddr,
    path: &str,
    token: &str,
    prefix: &str,
    over: &AtomicBool,
) -> anyhow::Result<Load> {
    let mut connection = Connection::open(address, token).await?;
    let mut load = Load::default();
    while !over.load(Ordering::Relaxed) {
        let (status, took) = connection.send("POST", path, &user_body(prefix, load.requests)).await?;
        load.latencies.push(took);
        load.requests += 1;
        load.errors += u64::from(status != 201);
    }
    Ok(load)
}

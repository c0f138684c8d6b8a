//! `annals bench`: durable creates over HTTP, beside a bare handler on the same database.
//!
//! Both are measured in one run, in turns, so that what else the machine does hits both alike. The bare
//! handler only writes the same JSON in a group-commit transaction; what it is faster by is the price of
//! deciding, sealing, look-ups, state rows, the hash chain, and of relay, projector and worker beside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use annals_api::{App, Readiness};
use annals_domain::event::Actor;
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Connection, Scope, TenantSettings};
use annals_store::Store;
use annals_store::bench::BareWriter;
use anyhow::{Context, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::telemetry::{OsEntropy, SystemClock};
use crate::wiring;

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
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
    latencies_us: Vec<u32>,
}

impl Load {
    fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.requests as f64 / self.seconds } else { 0.0 }
    }

    fn percentile_ms(&mut self, p: f64) -> f64 {
        self.latencies_us.sort_unstable();
        let last = self.latencies_us.len().saturating_sub(1);
        let at = (last as f64 * p).round() as usize;
        self.latencies_us.get(at).map_or(0.0, |us| f64::from(*us) / 1_000.0)
    }

    fn add(&mut self, other: Load) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.seconds += other.seconds;
        self.latencies_us.extend(other.latencies_us);
    }
}

/// Runs it against the configured storage, which must be empty: it leaves users behind.
pub async fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    let store = config.open_store(Arc::new(SystemClock), Arc::new(OsEntropy)).await?;
    store.migrate().await?;
    if store.head().await?.position > 0 {
        bail!("the benchmark leaves users behind: point it at an empty database or folder");
    }
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
    println!("handler\trequests\terrors\tper second\tp50 ms\tp99 ms");
    for (name, load) in [("bare", &mut theirs), ("annals", &mut ours)] {
        let (p50, p99) = (load.percentile_ms(0.5), load.percentile_ms(0.99));
        let rate = load.per_second();
        println!("{name}\t{}\t{}\t{rate:.0}\t{p50:.2}\t{p99:.2}", load.requests, load.errors);
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

async fn tenant(store: &Store) -> anyhow::Result<String> {
    let actor = Actor::system("bench");
    let (tenant, connection) = (TenantId::new("bench")?, ConnectionId::new("idp")?);
    store.create_tenant(&tenant, TenantSettings::default(), actor.clone()).await?;
    let entity = Connection { id: connection.clone(), profile: Profile::Generic };
    store.create_connection(&tenant, entity, actor.clone()).await?;
    let token = store.issue_token(&tenant, &connection, vec![Scope::Read, Scope::Write], None, actor).await?;
    Ok(token.secret.expose_secret().to_owned())
}

async fn spawn(router: Router) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the benchmark's server failed");
        }
    });
    Ok(address)
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

async fn drain(store: &Store) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let head = store.head().await?.position;
    while store.model_checkpoint().await? < head {
        if begun.elapsed() > Duration::from_secs(120) {
            bail!("the read model did not catch up within two minutes");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(begun.elapsed())
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
    sum
}

/// A user as a directory sends it: a name, two addresses, a department.
fn body(prefix: &str, n: u64) -> String {
    format!(
        "{{\"schemas\":[\"urn:ietf:params:scim:schemas:core:2.0:User\",\
         \"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User\"],\
         \"userName\":\"{prefix}n{n}@bench.test\",\"externalId\":\"{prefix}-{n}\",\"active\":true,\
         \"displayName\":\"Bench User {n}\",\"title\":\"Engineer\",\
         \"name\":{{\"givenName\":\"Bench\",\"familyName\":\"User {n}\"}},\
         \"emails\":[{{\"value\":\"{prefix}n{n}@bench.test\",\"type\":\"work\",\"primary\":true}}],\
         \"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User\":\
         {{\"employeeNumber\":\"{n}\",\"department\":\"R&D\"}}}}"
    )
}

/// One keep-alive connection, one request after the other.
async fn client(
    address: SocketAddr,
    path: &str,
    token: &str,
    prefix: &str,
    over: &AtomicBool,
) -> anyhow::Result<Load> {
    let mut stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let mut load = Load::default();
    let mut answer = Vec::with_capacity(8 * 1024);
    while !over.load(Ordering::Relaxed) {
        let body = body(prefix, load.requests);
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/scim+json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let begun = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let status = read_answer(&mut stream, &mut answer).await?;
        load.latencies_us.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        load.requests += 1;
        load.errors += u64::from(status != 201);
    }
    Ok(load)
}

/// Reads one answer with a Content-Length; returns its status.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<u16> {
    buffer.clear();
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = std::str::from_utf8(&buffer[..end]).context("the answer's head")?.to_ascii_lowercase();
            let status = head.get(9..12).and_then(|s| s.parse().ok()).context("the answer's status")?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(Ok(0), |l| l.trim().parse()).context("the answer's length")?;
            while buffer.len() < end + 4 + length {
                if stream.read_buf(buffer).await? == 0 {
                    bail!("the connection ended within an answer");
                }
            }
            return Ok(status);
        }
        if stream.read_buf(buffer).await? == 0 {
            bail!("the connection ended");
        }
    }
}

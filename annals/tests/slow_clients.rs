//! Clients that take their time, or many connections, cost those only who do (SE-010), and a process that is
//! told to stop still finishes what is in work.

use std::time::Duration;

use annals_testkit::child::wait_for;
use annals_testkit::process::{Installation, Role};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
/// Longer than anything that must happen may take.
const SOON: Duration = Duration::from_secs(20);
const LIVE: &str = "GET /health/live HTTP/1.1\r\nhost: annals.test\r\n\r\n";

async fn connect(port: u16) -> Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", port)).await.context("connecting")
}

/// What comes until the other side closes.
async fn rest(stream: &mut TcpStream) -> Result<String> {
    let mut all = Vec::new();
    match timeout(SOON, stream.read_to_end(&mut all)).await.context("the connection stays open")? {
        Ok(_) => {}
        // What was still on its way to a closed connection is answered by a reset.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error.into()),
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// Sends a whole request and reads until its answer is there.
async fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(LIVE.as_bytes()).await?;
    let mut got = Vec::new();
    while !got.ends_with(b"}") && !got.ends_with(b"\r\n\r\n") {
        let mut piece = [0; 1_024];
        let read = timeout(SOON, stream.read(&mut piece)).await.context("no answer")??;
        ensure!(read > 0, "closed after {:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&piece[..read]);
    }
    ensure!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_is_cut_off() -> Result<()> {
    let mut installation = Installation::sqlite(BINARY)?;
    installation.set("ANNALS_HTTP__HEAD_TIMEOUT_S", 1);
    let process = installation.start(Role::Serve).await?;
    // One more byte, over and over: each alone is in time, all together are not.
    let (mut read, mut write) = connect(process.port()).await?.into_split();
    let dribble = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        write.write_all(b"GET /health/live HTTP/1.1\r\nhost: annals.test\r\nx-slow: ").await?;
        loop {
            tick.tick().await;
            write.write_all(b"a").await?;
        }
        #[expect(unreachable_code, reason = "names the error's type")]
        std::io::Result::Ok(())
    });
    let mut got = Vec::new();
    let ended =
        timeout(SOON, read.read_to_end(&mut got)).await.context("a slow head keeps its connection")?;
    ensure!(ended.is_err() || !got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
    timeout(SOON, dribble).await.context("the client may still write")??.ok();

    // A connection that was used and is left idle ends, too; one that says nothing never gets further.
    let mut idle = connect(process.port()).await?;
    ask(&mut idle).await?;
    rest(&mut idle).await?;
    let mut silent = connect(process.port()).await?;
    rest(&mut silent).await?;
    // Others are served all the while.
    ask(&mut connect(process.port()).await?).await?;
    process.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_and_wait_their_turn() -> Result<()> {
    let mut installation = Installation::sqlite(BINARY)?;
    installation.set("ANNALS_HTTP__CONNECTIONS_MAX", 3);
    let process = installation.start(Role::Serve).await?;
    let port = process.port();
    // Whatever asked for readiness may still hold a connection: wait until three others are served.
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(port).await?;
        ask(&mut stream).await?;
        held.push(stream);
    }
    let mut fourth = connect(port).await?;
    fourth.write_all(LIVE.as_bytes()).await?;
    let mut byte = [0; 1];
    let early = timeout(Duration::from_millis(300), fourth.read(&mut byte)).await;
    ensure!(early.is_err(), "a fourth connection was served beside three: {early:?}");
    ensure!(process.log().contains("http.connections_max"), "the log does not say why:\n{}", process.log());
    drop(held.pop());
    let read = timeout(SOON, fourth.read(&mut byte)).await.context("no turn for the fourth")??;
    ensure!(read == 1 && &byte == b"H", "closed instead of served");
    process.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_finishes_what_is_in_work() -> Result<()> {
    let installation = Installation::sqlite(BINARY)?;
    let store = installation.open_store().await?;
    let tenant = annals_domain::ids::TenantId::new("acme")?;
    let profile = annals_domain::scim::dialect::Profile::Generic;
    let token = annals_testkit::process::make_tenant(&store, &tenant, profile).await?;
    let token = secrecy::ExposeSecret::expose_secret(&token).to_owned();
    let mut process = installation.start(Role::Serve).await?;
    let mut idle = connect(process.port()).await?;
    ask(&mut idle).await?;
    let body = json!({"userName": "ines"}).to_string();
    let (head, tail) = body.split_at(5);
    let mut begun = connect(process.port()).await?;
    let request = format!(
        "POST /scim/v2/Users HTTP/1.1\r\nhost: annals.test\r\nauthorization: Bearer {token}\r\n\
         content-type: application/scim+json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    begun.write_all(request.as_bytes()).await?;
    let mut said = [0; 25];
    timeout(SOON, begun.read_exact(&mut said)).await.context("no 100")??;
    ensure!(said.starts_with(b"HTTP/1.1 100 Continue"), "{}", String::from_utf8_lossy(&said));
    begun.write_all(head.as_bytes()).await?;
    process.signal("TERM")?;
    // The idle connection ends at once, the one in work does not.
    ensure!(rest(&mut idle).await?.is_empty());
    wait_for("the port to be closed", SOON, async || {
        ensure!(TcpStream::connect(("127.0.0.1", process.port())).await.is_err(), "it still accepts");
        Ok(())
    })
    .await?;
    begun.write_all(tail.as_bytes()).await?;
    let answer = rest(&mut begun).await?;
    ensure!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    ensure!(answer.to_lowercase().contains("connection: close"), "{answer}");
    wait_for("the process to end", SOON, async || {
        ensure!(!process.is_running(), "it runs");
        Ok(())
    })
    .await?;
    let head = store.head().await?;
    let events = store.read_events(0, 100).await?;
    ensure!(events.last().is_some_and(|e| e.kind == "user.created" && e.position == head.position));
    Ok(())
}

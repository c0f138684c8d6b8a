//! The ways to prove to NATS who one is, against servers that ask.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use annals_bus::{Nats, NatsError, NatsOptions};
use annals_testkit::child::{Child, free_port, wait_for};
use annals_testkit::nats::binaries;

const PATIENCE: Duration = Duration::from_secs(20);

struct Guarded {
    _child: Child,
    _folder: tempfile::TempDir,
    options: NatsOptions,
}

fn start(binary: &Path, authorization: &str) -> Guarded {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let config = folder.path().join("nats.conf");
    let store = folder.path().join("store").display().to_string();
    let text = format!(
        "listen: 127.0.0.1:{port}\njetstream {{ store_dir: {store:?}, max_file_store: 1GB }}\n{authorization}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(binary);
    command.arg("-c").arg(&config);
    let child = Child::spawn("nats-server", &mut command, &folder.path().join("log"), None).unwrap();
    let options = NatsOptions {
        servers: vec![format!("nats://127.0.0.1:{port}")],
        stream_bytes_max: 64 * 1024 * 1024,
        request_timeout: Duration::from_millis(500),
        ..NatsOptions::default()
    };
    Guarded { _child: child, _folder: folder, options }
}

async fn gets_in(options: NatsOptions) {
    let nats = Nats::connect(options).await.unwrap();
    wait_for("a stream", PATIENCE, async || Ok(nats.ensure_stream().await?)).await.unwrap();
}

async fn stays_out(options: NatsOptions) {
    let nats = Nats::connect(options).await.unwrap();
    let began = Instant::now();
    let refused = nats.ensure_stream().await;
    assert!(matches!(refused, Err(NatsError::Unreachable { .. })), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_user_with_a_password_gets_in() {
    for binary in binaries() {
        let server = start(&binary, r#"authorization { user: "annals", password: "hunter2" }"#);
        let with = |password: &str| NatsOptions {
            user: Some("annals".to_owned()),
            password: Some(password.into()),
            ..server.options.clone()
        };
        gets_in(with("hunter2")).await;
        stays_out(with("wrong")).await;
        stays_out(server.options.clone()).await;
        let url = server.options.servers[0].replace("nats://", "nats://annals:hunter2@");
        gets_in(NatsOptions { servers: vec![url], ..server.options.clone() }).await;
    }
}

#[tokio::test]
async fn a_token_gets_in() {
    for binary in binaries() {
        let server = start(&binary, r#"authorization { token: "hunter2" }"#);
        gets_in(NatsOptions { token: Some("hunter2".into()), ..server.options.clone() }).await;
        let url = server.options.servers[0].replace("nats://", "nats://hunter2@");
        gets_in(NatsOptions { servers: vec![url], ..server.options.clone() }).await;
        stays_out(NatsOptions { token: Some("wrong".into()), ..server.options.clone() }).await;
    }
}

#[tokio::test]
async fn an_nkey_gets_in() {
    // The example pair of NATS' own documentation: no secret.
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    for binary in binaries() {
        let server = start(&binary, &format!("authorization {{ users: [ {{ nkey: {PUBLIC} }} ] }}"));
        gets_in(NatsOptions { nkey_seed: Some(SEED.into()), ..server.options.clone() }).await;
        stays_out(server.options.clone()).await;
    }
}

#[tokio::test]
async fn credentials_that_cannot_be_read_are_refused_at_the_start() {
    let missing =
        NatsOptions { credentials_file: Some("/nonexistent/annals.creds".into()), ..NatsOptions::default() };
    let refused = Nats::connect(missing).await;
    assert!(matches!(&refused, Err(NatsError::Options(why)) if why.contains("annals.creds")), "{refused:?}");
    let no_url = NatsOptions { servers: vec!["nats://user:hunter2@:x".to_owned()], ..NatsOptions::default() };
    let refused = Nats::connect(no_url).await.unwrap_err();
    assert!(!refused.to_string().contains("hunter2"), "{refused}");
}

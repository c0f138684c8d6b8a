//! `annals doctor`: what is wrong with a deployment, and what to do about it.

use std::process::ExitCode;
use std::time::Duration;

use annals_bus::NatsOptions;
use annals_store::Store;

use crate::config::Config;
use crate::wiring;

struct Report {
    faults: usize,
}

impl Report {
    fn good(&self, what: &str, how: impl std::fmt::Display) {
        println!("ok    {what}: {how}");
    }

    fn note(&self, what: &str, how: impl std::fmt::Display) {
        println!("note  {what}: {how}");
    }

    fn fault(&mut self, what: &str, how: impl std::fmt::Display) {
        self.faults += 1;
        println!("FAULT {what}: {how}");
    }
}

/// Looks, changes nothing. Exit code 1 if there is a fault.
pub(crate) async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut report = Report { faults: 0 };
    let opened = config
        .open_store(
            std::sync::Arc::new(crate::telemetry::SystemClock),
            std::sync::Arc::new(crate::telemetry::OsEntropy),
        )
        .await;
    match opened {
        Ok(store) => {
            report.good("database", if store.is_postgres() { "PostgreSQL answers" } else { "SQLite opens" });
            look_at_store(&mut report, &store).await;
            store.close().await;
        }
        Err(error) => report.fault("database", format!("{error:#}")),
    }
    look_at_nats(&mut report, config).await;
    match std::net::TcpListener::bind(config.http.listen) {
        Ok(_) => report.good("http", format!("{} is free", config.http.listen)),
        Err(error) => {
            report.note("http", format!("{} cannot be listened on ({error}): in use?", config.http.listen))
        }
    }
    if config.workers.allow_private {
        report.note(
            "workers",
            "allow_private is on: apps may be reached by plain HTTP and at private addresses",
        );
    }
    println!("{}", if report.faults == 0 { "No faults." } else { "See docs/operating.md for each fault." });
    Ok(if report.faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn look_at_store(report: &mut Report, store: &Store) {
    match store.is_migrated().await {
        Ok(true) => report.good("tables", "those of this build"),
        Ok(false) => return report.fault("tables", "not up to date: run `annals migrate`"),
        Err(error) => return report.fault("tables", error),
    }
    if let Err(error) = look_at_data(report, store).await {
        report.fault("data", error);
    }
}

async fn look_at_data(report: &mut Report, store: &Store) -> anyhow::Result<()> {
    let head = store.head().await?;
    report.good("journal", format!("{} events, epoch {}", head.position, head.epoch));
    if let Some(reason) = head.halted {
        report.fault("writes", format!("stopped: {reason}"));
    }
    let model = store.model_health().await?;
    let lag = head.position - model.checkpoint;
    match lag {
        0 => report.good("read model", "up to date"),
        _ => report.note("read model", format!("{lag} events behind: is a projector running?")),
    }
    if model.parked > 0 {
        report.fault("read model", format!("{} parked entities: run `annals rebuild`", model.parked));
    }
    if model.rebuild_needed {
        report.fault("read model", "it is of another build or journal: run `annals rebuild`");
    }
    let tenants = store.tenants().await?;
    if tenants.is_empty() {
        report.note("tenants", "there is none: run `annals tenant create <name>`");
    }
    let now = store.now();
    for tenant in &tenants {
        for token in store.tokens(&tenant.id).await? {
            let about = format!("token {} of {}/{}", token.id, tenant.id, token.connection);
            match token.expires {
                Some(at) if at <= now => report.fault(&about, format!("ended {at}: issue another one")),
                Some(at) if at <= now.plus_ms(30 * 24 * 60 * 60 * 1_000) => {
                    report.note(&about, format!("ends {at}"))
                }
                Some(_) => {}
                None => report.note(&about, "never ends"),
            }
        }
    }
    Ok(())
}

async fn look_at_nats(report: &mut Report, config: &Config) {
    if config.nats.url.is_empty() {
        return report.good("bus", "none: readers follow the journal itself");
    }
    let nats = match wiring::connect_nats(config).await {
        Ok(Some(nats)) => nats,
        Ok(None) => return,
        Err(error) => return report.fault("bus", format!("{error:#}")),
    };
    let wait = NatsOptions::default().request_timeout + Duration::from_secs(2);
    match tokio::time::timeout(wait, nats.stream()).await {
        Ok(Ok(Some(stream))) => {
            report.good("bus", format!("stream {} holds {} messages", nats.stream_name(), stream.messages));
        }
        Ok(Ok(None)) => report.note("bus", "no stream yet: a relay (`annals projector`) makes it"),
        Ok(Err(error)) => report.fault("bus", format!("{error} (nats.url)")),
        Err(_) => report.fault("bus", "NATS does not answer (nats.url)"),
    }
}

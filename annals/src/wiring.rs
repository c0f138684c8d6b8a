//! From the configuration to running parts.

use std::path::Path;
use std::time::Duration;

use annals_api::ApiOptions;
use annals_bus::{Feed, JetStreamFeed, JournalFeed, Nats, NatsOptions, Progress};
use annals_projector::{Projector, Relay};
use annals_store::Store;
use annals_workers::{Deliverer, Janitor, Notary, Planner, WorkerOptions};
use anyhow::Context;

use crate::config::Config;
use crate::lifecycle::{Lifecycle, Step};
use crate::server::Bounds;

/// How long events gather for the read model while no query waits for them.
const GATHER: Duration = Duration::from_millis(40);

/// Starts the relay and the projector, and the planner, the deliverer, the janitor and the
/// notary.
pub(crate) async fn start_parts(
    lifecycle: &mut Lifecycle,
    config: &Config,
    store: &Store,
    projector: bool,
    worker: bool,
) -> anyhow::Result<()> {
    let nats = connect_nats(config).await?;
    let owner = owner(store);
    if projector {
        if let Some(nats) = &nats {
            lifecycle.drive("relay", RelayPart(Relay::new(store.clone(), nats.clone(), owner.clone())));
        }
        let feed = feed(store, nats.as_ref(), "projector");
        let projector = Projector::new(store.clone(), feed).with_gather(GATHER);
        lifecycle.drive("projector", ProjectorPart(projector, store.clone()));
        lifecycle.drive("janitor", JanitorPart(Janitor::new(store.clone())));
        if config.audit.checkpoint_interval_s > 0 {
            let interval = Duration::from_secs(config.audit.checkpoint_interval_s);
            lifecycle.drive("notary", NotaryPart(Notary::new(store.clone(), interval)));
        }
    }
    if worker {
        let feed = feed(store, nats.as_ref(), "planner");
        lifecycle.drive("planner", PlannerPart(Planner::new(store.clone(), feed)));
        let options = WorkerOptions {
            owner,
            allow_private: config.workers.allow_private,
            concurrency_max: config.workers.concurrency_max,
            request_timeout: config.request_timeout(),
            ..WorkerOptions::default()
        };
        let deliverer = Deliverer::new(store.clone(), options).context("preparing deliveries")?;
        lifecycle.drive("deliverer", DelivererPart(deliverer, store.clone()));
    }
    Ok(())
}

/// A name for leases: no two processes have the same.
fn owner(store: &Store) -> String {
    let id = store.entropy().uuid_v7(store.now());
    format!("{}-{}", std::process::id(), id.simple())
}

/// Connects to NATS, if there is one.
pub(crate) async fn connect_nats(config: &Config) -> anyhow::Result<Option<Nats>> {
    if config.nats.url.is_empty() {
        return Ok(None);
    }
    let file = &config.nats.credentials_file;
    let options = NatsOptions {
        servers: config.nats.url.split(',').map(|url| url.trim().to_owned()).collect(),
        stream: config.nats.stream.clone(),
        credentials_file: (file != Path::new("")).then(|| file.clone()),
        retention: Duration::from_secs(config.nats.retention_hours * 3_600),
        stream_bytes_max: config.nats.stream_bytes_max,
        replicas: config.nats.replicas,
        ..NatsOptions::default()
    };
    Ok(Some(Nats::connect(options).await.context("connecting to nats.url")?))
}

fn feed(store: &Store, nats: Option<&Nats>, name: &str) -> Feed {
    match nats {
        Some(nats) => Feed::JetStream(JetStreamFeed::new(store.clone(), nats.clone(), name)),
        None => Feed::Journal(JournalFeed::new(store.clone())),
    }
}

/// The HTTP surface's bounds and switches.
pub(crate) fn api_options(config: &Config) -> ApiOptions {
    let base_url = config.http.base_url.trim_end_matches('/');
    ApiOptions {
        base_url: (!base_url.is_empty()).then(|| base_url.to_owned()),
        trust_forwarded: config.http.trust_forwarded,
        requests_in_flight_max: config.http.requests_max,
        bulk_operations_max: config.http.bulk_operations_max,
        bulk_body_bytes_max: config.http.bulk_body_bytes_max,
        body_timeout: Duration::from_secs(config.http.body_timeout_s),
        token_requests_per_second_max: config.limits.token_requests_per_second_max,
        token_failures_per_minute_max: config.limits.token_failures_per_minute_max,
        password_checks_per_second_max: config.limits.password_checks_per_second_max,
        password_failures_max: config.limits.password_failures_max,
        password_failures_window: Duration::from_secs(config.limits.password_failures_window_s),
        ..ApiOptions::default()
    }
}

/// What connections may cost.
pub(crate) fn connection_bounds(config: &Config) -> Bounds {
    Bounds {
        connections_max: config.http.connections_max,
        head_timeout: Duration::from_secs(config.http.head_timeout_s.max(1)),
        write_timeout: Duration::from_secs(config.http.write_timeout_s.max(1)),
    }
}

macro_rules! parts {
    ($($name:ident($part:ty);)*) => {$(
        struct $name($part);
        impl Step for $name {
            async fn step(&mut self) -> anyhow::Result<Progress> {
                Ok(self.0.step().await?)
            }
        }
    )*};
}

parts! {
    RelayPart(Relay);
    PlannerPart(Planner);
    JanitorPart(Janitor);
    NotaryPart(Notary);
}

/// The projector, woken when a query waits for it.
struct ProjectorPart(Projector, Store);

impl Step for ProjectorPart {
    async fn step(&mut self) -> anyhow::Result<Progress> {
        Ok(self.0.step().await?)
    }

    async fn woken(&self) {
        self.1.wait_asked().await;
    }
}

/// The deliverer, woken when lanes become due.
struct DelivererPart(Deliverer, Store);

impl Step for DelivererPart {
    async fn step(&mut self) -> anyhow::Result<Progress> {
        Ok(self.0.step().await?)
    }

    async fn finish(&mut self) {
        // Cut off, deliveries would stay leased until their leases end.
        self.0.drain().await;
    }

    async fn woken(&self) {
        self.1.wait_lanes(Duration::from_secs(60)).await;
    }
}

//! Logs and metrics, and the real clock and randomness.

use std::io::IsTerminal as _;

use annals_domain::clock::{Clock, Entropy, Timestamp};
use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use rand::RngCore;
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// The system's clock.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// The operating system's randomness, stretched by a generator a thread has (ChaCha, seeded anew now and
/// then): a create takes several small pieces, and a system call each would cost more than the sealing.
#[derive(Debug)]
pub(crate) struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        // Panics if the operating system gives no seed: keys and ids made without would be worse than none.
        rand::rng().fill_bytes(bytes);
    }
}

/// Sends log lines to standard error.
pub(crate) fn start_logging(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.filter).context("reading log.filter")?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => subscriber.with_target(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("starting the log: {error}"))
}

/// Begins to count; the handle renders what `/metrics` answers.
pub(crate) fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    const SECONDS: &[f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
    const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_commits".to_owned()), SIZES))
        .context("describing the metrics")?
        .install_recorder()
        .context("starting the metrics")
}

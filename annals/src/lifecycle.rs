//! The only place that loops and sleeps: drives steps until the process is told to stop.

use std::future::Future;
use std::time::Duration;

use annals_bus::Progress;
use annals_domain::clock::{Clock, Timestamp};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::telemetry::SystemClock;

/// Longest pause of an idle step that has no wake-up of its own.
const IDLE_MAX: Duration = Duration::from_millis(250);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a stopping process waits for what is in work.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// The long-running parts of a process, and how they end.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Lifecycle {
    /// Nothing runs yet. SIGTERM and SIGINT stop what will.
    pub(crate) fn new() -> anyhow::Result<Lifecycle> {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            tracing::info!("stopping: finishing what is in work (a second signal ends at once)");
            token.cancel();
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            std::process::exit(130);
        });
        Ok(Lifecycle { stop, tasks: JoinSet::new() })
    }

    /// Cancelled when the process is to stop.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a part until it ends by itself, which it does when the token is cancelled.
    pub(crate) fn run(&mut self, part: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(part);
    }

    /// Steps a part over and over: at once while there is work, after a pause when there is none, with
    /// growing pauses while it fails.
    pub(crate) fn drive<S: Step>(&mut self, name: &'static str, mut part: S) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let mut backoff = BACKOFF_MIN;
            while !stop.is_cancelled() {
                let pause = match part.step().await {
                    Ok(progress) => {
                        backoff = BACKOFF_MIN;
                        pause_after(&progress)
                    }
                    Err(error) => {
                        tracing::warn!(
                            part = name,
                            error = format!("{error:#}"),
                            "a step failed; trying again"
                        );
                        metrics::counter!("annals_step_errors_total", "part" => name).increment(1);
                        let pause = backoff;
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                        Some(pause)
                    }
                };
                if let Some(pause) = pause {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                        () = part.woken() => {}
                    }
                }
            }
            part.finish().await;
            tracing::debug!(part = name, "stopped");
        });
    }

    /// Waits until the process is told to stop, then for its parts, at most [`GRACE`].
    pub(crate) async fn wait(mut self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            // A part that ends by itself ends the process.
            _ = self.tasks.join_next() => self.stop.cancel(),
        }
        let ended = tokio::time::timeout(GRACE, async { while self.tasks.join_next().await.is_some() {} });
        if ended.await.is_err() {
            tracing::warn!(grace_s = GRACE.as_secs(), "some work did not end in time and is cut off");
        }
    }
}

fn pause_after(progress: &Progress) -> Option<Duration> {
    let now = SystemClock.now();
    let until = |at: Timestamp| Duration::from_millis(u64::try_from(at.0.saturating_sub(now.0)).unwrap_or(0));
    let until = match progress.wake_at.map(until) {
        // Work was done and nothing has to gather: the next step follows at once.
        None | Some(Duration::ZERO) if progress.done > 0 => return None,
        until => until.unwrap_or(IDLE_MAX),
    };
    // A wake-up of zero would spin.
    Some(until.clamp(Duration::from_millis(1), IDLE_MAX))
}

/// A long-running part of the house (design §1.3).
pub(crate) trait Step: Send + 'static {
    /// Does a bounded amount of work.
    fn step(&mut self) -> impl Future<Output = anyhow::Result<Progress>> + Send;

    /// Ends what is in work when the process stops.
    fn finish(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Ends as soon as there may be work, for parts that can know; others never.
    fn woken(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

//! From the feed to the read model (D11).

use std::time::Duration;

use annals_bus::{BusError, Feed, Progress};
use annals_domain::clock::Timestamp;
use annals_store::Store;
use annals_store::model::{ModelApplied, ModelHealth, PAGE_EVENTS_MAX};

use crate::ProjectorError;
use crate::rebuild::{Rebuild, Rebuilding};

/// How long a step waits for events.
const WAIT: Duration = Duration::from_secs(1);
/// A page of fewer events was all there was.
const GATHER_EVENTS: usize = 256;
/// How long a projector stands by after another one was faster, in ms.
const STAND_BY_MS: i64 = 50;
/// How long a rebuild that failed or differed rests before the next, in ms.
const REBUILD_REST_MS: i64 = 60_000;

/// Keeps the live read model in step with the feed. Any number may run: the checkpoint is compared and
/// set, so more of them only waste work.
///
/// If the live rows belong to an older journal epoch or another build, the projector rebuilds them beside
/// the live ones, one step for each page it projects.
#[derive(Debug)]
pub struct Projector {
    store: Store,
    feed: Feed,
    wait: Duration,
    gather_ms: i64,
    /// The read model as this projector left it: a hint, as others may move it. None = look anew.
    health: Option<ModelHealth>,
    rebuild: Option<Rebuild>,
    /// Before this, no rebuild begins.
    rebuild_at: Timestamp,
    /// The generation whose predecessor was seen to be swept away.
    swept: Option<i64>,
}

impl Projector {
    /// A projector that has not looked at anything yet.
    pub fn new(store: Store, feed: Feed) -> Projector {
        let rebuild_at = Timestamp(i64::MIN);
        Projector {
            store,
            feed,
            wait: WAIT,
            gather_ms: 0,
            health: None,
            rebuild: None,
            rebuild_at,
            swept: None,
        }
    }

    /// How long a step waits for events; a second unless said otherwise.
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Projector {
        self.wait = wait;
        self
    }

    /// After a small page, lets events gather for this long: under load a page of many costs far less
    /// than many pages. Whoever drives the steps goes on sooner if a query waits
    /// ([`Store::wait_asked`]). Nothing gathers unless this is set.
    #[must_use]
    pub fn with_gather(mut self, gather: Duration) -> Projector {
        self.gather_ms = i64::try_from(gather.as_millis()).unwrap_or(i64::MAX);
        self
    }

    /// Applies the next page of events; waits for one if there is none.
    ///
    /// # Errors
    /// The database or the feed fails, or a newer build is needed. An event that cannot be applied is no
    /// error: its entity is repaired from the journal's state, or parked.
    pub async fn step(&mut self) -> Result<Progress, ProjectorError> {
        let remembered = self.health.is_some();
        let stepped = self.project().await;
        if let Err(error) = &stepped {
            metrics::counter!("annals_projector_errors_total").increment(1);
            self.health = None;
            // A checkpoint that was just read and lies ahead of the journal: the journal was restored.
            if let (false, ProjectorError::Feed(BusError::Diverged { reason })) = (remembered, error) {
                self.store
                    .halt(&format!(
                        "the journal was restored to an earlier point: {reason}; an operator must run \
                         `annals recover`"
                    ))
                    .await?;
            }
        }
        stepped
    }

    async fn project(&mut self) -> Result<Progress, ProjectorError> {
        let health = self.health().await?;
        let rebuilt = self.rebuild_a_little(&health).await?;
        if !health.answers {
            // The live rows belong to a journal that is gone: only the rebuild can go on.
            self.health = None;
            return Ok(rebuilt);
        }
        let after = health.checkpoint;
        let wait = if rebuilt.done > 0 { Duration::ZERO } else { self.wait };
        let events = self.feed.next(after, PAGE_EVENTS_MAX, wait).await?;
        let Some(last) = events.last().map(|event| event.position) else {
            metrics::gauge!("annals_projector_lag_events").set(0.0);
            // An idle moment; the next step looks at everything anew.
            self.health = None;
            return Ok(Progress::done(rebuilt.done + self.sweep(health.generation).await?));
        };
        match self.store.model_project(after, &events).await? {
            ModelApplied::Advanced(checkpoint) => {
                // A page that is not full was all there was.
                let full = events.len() >= PAGE_EVENTS_MAX;
                let head = if full { self.store.head().await?.position } else { last };
                metrics::gauge!("annals_projector_position").set(checkpoint as f64);
                metrics::gauge!("annals_projector_lag_events").set((head - checkpoint).max(0) as f64);
                // A rebuild may change everything with its next step.
                self.health = self.rebuild.is_none().then_some(ModelHealth { checkpoint, ..health });
                // Caught up: the next page may gather. A backlog is worked off at once.
                let done = events.len();
                if self.gather_ms > 0 && done < GATHER_EVENTS && self.rebuild.is_none() {
                    return Ok(Progress::done_until(done, self.store.now().plus_ms(self.gather_ms)));
                }
                Ok(Progress::done(done))
            }
            ModelApplied::Lost { actual } => {
                tracing::debug!(
                    expected = after,
                    actual,
                    "the checkpoint moved: another projector is active"
                );
                metrics::counter!("annals_projector_lost_total").increment(1);
                self.health = None;
                Ok(Progress::idle_until(self.store.now().plus_ms(STAND_BY_MS)))
            }
        }
    }

    /// The read model as remembered, or as it is.
    async fn health(&mut self) -> Result<ModelHealth, ProjectorError> {
        if let Some(health) = &self.health {
            return Ok(health.clone());
        }
        let health = self.store.model_health().await?;
        metrics::gauge!("annals_model_parked").set(health.parked as f64);
        metrics::gauge!("annals_model_generation").set(health.generation as f64);
        self.health = Some(health.clone());
        Ok(health)
    }

    /// One step of the rebuild, if one is needed. Its failure does not stop live projection.
    async fn rebuild_a_little(&mut self, health: &ModelHealth) -> Result<Progress, ProjectorError> {
        let now = self.store.now();
        if !health.rebuild_needed && self.rebuild.is_none() {
            return Ok(Progress::default());
        }
        if now < self.rebuild_at {
            return Ok(Progress::idle_until(self.rebuild_at));
        }
        let rebuild = self.rebuild.get_or_insert_with(|| {
            tracing::warn!("the read model is of another journal epoch or build: it is rebuilt");
            Rebuild::new(self.store.clone())
        });
        let stepped = rebuild.step().await;
        // Whatever it came to, the next step looks whether a rebuild is still needed.
        self.health = None;
        match stepped {
            Ok(Rebuilding::Working(done)) => return Ok(Progress::done(done.max(1))),
            Ok(Rebuilding::Live(_)) => {
                self.rebuild = None;
                return Ok(Progress::done(1));
            }
            Ok(Rebuilding::Different(reason)) => tracing::error!(reason, "the rebuild is given up for now"),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::error!(%error, cause, "the rebuild is given up for now");
            }
        }
        metrics::counter!("annals_projector_rebuild_errors_total").increment(1);
        self.rebuild = None;
        self.rebuild_at = now.plus_ms(REBUILD_REST_MS);
        Ok(Progress::idle_until(self.rebuild_at))
    }

    /// Clears a piece of the generation before this one.
    async fn sweep(&mut self, generation: i64) -> Result<usize, ProjectorError> {
        if self.swept == Some(generation) {
            return Ok(0);
        }
        let rows = self.store.model_sweep().await?;
        if rows == 0 {
            self.swept = Some(generation);
        }
        Ok(rows)
    }
}

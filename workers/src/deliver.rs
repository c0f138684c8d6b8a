//! Leases due lanes and runs them side by side, each with its driver.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use annals_bus::Progress;
use annals_domain::clock::Timestamp;
use annals_domain::ids::{AppId, TenantId};
use annals_domain::tenant::{App, Driver};
use annals_store::lanes::{Finished, Leased, Next, Outcome, Quota, Report, TargetReport, takes};
use annals_store::{Store, StoreError};
use ipnet::IpNet;
use tokio::task::{JoinError, JoinSet};

use crate::WorkerError;
use crate::delivery::{Decision, decide};
use crate::drivers::{Memory, Run, Stop, scim, webhook};
use crate::http::{Http, HttpOptions};
use crate::retry::{Schedule, draw};

/// How long a step waits for one of its deliveries before it looks for more lanes.
const LOOK: Duration = Duration::from_millis(50);
/// How often lanes are counted for the metrics, in milliseconds.
const COUNT_MS: i64 = 15_000;
/// How soon a deliverer looks again for lanes that others hold or that a quota keeps back, in
/// milliseconds.
const RELOOK_MS: i64 = 250;

/// How deliveries are made.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// This process among others, in leases.
    pub owner: String,
    /// Plain HTTP and any address. For tests and closed networks.
    pub allow_private: bool,
    /// Networks that are allowed although they are not public.
    pub allow_networks: Vec<IpNet>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Whole time of one request.
    pub request_timeout: Duration,
    /// How long a lane is leased; at least two requests' time, whatever is set.
    pub lease_ttl: Duration,
    /// Most lanes in work at once in this process.
    pub concurrency_max: usize,
    /// When to try again.
    pub schedule: Schedule,
}

impl Default for WorkerOptions {
    fn default() -> WorkerOptions {
        WorkerOptions {
            owner: "worker".to_owned(),
            allow_private: false,
            allow_networks: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            lease_ttl: Duration::from_secs(180),
            concurrency_max: 32,
            schedule: Schedule::default(),
        }
    }
}

/// Works on due lanes. Any number may run, in any number of processes.
#[derive(Debug)]
pub struct Deliverer {
    store: Store,
    http: Http,
    options: Arc<WorkerOptions>,
    memory: Arc<Memory>,
    in_flight: JoinSet<()>,
    /// What each of them works for.
    works_for: HashMap<tokio::task::Id, (TenantId, AppId)>,
    counted_at: Timestamp,
}

impl Deliverer {
    /// A deliverer with nothing in work.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(store: Store, mut options: WorkerOptions) -> Result<Deliverer, WorkerError> {
        options.lease_ttl = options.lease_ttl.max(options.request_timeout * 2);
        let http = Http::new(HttpOptions {
            allow_private: options.allow_private,
            allow_networks: options.allow_networks.clone(),
            connect_timeout: options.connect_timeout,
            request_timeout: options.request_timeout,
        })?;
        Ok(Deliverer {
            store,
            http,
            options: Arc::new(options),
            memory: Arc::new(Memory::default()),
            in_flight: JoinSet::new(),
            works_for: HashMap::new(),
            counted_at: Timestamp(0),
        })
    }

    /// Lanes in work.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Leases as many due lanes as there is room for, starts on them, and waits a moment for any of
    /// those in work to end. `done` counts the ended ones.
    ///
    /// # Errors
    /// The database failed. What is in work goes on.
    pub async fn step(&mut self) -> Result<Progress, WorkerError> {
        self.count().await?;
        let mut done = self.reap();
        let apps = self.store.all_apps().await?;
        let quotas: Vec<Quota> =
            apps.iter().filter(|(_, app)| !app.paused).map(|app| self.quota(app)).collect();
        let room = self.options.concurrency_max.max(1).saturating_sub(self.in_flight.len());
        let (owner, ttl) = (&self.options.owner, self.options.lease_ttl);
        let leased = self.store.lease_lanes(owner, ttl, &quotas, room).await?;
        let leased_some = !leased.is_empty();
        for lease in leased {
            let app = apps
                .iter()
                .find(|(tenant, app)| *tenant == lease.key.tenant && app.id == lease.key.app)
                .map(|(_, app)| app.clone());
            if let Some(app) = app {
                let works_for = (lease.key.tenant.clone(), app.id.clone());
                let work = work(
                    self.store.clone(),
                    self.http.clone(),
                    self.options.clone(),
                    self.memory.clone(),
                    app,
                    lease,
                );
                let task = self.in_flight.spawn(work);
                self.works_for.insert(task.id(), works_for);
            }
        }
        if !self.in_flight.is_empty() {
            let ended = tokio::select! {
                ended = self.in_flight.join_next_with_id() => ended,
                () = self.store.wait_lanes(LOOK) => None,
            };
            if let Some(ended) = ended {
                self.ended(ended);
                done += 1;
            }
            done += self.reap();
            return Ok(Progress { done, wake_at: Some(self.store.now()) });
        }
        if done > 0 || leased_some {
            return Ok(Progress::done(done));
        }
        let now = self.store.now();
        Ok(match self.store.next_due(&quotas).await? {
            Some(at) => Progress::idle_until(at.max(now.plus_ms(RELOOK_MS))),
            None => Progress { done: 0, wake_at: Some(now.plus_ms(COUNT_MS)) },
        })
    }

    /// Waits for all that is in work; leases nothing more. At the end of a process: a lane that is cut
    /// off is taken over only when its lease has ended.
    pub async fn drain(&mut self) {
        while let Some(ended) = self.in_flight.join_next_with_id().await {
            self.ended(ended);
        }
    }

    fn reap(&mut self) -> usize {
        let mut done = 0;
        while let Some(ended) = self.in_flight.try_join_next_with_id() {
            self.ended(ended);
            done += 1;
        }
        done
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                // The lane is taken over when its lease ends.
                tracing::error!(%error, "a delivery ended abnormally");
                error.id()
            }
        };
        self.works_for.remove(&id);
    }

    fn quota(&self, (tenant, app): &(TenantId, App)) -> Quota {
        let mine = |works_for: &&(TenantId, AppId)| works_for.0 == *tenant && works_for.1 == app.id;
        Quota {
            tenant: tenant.clone(),
            app: app.id.clone(),
            concurrency_max: app.concurrency_max,
            rate_per_second_max: app.rate_per_second_max,
            in_flight: self.works_for.values().filter(mine).count(),
        }
    }

    async fn count(&mut self) -> Result<(), WorkerError> {
        let now = self.store.now();
        if now < self.counted_at.plus_ms(COUNT_MS) {
            return Ok(());
        }
        self.counted_at = now;
        let counts = self.store.lane_counts().await?;
        metrics::gauge!("annals_lanes_due").set(counts.due as f64);
        metrics::gauge!("annals_lanes_leased").set(counts.leased as f64);
        metrics::gauge!("annals_lanes_quarantined").set(counts.quarantined as f64);
        let oldest = counts.oldest_due.map_or(0, |at| (now.0 - at.0).max(0));
        metrics::gauge!("annals_lanes_oldest_due_seconds").set(oldest as f64 / 1_000.0);
        Ok(())
    }
}

/// Works on one lane: the driver's run, then the report.
async fn work(
    store: Store,
    http: Http,
    options: Arc<WorkerOptions>,
    memory: Arc<Memory>,
    app: App,
    lease: Leased,
) {
    let began = (store.now(), std::time::Instant::now());
    let key = lease.key.clone();
    let credential = match store.app_credential(&key.tenant, &key.app).await {
        Ok(credential) => credential,
        Err(error) => {
            tracing::warn!(%error, tenant = %key.tenant, app = %key.app, "the credential cannot be read");
            return;
        }
    };
    let mut run = Run {
        store,
        http,
        app,
        credential,
        lease,
        lease_ttl: options.lease_ttl,
        request_timeout: options.request_timeout,
        memory,
        hide: Vec::new(),
        requests: 0,
        status: None,
        trail: Vec::new(),
    };
    let ran = if takes(&run.app, &run.lease.resource_type) {
        match run.app.driver.clone() {
            Driver::Scim { base_url, members_per_request_max } => {
                scim::deliver(&mut run, &base_url, members_per_request_max).await
            }
            Driver::Webhook { url } => webhook::deliver(&mut run, &url).await,
        }
    } else {
        // The app was told not to get this type any more.
        run.lease.work.applied_version = run.lease.wanted_version;
        run.lease.work.applied_position = run.lease.wanted_position;
        Ok(Outcome::Unchanged)
    };
    if let Err(Stop::Failed(failure)) = &ran
        && run.requests > 0
        && failure.status != Some(429)
    {
        // What failed may have had its effect all the same. Should the entity go back to what was applied
        // before, that must not look like done already.
        run.lease.work.applied_hash = None;
    }
    let report = match report(&run, ran, began.0, began.1.elapsed(), &options) {
        Ok(report) => report,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                tenant = %key.tenant, app = %key.app, entity = %key.id,
                "a delivery stopped because the database failed; its lease will end"
            );
            return;
        }
    };
    finish(&run, report).await;
}

/// The report on a run, unless the database is what stopped it.
fn report(
    run: &Run,
    ran: Result<Outcome, Stop>,
    at: Timestamp,
    took: Duration,
    options: &WorkerOptions,
) -> Result<Report, StoreError> {
    let now = run.now();
    let mut error = None;
    let mut status = run.status;
    let decision = match ran {
        Ok(outcome) => Decision { next: Next::Done, outcome, target: well(run) },
        Err(Stop::Yield) => Decision {
            next: Next::Later { at: now, failed: false },
            outcome: Outcome::Partial,
            target: well(run),
        },
        // The store finds out by itself, and makes the lane due again.
        Err(Stop::LeaseLost) => Decision {
            next: Next::Later { at: now, failed: false },
            outcome: Outcome::Partial,
            target: TargetReport::Silent,
        },
        Err(Stop::Store(error)) => return Err(error),
        Err(Stop::Failed(failure)) => {
            let random = draw(&**run.store.entropy());
            let lease = &run.lease;
            let decision =
                decide(&failure, lease.attempts, lease.target_failures, now, &options.schedule, random);
            status = failure.status.or(status);
            error = Some(failure.message);
            decision
        }
    };
    let mut detail = run.trail.join("\n");
    if let Some(error) = &error {
        detail = format!("{error}\n{detail}");
    }
    Ok(Report {
        next: decision.next,
        outcome: decision.outcome,
        at,
        duration_ms: i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
        status,
        detail,
        error,
        target: decision.target,
        requests: run.requests,
    })
}

/// A run that sent nothing says nothing about the target.
fn well(run: &Run) -> TargetReport {
    if run.requests > 0 { TargetReport::Well } else { TargetReport::Silent }
}

async fn finish(run: &Run, report: Report) {
    let key = &run.lease.key;
    let outcome = report.outcome.as_str();
    metrics::counter!("annals_deliveries_total", "outcome" => outcome).increment(1);
    metrics::histogram!("annals_delivery_seconds").record(report.duration_ms as f64 / 1_000.0);
    let finished = match run.store.finish_lane(&run.lease, &report).await {
        Ok(finished) => finished,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                tenant = %key.tenant, app = %key.app, entity = %key.id,
                "a delivery could not be written down; it repeats when its lease ends"
            );
            return;
        }
    };
    let state = match finished {
        Finished::As(state) => state.as_str(),
        Finished::Lost => "lost",
        Finished::Gone => "gone",
    };
    let failed = report.error.is_some();
    let (status, ms) = (report.status, report.duration_ms);
    if failed {
        tracing::warn!(
            tenant = %key.tenant, app = %key.app, entity = %key.id, kind = run.lease.resource_type,
            outcome, status, state, requests = report.requests, ms,
            // What a target answered stays in the attempt: it may repeat what it was sent.
            error = report.error.as_deref().filter(|_| status.is_none()).unwrap_or_default(),
            "a delivery failed"
        );
    } else {
        tracing::info!(
            tenant = %key.tenant, app = %key.app, entity = %key.id, kind = run.lease.resource_type,
            outcome, status, state, requests = report.requests, ms,
            "delivered"
        );
    }
}

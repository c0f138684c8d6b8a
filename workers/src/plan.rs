//! From events to wishes: which lanes have to reach which version.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use annals_bus::{Feed, Progress};
use annals_domain::event::{Body, Event, Recorded};
use annals_domain::ids::{Position, TenantId};
use annals_domain::tenant::{App, Entity};
use annals_store::Store;
use annals_store::lanes::{LaneKey, LaneKind, LaneWish, Planned, SweepMode, SweepWish, takes};

use crate::WorkerError;

/// Events planned in one transaction.
const PAGE_EVENTS: usize = 1_000;
/// How long events gather after a small page, in ms: deliveries take longer than this anyway.
const GATHER_MS: i64 = 50;
/// A page of fewer events was all there was.
const GATHER_EVENTS: usize = 256;
/// How long a step waits for an event.
const WAIT: Duration = Duration::from_millis(250);

/// Follows the feed and raises the lanes. Any number may run: the checkpoint moves once.
#[derive(Debug)]
pub struct Planner {
    store: Store,
    feed: Feed,
    wait: Duration,
    at: Option<At>,
}

/// What a planner knows while it is the one that moves the checkpoint: whatever happened to apps before
/// it is in `apps`, whatever comes after passes by in the feed.
#[derive(Debug)]
struct At {
    position: Position,
    apps: Arc<Vec<(TenantId, App)>>,
}

impl Planner {
    /// Plans what the feed brings.
    pub fn new(store: Store, feed: Feed) -> Planner {
        Planner { store, feed, wait: WAIT, at: None }
    }

    /// How long a step may wait for an event; a quarter of a second unless set.
    pub fn waiting(mut self, wait: Duration) -> Planner {
        self.wait = wait;
        self
    }

    /// Plans a page of events, and sweeps a page of an app's lanes.
    ///
    /// # Errors
    /// The database failed, or the feed ended; nothing is planned twice or forgotten.
    pub async fn step(&mut self) -> Result<Progress, WorkerError> {
        let swept = self.store.sweep_step().await?;
        let wait = if swept > 0 { Duration::ZERO } else { self.wait };
        let at = match self.at.take() {
            Some(at) => at,
            None => self.begin().await?,
        };
        let events = self.feed.next(at.position, PAGE_EVENTS, wait).await?;
        let Some(last) = events.last() else {
            self.at = Some(at);
            // It has waited already.
            let now = self.store.now();
            return Ok(if swept > 0 { Progress::done(swept) } else { Progress::idle_until(now) });
        };
        let upto = last.position;
        let apps = if events.iter().any(|event| event.stream.resource_type == App::TYPE) {
            self.apps().await?
        } else {
            at.apps
        };
        let wishes = wishes(&apps, &events);
        let sweeps = self.sweeps(&apps, &events).await?;
        match self.store.plan(at.position, upto, &wishes, &sweeps).await? {
            Planned::Advanced(position) => {
                tracing::debug!(position, wishes = wishes.len(), "planned");
                metrics::gauge!("annals_planner_position").set(position as f64);
                self.at = Some(At { position, apps });
            }
            Planned::Lost { actual } => {
                tracing::debug!(actual, "another planner is at work");
            }
        }
        let done = events.len() + swept;
        if swept == 0 && events.len() < GATHER_EVENTS {
            return Ok(Progress::done_until(done, self.store.now().plus_ms(GATHER_MS)));
        }
        Ok(Progress::done(done))
    }

    /// Finds out where planning stands, and follows the journal into a new epoch.
    async fn begin(&mut self) -> Result<At, WorkerError> {
        let mut checkpoint = self.store.planner_checkpoint().await?;
        let head = self.store.head().await?;
        if checkpoint.epoch < head.epoch {
            tracing::warn!(
                epoch = head.epoch,
                head = head.position,
                planned = checkpoint.position,
                "the journal was restored: comparing every target again"
            );
            // Whoever wrote in the new epoch already did so above its base.
            let base = self.store.base_since(checkpoint.epoch).await?.unwrap_or(head.position);
            self.store.follow_epoch(checkpoint, head.epoch, base).await?;
            checkpoint = self.store.planner_checkpoint().await?;
        }
        // After the checkpoint: what it covers must be in there.
        Ok(At { position: checkpoint.position, apps: self.apps().await? })
    }

    async fn apps(&self) -> Result<Arc<Vec<(TenantId, App)>>, WorkerError> {
        self.store.forget_tenants();
        Ok(self.store.all_apps().await?)
    }

    /// What follows for all lanes of an app from its own events.
    async fn sweeps(
        &self,
        apps: &[(TenantId, App)],
        events: &[Recorded],
    ) -> Result<Vec<SweepWish>, WorkerError> {
        let mut sweeps: Vec<SweepWish> = Vec::new();
        for event in events.iter().filter(|event| event.stream.resource_type == App::TYPE) {
            let known = apps.iter().find(|(tenant, app)| {
                *tenant == event.tenant && App::stream(app.id.as_str()) == event.stream
            });
            let wish = match (&event.body, known) {
                (Body::Open(Event::Created { .. }), Some((tenant, app))) => {
                    backfill(&self.store, tenant, app, SweepMode::Backfill).await?
                }
                (Body::Open(Event::Changed { changes }), Some((tenant, app))) => {
                    let touches = |part: &str| changes.iter().any(|change| change.path.starts_with(part));
                    if touches("driver") {
                        // Another target has none of it.
                        backfill(&self.store, tenant, app, SweepMode::Resend).await?
                    } else if touches("resourceTypes") {
                        backfill(&self.store, tenant, app, SweepMode::Backfill).await?
                    } else {
                        None
                    }
                }
                (Body::Open(Event::Deleted), _) => removal(&event.tenant, event),
                _ => None,
            };
            sweeps.extend(wish);
        }
        Ok(sweeps)
    }
}

/// A state target gets everything that exists; a log target begins with what happens next.
async fn backfill(
    store: &Store,
    tenant: &TenantId,
    app: &App,
    mode: SweepMode,
) -> Result<Option<SweepWish>, WorkerError> {
    match LaneKind::of(app) {
        LaneKind::State => Ok(Some(store.sweep_of(tenant, app, mode).await?)),
        LaneKind::Log => Ok(None),
    }
}

fn removal(tenant: &TenantId, event: &Recorded) -> Option<SweepWish> {
    let slug = event.stream.id.as_str().split_once('.')?.1;
    Some(SweepWish {
        tenant: tenant.clone(),
        app: slug.parse().ok()?,
        mode: SweepMode::Remove,
        kind: LaneKind::State,
        resource_types: Vec::new(),
    })
}

/// The wishes of a page: one per app and entity, at the newest version.
fn wishes(apps: &[(TenantId, App)], events: &[Recorded]) -> Vec<LaneWish> {
    let mut wishes: HashMap<LaneKey, LaneWish> = HashMap::new();
    for event in events {
        for (tenant, app) in apps {
            if *tenant != event.tenant || !takes(app, &event.stream.resource_type) {
                continue;
            }
            let key = LaneKey { tenant: tenant.clone(), app: app.id.clone(), id: event.stream.id.clone() };
            let wish = wishes.entry(key.clone()).or_insert_with(|| LaneWish {
                key,
                resource_type: event.stream.resource_type.clone(),
                kind: LaneKind::of(app),
                first_version: event.version,
                version: event.version,
                position: event.position,
                deleted: false,
            });
            wish.version = event.version;
            wish.position = event.position;
            wish.deleted = matches!(event.body, Body::Open(Event::Deleted | Event::Erased));
        }
    }
    wishes.into_values().collect()
}

#[cfg(test)]
mod tests {
    use annals_domain::clock::Timestamp;
    use annals_domain::event::{Actor, Cause, StreamId};
    use annals_domain::ids::{AppId, ResourceId};
    use annals_domain::tenant::Driver;

    use super::*;

    fn event(position: i64, tenant: &str, id: &str, version: i64, body: Event) -> Recorded {
        Recorded {
            position,
            event_id: Default::default(),
            commit_id: Default::default(),
            tenant: TenantId::new(tenant).unwrap(),
            stream: StreamId { resource_type: "User".into(), id: ResourceId::from_text(id) },
            version,
            kind: body.kind("User"),
            schema_version: 1,
            at: Timestamp(position),
            actor: Actor::system("test"),
            cause: Cause::default(),
            previous_of_entity: 0,
            previous_of_tenant: 0,
            body: Body::Open(body),
        }
    }

    fn app(tenant: &str, id: &str, driver: Driver) -> (TenantId, App) {
        let app = App {
            id: AppId::new(id).unwrap(),
            driver,
            resource_types: Vec::new(),
            paused: false,
            concurrency_max: 1,
            rate_per_second_max: 0,
        };
        (TenantId::new(tenant).unwrap(), app)
    }

    #[test]
    fn a_page_is_one_wish_per_app_and_entity_of_the_same_tenant() {
        let apps = [
            app("acme", "hook", Driver::Webhook { url: String::new() }),
            app("acme", "scim", Driver::Scim { base_url: String::new(), members_per_request_max: 1 }),
            app("other", "hook", Driver::Webhook { url: String::new() }),
        ];
        let events = [
            event(1, "acme", "u1", 3, Event::PasswordSet),
            event(2, "acme", "u2", 1, Event::PasswordSet),
            event(3, "acme", "u1", 4, Event::Deleted),
        ];
        let mut wishes = wishes(&apps, &events);
        wishes.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(wishes.len(), 4);
        let first = &wishes[0];
        assert_eq!((first.key.app.as_str(), first.key.id.as_str()), ("hook", "u1"));
        assert_eq!((first.first_version, first.version, first.position, first.deleted), (3, 4, 3, true));
        assert_eq!(first.kind, LaneKind::Log);
        assert!(wishes.iter().all(|wish| wish.key.tenant.as_str() == "acme"));
    }

    #[test]
    fn an_apps_end_removes_its_lanes() {
        let mut gone = event(1, "acme", "app.crm", 2, Event::Deleted);
        gone.stream.resource_type = "App".into();
        let wish = removal(&gone.tenant, &gone).unwrap();
        assert_eq!((wish.app.as_str(), wish.mode), ("crm", SweepMode::Remove));
    }
}

//! A small world for deliveries: a store on SQLite, a planner and a deliverer driven by hand, a clock
//! that stands still, and real HTTP targets on loopback ports.

use std::sync::Arc;
use std::time::Duration;

use annals_bus::{Feed, JournalFeed};
use annals_domain::clock::Timestamp;
use annals_domain::event::{Actor, Cause};
use annals_domain::ids::{AppId, ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::patch::parse_request;
use annals_domain::tenant::{App, Driver, TenantSettings};
use annals_store::lanes::{Attempt, Delivery, DeliveryFilter, LaneKey, LaneState, TargetStatus};
use annals_store::{Database, Executed, IfMatch, Limits, Request, RootKey, Store, StoreOptions};
use annals_testkit::clock::{ManualClock, SeededEntropy};
use annals_workers::{Deliverer, Janitor, Planner, WorkerOptions};
use secrecy::SecretString;
use serde_json::{Value, json};

/// Longest time a test waits for real input and output.
const DEADLINE: Duration = Duration::from_secs(60);
/// The token of every SCIM target.
pub(crate) const TOKEN: &str = "t0ken-of-the-target";
/// The secret of every webhook.
pub(crate) const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) planner: Planner,
    pub(crate) deliverer: Deliverer,
    database: Database,
    _dir: tempfile::TempDir,
}

pub(crate) fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

pub(crate) fn app_id(id: &str) -> AppId {
    AppId::new(id).unwrap()
}

pub(crate) fn options() -> WorkerOptions {
    WorkerOptions {
        allow_private: true,
        request_timeout: Duration::from_secs(10),
        lease_ttl: Duration::from_secs(60),
        ..WorkerOptions::default()
    }
}

impl World {
    pub(crate) async fn new() -> World {
        World::with(options()).await
    }

    pub(crate) async fn with(options: WorkerOptions) -> World {
        let dir = tempfile::tempdir().unwrap();
        World::on(Database::Sqlite { dir: dir.path().to_owned() }, dir, options).await
    }

    pub(crate) async fn postgres() -> World {
        let url = annals_testkit::postgres::shared().await.create_database().await.unwrap();
        let database = Database::Postgres { url, connections_max: 16 };
        World::on(database, tempfile::tempdir().unwrap(), options()).await
    }

    async fn on(database: Database, dir: tempfile::TempDir, options: WorkerOptions) -> World {
        let clock = ManualClock::new();
        let store = open(&database, &clock, 1).await;
        store.migrate().await.unwrap();
        store.create_tenant(&acme(), TenantSettings::default(), Actor::system("test")).await.unwrap();
        let feed = Feed::Journal(JournalFeed::new(store.clone()));
        let planner = Planner::new(store.clone(), feed).waiting(Duration::ZERO);
        let deliverer = Deliverer::new(store.clone(), options).unwrap();
        World { store, clock, planner, deliverer, database, _dir: dir }
    }

    /// The store as another process opens it.
    pub(crate) async fn another_store(&self) -> Store {
        open(&self.database, &self.clock, 2).await
    }

    pub(crate) async fn app(&self, id: &str, driver: Driver) -> App {
        let app = App {
            id: app_id(id),
            driver,
            resource_types: Vec::new(),
            paused: false,
            concurrency_max: 8,
            rate_per_second_max: 0,
        };
        self.add(app.clone()).await;
        app
    }

    pub(crate) async fn add(&self, app: App) {
        let credential = match app.driver {
            Driver::Scim { .. } => TOKEN,
            Driver::Webhook { .. } => SECRET,
        };
        let credential = SecretString::from(credential.to_owned());
        self.store.create_app(&acme(), app, credential, Actor::system("test")).await.unwrap();
    }

    pub(crate) async fn scim_app(&self, url: &str) -> App {
        self.app("crm", Driver::Scim { base_url: url.to_owned(), members_per_request_max: 100 }).await
    }

    pub(crate) async fn webhook_app(&self, url: &str) -> App {
        self.app("hook", Driver::Webhook { url: url.to_owned() }).await
    }

    /// Plans everything the journal has, and sweeps.
    pub(crate) async fn plan(&mut self) {
        while self.planner.step().await.unwrap().done > 0 {}
    }

    /// Plans, and delivers what is due at this moment.
    pub(crate) async fn settle(&mut self) {
        tokio::time::timeout(DEADLINE, async {
            loop {
                self.plan().await;
                let progress = self.deliverer.step().await.unwrap();
                if progress.done == 0 && self.deliverer.in_flight() == 0 {
                    let swept = self.planner.step().await.unwrap().done;
                    if swept == 0 && progress.wake_at.is_none_or(|at| at > self.store.now()) {
                        return;
                    }
                }
            }
        })
        .await
        .expect("deliveries come to rest");
    }

    /// Delivers, moving the clock to whatever is next, for at most this long.
    pub(crate) async fn settle_for(&mut self, limit: Duration) {
        let end = self.store.now().plus_ms(limit.as_millis() as i64);
        loop {
            self.settle().await;
            match self.next_due().await {
                Some(at) if at <= end => self.clock.advance_to(at.max(self.store.now().plus_ms(1))),
                _ => return,
            }
        }
    }

    pub(crate) async fn next_due(&self) -> Option<Timestamp> {
        let quotas: Vec<_> = self
            .store
            .all_apps()
            .await
            .unwrap()
            .iter()
            .filter(|(_, app)| !app.paused)
            .map(|(tenant, app)| annals_store::lanes::Quota {
                tenant: tenant.clone(),
                app: app.id.clone(),
                concurrency_max: app.concurrency_max,
                rate_per_second_max: app.rate_per_second_max,
                in_flight: 0,
            })
            .collect();
        self.store.next_due(&quotas).await.unwrap()
    }

    /// Steps the deliverer until something holds.
    pub(crate) async fn step_until(&mut self, what: &str, done: impl Fn() -> bool) {
        self.plan().await;
        let stepping = async {
            while !done() {
                self.deliverer.step().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, stepping).await.unwrap_or_else(|_| panic!("{what}"));
    }

    pub(crate) async fn janitor(&self) {
        let mut janitor = Janitor::new(self.store.clone());
        while janitor.step().await.unwrap().done > 0 {}
    }

    pub(crate) async fn lane(&self, app: &str, id: &ResourceId) -> Delivery {
        let key = LaneKey { tenant: acme(), app: app_id(app), id: id.clone() };
        self.store.delivery(&key).await.unwrap().expect("the lane exists")
    }

    pub(crate) async fn lanes_in(&self, state: LaneState) -> usize {
        let filter = DeliveryFilter { state: Some(state), ..DeliveryFilter::default() };
        self.store.deliveries(&filter, 1_000).await.unwrap().len()
    }

    pub(crate) async fn attempts(&self, app: &str, id: &ResourceId) -> Vec<Attempt> {
        self.store.attempts(&acme(), &app_id(app), id).await.unwrap()
    }

    pub(crate) async fn target(&self, app: &str) -> TargetStatus {
        self.store.target_status(&acme(), &app_id(app)).await.unwrap()
    }

    async fn execute(&self, resource_type: &str, id: &ResourceId, command: Command) -> Executed {
        let registry = self.store.registry_of(&acme()).await.unwrap();
        let request = Request {
            tenant: acme(),
            resource_type: registry.resource_type(resource_type).unwrap().clone(),
            id: id.clone(),
            command,
            if_match: IfMatch::Absent,
            actor: Actor::system("test"),
            cause: Cause::default(),
            connection: None,
            settings: TenantSettings::default(),
            group_name_unique: false,
            idempotency: None,
            deadline: None,
        };
        self.store.execute(request).await.unwrap()
    }

    pub(crate) async fn create(&self, resource_type: &str, body: Value) -> ResourceId {
        let id = ResourceId::from_uuid(self.store.entropy().uuid_v7(self.store.now()));
        let command = Command::Create { id: id.clone(), body, client: Profile::Generic.into() };
        self.execute(resource_type, &id, command).await.state.id
    }

    pub(crate) async fn user(&self, name: &str) -> ResourceId {
        self.create("User", json!({ "userName": name })).await
    }

    pub(crate) async fn group(&self, name: &str, members: &[ResourceId]) -> ResourceId {
        let members: Vec<Value> = members.iter().map(|id| json!({ "value": id })).collect();
        self.create("Group", json!({ "displayName": name, "members": members })).await
    }

    pub(crate) async fn patch(&self, resource_type: &str, id: &ResourceId, operations: Value) -> Executed {
        let schema = "urn:ietf:params:scim:api:messages:2.0:PatchOp";
        let body = json!({ "schemas": [schema], "Operations": operations });
        let operations = parse_request(&body, &mut Dialect::new(Profile::Generic)).unwrap();
        let command = Command::Patch { id: id.clone(), operations, client: Profile::Generic.into() };
        self.execute(resource_type, id, command).await
    }

    pub(crate) async fn set(&self, user: &ResourceId, path: &str, value: Value) -> Executed {
        self.patch("User", user, json!([{ "op": "replace", "path": path, "value": value }])).await
    }

    pub(crate) async fn add_member(&self, group: &ResourceId, member: &ResourceId) {
        let add = json!([{ "op": "add", "path": "members", "value": [{ "value": member }] }]);
        self.patch("Group", group, add).await;
    }

    pub(crate) async fn remove_member(&self, group: &ResourceId, member: &ResourceId) {
        let path = format!("members[value eq \"{member}\"]");
        self.patch("Group", group, json!([{ "op": "remove", "path": path }])).await;
    }

    pub(crate) async fn delete(&self, resource_type: &str, id: &ResourceId) {
        self.execute(resource_type, id, Command::Delete).await;
    }
}

async fn open(database: &Database, clock: &Arc<ManualClock>, seed: u64) -> Store {
    let options = StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes([7; 32]),
        clock: clock.clone(),
        entropy: SeededEntropy::new(seed),
        limits: Limits::default(),
    };
    Store::open(options).await.unwrap()
}

//! What the store's contract suites share: a store on either database, with a clock that stands still and
//! chance that repeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use annals_domain::clock::{Clock, Entropy, Timestamp};
use annals_domain::event::{Actor, Cause};
use annals_domain::ids::{ConnectionId, ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::Profile;
use annals_domain::scim::schema::Registry;
use annals_domain::tenant::TenantSettings;
use annals_store::{Database, Executed, IfMatch, Limits, Request, RootKey, Store, StoreError, StoreOptions};
use serde_json::{Value, json};

pub(crate) struct TestClock(pub(crate) AtomicI64);

impl TestClock {
    pub(crate) fn advance(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

/// Distinct, repeatable bytes: splitmix64 over a counter.
pub(crate) struct Counter(pub(crate) AtomicU64);
impl Entropy for Counter {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) database: Database,
    _dir: Option<tempfile::TempDir>,
}

pub(crate) const ROOT: [u8; 32] = [7; 32];

impl Fixture {
    pub(crate) async fn sqlite() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        Fixture::open(Database::Sqlite { dir: dir.path().to_owned() }, Some(dir)).await
    }

    pub(crate) async fn postgres() -> Fixture {
        let url = annals_testkit::postgres::shared().await.create_database().await.unwrap();
        Fixture::open(Database::Postgres { url, connections_max: 8 }, None).await
    }

    pub(crate) async fn open(database: Database, dir: Option<tempfile::TempDir>) -> Fixture {
        let clock = Arc::new(TestClock(AtomicI64::new(1_767_225_600_000)));
        let store = open(&database, clock.clone(), 1).await;
        store.migrate().await.unwrap();
        store.create_tenant(&acme(), TenantSettings::default(), Actor::system("test")).await.unwrap();
        Fixture { store, clock, database, _dir: dir }
    }

    /// A second process on the same data.
    pub(crate) async fn another(&self) -> Store {
        open(&self.database, self.clock.clone(), 0x5EED).await
    }
}

pub(crate) async fn open(database: &Database, clock: Arc<TestClock>, seed: u64) -> Store {
    Store::open(StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes(ROOT),
        clock,
        entropy: Arc::new(Counter(AtomicU64::new(seed))),
        limits: Limits::default(),
    })
    .await
    .unwrap()
}

pub(crate) fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

pub(crate) fn request(resource_type: &str, id: &ResourceId, command: Command) -> Request {
    Request {
        tenant: acme(),
        resource_type: Registry::standard().resource_type(resource_type).unwrap().clone(),
        id: id.clone(),
        command,
        if_match: IfMatch::Absent,
        actor: Actor::system("test"),
        cause: Cause::default(),
        connection: Some(ConnectionId::new("idp").unwrap()),
        settings: TenantSettings::default(),
        group_name_unique: false,
        idempotency: None,
        deadline: None,
    }
}

pub(crate) fn new_id(store: &Store) -> ResourceId {
    ResourceId::from_uuid(store.entropy().uuid_v7(store.now()))
}

pub(crate) async fn create(store: &Store, resource_type: &str, body: Value) -> Result<Executed, StoreError> {
    let id = new_id(store);
    let command = Command::Create { id: id.clone(), body, client: Profile::Generic.into() };
    store.execute(request(resource_type, &id, command)).await
}

pub(crate) async fn user(store: &Store, name: &str) -> ResourceId {
    create(store, "User", json!({ "userName": name })).await.unwrap().state.id
}

pub(crate) async fn group(store: &Store, name: &str, members: &[&ResourceId]) -> ResourceId {
    let members: Vec<Value> = members.iter().map(|id| json!({ "value": id.as_str() })).collect();
    create(store, "Group", json!({ "displayName": name, "members": members })).await.unwrap().state.id
}

/// Each check is a function of a fixture; the macro runs it on every back end.
macro_rules! contract {
    ($($name:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::Fixture::sqlite().await).await })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::Fixture::postgres().await).await })*
        }
    };
}
pub(crate) use contract;

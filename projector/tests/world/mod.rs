//! A store with a journal, for the projector's tests.

use std::sync::Arc;
use std::time::Duration;

use annals_bus::{Feed, JournalFeed};
use annals_domain::clock::Clock as _;
use annals_domain::event::{Actor, Cause};
use annals_domain::ids::{ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::filter::{Budget, Context, bind, parse};
use annals_domain::scim::schema::Registry;
use annals_domain::tenant::TenantSettings;
use annals_projector::Projector;
use annals_store::model::Search;
use annals_store::{Database, IfMatch, Limits, Request, RootKey, Store, StoreError, StoreOptions};
use annals_testkit::clock::{ManualClock, SeededEntropy};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _};

/// One database, opened once or several times.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    database: Database,
    _dir: Option<tempfile::TempDir>,
}

pub(crate) fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

impl World {
    pub(crate) async fn sqlite() -> World {
        let dir = tempfile::tempdir().unwrap();
        World::open(Database::Sqlite { dir: dir.path().to_owned() }, Some(dir)).await
    }

    pub(crate) async fn postgres() -> World {
        let url = annals_testkit::postgres::shared().await.create_database().await.unwrap();
        World::open(Database::Postgres { url, connections_max: 8 }, None).await
    }

    async fn open(database: Database, dir: Option<tempfile::TempDir>) -> World {
        let clock = ManualClock::new();
        let store = open(&database, clock.clone(), 1).await;
        store.migrate().await.unwrap();
        store.create_tenant(&acme(), TenantSettings::default(), Actor::system("test")).await.unwrap();
        World { store, clock, database, _dir: dir }
    }

    /// A second process.
    pub(crate) async fn another(&self, seed: u64) -> Store {
        open(&self.database, self.clock.clone(), seed).await
    }

    /// Runs a statement behind the store's back: on SQLite in the file, on PostgreSQL in the schema.
    pub(crate) async fn meddle(&self, area: &str, statement: &str) {
        match &self.database {
            Database::Sqlite { dir } => {
                let url = format!("sqlite://{}", dir.join(format!("{area}.db")).display());
                let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
                connection.execute(statement).await.unwrap();
                connection.close().await.unwrap();
            }
            Database::Postgres { url, .. } => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                connection.execute(format!("SET search_path = {area}").as_str()).await.unwrap();
                connection.execute(statement).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    pub(crate) async fn create(&self, resource_type: &str, body: Value) -> ResourceId {
        // Ids of one millisecond have no order among them.
        self.clock.advance(Duration::from_millis(1));
        let id = ResourceId::from_uuid(self.store.entropy().uuid_v7(self.clock.now()));
        let command = Command::Create { id: id.clone(), body, client: Profile::Generic.into() };
        self.execute(resource_type, &id, command).await;
        id
    }

    pub(crate) async fn execute(&self, resource_type: &str, id: &ResourceId, command: Command) {
        let request = Request {
            tenant: acme(),
            resource_type: Registry::standard().resource_type(resource_type).unwrap().clone(),
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
        self.store.execute(request).await.unwrap();
    }
}

async fn open(database: &Database, clock: Arc<ManualClock>, seed: u64) -> Store {
    Store::open(StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes([7; 32]),
        clock,
        entropy: SeededEntropy::new(seed),
        limits: Limits::default(),
    })
    .await
    .unwrap()
}

/// A projector on the journal's feed that hardly waits.
pub(crate) fn projector(store: &Store) -> Projector {
    Projector::new(store.clone(), Feed::Journal(JournalFeed::new(store.clone())))
        .with_wait(Duration::from_millis(5))
}

/// The ids that match, or what went wrong; waits for nobody.
pub(crate) async fn find(
    store: &Store,
    resource_type: &str,
    filter: &str,
) -> Result<Vec<ResourceId>, StoreError> {
    let rt = Registry::standard().resource_type(resource_type).unwrap().clone();
    let parsed = parse(filter, Budget::default()).unwrap();
    let mut dialect = Dialect::new(Profile::Generic);
    let bound = bind(&parsed, &Registry::standard(), &rt, Context::GET, &mut dialect).unwrap();
    let search = Search {
        tenant: acme(),
        resource_types: vec![rt],
        filter: Some(bound),
        sort: None,
        start_index: 1,
        after: None,
        total: None,
        count: 1_000,
        timeout: Duration::ZERO,
    };
    Ok(store.search(&search).await?.found.into_iter().map(|found| found.id).collect())
}

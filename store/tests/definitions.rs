//! Schemas and resource types of a tenant, on SQLite and on PostgreSQL: in force at once in every process,
//! and never older than what a commit was decided by (decision 0007).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annals_domain::clock::{Clock, Entropy, Timestamp};
use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use annals_domain::event::{Actor, Cause};
use annals_domain::ids::{ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::filter::{Budget, Context, bind, parse};
use annals_domain::scim::schema::{Registry, ResourceType};
use annals_domain::tenant::TenantSettings;
use annals_domain::view::LookupKind;
use annals_store::model::Search;
use annals_store::tenants::By;
use annals_store::{Database, Executed, IfMatch, Limits, Request, RootKey, Store, StoreError, StoreOptions};
use serde_json::{Value, json};

const BADGE: &str = "urn:example:ext:Badge";

struct TestClock;
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_767_225_600_000)
    }
}

/// Distinct, repeatable bytes: splitmix64 over a counter.
struct Counter(AtomicU64);
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

struct Fixture {
    /// Three processes on the same data.
    a: Store,
    b: Store,
    projector: Store,
    _dir: Option<tempfile::TempDir>,
}

impl Fixture {
    async fn sqlite() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        Fixture::open(Database::Sqlite { dir: dir.path().to_owned() }, Some(dir)).await
    }

    async fn postgres() -> Fixture {
        let url = annals_testkit::postgres::shared().await.create_database().await.unwrap();
        Fixture::open(Database::Postgres { url, connections_max: 4 }, None).await
    }

    async fn open(database: Database, dir: Option<tempfile::TempDir>) -> Fixture {
        let a = open(&database, 1).await;
        a.migrate().await.unwrap();
        a.create_tenant(&acme(), TenantSettings::default(), actor()).await.unwrap();
        let (b, projector) = (open(&database, 0x5EED).await, open(&database, 0xFEED).await);
        // What every process remembers is that the tenant has no definitions.
        for store in [&a, &b, &projector] {
            let registry = store.registry_of(&acme()).await.unwrap();
            assert!(Arc::ptr_eq(&registry, &Registry::standard()));
        }
        Fixture { a, b, projector, _dir: dir }
    }

    /// Applies all events there are, in as few pages as possible.
    async fn project(&self) {
        let at = self.projector.model_checkpoint().await.unwrap();
        let events = self.projector.read_events(at, 500).await.unwrap();
        if !events.is_empty() {
            self.projector.model_apply(at, &events).await.unwrap();
        }
    }

    async fn find(&self, filter: &str) -> Vec<ResourceId> {
        let search = self.search(filter).await;
        self.b.search(&search).await.unwrap().found.into_iter().map(|found| found.id).collect()
    }

    /// How many there are, without reading them.
    async fn count(&self, filter: &str) -> i64 {
        let search = Search { count: 0, ..self.search(filter).await };
        self.b.search(&search).await.unwrap().total
    }

    async fn search(&self, filter: &str) -> Search {
        let registry = self.b.registry_of(&acme()).await.unwrap();
        let rt = registry.resource_type("User").unwrap().clone();
        let parsed = parse(filter, Budget::default()).unwrap();
        let bound = bind(&parsed, &registry, &rt, Context::GET, &mut Dialect::new(Profile::Generic)).unwrap();
        Search {
            tenant: acme(),
            resource_types: vec![rt],
            filter: Some(bound),
            sort: None,
            start_index: 1,
            after: None,
            total: None,
            count: 100,
            timeout: Duration::from_secs(5),
        }
    }
}

async fn open(database: &Database, seed: u64) -> Store {
    let options = StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes([7; 32]),
        clock: Arc::new(TestClock),
        entropy: Arc::new(Counter(AtomicU64::new(seed))),
        limits: Limits::default(),
    };
    Store::open(options).await.unwrap()
}

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Fixture::sqlite().await).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Fixture::postgres().await).await;
            })*
        }
    };
}

contract!(
    definitions_are_in_force_at_once_in_every_process,
    a_command_decided_by_older_schemas_is_decided_again,
    the_read_model_indexes_what_came_right_after_a_definition,
    a_type_of_today_is_not_counted_among_the_others,
    definitions_have_versions,
    two_processes_define_at_once,
    no_value_slips_in_while_its_attribute_is_removed,
);

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn actor() -> Actor {
    Actor::system("test")
}

/// Who has seen a version.
fn seen(version: i64) -> By {
    By { if_match: IfMatch::Versions(vec![version]), ..By::from(actor()) }
}

fn schema(urn: &str, attributes: Value) -> SchemaDefinition {
    SchemaDefinition::read(&json!({"id": urn, "attributes": attributes})).unwrap()
}

fn badge() -> SchemaDefinition {
    schema(BADGE, json!([{"name": "number", "uniqueness": "server"}, {"name": "colour"}]))
}

fn users_with(urns: &[&str]) -> ResourceTypeDefinition {
    let extensions: Vec<Value> = urns.iter().map(|urn| json!({"schema": urn})).collect();
    ResourceTypeDefinition::read(&json!({"name": "User", "schemaExtensions": extensions})).unwrap()
}

async fn define(store: &Store) {
    store.put_schema(&acme(), badge(), actor()).await.unwrap();
    store.put_resource_type(&acme(), users_with(&[BADGE]), actor()).await.unwrap();
}

/// A create by a process that knows no definitions.
async fn create(store: &Store, body: Value) -> Result<Executed, StoreError> {
    create_of(store, Registry::standard().resource_type("User").unwrap(), body).await
}

async fn create_of(
    store: &Store,
    resource_type: &Arc<ResourceType>,
    body: Value,
) -> Result<Executed, StoreError> {
    let id = ResourceId::from_uuid(store.entropy().uuid_v7(store.now()));
    let request = Request {
        tenant: acme(),
        resource_type: resource_type.clone(),
        id: id.clone(),
        command: Command::Create { id, body, client: Profile::Generic.into() },
        if_match: IfMatch::Absent,
        actor: actor(),
        cause: Cause::default(),
        connection: None,
        settings: TenantSettings::default(),
        group_name_unique: false,
        idempotency: None,
        deadline: None,
    };
    store.execute(request).await
}

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> (u16, String) {
    match result {
        Err(StoreError::Refused(error)) => (error.status, error.detail),
        other => panic!("{other:?}"),
    }
}

async fn assert_sound(store: &Store) {
    assert_eq!(store.verify().await.unwrap().findings, []);
}

async fn definitions_are_in_force_at_once_in_every_process(f: Fixture) {
    define(&f.a).await;
    let registry = f.b.registry_of(&acme()).await.unwrap();
    assert!(registry.schema(BADGE).is_some());
    let user = registry.resource_type("User").unwrap();
    assert!(user.extension(BADGE).is_some());
    // The same as long as nothing is defined.
    assert!(Arc::ptr_eq(&registry, &f.b.registry_of(&acme()).await.unwrap()));
    let other = TenantId::new("globex").unwrap();
    f.a.create_tenant(&other, TenantSettings::default(), actor()).await.unwrap();
    f.a.put_schema(&other, schema("urn:example:Other", json!([{"name": "x"}])), actor()).await.unwrap();
    // Another tenant's definition is none of this one's.
    assert!(Arc::ptr_eq(&registry, &f.b.registry_of(&acme()).await.unwrap()));
    assert!(f.b.registry_of(&other).await.unwrap().schema(BADGE).is_none());
    let missing = f.a.put_schema(&TenantId::new("nobody").unwrap(), badge(), actor()).await;
    assert!(matches!(missing, Err(StoreError::NoTenant(_))), "{missing:?}");
    assert_sound(&f.a).await;
}

async fn a_command_decided_by_older_schemas_is_decided_again(f: Fixture) {
    define(&f.a).await;
    // This process never asked again: its decision has no badge, and the journal refuses it.
    let made =
        create(&f.b, json!({"userName": "anna", BADGE: {"number": "B-1", "colour": "red"}})).await.unwrap();
    assert_eq!(made.state.document().unwrap().0[BADGE], json!({"number": "B-1", "colour": "red"}));
    let stored = f.a.state(&acme(), &made.state.id).await.unwrap().unwrap();
    assert_eq!(stored.document(), made.state.document());
    // The look-up is there and exclusive, whatever process asks.
    let (status, detail) = refused(create(&f.a, json!({"userName": "bo", BADGE: {"number": "b-1"}})).await);
    assert_eq!(status, 409);
    assert!(detail.contains(&format!("{BADGE}:number")), "{detail}");
    let kind = LookupKind::Unique(format!("{BADGE}:number").to_lowercase());
    let found = f.b.find_by_lookup(&acme(), "User", kind, "b-1").await.unwrap();
    assert_eq!(found, [made.state.id]);
    assert_sound(&f.a).await;
}

async fn the_read_model_indexes_what_came_right_after_a_definition(f: Fixture) {
    define(&f.a).await;
    let made = create(&f.a, json!({"userName": "anna", BADGE: {"colour": "red"}})).await.unwrap();
    let wider = schema(
        BADGE,
        json!([{"name": "number", "uniqueness": "server"}, {"name": "colour"}, {"name": "room"}]),
    );
    f.a.put_schema(&acme(), wider, actor()).await.unwrap();
    let next = create(&f.a, json!({"userName": "bo", BADGE: {"room": "7"}})).await.unwrap();
    // Definitions and what uses them in one page, by a process that knew neither.
    f.project().await;
    assert_eq!(f.find(&format!(r#"{BADGE}:colour eq "RED""#)).await, [made.state.id]);
    assert_eq!(f.find(&format!(r#"{BADGE}:room eq "7""#)).await, [next.state.id]);
}

/// Whether an attribute's values are those of users only is a question of today's schemas.
async fn a_type_of_today_is_not_counted_among_the_others(f: Fixture) {
    create(&f.a, json!({"userName": "anna", "title": "Boss"})).await.unwrap();
    f.project().await;
    assert_eq!(f.count("title pr").await, 1);
    // Asked before the definition, so by schemas that know of no other type with a title.
    let before = f.search("title pr").await;
    let desk = schema("urn:example:Desk", json!([{"name": "title"}]));
    f.a.put_schema(&acme(), desk, actor()).await.unwrap();
    let desks = json!({"name": "Desk", "endpoint": "/Desks", "schema": "urn:example:Desk"});
    let desks = ResourceTypeDefinition::read(&desks).unwrap();
    f.a.put_resource_type(&acme(), desks, actor()).await.unwrap();
    let desks = f.a.registry_of(&acme()).await.unwrap().resource_type("Desk").unwrap().clone();
    create_of(&f.a, &desks, json!({"schemas": ["urn:example:Desk"], "title": "By the window"}))
        .await
        .unwrap();
    f.project().await;
    assert_eq!(f.count("title pr").await, 1);
    assert_eq!(f.b.search(&Search { count: 0, ..before }).await.unwrap().total, 1);
}

async fn definitions_have_versions(f: Fixture) {
    let first = f.a.put_schema(&acme(), badge(), actor()).await.unwrap();
    assert!(first.created);
    assert_eq!(first.stored.version, 1);
    let head = f.a.head().await.unwrap().position;
    let same = f.b.put_schema(&acme(), badge(), seen(1)).await.unwrap();
    assert_eq!((same.created, same.stored.version), (false, 1));
    assert_eq!(f.a.head().await.unwrap().position, head, "no change, no event");
    let wider =
        schema(BADGE, json!([{"name": "number", "uniqueness": "server"}, {"name": "colour"}, {"name": "x"}]));
    assert_eq!(refused(f.b.put_schema(&acme(), wider.clone(), seen(2)).await).0, 412);
    assert_eq!(f.b.put_schema(&acme(), wider.clone(), seen(1)).await.unwrap().stored.version, 2);
    assert_eq!(refused(f.a.retire_schema(&acme(), BADGE, seen(1)).await).0, 412);
    f.a.retire_schema(&acme(), BADGE, seen(2)).await.unwrap();
    assert_eq!(refused(f.a.retire_schema(&acme(), BADGE, actor()).await).0, 404);
    assert!(f.b.registry_of(&acme()).await.unwrap().schema(BADGE).is_none());
    assert!(f.b.own_schema(&acme(), BADGE).await.unwrap().unwrap().entity.retired);
    assert_eq!(refused(f.a.put_resource_type(&acme(), users_with(&[BADGE]), actor()).await).0, 400);
    assert_eq!(refused(f.a.retire_resource_type(&acme(), "User", actor()).await).0, 400);
    let back = f.a.put_schema(&acme(), wider, actor()).await.unwrap();
    assert_eq!((back.created, back.stored.version), (false, 4));
    let events = f.a.read_events(0, 100).await.unwrap();
    let of_schema: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| event.stream.resource_type == "Schema")
        .map(|event| (event.kind.as_str(), event.cause.operation.as_str()))
        .collect();
    let expected = [
        ("schema.created", "create"),
        ("schema.changed", "change"),
        ("schema.changed", "retire"),
        ("schema.changed", "restore"),
    ];
    assert_eq!(of_schema, expected);
    assert_sound(&f.a).await;
}

async fn two_processes_define_at_once(f: Fixture) {
    let put = |store: Store, n: usize| async move {
        let urn = format!("urn:example:ext:n{n}");
        store.put_schema(&acme(), schema(&urn, json!([{"name": "x"}])), actor()).await.unwrap();
    };
    let stores = [&f.a, &f.b].into_iter().cycle();
    let tasks: Vec<_> =
        stores.take(8).enumerate().map(|(n, store)| tokio::spawn(put(store.clone(), n))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(f.a.own_schemas(&acme()).await.unwrap().len(), 8);
    let registry = f.projector.registry_of(&acme()).await.unwrap();
    assert!((0..8).all(|n| registry.schema(&format!("urn:example:ext:n{n}")).is_some()));
    assert_sound(&f.a).await;
}

async fn no_value_slips_in_while_its_attribute_is_removed(f: Fixture) {
    define(&f.a).await;
    let without = schema(BADGE, json!([{"name": "number", "uniqueness": "server"}]));
    let made = create(&f.a, json!({"userName": "anna", BADGE: {"colour": "red"}})).await.unwrap();
    f.project().await;
    let (status, detail) = refused(f.b.put_schema(&acme(), without.clone(), actor()).await);
    assert_eq!(status, 409);
    assert!(detail.starts_with("colour: "), "{detail}");

    // Others write while it is removed: whoever is later sees the other.
    let projector = f.projector.clone();
    let projecting = tokio::spawn(async move {
        loop {
            let at = projector.model_checkpoint().await.unwrap();
            let events = projector.read_events(at, 500).await.unwrap();
            if events.is_empty() {
                let _ = projector.wait_journal(at, Duration::from_millis(20)).await;
            } else {
                projector.model_apply(at, &events).await.unwrap();
            }
        }
    });
    let a = f.a.clone();
    let writing = tokio::spawn(async move {
        let mut last = Vec::new();
        for n in 0..10 {
            let body = json!({"userName": format!("u{n}"), BADGE: {"number": n.to_string()}});
            last.push(create(&a, body).await.unwrap().state.id);
        }
        last
    });
    // Anna has a colour: refused, however often it is tried.
    for _ in 0..3 {
        assert_eq!(refused(f.b.put_schema(&acme(), without.clone(), actor()).await).0, 409);
    }
    assert_eq!(writing.await.unwrap().len(), 10);
    f.a.erase(&acme(), &made.state.id, actor()).await.unwrap();
    let (c, d) = (f.a.clone(), f.b.clone());
    let removing = tokio::spawn(async move { c.put_schema(&acme(), without, actor()).await });
    let body = json!({"userName": "bo", BADGE: {"colour": "blue"}});
    let wrote = create(&d, body).await.unwrap();
    let removed = removing.await.unwrap();
    let kept = d.state(&acme(), &wrote.state.id).await.unwrap().unwrap();
    let has_colour = kept.document().unwrap().0.contains_key(BADGE);
    // Either the write came first and the removal is refused, or the removal did and nothing was kept.
    assert_ne!(removed.is_ok(), has_colour, "{removed:?}");
    projecting.abort();
    assert_sound(&f.a).await;
}

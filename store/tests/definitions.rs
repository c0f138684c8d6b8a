//! Schemas and resource types of a tenant, on SQLite and on PostgreSQL: in force at once in every process,
//! and never older than what a commit was decided by (decision 0007).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annals_domain::clock::{Clock, Entropy, Timestamp};
use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use annals_domain::event::{Actor, Cause};
use annals_domain::ids::{AppId, ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::bulk::{Method, plan};
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::filter::{Budget, Context, bind, parse};
use annals_domain::scim::patch::parse_request;
use annals_domain::scim::schema::{Registry, ResourceType};
use annals_domain::tenant::{App, Driver, TenantSettings};
use annals_domain::view::LookupKind;
use annals_store::model::Search;
use annals_store::tenants::By;
use annals_store::{
    Bulk, BulkOutcome, Database, Executed, IfMatch, Limits, Request, RootKey, Store, StoreError, StoreOptions,
};
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

type Deed = Box<dyn FnOnce() + Send>;

/// Chance that does something once, when a number is asked of it: in the middle of a decision.
struct Ambush {
    numbers: Counter,
    deed: Mutex<Option<Deed>>,
}

impl Ambush {
    fn arm(&self, deed: Deed) {
        *self.deed.lock().unwrap() = Some(deed);
    }
}

impl Entropy for Ambush {
    fn fill(&self, bytes: &mut [u8]) {
        let deed = self.deed.lock().unwrap().take();
        if let Some(deed) = deed {
            deed();
        }
        self.numbers.fill(bytes);
    }
}

struct Fixture {
    database: Database,
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
        Fixture { database, a, b, projector, _dir: dir }
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
    open_with(database, Arc::new(Counter(AtomicU64::new(seed)))).await
}

async fn open_with(database: &Database, entropy: Arc<dyn Entropy>) -> Store {
    let options = StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes([7; 32]),
        clock: Arc::new(TestClock),
        entropy,
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
    a_bulk_request_decided_by_older_schemas_is_decided_again,
    a_bulk_request_loses_a_type_that_is_retired_meanwhile,
    the_read_model_indexes_what_came_right_after_a_definition,
    a_type_of_today_is_not_counted_among_the_others,
    definitions_have_versions,
    two_processes_define_at_once,
    an_app_names_types_that_exist,
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
    let command = Command::Create { id: id.clone(), body, client: Profile::Generic.into() };
    store.execute(request(resource_type.clone(), id, command)).await
}

fn request(resource_type: Arc<ResourceType>, id: ResourceId, command: Command) -> Request {
    Request {
        tenant: acme(),
        resource_type,
        id,
        command,
        if_match: IfMatch::Absent,
        actor: actor(),
        cause: Cause::default(),
        connection: None,
        settings: TenantSettings::default(),
        group_name_unique: false,
        idempotency: None,
        deadline: None,
    }
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

/// Carries a bulk request out in a process in which `deed` is done once, between the decision about the
/// first operation and its commit.
async fn bulk_with(f: &Fixture, operations: Value, deed: Deed) -> Vec<BulkOutcome> {
    let seed = 0xA5B5_0000 + f.a.head().await.unwrap().position as u64;
    let ambush = Arc::new(Ambush { numbers: Counter(AtomicU64::new(seed)), deed: Mutex::new(None) });
    let store = open_with(&f.database, ambush.clone()).await;
    let registry = store.registry_of(&acme()).await.unwrap();
    let schemas = ["urn:ietf:params:scim:api:messages:2.0:BulkRequest"];
    let body = json!({"schemas": schemas, "Operations": operations});
    let dialect = Dialect::new(Profile::Generic);
    let plan = Arc::new(plan(&registry, body, 100, &mut dialect.clone()).unwrap());
    let deed = Mutex::new(Some(deed));
    let prepare = |at: usize, ids: &[ResourceId]| {
        // Whatever is asked of chance from now on is for a decision.
        if let Some(deed) = deed.lock().unwrap().take() {
            ambush.arm(deed);
        }
        let operation = &plan.operations[at];
        let (id, body) = plan.resolve(&registry, at, ids, &dialect).unwrap();
        let (given, client) = (id.clone(), Profile::Generic.into());
        let command = match operation.method {
            Method::Post => Command::Create { id, body, client },
            Method::Put => Command::Replace { id, body, client },
            Method::Patch => {
                Command::Patch { id, operations: parse_request(&body, &mut dialect.clone())?, client }
            }
            Method::Delete => Command::Delete,
        };
        let resource_type = operation.target.as_ref().unwrap().resource_type.clone();
        Ok::<_, ScimError>(request(resource_type, given, command))
    };
    let bulk =
        Bulk { tenant: acme(), connection: None, plan: plan.clone(), idempotency: None, deadline: None };
    let outcomes = store.execute_bulk(bulk, prepare).await.unwrap();
    assert!(ambush.deed.lock().unwrap().is_none(), "it was done");
    outcomes
}

/// What happens while a process decides.
fn meanwhile<F>(deed: impl FnOnce() -> F + Send + 'static) -> Deed
where
    F: Future<Output = ()> + Send + 'static,
{
    let handle = tokio::runtime::Handle::current();
    Box::new(move || tokio::task::block_in_place(|| handle.block_on(deed())))
}

/// The document each operation left, or the status and detail of its refusal.
fn left(outcomes: Vec<BulkOutcome>) -> Vec<Result<Value, (u16, String)>> {
    let one = |outcome: BulkOutcome| match outcome.expect("it was processed") {
        Ok(executed) => Ok(Value::Object(executed.state.document().unwrap().0.clone())),
        Err(StoreError::Refused(error)) => Err((error.status, error.detail)),
        Err(error) => panic!("{error:?}"),
    };
    outcomes.into_iter().map(one).collect()
}

async fn a_bulk_request_decided_by_older_schemas_is_decided_again(f: Fixture) {
    let cara = create(&f.a, json!({"userName": "cara"})).await.unwrap().state.id;
    let post = |bulk_id: &str, path: &str, data: Value| json!({"method": "POST", "path": path, "bulkId": bulk_id, "data": data});
    let badge = |name: &str| json!({"userName": name, BADGE: {"number": "B-1", "colour": "red"}});
    let manager = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";
    let patch_op = ["urn:ietf:params:scim:api:messages:2.0:PatchOp"];
    let value = json!({BADGE: {"colour": "blue"}, "title": "Boss"});
    let managed = |name: &str, boss: &str| json!({"userName": name, BADGE: {"colour": "green"}, manager: {"manager": {"value": boss}}});
    let operations = json!([
        post("a", "/Users", badge("anna")),
        post("b", "/Users", badge("bo")),
        {"method": "PATCH", "path": format!("/Users/{cara}"), "data":
            {"schemas": patch_op, "Operations": [{"op": "add", "value": value}]}},
        // A circle: one commit of two decisions.
        post("x", "/Users", managed("x", "bulkId:y")),
        post("y", "/Users", managed("y", "bulkId:x")),
        post("g", "/Groups", json!({"displayName": "g", "members": [{"value": "bulkId:b"}]})),
    ]);

    // The process knows no badge when it decides; when it writes there is one.
    let other = f.b.clone();
    let outcomes = bulk_with(&f, operations, meanwhile(|| async move { define(&other).await })).await;
    let documents = left(outcomes);
    let of = |at: usize| documents[at].as_ref().unwrap_or_else(|error| panic!("{at}: {error:?}"));
    assert_eq!(of(0)[BADGE], json!({"number": "B-1", "colour": "red"}));
    assert_eq!((&of(2)[BADGE], &of(2)["title"]), (&json!({"colour": "blue"}), &json!("Boss")));
    assert_eq!(of(3)[BADGE], json!({"colour": "green"}));
    // The number is exclusive now, and nothing is done with who was not made.
    let (status, detail) = documents[1].clone().unwrap_err();
    assert_eq!(status, 409);
    assert!(detail.contains(&format!("{BADGE}:number")), "{detail}");
    assert_eq!(documents[5].as_ref().unwrap_err().0, 409);
    assert_sound(&f.a).await;

    // Another schema of the tenant is as good a reason to look again, and changes nothing.
    let unrelated = schema("urn:example:ext:Bare", json!([{"name": "number"}]));
    let other = f.b.clone();
    let put = meanwhile(|| async move {
        other.put_schema(&acme(), unrelated, actor()).await.unwrap();
    });
    let dora = post("d", "/Users", json!({"userName": "dora", BADGE: {"colour": "red"}}));
    let documents = left(bulk_with(&f, json!([dora]), put).await);
    assert_eq!(documents[0].as_ref().unwrap()[BADGE], json!({"colour": "red"}));
    assert_sound(&f.a).await;
}

async fn a_bulk_request_loses_a_type_that_is_retired_meanwhile(f: Fixture) {
    let device = schema("urn:example:Device", json!([{"name": "serial", "required": true}]));
    f.a.put_schema(&acme(), device, actor()).await.unwrap();
    let devices = json!({"name": "Device", "endpoint": "/Devices", "schema": "urn:example:Device", "schemaExtensions": []});
    f.a.put_resource_type(&acme(), ResourceTypeDefinition::read(&devices).unwrap(), actor()).await.unwrap();
    f.project().await;
    let other = f.b.clone();
    let retire = meanwhile(|| async move {
        other.retire_resource_type(&acme(), "Device", actor()).await.unwrap();
    });
    let operations = json!([
        {"method": "POST", "path": "/Users", "bulkId": "u", "data": {"userName": "anna"}},
        {"method": "POST", "path": "/Devices", "bulkId": "d",
         "data": {"schemas": ["urn:example:Device"], "serial": "D-1"}},
        {"method": "POST", "path": "/Users", "bulkId": "v", "data": {"userName": "bo"}},
    ]);
    let documents = left(bulk_with(&f, operations, retire).await);
    assert!(documents[0].is_ok() && documents[2].is_ok(), "{documents:?}");
    let (status, detail) = documents[1].clone().unwrap_err();
    assert_eq!((status, detail.as_str()), (404, "there is no resource type Device"));
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

async fn an_app_names_types_that_exist(f: Fixture) {
    let driver = Driver::Scim { base_url: "https://crm.example".into(), members_per_request_max: 10 };
    let app = |id: &str, types: &[&str]| App {
        id: AppId::new(id).unwrap(),
        driver: driver.clone(),
        resource_types: types.iter().map(|name| (*name).to_owned()).collect(),
        paused: true,
        concurrency_max: 1,
        rate_per_second_max: 0,
    };
    let create = async |app: App| f.a.create_app(&acme(), app, "secret".to_owned().into(), actor()).await;
    let (status, detail) = refused(create(app("crm", &["User", "Device"])).await);
    assert_eq!(status, 400);
    assert_eq!(detail, "resourceTypes: there is no resource type Device; there are User, Group");
    // What administration does is for webhooks.
    assert_eq!(refused(create(app("crm", &["Token"])).await).0, 400);
    let hook = Driver::Webhook { url: "https://crm.example".into() };
    create(App { driver: hook, ..app("hook", &["User", "Token"]) }).await.unwrap();

    let device = schema("urn:example:Device", json!([{"name": "serial"}]));
    f.b.put_schema(&acme(), device, actor()).await.unwrap();
    let devices = json!({"name": "Device", "endpoint": "/Devices", "schema": "urn:example:Device"});
    f.b.put_resource_type(&acme(), ResourceTypeDefinition::read(&devices).unwrap(), actor()).await.unwrap();
    create(app("crm", &["User", "Device"])).await.unwrap();
    // A type that was retired since is no reason to refuse other changes.
    f.b.retire_resource_type(&acme(), "Device", actor()).await.unwrap();
    let changed = App { concurrency_max: 2, ..app("crm", &["User", "Device"]) };
    f.a.update_app(&acme(), changed, None, actor()).await.unwrap();
    let (status, _) = refused(f.a.update_app(&acme(), app("crm", &["User", "Nope"]), None, actor()).await);
    assert_eq!(status, 400);
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

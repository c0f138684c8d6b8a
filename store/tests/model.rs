//! The read model's contract: one suite, run on SQLite and on PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use annals_domain::clock::{Clock, Entropy, Timestamp};
use annals_domain::event::{Actor, Body, Cause, Event, Recorded, StreamId};
use annals_domain::ids::{ConnectionId, Position, ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::filter::{Bound, Budget, Context, Subject, bind, matches, parse};
use annals_domain::scim::resource::{Change, Document};
use annals_domain::scim::schema::{ENTERPRISE_USER, Registry};
use annals_domain::scim::sort::{Place, Sort, SortValue};
use annals_domain::tenant::TenantSettings;
use annals_domain::view::{IndexRow, index_rows};
use annals_store::model::{ModelApplied, RebuildRun, Search, SearchPage, Switched};
use annals_store::{Database, IfMatch, Limits, Request, RootKey, Store, StoreError, StoreOptions};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};
use uuid::Uuid;

#[path = "model/custom.rs"]
mod custom;
#[path = "model/random.rs"]
mod random;
#[path = "model/speed.rs"]
mod speed;

use custom::custom_lists_agree_with_what_the_values_mean;
use random::lists_agree_with_their_evaluation_in_memory;
use speed::typical_user;

struct TestClock(AtomicI64);
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
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
    store: Store,
    clock: Arc<TestClock>,
    database: Database,
    _dir: Option<tempfile::TempDir>,
}

impl Fixture {
    async fn sqlite() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        Fixture::open(Database::Sqlite { dir: dir.path().to_owned() }, Some(dir)).await
    }

    async fn postgres() -> Fixture {
        let url = annals_testkit::postgres::shared().await.create_database().await.unwrap();
        Fixture::open(Database::Postgres { url, connections_max: 8 }, None).await
    }

    async fn open(database: Database, dir: Option<tempfile::TempDir>) -> Fixture {
        let clock = Arc::new(TestClock(AtomicI64::new(1_767_225_600_000)));
        let store = open(&database, clock.clone(), 1).await;
        store.migrate().await.unwrap();
        Fixture { store, clock, database, _dir: dir }
    }

    /// A second process on the same data.
    async fn another(&self) -> Store {
        open(&self.database, self.clock.clone(), 0x5EED).await
    }

    /// Runs a statement on the read model behind the store's back.
    async fn meddle(&self, sqlite: &str, postgres: &str) {
        match &self.database {
            Database::Sqlite { dir } => {
                let url = format!("sqlite://{}", dir.join("model.db").display());
                let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
                connection.execute(sqlite).await.unwrap();
                connection.close().await.unwrap();
            }
            Database::Postgres { url, .. } => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                connection.execute(postgres).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Makes the database refuse a title of `poison`, whatever the event.
    async fn poison(&self) {
        self.index(&["title", "displayname", "username"]).await;
        self.poison_values().await;
    }

    /// The same, with whatever is indexed so far.
    async fn poison_values(&self) {
        self.meddle(
            "CREATE TRIGGER poison BEFORE INSERT ON attribute_a WHEN new.value = 'poison' \
             BEGIN SELECT RAISE(ABORT, 'poison'); END; \
             CREATE TRIGGER poison_b BEFORE INSERT ON attribute_b WHEN new.value = 'poison' \
             BEGIN SELECT RAISE(ABORT, 'poison'); END",
            "ALTER TABLE model.attribute_a ADD CONSTRAINT poison CHECK (value <> 'poison'); \
             ALTER TABLE model.attribute_b ADD CONSTRAINT poison CHECK (value <> 'poison')",
        )
        .await;
    }

    /// Asks for attributes, so that they have rows.
    async fn index(&self, keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.store.model_index(&acme(), &keys).await.unwrap();
    }

    async fn cure(&self) {
        self.meddle(
            "DROP TRIGGER poison; DROP TRIGGER poison_b",
            "ALTER TABLE model.attribute_a DROP CONSTRAINT poison; \
             ALTER TABLE model.attribute_b DROP CONSTRAINT poison",
        )
        .await;
    }
}

async fn open(database: &Database, clock: Arc<TestClock>, seed: u64) -> Store {
    Store::open(StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes([7; 32]),
        clock,
        entropy: Arc::new(Counter(AtomicU64::new(seed))),
        limits: Limits::default(),
    })
    .await
    .unwrap()
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn id(text: &str) -> ResourceId {
    ResourceId::from_text(text)
}

fn ms(rfc3339: &str) -> Timestamp {
    annals_domain::scim::fold::parse_datetime(rfc3339).unwrap()
}

fn document(value: Value) -> Document {
    serde_json::from_value(value).unwrap()
}

/// Hand-made events in journal order, for tests that need no journal.
struct Script {
    tenant: TenantId,
    position: Position,
    versions: BTreeMap<ResourceId, i64>,
    events: Vec<Recorded>,
}

impl Script {
    fn new(tenant: TenantId, after: Position) -> Script {
        Script { tenant, position: after, versions: BTreeMap::new(), events: Vec::new() }
    }

    fn push(&mut self, resource_type: &str, entity: &str, at: Timestamp, body: Body) -> &mut Script {
        self.position += 1;
        let entity = id(entity);
        let version = self.versions.entry(entity.clone()).or_insert(0);
        *version += 1;
        let kind = match &body {
            Body::Open(event) => event.kind(resource_type),
            Body::Erased => format!("{}.changed", resource_type.to_lowercase()),
        };
        self.events.push(Recorded {
            position: self.position,
            event_id: Uuid::from_u128(self.position as u128),
            commit_id: Uuid::from_u128(self.position as u128),
            tenant: self.tenant.clone(),
            stream: StreamId { resource_type: resource_type.to_owned(), id: entity },
            version: *version,
            kind,
            schema_version: 1,
            at,
            actor: Actor::system("test"),
            cause: Cause::default(),
            previous_of_entity: 0,
            previous_of_tenant: 0,
            body,
        });
        self
    }

    fn event(&mut self, resource_type: &str, entity: &str, event: Event) -> &mut Script {
        let at = Timestamp(1_767_225_600_000 + self.position);
        self.push(resource_type, entity, at, Body::Open(event))
    }

    fn user(&mut self, entity: &str, content: Value) -> &mut Script {
        self.event("User", entity, Event::Created { document: document(content) })
    }

    fn group(&mut self, entity: &str, name: &str, members: &[&str]) -> &mut Script {
        self.event("Group", entity, Event::Created { document: document(json!({ "displayName": name })) });
        if !members.is_empty() {
            self.event(
                "Group",
                entity,
                Event::MembersAdded { members: members.iter().map(|m| id(m)).collect() },
            );
        }
        self
    }

    fn set(&mut self, entity: &str, path: &str, new: Value) -> &mut Script {
        let changes = vec![Change { path: path.to_owned(), old: None, new: Some(new) }];
        self.event("User", entity, Event::Changed { changes })
    }

    async fn apply(&mut self, store: &Store) {
        let events = std::mem::take(&mut self.events);
        let Some(first) = events.first() else { return };
        let applied = store.model_apply(first.position - 1, &events).await.unwrap();
        assert_eq!(applied, ModelApplied::Advanced(self.position));
    }
}

fn bound(resource_type: &str, filter: &str, profile: Profile) -> Result<Bound, u16> {
    let filter = parse(filter, Budget::default()).map_err(|e| e.status)?;
    let registry = Registry::standard();
    let rt = registry.resource_type(resource_type).unwrap();
    bind(&filter, &registry, rt, Context::GET, &mut Dialect::new(profile)).map_err(|e| e.status)
}

fn search(tenant: &TenantId, resource_type: &str, filter: Option<Bound>) -> Search {
    Search {
        tenant: tenant.clone(),
        resource_types: vec![Registry::standard().resource_type(resource_type).unwrap().clone()],
        filter,
        sort: None,
        start_index: 1,
        after: None,
        total: None,
        count: 100,
        timeout: Duration::from_secs(2),
    }
}

fn ids(page: &SearchPage) -> Vec<&str> {
    page.found.iter().map(|found| found.id.as_str()).collect()
}

async fn find(store: &Store, resource_type: &str, filter: &str) -> Vec<String> {
    let filter = bound(resource_type, filter, Profile::Generic).unwrap();
    let page = store.search(&search(&acme(), resource_type, Some(filter))).await.unwrap();
    assert_eq!(page.total as usize, page.found.len());
    ids(&page).into_iter().map(str::to_owned).collect()
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

contract! {
    the_filters_of_the_reference_find_what_they_should
    a_page_is_applied_once_and_only_in_its_place
    a_page_applied_again_changes_nothing
    what_is_deleted_or_erased_is_found_no_more
    an_erasure_reaches_the_generation_before
    long_values_are_compared_in_full
    pages_are_counted_and_cut
    members_and_groups_follow_links_and_no_dead_ends
    references_compare_by_type_and_id
    another_tenants_rows_are_invisible
    a_query_waits_for_the_tenants_head
    a_query_of_a_restored_journal_waits_for_its_rebuild
    displays_are_as_written
    poison_is_parked_alone_and_healed_by_redrive
    a_parked_entity_heals_with_its_next_event
    a_broken_row_is_repaired_from_the_state
    an_unknown_type_stops_with_upgrade
    a_rebuild_equals_the_live_model_and_loses_nothing
    a_rebuild_goes_on_after_copying_and_ends_its_forerunner
    a_rebuild_parks_what_it_cannot_copy
    a_rebuild_that_differs_does_not_go_live
    an_attribute_has_rows_once_it_was_asked_for
    an_index_that_is_being_built_misses_no_change
    a_document_that_cannot_be_indexed_keeps_nobody_else_out
    a_rebuild_keeps_the_indexes
    a_rebuild_compares_page_by_page_while_life_goes_on
    pages_are_served_by_an_index
    narrow_filters_read_no_list_of_all
    questions_to_one_resource_go_by_its_key
    counts_are_made_from_values_alone
    counts_are_remembered_until_the_tenants_next_event
    who_has_no_value_is_found_in_any_order
    lists_agree_with_their_evaluation_in_memory
    custom_lists_agree_with_what_the_values_mean
}

// ---- §7.2 of the requirements ----

fn fixture() -> Script {
    let mut script = Script::new(acme(), 0);
    let user = |script: &mut Script, entity: &str, at: &str, content: Value| {
        script.push("User", entity, ms(at), Body::Open(Event::Created { document: document(content) }));
    };
    user(
        &mut script,
        "u1",
        "2026-01-10T08:00:00.000Z",
        json!({
            "externalId": "E-1", "userName": "Anna.Berg@Example.com",
            "name": { "givenName": "Anna", "familyName": "Berg" }, "displayName": "Anna Berg",
            "title": "Engineer", "userType": "Employee", "active": true,
            "emails": [
                { "value": "anna@work.test", "type": "work", "primary": true },
                { "value": "anna@home.test", "type": "home" },
            ],
            "phoneNumbers": [{ "value": "+49 30 1", "type": "work" }],
            ENTERPRISE_USER: { "employeeNumber": "42", "department": "R&D", "manager": { "value": "u2" } },
        }),
    );
    user(
        &mut script,
        "u2",
        "2026-02-01T00:00:00.000Z",
        json!({
            "externalId": "e-1", "userName": "bo", "displayName": "Bo", "userType": "Contractor",
            "active": false, "emails": [{ "value": "bo@home.test", "type": "home" }],
        }),
    );
    for _ in 2..=5 {
        script.push("User", "u1", ms("2026-03-01T12:00:00.000Z"), Body::Open(Event::PasswordSet));
    }
    let u3 = json!({ "userName": "celik", "title": "", "active": true });
    user(&mut script, "u3", "2026-03-05T09:00:00.000Z", u3);
    script.group("g1", "Ops", &["u1", "u2"]).group("g2", "ops-admins", &["g1"]);
    script
}

async fn the_filters_of_the_reference_find_what_they_should(f: Fixture) {
    fixture().apply(&f.store).await;
    let ent = ENTERPRISE_USER;
    // Result, or the status in strict and in the generic profile.
    let users: &[(&str, Result<&[&str], ()>)] = &[
        (r#"userName eq "anna.berg@example.com""#, Ok(&["u1"])),
        (r#"USERNAME Eq "ANNA.BERG@EXAMPLE.COM""#, Ok(&["u1"])),
        (r#"urn:ietf:params:scim:schemas:core:2.0:User:userName sw "anna""#, Ok(&["u1"])),
        (r#"externalId eq "E-1""#, Ok(&["u1"])),
        (r#"externalId eq "e-1""#, Ok(&["u2"])),
        ("title pr", Ok(&["u1"])),
        ("not (title pr)", Ok(&["u2", "u3"])),
        ("title eq null", Ok(&["u2"])),
        (r#"title eq """#, Ok(&["u3"])),
        (r#"title ne "Engineer""#, Ok(&["u2", "u3"])),
        (r#"active eq true or userType eq "Contractor" and userType eq "Employee""#, Ok(&["u1", "u3"])),
        (r#"(active eq true or userType eq "Contractor") and userType eq "Employee""#, Ok(&["u1"])),
        ("not (active eq true)", Ok(&["u2"])),
        ("not(active eq true)", Ok(&["u2"])),
        ("not active eq true", Err(())),
        ("active gt true", Err(())),
        (r#"active co "tr""#, Err(())),
        (r#"emails eq "anna@home.test""#, Ok(&["u1"])),
        (r#"emails co "home.test""#, Ok(&["u1", "u2"])),
        (r#"emails.type eq "work" and emails.value co "home""#, Ok(&["u1"])),
        (r#"emails[type eq "work" and value co "home"]"#, Ok(&[])),
        (r#"emails[type eq "work" and (value ew ".test" or primary eq false)]"#, Ok(&["u1"])),
        (r#"emails[type eq "home"] and active eq false"#, Ok(&["u2"])),
        (r#"emails[type eq "work"] or userName eq "bo""#, Ok(&["u1", "u2"])),
        (r#"emails.type ne "work""#, Ok(&["u1", "u2", "u3"])),
        (r#"not (emails.type eq "work")"#, Ok(&["u2", "u3"])),
        ("emails pr", Ok(&["u1", "u2"])),
        ("emails[primary eq true]", Ok(&["u1"])),
        ("emails[primary eq false]", Ok(&["u1", "u2"])),
        (r#"emails[type eq "work""#, Err(())),
        (r#"emails[emails[type eq "work"]]"#, Err(())),
        ("name pr", Ok(&["u1"])),
        (r#"name eq "Anna""#, Err(())),
        (r#"name.givenName sw "AN""#, Ok(&["u1"])),
        (r#"meta.lastModified gt "2026-02-01T01:00:00+01:00""#, Ok(&["u1", "u3"])),
        (r#"meta.lastModified ge "2026-02-01T01:00:00+01:00""#, Ok(&["u1", "u2", "u3"])),
        (r#"meta.created gt "yesterday""#, Err(())),
        (r#"meta.resourceType eq "user""#, Ok(&[])),
        (r#"meta.resourceType eq "User""#, Ok(&["u1", "u2", "u3"])),
        (r#"meta.version eq "W/\"5\"""#, Ok(&["u1"])),
        (&format!(r#"schemas eq "{ent}""#), Ok(&["u1"])),
        (&format!(r#"{ent}:manager.value eq "u2""#), Ok(&["u1"])),
        (&format!(r#"{ent}:manager.value eq "U2""#), Ok(&[])),
        (&format!(r#"{ent}:employeeNumber gt "5""#), Ok(&[])),
        (&format!(r#"{ent}:employeeNumber ge "4""#), Ok(&["u1"])),
        (r#"groups.value eq "g1""#, Ok(&["u1", "u2"])),
        (r#"groups[value eq "g2" and type eq "indirect"]"#, Ok(&["u1", "u2"])),
        (r#"groups[value eq "g2" and type eq "direct"]"#, Ok(&[])),
        (r#"groups.display eq "OPS""#, Ok(&["u1", "u2"])),
        ("groups pr", Ok(&["u1", "u2"])),
        ("groups eq null", Ok(&["u3"])),
        (r#"groups.value ne "g1""#, Ok(&["u1", "u2", "u3"])),
        (r#"userName regex "a.*""#, Err(())),
        ("userName eq", Err(())),
        ("", Err(())),
        (r#"userName eq "b\u006f""#, Ok(&["u2"])),
        (r#"displayName eq "a\"b""#, Ok(&[])),
        (r#"displayName co """#, Ok(&["u1", "u2"])),
        (r#"userName eq "ａnna.berg@example.com""#, Ok(&["u1"])),
        (r#"x509Certificates.value gt "AA""#, Err(())),
        ("title gt null", Err(())),
        (r#"foo eq "x""#, Err(())),
        (r#"password eq "x""#, Err(())),
        (r#"userName eq "nobody""#, Ok(&[])),
        (r#"(((userName eq "bo")))"#, Ok(&["u2"])),
        (r#"userName eq "x' OR '1'='1""#, Ok(&[])),
        (r#"userName eq "bo\u0000" or userName gt "celi\u0000""#, Ok(&["u3"])),
        (r#"id eq "u1""#, Ok(&["u1"])),
        (r#"id eq "u1" and userName eq "bo""#, Ok(&[])),
        (r#"id eq "u1" or userName eq "bo""#, Ok(&["u1", "u2"])),
        (r#"nickName eq "never stored" or not (nickName pr)"#, Ok(&["u1", "u2", "u3"])),
        (r#"ims[type eq "x"]"#, Ok(&[])),
    ];
    for (filter, expected) in users {
        let found = match bound("User", filter, Profile::Generic) {
            Ok(filter) => {
                let page = f.store.search(&search(&acme(), "User", Some(filter))).await.unwrap();
                Ok(ids(&page).into_iter().map(str::to_owned).collect::<Vec<_>>())
            }
            Err(_) => Err(()),
        };
        assert_eq!(
            found.as_deref(),
            expected.map(|e| e.iter().map(|s| s.to_string()).collect::<Vec<_>>()).as_deref(),
            "{filter}"
        );
    }
    for (filter, expected) in [
        (r#"active eq "True""#, ["u1", "u3"].as_slice()),
        ("active eq FALSE", &["u2"]),
        (r#"emails[type eq "work"].value eq "anna@work.test""#, &["u1"]),
        (r#"emails[primary eq "True"]"#, &["u1"]),
        (r#"id eq "u1" and manager eq "u2""#, &["u1"]),
    ] {
        assert!(bound("User", filter, Profile::Strict).is_err(), "{filter}");
        let entra = bound("User", filter, Profile::Entra).unwrap();
        let page = f.store.search(&search(&acme(), "User", Some(entra))).await.unwrap();
        assert_eq!(ids(&page), expected, "{filter}");
    }
    for (filter, expected) in [
        (r#"displayName eq "OPS""#, ["g1"].as_slice()),
        (r#"displayName sw "o""#, &["g1", "g2"]),
        (r#"members eq "u1""#, &["g1"]),
        (r#"members[value eq "u1"]"#, &["g1"]),
        (r#"members.value eq "U1""#, &[]),
        (r#"members.type eq "group""#, &["g2"]),
        (r#"members[type eq "User" and display sw "anna"]"#, &["g1"]),
        (r#"members.display eq null"#, &[]),
        (r#"members.value ne "g1""#, &["g1"]),
        (r#"not (members.value eq "g1")"#, &["g1"]),
        (r#"groups.value eq "g2""#, &["g1"]),
    ] {
        match bound("Group", filter, Profile::Generic) {
            Ok(_) => assert_eq!(find(&f.store, "Group", filter).await, expected, "{filter}"),
            Err(_) => assert!(filter.starts_with("groups"), "{filter}"),
        }
    }
    // On all types at once (F61, F62): what a type does not have has no value.
    for (filter, expected) in [(r#"displayName sw "o""#, ["g1", "g2"].as_slice()), ("title pr", &["u1"])] {
        let mut either = Vec::new();
        let mut all = search(&acme(), "User", None);
        all.resource_types = Registry::standard().resource_types().cloned().collect();
        for rt in &all.resource_types {
            let parsed = parse(filter, Budget::default()).unwrap();
            let context = Context::GET.root();
            let mut dialect = Dialect::new(Profile::Generic);
            let own = bind(&parsed, &Registry::standard(), rt, context, &mut dialect).unwrap();
            let target = annals_domain::scim::filter::Target::ResourceType;
            let op = annals_domain::scim::filter::TestOp::Eq(rt.name.clone());
            let of_type = Bound::Test(annals_domain::scim::filter::Test { target, op });
            either.push(Bound::And(vec![of_type, own]));
        }
        all.filter = Some(Bound::Or(either));
        assert_eq!(ids(&f.store.search(&all).await.unwrap()), expected, "{filter}");
    }
}

// ---- applying ----

async fn a_page_is_applied_once_and_only_in_its_place(f: Fixture) {
    let mut script = Script::new(acme(), 0);
    script.user("u1", json!({ "userName": "anna" })).user("u2", json!({ "userName": "bo" }));
    let events = script.events.clone();
    let lost = f.store.model_apply(3, &[]).await.unwrap();
    assert_eq!(lost, ModelApplied::Advanced(3), "nothing to apply asks nothing");
    assert!(f.store.model_apply(0, &events[1..]).await.is_err(), "a gap");
    assert_eq!(f.store.model_apply(0, &events).await.unwrap(), ModelApplied::Advanced(2));
    assert_eq!(f.store.model_apply(0, &events).await.unwrap(), ModelApplied::Lost { actual: 2 });
    assert_eq!(f.store.model_checkpoint().await.unwrap(), 2);
    let another = f.another().await;
    assert_eq!(another.model_apply(1, &events[1..]).await.unwrap(), ModelApplied::Lost { actual: 2 });
    assert_eq!(find(&another, "User", r#"userName sw "a""#).await, ["u1"]);
    another.close().await;
}

async fn a_page_applied_again_changes_nothing(f: Fixture) {
    let mut script = Script::new(acme(), 0);
    script.user("u1", json!({ "userName": "anna", "title": "old" }));
    script.set("u1", "title", json!("new")).user("u2", json!({ "userName": "bo" }));
    script.group("g1", "Ops", &["u1", "u2"]);
    script.event("Group", "g1", Event::MembersRemoved { members: vec![id("u2")] });
    script.event("User", "u2", Event::Deleted);
    let events = script.events.clone();
    script.apply(&f.store).await;
    for _ in 0..2 {
        assert_eq!(find(&f.store, "User", r#"title eq "new""#).await, ["u1"]);
        assert_eq!(find(&f.store, "User", r#"title eq "old""#).await, [] as [&str; 0]);
        assert_eq!(find(&f.store, "User", "userName pr").await, ["u1"]);
        assert_eq!(find(&f.store, "Group", r#"members.value eq "u1""#).await, ["g1"]);
        assert_eq!(find(&f.store, "Group", r#"members.value eq "u2""#).await, [] as [&str; 0]);
        let page = f.store.search(&search(&acme(), "User", None)).await.unwrap();
        let (u1, at) = (&page.found[0], events[1].at);
        assert_eq!((u1.version, u1.modified, u1.created), (2, at, events[0].at));
        f.meddle("UPDATE checkpoint SET position = 0", "UPDATE model.checkpoint SET position = 0").await;
        for (n, event) in events.iter().enumerate() {
            let applied = f.store.model_apply(n as i64, std::slice::from_ref(event)).await.unwrap();
            assert_eq!(applied, ModelApplied::Advanced(event.position));
        }
    }
}

async fn what_is_deleted_or_erased_is_found_no_more(f: Fixture) {
    let mut script = Script::new(acme(), 0);
    for n in 1..=4 {
        script.user(&format!("u{n}"), json!({ "userName": format!("user{n}"), "title": "Boss" }));
    }
    script.group("g1", "Ops", &["u1", "u2", "u3", "u4"]);
    script.apply(&f.store).await;
    assert_eq!(find(&f.store, "User", r#"title eq "boss""#).await.len(), 4);
    script.event("User", "u1", Event::Deleted).event("User", "u2", Event::Erased);
    script.push("User", "u3", Timestamp(1_767_225_700_000), Body::Erased);
    script.event("User", "u3", Event::PasswordSet);
    script.apply(&f.store).await;
    assert_eq!(find(&f.store, "User", r#"title eq "boss""#).await, ["u4"]);
    assert_eq!(find(&f.store, "User", r#"not (title eq "x")"#).await, ["u4"]);
    for gone in ["u1", "u2", "u3"] {
        let filter = format!(r#"members.value eq "{gone}""#);
        assert_eq!(find(&f.store, "Group", &filter).await, [] as [&str; 0]);
    }
    script.event("Group", "g1", Event::Deleted);
    script.apply(&f.store).await;
    assert_eq!(find(&f.store, "User", "groups pr").await, [] as [&str; 0]);
    assert_eq!(find(&f.store, "Group", "displayName pr").await, [] as [&str; 0]);
}

async fn an_erasure_reaches_the_generation_before(f: Fixture) {
    let mut script = Script::new(acme(), 0);
    script.user("u1", json!({ "userName": "anna" })).user("u2", json!({ "userName": "bo" }));
    script.apply(&f.store).await;
    f.meddle(
        "INSERT INTO resource_b SELECT * FROM resource_a; INSERT INTO attribute_b SELECT * FROM attribute_a",
        "INSERT INTO model.resource_b SELECT * FROM model.resource_a; \
         INSERT INTO model.attribute_b SELECT * FROM model.attribute_a",
    )
    .await;
    script.event("User", "u1", Event::Erased);
    script.apply(&f.store).await;
    f.meddle("UPDATE pointer SET live = 'b'", "UPDATE model.pointer SET live = 'b'").await;
    assert_eq!(find(&f.store, "User", "userName pr").await, ["u2"]);
    f.meddle(
        "DELETE FROM resource_b WHERE id = 'u2'; DELETE FROM attribute_b WHERE id = 'u2'; \
         DELETE FROM indexed_b",
        "DELETE FROM model.resource_b WHERE id = 'u2'; DELETE FROM model.attribute_b WHERE id = 'u2'; \
         DELETE FROM model.indexed_b",
    )
    .await;
    f.meddle("UPDATE pointer SET live = 'a'", "UPDATE model.pointer SET live = 'a'").await;
    // Only the tombstone is left to sweep: no value of the person.
    assert_eq!(f.store.model_sweep().await.unwrap(), 1);
}

async fn long_values_are_compared_in_full(f: Fixture) {
    let x = |n: usize, tail: &str| format!("{}{tail}", "é".repeat(n));
    let titles = [x(255, ""), x(256, ""), x(256, "a"), x(256, "ab"), x(256, "b"), x(300, "")];
    let mut script = Script::new(acme(), 0);
    for (n, title) in titles.iter().enumerate() {
        script.user(&format!("u{n}"), json!({ "userName": format!("user{n}"), "title": title }));
    }
    script.apply(&f.store).await;
    let literals =
        [x(1, ""), x(255, ""), x(256, ""), x(256, "a"), x(256, "b"), x(257, ""), x(299, ""), x(1, "a")];
    for literal in &literals {
        for op in ["eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le"] {
            let expected: Vec<String> = (0..titles.len())
                .filter(|&n| {
                    let (title, literal) = (titles[n].as_str(), literal.as_str());
                    match op {
                        "eq" => title == literal,
                        "ne" => title != literal,
                        "co" => title.contains(literal),
                        "sw" => title.starts_with(literal),
                        "ew" => title.ends_with(literal),
                        "gt" => title > literal,
                        "ge" => title >= literal,
                        "lt" => title < literal,
                        _ => title <= literal,
                    }
                })
                .map(|n| format!("u{n}"))
                .collect();
            let filter = format!("title {op} {}", json!(literal));
            assert_eq!(find(&f.store, "User", &filter).await, expected, "{op} {}", literal.chars().count());
        }
    }
    script.set("u5", "title", json!("short"));
    script.apply(&f.store).await;
    assert_eq!(find(&f.store, "User", r#"title eq "short""#).await, ["u5"]);
}

async fn pages_are_counted_and_cut(f: Fixture) {
    let mut script = Script::new(acme(), 0);
    for n in 0..25 {
        script.user(&format!("u{n:02}"), json!({ "userName": format!("user{n}"), "active": n % 2 == 0 }));
    }
    script.apply(&f.store).await;
    let page = async |start_index: usize, count: usize, filter: Option<Bound>| {
        let search = Search { start_index, count, ..search(&acme(), "User", filter) };
        let page = f.store.search(&search).await.unwrap();
        (page.total, ids(&page).join(" "))
    };
    assert_eq!(page(1, 3, None).await, (25, "u00 u01 u02".to_owned()));
    assert_eq!(page(0, 1, None).await, (25, "u00".to_owned()));
    assert_eq!(page(24, 10, None).await, (25, "u23 u24".to_owned()));
    assert_eq!(page(26, 10, None).await, (25, String::new()));
    assert_eq!(page(1, 0, None).await, (25, String::new()));
    assert_eq!(page(1, 25, None).await.0, 25);
    let active = bound("User", "active eq true", Profile::Generic).unwrap();
    assert_eq!(page(12, 5, Some(active.clone())).await, (13, "u22 u24".to_owned()));
    assert_eq!(page(1, 0, Some(active)).await, (13, String::new()));
    let none = Search { resource_types: Vec::new(), ..search(&acme(), "User", None) };
    assert_eq!(f.store.search(&none).await.unwrap(), SearchPage { total: 0, found: Vec::new(), next: None });
}

/// A page from a place is read along an index: nothing is scanned and nothing sorted, however long the
/// list is.
async fn pages_are_served_by_an_index(f: Fixture) {
    let mut script = Script::new(acme(), 0);
    for n in 0..5_000 {
        let (title, on) = (format!("t{}", n % 7), n % 3 == 0);
        script.user(
            &format!("u{n:04}"),
            json!({ "userName": format!("user{n}"), "title": title, "active": on }),
        );
    }
    script.apply(&f.store).await;
    let rt = Registry::standard().resource_type("User").unwrap().clone();
    let sorted =
        |value: &str| Place::Sorted { value: Some(SortValue::Text(value.to_owned())), id: id("u2500") };
    let cases = [
        (None, None, Place::Created(2_500)),
        (Some("title"), None, sorted("t3")),
        (Some("userName"), Some("active eq true"), sorted("user3")),
        (Some("id"), None, sorted("u2500")),
        (
            Some("meta.lastModified"),
            None,
            Place::Sorted { value: Some(SortValue::Number(1_767_225_602_500)), id: id("u2500") },
        ),
    ];
    for ((by, filter, after), order) in
        cases.into_iter().flat_map(|case| [(case.clone(), "ascending"), (case, "descending")])
    {
        let mut dialect = Dialect::new(Profile::Generic);
        let sort =
            by.map(|by| Sort::bind(by, Some(order), &Registry::standard(), &[&*rt], &mut dialect).unwrap());
        let filter = filter.map(|text| bound("User", text, Profile::Generic).unwrap());
        let few = filter.is_some();
        let query = Search { sort, after: Some(after), ..search(&acme(), "User", filter) };
        let plans = f.store.explain_search(&query).await.unwrap();
        // The first plan counts; the next one is for few matches.
        let walks: Vec<&[String]> = plans.split(String::is_empty).skip(1 + usize::from(few)).collect();
        let walk = walks.first().expect("a walk").join("\n");
        assert!(walk.contains("resource_a_") || walk.contains("attribute_a_"), "{by:?} {order}:\n{walk}");
        for word in ["TEMP B-TREE", "SCAN ", "Sort", "Seq Scan", "Hash"] {
            assert!(!walk.contains(word), "{by:?} {order}:\n{walk}");
        }
    }
}

/// Users as directories have them; every third one has a nickname.
async fn typical_users(f: &Fixture, users: usize) {
    let mut script = Script::new(acme(), 0);
    for n in 0..users {
        let mut user = typical_user(n);
        if n.is_multiple_of(3) {
            user["nickName"] = json!(format!("nick{n}"));
        }
        script.user(&format!("u{n:04}"), user);
    }
    script.apply(&f.store).await;
}

/// What matches a few is found by their values and keys: no index that has all resources of a type is read.
async fn narrow_filters_read_no_list_of_all(f: Fixture) {
    typical_users(&f, 4_000).await;
    for filter in [
        r#"emails.value eq "given77@example.com""#.to_owned(),
        r#"emails[type eq "work" and value eq "given77@example.com"]"#.to_owned(),
        format!(r#"{ENTERPRISE_USER}:employeeNumber eq "77""#),
        format!(r#"{ENTERPRISE_USER}:employeeNumber eq "77" and active eq true"#),
        format!(r#"{ENTERPRISE_USER}:employeeNumber eq "77" or emails.value eq "given78@example.com""#),
        r#"userName sw "given77.""#.to_owned(),
    ] {
        let query = search(&acme(), "User", Some(bound("User", &filter, Profile::Generic).unwrap()));
        assert!((1..3).contains(&f.store.search(&query).await.unwrap().total), "{filter}");
        let plans = f.store.explain_search(&query).await.unwrap();
        // How they are counted, and how they are read.
        let plans: Vec<String> = plans.split(String::is_empty).take(2).map(|plan| plan.join("\n")).collect();
        for plan in &plans {
            assert!(plan.contains("attribute_a_value"), "{filter}:\n{plan}");
            for word in
                ["resource_a_modified", "resource_a_type", "Seq Scan", "SCAN r", "PRIMARY KEY (tenant=?)"]
            {
                assert!(!plan.contains(word), "{word} {filter}:\n{plan}");
            }
        }
        let by_key = if f.store.is_postgres() { "resource_a_pkey" } else { "sqlite_autoindex_resource_a_1" };
        assert!(plans[1].contains(by_key), "{filter}:\n{}", plans[1]);
    }
}

/// What is asked of one resource after another is asked by its key, also if it is a range of values.
async fn questions_to_one_resource_go_by_its_key(f: Fixture) {
    typical_users(&f, 2_500).await;
    for filter in [
        "title pr",
        r#"title sw "title""#,
        r#"title gt "title""#,
        r#"userName ge "given""#,
        r#"emails[value sw "given"]"#,
        r#"meta.lastModified gt "2020-01-01T00:00:00Z""#,
    ] {
        let query = search(&acme(), "User", Some(bound("User", filter, Profile::Generic).unwrap()));
        assert_eq!(f.store.search(&query).await.unwrap().total, 2_500, "{filter}");
        let plans = f.store.explain_search(&query).await.unwrap();
        // The first plan counts, the second one is for few matches.
        let walk = plans.split(String::is_empty).nth(2).unwrap_or_default().join("\n");
        assert!(walk.contains("resource_a_type"), "{filter}:\n{walk}");
        for word in ["attribute_a_value", "TEMP B-TREE", "Sort", "Seq Scan"] {
            assert!(!walk.contains(word), "{word} {filter}:\n{walk}");
        }
    }
}

/// A row of a value stands for a live resource that has it; where only the query's types can have the
/// attribute, nothing else need be asked.
async fn counts_are_made_from_values_alone(f: Fixture) {
    typical_users(&f, 500).await;
    for (resource_type, filter, alone) in [
        ("User", "active eq true", true),
        ("User", r#"title eq "title 3""#, true),
        ("User", r#"active eq true and not (emails.type eq "home")"#, true),
        ("User", "name pr", true),
        // Groups have that, too.
        ("User", r#"displayName co "family""#, false),
        ("User", r#"active eq true and meta.created gt "2020-01-01T00:00:00Z""#, false),
        ("Group", "displayName pr", false),
    ] {
        let filter = bound(resource_type, filter, Profile::Generic).unwrap();
        let query = search(&acme(), resource_type, Some(filter));
        let plans = f.store.explain_search(&query).await.unwrap();
        let count = plans.split(String::is_empty).next().unwrap_or_default().join("\n");
        let from_values = count.contains("attribute_a") && !count.contains("resource_a");
        assert_eq!(from_values, alone, "{query:?}:\n{count}");
    }
}

async fn counts_are_remembered_until_the_tenants_next_event(f: Fixture) {
    begin(&f).await;
    let globex = TenantId::new("globex").unwrap();
    f.store.create_tenant(&globex, TenantSettings::default(), Actor::system("test")).await.unwrap();
    let anna = create(&f.store, "User", json!({ "userName": "anna", "active": true })).await;
    follow(&f.store).await;
    let count = async |tenant: &TenantId, filter: Option<&str>| {
        let filter = filter.map(|filter| bound("User", filter, Profile::Generic).unwrap());
        let query = Search { count: 0, ..search(tenant, "User", filter) };
        f.store.search(&query).await.unwrap().total
    };
    for _ in 0..2 {
        assert_eq!(count(&acme(), None).await, 1);
        assert_eq!(count(&acme(), Some("active eq true")).await, 1);
        assert_eq!(count(&globex, None).await, 0);
    }
    // Another process writes and projects.
    let other = f.another().await;
    create(&other, "User", json!({ "userName": "bo", "active": false })).await;
    follow(&other).await;
    for _ in 0..2 {
        assert_eq!(count(&acme(), None).await, 2);
        assert_eq!(count(&acme(), Some("active eq true")).await, 1);
        assert_eq!(count(&globex, None).await, 0);
    }
    replace(&other, "User", &anna, json!({ "userName": "anna", "active": false })).await;
    follow(&other).await;
    assert_eq!(count(&acme(), Some("active eq true")).await, 0);
    assert_eq!(count(&acme(), Some("active eq false")).await, 2);
    let switched = rebuild(&other).await;
    assert!(matches!(switched, Switched::Live(_)), "{switched:?}");
    assert_eq!(count(&acme(), None).await, 2);
    other.close().await;
}

/// In a list longer than what is put in order in memory: all have a value, all but one, a few.
async fn who_has_no_value_is_found_in_any_order(f: Fixture) {
    const USERS: usize = 2_300;
    let mut script = Script::new(acme(), 0);
    for n in 0..USERS {
        let mut user = json!({ "userName": format!("user{n}"), "title": format!("t{n:04}") });
        if n != 1_000 {
            user["nickName"] = json!(format!("n{n:04}"));
        }
        if n >= USERS - 2 {
            user["locale"] = json!("en");
        }
        script.user(&format!("u{n:04}"), user);
    }
    script.user("gone", json!({ "userName": "gone" }));
    script.event("User", "gone", Event::Deleted);
    // A group's title is none of theirs; it has none, nor do its rows count.
    script.group("g", "Group", &["u0000"]);
    script.apply(&f.store).await;
    let rt = Registry::standard().resource_type("User").unwrap().clone();
    let page = async |by: &str, order: &str, start_index: usize| {
        let sort =
            Sort::bind(by, Some(order), &Registry::standard(), &[&*rt], &mut Dialect::new(Profile::Generic));
        let query =
            Search { sort: Some(sort.unwrap()), count: 2, start_index, ..search(&acme(), "User", None) };
        let page = f.store.search(&query).await.unwrap();
        assert_eq!(page.total as usize, USERS);
        // What comes after it, by its place.
        let next = match page.next.clone() {
            Some(after) => {
                let next = Search { after: Some(after), total: Some(page.total), count: 1, ..query };
                ids(&f.store.search(&next).await.unwrap()).join(" ")
            }
            None => "none".to_owned(),
        };
        format!("{}, {next}", ids(&page).join(" "))
    };
    assert_eq!(page("title", "descending", 1).await, "u2299 u2298, u2297");
    assert_eq!(page("title", "ascending", USERS - 1).await, "u2298 u2299, none");
    assert_eq!(page("nickName", "descending", 1).await, "u1000 u2299, u2298");
    assert_eq!(page("nickName", "ascending", USERS - 2).await, "u2298 u2299, u1000");
    assert_eq!(page("nickName", "ascending", USERS - 1).await, "u2299 u1000, none");
    assert_eq!(page("locale", "descending", 1).await, "u2297 u2296, u2295");
    assert_eq!(page("locale", "descending", USERS - 2).await, "u0000 u2299, u2298");
    assert_eq!(page("locale", "ascending", 1).await, "u2298 u2299, u0000");
    assert_eq!(page("locale", "ascending", USERS).await, "u2297, none");
}

async fn members_and_groups_follow_links_and_no_dead_ends(f: Fixture) {
    let mut script = Script::new(acme(), 0);
    script.user("u1", json!({ "userName": "anna" })).user("u2", json!({ "userName": "bo" }));
    // A chain of twelve groups, the last of them in a cycle with the first.
    script.group("g00", "deepest", &["u1"]);
    for n in 1..12 {
        let below = format!("g{:02}", n - 1);
        script.group(&format!("g{n:02}"), &format!("level {n}"), &[&below]);
    }
    script.event("Group", "g00", Event::MembersAdded { members: vec![id("g11"), id("ghost")] });
    script.apply(&f.store).await;
    let groups_of =
        async |group: &str| find(&f.store, "User", &format!(r#"groups.value eq "{group}""#)).await;
    assert_eq!(groups_of("g00").await, ["u1"]);
    assert_eq!(groups_of("g09").await, ["u1"], "ten deep");
    assert_eq!(groups_of("g10").await, [] as [&str; 0], "eleven deep");
    assert_eq!(find(&f.store, "User", r#"not (groups.value eq "g09")"#).await, ["u2"]);
    assert_eq!(find(&f.store, "User", r#"groups[type eq "direct" and display eq "Deepest"]"#).await, ["u1"]);
    assert_eq!(
        find(&f.store, "User", r#"groups[type eq "direct" and display sw "level"]"#).await,
        [] as [&str; 0]
    );
    assert_eq!(find(&f.store, "User", r#"groups.display sw "level""#).await, ["u1"]);
    assert_eq!(find(&f.store, "User", r#"userName eq "bo" or groups.value eq "g03""#).await, ["u1", "u2"]);
    // A member that never existed is a member where the tenant allows it; a deleted one is not.
    assert_eq!(find(&f.store, "Group", r#"members.value eq "ghost""#).await, ["g00"]);
    assert_eq!(find(&f.store, "Group", r#"members[value eq "ghost" and type pr]"#).await, [] as [&str; 0]);
    // A dead group in the middle cuts the chain.
    script.event("Group", "g05", Event::Deleted);
    script.apply(&f.store).await;
    assert_eq!(groups_of("g04").await, ["u1"]);
    assert_eq!(groups_of("g05").await, [] as [&str; 0]);
    assert_eq!(groups_of("g06").await, [] as [&str; 0]);
    script.event("User", "u1", Event::Deleted);
    script.apply(&f.store).await;
    assert_eq!(find(&f.store, "Group", r#"members.value eq "u1""#).await, [] as [&str; 0]);
    assert_eq!(groups_of("g00").await, [] as [&str; 0]);
}

async fn references_compare_by_type_and_id(f: Fixture) {
    fixture().apply(&f.store).await;
    let of = async |uri: &str| find(&f.store, "Group", &format!(r#"members.$ref eq "{uri}""#)).await;
    assert_eq!(of("https://any.host/scim/v2/Users/u1").await, ["g1"]);
    assert_eq!(of("https://any.host/scim/v2/Groups/g1").await, ["g2"]);
    assert_eq!(of("https://any.host/scim/v2/Groups/u1").await, [] as [&str; 0]);
    assert_eq!(of("u1").await, [] as [&str; 0]);
    let search =
        search(&acme(), "Group", Some(bound("Group", r#"members.$ref co "x""#, Profile::Generic).unwrap()));
    assert!(matches!(f.store.search(&search).await, Err(StoreError::Refused(_))));
}

async fn another_tenants_rows_are_invisible(f: Fixture) {
    fixture().apply(&f.store).await;
    let mut other = Script::new(TenantId::new("other").unwrap(), f.store.model_checkpoint().await.unwrap());
    other.user("o1", json!({ "userName": "bo", "displayName": "Ops" })).group("g1", "Ops", &["o1", "u1"]);
    other.apply(&f.store).await;
    for filter in
        [r#"userName eq "bo""#, "not (title pr)", "title eq null", r#"groups.value eq "g1""#, "groups pr"]
    {
        assert!(!find(&f.store, "User", filter).await.contains(&"o1".to_owned()), "{filter}");
        let bound = bound("User", filter, Profile::Generic).unwrap();
        let page = f.store.search(&search(&other.tenant, "User", Some(bound))).await.unwrap();
        assert_eq!(ids(&page), ["o1"], "{filter}");
    }
    let names = f.store.displays(&other.tenant, &[id("u1"), id("o1")]).await.unwrap();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), [(id("o1"), "Ops".to_owned())]);
}

async fn displays_are_as_written(f: Fixture) {
    fixture().apply(&f.store).await;
    let names = f.store.displays(&acme(), &[id("u1"), id("u3"), id("g1"), id("nobody")]).await.unwrap();
    let names: BTreeMap<_, _> = names.into_iter().collect();
    assert_eq!(names, [(id("g1"), "Ops".to_owned()), (id("u1"), "Anna Berg".to_owned())].into());
    assert!(f.store.displays(&acme(), &[]).await.unwrap().is_empty());
}

// ---- with a journal ----

async fn begin(f: &Fixture) {
    f.store.create_tenant(&acme(), TenantSettings::default(), Actor::system("test")).await.unwrap();
}

async fn execute(store: &Store, resource_type: &str, entity: &ResourceId, command: Command) {
    let request = Request {
        tenant: acme(),
        resource_type: Registry::standard().resource_type(resource_type).unwrap().clone(),
        id: entity.clone(),
        command,
        if_match: IfMatch::Absent,
        actor: Actor::system("test"),
        cause: Cause::default(),
        connection: Some(ConnectionId::new("idp").unwrap()),
        settings: TenantSettings::default(),
        group_name_unique: false,
        idempotency: None,
        deadline: None,
    };
    store.execute(request).await.unwrap();
}

async fn create(store: &Store, resource_type: &str, body: Value) -> ResourceId {
    let entity = ResourceId::from_uuid(store.entropy().uuid_v7(store.now()));
    let command = Command::Create { id: entity.clone(), body, client: Profile::Generic.into() };
    execute(store, resource_type, &entity, command).await;
    entity
}

async fn replace(store: &Store, resource_type: &str, entity: &ResourceId, body: Value) {
    let command = Command::Replace { id: entity.clone(), body, client: Profile::Generic.into() };
    execute(store, resource_type, entity, command).await;
}

/// Projects everything the journal has, as the projector does.
async fn follow(store: &Store) {
    loop {
        let after = store.model_checkpoint().await.unwrap();
        let events = store.read_events(after, 7).await.unwrap();
        if events.is_empty() {
            return;
        }
        store.model_project(after, &events).await.unwrap();
    }
}

async fn found(store: &Store, resource_type: &str, filter: &str) -> Vec<ResourceId> {
    find(store, resource_type, filter).await.iter().map(|text| id(text)).collect()
}

async fn a_query_waits_for_the_tenants_head(f: Fixture) {
    begin(&f).await;
    let anna = create(&f.store, "User", json!({ "userName": "anna", "title": "Boss" })).await;
    let filter = bound("User", r#"title eq "boss""#, Profile::Generic).unwrap();
    let mut query = search(&acme(), "User", Some(filter));
    query.timeout = Duration::from_millis(60);
    match f.store.search(&query).await {
        Err(StoreError::Busy { retry_after_s, .. }) => assert!(retry_after_s > 0),
        other => panic!("{other:?}"),
    }
    // A tenant without events never waits.
    let idle = Search { tenant: TenantId::new("idle").unwrap(), ..query.clone() };
    assert_eq!(f.store.search(&idle).await.unwrap().total, 0);
    // Another process projects while this one waits.
    query.timeout = Duration::from_secs(20);
    let other = f.another().await;
    let (page, ()) = tokio::join!(f.store.search(&query), follow(&other));
    assert_eq!(page.unwrap().found[0].id, anna);
    other.close().await;
}

async fn a_query_of_a_restored_journal_waits_for_its_rebuild(f: Fixture) {
    begin(&f).await;
    create(&f.store, "User", json!({ "userName": "anna" })).await;
    follow(&f.store).await;
    assert!(f.store.model_health().await.unwrap().answers);
    f.meddle("UPDATE pointer SET journal_epoch = 0", "UPDATE model.pointer SET journal_epoch = 0").await;
    let health = f.store.model_health().await.unwrap();
    assert!(health.rebuild_needed && !health.answers);
    let mut query = search(&acme(), "User", None);
    query.timeout = Duration::from_millis(60);
    assert!(matches!(f.store.search(&query).await, Err(StoreError::Busy { .. })));
    assert_eq!(rebuild(&f.store).await, Switched::Live(2));
    assert_eq!(f.store.search(&query).await.unwrap().total, 1);
    let health = f.store.model_health().await.unwrap();
    assert!(!health.rebuild_needed && health.answers);
}

async fn poison_is_parked_alone_and_healed_by_redrive(f: Fixture) {
    begin(&f).await;
    let mut users = Vec::new();
    for n in 0..20 {
        users
            .push(create(&f.store, "User", json!({ "userName": format!("user{n}"), "title": "fine" })).await);
    }
    follow(&f.store).await;
    f.poison().await;
    let bad = &users[7];
    replace(&f.store, "User", bad, json!({ "userName": "user7", "title": "poison" })).await;
    let late = create(&f.store, "User", json!({ "userName": "late", "title": "fine" })).await;
    let group =
        create(&f.store, "Group", json!({ "displayName": "poison", "members": [{ "value": bad }] })).await;

    follow(&f.store).await;
    let health = f.store.model_health().await.unwrap();
    assert_eq!((health.checkpoint, health.parked), (f.store.head().await.unwrap().position, 2));
    // The old rows answer, everyone else's are new, nothing waits.
    assert_eq!(
        found(&f.store, "User", r#"title eq "fine" and userName eq "user7""#).await,
        std::slice::from_ref(bad)
    );
    assert_eq!(found(&f.store, "User", r#"userName eq "late""#).await, [late]);
    assert_eq!(found(&f.store, "Group", "displayName pr").await, []);
    let fine = bound("User", r#"title eq "fine""#, Profile::Generic).unwrap();
    let fine = Search { count: 0, ..search(&acme(), "User", Some(fine)) };
    assert_eq!(f.store.search(&fine).await.unwrap().total, 21);
    assert_eq!(f.store.redrive_parked(100).await.unwrap().failed, 2);

    f.cure().await;
    let redriven = f.store.redrive_parked(100).await.unwrap();
    assert_eq!((redriven.repaired, redriven.failed), (2, 0));
    // No event tells of that, so what was counted before is not remembered.
    assert_eq!(f.store.search(&fine).await.unwrap().total, 20);
    assert_eq!(found(&f.store, "User", r#"title eq "poison""#).await, std::slice::from_ref(bad));
    assert_eq!(found(&f.store, "User", r#"title eq "fine" and userName eq "user7""#).await, []);
    assert_eq!(found(&f.store, "Group", &format!(r#"members.value eq "{bad}""#)).await, [group]);
    assert_eq!(f.store.model_health().await.unwrap().parked, 0);
}

async fn a_parked_entity_heals_with_its_next_event(f: Fixture) {
    begin(&f).await;
    let anna = create(&f.store, "User", json!({ "userName": "anna" })).await;
    f.poison().await;
    replace(&f.store, "User", &anna, json!({ "userName": "anna", "title": "poison" })).await;
    follow(&f.store).await;
    assert_eq!(f.store.model_health().await.unwrap().parked, 1);
    replace(&f.store, "User", &anna, json!({ "userName": "anna", "title": "fine" })).await;
    follow(&f.store).await;
    assert_eq!(f.store.model_health().await.unwrap().parked, 0);
    assert_eq!(found(&f.store, "User", r#"title eq "fine""#).await, [anna]);
}

async fn a_broken_row_is_repaired_from_the_state(f: Fixture) {
    begin(&f).await;
    let anna = create(&f.store, "User", json!({ "userName": "anna" })).await;
    let bo = create(&f.store, "User", json!({ "userName": "bo" })).await;
    follow(&f.store).await;
    f.meddle("UPDATE resource_a SET document = '{'", "UPDATE model.resource_a SET document = '{'").await;
    replace(&f.store, "User", &anna, json!({ "userName": "anna", "title": "Boss" })).await;
    follow(&f.store).await;
    assert_eq!(f.store.model_health().await.unwrap().parked, 0);
    assert_eq!(found(&f.store, "User", r#"title eq "boss""#).await, std::slice::from_ref(&anna));
    // A row that is gone altogether comes back, too.
    f.meddle("DELETE FROM resource_a", "DELETE FROM model.resource_a").await;
    replace(&f.store, "User", &bo, json!({ "userName": "bo", "title": "Boss" })).await;
    follow(&f.store).await;
    assert_eq!(found(&f.store, "User", r#"title eq "boss""#).await, [bo]);
}

async fn an_unknown_type_stops_with_upgrade(f: Fixture) {
    let mut script = Script::new(acme(), 0);
    script.event("Robot", "r1", Event::Created { document: Document::default() });
    let error = f.store.model_project(0, &script.events).await.unwrap_err();
    assert!(matches!(error, StoreError::Upgrade { position: 1, .. }), "{error}");
    assert_eq!(f.store.model_checkpoint().await.unwrap(), 0);
}

// ---- rebuilding ----

async fn rebuild(store: &Store) -> Switched {
    let mut run = store.rebuild_begin().await.unwrap();
    while !store.rebuild_copy(&mut run).await.unwrap().finished {}
    loop {
        store.rebuild_catch_up(&mut run).await.unwrap();
        match store.rebuild_compare_and_switch(&mut run).await.unwrap() {
            Switched::Behind | Switched::Compared(_) => {}
            end => return end,
        }
    }
}

/// Compares page after page, and switches.
async fn switch(store: &Store, run: &mut RebuildRun) -> Switched {
    loop {
        match store.rebuild_compare_and_switch(run).await.unwrap() {
            Switched::Compared(_) => {}
            end => return end,
        }
    }
}

/// Everything the live model answers, as text.
async fn everything(store: &Store) -> String {
    let mut out = String::new();
    for rt in ["User", "Group"] {
        let page = store.search(&Search { count: 1_000, ..search(&acme(), rt, None) }).await.unwrap();
        for found in &page.found {
            out.push_str(&format!("{found:?}\n"));
            for (of, attribute) in [("User", "groups.value"), ("Group", "members.value")] {
                let linked = find(store, of, &format!(r#"{attribute} eq "{}""#, found.id)).await;
                out.push_str(&format!("{attribute} {linked:?}\n"));
            }
        }
    }
    for filter in
        ["title pr", r#"title eq "new""#, r#"emails co "7""#, "not (title pr)", "emails[primary eq true]"]
    {
        out.push_str(&format!("{filter}: {:?}\n", find(store, "User", filter).await));
    }
    out
}

async fn populate(f: &Fixture) -> (Vec<ResourceId>, Vec<ResourceId>) {
    begin(f).await;
    let (mut users, mut groups) = (Vec::new(), Vec::new());
    for n in 0..30 {
        let body = json!({ "userName": format!("user{n}"), "emails": [{ "value": format!("{n}@x.test") }] });
        users.push(create(&f.store, "User", body).await);
    }
    for n in 0..5 {
        let members: Vec<Value> = users.iter().skip(n).step_by(5).map(|id| json!({ "value": id })).collect();
        groups.push(
            create(&f.store, "Group", json!({ "displayName": format!("g{n}"), "members": members })).await,
        );
    }
    execute(&f.store, "User", &users[3], Command::Delete).await;
    execute(&f.store, "Group", &groups[4], Command::Delete).await;
    (users, groups)
}

async fn a_rebuild_equals_the_live_model_and_loses_nothing(f: Fixture) {
    let (users, groups) = populate(&f).await;
    follow(&f.store).await;
    let before = everything(&f.store).await;
    let mut run = f.store.rebuild_begin().await.unwrap();
    let mut n = 0;
    loop {
        // Life goes on between the steps: members join groups that are copied already, and leave.
        let members = json!([{ "value": users[8 + n % 3] }, { "value": users[12] }]);
        replace(&f.store, "Group", &groups[n % 4], json!({ "displayName": "moved", "members": members }))
            .await;
        replace(&f.store, "User", &users[10 + n % 4], json!({ "userName": format!("u{n}"), "title": "new" }))
            .await;
        n += 1;
        follow(&f.store).await;
        if f.store.rebuild_copy(&mut run).await.unwrap().finished {
            break;
        }
    }
    create(&f.store, "User", json!({ "userName": "late", "title": "new" })).await;
    execute(&f.store, "User", &users[20], Command::Delete).await;
    follow(&f.store).await;
    let live = everything(&f.store).await;
    assert_ne!(before, live);
    while f.store.rebuild_catch_up(&mut run).await.unwrap().behind > 0 {}
    assert_eq!(everything(&f.store).await, live, "not live before the switch");
    assert_eq!(switch(&f.store, &mut run).await, Switched::Live(2));
    assert_eq!(everything(&f.store).await, live);
    let health = f.store.model_health().await.unwrap();
    assert_eq!((health.generation, health.checkpoint), (2, f.store.head().await.unwrap().position));

    // Projection goes on in the new slot, and the old one is swept away.
    create(&f.store, "User", json!({ "userName": "after", "title": "new" })).await;
    follow(&f.store).await;
    assert_eq!(found(&f.store, "User", r#"userName eq "after""#).await.len(), 1);
    while f.store.model_sweep().await.unwrap() > 0 {}
    assert_eq!(rebuild(&f.store).await, Switched::Live(3));
    assert_eq!(found(&f.store, "User", r#"userName eq "after""#).await.len(), 1);
}

async fn a_rebuild_goes_on_after_copying_and_ends_its_forerunner(f: Fixture) {
    populate(&f).await;
    follow(&f.store).await;
    let live = everything(&f.store).await;
    // Torn while copying: it never becomes live, and the next one starts over.
    let mut torn = f.store.rebuild_begin().await.unwrap();
    f.store.rebuild_copy(&mut torn).await.unwrap();
    let mut run = f.store.rebuild_begin().await.unwrap();
    assert!(f.store.rebuild_copy(&mut torn).await.is_err(), "a later run fences it off");
    assert_eq!(f.store.model_sweep().await.unwrap(), 0, "what a run is filling is not swept");
    while !f.store.rebuild_copy(&mut run).await.unwrap().finished {}
    drop(run);
    drop(torn);
    create(&f.store, "User", json!({ "userName": "late" })).await;
    follow(&f.store).await;
    assert_ne!(everything(&f.store).await, live);
    let live = everything(&f.store).await;
    let mut run = f.store.rebuild_begin().await.unwrap();
    assert!(f.store.rebuild_copy(&mut run).await.unwrap().finished, "the copy is there");
    assert_eq!(switch(&f.store, &mut run).await, Switched::Live(2));
    assert_eq!(everything(&f.store).await, live);
    // Cancelled: what it wrote is swept.
    let mut run = f.store.rebuild_begin().await.unwrap();
    while !f.store.rebuild_copy(&mut run).await.unwrap().finished {}
    f.store.rebuild_cancel(run).await.unwrap();
    assert!(f.store.model_sweep().await.unwrap() > 0);
    assert_eq!(everything(&f.store).await, live);
}

async fn a_rebuild_parks_what_it_cannot_copy(f: Fixture) {
    populate(&f).await;
    let bad = create(&f.store, "User", json!({ "userName": "bad", "title": "poison" })).await;
    f.poison().await;
    assert_eq!(rebuild(&f.store).await, Switched::Live(2));
    assert_eq!(f.store.model_health().await.unwrap().parked, 1);
    assert_eq!(found(&f.store, "User", "userName pr").await.len(), 29);
    f.cure().await;
    assert_eq!(f.store.redrive_parked(10).await.unwrap().repaired, 1);
    assert_eq!(found(&f.store, "User", r#"title eq "poison""#).await, [bad]);
}

async fn a_rebuild_that_differs_does_not_go_live(f: Fixture) {
    populate(&f).await;
    follow(&f.store).await;
    f.index(&["username"]).await;
    for (sqlite, postgres) in [
        ("DELETE FROM resource_b", "DELETE FROM model.resource_b"),
        ("DELETE FROM link_b", "DELETE FROM model.link_b"),
        ("UPDATE attribute_b SET value = 'other'", "UPDATE model.attribute_b SET value = 'other'"),
        ("UPDATE resource_b SET version = 99", "UPDATE model.resource_b SET version = 99"),
        // In the last page only, and more than there should be.
        (
            "DELETE FROM link_b WHERE (from_id, to_id) = (SELECT from_id, to_id FROM link_b \
             ORDER BY from_id DESC, to_id DESC LIMIT 1)",
            "DELETE FROM model.link_b WHERE (from_id, to_id) = (SELECT from_id, to_id FROM model.link_b \
             ORDER BY from_id DESC, to_id DESC LIMIT 1)",
        ),
        (
            "INSERT INTO link_b VALUES ('acme', 'members', 'zz', 'zz')",
            "INSERT INTO model.link_b VALUES ('acme', 'members', 'zz', 'zz')",
        ),
        (
            "INSERT INTO resource_b SELECT tenant, 'zz', resource_type, version, position, origin, created, \
             modified, deleted, display, document FROM resource_b LIMIT 1",
            "INSERT INTO model.resource_b SELECT tenant, 'zz', resource_type, version, position, origin, \
             created, modified, deleted, display, document FROM model.resource_b LIMIT 1",
        ),
    ] {
        let mut run = f.store.rebuild_begin().await.unwrap().comparing(7);
        while !f.store.rebuild_copy(&mut run).await.unwrap().finished {}
        f.meddle(sqlite, postgres).await;
        let end = switch(&f.store, &mut run).await;
        assert!(matches!(end, Switched::Different(_)), "{sqlite}: {end:?}");
        assert_eq!(f.store.model_health().await.unwrap().generation, 1);
    }
    assert_eq!(rebuild(&f.store).await, Switched::Live(2), "a new run starts over");
}

// ---- indexes on first use (decision 0008) ----

/// How many attribute rows the live slot has.
async fn attribute_rows(f: &Fixture) -> i64 {
    let count = "SELECT (SELECT COUNT(*) FROM model.attribute_a) + (SELECT COUNT(*) FROM model.attribute_b)";
    match &f.database {
        Database::Sqlite { dir } => {
            let url = format!("sqlite://{}", dir.join("model.db").display());
            let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
            sqlx::query_scalar(&count.replace("model.", "")).fetch_one(&mut connection).await.unwrap()
        }
        Database::Postgres { url, .. } => {
            let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
            sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap()
        }
    }
}

async fn an_attribute_has_rows_once_it_was_asked_for(f: Fixture) {
    begin(&f).await;
    let body = |name: &str| json!({ "userName": name, "title": "Boss", "nickName": name });
    let anna = create(&f.store, "User", body("anna")).await;
    follow(&f.store).await;
    assert_eq!(attribute_rows(&f).await, 0, "nobody has asked");
    assert_eq!(found(&f.store, "User", r#"title eq "boss""#).await, std::slice::from_ref(&anna));
    assert_eq!(attribute_rows(&f).await, 1);
    // From now on the projector keeps it, and nothing else.
    let bo = create(&f.store, "User", body("bo")).await;
    replace(&f.store, "User", &anna, json!({ "userName": "anna", "title": "Chief" })).await;
    follow(&f.store).await;
    assert_eq!(attribute_rows(&f).await, 2);
    assert_eq!(found(&f.store, "User", r#"title eq "boss""#).await, [bo]);
    // Another process asks for another one, and an order is a question, too.
    let other = f.another().await;
    assert_eq!(found(&other, "User", r#"nickName pr"#).await.len(), 1);
    assert_eq!(attribute_rows(&f).await, 3);
    other.close().await;
    // What nobody has is asked for as well: its rows come with whoever has it.
    assert_eq!(found(&f.store, "User", "userType pr").await, []);
    let celik = create(&f.store, "User", json!({ "userName": "celik", "userType": "Guest" })).await;
    follow(&f.store).await;
    assert_eq!(found(&f.store, "User", "userType pr").await, [celik]);
}

async fn an_index_that_is_being_built_misses_no_change(f: Fixture) {
    begin(&f).await;
    let mut users = Vec::new();
    for n in 0..30 {
        let body = json!({ "userName": format!("user{n}"), "title": "old" });
        users.push(create(&f.store, "User", body).await);
    }
    follow(&f.store).await;
    f.index(&["title"]).await;
    // As if whoever built it had been stopped in the middle: what comes after is not there.
    let middle = &users[14];
    f.meddle(
        &format!("UPDATE indexed_a SET after = '{middle}'; DELETE FROM attribute_a WHERE id > '{middle}'"),
        &format!(
            "UPDATE model.indexed_a SET after = '{middle}'; \
             DELETE FROM model.attribute_a WHERE id > '{middle}'"
        ),
    )
    .await;
    // Changes on both sides of the place, of what has rows and of what has none yet.
    for at in [3, 20] {
        replace(&f.store, "User", &users[at], json!({ "userName": format!("user{at}"), "title": "new" }))
            .await;
    }
    for at in [4, 21] {
        replace(&f.store, "User", &users[at], json!({ "userName": format!("user{at}") })).await;
    }
    for at in [5, 22] {
        execute(&f.store, "User", &users[at], Command::Delete).await;
    }
    follow(&f.store).await;
    assert_eq!(found(&f.store, "User", r#"title eq "new""#).await, [users[3].clone(), users[20].clone()]);
    assert_eq!(found(&f.store, "User", r#"title eq "old""#).await.len(), 24);
    assert_eq!(found(&f.store, "User", "not (title pr)").await, [users[4].clone(), users[21].clone()]);
    assert_eq!(attribute_rows(&f).await, 26);
}

async fn a_document_that_cannot_be_indexed_keeps_nobody_else_out(f: Fixture) {
    begin(&f).await;
    let mut users = Vec::new();
    for n in 0..9 {
        let title = if n == 4 { "poison" } else { "fine" };
        users.push(create(&f.store, "User", json!({ "userName": format!("u{n}"), "title": title })).await);
    }
    follow(&f.store).await;
    f.poison_values().await;
    assert_eq!(found(&f.store, "User", r#"title eq "fine""#).await.len(), 8);
    assert_eq!(f.store.model_health().await.unwrap().parked, 1);
    f.cure().await;
    assert_eq!(f.store.redrive_parked(10).await.unwrap().repaired, 1);
    assert_eq!(found(&f.store, "User", r#"title eq "poison""#).await, [users[4].clone()]);
}

async fn a_rebuild_keeps_the_indexes(f: Fixture) {
    populate(&f).await;
    follow(&f.store).await;
    f.index(&["username"]).await;
    let rows = attribute_rows(&f).await;
    let mut run = f.store.rebuild_begin().await.unwrap();
    while !f.store.rebuild_copy(&mut run).await.unwrap().finished {}
    assert_eq!(attribute_rows(&f).await, 2 * rows, "copied with its rows");
    // Asked for too late to be copied: the next question builds it anew.
    assert_eq!(found(&f.store, "User", r#"emails.value eq "7@x.test""#).await.len(), 1);
    assert_eq!(switch(&f.store, &mut run).await, Switched::Live(2));
    assert_eq!(found(&f.store, "User", r#"emails.value eq "7@x.test""#).await.len(), 1);
    assert_eq!(found(&f.store, "User", "userName pr").await.len(), 29);
}

async fn a_rebuild_compares_page_by_page_while_life_goes_on(f: Fixture) {
    let (users, groups) = populate(&f).await;
    follow(&f.store).await;
    let mut run = f.store.rebuild_begin().await.unwrap().comparing(4);
    while !f.store.rebuild_copy(&mut run).await.unwrap().finished {}
    let mut pages = 0;
    loop {
        // Ahead of what is compared and behind it: changes, deletes, erasures, members. The live projector
        // sees some of them before the rebuild does.
        if pages < 24 {
            let title = json!({ "userName": format!("u{pages}"), "title": format!("at {pages}") });
            replace(&f.store, "User", &users[10 + pages % 4], title).await;
            let members = json!([{ "value": users[29] }, { "value": users[28 - pages % 3] }]);
            let body = json!({ "displayName": "moved", "members": members });
            replace(&f.store, "Group", &groups[pages % 3], body).await;
            create(&f.store, "User", json!({ "userName": format!("new{pages}") })).await;
            match pages {
                5 => execute(&f.store, "User", &users[24], Command::Delete).await,
                6 => execute(&f.store, "Group", &groups[3], Command::Delete).await,
                3 | 9 => {
                    let id = if pages == 3 { &users[25] } else { &users[24] };
                    f.store.erase(&acme(), id, Actor::operator("test")).await.unwrap();
                }
                _ => {}
            }
        }
        if pages % 2 == 0 {
            follow(&f.store).await;
        }
        match f.store.rebuild_compare_and_switch(&mut run).await.unwrap() {
            Switched::Compared(keys) => assert!(keys <= 4, "a page has {keys} keys"),
            Switched::Live(generation) => break assert_eq!(generation, 2),
            other => panic!("{other:?}"),
        }
        pages += 1;
    }
    assert!(pages >= 15, "{pages} pages");
    follow(&f.store).await;
    let live = everything(&f.store).await;
    while f.store.model_sweep().await.unwrap() > 0 {}
    assert_eq!(rebuild(&f.store).await, Switched::Live(3));
    assert_eq!(everything(&f.store).await, live);
}

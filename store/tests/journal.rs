//! The journal's contract: one suite, run on SQLite and on PostgreSQL.

mod common;

use std::collections::BTreeSet;

use annals_domain::clock::{Clock, Timestamp};
use annals_domain::event::{Actor, Body, Event};
use annals_domain::ids::{ConnectionId, ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::patch::parse_request;
use annals_domain::tenant::{App, Connection, Driver, Scope, TenantSettings};
use annals_domain::view::LookupKind;
use annals_store::tenants::Authentication;
use annals_store::{Database, Executed, Idempotency, IfMatch, Store, StoreError};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use common::{Fixture, acme, contract, create, group, new_id, request, user};

fn patch_command(id: &ResourceId, operations: Value) -> Command {
    let body =
        json!({ "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": operations });
    let operations = parse_request(&body, &mut Dialect::new(Profile::Generic)).unwrap();
    Command::Patch { id: id.clone(), operations, client: Profile::Generic.into() }
}

async fn patch(
    store: &Store,
    resource_type: &str,
    id: &ResourceId,
    operations: Value,
) -> Result<Executed, StoreError> {
    store.execute(request(resource_type, id, patch_command(id, operations))).await
}

async fn delete(store: &Store, resource_type: &str, id: &ResourceId) -> Result<Executed, StoreError> {
    store.execute(request(resource_type, id, Command::Delete)).await
}

async fn member_ids(store: &Store, group: &ResourceId) -> BTreeSet<ResourceId> {
    store.members(&acme(), group, None, 100_000).await.unwrap().into_iter().map(|m| m.id).collect()
}

fn status(result: Result<Executed, StoreError>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(StoreError::Refused(error)) => error.status,
        Err(error) => panic!("{error:?}"),
    }
}

async fn assert_sound(store: &Store) {
    let seen = store.verify().await.unwrap();
    assert_eq!(seen.findings, [], "after {} events", seen.events);
    assert_eq!(seen.events, store.head().await.unwrap().position);
}

#[path = "journal/bulk.rs"]
mod bulk;

contract! {
    a_create_is_durable_and_sealed
    user_names_are_unique_until_deleted
    a_hundred_racing_creates_give_one_winner
    parallel_member_patches_lose_nothing
    members_are_narrowed_to_what_changes
    members_must_exist_and_go_with_their_user
    stale_versions_are_refused_with_if_match_and_retried_without
    a_no_op_writes_nothing
    an_idempotency_key_is_carried_out_once
    a_delete_that_is_repeated_while_it_is_written_is_no_404
    the_janitor_finishes_deletes
    groups_in_groups_are_found_and_cycles_end
    tampering_is_found
    passwords_are_in_no_event_and_no_row
    tokens_are_found_by_their_digest_only
    app_credentials_are_sealed
    two_processes_write_one_journal
    leases_are_exclusive_until_they_end
    time_never_falls
    another_tenants_rows_are_invisible
    a_put_replaces_the_members
    oversized_changes_are_refused
    halted_journals_refuse_writes
    a_restored_journal_goes_on_in_a_new_epoch
    an_erased_person_cannot_be_read_by_anyone
}

async fn a_create_is_durable_and_sealed(f: Fixture) {
    let done = create(&f.store, "User", json!({"userName": "Ines@acme.test", "title": "Secret Title"}))
        .await
        .unwrap();
    assert_eq!((done.state.version, done.changed, done.replayed), (1, true, false));
    let other = f.another().await;
    let state = other.state(&acme(), &done.state.id).await.unwrap().unwrap();
    assert_eq!(state.document().unwrap().0["userName"], "Ines@acme.test");
    assert_eq!(state.created, state.modified);
    let events = other.read_events(0, 100).await.unwrap();
    assert_eq!(events.iter().map(|e| e.position).collect::<Vec<_>>(), [1, 2]);
    let created = &events[1];
    assert_eq!(created.kind, "user.created");
    assert_eq!((created.previous_of_tenant, created.previous_of_entity, created.version), (1, 0, 1));
    assert!(
        matches!(&created.body, Body::Open(Event::Created { document }) if document.0["title"] == "Secret Title")
    );
    let stored = other.read_stored(1, 1).await.unwrap().remove(0);
    assert!(stored.key_id.is_some());
    assert!(!String::from_utf8_lossy(&stored.payload).contains("Secret"));
    let found = other.find_by_lookup(&acme(), "User", LookupKind::UserName, "ines@acme.test").await.unwrap();
    assert_eq!(found, [done.state.id]);
    assert_sound(&f.store).await;
}

async fn user_names_are_unique_until_deleted(f: Fixture) {
    let first = user(&f.store, "bo").await;
    assert_eq!(status(create(&f.store, "User", json!({"userName": "BO"})).await), 409);
    let second = user(&f.store, "celik").await;
    let rename = json!([{"op": "replace", "path": "userName", "value": "Bo"}]);
    assert_eq!(status(patch(&f.store, "User", &second, rename.clone()).await), 409);
    assert_eq!(status(delete(&f.store, "User", &first).await), 200);
    assert_eq!(status(delete(&f.store, "User", &first).await), 404);
    assert_eq!(status(patch(&f.store, "User", &first, rename.clone()).await), 404);
    assert_eq!(status(patch(&f.store, "User", &second, rename).await), 200);
    assert_ne!(user(&f.store, "celik").await, second, "the old name is free again");
    assert_sound(&f.store).await;
}

async fn a_hundred_racing_creates_give_one_winner(f: Fixture) {
    let stores = [f.store.clone(), f.another().await];
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let store = stores[n % 2].clone();
        tasks.spawn(async move { status(create(&store, "User", json!({"userName": "same"})).await) });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_unstable();
    assert_eq!(answers[0], 200);
    assert!(answers[1..].iter().all(|s| *s == 409), "{answers:?}");
    assert_sound(&f.store).await;
}

async fn parallel_member_patches_lose_nothing(f: Fixture) {
    let store = &f.store;
    let group = group(store, "crew", &[]).await;
    let mut users = Vec::new();
    for n in 0..60 {
        users.push(user(store, &format!("u{n}")).await);
    }
    let other = f.another().await;
    let mut tasks = tokio::task::JoinSet::new();
    for (n, id) in users.iter().cloned().enumerate() {
        let (store, group) = (if n % 2 == 0 { store.clone() } else { other.clone() }, group.clone());
        tasks.spawn(async move {
            let add = json!([{"op": "add", "path": "members", "value": [{"value": id.as_str()}]}]);
            status(patch(&store, "Group", &group, add).await)
        });
    }
    assert!(tasks.join_all().await.iter().all(|s| *s == 200));
    assert_eq!(member_ids(store, &group).await, users.into_iter().collect());
    assert_eq!(store.state(&acme(), &group).await.unwrap().unwrap().version, 61);
    assert_sound(store).await;
}

async fn members_are_narrowed_to_what_changes(f: Fixture) {
    let store = &f.store;
    let (a, b, c) = (user(store, "a").await, user(store, "b").await, user(store, "c").await);
    let crew = group(store, "crew", &[&a, &b]).await;
    let before = store.head().await.unwrap().position;
    let again = json!([{"op": "add", "path": "members", "value": [{"value": a.as_str()}]}]);
    let done = patch(store, "Group", &crew, again).await.unwrap();
    assert!(!done.changed);
    assert_eq!(done.state.version, 2);
    assert_eq!(store.head().await.unwrap().position, before);
    let mixed = json!([
        {"op": "remove", "path": "members", "value": [{"value": a.as_str()}]},
        {"op": "add", "path": "members", "value": [{"value": b.as_str()}, {"value": c.as_str()}]},
    ]);
    assert!(patch(store, "Group", &crew, mixed).await.unwrap().changed);
    let events = store.read_events(before, 10).await.unwrap();
    let kinds: Vec<&str> = events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds, ["group.members_removed", "group.members_added"]);
    assert_eq!(events[1].body, Body::Open(Event::MembersAdded { members: vec![c.clone()] }));
    assert_eq!(member_ids(store, &crew).await, [b, c].into_iter().collect());
    assert_sound(store).await;
}

async fn members_must_exist_and_go_with_their_user(f: Fixture) {
    let store = &f.store;
    let (a, b) = (user(store, "a").await, user(store, "b").await);
    let crew = group(store, "crew", &[&a]).await;
    let missing =
        json!([{"op": "add", "path": "members", "value": [{"value": b.as_str()}, {"value": "missing"}]}]);
    let error = patch(store, "Group", &crew, missing).await.unwrap_err();
    let StoreError::Refused(error) = error else { panic!("{error:?}") };
    assert_eq!(error.status, 400);
    assert!(error.detail.contains("missing"), "{}", error.detail);
    assert_eq!(member_ids(store, &crew).await, [a.clone()].into_iter().collect());
    delete(store, "User", &a).await.unwrap();
    assert!(member_ids(store, &crew).await.is_empty());
    let last = store.read_events(0, 1_000).await.unwrap().pop().unwrap();
    assert_eq!((last.kind.as_str(), last.stream.id), ("group.members_removed", crew.clone()));
    let add = json!([{"op": "add", "path": "members", "value": [{"value": a.as_str()}]}]);
    assert_eq!(status(patch(store, "Group", &crew, add).await), 400, "a deleted user is no member");
    assert_sound(store).await;
}

async fn stale_versions_are_refused_with_if_match_and_retried_without(f: Fixture) {
    let store = &f.store;
    let id = user(store, "a").await;
    let title = |n: usize| json!([{"op": "replace", "path": "title", "value": format!("T{n}")}]);
    let mut stale = request("User", &id, patch_command(&id, title(0)));
    stale.if_match = IfMatch::Versions(vec![9]);
    assert_eq!(status(store.execute(stale).await), 412);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..10 {
        let mut fresh = request("User", &id, patch_command(&id, title(n)));
        fresh.if_match = IfMatch::Versions(vec![1]);
        let store = store.clone();
        tasks.spawn(async move { status(store.execute(fresh).await) });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_unstable();
    assert_eq!(answers[..2], [200, 412], "exactly one wins");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 10..20 {
        let free = request("User", &id, patch_command(&id, title(n)));
        let store = store.clone();
        tasks.spawn(async move { status(store.execute(free).await) });
    }
    assert!(tasks.join_all().await.iter().all(|s| *s == 200));
    assert_eq!(store.state(&acme(), &id).await.unwrap().unwrap().version, 12);
    assert_sound(store).await;
}

async fn a_no_op_writes_nothing(f: Fixture) {
    let store = &f.store;
    let id = create(store, "User", json!({"userName": "a", "title": "T"})).await.unwrap().state.id;
    f.clock.advance(1_000);
    let before = store.state(&acme(), &id).await.unwrap().unwrap();
    let same = json!([{"op": "replace", "path": "title", "value": "X"}, {"op": "replace", "path": "title", "value": "T"}]);
    let done = patch(store, "User", &id, same).await.unwrap();
    assert!(!done.changed);
    assert_eq!(done.state, before);
    assert_eq!(store.state(&acme(), &id).await.unwrap().unwrap(), before);
    assert_eq!(store.head().await.unwrap().position, 2);
}

async fn an_idempotency_key_is_carried_out_once(f: Fixture) {
    let store = &f.store;
    let keyed = |name: &str, body: &str| {
        let id = new_id(store);
        let command = Command::Create {
            id: id.clone(),
            body: json!({ "userName": name }),
            client: Profile::Generic.into(),
        };
        let mut request = request("User", &id, command);
        request.idempotency = Some(Idempotency { key: "k1".to_owned(), request: body.as_bytes().to_vec() });
        request
    };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, request) = (store.clone(), keyed("a", "POST a"));
        tasks.spawn(async move { store.execute(request).await.unwrap() });
    }
    let done = tasks.join_all().await;
    assert_eq!(done.iter().filter(|d| !d.replayed).count(), 1);
    assert_eq!(done.iter().map(|d| d.state.id.clone()).collect::<BTreeSet<_>>().len(), 1);
    let again = f.another().await.execute(keyed("a", "POST a")).await.unwrap();
    assert!(again.replayed);
    assert_eq!(status(store.execute(keyed("b", "POST b")).await), 422);
    assert_eq!(store.head().await.unwrap().position, 2);
    assert_sound(store).await;
}

async fn a_delete_that_is_repeated_while_it_is_written_is_no_404(f: Fixture) {
    let store = &f.store;
    for n in 0..80 {
        let id = user(store, &format!("user{n}")).await;
        let keyed = || {
            let mut request = request("User", &id, Command::Delete);
            request.idempotency = Some(Idempotency { key: format!("k{n}"), request: b"DELETE".to_vec() });
            store.execute(request)
        };
        // The client goes away at some moment, and comes back at once.
        drop(annals_testkit::world::cut(keyed(), n % 20).await);
        assert_eq!(status(keyed().await), 200, "{n}");
        assert_eq!(status(delete(store, "User", &id).await), 404, "without the key it is gone");
    }
    assert_sound(store).await;
}

async fn the_janitor_finishes_deletes(f: Fixture) {
    let store = &f.store;
    let boss = user(store, "boss").await;
    let urn = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";
    let worker = create(store, "User", json!({"userName": "w", urn: {"manager": {"value": boss.as_str()}}}));
    let worker = worker.await.unwrap().state.id;
    let crew = group(store, "crew", &[&boss, &worker]).await;
    let outer = group(store, "outer", &[&crew]).await;
    delete(store, "User", &boss).await.unwrap();
    delete(store, "Group", &crew).await.unwrap();
    assert_eq!(status(delete(store, "Group", &crew).await), 404);
    assert!(member_ids(store, &outer).await.is_empty());
    let mut steps = 0;
    while store.janitor_step(10).await.unwrap() > 0 {
        steps += 1;
        assert!(steps < 20, "the janitor must come to an end");
    }
    let state = store.state(&acme(), &worker).await.unwrap().unwrap();
    assert!(state.document().unwrap().0.get(urn).is_none(), "{state:?}");
    assert!(store.groups_of(&acme(), std::slice::from_ref(&worker)).await.unwrap().is_empty());
    assert_sound(store).await;
}

async fn groups_in_groups_are_found_and_cycles_end(f: Fixture) {
    let store = &f.store;
    let a = user(store, "a").await;
    let inner = group(store, "inner", &[&a]).await;
    let outer = group(store, "outer", &[&inner]).await;
    let back = json!([{"op": "add", "path": "members", "value": [{"value": outer.as_str()}]}]);
    patch(store, "Group", &inner, back).await.unwrap();
    let itself = json!([{"op": "add", "path": "members", "value": [{"value": inner.as_str()}]}]);
    assert_eq!(status(patch(store, "Group", &inner, itself).await), 400);
    let found = store.groups_of(&acme(), std::slice::from_ref(&a)).await.unwrap();
    let found: BTreeSet<_> = found.into_iter().map(|g| (g.group, g.display.unwrap(), g.direct)).collect();
    let expected = [(inner, "inner".to_owned(), true), (outer, "outer".to_owned(), false)];
    assert_eq!(found, expected.into_iter().collect());
}

async fn tampering_is_found(f: Fixture) {
    let store = &f.store;
    for n in 0..5 {
        user(store, &format!("u{n}")).await;
    }
    assert_sound(store).await;
    let statement =
        "UPDATE journal.event SET actor = '{\"kind\":\"operator\",\"name\":\"mallory\"}' WHERE position = 3";
    match &f.database {
        Database::Sqlite { dir } => {
            let url = format!("sqlite://{}", dir.join("journal.db").display());
            let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
            sqlx::query(&statement.replace("journal.", "")).execute(&pool).await.unwrap();
            pool.close().await;
        }
        Database::Postgres { url, .. } => {
            let pool = sqlx::PgPool::connect(url).await.unwrap();
            sqlx::query(statement).execute(&pool).await.unwrap();
            pool.close().await;
        }
    }
    let seen = store.verify().await.unwrap();
    let places: Vec<&str> = seen.findings.iter().map(|f| f.place.as_str()).collect();
    assert_eq!(places, ["position 3"], "{:?}", seen.findings);
}

async fn passwords_are_in_no_event_and_no_row(f: Fixture) {
    let store = &f.store;
    let id = create(store, "User", json!({"userName": "a", "password": "hunter2-hunter2"}))
        .await
        .unwrap()
        .state
        .id;
    let kinds: Vec<String> = store.read_events(1, 10).await.unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["user.created", "user.password_set"]);
    let state = store.state(&acme(), &id).await.unwrap().unwrap();
    assert!(!format!("{state:?}").contains("hunter2"));
    let events = format!("{:?}", store.read_events(0, 10).await.unwrap());
    assert!(!events.contains("hunter2") && !events.contains("argon2"));
    assert_sound(store).await;
}

/// SE-007: what is stored is a digest, a token ends when it says, and two of one connection overlap.
async fn tokens_are_found_by_their_digest_only(f: Fixture) {
    let store = &f.store;
    let idp = ConnectionId::new("idp").unwrap();
    let connection = Connection::new(idp.clone(), Profile::Entra);
    store.create_connection(&acme(), connection, Actor::system("test")).await.unwrap();
    let expires = f.clock.now().plus_ms(60_000);
    let issued = store
        .issue_token(&acme(), &idp, vec![Scope::Read, Scope::Write], Some(expires), Actor::system("test"))
        .await
        .unwrap();
    let Authentication::Valid(principal) = store.authenticate(&issued.secret).await.unwrap() else {
        panic!()
    };
    assert_eq!((principal.tenant.as_str(), principal.connection.client.profile), ("acme", Profile::Entra));
    assert_eq!(principal.scopes.len(), 2);
    let next =
        store.issue_token(&acme(), &idp, vec![Scope::Read], None, Actor::system("test")).await.unwrap();
    assert!(matches!(store.authenticate(&next.secret).await.unwrap(), Authentication::Valid(_)));
    assert!(
        next.secret.expose_secret().len() > 32
            && next.secret.expose_secret() != issued.secret.expose_secret()
    );
    let wrong = SecretString::from(issued.secret.expose_secret().replace("annals_", "annals_0"));
    assert_eq!(store.authenticate(&wrong).await.unwrap(), Authentication::Unknown);
    f.clock.advance(60_000);
    assert!(matches!(store.authenticate(&issued.secret).await.unwrap(), Authentication::Expired(_)));
    assert!(matches!(store.authenticate(&next.secret).await.unwrap(), Authentication::Valid(_)));
    store.revoke_token(&acme(), &issued.id, Actor::system("test")).await.unwrap();
    assert_eq!(store.authenticate(&issued.secret).await.unwrap(), Authentication::Unknown);
    let events = format!("{:?}", store.read_events(0, 100).await.unwrap());
    assert!(!events.contains(issued.secret.expose_secret()));
    assert_sound(store).await;
}

async fn app_credentials_are_sealed(f: Fixture) {
    let store = &f.store;
    let app: App = serde_json::from_value(json!({
        "id": "hr", "driver": {"kind": "webhook", "url": "https://hr.test/hook"},
    }))
    .unwrap();
    assert!(matches!(app.driver, Driver::Webhook { .. }));
    let id = app.id.clone();
    store.create_app(&acme(), app, SecretString::from("whsec_s3cret"), Actor::system("test")).await.unwrap();
    let opened = f.another().await.app_credential(&acme(), &id).await.unwrap();
    assert_eq!(opened.expose_secret(), "whsec_s3cret");
    assert_eq!(store.all_apps().await.unwrap().len(), 1);
    store.delete_app(&acme(), &id, Actor::system("test")).await.unwrap();
    assert!(store.app_credential(&acme(), &id).await.is_err());
    assert!(store.all_apps().await.unwrap().is_empty());
    assert_sound(store).await;
}

async fn two_processes_write_one_journal(f: Fixture) {
    let stores = [f.store.clone(), f.another().await];
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let store = stores[n % 2].clone();
        tasks.spawn(async move { user(&store, &format!("u{n}")).await });
    }
    let ids: BTreeSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 200);
    let events = f.store.read_events(0, 1_000).await.unwrap();
    assert_eq!(events.iter().map(|e| e.position).collect::<Vec<_>>(), (1..=201).collect::<Vec<_>>());
    assert_sound(&f.store).await;
}

async fn leases_are_exclusive_until_they_end(f: Fixture) {
    let ttl = std::time::Duration::from_secs(10);
    let store = &f.store;
    assert!(store.try_lease("relay", "a", ttl).await.unwrap());
    assert!(!store.try_lease("relay", "b", ttl).await.unwrap());
    assert!(store.try_lease("relay", "a", ttl).await.unwrap(), "renewed");
    f.clock.advance(10_000);
    assert!(store.try_lease("relay", "b", ttl).await.unwrap(), "taken over");
    store.release_lease("relay", "b").await.unwrap();
    assert!(store.try_lease("relay", "a", ttl).await.unwrap(), "given back");
}

async fn time_never_falls(f: Fixture) {
    user(&f.store, "a").await;
    f.clock.advance(-3_600_000);
    user(&f.store, "b").await;
    let times: Vec<Timestamp> = f.store.read_events(0, 10).await.unwrap().iter().map(|e| e.at).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_sound(&f.store).await;
}

async fn another_tenants_rows_are_invisible(f: Fixture) {
    let store = &f.store;
    let other = TenantId::new("other").unwrap();
    store.create_tenant(&other, TenantSettings::default(), Actor::system("test")).await.unwrap();
    let a = user(store, "a").await;
    let crew = group(store, "crew", &[&a]).await;
    assert!(store.state(&other, &a).await.unwrap().is_none());
    assert!(store.states(&other, &[a.clone(), crew.clone()]).await.unwrap().is_empty());
    assert!(store.members(&other, &crew, None, 10).await.unwrap().is_empty());
    assert!(store.groups_of(&other, std::slice::from_ref(&a)).await.unwrap().is_empty());
    assert!(store.find_by_lookup(&other, "User", LookupKind::UserName, "a").await.unwrap().is_empty());
    let mut foreign = request("User", &a, Command::Delete);
    foreign.tenant = other.clone();
    assert_eq!(status(store.execute(foreign).await), 404);
    let body = json!({"displayName": "theirs", "members": [{"value": a.as_str()}]});
    let id = new_id(store);
    let mut theirs =
        request("Group", &id, Command::Create { id: id.clone(), body, client: Profile::Generic.into() });
    theirs.tenant = other;
    assert_eq!(status(store.execute(theirs).await), 400, "a member of another tenant does not exist");
    assert_sound(store).await;
}

async fn a_put_replaces_the_members(f: Fixture) {
    let store = &f.store;
    let (a, b, c) = (user(store, "a").await, user(store, "b").await, user(store, "c").await);
    let crew = group(store, "crew", &[&a, &b]).await;
    let body = json!({"displayName": "crew", "members": [{"value": b.as_str()}, {"value": c.as_str()}]});
    let put = |body: Value| {
        let command = Command::Replace { id: crew.clone(), body, client: Profile::Generic.into() };
        store.execute(request("Group", &crew, command))
    };
    assert!(put(body.clone()).await.unwrap().changed);
    assert_eq!(member_ids(store, &crew).await, [b, c].into_iter().collect());
    assert!(!put(body).await.unwrap().changed, "the same again changes nothing");
    assert!(put(json!({"displayName": "crew"})).await.unwrap().changed);
    assert!(member_ids(store, &crew).await.is_empty());
    assert_sound(store).await;
}

async fn oversized_changes_are_refused(f: Fixture) {
    let huge = "x".repeat(600_000);
    assert_eq!(status(create(&f.store, "User", json!({"userName": "a", "title": huge})).await), 413);
    assert_eq!(f.store.head().await.unwrap().position, 1);
}

async fn halted_journals_refuse_writes(f: Fixture) {
    f.store.halt("the stream is ahead of the journal").await.unwrap();
    let error = create(&f.store, "User", json!({"userName": "a"})).await.unwrap_err();
    assert!(matches!(&error, StoreError::Halted(reason) if reason.contains("ahead")), "{error:?}");
    assert_eq!(f.store.head().await.unwrap().halted.as_deref(), Some("the stream is ahead of the journal"));
}

/// D5: (epoch, position) is never given twice, and each tenant is told.
async fn a_restored_journal_goes_on_in_a_new_epoch(f: Fixture) {
    let store = &f.store;
    let other = TenantId::new("other").unwrap();
    store.create_tenant(&other, TenantSettings::default(), Actor::system("test")).await.unwrap();
    user(store, "a").await;
    store.halt("the stream is ahead of the journal").await.unwrap();
    let actor = Actor::operator("ada");
    assert!(store.open_journal_epoch(1, 4, &actor).await.is_err(), "a base beyond the end");
    assert!(store.open_journal_epoch(2, 3, &actor).await.is_err(), "another epoch");
    assert!(store.head().await.unwrap().halted.is_some(), "a refusal changes nothing");

    assert_eq!(store.open_journal_epoch(1, 2, &actor).await.unwrap(), 2);
    let head = store.head().await.unwrap();
    assert_eq!((head.epoch, head.position, head.halted), (2, 5, None));
    let told = store.read_events(3, 10).await.unwrap();
    let about: Vec<_> = told.iter().map(|event| (event.tenant.as_str(), event.kind.as_str())).collect();
    assert_eq!(about, [("acme", "journal.created"), ("other", "journal.created")]);
    assert!(told.iter().all(|event| event.actor == actor && event.cause.operation == "recover"));
    user(store, "b").await;

    // A second time, further on: readers of the first epoch go back to the lowest base.
    assert_eq!(store.open_journal_epoch(2, 6, &actor).await.unwrap(), 3);
    assert_eq!(store.read_events(6, 1).await.unwrap()[0].kind, "journal.changed");
    let bases = [store.base_since(1), store.base_since(2), store.base_since(3)];
    assert_eq!(futures::future::try_join_all(bases).await.unwrap(), [Some(2), Some(6), None]);
    assert_sound(store).await;
}

async fn an_erased_person_cannot_be_read_by_anyone(f: Fixture) {
    let store = &f.store;
    let body = json!({"userName": "ines", "title": "Secret Title", "password": "hunter2-hunter2"});
    let id = create(store, "User", body).await.unwrap().state.id;
    let kept = user(store, "bo").await;
    let crew = group(store, "crew", &[&id, &kept]).await;
    store.erase(&acme(), &id, Actor::system("test")).await.unwrap();
    store.erase(&acme(), &id, Actor::system("test")).await.unwrap();
    let other = f.another().await;
    let events = other.read_stream(&acme(), &id, 0, 100).await.unwrap();
    let kinds: Vec<&str> = events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds, ["user.created", "user.password_set", "user.deleted", "user.erased"]);
    assert_eq!(events[0].body, Body::Erased);
    assert!(other.state(&acme(), &id).await.unwrap().unwrap().deleted);
    assert_eq!(member_ids(&other, &crew).await, [kept.clone()].into_iter().collect());
    assert!(other.find_by_lookup(&acme(), "User", LookupKind::UserName, "ines").await.unwrap().is_empty());
    assert_eq!(other.state(&acme(), &kept).await.unwrap().unwrap().document().unwrap().0["userName"], "bo");
    let nobody = store.erase(&acme(), &ResourceId::from_text("nobody"), Actor::system("test")).await;
    assert!(matches!(nobody, Err(StoreError::Refused(error)) if error.status == 404));
    let nothing = store.erase(&acme(), &crew, Actor::system("test")).await;
    assert!(matches!(nothing, Err(StoreError::Refused(error)) if error.status == 400));
    assert_sound(store).await;
}

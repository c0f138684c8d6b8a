//! Bulk requests on both databases (RFC 7644 §3.7, D16): one commit for a circle, one batch for many
//! commits, and the outcome of one operation after the other, whoever else writes and whoever dies.

use std::sync::Arc;

use annals_domain::scim::bulk::{Method, plan};
use annals_domain::scim::dialect::{Client, Quirk};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::schema::Registry;
use annals_store::{Bulk, BulkOutcome};

use super::*;

/// What a client sends, and how it is read.
struct Sent {
    operations: Value,
    fail_on_errors: Option<u32>,
    key: Option<&'static str>,
    client: Client,
}

fn sent(operations: Value) -> Sent {
    Sent { operations, fail_on_errors: None, key: None, client: Profile::Generic.into() }
}

impl Sent {
    async fn to(self, store: &Store) -> Vec<BulkOutcome> {
        let registry = Registry::standard();
        let body = json!({
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:BulkRequest"],
            "failOnErrors": self.fail_on_errors, "Operations": self.operations,
        });
        let key = self.key.map(|key| Idempotency { key: key.into(), request: body.to_string().into_bytes() });
        let mut dialect = Dialect::new(self.client.clone());
        let plan = Arc::new(plan(&registry, body, 10_000, &mut dialect).unwrap());
        let bulk = Bulk {
            tenant: acme(),
            connection: Some(ConnectionId::new("idp").unwrap()),
            plan: plan.clone(),
            idempotency: key,
            deadline: None,
        };
        let prepare = |at: usize, ids: &[ResourceId]| {
            let operation = &plan.operations[at];
            let resolved = plan.resolve(&registry, at, ids, &dialect);
            let (Some((id, body)), Some(target)) = (resolved, &operation.target) else {
                return Err(operation
                    .refused
                    .clone()
                    .unwrap_or_else(|| ScimError::not_found("no such path")));
            };
            let (given, client) = (id.clone(), self.client.clone());
            let command = match operation.method {
                Method::Post => Command::Create { id, body, client },
                Method::Put => Command::Replace { id, body, client },
                Method::Patch => {
                    Command::Patch { id, operations: parse_request(&body, &mut dialect.clone())?, client }
                }
                Method::Delete => Command::Delete,
            };
            let mut request = request(&target.resource_type.name, &given, command);
            request.cause.bulk_index = u32::try_from(at).ok();
            Ok(request)
        };
        store.execute_bulk(bulk, prepare).await.unwrap()
    }
}

fn post(bulk_id: &str, name: &str) -> Value {
    json!({"method": "POST", "path": "/Users", "bulkId": bulk_id, "data": {"userName": name}})
}

fn post_group(bulk_id: &str, members: &[&str]) -> Value {
    let members: Vec<Value> = members.iter().map(|id| json!({"value": id})).collect();
    json!({"method": "POST", "path": "/Groups", "bulkId": bulk_id,
           "data": {"displayName": bulk_id, "members": members}})
}

fn change(id: &str, path: &str, value: Value) -> Value {
    let operations = json!([{"op": "replace", "path": path, "value": value}]);
    let schemas = ["urn:ietf:params:scim:api:messages:2.0:PatchOp"];
    json!({"method": "PATCH", "path": format!("/Users/{id}"), "data": {"schemas": schemas, "Operations": operations}})
}

/// The status of each operation; `-` for one that was not processed.
fn told(outcomes: &[BulkOutcome]) -> String {
    let one = |outcome: &BulkOutcome| match outcome {
        None => "-".to_owned(),
        Some(Ok(executed)) if executed.replayed => "again".to_owned(),
        Some(Ok(_)) => "ok".to_owned(),
        Some(Err(StoreError::Refused(error))) => error.status.to_string(),
        Some(Err(error)) => panic!("{error:?}"),
    };
    outcomes.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn id_of(outcomes: &[BulkOutcome], at: usize) -> ResourceId {
    outcomes[at].as_ref().unwrap().as_ref().unwrap().state.id.clone()
}

async fn head(store: &Store) -> i64 {
    store.head().await.unwrap().position
}

contract! {
    a_circle_is_one_commit
    a_circle_fails_as_one
    nothing_is_written_beyond_the_last_error_allowed
    many_operations_share_the_journals_batches
    operations_decided_at_once_keep_their_places
    conflicts_inside_a_chain_are_those_of_the_order
    two_bulks_and_single_changes_race
    a_repetition_goes_on_where_a_lost_process_stopped
    a_create_brings_inactive_users_back
}

/// BU-007: references in a circle are one commit, its events next to each other.
async fn a_circle_is_one_commit(f: Fixture) {
    let before = head(&f.store).await;
    let operations = json!([
        post_group("a", &["bulkId:b"]),
        post("u", "ines"),
        post_group("b", &["bulkId:c", "bulkId:u"]),
        post_group("c", &["bulkId:a"]),
    ]);
    let outcomes = sent(operations).to(&f.store).await;
    assert_eq!(told(&outcomes), "ok ok ok ok");
    let ids: Vec<ResourceId> = (0..4).map(|at| id_of(&outcomes, at)).collect();
    for (group, members) in [(0, vec![2]), (2, vec![3, 1]), (3, vec![0])] {
        let expected: BTreeSet<ResourceId> = members.into_iter().map(|at: usize| ids[at].clone()).collect();
        assert_eq!(member_ids(&f.store, &ids[group]).await, expected);
    }
    let events = f.store.read_events(before, 100).await.unwrap();
    let of_circle: Vec<i64> =
        events.iter().filter(|e| e.stream.id != ids[1]).map(|event| event.position).collect();
    let (first, last) = (of_circle[0], of_circle[of_circle.len() - 1]);
    assert_eq!(last - first + 1, of_circle.len() as i64, "nobody comes in between");
    for event in &events {
        let at = event.cause.bulk_index.unwrap() as usize;
        assert_eq!(event.stream.id, ids[at], "each event has the index of its own operation");
    }
    assert_sound(&f.store).await;
}

/// BU-010: of a circle nothing is left if one of it is refused, and the others go on.
async fn a_circle_fails_as_one(f: Fixture) {
    user(&f.store, "bo").await;
    let before = head(&f.store).await;
    let manager = |bulk_id: &str, name: &str, boss: &str| {
        let extension = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";
        let data = json!({"userName": name, extension: {"manager": {"value": boss}}});
        json!({"method": "POST", "path": "/Users", "bulkId": bulk_id, "data": data})
    };
    let operations = json!([
        manager("x", "xenia", "bulkId:y"),
        manager("y", "BO", "bulkId:x"),
        post("z", "zoe"),
        post_group("g", &["bulkId:x", "bulkId:z"]),
    ]);
    let outcomes = sent(operations).to(&f.store).await;
    assert_eq!(told(&outcomes), "409 409 ok 409");
    assert_eq!(head(&f.store).await, before + 1);
    assert_eq!(user(&f.store, "xenia").await.as_str().len(), 36, "her name is still free");
    assert_sound(&f.store).await;
}

/// BU-004
async fn nothing_is_written_beyond_the_last_error_allowed(f: Fixture) {
    user(&f.store, "bo").await;
    let operations = |prefix: &str| {
        json!([
            post("a", &format!("{prefix}1")),
            post("b", "BO"),
            post("c", &format!("{prefix}2")),
            {"method": "DELETE", "path": "/Users/nobody"},
            post("d", &format!("{prefix}3")),
        ])
    };
    for (allowed, expected, written) in [
        (Some(1), "ok 409 - - -", 1),
        (Some(2), "ok 409 ok 404 -", 2),
        (Some(3), "ok 409 ok 404 ok", 3),
        (None, "ok 409 ok 404 ok", 3),
    ] {
        let before = head(&f.store).await;
        let request = sent(operations(&format!("p{allowed:?}")));
        let outcomes = Sent { fail_on_errors: allowed, ..request }.to(&f.store).await;
        assert_eq!(told(&outcomes), expected, "{allowed:?}");
        assert_eq!(head(&f.store).await, before + written, "{allowed:?}");
    }
    assert_sound(&f.store).await;
}

async fn many_operations_share_the_journals_batches(f: Fixture) {
    let before = f.store.verify().await.unwrap().batches;
    let mut operations: Vec<Value> = (0..300).map(|n| post(&format!("u{n}"), &format!("user{n}"))).collect();
    operations.push(post_group("all", &["bulkId:u0", "bulkId:u299"]));
    let outcomes = sent(json!(operations)).to(&f.store).await;
    assert_eq!(told(&outcomes), ["ok"; 301].join(" "));
    let batches = f.store.verify().await.unwrap().batches - before;
    assert!(batches <= 3, "{batches} batches for 301 commits");
    assert_eq!(member_ids(&f.store, &id_of(&outcomes, 300)).await.len(), 2);
    assert_sound(&f.store).await;
}

/// Creates are decided and sealed side by side: what comes of each stands at its place, and what is refused
/// takes along only what refers to it.
async fn operations_decided_at_once_keep_their_places(f: Fixture) {
    let (invalid, taken) = (|n: usize| n % 7 == 3, |n: usize| n % 11 == 5);
    let name = |n: usize| if taken(n) { format!("USER{}", n - 1) } else { format!("user{n}") };
    let mut operations: Vec<Value> = (0..200).map(|n| post(&format!("u{n}"), &name(n))).collect();
    for n in (0..200).filter(|n| invalid(*n)) {
        operations[n]["data"]["active"] = json!("perhaps");
    }
    operations.push(post_group("good", &["bulkId:u0", "bulkId:u198"]));
    operations.push(post_group("bad", &["bulkId:u0", "bulkId:u3"]));
    let outcomes = sent(json!(operations)).to(&f.store).await;
    let expected = |n: usize| match n {
        _ if invalid(n) => "400",
        // The name of one that was refused is free.
        _ if taken(n) && !invalid(n - 1) => "409",
        _ => "ok",
    };
    let mut all: Vec<&str> = (0..200).map(expected).collect();
    all.extend(["ok", "409"]);
    assert_eq!(told(&outcomes), all.join(" "));
    for n in (0..200).filter(|n| expected(*n) == "ok") {
        let state = f.store.state(&acme(), &id_of(&outcomes, n)).await.unwrap().unwrap();
        let document = serde_json::to_value(state.document().unwrap()).unwrap();
        assert_eq!(document["userName"], json!(name(n)), "{document}");
    }
    assert_eq!(member_ids(&f.store, &id_of(&outcomes, 200)).await.len(), 2);
    assert_sound(&f.store).await;
}

/// BU-009: as if each operation were a request of its own, in the given order.
async fn conflicts_inside_a_chain_are_those_of_the_order(f: Fixture) {
    let ines = user(&f.store, "ines").await;
    let operations = json!([
        post("a", "bo"),
        post("b", "BO"),
        change(ines.as_str(), "userName", json!("bo")),
        change(ines.as_str(), "title", json!("One")),
        change(ines.as_str(), "title", json!("One")),
        {"method": "DELETE", "path": "/Users/bulkId:a"},
        change(ines.as_str(), "userName", json!("bo")),
        post("c", "ines"),
        {"method": "DELETE", "path": format!("/Users/{ines}")},
        change(ines.as_str(), "title", json!("Three")),
        post("d", "bo"),
    ]);
    let outcomes = sent(operations).to(&f.store).await;
    assert_eq!(told(&outcomes), "ok 409 409 ok ok ok ok ok ok 404 ok");
    let version = |at: usize| outcomes[at].as_ref().unwrap().as_ref().unwrap().state.version;
    assert_eq!((version(3), version(4), version(6)), (2, 2, 3));
    assert_sound(&f.store).await;
}

/// Two requests over the same names and the same user, and single changes between them, from two processes:
/// every change of the user is there, and each name has one owner.
async fn two_bulks_and_single_changes_race(f: Fixture) {
    let ines = user(&f.store, "ines").await;
    let operations = |prefix: &str| {
        let pairs = (0..25).flat_map(|n| {
            [
                post(&format!("u{n}"), &format!("shared{n}")),
                change(ines.as_str(), "title", json!(format!("{prefix}{n}"))),
            ]
        });
        json!(pairs.collect::<Vec<_>>())
    };
    let other = f.another().await;
    let single = async {
        for n in 0..25 {
            let title = json!([{"op": "replace", "path": "nickName", "value": format!("n{n}")}]);
            assert_eq!(status(patch(&f.store, "User", &ines, title).await), 200);
        }
    };
    let (left, right, ()) =
        tokio::join!(sent(operations("l")).to(&f.store), sent(operations("r")).to(&other), single);
    for at in 0..25 {
        let (names, titles) = (2 * at, 2 * at + 1);
        let mut owners = [told(&left[names..titles]), told(&right[names..titles])];
        owners.sort();
        assert_eq!(owners, ["409", "ok"], "shared{at}");
        assert_eq!([told(&left[titles..titles + 1]), told(&right[titles..titles + 1])], ["ok", "ok"]);
    }
    assert_eq!(f.store.state(&acme(), &ines).await.unwrap().unwrap().version, 1 + 3 * 25);
    assert_sound(&f.store).await;
}

/// The process dies somewhere in a request with an idempotency key; the client repeats it at another one.
async fn a_repetition_goes_on_where_a_lost_process_stopped(f: Fixture) {
    let request = || {
        let mut operations: Vec<Value> =
            (0..40).map(|n| post(&format!("u{n}"), &format!("user{n}"))).collect();
        // Each waits for the one before: many chains, so that there is a middle to die in.
        for n in 0..40 {
            let path = format!("/Users/bulkId:u{n}");
            operations.push(json!({"method": "DELETE", "path": path}));
            operations.push(json!({"method": "DELETE", "path": path}));
        }
        operations.push(post_group("x", &["bulkId:y"]));
        operations.push(post_group("y", &["bulkId:x"]));
        Sent { key: Some("k1"), ..sent(json!(operations)) }
    };
    let before = head(&f.store).await;
    let doomed = f.another().await;
    let task = tokio::spawn(async move { request().to(&doomed).await });
    while head(&f.store).await < before + 41 && !task.is_finished() {
        tokio::task::yield_now().await;
    }
    task.abort();
    let _ = task.await;
    let first = request().to(&f.store).await;
    let written = head(&f.store).await;
    assert_eq!(written - before, 40 + 40 + 4, "each of it once");
    let again = request().to(&f.store).await;
    assert_eq!(head(&f.store).await, written);
    // The second deletion of each finds nothing, at any repetition.
    for (at, outcome) in again.iter().enumerate() {
        let is_second = (40..120).contains(&at) && at % 2 == 1;
        assert_eq!(told(std::slice::from_ref(outcome)), if is_second { "404" } else { "again" }, "{at}");
    }
    assert_eq!((id_of(&first, 120), id_of(&first, 121)), (id_of(&again, 120), id_of(&again, 121)));
    assert_sound(&f.store).await;
}

/// `reactivate-on-create`: also somebody whom an operation before deactivated; references lead to who came back.
async fn a_create_brings_inactive_users_back(f: Fixture) {
    let (ines, max) = (user(&f.store, "ines").await, user(&f.store, "max").await);
    let suspend = json!([{"op": "replace", "path": "active", "value": false}]);
    patch(&f.store, "User", &ines, suspend).await.unwrap();
    let operations = || {
        json!([
            post("i", "INES"),
            change(max.as_str(), "active", json!(false)),
            post("m", "max"),
            post("active", "Max"),
            post("n", "new"),
            post_group("g", &["bulkId:i", "bulkId:m"]),
        ])
    };
    let client = Client::from(Profile::Generic).with(Quirk::ReactivateOnCreate, true);
    let outcomes = Sent { client: client.clone(), key: Some("k"), ..sent(operations()) }.to(&f.store).await;
    assert_eq!(told(&outcomes), "ok ok ok 409 ok ok");
    assert_eq!((id_of(&outcomes, 0), id_of(&outcomes, 2)), (ines.clone(), max.clone()));
    assert_eq!(member_ids(&f.store, &id_of(&outcomes, 5)).await, BTreeSet::from([ines.clone(), max.clone()]));
    let state = f.store.state(&acme(), &ines).await.unwrap().unwrap();
    assert_eq!(state.document().unwrap().0["active"], json!(true));
    let before = head(&f.store).await;
    let again = Sent { client, key: Some("k"), ..sent(operations()) }.to(&f.store).await;
    assert_eq!(told(&again), "again again again 409 again again");
    assert_eq!((id_of(&again, 0), head(&f.store).await), (ines, before));
    assert_sound(&f.store).await;
}

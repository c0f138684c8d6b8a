//! `POST /Bulk`: whole requests and whole answers (requirements §2.14, X26 to X28).

use annals_api::ApiOptions;
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Scope, TenantSettings};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::world::{Answer, ENT, ERROR, Fixture, GROUP, PATCH, USER, World, options};

const REQUEST: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
const RESPONSE: &str = "urn:ietf:params:scim:api:messages:2.0:BulkResponse";
const BASE: &str = "https://scim.test/scim/v2";

async fn bulk(world: &World, operations: Value) -> Answer {
    world.post("/Bulk", json!({"schemas": [REQUEST], "Operations": operations})).await
}

fn user(bulk_id: &str, name: &str) -> Value {
    let data = json!({"schemas": [USER], "userName": name});
    json!({"method": "POST", "path": "/Users", "bulkId": bulk_id, "data": data})
}

fn group(bulk_id: &str, name: &str, members: &[&str]) -> Value {
    let members: Vec<Value> = members.iter().map(|m| json!({"value": m})).collect();
    let data = json!({"schemas": [GROUP], "displayName": name, "members": members});
    json!({"method": "POST", "path": "/Groups", "bulkId": bulk_id, "data": data})
}

fn patch(path: &str, operations: Value) -> Value {
    json!({"method": "PATCH", "path": path, "data": {"schemas": [PATCH], "Operations": operations}})
}

fn error(status: u16, scim_type: &str, detail: &str) -> Value {
    let mut body = json!({"schemas": [ERROR], "status": status.to_string(), "detail": detail});
    if !scim_type.is_empty() {
        body["scimType"] = json!(scim_type);
    }
    body
}

/// The statuses of the operations that were processed.
fn statuses(answer: &Answer) -> Vec<&str> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let operations = answer.body["Operations"].as_array().expect("operations");
    operations.iter().map(|entry| entry["status"].as_str().expect("a string")).collect()
}

fn detail(answer: &Answer, at: usize) -> &str {
    answer.body["Operations"][at]["response"]["detail"].as_str().unwrap_or_default()
}

/// The id in the location of an entry.
fn id(answer: &Answer, at: usize) -> String {
    let location = answer.body["Operations"][at]["location"].as_str().expect("a location");
    location.rsplit('/').next().expect("an id").to_owned()
}

/// BU-003, BU-006, BU-007: the example of the requirements, answer and all.
#[tokio::test]
async fn a_forward_reference_and_a_failure() {
    let world = World::new().await;
    let body = json!({"schemas": [REQUEST], "failOnErrors": 2, "Operations": [
        {"method": "POST", "path": "/Groups", "bulkId": "g1", "data": {"schemas": [GROUP],
         "displayName": "Night shift", "members": [{"value": "bulkId:u1", "type": "User"}]}},
        user("u1", "mara"),
        {"method": "DELETE", "path": "/Users/nope"},
    ]});
    let answer = world.post("/Bulk", body).await;
    let (g1, u1) = (id(&answer, 0), id(&answer, 1));
    assert_eq!(answer.header("content-type"), "application/scim+json");
    let expected = json!({"schemas": [RESPONSE], "Operations": [
        {"method": "POST", "bulkId": "g1", "location": format!("{BASE}/Groups/{g1}"), "version": "W/\"2\"",
         "status": "201"},
        {"method": "POST", "bulkId": "u1", "location": format!("{BASE}/Users/{u1}"), "version": "W/\"1\"",
         "status": "201"},
        {"method": "DELETE", "location": format!("{BASE}/Users/nope"), "status": "404",
         "response": error(404, "", "User nope not found")},
    ]});
    assert_eq!((answer.status.as_u16(), &answer.body), (200, &expected));
    assert_eq!(world.members(&g1).await, [u1]);
}

/// BU-001, BU-003: every method, in one request, and what it leaves.
#[tokio::test]
async fn every_method() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let replaced = json!({"schemas": [USER], "userName": "celik", "displayName": "Çelik"});
    let answer = bulk(
        &world,
        json!([
            user("new", "dora"),
            {"method": "put", "path": format!("Users/{}", f.u3), "bulkId": "p", "data": replaced},
            patch(&format!("/v2/Users/{}", f.u1), json!([{"op": "replace", "path": "title", "value": "Chief"}])),
            patch(&format!("/Groups/{}", f.g1), json!([{"op": "add", "path": "members", "value": [{"value": f.u3}]}])),
            {"method": "DELETE", "path": format!("/Users/{}", f.u2)},
        ]),
    )
    .await;
    let dora = id(&answer, 0);
    let location = |path: &str, id: &str| format!("{BASE}/{path}/{id}");
    let expected = json!({"schemas": [RESPONSE], "Operations": [
        {"method": "POST", "bulkId": "new", "location": location("Users", &dora), "version": "W/\"1\"", "status": "201"},
        {"method": "PUT", "bulkId": "p", "location": location("Users", &f.u3), "version": "W/\"2\"", "status": "200"},
        {"method": "PATCH", "location": location("Users", &f.u1), "version": "W/\"3\"", "status": "200"},
        {"method": "PATCH", "location": location("Groups", &f.g1), "version": "W/\"3\"", "status": "204"},
        {"method": "DELETE", "location": location("Users", &f.u2), "status": "204"},
    ]});
    assert_eq!((answer.status.as_u16(), &answer.body), (200, &expected));
    assert_eq!(world.get(&format!("/Users/{}", f.u3)).await.body["displayName"], "Çelik");
    assert_eq!(world.get(&format!("/Users/{}", f.u1)).await.body["title"], "Chief");
    world.get(&format!("/Users/{}", f.u2)).await.is_error(404, "");
    let mut members = world.members(&f.g1).await;
    members.sort();
    let mut expected = [f.u1, f.u3];
    expected.sort();
    assert_eq!(members, expected);
}

/// BU-011, BU-004, BU-008: a malformed request changes nothing at all.
#[tokio::test]
async fn malformed_requests_are_refused_as_a_whole() {
    let world = World::new().await;
    let events = world.events().await;
    let two = [user("a", "dora"), user("a", "emil")];
    let with = |extra: Value| json!({"schemas": [REQUEST], "failOnErrors": extra, "Operations": [user("a", "dora")]});
    let cases = [
        (json!({"schemas": [REQUEST], "Operations": two}), "invalidSyntax"),
        (json!({"schemas": [REQUEST], "Operations": []}), "invalidSyntax"),
        (json!({"schemas": [REQUEST]}), "invalidSyntax"),
        (
            json!({"schemas": [REQUEST], "Operations": [user("a", "dora"), {"method": "GET", "path": "/Users"}]}),
            "invalidSyntax",
        ),
        (with(json!(0)), "invalidValue"),
        (with(json!(-3)), "invalidValue"),
    ];
    for (body, scim_type) in cases {
        world.post("/Bulk", body).await.is_error(400, scim_type);
    }
    world.call("POST", "/Bulk").raw("{").send().await.is_error(400, "invalidSyntax");
    world.call("GET", "/Bulk").send().await.is_error(405, "");
    assert_eq!(world.events().await, events);
}

/// BU-005, X26: limits are checked before anything is carried out, and named.
#[tokio::test]
async fn limits_are_named() {
    let limits = ApiOptions { bulk_operations_max: 3, bulk_body_bytes_max: 2_000, ..options() };
    let world = World::with(Profile::Generic, TenantSettings::default(), limits).await;
    let config = world.get("/ServiceProviderConfig").await.body["bulk"].clone();
    assert_eq!(config, json!({"supported": true, "maxOperations": 3, "maxPayloadSize": 2_000}));
    let events = world.events().await;
    let many: Vec<Value> = (0..4).map(|n| user(&format!("u{n}"), &format!("user{n}"))).collect();
    let answer = bulk(&world, json!(many)).await;
    answer.is_error(413, "");
    assert_eq!(answer.detail(), "4 operations are more than maxOperations (3)");
    // Too long, and not even JSON: size comes before parsing.
    let answer = world.call("POST", "/Bulk").raw("x".repeat(2_001)).send().await;
    answer.is_error(413, "");
    assert_eq!(answer.detail(), "the body is larger than 2000 bytes (maxPayloadSize)");
    assert_eq!(world.events().await, events);
    assert_eq!(statuses(&bulk(&world, json!(many[..3])).await), ["201", "201", "201"]);
}

/// BU-011, EP-003: switched off.
/// CFG-001: what is not advertised answers 501.
#[tokio::test]
async fn bulk_can_be_off() {
    let world = World::with(
        Profile::Generic,
        TenantSettings::default(),
        ApiOptions { bulk_operations_max: 0, ..options() },
    )
    .await;
    assert_eq!(world.get("/ServiceProviderConfig").await.body["bulk"]["supported"], false);
    bulk(&world, json!([user("a", "dora")])).await.is_error(501, "");
}

/// BU-010: authorisation as for single requests.
#[tokio::test]
async fn bulk_needs_the_scope_to_write() {
    let world = World::new().await;
    let body = json!({"schemas": [REQUEST], "Operations": [user("a", "dora")]});
    let reader = world.token_with(vec![Scope::Read], None).await;
    world.call("POST", "/Bulk").token(&reader).json(&body).send().await.is_error(403, "");
    world.call("POST", "/Bulk").anonymous().json(&body).send().await.is_error(401, "");
    // Another tenant's resources do not exist.
    let foreign = world.other_tenant("other").await;
    let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
    let body =
        json!({"schemas": [REQUEST], "Operations": [{"method": "DELETE", "path": format!("/Users/{id}")}]});
    let answer = world.call("POST", "/Bulk").token(&foreign).json(&body).send().await;
    assert_eq!(statuses(&answer), ["404"]);
    let answer = world.call("POST", "/t/acme/scim/v2/Bulk").json(&body).send().await;
    assert_eq!(statuses(&answer), ["204"]);
    let location = format!("https://scim.test/t/acme/scim/v2/Users/{id}");
    assert_eq!(answer.body["Operations"][0]["location"], location.as_str());
}

/// BU-004, X27: with `failOnErrors` nothing after the last error allowed is done or listed.
#[tokio::test]
async fn errors_stop_the_request_where_the_client_says() {
    let world = World::new().await;
    world.user("bo").await;
    let run = async |fail_on_errors: Value, prefix: &str| {
        let name = |n: u32| format!("{prefix}{n}");
        let body = json!({"schemas": [REQUEST], "failOnErrors": fail_on_errors, "Operations": [
            user("a", "BO"),
            user("b", &name(1)),
            {"method": "DELETE", "path": "/Users/nope"},
            user("c", &name(2)),
            patch("/Bulk", json!([])),
            user("d", &name(3)),
        ]});
        let answer = world.post("/Bulk", body).await;
        let mut created = 0;
        for n in 1..=3 {
            let found = world.filter("/Users", &format!("userName eq \"{}\"", name(n))).await;
            created += found.ids().len();
        }
        (statuses(&answer).join(" "), created)
    };
    assert_eq!(run(json!(1), "p").await, ("409".into(), 0));
    assert_eq!(run(json!(2), "q").await, ("409 201 404".into(), 1));
    assert_eq!(run(json!(3), "r").await, ("409 201 404 201 400".into(), 2));
    assert_eq!(run(json!(4), "s").await, ("409 201 404 201 400 201".into(), 3));
    assert_eq!(run(json!(null), "t").await, ("409 201 404 201 400 201".into(), 3));
}

/// BU-007, X28: two groups that are members of each other, two users that are each other's manager.
#[tokio::test]
async fn circles_are_resolved() {
    let world = World::new().await;
    let manager = |bulk_id: &str, name: &str, boss: &str| {
        let data = json!({"schemas": [USER, ENT], "userName": name, ENT: {"manager": {"value": boss}}});
        json!({"method": "POST", "path": "/Users", "bulkId": bulk_id, "data": data})
    };
    let answer = bulk(
        &world,
        json!([
            group("a", "A", &["bulkId:b"]),
            manager("x", "xenia", "bulkId:y"),
            group("b", "B", &["bulkId:a"]),
            manager("y", "yves", "bulkId:x"),
        ]),
    )
    .await;
    assert_eq!(statuses(&answer), ["201", "201", "201", "201"]);
    let ids: Vec<String> = (0..4).map(|at| id(&answer, at)).collect();
    assert_eq!(world.members(&ids[0]).await, [ids[2].clone()]);
    assert_eq!(world.members(&ids[2]).await, [ids[0].clone()]);
    for (user, boss) in [(1, 3), (3, 1)] {
        let shown = world.get(&format!("/Users/{}", ids[user])).await.body;
        assert_eq!(shown[ENT]["manager"]["value"], ids[boss].as_str());
    }
    // D8: each event has the index of its own operation, those of one commit too.
    let events = world.store.read_events(0, 1_000).await.unwrap();
    for (at, id) in ids.iter().enumerate() {
        let of: Vec<_> = events.iter().filter(|e| e.stream.id.as_str() == id).collect();
        assert!(!of.is_empty());
        for event in of {
            assert_eq!(event.cause.bulk_index, u32::try_from(at).ok());
            assert_eq!(event.cause.operation, "create");
        }
    }
}

/// BU-010: the operations of a circle fail together, and only they.
#[tokio::test]
async fn a_circle_fails_as_one() {
    let world = World::new().await;
    world.user("yves").await;
    let events = world.events().await;
    let manager = |bulk_id: &str, name: &str, boss: &str| {
        let data = json!({"schemas": [USER, ENT], "userName": name, ENT: {"manager": {"value": boss}}});
        json!({"method": "POST", "path": "/Users", "bulkId": bulk_id, "data": data})
    };
    // Taken by another user; by another of the circle; a body that is wrong.
    for (name, expected) in [("yves", ["409", "409"]), ("Xenia", ["409", "409"]), ("", ["409", "400"])] {
        let operations = json!([manager("x", "xenia", "bulkId:y"), manager("y", name, "bulkId:x")]);
        let answer = bulk(&world, operations).await;
        assert_eq!(statuses(&answer), expected, "{name}: {}", answer.body);
        assert_eq!(detail(&answer, 0), "it is in one circle of references with bulkId:y, which failed");
        assert!(answer.body["Operations"][0].get("location").is_none());
    }
    assert_eq!(world.events().await, events);
    let operations =
        json!([manager("x", "xenia", "bulkId:y"), user("z", "zoe"), manager("y", "yves", "bulkId:x")]);
    assert_eq!(statuses(&bulk(&world, operations).await), ["409", "201", "409"]);
}

/// BU-008
#[tokio::test]
async fn references_to_nothing_and_to_what_failed() {
    let world = World::new().await;
    world.user("bo").await;
    let answer = bulk(
        &world,
        json!([
            group("g1", "unknown", &["bulkId:nobody"]),
            group("g2", "failed", &["bulkId:u"]),
            user("u", "bo"),
            patch("/Groups/bulkId:g2", json!([{"op": "replace", "path": "displayName", "value": "x"}])),
            group("g3", "fine", &[]),
        ]),
    )
    .await;
    let entries = answer.body["Operations"].clone();
    assert_eq!(
        entries[0],
        json!({"method": "POST", "bulkId": "g1", "status": "400",
               "response": error(400, "invalidValue", "bulkId:nobody: no POST of this request has this bulkId")})
    );
    assert_eq!(
        entries[1],
        json!({"method": "POST", "bulkId": "g2", "status": "409",
               "response": error(409, "", "it refers to bulkId:u, which failed")})
    );
    assert_eq!(
        entries[2],
        json!({"method": "POST", "bulkId": "u", "status": "409",
               "response": error(409, "uniqueness", "userName: the value is in use by another User")})
    );
    assert_eq!(
        entries[3],
        json!({"method": "PATCH", "status": "409",
               "response": error(409, "", "it refers to bulkId:g2, which failed")})
    );
    assert_eq!(statuses(&answer), ["400", "409", "409", "409", "201"]);
}

/// BU-009: each operation sees what the ones before it did, as if each were a request of its own.
#[tokio::test]
async fn the_given_order_counts() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let u1 = format!("/Users/{}", f.u1);
    let title = |value: &str| patch(&u1, json!([{"op": "replace", "path": "title", "value": value}]));
    let answer = bulk(
        &world,
        json!([
            title("One"),
            title("Two"),
            // Nothing changes: the version stays (PA-011).
            title("Two"),
            // A name that is taken, then free, then taken again.
            user("a", "bo"),
            {"method": "DELETE", "path": format!("/Users/{}", f.u2)},
            user("b", "bo"),
            user("c", "BO"),
            // Gone.
            patch(&format!("/Users/{}", f.u2), json!([{"op": "replace", "path": "title", "value": "x"}])),
            // Changed and deleted in the request that created it.
            patch("/Users/bulkId:b", json!([{"op": "replace", "path": "userName", "value": "bea"}])),
            user("d", "bo"),
            {"method": "DELETE", "path": "/Users/bulkId:d"},
            {"method": "DELETE", "path": "/Users/bulkId:d"},
            // The group that lost its member by the deletion.
            patch(&format!("/Groups/{}", f.g1), json!([{"op": "replace", "path": "displayName", "value": "Op"}])),
        ]),
    )
    .await;
    let expected =
        ["200", "200", "200", "409", "204", "201", "409", "404", "200", "201", "204", "404", "204"];
    assert_eq!(statuses(&answer), expected, "{}", answer.body);
    let versions: Vec<&Value> =
        [0, 1, 2, 8].iter().map(|at| &answer.body["Operations"][*at]["version"]).collect();
    assert_eq!(versions, ["W/\"3\"", "W/\"4\"", "W/\"4\"", "W/\"2\""]);
    assert_eq!(world.get(&u1).await.body["title"], "Two");
    assert_eq!(world.get(&u1).await.body["meta"]["version"], "W/\"4\"");
    assert_eq!(world.filter("/Users", "userName eq \"bea\"").await.ids(), [id(&answer, 5)]);
    assert!(world.filter("/Users", "userName eq \"bo\"").await.ids().is_empty());
    let ops = world.get(&format!("/Groups/{}", f.g1)).await;
    assert_eq!((&ops.body["displayName"], ops.header("etag")), (&json!("Op"), "W/\"4\""));
}

/// BU-001: `version` is If-Match, in every spelling that header may have.
#[tokio::test]
async fn versions_are_checked() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let change = |version: &str, title: &str| {
        let mut operation =
            patch(&format!("/Users/{}", f.u1), json!([{"op": "replace", "path": "title", "value": title}]));
        operation["version"] = json!(version);
        operation
    };
    let answer = bulk(
        &world,
        json!([
            change("W/\"1\"", "stale"),
            change("W/\"2\"", "fresh"),
            change("W/\"2\"", "stale again"),
            change("3", "bare"),
            change("*", "any"),
            {"method": "DELETE", "path": format!("/Users/{}", f.u2), "version": "W/\"9\""},
        ]),
    )
    .await;
    assert_eq!(statuses(&answer), ["412", "200", "412", "200", "200", "412"]);
    assert_eq!(world.get(&format!("/Users/{}", f.u1)).await.body["title"], "any");
    world.get(&format!("/Users/{}", f.u2)).await.is(200);
}

/// BU-006: PATCH of a group of the same request, by its path, with members of the same request.
#[tokio::test]
async fn a_new_group_is_patched_by_its_bulk_id() {
    let world = World::new().await;
    let answer = bulk(
        &world,
        json!([
            group("g", "Crew", &["bulkId:a", "bulkId:b"]),
            user("a", "anna"),
            user("b", "bela"),
            patch("/Groups/bulkId:g", json!([
                {"op": "remove", "path": "members[value eq \"bulkId:a\"]"},
                {"op": "add", "path": "members", "value": [{"value": "bulkId:c", "$ref": "/Users/bulkId:c"}]}])),
            user("c", "cleo"),
        ]),
    )
    .await;
    assert_eq!(statuses(&answer), ["201", "201", "201", "204", "201"]);
    assert_eq!(id(&answer, 3), id(&answer, 0));
    let mut members = world.members(&id(&answer, 0)).await;
    members.sort();
    let mut expected = [id(&answer, 2), id(&answer, 4)];
    expected.sort();
    assert_eq!(members, expected);
}

/// BU-010: the client's dialect holds for each operation, and is noted in each event.
#[tokio::test]
async fn dialects_hold_within_bulk() {
    let entra = World::of(Profile::Entra).await;
    let entra_user = entra.user("bo").await["id"].as_str().unwrap().to_owned();
    let operation = patch(
        &format!("/Users/{entra_user}"),
        json!([{"op": "Replace", "path": "active", "value": "False"}]),
    );
    assert_eq!(statuses(&bulk(&entra, json!([operation])).await), ["200"]);
    let events = entra.store.read_events(0, 1_000).await.unwrap();
    let cause = &events.last().unwrap().cause;
    assert_eq!(cause.bulk_index, Some(0));
    assert!(
        ["op-case", "string-boolean"].iter().all(|q| cause.quirks.iter().any(|c| c == q)),
        "{:?}",
        cause.quirks
    );
    let strict = World::of(Profile::Strict).await;
    let strict_user = strict.user("bo").await["id"].as_str().unwrap().to_owned();
    let operation = patch(
        &format!("/Users/{strict_user}"),
        json!([{"op": "replace", "path": "active", "value": "False"}]),
    );
    let answer = bulk(&strict, json!([operation, user("a", "dora")])).await;
    assert_eq!(statuses(&answer), ["400", "201"]);
    assert_eq!(answer.body["Operations"][0]["response"]["scimType"], "invalidValue");
}

/// A repeated request with `Idempotency-Key` is not carried out twice: each operation replays.
#[tokio::test]
async fn a_repeated_bulk_is_not_carried_out_twice() {
    let world = World::new().await;
    world.user("bo").await;
    let body = json!({"schemas": [REQUEST], "Operations": [
        group("g", "Crew", &["bulkId:a", "bulkId:b"]),
        user("a", "anna"),
        user("taken", "bo"),
        group("x", "X", &["bulkId:y"]),
        user("b", "bela"),
        group("y", "Y", &["bulkId:x"]),
        patch("/Users/bulkId:a", json!([{"op": "add", "path": "emails", "value": [{"value": "a@x.test"}]}])),
    ]});
    let send = async |key: &str, body: &Value| {
        world.call("POST", "/Bulk").header("idempotency-key", key).json(body).send().await
    };
    let first = send("k1", &body).await;
    assert_eq!(statuses(&first), ["201", "201", "409", "201", "201", "201", "200"]);
    assert_eq!(first.header("idempotency-replayed"), "");
    let events = world.events().await;
    let again = send("k1", &body).await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(world.events().await, events);
    // A replayed create shows the resource as it is now, which its PATCH has changed.
    let mut expected = first.body.clone();
    expected["Operations"][1]["version"] = json!("W/\"2\"");
    assert_eq!(again.body, expected);
    // What failed may succeed later, and only that is done.
    let bo = world.filter("/Users", "userName eq \"bo\"").await.ids()[0].clone();
    world.delete(&format!("/Users/{bo}")).await.is(204);
    let events = world.events().await;
    let later = send("k1", &body).await;
    assert_eq!(statuses(&later), ["201", "201", "201", "201", "201", "201", "200"]);
    assert_eq!(world.events().await, events + 1);
    assert_eq!(id(&later, 0), id(&first, 0));
    // The key with another body.
    let other = json!({"schemas": [REQUEST], "Operations": [user("z", "zoe")]});
    send("k1", &other).await.is_error(422, "");
    // Deleted since.
    world.delete(&format!("/Users/{}", id(&first, 4))).await.is(204);
    assert_eq!(statuses(&send("k1", &body).await)[4], "404");
}

/// Parallel repetitions with one key come to one set of resources.
#[tokio::test]
async fn parallel_repetitions_of_a_bulk_are_one() {
    let world = World::new().await;
    let mut operations: Vec<Value> = (0..40).map(|n| user(&format!("u{n}"), &format!("user{n}"))).collect();
    operations.push(group("g", "All", &["bulkId:u0", "bulkId:u39"]));
    let body = json!({"schemas": [REQUEST], "Operations": operations});
    let send = || world.call("POST", "/Bulk").header("idempotency-key", "k").json(&body).send();
    let answers = join_all((0..4).map(|_| send())).await;
    for answer in &answers {
        assert_eq!(statuses(answer), vec!["201"; 41], "{}", answer.body);
        assert_eq!(answer.body, answers[0].body);
    }
    // One user's event each, and two of the group.
    let head = world.events().await;
    let events = world.store.read_events(0, 1_000).await.unwrap();
    assert_eq!(events.iter().filter(|e| e.cause.bulk_index.is_some()).count(), 42);
    assert_eq!(i64::try_from(events.len()).unwrap(), head);
}

/// Two different bulk requests at the same time, about the same names, groups and members.
#[tokio::test]
async fn two_bulks_race() {
    let world = World::new().await;
    let shared = world.group("Shared", &[]).await;
    let path = format!("/Groups/{shared}");
    let operations = |prefix: &str| {
        let mut operations = Vec::new();
        for n in 0..30 {
            let (own, common) = (format!("{prefix}{n}"), format!("both{n}"));
            operations.push(user(&format!("own{n}"), &own));
            operations.push(user(&format!("common{n}"), &common));
            let member =
                json!([{"op": "add", "path": "members", "value": [{"value": format!("bulkId:own{n}")}]}]);
            operations.push(patch(&path, member));
            let rename = json!([{"op": "replace", "path": "displayName", "value": format!("{prefix}{n}")}]);
            operations.push(patch(&path, rename));
        }
        json!(operations)
    };
    let (left, right) = tokio::join!(bulk(&world, operations("l")), bulk(&world, operations("r")));
    let (left_statuses, right_statuses) = (statuses(&left), statuses(&right));
    for n in 0..30 {
        let at = 4 * n;
        assert_eq!((left_statuses[at], right_statuses[at]), ("201", "201"));
        let mut common = [left_statuses[at + 1], right_statuses[at + 1]];
        common.sort();
        assert_eq!(common, ["201", "409"], "one of the two gets the name");
        for statuses in [&left_statuses, &right_statuses] {
            assert_eq!((statuses[at + 2], statuses[at + 3]), ("204", "204"));
        }
    }
    assert_eq!(world.members(&shared).await.len(), 60, "no member is lost");
    let name = world.get(&path).await.body["displayName"].as_str().unwrap().to_owned();
    assert!(["l29", "r29"].contains(&name.as_str()), "the last of one of them: {name}");
}

/// A thousand creates are one request.
#[tokio::test]
async fn a_thousand_users_at_once() {
    let world = World::new().await;
    let operations: Vec<Value> = (0..999).map(|n| user(&format!("u{n}"), &format!("user{n}"))).collect();
    let members: Vec<String> = (0..999).map(|n| format!("bulkId:u{n}")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let mut all = vec![group("g", "Everybody", &members)];
    all.extend(operations);
    let answer = bulk(&world, json!(all)).await;
    assert_eq!(statuses(&answer), vec!["201"; 1_000]);
    assert_eq!(world.members(&id(&answer, 0)).await.len(), 999);
}

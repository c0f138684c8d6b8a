//! Cases of scim-requirements §7 to the letter, where their numbers matter: versions as in the fixture there
//! (u1 is at 5), a thousand operations, five parallel requests.

use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::TenantSettings;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::world::{ENT, Fixture, GROUP, PATCH, USER, World, options};

const BULK: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";

/// The fixture with u1 at version 5, as it stands in §7.1.
async fn fixture(world: &World) -> Fixture {
    let f = Fixture::in_world(world).await;
    for name in ["Anna", "Anna B.", "Anna Berg"] {
        let rename = json!([{"op": "replace", "path": "displayName", "value": name}]);
        world.patch(&format!("/Users/{}", f.u1), rename).await.is(200);
    }
    f
}

fn replace(path: &str, value: Value) -> Value {
    json!({"schemas": [PATCH], "Operations": [{"op": "replace", "path": path, "value": value}]})
}

#[tokio::test]
async fn p01_p56_p57_versions() {
    let world = World::new().await;
    let f = fixture(&world).await;
    let path = format!("/Users/{}", f.u1);
    let before = world.get(&path).await;
    assert_eq!(before.header("etag"), "W/\"5\"");
    let title = replace("title", json!("X"));
    let stale = world.call("PATCH", &path).header("if-match", "W/\"4\"").json(&title).send().await;
    stale.is_error(412, "");
    assert_eq!(world.get(&path).await.body, before.body);
    let body = replace("active", json!(false));
    let changed = world.call("PATCH", &path).header("if-match", "W/\"5\"").json(&body).send().await;
    assert_eq!((&changed.is(200).body["active"], changed.header("etag")), (&json!(false), "W/\"6\""));
    assert_eq!(changed.body["meta"]["version"], "W/\"6\"");
}

#[tokio::test]
async fn p55_a_projected_patch_answers_exactly_that() {
    let world = World::new().await;
    let f = fixture(&world).await;
    let path = |id: &str| format!("/Users/{id}?attributes=userName");
    let u1 = json!({"schemas": [USER, ENT], "id": f.u1, "userName": "Anna.Berg@Example.com"});
    for body in [replace("title", json!("X")), replace("title", json!("X")), replace("active", json!(false))]
    {
        let answer = world.call("PATCH", &path(&f.u1)).json(&body).send().await;
        assert_eq!(answer.is(200).body, u1);
    }
    let answer = world.call("PATCH", &path(&f.u2)).json(&replace("title", json!("X"))).send().await;
    assert_eq!(answer.is(200).body, json!({"schemas": [USER], "id": f.u2, "userName": "bo"}));
}

#[tokio::test]
async fn g22_a_name_in_use() {
    let settings = TenantSettings { group_name_unique: true, ..TenantSettings::default() };
    let world = World::with(Profile::Generic, settings, options()).await;
    let f = fixture(&world).await;
    let body = replace("displayName", json!("OPS-ADMINS"));
    let answer = world.call("PATCH", &format!("/Groups/{}", f.g1)).json(&body).send().await;
    answer.is_error(409, "uniqueness");
}

#[tokio::test]
async fn x26_a_thousand_and_one_operations() {
    let world = World::new().await;
    let events = world.events().await;
    let operation = json!({"method": "DELETE", "path": "/Users/nobody"});
    let many: Vec<&Value> = std::iter::repeat_n(&operation, 1_001).collect();
    let answer = world.post("/Bulk", json!({"schemas": [BULK], "Operations": many})).await;
    answer.is_error(413, "");
    assert!(answer.detail().contains("maxOperations (1000)"), "{}", answer.detail());
    assert_eq!(world.events().await, events);
}

#[tokio::test]
async fn x27_the_first_of_three_fails() {
    let world = World::new().await;
    let f = fixture(&world).await;
    let events = world.events().await;
    let operations = json!([
        {"method": "DELETE", "path": "/Users/nobody"},
        {"method": "DELETE", "path": format!("/Users/{}", f.u2)},
        {"method": "DELETE", "path": format!("/Users/{}", f.u3)},
    ]);
    let body = json!({"schemas": [BULK], "failOnErrors": 1, "Operations": operations});
    let answer = world.post("/Bulk", body).await;
    let listed = answer.is(200).body["Operations"].as_array().unwrap().clone();
    assert_eq!((listed.len(), &listed[0]["status"]), (1, &json!("404")));
    assert_eq!(world.events().await, events);
}

#[tokio::test]
async fn x29_x30_x41_reading_u1() {
    let world = World::new().await;
    let f = fixture(&world).await;
    let path = format!("/Users/{}", f.u1);
    let known = world.call("GET", &path).header("if-none-match", "W/\"5\"").send().await;
    assert_eq!((known.is(304).bytes, known.header("etag")), (0, "W/\"5\""));
    world.call("DELETE", &path).header("if-match", "W/\"4\"").send().await.is_error(412, "");
    // No header but the token.
    assert_eq!(world.get(&path).await.is(200).header("content-type"), "application/scim+json");
}

#[tokio::test]
async fn x38_two_parallel_patches() {
    let world = World::new().await;
    let f = fixture(&world).await;
    let path = format!("/Users/{}", f.u1);
    let patches = ["A", "B"].map(|title| {
        let call = world.call("PATCH", &path).header("if-match", "W/\"5\"");
        call.json(&replace("title", json!(title))).send()
    });
    let mut statuses: Vec<u16> =
        join_all(patches).await.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort();
    assert_eq!(statuses, [200, 412]);
}

#[tokio::test]
async fn x43_five_parallel_additions() {
    let world = World::new().await;
    let f = fixture(&world).await;
    let mut added = Vec::new();
    for n in 0..5 {
        added.push(world.user(&format!("new{n}")).await["id"].as_str().unwrap().to_owned());
    }
    let path = format!("/Groups/{}", f.g1);
    let adds = added.iter().map(|id| {
        let (world, path) = (&world, &path);
        let operations = json!([{"op": "add", "path": "members", "value": [{"value": id}]}]);
        async move { world.patch(path, operations).await }
    });
    for answer in join_all(adds).await {
        answer.is(204);
    }
    let members = world.members(&f.g1).await;
    assert_eq!(members.len(), 7);
    assert!(added.iter().all(|id| members.contains(id)));
    assert_eq!(world.get(&path).await.body["schemas"], json!([GROUP]));
}

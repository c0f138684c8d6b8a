//! POST, GET, PUT and DELETE of users (scim-requirements §2.5, §2.6, §2.11, §2.13).

use serde_json::{Value, json};

use crate::world::{ENT, Fixture, USER, World};

/// CR-002, X06
#[tokio::test]
async fn create_answers_with_the_whole_resource_and_its_name() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "Mara", "emails": [], "title": null, "nickName": "M"});
    let answer = world.post("/Users", body).await;
    answer.is(201);
    let id = answer.id();
    let location = format!("https://scim.test/scim/v2/Users/{id}");
    assert_eq!(answer.header("location"), location);
    assert_eq!(answer.header("content-location"), location);
    assert_eq!(answer.header("etag"), "W/\"1\"");
    assert_eq!(answer.header("content-type"), "application/scim+json");
    assert_eq!(
        answer.body,
        json!({
            "schemas": [USER], "id": id, "userName": "Mara", "nickName": "M", "active": true,
            "meta": {
                "resourceType": "User", "location": location, "version": "W/\"1\"",
                "created": "2026-01-01T00:00:00.000Z", "lastModified": "2026-01-01T00:00:00.000Z",
            },
        }),
        "X06: neither emails nor title",
    );
    assert_eq!(world.get(&format!("/Users/{id}")).await.body, answer.body);
}

/// CR-001; CR-002: the resource type is the endpoint's.
#[tokio::test]
async fn x01_read_only_values_of_a_create_are_ignored() {
    let world = World::new().await;
    let body = json!({
        "schemas": [USER], "userName": "mara", "id": "hack", "groups": [{"value": "g9"}],
        "meta": {"resourceType": "Group", "created": "1999-01-01T00:00:00Z", "location": "x"},
    });
    let answer = world.post("/Users", body).await;
    answer.is(201);
    assert_ne!(answer.id(), "hack");
    assert_eq!(answer.body["groups"], Value::Null);
    assert_eq!(answer.body["meta"]["resourceType"], "User");
    assert_eq!(answer.body["meta"]["created"], "2026-01-01T00:00:00.000Z");
}

/// CR-009, DE-003: a deleted user's name is free at once.
#[tokio::test]
async fn x02_x03_a_user_name_is_unique_until_its_owner_is_deleted() {
    let world = World::new().await;
    let first = world.user("bo").await;
    world.post("/Users", json!({"schemas": [USER], "userName": "BO"})).await.is_error(409, "uniqueness");
    world.delete(&format!("/Users/{}", first["id"].as_str().unwrap())).await.is(204);
    let second = world.user("bo").await;
    assert_ne!(first["id"], second["id"]);
}

#[tokio::test]
async fn x04_x05_a_create_without_a_name_or_without_a_body_is_refused() {
    let world = World::new().await;
    world.post("/Users", json!({"schemas": [USER]})).await.is_error(400, "invalidValue");
    world.post("/Users", json!({"schemas": [USER], "userName": ""})).await.is_error(400, "invalidValue");
    world.post("/Users", json!({"schemas": []})).await.is_error(400, "invalidValue");
    world.call("POST", "/Users").raw("").send().await.is_error(400, "invalidSyntax");
    world.call("POST", "/Users").raw("hello").send().await.is_error(400, "invalidSyntax");
    world.post("/Users", json!(["userName"])).await.is_error(400, "invalidSyntax");
    assert_eq!(world.filter("/Users", "userName pr").await.ids().len(), 0);
}

/// DE-002
#[tokio::test]
async fn a_deleted_user_is_gone_for_every_operation() {
    let world = World::new().await;
    let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
    let path = format!("/Users/{id}");
    let answer = world.delete(&path).await;
    answer.is(204);
    assert_eq!(answer.bytes, 0);
    world.get(&path).await.is_error(404, "");
    world.delete(&path).await.is_error(404, "");
    world.put(&path, json!({"schemas": [USER], "userName": "bo"})).await.is_error(404, "");
    world.patch(&path, json!([{"op": "add", "path": "title", "value": "x"}])).await.is_error(404, "");
    assert!(world.filter("/Users", &format!("id eq \"{id}\"")).await.ids().is_empty());
    assert!(world.filter("/Users", "userName eq \"bo\"").await.ids().is_empty());
    assert!(world.get("/Users").await.ids().is_empty());
}

/// CS-003: the URN goes with the last attribute of the extension. PU-005: without a required attribute nothing changes.
#[tokio::test]
async fn x07_x08_put_replaces_all_but_active_and_password() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    world.patch(&path, json!([{"op": "replace", "path": "active", "value": false}])).await.is(200);
    let answer = world.put(&path, json!({"schemas": [USER], "userName": "anna"})).await;
    answer.is(200);
    assert_eq!(answer.body["emails"], Value::Null);
    assert_eq!(answer.body[ENT], Value::Null);
    assert_eq!(answer.body["schemas"], json!([USER]));
    assert_eq!(answer.body["active"], false, "PU-003: a suspended user does not come back by accident");
    world.put(&path, json!({"schemas": [USER], "title": "x"})).await.is_error(400, "invalidValue");
    assert_eq!(world.get(&path).await.body["userName"], "anna");
}

/// EP-002
#[tokio::test]
async fn x09_put_of_an_unknown_id_creates_nothing() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "bo"});
    let before = world.events().await;
    world.put("/Users/0192f0c1-0000-7000-8000-000000000000", body).await.is_error(404, "");
    assert_eq!(world.events().await, before);
}

/// PU-006: same body, same ETag, same `lastModified`, no event.
#[tokio::test]
async fn x10_put_of_what_get_returned_changes_nothing() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let got = world.get(&path).await;
    assert!(got.body["groups"].is_array() && got.body[ENT]["manager"]["displayName"] == "Bo");
    let before = world.events().await;
    world.clock.advance_ms(1_000);
    let put = world.put(&path, got.body.clone()).await;
    put.is(200);
    assert_eq!(put.body, got.body);
    assert_eq!(put.header("etag"), got.header("etag"));
    assert_eq!(world.events().await, before);
}

#[tokio::test]
async fn x11_a_boolean_as_text_needs_a_tolerant_profile() {
    use annals_domain::scim::dialect::Profile;
    let body = json!({"schemas": [USER], "userName": "bo", "active": "True"});
    let world = World::new().await;
    let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
    let answer = world.put(&format!("/Users/{id}"), body.clone()).await;
    assert_eq!(answer.is(200).body["active"], true);
    let world = World::of(Profile::Strict).await;
    let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
    world.put(&format!("/Users/{id}"), body).await.is_error(400, "invalidValue");
}

/// CS-003: an extension of which nothing is left keeps its URN and shows no empty object. AT-002 to AT-004.
#[tokio::test]
async fn x12_to_x15_projection() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let get = async |query: &str| world.get(&format!("/Users/{}?{query}", f.u1)).await;
    let answer = get("attributes=emails.value").await;
    let emails = json!([{"value": "anna@work.test"}, {"value": "anna@home.test"}]);
    assert_eq!(answer.body, json!({"schemas": [USER, ENT], "id": f.u1, "emails": emails}));
    assert_eq!(answer.header("etag"), "W/\"2\"", "AT-008: the tag is there although meta is not");
    let answer = get("excludedAttributes=id,emails,name.familyName").await;
    assert_eq!(answer.id(), f.u1);
    assert_eq!(answer.body["emails"], Value::Null);
    assert_eq!(answer.body["name"], json!({"givenName": "Anna"}));
    get("attributes=userName&excludedAttributes=emails").await.is_error(400, "invalidValue");
    let answer = get(&format!("attributes={ENT}")).await;
    let names: Vec<&String> = answer.body.as_object().unwrap().keys().collect();
    assert_eq!(names, ["id", "schemas", ENT]);
    assert_eq!(answer.body[ENT]["department"], "R&D");
    let answer = get("attributes=nosuch").await;
    assert_eq!(answer.body.as_object().unwrap().len(), 2);
    assert_eq!(get("attributes=").await.body["userName"], "Anna.Berg@Example.com");
}

#[tokio::test]
async fn projection_works_on_every_answer_with_a_resource() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "bo", "title": "T"});
    let answer = world.post("/Users?attributes=title", body.clone()).await;
    let id = answer.id();
    assert_eq!(answer.body, json!({"schemas": [USER], "id": id, "title": "T"}));
    let answer = world.put(&format!("/Users/{id}?excludedAttributes=meta,title,active"), body).await;
    assert_eq!(answer.body, json!({"schemas": [USER], "id": id, "userName": "bo"}));
}

/// CH-007: not even when it is asked for by name.
#[tokio::test]
async fn a_password_is_never_seen_again() {
    let world = World::new().await;
    let secret = "S3cret!x-correct-horse";
    let body = json!({"schemas": [USER], "userName": "bo", "password": secret});
    let answer = world.post("/Users?attributes=password,userName", body).await;
    let id = answer.is(201).id();
    let everywhere = [
        answer.body.to_string(),
        world.get(&format!("/Users/{id}?attributes=password")).await.body.to_string(),
        world.get("/Users").await.body.to_string(),
    ];
    for text in everywhere {
        assert!(!text.contains(secret) && !text.contains("password"), "{text}");
    }
}

/// US-001, US-002
#[tokio::test]
async fn groups_of_a_user_are_joined_at_read_and_no_part_of_its_version() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let answer = world.get(&format!("/Users/{}", f.u1)).await;
    let mut groups = answer.body["groups"].as_array().unwrap().clone();
    groups.sort_by_key(|g| g["type"].to_string());
    let location = |id: &str| format!("https://scim.test/scim/v2/Groups/{id}");
    assert_eq!(
        Value::Array(groups),
        json!([
            {"value": f.g1, "$ref": location(&f.g1), "display": "Ops", "type": "direct"},
            {"value": f.g2, "$ref": location(&f.g2), "display": "ops-admins", "type": "indirect"},
        ])
    );
    assert_eq!(answer.header("etag"), "W/\"2\"");
    assert_eq!(answer.body["meta"]["lastModified"], "2026-03-01T12:00:00.000Z", "before the groups came");
    assert_eq!(world.get(&format!("/Users/{}?attributes=userName", f.u1)).await.body["groups"], Value::Null);
    let only = world.get(&format!("/Users/{}?attributes=groups.display", f.u2)).await;
    assert_eq!(only.body["groups"].as_array().unwrap().len(), 2);
    assert_eq!(only.body["groups"][0].as_object().unwrap().len(), 1);
    world.delete(&format!("/Groups/{}", f.g1)).await.is(204);
    assert_eq!(world.get(&format!("/Users/{}", f.u1)).await.body["groups"], Value::Null);
}

/// DE-004, CS-030
#[tokio::test]
async fn a_manager_is_named_while_it_lives_and_left_out_when_it_is_deleted() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let location = format!("https://scim.test/scim/v2/Users/{}", f.u2);
    assert_eq!(
        world.get(&path).await.body[ENT]["manager"],
        json!({"value": f.u2, "$ref": location, "displayName": "Bo"})
    );
    world
        .patch(&format!("/Users/{}", f.u2), json!([{"op": "replace", "value": {"displayName": "Bob"}}]))
        .await
        .is(200);
    assert_eq!(world.get(&path).await.body[ENT]["manager"]["displayName"], "Bob");
    let listed = world.filter("/Users", "title eq \"Engineer\"").await;
    assert_eq!(listed.body["Resources"][0][ENT]["manager"]["$ref"], location);
    world.delete(&format!("/Users/{}", f.u2)).await.is(204);
    assert_eq!(world.get(&path).await.body[ENT]["manager"], Value::Null);
    assert_eq!(world.get(&path).await.body[ENT]["department"], "R&D");
}

#[tokio::test]
async fn a_manager_nobody_knows_stays_as_it_was_given() {
    let world = World::new().await;
    let body = json!({
        "schemas": [USER], "userName": "bo",
        ENT: {"manager": {"value": "123456", "$ref": "../Users/123456"}},
    });
    let answer = world.post("/Users", body).await;
    assert_eq!(answer.is(201).body[ENT]["manager"], json!({"value": "123456"}));
}

#[tokio::test]
async fn x44_a_deactivated_user_stays_a_member_and_is_found() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    world
        .patch(&format!("/Users/{}", f.u1), json!([{"op": "replace", "path": "active", "value": false}]))
        .await
        .is(200);
    assert!(world.members(&f.g1).await.contains(&f.u1));
    assert_eq!(world.filter("/Users", "title eq \"Engineer\"").await.ids(), [f.u1.as_str()]);
    assert_eq!(world.filter("/Users", "externalId eq \"E-1\"").await.ids(), [f.u1]);
}

/// CS-008
#[tokio::test]
async fn external_ids_are_unique_only_if_the_tenant_says_so() {
    use crate::world::options;
    use annals_domain::{scim::dialect::Profile, tenant::TenantSettings};
    let body = |name: &str| json!({"schemas": [USER], "userName": name, "externalId": "7"});
    let world = World::new().await;
    world.post("/Users", body("a")).await.is(201);
    world.post("/Users", body("b")).await.is(201);
    let settings = TenantSettings { external_id_unique: true, ..TenantSettings::default() };
    let world = World::with(Profile::Generic, settings, options()).await;
    world.post("/Users", body("a")).await.is(201);
    world.post("/Users", body("b")).await.is_error(409, "uniqueness");
    let other = world.connect("acme", "second", Profile::Generic).await;
    let answer = world.call("POST", "/Users").token(&other).json(&body("b")).send().await;
    answer.is(201);
}

#[tokio::test]
async fn x42_a_legacy_schema_urn_needs_its_profile() {
    use annals_domain::scim::dialect::Profile;
    let body = json!({"schemas": ["urn:scim:schemas:core:2.0"], "userName": "bo"});
    let world = World::of(Profile::OneLogin).await;
    let id = world.post("/Users", body.clone()).await.is(201).id();
    let answer = world.put(&format!("/Users/{id}?"), body.clone()).await;
    answer.is(200);
    assert_eq!(answer.body["schemas"], json!([USER]));
    assert_eq!(answer.header("content-type"), "application/json", "OL-003");
    let world = World::of(Profile::Strict).await;
    world.post("/Users", body).await.is_error(400, "invalidSyntax");
}

#[tokio::test]
async fn an_erased_person_is_gone_like_a_deleted_one() {
    use annals_domain::ids::ResourceId;
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let id = ResourceId::from_text(&f.u2);
    world.store.erase(&world.tenant, &id, crate::world::actor()).await.unwrap();
    world.get(&format!("/Users/{}", f.u2)).await.is_error(404, "");
    world.delete(&format!("/Users/{}", f.u2)).await.is_error(404, "");
    assert!(world.filter("/Users", "userName eq \"bo\"").await.ids().is_empty());
    assert_eq!(world.get("/Users").await.ids(), [f.u1.as_str(), f.u3.as_str()]);
    assert_eq!(world.members(&f.g1).await, [f.u1.as_str()]);
    assert_eq!(world.get(&format!("/Users/{}", f.u1)).await.body[ENT]["manager"], Value::Null);
    world.user("bo").await;
}

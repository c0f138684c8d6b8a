//! Requirements that hold for every resource and every answer, by their ids.

use annals_api::ApiOptions;
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Scope, TenantSettings};
use serde_json::{Value, json};

use crate::world::{Answer, ENT, Fixture, GROUP, LIST, PATCH, SEARCH, USER, World, options};

/// Asserts that an answer, and every resource in it, has `schemas`: URIs, at least one, none twice.
#[track_caller]
fn has_schemas(what: &str, body: &Value) {
    let list = body["schemas"].as_array().unwrap_or_else(|| panic!("{what}: {body}"));
    let mut urns: Vec<&str> = list.iter().map(|urn| urn.as_str().expect("text")).collect();
    assert!(!urns.is_empty() && urns.iter().all(|urn| urn.starts_with("urn:")), "{what}: {body}");
    urns.sort_by_key(|urn| urn.to_lowercase());
    urns.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
    assert_eq!(urns.len(), list.len(), "{what}: {body}");
    for resource in body["Resources"].as_array().into_iter().flatten() {
        has_schemas(what, resource);
    }
}

/// CS-001, CS-002: every resource and every message names its schemas, each once, and a resource only those
/// of its type. RT-004: also those of discovery, which have `meta` too. CS-014: theirs has no dates.
#[tokio::test]
async fn every_answer_names_its_schemas() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let twice = json!({"schemas": [USER, USER, USER.to_uppercase(), "urn:unknown"], "userName": "dora"});
    let created = world.post("/Users", twice).await;
    assert_eq!(created.is(201).body["schemas"], json!([USER]));
    for path in [
        format!("/Users/{}", f.u1),
        format!("/Users/{}?attributes=userName", f.u1),
        format!("/Groups/{}", f.g1),
        "/Users".into(),
        "/Groups?attributes=id".into(),
        "/".into(),
        "/ServiceProviderConfig".into(),
        "/ResourceTypes".into(),
        "/ResourceTypes/User".into(),
        "/Schemas".into(),
        format!("/Schemas/{ENT}"),
        "/Users/nobody".into(),
    ] {
        has_schemas(&path, &world.get(&path).await.body);
    }
    for path in ["/ServiceProviderConfig", "/ResourceTypes", "/Schemas"] {
        let answer = world.get(path).await.body;
        let one = vec![answer.clone()];
        for resource in answer["Resources"].as_array().unwrap_or(&one) {
            let location = resource["meta"]["location"].as_str().expect("a location");
            assert!(location.starts_with(&format!("https://scim.test/scim/v2{path}")), "{location}");
            assert!(resource["meta"]["resourceType"].is_string(), "{path}");
        }
    }
}

/// CS-005, CS-006, PU-001: an id is the server's, unique over all types, and no client can change it; RQ-001:
/// an id of another type is unknown.
#[tokio::test]
async fn ids_are_the_servers() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let ids = [&f.u1, &f.u2, &f.u3, &f.g1, &f.g2];
    let different: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(different.len(), ids.len());
    assert!(ids.iter().all(|id| !id.is_empty() && !id.contains("bulkId")), "{ids:?}");
    world.get(&format!("/Users/{}", f.g1)).await.is_error(404, "");
    world.get(&format!("/Groups/{}", f.u1)).await.is_error(404, "");
    let path = format!("/Users/{}", f.u3);
    let put = json!({
        "schemas": [USER], "id": f.u1, "userName": "celik", "title": "T",
        "meta": {"resourceType": "Group", "version": "W/\"99\""}, "groups": [{"value": f.g1}],
    });
    let answer = world.put(&path, put).await;
    assert_eq!((answer.is(200).id(), &answer.body["title"]), (f.u3.clone(), &json!("T")));
    assert_eq!(answer.body["meta"]["version"], "W/\"2\"");
    assert_eq!(answer.body.get("groups"), None);
    assert!(!world.members(&f.g1).await.contains(&f.u3));
    let patch = json!([{"op": "add", "value": {"id": "mine", "title": "U"}}]);
    assert_eq!(world.patch(&path, patch).await.is(200).id(), f.u3);
}

/// CS-007: the server invents no `externalId`, keeps it as sent, and compares it with its case; two may be
/// the same.
#[tokio::test]
async fn external_ids_are_the_clients() {
    let world = World::new().await;
    assert_eq!(world.user("a").await.get("externalId"), None);
    let body = |name: &str| json!({"schemas": [USER], "userName": name, "externalId": "Ext 1"});
    let first = world.post("/Users", body("b")).await;
    // Ids of one millisecond have no order.
    world.clock.advance_ms(1);
    let second = world.post("/Users", body("c")).await;
    assert_eq!((&first.body["externalId"], second.status.as_u16()), (&json!("Ext 1"), 201));
    assert_eq!(world.filter("/Users", "externalId eq \"Ext 1\"").await.ids(), [first.id(), second.id()]);
    assert!(world.filter("/Users", "externalId eq \"ext 1\"").await.ids().is_empty());
    let other = world.other_tenant("globex").await;
    let path = format!("/Users?filter={}", crate::world::encode("externalId eq \"Ext 1\""));
    assert!(world.call("GET", &path).token(&other).send().await.ids().is_empty());
}

/// CS-010, CS-011, CS-012, EP-001, EP-009, EP-010, VE-001: what the headers of every answer with one resource say, and that
/// `meta` says the same. MT-006: 204 has no body.
#[tokio::test]
async fn headers_and_meta_agree_on_every_answer() {
    let world = World::new().await;
    for (endpoint, name, kind) in [("Users", "userName", "User"), ("Groups", "displayName", "Group")] {
        let schema = format!("urn:ietf:params:scim:schemas:core:2.0:{kind}");
        let body = |title: &str| json!({"schemas": [schema], name: "a", "externalId": title});
        let agree = |answer: &Answer, version: u32| {
            let location = format!("https://scim.test/scim/v2/{endpoint}/{}", answer.id());
            let meta = &answer.body["meta"];
            assert_eq!(answer.header("location"), location);
            assert_eq!(answer.header("content-location"), location);
            assert_eq!(answer.header("etag"), format!("W/\"{version}\""));
            assert_eq!(meta["location"], location);
            assert_eq!(meta["version"], answer.header("etag"));
            assert_eq!(meta["resourceType"], kind);
            assert_eq!(meta["created"] == meta["lastModified"], version == 1, "{meta}");
            meta["created"].clone()
        };
        let created = world.post(&format!("/{endpoint}"), body("1")).await;
        let born = agree(created.is(201), 1);
        let path = format!("/{endpoint}/{}", created.id());
        assert_eq!(agree(world.get(&path).await.is(200), 1), born);
        world.clock.advance_ms(10);
        assert_eq!(agree(world.put(&path, body("2")).await.is(200), 2), born);
        world.clock.advance_ms(10);
        let operations = json!([{"op": "replace", "path": "externalId", "value": "3"}]);
        let patched = world.patch(&format!("{path}?excludedAttributes=nickName"), operations).await;
        assert_eq!(agree(patched.is(200), 3), born);
        world.clock.advance_ms(10);
        let operations = json!([{"op": "replace", "path": "externalId", "value": "4"}]);
        let patched = world.patch(&path, operations).await;
        assert_eq!(patched.header("location"), format!("https://scim.test/scim/v2{path}"));
        assert_eq!(patched.header("etag"), "W/\"4\"");
        if patched.status == 204 {
            assert_eq!((patched.bytes, patched.header("content-type")), (0, ""));
        }
        let deleted = world.delete(&path).await;
        assert_eq!((deleted.is(204).bytes, deleted.header("content-type")), (0, ""), "DE-001");
    }
}

/// CS-032: the order of an object's members means nothing, also where one decides how another is read.
#[tokio::test]
async fn members_of_objects_have_no_order() {
    let world = World::new().await;
    let text = format!(
        r#"{{"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User":{{"department":"D"}},"emails":[{{"primary":true,"value":"a@x.test","type":"work"}}],"userName":"a","schemas":["{ENT}","{USER}"]}}"#
    );
    let created = world.call("POST", "/Users").raw(text).send().await;
    assert_eq!(created.is(201).body[ENT]["department"], "D");
    let text = format!(
        r#"{{"Operations":[{{"value":"T","path":"title","op":"add"}},{{"value":{{"nickName":"N"}},"op":"add"}}],"schemas":["{PATCH}"]}}"#
    );
    let patched = world.call("PATCH", &format!("/Users/{}", created.id())).raw(text).send().await;
    assert_eq!((&patched.is(200).body["title"], &patched.body["nickName"]), (&json!("T"), &json!("N")));
    let text = format!(r#"{{"count":1,"filter":"title eq \"t\"","schemas":["{SEARCH}"]}}"#);
    assert_eq!(world.call("POST", "/Users/.search").raw(text).send().await.ids(), [created.id()]);
}

/// CS-024, CS-036, CH-001: what was sent comes back as it was sent: its case, its canonical values, its blanks;
/// only a boolean in quotes becomes a boolean.
#[tokio::test]
async fn values_come_back_as_they_were_sent() {
    let world = World::new().await;
    let body = json!({
        "schemas": [USER], "userName": "Ana  RUIZ@Acme.Test", "active": "TRUE", "locale": "de_DE",
        "displayName": "e\u{301}clair", "profileUrl": "HTTPS://Acme.Test/Ana",
        "emails": [{"value": "Ana@ACME.test", "type": "WORK", "primary": "False"}, {"value": "b", "type": "cottage"}],
        "phoneNumbers": [{"value": "030 / 12-34", "type": "Work"}],
        "addresses": [{"country": "deu", "type": "Home"}],
    });
    let answer = world.post("/Users", body.clone()).await;
    let shown = answer.is(201).body.clone();
    for name in ["userName", "locale", "displayName", "profileUrl", "phoneNumbers", "addresses"] {
        assert_eq!(shown[name], body[name], "{name}");
    }
    assert_eq!(shown["active"], json!(true));
    assert_eq!(shown["emails"][0], json!({"value": "Ana@ACME.test", "type": "WORK", "primary": false}));
    assert_eq!(shown["emails"][1], body["emails"][1]);
    assert_eq!(world.filter("/Users", "displayName eq \"\u{c9}CLAIR\"").await.ids(), [answer.id()], "IN-004");
    assert_eq!(world.filter("/Users", "emails.type eq \"work\"").await.ids(), [answer.id()]);
}

/// CH-010, CR-003, PU-007: a name in use is 409 `uniqueness` for POST, PUT and PATCH alike, compared prepared.
#[tokio::test]
async fn a_name_in_use_is_a_conflict_for_every_method() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u3);
    for name in ["bo", "BO", "Ｂo"] {
        let body = json!({"schemas": [USER], "userName": name});
        world.post("/Users", body.clone()).await.is_error(409, "uniqueness");
        world.put(&path, body).await.is_error(409, "uniqueness");
        let patch = json!([{"op": "replace", "path": "userName", "value": name}]);
        let answer = world.patch(&path, patch).await;
        answer.is_error(409, "uniqueness");
        assert!(answer.detail().contains("userName"), "{}", answer.detail());
    }
    assert_eq!(world.get(&path).await.header("etag"), "W/\"1\"");
}

/// RQ-001: an inactive user is shown like any other. FI-017: a value that was defaulted is found by it.
/// FI-015: false is a value.
#[tokio::test]
async fn inactive_and_defaulted_users_are_read_and_found() {
    let world = World::new().await;
    let defaulted = world.user("a").await["id"].as_str().unwrap().to_owned();
    // Ids of one millisecond have no order.
    world.clock.advance_ms(1);
    let body = json!({"schemas": [USER], "userName": "b", "active": false});
    let inactive = world.post("/Users", body).await.id();
    world.clock.advance_ms(1);
    let unset = json!({"schemas": [USER], "userName": "c", "active": null});
    let unset = world.post("/Users", unset).await.id();
    assert_eq!(world.get(&format!("/Users/{inactive}")).await.is(200).body["active"], false);
    assert_eq!(world.filter("/Users", "active eq true").await.ids(), [defaulted.as_str()]);
    assert_eq!(world.filter("/Users", "active pr").await.ids(), [defaulted.as_str(), &inactive]);
    assert_eq!(world.filter("/Users", "active eq null").await.ids(), [unset.as_str()]);
    assert_eq!(world.filter("/Users", "active ne true").await.ids(), [inactive.as_str(), &unset]);
}

/// ER-001, ER-002, ER-003: the body of every error, whatever the status and wherever it arises.
#[tokio::test]
async fn every_error_has_the_same_shape() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let user = format!("/Users/{}", f.u1);
    let reader = world.token_with(vec![Scope::Read], None).await;
    let body = json!({"schemas": [USER], "userName": "x"});
    world.post("/Users", json!([])).await.is_error(400, "invalidSyntax");
    world.get("/Users?access_token=x").await.is_error(400, "");
    world.get("/scim/v3/Users").await.is_error(400, "invalidVers");
    world.call("GET", "/Users").anonymous().send().await.is_error(401, "");
    world.call("GET", "/Users").token("x").send().await.is_error(401, "");
    world.call("POST", "/Users").token(&reader).json(&body).send().await.is_error(403, "");
    world.filter("/Users", "password pr").await.is_error(403, "sensitive");
    world.get("/Users/x").await.is_error(404, "");
    world.get("/Nope").await.is_error(404, "");
    world.delete("/Users").await.is_error(405, "");
    world.post("/Users", json!({"schemas": [USER], "userName": "bo"})).await.is_error(409, "uniqueness");
    world.call("DELETE", &user).header("if-match", "W/\"9\"").send().await.is_error(412, "");
    let large = " ".repeat(1024 * 1024 + 1);
    world.call("POST", "/Users").raw(large).send().await.is_error(413, "");
    world.call("POST", "/Users").header("content-type", "text/plain").raw("x").send().await.is_error(415, "");
    let strict = World::of(Profile::Strict).await;
    strict.call("GET", "/Users").header("accept", "text/html").send().await.is_error(406, "");
}

/// EP-007: unknown query parameters are ignored by every method.
#[tokio::test]
async fn unknown_parameters_are_ignored() {
    let world = World::new().await;
    let query = "?x=1&aadOptscim062020&=&&sort=a%20b";
    let body = json!({"schemas": [USER], "userName": "a"});
    let created = world.post(&format!("/Users{query}"), body.clone()).await;
    let path = format!("/Users/{}{query}", created.is(201).id());
    world.get(&path).await.is(200);
    world.put(&path, body).await.is(200);
    world.patch(&path, json!([{"op": "add", "path": "title", "value": "T"}])).await.is(200);
    assert_eq!(world.get(&format!("/Users{query}")).await.ids().len(), 1);
    world.get(&format!("/Schemas{query}")).await.is(200);
    world.delete(&path).await.is(204);
}

/// RQ-002, RQ-004, PG-007: what a list says about itself and about each resource, in every projection.
#[tokio::test]
async fn lists_are_complete_in_themselves() {
    let world = World::new().await;
    Fixture::in_world(&world).await;
    for query in ["", "?attributes=title", "?excludedAttributes=id,schemas,meta", "?startIndex=2&count=1"] {
        let answer = world.get(&format!("/Users{query}")).await;
        let names: Vec<&String> = answer.is(200).body.as_object().unwrap().keys().collect();
        assert_eq!(names, ["Resources", "itemsPerPage", "schemas", "startIndex", "totalResults"], "{query}");
        assert_eq!(answer.body["schemas"], json!([LIST]));
        assert_eq!(answer.body["totalResults"], json!(3));
        let resources = answer.body["Resources"].as_array().unwrap();
        assert_eq!(answer.body["itemsPerPage"], json!(resources.len()));
        assert_eq!(answer.body["startIndex"], json!(if query.contains("startIndex") { 2 } else { 1 }));
        assert!(resources.iter().all(|r| r["id"].is_string() && r["schemas"].is_array()), "{query}");
    }
}

/// AT-001 to AT-003, CH-006, CH-008: projections are the same on every operation that answers with resources.
#[tokio::test]
async fn every_operation_projects() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "a", "title": "T", "nickName": "N"});
    let only = |id: &str| json!({"schemas": [USER], "id": id, "title": "T"});
    let created = world.post("/Users?attributes=title", body.clone()).await;
    let id = created.id();
    assert_eq!(created.body, only(&id));
    let path = format!("/Users/{id}?attributes=title");
    assert_eq!(world.get(&path).await.body, only(&id));
    assert_eq!(world.put(&path, body.clone()).await.body, only(&id));
    let operations = json!([{"op": "add", "path": "locale", "value": "de"}]);
    assert_eq!(world.patch(&path, operations).await.body, only(&id));
    assert_eq!(world.get("/Users?attributes=title").await.body["Resources"], json!([only(&id)]));
    assert_eq!(world.get("/?attributes=title").await.body["Resources"], json!([only(&id)]));
    let search = json!({"schemas": [SEARCH], "attributes": ["title"]});
    for endpoint in ["/Users/.search", "/.search"] {
        assert_eq!(world.post(endpoint, search.clone()).await.body["Resources"], json!([only(&id)]));
    }
    // Without what is named, all the rest; `id` and `schemas` cannot be excluded.
    let excluded = "excludedAttributes=ID,schemas,META,nickName,active,locale";
    let rest = json!({"schemas": [USER], "id": id, "userName": "a", "title": "T"});
    assert_eq!(world.get(&format!("/Users/{id}?{excluded}")).await.body, rest);
    assert_eq!(world.get(&format!("/Users?{excluded}")).await.body["Resources"], json!([rest]));
}

/// PA-010, AT-009: a PATCH answers 200 with the user; with a projection it does so in any case.
#[tokio::test]
async fn a_patch_of_a_user_answers_with_the_user() {
    let world = World::new().await;
    let id = world.user("a").await["id"].as_str().unwrap().to_owned();
    let operations = json!([{"op": "add", "path": "title", "value": "T"}]);
    for (query, names) in [
        ("", vec!["active", "id", "meta", "schemas", "title", "userName"]),
        ("?attributes=title", vec!["id", "schemas", "title"]),
        ("?excludedAttributes=meta,active", vec!["id", "schemas", "title", "userName"]),
    ] {
        let answer = world.patch(&format!("/Users/{id}{query}"), operations.clone()).await;
        let shown: Vec<&String> = answer.is(200).body.as_object().unwrap().keys().collect();
        assert_eq!(shown, names, "{query}");
    }
}

/// G22: a group's new name is refused if another has it, where names are unique; members stay as they are.
#[tokio::test]
async fn g22_a_group_cannot_take_anothers_name() {
    let settings = TenantSettings { group_name_unique: true, ..TenantSettings::default() };
    for (profile, settings) in [(Profile::Generic, settings), (Profile::Entra, TenantSettings::default())] {
        let world = World::with(profile, settings, options()).await;
        let f = Fixture::in_world(&world).await;
        let rename = json!([
            {"op": "remove", "path": "members"},
            {"op": "replace", "path": "displayName", "value": "OPS-ADMINS"},
        ]);
        let answer = world.patch(&format!("/Groups/{}", f.g1), rename).await;
        answer.is_error(409, "uniqueness");
        assert!(answer.detail().contains("displayName"), "{}", answer.detail());
        assert_eq!(world.members(&f.g1).await.len(), 2);
    }
}

/// GR-001: groups contain groups, in a circle too; the groups of a user are found and the search ends.
#[tokio::test]
async fn gr001_groups_in_groups() {
    let world = World::new().await;
    let user = world.user("a").await["id"].as_str().unwrap().to_owned();
    let mut inner = user.clone();
    let mut first = String::new();
    for depth in 0..14 {
        let next = world.group(&format!("level {depth}"), &[&inner]).await;
        if depth == 0 {
            first.clone_from(&next);
        }
        inner = next;
    }
    let groups = world.get(&format!("/Users/{user}")).await.body["groups"].as_array().unwrap().clone();
    let direct: Vec<&Value> = groups.iter().filter(|g| g["type"] == "direct").collect();
    assert_eq!((direct.len(), &direct[0]["value"]), (1, &json!(first)));
    assert_eq!(groups.len(), 10, "ten levels, as documented");
    let circle = json!([{"op": "add", "path": "members", "value": [{"value": inner}]}]);
    world.patch(&format!("/Groups/{first}"), circle).await.is(204);
    world.get(&format!("/Users/{user}")).await.is(200);
    let itself = json!([{"op": "add", "path": "members", "value": [{"value": first}]}]);
    world.patch(&format!("/Groups/{first}"), itself).await.is_error(400, "invalidValue");
    let body = json!({"schemas": [GROUP], "displayName": "level 0", "members": [{"value": first}]});
    world.put(&format!("/Groups/{first}"), body).await.is_error(400, "invalidValue");
}

/// SE-013: the bodies that may be larger are only those of groups, and no larger than their own bound.
/// SE-002, SE-012: without a token nothing but discovery answers.
#[tokio::test]
async fn limits_hold_before_anything_is_read() {
    let world = World::with(
        Profile::Generic,
        TenantSettings::default(),
        ApiOptions { body_bytes_max: 1_000, group_body_bytes_max: 2_000, ..options() },
    )
    .await;
    let body = json!({"schemas": [USER], "userName": "x".repeat(1_500), "displayName": "y"});
    for (method, path, status) in [
        ("POST", "/Users", 413),
        ("PUT", "/Users/x", 413),
        ("PATCH", "/Users/x", 413),
        ("POST", "/Groups", 413),
        ("POST", "/Users/.search", 413),
        ("PUT", "/Groups/x", 404),
    ] {
        let answer = world.call(method, path).json(&body).send().await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        let anonymous = world.call(method, path).anonymous().json(&body).send().await;
        anonymous.is_error(401, "");
        assert!(anonymous.header("www-authenticate").starts_with("Bearer "), "{method} {path}");
    }
}

/// CS-028, CS-029: a reference is the same whether it is absolute, relative, with or without a version, and
/// null is none; CS-030: it leads to somebody. What is not a resource's address keeps its case.
#[tokio::test]
async fn references_in_every_spelling() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Groups/{}", f.g1);
    let add = |element: Value| json!([{"op": "add", "path": "members", "value": [element]}]);
    let mut events = world.events().await + 1;
    for reference in [
        format!("https://scim.test/scim/v2/Users/{}", f.u3),
        format!("https://scim.test/scim/Users/{}", f.u3),
        format!("Users/{}", f.u3),
        format!("/Users/{}", f.u3),
        format!("/v2/Users/{}", f.u3),
        format!("../Users/{}", f.u3),
    ] {
        world.patch(&path, add(json!({"$ref": reference}))).await.is(204);
        assert_eq!(world.events().await, events, "the first one adds, all others name the same: {reference}");
        events = world.events().await;
    }
    world.patch(&path, add(json!({"$ref": null, "value": f.u3}))).await.is(204);
    assert_eq!((world.events().await, world.members(&f.g1).await.len()), (events, 3));
    world.patch(&path, add(json!({"$ref": "../Users/nobody"}))).await.is_error(400, "invalidValue");
    world.patch(&path, add(json!({"$ref": null}))).await.is_error(400, "invalidValue");
    let body = json!({"schemas": [USER], "userName": "dora", "profileUrl": "https://Acme.test/Dora"});
    let dora = world.post("/Users", body).await.id();
    assert_eq!(world.filter("/Users", "profileUrl eq \"https://Acme.test/Dora\"").await.ids(), [dora]);
    assert!(world.filter("/Users", "profileUrl eq \"https://acme.test/dora\"").await.ids().is_empty());
}

/// CFG-001: what the configuration advertises is there.
#[tokio::test]
async fn what_is_advertised_works() {
    let world = World::new().await;
    let config = world.get("/ServiceProviderConfig").await.body;
    let is_on = |name: &str| config[name]["supported"] == json!(true);
    let created = world.user("a").await;
    let path = format!("/Users/{}", created["id"].as_str().unwrap());
    let title = json!([{"op": "add", "path": "title", "value": "T"}]);
    assert!(is_on("patch"));
    world.patch(&path, title.clone()).await.is(200);
    assert!(is_on("bulk"));
    let operation =
        json!({"method": "PATCH", "path": path, "data": {"schemas": [PATCH], "Operations": title}});
    let request = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
    let bulk = world.post("/Bulk", json!({"schemas": [request], "Operations": [operation]})).await;
    assert_eq!(bulk.is(200).body["Operations"][0]["status"], "200");
    assert!(is_on("filter"));
    assert_eq!(world.filter("/Users", "title eq \"t\"").await.ids().len(), 1);
    assert!(is_on("changePassword"));
    world.patch(&path, json!([{"op": "replace", "path": "password", "value": "n3w!"}])).await.is(200);
    assert!(is_on("sort"));
    world.user("b").await;
    let sorted = world.get("/Users?sortBy=userName&sortOrder=descending&attributes=userName").await;
    assert_eq!(sorted.body["Resources"][0]["userName"], "b");
    assert!(is_on("etag"));
    let etag = world.get(&path).await.header("etag").to_owned();
    world.call("GET", &path).header("if-none-match", &etag).send().await.is(304);
    let pagination = &config["pagination"];
    assert_eq!((&pagination["cursor"], &pagination["index"]), (&json!(true), &json!(true)));
    assert!(world.get("/Users?cursor&count=1").await.body["nextCursor"].is_string());
    assert_eq!(world.get("/Users?startIndex=2&count=1").await.ids().len(), 1);
    assert_eq!(config["authenticationSchemes"][0]["type"], "oauthbearertoken");
    // Neither securityEvents, which strict parsers do not know, nor what would announce them.
    assert!(config.get("securityEvents").is_none());
    let body = json!({"schemas": [PATCH], "Operations": title});
    let call = world.call("PATCH", &path).header("prefer", "respond-async").json(&body);
    assert_eq!(call.send().await.is(200).header("preference-applied"), "");
}

/// RQ-006: only where the tenant says so, and only without a filter.
#[tokio::test]
async fn a_tenant_may_refuse_to_list_everything() {
    let settings = TenantSettings { filtered_root_queries: true, ..TenantSettings::default() };
    let world = World::with(Profile::Generic, settings, options()).await;
    let f = Fixture::in_world(&world).await;
    world.get("/").await.is_error(400, "tooMany");
    world.get("/?count=1&sortBy=id").await.is_error(400, "tooMany");
    world.post("/.search", json!({"schemas": [SEARCH]})).await.is_error(400, "tooMany");
    assert_eq!(world.filter("/", "displayName eq \"ops\"").await.ids(), [f.g1]);
    assert_eq!(world.get("/Users").await.ids().len(), 3);
    let world = World::new().await;
    world.get("/").await.is(200);
}

/// PG-008: any page can be asked of any process, in any order, as often as one likes.
#[tokio::test]
async fn pages_keep_no_state() {
    let mut world = World::new().await;
    let f = Fixture::in_world(&world).await;
    for page in [3, 1, 2, 2] {
        let answer = world.get(&format!("/Users?startIndex={page}&count=1")).await;
        assert_eq!(answer.ids(), [[&f.u1, &f.u2, &f.u3][page - 1].clone()]);
        let app = annals_api::App::new(world.store.clone(), options(), annals_api::Readiness::new());
        world.router = annals_api::router(app);
    }
}

/// CU-017: who may not see something is told what one is told who asks for what is not there.
#[tokio::test]
async fn what_is_not_yours_is_not_there() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let other = world.other_tenant("globex").await;
    let told = async |path: &str, id: &str| {
        let answer = world.call("GET", path).token(&other).send().await;
        (answer.status.as_u16(), answer.body.to_string().replace(id, "ID"))
    };
    let nobody = "0192f0c1-0000-7000-8000-000000000000";
    let foreign = told(&format!("/Users/{}", f.u1), &f.u1).await;
    assert_eq!((foreign.0, &foreign), (404, &told(&format!("/Users/{nobody}"), nobody).await));
    let page = world.get("/Users?cursor&count=1").await;
    let cursor = page.body["nextCursor"].as_str().unwrap();
    let foreign = told(&format!("/Users?count=1&cursor={cursor}"), cursor).await;
    assert_eq!((foreign.0, &foreign), (400, &told("/Users?count=1&cursor=forged", "forged").await));
}

//! PATCH through HTTP: the cases of scim-requirements §7.3 and §7.4 whose outcome is more than a document
//! (status, version, events, atomicity). The document cases are the domain's own tests.

use annals_domain::scim::dialect::Profile;
use serde_json::{Value, json};

use crate::world::{ENT, Fixture, PATCH, USER, World};

#[tokio::test]
async fn a_change_raises_the_version_once_and_a_no_op_never() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let before = world.get(&path).await;
    assert_eq!(before.header("etag"), "W/\"2\"");
    world.clock.advance_ms(5_000);
    // P04, P06, P16, P45: "nc".
    for operations in [
        json!([{"op": "replace", "path": "active", "value": true}]),
        json!([{"op": "add", "path": "emails", "value": [{"value": "anna@home.test", "type": "home"}]}]),
        json!([{"op": "remove", "path": "emails[type eq \"fax\"]"}]),
        json!([{"op": "replace", "path": "title", "value": "X"}, {"op": "replace", "path": "title", "value": "Engineer"}]),
    ] {
        let answer = world.patch(&path, operations).await;
        answer.is(200);
        assert_eq!(answer.body, before.body);
    }
    // P44: two operations, one version.
    let operations = json!([{"op": "remove", "path": "title"}, {"op": "add", "path": "title", "value": "T"}]);
    let answer = world.patch(&path, operations).await;
    assert_eq!(answer.is(200).header("etag"), "W/\"3\"");
    assert_eq!(answer.body["meta"]["version"], "W/\"3\"");
    assert_ne!(answer.body["meta"]["lastModified"], before.body["meta"]["lastModified"]);
    assert_eq!(answer.body["meta"]["created"], before.body["meta"]["created"]);
}

/// PA-005
#[tokio::test]
async fn p42_a_failing_operation_undoes_those_before_it() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let events = world.events().await;
    let operations = json!([
        {"op": "replace", "path": "title", "value": "X"},
        {"op": "replace", "path": "foo", "value": "y"},
    ]);
    let answer = world.patch(&path, operations).await;
    answer.is_error(400, "invalidPath");
    assert!(answer.detail().contains('1') && answer.detail().contains("foo"), "{}", answer.detail());
    assert_eq!(world.get(&path).await.body["title"], "Engineer");
    assert_eq!(world.events().await, events);
}

#[tokio::test]
async fn errors_carry_their_keywords() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let cases = [
        (
            "P10",
            json!([{"op": "replace", "path": "emails[type eq \"other\"].value", "value": "o@x"}]),
            400,
            "noTarget",
        ),
        ("P20", json!([{"op": "remove"}]), 400, "noTarget"),
        ("P21", json!([{"op": "remove", "path": "userName"}]), 400, "mutability"),
        ("P23", json!([{"op": "remove", "path": "id"}]), 400, "mutability"),
        ("P40", json!([{"op": "replace", "path": "userName", "value": "BO"}]), 409, "uniqueness"),
        ("P46", json!([{"op": "move", "path": "title", "value": "x"}]), 400, "invalidSyntax"),
        ("P47", json!([]), 400, "invalidSyntax"),
        ("P48", json!([{"op": "add", "path": "name..x", "value": "x"}]), 400, "invalidPath"),
        (
            "P49",
            json!([{"op": "add", "path": "emails[type xx \"work\"].value", "value": "x"}]),
            400,
            "invalidFilter",
        ),
        ("P51", json!([{"op": "add", "path": "title"}]), 400, "invalidValue"),
        ("P52", json!([{"op": "replace", "path": "title", "value": {"a": 1}}]), 400, "invalidValue"),
    ];
    let events = world.events().await;
    for (case, operations, status, scim_type) in cases {
        let answer = world.patch(&path, operations).await;
        assert_eq!(answer.status, status, "{case}: {}", answer.body);
        answer.is_error(status, scim_type);
    }
    world.call("PATCH", &path).json(&json!({"schemas": [PATCH]})).send().await.is_error(400, "invalidSyntax");
    assert_eq!(world.events().await, events);
}

#[tokio::test]
async fn p54_p55_projection_makes_a_patch_answer_exactly_that() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}?attributes=password,userName", f.u1);
    let answer = world.patch(&path, json!([{"op": "add", "path": "password", "value": "S3cret!x"}])).await;
    let expected = json!({"schemas": [USER, ENT], "id": f.u1, "userName": "Anna.Berg@Example.com"});
    assert_eq!(answer.is(200).body, expected);
}

#[tokio::test]
async fn p41_a_user_may_take_its_own_name_in_another_case() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let name = "ANNA.BERG@EXAMPLE.COM";
    let answer = world
        .patch(&format!("/Users/{}", f.u1), json!([{"op": "replace", "path": "userName", "value": name}]))
        .await;
    assert_eq!(answer.is(200).body["userName"], name);
    assert_eq!(answer.header("etag"), "W/\"3\"");
}

#[tokio::test]
async fn p64_an_unknown_id_is_404() {
    let world = World::new().await;
    let operations = json!([{"op": "add", "path": "title", "value": "x"}]);
    world.patch("/Users/nobody", operations.clone()).await.is_error(404, "");
    let f = Fixture::in_world(&world).await;
    world.patch(&format!("/Users/{}", f.g1), operations).await.is_error(404, "");
}

#[tokio::test]
async fn strict_and_tolerant_clients_differ() {
    for (profile, status) in [(Profile::Strict, 400), (Profile::Generic, 200)] {
        let world = World::of(profile).await;
        let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
        let path = format!("/Users/{id}");
        for operations in [
            json!([{"op": "replace", "path": "active", "value": "False"}]),
            json!([{"op": "add", "path": "emails", "value": {"value": "x@y.test"}}]),
            json!([{"op": "replace", "value": {"name.familyName": "B"}}]),
            json!([{"op": "replace", "path": format!("{ENT}:manager"), "value": id}]),
        ] {
            assert_eq!(world.patch(&path, operations).await.status, status, "{profile}");
        }
    }
}

#[tokio::test]
async fn g_cases_leave_the_members_they_should() {
    let cases: [(&str, &str, u16, &[&str]); 13] = [
        ("G01", r#"[{"op":"add","path":"members","value":[{"value":"u3"}]}]"#, 204, &["u1", "u2", "u3"]),
        (
            "G02",
            r#"[{"op":"add","path":"members","value":[{"value":"u1","display":"other"}]}]"#,
            204,
            &["u1", "u2"],
        ),
        (
            "G03",
            r#"[{"op":"Add","path":"members","value":[{"$ref":null,"value":"u3"}]}]"#,
            204,
            &["u1", "u2", "u3"],
        ),
        ("G04", r#"[{"op":"Remove","path":"members","value":[{"$ref":null,"value":"u1"}]}]"#, 204, &["u2"]),
        ("G06", r#"[{"op":"remove","path":"members[value eq \"u1\"]"}]"#, 204, &["u2"]),
        ("G07", r#"[{"op":"remove","path":"members[value eq \"zz\"]"}]"#, 204, &["u1", "u2"]),
        ("G08", r#"[{"op":"remove","path":"members[value eq \"u1\" or value eq \"u2\"]"}]"#, 204, &[]),
        ("G09", r#"[{"op":"remove","path":"members"}]"#, 204, &[]),
        ("G10", r#"[{"op":"replace","path":"members","value":[{"value":"u3"}]}]"#, 204, &["u3"]),
        (
            "G11",
            r#"[{"op":"replace","path":"members","value":[{"value":"u2"},{"value":"u1"}]}]"#,
            204,
            &["u1", "u2"],
        ),
        (
            "G12",
            r#"[{"op":"add","path":"members","value":[{"value":"u3"},{"value":"u3"}]}]"#,
            204,
            &["u1", "u2", "u3"],
        ),
        ("G15", r#"[{"op":"remove","path":"displayName"}]"#, 400, &["u1", "u2"]),
        (
            "G21",
            r#"[{"op":"remove","path":"members[value eq \"u1\"]"},{"op":"add","path":"members","value":[{"value":"u1"}]}]"#,
            204,
            &["u1", "u2"],
        ),
    ];
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let restore: Value =
        json!([{"op": "replace", "path": "members", "value": [{"value": f.u1}, {"value": f.u2}]}]);
    let path = format!("/Groups/{}", f.g1);
    for (case, operations, status, members) in cases {
        let before = world.get(&path).await.header("etag").to_owned();
        let operations: Value = serde_json::from_str(&f.fill(operations)).unwrap();
        let answer = world.patch(&path, operations).await;
        assert_eq!(answer.status, status, "{case}: {}", answer.body);
        let now = world.members(&f.g1).await;
        let names: Vec<&str> = now.iter().map(|id| f.name(id)).collect();
        assert_eq!(names, members, "{case}");
        if ["G02", "G07", "G11", "G15", "G21"].contains(&case) {
            assert_eq!(world.get(&path).await.header("etag"), before, "{case}: no change");
        }
        world.patch(&path, restore.clone()).await.is(204);
    }
}

#[tokio::test]
async fn g23_five_thousand_removals_in_one_request() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let mut operations: Vec<Value> = (0..4_998)
        .map(|n| json!({"op": "remove", "path": format!("members[value eq \"nobody-{n}\"]")}))
        .collect();
    for id in [&f.u1, &f.u2] {
        operations.push(json!({"op": "remove", "path": format!("members[value eq \"{id}\"]")}));
    }
    let events = world.events().await;
    world.patch(&format!("/Groups/{}", f.g1), Value::Array(operations)).await.is(204);
    assert!(world.members(&f.g1).await.is_empty());
    assert_eq!(world.events().await, events + 1, "one event");
}

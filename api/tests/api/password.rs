//! Passwords: taken, hashed, never shown (US-003, US-004, SE-009), and checked for applications.

use annals_domain::tenant::Scope;
use serde_json::{Value, json};

use crate::world::{Answer, PATCH, USER, World};

const BULK: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";

const SECRET: &str = "c0rrect h\u{f6}rse";

async fn verify(world: &World, token: &str, body: Value) -> Answer {
    let call = world.call("POST", "//raw/auth/v1/verify-password").anonymous();
    call.token(token).header("content-type", "application/json").raw(body.to_string()).send().await
}

/// A user with a password, and a token that may check it.
async fn with_password(world: &World, name: &str) -> (String, String) {
    let body = json!({"schemas": [USER], "userName": name, "password": SECRET});
    let created = world.post("/Users", body).await;
    assert!(!created.is(201).body.to_string().contains("password"), "{}", created.body);
    (created.id(), world.token_with(vec![Scope::Verify], None).await)
}

/// US-003, US-004, PU-003, PU-007, IN-001: however a password is set or taken away, the answer tells, and
/// nothing else does.
/// PU-002, CH-007
#[tokio::test]
async fn a_password_is_whatever_was_set_last() {
    let world = World::new().await;
    let (id, token) = with_password(&world, "ines").await;
    let path = format!("/Users/{id}");
    let is = async |password: &str| {
        let answer = verify(&world, &token, json!({"userName": "INES", "password": password})).await;
        assert_eq!(
            (answer.is(200).header("content-type"), answer.header("cache-control")),
            ("application/json", "no-store")
        );
        let verified = answer.body["verified"].as_bool().expect("a boolean");
        let expect = if verified { json!({"verified": true, "id": id}) } else { json!({"verified": false}) };
        assert_eq!(answer.body, expect);
        verified
    };
    assert!(is(SECRET).await && !is("C0rrect h\u{f6}rse").await && !is("c0rrect").await);
    // The same letters, composed otherwise, with another blank.
    assert!(is("c0rrect\u{a0}ho\u{308}rse").await);
    world.put(&path, json!({"schemas": [USER], "userName": "ines"})).await.is(200);
    assert!(is(SECRET).await, "PU-003");
    let patched = world.patch(&path, json!([{"op": "replace", "value": {"password": "n3w!"}}])).await;
    assert!(!patched.is(200).body.to_string().contains("n3w!"));
    assert!(is("n3w!").await && !is(SECRET).await);
    world.put(&path, json!({"schemas": [USER], "userName": "ines", "password": "third"})).await.is(200);
    assert!(is("third").await && !is("n3w!").await);
    let asked = world.get(&format!("{path}?attributes=password,userName")).await;
    assert!(!asked.is(200).body.to_string().contains("argon2") && asked.body.get("password").is_none());
    world.put(&path, json!({"schemas": [USER], "userName": "ines", "password": null})).await.is(200);
    assert!(!is("third").await, "PU-007");
    let events = world.store.read_events(0, 100).await.expect("events");
    assert_eq!(events.iter().filter(|e| e.kind == "user.password_set").count(), 4);
    let told = format!("{events:?}");
    for secret in [SECRET, "n3w!", "third", "argon2"] {
        assert!(!told.contains(secret), "{secret}");
    }
}

/// PA-011: the password that the user has already, however it is sent, is no change; nor is the lack of one.
#[tokio::test]
async fn the_same_password_again_changes_nothing() {
    let world = World::new().await;
    let (id, token) = with_password(&world, "ines").await;
    let path = format!("/Users/{id}");
    let body = |password: Value| json!({"schemas": [USER], "userName": "ines", "password": password});
    let before = world.get(&path).await;
    let events = world.events().await;
    for again in [SECRET, "c0rrect\u{a0}ho\u{308}rse"] {
        let patch = world.patch(&path, json!([{"op": "replace", "path": "password", "value": again}])).await;
        assert_eq!(patch.is(200).header("etag"), before.header("etag"));
        assert_eq!(world.put(&path, body(json!(again))).await.is(200).body, before.body);
        let data = json!({"schemas": [PATCH], "Operations": [{"op": "add", "value": {"password": again}}]});
        let operation = json!({"method": "PATCH", "path": path, "data": data});
        let bulk = json!({"schemas": [BULK], "Operations": [operation]});
        let done = world.post("/Bulk", bulk).await;
        assert_eq!(done.is(200).body["Operations"][0]["version"], before.body["meta"]["version"]);
    }
    assert_eq!(world.events().await, events);
    // With something else, that alone changes; and one that is refused for another reason is set by nothing.
    let both = json!([{"op": "add", "value": {"password": SECRET, "title": "Lead"}}]);
    world.patch(&path, both).await.is(200);
    assert_eq!(world.events().await, events + 1);
    let refused = json!([{"op": "add", "value": {"password": SECRET}}, {"op": "remove", "path": "userName"}]);
    world.patch(&path, refused).await.is_error(400, "mutability");
    world.put(&path, body(Value::Null)).await.is(200);
    assert_eq!(world.events().await, events + 3, "title and password are gone");
    world.put(&path, body(Value::Null)).await.is(200);
    assert_eq!(world.events().await, events + 3);
    let no = verify(&world, &token, json!({"id": id, "password": SECRET})).await;
    assert_eq!(no.is(200).body, json!({"verified": false}));
}

/// Within one bulk request each operation is decided on what the ones before it left.
#[tokio::test]
async fn a_password_that_the_same_bulk_request_changes() {
    let world = World::new().await;
    let (id, token) = with_password(&world, "ines").await;
    let operation = |password: &str| {
        let data =
            json!({"schemas": [PATCH], "Operations": [{"op": "add", "value": {"password": password}}]});
        json!({"method": "PATCH", "path": format!("/Users/{id}"), "data": data})
    };
    let bulk = json!({"schemas": [BULK], "Operations": [operation("other"), operation(SECRET)]});
    world.post("/Bulk", bulk).await.is(200);
    let answer = verify(&world, &token, json!({"id": id, "password": SECRET})).await;
    assert_eq!(answer.is(200).body["verified"], true);
}

/// US-004: a tenant may want longer passwords; the answer does not repeat the short one.
#[tokio::test]
async fn a_tenant_may_want_longer_passwords() {
    let settings = annals_domain::tenant::TenantSettings { password_characters_min: 8, ..Default::default() };
    let world = World::with(Default::default(), settings, crate::world::options()).await;
    let user =
        |name: &str, password: &str| json!({"schemas": [USER], "userName": name, "password": password});
    // Characters, not bytes.
    let refused = world.post("/Users", user("ines", "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}")).await;
    refused.is_error(400, "invalidValue");
    assert!(refused.detail().contains("password") && !refused.detail().contains('\u{e9}'));
    let id = world.post("/Users", user("ines", "eightlng")).await.is(201).id();
    let path = format!("/Users/{id}");
    let short = json!([{"op": "replace", "value": {"password": "short"}}]);
    world.patch(&path, short).await.is_error(400, "invalidValue");
    world.put(&path, user("ines", "short")).await.is_error(400, "invalidValue");
    world.put(&path, json!({"schemas": [USER], "userName": "ines"})).await.is(200);
}

/// A create with a password answers as one without: its two events make version 2 and nothing else.
#[tokio::test]
async fn a_create_with_a_password_is_a_create() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "ines", "password": SECRET});
    let created = world.post("/Users", body).await;
    assert_eq!(created.is(201).header("etag"), "W/\"2\"");
    let got = world.get(&format!("/Users/{}", created.id())).await;
    assert_eq!(got.body, created.body);
}

/// Unknown, inactive and deleted users, users without a password and users of other tenants all look alike.
#[tokio::test]
async fn who_cannot_be_verified() {
    let world = World::new().await;
    let (id, token) = with_password(&world, "ines").await;
    let no = json!({"verified": false});
    let of = async |body: Value| verify(&world, &token, body).await.is(200).body.clone();
    assert_eq!(of(json!({"id": id, "password": SECRET})).await["verified"], true);
    assert_eq!(of(json!({"id": "nobody", "password": SECRET})).await, no);
    assert_eq!(of(json!({"userName": "nobody", "password": SECRET})).await, no);
    world.user("bo").await;
    assert_eq!(of(json!({"userName": "bo", "password": SECRET})).await, no);
    let group = world.group("Team", &[&id]).await;
    assert_eq!(of(json!({"id": group, "password": SECRET})).await, no);
    let foreign = world.other_tenant("globex").await;
    let elsewhere = world.call("POST", "/Users").anonymous().token(&foreign);
    elsewhere.json(&json!({"schemas": [USER], "userName": "eve", "password": SECRET})).send().await.is(201);
    assert_eq!(of(json!({"userName": "eve", "password": SECRET})).await, no);
    let set = json!([{"op": "replace", "path": "active", "value": false}]);
    world.patch(&format!("/Users/{id}"), set).await.is(200);
    assert_eq!(of(json!({"id": id, "password": SECRET})).await, no);
    let set = json!([{"op": "replace", "path": "active", "value": true}]);
    world.patch(&format!("/Users/{id}"), set).await.is(200);
    assert_eq!(of(json!({"id": id, "password": SECRET})).await["verified"], true);
    world.delete(&format!("/Users/{id}")).await.is(204);
    assert_eq!(of(json!({"id": id, "password": SECRET})).await, no);
}

/// SE-006: no other scope checks passwords, and this one does nothing else.
#[tokio::test]
async fn checking_has_a_scope_of_its_own() {
    let world = World::new().await;
    let (_, token) = with_password(&world, "ines").await;
    let body = json!({"userName": "ines", "password": SECRET});
    let refused = verify(&world, &world.token, body.clone()).await;
    refused.is_error(403, "");
    assert!(refused.header("www-authenticate").contains("scope=\"scim.verify\""));
    world.call("GET", "/Users").anonymous().token(&token).send().await.is_error(403, "");
    world
        .call("POST", "//raw/auth/v1/verify-password")
        .anonymous()
        .json(&body)
        .send()
        .await
        .is_error(401, "");
    world.call("GET", "//raw/auth/v1/verify-password").send().await.is_error(405, "");
}

/// Bodies that ask nothing; no answer repeats the password.
#[tokio::test]
async fn malformed_questions() {
    let world = World::new().await;
    let token = world.token_with(vec![Scope::Verify], None).await;
    for (body, keyword) in [
        (json!({"userName": "ines"}), "invalidValue"),
        (json!({"password": SECRET}), "invalidValue"),
        (json!({"userName": "ines", "id": "1", "password": SECRET}), "invalidValue"),
        (json!({"userName": "", "password": SECRET}), "invalidValue"),
        (json!({"userName": "ines", "password": ""}), "invalidValue"),
        (json!({"userName": "ines", "password": SECRET.repeat(200)}), "invalidValue"),
        (json!({"userName": "ines", "password": [SECRET]}), "invalidValue"),
        (json!({"userName": "ines", "passwort": SECRET, "password": SECRET}), "invalidSyntax"),
        (json!([SECRET]), "invalidSyntax"),
    ] {
        let answer = verify(&world, &token, body).await;
        answer.is_error(400, keyword);
        assert!(!answer.detail().contains("rrect"), "{}", answer.detail());
    }
}

/// SE-010: wrong passwords are counted per account, whatever name it goes by; right ones cost nothing; the
/// token has a limit of its own; other requests are not touched.
#[tokio::test]
async fn guessing_is_slowed() {
    let options = annals_api::ApiOptions { password_failures_max: 3, ..crate::world::options() };
    let world = World::with(Default::default(), Default::default(), options).await;
    let (id, token) = with_password(&world, "ines").await;
    let right = json!({"id": id, "password": SECRET});
    for _ in 0..4 {
        verify(&world, &token, right.clone()).await.is(200);
    }
    for wrong in [
        json!({"id": id, "password": "a"}),
        json!({"userName": "ines", "password": "b"}),
        json!({"userName": "INES", "password": "c"}),
    ] {
        verify(&world, &token, wrong).await.is(200);
    }
    let refused = verify(&world, &token, right.clone()).await;
    refused.is_error(429, "");
    assert_eq!(refused.header("retry-after"), "100");
    for n in 0..4 {
        let unknown = verify(&world, &token, json!({"userName": "nobody", "password": "a"})).await;
        assert_eq!(unknown.status, if n < 3 { 200 } else { 429 });
    }
    world.get(&format!("/Users/{id}")).await.is(200);
    world.clock.advance_ms(100_000);
    verify(&world, &token, right).await.is(200);

    let options = annals_api::ApiOptions { password_checks_per_second_max: 2, ..crate::world::options() };
    let world = World::with(Default::default(), Default::default(), options).await;
    let token = world.token_with(vec![Scope::Verify], None).await;
    for (name, status) in [("a", 200), ("b", 200), ("c", 429)] {
        let answer = verify(&world, &token, json!({"userName": name, "password": "x"})).await;
        assert_eq!(answer.status, status, "{name}");
    }
}

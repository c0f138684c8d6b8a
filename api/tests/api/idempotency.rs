//! `Idempotency-Key`: the same request again is answered by what the first one came to.

use annals_domain::scim::dialect::Profile;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::world::{Answer, Fixture, PATCH, USER, World};

async fn keyed(world: &World, method: &str, path: &str, key: &str, body: &Value) -> Answer {
    world.call(method, path).header("idempotency-key", key).json(body).send().await
}

#[tokio::test]
async fn a_repeated_create_makes_no_second_user() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "bo"});
    let first = keyed(&world, "POST", "/Users", "k1", &body).await;
    assert_eq!(first.is(201).header("idempotency-replayed"), "");
    let events = world.events().await;
    let again = keyed(&world, "POST", "/Users", "k1", &body).await;
    assert_eq!(again.is(201).header("idempotency-replayed"), "true");
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(world.events().await, events);
    keyed(&world, "POST", "/Users", "k2", &body).await.is_error(409, "uniqueness");
}

#[tokio::test]
async fn a_key_for_another_request_is_an_error() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let body = json!({"schemas": [USER], "userName": "dora"});
    keyed(&world, "POST", "/Users", "k1", &body).await.is(201);
    let other = json!({"schemas": [USER], "userName": "emil"});
    let answer = keyed(&world, "POST", "/Users", "k1", &other).await;
    answer.is_error(422, "");
    assert!(answer.detail().contains("Idempotency-Key"));
    keyed(&world, "PUT", &format!("/Users/{}", f.u1), "k1", &body).await.is_error(422, "");
    assert!(world.filter("/Users", "userName eq \"emil\"").await.ids().is_empty());
    // Keys belong to a connection.
    let second = world.connect("acme", "second", Profile::Generic).await;
    let call = world.call("POST", "/Users").token(&second).header("idempotency-key", "k1");
    call.json(&other).send().await.is(201);
}

#[tokio::test]
async fn changes_and_deletes_are_carried_out_once() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let body = json!({"schemas": [PATCH], "Operations": [{"op": "add", "path": "emails", "value": [{"value": "new@x.test"}]}]});
    let first = keyed(&world, "PATCH", &path, "k1", &body).await;
    first.is(200);
    // Somebody else undoes it; the late repetition must not do it again.
    world.patch(&path, json!([{"op": "remove", "path": "emails[value eq \"new@x.test\"]"}])).await.is(200);
    let again = keyed(&world, "PATCH", &path, "k1", &body).await;
    assert_eq!(again.is(200).header("idempotency-replayed"), "true");
    assert_eq!(world.get(&path).await.body["emails"].as_array().unwrap().len(), 2);
    let delete = async || world.call("DELETE", &path).header("idempotency-key", "k2").send().await;
    assert_eq!(delete().await.is(204).header("idempotency-replayed"), "");
    assert_eq!(delete().await.is(204).header("idempotency-replayed"), "true");
    world.delete(&path).await.is_error(404, "");
    keyed(&world, "PATCH", &path, "k1", &body).await.is_error(404, "");
}

#[tokio::test]
async fn parallel_repetitions_are_one() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "bo"});
    let answers = join_all((0..5).map(|_| keyed(&world, "POST", "/Users", "k1", &body))).await;
    let ids: std::collections::BTreeSet<String> = answers.iter().map(|a| a.is(201).id()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|a| a.header("idempotency-replayed").is_empty()).count(), 1);
}

#[tokio::test]
async fn a_refused_request_may_be_repeated_with_its_key() {
    let world = World::new().await;
    let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
    let body = json!({"schemas": [USER], "userName": "BO"});
    keyed(&world, "POST", "/Users", "k1", &body).await.is_error(409, "uniqueness");
    world.delete(&format!("/Users/{id}")).await.is(204);
    keyed(&world, "POST", "/Users", "k1", &body).await.is(201);
}

#[tokio::test]
async fn keys_are_short_texts() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "bo"});
    for bad in ["", &"k".repeat(256)] {
        keyed(&world, "POST", "/Users", bad, &body).await.is_error(400, "invalidValue");
    }
    let twice = world.call("POST", "/Users").header("idempotency-key", "a").header("idempotency-key", "b");
    twice.json(&body).send().await.is_error(400, "invalidValue");
    keyed(&world, "POST", "/Users", &"k".repeat(255), &body).await.is(201);
}

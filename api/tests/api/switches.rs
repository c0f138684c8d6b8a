//! Switches of a connection that change what is answered (docs/client-profiles.md).

use annals_domain::ids::ConnectionId;
use annals_domain::scim::dialect::{Client, Profile, Quirk};
use annals_domain::tenant::Connection;
use serde_json::json;

use crate::world::{USER, World, actor};

/// The world's connection from now on.
async fn switch(world: &World, client: Client) {
    let connection = Connection::new(ConnectionId::new("main").expect("a slug"), client);
    world.store.update_connection(&world.tenant, connection, actor()).await.expect("a change");
}

/// `reactivate-on-create`: 409 by default; switched on, the inactive user comes back under its id, and only
/// an inactive one does.
#[tokio::test]
async fn reactivate_on_create() {
    let world = World::new().await;
    let first = world.user("ines").await;
    let id = first["id"].as_str().unwrap().to_owned();
    let group = world.group("Team", &[&id]).await;
    world
        .patch(&format!("/Users/{id}"), json!([{"op": "replace", "path": "active", "value": false}]))
        .await
        .is(200);
    let body = json!({"schemas": [USER], "userName": "INES", "title": "Lead"});
    world.post("/Users", body.clone()).await.is_error(409, "uniqueness");
    switch(&world, Client::from(Profile::Generic).with(Quirk::ReactivateOnCreate, true)).await;
    let inactive = json!({"schemas": [USER], "userName": "ines", "active": "False"});
    world.post("/Users", inactive).await.is_error(409, "uniqueness");
    let back = world.post("/Users", body.clone()).await;
    assert_eq!(
        (back.is(201).id(), &back.body["active"], &back.body["title"]),
        (id.clone(), &json!(true), &json!("Lead"))
    );
    assert_eq!((&back.body["userName"], &back.body["groups"][0]["value"]), (&json!("INES"), &json!(group)));
    assert!(back.header("location").ends_with(&id));
    world.post("/Users", body).await.is_error(409, "uniqueness");
    let events = world.store.read_events(0, 100).await.expect("events");
    assert!(events.last().unwrap().cause.quirks.contains(&"reactivate-on-create".to_owned()));
}

/// OK-002: the token alone is no credentials, whether it is valid or not, until the connection says so.
#[tokio::test]
async fn a_token_without_its_scheme() {
    let world = World::of(Profile::Okta).await;
    let bare = async |token: &str| {
        world.call("GET", "/Users").anonymous().header("authorization", token).send().await
    };
    let (known, unknown) = (bare(&world.token).await, bare("non-token").await);
    known.is_error(401, "");
    assert_eq!(
        (&known.body, known.header("www-authenticate")),
        (&unknown.body, unknown.header("www-authenticate"))
    );
    switch(&world, Client::from(Profile::Okta).with(Quirk::BareToken, true)).await;
    bare(&world.token).await.is(200);
    bare("non-token").await.is_error(401, "");
    world.get("/Users").await.is(200);
}

/// V14, EN-006, OL-003: group names and media types follow the switch, not only the profile.
#[tokio::test]
async fn group_names_and_media_types() {
    let world = World::of(Profile::Entra).await;
    let plain = || world.call("GET", "/Groups").header("accept", "application/json");
    assert_eq!(plain().send().await.header("content-type"), "application/scim+json");
    world.group("Team", &[]).await;
    let again = json!({"displayName": "TEAM"});
    world.post("/Groups", again.clone()).await.is_error(409, "uniqueness");
    let client = Client::from(Profile::Entra).with(Quirk::GroupNameUnique, false);
    switch(&world, client.clone().with(Quirk::ScimMediaType, false)).await;
    world.post("/Groups", again).await.is(201);
    assert_eq!(plain().send().await.header("content-type"), "application/json");
    assert_eq!(world.get("/Groups").await.header("content-type"), "application/scim+json");
    switch(&world, client.with(Quirk::JsonMediaType, true)).await;
    assert_eq!(world.get("/Groups").await.header("content-type"), "application/json");
}

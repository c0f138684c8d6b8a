//! Switches of a connection that change what is answered (docs/client-profiles.md).

use annals_domain::ids::ConnectionId;
use annals_domain::scim::dialect::{Client, Profile, Quirk};
use annals_domain::tenant::Connection;
use serde_json::json;

use crate::world::{GROUP, PATCH, SEARCH, USER, World, actor};

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

/// `reactivate-on-create` in a bulk request: each create sees what the operations before it left, and
/// references lead to the user who came back.
#[tokio::test]
async fn reactivate_on_create_in_bulk() {
    let world = World::new().await;
    let id = async |name: &str| world.user(name).await["id"].as_str().unwrap().to_owned();
    let (ines, max, zoe) = (id("ines").await, id("max").await, id("zoe").await);
    let suspend = json!([{"op": "replace", "path": "active", "value": false}]);
    world.patch(&format!("/Users/{ines}"), suspend.clone()).await.is(200);
    let post = |bulk_id: &str, name: &str| {
        let data = json!({"schemas": [USER], "userName": name, "title": "Back"});
        json!({"method": "POST", "path": "/Users", "bulkId": bulk_id, "data": data})
    };
    let request = |failed: Option<u32>, operations: serde_json::Value| {
        let urn = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
        json!({"schemas": [urn], "failOnErrors": failed, "Operations": operations})
    };
    let statuses = |answer: &crate::world::Answer| {
        let entries = answer.is(200).body["Operations"].as_array().unwrap().clone();
        entries.iter().map(|entry| entry["status"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let off = world.post("/Bulk", request(None, json!([post("a", "INES"), post("b", "new0")]))).await;
    assert_eq!(statuses(&off), "409 201");
    switch(&world, Client::from(Profile::Generic).with(Quirk::ReactivateOnCreate, true)).await;
    let patch = json!({"schemas": [crate::world::PATCH], "Operations": suspend});
    let (member, group) = (
        json!([{"value": "bulkId:i"}, {"value": "bulkId:m"}]),
        "urn:ietf:params:scim:schemas:core:2.0:Group",
    );
    let operations = json!([
        post("n", "new1"),
        post("i", "INES"),
        // Active until the next operation.
        post("z", "zoe"),
        {"method": "PATCH", "path": format!("/Users/{max}"), "data": patch},
        post("m", "Max"),
        // Just brought back.
        post("again", "max"),
        {"method": "DELETE", "path": format!("/Users/{zoe}")},
        post("zz", "zoe"),
        {"method": "POST", "path": "/Groups", "bulkId": "g",
         "data": {"schemas": [group], "displayName": "Team", "members": member}},
    ]);
    let answer = world.post("/Bulk", request(None, operations)).await;
    assert_eq!(statuses(&answer), "201 201 409 200 201 409 204 201 201");
    let location =
        |at: usize| answer.body["Operations"][at]["location"].as_str().unwrap_or_default().to_owned();
    assert!(location(1).ends_with(&ines) && location(4).ends_with(&max), "{}", answer.body);
    assert!(!location(7).ends_with(&zoe));
    let group = location(8).rsplit('/').next().unwrap().to_owned();
    let mut members = world.members(&group).await;
    members.sort();
    let mut expected = [ines.clone(), max.clone()];
    expected.sort();
    assert_eq!(members, expected);
    for id in [&ines, &max] {
        let user = world.get(&format!("/Users/{id}")).await;
        assert_eq!((&user.is(200).body["active"], &user.body["title"]), (&json!(true), &json!("Back")));
    }
    let events = world.store.read_events(0, 100).await.expect("events");
    let of_ines = events.iter().rfind(|event| event.stream.id.as_str() == ines).unwrap();
    assert!(of_ines.cause.quirks.contains(&"reactivate-on-create".to_owned()));
    assert_eq!(of_ines.cause.bulk_index, Some(1));
    // Nothing beyond the last error allowed.
    world.patch(&format!("/Users/{ines}"), suspend.clone()).await.is(200);
    let stopped = world.post("/Bulk", request(Some(1), json!([post("m", "max"), post("i", "ines")]))).await;
    assert_eq!(statuses(&stopped), "409");
    assert_eq!(world.get(&format!("/Users/{ines}")).await.body["active"], false);
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

/// `require-if-match`: 428 for a change that names no version, a bulk operation's included; creates and reads
/// need none.
#[tokio::test]
async fn require_if_match() {
    let world = World::new().await;
    switch(&world, Client::from(Profile::Generic).with(Quirk::RequireIfMatch, true)).await;
    let id = world.user("ines").await["id"].as_str().unwrap().to_owned();
    let path = format!("/Users/{id}");
    let etag = world.get(&path).await.header("etag").to_owned();
    let events = world.events().await;
    let body = json!({"schemas": [USER], "userName": "ines", "title": "Lead"});
    let patch = json!({"schemas": [PATCH], "Operations": [{"op": "add", "value": {"title": "Lead"}}]});
    world.put(&path, body.clone()).await.is_error(428, "");
    world.call("PATCH", &path).json(&patch).send().await.is_error(428, "");
    world.delete(&path).await.is_error(428, "");
    let operation = |version: Option<&str>| {
        let mut operation = json!({"method": "PATCH", "path": path, "data": patch});
        if let Some(version) = version {
            operation["version"] = json!(version);
        }
        let bulk = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
        json!({"schemas": [bulk], "Operations": [operation]})
    };
    let done = world.post("/Bulk", operation(None)).await;
    assert_eq!(done.is(200).body["Operations"][0]["status"], "428");
    assert_eq!(done.body["Operations"][0]["response"]["status"], "428");
    assert_eq!(world.events().await, events);
    let done = world.post("/Bulk", operation(Some(&etag))).await;
    assert_eq!(done.is(200).body["Operations"][0]["status"], "200");
    world.call("PUT", &path).header("if-match", &etag).json(&body).send().await.is_error(412, "");
    world.call("PUT", &path).header("if-match", "*").json(&body).send().await.is(200);
    let etag = world.get(&path).await.header("etag").to_owned();
    world.call("DELETE", &path).header("if-match", &etag).send().await.is(204);
}

/// RQ-006, `refuse-root-lists`: all resources at once are too many on such a connection; those of one type, or
/// with a filter, are not.
#[tokio::test]
async fn refuse_root_lists() {
    let world = World::new().await;
    world.user("ines").await;
    let search = json!({"schemas": [SEARCH]});
    let filtered = json!({"schemas": [SEARCH], "filter": "meta.resourceType eq \"User\""});
    assert_eq!(world.get("/").await.is(200).body["totalResults"], 1);
    switch(&world, Client::from(Profile::Generic).with(Quirk::RefuseRootLists, true)).await;
    world.get("/").await.is_error(400, "tooMany");
    world.get("/?startIndex=1&count=1").await.is_error(400, "tooMany");
    world.post("/.search", search).await.is_error(400, "tooMany");
    assert_eq!(world.post("/.search", filtered).await.is(200).body["totalResults"], 1);
    world.get("/Users").await.is(200);
}

/// EN-075: one request that replaces the members of a group and removes most of them is counted, whether by
/// PATCH, PUT or bulk; smaller losses and `merge-members` are not.
#[tokio::test]
async fn a_mass_removal_is_noticed() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(world.user(&format!("u{n}")).await["id"].as_str().unwrap().to_owned());
    }
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    let group = world.group("Team", &all).await;
    let path = format!("/Groups/{group}");
    let members = |ids: &[&str]| ids.iter().map(|id| json!({"value": id})).collect::<Vec<_>>();
    let replace = |ids: &[&str]| json!([{"op": "replace", "path": "members", "value": members(ids)}]);
    let put = |ids: &[&str]| json!({"schemas": [GROUP], "displayName": "Team", "members": members(ids)});
    let counted = || {
        let line = handle
            .render()
            .lines()
            .find_map(|line| line.strip_prefix("annals_group_mass_removals_total ")?.parse::<u32>().ok());
        line.unwrap_or(0)
    };
    // Six of twelve are not more than half; five of five are not more than five.
    world.patch(&path, replace(&all[..6])).await.is(204);
    world.patch(&path, replace(&all[..5])).await.is(204);
    world.patch(&path, replace(&[])).await.is(204);
    assert_eq!(counted(), 0);
    world.patch(&path, replace(&all)).await.is(204);
    world.patch(&path, replace(&all[..5])).await.is(204);
    assert_eq!(counted(), 1);
    world.put(&path, put(&all)).await.is(200);
    world.put(&path, put(&all[..1])).await.is(200);
    assert_eq!(counted(), 2);
    world.put(&path, put(&all)).await.is(200);
    let operation = json!({"method": "PUT", "path": path, "data": put(&all[..1])});
    let bulk = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
    world.post("/Bulk", json!({"schemas": [bulk], "Operations": [operation]})).await.is(200);
    assert_eq!(counted(), 3);
    world.put(&path, put(&all)).await.is(200);
    switch(&world, Client::from(Profile::Generic).with(Quirk::MergeMembers, true)).await;
    world.patch(&path, replace(&all[..1])).await.is(204);
    assert_eq!((world.members(&group).await.len(), counted()), (12, 3));
}

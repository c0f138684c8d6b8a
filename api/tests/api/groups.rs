//! Groups and their members (D4; scim-requirements §1.5, §7.4).

use std::collections::BTreeSet;

use axum::body::Body;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::world::{Fixture, GROUP, World, options};

#[tokio::test]
async fn members_are_shown_with_type_reference_and_name() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    // The names of members come from the read model: any query waits for it.
    world.get("/Users?count=0").await.is(200);
    let answer = world.get(&format!("/Groups/{}", f.g1)).await;
    assert_eq!(
        answer.body["members"],
        json!([
            {"value": f.u1, "type": "User", "display": "Anna Berg", "$ref": format!("https://scim.test/scim/v2/Users/{}", f.u1)},
            {"value": f.u2, "type": "User", "display": "Bo", "$ref": format!("https://scim.test/scim/v2/Users/{}", f.u2)},
        ])
    );
    let answer = world.get(&format!("/Groups/{}", f.g2)).await;
    assert_eq!(answer.body["members"][0]["type"], "Group");
    assert_eq!(answer.body["members"][0]["display"], "Ops");
    let empty =
        world.post("/Groups", json!({"schemas": [GROUP], "displayName": "empty", "members": []})).await;
    assert_eq!(empty.is(201).body.get("members"), None);
}

/// GR-002: all members, unless they are excluded or not asked for.
#[tokio::test]
async fn members_follow_the_projection() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let get = async |query: &str| world.get(&format!("/Groups/{}?{query}", f.g1)).await.body;
    assert_eq!(get("excludedAttributes=members").await.get("members"), None);
    assert_eq!(
        get("attributes=displayName").await,
        json!({"schemas": [GROUP], "id": f.g1, "displayName": "Ops"})
    );
    let only = get("attributes=members.value").await;
    assert_eq!(only["members"], json!([{"value": f.u1}, {"value": f.u2}]));
    let without = get("excludedAttributes=members.$ref,members.display").await;
    assert_eq!(without["members"][0], json!({"value": f.u1, "type": "User"}));
    let listed = world.get("/Groups?attributes=members.value").await;
    assert_eq!(listed.body["Resources"][0]["members"], json!([{"value": f.u1}, {"value": f.u2}]));
    let listed = world.get("/Groups?excludedAttributes=members").await;
    assert!(listed.body["Resources"].as_array().unwrap().iter().all(|g| g.get("members").is_none()));
}

#[tokio::test]
async fn a_patch_of_a_group_answers_204_unless_more_is_asked_for() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Groups/{}", f.g1);
    let add = json!([{"op": "add", "path": "members", "value": [{"value": f.u3}]}]);
    let answer = world.patch(&path, add.clone()).await;
    answer.is(204);
    assert_eq!(answer.bytes, 0);
    assert_eq!(answer.header("location"), format!("https://scim.test/scim/v2/Groups/{}", f.g1));
    let etag = answer.header("etag").to_owned();
    assert_eq!(world.get(&path).await.header("etag"), etag);
    let again = world.patch(&path, add.clone()).await;
    assert_eq!(again.header("etag"), etag, "PA-011: adding a member again changes nothing");
    let asked = world.patch(&format!("{path}?attributes=displayName"), add.clone()).await;
    assert_eq!(asked.is(200).body, json!({"schemas": [GROUP], "id": f.g1, "displayName": "Ops"}));
    let asked = world.patch(&format!("{path}?excludedAttributes=members"), add.clone()).await;
    assert_eq!(asked.is(200).body["displayName"], "Ops");
    let body = json!({"schemas": [crate::world::PATCH], "Operations": add});
    let asked = world.call("PATCH", &path).header("prefer", "return=representation").json(&body).send().await;
    assert_eq!(asked.is(200).body["members"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn members_must_exist_and_a_group_is_no_member_of_itself() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Groups/{}", f.g1);
    let add = |ids: Vec<&str>| {
        let value: Vec<Value> = ids.iter().map(|id| json!({"value": id})).collect();
        json!([{"op": "add", "path": "members", "value": value}])
    };
    let answer = world.patch(&path, add(vec![&f.u3, "missing"])).await;
    answer.is_error(400, "invalidValue");
    assert!(answer.detail().contains("missing"), "{}", answer.detail());
    assert!(!world.members(&f.g1).await.contains(&f.u3), "G17: nothing of it happened");
    world.patch(&path, add(vec![&f.g1])).await.is_error(400, "invalidValue");
    // Entities of administration live in the same journal but are nobody's members.
    for id in ["tenant.acme", "connection.main"] {
        world.patch(&path, add(vec![id])).await.is_error(400, "invalidValue");
    }
    world.patch(&format!("/Groups/{}", f.g1), add(vec![&f.g2])).await.is(204);
    let groups = world.get(&format!("/Users/{}", f.u1)).await;
    assert_eq!(groups.body["groups"].as_array().unwrap().len(), 2, "G20: a cycle ends");
}

#[tokio::test]
async fn a_put_makes_the_members_exactly_those_given() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Groups/{}", f.g1);
    let body = json!({"schemas": [GROUP], "displayName": "Ops", "members": [{"value": f.u3}]});
    let answer = world.put(&path, body.clone()).await;
    answer.is(200);
    assert_eq!(answer.body["members"].as_array().unwrap().len(), 1);
    let again = world.put(&path, body).await;
    assert_eq!(again.header("etag"), answer.header("etag"));
    world.put(&path, json!({"schemas": [GROUP], "displayName": "Ops"})).await.is(200);
    assert!(world.members(&f.g1).await.is_empty());
}

#[tokio::test]
async fn x43_parallel_additions_are_all_kept() {
    let world = World::new().await;
    let group = world.group("Blue", &[]).await;
    let users = join_all((0..20).map(async |n| world.user(&format!("user{n}")).await)).await;
    let ids: BTreeSet<String> = users.iter().map(|u| u["id"].as_str().unwrap().to_owned()).collect();
    let path = format!("/Groups/{group}");
    let adds =
        ids.iter().map(|id| {
            let (world, path) = (&world, &path);
            async move {
                world.patch(path, json!([{"op": "Add", "path": "members", "value": [{"value": id}]}])).await
            }
        });
    for answer in join_all(adds).await {
        answer.is(204);
    }
    assert_eq!(world.members(&group).await.into_iter().collect::<BTreeSet<_>>(), ids);
}

/// DE-004: an ordinary change of the group.
#[tokio::test]
async fn a_deleted_user_is_no_member_any_more() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Groups/{}", f.g1);
    let before = world.get(&path).await;
    world.clock.advance_ms(1_000);
    world.delete(&format!("/Users/{}", f.u1)).await.is(204);
    assert_eq!(world.members(&f.g1).await, [f.u2.as_str()]);
    let after = world.get(&path).await;
    assert_ne!(after.header("etag"), before.header("etag"));
    assert_ne!(after.body["meta"]["lastModified"], before.body["meta"]["lastModified"]);
    let events = world.store.read_events(0, 1_000).await.unwrap();
    let of_group = events.iter().rfind(|event| event.stream.id.as_str() == f.g1).unwrap();
    assert_eq!(of_group.kind, "group.members_removed");
    let by_member = format!("id eq \"{}\" and members eq \"{}\"", f.g1, f.u1);
    assert!(world.filter("/Groups", &by_member).await.ids().is_empty());
}

async fn many_users(world: &World, count: usize) -> Vec<String> {
    let created = stream::iter(0..count).map(|n| async move { world.user(&format!("u{n:05}")).await });
    let users: Vec<Value> = created.buffer_unordered(200).collect().await;
    users.iter().map(|u| u["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_large_group_is_streamed_whole_and_in_order() {
    let world = World::new().await;
    let ids = many_users(&world, 2_500).await;
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let group = world.group("All", &ids).await;
    let response = world.call("GET", &format!("/Groups/{group}")).respond().await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("content-length").is_none());
    let mut body: Body = response.into_body();
    let (mut whole, mut largest) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        largest = largest.max(data.len());
        whole.extend_from_slice(&data);
    }
    assert!(largest < whole.len() / 2 + 256 * 1024, "no frame holds the whole: {largest} of {}", whole.len());
    let body: Value = serde_json::from_slice(&whole).unwrap();
    let members: Vec<&str> =
        body["members"].as_array().unwrap().iter().map(|m| m["value"].as_str().unwrap()).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(members, sorted);
    // The same from a list, between two small groups.
    world.clock.advance_ms(1);
    world.group("Zero", &[]).await;
    let listed = world.get("/Groups").await;
    assert_eq!(listed.body["Resources"].as_array().unwrap().len(), 2);
    assert_eq!(listed.body["Resources"][0]["members"].as_array().unwrap().len(), 2_500);
    // Without members, nothing of it is read.
    let answer = world.get(&format!("/Groups/{group}?excludedAttributes=members")).await;
    assert_eq!(answer.body.get("members"), None);
}

#[tokio::test]
async fn exactly_one_page_of_members_is_a_whole_array() {
    let world = World::new().await;
    let ids = many_users(&world, 1_000).await;
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let group = world.group("Thousand", &ids).await;
    assert_eq!(world.members(&group).await.len(), 1_000);
}

#[tokio::test]
async fn a_group_change_may_be_larger_than_other_bodies() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Groups/{}", f.g1);
    // 2 MiB of repetitions of one member.
    let member = json!({"value": f.u3, "display": "x".repeat(1_000)});
    let many: Vec<&Value> = std::iter::repeat_n(&member, 2_000).collect();
    world.patch(&path, json!([{"op": "add", "path": "members", "value": many}])).await.is(204);
    assert_eq!(world.members(&f.g1).await.len(), 3);
    let body = json!({"schemas": [GROUP], "displayName": "big", "members": many});
    let answer = world.post("/Groups", body).await;
    answer.is_error(413, "");
    assert!(answer.detail().contains("1048576 bytes (body_bytes_max)"), "{}", answer.detail());
    let world = World::with(
        annals_domain::scim::dialect::Profile::Generic,
        Default::default(),
        annals_api::ApiOptions { group_body_bytes_max: 100, ..options() },
    )
    .await;
    let answer = world.put("/Groups/x", json!({"displayName": "x".repeat(200)})).await;
    answer.is_error(413, "");
    assert!(answer.detail().contains("100 bytes (group_body_bytes_max)"), "{}", answer.detail());
}

#[tokio::test]
async fn group_names_are_unique_only_if_wanted() {
    use annals_domain::{scim::dialect::Profile, tenant::TenantSettings};
    let world = World::new().await;
    world.group("Ops", &[]).await;
    world.group("ops", &[]).await;
    let settings = TenantSettings { group_name_unique: true, ..TenantSettings::default() };
    let world = World::with(Profile::Generic, settings, options()).await;
    let first = world.group("Ops", &[]).await;
    let body = json!({"schemas": [GROUP], "displayName": "OPS"});
    world.post("/Groups", body).await.is_error(409, "uniqueness");
    let second = world.group("Other", &[]).await;
    let rename = json!([{"op": "replace", "path": "displayName", "value": "oPs"}]);
    world.patch(&format!("/Groups/{second}"), rename.clone()).await.is_error(409, "uniqueness");
    world.patch(&format!("/Groups/{first}"), rename).await.is(204);
}

#[tokio::test]
async fn a_tenant_may_allow_members_that_do_not_exist_yet() {
    use annals_domain::{scim::dialect::Profile, tenant::TenantSettings};
    let settings = TenantSettings { dangling_members: true, ..TenantSettings::default() };
    let world = World::with(Profile::Generic, settings, options()).await;
    let user = world.user("bo").await["id"].as_str().unwrap().to_owned();
    let group = world.group("Ops", &["ghost", &user, "tenant.acme"]).await;
    let mut members =
        world.get(&format!("/Groups/{group}")).await.body["members"].as_array().unwrap().clone();
    members.retain(|m| m.get("type").is_none());
    assert_eq!(members, [json!({"value": "ghost"}), json!({"value": "tenant.acme"})]);
    for filter in [format!("id eq \"{group}\" and members eq \"ghost\""), "members.value eq \"ghost\"".into()]
    {
        assert_eq!(world.filter("/Groups", &filter).await.ids(), [group.as_str()], "{filter}");
    }
}

//! Versions and conditions (scim-requirements §2.15).

use futures::future::join_all;
use serde_json::json;

use crate::world::{Fixture, PATCH, USER, World};

/// VE-002
#[tokio::test]
async fn x29_a_known_version_is_not_sent_again() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    for tag in ["W/\"2\"", "\"2\"", "*", "W/\"1\", W/\"2\""] {
        let answer = world.call("GET", &path).header("if-none-match", tag).send().await;
        answer.is(304);
        assert_eq!((answer.bytes, answer.header("etag")), (0, "W/\"2\""), "{tag}");
    }
    world.call("GET", &path).header("if-none-match", "W/\"1\"").send().await.is(200);
}

/// VE-003; VE-004: weak comparison, and tags without `W/` or quotes; VE-006: what is no tag matches nothing.
#[tokio::test]
async fn x30_p56_p57_a_stale_version_changes_nothing() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let events = world.events().await;
    let patch = json!({"schemas": [PATCH], "Operations": [{"op": "replace", "path": "title", "value": "T"}]});
    let put = json!({"schemas": [USER], "userName": "anna"});
    for stale in ["W/\"1\"", "\"1\"", "W/\"3\", W/\"1\"", "nonsense", "W/\"two\"", ""] {
        world.call("DELETE", &path).header("if-match", stale).send().await.is_error(412, "");
        world.call("PATCH", &path).header("if-match", stale).json(&patch).send().await.is_error(412, "");
        world.call("PUT", &path).header("if-match", stale).json(&put).send().await.is_error(412, "");
    }
    assert_eq!(world.events().await, events);
    world.call("PATCH", &path).header("if-match", "W/\"9\", 2").json(&patch).send().await.is(200);
    world.call("PUT", &path).header("if-match", "\"3\"").json(&put).send().await.is(200);
    world.call("DELETE", &path).header("if-match", "*").send().await.is(204);
    world.call("DELETE", &path).header("if-match", "*").send().await.is_error(404, "");
}

/// VE-005
#[tokio::test]
async fn x38_of_two_conditional_changes_one_succeeds() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let patches = (0..2).map(|n| {
        let body = json!({"schemas": [PATCH], "Operations": [{"op": "replace", "path": "title", "value": format!("T{n}")}]});
        world.call("PATCH", &path).header("if-match", "W/\"2\"").json(&body).send()
    });
    let mut statuses: Vec<u16> = join_all(patches).await.iter().map(|a| a.status.as_u16()).collect();
    statuses.sort();
    assert_eq!(statuses, [200, 412]);
    assert_eq!(world.get(&path).await.header("etag"), "W/\"3\"");
}

/// VE-005: without `If-Match` nobody sees that others write, too.
#[tokio::test]
async fn unconditional_changes_of_one_user_all_succeed() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Users/{}", f.u1);
    let patches = ["title", "nickName", "locale", "timezone", "userType"].map(|name| {
        let (world, path) = (&world, &path);
        async move { world.patch(path, json!([{"op": "replace", "path": name, "value": "new"}])).await }
    });
    for answer in join_all(patches).await {
        answer.is(200);
    }
    let answer = world.get(&path).await;
    for name in ["title", "nickName", "locale", "timezone", "userType"] {
        assert_eq!(answer.body[name], "new", "{name}");
    }
    assert_eq!(answer.header("etag"), "W/\"7\"");
}

#[tokio::test]
async fn a_conditional_member_change_is_conditional() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let path = format!("/Groups/{}", f.g1);
    let etag = world.get(&path).await.header("etag").to_owned();
    let body = json!({"schemas": [PATCH], "Operations": [{"op": "add", "path": "members", "value": [{"value": f.u3}]}]});
    world.call("PATCH", &path).header("if-match", &etag).json(&body).send().await.is(204);
    world.call("PATCH", &path).header("if-match", &etag).json(&body).send().await.is_error(412, "");
}

/// EP-005
#[tokio::test]
async fn head_is_get_without_the_body() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let everywhere = [
        format!("/Users/{}", f.u1),
        format!("/Groups/{}", f.g1),
        "/".into(),
        "/Users".into(),
        "/Groups?filter=displayName+pr&count=1".into(),
        "/ServiceProviderConfig".into(),
        "/ResourceTypes".into(),
        "/ResourceTypes/User".into(),
        "/Schemas".into(),
        format!("/Schemas/{USER}"),
    ];
    for path in everywhere {
        let (get, head) = (world.get(&path).await, world.call("HEAD", &path).send().await);
        assert_eq!(head.status, 200, "{path}");
        assert_eq!(head.bytes, 0, "{path}");
        for name in ["etag", "content-type", "location"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
    }
    world.call("HEAD", "/Users/nobody").send().await.is(404);
}

//! `/Me` (RFC 7644 §3.11).

use annals_domain::ids::ConnectionId;
use annals_domain::tenant::Scope;
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::world::{USER, World, actor};

async fn token_of(world: &World, subject: &str, scopes: Vec<Scope>) -> String {
    let connection = ConnectionId::new("main").expect("a slug");
    let subject = Some(subject.to_owned());
    let issued =
        world.store.issue_token_for(&world.tenant, &connection, scopes, None, subject, actor()).await;
    issued.expect("a token").secret.expose_secret().to_owned()
}

/// ME-002, ME-003: the token's user, by id or by name, at the permanent URI, for every method but POST.
#[tokio::test]
async fn me_is_the_tokens_user() {
    let world = World::new().await;
    let id = world.user("Ines").await["id"].as_str().unwrap().to_owned();
    let location = format!("https://scim.test/scim/v2/Users/{id}");
    for subject in [id.as_str(), "ines"] {
        let token = token_of(&world, subject, vec![Scope::Read, Scope::Write]).await;
        let call = |method: &str, path: &str| world.call(method, path).anonymous().token(&token);
        let me = call("GET", "/Me").send().await;
        assert_eq!((me.is(200).id(), me.header("location")), (id.clone(), location.as_str()));
        assert_eq!(
            (&me.body["meta"]["location"], me.header("content-location")),
            (&json!(location), location.as_str())
        );
        let same =
            call("GET", "/me?attributes=userName").header("if-none-match", me.header("etag")).send().await;
        assert_eq!(same.is(304).header("location"), location);
        let operations = json!({"Operations": [{"op": "replace", "path": "title", "value": subject}]});
        let patched = call("PATCH", "/Me").json(&operations).send().await;
        assert_eq!(
            (&patched.is(200).body["title"], patched.header("location")),
            (&json!(subject), location.as_str())
        );
        let stale = call("PUT", "/Me").header("if-match", me.header("etag"));
        stale.json(&json!({"schemas": [USER], "userName": "ines"})).send().await.is_error(412, "");
        let put = call("PUT", "/Me").json(&json!({"schemas": [USER], "userName": "Ines"})).send().await;
        assert_eq!((put.is(200).id(), put.header("location")), (id.clone(), location.as_str()));
        call("POST", "/Me")
            .json(&json!({"schemas": [USER], "userName": "new"}))
            .send()
            .await
            .is_error(501, "");
        let reader = token_of(&world, subject, vec![Scope::Read]).await;
        world.call("DELETE", "/Me").anonymous().token(&reader).send().await.is_error(403, "");
    }
    let token = token_of(&world, "ines", vec![Scope::Read, Scope::Write]).await;
    world.call("DELETE", "/Me").anonymous().token(&token).send().await.is(204);
    world.get(&format!("/Users/{id}")).await.is_error(404, "");
    world.call("GET", "/Me").anonymous().token(&token).send().await.is_error(404, "");
}

/// ME-003: a machine's token has no user; nor has one whose subject is nobody, a group, or in another tenant.
#[tokio::test]
async fn me_without_a_user() {
    let world = World::new().await;
    for method in ["GET", "DELETE"] {
        world.call(method, "/Me").send().await.is_error(404, "");
    }
    let body = json!({"schemas": [USER], "userName": "x", "Operations": [{"op": "remove", "path": "title"}]});
    for method in ["PUT", "PATCH"] {
        world.call(method, "/Me").json(&body).send().await.is_error(404, "");
    }
    world.call("POST", "/Me").json(&body).send().await.is_error(501, "");
    let foreign = world.other_tenant("globex").await;
    let eve = world.call("POST", "/Users").anonymous().token(&foreign);
    let eve = eve.json(&json!({"schemas": [USER], "userName": "eve"})).send().await;
    let group = world.group("Team", &[]).await;
    for subject in ["nobody", "eve", &eve.id(), &group] {
        let token = token_of(&world, subject, vec![Scope::Read]).await;
        world.call("GET", "/Me").anonymous().token(&token).send().await.is_error(404, "");
    }
    world.call("GET", "/Me").anonymous().send().await.is_error(401, "");
}

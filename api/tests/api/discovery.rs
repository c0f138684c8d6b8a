//! ServiceProviderConfig, ResourceTypes, Schemas, and paths nobody serves (scim-requirements §2.1, §2.2,
//! §2.16).

use annals_domain::{scim::dialect::Profile, tenant::TenantSettings};
use serde_json::{Value, json};

use crate::world::{ENT, GROUP, LIST, USER, World, options};

/// EP-008: also under the old plural. DI-001, DI-004: one object, without a token.
#[tokio::test]
async fn the_configuration_advertises_what_works() {
    let world = World::new().await;
    for path in ["/ServiceProviderConfig", "/ServiceProviderConfigs", "/serviceproviderconfig"] {
        let answer = world.call("GET", path).anonymous().send().await;
        answer.is(200);
        let body = answer.body;
        assert_eq!(body["schemas"], json!(["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"]));
        assert_eq!(body["meta"]["location"], "https://scim.test/scim/v2/ServiceProviderConfig");
        let flags: Vec<bool> = ["patch", "bulk", "filter", "changePassword", "sort", "etag"]
            .iter()
            .map(|name| body[name]["supported"].as_bool().unwrap())
            .collect();
        assert_eq!(flags, [true, true, true, true, true, true]);
        assert_eq!(body["filter"]["maxResults"], 200);
        assert_eq!(body["authenticationSchemes"][0]["type"], "oauthbearertoken");
    }
}

/// DI-001, DI-003; DI-002: pages are ignored; DI-006: a schema's id in every spelling.
#[tokio::test]
async fn resource_types_and_schemas_are_listed_and_found_by_id() {
    let world = World::new().await;
    let types = world.call("GET", "/ResourceTypes?startIndex=5&count=1").anonymous().send().await;
    assert_eq!(types.body["schemas"], json!([LIST]));
    assert_eq!(types.body["totalResults"], 2);
    assert_eq!(types.body["itemsPerPage"], 2, "DI-003");
    assert_eq!(types.body["Resources"][0]["endpoint"], "/Users");
    assert_eq!(types.body["Resources"][0]["schemaExtensions"], json!([{"schema": ENT, "required": false}]));
    let one = world.get("/ResourceTypes/Group").await;
    assert_eq!(one.body["schema"], GROUP);
    assert_eq!(
        one.body["meta"],
        json!({"resourceType": "ResourceType", "location": "https://scim.test/scim/v2/ResourceTypes/Group"})
    );
    world.get("/ResourceTypes/Nope").await.is_error(404, "");
    let schemas = world.call("GET", "/Schemas").anonymous().send().await;
    assert_eq!(schemas.body["totalResults"], 6, "RT-002: those of discovery, too");
    assert!(!schemas.body.to_string().contains("null"), "RT-006");
    let ids: Vec<&str> =
        schemas.body["Resources"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert!(ids.iter().all(|id| !id.contains("api:messages")), "RT-003: {ids:?}");
    for path in [
        format!("/Schemas/{USER}"),
        format!("/Schemas/{}", USER.to_uppercase()),
        format!("/Schemas/{}", USER.replace(':', "%3A")),
        format!("/schemas/{USER}"),
    ] {
        let answer = world.get(&path).await;
        answer.is(200);
        assert_eq!(answer.body["id"], USER, "{path}");
        assert_eq!(answer.body["meta"]["resourceType"], "Schema");
    }
    world.get("/Schemas/urn:nope").await.is_error(404, "");
}

/// DI-002, DI-005
#[tokio::test]
async fn f70_filters_are_refused_and_changes_too() {
    let world = World::new().await;
    for path in ["/Schemas", "/ResourceTypes", "/ServiceProviderConfig"] {
        world.get(&format!("{path}?filter=name%20eq%20%22User%22")).await.is_error(403, "");
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let answer = world.call(method, path).send().await;
            answer.is_error(405, "");
            assert!(answer.header("allow").contains("GET"), "{}", answer.header("allow"));
        }
    }
    world.call("PUT", "/Schemas/x").send().await.is_error(405, "");
}

/// DI-005
#[tokio::test]
async fn discovery_has_entity_tags() {
    let world = World::new().await;
    for path in ["/Schemas", "/ResourceTypes/User", "/ServiceProviderConfig"] {
        let etag = world.get(path).await.header("etag").to_owned();
        assert!(etag.starts_with("W/\""));
        let answer = world.call("GET", path).header("if-none-match", &etag).send().await;
        answer.is(304);
        assert_eq!(answer.bytes, 0);
    }
}

#[tokio::test]
async fn a_unique_group_name_is_published() {
    let world = World::of(Profile::Entra).await;
    let uniqueness = |answer: crate::world::Answer| {
        let attributes = answer.body["attributes"].as_array().unwrap().clone();
        attributes.into_iter().find(|a| a["name"] == "displayName").unwrap()["uniqueness"].clone()
    };
    let path = format!("/Schemas/{GROUP}");
    assert_eq!(uniqueness(world.get(&path).await), "server");
    assert_eq!(uniqueness(world.call("GET", &path).anonymous().send().await), "none");
}

/// DI-004
#[tokio::test]
async fn discovery_may_need_a_token() {
    let options = annals_api::ApiOptions { discovery_public: false, ..options() };
    let world = World::with(Profile::Generic, TenantSettings::default(), options).await;
    world.call("GET", "/Schemas").anonymous().send().await.is_error(401, "");
    world.get("/Schemas").await.is(200);
}

/// MT-005: there is no `/Users.scim`.
#[tokio::test]
async fn x35_ep004_unknown_paths_and_methods() {
    let world = World::new().await;
    world.get("/Nope").await.is_error(404, "");
    world.get("/Nope/1").await.is_error(404, "");
    world.get("/Users/1/2").await.is_error(404, "");
    world.get("/Users.scim").await.is_error(404, "");
    world.get("//raw/").await.is_error(404, "");
    world.get("//raw/elsewhere").await.is_error(404, "");
    let answer = world.delete("/Users").await;
    answer.is_error(405, "");
    let mut allow: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
    allow.sort();
    assert_eq!(allow, ["GET", "HEAD", "POST"]);
    world.call("POST", "/Users/1").send().await.is_error(405, "");
    world.call("GET", "/.search").send().await.is_error(405, "");
}

/// VB-001, VB-003
#[tokio::test]
async fn vb002_other_versions_are_refused() {
    let world = World::new().await;
    for path in ["/scim/v1/Users", "/scim/v3/Users", "/scim/v22", "/t/acme/scim/v1/Users"] {
        world.get(path).await.is_error(400, "invalidVers");
    }
    world.get("/scim/vx/Users").await.is_error(404, "");
    world.get("/scim/v2").await.is(200);
    world.get("/scim").await.is_error(404, "");
    // VB-003: without a version, the newest.
    let body = json!({"schemas": [USER], "userName": "bo"});
    let answer = world.post("/scim/Users", body).await;
    assert!(answer.is(201).header("location").starts_with("https://scim.test/scim/v2/Users/"));
}

#[tokio::test]
async fn ep006_the_case_of_an_endpoint_matters_to_strict_clients_only() {
    let world = World::new().await;
    let answer = world.post("/users", json!({"schemas": [USER], "userName": "bo"})).await;
    let location = answer.is(201).header("location").to_owned();
    assert!(location.contains("/scim/v2/Users/"), "{location}");
    world.get(&format!("/USERS/{}", answer.id())).await.is(200);
    world.get(&format!("/Users/{}", answer.id().to_uppercase())).await.is_error(404, "");
    let world = World::of(Profile::Strict).await;
    world.get("/users").await.is_error(404, "");
    world.get("/Users").await.is(200);
}

#[tokio::test]
async fn locations_follow_the_request_unless_configured() {
    let location = async |options: annals_api::ApiOptions, headers: &[(&'static str, &str)]| {
        let world = World::with(Profile::Generic, TenantSettings::default(), options).await;
        let body = json!({"schemas": [USER], "userName": "bo"});
        let mut call = world.call("POST", "/t/acme/scim/v2/Users").json(&body);
        for (name, value) in headers {
            call = call.header(name, value);
        }
        let answer = call.send().await;
        let id = answer.body["id"].as_str().unwrap_or_default().to_owned();
        (answer.status.as_u16(), answer.header("location").replace(&id, "ID"))
    };
    let base = |base: Option<&str>, trust: bool| annals_api::ApiOptions {
        base_url: base.map(str::to_owned),
        trust_forwarded: trust,
        ..options()
    };
    let forwarded: [(&'static str, &str); 3] = [
        ("host", "10.0.0.1:8080"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "scim.example.com, x"),
    ];
    assert_eq!(
        location(base(Some("https://id.example.com/"), false), &forwarded).await,
        (201, "https://id.example.com/t/acme/scim/v2/Users/ID".into())
    );
    assert_eq!(
        location(base(None, false), &forwarded).await.1,
        "http://10.0.0.1:8080/t/acme/scim/v2/Users/ID"
    );
    assert_eq!(
        location(base(None, true), &forwarded).await.1,
        "https://scim.example.com/t/acme/scim/v2/Users/ID"
    );
    assert_eq!(location(base(None, false), &[("host", "evil\"/<x>")]).await.0, 400);
}

/// MT-002
#[tokio::test]
async fn x41_mt003_media_types() {
    let world = World::new().await;
    world.user("bo").await;
    let get = async |accept: Option<&str>| {
        let mut call = world.call("GET", "/Users");
        if let Some(accept) = accept {
            call = call.header("accept", accept);
        }
        let answer = call.send().await;
        answer.is(200);
        answer.header("content-type").to_owned()
    };
    assert_eq!(get(None).await, "application/scim+json", "X41");
    assert_eq!(get(Some("*/*")).await, "application/scim+json");
    assert_eq!(get(Some("application/json")).await, "application/json");
    assert_eq!(get(Some("text/html")).await, "application/scim+json", "EN-005: never 406");
    let answer = world.call("GET", "/Users/x").header("accept", "application/json").send().await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (404, "application/json"));
    let world = World::of(Profile::Entra).await;
    let answer = world.call("GET", "/Users").header("accept", "application/json").send().await;
    assert_eq!(answer.header("content-type"), "application/scim+json", "EN-006");
    let world = World::of(Profile::Strict).await;
    world.call("GET", "/Users").header("accept", "text/html").send().await.is_error(406, "");
    let _: Value = world.get("/Users").await.body;
}

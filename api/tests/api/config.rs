//! ServiceProviderConfig says what is really so, tenant by tenant (CFG-001): each setting is flipped, and both the
//! document and the behaviour change.

use annals_domain::ids::ConnectionId;
use annals_domain::scim::dialect::{Client, Profile, Quirk};
use annals_domain::tenant::{Connection, Scope, TenantSettings};
use serde_json::{Value, json};

use crate::world::{USER, World, actor};

const BULK: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";

impl World {
    async fn set(&self, settings: TenantSettings) {
        self.store.set_tenant_settings(&self.tenant, settings, actor()).await.expect("settings");
    }

    async fn config(&self) -> Value {
        let answer = self.get("/ServiceProviderConfig").await;
        answer.is(200);
        answer.body
    }

    async fn bulk_of(&self, operations: usize) -> (u16, String) {
        let one = |n| {
            json!({"method": "POST", "path": "/Users", "bulkId": format!("b{n}"),
            "data": {"schemas": [USER], "userName": format!("u{n}-{operations}")}})
        };
        let all: Vec<Value> = (0..operations).map(one).collect();
        let answer = self.post("/Bulk", json!({"schemas": [BULK], "Operations": all})).await;
        (answer.status.as_u16(), answer.detail().to_owned())
    }
}

#[tokio::test]
async fn bulk_is_as_narrow_as_the_tenant_says() {
    let world = World::new().await;
    let of_server = world.config().await["bulk"].clone();
    assert_eq!(world.bulk_of(3).await.0, 200);

    world.set(TenantSettings { bulk_operations_max: Some(2), ..TenantSettings::default() }).await;
    assert_eq!(world.config().await["bulk"]["maxOperations"], 2);
    assert_eq!(world.bulk_of(3).await.0, 413);
    assert_eq!(world.bulk_of(2).await.0, 200);

    world.set(TenantSettings { bulk_body_bytes_max: Some(300), ..TenantSettings::default() }).await;
    assert_eq!(world.config().await["bulk"]["maxPayloadSize"], 300);
    let (status, detail) = world.bulk_of(4).await;
    assert!(status == 413 && detail.contains("300 bytes"), "{detail}");

    world.set(TenantSettings { bulk_operations_max: Some(0), ..TenantSettings::default() }).await;
    assert_eq!(world.config().await["bulk"]["supported"], false);
    assert_eq!(world.bulk_of(1).await.0, 501);

    // A tenant asks for more than the server takes: the server's bound is told, and holds.
    world.set(TenantSettings { bulk_operations_max: Some(u32::MAX), ..TenantSettings::default() }).await;
    assert_eq!(world.config().await["bulk"], of_server);
}

#[tokio::test]
async fn pages_are_as_long_as_the_tenant_says() {
    let world = World::new().await;
    for n in 0..4 {
        world.user(&format!("user{n}")).await;
    }
    let settings = TenantSettings {
        page_resources_max: Some(3),
        page_resources_default: Some(2),
        ..TenantSettings::default()
    };
    world.set(settings).await;
    let config = world.config().await;
    assert_eq!(config["filter"]["maxResults"], 3);
    assert_eq!(config["pagination"]["maxPageSize"], 3);
    assert_eq!(config["pagination"]["defaultPageSize"], 2);
    assert_eq!(world.get("/Users").await.ids().len(), 2);
    assert_eq!(world.get("/Users?count=100").await.ids().len(), 3);
}

/// RFC 9865 §2.1: `cursorTimeout`.
#[tokio::test]
async fn a_cursor_lives_as_long_as_the_tenant_says() {
    let world = World::new().await;
    for n in 0..3 {
        world.user(&format!("user{n}")).await;
    }
    world.set(TenantSettings { cursor_lifetime_s: Some(60), ..TenantSettings::default() }).await;
    assert_eq!(world.config().await["pagination"]["cursorTimeout"], 60);
    let page = world.get("/Users?cursor&count=1").await;
    let next = format!("/Users?cursor={}&count=1", page.is(200).body["nextCursor"].as_str().unwrap());
    world.clock.advance_ms(59_000);
    world.get(&next).await.is(200);
    world.clock.advance_ms(1_000);
    world.get(&next).await.is_error(400, "expiredCursor");
}

#[tokio::test]
async fn passwords_that_are_thrown_away_are_not_advertised() {
    let world = World::new().await;
    assert_eq!(world.config().await["changePassword"]["supported"], true);
    let id = ConnectionId::new("main").unwrap();
    let client = Client::from(Profile::Generic).with(Quirk::IgnoreClientPasswords, true);
    world.store.update_connection(&world.tenant, Connection::new(id, client), actor()).await.unwrap();
    assert_eq!(world.config().await["changePassword"]["supported"], false);
    let user = json!({"schemas": [USER], "userName": "ada", "password": "correct horse"});
    world.post("/Users", user).await.is(201);
    let verifier = world.token_with(vec![Scope::Verify], None).await;
    let asked = json!({"userName": "ada", "password": "correct horse"});
    let call = world.call("POST", "//raw/auth/v1/verify-password").token(&verifier);
    assert_eq!(call.json(&asked).send().await.is(200).body, json!({"verified": false}));
}

#[tokio::test]
async fn a_tenants_help_is_its_own_and_another_tenants_settings_are_not_seen() {
    let world = World::new().await;
    let other = world.other_tenant("beta").await;
    let uri = "https://help.acme.example/scim";
    let settings = TenantSettings {
        documentation_uri: Some(uri.into()),
        page_resources_max: Some(7),
        ..TenantSettings::default()
    };
    world.set(settings).await;
    assert_eq!(world.config().await["documentationUri"], uri);
    let theirs = world.call("GET", "/ServiceProviderConfig").token(&other).send().await;
    assert_eq!(theirs.body.get("documentationUri"), None);
    assert_eq!(theirs.body["filter"]["maxResults"], 200);
    let nobody = world.call("GET", "/t/acme/scim/v2/ServiceProviderConfig").anonymous().send().await;
    assert_eq!(nobody.body["filter"]["maxResults"], 7);

    let operator = world.operator().await;
    for (settings, detail) in [
        (json!({"documentationUri": "ftp://x"}), "documentationUri"),
        (json!({"pageResourcesMax": 0}), "pageResourcesMax"),
        (json!({"cursorLifetimeS": 0}), "cursorLifetimeS"),
        (json!({"bulkOperationsMax": -1}), "invalid value"),
    ] {
        let answer = world.admin(&operator, "PATCH", "/tenants/acme", json!({"settings": settings})).await;
        answer.is_problem(400);
        assert!(answer.detail().contains(detail), "{}", answer.detail());
    }
    let reset = json!({"settings": {"documentationUri": null}});
    world.admin(&operator, "PATCH", "/tenants/acme", reset).await.is(200);
    assert_eq!(world.config().await.get("documentationUri"), None);
    assert_eq!(world.config().await["filter"]["maxResults"], 7);
}

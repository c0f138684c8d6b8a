//! Who may come in (scim-requirements §2.18).

use annals_api::{ApiOptions, scim_routes};
use annals_domain::clock::Timestamp;
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Scope, TenantSettings};
use serde_json::json;

use crate::world::{Fixture, START, USER, World, actor, options};

/// Routes that anybody may read.
const PUBLIC: &[&str] = &[
    "/ServiceProviderConfig",
    "/ServiceProviderConfigs",
    "/ResourceTypes",
    "/ResourceTypes/{id}",
    "/Schemas",
    "/Schemas/{id}",
];

fn filled(path: &str) -> String {
    path.replace("{endpoint}", "Users").replace("{id}", "User")
}

/// SE-004: with the SCIM body. DI-004: discovery is public, but not for a bad token.
#[tokio::test]
async fn auth_coverage_no_route_answers_without_a_valid_token() {
    let world = World::new().await;
    let unknown = format!("{}x", &world.token[..world.token.len() - 1]);
    for base in ["/scim/v2", "/t/acme/scim/v2"] {
        for (path, methods) in scim_routes() {
            for method in methods {
                let uri = format!("{base}{}", filled(path));
                let without = world.call(method, &uri).anonymous().raw("{}").send().await;
                if PUBLIC.contains(&path) {
                    assert!(
                        [200, 404].contains(&without.status.as_u16()),
                        "{method} {uri}: {}",
                        without.status
                    );
                } else {
                    assert_eq!(without.status, 401, "{method} {uri}");
                    without.is_error(401, "");
                    assert_eq!(without.header("www-authenticate"), "Bearer realm=\"annals\"", "X31");
                }
                for bad in [unknown.as_str(), "x", "annals_000000000000_00"] {
                    let answer = world.call(method, &uri).token(bad).raw("{}").send().await;
                    assert_eq!(answer.status, 401, "X45: {method} {uri}");
                    answer.is_error(401, "");
                    assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""));
                    assert!(!answer.body.to_string().contains(bad) || bad == "x");
                }
            }
        }
    }
}

#[tokio::test]
async fn every_listed_route_exists_and_no_other_method_does() {
    let world = World::new().await;
    for (path, methods) in scim_routes() {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let answer = world.call(method, &filled(path)).raw("{}").send().await;
            let known = answer.status != 405;
            assert_eq!(known, methods.contains(&method), "{method} {path}: {}", answer.status);
        }
    }
}

#[tokio::test]
async fn x32_an_expired_token_is_invalid() {
    let world = World::new().await;
    let token = world.token_with(vec![Scope::Read], Some(Timestamp(START + 10_000))).await;
    world.call("GET", "/Users").token(&token).send().await.is(200);
    world.clock.advance_ms(10_000);
    let answer = world.call("GET", "/Users").token(&token).send().await;
    answer.is_error(401, "");
    let challenge = answer.header("www-authenticate");
    assert!(challenge.contains("error=\"invalid_token\"") && challenge.contains("expired"), "{challenge}");
}

#[tokio::test]
async fn x33_a_token_may_do_what_its_scopes_say() {
    let world = World::new().await;
    let body = json!({"schemas": [USER], "userName": "bo"});
    let reader = world.token_with(vec![Scope::Read], None).await;
    let answer = world.call("POST", "/Users").token(&reader).json(&body).send().await;
    answer.is_error(403, "");
    let challenge = answer.header("www-authenticate");
    assert!(
        challenge.contains("error=\"insufficient_scope\"") && challenge.contains("scope=\"scim.write\""),
        "{challenge}"
    );
    for method in ["PUT", "PATCH", "DELETE"] {
        world.call(method, "/Users/x").token(&reader).json(&body).send().await.is_error(403, "");
    }
    world
        .call("POST", "/Users/.search")
        .token(&reader)
        .json(&json!({"schemas": [crate::world::SEARCH]}))
        .send()
        .await
        .is(200);
    let admin = world.token_with(vec![Scope::Admin, Scope::Events], None).await;
    world.call("GET", "/Users").token(&admin).send().await.is_error(403, "");
    assert!(world.get("/Users").await.ids().is_empty());
}

#[tokio::test]
async fn a_revoked_token_is_invalid() {
    let world = World::new().await;
    let token = world.token_with(vec![Scope::Read], None).await;
    world.call("GET", "/Users").token(&token).send().await.is(200);
    let tokens = world.store.tokens(&world.tenant).await.unwrap();
    let id = tokens.iter().find(|t| token.contains(&t.id)).unwrap().id.clone();
    world.store.revoke_token(&world.tenant, &id, actor()).await.unwrap();
    world.call("GET", "/Users").token(&token).send().await.is_error(401, "");
}

#[tokio::test]
async fn se003_malformed_credentials() {
    let world = World::new().await;
    let with = async |value: &str| {
        world.call("GET", "/Users").anonymous().header("authorization", value).send().await
    };
    for bare in ["non-token", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Token abc"] {
        let answer = with(bare).await;
        answer.is_error(401, "");
        assert!(!answer.header("www-authenticate").contains("error="), "{bare}");
    }
    with("Bearer a b").await.is_error(401, "");
    with(&format!("Bearer {}", "a".repeat(5_000))).await.is_error(401, "");
    with(&format!("bEARER   {}", world.token)).await.is(200);
    let twice = world.call("GET", "/Users").header("authorization", "Bearer other").send().await;
    twice.is_error(400, "");
    assert!(twice.header("www-authenticate").contains("error=\"invalid_request\""));
}

#[tokio::test]
async fn se005_a_token_in_the_uri_is_refused() {
    let world = World::new().await;
    let path = format!("/Users?access_token={}", world.token);
    for call in [world.call("GET", &path), world.call("GET", &path).anonymous()] {
        let answer = call.send().await;
        answer.is_error(400, "");
        assert!(!answer.body.to_string().contains(&world.token));
    }
}

#[tokio::test]
async fn se011_a_tenant_sees_only_itself() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let other = world.other_tenant("globex").await;
    let events = world.events().await;
    for path in [format!("/Users/{}", f.u1), format!("/Groups/{}", f.g1)] {
        let body = json!({"schemas": [USER], "userName": "x", "displayName": "x"});
        let patch = json!({"schemas": [crate::world::PATCH], "Operations": [{"op": "replace", "path": "displayName", "value": "x"}]});
        world.call("GET", &path).token(&other).send().await.is_error(404, "");
        world.call("PUT", &path).token(&other).json(&body).send().await;
        world.call("PATCH", &path).token(&other).json(&patch).send().await.is_error(404, "");
        world.call("DELETE", &path).token(&other).send().await.is_error(404, "");
    }
    assert!(world.call("GET", "/").token(&other).send().await.ids().is_empty());
    let by_name = format!("/Users?filter={}", crate::world::encode("userName eq \"bo\""));
    assert!(world.call("GET", &by_name).token(&other).send().await.ids().is_empty());
    assert_eq!(world.events().await, events);
    // Members and managers of another tenant are nobody.
    let group = json!({"schemas": [crate::world::GROUP], "displayName": "g", "members": [{"value": f.u1}]});
    world.call("POST", "/Groups").token(&other).json(&group).send().await.is_error(400, "invalidValue");
    // The path's tenant must be the token's.
    world.call("GET", "/t/globex/scim/v2/Users").send().await.is_error(404, "");
    world.call("GET", "/t/nobody/scim/v2/Users").send().await.is_error(404, "");
    world.call("GET", "/t/globex/scim/v2/Users").token(&other).send().await.is(200);
    let answer = world.call("GET", &format!("/t/acme/scim/v2/Users/{}", f.u1)).send().await;
    assert_eq!(answer.body["meta"]["location"], format!("https://scim.test/t/acme/scim/v2/Users/{}", f.u1));
}

/// CU-018, SE-013
#[tokio::test]
async fn a_rate_limit_holds_per_token_if_configured() {
    let limited = ApiOptions { token_requests_per_second_max: 3, ..options() };
    let world = World::with(Profile::Generic, TenantSettings::default(), limited).await;
    let other = world.token_with(vec![Scope::Read], None).await;
    for _ in 0..3 {
        world.get("/Users").await.is(200);
    }
    let answer = world.get("/Users").await;
    answer.is_error(429, "");
    assert_eq!(answer.header("retry-after"), "1");
    world.call("GET", "/Users").token(&other).send().await.is(200);
    world.call("GET", "/Users").token("x").send().await.is_error(401, "");
    world.clock.advance_ms(1_000);
    world.get("/Users").await.is(200);
}

/// SE-010: an address that shows token after token that is none is told to wait; requests with a valid token
/// from there, and other addresses, never are.
#[tokio::test]
async fn token_guessing_is_slowed() {
    let options = annals_api::ApiOptions { token_failures_per_minute_max: 3, ..crate::world::options() };
    let world = World::with(Default::default(), Default::default(), options).await;
    let guess = async |address: &str, token: &str| {
        world.call("GET", "/Users").anonymous().token(token).from(address).send().await
    };
    for n in 0..3 {
        guess("192.0.2.1", &format!("guess{n}")).await.is_error(401, "");
    }
    let refused = guess("192.0.2.1", "guess3").await;
    refused.is_error(429, "");
    assert_eq!(refused.header("retry-after"), "20");
    // An IPv4 address that came over IPv6 is the same one.
    guess("::ffff:192.0.2.1", "guess4").await.is_error(429, "");
    let right = world.call("GET", "/Users").from("192.0.2.1").send().await;
    right.is(200);
    guess("192.0.2.2", "guess").await.is_error(401, "");
    // No credentials at all are no guess.
    world.call("GET", "/Users").anonymous().from("192.0.2.1").send().await.is_error(401, "");
    // One network of IPv6 is one guesser.
    for (address, status) in [
        ("2001:db8::1", 401),
        ("2001:db8::2", 401),
        ("2001:db8::3", 401),
        ("2001:db8::4", 429),
        ("2001:db8:0:1::1", 401),
    ] {
        guess(address, "guess").await.is_error(status, "");
    }
    world.clock.advance_ms(20_000);
    guess("192.0.2.1", "guess5").await.is_error(401, "");
    guess("192.0.2.1", "guess6").await.is_error(429, "");
    // What the client itself says of its address counts only behind a proxy that is trusted.
    let claims = world.call("GET", "/Users").anonymous().token("x").from("192.0.2.1");
    claims.header("x-forwarded-for", "198.51.100.1").send().await.is_error(429, "");
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_address_is_what_it_says() {
    let options = annals_api::ApiOptions {
        token_failures_per_minute_max: 1,
        trust_forwarded: true,
        ..crate::world::options()
    };
    let world = World::with(Default::default(), Default::default(), options).await;
    for (forwarded, status) in [
        ("198.51.100.1", 401),
        ("198.51.100.1", 429),
        // The client wrote the first, the proxy the last.
        ("203.0.113.7, 198.51.100.1", 429),
        ("198.51.100.1, 198.51.100.2", 401),
    ] {
        let call = world.call("GET", "/Users").anonymous().token("x").from("10.0.0.1");
        call.header("x-forwarded-for", forwarded).send().await.is_error(status, "");
    }
}

/// SP-006: a limited token is told how it stands, besides `Retry-After`; an unlimited one is told nothing.
#[tokio::test]
async fn a_limited_token_knows_its_rate() {
    let options = annals_api::ApiOptions { token_requests_per_second_max: 2, ..crate::world::options() };
    let world = World::with(Default::default(), Default::default(), options).await;
    let told = |answer: &crate::world::Answer| {
        ["limit", "remaining", "reset", "retry-after-seconds"].map(|name| {
            answer.headers.get(format!("x-rate-limit-{name}")).map(|v| v.to_str().unwrap().to_owned())
        })
    };
    let text = |value: &str| Some(value.to_owned());
    assert_eq!(told(&world.get("/Users").await), [text("2"), text("1"), text("1"), None]);
    assert_eq!(told(&world.get("/Users/nobody").await), [text("2"), text("0"), text("1"), None]);
    let refused = world.get("/Users").await;
    refused.is_error(429, "");
    assert_eq!(told(&refused), [text("2"), text("0"), text("1"), text("1")]);
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(told(&World::new().await.get("/Users").await), [None, None, None, None]);
}

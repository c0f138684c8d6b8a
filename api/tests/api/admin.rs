//! Administration over HTTP: who may do what, versions, pages, problems, and what the journal remembers.

use annals_domain::event::{ActorKind, Recorded};
use annals_domain::ids::ConnectionId;
use annals_domain::tenant::Scope;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::world::{Answer, START, World, actor};

impl World {
    /// A token for the whole installation.
    pub(crate) async fn operator(&self) -> String {
        let name = ConnectionId::new("olga").expect("a slug");
        let issued = self.store.issue_operator_token(&name, None, actor()).await;
        issued.expect("a token").secret.expose_secret().to_owned()
    }

    /// A request to `/admin/v1` with this token.
    pub(crate) async fn admin(&self, token: &str, method: &str, path: &str, body: Value) -> Answer {
        let call = self.call(method, &format!("/admin/v1{path}")).token(token);
        let call = match body {
            Value::Null => call,
            body => call.header("content-type", "application/json").raw(body.to_string()),
        };
        call.send().await
    }

    async fn last_event(&self) -> Recorded {
        let head = self.events().await;
        self.store.read_events(head - 1, 1).await.expect("events").remove(0)
    }
}

impl Answer {
    /// Asserts that this is a problem of that status (RFC 9457).
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        assert_eq!(self.body["type"], "about:blank");
        assert_eq!(self.body["status"], status);
        assert!(!self.detail().is_empty());
        assert_eq!(self.body["requestId"], self.header("x-request-id"));
        self
    }
}

fn names(answer: &Answer) -> Vec<&str> {
    let items = answer.body["items"].as_array().expect("items");
    items.iter().map(|item| item["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn an_operator_sees_every_tenant_and_an_administrator_their_own() {
    let world = World::new().await;
    world.other_tenant("beta").await;
    let operator = world.operator().await;
    let own = world.token_with(vec![Scope::Admin], None).await;

    let all = world.admin(&operator, "GET", "/tenants", Value::Null).await;
    assert_eq!(names(all.is(200)), ["acme", "beta"], "the operators' own tenant is none of them");
    let mine = world.admin(&own, "GET", "/tenants", Value::Null).await;
    assert_eq!(names(mine.is(200)), ["acme"]);

    for (token, path, status) in [
        (&operator, "/tenants/beta", 200),
        (&operator, "/tenants/beta/connections", 200),
        (&operator, "/tenants/annals", 404),
        (&operator, "/tenants/annals/tokens", 404),
        (&operator, "/tenants/nope", 404),
        (&operator, "/tenants/No_Slug", 404),
        (&operator, "/operator-tokens", 200),
        (&own, "/tenants/acme", 200),
        (&own, "/tenants/acme/tokens", 200),
        (&own, "/tenants/beta", 404),
        (&own, "/tenants/beta/tokens", 404),
        (&own, "/tenants/annals/tokens", 404),
        (&own, "/operator-tokens", 403),
    ] {
        let answer = world.admin(token, "GET", path, Value::Null).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        if status != 200 {
            answer.is_problem(status);
        }
    }
    let refused = world.admin(&own, "POST", "/tenants", json!({"id": "gamma"})).await;
    refused.is_problem(403);
    assert!(refused.header("www-authenticate").contains("insufficient_scope"));
}

#[tokio::test]
async fn a_token_without_the_scope_administers_nothing_and_an_operators_provisions_nothing() {
    let world = World::new().await;
    let operator = world.operator().await;
    let client = world.token.clone();
    for (token, status) in [(client.as_str(), 403), ("nonsense", 401)] {
        world.admin(token, "GET", "/tenants/acme", Value::Null).await.is_problem(status);
    }
    let anonymous = world.call("GET", "/admin/v1/tenants").anonymous().send().await;
    anonymous.is_problem(401);
    assert_eq!(anonymous.header("www-authenticate"), "Bearer realm=\"annals\"");
    world.call("GET", "/Users").token(&operator).send().await.is_error(403, "");
    world.call("GET", "/t/acme/scim/v2/Users").token(&operator).send().await.is_error(404, "");

    // Not even an operator makes a token of that kind.
    let name = ConnectionId::new("olga").unwrap();
    let tenant = annals_domain::ids::TenantId::new("annals").unwrap();
    let refused = world.store.issue_token(&tenant, &name, vec![Scope::Read], None, actor()).await;
    assert!(refused.unwrap_err().to_string().contains("scim.admin"));
    let taken = world.admin(&operator, "POST", "/tenants", json!({"id": "annals"})).await;
    taken.is_problem(409);
}

/// 0005: who made it stands in the journal, and by which token.
#[tokio::test]
async fn each_change_is_an_event_whose_cause_names_the_token() {
    let world = World::new().await;
    let operator = world.operator().await;
    let id = operator.split('_').nth(1).unwrap().to_owned();
    world.admin(&operator, "POST", "/tenants", json!({"id": "beta"})).await.is(201);
    let event = world.last_event().await;
    assert_eq!((event.kind.as_str(), event.tenant.as_str()), ("tenant.created", "beta"));
    assert_eq!((event.actor.kind, event.actor.name.as_str()), (ActorKind::Operator, "olga"));
    assert_eq!(event.cause.token.as_deref(), Some(id.as_str()));
    assert_eq!(event.cause.operation, "create");

    let own = world.token_with(vec![Scope::Admin], None).await;
    let body = json!({"settings": {"groupNameUnique": true}});
    let call = world.call("PATCH", "/admin/v1/tenants/acme").token(&own).header("x-request-id", "r-7");
    call.raw(body.to_string()).send().await.is(200);
    let event = world.last_event().await;
    assert_eq!((event.actor.kind, event.actor.name.as_str()), (ActorKind::Connection, "main"));
    assert_eq!(event.cause.token.as_deref(), own.split('_').nth(1));
    assert_eq!(event.cause.request_id, "r-7");

    // What changes nothing is no event.
    let before = world.events().await;
    let again = world.admin(&own, "PATCH", "/tenants/acme", body).await;
    assert_eq!(again.is(200).body["version"], 2);
    assert_eq!(world.events().await, before);
}

#[tokio::test]
async fn versions_are_entity_tags() {
    let world = World::new().await;
    let operator = world.operator().await;
    let path = "/admin/v1/tenants/beta/connections/entra";
    world.admin(&operator, "POST", "/tenants", json!({"id": "beta"})).await.is(201);
    let new = json!({"id": "entra", "profile": "entra"});
    let made = world.admin(&operator, "POST", "/tenants/beta/connections", new.clone()).await;
    made.is(201);
    assert_eq!(made.header("etag"), "\"1\"");
    assert_eq!(made.header("location"), format!("https://scim.test{path}"));
    world.admin(&operator, "POST", "/tenants/beta/connections", new).await.is_problem(409);

    let call = |method: &str| world.call(method, path).token(&operator);
    let same = call("GET").header("if-none-match", "\"1\"").send().await;
    assert_eq!((same.status.as_u16(), same.bytes), (304, 0));
    let patch = json!({"switches": {"merge-members": true}}).to_string();
    let changed = call("PATCH").header("if-match", "\"1\"").raw(patch.clone()).send().await;
    assert_eq!(changed.is(200).header("etag"), "\"2\"");
    assert_eq!(changed.body["switches"], json!({"merge-members": true}));
    call("PATCH").header("if-match", "\"1\"").raw(patch).send().await.is_problem(412);
    let reset = json!({"switches": {"merge-members": null}, "profile": "okta"}).to_string();
    let reset = call("PATCH").raw(reset).send().await;
    assert_eq!(reset.is(200).body["profile"], "okta");
    assert_eq!(reset.body.get("switches"), None);
}

#[tokio::test]
async fn a_body_has_exactly_the_members_that_there_are() {
    let world = World::new().await;
    let operator = world.operator().await;
    for (method, path, body, detail) in [
        ("POST", "/tenants", json!({"id": "x", "color": 1}), "color"),
        ("POST", "/tenants", json!({"id": "x", "settings": {"groupNameUniq": true}}), "groupNameUniq"),
        ("POST", "/tenants", json!({"id": "Not a slug"}), "a-z"),
        ("POST", "/tenants", json!(["x", {}]), "must be an object"),
        ("PATCH", "/tenants/acme", json!({"settings": [true]}), "must be an object"),
        ("PATCH", "/tenants/acme", json!({"id": "other"}), "cannot be changed"),
        ("PATCH", "/tenants/acme", json!({"settings": {"groupNameUnique": 1}}), "boolean"),
        ("PATCH", "/tenants/acme", json!({"colour": 1}), "colour"),
        ("POST", "/tenants/acme/connections", json!({"id": "x", "profile": "netscape"}), "netscape"),
        ("POST", "/tenants/acme/connections", json!({"id": "x", "switches": {"y": true}}), "`y`"),
        ("POST", "/tenants/acme/tokens", json!({"connection": "main", "scopes": []}), "scopes"),
        ("POST", "/tenants/acme/tokens", json!({"connection": "main", "expires": "soon"}), "expires"),
        (
            "POST",
            "/tenants/acme/tokens",
            json!({"connection": "main", "expires": "2020-01-01T00:00:00Z"}),
            "past",
        ),
        ("POST", "/tenants/acme/tokens", json!({"connection": "main", "subject": ""}), "subject"),
    ] {
        let answer = world.admin(&operator, method, path, body.clone()).await;
        answer.is_problem(400);
        assert!(answer.detail().contains(detail), "{body}: {}", answer.detail());
    }
    let call = world.call("POST", "/admin/v1/tenants").token(&operator);
    call.header("content-type", "text/plain").raw("{}").send().await.is_problem(415);
    let call = world.call("POST", "/admin/v1/tenants").token(&operator);
    call.raw(format!("{{\"id\":\"{}\"}}", "x".repeat(300_000))).send().await.is_problem(413);
    let head = world.call("PUT", "/admin/v1/tenants").token(&operator).send().await;
    head.is_problem(405);
    assert!(head.header("allow").contains("POST"));
    world.admin(&operator, "GET", "/nope", Value::Null).await.is_problem(404);
}

#[tokio::test]
async fn lists_come_page_by_page() {
    let world = World::new().await;
    let operator = world.operator().await;
    for name in ["b", "c", "d", "e"] {
        let made = world.admin(&operator, "POST", "/tenants/acme/connections", json!({"id": name})).await;
        made.is(201);
    }
    let mut seen = Vec::new();
    let mut query = String::from("?limit=2");
    loop {
        let path = format!("/tenants/acme/connections{query}");
        let page = world.admin(&operator, "GET", &path, Value::Null).await;
        seen.extend(names(page.is(200)).into_iter().map(str::to_owned));
        let Some(next) = page.body["nextCursor"].as_str() else { break };
        query = format!("?limit=2&cursor={next}");
    }
    assert_eq!(seen, ["b", "c", "d", "e", "main"]);
    let first = world.admin(&operator, "GET", "/tenants?limit=1", Value::Null).await;
    assert_eq!(names(first.is(200)), ["acme"]);
    assert_eq!(first.body.get("nextCursor"), None);
    for bad in ["limit=0", "limit=501", "limit=x", "limit=1&limit=2", "cursor=zz", "cursor=ff", "cursor=00"] {
        world.admin(&operator, "GET", &format!("/tenants?{bad}"), Value::Null).await.is_problem(400);
    }
}

#[tokio::test]
async fn a_token_is_shown_once_works_and_is_revoked() {
    let world = World::new().await;
    let own = world.token_with(vec![Scope::Admin], None).await;
    let body = json!({"connection": "main", "scopes": ["scim.read"], "expires": "2027-01-01T00:00:00Z"});
    let made = world.admin(&own, "POST", "/tenants/acme/tokens", body).await;
    made.is(201);
    assert_eq!(made.header("cache-control"), "no-store");
    assert_eq!(made.body["expires"], "2027-01-01T00:00:00.000Z");
    let (id, secret) = (made.id(), made.body["secret"].as_str().unwrap().to_owned());
    world.call("GET", "/Users").token(&secret).send().await.is(200);
    world.call("POST", "/Users").token(&secret).raw("{}").send().await.is_error(403, "");

    let path = format!("/tenants/acme/tokens/{id}");
    let shown = world.admin(&own, "GET", &path, Value::Null).await;
    assert_eq!(shown.is(200).body["scopes"], json!(["scim.read"]));
    let all = world.admin(&own, "GET", "/tenants/acme/tokens", Value::Null).await;
    assert!(!format!("{}{}", shown.body, all.body).contains(&secret[20..]), "a secret is shown once");

    assert_eq!(world.admin(&own, "DELETE", &path, Value::Null).await.status, 204);
    world.call("GET", "/Users").token(&secret).send().await.is_error(401, "");
    world.admin(&own, "DELETE", &path, Value::Null).await.is_problem(404);
    let elsewhere = json!({"connection": "nope"});
    world.admin(&own, "POST", "/tenants/acme/tokens", elsewhere).await.is_problem(404);
}

#[tokio::test]
async fn operators_make_and_end_each_others_tokens() {
    let world = World::new().await;
    let operator = world.operator().await;
    let body = json!({"operator": "otto", "expires": "2026-01-02T00:00:00Z"});
    let made = world.admin(&operator, "POST", "/operator-tokens", body).await;
    made.is(201);
    assert_eq!((&made.body["connection"], &made.body["scopes"]), (&json!("otto"), &json!(["scim.admin"])));
    let otto = made.body["secret"].as_str().unwrap().to_owned();
    world.admin(&otto, "GET", "/tenants/acme", Value::Null).await.is(200);
    world.clock.set(START + 86_400_000);
    world.admin(&otto, "GET", "/tenants/acme", Value::Null).await.is_problem(401);
    let path = format!("/operator-tokens/{}", made.id());
    world.admin(&operator, "GET", &path, Value::Null).await.is(200);
    assert_eq!(world.admin(&operator, "DELETE", &path, Value::Null).await.status, 204);
    world.admin(&operator, "GET", &path, Value::Null).await.is_problem(404);
}

#[tokio::test]
async fn an_app_is_added_paused_given_a_credential_replayed_and_removed() {
    let world = World::new().await;
    let own = world.token_with(vec![Scope::Admin], None).await;
    let path = "/tenants/acme/apps";
    for (body, detail) in [
        (json!({"id": "hr", "driver": {"kind": "scim", "baseUrl": "https://hr.test"}}), "credential"),
        (json!({"id": "hr", "driver": {"kind": "webhook", "url": "gopher://x"}}), "url"),
        (json!({"id": "hr", "driver": {"kind": "fax"}}), "fax"),
        (
            json!({"id": "hr", "driver": {"kind": "webhook", "url": "https://x"}, "concurrencyMax": 0}),
            "concurrencyMax",
        ),
        (
            json!({"id": "hr", "driver": {"kind": "webhook", "url": "https://x"}, "credential": "a b"}),
            "credential",
        ),
    ] {
        let answer = world.admin(&own, "POST", path, body).await;
        answer.is_problem(400);
        assert!(answer.detail().contains(detail), "{}", answer.detail());
    }
    let hook = json!({"id": "hook", "driver": {"kind": "webhook", "url": "https://hook.test/in"}});
    let made = world.admin(&own, "POST", path, hook).await;
    let secret = made.is(201).body["credential"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("whsec_"));
    let hr = json!({"id": "hr", "driver": {"kind": "scim", "baseUrl": "https://hr.test/scim/v2"},
        "credential": "s3cr3t-of-hr", "resourceTypes": ["User"]});
    let made = world.admin(&own, "POST", path, hr).await;
    assert_eq!(made.is(201).body.get("credential"), None);
    assert_eq!(made.body["driver"]["membersPerRequestMax"], 100);

    let all = world.admin(&own, "GET", path, Value::Null).await;
    assert_eq!(names(&all), ["hook", "hr"]);
    let text = all.body.to_string();
    assert!(!text.contains("s3cr3t-of-hr") && !text.contains(&secret), "credentials never come out");

    let paused = world.admin(&own, "PATCH", "/tenants/acme/apps/hr", json!({"paused": true})).await;
    assert_eq!((&paused.is(200).body["paused"], &paused.body["version"]), (&json!(true), &json!(2)));
    world.admin(&own, "PATCH", "/tenants/acme/apps/hr", json!({"paused": false})).await.is(200);
    let credential = json!({"credential": "another"});
    world.admin(&own, "PUT", "/tenants/acme/apps/hr/credential", credential).await.is(204);
    let app = annals_domain::ids::AppId::new("hr").unwrap();
    assert_eq!(world.store.app_credential(&world.tenant, &app).await.unwrap().expose_secret(), "another");
    let status = world.admin(&own, "GET", "/tenants/acme/apps/hr/status", Value::Null).await;
    assert_eq!(status.is(200).body, json!({"failures": 0}));
    world.admin(&own, "POST", "/tenants/acme/apps/hr/replay", json!({"force": true})).await.is(202);

    for (method, below, body) in [
        ("GET", "nope", Value::Null),
        ("PATCH", "nope", json!({})),
        ("PUT", "nope/credential", json!({"credential": "x"})),
        ("POST", "nope/replay", json!({})),
        ("GET", "nope/status", Value::Null),
        ("DELETE", "nope", Value::Null),
    ] {
        world.admin(&own, method, &format!("/tenants/acme/apps/{below}"), body).await.is_problem(404);
    }
    assert_eq!(world.admin(&own, "DELETE", "/tenants/acme/apps/hr", Value::Null).await.status, 204);
    world.admin(&own, "GET", "/tenants/acme/apps/hr", Value::Null).await.is_problem(404);
}

#[tokio::test]
async fn deliveries_are_listed_shown_and_given_another_try() {
    use annals_domain::ids::{AppId, ResourceId};
    use annals_store::lanes::{LaneKey, LaneKind, LaneWish};

    let world = World::new().await;
    let own = world.token_with(vec![Scope::Admin], None).await;
    let hook = json!({"id": "hook", "driver": {"kind": "webhook", "url": "https://hook.test/in"}});
    world.admin(&own, "POST", "/tenants/acme/apps", hook).await.is(201);
    // As the planner does.
    let app = AppId::new("hook").unwrap();
    let wish = |n: usize| LaneWish {
        key: LaneKey {
            tenant: world.tenant.clone(),
            app: app.clone(),
            id: ResourceId::from_text(&format!("u{n}")),
        },
        resource_type: "User".into(),
        kind: LaneKind::Log,
        first_version: 1,
        version: 1,
        position: 1,
        deleted: false,
    };
    let at = world.store.planner_checkpoint().await.unwrap();
    let head = world.store.head().await.unwrap();
    let wishes: Vec<LaneWish> = (0..3).map(wish).collect();
    world.store.plan(at.position, head.position, &wishes, &[]).await.unwrap();

    let path = "/tenants/acme/deliveries";
    let first = world.admin(&own, "GET", &format!("{path}?limit=2&app=hook&state=due"), Value::Null).await;
    assert_eq!(names(first.is(200)), ["u0", "u1"]);
    let next = first.body["nextCursor"].as_str().unwrap();
    let second = world.admin(&own, "GET", &format!("{path}?limit=2&cursor={next}"), Value::Null).await;
    assert_eq!(names(second.is(200)), ["u2"]);
    assert_eq!(names(&world.admin(&own, "GET", &format!("{path}?id=u1"), Value::Null).await), ["u1"]);
    for bad in ["state=lost", "app=No", "cursor=61"] {
        world.admin(&own, "GET", &format!("{path}?{bad}"), Value::Null).await.is_problem(400);
    }
    let one = world.admin(&own, "GET", &format!("{path}/hook/u1"), Value::Null).await;
    assert_eq!(one.is(200).body["lastAttempts"], json!([]));
    assert_eq!((&one.body["state"], &one.body["wantedVersion"]), (&json!("due"), &json!(1)));
    world.admin(&own, "GET", &format!("{path}/hook/nobody"), Value::Null).await.is_problem(404);
    let none = world.admin(&own, "POST", &format!("{path}/redrive"), json!({"app": "hook"})).await;
    assert_eq!(none.is(200).body, json!({"redriven": 0}), "none is in quarantine");

    let stranger = world.other_tenant("beta").await;
    world.admin(&stranger, "GET", path, Value::Null).await.is_problem(403);
}

#[tokio::test]
async fn status_and_proof_are_for_operators() {
    let world = World::new().await;
    world.user("ada").await;
    let operator = world.operator().await;
    let own = world.token_with(vec![Scope::Admin], None).await;
    let position = world.events().await;
    let status = world.admin(&operator, "GET", "/status", Value::Null).await;
    assert_eq!(status.is(200).body["journal"]["position"], position);
    assert_eq!(status.body["deliveries"]["lagPositions"], position, "nobody plans here");
    assert_eq!(status.body["readModel"]["rebuildNeeded"], false);
    let mine = world.admin(&own, "GET", "/tenants/acme/status", Value::Null).await;
    assert_eq!(mine.is(200).body["deliveriesArePlanned"], false);
    let seen = world.admin(&operator, "POST", "/audit/verify", Value::Null).await;
    assert_eq!((&seen.is(200).body["sound"], &seen.body["events"]), (&json!(true), &json!(position)));
    assert_eq!(seen.body["findings"], json!([]));
    for (method, path) in [("GET", "/status"), ("POST", "/audit/verify")] {
        world.admin(&own, method, path, Value::Null).await.is_problem(403);
    }
}

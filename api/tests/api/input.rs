//! Bad input: each is answered by a SCIM error that names what is wrong, and nothing is stored.

use annals_api::ApiOptions;
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::TenantSettings;
use axum::body::Body;
use futures::stream;
use serde_json::{Value, json};

use crate::world::{Answer, Fixture, PATCH, USER, World, options};

/// MT-001, IN-005; CS-022: one name in two spellings.
#[tokio::test]
async fn bodies_that_are_no_json() {
    let world = World::new().await;
    let events = world.events().await;
    let cases: [(&[u8], &str, &str); 12] = [
        (b"", "invalidSyntax", "empty"),
        (b"   ", "invalidSyntax", "empty"),
        (b"{", "invalidSyntax", "EOF"),
        (b"{\"userName\":\"a\",}", "invalidSyntax", "trailing comma"),
        (b"{\"userName\":\"a\"} {}", "invalidSyntax", "trailing characters"),
        (b"{'userName':'a'}", "invalidSyntax", "line 1"),
        (b"\xff\xfe{}", "invalidSyntax", "UTF-8"),
        (b"{\"userName\":\"a\xc3\"}", "invalidSyntax", "UTF-8"),
        (b"{\"userName\":\"a\x00\"}", "invalidSyntax", "control character"),
        (b"{\"userName\":\"a\\u0000\"}", "invalidValue", "U+0000"),
        (b"{\"userName\":\"\\ud800\"}", "invalidSyntax", "line 1"),
        (b"{\"userName\":\"a\",\"userName\":\"b\"}", "invalidSyntax", "userName"),
    ];
    for (body, scim_type, says) in cases {
        for (method, path) in
            [("POST", "/Users"), ("PUT", "/Users/x"), ("PATCH", "/Users/x"), ("POST", "/.search")]
        {
            let answer = world.call(method, path).raw(body.to_vec()).send().await;
            answer.is_error(400, scim_type);
            assert!(answer.detail().contains(says), "{says}: {}", answer.detail());
        }
    }
    let twice = json!({"schemas": [USER], "userName": "a", "USERNAME": "b"});
    world.post("/Users", twice).await.is_error(400, "invalidSyntax");
    assert_eq!(world.events().await, events);
}

#[tokio::test]
async fn values_of_a_wrong_type() {
    let world = World::new().await;
    let events = world.events().await;
    let cases = [
        (json!({"userName": 7}), "userName"),
        (json!({"userName": {"a": 1}}), "userName"),
        (json!({"userName": "a", "active": "perhaps"}), "active"),
        (json!({"userName": "a", "name": "Anna"}), "name"),
        (json!({"userName": "a", "emails": "x@y"}), "emails"),
        (json!({"userName": "a", "emails": [{"value": 7}]}), "emails.value"),
        (
            json!({"userName": "a", "emails": [{"value": "a", "primary": true}, {"value": "b", "primary": true}]}),
            "emails",
        ),
        (json!({"userName": "a", "password": 7}), "password"),
        (json!({"userName": "a", "x509Certificates": [{"value": "%%%"}]}), "x509Certificates"),
        (json!({"userName": ["a"]}), "userName"),
    ];
    for (mut body, names) in cases {
        body["schemas"] = json!([USER]);
        let answer = world.post("/Users", body).await;
        answer.is_error(400, "invalidValue");
        assert!(answer.detail().contains(names), "{names}: {}", answer.detail());
    }
    for body in [
        json!([]),
        json!("a"),
        json!(7),
        json!(null),
        json!({"schemas": USER, "userName": "a"}),
        json!({"schemas": [7], "userName": "a"}),
    ] {
        world.post("/Users", body).await.is_error(400, "invalidSyntax");
    }
    assert_eq!(world.events().await, events);
}

#[tokio::test]
async fn a_fifty_megabyte_body_is_cut_off() {
    let world = World::new().await;
    let events = world.events().await;
    // Counted while reading, without Content-Length: the rest is never read.
    let read = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = read.clone();
    let chunks = stream::iter((0..800).map(move |_| {
        counter.fetch_add(64 * 1024, std::sync::atomic::Ordering::SeqCst);
        Ok::<_, std::io::Error>(vec![b' '; 64 * 1024])
    }));
    let answer = world.call("POST", "/Users").raw(Body::from_stream(chunks)).send().await;
    answer.is_error(413, "");
    assert!(answer.detail().contains("1048576 bytes"), "{}", answer.detail());
    assert!(read.load(std::sync::atomic::Ordering::SeqCst) <= 2 * 1024 * 1024);
    // Announced: not read at all.
    let answer = world.call("POST", "/Users").header("content-length", "52428800").raw("{}").send().await;
    answer.is_error(413, "");
    // Exactly at the bound is fine.
    let empty = json!({"schemas": [USER], "userName": "a", "title": ""}).to_string();
    let body =
        empty.replace("\"title\":\"\"", &format!("\"title\":\"{}\"", "x".repeat(1024 * 1024 - empty.len())));
    assert_eq!(body.len(), 1024 * 1024);
    let answer = world.call("POST", "/Users").raw(body.clone() + " ").send().await;
    answer.is_error(413, "");
    assert_eq!(world.events().await, events);
    let answer = world.call("POST", "/Users").raw(body).send().await;
    assert!(answer.status == 413 && answer.detail().contains("524288"), "an event's bound: {}", answer.body);
}

#[tokio::test]
async fn ten_thousand_levels_of_json() {
    let world = World::new().await;
    let events = world.events().await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let body =
            format!("{{\"userName\":\"a\",\"name\":{}1{}}}", open.repeat(10_000), close.repeat(10_000));
        for (method, path) in [("POST", "/Users"), ("PATCH", "/Users/x"), ("POST", "/.search")] {
            let answer = world.call(method, path).raw(body.clone()).send().await;
            answer.is_error(400, "invalidSyntax");
            assert!(answer.detail().contains("64 levels"), "{}", answer.detail());
        }
    }
    let deep = "[".repeat(64 * 1024);
    world.call("POST", "/Users").raw(deep).send().await.is_error(400, "invalidSyntax");
    assert_eq!(world.events().await, events);
}

/// MT-004
#[tokio::test]
async fn x34_media_types_of_bodies() {
    let world = World::new().await;
    let body = |n: u32| json!({"schemas": [USER], "userName": format!("u{n}")}).to_string();
    let types = [
        "application/scim+json",
        "application/json",
        "Application/JSON; charset=utf-8",
        "APPLICATION/SCIM+JSON;x=y",
    ];
    for (n, good) in types.into_iter().enumerate() {
        world.call("POST", "/Users").header("content-type", good).raw(body(n as u32)).send().await.is(201);
    }
    world.call("POST", "/Users").raw(body(9)).send().await.is(201);
    for bad in ["text/plain", "application/xml", "application/x-www-form-urlencoded", "json"] {
        world.call("POST", "/Users").header("content-type", bad).raw(body(10)).send().await.is_error(415, "");
    }
    let gzip = world.call("POST", "/Users").header("content-encoding", "gzip").raw(body(10)).send().await;
    gzip.is_error(415, "");
}

#[tokio::test]
async fn strange_ids_are_simply_not_found() {
    let world = World::new().await;
    let long = "x".repeat(4_000);
    for id in
        ["%00", "%FF%FE", "..%2F..%2Fetc", "%27%20OR%201=1", "tenant.acme", "token.1", &long, "%0d%0aX:y"]
    {
        let answer = world.get(&format!("/Users/{id}")).await;
        assert_eq!(answer.status, 404, "{id}");
        answer.is_error(404, "");
        world.delete(&format!("/Users/{id}")).await.is_error(404, "");
        let operations =
            json!({"schemas": [PATCH], "Operations": [{"op": "add", "path": "title", "value": "x"}]});
        world.call("PATCH", &format!("/Groups/{id}")).json(&operations).send().await.is_error(404, "");
    }
    assert!(world.filter("/Users", "id eq \"tenant.acme\"").await.ids().is_empty());
    let nul = world.get("/Users?filter=userName%20eq%20%22%00%22").await;
    nul.is_error(400, "invalidValue");
    world.get("/Users?filter=%FF").await.is_error(400, "invalidValue");
}

#[tokio::test]
async fn a_body_that_breaks_off_stores_nothing() {
    let world = World::new().await;
    let events = world.events().await;
    let chunks = stream::iter([Ok("{\"userName\":"), Err(std::io::Error::other("gone"))]);
    let answer = world.call("POST", "/Users").raw(Body::from_stream(chunks)).send().await;
    answer.is_error(400, "");
    assert_eq!(world.events().await, events);
}

#[tokio::test]
async fn a_body_that_never_ends_is_given_up() {
    let options = ApiOptions { body_timeout: std::time::Duration::from_millis(20), ..options() };
    let world = World::with(Profile::Generic, TenantSettings::default(), options).await;
    let body = Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>());
    world.call("POST", "/Users").raw(body).send().await.is_error(408, "");
}

#[tokio::test]
async fn too_many_requests_at_once_are_turned_away() {
    let options = ApiOptions { requests_in_flight_max: 1, ..options() };
    let world = World::with(Profile::Generic, TenantSettings::default(), options).await;
    let body = Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let mut blocked = Box::pin(world.call("POST", "/Users").raw(body).send());
    // One poll: the request takes the only slot and waits for its body.
    let waiting = futures::poll!(&mut blocked);
    assert!(waiting.is_pending());
    let mut answer = world.get("/Users").await;
    // Authentication may have yielded before the body was waited for.
    for _ in 0..100 {
        if answer.status == 503 {
            break;
        }
        let _ = futures::poll!(&mut blocked);
        answer = world.get("/Users").await;
    }
    answer.is_error(503, "");
    assert!(answer.header("retry-after").parse::<u32>().is_ok());
    world.get("//raw/health/live").await.is(200);
    drop(blocked);
    world.get("/Users").await.is(200);
}

#[tokio::test]
async fn request_ids_are_kept_or_made() {
    let world = World::new().await;
    let answer = world.call("GET", "/Users").header("x-request-id", "abc-123").send().await;
    assert_eq!(answer.header("x-request-id"), "abc-123");
    for bad in ["a b", "x\"y", &"x".repeat(200)] {
        let answer = world.call("GET", "/Users").header("x-request-id", bad).send().await;
        assert_eq!(answer.header("x-request-id").len(), 36, "{bad}");
    }
    world.call("GET", "/Users").anonymous().send().await.is(401);
}

/// SE-014
#[tokio::test]
async fn what_a_write_was_caused_by_is_in_its_event() {
    use annals_domain::event::ActorKind;
    let world = World::of(Profile::Entra).await;
    let f = Fixture::in_world(&world).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body =
        json!({"schemas": [PATCH], "Operations": [{"op": "Replace", "path": "active", "value": "False"}]});
    let call = world.call("PATCH", &format!("/Users/{}", f.u1)).header("x-request-id", "r-1");
    call.header("traceparent", trace).json(&body).send().await.is(200);
    let at = world.events().await;
    let event = world.store.read_events(at - 1, 1).await.unwrap().remove(0);
    assert_eq!(event.kind, "user.deactivated");
    assert_eq!((event.actor.kind, event.actor.name.as_str()), (ActorKind::Connection, "main"));
    assert_eq!(event.cause.request_id, "r-1");
    assert_eq!(event.cause.traceparent.as_deref(), Some(trace));
    assert_eq!(event.cause.operation, "patch");
    assert_eq!(event.cause.profile.as_deref(), Some("entra"));
    let mut quirks = event.cause.quirks.clone();
    quirks.sort();
    assert_eq!(quirks, ["op-case", "string-boolean"]);
}

#[tokio::test]
async fn errors_never_repeat_a_password() {
    let world = World::new().await;
    let secret = "hunter2-hunter2";
    let answers: Vec<Answer> = vec![
        world.post("/Users", json!({"schemas": [USER], "userName": "a", "password": [secret]})).await,
        world
            .post("/Users", json!({"schemas": [USER], "userName": "a", "password": format!("{secret}\u{0}")}))
            .await,
        world.filter("/Users", &format!("password eq \"{secret}\"")).await,
    ];
    for answer in answers {
        assert!(answer.status.is_client_error());
        assert!(!answer.body.to_string().contains(secret), "{}", answer.body);
    }
    let _: Value = Value::Null;
}

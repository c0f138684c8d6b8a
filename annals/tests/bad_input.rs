//! Whatever is sent to the real process, it answers as SCIM says, goes on, and writes none of it to its log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use annals_domain::scim::dialect::Profile;
use annals_testkit::cluster::Cluster;
use annals_testkit::scim::{Answer, PATCH_OP, Scim, add_member, encode};
use anyhow::{Context as _, Result, bail, ensure};
use axum::http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
/// Never to be seen in a log.
const PASSWORD: &str = "correct-horse-battery-staple";
const PERSONAL: &str = "Hieronymus.Lorm@example.test";
const WRONG_TOKEN: &str = "ann_0123456789ab_this-is-not-a-token-of-ours";

/// What was wrong, all of it: one run shows every weakness.
static FINDINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn note(result: Result<()>) {
    if let Err(error) = result {
        FINDINGS.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
    }
}

/// A refusal: one of these statuses, and a SCIM error that says the same.
fn refused(answer: &Answer, statuses: &[u16], what: &str) {
    let what: String = what.chars().take(120).collect();
    note(is_refusal(answer, statuses).with_context(|| what));
}

fn is_refusal(answer: &Answer, statuses: &[u16]) -> Result<()> {
    let asked: String = answer.asked.chars().take(200).collect();
    ensure!(statuses.contains(&answer.status), "{asked}: {} instead of {statuses:?}: {}", answer.status, {
        String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>()
    });
    let kind = answer.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
    ensure!(kind.starts_with("application/scim+json"), "{asked}: Content-Type {kind:?}");
    let body = answer.json();
    ensure!(body["schemas"] == json!(["urn:ietf:params:scim:api:messages:2.0:Error"]), "{asked}: {body}");
    let status = answer.status.to_string();
    ensure!(body["status"].as_str() == Some(status.as_str()), "{asked}: {body}");
    let text = body.to_string();
    ensure!(!text.contains(PASSWORD), "{asked}: the answer repeats a password: {text}");
    ensure!(text.len() < 4_096, "{asked}: the answer is as long as what was sent");
    Ok(())
}

fn nested(depth: usize) -> String {
    format!(
        "{{\"schemas\":[\"{USER}\"],\"userName\":\"x\",\"x\":{}{}}}",
        "[".repeat(depth),
        "]".repeat(depth)
    )
}

async fn bodies(scim: &Scim) -> Result<()> {
    let texts: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("no JSON", format!("{{\"password\": \"{PASSWORD}\", ").into_bytes(), &[400]),
        ("empty", Vec::new(), &[400]),
        ("a number", b"42".to_vec(), &[400]),
        ("an array", b"[]".to_vec(), &[400]),
        ("null", b"null".to_vec(), &[400]),
        ("no UTF-8", b"{\"userName\":\"\xff\xfe\"}".to_vec(), &[400]),
        ("half a surrogate", br#"{"userName":"\ud800"}"#.to_vec(), &[400]),
        ("two values", b"{}{}".to_vec(), &[400]),
        ("deep", nested(100).into_bytes(), &[400]),
        ("very deep", nested(100_000).into_bytes(), &[400]),
        (
            "a double key",
            format!("{{\"schemas\":[\"{USER}\"],\"userName\":\"a\",\"userName\":\"b\"}}").into_bytes(),
            &[400],
        ),
        ("large", format!("{{\"userName\":\"{}\"}}", "x".repeat(2 * 1024 * 1024)).into_bytes(), &[413]),
        ("infinite", br#"{"userName":"x","active":1e999}"#.to_vec(), &[400]),
    ];
    for (what, body, statuses) in texts {
        let answer = scim.send(Method::POST, "/Users", &[], body).await.context(what)?;
        refused(&answer, statuses, what);
    }
    let values = [
        ("no name", json!({"schemas": [USER]})),
        ("an empty name", json!({"schemas": [USER], "userName": ""})),
        ("a number as name", json!({"schemas": [USER], "userName": 42})),
        ("an object as name", json!({"schemas": [USER], "userName": {"a": "b"}})),
        ("a list as name", json!({"schemas": [USER], "userName": ["a", "b"]})),
        ("NUL in the name", json!({"schemas": [USER], "userName": "a\u{0}b"})),
        ("a wrong boolean", json!({"schemas": [USER], "userName": "a", "active": "perhaps"})),
        ("text as complex", json!({"schemas": [USER], "userName": "a", "name": "b"})),
        ("numbers as schemas", json!({"schemas": [1, 2], "userName": "a"})),
        ("a password in pieces", json!({"schemas": [USER], "userName": "a", "password": [PASSWORD]})),
        ("a number as e-mail", json!({"schemas": [USER], "userName": PERSONAL, "emails": [{"value": 1}]})),
    ];
    for (what, body) in values {
        let answer = scim.post("/Users", &body).await.context(what)?;
        refused(&answer, &[400, 413], what);
    }
    Ok(())
}

async fn patches(scim: &Scim, user: &str, group: &str) -> Result<()> {
    let path = format!("/Users/{user}");
    let operations = [
        json!([]),
        json!({}),
        json!("x"),
        json!([1]),
        json!([{"path": "title", "value": "x"}]),
        json!([{"op": "move", "path": "title"}]),
        json!([{"op": "remove"}]),
        json!([{"op": "replace", "path": "title"}]),
        json!([{"op": "replace", "path": "noSuchAttribute", "value": "x"}]),
        json!([{"op": "replace", "path": "emails[type eq \"work\"", "value": "x"}]),
        json!([{"op": "replace", "path": "emails[type xx \"work\"].value", "value": "x"}]),
        json!([{"op": "replace", "path": "", "value": PASSWORD}]),
        json!([{"op": "replace", "path": "id", "value": "other"}]),
        json!([{"op": "replace", "path": "meta.version", "value": "W/\"9\""}]),
        json!([{"op": "remove", "path": "userName"}]),
        json!([{"op": "replace", "path": "userName", "value": null}]),
        json!([{"op": "replace", "path": "userName", "value": ""}]),
        json!([{"op": "replace", "value": "no object"}]),
        json!([{"op": "add", "path": format!("{}{}", "a".repeat(100_000), "["), "value": 1}]),
        json!([{"op": "add", "path": format!("emails[{}type eq \"x\"]", "(".repeat(5_000)), "value": "x"}]),
    ];
    for operations in operations {
        let body = json!({"schemas": [PATCH_OP], "Operations": operations});
        let answer = scim.send(Method::PATCH, &path, &[], body.to_string()).await?;
        refused(&answer, &[400], &body.to_string());
    }
    let long = json!({"schemas": [PATCH_OP], "Operations": [{"op": "replace", "path": "title", "value": "x".repeat(700_000)}]});
    refused(&scim.send(Method::PATCH, &path, &[], long.to_string()).await?, &[400, 413], "a long title");
    // A group is no member of itself, and members exist.
    refused(&scim.patch(&format!("/Groups/{group}"), add_member(group)).await?, &[400], "a group in itself");
    refused(&scim.patch(&format!("/Groups/{group}"), add_member("nobody")).await?, &[400], "no such member");
    let title = json!([{"op": "replace", "path": "title", "value": "x"}]);
    refused(&scim.patch("/Users/nobody", title).await?, &[404], "no such user");
    // All or nothing: the first operation has left no trace.
    let half = json!([
        {"op": "replace", "path": "title", "value": "half"},
        {"op": "replace", "path": "noSuchAttribute", "value": "x"},
    ]);
    refused(&scim.patch(&path, half).await?, &[400], "a half-good PATCH");
    ensure!(scim.get(&path).await?.expect(200)?.json().get("title").is_none(), "half a PATCH was applied");
    Ok(())
}

async fn queries(scim: &Scim) -> Result<()> {
    let long = format!("userName eq \"{}\"", "x".repeat(40_000));
    let filters = [
        "userName",
        "userName eq",
        "userName eq ada",
        "userName eq \"ada",
        "userName xx \"ada\"",
        "eq \"ada\"",
        "(userName eq \"ada\"",
        "userName eq \"ada\" and",
        "not userName eq \"ada\"",
        "noSuchAttribute eq \"x\"",
        "emails[type eq \"work\"",
        "emails[type eq \"work\" and (value eq \"x\"]",
        "userName eq \"a\" or or userName eq \"b\"",
        "active gt true",
        "meta.lastModified gt \"yesterday\"",
        "userName eq \"\\ud800\"",
        "'; DROP TABLE event; --",
        "userName eq \"a\u{0}b\"",
    ];
    for filter in filters {
        let answer = scim.get(&format!("/Users?filter={}", encode(filter))).await?;
        refused(&answer, &[400], filter);
        // NUL is refused as text, before it is a filter.
        if !filter.contains('\0') && answer.json()["scimType"] != "invalidFilter" {
            note(Err(anyhow::anyhow!("{filter}: no invalidFilter: {}", answer.json())));
        }
    }
    // Hyper refuses the longest ones itself, before there is a request to answer.
    let many = vec!["userName eq \"x\""; 2_000].join(" or ");
    let deep = format!("{}userName eq \"x\"{}", "(".repeat(2_000), ")".repeat(2_000));
    for filter in [deep, many, long] {
        let answer = scim.get(&format!("/Users?filter={}", encode(&filter))).await?;
        if ![400, 414, 431].contains(&answer.status) {
            note(Err(anyhow::anyhow!("a long filter in the path: {}", answer.status)));
        }
        let body = json!({
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"], "filter": filter,
        });
        let answer = scim.post("/Users/.search", &body).await?;
        // The long one is only long, so it may be answered.
        if !(answer.status == 400 || filter.len() > 39_000 && answer.status == 200) {
            note(Err(anyhow::anyhow!("a long filter in the body: {} {}", answer.status, filter.len())));
        }
    }
    for query in ["startIndex=x", "count=x", "count=1e3"] {
        refused(&scim.get(&format!("/Users?{query}")).await?, &[400], query);
    }
    // RFC 7644 §3.4.2.4: these are read as the nearest sensible number.
    for (query, resources) in [
        ("startIndex=-5&count=1", 1),
        ("count=-1", 0),
        ("count=0", 0),
        ("startIndex=99999999999999999999", 0),
    ] {
        let list = scim.get(&format!("/Users?{query}")).await?.expect(200)?.json();
        ensure!(list["itemsPerPage"] == resources && list["totalResults"].is_u64(), "{query}: {list}");
    }
    refused(&scim.get("/Users?filter=%zz").await?, &[400], "%zz");
    Ok(())
}

async fn paths_and_methods(scim: &Scim, user: &str) -> Result<()> {
    let long = "x".repeat(5_000);
    for path in [
        "/Users/nobody".to_owned(),
        "/Users/..%2f..%2fetc%2fpasswd".to_owned(),
        "/Users/%00".to_owned(),
        "/Users/'%20OR%201=1".to_owned(),
        format!("/Users/{long}"),
        "/NoSuchEndpoint".to_owned(),
        "/Users/a/b".to_owned(),
    ] {
        refused(&scim.get(&path).await?, &[400, 404], &path);
    }
    for (method, path) in [
        (Method::DELETE, "/Users".to_owned()),
        (Method::PUT, "/Users".to_owned()),
        (Method::POST, format!("/Users/{user}")),
        (Method::POST, "/Schemas".to_owned()),
        (Method::TRACE, "/Users".to_owned()),
    ] {
        let answer = scim.send(method.clone(), &path, &[], "").await?;
        refused(&answer, &[404, 405, 501], &format!("{method} {path}"));
    }
    let text = [("content-type", "text/plain")];
    refused(&scim.send(Method::POST, "/Users", &text, "userName=x").await?, &[415], "text/plain");
    let path = format!("/Users/{user}");
    let body = json!({"schemas": [USER], "userName": "bad-input-user", "title": "x"}).to_string();
    for tag in ["W/\"999\"", "garbage", "W/\"\"", "\"a\", W/\"b\""] {
        let answer = scim.send(Method::PUT, &path, &[("if-match", tag)], body.clone()).await?;
        refused(&answer, &[412], tag);
    }
    let key = "k".repeat(10_000);
    let answer = scim.send(Method::POST, "/Users", &[("idempotency-key", &key)], body.clone()).await?;
    refused(&answer, &[400], "a long key");
    // One key, two requests.
    let first = json!({"schemas": [USER], "userName": "once-1"}).to_string();
    let second = json!({"schemas": [USER], "userName": "once-2"}).to_string();
    scim.send(Method::POST, "/Users", &[("idempotency-key", "k1")], first).await?.expect(201)?;
    let again = scim.send(Method::POST, "/Users", &[("idempotency-key", "k1")], second).await?;
    refused(&again, &[409, 422], "one key for two requests");
    Ok(())
}

async fn tokens(cluster: &Cluster, scim: &Scim) -> Result<()> {
    for authorization in [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        &format!("Bearer {WRONG_TOKEN}"),
        &format!("Bearer {}x", scim.token()),
        &format!("Bearer {}", "x".repeat(8_000)),
    ] {
        let answer = scim.send(Method::GET, "/Users", &[("authorization", authorization)], "").await?;
        refused(&answer, &[401], authorization);
        ensure!(answer.headers.contains_key("www-authenticate"), "401 without WWW-Authenticate");
    }
    // The token decides the tenant; a path that names another one is no way in.
    let root = cluster.processes[0].url();
    let own = scim.at(&format!("{root}/t/{}/scim/v2", cluster.tenant));
    own.get("/Users").await?.expect(200)?;
    for tenant in ["other", "acme2", "ACME", "acme%2f"] {
        let answer = scim.at(&format!("{root}/t/{tenant}/scim/v2")).get("/Users").await?;
        ensure!([401, 403, 404].contains(&answer.status), "/t/{tenant}: {}", answer.status);
    }
    Ok(())
}

/// Bytes that no HTTP client would send.
async fn raw(cluster: &Cluster) -> Result<()> {
    let port = cluster.processes[0].port();
    let token = &cluster.token;
    let requests = [
        "GARBAGE\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /scim/v2/Users HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(600_000)),
        format!(
            "POST /scim/v2/Users HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: -1\r\n\r\n"
        ),
        format!(
            "POST /scim/v2/Users HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
             Transfer-Encoding: chunked\r\n\r\nzz\r\n"
        ),
        // Announced and not sent: the connection ends, and so does the request.
        format!(
            "POST /scim/v2/Users HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: 100\r\n\r\n{{\"userName\":\"half"
        ),
        format!(
            "POST /scim/v2/Users HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: 99999999999\r\n\r\n{{"
        ),
    ];
    for request in requests {
        let what: String = request.chars().take(60).collect();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.context("connecting")?;
        // The server may close before it has read everything: that is an answer, too.
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        ensure!(read.is_ok(), "{what:?}: no answer and no end");
        let text = String::from_utf8_lossy(&answer);
        let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or("400");
        ensure!(status.starts_with('4'), "{what:?}: {text}");
    }
    Ok(())
}

async fn bulk(scim: &Scim) -> Result<()> {
    let urn = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
    let one = json!({"method": "POST", "path": "/Users", "bulkId": "a", "data": {"schemas": [USER]}});
    let many: Vec<Value> = vec![one; 1_001];
    for body in [
        json!({"schemas": [urn]}),
        json!({"schemas": [urn], "Operations": "x"}),
        json!({"schemas": [urn], "Operations": many}),
    ] {
        let answer = scim.post("/Bulk", &body).await?;
        if answer.status == 404 || answer.status == 501 {
            // The server says that it has none.
            let config = scim.get("/ServiceProviderConfig").await?.expect(200)?.json();
            ensure!(config["bulk"]["supported"] == false, "{config}");
            return Ok(());
        }
        refused(&answer, &[400, 413], "bulk");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn is_answered_as_scim_says_and_never_logged() -> Result<()> {
    let mut cluster = Cluster::embedded(BINARY, Profile::Strict).await?;
    let scim = cluster.scim();
    let user = scim.create_user("bad-input-user").await?;
    let group = scim.create_group("bad-input-group").await?;
    // A good one, so that the log has every chance to repeat what it must not.
    let good = json!({
        "schemas": [USER], "userName": PERSONAL, "password": PASSWORD, "displayName": "Hieronymus Lorm",
    });
    let created = scim.post("/Users", &good).await?.expect(201)?;
    ensure!(!created.json().to_string().contains(PASSWORD), "the answer shows the password");

    bodies(&scim).await.context("bodies")?;
    patches(&scim, &user, &group).await.context("patches")?;
    queries(&scim).await.context("queries")?;
    paths_and_methods(&scim, &user).await.context("paths and methods")?;
    tokens(&cluster, &scim).await.context("tokens")?;
    raw(&cluster).await.context("raw bytes")?;
    bulk(&scim).await.context("bulk")?;

    let findings = FINDINGS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    ensure!(cluster.processes[0].is_running(), "the process has ended");
    scim.get(&format!("/Users/{user}")).await?.expect(200)?;
    cluster.check().await?;

    let log = cluster.installation.logs();
    ensure!(log.contains("annals is listening"), "this is not the log:\n{log}");
    for secret in
        [PASSWORD, PERSONAL, WRONG_TOKEN, &cluster.token, "Hieronymus", "bad-input-user", "dXNlcjpwYXNz"]
    {
        if let Some(line) = log.lines().find(|line| line.contains(secret)) {
            bail!("the log holds {secret:?}: {line}");
        }
    }
    ensure!(!log.contains("panicked"), "something panicked:\n{log}");
    cluster.checkers.dump_is_sealed(&[PERSONAL, PASSWORD, "Hieronymus Lorm", &cluster.token]).await
}

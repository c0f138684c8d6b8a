//! Passwords and tokens are nowhere but where they must be (US-003, SE-005, SE-009): after a life full of them,
//! with the most talkative log there is, nothing that the system has left anywhere holds one.

use annals_domain::event::Actor;
use annals_domain::ids::ConnectionId;
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Driver, Scope};
use annals_testkit::checkers::hold_none_of;
use annals_testkit::cluster::{Cluster, SCALED};
use annals_testkit::downstream::Downstream;
use annals_testkit::nats;
use annals_testkit::process::{Installation, Role};
use annals_testkit::scim::{Answer, Scim, encode};
use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const BULK: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
const HOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const APP_TOKEN: &str = "t0ken-of-the-downstream-app";
const UNKNOWN_TOKEN: &str = "annals-guessed-token-of-nobody";

/// Every way in that a password has, and those that are refused.
const POSTED: &str = "Posted-p4ssword-1";
const PUT: &str = "Replaced-p4ssword-2";
const PATCHED: &str = "Patched-p4ssword-3";
const PATHED: &str = "Pathed-p4ssword-4";
const BULKED: &str = "Bulked-p4ssword-5";
const GUESSED: &str = "Guessed-p4ssword-6";
const LISTED: &str = "Listed-p4ssword-7";
const FILTERED: &str = "Filtered-p4ssword-8";
const SEARCHED: &str = "Searched-p4ssword-9";
const CLASHED: &str = "Clashed-p4ssword-10";
const BROKEN: &str = "Broken-p4ssword-11";
const PASSWORDS: [&str; 11] =
    [POSTED, PUT, PATCHED, PATHED, BULKED, GUESSED, LISTED, FILTERED, SEARCHED, CLASHED, BROKEN];

/// A client that keeps what it is answered.
struct Client {
    nodes: Vec<Scim>,
    answers: Vec<(String, Vec<u8>)>,
}

impl Client {
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<String>,
        status: u16,
    ) -> Result<Answer> {
        let node = &self.nodes[self.answers.len() % self.nodes.len()];
        let answer = node.send(method, path, &[], body.into()).await?;
        self.keep(&answer);
        answer.expect(status)
    }

    fn keep(&mut self, answer: &Answer) {
        let mut told = format!("{:?}\n", answer.headers).into_bytes();
        told.extend_from_slice(&answer.body);
        self.answers.push((format!("answer {}", self.answers.len()), told));
    }

    async fn patch(&mut self, path: &str, operations: Value, status: u16) -> Result<Answer> {
        let body = json!({"schemas": [annals_testkit::scim::PATCH_OP], "Operations": operations});
        self.send(Method::PATCH, path, body.to_string(), status).await
    }
}

fn user(name: &str, password: Value) -> String {
    json!({"schemas": [USER], "userName": name, "password": password}).to_string()
}

/// Sets passwords in every way, and tries them.
async fn provision(cluster: &Cluster) -> Result<(Client, Vec<String>)> {
    let mut client = Client { nodes: cluster.clients(), answers: Vec::new() };
    let created = client.send(Method::POST, "/Users", user("ines", json!(POSTED)), 201).await?;
    let (id, path) = (created.id(), format!("/Users/{}", created.id()));
    client.send(Method::PUT, &path, user("ines", json!(PUT)), 200).await?;
    client.patch(&path, json!([{"op": "replace", "value": {"password": PATCHED}}]), 200).await?;
    let asked = format!("{path}?attributes=password,userName");
    client.patch(&asked, json!([{"op": "add", "path": "password", "value": PATHED}]), 200).await?;
    let operations = json!([
        {"method": "POST", "path": "/Users", "bulkId": "b1",
         "data": {"schemas": [USER], "userName": "bulk", "password": BULKED}},
        {"method": "PUT", "path": path, "data": {"schemas": [USER], "userName": "ines", "password": BULKED}},
        // Refused: the answer has the reason, and not what was sent.
        {"method": "POST", "path": "/Users", "bulkId": "b2",
         "data": {"schemas": [USER], "userName": "ines", "password": CLASHED}},
    ]);
    let bulk = json!({"schemas": [BULK], "Operations": operations}).to_string();
    client.send(Method::POST, "/Bulk", bulk, 200).await?;
    client.send(Method::POST, "/Users", user("ines", json!(CLASHED)), 409).await?;
    client.send(Method::POST, "/Users", user("list", json!([LISTED])), 400).await?;
    client.patch(&path, json!([{"op": "add", "path": "password.value", "value": LISTED}]), 400).await?;
    client
        .send(Method::POST, "/Users", format!("{{\"userName\":\"x\",\"password\":\"{BROKEN}\""), 400)
        .await?;
    let filter = encode(&format!("password eq \"{FILTERED}\""));
    client.send(Method::GET, &format!("/Users?filter={filter}"), "", 403).await?;
    let search = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"],
        "filter": format!("password eq \"{SEARCHED}\"")});
    client.send(Method::POST, "/Users/.search", search.to_string(), 400).await?;
    client.send(Method::GET, &format!("{path}?attributes=password"), "", 200).await?;

    // Tokens where they belong, where they do not, and one that is none.
    let uri = format!("/Users?access_token={}", cluster.token);
    client.send(Method::GET, &uri, "", 400).await?;
    let bare = client.nodes[0].send(Method::GET, "/Users", &[("authorization", &cluster.token)], "").await?;
    client.keep(&bare.expect(401)?);
    let wrong = client.nodes[0].with_token(UNKNOWN_TOKEN).get("/Users").await?;
    client.keep(&wrong.expect(401)?);

    let scopes = vec![Scope::Verify];
    let (store, connection) = (&cluster.store, ConnectionId::new("idp")?);
    let issued =
        store.issue_token(&cluster.tenant, &connection, scopes, None, Actor::operator("test")).await?;
    let verifier = issued.secret.expose_secret().to_owned();
    let root = cluster.processes.first().context("a process")?.url();
    let app = Scim::http(&root, &verifier);
    for (password, right) in [(BULKED, true), (GUESSED, false), (PATHED, false)] {
        for name in [json!({"id": id}), json!({"userName": "INES"}), json!({"userName": "nobody"})] {
            let mut question = name.clone();
            question["password"] = json!(password);
            let answer = app.post("/auth/v1/verify-password", &question).await?.expect(200)?;
            let known = name != json!({"userName": "nobody"});
            ensure!(answer.json()["verified"] == json!(right && known), "{name}: {answer:?}");
            client.keep(&answer);
        }
    }
    let malformed = app.post("/auth/v1/verify-password", &json!({"password": [LISTED], "id": id})).await?;
    client.keep(&malformed.expect(400)?);
    for process in &cluster.processes {
        let metrics = Scim::http(&process.url(), "").get("/metrics").await?.expect(200)?;
        client.keep(&metrics);
    }
    Ok((client, vec![cluster.token.clone(), verifier, UNKNOWN_TOKEN.to_owned()]))
}

async fn leaves_no_secret(cluster: Cluster) -> Result<()> {
    let app = Downstream::scim(APP_TOKEN).await?;
    let hook = Downstream::webhook(HOOK_SECRET).await?;
    let scim = Driver::Scim { base_url: app.url(), members_per_request_max: 100 };
    cluster.add_app("app", scim, APP_TOKEN).await?;
    cluster.add_app("hook", Driver::Webhook { url: hook.url() }, HOOK_SECRET).await?;
    let (client, tokens) = provision(&cluster).await?;
    cluster.check().await?;

    let nats_folder = cluster.nats.as_ref().map(nats::Server::store_folder);
    let mut folders = vec![cluster.installation.folder()];
    folders.extend(nats_folder.as_deref());
    let mut places = cluster.checkers.everything_left(&folders).await?;
    let log = cluster.installation.logs();
    ensure!(log.contains("TRACE") && log.contains(" answered "), "the log is not as talkative as it can be");
    let state = cluster.checkers.states(&cluster.tenant).await?;
    ensure!(state.len() == 2, "the users are not there: {state:?}");
    places.extend(client.answers);
    // What is searched must be able to find something.
    let found = hold_none_of(&places, &["password_set"]);
    ensure!(found.is_err(), "nothing is found even where it is");

    let mut secrets = PASSWORDS.to_vec();
    secrets.extend(tokens.iter().map(String::as_str));
    secrets.extend([APP_TOKEN, HOOK_SECRET]);
    hold_none_of(&places, &secrets)?;
    // The applications got no password; their own credentials are in the headers of what they got.
    let seen = app.seen().into_iter().chain(hook.seen());
    let sent: Vec<(String, Vec<u8>)> =
        seen.map(|seen| (format!("{} {}", seen.method, seen.target), seen.body.to_vec())).collect();
    ensure!(sent.len() > 4, "nothing was delivered");
    hold_none_of(&sent, &secrets)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_in_one_process() -> Result<()> {
    let mut installation = Installation::sqlite(BINARY)?;
    installation.set("ANNALS_LOG__FILTER", "trace");
    leaves_no_secret(Cluster::start(installation, None, Profile::Generic, &[Role::Serve]).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_and_nats_in_five_processes() -> Result<()> {
    let nats = nats::Server::start().await?;
    let mut installation = Installation::postgres(BINARY).await?.with_nats(&nats);
    installation.set("ANNALS_LOG__FILTER", "trace");
    leaves_no_secret(Cluster::start(installation, Some(nats), Profile::Generic, &SCALED).await?).await
}

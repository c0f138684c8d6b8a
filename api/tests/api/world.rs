//! A whole API with storage and a small projector, and a client that reads as the requests it sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use annals_api::{ApiOptions, App, Readiness, router};
use annals_domain::clock::{Clock, Entropy, Timestamp};
use annals_domain::event::{Actor, Recorded};
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Connection, Scope, TenantSettings};
use annals_store::{Database, Limits, RootKey, Store, StoreOptions};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tower::ServiceExt;

pub(crate) const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
pub(crate) const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";
pub(crate) const ENT: &str = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";
pub(crate) const ERROR: &str = "urn:ietf:params:scim:api:messages:2.0:Error";
pub(crate) const LIST: &str = "urn:ietf:params:scim:api:messages:2.0:ListResponse";
pub(crate) const PATCH: &str = "urn:ietf:params:scim:api:messages:2.0:PatchOp";
pub(crate) const SEARCH: &str = "urn:ietf:params:scim:api:messages:2.0:SearchRequest";

/// 2026-01-01T00:00:00Z.
pub(crate) const START: i64 = 1_767_225_600_000;

pub(crate) struct TestClock(AtomicI64);

impl TestClock {
    pub(crate) fn set(&self, to: i64) {
        self.0.store(to, Ordering::SeqCst);
    }
    pub(crate) fn advance_ms(&self, by: i64) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

struct TestEntropy;

impl Entropy for TestEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        rand::Rng::fill(&mut rand::rng(), bytes);
    }
}

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) router: Router,
    pub(crate) readiness: Readiness,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) tenant: TenantId,
    /// May read and write.
    pub(crate) token: String,
    projector: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.projector.abort();
    }
}

pub(crate) fn actor() -> Actor {
    Actor::operator("test")
}

pub(crate) fn options() -> ApiOptions {
    ApiOptions {
        base_url: Some("https://scim.test".into()),
        search_timeout: Duration::from_secs(20),
        ..ApiOptions::default()
    }
}

/// Applies the journal to the read model, as the projector does.
async fn project(store: Store) {
    loop {
        let at = store.model_checkpoint().await.expect("checkpoint");
        let events: Vec<Recorded> = store.read_events(at, 500).await.expect("events");
        if events.is_empty() {
            let _ = store.wait_journal(at, Duration::from_millis(200)).await;
        } else {
            store.model_apply(at, &events).await.expect("apply");
        }
    }
}

impl World {
    pub(crate) async fn new() -> World {
        World::with(Profile::Generic, TenantSettings::default(), options()).await
    }

    pub(crate) async fn of(profile: Profile) -> World {
        World::with(profile, TenantSettings::default(), options()).await
    }

    pub(crate) async fn with(profile: Profile, settings: TenantSettings, options: ApiOptions) -> World {
        let dir = tempfile::tempdir().expect("a folder");
        let clock = Arc::new(TestClock(AtomicI64::new(START)));
        let store = Store::open(StoreOptions {
            database: Database::Sqlite { dir: dir.path().to_owned() },
            root_key: RootKey::from_bytes([7; 32]),
            clock: clock.clone(),
            entropy: Arc::new(TestEntropy),
            limits: Limits::default(),
        })
        .await
        .expect("a store");
        store.migrate().await.expect("tables");
        let readiness = Readiness::new();
        let app = App::new(store.clone(), options, readiness.clone());
        let router = router(app.with_metrics(Arc::new(|| "metrics_text 1\n".to_owned())));
        let projector = tokio::spawn(project(store.clone()));
        let tenant = TenantId::new("acme").expect("a slug");
        let mut world =
            World { store, router, readiness, clock, tenant, token: String::new(), projector, dir };
        world.store.create_tenant(&world.tenant, settings, actor()).await.expect("a tenant");
        world.token = world.connect("acme", "main", profile).await;
        world
    }

    /// Another tenant with a connection of its own; its token.
    pub(crate) async fn other_tenant(&self, name: &str) -> String {
        let tenant = TenantId::new(name).expect("a slug");
        self.store.create_tenant(&tenant, TenantSettings::default(), actor()).await.expect("a tenant");
        self.connect(name, "main", Profile::Generic).await
    }

    /// Another connection; its token.
    pub(crate) async fn connect(&self, tenant: &str, name: &str, profile: Profile) -> String {
        let tenant = TenantId::new(tenant).expect("a slug");
        let id = ConnectionId::new(name).expect("a slug");
        let connection = Connection::new(id.clone(), profile);
        self.store.create_connection(&tenant, connection, actor()).await.expect("a connection");
        self.issue(&tenant, &id, vec![Scope::Read, Scope::Write], None).await
    }

    /// Another token of the main connection.
    pub(crate) async fn token_with(&self, scopes: Vec<Scope>, expires: Option<Timestamp>) -> String {
        let id = ConnectionId::new("main").expect("a slug");
        self.issue(&self.tenant, &id, scopes, expires).await
    }

    async fn issue(
        &self,
        tenant: &TenantId,
        connection: &ConnectionId,
        scopes: Vec<Scope>,
        expires: Option<Timestamp>,
    ) -> String {
        let issued = self.store.issue_token(tenant, connection, scopes, expires, actor()).await;
        issued.expect("a token").secret.expose_secret().to_owned()
    }

    /// From now on the read model stays as it is.
    pub(crate) async fn stop_projector(&mut self) {
        self.projector.abort();
        let _ = (&mut self.projector).await;
    }

    pub(crate) fn call(&self, method: &str, path: &str) -> Call<'_> {
        let uri = if ["/scim", "/t/", "/admin"].iter().any(|base| path.starts_with(base)) {
            path.to_owned()
        } else if path.starts_with("//raw") {
            path.trim_start_matches("//raw").to_owned()
        } else {
            format!("/scim/v2{path}")
        };
        Call {
            world: self,
            method: method.parse().expect("a method"),
            uri,
            headers: HeaderMap::new(),
            token: Some(self.token.clone()),
            body: Body::empty(),
            peer: None,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path).send().await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path).json(&body).send().await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path).json(&body).send().await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path).send().await
    }

    /// PATCH with these operations.
    pub(crate) async fn patch(&self, path: &str, operations: Value) -> Answer {
        let body = json!({"schemas": [PATCH], "Operations": operations});
        self.call("PATCH", path).json(&body).send().await
    }

    /// `GET /Users?filter=…` and the like.
    pub(crate) async fn filter(&self, path: &str, filter: &str) -> Answer {
        self.get(&format!("{path}?filter={}", encode(filter))).await
    }

    /// A user of that name; the whole answer's body.
    pub(crate) async fn user(&self, name: &str) -> Value {
        let answer = self.post("/Users", json!({"schemas": [USER], "userName": name})).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body
    }

    /// A group of that name with these members; its id.
    pub(crate) async fn group(&self, name: &str, members: &[&str]) -> String {
        let members: Vec<Value> = members.iter().map(|id| json!({"value": id})).collect();
        let body = json!({"schemas": [GROUP], "displayName": name, "members": members});
        let answer = self.post("/Groups", body).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.id()
    }

    /// All bytes of the journal's database, on disk.
    pub(crate) fn journal_bytes(&self) -> Vec<u8> {
        let files =
            std::fs::read_dir(self.dir.path()).expect("a folder").map(|entry| entry.expect("a file").path());
        let journal =
            files.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("journal")));
        journal.flat_map(|path| std::fs::read(path).expect("a file")).collect()
    }

    /// How many events the journal has.
    pub(crate) async fn events(&self) -> i64 {
        self.store.head().await.expect("head").position
    }

    /// The ids of a group's members, as the API tells.
    pub(crate) async fn members(&self, group: &str) -> Vec<String> {
        let answer = self.get(&format!("/Groups/{group}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["members"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|m| m["value"].as_str().expect("a value").to_owned())
            .collect()
    }
}

pub(crate) struct Call<'a> {
    world: &'a World,
    method: Method,
    uri: String,
    headers: HeaderMap,
    token: Option<String>,
    body: Body,
    peer: Option<std::net::IpAddr>,
}

impl Call<'_> {
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().expect("a header value"));
        self
    }
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }
    pub(crate) fn anonymous(mut self) -> Self {
        self.token = None;
        self
    }
    pub(crate) fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/scim+json").raw(body.to_string())
    }
    pub(crate) fn raw(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }
    /// Over a connection from that address.
    pub(crate) fn from(mut self, address: &str) -> Self {
        self.peer = Some(address.parse().expect("an address"));
        self
    }
    pub(crate) async fn send(self) -> Answer {
        let (method, uri) = (self.method.to_string(), self.uri.clone());
        let answer = Answer::of(self.respond().await).await;
        crate::contract::check(&method, &uri, &answer);
        answer
    }
    /// The response with its body unread.
    pub(crate) async fn respond(mut self) -> Response<Body> {
        if let Some(token) = &self.token {
            let value = format!("Bearer {token}").parse().expect("a header value");
            self.headers.append("authorization", value);
        }
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri.parse().expect("a URI");
        *request.headers_mut() = self.headers;
        if let Some(peer) = self.peer {
            request.extensions_mut().insert(annals_api::Peer(peer));
        }
        self.world.router.clone().oneshot(request).await.expect("infallible")
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Null if there is none.
    pub(crate) body: Value,
    pub(crate) bytes: usize,
}

impl Answer {
    async fn of(response: Response<Body>) -> Answer {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into()))
        };
        Answer { status: parts.status, headers: parts.headers, body, bytes: bytes.len() }
    }

    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().expect("an id").to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().expect("text")).unwrap_or_default()
    }

    pub(crate) fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }

    /// Asserts that this is a SCIM error of that status and keyword (`""` = none): ER-001 to ER-003.
    #[track_caller]
    pub(crate) fn is_error(&self, status: u16, scim_type: &str) -> &Self {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/scim+json", "{}", self.body);
        assert_eq!(self.body["schemas"], json!([ERROR]));
        assert_eq!(self.body["status"], json!(status.to_string()));
        assert_eq!(self.body["scimType"].as_str().unwrap_or_default(), scim_type, "{}", self.body);
        assert!(!self.detail().is_empty());
        let names: Vec<&str> = self.body.as_object().expect("an object").keys().map(String::as_str).collect();
        assert!(names.iter().all(|n| ["schemas", "status", "scimType", "detail"].contains(n)), "{names:?}");
        self
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    /// The ids of a list.
    #[track_caller]
    pub(crate) fn ids(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert_eq!(self.body["schemas"], json!([LIST]));
        self.body["Resources"]
            .as_array()
            .expect("Resources")
            .iter()
            .map(|r| r["id"].as_str().expect("an id").to_owned())
            .collect()
    }
}

/// Percent-encodes everything that is not a letter or a digit.
pub(crate) fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// The fixture of scim-requirements §7.1: the resources' ids by their names there.
pub(crate) struct Fixture {
    pub(crate) u1: String,
    pub(crate) u2: String,
    pub(crate) u3: String,
    pub(crate) g1: String,
    pub(crate) g2: String,
}

impl Fixture {
    pub(crate) async fn in_world(world: &World) -> Fixture {
        let id = |answer: &Answer| {
            assert_eq!(answer.status, 201, "{}", answer.body);
            answer.id()
        };
        world.clock.set(1_768_032_000_000);
        let u1 = json!({
            "schemas": [USER, ENT], "externalId": "E-1", "userName": "Anna.Berg@Example.com",
            "name": {"givenName": "Anna", "familyName": "Berg"}, "displayName": "Anna Berg",
            "title": "Engineer", "userType": "Employee", "active": true,
            "emails": [
                {"value": "anna@work.test", "type": "work", "primary": true},
                {"value": "anna@home.test", "type": "home"},
            ],
            "phoneNumbers": [{"value": "+49 30 1", "type": "work"}],
            ENT: {"employeeNumber": "42", "department": "R&D"},
        });
        let u1 = id(&world.post("/Users", u1).await);
        world.clock.set(1_769_904_000_000);
        let u2 = json!({
            "schemas": [USER], "externalId": "e-1", "userName": "bo", "displayName": "Bo",
            "userType": "Contractor", "active": false,
            "emails": [{"value": "bo@home.test", "type": "home"}],
        });
        let u2 = id(&world.post("/Users", u2).await);
        world.clock.set(1_772_366_400_000);
        let manager = json!([{"op": "add", "path": format!("{ENT}:manager"), "value": {"value": u2}}]);
        world.patch(&format!("/Users/{u1}"), manager).await.is(200);
        world.clock.set(1_772_701_200_000);
        let u3 = json!({"schemas": [USER], "userName": "celik", "title": "", "active": true});
        let u3 = id(&world.post("/Users", u3).await);
        // Ties are ordered by id, and ids of one millisecond have no order.
        world.clock.advance_ms(1);
        let g1 = world.group("Ops", &[&u1, &u2]).await;
        world.clock.advance_ms(1);
        let g2 = world.group("ops-admins", &[&g1]).await;
        Fixture { u1, u2, u3, g1, g2 }
    }

    /// The name of an id in the fixture.
    pub(crate) fn name(&self, id: &str) -> &'static str {
        let all = [(&self.u1, "u1"), (&self.u2, "u2"), (&self.u3, "u3"), (&self.g1, "g1"), (&self.g2, "g2")];
        all.into_iter().find(|(known, _)| *known == id).map_or("?", |(_, name)| name)
    }

    /// A text with the fixture's names in quotes replaced by ids, and `ENT` by its URN.
    pub(crate) fn fill(&self, text: &str) -> String {
        let mut text = text.replace("ENT", ENT);
        for (name, id) in
            [("u1", &self.u1), ("u2", &self.u2), ("u3", &self.u3), ("g1", &self.g1), ("g2", &self.g2)]
        {
            text = text.replace(&format!("\"{name}\""), &format!("\"{id}\""));
            text = text.replace(&format!("\\\"{name}\\\""), &format!("\\\"{id}\\\""));
        }
        text
    }
}

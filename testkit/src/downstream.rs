//! Downstream applications for tests: a small honest SCIM service provider and a webhook receiver, both of
//! which record every request and misbehave on command.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use serde_json::{Map, Value, json};
use standardwebhooks::Webhook;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::child::wait_for;

const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
const SCIM_JSON: &str = "application/scim+json";

/// What a scripted request meets instead of, or besides, the honest answer.
#[derive(Clone, Debug)]
pub enum Action {
    /// This answer; the request has no effect.
    Answer {
        /// The status.
        status: u16,
        /// Headers, such as `("retry-after", "20")`.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// The honest answer, late.
    Delay(Duration),
    /// The honest answer, once [`Downstream::release`] is called.
    Hold,
    /// The honest effect, and the honest answer, but late.
    Late(Duration),
    /// The honest effect, answered with this status.
    Lie(u16),
    /// The connection breaks; the request had no effect.
    DropBefore,
    /// The connection breaks; the request had its effect, but the client cannot know.
    DropAfter,
}

impl Action {
    /// An empty answer with a status.
    pub fn status(status: u16) -> Action {
        Action::Answer { status, headers: Vec::new(), body: String::new() }
    }

    /// An empty answer with a status and `Retry-After`.
    pub fn retry_after(status: u16, value: &str) -> Action {
        let headers = vec![("retry-after".to_owned(), value.to_owned())];
        Action::Answer { status, headers, body: String::new() }
    }
}

#[derive(Clone, Debug)]
struct Rule {
    method: Option<Method>,
    path_has: String,
    times: usize,
    action: Action,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    /// 1, 2, 3, … in order of arrival.
    pub number: usize,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The status answered; 0 while it waits, or if the connection was broken.
    pub status: u16,
}

impl Seen {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// An event as a webhook got it, with a valid signature.
#[derive(Clone, Debug)]
pub struct Received {
    /// `webhook-id`.
    pub id: String,
    /// The whole body.
    pub event: Value,
    /// The headers.
    pub headers: HeaderMap,
}

/// A downstream application on a loopback port.
#[derive(Debug)]
pub struct Downstream {
    address: SocketAddr,
    inner: Arc<Inner>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    state: Mutex<Data>,
    changed: Notify,
    released: Notify,
}

#[derive(Debug)]
enum Kind {
    Scim { token: String },
    Webhook { secret: String },
}

#[derive(Debug, Default)]
struct Data {
    seen: Vec<Seen>,
    rules: VecDeque<Rule>,
    resources: HashMap<&'static str, BTreeMap<String, Map<String, Value>>>,
    /// Endpoint and schema of what it has beside users and groups; none: it has no `/ResourceTypes`.
    types: Option<Vec<(&'static str, &'static str)>>,
    next_id: u64,
    received: Vec<Received>,
    refused: Vec<String>,
    in_flight: usize,
    in_flight_most: usize,
}

impl Downstream {
    /// A SCIM service provider that wants this bearer token.
    ///
    /// # Errors
    /// No port is free.
    pub async fn scim(token: &str) -> Result<Downstream> {
        Self::start(Kind::Scim { token: token.to_owned() }).await
    }

    /// A webhook receiver with this Standard Webhooks secret (`whsec_…`).
    ///
    /// # Errors
    /// No port is free.
    pub async fn webhook(secret: &str) -> Result<Downstream> {
        Self::start(Kind::Webhook { secret: secret.to_owned() }).await
    }

    async fn start(kind: Kind) -> Result<Downstream> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.context("binding a port")?;
        let address = listener.local_addr().context("reading the port")?;
        let state = Mutex::new(Data::default());
        let inner = Arc::new(Inner { kind, state, changed: Notify::new(), released: Notify::new() });
        let router = Router::new().fallback(serve).with_state(inner.clone());
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Downstream { address, inner, server })
    }

    /// Where it is: the SCIM base URL, or the URL to POST events to.
    pub fn url(&self) -> String {
        match self.inner.kind {
            Kind::Scim { .. } => format!("http://{}/scim/v2", self.address),
            Kind::Webhook { .. } => format!("http://{}/events", self.address),
        }
    }

    /// The next `times` requests whose method and path match meet `action`. Rules are tried in the order
    /// they were given. No method matches any, an empty `path_has` any path.
    pub fn script(&self, method: Option<Method>, path_has: &str, times: usize, action: Action) -> &Self {
        let rule = Rule { method, path_has: path_has.to_owned(), times, action };
        self.data().rules.push_back(rule);
        self
    }

    /// Forgets all rules.
    pub fn behave(&self) {
        self.data().rules.clear();
        self.release();
    }

    /// Lets the requests go on that [`Action::Hold`] holds at this moment.
    pub fn release(&self) {
        self.inner.released.notify_waiters();
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.data().seen.clone()
    }

    /// Forgets the requests so far, not what they did.
    pub fn forget(&self) {
        self.data().seen.clear();
    }

    /// Most requests that were in flight at once.
    pub fn in_flight_most(&self) -> usize {
        self.data().in_flight_most
    }

    /// The users it holds, by their id here.
    pub fn users(&self) -> BTreeMap<String, Map<String, Value>> {
        self.data().resources.get("Users").cloned().unwrap_or_default()
    }

    /// The groups it holds, by their id here.
    pub fn groups(&self) -> BTreeMap<String, Map<String, Value>> {
        self.data().resources.get("Groups").cloned().unwrap_or_default()
    }

    /// What it holds at an endpoint, by its id here.
    pub fn resources(&self, endpoint: &str) -> BTreeMap<String, Map<String, Value>> {
        self.data().resources.get(endpoint).cloned().unwrap_or_default()
    }

    /// Gives it `/ResourceTypes`: users, groups, and these endpoints with their schemas.
    pub fn offer(&self, types: &[(&'static str, &'static str)]) -> &Self {
        self.data().types = Some(types.to_vec());
        self
    }

    /// The user of that name.
    pub fn user(&self, user_name: &str) -> Option<Map<String, Value>> {
        self.users().into_values().find(|user| user.get("userName") == Some(&json!(user_name)))
    }

    /// The members of the group of that name, as user names or as nested groups' names, sorted.
    pub fn members(&self, display_name: &str) -> Option<Vec<String>> {
        let (users, groups) = (self.users(), self.groups());
        let group = groups.values().find(|group| group.get("displayName") == Some(&json!(display_name)))?;
        let name = |id: &str| {
            let user = users.get(id).and_then(|user| user.get("userName"));
            let name = user.or_else(|| groups.get(id).and_then(|group| group.get("displayName")));
            name.and_then(Value::as_str).map_or_else(|| format!("?{id}"), str::to_owned)
        };
        let mut names: Vec<String> = list(group, "members")
            .iter()
            .filter_map(|member| member.get("value").and_then(Value::as_str))
            .map(name)
            .collect();
        names.sort();
        Some(names)
    }

    /// Puts a resource there behind our back (`endpoint` is `Users` or `Groups`) and returns its id.
    pub fn plant(&self, endpoint: &str, body: Value) -> String {
        let mut data = self.data();
        let Value::Object(body) = body else { panic!("a resource is an object") };
        data.insert(known_endpoint(endpoint).unwrap_or("Users"), body)
    }

    /// Takes a resource away behind our back.
    pub fn lose(&self, endpoint: &str, id: &str) {
        if let Some(map) =
            known_endpoint(endpoint).and_then(|e| self.data().resources.get_mut(e).map(|m| m.remove(id)))
        {
            drop(map);
        }
    }

    /// The events it took, each answered with 2xx, in order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.data().received.clone()
    }

    /// Why it refused requests: bad signatures, tokens, content types.
    pub fn refused(&self) -> Vec<String> {
        self.data().refused.clone()
    }

    /// Waits until `done` holds, looking again after each request.
    ///
    /// # Errors
    /// It did not hold within `timeout`.
    pub async fn until(&self, what: &str, timeout: Duration, done: impl Fn(&Self) -> bool) -> Result<()> {
        wait_for(what, timeout, async || {
            ensure!(done(self), "{} requests so far", self.seen().len());
            Ok(())
        })
        .await
    }

    /// Every received event came once, and each entity's came in the order of their positions. With
    /// `repeats`, an event may come again if nothing about it has changed but that its person was erased;
    /// what counts is its first arrival.
    ///
    /// # Errors
    /// Names the first one that did not.
    pub fn check_events(&self, repeats: bool) -> Result<()> {
        let mut first: HashMap<String, Value> = HashMap::new();
        let mut last: HashMap<String, i64> = HashMap::new();
        for received in self.received() {
            let (id, event) = (received.id, received.event);
            if let Some(known) = first.get(&id) {
                ensure!(repeats, "event {id} came twice");
                let is_erased = event["data"]["erased"] == json!(true);
                ensure!(
                    *known == event || is_erased,
                    "event {id} came again and differs: {known} is not {event}"
                );
                continue;
            }
            let subject = event.get("subject").and_then(Value::as_str).unwrap_or_default().to_owned();
            let position =
                sequence(&event).with_context(|| format!("event {id} has no sequence: {event}"))?;
            if let Some(before) = last.insert(subject.clone(), position) {
                ensure!(before < position, "{subject}: position {position} came after {before}");
            }
            first.insert(id, event);
        }
        let refused = self.refused();
        ensure!(refused.is_empty(), "requests were refused: {refused:?}");
        Ok(())
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        self.inner.data()
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The position that a CloudEvent carries in its `sequence`.
pub fn sequence(event: &Value) -> Option<i64> {
    let value = event.get("sequence")?;
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

impl Inner {
    fn data(&self) -> MutexGuard<'_, Data> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Breaks the connection without an answer: hyper closes it when its task unwinds. No panic message is
/// printed, as the hook is not called.
fn break_connection() -> ! {
    std::panic::resume_unwind(Box::new("scripted to break the connection"))
}

async fn serve(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else { return plain(413, "") };
    let target = parts.uri.path_and_query().map_or("/", |t| t.as_str()).to_owned();
    let (number, action) = {
        let mut data = inner.data();
        let number = data.seen.len() + 1;
        data.seen.push(Seen {
            number,
            method: parts.method.clone(),
            target: target.clone(),
            headers: parts.headers.clone(),
            body: body.clone(),
            status: 0,
        });
        data.in_flight += 1;
        data.in_flight_most = data.in_flight_most.max(data.in_flight);
        (number, data.take_rule(&parts.method, &target))
    };
    let _leaving = Leaving(inner.clone());
    let response = match action {
        Some(Action::DropBefore) => break_connection(),
        Some(Action::Answer { status, headers, body }) => {
            let mut response = plain(status, &body);
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) = (name.parse::<header::HeaderName>(), value.parse()) {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        Some(Action::DropAfter) => {
            inner.honest(&parts.method, &target, &parts.headers, &body);
            break_connection()
        }
        Some(Action::Delay(time)) => {
            tokio::time::sleep(time).await;
            inner.honest(&parts.method, &target, &parts.headers, &body)
        }
        Some(Action::Late(time)) => {
            let answer = inner.honest(&parts.method, &target, &parts.headers, &body);
            tokio::time::sleep(time).await;
            answer
        }
        Some(Action::Lie(status)) => {
            inner.honest(&parts.method, &target, &parts.headers, &body);
            plain(status, "")
        }
        Some(Action::Hold) => {
            inner.released.notified().await;
            inner.honest(&parts.method, &target, &parts.headers, &body)
        }
        None => inner.honest(&parts.method, &target, &parts.headers, &body),
    };
    let status = response.status().as_u16();
    if let Some(seen) = inner.data().seen.iter_mut().find(|seen| seen.number == number) {
        seen.status = status;
    }
    response
}

struct Leaving(Arc<Inner>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.data().in_flight -= 1;
        self.0.changed.notify_waiters();
    }
}

impl Inner {
    fn honest(&self, method: &Method, target: &str, headers: &HeaderMap, body: &Bytes) -> Response {
        match &self.kind {
            Kind::Webhook { secret } => self.take_event(secret, method, headers, body),
            Kind::Scim { token } => {
                let given =
                    headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
                if given != format!("Bearer {token}") {
                    self.data().refused.push(format!("{method} {target}: wrong token"));
                    return scim_error(401, None, "wrong token");
                }
                match self.data().scim(method, target, body) {
                    Ok(response) => response,
                    Err(refusal) => scim_error(refusal.status, refusal.scim_type, &refusal.detail),
                }
            }
        }
    }

    fn take_event(&self, secret: &str, method: &Method, headers: &HeaderMap, body: &Bytes) -> Response {
        let mut data = self.data();
        let mut refuse = |why: String| {
            data.refused.push(why.clone());
            plain(400, &why)
        };
        if method != Method::POST {
            return refuse(format!("{method} instead of POST"));
        }
        let webhook = match Webhook::new(secret) {
            Ok(webhook) => webhook,
            Err(error) => return refuse(format!("the test's own secret: {error}")),
        };
        // Tests move their clocks, so the age of the time stamp says nothing; the signature covers it.
        if let Err(why) = verify(&webhook, headers, body) {
            return refuse(why);
        }
        let Ok(event) = serde_json::from_slice::<Value>(body) else {
            return refuse("the body is no JSON".to_owned());
        };
        let id = headers.get("webhook-id").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        data.received.push(Received { id, event, headers: headers.clone() });
        plain(204, "")
    }
}

fn verify(webhook: &Webhook, headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let header = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.ok_or_else(|| format!("header {name} is missing"))
    };
    let seconds = header("webhook-timestamp")?.parse().map_err(|_| "webhook-timestamp is no number")?;
    let wanted = webhook.sign(header("webhook-id")?, seconds, body).map_err(|error| error.to_string())?;
    let given = header("webhook-signature")?;
    if given.split(' ').any(|signature| signature == wanted) {
        Ok(())
    } else {
        Err("the signature is wrong".to_owned())
    }
}

#[derive(Debug)]
struct Refusal {
    status: u16,
    scim_type: Option<&'static str>,
    detail: String,
}

fn refuse<T>(status: u16, scim_type: Option<&'static str>, detail: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, scim_type, detail: detail.into() })
}

fn known_endpoint(name: &str) -> Option<&'static str> {
    ["Users", "Groups"].into_iter().find(|endpoint| *endpoint == name)
}

fn list<'a>(resource: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    resource.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl Data {
    fn take_rule(&mut self, method: &Method, target: &str) -> Option<Action> {
        let rule = self.rules.iter_mut().find(|rule| {
            rule.times > 0
                && rule.method.as_ref().is_none_or(|wanted| wanted == method)
                && target.contains(&rule.path_has)
        })?;
        rule.times -= 1;
        Some(rule.action.clone())
    }

    fn insert(&mut self, endpoint: &'static str, mut body: Map<String, Value>) -> String {
        self.next_id += 1;
        let id = format!("r{}", self.next_id);
        body.insert("id".into(), json!(id));
        self.resources.entry(endpoint).or_default().insert(id.clone(), body);
        id
    }

    fn scim(&mut self, method: &Method, target: &str, body: &Bytes) -> Result<Response, Refusal> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_prefix("/scim/v2/").unwrap_or(path);
        if path == "ServiceProviderConfig" {
            return Ok(scim_json(200, &service_provider_config()));
        }
        let (endpoint, id) = path.split_once('/').map_or((path, None), |(e, id)| (e, Some(id)));
        if let ("ResourceTypes", Some(types)) = (path, &self.types) {
            return Ok(scim_json(200, &resource_types(types)));
        }
        let offered = self.types.iter().flatten().map(|(endpoint, _)| *endpoint);
        let known = known_endpoint(endpoint).or_else(|| offered.into_iter().find(|known| *known == endpoint));
        let Some(endpoint) = known else { return refuse(404, None, "no such endpoint") };
        let resources = self.resources.entry(endpoint).or_default();
        let parse = || match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(map)) => Ok(map),
            _ => refuse(400, Some("invalidSyntax"), "the body is no JSON object"),
        };
        if let Some(id) = id
            && !resources.contains_key(id)
        {
            return refuse(404, None, format!("{endpoint}/{id} not found"));
        }
        match (method, id) {
            (&Method::GET, Some(id)) => Ok(scim_json(200, &json!(resources[id]))),
            (&Method::GET, None) => {
                let mut found: Vec<&Map<String, Value>> = Vec::new();
                let filter = query_value(query, "filter");
                for resource in resources.values() {
                    let hit = match &filter {
                        None => true,
                        Some(filter) => filter_matches(filter, resource)?,
                    };
                    if hit {
                        found.push(resource);
                    }
                }
                let total = found.len();
                let number =
                    |name, default| query_value(query, name).and_then(|v| v.parse().ok()).unwrap_or(default);
                let start = number("startIndex", 1usize).max(1);
                let page: Vec<_> = found.into_iter().skip(start - 1).take(number("count", 100)).collect();
                Ok(scim_json(
                    200,
                    &json!({
                        "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
                        "totalResults": total, "startIndex": start, "itemsPerPage": page.len(),
                        "Resources": page,
                    }),
                ))
            }
            (&Method::POST, None) => {
                let resource = parse()?;
                check_unique(endpoint, resources, &resource, None)?;
                let id = self.insert(endpoint, resource);
                Ok(scim_json(201, &json!(self.resources[endpoint][&id])))
            }
            (&Method::PUT, Some(id)) => {
                let mut resource = parse()?;
                check_unique(endpoint, resources, &resource, Some(id))?;
                resource.insert("id".into(), json!(id));
                resources.insert(id.to_owned(), resource);
                Ok(scim_json(200, &json!(resources[id])))
            }
            (&Method::PATCH, Some(id)) => {
                let request = parse()?;
                // All or nothing: the operations work on a copy.
                let mut resource = resources[id].clone();
                for operation in list(&request, "Operations") {
                    patch(&mut resource, operation)?;
                }
                check_unique(endpoint, resources, &resource, Some(id))?;
                resources.insert(id.to_owned(), resource);
                if endpoint == "Groups" {
                    return Ok(plain(204, ""));
                }
                Ok(scim_json(200, &json!(resources[id])))
            }
            (&Method::DELETE, Some(id)) => {
                resources.remove(id);
                for group in self.resources.get_mut("Groups").into_iter().flat_map(BTreeMap::values_mut) {
                    if let Some(Value::Array(members)) = group.get_mut("members") {
                        members.retain(|member| member.get("value") != Some(&json!(id)));
                    }
                }
                Ok(plain(204, ""))
            }
            _ => refuse(405, None, "method not allowed"),
        }
    }
}

fn check_unique(
    endpoint: &str,
    resources: &BTreeMap<String, Map<String, Value>>,
    resource: &Map<String, Value>,
    own: Option<&str>,
) -> Result<(), Refusal> {
    let name = match endpoint {
        "Users" => "userName",
        "Groups" => "displayName",
        _ => return Ok(()),
    };
    let Some(value) = resource.get(name).and_then(Value::as_str) else {
        return refuse(400, Some("invalidValue"), format!("{name} is missing"));
    };
    let folded = value.to_lowercase();
    let taken = resources.iter().any(|(id, other)| {
        Some(id.as_str()) != own
            && other.get(name).and_then(Value::as_str).is_some_and(|v| v.to_lowercase() == folded)
    });
    if taken { refuse(409, Some("uniqueness"), format!("{name} is taken")) } else { Ok(()) }
}

/// `attr eq "value"`, with a dotted or URN-prefixed attribute; clauses joined by `and`.
fn filter_matches(filter: &str, resource: &Map<String, Value>) -> Result<bool, Refusal> {
    let mut all = true;
    for clause in filter.split(" and ") {
        let Some((path, value)) = clause.split_once(" eq ") else {
            return refuse(400, Some("invalidFilter"), format!("only eq is supported: {clause}"));
        };
        let Ok(value) = serde_json::from_str::<Value>(value.trim()) else {
            return refuse(400, Some("invalidFilter"), format!("value: {clause}"));
        };
        all &= read(resource, &Path::parse(path.trim())?).iter().any(|found| same(found, &value));
    }
    Ok(all)
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.to_lowercase() == b.to_lowercase(),
        _ => a == b,
    }
}

#[derive(Debug, Default)]
struct Path {
    urn: Option<String>,
    attribute: String,
    filter: Option<(String, Value)>,
    sub: Option<String>,
}

impl Path {
    fn parse(text: &str) -> Result<Path, Refusal> {
        let mut path = Path::default();
        let mut rest = text;
        if text.to_lowercase().starts_with("urn:") {
            let end = text.find('[').unwrap_or(text.len());
            let Some(colon) = text[..end].rfind(':') else {
                return refuse(400, Some("invalidPath"), text);
            };
            let urn = &text[..colon];
            // A core schema's URN says nothing that the plain name does not.
            path.urn = (!urn.contains(":schemas:core:")).then(|| urn.to_owned());
            rest = &text[colon + 1..];
        }
        if let Some((attribute, tail)) = rest.split_once('[') {
            let Some((filter, tail)) = tail.split_once(']') else {
                return refuse(400, Some("invalidPath"), text);
            };
            let parts = filter.split_once(" eq ").and_then(|(name, value)| {
                Some((name.trim().to_owned(), serde_json::from_str(value.trim()).ok()?))
            });
            let Some(parts) = parts else { return refuse(400, Some("invalidPath"), text) };
            path.attribute = attribute.to_owned();
            path.filter = Some(parts);
            path.sub = tail.strip_prefix('.').map(str::to_owned);
        } else if let Some((attribute, sub)) = rest.split_once('.') {
            path.attribute = attribute.to_owned();
            path.sub = Some(sub.to_owned());
        } else {
            path.attribute = rest.to_owned();
        }
        Ok(path)
    }
}

fn key(map: &Map<String, Value>, name: &str) -> String {
    map.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned().unwrap_or_else(|| name.to_owned())
}

fn read(resource: &Map<String, Value>, path: &Path) -> Vec<Value> {
    let holder = match &path.urn {
        None => Some(resource),
        Some(urn) => resource.get(&key(resource, urn)).and_then(Value::as_object),
    };
    let Some(value) = holder.and_then(|holder| holder.get(&key(holder, &path.attribute))) else {
        return vec![];
    };
    let elements: Vec<Value> = match value {
        Value::Array(elements) => elements.clone(),
        other => vec![other.clone()],
    };
    let sub = path.sub.as_deref().unwrap_or("value");
    elements
        .into_iter()
        .filter_map(|element| match element {
            Value::Object(map) => map.get(&key(&map, sub)).cloned(),
            plain => Some(plain),
        })
        .collect()
}

fn patch(resource: &mut Map<String, Value>, operation: &Value) -> Result<(), Refusal> {
    let op = operation.get("op").and_then(Value::as_str).unwrap_or_default().to_lowercase();
    let value = operation.get("value").cloned();
    let path = operation.get("path").and_then(Value::as_str);
    match (op.as_str(), path) {
        ("add" | "replace", None) => {
            let Some(Value::Object(map)) = value else {
                return refuse(400, Some("invalidValue"), "an operation without path wants an object");
            };
            for (name, value) in map {
                if let (true, Value::Object(extension)) = (name.starts_with("urn:"), &value) {
                    for (attribute, value) in extension {
                        write(resource, &op, &Path::parse(&format!("{name}:{attribute}"))?, value.clone())?;
                    }
                } else {
                    write(resource, &op, &Path::parse(&name)?, value)?;
                }
            }
            Ok(())
        }
        ("add" | "replace", Some(path)) => {
            let Some(value) = value else { return refuse(400, Some("invalidValue"), "value is missing") };
            write(resource, &op, &Path::parse(path)?, value)
        }
        ("remove", Some(path)) => remove(resource, &Path::parse(path)?, value.as_ref()),
        ("remove", None) => refuse(400, Some("noTarget"), "remove wants a path"),
        _ => refuse(400, Some("invalidSyntax"), format!("op {op:?}")),
    }
}

fn write(resource: &mut Map<String, Value>, op: &str, path: &Path, value: Value) -> Result<(), Refusal> {
    let holder = match &path.urn {
        None => resource,
        Some(urn) => {
            let name = key(resource, urn);
            match resource.entry(name).or_insert_with(|| json!({})) {
                Value::Object(map) => map,
                _ => return refuse(400, Some("invalidPath"), "the extension is no object"),
            }
        }
    };
    let name = key(holder, &path.attribute);
    match (&path.filter, &path.sub) {
        (None, None) => {
            let slot = holder.entry(name).or_insert(Value::Null);
            match (op, slot, value) {
                ("add", Value::Array(have), Value::Array(more)) => {
                    for element in more {
                        let known = have.iter().any(|old| {
                            old == &element
                                || old.get("value").is_some_and(|v| Some(v) == element.get("value"))
                        });
                        if !known {
                            have.push(element);
                        }
                    }
                }
                (_, slot, value) => *slot = value,
            }
        }
        (None, Some(sub)) => {
            let slot = holder.entry(name).or_insert_with(|| json!({}));
            let Value::Object(map) = slot else {
                return refuse(400, Some("invalidPath"), format!("{} is not complex", path.attribute));
            };
            map.insert(key(map, sub), value);
        }
        (Some((by, want)), sub) => {
            let slot = holder.entry(name).or_insert_with(|| json!([]));
            let Value::Array(elements) = slot else {
                return refuse(400, Some("invalidPath"), format!("{} has one value", path.attribute));
            };
            let mut hit = false;
            for element in elements.iter_mut().filter_map(Value::as_object_mut) {
                if element.get(by).is_some_and(|found| same(found, want)) {
                    hit = true;
                    match (sub, &value) {
                        (Some(sub), value) => {
                            element.insert(key(element, sub), value.clone());
                        }
                        (None, Value::Object(map)) => *element = map.clone(),
                        _ => return refuse(400, Some("invalidValue"), "an element is an object"),
                    }
                }
            }
            if !hit && op == "replace" {
                return refuse(400, Some("noTarget"), "the filter hits nothing");
            }
            if !hit {
                let mut element = Map::new();
                element.insert(by.clone(), want.clone());
                element.insert(sub.clone().unwrap_or_else(|| "value".into()), value);
                elements.push(Value::Object(element));
            }
        }
    }
    Ok(())
}

fn remove(resource: &mut Map<String, Value>, path: &Path, value: Option<&Value>) -> Result<(), Refusal> {
    let holder = match &path.urn {
        None => resource,
        Some(urn) => match resource.get_mut(&key(resource, urn)) {
            Some(Value::Object(map)) => map,
            _ => return Ok(()),
        },
    };
    let name = key(holder, &path.attribute);
    match (&path.filter, &path.sub, holder.get_mut(&name)) {
        (_, _, None) => {}
        (None, None, Some(slot)) => match (slot, value) {
            // `{"op":"remove","path":"members","value":[…]}`: only these.
            (Value::Array(have), Some(Value::Array(these))) => have.retain(|old| {
                !these.iter().any(|gone| gone.get("value").is_some_and(|v| Some(v) == old.get("value")))
            }),
            _ => {
                holder.remove(&name);
            }
        },
        (None, Some(sub), Some(slot)) => {
            if let Value::Object(map) = slot {
                map.remove(&key(map, sub));
            }
        }
        (Some((by, want)), sub, Some(slot)) => {
            let Value::Array(elements) = slot else {
                return refuse(400, Some("invalidPath"), format!("{name} has one value"));
            };
            match sub {
                None => elements.retain(|element| !element.get(by).is_some_and(|found| same(found, want))),
                Some(sub) => {
                    for element in elements.iter_mut().filter_map(Value::as_object_mut) {
                        if element.get(by).is_some_and(|found| same(found, want)) {
                            element.remove(&key(element, sub));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn query_value(query: &str, name: &str) -> Option<String> {
    let raw = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

fn service_provider_config() -> Value {
    json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"],
        "patch": {"supported": true},
        "bulk": {"supported": false, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": true, "maxResults": 100},
        "changePassword": {"supported": false},
        "sort": {"supported": false},
        "etag": {"supported": false},
        "authenticationSchemes": [],
    })
}

fn resource_types(types: &[(&'static str, &'static str)]) -> Value {
    let core = "urn:ietf:params:scim:schemas:core:2.0";
    let standard = [("Users", format!("{core}:User")), ("Groups", format!("{core}:Group"))];
    let own = types.iter().map(|(endpoint, schema)| (*endpoint, (*schema).to_owned()));
    let one = |(endpoint, schema): (&str, String)| {
        json!({"schemas": [format!("{core}:ResourceType")], "name": endpoint.trim_end_matches('s'),
               "endpoint": format!("/{endpoint}"), "schema": schema})
    };
    let resources: Vec<Value> = standard.into_iter().chain(own).map(one).collect();
    json!({
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
        "totalResults": resources.len(), "Resources": resources,
    })
}

fn plain(status: u16, body: &str) -> Response {
    let mut response = Response::new(Body::from(body.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn scim_json(status: u16, body: &Value) -> Response {
    let mut response = plain(status, &body.to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(SCIM_JSON));
    response
}

fn scim_error(status: u16, scim_type: Option<&str>, detail: &str) -> Response {
    let mut body = json!({
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"],
        "status": status.to_string(),
        "detail": detail,
    });
    if let Some(scim_type) = scim_type {
        body["scimType"] = json!(scim_type);
    }
    scim_json(status, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(mut before: Value, operations: Value) -> Result<Value, u16> {
        let Value::Object(map) = &mut before else { panic!("an object") };
        for operation in operations.as_array().into_iter().flatten() {
            patch(map, operation).map_err(|refusal| refusal.status)?;
        }
        Ok(before)
    }

    #[test]
    fn it_patches_members_and_typed_values() {
        let group = json!({"members": [{"value": "a"}]});
        let add = json!([{"op": "add", "path": "members", "value": [{"value": "b"}, {"value": "a"}]}]);
        assert_eq!(patched(group.clone(), add), Ok(json!({"members": [{"value": "a"}, {"value": "b"}]})));
        let remove = json!([{"op": "Remove", "path": "members[value eq \"a\"]"}]);
        assert_eq!(patched(group.clone(), remove), Ok(json!({"members": []})));
        let remove = json!([{"op": "remove", "path": "members", "value": [{"value": "a"}]}]);
        assert_eq!(patched(group, remove), Ok(json!({"members": []})));
        let user = json!({"emails": [{"type": "work", "value": "x"}]});
        let replace = json!([{"op": "replace", "path": "emails[type eq \"work\"].value", "value": "y"}]);
        assert_eq!(patched(user.clone(), replace), Ok(json!({"emails": [{"type": "work", "value": "y"}]})));
        let none = json!([{"op": "replace", "path": "emails[type eq \"home\"].value", "value": "y"}]);
        assert_eq!(patched(user, none), Err(400));
    }

    #[tokio::test]
    async fn it_records_and_misbehaves_on_command() -> Result<()> {
        let app = Downstream::scim("secret").await?;
        app.script(Some(Method::POST), "/Users", 1, Action::retry_after(429, "20"))
            .script(Some(Method::POST), "/Users", 1, Action::DropBefore)
            .script(Some(Method::POST), "/Users", 1, Action::DropAfter);
        let client = crate::http::client();
        let url = format!("{}/Users", app.url());
        let post = || client.post(&url).bearer_auth("secret").body(r#"{"userName":"ines"}"#).send();
        let answer = post().await?;
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"20".parse()?));
        assert!(post().await.is_err());
        assert!(app.user("ines").is_none());
        assert!(post().await.is_err());
        assert!(app.user("ines").is_some());
        assert_eq!(post().await?.status().as_u16(), 409);
        assert_eq!(client.get(&url).send().await?.status().as_u16(), 401);
        let filter = client.get(format!("{url}?filter=userName+eq+%22INES%22")).bearer_auth("secret");
        let found: Value = serde_json::from_slice(&filter.send().await?.bytes().await?)?;
        assert_eq!(found["totalResults"], json!(1));
        assert_eq!(app.seen().len(), 6);
        assert_eq!(app.refused().len(), 1);
        Ok(())
    }
}

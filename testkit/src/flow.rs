//! A vendor's traffic replayed end to end: its client in front of a whole running system, and behind it a
//! SCIM server that others wrote and a webhook receiver, which must both end with what the client wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use annals_domain::event::Recorded;
use annals_domain::scim::dialect::Quirk;
use annals_domain::tenant::Driver;
use anyhow::{Context as _, Result, ensure};
use axum::http::{HeaderMap, Method, header};
use serde_json::{Map, Value, json};

use crate::cluster::Cluster;
use crate::downstream::Downstream;
use crate::scim::{Answer, PATCH_OP, Scim};
use crate::scim2_server::Scim2Server;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const APP_TOKEN: &str = "scim2-server-token";
const LOG_LINES: usize = 20;
/// The name that clients know, whichever node answers: it stands in every URI.
const HOST: Header = ("host", "scim.acme.test");

/// A header, or the lack of one (an empty value).
pub type Header = (&'static str, &'static str);

/// A vendor's client: its headers, and what of its requests has to be rewritten.
#[derive(Clone, Debug)]
pub struct Client {
    nodes: Vec<Scim>,
    headers: Vec<Header>,
    media_type: &'static str,
    turn: Arc<AtomicUsize>,
    needs: Arc<Mutex<Needs>>,
}

/// By request id: what was asked, and the quirks it needs.
type Needs = BTreeMap<String, (String, BTreeSet<String>)>;

impl Client {
    /// A client that sends these headers to the nodes in turn, and wants answers of this media type.
    pub fn new(nodes: Vec<Scim>, headers: &[Header], media_type: &'static str) -> Client {
        let headers = headers.iter().copied().chain([HOST]).collect();
        Client { nodes, headers, media_type, turn: Arc::default(), needs: Arc::default() }
    }

    /// The same client with a header more, or another value of one.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &'static str) -> Client {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value));
        self
    }

    /// The same client with another token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Client {
        self.nodes = self.nodes.iter().map(|node| node.with_token(token)).collect();
        self
    }

    /// Sends a request to the next node. Its body is sent as it stands.
    ///
    /// # Errors
    /// No answer came, or one of another media type, or one whose status is not the expected one.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        status: u16,
    ) -> Result<Answer> {
        let node = &self.nodes[self.turn.fetch_add(1, Ordering::Relaxed) % self.nodes.len()];
        let body = body.map(ToString::to_string).unwrap_or_default();
        let answer = node.send(method, path, &self.headers, body).await?.expect(status)?;
        let kind = text(&answer.headers, header::CONTENT_TYPE.as_str());
        ensure!(
            answer.body.is_empty() || kind == self.media_type,
            "{}: Content-Type {kind:?} instead of {}",
            answer.asked,
            self.media_type
        );
        if !answer.is_success() {
            let error = answer.json();
            ensure!(
                error["schemas"] == json!(["urn:ietf:params:scim:api:messages:2.0:Error"])
                    && error["status"] == json!(status.to_string())
                    && error["detail"].as_str().is_some_and(|detail| !detail.is_empty()),
                "{}: no error of SCIM: {error}",
                answer.asked
            );
        }
        Ok(answer)
    }

    /// GET, expecting 200.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.send(Method::GET, path, None, 200).await?.json())
    }

    /// GET of a list, expecting it to be one.
    ///
    /// # Errors
    /// See [`Self::send`]; or the numbers of the list are none, or do not fit.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let list = self.get(path).await?;
        ensure!(
            list["schemas"] == json!(["urn:ietf:params:scim:api:messages:2.0:ListResponse"]),
            "{path}: {list}"
        );
        for number in ["totalResults", "itemsPerPage", "startIndex"] {
            ensure!(list[number].is_u64(), "{path}: {number} is {}", list[number]);
        }
        let found = list["Resources"].as_array().cloned().unwrap_or_default();
        ensure!(list["itemsPerPage"] == found.len(), "{path}: {list}");
        Ok(found)
    }

    /// A change that needs these quirks and no other; its event, if it leads to one, has to name them.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn change(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        status: u16,
        quirks: &[Quirk],
    ) -> Result<Answer> {
        let answer = self.send(method, path, Some(body), status).await?;
        let id = text(&answer.headers, "x-request-id");
        ensure!(!id.is_empty(), "{}: no X-Request-Id", answer.asked);
        let quirks = quirks.iter().map(ToString::to_string).collect();
        self.needs().insert(id, (format!("{}: {body}", answer.asked), quirks));
        Ok(answer)
    }

    /// PATCH with these operations, expecting 200 for a user and 204 for a group.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn patch(&self, path: &str, operations: Value, quirks: &[Quirk]) -> Result<Answer> {
        let body = json!({"schemas": [PATCH_OP], "Operations": operations});
        let status = if path.starts_with("/Groups") { 204 } else { 200 };
        self.change(Method::PATCH, path, &body, status, quirks).await
    }

    /// Each event that a request of this client led to names exactly the quirks the request needed.
    fn check_quirks(&self, events: &[Recorded]) -> Result<usize> {
        let needs = self.needs();
        let mut seen = 0;
        for event in events {
            let Some((asked, quirks)) = needs.get(&event.cause.request_id) else { continue };
            let named: BTreeSet<String> = event.cause.quirks.iter().cloned().collect();
            ensure!(named == *quirks, "{asked}\n{} names {named:?}, needed are {quirks:?}", event.kind);
            seen += 1;
        }
        Ok(seen)
    }

    fn needs(&self) -> MutexGuard<'_, Needs> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// A running system with its two applications.
#[derive(Debug)]
pub struct Flow {
    /// The system.
    pub cluster: Cluster,
    server: Scim2Server,
    hook: Downstream,
}

/// What the SCIM application ended with, by name.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// By `userName`.
    pub users: BTreeMap<String, Map<String, Value>>,
    /// By `displayName`: the names of the members.
    pub groups: BTreeMap<String, BTreeSet<String>>,
}

impl Flow {
    /// Puts the applications behind a system.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start(cluster: Cluster) -> Result<Flow> {
        let server = Scim2Server::start(APP_TOKEN).await?;
        let hook = Downstream::webhook(SECRET).await?;
        let scim = Driver::Scim { base_url: server.url().to_owned(), members_per_request_max: 100 };
        cluster.add_app("scim2", scim, APP_TOKEN).await?;
        cluster.add_app("hook", Driver::Webhook { url: hook.url() }, SECRET).await?;
        Ok(Flow { cluster, server, hook })
    }

    /// How many events there are now.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn events(&self) -> Result<i64> {
        Ok(self.cluster.store.head().await.context("reading the head")?.position)
    }

    /// Lets everything arrive and proves it: every checker, both applications, the quirks in the causes,
    /// and that none of these personal values can be read in a dump.
    ///
    /// # Errors
    /// Names what does not hold.
    pub async fn finish(&self, clients: &[&Client], personal: &[&str]) -> Result<Arrived> {
        let (cluster, checkers) = (&self.cluster, &self.cluster.checkers);
        cluster.check().await.with_context(|| self.log())?;
        checkers.webhook(&cluster.tenant, &self.hook).await?;
        let (users, groups) = (self.server.all("/Users").await?, self.server.all("/Groups").await?);
        checkers.converged(&cluster.tenant, &users, &groups).await?;
        let events = checkers.events().await?;
        for client in clients {
            ensure!(client.check_quirks(&events)? > 0, "no event was caused by a request of the client");
        }
        checkers.dump_is_sealed(personal).await?;
        let name = |resource: &Map<String, Value>, key: &str| {
            resource.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let members = |group: &Map<String, Value>| {
            let members = group.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
            let ids = members.iter().filter_map(|member| member["value"].as_str());
            ids.filter_map(|id| Some(name(users.get(id)?, "userName"))).collect()
        };
        Ok(Arrived {
            groups: groups.values().map(|g| (name(g, "displayName"), members(g))).collect(),
            users: users.values().map(|user| (name(user, "userName"), user.clone())).collect(),
        })
    }

    fn log(&self) -> String {
        let log = self.server.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

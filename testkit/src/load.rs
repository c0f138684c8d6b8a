//! Writers that keep a record of what was acknowledged, so that a test can ask for it afterwards.
//!
//! A write whose outcome is unknown (the connection broke, 5xx) is sent again with the same
//! `Idempotency-Key` until it is decided: that is what a careful client does, and it makes "once" testable.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use axum::http::Method;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::clock::rng;
use crate::scim::{Answer, PATCH_OP, Scim, user};

/// How long one write may stay undecided, over all its tries.
const DECIDED_TIMEOUT: Duration = Duration::from_secs(120);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What was acknowledged with 2xx.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    /// Texts that each must occur in exactly one event: user names and titles.
    pub markers: BTreeSet<String>,
    /// Users that exist: id and last acknowledged user name and title.
    pub users: Vec<(String, String, Option<String>)>,
    /// Memberships: group and member.
    pub members: BTreeSet<(String, String)>,
    /// Users that were deleted.
    pub deleted: BTreeSet<String>,
    /// Answered requests, repeated ones not counted.
    pub writes: usize,
    /// Tries that had to be repeated.
    pub repeats: usize,
}

/// Running writers.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicUsize>,
    tasks: JoinSet<Result<Acknowledged>>,
    failures: Arc<Mutex<Vec<String>>>,
}

/// Which writes the writers do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many writers.
    pub writers: usize,
    /// The seed of their choices.
    pub seed: u64,
    /// The group they add members to; it must exist.
    pub group: String,
    /// In front of every name, so that several loads keep apart.
    pub prefix: String,
}

impl Load {
    /// Starts the writers against the given nodes.
    pub fn start(nodes: &[Scim], plan: &Plan) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(AtomicUsize::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for number in 0..plan.writers {
            let writer = Writer {
                number,
                nodes: nodes.to_vec(),
                plan: plan.clone(),
                stop: stop.clone(),
                writes: writes.clone(),
                done: Acknowledged::default(),
                count: 0,
            };
            let failures = failures.clone();
            tasks.spawn(async move {
                let result = writer.run().await;
                if let Err(error) = &result {
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
                }
                result
            });
        }
        Load { stop, writes, tasks, failures }
    }

    /// How many writes were acknowledged so far.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }

    /// Waits until this many more writes were acknowledged.
    ///
    /// # Errors
    /// A writer failed, or the time is over.
    pub async fn more_writes(&self, more: usize, timeout: Duration) -> Result<()> {
        let goal = self.writes() + more;
        crate::child::wait_for(&format!("{more} more writes"), timeout, async || {
            let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if !failures.is_empty() {
                return Ok(Err(anyhow::anyhow!("writers failed: {failures:?}")));
            }
            ensure!(self.writes() >= goal, "{} of {goal}", self.writes());
            Ok(Ok(()))
        })
        .await?
    }

    /// Ends the writers after their present write, and returns what was acknowledged.
    ///
    /// # Errors
    /// A write was refused, answered wrongly, or never decided.
    pub async fn stop(mut self) -> Result<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Acknowledged::default();
        while let Some(result) = self.tasks.join_next().await {
            let one = result.context("a writer's task")??;
            all.markers.extend(one.markers);
            all.users.extend(one.users);
            all.members.extend(one.members);
            all.deleted.extend(one.deleted);
            all.writes += one.writes;
            all.repeats += one.repeats;
        }
        Ok(all)
    }
}

struct Writer {
    number: usize,
    nodes: Vec<Scim>,
    plan: Plan,
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicUsize>,
    done: Acknowledged,
    count: usize,
}

impl Writer {
    async fn run(mut self) -> Result<Acknowledged> {
        let mut rng = rng(self.plan.seed.wrapping_add(self.number as u64));
        while !self.stop.load(Ordering::Relaxed) {
            let choice = if self.done.users.len() < 3 { 0 } else { rng.random_range(0..10) };
            let at = rng.random_range(0..self.done.users.len().max(1));
            match choice {
                0..4 => self.create().await?,
                4..7 => self.retitle(at).await?,
                7..9 => self.join(at).await?,
                _ => self.delete(at).await?,
            }
        }
        Ok(self.done)
    }

    fn marker(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{}-{what}-{}-{}", self.plan.prefix, self.number, self.count)
    }

    async fn create(&mut self) -> Result<()> {
        let name = self.marker("user");
        let answer = self.decided(Method::POST, "/Users", user(&name)).await?.expect(201)?;
        self.done.markers.insert(name.clone());
        self.done.users.push((answer.id(), name.clone(), None));
        let found = self.read(&format!("/Users/{}", answer.id())).await?;
        ensure!(found["userName"] == json!(name), "{name} was acknowledged and is not there: {found}");
        Ok(())
    }

    async fn retitle(&mut self, at: usize) -> Result<()> {
        let title = self.marker("title");
        let id = self.done.users[at].0.clone();
        let path = format!("/Users/{id}");
        let operations = json!([{"op": "replace", "path": "title", "value": title}]);
        let answer = self.decided(Method::PATCH, &path, patch_body(operations)).await?;
        ensure!(answer.is_success(), "{}: {} {}", answer.asked, answer.status, answer.json());
        self.done.markers.insert(title.clone());
        self.done.users[at].2 = Some(title.clone());
        let found = self.read(&path).await?;
        ensure!(found["title"] == json!(title), "{title} was acknowledged and is not there: {found}");
        Ok(())
    }

    async fn join(&mut self, at: usize) -> Result<()> {
        let group = self.plan.group.clone();
        let id = self.done.users[at].0.clone();
        let body = patch_body(crate::scim::add_member(&id));
        let answer = self.decided(Method::PATCH, &format!("/Groups/{group}"), body).await?;
        ensure!(answer.is_success(), "{}: {} {}", answer.asked, answer.status, answer.json());
        self.done.members.insert((group.clone(), id.clone()));
        let found = self.read(&format!("/Users/{id}")).await?;
        let groups = crate::scim::values(&found["groups"]);
        ensure!(groups.contains(&group), "{id} was added to {group} and its groups are {groups:?}");
        Ok(())
    }

    async fn delete(&mut self, at: usize) -> Result<()> {
        let (id, ..) = self.done.users.swap_remove(at);
        self.decided(Method::DELETE, &format!("/Users/{id}"), Value::Null).await?.expect(204)?;
        self.done.members.retain(|(_, member)| *member != id);
        self.done.deleted.insert(id);
        Ok(())
    }

    /// Sends a write until its outcome is known.
    async fn decided(&mut self, method: Method, path: &str, body: Value) -> Result<Answer> {
        self.count += 1;
        let key = format!("{}-{}-{}", self.plan.prefix, self.number, self.count);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let deadline = tokio::time::Instant::now() + DECIDED_TIMEOUT;
        let mut tries = 0usize;
        loop {
            let node = &self.nodes[(self.number + tries) % self.nodes.len()];
            let headers = [("idempotency-key", key.as_str())];
            let outcome = node.send(method.clone(), path, &headers, body.clone()).await;
            match outcome {
                // 409 with a key that is still in work is no decision either.
                Ok(answer) if answer.status < 500 && answer.status != 429 => {
                    self.done.writes += 1;
                    self.writes.fetch_add(1, Ordering::Relaxed);
                    return Ok(answer);
                }
                undecided if tokio::time::Instant::now() >= deadline => {
                    let last = undecided.map(|answer| format!("{} {}", answer.status, answer.json()));
                    bail!("{method} {path} stayed undecided for {DECIDED_TIMEOUT:?}: {last:?}");
                }
                _ => {
                    tries += 1;
                    self.done.repeats += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Reads from another node than the one written to; a node that is down is asked again.
    async fn read(&mut self, path: &str) -> Result<Value> {
        let deadline = tokio::time::Instant::now() + DECIDED_TIMEOUT;
        let mut tries = 1usize;
        loop {
            let node = &self.nodes[(self.number + tries) % self.nodes.len()];
            match node.get(path).await {
                Ok(answer) if answer.status == 200 => return Ok(answer.json()),
                Ok(answer) if answer.status < 500 => bail!("{}: {}", answer.asked, answer.status),
                _ if tokio::time::Instant::now() >= deadline => bail!("no node answered GET {path}"),
                _ => {
                    tries += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

fn patch_body(operations: Value) -> Value {
    json!({"schemas": [PATCH_OP], "Operations": operations})
}

//! A thousand random writes, each followed at once by every way to read it through the *other* node: by
//! id, by name, by an attribute that only the read model indexes, as a member and as a group. Zero misses.

use std::collections::{BTreeMap, BTreeSet};

use annals_domain::scim::dialect::Profile;
use annals_testkit::clock::{rng, seed};
use annals_testkit::cluster::Cluster;
use annals_testkit::scim::{Scim, add_member, remove_member, values};
use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const CLIENTS: u64 = 4;

/// What a client knows must be there.
struct Client {
    number: u64,
    writes_to: Scim,
    reads_from: Scim,
    group: String,
    users: BTreeMap<String, (String, String)>,
    members: BTreeSet<String>,
    count: usize,
}

impl Client {
    fn name(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{what}-{}-{}", self.number, self.count)
    }

    async fn run(mut self, seed: u64, writes: usize) -> Result<()> {
        let mut rng = rng(seed + self.number);
        for _ in 0..writes {
            let known: Vec<String> = self.users.keys().cloned().collect();
            if known.len() < 3 {
                self.create().await?;
                continue;
            }
            let id = known[rng.random_range(0..known.len())].clone();
            match rng.random_range(0..10) {
                0..3 => self.create().await?,
                3..5 => self.rename(&id).await?,
                5..7 => self.retitle(&id, rng.random_bool(0.5)).await?,
                7..9 => self.toggle_member(&id).await?,
                _ => self.delete(&id).await?,
            }
        }
        Ok(())
    }

    async fn create(&mut self) -> Result<()> {
        let (name, title) = (self.name("user"), self.name("title"));
        let body = json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
            "userName": name, "title": title, "emails": [{"type": "work", "value": format!("{name}@a.test")}],
        });
        let id = self.writes_to.post("/Users", &body).await?.expect(201)?.id();
        self.users.insert(id.clone(), (name, title));
        self.sees(&id).await
    }

    async fn rename(&mut self, id: &str) -> Result<()> {
        let name = self.name("renamed");
        let operations = json!([{"op": "replace", "value": {"userName": name}}]);
        self.writes_to.patch(&format!("/Users/{id}"), operations).await?.expect(200)?;
        let user = self.users.get_mut(id).context("a user of ours")?;
        let old = std::mem::replace(&mut user.0, name);
        let found = self.reads_from.find("/Users", &format!("userName eq \"{old}\""), "").await?;
        ensure!(found.is_empty(), "{old} was given up and is found: {found:?}");
        self.sees(id).await
    }

    async fn retitle(&mut self, id: &str, whole: bool) -> Result<()> {
        let title = self.name("title");
        let path = format!("/Users/{id}");
        if whole {
            let (name, _) = self.users[id].clone();
            let body = json!({
                "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": name, "title": title,
            });
            self.writes_to.put(&path, &body).await?.expect(200)?;
        } else {
            let operations = json!([{"op": "replace", "path": "title", "value": title}]);
            self.writes_to.patch(&path, operations).await?.expect(200)?;
        }
        let user = self.users.get_mut(id).context("a user of ours")?;
        let old = std::mem::replace(&mut user.1, title);
        let found = self.reads_from.find("/Users", &format!("title eq \"{old}\""), "").await?;
        ensure!(found.is_empty(), "{old} was replaced and is found: {found:?}");
        self.sees(id).await
    }

    async fn toggle_member(&mut self, id: &str) -> Result<()> {
        let path = format!("/Groups/{}", self.group);
        let is_member = self.members.remove(id);
        let operations = if is_member { remove_member(id) } else { add_member(id) };
        let answer = self.writes_to.patch(&path, operations).await?;
        ensure!(answer.is_success(), "{}: {} {}", answer.asked, answer.status, answer.json());
        if !is_member {
            self.members.insert(id.to_owned());
        }
        self.sees(id).await
    }

    async fn delete(&mut self, id: &str) -> Result<()> {
        let path = format!("/Users/{id}");
        self.writes_to.delete(&path).await?.expect(204)?;
        let (name, title) = self.users.remove(id).context("a user of ours")?;
        self.members.remove(id);
        self.reads_from.get(&path).await?.expect(404)?;
        for filter in [format!("userName eq \"{name}\""), format!("title eq \"{title}\"")] {
            let found = self.reads_from.find("/Users", &filter, "").await?;
            ensure!(found.is_empty(), "{id} was deleted and is found by {filter}: {found:?}");
        }
        self.sees_members().await
    }

    /// Every way to read a user says the same, at once.
    async fn sees(&self, id: &str) -> Result<()> {
        let (name, title) = &self.users[id];
        let is_it = |user: &Value| user["userName"] == json!(name) && user["title"] == json!(title);
        let user = self.reads_from.get(&format!("/Users/{id}")).await?.expect(200)?.json();
        ensure!(is_it(&user), "by id: {user} instead of {name}, {title}");
        let filters = [
            format!("userName eq \"{}\"", name.to_uppercase()),
            format!("title eq \"{title}\""),
            format!("title sw \"{title}\" and userName sw \"{name}\""),
            format!("id eq \"{id}\" and title pr"),
        ];
        for filter in filters {
            let found = self.reads_from.find("/Users", &filter, "").await?;
            ensure!(
                found.len() == 1 && found[0]["id"] == json!(id) && is_it(&found[0]),
                "{filter}: {found:?}"
            );
        }
        let groups = values(&user["groups"]);
        let wanted = if self.members.contains(id) { vec![self.group.clone()] } else { vec![] };
        ensure!(groups == wanted, "{id} says it is in {groups:?} instead of {wanted:?}");
        self.sees_members().await
    }

    async fn sees_members(&self) -> Result<()> {
        let members: BTreeSet<String> = self.reads_from.member_ids(&self.group).await?.into_iter().collect();
        ensure!(members == self.members, "{members:?} instead of {:?}", self.members);
        for id in self.members.iter().take(1) {
            let filter = format!("id eq \"{}\" and members eq \"{id}\"", self.group);
            let found = self.reads_from.find("/Groups", &filter, "&attributes=id").await?;
            ensure!(found.len() == 1, "{filter}: {found:?}");
        }
        Ok(())
    }
}

async fn read_your_writes(cluster: Cluster, writes: usize) -> Result<()> {
    let seed = seed(7);
    let nodes = cluster.clients();
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let at = number as usize;
        let group = nodes[0].create_group(&format!("group-{number}")).await?;
        let client = Client {
            number,
            writes_to: nodes[at % nodes.len()].clone(),
            reads_from: nodes[(at + 1) % nodes.len()].clone(),
            group,
            users: BTreeMap::new(),
            members: BTreeSet::new(),
            count: 0,
        };
        tasks.spawn(client.run(seed, writes / CLIENTS as usize));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    cluster.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite() -> Result<()> {
    read_your_writes(Cluster::embedded(BINARY, Profile::Generic).await?, 400).await
}

#[tokio::test(flavor = "multi_thread")]
async fn through_the_other_node() -> Result<()> {
    read_your_writes(Cluster::scaled(BINARY, Profile::Generic).await?, 1_000).await
}

//! Many clients at once on one name and on one group: nobody wins twice, nothing is lost.

use annals_domain::scim::dialect::Profile;
use annals_testkit::cluster::Cluster;
use annals_testkit::scim::{Scim, add_member, remove_member, user};
use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const CLIENTS: usize = 32;
const MEMBERS_EACH: usize = 50;

/// One of the nodes, in turn.
fn node(nodes: &[Scim], number: usize) -> Scim {
    nodes[number % nodes.len()].clone()
}

async fn one_name(nodes: &[Scim]) -> Result<()> {
    for round in 0..5 {
        let mut tasks = JoinSet::new();
        for number in 0..CLIENTS {
            let scim = node(nodes, number);
            // Not case-exact: all of these are one name.
            let name = match number % 2 {
                0 => format!("Ada-{round}@example.com"),
                _ => format!("aDA-{round}@EXAMPLE.com"),
            };
            tasks.spawn(async move { scim.post("/Users", &user(&name)).await });
        }
        let mut created = 0;
        while let Some(answer) = tasks.join_next().await {
            let answer = answer??;
            match answer.status {
                201 => created += 1,
                409 => ensure!(answer.json()["scimType"] == "uniqueness", "{}", answer.json()),
                other => anyhow::bail!("{other}: {}", answer.json()),
            }
        }
        ensure!(created == 1, "round {round}: {created} clients were told that they created the user");
        let found = nodes[0].find("/Users", &format!("userName eq \"ADA-{round}@example.com\""), "").await?;
        ensure!(found.len() == 1, "{found:?}");
    }
    Ok(())
}

async fn one_group(nodes: &[Scim]) -> Result<()> {
    let group = nodes[0].create_group("Everyone").await?;
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let (scim, group) = (node(nodes, number), group.clone());
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for n in 0..MEMBERS_EACH {
                let id = scim.create_user(&format!("member-{number}-{n}")).await?;
                let answer = scim.patch(&format!("/Groups/{group}"), add_member(&id)).await?;
                ensure!(answer.is_success(), "{}: {} {}", answer.asked, answer.status, answer.json());
                ids.push(id);
            }
            Ok(ids)
        });
    }
    let mut all = Vec::new();
    while let Some(ids) = tasks.join_next().await {
        all.extend(ids??);
    }
    all.sort();
    ensure!(all.len() == CLIENTS * MEMBERS_EACH);
    for scim in nodes {
        ensure!(scim.member_ids(&group).await? == all, "members were lost, or came twice");
    }

    // Half of them leave at once while the others are added again: both are no surprise.
    let mut tasks = JoinSet::new();
    for (number, ids) in all.chunks(MEMBERS_EACH).map(<[String]>::to_vec).enumerate() {
        let (scim, path) = (node(nodes, number), format!("/Groups/{group}"));
        tasks.spawn(async move {
            for (n, id) in ids.iter().enumerate() {
                let operations = if n % 2 == 0 { remove_member(id) } else { add_member(id) };
                let answer = scim.patch(&path, operations).await?;
                ensure!(answer.is_success(), "{}: {} {}", answer.asked, answer.status, answer.json());
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let stay: Vec<String> =
        all.chunks(MEMBERS_EACH).flat_map(|ids| ids.iter().skip(1).step_by(2).cloned()).collect();
    ensure!(nodes[0].member_ids(&group).await? == stay, "the members are not those that stayed");
    Ok(())
}

/// Changes of one user from everywhere: each is applied to what was there, none is lost.
async fn one_user(nodes: &[Scim]) -> Result<()> {
    let id = nodes[0].create_user("shared").await?;
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let (scim, path) = (node(nodes, number), format!("/Users/{id}"));
        tasks.spawn(async move {
            let email = serde_json::json!([{
                "op": "add", "path": "emails",
                "value": [{"type": "work", "value": format!("shared-{number}@example.com")}],
            }]);
            scim.patch(&path, email).await?.expect(200)
        });
    }
    while let Some(answer) = tasks.join_next().await {
        answer??;
    }
    let user = nodes[0].get(&format!("/Users/{id}")).await?.expect(200)?.json();
    let emails = user["emails"].as_array().context("no emails")?.len();
    ensure!(emails == CLIENTS, "{emails} of {CLIENTS} addresses are left");
    Ok(())
}

async fn race(cluster: Cluster) -> Result<()> {
    let nodes = cluster.clients();
    one_name(&nodes).await?;
    one_group(&nodes).await?;
    one_user(&nodes).await?;
    cluster.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite() -> Result<()> {
    race(Cluster::embedded(BINARY, Profile::Generic).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_with_two_nodes() -> Result<()> {
    race(Cluster::scaled(BINARY, Profile::Generic).await?).await
}

//! Everything JumpCloud does (idp-quirks §5): the activation with its test user and test group, updates of
//! one operation an attribute, members that are removed by `path` and `value`. Behind us stand a SCIM server
//! that others wrote and a webhook receiver: both must end with what JumpCloud wrote.

use std::collections::BTreeSet;

use annals_domain::scim::dialect::{Profile, Quirk};
use annals_testkit::cluster::Cluster;
use annals_testkit::flow::{Client, Flow, Header};
use annals_testkit::scim::{encode, values};
use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";
const HEADERS: &[Header] = &[("accept", "*/*"), ("content-type", "application/scim+json")];
const TEAM: usize = 24;
/// How many changes of a group are in flight at once.
const IN_FLIGHT: usize = 4;

fn new_user(given: &str, family: &str) -> Value {
    let name = format!("{}@acme.test", given.to_lowercase());
    // No extension schemas (JC-001).
    json!({
        "schemas": [USER], "userName": name, "externalId": format!("jc-{given}"), "active": true,
        "displayName": format!("{given} {family}"), "name": {"givenName": given, "familyName": family},
        "emails": [{"value": name, "type": "work", "primary": true}],
    })
}

async fn search(jumpcloud: &Client, endpoint: &str, filter: &str) -> Result<Vec<Value>> {
    jumpcloud.list(&format!("{endpoint}?filter={}", encode(filter))).await
}

async fn create_user(jumpcloud: &Client, body: &Value) -> Result<String> {
    let filter = format!("userName eq \"{}\"", body["userName"].as_str().unwrap_or_default());
    ensure!(search(jumpcloud, "/Users", &filter).await?.is_empty());
    let created = jumpcloud.change(Method::POST, "/Users", body, 201, &[]).await?;
    for (key, sent) in body.as_object().context("an object")? {
        ensure!(created.json()[key] == *sent, "{key}: sent {sent}, answered {}", created.json()[key]);
    }
    ensure!(search(jumpcloud, "/Users", &filter).await?.len() == 1);
    Ok(created.id())
}

async fn create_group(jumpcloud: &Client, name: &str) -> Result<String> {
    ensure!(search(jumpcloud, "/Groups", &format!("displayName eq \"{name}\"")).await?.is_empty());
    let body = json!({"schemas": [GROUP], "displayName": name, "members": []});
    Ok(jumpcloud.change(Method::POST, "/Groups", &body, 201, &[]).await?.id())
}

async fn delete(jumpcloud: &Client, path: &str) -> Result<()> {
    jumpcloud.send(Method::DELETE, path, None, 204).await?;
    jumpcloud.send(Method::GET, path, None, 404).await?;
    Ok(())
}

async fn members(jumpcloud: &Client, group: &str) -> Result<Vec<String>> {
    Ok(values(&jumpcloud.get(&format!("/Groups/{group}")).await?["members"]))
}

fn add(id: &str) -> Value {
    json!([{"op": "add", "path": "members", "value": [{"value": id}]}])
}

fn remove(id: &str) -> Value {
    json!([{"op": "remove", "path": "members", "value": [{"value": id}]}])
}

/// JC-002 and JC-003: the connection's test, which leaves nothing behind.
async fn activation(jumpcloud: &Client) -> Result<()> {
    ensure!(jumpcloud.list("/Users").await?.is_empty());
    let user = create_user(jumpcloud, &new_user("JumpCloudTest", "Testperson")).await?;
    let rename = json!([{"op": "replace", "path": "name.familyName", "value": "Testperson-Two"}]);
    jumpcloud.patch(&format!("/Users/{user}"), rename, &[]).await?;
    let group = create_group(jumpcloud, "JumpCloud Test Group").await?;
    jumpcloud.patch(&format!("/Groups/{group}"), add(&user), &[]).await?;
    ensure!(members(jumpcloud, &group).await? == std::slice::from_ref(&user));
    jumpcloud.patch(&format!("/Groups/{group}"), remove(&user), &[Quirk::RemoveWithValue]).await?;
    ensure!(members(jumpcloud, &group).await?.is_empty());
    delete(jumpcloud, &format!("/Groups/{group}")).await?;
    delete(jumpcloud, &format!("/Users/{user}")).await?;
    ensure!(jumpcloud.list("/Users").await?.is_empty() && jumpcloud.list("/Groups").await?.is_empty());
    Ok(())
}

/// JC-004: one `replace` an attribute, each with its path; elements that are not there are made.
async fn update(flow: &Flow, jumpcloud: &Client, id: &str) -> Result<()> {
    let path = format!("/Users/{id}");
    let operations = json!([
        {"op": "replace", "path": "name.givenName", "value": "Inesita"},
        {"op": "replace", "path": "name.familyName", "value": "Rothenburg-Kern"},
        {"op": "replace", "path": "displayName", "value": "Inesita Rothenburg-Kern"},
        {"op": "replace", "path": "title", "value": "Head of Everything"},
        {"op": "replace", "path": "active", "value": true},
        {"op": "replace", "path": "emails[type eq \"work\"].value", "value": "inesita.kern@acme.test"},
    ]);
    jumpcloud.patch(&path, operations.clone(), &[]).await?;
    let user = jumpcloud.get(&path).await?;
    ensure!(user["name"] == json!({"givenName": "Inesita", "familyName": "Rothenburg-Kern"}), "{user}");
    ensure!(user["title"] == "Head of Everything" && user["active"] == true, "{user}");
    let email = json!([{"value": "inesita.kern@acme.test", "type": "work", "primary": true}]);
    ensure!(user["emails"] == email, "{user}");
    let phone = "phoneNumbers[type eq \"mobile\"].value";
    let missing = json!([{"op": "replace", "path": phone, "value": "+49 151 4711"}]);
    jumpcloud.patch(&path, missing, &[Quirk::CreateOnFilterMiss]).await?;
    ensure!(
        jumpcloud.get(&path).await?["phoneNumbers"] == json!([{"type": "mobile", "value": "+49 151 4711"}])
    );
    let events = flow.events().await?;
    jumpcloud.patch(&path, operations, &[]).await?;
    ensure!(flow.events().await? == events, "the same once more is an event");
    Ok(())
}

/// JC-005 and JC-006: members come and go one by one, several in flight, some of them twice.
async fn team(flow: &Flow, jumpcloud: &Client, users: &[String]) -> Result<String> {
    let group = create_group(jumpcloud, "JumpCloud Blue Team").await?;
    let path = format!("/Groups/{group}");
    let each = async |ids: &[String], operation: fn(&str) -> Value, quirks: &'static [Quirk]| -> Result<()> {
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        for id in ids {
            if tasks.len() >= IN_FLIGHT {
                tasks.join_next().await.context("a task")???;
            }
            let (client, path, operations) = (jumpcloud.clone(), path.clone(), operation(id));
            tasks.spawn(async move { client.patch(&path, operations, quirks).await.map(|_| ()) });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    };
    let sorted = |ids: &[String]| {
        let mut ids = ids.to_vec();
        ids.sort();
        ids
    };
    each(users, add, &[]).await?;
    ensure!(members(jumpcloud, &group).await? == sorted(users));
    let events = flow.events().await?;
    each(&users[..6], add, &[]).await?;
    ensure!(flow.events().await? == events, "members that are there were added again");
    let (leave, stay) = users.split_at(users.len() / 2);
    each(leave, remove, &[Quirk::RemoveWithValue]).await?;
    ensure!(members(jumpcloud, &group).await? == sorted(stay));
    let events = flow.events().await?;
    each(&leave[..3], remove, &[Quirk::RemoveWithValue]).await?;
    ensure!(flow.events().await? == events, "who is gone was removed again");
    ensure!(members(jumpcloud, &group).await? == sorted(stay), "a removal emptied the group");
    let rename = json!([{"op": "replace", "path": "displayName", "value": "JumpCloud Green Team"}]);
    jumpcloud.patch(&path, rename, &[]).await?;
    Ok(group)
}

/// JC-007: access is taken away, given back, and the user deleted.
async fn leave(jumpcloud: &Client, group: &str, paused: &str, gone: &str) -> Result<()> {
    let path = format!("/Users/{paused}");
    for active in [false, true, false] {
        let operations = json!([{"op": "replace", "path": "active", "value": active}]);
        jumpcloud.patch(&path, operations, &[]).await?;
        let user = jumpcloud.get(&path).await?;
        ensure!(user["active"] == json!(active) && values(&user["groups"]) == [group.to_owned()], "{user}");
    }
    delete(jumpcloud, &format!("/Users/{gone}")).await?;
    ensure!(!members(jumpcloud, group).await?.contains(&gone.to_owned()));
    Ok(())
}

async fn flow(cluster: Cluster) -> Result<()> {
    let flow = Flow::start(cluster).await?;
    let jumpcloud = Client::new(flow.cluster.clients(), HEADERS, "application/scim+json");
    activation(&jumpcloud).await?;
    let ines = create_user(&jumpcloud, &new_user("Ines", "Rothenburg")).await?;
    update(&flow, &jumpcloud, &ines).await?;
    let mut users = Vec::new();
    for n in 0..TEAM - 1 {
        users.push(create_user(&jumpcloud, &new_user(&format!("Guest{n:02}"), "Manyfold")).await?);
    }
    users.push(ines.clone());
    let group = team(&flow, &jumpcloud, &users).await?;
    leave(&jumpcloud, &group, &ines, &users[TEAM - 2]).await?;

    let personal = ["Rothenburg-Kern", "inesita.kern@acme.test", "+49 151 4711", "Guest03 Manyfold"];
    let arrived = flow.finish(&[&jumpcloud], &personal).await?;
    ensure!(arrived.users.len() == TEAM - 1, "{:?}", arrived.users.keys());
    let ines = &arrived.users["ines@acme.test"];
    ensure!(ines["active"] == false && ines["title"] == "Head of Everything", "{ines:?}");
    let team: BTreeSet<String> = (TEAM / 2..TEAM - 2)
        .map(|n| format!("guest{n:02}@acme.test"))
        .chain(["ines@acme.test".to_owned()])
        .collect();
    ensure!(arrived.groups == [("JumpCloud Green Team".to_owned(), team)].into(), "{:?}", arrived.groups);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_in_one_process() -> Result<()> {
    flow(Cluster::embedded(BINARY, Profile::JumpCloud).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_and_nats_in_five_processes() -> Result<()> {
    flow(Cluster::scaled(BINARY, Profile::JumpCloud).await?).await
}

//! Everything OneLogin does (idp-quirks §4): bodies from a template that an administrator typed, names of
//! schemas from another time, stray `?` and `&`. Behind us stand a SCIM server that others wrote and a
//! webhook receiver: both must end with what OneLogin wrote.

use std::collections::BTreeSet;

use annals_domain::scim::dialect::{Profile, Quirk};
use annals_testkit::cluster::Cluster;
use annals_testkit::flow::{Client, Flow, Header};
use annals_testkit::scim::{ENTERPRISE, PATCH_OP, values};
use anyhow::{Result, ensure};
use axum::http::Method;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";
const LEGACY_USER: &str = "urn:scim:schemas:core:2.0";
const LEGACY_ENTERPRISE: &str = "urn:scim:schemas:extension:enterprise:2.0";

/// A GET as seen: no `User-Agent`, nothing accepted in particular (OL-004).
const READING: &[Header] = &[("user-agent", ""), ("accept", "")];
/// The content types seen: JSON for POST and PUT, SCIM's for PATCH (OL-004).
const WRITING: &[Header] = &[("user-agent", ""), ("accept", ""), ("content-type", "application/json")];
const PATCHING: &[Header] = &[("user-agent", ""), ("accept", ""), ("content-type", "application/scim+json")];

struct OneLogin {
    reads: Client,
    writes: Client,
    patches: Client,
}

impl OneLogin {
    /// `GET …?filter=userName+eq+%22ol-user%22&`
    async fn search(&self, user_name: &str) -> Result<Vec<Value>> {
        let name = user_name.replace('@', "%40");
        self.reads.list(&format!("/Users?filter=userName+eq+%22{name}%22&")).await
    }

    async fn user(&self, id: &str) -> Result<Value> {
        self.reads.get(&format!("/Users/{id}")).await
    }

    async fn create(&self, body: &Value, quirks: &[Quirk]) -> Result<String> {
        let name = body["userName"].as_str().unwrap_or_default();
        ensure!(self.search(name).await?.is_empty(), "{name} is there already");
        let id = self.writes.change(Method::POST, "/Users", body, 201, quirks).await?.id();
        let found = self.search(name).await?;
        ensure!(found.len() == 1 && found[0]["id"] == json!(id), "{found:?}");
        self.writes.send(Method::POST, "/Users", Some(body), 409).await?;
        Ok(id)
    }

    async fn put(&self, id: &str, body: &Value, quirks: &[Quirk]) -> Result<Value> {
        let path = format!("/Users/{id}?");
        let user = self.writes.change(Method::PUT, &path, body, 200, quirks).await?.json();
        let standard: BTreeSet<&str> = BTreeSet::from([USER, ENTERPRISE]);
        let schemas: Vec<&str> =
            user["schemas"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(schemas.contains(&USER) && schemas.iter().all(|urn| standard.contains(urn)), "{user}");
        ensure!(self.user(id).await? == user, "{user} is not what GET says");
        Ok(user)
    }

    async fn patch(&self, path: &str, operations: Value, quirks: &[Quirk]) -> Result<Value> {
        let body = json!({"schemas": [PATCH_OP], "Operations": operations});
        let status = if path.starts_with("/Groups") { 204 } else { 200 };
        Ok(self.patches.change(Method::PATCH, path, &body, status, quirks).await?.json())
    }

    async fn members(&self, group: &str) -> Result<Vec<String>> {
        Ok(values(&self.reads.get(&format!("/Groups/{group}")).await?["members"]))
    }
}

/// What the published template becomes (OL-006): `$user.active` as a string, an `id` of null, SCIM 1.1's
/// manager, and the extension without its URN in `schemas`.
fn template(given: &str, family: &str, manager: &str, active: &str) -> Value {
    let name = format!("{}@acme.test", given.to_lowercase());
    json!({
        ENTERPRISE: {
            "department": "Research and more", "manager": {"managerId": manager, "displayName": "Berta Bossmann"},
        },
        "active": active,
        "emails": [{"value": name, "type": "work", "primary": true}],
        "meta": {"resourceType": "User"},
        "name": {"familyName": family, "givenName": given, "formatted": format!("{given} {family}")},
        "userName": name,
        "id": null,
        "schemas": [USER],
    })
}

/// OL-002 and OL-003: the first contact, and errors in plain JSON like everything else.
async fn first_contact(onelogin: &OneLogin) -> Result<()> {
    ensure!(onelogin.search("ol-user").await?.is_empty());
    onelogin.reads.send(Method::GET, "/Users/no-such-user", None, 404).await?;
    let wrong =
        onelogin.reads.clone().with("authorization", "Bearer wrong").with("accept", "application/json");
    wrong.send(Method::GET, "/Users?filter=userName+eq+%22ol-user%22&", None, 401).await?;
    Ok(())
}

async fn users(onelogin: &OneLogin) -> Result<[String; 3]> {
    // A boss has no boss: the macros are empty.
    let mut boss = template("Berta", "Bossmann", "", "true");
    boss[ENTERPRISE]["manager"]["displayName"] = json!(" ");
    let quirks = [Quirk::StringBoolean, Quirk::ManagerId, Quirk::EmptyUnassigns];
    let boss = onelogin.create(&boss, &quirks).await?;
    let user = onelogin.user(&boss).await?;
    ensure!(user["active"] == true && user[ENTERPRISE].get("manager").is_none(), "{user}");

    let quirks = [Quirk::StringBoolean, Quirk::ManagerId];
    let ola = onelogin.create(&template("Ola", "Logmann", &boss, "true"), &quirks).await?;
    let user = onelogin.user(&ola).await?;
    ensure!(user[ENTERPRISE]["manager"]["value"] == json!(boss), "{user}");
    ensure!(
        user[ENTERPRISE]["department"] == "Research and more" && user["schemas"][1] == ENTERPRISE,
        "{user}"
    );

    // OL-005: the PUT as seen, without the extension first, then with it under its old name.
    let seen = json!({
        "schemas": [LEGACY_USER, LEGACY_ENTERPRISE], "userName": "ola@acme.test",
        "name": {"givenName": "Ola", "familyName": "Logmann-Kern"},
        "emails": [{"value": "ola@acme.test", "type": "work", "primary": true}], "active": "true", "id": null,
    });
    let quirks = [Quirk::LegacySchemaUrns, Quirk::StringBoolean];
    let user = onelogin.put(&ola, &seen, &quirks).await?;
    ensure!(user["name"]["familyName"] == "Logmann-Kern" && user.get(ENTERPRISE).is_none(), "{user}");
    let mut full = seen.clone();
    full[LEGACY_ENTERPRISE] =
        json!({"department": "Development dept.", "employeeNumber": "4711", "manager": {"managerId": boss}});
    let quirks = [Quirk::LegacySchemaUrns, Quirk::StringBoolean, Quirk::ManagerId];
    let user = onelogin.put(&ola, &full, &quirks).await?;
    ensure!(user[ENTERPRISE]["manager"]["value"] == json!(boss), "{user}");
    ensure!(user[ENTERPRISE]["department"] == "Development dept.", "{user}");
    // The core template of SCIM 1.1 (OL-005), e-mails without type and primary (OL-007).
    let core = json!({
        "schemas": ["urn:scim:schemas:core:1.0"], "userName": "ulla@acme.test",
        "name": {"givenName": "Ulla", "familyName": "Kernschema", "formatted": "Ulla Kernschema"},
        "emails": [{"value": "ulla@acme.test"}],
    });
    let ulla = onelogin.create(&core, &[Quirk::LegacySchemaUrns]).await?;
    let user = onelogin.user(&ulla).await?;
    ensure!(
        user["schemas"] == json!([USER]) && user["emails"] == json!([{"value": "ulla@acme.test"}]),
        "{user}"
    );

    // OL-007: `emails` as an object, with a path and without.
    let path = format!("/Users/{ulla}?");
    let email = |value: &str| json!({"value": value, "type": "work", "primary": true});
    for (operations, address) in [
        (
            json!([{"op": "replace", "path": "emails", "value": email("u1.kern@acme.test")}]),
            "u1.kern@acme.test",
        ),
        (json!([{"op": "replace", "value": {"emails": email("u2.kern@acme.test")}}]), "u2.kern@acme.test"),
    ] {
        let user = onelogin.patch(&path, operations, &[Quirk::WrapUnwrap]).await?;
        ensure!(user["emails"] == json!([email(address)]), "{user}");
    }
    // An element that is not there is made (`createOnFilterMiss`).
    let phone = "phoneNumbers[type eq \"work\"].value";
    let operations = json!([{"op": "replace", "path": phone, "value": "+49 30 4711"}]);
    let user = onelogin.patch(&path, operations, &[Quirk::CreateOnFilterMiss]).await?;
    ensure!(user["phoneNumbers"] == json!([{"type": "work", "value": "+49 30 4711"}]), "{user}");
    Ok([boss, ola, ulla])
}

/// OL-008: groups are read, and their members patched.
async fn groups(flow: &Flow, onelogin: &OneLogin, users: &[String; 3]) -> Result<String> {
    let [boss, ola, ulla] = users;
    ensure!(onelogin.reads.list("/Groups").await?.is_empty());
    let body = json!({"schemas": [GROUP], "displayName": "OneLogin Blue Team"});
    let group = onelogin.writes.change(Method::POST, "/Groups", &body, 201, &[]).await?.id();
    ensure!(onelogin.reads.list("/Groups").await?.len() == 1);
    let path = format!("/Groups/{group}?");
    let operation = |op: &str, ids: &[&String]| {
        let ids: Vec<Value> = ids.iter().map(|id| json!({"value": id})).collect();
        json!([{"op": op, "path": "members", "value": ids}])
    };
    let wanted = |ids: &[&String]| {
        let mut ids: Vec<String> = ids.iter().map(|id| (*id).clone()).collect();
        ids.sort();
        ids
    };
    onelogin.patch(&path, operation("add", &[ola]), &[]).await?;
    onelogin.patch(&path, operation("add", &[ulla]), &[]).await?;
    ensure!(onelogin.members(&group).await? == wanted(&[ola, ulla]));
    let events = flow.events().await?;
    onelogin.patch(&path, operation("add", &[ola]), &[]).await?;
    ensure!(flow.events().await? == events, "a member that is there was added again");
    onelogin.patch(&path, operation("replace", &[ola, boss]), &[]).await?;
    ensure!(onelogin.members(&group).await? == wanted(&[ola, boss]));
    // Only those named leave: a removal with a value never empties the group.
    onelogin.patch(&path, operation("remove", &[boss]), &[Quirk::RemoveWithValue]).await?;
    ensure!(onelogin.members(&group).await? == wanted(&[ola]));
    let events = flow.events().await?;
    onelogin.patch(&path, operation("remove", &[boss]), &[Quirk::RemoveWithValue]).await?;
    ensure!(flow.events().await? == events, "nobody left");
    onelogin.patch(&path, operation("add", &[ulla]), &[]).await?;
    Ok(group)
}

/// OL-009: suspended, brought back, deleted.
async fn deprovision(onelogin: &OneLogin, group: &str, users: &[String; 3]) -> Result<()> {
    let [boss, ola, ulla] = users;
    let quirks = [Quirk::StringBoolean, Quirk::ManagerId];
    for (text, active) in [("false", false), ("True", true), ("False", false)] {
        let user = onelogin.put(ola, &template("Ola", "Logmann", boss, text), &quirks).await?;
        ensure!(user["active"] == json!(active), "{user}");
        ensure!(values(&user["groups"]) == [group.to_owned()], "a suspended user has left its group: {user}");
    }
    ensure!(onelogin.search("ola@acme.test").await?.len() == 1, "a suspended user is still found");
    onelogin.writes.send(Method::DELETE, &format!("/Users/{ulla}"), None, 204).await?;
    onelogin.reads.send(Method::GET, &format!("/Users/{ulla}"), None, 404).await?;
    ensure!(onelogin.search("ulla@acme.test").await?.is_empty());
    ensure!(onelogin.members(group).await? == std::slice::from_ref(ola));
    ensure!(onelogin.reads.list("/Users").await?.len() == 2);
    Ok(())
}

async fn flow(cluster: Cluster) -> Result<()> {
    let flow = Flow::start(cluster).await?;
    let client = |headers: &[Header]| Client::new(flow.cluster.clients(), headers, "application/json");
    let onelogin = OneLogin { reads: client(READING), writes: client(WRITING), patches: client(PATCHING) };
    first_contact(&onelogin).await?;
    let users = users(&onelogin).await?;
    let group = groups(&flow, &onelogin, &users).await?;
    deprovision(&onelogin, &group, &users).await?;

    let personal = ["Logmann-Kern", "ola@acme.test", "u1.kern@acme.test", "+49 30 4711", "Berta Bossmann"];
    let arrived = flow.finish(&[&onelogin.writes, &onelogin.patches], &personal).await?;
    let names: Vec<&str> = arrived.users.keys().map(String::as_str).collect();
    ensure!(names == ["berta@acme.test", "ola@acme.test"], "{names:?}");
    let ola = &arrived.users["ola@acme.test"];
    ensure!(ola["active"] == false && ola["name"]["familyName"] == "Logmann", "{ola:?}");
    ensure!(ola[ENTERPRISE]["manager"]["value"] == arrived.users["berta@acme.test"]["id"], "{ola:?}");
    ensure!(ola[ENTERPRISE]["department"] == "Research and more", "{ola:?}");
    let team = &arrived.groups["OneLogin Blue Team"];
    ensure!(*team == BTreeSet::from(["ola@acme.test".to_owned()]), "{team:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_in_one_process() -> Result<()> {
    flow(Cluster::embedded(BINARY, Profile::OneLogin).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_and_nats_in_five_processes() -> Result<()> {
    flow(Cluster::scaled(BINARY, Profile::OneLogin).await?).await
}

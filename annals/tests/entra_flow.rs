//! Everything Microsoft Entra ID does (idp-quirks §2), in both of its PATCH dialects and mixed, from the
//! probe to the last delete. Behind us stand a SCIM server that others wrote and a webhook receiver: both
//! must end with what Entra wrote.

use std::collections::BTreeMap;

use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::Driver;
use annals_testkit::cluster::Cluster;
use annals_testkit::downstream::Downstream;
use annals_testkit::nats;
use annals_testkit::scim::{Answer, ENTERPRISE, PATCH_OP, Scim, encode, values};
use annals_testkit::scim2_server::Scim2Server;
use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const APP_TOKEN: &str = "scim2-server-token";
/// How many changes of a group Entra has in flight.
const IN_FLIGHT: usize = 5;
const GROUP_MEMBERS: usize = 100;

/// Which PATCH shapes Entra sends: `aadOptscim062020` off or on; on-demand provisioning ignores the flag,
/// so both come from one tenant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flag {
    Off,
    On,
    Mixed,
}

/// Entra's client: its headers, its blanks as `+`, its flag in the query.
struct Entra {
    scim: Scim,
    flag: Flag,
    turn: usize,
}

impl Entra {
    fn on(&mut self) -> bool {
        self.turn += 1;
        match self.flag {
            Flag::Off => false,
            Flag::On => true,
            Flag::Mixed => self.turn.is_multiple_of(2),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = match self.flag {
            Flag::Off => path.to_owned(),
            Flag::On | Flag::Mixed => format!("{path}{mark}aadOptscim062020"),
        };
        // Requests may lack `User-Agent`, and GETs come without an `Accept` of SCIM (EN-005).
        let headers = [("user-agent", ""), ("accept", "")];
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let answer = self.scim.send(method, &path, &headers, body).await?;
        let kind = answer.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        ensure!(
            answer.body.is_empty() || kind.starts_with("application/scim+json"),
            "{}: Content-Type {kind:?}",
            answer.asked
        );
        Ok(answer)
    }

    /// `GET …?filter=userName+eq+%22…%22`
    async fn query(&self, endpoint: &str, filter: &str, more: &str) -> Result<Vec<Value>> {
        let filter = encode(filter).replace("%20", "+");
        let list = self.send(Method::GET, &format!("{endpoint}?filter={filter}{more}"), None).await?;
        let list = list.expect(200)?.json();
        let found = list["Resources"].as_array().cloned().context("no Resources")?;
        ensure!(list["totalResults"] == found.len(), "{list}");
        Ok(found)
    }

    async fn patch(&self, path: &str, operations: Value) -> Result<()> {
        let body = json!({"Operations": operations, "schemas": [PATCH_OP]});
        let answer = self.send(Method::PATCH, path, Some(body)).await?;
        let is_group = path.starts_with("/Groups");
        ensure!(answer.status == if is_group { 204 } else { 200 } || answer.status == 204, "{answer:?}");
        Ok(())
    }

    async fn user(&self, id: &str) -> Result<Value> {
        Ok(self.send(Method::GET, &format!("/Users/{id}"), None).await?.expect(200)?.json())
    }
}

fn new_user(prefix: &str, given: &str, family: &str) -> Value {
    let nick = format!("{prefix}-{}", given.to_lowercase());
    json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User", ENTERPRISE],
        "externalId": nick, "userName": format!("{nick}@acme.test"), "active": true,
        "displayName": format!("{given} {family}"),
        "emails": [{"primary": true, "type": "work", "value": format!("{nick}@acme.test")}],
        "meta": {"resourceType": "User"},
        "name": {"formatted": format!("{given} {family}"), "familyName": family, "givenName": given},
        "roles": [],
    })
}

/// Saving the credentials: a random user and a random group, both of which must be politely unknown.
async fn probe(entra: &Entra) -> Result<()> {
    let random = "userName eq \"f0b2c1d4-5e6f-4a7b-8c9d-0e1f2a3b4c5d\"";
    ensure!(entra.query("/Users", random, "").await?.is_empty());
    let group = "displayName eq \"f0b2c1d4-random\"";
    ensure!(entra.query("/Groups", group, "&excludedAttributes=members").await?.is_empty());
    ensure!(entra.query("/Users", "externalId eq \"nobody\"", "").await?.is_empty());
    ensure!(entra.query("/Users", "emails[type eq \"work\"].value eq \"no@b.test\"", "").await?.is_empty());
    let wrong = entra.scim.with_token("wrong-token").get("/Users?filter=userName+eq+%22x%22").await?;
    ensure!(wrong.status == 401 && wrong.json()["detail"].is_string(), "{wrong:?}");
    Ok(())
}

async fn create_user(entra: &Entra, body: Value) -> Result<String> {
    let name = body["userName"].as_str().context("no userName")?.to_owned();
    ensure!(entra.query("/Users", &format!("userName eq \"{name}\""), "").await?.is_empty(), "{name}");
    let created = entra.send(Method::POST, "/Users", Some(body.clone())).await?.expect(201)?;
    let answer = created.json();
    for (key, sent) in body.as_object().context("an object")? {
        if !["schemas", "meta", "roles"].contains(&key.as_str()) {
            ensure!(answer[key] == *sent, "{key}: sent {sent}, answered {}", answer[key]);
        }
    }
    let again = entra.send(Method::POST, "/Users", Some(body)).await?.expect(409)?.json();
    ensure!(again["scimType"] == "uniqueness" && again["status"] == "409", "{again}");
    let found = entra.query("/Users", &format!("userName eq \"{}\"", name.to_uppercase()), "").await?;
    ensure!(found.len() == 1 && found[0]["id"] == json!(created.id()), "{found:?}");
    Ok(created.id())
}

/// The attribute changes of §2.5, on a user that lacks the elements, and the same once more.
async fn change_user(entra: &mut Entra, id: &str, prefix: &str) -> Result<()> {
    let path = format!("/Users/{id}");
    let email = format!("{prefix}.rk@acme.test");
    for _ in 0..2 {
        let on = entra.on();
        let operations = if on {
            json!([
                {"op": "replace", "path": "emails[type eq \"work\"].value", "value": email},
                {"op": "add", "path": "phoneNumbers[type eq \"mobile\"].value", "value": "+49 151 000"},
                {"op": "replace", "value": {
                    "displayName": "Ines Roth-Kern", "name.givenName": "Ines", "name.familyName": "Roth-Kern",
                    format!("{ENTERPRISE}:department"): "R&D", format!("{ENTERPRISE}:employeeNumber"): "4711",
                    "title": "Lead",
                }},
            ])
        } else {
            json!([
                {"op": "Replace", "path": "displayName", "value": "Ines Roth-Kern"},
                {"op": "Replace", "path": "emails[type eq \"work\"].value", "value": email},
                {"op": "Add", "path": "phoneNumbers[type eq \"mobile\"].value", "value": "+49 151 000"},
                {"op": "Add", "path": format!("{ENTERPRISE}:department"), "value": "R&D"},
                {"op": "Add", "path": format!("{ENTERPRISE}:employeeNumber"), "value": "4711"},
                {"op": "Replace", "path": "name.givenName", "value": "Ines"},
                {"op": "Replace", "path": "name.familyName", "value": "Roth-Kern"},
                {"op": "Add", "path": "title", "value": "Lead"},
            ])
        };
        entra.patch(&path, operations).await?;
    }
    let user = entra.user(id).await?;
    ensure!(user["displayName"] == "Ines Roth-Kern" && user["title"] == "Lead", "{user}");
    ensure!(user["name"]["givenName"] == "Ines" && user["name"]["familyName"] == "Roth-Kern", "{user}");
    ensure!(user["emails"][0]["value"] == json!(email) && user["emails"][0]["primary"] == true, "{user}");
    ensure!(user["phoneNumbers"][0] == json!({"type": "mobile", "value": "+49 151 000"}), "{user}");
    ensure!(
        user[ENTERPRISE]["department"] == "R&D" && user[ENTERPRISE]["employeeNumber"] == "4711",
        "{user}"
    );
    // A replace without such an element is normal (EN-050).
    let other =
        json!([{"op": "Replace", "path": "addresses[type eq \"work\"].streetAddress", "value": "Weg 1"}]);
    entra.patch(&path, other).await?;
    ensure!(entra.user(id).await?["addresses"][0]["streetAddress"] == "Weg 1");
    Ok(())
}

/// Every shape of a manager (§2.6), and the reference check before it is written.
async fn manager(entra: &Entra, id: &str, boss: &str) -> Result<()> {
    let path = format!("/Users/{id}");
    let check = format!("id eq \"{id}\" and manager eq \"{boss}\"");
    ensure!(entra.query("/Users", &check, "&attributes=id").await?.is_empty());
    let reference = format!("https://host/v2/Users/{boss}");
    let urn = format!("{ENTERPRISE}:manager");
    let set = [
        json!([{"op": "Add", "path": "manager", "value": [{"$ref": reference, "value": boss}]}]),
        json!([{"op": "Add", "path": urn, "value": boss}]),
        json!([{"op": "Replace", "path": urn, "value": {"value": boss}}]),
        json!([{"op": "Replace", "path": format!("{urn}.value"), "value": boss}]),
    ];
    let clear = [
        json!([{"op": "Replace", "path": urn, "value": ""}]),
        json!([{"op": "Replace", "path": urn, "value": {"value": ""}}]),
        json!([{"op": "Remove", "path": urn}]),
    ];
    for (n, operations) in set.iter().enumerate() {
        entra.patch(&path, operations.clone()).await?;
        let user = entra.user(id).await?;
        ensure!(user[ENTERPRISE]["manager"]["value"] == json!(boss), "{operations}: {user}");
        ensure!(entra.query("/Users", &check, "&attributes=id").await?.len() == 1);
        if let Some(operations) = clear.get(n) {
            entra.patch(&path, operations.clone()).await?;
            let user = entra.user(id).await?;
            ensure!(user[ENTERPRISE].get("manager").is_none(), "{operations}: {user}");
        }
    }
    Ok(())
}

async fn create_group(entra: &Entra, name: &str) -> Result<String> {
    let more = "&excludedAttributes=members";
    ensure!(entra.query("/Groups", &format!("displayName eq \"{name}\""), more).await?.is_empty());
    let body = json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group",
            "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group"],
        "externalId": format!("{name}-object-id"), "displayName": name, "meta": {"resourceType": "Group"},
    });
    let id = entra.send(Method::POST, "/Groups", Some(body)).await?.expect(201)?.id();
    let found = entra.query("/Groups", &format!("displayName eq \"{}\"", name.to_lowercase()), more).await?;
    ensure!(found.len() == 1 && found[0].get("members").is_none(), "{found:?}");
    Ok(id)
}

fn member_operation(on: bool, add: bool, id: &str) -> Value {
    match (add, on) {
        (true, false) => json!([{"op": "Add", "path": "members", "value": [{"$ref": null, "value": id}]}]),
        (true, true) => json!([{"op": "add", "path": "members", "value": [{"value": id}]}]),
        (false, false) => {
            json!([{"op": "Remove", "path": "members", "value": [{"$ref": null, "value": id}]}])
        }
        (false, true) => json!([{"op": "remove", "path": format!("members[value eq \"{id}\"]")}]),
    }
}

/// Single-member changes, several in flight, none of which may be lost (EN-073).
async fn change_members(
    nodes: &[Scim],
    entra: &mut Entra,
    group: &str,
    add: bool,
    ids: &[String],
) -> Result<()> {
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for (n, id) in ids.iter().enumerate() {
        if tasks.len() >= IN_FLIGHT {
            tasks.join_next().await.context("a task")???;
        }
        let operations = member_operation(entra.on(), add, id);
        let scim = nodes[n % nodes.len()].clone();
        let path = format!("/Groups/{group}");
        tasks.spawn(async move {
            scim.patch(&path, operations).await?.expect(204)?;
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn groups(nodes: &[Scim], entra: &mut Entra, prefix: &str, users: &[String]) -> Result<String> {
    let name = format!("{prefix} Blue Team");
    let group = create_group(entra, &name).await?;
    change_members(nodes, entra, &group, true, users).await?;
    // What is there is added again, what is gone removed again: success (EN-074).
    change_members(nodes, entra, &group, true, &users[..2]).await?;
    let mut wanted = users.to_vec();
    wanted.sort();
    ensure!(nodes[0].member_ids(&group).await? == wanted, "members after adding");
    let (leave, stay) = users.split_at(users.len() / 2);
    change_members(nodes, entra, &group, false, leave).await?;
    change_members(nodes, entra, &group, false, &leave[..2]).await?;
    let mut wanted = stay.to_vec();
    wanted.sort();
    ensure!(nodes[0].member_ids(&group).await? == wanted, "members after removing");
    let check = format!("id eq \"{group}\" and members eq \"{}\"", stay[0]);
    ensure!(entra.query("/Groups", &check, "&attributes=id").await?.len() == 1);
    let check = format!("id eq \"{group}\" and members eq \"{}\"", leave[0]);
    ensure!(entra.query("/Groups", &check, "&attributes=id").await?.is_empty());
    // A member that does not exist is a clear 400, never a 500 that is repeated for ever (EN-076).
    let unknown = "0190163e-0000-7000-8000-000000000000";
    let body = json!({"Operations": member_operation(false, true, unknown), "schemas": [PATCH_OP]});
    let refused = entra.send(Method::PATCH, &format!("/Groups/{group}"), Some(body)).await?.expect(400)?;
    let refused = refused.json();
    ensure!(refused["scimType"] == "invalidValue", "{refused}");
    ensure!(refused["detail"].as_str().is_some_and(|detail| detail.contains(unknown)), "{refused}");
    let rename = json!([{"op": "Replace", "path": "displayName", "value": format!("{name} 2")}]);
    entra.patch(&format!("/Groups/{group}"), rename).await?;
    Ok(group)
}

async fn switch_active(entra: &mut Entra, id: &str, active: bool) -> Result<()> {
    let text = if active { "True" } else { "False" };
    let operations = match entra.on() {
        true => json!([{"op": "replace", "path": "active", "value": active}]),
        false => json!([{"op": "Replace", "path": "active", "value": text}]),
    };
    entra.patch(&format!("/Users/{id}"), operations).await?;
    ensure!(entra.user(id).await?["active"] == json!(active));
    Ok(())
}

async fn lifecycle(nodes: &[Scim], flag: Flag) -> Result<()> {
    let prefix = format!("{flag:?}").to_lowercase();
    let mut entra = Entra { scim: nodes[0].clone(), flag, turn: 0 };
    probe(&entra).await?;
    let boss = create_user(&entra, new_user(&prefix, "Berta", "Boss")).await?;
    let ines = create_user(&entra, new_user(&prefix, "Ines", "Roth")).await?;
    let leaver = create_user(&entra, new_user(&prefix, "Lea", "Ver")).await?;
    change_user(&mut entra, &ines, &prefix).await?;
    manager(&entra, &ines, &boss).await?;

    let mut users = vec![boss.clone(), ines.clone(), leaver.clone()];
    for n in 0..GROUP_MEMBERS - users.len() {
        let body = new_user(&prefix, &format!("Guest{n}"), "Many");
        users.push(entra.send(Method::POST, "/Users", Some(body)).await?.expect(201)?.id());
    }
    // Those who are to be watched stay in the group's second half.
    users.reverse();
    let group = groups(nodes, &mut entra, &prefix, &users).await?;

    // Soft delete keeps the memberships: Entra does not send them again (EN-065).
    switch_active(&mut entra, &ines, false).await?;
    let name = format!("userName eq \"{prefix}-ines@acme.test\"");
    ensure!(entra.query("/Users", &name, "").await?.len() == 1, "inactive users are still found");
    let member_of = values(&entra.user(&ines).await?["groups"]);
    ensure!(member_of == [group.clone()], "{member_of:?}");
    switch_active(&mut entra, &ines, true).await?;
    switch_active(&mut entra, &leaver, false).await?;
    entra.send(Method::DELETE, &format!("/Users/{leaver}"), None).await?.expect(204)?;
    entra.send(Method::GET, &format!("/Users/{leaver}"), None).await?.expect(404)?;
    entra.send(Method::DELETE, &format!("/Users/{leaver}"), None).await?.expect(404)?;
    ensure!(!nodes[0].member_ids(&group).await?.contains(&leaver), "a deleted user is a member");

    let passing = create_group(&entra, &format!("{prefix} Passing")).await?;
    change_members(nodes, &mut entra, &passing, true, &users[..3]).await?;
    entra.send(Method::DELETE, &format!("/Groups/{passing}"), None).await?.expect(204)?;
    entra.send(Method::GET, &format!("/Groups/{passing}"), None).await?.expect(404)?;
    let member_of = values(&entra.user(&users[0]).await?["groups"]);
    ensure!(!member_of.contains(&passing), "{member_of:?}");
    Ok(())
}

async fn flow(cluster: Cluster) -> Result<()> {
    let server = Scim2Server::start(APP_TOKEN).await?;
    let hook = Downstream::webhook(SECRET).await?;
    let scim = Driver::Scim { base_url: server.url().to_owned(), members_per_request_max: 100 };
    cluster.add_app("scim2", scim, APP_TOKEN).await?;
    cluster.add_app("hook", Driver::Webhook { url: hook.url() }, SECRET).await?;
    let nodes = cluster.clients();
    for flag in [Flag::Off, Flag::On, Flag::Mixed] {
        lifecycle(&nodes, flag).await.with_context(|| format!("flag {flag:?}"))?;
    }
    cluster.check().await.with_context(|| tail(&server.log()))?;

    cluster.checkers.webhook(&cluster.tenant, &hook).await?;
    let (users, groups) = (server.all("/Users").await?, server.all("/Groups").await?);
    cluster.checkers.converged(&cluster.tenant, &users, &groups).await?;
    let by_name: BTreeMap<&str, &str> =
        users.iter().filter_map(|(id, user)| Some((user.get("userName")?.as_str()?, id.as_str()))).collect();
    for prefix in ["off", "on", "mixed"] {
        let ines = &users[by_name[&*format!("{prefix}-ines@acme.test")]];
        let boss = by_name[&*format!("{prefix}-berta@acme.test")];
        ensure!(ines[ENTERPRISE]["manager"]["value"] == boss, "{prefix}: {ines:?} instead of {boss}");
        ensure!(ines[ENTERPRISE]["department"] == "R&D", "{prefix}: {ines:?}");
        ensure!(!by_name.contains_key(&*format!("{prefix}-lea@acme.test")), "{prefix}: a deleted user");
    }
    let personal =
        ["off-ines@acme.test", "Roth-Kern", "mixed.rk@acme.test", "Ines Roth-Kern", "Guest17 Many"];
    cluster.checkers.dump_is_sealed(&personal).await
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_in_one_process() -> Result<()> {
    flow(Cluster::embedded(BINARY, Profile::Entra).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_and_nats_in_five_processes() -> Result<()> {
    for nats in nats::Server::start_each().await? {
        flow(Cluster::scaled_on(BINARY, Profile::Entra, nats).await?).await?;
    }
    Ok(())
}

//! SCIM targets: scenarios against a scripted service provider (WS… of the outbound client's list).

#[expect(dead_code, reason = "each test binary uses a part of the world")]
mod world;

use std::time::Duration;

use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use annals_domain::event::Actor;
use annals_domain::ids::ResourceId;
use annals_domain::tenant::{App, Driver};
use annals_store::lanes::{DeliveryFilter, LaneState};
use annals_testkit::downstream::{Action, Downstream, Seen};
use reqwest::Method;
use serde_json::{Value, json};
use world::{TOKEN, World, acme, app_id};

const ENTERPRISE: &str = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";

async fn world_and_target() -> (World, Downstream) {
    let world = World::new().await;
    let target = Downstream::scim(TOKEN).await.unwrap();
    world.scim_app(&target.url()).await;
    (world, target)
}

fn requests(target: &Downstream, method: Method, path: &str) -> Vec<Seen> {
    let matches = |seen: &Seen| seen.method == method && seen.target.contains(path);
    target.seen().into_iter().filter(matches).collect()
}

fn count(target: &Downstream, method: Method, path: &str) -> usize {
    requests(target, method, path).len()
}

/// Requests that are not for reading.
fn writes(target: &Downstream) -> usize {
    target.seen().iter().filter(|seen| seen.method != Method::GET).count()
}

fn operations(seen: &Seen) -> Vec<Value> {
    seen.json()["Operations"].as_array().cloned().unwrap_or_default()
}

/// Changes something at the target behind our back.
async fn by_hand(target: &Downstream, path: &str, body: Value) {
    let request = annals_testkit::http::client().patch(format!("{}/{path}", target.url()));
    let answer = request.bearer_auth(TOKEN).body(body.to_string()).send().await.unwrap();
    assert!(answer.status().is_success());
}

async fn remote(world: &World, id: &ResourceId) -> String {
    world.lane("crm", id).await.remote_id.expect("it has a remote id")
}

#[tokio::test]
async fn ws01_an_app_gets_everything_that_exists() {
    let mut world = World::new().await;
    let mut users = Vec::new();
    for n in 0..60 {
        users.push(world.user(&format!("user{n}")).await);
    }
    let manager = json!({ "userName": "report", ENTERPRISE: { "manager": { "value": users[59] } } });
    world.create("User", manager).await;
    for n in 0..4 {
        world.group(&format!("group{n}"), &users).await;
    }
    let target = Downstream::scim(TOKEN).await.unwrap();
    world.scim_app(&target.url()).await;
    world.settle().await;
    assert_eq!(count(&target, Method::POST, "/Users"), 61);
    assert_eq!(count(&target, Method::POST, "/Groups"), 4);
    for seen in requests(&target, Method::POST, "/Groups") {
        assert_eq!(seen.json().get("members"), None, "groups are created without members");
    }
    for seen in requests(&target, Method::PATCH, "/Groups") {
        assert!(operations(&seen)[0]["value"].as_array().unwrap().len() <= 100);
    }
    for n in 0..4 {
        assert_eq!(target.members(&format!("group{n}")).unwrap().len(), 60);
    }
    let report = target.user("report").unwrap();
    assert_eq!(report[ENTERPRISE]["manager"], json!({ "value": remote(&world, &users[59]).await }));
    assert_eq!(report["externalId"].as_str().unwrap().len(), 36);
    assert_eq!(world.lanes_in(LaneState::Idle).await, 65);
    assert!(target.refused().is_empty());
    // Every request says who we are and what we understand (OC-01).
    for seen in target.seen() {
        assert!(seen.headers["user-agent"].to_str().unwrap().starts_with("annals/"));
        assert!(seen.headers["accept"].to_str().unwrap().starts_with("application/scim+json"));
    }
}

#[tokio::test]
async fn ws02_what_the_target_has_is_linked_and_changed_only_where_it_differs() {
    let (mut world, target) = world_and_target().await;
    let same = world.user("same").await;
    target.plant("Users", json!({ "userName": "SAME", "active": true, "externalId": same }));
    target.plant("Users", json!({ "userName": "other", "active": true, "title": "theirs" }));
    world.user("other").await;
    world.settle().await;
    assert_eq!(count(&target, Method::POST, ""), 0);
    assert_eq!(target.user("other").unwrap()["title"], json!("theirs"), "it is the target's own");
    let patches = requests(&target, Method::PATCH, "/Users");
    let paths: Vec<Value> = patches.iter().flat_map(operations).map(|o| o["path"].clone()).collect();
    // The name's case, and our id.
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert_eq!(world.attempts("crm", &same).await[0].outcome, "linked");
}

#[tokio::test]
async fn ws03_a_conflict_on_create_is_resolved_by_a_search() {
    let (mut world, target) = world_and_target().await;
    let nobody = Action::Answer {
        status: 200,
        headers: Vec::new(),
        body: json!({ "totalResults": 0, "schemas": [] }).to_string(),
    };
    // By name and by our id: nobody. Then the target says there is one.
    target.script(Some(Method::GET), "filter=", 2, nobody);
    let planted = target.plant("Users", json!({ "userName": "ines", "active": false }));
    let ines = world.user("ines").await;
    world.settle().await;
    assert_eq!(requests(&target, Method::POST, "/Users")[0].status, 409);
    assert_eq!(remote(&world, &ines).await, planted);
    assert_eq!(target.users().len(), 1);
    assert_eq!(target.user("ines").unwrap()["active"], json!(true));
    let lane = world.lane("crm", &ines).await;
    assert_eq!((lane.state, lane.attempts, lane.last_error), (LaneState::Idle, 0, None));
}

#[tokio::test]
async fn ws04_a_conflict_nobody_can_explain_ends_in_quarantine() {
    let (mut world, target) = world_and_target().await;
    target.script(Some(Method::POST), "/Users", 9, Action::status(409));
    let ines = world.user("ines").await;
    let olga = world.group("team", &[]).await;
    world.settle_for(Duration::from_secs(3_600)).await;
    assert_eq!(count(&target, Method::POST, "/Users"), 3);
    let lane = world.lane("crm", &ines).await;
    assert_eq!(lane.state, LaneState::Quarantined);
    assert!(lane.last_error.unwrap().starts_with("EntryConflict"));
    assert_eq!(world.lane("crm", &olga).await.state, LaneState::Idle);
    // Its content changes: that is worth a new try.
    target.behave();
    world.set(&ines, "title", json!("Boss")).await;
    world.settle().await;
    assert_eq!(target.user("ines").unwrap()["title"], json!("Boss"));
}

#[tokio::test]
async fn ws05_a_method_that_is_not_routed_is_no_lost_link() {
    let (mut world, target) = world_and_target().await;
    let ines = world.user("ines").await;
    world.settle().await;
    let before = remote(&world, &ines).await;
    target.script(Some(Method::PATCH), "/Users", 9, Action::status(404));
    world.set(&ines, "title", json!("Boss")).await;
    world.settle().await;
    assert_eq!(remote(&world, &ines).await, before);
    assert_eq!(target.user("ines").unwrap()["title"], json!("Boss"));
    assert_eq!(count(&target, Method::PUT, "/Users"), 1);
    // It is remembered.
    world.set(&ines, "title", json!("Chief")).await;
    world.settle().await;
    assert_eq!(count(&target, Method::PATCH, "/Users"), 1);
    assert_eq!(target.user("ines").unwrap()["title"], json!("Chief"));
}

#[tokio::test]
async fn ws06_what_the_target_lost_is_created_again_with_its_memberships() {
    let (mut world, target) = world_and_target().await;
    let ines = world.user("ines").await;
    let team = world.group("team", std::slice::from_ref(&ines)).await;
    world.settle().await;
    let before = remote(&world, &ines).await;
    target.lose("Users", &before);
    world.set(&ines, "title", json!("Boss")).await;
    world.settle().await;
    assert_ne!(remote(&world, &ines).await, before);
    assert_eq!(target.user("ines").unwrap()["title"], json!("Boss"));
    let new = remote(&world, &ines).await;
    let members = target.groups()[&remote(&world, &team).await]["members"].clone();
    assert!(members.as_array().unwrap().contains(&json!({ "value": new })), "{members}");

    let lost = remote(&world, &team).await;
    target.lose("Groups", &lost);
    let olga = world.user("olga").await;
    world.add_member(&team, &olga).await;
    world.settle().await;
    assert_ne!(remote(&world, &team).await, lost);
    assert_eq!(target.members("team").unwrap(), ["ines", "olga"]);
}

#[tokio::test]
async fn ws07_patience_is_the_targets_and_no_lane_fails() {
    let (mut world, target) = world_and_target().await;
    target.script(Some(Method::POST), "/Users", 1, Action::retry_after(429, "7"));
    let ines = world.user("ines").await;
    world.settle().await;
    let start = world.store.now();
    assert_eq!(world.target("crm").await.open_until, Some(start.plus_ms(7_000)));
    let lane = world.lane("crm", &ines).await;
    assert_eq!((lane.state, lane.attempts), (LaneState::Due, 0));
    // Nobody else is sent to it meanwhile.
    world.user("olga").await;
    target.forget();
    world.clock.advance(Duration::from_millis(6_999));
    world.settle().await;
    assert_eq!(target.seen().len(), 0);
    world.clock.advance(Duration::from_millis(1));
    world.settle().await;
    assert_eq!(target.users().len(), 2);
    assert_eq!(world.target("crm").await, Default::default());

    // A date.
    let now = world.store.now();
    let at = std::time::UNIX_EPOCH + Duration::from_millis(now.0 as u64) + Duration::from_secs(90);
    let date = httpdate::fmt_http_date(at);
    target.script(Some(Method::PATCH), "", 1, Action::retry_after(503, &date));
    world.set(&ines, "title", json!("Boss")).await;
    world.settle().await;
    let until = world.target("crm").await.open_until.unwrap();
    assert!((89_000..=90_000).contains(&(until.0 - now.0)), "{until}");
    world.clock.advance_to(until);
    // Neither: a short pause that grows. Too long: an hour.
    target.script(Some(Method::PATCH), "", 1, Action::status(429));
    world.settle().await;
    let pause = world.target("crm").await.open_until.unwrap().0 - world.store.now().0;
    assert!((1_000..=2_000).contains(&pause), "{pause} ms after two failures");
    target.script(Some(Method::PATCH), "", 1, Action::retry_after(429, "86400"));
    world.settle_for(Duration::from_secs(10)).await;
    let pause = world.target("crm").await.open_until.unwrap().0 - world.store.now().0;
    assert_eq!(pause, 3_600_000);
    world.settle_for(Duration::from_secs(3_600)).await;
    assert_eq!(target.user("ines").unwrap()["title"], json!("Boss"));
    assert_eq!(world.lane("crm", &ines).await.attempts, 0);
}

#[tokio::test]
async fn ws08_a_revoked_token_stops_the_target_until_it_is_replaced() {
    let (mut world, target) = world_and_target().await;
    let wrong = secrecy::SecretString::from("wrong");
    let app = world.store.apps(&acme()).await.unwrap().remove(0);
    let app = App { concurrency_max: 1, ..app };
    let actor = || annals_domain::event::Actor::system("test");
    world.store.update_app(&acme(), app.clone(), Some(wrong), actor()).await.unwrap();
    let ines = world.user("ines").await;
    world.user("olga").await;
    world.settle().await;
    assert_eq!(target.seen().len(), 1);
    let reason = world.target("crm").await.reason.unwrap();
    assert!(reason.contains("401") && !reason.contains("wrong"), "{reason}");
    assert_eq!(world.lane("crm", &ines).await.attempts, 0);
    world.store.update_app(&acme(), app, Some(TOKEN.to_owned().into()), actor()).await.unwrap();
    world.store.probe_target(&acme(), &app_id("crm")).await.unwrap();
    world.settle().await;
    assert_eq!(target.users().len(), 2);
}

#[tokio::test]
async fn ws09_a_create_whose_answer_is_lost_makes_no_second_one() {
    let (mut world, target) = world_and_target().await;
    target.script(Some(Method::POST), "/Users", 1, Action::DropAfter);
    let ines = world.user("ines").await;
    world.settle().await;
    assert_eq!(target.users().len(), 1);
    assert_eq!(world.lane("crm", &ines).await.attempts, 1);
    world.settle_for(Duration::from_secs(60)).await;
    assert_eq!(target.users().len(), 1);
    assert_eq!(count(&target, Method::POST, "/Users"), 1);
    assert_eq!(world.lane("crm", &ines).await.state, LaneState::Idle);
    assert_eq!(world.attempts("crm", &ines).await[0].outcome, "linked");
    assert_eq!(count(&target, Method::PATCH, "/Users"), 0, "nothing differs");
}

#[tokio::test]
async fn ws11_a_large_group_goes_in_bounded_requests_adds_before_removes() {
    let (mut world, target) = world_and_target().await;
    let mut users = Vec::new();
    for n in 0..235 {
        users.push(world.user(&format!("user{n}")).await);
    }
    let app = world.store.apps(&acme()).await.unwrap().remove(0);
    let driver = Driver::Scim { base_url: target.url(), members_per_request_max: 10 };
    let actor = annals_domain::event::Actor::system("test");
    world.store.update_app(&acme(), App { driver, ..app }, None, actor).await.unwrap();
    world.settle().await;
    let team = world.group("team", &users).await;
    world.settle().await;
    let patches = requests(&target, Method::PATCH, "/Groups");
    assert_eq!(patches.len(), 24);
    assert!(patches.iter().all(|seen| operations(seen)[0]["value"].as_array().unwrap().len() <= 10));
    assert_eq!(target.members("team").unwrap().len(), 235);

    target.forget();
    let newcomer = world.user("newcomer").await;
    world.settle().await;
    for user in &users[..12] {
        world.remove_member(&team, user).await;
    }
    world.add_member(&team, &newcomer).await;
    world.settle().await;
    let ops: Vec<String> = requests(&target, Method::PATCH, "/Groups")
        .iter()
        .map(|seen| operations(seen)[0]["op"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ops, ["add", "remove", "remove"]);
    assert_eq!(target.members("team").unwrap().len(), 224);
}

#[tokio::test]
async fn ws12_a_member_that_is_refused_does_not_hold_back_the_others() {
    let (mut world, target) = world_and_target().await;
    let mut users = Vec::new();
    for n in 0..8 {
        users.push(world.user(&format!("user{n}")).await);
    }
    world.settle().await;
    // Whole request, then its halves, until user 0 stands alone.
    target.script(Some(Method::PATCH), "/Groups", 4, Action::status(400));
    let team = world.group("team", &users).await;
    world.settle().await;
    assert_eq!(target.members("team").unwrap().len(), 7);
    assert_eq!(world.lane("crm", &team).await.state, LaneState::Waiting);
    let pending = world.store.pending(&world.lane("crm", &team).await.key, "", None, 10).await.unwrap();
    assert_eq!(pending.len(), 1);
    assert!(pending[0].parked);
    target.forget();
    world.settle_for(Duration::from_secs(3_600)).await;
    assert_eq!(target.seen().len(), 0);
    world.store.redrive(&DeliveryFilter::default()).await.unwrap();
    world.settle().await;
    assert_eq!(target.members("team").unwrap().len(), 8);
    assert_eq!(world.lane("crm", &team).await.state, LaneState::Idle);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_halved() {
    let (mut world, target) = world_and_target().await;
    let mut users = Vec::new();
    for n in 0..16 {
        users.push(world.user(&format!("user{n}")).await);
    }
    world.settle().await;
    target.script(Some(Method::PATCH), "/Groups", 1, Action::status(413));
    world.group("team", &users).await;
    world.settle().await;
    assert_eq!(target.members("team").unwrap().len(), 16);
    assert_eq!(count(&target, Method::PATCH, "/Groups"), 3);
    target.forget();
    world.group("other", &users).await;
    world.settle().await;
    assert_eq!(count(&target, Method::PATCH, "/Groups"), 2, "the size is remembered");
}

#[tokio::test]
async fn ws13_a_crash_between_the_targets_answer_and_our_note_repeats_harmlessly() {
    let (mut world, target) = world_and_target().await;
    let ines = world.user("ines").await;
    let team = world.group("team", std::slice::from_ref(&ines)).await;
    world.settle().await;
    world.set(&ines, "title", json!("Boss")).await;
    let olga = world.user("olga").await;
    world.add_member(&team, &olga).await;
    world.plan().await;
    // A deliverer took the lanes, sent everything, and died before it could write that down.
    let quota = annals_store::lanes::Quota {
        tenant: acme(),
        app: app_id("crm"),
        concurrency_max: 8,
        rate_per_second_max: 0,
        in_flight: 0,
    };
    let lanes = world.store.lease_lanes("dead", Duration::from_secs(60), &[quota], 8).await.unwrap();
    assert_eq!(lanes.len(), 3);
    let title = json!({ "Operations": [{ "op": "add", "path": "title", "value": "Boss" }] });
    by_hand(&target, &format!("Users/{}", remote(&world, &ines).await), title).await;
    let planted = target.plant("Users", json!({ "userName": "olga", "active": true, "externalId": olga }));
    let add = json!({ "Operations": [{ "op": "add", "path": "members", "value": [{ "value": planted }] }] });
    by_hand(&target, &format!("Groups/{}", remote(&world, &team).await), add).await;
    target.forget();
    world.settle().await;
    assert_eq!(target.seen().len(), 0, "nobody takes a lane before its time");
    world.clock.advance(Duration::from_secs(60));
    world.settle().await;
    assert_eq!(count(&target, Method::POST, "/Users"), 0);
    assert_eq!(target.users().len(), 2);
    assert_eq!(target.user("ines").unwrap()["title"], json!("Boss"));
    assert_eq!(target.members("team").unwrap(), ["ines", "olga"]);
    assert_eq!(world.lanes_in(LaneState::Idle).await, 3);
    // And once it is quiet, it stays quiet.
    target.forget();
    world.store.replay_app(&acme(), &app_id("crm"), false).await.unwrap();
    world.settle().await;
    assert_eq!(target.seen().len(), 0);
}

#[tokio::test]
async fn ws16_a_target_that_rewrites_values_is_not_argued_with() {
    let (mut world, target) = world_and_target().await;
    let phones = json!([{ "value": "+49 30 1234", "type": "work" }]);
    let ines = world.create("User", json!({ "userName": "ines", "phoneNumbers": phones })).await;
    world.settle().await;
    let id = remote(&world, &ines).await;
    let rewritten = json!([{ "value": "tel:+49-30-1234", "type": "work" }]);
    let rewrite = json!({ "Operations": [{ "op": "replace", "path": "phoneNumbers", "value": rewritten }] });
    by_hand(&target, &format!("Users/{id}"), rewrite).await;
    target.forget();
    world.set(&ines, "title", json!("Boss")).await;
    world.settle().await;
    assert_eq!(writes(&target), 1);
    let user = target.user("ines").unwrap();
    assert_eq!((&user["title"], &user["phoneNumbers"]), (&json!("Boss"), &rewritten));
    target.forget();
    world.store.replay_app(&acme(), &app_id("crm"), false).await.unwrap();
    world.settle().await;
    assert_eq!(target.seen().len(), 0);
}

#[tokio::test]
async fn ws19_a_manager_who_comes_later_is_set_then() {
    let (mut world, target) = world_and_target().await;
    target.script(Some(Method::POST), "/Users", 1, Action::status(500));
    let boss = world.user("boss").await;
    world.settle().await;
    let report = world
        .create("User", json!({ "userName": "report", ENTERPRISE: { "manager": { "value": boss } } }))
        .await;
    world.settle().await;
    assert_eq!(target.user("report").unwrap().get(ENTERPRISE), None);
    assert_eq!(world.lane("crm", &report).await.state, LaneState::Waiting);
    world.settle_for(Duration::from_secs(60)).await;
    let manager = target.user("report").unwrap()[ENTERPRISE]["manager"].clone();
    assert_eq!(manager, json!({ "value": remote(&world, &boss).await }));
    assert_eq!(world.lane("crm", &report).await.state, LaneState::Idle);

    world.patch("User", &report, json!([{ "op": "remove", "path": format!("{ENTERPRISE}:manager") }])).await;
    world.settle().await;
    let extension = target.user("report").unwrap().get(ENTERPRISE).cloned().unwrap_or_default();
    assert_eq!(extension.get("manager"), None);
}

#[tokio::test]
async fn ws20_deleting_what_the_target_lost_is_done() {
    let (mut world, target) = world_and_target().await;
    let (ines, olga) = (world.user("ines").await, world.user("olga").await);
    world.settle().await;
    target.lose("Users", &remote(&world, &ines).await);
    world.delete("User", &ines).await;
    world.delete("User", &olga).await;
    world.settle().await;
    assert!(target.users().is_empty());
    for id in [&ines, &olga] {
        let lane = world.lane("crm", id).await;
        assert_eq!((lane.state, lane.deleted), (LaneState::Idle, true));
        assert_eq!(world.attempts("crm", id).await[0].outcome, "deleted");
    }
    // What never got there needs no request.
    target.forget();
    let brief = world.user("brief").await;
    world.delete("User", &brief).await;
    world.settle().await;
    assert_eq!(target.seen().len(), 0);
}

#[tokio::test]
async fn deleting_what_a_lost_answer_created_finds_it() {
    let (mut world, target) = world_and_target().await;
    target.script(Some(Method::POST), "/Users", 1, Action::DropAfter);
    let ines = world.user("ines").await;
    world.settle().await;
    assert_eq!(target.users().len(), 1);
    world.delete("User", &ines).await;
    world.settle_for(Duration::from_secs(60)).await;
    assert!(target.users().is_empty());
}

#[tokio::test]
async fn a_burst_is_one_call_with_the_newest_state() {
    let (mut world, target) = world_and_target().await;
    let ines = world.user("ines").await;
    world.settle().await;
    target.forget();
    for n in 0..20 {
        world.set(&ines, "title", json!(format!("title {n}"))).await;
    }
    world.set(&ines, "active", json!(false)).await;
    world.patch("User", &ines, json!([{ "op": "add", "path": "nickName", "value": "x" }])).await;
    world.patch("User", &ines, json!([{ "op": "remove", "path": "nickName" }])).await;
    world.settle().await;
    let seen = requests(&target, Method::PATCH, "/Users");
    assert_eq!(writes(&target), 1);
    assert_eq!(operations(&seen[0]).len(), 2);
    let user = target.user("ines").unwrap();
    assert_eq!((&user["title"], &user["active"]), (&json!("title 19"), &json!(false)));
    assert_eq!(user.get("nickName"), None);
}

#[tokio::test]
async fn what_is_taken_away_here_is_taken_away_there() {
    let (mut world, target) = world_and_target().await;
    let body = json!({
        "userName": "ines", "title": "Boss", "name": { "givenName": "Inés", "familyName": "X" },
        "emails": [{ "value": "a@example.com", "type": "work" }, { "value": "b@example.com" }],
        ENTERPRISE: { "department": "R", "costCenter": "1" },
    });
    let ines = world.create("User", body).await;
    world.settle().await;
    target.forget();
    let operations = json!([
        { "op": "remove", "path": "title" },
        { "op": "remove", "path": "name.familyName" },
        { "op": "remove", "path": format!("{ENTERPRISE}:department") },
        { "op": "remove", "path": "emails[type eq \"work\"]" },
    ]);
    world.patch("User", &ines, operations).await;
    world.settle().await;
    let user = target.user("ines").unwrap();
    assert_eq!(user.get("title"), None);
    assert_eq!(user["name"], json!({ "givenName": "Inés" }));
    assert_eq!(user[ENTERPRISE], json!({ "costCenter": "1" }));
    assert_eq!(user["emails"], json!([{ "value": "b@example.com" }]));
    assert_eq!(target.seen().len(), 2, "the configuration, and one PATCH without reading first");
}

#[tokio::test]
async fn a_password_is_not_sent_and_changes_nothing() {
    let (mut world, target) = world_and_target().await;
    let ines = world.create("User", json!({ "userName": "ines", "password": "correct horse" })).await;
    world.settle().await;
    world.set(&ines, "password", json!("battery staple")).await;
    world.settle().await;
    assert_eq!(writes(&target), 1);
    assert_eq!(world.attempts("crm", &ines).await[0].outcome, "unchanged");
    for seen in target.seen() {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        assert!(!body.contains("horse") && !body.contains("staple"), "{body}");
    }
}

#[tokio::test]
async fn a_member_waits_for_its_own_lane() {
    let (mut world, target) = world_and_target().await;
    target.script(Some(Method::POST), "/Users", 1, Action::status(500));
    let late = world.user("late").await;
    world.settle().await;
    let ines = world.user("ines").await;
    let team = world.group("team", &[late.clone(), ines]).await;
    world.settle().await;
    assert_eq!(target.members("team").unwrap(), ["ines"]);
    assert_eq!(world.lane("crm", &team).await.state, LaneState::Waiting);
    world.settle_for(Duration::from_secs(60)).await;
    assert_eq!(target.members("team").unwrap(), ["ines", "late"]);
    assert_eq!(world.lane("crm", &team).await.state, LaneState::Idle);
}

#[tokio::test]
async fn a_member_who_leaves_while_waiting_is_never_added() {
    let (mut world, target) = world_and_target().await;
    target.script(Some(Method::POST), "/Users", 1, Action::status(500));
    let late = world.user("late").await;
    world.settle().await;
    let team = world.group("team", std::slice::from_ref(&late)).await;
    world.settle().await;
    world.remove_member(&team, &late).await;
    world.settle_for(Duration::from_secs(60)).await;
    assert_eq!(target.members("team"), Some(Vec::new()));
    assert!(target.user("late").is_some());
    assert_eq!(world.lanes_in(LaneState::Idle).await, 2);
}

/// The target took the member, but its answer was lost; before the next try the member leaves. Coming and
/// going is not nothing.
#[tokio::test]
async fn a_member_who_came_unnoticed_is_removed_all_the_same() {
    let (mut world, target) = world_and_target().await;
    let (ines, olga) = (world.user("ines").await, world.user("olga").await);
    let team = world.group("team", std::slice::from_ref(&ines)).await;
    world.settle().await;
    target.script(Some(Method::PATCH), "/Groups", 1, Action::DropAfter);
    world.add_member(&team, &olga).await;
    world.settle().await;
    assert_eq!(target.members("team").unwrap(), ["ines", "olga"]);
    world.remove_member(&team, &olga).await;
    world.settle_for(Duration::from_secs(60)).await;
    assert_eq!(target.members("team").unwrap(), ["ines"]);
    assert_eq!(world.lane("crm", &team).await.state, LaneState::Idle);
}

/// The same with the first members of a group, when whoever sent them died before they were written down; and
/// when the group is sent anew.
#[tokio::test]
async fn first_members_who_came_unnoticed_are_removed_all_the_same() {
    let (mut world, target) = world_and_target().await;
    let (ines, olga) = (world.user("ines").await, world.user("olga").await);
    world.settle().await;
    target.script(Some(Method::PATCH), "/Groups", 1, Action::Late(Duration::from_secs(5)));
    let team = world.group("team", &[ines.clone(), olga.clone()]).await;
    world.step_until("they arrive", || target.members("team").is_some_and(|m| m.len() == 2)).await;
    world.deliverer = annals_workers::Deliverer::new(world.store.clone(), world::options()).unwrap();
    world.remove_member(&team, &olga).await;
    world.settle_for(Duration::from_secs(600)).await;
    assert_eq!(target.members("team").unwrap(), ["ines"]);

    target.script(Some(Method::PATCH), "/Groups", 1, Action::DropAfter);
    world.add_member(&team, &olga).await;
    world.settle().await;
    world.remove_member(&team, &olga).await;
    assert!(world.store.replay_app(&acme(), &app_id("crm"), true).await.unwrap());
    world.settle_for(Duration::from_secs(600)).await;
    assert_eq!(target.members("team").unwrap(), ["ines"]);
    assert_eq!(world.lanes_in(LaneState::Idle).await, 3);
}

#[tokio::test]
async fn groups_in_groups_and_deleted_members_converge() {
    let (mut world, target) = world_and_target().await;
    let (ines, olga) = (world.user("ines").await, world.user("olga").await);
    let inner = world.group("inner", &[ines.clone(), olga]).await;
    let outer = world.group("outer", std::slice::from_ref(&inner)).await;
    world.settle().await;
    assert_eq!(target.members("outer").unwrap(), ["inner"]);
    // The user's lane goes first, by far; not every target takes a lost user out of its groups.
    let member = remote(&world, &ines).await;
    target.forget();
    target.script(Some(Method::PATCH), "/Groups", 1, Action::status(500));
    world.delete("User", &ines).await;
    world.janitor().await;
    world.settle().await;
    assert_eq!(world.attempts("crm", &ines).await[0].outcome, "deleted");
    world.settle_for(Duration::from_secs(60)).await;
    let removal = json!([{ "op": "remove", "path": format!("members[value eq \"{member}\"]") }]);
    let last = requests(&target, Method::PATCH, "/Groups").pop().unwrap();
    assert_eq!(Value::from(operations(&last)), removal);
    assert_eq!(target.members("inner").unwrap(), ["olga"]);
    world.delete("Group", &inner).await;
    world.janitor().await;
    world.settle().await;
    assert_eq!(target.members("outer"), Some(Vec::new()));
    assert_eq!(target.groups().len(), 1);
    assert_eq!(world.lane("crm", &outer).await.state, LaneState::Idle);
    assert_eq!(world.lanes_in(LaneState::Idle).await, 4);
}

#[tokio::test]
async fn a_target_without_patch_gets_whole_resources() {
    let mut world = World::new().await;
    let target = Downstream::scim(TOKEN).await.unwrap();
    let config = json!({ "Patch": { "Supported": "false" } }).to_string();
    let config = Action::Answer { status: 200, headers: Vec::new(), body: config };
    target.script(None, "ServiceProviderConfig", 9, config);
    target.script(Some(Method::PATCH), "", 99, Action::status(501));
    world.scim_app(&target.url()).await;
    let (ines, olga) = (world.user("ines").await, world.user("olga").await);
    let team = world.group("team", &[ines.clone(), olga.clone()]).await;
    world.settle().await;
    world.set(&ines, "title", json!("Boss")).await;
    world.remove_member(&team, &olga).await;
    world.settle().await;
    assert_eq!(count(&target, Method::PATCH, ""), 0);
    assert_eq!(target.user("ines").unwrap()["title"], json!("Boss"));
    assert_eq!(target.members("team").unwrap(), ["ines"]);
    assert_eq!(world.lanes_in(LaneState::Idle).await, 3);
    target.forget();
    world.store.replay_app(&acme(), &app_id("crm"), false).await.unwrap();
    world.settle().await;
    assert_eq!(target.seen().len(), 0);
}

#[tokio::test]
async fn a_name_that_changes_hands_is_no_conflict() {
    let (mut world, target) = world_and_target().await;
    let first = world.user("ines").await;
    world.settle().await;
    // Nothing goes out while the target rests; then both changes are due at once.
    target.script(Some(Method::PATCH), "", 1, Action::status(500));
    world.set(&first, "userName", json!("ines.old")).await;
    world.settle().await;
    let second = world.user("ines").await;
    world.settle_for(Duration::from_secs(120)).await;
    assert_eq!(target.users().len(), 2);
    assert_ne!(remote(&world, &first).await, remote(&world, &second).await);
    assert_eq!(target.user("ines").unwrap()["externalId"], json!(second));
    assert_eq!(target.user("ines.old").unwrap()["externalId"], json!(first));
    assert_eq!(world.lanes_in(LaneState::Idle).await, 2);
}

/// Who takes a name that another user has there still waits for that one's lane, however long it takes.
#[tokio::test]
async fn a_name_that_is_taken_over_is_no_conflict() {
    let (mut world, target) = world_and_target().await;
    let (first, second) = (world.user("ines").await, world.user("omar").await);
    world.settle().await;
    let there = remote(&world, &first).await;
    target.script(Some(Method::PATCH), &there, 8, Action::status(500));
    world.set(&first, "userName", json!("ines.old")).await;
    world.set(&second, "userName", json!("ines")).await;
    world.settle_for(Duration::from_secs(3_600)).await;
    assert_eq!(target.user("ines").unwrap()["externalId"], json!(second));
    assert_eq!(target.user("ines.old").unwrap()["externalId"], json!(first));
    assert_eq!(world.lanes_in(LaneState::Idle).await, 2);
}

#[tokio::test]
async fn two_that_match_are_not_guessed_between() {
    let (mut world, target) = world_and_target().await;
    target.plant("Groups", json!({ "displayName": "Team" }));
    target.plant("Groups", json!({ "displayName": "team" }));
    let team = world.group("team", &[]).await;
    world.settle().await;
    let lane = world.lane("crm", &team).await;
    assert_eq!(lane.state, LaneState::Quarantined);
    assert!(lane.last_error.unwrap().starts_with("DuplicateTargetEntries"));
    assert_eq!(writes(&target), 0);
}

#[tokio::test]
async fn a_refusal_is_recorded_without_personal_values() {
    let (mut world, target) = world_and_target().await;
    let echo = Action::Answer {
        status: 400,
        headers: Vec::new(),
        body: format!("{{\"detail\": \"Inés.Quiroga\\n is no name, {TOKEN} x@example.com\"}}"),
    };
    target.script(Some(Method::POST), "/Users", 9, echo);
    let body = json!({ "userName": "inés.quiroga", "emails": [{ "value": "iq@example.com" }] });
    let ines = world.create("User", body).await;
    world.settle_for(Duration::from_secs(60)).await;
    let lane = world.lane("crm", &ines).await;
    assert_eq!(lane.state, LaneState::Quarantined);
    let attempts = world.attempts("crm", &ines).await;
    assert_eq!(attempts.len(), 3);
    let all = format!("{:?} {:?} {:?}", lane, attempts, world.target("crm").await);
    assert!(all.contains("is no name"), "{all}");
    for hidden in ["quiroga", "Quiroga", TOKEN, "example.com"] {
        assert!(!all.contains(hidden), "{hidden}: {all}");
    }
}

#[tokio::test]
async fn a_resend_repairs_what_someone_else_changed_there() {
    let (mut world, target) = world_and_target().await;
    let ines = world.create("User", json!({ "userName": "ines", "title": "Boss" })).await;
    let team = world.group("team", std::slice::from_ref(&ines)).await;
    world.settle().await;
    let (user, group) = (remote(&world, &ines).await, remote(&world, &team).await);
    let tamper = json!({ "Operations": [{ "op": "replace", "path": "title", "value": "Thief" }] });
    by_hand(&target, &format!("Users/{user}"), tamper).await;
    let tamper = json!({ "Operations": [{ "op": "remove", "path": "members" }] });
    by_hand(&target, &format!("Groups/{group}"), tamper).await;
    world.store.replay_app(&acme(), &app_id("crm"), true).await.unwrap();
    world.settle().await;
    assert_eq!(target.user("ines").unwrap()["title"], json!("Boss"));
    assert_eq!(target.members("team").unwrap(), ["ines"]);
    assert_eq!(remote(&world, &ines).await, user);
    assert_eq!(world.lanes_in(LaneState::Idle).await, 2);
}

#[tokio::test]
async fn an_app_that_is_pointed_at_another_target_links_anew() {
    let (mut world, target) = world_and_target().await;
    let ines = world.user("ines").await;
    let team = world.group("team", std::slice::from_ref(&ines)).await;
    world.settle().await;
    // The other target has the same ids for other people.
    let other = Downstream::scim(TOKEN).await.unwrap();
    for n in 0..9 {
        other.plant("Users", json!({ "userName": format!("stranger{n}") }));
    }
    other.plant("Groups", json!({ "displayName": "strangers" }));
    target.forget();
    let app = world.store.apps(&acme()).await.unwrap().remove(0);
    let driver = Driver::Scim { base_url: other.url(), members_per_request_max: 100 };
    let actor = annals_domain::event::Actor::system("test");
    world.store.update_app(&acme(), App { driver, ..app }, None, actor).await.unwrap();
    // Deleted while on its way: nobody else's account must go.
    world.delete("User", &ines).await;
    world.janitor().await;
    let olga = world.user("olga").await;
    world.add_member(&team, &olga).await;
    world.settle().await;
    assert_eq!(target.seen().len(), 0);
    assert_eq!(other.users().len(), 10);
    assert!(other.users().values().all(|user| user.get("title").is_none()));
    assert_eq!(other.members("team").unwrap(), ["olga"]);
    assert_eq!(other.members("strangers"), Some(Vec::new()));
    assert_eq!(world.lanes_in(LaneState::Idle).await, 3);
}

#[tokio::test]
async fn a_failed_try_forgets_nothing_that_waited() {
    let (mut world, target) = world_and_target().await;
    target.script(Some(Method::POST), "/Users", 1, Action::status(500));
    let late = world.user("late").await;
    world.settle().await;
    let report = world
        .create("User", json!({ "userName": "report", ENTERPRISE: { "manager": { "value": late } } }))
        .await;
    let team = world.group("team", std::slice::from_ref(&late)).await;
    world.settle().await;
    assert_eq!(world.lanes_in(LaneState::Waiting).await, 2);
    // What was waited for comes, but the first tries to use it fail; and something else changes, too.
    target.script(Some(Method::PATCH), "", 4, Action::status(500));
    world.set(&report, "title", json!("Boss")).await;
    world.settle_for(Duration::from_secs(3_600)).await;
    assert_eq!(target.members("team").unwrap(), ["late"]);
    let user = target.user("report").unwrap();
    assert_eq!(user["title"], json!("Boss"));
    assert_eq!(user[ENTERPRISE]["manager"]["value"], json!(remote(&world, &late).await));
    assert_eq!(world.lane("crm", &team).await.state, LaneState::Idle);
}

const DEVICE: &str = "urn:example:schemas:2.0:Device";

/// A tenant with devices, and an app that wants them.
async fn world_with_devices() -> (World, Downstream) {
    let world = World::new().await;
    let device = json!({"id": DEVICE, "attributes": [
        {"name": "serial", "required": true, "uniqueness": "server"},
        {"name": "ports", "type": "integer"},
        {"name": "price", "type": "decimal"},
        {"name": "bought", "type": "dateTime"},
        {"name": "disks", "type": "complex", "multiValued": true, "subAttributes": [
            {"name": "value"}, {"name": "size", "type": "integer"}, {"name": "primary", "type": "boolean"}]},
        {"name": "owner", "type": "complex", "subAttributes": [
            {"name": "value"}, {"name": "$ref", "type": "reference", "referenceTypes": ["User"]},
            {"name": "since", "type": "dateTime"}]},
    ]});
    let devices = json!({"name": "Device", "endpoint": "/Devices", "schema": DEVICE});
    let (tenant, actor) = (acme(), || Actor::system("test"));
    world.store.put_schema(&tenant, SchemaDefinition::read(&device).unwrap(), actor()).await.unwrap();
    let devices = ResourceTypeDefinition::read(&devices).unwrap();
    world.store.put_resource_type(&tenant, devices, actor()).await.unwrap();
    let target = Downstream::scim(TOKEN).await.unwrap();
    let driver = Driver::Scim { base_url: target.url(), members_per_request_max: 100 };
    let resource_types = ["User", "Group", "Device"].map(str::to_owned).to_vec();
    world
        .add(App {
            id: app_id("crm"),
            driver,
            resource_types,
            paused: false,
            concurrency_max: 8,
            rate_per_second_max: 0,
        })
        .await;
    (world, target)
}

fn laptop(owner: &ResourceId) -> Value {
    json!({
        "schemas": [DEVICE], "serial": "S-1", "ports": 4, "price": 1299.5, "bought": "2026-01-05T12:00:00Z",
        "disks": [{"value": "nvme0", "size": 512, "primary": true}, {"value": "sda", "size": 2048}],
        "owner": {"value": owner, "since": "2026-02-01T00:00:00Z"},
    })
}

#[tokio::test]
async fn a_type_of_the_tenants_own_goes_to_a_target_that_has_its_schema() {
    let (mut world, target) = world_with_devices().await;
    // It has the schema under another name.
    target.offer(&[("Machines", DEVICE)]);
    let ines = world.user("ines").await;
    world.settle().await;
    let device = world.create("Device", laptop(&ines)).await;
    world.settle().await;
    let id = remote(&world, &device).await;
    let there = target.resources("Machines").remove(&id).unwrap();
    let mut expected = laptop(&ines);
    expected["id"] = json!(id);
    expected["externalId"] = json!(device);
    expected["bought"] = json!("2026-01-05T12:00:00.000Z");
    // The owner as the target knows him, and since when.
    expected["owner"] = json!({"value": remote(&world, &ines).await, "since": "2026-02-01T00:00:00.000Z"});
    assert_eq!(Value::Object(there), expected);
    assert_eq!(world.attempts("crm", &device).await[0].outcome, "created");

    let operations = json!([
        {"op": "replace", "path": "ports", "value": 6},
        {"op": "remove", "path": "disks[value eq \"sda\"]"},
        {"op": "replace", "path": "owner.since", "value": "2026-03-01T00:00:00Z"},
    ]);
    world.patch("Device", &device, operations).await;
    world.settle().await;
    let there = target.resources("Machines").remove(&id).unwrap();
    assert_eq!(there["ports"], json!(6));
    assert_eq!(there["disks"], json!([{"value": "nvme0", "size": 512, "primary": true}]));
    let owner = json!({"value": remote(&world, &ines).await, "since": "2026-03-01T00:00:00.000Z"});
    assert_eq!(there["owner"], owner);
    assert_eq!(count(&target, Method::GET, "/ResourceTypes"), 1, "what it said is remembered");

    world.delete("Device", &device).await;
    world.settle().await;
    assert_eq!(target.resources("Machines").len(), 0);
    assert_eq!(world.lanes_in(LaneState::Idle).await, 2);
}

#[tokio::test]
async fn a_type_that_the_target_lacks_is_quarantined_and_holds_nobody_back() {
    for (listed, status) in [(true, 404), (false, 404), (false, 405), (false, 501)] {
        let (mut world, target) = world_with_devices().await;
        if listed {
            target.offer(&[]);
        }
        if status != 404 {
            target.script(Some(Method::POST), "/Devices", 9, Action::status(status));
        }
        let ines = world.user("ines").await;
        let device = world.create("Device", laptop(&ines)).await;
        let gone = world.create("Device", json!({"schemas": [DEVICE], "serial": "S-2"})).await;
        world.settle().await;
        assert!(target.user("ines").is_some());
        let lane = world.lane("crm", &device).await;
        assert_eq!(lane.state, LaneState::Quarantined, "at once");
        let error = lane.last_error.unwrap();
        let how = if listed {
            "its /ResourceTypes does not name the schema".to_owned()
        } else {
            format!("POST /Devices was answered with {status}")
        };
        let expected =
            format!("UnknownResourceType: the target has no resources of type Device ({DEVICE}): {how}");
        assert_eq!(error, expected);
        assert_eq!(world.target("crm").await.open_until, None, "the app goes on");
        // What is deleted meanwhile is nothing to do.
        world.delete("Device", &gone).await;
        world.settle().await;
        assert_eq!(world.lane("crm", &gone).await.state, LaneState::Idle);

        // The target gets the type: a redrive is enough.
        target.behave();
        target.offer(&[("Devices", DEVICE)]);
        world.store.redrive(&DeliveryFilter::default()).await.unwrap();
        world.settle().await;
        assert_eq!(target.resources("Devices").len(), 1);
        assert_eq!(world.lane("crm", &device).await.state, LaneState::Idle);
    }
}

/// A change whose answer was lost, and that is taken back before it is tried again: what was applied last is
/// what is wanted now, but not what the target has.
#[tokio::test]
async fn what_a_lost_answer_did_is_taken_back() {
    let (mut world, target) = world_and_target().await;
    let anna = world.user("anna").await;
    world.settle().await;
    let active = |is: bool| target.user("anna").unwrap()["active"] == json!(is);
    // The answer is lost.
    target.script(Some(Method::PATCH), "/Users", 1, Action::DropAfter);
    world.set(&anna, "active", json!(false)).await;
    world.settle().await;
    assert!(active(false));
    world.set(&anna, "active", json!(true)).await;
    world.settle_for(Duration::from_secs(600)).await;
    assert!(active(true));
    // The one who would have heard it dies.
    target.script(Some(Method::PATCH), "/Users", 1, Action::Late(Duration::from_secs(5)));
    world.set(&anna, "active", json!(false)).await;
    world.step_until("the change arrives", || active(false)).await;
    world.deliverer = annals_workers::Deliverer::new(world.store.clone(), world::options()).unwrap();
    world.set(&anna, "active", json!(true)).await;
    world.settle_for(Duration::from_secs(600)).await;
    assert!(active(true));
    assert_eq!(world.lanes_in(LaneState::Idle).await, 1);
}

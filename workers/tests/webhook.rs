//! Webhooks: every event once, in order, signed.

#[expect(dead_code, reason = "each test binary uses a part of the world")]
mod world;

use std::time::Duration;

use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use annals_domain::event::Actor;
use annals_domain::tenant::{App, Driver};
use annals_store::lanes::{DeliveryFilter, LaneState};
use annals_testkit::downstream::{Action, Downstream};
use serde_json::json;
use world::{SECRET, World, acme, app_id};

fn kinds(hook: &Downstream) -> Vec<String> {
    let kind = |event: &serde_json::Value| event["type"].as_str().unwrap_or_default().to_owned();
    hook.received().iter().map(|received| kind(&received.event)).collect()
}

#[tokio::test]
async fn every_event_comes_once_in_order_and_signed() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    let ines = world.user("ines").await;
    world.set(&ines, "title", json!("Boss")).await;
    world.set(&ines, "active", json!(false)).await;
    let group = world.group("team", std::slice::from_ref(&ines)).await;
    world.delete("User", &ines).await;
    world.settle().await;
    hook.check_events(false).unwrap();
    let of = |id: &annals_domain::ids::ResourceId| {
        let received = hook.received();
        let mine = received.iter().filter(|r| r.event["partitionkey"] == json!(id));
        mine.map(|r| r.event["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let user_kinds = ["created", "changed", "deactivated", "deleted"];
    assert_eq!(of(&ines), user_kinds.map(|kind| format!("dev.annals.user.{kind}.v1")));
    let group_kinds = ["created", "members_added", "members_removed"];
    assert_eq!(of(&group), group_kinds.map(|kind| format!("dev.annals.group.{kind}.v1")));
    let first = &hook.received()[0];
    assert_eq!(first.headers["content-type"], "application/cloudevents+json; charset=utf-8");
    assert_eq!(first.headers["user-agent"], concat!("annals/", env!("CARGO_PKG_VERSION")));
    assert_eq!(first.event["id"], json!(first.id));
    assert_eq!(world.lanes_in(LaneState::Idle).await, 2);
    // Nothing is left to send.
    hook.forget();
    world.settle_for(Duration::from_secs(100_000)).await;
    assert_eq!(hook.seen().len(), 0);
}

#[tokio::test]
async fn what_an_event_says_is_what_the_journal_says() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    let ines = world.user("ines").await;
    world.set(&ines, "title", json!("Boss")).await;
    world.settle().await;
    let event = &hook.received()[1].event;
    assert_eq!(event["subject"], json!(format!("Users/{ines}")));
    assert_eq!(event["source"], json!("/annals/acme"));
    assert_eq!(event["data"]["changes"], json!([{"path": "title", "new": "Boss"}]));
    assert_eq!(event["data"]["version"], json!(2));
    assert_eq!(event["data"]["resourceType"], json!("User"));
    assert_eq!(event["data"]["actor"], json!({"kind": "system", "name": "test"}));
}

/// A resource type that a tenant defines while the webhook is there.
#[tokio::test]
async fn events_of_a_tenants_own_resource_type_are_sent() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    world.settle().await;
    let urn = "urn:example:schemas:2.0:Device";
    let schema = json!({"id": urn, "attributes": [{"name": "label"}, {"name": "place", "x-personal": true}]});
    let schema = SchemaDefinition::read(&schema).unwrap();
    world.store.put_schema(&acme(), schema, Actor::system("test")).await.unwrap();
    let devices = json!({"name": "Device", "endpoint": "/Devices", "schema": urn});
    let devices = ResourceTypeDefinition::read(&devices).unwrap();
    world.store.put_resource_type(&acme(), devices, Actor::system("test")).await.unwrap();
    let kiosk = world.create("Device", json!({"label": "Kiosk", "place": "Hall"})).await;
    world.delete("Device", &kiosk).await;
    world.settle().await;
    // What administration does is not sent unless a webhook names it.
    assert_eq!(kinds(&hook), ["dev.annals.device.created.v1", "dev.annals.device.deleted.v1"]);
    let event = &hook.received()[0].event;
    assert_eq!(event["subject"], json!(format!("Devices/{kiosk}")));
    assert_eq!(event["data"]["resourceType"], json!("Device"));
    assert_eq!(event["data"]["document"], json!({"label": "Kiosk", "place": "Hall"}));
}

#[tokio::test]
async fn a_webhook_begins_with_what_happens_next() {
    let mut world = World::new().await;
    let ines = world.user("ines").await;
    world.settle().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    world.settle().await;
    assert_eq!(hook.seen().len(), 0);
    world.set(&ines, "title", json!("Boss")).await;
    world.settle().await;
    assert_eq!(kinds(&hook), ["dev.annals.user.changed.v1"]);

    // Everything from the beginning, on demand and under the same ids.
    let id = hook.received()[0].id.clone();
    world.store.replay_app(&acme(), &app_id("hook"), false).await.unwrap();
    world.settle().await;
    assert_eq!(hook.received().len(), 1);
    world.store.replay_app(&acme(), &app_id("hook"), true).await.unwrap();
    world.settle().await;
    assert_eq!(kinds(&hook)[1..], ["dev.annals.user.created.v1", "dev.annals.user.changed.v1"]);
    assert_eq!(hook.received()[2].id, id);
}

#[tokio::test]
async fn a_failed_event_is_tried_again_under_its_id_and_the_next_one_waits() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    hook.script(None, "", 1, Action::status(500)).script(None, "", 1, Action::DropAfter);
    let ines = world.user("ines").await;
    world.set(&ines, "title", json!("Boss")).await;
    world.settle().await;
    assert_eq!(hook.seen().len(), 1, "the second event does not overtake the first");
    let lane = world.lane("hook", &ines).await;
    assert_eq!((lane.state, lane.attempts, lane.applied_version), (LaneState::Due, 1, 0));
    world.settle_for(Duration::from_secs(60)).await;
    let ids: Vec<String> =
        hook.seen().iter().map(|seen| seen.headers["webhook-id"].to_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 4);
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3], "{ids:?}");
    let attempts = world.attempts("hook", &ines).await;
    let outcomes: Vec<&str> = attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
    assert_eq!(outcomes, ["delivered", "failed", "failed"]);
    assert_eq!(attempts[2].status, Some(500));
}

#[tokio::test]
async fn one_bad_entity_blocks_only_its_lane() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    hook.script(None, "", 1, Action::status(422));
    let bad = world.user("bad").await;
    world.settle().await;
    hook.script(None, "", 2, Action::status(422));
    world.settle_for(Duration::from_secs(60)).await;
    let lane = world.lane("hook", &bad).await;
    assert_eq!((lane.state, lane.attempts), (LaneState::Quarantined, 3));
    assert_eq!(lane.last_error.as_deref(), Some("POST version 1: 422"));
    let good = world.user("good").await;
    world.set(&bad, "title", json!("x")).await;
    world.settle_for(Duration::from_secs(100_000)).await;
    assert_eq!(world.lane("hook", &good).await.state, LaneState::Idle);
    assert_eq!(world.lane("hook", &bad).await.state, LaneState::Quarantined);
    assert_eq!(hook.received().len(), 1);

    let filter = DeliveryFilter { id: Some(bad.clone()), ..DeliveryFilter::default() };
    assert_eq!(world.store.redrive(&filter).await.unwrap(), 1);
    world.settle().await;
    assert_eq!(hook.received().len(), 3);
    hook.check_events(false).unwrap();
    assert_eq!(world.lane("hook", &bad).await.state, LaneState::Idle);
}

#[tokio::test]
async fn a_wrong_address_holds_the_target_and_no_lane_is_to_blame() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    hook.script(None, "", 1, Action::status(410));
    for n in 0..3 {
        world.user(&format!("user{n}")).await;
    }
    world.plan().await;
    // One at a time, so that the first refusal stops the others.
    let app = App { concurrency_max: 1, ..world.store.apps(&acme()).await.unwrap().remove(0) };
    let actor = annals_domain::event::Actor::system("test");
    world.store.update_app(&acme(), app, None, actor).await.unwrap();
    world.settle().await;
    assert_eq!(hook.seen().len(), 1);
    let target = world.target("hook").await;
    assert_eq!((target.failures, target.reason.as_deref()), (1, Some("POST version 1: 410")));
    let pause = target.open_until.unwrap().0 - world.store.now().0;
    assert!((30_000..=60_000).contains(&pause), "{pause} ms");
    world.clock.advance_to(target.open_until.unwrap());
    world.settle().await;
    assert_eq!(hook.received().len(), 3);
    assert_eq!(world.target("hook").await, Default::default());
}

#[tokio::test]
async fn only_named_types_are_told_and_administration_only_then() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    let app = App {
        id: app_id("hook"),
        driver: Driver::Webhook { url: hook.url() },
        resource_types: vec!["Group".into(), "App".into()],
        paused: false,
        concurrency_max: 8,
        rate_per_second_max: 0,
    };
    world.add(app).await;
    world.user("ines").await;
    world.group("team", &[]).await;
    world.settle().await;
    let mut kinds = kinds(&hook);
    kinds.sort();
    assert_eq!(kinds, ["dev.annals.app.created.v1", "dev.annals.group.created.v1"]);
    let text = serde_json::to_string(&hook.received().iter().map(|r| &r.event).collect::<Vec<_>>()).unwrap();
    assert!(!text.contains(SECRET), "{text}");
}

#[tokio::test]
async fn an_erased_person_is_a_tombstone_for_who_is_behind() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    hook.script(None, "", 1, Action::status(500));
    let ines = world.user("ines").await;
    world.settle().await;
    let actor = annals_domain::event::Actor::operator("test");
    world.store.erase(&acme(), &ines, actor).await.unwrap();
    world.settle_for(Duration::from_secs(60)).await;
    let received = hook.received();
    assert_eq!(received[0].event["type"], json!("dev.annals.user.created.v1"));
    assert_eq!(received[0].event["data"]["erased"], json!(true));
    assert_eq!(received.last().unwrap().event["type"], json!("dev.annals.user.erased.v1"));
    let all: Vec<String> = received.iter().map(|r| r.event.to_string()).collect();
    assert!(!all.concat().contains("ines"), "{all:?}");
}

#[tokio::test]
async fn a_paused_app_gets_everything_later() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    let app = world.webhook_app(&hook.url()).await;
    let actor = || annals_domain::event::Actor::system("test");
    let paused = App { paused: true, ..app.clone() };
    world.store.update_app(&acme(), paused, None, actor()).await.unwrap();
    world.user("ines").await;
    world.settle_for(Duration::from_secs(60)).await;
    assert_eq!(hook.seen().len(), 0);
    world.store.update_app(&acme(), app, None, actor()).await.unwrap();
    world.settle().await;
    assert_eq!(hook.received().len(), 1);
}

#[tokio::test]
async fn a_removed_app_gets_nothing_and_leaves_no_lane() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    world.user("ines").await;
    world.settle().await;
    hook.forget();
    let actor = annals_domain::event::Actor::system("test");
    world.store.delete_app(&acme(), &app_id("hook"), actor).await.unwrap();
    world.user("olga").await;
    world.settle().await;
    assert_eq!(hook.seen().len(), 0);
    assert_eq!(world.store.deliveries(&DeliveryFilter::default(), 10).await.unwrap(), []);
}

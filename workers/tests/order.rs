//! Order, takeover and bounds when several deliverers work at once.

#[expect(dead_code, reason = "each test binary uses a part of the world")]
mod world;

use std::time::Duration;

use annals_domain::tenant::{App, Driver};
use annals_store::lanes::LaneState;
use annals_testkit::downstream::{Action, Downstream};
use annals_workers::{Deliverer, WorkerOptions};
use reqwest::Method;
use serde_json::json;
use world::{SECRET, TOKEN, World, acme, app_id};

fn held(target: &Downstream) -> usize {
    target.seen().iter().filter(|seen| seen.status == 0).count()
}

async fn second(world: &World) -> Deliverer {
    let store = world.another_store().await;
    Deliverer::new(store, WorkerOptions { owner: "second".into(), ..world::options() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_entitys_events_stay_in_order_whoever_delivers() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    let mut users = Vec::new();
    for n in 0..12 {
        users.push(world.user(&format!("user{n}")).await);
    }
    // Some answers are slow, some fail, some are lost.
    hook.script(None, "", 8, Action::Delay(Duration::from_millis(30)))
        .script(None, "", 5, Action::status(500))
        .script(None, "", 5, Action::DropAfter);
    let mut other = second(&world).await;
    for round in 0..6 {
        for user in &users {
            world.set(user, "title", json!(format!("title {round}"))).await;
        }
        world.plan().await;
        other.step().await.unwrap();
        world.deliverer.step().await.unwrap();
    }
    for _ in 0..40 {
        other.step().await.unwrap();
        world.settle_for(Duration::from_secs(30)).await;
        if world.lanes_in(LaneState::Idle).await == users.len() {
            break;
        }
    }
    other.drain().await;
    hook.check_events(true).unwrap();
    let mut ids: Vec<String> = hook.received().into_iter().map(|received| received.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), users.len() * 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_during_a_call_is_sent_after_it_in_one() {
    let mut world = World::new().await;
    let target = Downstream::scim(TOKEN).await.unwrap();
    world.scim_app(&target.url()).await;
    let ines = world.user("ines").await;
    world.settle().await;
    target.script(Some(Method::PATCH), "/Users", 1, Action::Hold);
    world.set(&ines, "title", json!("first")).await;
    world.step_until("the call is held", || held(&target) == 1).await;
    for n in 0..9 {
        world.set(&ines, "title", json!(format!("title {n}"))).await;
    }
    world.plan().await;
    // Nobody else may work on the lane meanwhile.
    let mut other = second(&world).await;
    other.step().await.unwrap();
    assert_eq!((other.in_flight(), held(&target)), (0, 1));
    target.release();
    world.settle().await;
    let patches = target.seen().iter().filter(|seen| seen.method == Method::PATCH).count();
    assert_eq!(patches, 2);
    assert_eq!(target.user("ines").unwrap()["title"], json!("title 8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deliverer_that_lost_its_lease_does_not_have_the_last_word() {
    let mut world = World::new().await;
    let target = Downstream::scim(TOKEN).await.unwrap();
    world.scim_app(&target.url()).await;
    let ines = world.user("ines").await;
    world.settle().await;
    // The first deliverer is frozen in the middle of its call …
    target.script(Some(Method::PATCH), "/Users", 1, Action::Hold);
    world.set(&ines, "title", json!("old")).await;
    world.step_until("the call is held", || held(&target) == 1).await;
    world.clock.advance(Duration::from_secs(61));
    // … so another one takes the lane over and sends what is newer.
    world.set(&ines, "title", json!("new")).await;
    world.plan().await;
    let mut other = second(&world).await;
    while target.user("ines").unwrap().get("title") != Some(&json!("new")) {
        other.step().await.unwrap();
    }
    other.drain().await;
    assert_eq!(world.lane("crm", &ines).await.state, LaneState::Idle);
    // Now the old call comes through after all.
    target.release();
    target
        .until("it overwrites", Duration::from_secs(10), |t| t.user("ines").unwrap()["title"] == json!("old"))
        .await
        .unwrap();
    world.settle().await;
    assert_eq!(target.user("ines").unwrap()["title"], json!("new"));
    assert_eq!(world.lane("crm", &ines).await.state, LaneState::Idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_calls_are_in_flight_than_the_app_allows() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    let app = App {
        id: app_id("hook"),
        driver: Driver::Webhook { url: hook.url() },
        resource_types: Vec::new(),
        paused: false,
        concurrency_max: 3,
        rate_per_second_max: 0,
    };
    world.add(app).await;
    for n in 0..20 {
        world.user(&format!("user{n}")).await;
    }
    hook.script(None, "", 20, Action::Delay(Duration::from_millis(20)));
    world.plan().await;
    let mut other = second(&world).await;
    while hook.received().len() < 20 {
        other.step().await.unwrap();
        world.deliverer.step().await.unwrap();
    }
    assert_eq!(hook.in_flight_most(), 3);
}

#[tokio::test]
async fn the_rate_is_kept() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    let app = App {
        id: app_id("hook"),
        driver: Driver::Webhook { url: hook.url() },
        resource_types: Vec::new(),
        paused: false,
        concurrency_max: 50,
        rate_per_second_max: 5,
    };
    world.add(app).await;
    for n in 0..20 {
        world.user(&format!("user{n}")).await;
    }
    world.settle().await;
    assert_eq!(hook.received().len(), 5, "a second's worth at once");
    world.settle_for(Duration::from_secs(1)).await;
    assert_eq!(hook.received().len(), 10);
    world.settle_for(Duration::from_secs(2)).await;
    assert_eq!(hook.received().len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_app_does_not_hold_back_the_others() {
    let mut world = World::new().await;
    let (slow, quick) =
        (Downstream::webhook(SECRET).await.unwrap(), Downstream::webhook(SECRET).await.unwrap());
    world.app("slow", Driver::Webhook { url: slow.url() }).await;
    world.app("quick", Driver::Webhook { url: quick.url() }).await;
    slow.script(None, "", 99, Action::Hold);
    for n in 0..30 {
        world.user(&format!("user{n}")).await;
    }
    world.step_until("the quick one has everything", || quick.received().len() == 30).await;
    assert_eq!(slow.received().len(), 0);
    assert_eq!(held(&slow), 8);
    slow.behave();
    while slow.received().len() < 30 {
        slow.release();
        world.deliverer.step().await.unwrap();
    }
}

#[tokio::test]
async fn two_planners_plan_everything_once() {
    let mut world = World::new().await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    let store = world.another_store().await;
    let feed = annals_bus::Feed::Journal(annals_bus::JournalFeed::new(store.clone()));
    let mut other = annals_workers::Planner::new(store, feed).waiting(Duration::ZERO);
    let ines = world.user("ines").await;
    for round in 0..10 {
        world.set(&ines, "title", json!(format!("title {round}"))).await;
        let (a, b) = tokio::join!(other.step(), world.planner.step());
        a.unwrap();
        b.unwrap();
    }
    // An app made through one process is known to the planner of the other.
    let late = Downstream::webhook(SECRET).await.unwrap();
    world.app("late", Driver::Webhook { url: late.url() }).await;
    world.set(&ines, "title", json!("last")).await;
    while other.step().await.unwrap().done > 0 {}
    world.settle().await;
    hook.check_events(false).unwrap();
    assert_eq!(hook.received().len(), 12);
    assert_eq!(late.received().len(), 1);
    assert_eq!(world.store.planner_checkpoint().await.unwrap().position, {
        world.store.head().await.unwrap().position
    });
    assert!(world.store.apps(&acme()).await.unwrap().len() == 2);
}

/// Locks are taken in one order: deliverers, planners and sweeps of two processes on one PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_postgres_converge_without_deadlock() {
    let mut world = World::postgres().await;
    let target = Downstream::scim(TOKEN).await.unwrap();
    world.scim_app(&target.url()).await;
    let mut users = Vec::new();
    let mut groups = Vec::new();
    for n in 0..8 {
        groups.push(world.group(&format!("group{n}"), &[]).await);
    }
    for n in 0..24 {
        users.push(world.user(&format!("user{n}")).await);
    }
    let store = world.another_store().await;
    let feed = annals_bus::Feed::Journal(annals_bus::JournalFeed::new(store));
    let mut other_planner =
        annals_workers::Planner::new(world.another_store().await, feed).waiting(Duration::ZERO);
    let mut other = second(&world).await;
    // Everybody becomes a member of everything while accounts are still being created.
    for (n, user) in users.iter().enumerate() {
        for group in groups.iter().skip(n % 3) {
            world.add_member(group, user).await;
        }
        let (a, b) = tokio::join!(other.step(), other_planner.step());
        a.unwrap();
        b.unwrap();
        let (a, b) = tokio::join!(world.deliverer.step(), world.planner.step());
        a.unwrap();
        b.unwrap();
        if n % 8 == 0 {
            world.store.replay_app(&acme(), &app_id("crm"), n % 16 == 0).await.unwrap();
        }
    }
    for _ in 0..400 {
        other.step().await.unwrap();
        world.deliverer.step().await.unwrap();
        world.plan().await;
        if world.lanes_in(LaneState::Idle).await == 32 {
            break;
        }
    }
    other.drain().await;
    world.settle().await;
    assert_eq!(world.lanes_in(LaneState::Idle).await, 32);
    assert_eq!((target.users().len(), target.groups().len()), (24, 8));
    for (n, group) in groups.iter().enumerate() {
        let expected = world.store.members(&acme(), group, None, 100).await.unwrap().len();
        assert_eq!(target.members(&format!("group{n}")).unwrap().len(), expected);
    }
}

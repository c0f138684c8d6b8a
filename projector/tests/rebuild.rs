//! The rebuild as steps beside a working projector.

mod world;

use annals_domain::resource::Command;
use annals_projector::{Rebuild, Rebuilding};
use serde_json::{Value, json};
use world::{World, find, projector};

macro_rules! contract {
    ($($name:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::World::sqlite().await).await })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::World::postgres().await).await })*
        }
    };
}

contract! {
    a_rebuild_ends_live_and_misses_nothing
    a_second_rebuild_ends_the_first
    a_cancelled_rebuild_leaves_the_live_model_alone
    a_rebuild_that_differs_starts_over
}

async fn a_rebuild_ends_live_and_misses_nothing(w: World) {
    let mut users = Vec::new();
    for n in 0..20 {
        users.push(w.create("User", json!({ "userName": format!("user{n}") })).await);
    }
    let group = w.create("Group", json!({ "displayName": "Ops" })).await;
    let mut projector = projector(&w.store);
    let mut rebuild = Rebuild::new(w.store.clone());
    let mut members = 0;
    let generation = loop {
        // Each step meets a journal that has moved, and a projector that follows it.
        if members < users.len() {
            members += 1;
            let list: Vec<Value> = users[..members].iter().map(|id| json!({ "value": id })).collect();
            let body = json!({ "displayName": "Ops", "members": list });
            let client = annals_domain::scim::dialect::Profile::Generic.into();
            w.execute("Group", &group, Command::Replace { id: group.clone(), body, client }).await;
        }
        projector.step().await.unwrap();
        match rebuild.step().await.unwrap() {
            Rebuilding::Live(generation) => break generation,
            Rebuilding::Working(_) => {}
            Rebuilding::Different(reason) => panic!("{reason}"),
        }
    };
    assert_eq!(generation, 2);
    while find(&w.store, "User", "groups pr").await.is_err() {
        projector.step().await.unwrap();
    }
    assert_eq!(find(&w.store, "User", r#"groups.display eq "ops""#).await.unwrap(), users[..members]);
    // A rebuilt model has members that joined before, while and after it was copied.
    assert!(members >= 3, "the rebuild took {members} steps");
}

async fn a_second_rebuild_ends_the_first(w: World) {
    w.create("User", json!({ "userName": "anna" })).await;
    let mut projector = projector(&w.store);
    projector.step().await.unwrap();
    let other = w.another(3).await;
    let (mut first, mut second) = (Rebuild::new(w.store.clone()), Rebuild::new(other.clone()));
    first.step().await.unwrap();
    second.step().await.unwrap();
    assert!(first.step().await.is_err(), "fenced off");
    let mut steps = 0;
    while !matches!(second.step().await.unwrap(), Rebuilding::Live(2)) {
        steps += 1;
        assert!(steps < 50);
    }
    assert_eq!(find(&w.store, "User", "userName pr").await.unwrap().len(), 1);
    other.close().await;
}

async fn a_cancelled_rebuild_leaves_the_live_model_alone(w: World) {
    let anna = w.create("User", json!({ "userName": "anna" })).await;
    let mut projector = projector(&w.store);
    projector.step().await.unwrap();
    let mut rebuild = Rebuild::new(w.store.clone());
    for _ in 0..3 {
        rebuild.step().await.unwrap();
    }
    rebuild.cancel().await.unwrap();
    assert_eq!(find(&w.store, "User", "userName pr").await.unwrap(), [anna]);
    assert_eq!(w.store.model_health().await.unwrap().generation, 1);
    assert!(w.store.model_sweep().await.unwrap() > 0, "what it wrote is swept");
}

async fn a_rebuild_that_differs_starts_over(w: World) {
    let anna = w.create("User", json!({ "userName": "anna" })).await;
    let mut projector = projector(&w.store);
    projector.step().await.unwrap();
    let mut rebuild = Rebuild::new(w.store.clone());
    let (mut differed, mut steps) = (0, 0);
    loop {
        match rebuild.step().await.unwrap() {
            Rebuilding::Live(generation) => break assert_eq!(generation, 2),
            Rebuilding::Different(_) => differed += 1,
            // Until it was found once, somebody spoils what was copied.
            Rebuilding::Working(_) if differed == 0 => w.meddle("model", "DELETE FROM resource_b").await,
            Rebuilding::Working(_) => {}
        }
        assert_eq!(find(&w.store, "User", "userName pr").await.unwrap(), std::slice::from_ref(&anna));
        steps += 1;
        assert!(steps < 50);
    }
    assert_eq!(differed, 1);
    assert_eq!(find(&w.store, "User", "userName pr").await.unwrap(), [anna]);
}

//! The projector: pages in order, once, whoever else is at work.

mod world;

use annals_domain::clock::Clock as _;
use annals_domain::resource::Command;
use annals_store::StoreError;
use serde_json::json;
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
    steps_bring_the_read_model_to_the_head
    two_projectors_share_the_work_without_harm
    a_rewound_checkpoint_is_followed_again
    poison_does_not_stop_the_others
    rows_of_another_format_are_rebuilt_while_projection_goes_on
    rows_of_another_epoch_answer_only_after_their_rebuild
    a_checkpoint_ahead_of_the_journal_stops_writes
}

async fn steps_bring_the_read_model_to_the_head(w: World) {
    for n in 0..30 {
        w.create("User", json!({ "userName": format!("user{n}"), "title": "Boss" })).await;
    }
    assert!(matches!(find(&w.store, "User", "title pr").await, Err(StoreError::Busy { .. })));
    let mut projector = projector(&w.store);
    let progress = projector.step().await.unwrap();
    assert_eq!(progress.done as i64, w.store.head().await.unwrap().position);
    assert_eq!(find(&w.store, "User", "title pr").await.unwrap().len(), 30);
    let idle = projector.step().await.unwrap();
    assert_eq!((idle.done, idle.wake_at), (0, None), "it waits by itself");
    w.create("User", json!({ "userName": "late" })).await;
    assert_eq!(projector.step().await.unwrap().done, 1);
}

async fn two_projectors_share_the_work_without_harm(w: World) {
    let other = w.another(2).await;
    let (mut one, mut two) = (projector(&w.store), projector(&other));
    for round in 0..10 {
        let created = w.create("User", json!({ "userName": format!("user{round}"), "title": "Boss" })).await;
        let (a, b) = tokio::join!(one.step(), two.step());
        let stepped = [a.unwrap(), b.unwrap()];
        assert!(stepped.iter().any(|p| p.done > 0), "{stepped:?}");
        // Whoever came second stands by for a moment and then goes on.
        for progress in stepped.iter().filter(|p| p.wake_at.is_some()) {
            assert!(progress.wake_at > Some(w.clock.now()));
        }
        let found = find(&other, "User", "title pr").await;
        assert_eq!(found.unwrap().last(), Some(&created), "round {round}");
    }
    other.close().await;
}

async fn a_rewound_checkpoint_is_followed_again(w: World) {
    let anna = w.create("User", json!({ "userName": "anna", "title": "Boss" })).await;
    let mut projector = projector(&w.store);
    projector.step().await.unwrap();
    // As after a crash of the database: rows and checkpoint fall back together.
    w.meddle("model", "DELETE FROM attribute_a").await;
    w.meddle("model", "DELETE FROM resource_a").await;
    w.meddle("model", "UPDATE checkpoint SET position = 0").await;
    w.create("User", json!({ "userName": "bo" })).await;
    assert!(projector.step().await.unwrap().wake_at.is_some(), "its checkpoint was a hint, and a wrong one");
    while projector.step().await.unwrap().done > 0 {}
    assert_eq!(find(&w.store, "User", "title pr").await.unwrap(), [anna]);
    assert_eq!(find(&w.store, "User", "userName pr").await.unwrap().len(), 2);
}

async fn poison_does_not_stop_the_others(w: World) {
    let mut users = Vec::new();
    for n in 0..40 {
        users.push(w.create("User", json!({ "userName": format!("user{n}"), "title": "old" })).await);
    }
    let mut projector = projector(&w.store);
    projector.step().await.unwrap();
    // A row that no event can be folded into.
    w.meddle("model", &format!("UPDATE resource_a SET document = 'no JSON' WHERE id = '{}'", users[13]))
        .await;
    for (n, id) in users.iter().enumerate() {
        let body = json!({ "userName": format!("user{n}"), "title": "new" });
        let client = annals_domain::scim::dialect::Profile::Generic.into();
        w.execute("User", id, Command::Replace { id: id.clone(), body, client }).await;
    }
    while projector.step().await.unwrap().done > 0 {}
    assert_eq!(find(&w.store, "User", r#"title eq "new""#).await.unwrap(), users);
    assert_eq!(w.store.model_health().await.unwrap().parked, 0, "repaired from the state row");
}

async fn rows_of_another_format_are_rebuilt_while_projection_goes_on(w: World) {
    w.create("User", json!({ "userName": "anna", "title": "Boss" })).await;
    let mut projector = projector(&w.store);
    projector.step().await.unwrap();
    w.meddle("model", "UPDATE pointer SET index_format = 0").await;
    let mut steps = 0;
    while w.store.model_health().await.unwrap().rebuild_needed {
        w.create("User", json!({ "userName": format!("user{steps}"), "title": "Boss" })).await;
        // One step idles and notices, or projects; queries are answered all the time.
        for _ in 0..2 {
            projector.step().await.unwrap();
        }
        steps += 1;
        assert!(steps < 100, "the rebuild ends");
        while find(&w.store, "User", "title pr").await.is_err() {
            projector.step().await.unwrap();
        }
        assert_eq!(find(&w.store, "User", "title pr").await.unwrap().len(), steps + 1);
    }
    let health = w.store.model_health().await.unwrap();
    assert_eq!(health.generation, 2);
    // The old slot is swept in idle moments.
    for _ in 0..20 {
        projector.step().await.unwrap();
    }
    assert_eq!(w.store.model_sweep().await.unwrap(), 0);
}

async fn rows_of_another_epoch_answer_only_after_their_rebuild(w: World) {
    w.create("User", json!({ "userName": "anna", "title": "Boss" })).await;
    let mut projector = projector(&w.store);
    projector.step().await.unwrap();
    w.meddle("journal", "UPDATE meta SET epoch = 2").await;
    assert!(find(&w.store, "User", "title pr").await.is_err());
    for _ in 0..30 {
        projector.step().await.unwrap();
    }
    assert_eq!(find(&w.store, "User", "title pr").await.unwrap().len(), 1);
    w.create("User", json!({ "userName": "bo", "title": "Boss" })).await;
    projector.step().await.unwrap();
    assert_eq!(find(&w.store, "User", "title pr").await.unwrap().len(), 2);
}

async fn a_checkpoint_ahead_of_the_journal_stops_writes(w: World) {
    w.create("User", json!({ "userName": "anna" })).await;
    w.meddle("model", "UPDATE checkpoint SET position = 99").await;
    let mut projector = projector(&w.store);
    assert!(projector.step().await.is_err());
    let halted = w.store.head().await.unwrap().halted.unwrap();
    assert!(halted.contains("restored"), "{halted}");
}

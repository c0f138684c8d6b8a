//! The notary signs once an interval, only when there is something new, and stops when history does not fit.

use std::sync::Arc;
use std::time::Duration;

use annals_domain::event::Actor;
use annals_domain::ids::TenantId;
use annals_domain::tenant::TenantSettings;
use annals_store::backend::{Area, Backend, sql};
use annals_store::{Database, Limits, RootKey, Store, StoreOptions};
use annals_testkit::clock::{ManualClock, OsEntropy};
use annals_workers::Notary;

async fn tenant(store: &Store, name: &str) {
    let tenant = TenantId::new(name).unwrap();
    store.create_tenant(&tenant, TenantSettings::default(), Actor::system("test")).await.unwrap();
}

/// Steps until nothing is due.
async fn run(notary: &mut Notary) {
    while notary.step().await.unwrap().done > 0 {}
}

async fn signed(store: &Store) -> Vec<u64> {
    store.checkpoints(0, 100).await.unwrap().iter().map(|note| note.checkpoint.size).collect()
}

#[tokio::test]
async fn signs_once_an_interval_and_only_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let database = Database::Sqlite { dir: dir.path().to_owned() };
    let options = StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes([7; 32]),
        clock: clock.clone(),
        entropy: Arc::new(OsEntropy),
        limits: Limits::default(),
    };
    let store = Store::open(options).await.unwrap();
    store.migrate().await.unwrap();
    let mut notary = Notary::new(store.clone(), Duration::from_secs(300));

    run(&mut notary).await;
    assert!(signed(&store).await.is_empty(), "nothing to sign");
    tenant(&store, "a").await;
    clock.advance(Duration::from_millis(60_000));
    run(&mut notary).await;
    assert_eq!(signed(&store).await, [1]);
    tenant(&store, "b").await;
    clock.advance(Duration::from_millis(299_000));
    run(&mut notary).await;
    assert_eq!(signed(&store).await, [1], "not yet");
    // A second notary knows no better.
    let mut second = Notary::new(store.clone(), Duration::from_secs(300));
    clock.advance(Duration::from_millis(1_000));
    run(&mut second).await;
    run(&mut notary).await;
    assert_eq!(signed(&store).await, [1, 2]);
    clock.advance(Duration::from_millis(300_000));
    run(&mut notary).await;
    assert_eq!(signed(&store).await, [1, 2], "nothing new");

    // The journal loses what was signed: nothing more is signed.
    let backend = Backend::connect(&database).await.unwrap();
    for statement in
        ["DELETE FROM journal.event WHERE position = 2", "UPDATE journal.counter SET position = 1"]
    {
        backend.execute(Area::Journal, sql(statement)).await.unwrap();
    }
    backend.close().await;
    let mut third = Notary::new(store.clone(), Duration::from_secs(300));
    assert!(third.step().await.is_err());
    assert_eq!(third.step().await.unwrap().done, 0, "once a minute is enough");
    assert_eq!(signed(&store).await, [1, 2]);
}

//! Transactions whose callers go away.

use annals_store::Database;
use annals_store::backend::{Area, Backend, sql};
use annals_testkit::world::cut;

/// A client that hangs up while its request begins a transaction leaves nothing locked, and no connection
/// that sees what was, whenever it does.
async fn a_begin_that_is_given_up_holds_nothing(database: Database) {
    let (first, second) =
        (Backend::connect(&database).await.unwrap(), Backend::connect(&database).await.unwrap());
    first.migrate().await.unwrap();
    let count = || sql("SELECT c.position FROM model.checkpoint c WHERE c.slot = 'a'");
    let mut position = 0;
    for waits in (0..6).cycle().take(300) {
        drop(cut(first.begin_write(Area::Model), waits).await);
        drop(cut(first.begin_read(Area::Model), waits).await);
        for backend in [&second, &first] {
            let mut tx = backend.begin_write(Area::Model).await.unwrap();
            tx.execute(sql("UPDATE model.checkpoint SET position = position + 1")).await.unwrap();
            tx.commit().await.unwrap();
            position += 1;
        }
        // Of every connection that the pool may have.
        for _ in 0..2 {
            let (one, other) =
                tokio::join!(first.fetch_all(Area::Model, count()), first.fetch_all(Area::Model, count()));
            for rows in [one.unwrap(), other.unwrap()] {
                assert_eq!(rows[0].int(0).unwrap(), position, "after {waits} waits");
            }
        }
    }
    first.close().await;
    second.close().await;
}

#[tokio::test]
async fn on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    a_begin_that_is_given_up_holds_nothing(Database::Sqlite { dir: dir.path().to_owned() }).await;
}

#[tokio::test]
async fn on_postgres() {
    let url = annals_testkit::postgres::shared().await.create_database().await.unwrap();
    a_begin_that_is_given_up_holds_nothing(Database::Postgres { url, connections_max: 8 }).await;
}

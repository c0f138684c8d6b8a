//! The yardstick of `annals bench`: a writer that does nothing but put the same JSON into a table of the
//! same database, in group-commit transactions.

use tokio::sync::{mpsc, oneshot};

use crate::Store;
use crate::backend::{Area, Col, Rows, sql};
use crate::error::{Result, StoreError};

const QUEUE_MAX: usize = 4_096;
const BATCH_MAX: usize = 512;

/// What autovacuum does some time after a bulk load, so that no figure hangs on when it came. Without it,
/// PostgreSQL looks up in the table whether each row of an index is visible. Does nothing on SQLite.
pub async fn settle(store: &Store) -> Result<()> {
    if store.is_postgres() {
        for table in ["resource_a", "attribute_a", "link_a"] {
            let vacuum = sql(format!("VACUUM (ANALYZE) model.{table}"));
            store.backend().fetch_all(Area::Model, vacuum).await?;
        }
    }
    Ok(())
}

type Waiting = (String, oneshot::Sender<bool>);

/// Writes bodies as they come, many in one transaction. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BareWriter {
    queue: mpsc::Sender<Waiting>,
}

impl BareWriter {
    /// Makes the table and starts the task.
    pub async fn start(store: &Store) -> Result<BareWriter> {
        let create = if store.is_postgres() {
            "CREATE TABLE IF NOT EXISTS journal.bench (id BIGSERIAL PRIMARY KEY, body TEXT NOT NULL)"
        } else {
            "CREATE TABLE IF NOT EXISTS bench (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT"
        };
        store.backend().execute(Area::Journal, sql(create)).await?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(store.clone(), waiting));
        Ok(BareWriter { queue })
    }

    /// Waits until the body is durable.
    pub async fn write(&self, body: String) -> Result<()> {
        let busy = || StoreError::Busy { what: "the yardstick's writer has ended", retry_after_s: 1 };
        let (reply, answer) = oneshot::channel();
        self.queue.send((body, reply)).await.map_err(|_| busy())?;
        if answer.await.unwrap_or(false) { Ok(()) } else { Err(busy()) }
    }
}

async fn run(store: Store, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut rows = Rows::new(&[("body", Col::Text)]);
        for (body, _) in &mut batch {
            rows.push(vec![std::mem::take(body).into()]);
        }
        let insert = sql("INSERT INTO journal.bench (body) SELECT r.body FROM {rows}").rows(rows);
        let written = store.backend().execute(Area::Journal, insert).await.is_ok();
        for (_, reply) in batch.drain(..) {
            let _ = reply.send(written);
        }
    }
}

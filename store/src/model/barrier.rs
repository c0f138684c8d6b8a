//! Read-your-writes for every query (D3): an answer is never older than the tenant's last event at the
//! time of the question.

use std::time::Duration;

use annals_domain::ids::{Position, TenantId};
use tokio::time::Instant;

use super::{Pointer, Slot, pointer};
use crate::Store;
use crate::backend::{Area, Tx, sql};
use crate::error::{Result, StoreError};
use crate::wake::Topic;

/// When a client that met a lagging projector may come back, in seconds.
const RETRY_AFTER_S: u64 = 2;

/// A snapshot of the live read model that has all of a tenant's events.
pub(super) struct Snapshot {
    pub(super) tx: Tx,
    pub(super) slot: Slot,
    /// Which rows they are: those of another generation or journal epoch have nothing to do with them.
    pub(super) rows: (i64, i64),
    /// Up to where they are applied.
    pub(super) checkpoint: Position,
    /// The tenant's last event when the question was asked.
    pub(super) head: Head,
}

/// How far a tenant's events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The journal's epoch.
    pub(super) epoch: i64,
    /// The last event.
    pub(super) position: Position,
    /// The last of them that changed its schemas or resource types.
    pub(super) definition: Position,
}

impl Store {
    /// Opens the read model once it has reached the tenant's present head.
    pub(super) async fn model_snapshot(&self, tenant: &TenantId, timeout: Duration) -> Result<Snapshot> {
        let deadline = Instant::now() + timeout;
        let head = self.model_head(tenant).await?;
        // Subscribed before the first look, so that no wake-up falls between a look and the wait.
        let mut woken = self.wakes().subscribe(Topic::Model);
        let mut asked = false;
        loop {
            woken.mark_unchanged();
            let mut tx = self.backend().begin_read(Area::Model).await?;
            // Pointer and checkpoint come from the very snapshot that will answer: what a process
            // remembers is a hint, as a crash may rewind the read model.
            let Pointer { live, journal_epoch, checkpoint, generation, .. } = pointer(&mut tx).await?;
            if journal_epoch == head.epoch && checkpoint >= head.position {
                let rows = (generation, journal_epoch);
                return Ok(Snapshot { tx, slot: live, rows, checkpoint, head });
            }
            tx.rollback().await?;
            if Instant::now() >= deadline {
                return Err(StoreError::Busy {
                    what: "waiting for the read model",
                    retry_after_s: RETRY_AFTER_S,
                });
            }
            self.ask_for_model(!asked).await?;
            asked = true;
            let next = (Instant::now() + self.limits().poll_interval).min(deadline);
            tokio::select! {
                _ = woken.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Tells a projector that lets events gather that someone waits: those of this process, and once a
    /// query those of others.
    async fn ask_for_model(&self, others: bool) -> Result<()> {
        self.wakes().wake(Topic::Asked);
        if others && self.is_postgres() {
            let notify = sql("SELECT pg_notify($1, '')").bind(Topic::Asked.channel());
            self.backend().fetch_all(Area::Model, notify).await?;
        }
        Ok(())
    }

    /// Waits until a query waits for the read model, in this process or another.
    pub async fn wait_asked(&self) {
        let mut woken = self.wakes().subscribe(Topic::Asked);
        woken.mark_unchanged();
        // The sender lives as long as the store.
        let _ = woken.changed().await;
    }

    /// How far the tenant's events go, in one look.
    pub(super) async fn model_head(&self, tenant: &TenantId) -> Result<Head> {
        let select =
            sql("SELECT m.epoch, COALESCE(h.position, 0), COALESCE(h.definition, 0) FROM journal.meta m \
             LEFT JOIN journal.tenant_head h ON h.tenant = $1 WHERE m.id = 1");
        let row = self.backend().fetch_optional(Area::Journal, select.bind(tenant)).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("the journal's meta row", "it is missing"))?;
        Ok(Head { epoch: row.int(0)?, position: row.int(1)?, definition: row.int(2)? })
    }
}

//! What a query may rest on without looking at every row, and counts that are remembered.
//!
//! `totalResults` is exact, and to count means to look at all that is counted; a client that pages by index
//! has it counted for each page. So a count is remembered until the tenant's next event. It is kept with the
//! position up to which the rows were applied that it was taken from: if the tenant has no event beyond it,
//! every later snapshot has the same rows of the tenant.

use std::sync::atomic::{AtomicBool, Ordering};

use annals_domain::ids::{Position, TenantId};

use super::Slot;
use super::barrier::Snapshot;
use crate::backend::{Sql, Tx};
use crate::error::Result;

/// Most counts that are remembered, of all tenants.
const COUNTS_MAX: u64 = 4_096;
/// Longest statement whose count is remembered, with its arguments, in bytes.
const STATEMENT_BYTES_MAX: usize = 4 * 1024;

/// What was known before the snapshot was opened and may have changed until then. Who used it looks again
/// afterwards, and asks without it if it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    /// The schemas say of which types the rows of an attribute are.
    pub(super) schemas: bool,
    /// The tenant's last event says whether a count still holds.
    pub(super) counts: bool,
}

/// What was relied upon.
#[derive(Debug, Default)]
pub(super) struct Used {
    schemas: AtomicBool,
    counts: AtomicBool,
}

impl Used {
    pub(super) fn schemas(&self) {
        self.schemas.store(true, Ordering::Relaxed);
    }

    /// What was relied upon until now.
    pub(super) fn all(&self) -> Trust {
        let (schemas, counts) = (&self.schemas, &self.counts);
        Trust { schemas: schemas.load(Ordering::Relaxed), counts: counts.load(Ordering::Relaxed) }
    }
}

/// Counts by statement.
pub(super) type Cache = moka::sync::Cache<String, Kept>;

pub(super) fn cache() -> Cache {
    Cache::new(COUNTS_MAX)
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    count: i64,
    rows: (i64, i64),
    checkpoint: Position,
}

/// The counts as one query may use them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts<'a> {
    cache: &'a Cache,
    tenant: &'a TenantId,
    slot: Slot,
    rows: (i64, i64),
    checkpoint: Position,
    head: Position,
    used: &'a Used,
}

impl<'a> Counts<'a> {
    pub(super) fn new(cache: &'a Cache, tenant: &'a TenantId, snapshot: &Snapshot, used: &'a Used) -> Self {
        let Snapshot { slot, rows, checkpoint, head, .. } = snapshot;
        let head = head.position;
        Counts { cache, tenant, slot: *slot, rows: *rows, checkpoint: *checkpoint, head, used }
    }

    /// What the statement counted, if the tenant has had no event since.
    pub(super) fn get(&self, sql: &Sql) -> Option<i64> {
        let kept = self.cache.get(&sql.spelled(STATEMENT_BYTES_MAX)?)?;
        if kept.rows != self.rows || kept.checkpoint < self.head {
            return None;
        }
        if kept.checkpoint != self.checkpoint {
            self.used.counts.store(true, Ordering::Relaxed);
        }
        Some(kept.count)
    }

    /// Remembers what the statement counted in the transaction.
    pub(super) async fn put(&self, tx: &mut Tx, sql: &Sql, count: i64) -> Result<()> {
        let Some(key) = sql.spelled(STATEMENT_BYTES_MAX) else { return Ok(()) };
        // The rows of a parked entity change without an event when it is redriven.
        let parked = self.slot.sql("SELECT 1 FROM model.parked_@ p WHERE p.tenant = $1 LIMIT 1");
        if tx.fetch_optional(parked.bind(self.tenant)).await?.is_none() {
            self.cache.insert(key, Kept { count, rows: self.rows, checkpoint: self.checkpoint });
        }
        Ok(())
    }
}

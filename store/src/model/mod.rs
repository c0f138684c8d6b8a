//! The read model (D11): rows that answer any filter, behind the barrier of D3.
//!
//! Two equal sets of tables, the slots, stand side by side; `model.pointer` says which one is live. A
//! slot is self-contained: resources with their documents, one attribute row per simple value of the attributes that are asked for, member
//! links, parked entities, and the position up to which all of it is applied. It can be rebuilt from
//! the journal at any time.

mod apply;
mod barrier;
mod counts;
mod cursor;
mod filter_sql;
mod index;
mod page;
mod rebuild;
mod search;

use std::collections::HashMap;

use annals_domain::ids::{Position, ResourceId, TenantId};

pub use apply::{ModelApplied, PAGE_EVENTS_MAX, Redriven};
pub use rebuild::{CaughtUp, Copied, RebuildRun, Switched};
pub use search::{Found, SEARCH_COUNT_MAX, Search, SearchPage};

use crate::Store;
use crate::backend::{Area, Col, Rows, Sql, Tx, sql};
use crate::error::{Result, StoreError};

/// Raised whenever [`annals_domain::view::index_rows`] gives other rows for the same document: rows of
/// an older format are rebuilt.
const INDEX_FORMAT: i64 = 1;

/// The one attribute whose elements are links.
const MEMBERS: &str = "members";

/// One of the two sets of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    A,
    B,
}

impl Slot {
    fn letter(self) -> &'static str {
        match self {
            Slot::A => "a",
            Slot::B => "b",
        }
    }

    fn of_letter(letter: &str) -> Result<Slot> {
        match letter {
            "a" => Ok(Slot::A),
            "b" => Ok(Slot::B),
            _ => Err(StoreError::corrupt("the pointer of the read model", "it names no slot")),
        }
    }

    fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    /// A statement about this slot: `_@` after a table's name becomes its letter.
    fn sql(self, text: &str) -> Sql {
        sql(text.replace("_@", ["_", self.letter()].concat().as_str()))
    }
}

/// What the queries of a process share, and what it remembers of the read model.
#[derive(Debug)]
pub(crate) struct ModelCache {
    /// Held by whoever builds an index.
    building: tokio::sync::Mutex<()>,
    counts: counts::Cache,
}

impl Default for ModelCache {
    fn default() -> Self {
        ModelCache { building: tokio::sync::Mutex::default(), counts: counts::cache() }
    }
}

/// How the read model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelHealth {
    /// Up to which position the live rows are applied.
    pub checkpoint: Position,
    /// How often a rebuilt set of tables went live, from 1.
    pub generation: i64,
    /// Entities whose rows are old, as an event of theirs could not be applied: `degraded` (D11).
    pub parked: i64,
    /// The rows belong to another journal epoch or were indexed by another build.
    pub rebuild_needed: bool,
    /// The rows belong to this journal epoch; otherwise every query waits for the rebuild.
    pub answers: bool,
}

/// The pointer row.
#[derive(Clone, Copy, Debug)]
struct Pointer {
    live: Slot,
    generation: i64,
    journal_epoch: i64,
    index_format: i64,
    /// Of the live slot.
    checkpoint: Position,
}

const POINTER: &str = "SELECT p.live, p.generation, p.journal_epoch, p.index_format, c.position \
     FROM model.pointer p CROSS JOIN model.checkpoint c WHERE p.id = 1 AND c.slot = p.live";

/// The pointer and the live checkpoint, as the transaction sees them.
async fn pointer(tx: &mut Tx) -> Result<Pointer> {
    let row = tx.fetch_optional(sql(POINTER)).await?;
    let row = row.ok_or_else(|| StoreError::corrupt("the pointer of the read model", "it is missing"))?;
    Ok(Pointer {
        live: Slot::of_letter(&row.text(0)?)?,
        generation: row.int(1)?,
        journal_epoch: row.int(2)?,
        index_format: row.int(3)?,
        checkpoint: row.int(4)?,
    })
}

/// The numbers of attribute keys that have rows.
#[derive(Debug, Default)]
struct Paths(HashMap<String, i64>);

impl Paths {
    fn number(&self, key: &str) -> Option<i64> {
        self.0.get(key).copied()
    }
}

impl Store {
    /// The position up to which the live read model is applied; 0 at first. It may fall when a crash
    /// undoes lazily committed pages, or when a rebuilt model goes live.
    pub async fn model_checkpoint(&self) -> Result<Position> {
        let mut tx = self.backend().begin_read(Area::Model).await?;
        let pointer = pointer(&mut tx).await?;
        tx.rollback().await?;
        Ok(pointer.checkpoint)
    }

    /// How the read model is.
    pub async fn model_health(&self) -> Result<ModelHealth> {
        let epoch = self.head().await?.epoch;
        let mut tx = self.backend().begin_read(Area::Model).await?;
        let pointer = pointer(&mut tx).await?;
        let count = pointer.live.sql("SELECT COUNT(*) FROM model.parked_@");
        let parked = tx.fetch_optional(count).await?.map_or(Ok(0), |row| row.int(0))?;
        tx.rollback().await?;
        Ok(ModelHealth {
            checkpoint: pointer.checkpoint,
            generation: pointer.generation,
            parked,
            answers: pointer.journal_epoch == epoch,
            rebuild_needed: pointer.journal_epoch != epoch || pointer.index_format != INDEX_FORMAT,
        })
    }

    /// The `displayName` of users and groups, where they have one. It may lag behind the journal.
    pub async fn displays(
        &self,
        tenant: &TenantId,
        ids: &[ResourceId],
    ) -> Result<HashMap<ResourceId, String>> {
        let mut rows = Rows::new(&[("id", Col::Text)]);
        for id in ids.iter().filter(|id| !id.as_str().contains('\0')) {
            rows.push(vec![id.into()]);
        }
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let mut tx = self.backend().begin_read(Area::Model).await?;
        let live = pointer(&mut tx).await?.live;
        let select = live.sql(
            "SELECT m.id, m.display FROM {rows} CROSS JOIN model.resource_@ m \
             WHERE m.tenant = $1 AND m.id = r.id AND m.display IS NOT NULL",
        );
        let found = tx.fetch_all(select.bind(tenant).rows(rows)).await?;
        tx.rollback().await?;
        found.iter().map(|row| Ok((ResourceId::from_text(&row.text(0)?), row.text(1)?))).collect()
    }

    /// Gathers the planner's statistics of a slot, best effort. Without any, PostgreSQL takes a tenant for
    /// a handful of rows and scans it once per match; autovacuum's first look comes a minute too late for
    /// a bulk load. SQLite's plans need none.
    async fn analyze(&self, slot: Slot) {
        if !self.is_postgres() {
            return;
        }
        for table in ["resource", "attribute", "link"] {
            let analyze = slot.sql(&format!("ANALYZE model.{table}_@"));
            if let Err(error) = self.backend().execute(Area::Model, analyze).await {
                tracing::warn!(table, %error, "gathering statistics failed; queries may be slow for a while");
            }
        }
    }
}

//! Which attributes have index rows: those that a tenant's queries have asked for (decision 0008).
//!
//! Most attributes are never filtered or sorted by, and an index row for each of their values would be
//! most of what a change costs. So an attribute's rows begin with the first query that needs them:
//! whoever asks writes them, from the documents that the read model has, page by page in the order of
//! ids. From the moment an attribute is listed, the projector keeps its rows for what changes; the
//! pages fill in the rest. Pages and projector take the same lock, so neither misses what the other did.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::ids::{ResourceId, TenantId};
use tokio::time::Instant;

use super::apply::{Change, Entity, Place, lock, park_rows, poisonous, rows_of};
use super::barrier::Snapshot;
use super::{Paths, Slot};
use crate::Store;
use crate::backend::{Area, Col, Rows, Tx, sql};
use crate::error::{Result, StoreError};

/// Documents one step reads.
const DOCUMENTS_PER_STEP_MAX: i64 = 1_000;
/// How long a query builds an index before its client has to come back. It goes on where it was.
const BUILD_TIMEOUT: Duration = Duration::from_secs(10);
/// When that client may come back, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// The numbers of the attributes that have rows, by tenant.
#[derive(Debug, Default)]
pub(super) struct Indexed(HashMap<TenantId, Paths>);

impl Indexed {
    /// Those of some tenants in a slot, complete or not.
    pub(super) async fn load<'a>(
        tx: &mut Tx,
        slot: Slot,
        tenants: impl Iterator<Item = &'a TenantId>,
    ) -> Result<Indexed> {
        let tenants: BTreeSet<&TenantId> = tenants.collect();
        let mut found: HashMap<TenantId, Paths> =
            tenants.iter().map(|tenant| ((*tenant).clone(), Paths::default())).collect();
        if tenants.is_empty() {
            return Ok(Indexed(found));
        }
        let mut rows = Rows::new(&[("tenant", Col::Text)]);
        for tenant in tenants {
            rows.push(vec![tenant.into()]);
        }
        let select = slot.sql(
            "SELECT i.tenant, p.name, p.number FROM {rows} CROSS JOIN model.indexed_@ i \
             CROSS JOIN model.path p WHERE i.tenant = r.tenant AND p.number = i.path",
        );
        for row in tx.fetch_all(select.rows(rows)).await? {
            let tenant = crate::journal::append::tenant_id(&row.text(0)?)?;
            found.entry(tenant).or_default().0.insert(row.text(1)?, row.int(2)?);
        }
        Ok(Indexed(found))
    }

    /// Those of one tenant; none unless it was asked for.
    pub(super) fn of(&self, tenant: &TenantId) -> Option<&Paths> {
        self.0.get(tenant).filter(|paths| !paths.0.is_empty())
    }

    /// The same for one tenant.
    fn one(tenant: &TenantId, paths: Paths) -> Indexed {
        Indexed(HashMap::from([(tenant.clone(), paths)]))
    }
}

impl Store {
    /// A snapshot that has all of a tenant's events and complete rows for these attributes, with their
    /// numbers. Rows that are missing are written first.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if either takes too long; what was written of an index stays.
    pub(super) async fn indexed_snapshot(
        &self,
        tenant: &TenantId,
        keys: &BTreeSet<String>,
        timeout: Duration,
    ) -> Result<(Snapshot, Paths)> {
        let deadline = Instant::now() + BUILD_TIMEOUT.max(timeout);
        loop {
            let mut snapshot = self.model_snapshot(tenant, timeout).await?;
            if keys.is_empty() {
                return Ok((snapshot, Paths::default()));
            }
            // In the snapshot that will answer: a crash or a rebuild may take an index away again.
            let select = snapshot.slot.sql(
                "SELECT p.name, p.number FROM model.indexed_@ i CROSS JOIN model.path p \
                 WHERE i.tenant = $1 AND i.after IS NULL AND p.number = i.path",
            );
            let mut paths = Paths::default();
            for row in snapshot.tx.fetch_all(select.bind(tenant)).await? {
                let name = row.text(0)?;
                if keys.contains(&name) {
                    paths.0.insert(name, row.int(1)?);
                }
            }
            if paths.0.len() == keys.len() {
                return Ok((snapshot, paths));
            }
            snapshot.tx.rollback().await?;
            let missing = keys.iter().filter(|key| paths.number(key).is_none()).cloned().collect();
            self.build_index(tenant, &missing, deadline).await?;
        }
    }

    /// Writes the index rows of these attributes, unless the tenant has them.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if it takes too long; what was written stays, and the next call goes on.
    pub async fn model_index(&self, tenant: &TenantId, keys: &BTreeSet<String>) -> Result<()> {
        self.build_index(tenant, keys, Instant::now() + BUILD_TIMEOUT).await
    }

    async fn build_index(&self, tenant: &TenantId, keys: &BTreeSet<String>, deadline: Instant) -> Result<()> {
        let busy = StoreError::Busy {
            what: "building the index of an attribute that was not asked for before",
            retry_after_s: RETRY_AFTER_S,
        };
        // One builds, the others of this process wait: what it writes serves them, too.
        let Ok(_building) = tokio::time::timeout_at(deadline, self.inner.model.building.lock()).await else {
            return Err(busy);
        };
        self.list_index(tenant, keys).await?;
        let mut documents = DOCUMENTS_PER_STEP_MAX;
        loop {
            match self.index_step(tenant, documents, false).await {
                Ok(false) => return Ok(()),
                Ok(true) => documents = (documents * 2).min(DOCUMENTS_PER_STEP_MAX),
                // One document may be what the database refuses: it must not keep the others out.
                Err(error) if poisonous(&error) && documents > 1 => documents /= 2,
                Err(error) if poisonous(&error) => {
                    tracing::error!(%error, "a document cannot be indexed; its entity is parked");
                    self.index_step(tenant, 1, true).await?;
                }
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(busy);
            }
        }
    }

    /// Lists attributes as indexed, with no rows so far.
    async fn list_index(&self, tenant: &TenantId, keys: &BTreeSet<String>) -> Result<()> {
        let mut rows = Rows::new(&[("name", Col::Text), ("n", Col::Int)]);
        for (n, key) in (1i64..).zip(keys) {
            rows.push(vec![key.into(), n.into()]);
        }
        let mut tx = self.backend().begin_write(Area::Model).await?;
        // The lock makes the numbers ours alone.
        let (slot, _) = lock(&mut tx, Place::Live).await?;
        let number = sql("INSERT INTO model.path (number, name) \
             SELECT (SELECT COALESCE(MAX(p.number), 0) FROM model.path p) + r.n, r.name FROM {rows} \
             WHERE NOT EXISTS (SELECT 1 FROM model.path k WHERE k.name = r.name)");
        tx.execute(number.rows(rows.clone())).await?;
        let list = slot.sql(
            "INSERT INTO model.indexed_@ (tenant, path, after) SELECT $1, p.number, '' FROM {rows} \
             CROSS JOIN model.path p WHERE p.name = r.name ON CONFLICT (tenant, path) DO NOTHING",
        );
        tx.execute(list.bind(tenant).rows(rows)).await?;
        tx.commit().await
    }

    /// Writes the rows of the next documents for the attributes of a tenant that are furthest behind, or
    /// parks their entities; says whether there is more to do.
    async fn index_step(&self, tenant: &TenantId, documents_max: i64, park: bool) -> Result<bool> {
        let registries = self.registries_of(std::iter::once(tenant)).await?;
        let mut tx = self.backend().begin_write(Area::Model).await?;
        tx.commit_lazily().await?;
        let (slot, _) = lock(&mut tx, Place::Live).await?;
        let select = slot.sql(
            "SELECT p.name, p.number, i.after FROM model.indexed_@ i CROSS JOIN model.path p \
             WHERE i.tenant = $1 AND p.number = i.path AND i.after = \
             (SELECT MIN(o.after) FROM model.indexed_@ o WHERE o.tenant = $1)",
        );
        let behind = tx.fetch_all(select.bind(tenant)).await?;
        let Some(first) = behind.first() else {
            tx.rollback().await?;
            return Ok(false);
        };
        let after = first.text(2)?;
        let mut paths = Paths::default();
        for row in &behind {
            paths.0.insert(row.text(0)?, row.int(1)?);
        }
        let numbers: Vec<i64> = paths.0.values().copied().collect();
        let select = slot.sql(
            "SELECT m.id, m.resource_type, m.document, m.position FROM model.resource_@ m \
             WHERE m.tenant = $1 AND m.id > $2 AND m.deleted = 0 ORDER BY m.id LIMIT $3",
        );
        let rows = tx.fetch_all(select.bind(tenant).bind(&after).bind(documents_max)).await?;
        let mut change = Change::default();
        let indexed = Indexed::one(tenant, paths);
        for row in &rows {
            let id = ResourceId::from_text(&row.text(0)?);
            if park {
                let parked = [((tenant.clone(), id), row.int(3)?)];
                park_rows(&mut tx, slot, &parked, "its values cannot be indexed", false).await?;
                continue;
            }
            let Ok(document) = serde_json::from_str(&row.text(2)?) else {
                // The projector repairs or parks it when it comes by; others must not wait for that.
                tracing::error!(%id, "a document of the read model cannot be read; it has no index rows");
                continue;
            };
            let entity = Entity {
                resource_type: row.text(1)?,
                version: 0,
                position: 0,
                origin: 0,
                created: Timestamp(0),
                modified: Timestamp(0),
                document: Some(document),
            };
            let found = rows_of(&registries, &indexed, tenant, &entity)?;
            change.rows.push(((tenant.clone(), id), Vec::new(), found));
        }
        change.write(&mut tx, slot, &indexed).await?;
        let last = match rows.last() {
            Some(row) if rows.len() as i64 == documents_max => Some(row.text(0)?),
            _ => None,
        };
        let mut moved = Rows::new(&[("path", Col::Int)]);
        for number in numbers {
            moved.push(vec![number.into()]);
        }
        let update = slot.sql(
            "UPDATE model.indexed_@ SET after = $1 WHERE tenant = $2 AND path IN (SELECT r.path FROM {rows})",
        );
        tx.execute(update.bind(last.clone()).bind(tenant).rows(moved)).await?;
        tx.commit().await?;
        if last.is_none() && !after.is_empty() {
            self.analyze(slot).await;
        }
        metrics::counter!("annals_model_indexed_documents_total").increment(rows.len() as u64);
        Ok(true)
    }
}

/// How far the indexes are that a rebuilt slot takes over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inherited {
    /// All of it is about to be copied, with its rows.
    Complete,
    /// Asked for while it was copied: to be written by the next that asks.
    Late,
}

/// Lists in a rebuilt slot what the live one indexes and it does not yet.
pub(super) async fn inherit_indexes(tx: &mut Tx, slot: Slot, how: Inherited) -> Result<()> {
    let from = slot.other().letter();
    let insert = slot.sql(&format!(
        "INSERT INTO model.indexed_@ (tenant, path, after) SELECT i.tenant, i.path, $1 \
         FROM model.indexed_{from} i WHERE true ON CONFLICT (tenant, path) DO NOTHING"
    ));
    let after = match how {
        Inherited::Complete => None,
        Inherited::Late => Some(""),
    };
    tx.execute(insert.bind(after)).await.map(drop)
}

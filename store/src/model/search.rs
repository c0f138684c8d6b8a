//! Queries: a filter, answered behind the barrier, in pages by index.

use std::sync::Arc;
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::ids::{ResourceId, TenantId, Version};
use annals_domain::scim::filter::Bound;
use annals_domain::scim::resource::Document;
use annals_domain::scim::schema::ResourceType;

use super::barrier::Snapshot;
use super::filter_sql::{Translator, keys};
use crate::Store;
use crate::backend::Row;
use crate::error::{Result, StoreError};

/// Most resources one page holds, whatever was asked for.
pub const SEARCH_COUNT_MAX: usize = 1_000;

/// A query.
#[derive(Clone, Debug)]
pub struct Search {
    /// Whose resources.
    pub tenant: TenantId,
    /// Of which types; none = no result.
    pub resource_types: Vec<Arc<ResourceType>>,
    /// Which of them; none = all.
    pub filter: Option<Bound>,
    /// Number of the first one wanted, from 1.
    pub start_index: usize,
    /// Most resources wanted; 0 = only the total.
    pub count: usize,
    /// How long to wait for the read model.
    pub timeout: Duration,
}

/// A page of a query's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchPage {
    /// How many resources match, on all pages.
    pub total: i64,
    /// Those of this page, in the order of their ids, which is that of their creation.
    pub found: Vec<Found>,
}

/// A resource as the read model has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its id.
    pub id: ResourceId,
    /// Its type.
    pub resource_type: String,
    /// How many changes it has had.
    pub version: Version,
    /// When it was created.
    pub created: Timestamp,
    /// When it last changed.
    pub modified: Timestamp,
    /// Its content.
    pub document: Document,
}

impl Store {
    /// Answers a query with everything the tenant has committed until now. Parked entities answer with
    /// their last good rows.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the read model does not catch up within the query's timeout;
    /// [`StoreError::Refused`] for what only makes sense with our base URL (`members.$ref co …`).
    pub async fn search(&self, search: &Search) -> Result<SearchPage> {
        let snapshot = self.model_snapshot(&search.tenant, search.timeout).await?;
        self.search_in(snapshot, search).await
    }

    async fn search_in(&self, snapshot: Snapshot, search: &Search) -> Result<SearchPage> {
        let Snapshot { mut tx, slot } = snapshot;
        let types = &search.resource_types;
        let filter = search.filter.as_ref().unwrap_or(&Bound::True);
        let paths = self.paths(&mut tx, &keys(filter, types)).await?;
        let mut translator = Translator::new(&search.tenant, &paths, self.registry(), types);
        let condition = translator.condition(filter)?;
        let wanted: Vec<String> = types.iter().map(|rt| translator.arg(&rt.name)).collect();
        let of_type = match wanted.as_slice() {
            [] => return Ok(SearchPage { total: 0, found: Vec::new() }),
            [one] => format!("r.resource_type = {one}"),
            many => format!("r.resource_type IN ({})", many.join(", ")),
        };
        let matching = format!(
            "FROM model.resource_@ r WHERE r.tenant = $1 AND r.deleted = 0 AND {of_type} AND {condition}"
        );
        let count = translator.sql(slot, &format!("SELECT COUNT(*) {matching}"));

        let offset = search.start_index.saturating_sub(1);
        let limit = search.count.min(SEARCH_COUNT_MAX);
        let mut found = Vec::new();
        if limit > 0 {
            let (limit, offset) = (translator.arg(limit), translator.arg(offset));
            let page = format!(
                "SELECT r.id, r.resource_type, r.version, r.created, r.modified, r.document {matching} \
                 ORDER BY r.id LIMIT {limit} OFFSET {offset}"
            );
            let rows = tx.fetch_all(translator.sql(slot, &page)).await?;
            found = rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        }
        // A page that is not full, and not past the end, ends the list: no need to count.
        let is_last = found.len() < limit && (offset == 0 || !found.is_empty());
        let total = if is_last {
            i64::try_from(offset.saturating_add(found.len())).unwrap_or(i64::MAX)
        } else {
            tx.fetch_optional(count).await?.map_or(Ok(0), |row| row.int(0))?
        };
        tx.rollback().await?;
        Ok(SearchPage { total, found })
    }
}

fn read(row: &Row) -> Result<Found> {
    let id = row.text(0)?;
    let document = serde_json::from_str(&row.text(5)?)
        .map_err(|_| StoreError::corrupt(format!("the read model's row of {id}"), "it is no document"))?;
    Ok(Found {
        id: ResourceId::from_text(&id),
        resource_type: row.text(1)?,
        version: row.int(2)?,
        created: Timestamp(row.int(3)?),
        modified: Timestamp(row.int(4)?),
        document,
    })
}

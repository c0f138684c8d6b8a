//! Queries: a filter and an order, answered behind the barrier, page by page.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::ids::{ResourceId, TenantId, Version};
use annals_domain::scim::filter::Bound;
use annals_domain::scim::resource::Document;
use annals_domain::scim::schema::{Registry, ResourceType};
use annals_domain::scim::sort::{Place, Sort, SortKey};

use super::Paths;
use super::barrier::Snapshot;
use super::counts::{Counts, Trust, Used};
use super::filter_sql::{Translator, keys};
use super::page::{At, Cut, FEW_MAX, Pager, Placed};
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
    /// In which order; none = that of creation. A sort has a key for each of the resource types.
    pub sort: Option<Sort>,
    /// Number of the first one wanted, from 1.
    pub start_index: usize,
    /// Only what comes after this place of the list, whatever `start_index` says.
    pub after: Option<Place>,
    /// How many resources matched when the list was begun, so that they need not be counted again.
    pub total: Option<i64>,
    /// Most resources wanted; 0 = only the total.
    pub count: usize,
    /// How long to wait for the read model.
    pub timeout: Duration,
}

/// A page of a query's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchPage {
    /// How many resources match, on all pages; that of the query if it knows.
    pub total: i64,
    /// Those of this page, in order.
    pub found: Vec<Found>,
    /// The place of the last one, if others come after it.
    pub next: Option<Place>,
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
        let mut trust = Trust { schemas: true, counts: true };
        loop {
            // First: while the snapshot is held, nothing else is asked for.
            let known = self.registry_now(&search.tenant).await?;
            let (snapshot, paths) =
                self.indexed_snapshot(&search.tenant, &keys_of(search), search.timeout).await?;
            let (head, used) = (snapshot.head, Used::default());
            let page = self.search_in(snapshot, &paths, &known.registry, search, trust, &used).await?;
            let used = used.all();
            if used == Trust::default() {
                return Ok(page);
            }
            let now = self.model_head(&search.tenant).await?;
            let restored = now.epoch != head.epoch;
            let fails = Trust {
                schemas: used.schemas && (restored || now.definition != known.definition),
                counts: used.counts && (restored || now.position != head.position),
            };
            if fails == Trust::default() {
                return Ok(page);
            }
            // What was used is trusted no more, so this ends.
            trust = Trust { schemas: trust.schemas && !fails.schemas, counts: trust.counts && !fails.counts };
        }
    }

    /// How the database would answer a query: its plans, a line each. For tests and for whoever wonders
    /// about a slow one.
    pub async fn explain_search(&self, search: &Search) -> Result<Vec<String>> {
        let registry = self.registry_of(&search.tenant).await?;
        let (snapshot, paths) =
            self.indexed_snapshot(&search.tenant, &keys_of(search), search.timeout).await?;
        let (slot, used) = (snapshot.slot, Used::default());
        let counts = Counts::new(&self.inner.model.counts, &search.tenant, &snapshot, &used);
        let mut tx = snapshot.tx;
        let filter = search.filter.as_ref().unwrap_or(&Bound::True);
        let filter =
            Translator::new(&search.tenant, &paths, &registry, &search.resource_types).simplify(filter);
        let (registry, paths, filter, used) = (&*registry, &paths, &filter, &used);
        let trust = Trust { schemas: true, counts: false };
        let pager = Pager { search, registry, paths, slot, filter, trust, used, counts };
        let limit = search.count.clamp(1, SEARCH_COUNT_MAX) + 1;
        let cut = Cut { after: search.after.as_ref(), skip: search.start_index.saturating_sub(1), limit };
        let mut lines = Vec::new();
        for statement in pager.statements(cut)? {
            let column = if self.is_postgres() { 0 } else { 3 };
            let explain = if self.is_postgres() { "EXPLAIN " } else { "EXPLAIN QUERY PLAN " };
            for row in tx.fetch_all(statement.prefixed(explain)).await? {
                lines.push(row.text(column)?);
            }
            lines.push(String::new());
        }
        tx.rollback().await?;
        Ok(lines)
    }

    async fn search_in(
        &self,
        snapshot: Snapshot,
        paths: &Paths,
        registry: &Registry,
        search: &Search,
        trust: Trust,
        used: &Used,
    ) -> Result<SearchPage> {
        let counts = Counts::new(&self.inner.model.counts, &search.tenant, &snapshot, used);
        let Snapshot { mut tx, slot, .. } = snapshot;
        let types = &search.resource_types;
        let filter = search.filter.as_ref().unwrap_or(&Bound::True);
        let filter = &Translator::new(&search.tenant, paths, registry, types).simplify(filter);
        if types.is_empty() || *filter == Bound::False {
            return Ok(SearchPage { total: 0, found: Vec::new(), next: None });
        }
        let pager = Pager { search, registry, paths, slot, filter, trust, used, counts };

        let limit = search.count.min(SEARCH_COUNT_MAX);
        let skip = if search.after.is_some() { 0 } else { search.start_index.saturating_sub(1) };
        let mut total = search.total;
        if total.is_none() && (limit == 0 || pager.is_count_first()) {
            total = Some(pager.count(&mut tx).await?);
        }
        let few = match total {
            Some(total) if limit == 0 || total > FEW_MAX as i64 => None,
            _ => pager.few(&mut tx).await?,
        };
        let page = match few {
            Some(all) => {
                total.get_or_insert(all.len() as i64);
                let descending = search.sort.as_ref().is_some_and(|sort| sort.descending);
                let beyond = |placed: &Placed| match &search.after {
                    Some(after) => placed.place.compare(after, descending).is_gt(),
                    None => true,
                };
                all.into_iter().filter(beyond).skip(skip).take(limit + 1).collect()
            }
            None if limit == 0 => Vec::new(),
            None => {
                let cut = Cut { after: search.after.as_ref(), skip, limit: limit + 1 };
                pager.walk(&mut tx, cut).await?
            }
        };
        let mut page: Vec<Placed> = page;
        // A page that is not full, and not past the end, ends the list: no need to count.
        let ends = search.after.is_none() && page.len() <= limit && (skip == 0 || !page.is_empty());
        let total = match total {
            Some(total) => total,
            None if ends => i64::try_from(skip.saturating_add(page.len())).unwrap_or(i64::MAX),
            None => pager.count(&mut tx).await?,
        };
        let next = if limit > 0 && page.len() > limit {
            page.truncate(limit);
            page.last().map(|placed| placed.place.clone())
        } else {
            page.truncate(limit);
            None
        };
        let found = match pager.rows_sql(&page) {
            None => Vec::new(),
            Some((by_origin, select)) => {
                let mut rows = HashMap::new();
                for row in tx.fetch_all(select).await? {
                    let found = read(&row)?;
                    let at = if by_origin {
                        At::Origin { resource_type: found.resource_type.clone(), origin: row.int(6)? }
                    } else {
                        At::Id(found.id.clone())
                    };
                    rows.insert(at, found);
                }
                page.iter().filter_map(|placed| rows.remove(&placed.at)).collect()
            }
        };
        tx.rollback().await?;
        Ok(SearchPage { total, found, next })
    }
}

/// The keys whose numbers filter and order need.
fn keys_of(search: &Search) -> BTreeSet<String> {
    let mut found = keys(search.filter.as_ref().unwrap_or(&Bound::True), &search.resource_types);
    for key in search.sort.iter().flat_map(|sort| sort.keys.iter().flatten()) {
        if let SortKey::Value { key, .. } = key {
            found.insert(key.clone());
        }
    }
    found
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

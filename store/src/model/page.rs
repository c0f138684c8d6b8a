//! Pages in order (RFC 7644 §3.4.2.3, §3.4.2.4; RFC 9865).
//!
//! What a filter leaves is either *few*, and then put in order here, or the list is *walked*: an index
//! gives resources in the wanted order, the filter is asked of each, and the walk ends when the page is
//! full. A walk can begin after a place, so a page in the middle costs what the first one costs; only
//! `OFFSET` has to count what it skips.
//!
//! A list sorted by an attribute has two stretches: what has a value, in the order of the index on
//! values, and what has none, in the order of ids. Descending is the exact reverse.

use std::collections::HashMap;

use annals_domain::ids::ResourceId;
use annals_domain::scim::error::{ScimError, ScimType};
use annals_domain::scim::filter::Bound;
use annals_domain::scim::sort::{Place, Sort, SortKey, SortValue};

use super::counts::{Counts, Trust, Used};
use super::filter_sql::{ENTITY_TAG, FENCE, Translator, asks_values};
use super::{Paths, Search, Slot};
use crate::backend::{Col, Row, Rows, Sql, Tx};
use crate::error::{Result, StoreError};

/// Most matches that are put in order here; more are walked. The matches of a walk are then at least
/// this dense, so a page looks at a bounded part of the list.
pub(super) const FEW_MAX: usize = 2_000;

/// The row `a` of an attribute that a resource is sorted by.
const LEAD: &str = " AND a.element = 0 AND a.ordinal = 0";

/// The same where there may be others; the index on values does not know which is which on PostgreSQL.
fn lead(translator: &Translator<'_>, key: &str) -> &'static str {
    if translator.is_single(key) { "" } else { LEAD }
}

/// A resource on a page: its place, and by what its row is found.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) place: Place,
    pub(super) at: At,
}

/// By what a row is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    Id(ResourceId),
    /// By the index that gives the order of creation, so that skipping touches no row.
    Origin {
        resource_type: String,
        origin: i64,
    },
}

/// A stretch of a sorted list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stretch {
    /// All of a list by creation.
    Whole,
    Valued,
    Valueless,
}

/// Which part of a list is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut<'a> {
    pub(super) after: Option<&'a Place>,
    pub(super) skip: usize,
    pub(super) limit: usize,
}

/// What pages of one query have in common.
pub(super) struct Pager<'a> {
    pub(super) search: &'a Search,
    pub(super) registry: &'a annals_domain::scim::schema::Registry,
    pub(super) paths: &'a Paths,
    pub(super) slot: Slot,
    pub(super) filter: &'a Bound,
    pub(super) trust: Trust,
    pub(super) used: &'a Used,
    pub(super) counts: Counts<'a>,
}

impl<'a> Pager<'a> {
    pub(super) fn translator(&self) -> Translator<'a> {
        Translator::new(&self.search.tenant, self.paths, self.registry, &self.search.resource_types)
    }

    /// The sort, unless it is the order of creation.
    fn by_value(&self) -> Option<&'a Sort> {
        self.search.sort.as_ref().filter(|sort| !sort.is_creation())
    }

    fn descending(&self) -> bool {
        self.search.sort.as_ref().is_some_and(|sort| sort.descending)
    }

    fn key(&self, at: usize) -> Option<&'a SortKey> {
        self.by_value().and_then(|sort| sort.keys.get(at)?.as_ref())
    }

    /// `FROM … WHERE …` for all matches as `r`, led by the filter's narrowest set.
    fn matching(&self, translator: &mut Translator<'a>) -> Result<String> {
        let (ids, condition) = translator.led(self.filter, "r")?;
        let wanted: Vec<String> =
            self.search.resource_types.iter().map(|rt| translator.arg(&rt.name)).collect();
        let of_type = match wanted.as_slice() {
            [one] => format!("r.resource_type = {one}"),
            many => format!("r.resource_type IN ({})", many.join(", ")),
        };
        let listed = format!("r.tenant = $1 AND r.deleted = 0 AND {of_type} AND {condition}");
        Ok(match ids {
            Some(ids) => {
                format!("FROM ({ids}) n CROSS JOIN model.resource_@ r WHERE r.id = n.id AND {listed}")
            }
            None => format!("FROM model.resource_@ r WHERE {listed}"),
        })
    }

    fn count_sql(&self) -> Result<Sql> {
        let mut translator = self.translator();
        let text = if self.trust.schemas && translator.is_led_alone(self.filter) {
            self.used.schemas();
            match translator.led(self.filter, "n")? {
                (Some(ids), condition) => format!("SELECT COUNT(*) FROM ({ids}) n WHERE {condition}"),
                (None, _) => return Err(StoreError::corrupt("the filter", "what leads it has no set")),
            }
        } else {
            format!("SELECT COUNT(*) {}", self.matching(&mut translator)?)
        };
        Ok(translator.sql(self.slot, &text))
    }

    /// How many resources match.
    pub(super) async fn count(&self, tx: &mut Tx) -> Result<i64> {
        self.counted(tx, self.count_sql()?).await
    }

    /// Whether counting is the cheaper way to see that matches are too many to be put in order here.
    pub(super) fn is_count_first(&self) -> bool {
        let translator = self.translator();
        self.trust.schemas && translator.is_wide(self.filter) && translator.is_led_alone(self.filter)
    }

    async fn counted(&self, tx: &mut Tx, sql: Sql) -> Result<i64> {
        if self.trust.counts
            && let Some(known) = self.counts.get(&sql)
        {
            return Ok(known);
        }
        let count = tx.fetch_optional(sql.clone()).await?.map_or(Ok(0), |row| row.int(0))?;
        self.counts.put(tx, &sql, count).await?;
        Ok(count)
    }

    // ---- few ----

    fn few_sql(&self) -> Result<Sql> {
        let mut translator = self.translator();
        let matching = self.matching(&mut translator)?;
        let limit = FEW_MAX + 1;
        let select =
            format!("SELECT r.id, r.resource_type, r.origin, r.modified, r.version {matching} LIMIT {limit}");
        Ok(translator.sql(self.slot, &select))
    }

    /// All matches in order; `None` if they are too many for that, or no index leads to them.
    pub(super) async fn few(&self, tx: &mut Tx) -> Result<Option<Vec<Placed>>> {
        if !self.translator().is_narrow(self.filter) {
            return Ok(None);
        }
        let rows = tx.fetch_all(self.few_sql()?).await?;
        if rows.len() > FEW_MAX {
            return Ok(None);
        }
        let values = if rows.len() > 1 || self.search.after.is_some() {
            self.values(tx, &rows).await?
        } else {
            HashMap::new()
        };
        let mut placed = Vec::with_capacity(rows.len());
        for row in &rows {
            let id = ResourceId::from_text(&row.text(0)?);
            let place = match self.by_value() {
                None => Place::Created(row.int(2)?),
                Some(_) => {
                    let value = match self.type_at(&row.text(1)?).and_then(|at| self.key(at)) {
                        None | Some(SortKey::Created) => None,
                        Some(SortKey::Value { .. }) => values.get(&id).cloned().map(SortValue::Text),
                        Some(SortKey::Id) => Some(SortValue::Text(id.as_str().to_owned())),
                        Some(SortKey::LastModified) => Some(SortValue::Number(row.int(3)?)),
                        Some(SortKey::Version) => {
                            Some(SortValue::Text(annals_domain::scim::resource::etag(row.int(4)?)))
                        }
                        Some(SortKey::ResourceType) => Some(SortValue::Text(row.text(1)?)),
                    };
                    Place::Sorted { value, id: id.clone() }
                }
            };
            placed.push(Placed { place, at: At::Id(id) });
        }
        placed.sort_by(|a, b| a.place.compare(&b.place, self.descending()));
        Ok(Some(placed))
    }

    fn type_at(&self, name: &str) -> Option<usize> {
        self.search.resource_types.iter().position(|rt| rt.name == name)
    }

    /// The values by which these resources are sorted.
    async fn values(&self, tx: &mut Tx, found: &[Row]) -> Result<HashMap<ResourceId, String>> {
        let mut rows = Rows::new(&[("id", Col::Text), ("path", Col::Int)]);
        for row in found {
            let key = self.type_at(&row.text(1)?).and_then(|at| self.key(at));
            if let Some(SortKey::Value { key, .. }) = key
                && let Some(number) = self.paths.number(key)
            {
                rows.push(vec![row.text(0)?.into(), number.into()]);
            }
        }
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let select = self.slot.sql(&format!(
            "SELECT a.id, a.value FROM {{rows}} CROSS JOIN model.attribute_@ a \
             WHERE a.tenant = $1 AND a.id = r.id AND a.path = r.path{LEAD}"
        ));
        let values = tx.fetch_all(select.bind(&self.search.tenant).rows(rows)).await?;
        values.iter().map(|row| Ok((ResourceId::from_text(&row.text(0)?), row.text(1)?))).collect()
    }

    // ---- walks ----

    /// A part of the list, in order.
    pub(super) async fn walk(&self, tx: &mut Tx, cut: Cut<'_>) -> Result<Vec<Placed>> {
        let mut stretches = match self.by_value() {
            None => vec![Stretch::Whole],
            Some(_) => vec![Stretch::Valued, Stretch::Valueless],
        };
        if self.descending() {
            stretches.reverse();
        }
        if let Some(after) = cut.after {
            let begin = match (after, self.by_value()) {
                (Place::Created(_), None) => Stretch::Whole,
                (Place::Sorted { value: Some(_), .. }, Some(_)) => Stretch::Valued,
                (Place::Sorted { value: None, .. }, Some(_)) => Stretch::Valueless,
                _ => {
                    let detail = "the cursor is of a list in another order";
                    return Err(StoreError::Refused(ScimError::bad(ScimType::InvalidCursor, detail)));
                }
            };
            stretches = stretches.into_iter().skip_while(|stretch| *stretch != begin).collect();
        }
        let (mut after, mut skip) = (cut.after, cut.skip);
        let mut found = Vec::new();
        for stretch in stretches {
            let part = Cut { after: after.take(), skip, limit: cut.limit - found.len() };
            if stretch == Stretch::Valueless && part.after.is_none() && self.is_full(tx).await? {
                continue;
            }
            let Some(select) = self.walk_sql(stretch, part)? else { continue };
            let rows = tx.fetch_all(select).await?;
            if rows.is_empty() && skip > 0 {
                if let Some(count) = self.stretch_count(stretch)? {
                    let count = self.counted(tx, count).await?;
                    skip = skip.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
                }
            } else {
                skip = 0;
            }
            for row in &rows {
                found.push(self.placed(stretch, row)?);
            }
            if found.len() >= cut.limit {
                break;
            }
        }
        Ok(found)
    }

    /// Whether every resource of the types has the value that it is sorted by, so that none has to be looked
    /// for. Both are counted along an index; to look for what is not there means to ask everyone.
    async fn is_full(&self, tx: &mut Tx) -> Result<bool> {
        for (at, resource_type) in self.search.resource_types.iter().enumerate() {
            let Some(SortKey::Value { key, always }) = self.key(at) else { return Ok(false) };
            if *always {
                continue;
            }
            let mut translator = self.translator();
            let Some(path) = self.paths.number(key) else { return Ok(false) };
            if !self.trust.schemas || !translator.is_only_of(key, &resource_type.name) {
                return Ok(false);
            }
            self.used.schemas();
            let (path, lead) = (translator.arg(path), lead(&translator, key));
            let valued = format!(
                "SELECT COUNT(*) FROM model.attribute_@ a WHERE a.tenant = $1 AND a.path = {path}{lead}"
            );
            let valued = self.counted(tx, translator.sql(self.slot, &valued)).await?;
            let of_type = Search { resource_types: vec![resource_type.clone()], ..self.search.clone() };
            let all = Pager { search: &of_type, filter: &Bound::True, ..*self }.count_sql()?;
            if self.counted(tx, all).await? > valued {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn placed(&self, stretch: Stretch, row: &Row) -> Result<Placed> {
        if stretch == Stretch::Whole {
            let (resource_type, origin) = (row.text(0)?, row.int(1)?);
            return Ok(Placed { place: Place::Created(origin), at: At::Origin { resource_type, origin } });
        }
        let id = ResourceId::from_text(&row.text(0)?);
        let value = match stretch {
            Stretch::Valued if self.is_number() => Some(SortValue::Number(row.int(1)?)),
            Stretch::Valued => Some(SortValue::Text(row.text(1)?)),
            _ => None,
        };
        Ok(Placed { place: Place::Sorted { value, id: id.clone() }, at: At::Id(id) })
    }

    /// Whether values are numbers; that is so for all types or for none.
    fn is_number(&self) -> bool {
        matches!(self.key(0), Some(SortKey::LastModified))
    }

    /// The statements that a page of a long list may run.
    pub(super) fn statements(&self, cut: Cut<'_>) -> Result<Vec<Sql>> {
        let mut statements = vec![self.count_sql()?];
        if self.translator().is_narrow(self.filter) {
            statements.push(self.few_sql()?);
        }
        for stretch in [Stretch::Whole, Stretch::Valued, Stretch::Valueless] {
            if (stretch == Stretch::Whole) == self.by_value().is_none() {
                statements.extend(self.walk_sql(stretch, cut)?);
            }
        }
        Ok(statements)
    }

    /// One stretch in order; `None` if nothing can be in it.
    fn walk_sql(&self, stretch: Stretch, cut: Cut<'_>) -> Result<Option<Sql>> {
        let mut translator = self.translator();
        // What is skipped costs least if no row of a resource is touched.
        let branches = self.branches(&mut translator, stretch, cut.after, cut.skip > 0)?;
        let direction = if self.descending() { " DESC" } else { "" };
        let Cut { skip, limit, .. } = cut;
        let page = if skip > 0 {
            format!("LIMIT {limit} OFFSET {}", translator.arg(skip))
        } else {
            format!("LIMIT {limit}")
        };
        let text = match branches.as_slice() {
            [] => return Ok(None),
            [one] => format!("{} {} {page}", one.select, one.order_by(direction)),
            many => {
                // Each type in its own order, merged: no type is read further than the page reaches.
                let upto = limit.saturating_add(skip);
                let parts = many.iter().enumerate().map(|(n, branch)| {
                    let order = branch.order_by(direction);
                    format!("SELECT * FROM ({} {order} LIMIT {upto}) w{n}", branch.select)
                });
                let parts: Vec<String> = parts.collect();
                let order = match stretch {
                    Stretch::Whole => format!("o{direction}"),
                    Stretch::Valued => format!("v{direction}, i{direction}"),
                    Stretch::Valueless => format!("i{direction}"),
                };
                format!("SELECT * FROM ({}) w ORDER BY {order} {page}", parts.join(" UNION ALL "))
            }
        };
        Ok(Some(translator.sql(self.slot, &text)))
    }

    fn stretch_count(&self, stretch: Stretch) -> Result<Option<Sql>> {
        let mut translator = self.translator();
        let branches = self.branches(&mut translator, stretch, None, true)?;
        if branches.is_empty() {
            return Ok(None);
        }
        let parts: Vec<String> = branches.into_iter().map(|branch| branch.select).collect();
        let text = format!("SELECT COUNT(*) FROM ({}) w", parts.join(" UNION ALL "));
        Ok(Some(translator.sql(self.slot, &text)))
    }

    fn branches(
        &self,
        translator: &mut Translator<'a>,
        stretch: Stretch,
        after: Option<&Place>,
        alone: bool,
    ) -> Result<Vec<Branch>> {
        let mut branches = Vec::new();
        for (at, resource_type) in self.search.resource_types.iter().enumerate() {
            let branch = match stretch {
                Stretch::Whole => Some(self.by_creation(translator, &resource_type.name, after)?),
                Stretch::Valued => {
                    self.valued(translator, &resource_type.name, self.key(at), after, alone)?
                }
                Stretch::Valueless => self.valueless(translator, &resource_type.name, self.key(at), after)?,
            };
            branches.extend(branch);
        }
        Ok(branches)
    }

    /// What every resource `s` on the list has in common.
    fn listed(&self, translator: &mut Translator<'a>, resource_type: &str) -> Result<String> {
        let name = translator.arg(resource_type);
        let predicate = translator.predicate_on(self.filter, "s")?;
        Ok(format!("s.tenant = $1 AND s.deleted = 0 AND s.resource_type = {name} AND {predicate}"))
    }

    /// `>`, or `<` in a descending list.
    fn beyond(&self) -> &'static str {
        if self.descending() { "<" } else { ">" }
    }

    fn by_creation(
        &self,
        translator: &mut Translator<'a>,
        resource_type: &str,
        after: Option<&Place>,
    ) -> Result<Branch> {
        let listed = self.listed(translator, resource_type)?;
        let mut select =
            format!("SELECT s.resource_type AS t, s.origin AS o FROM model.resource_@ s WHERE {listed}");
        if let Some(Place::Created(origin)) = after {
            select.push_str(&format!(" AND s.origin {} {}", self.beyond(), translator.arg(*origin)));
        }
        Ok(Branch { select, order: vec!["s.origin"] })
    }

    /// `alone`: from the rows of values, if they are enough.
    fn valued(
        &self,
        translator: &mut Translator<'a>,
        resource_type: &str,
        key: Option<&SortKey>,
        after: Option<&Place>,
        alone: bool,
    ) -> Result<Option<Branch>> {
        let (from, value, id) = match key {
            None | Some(SortKey::Created) => return Ok(None),
            Some(SortKey::Value { key, .. }) => {
                let Some(path) = self.paths.number(key) else { return Ok(None) };
                let (path, lead) = (translator.arg(path), lead(translator, key));
                let values = format!("a.tenant = $1 AND a.path = {path}{lead}");
                let alone = alone
                    && self.trust.schemas
                    && translator.is_only_of(key, resource_type)
                    && asks_values(self.filter);
                let from = if alone {
                    self.used.schemas();
                    let predicate = translator.predicate_on(self.filter, "a")?;
                    format!("model.attribute_@ a WHERE {values} AND {predicate}")
                } else {
                    let listed = self.listed(translator, resource_type)?;
                    format!(
                        "model.attribute_@ a CROSS JOIN model.resource_@ s WHERE {values} AND s.id = a.id \
                         AND {listed}"
                    )
                };
                (from, "a.value".to_owned(), "a.id")
            }
            Some(key) => {
                let listed = self.listed(translator, resource_type)?;
                let value = match key {
                    SortKey::LastModified => "s.modified".to_owned(),
                    SortKey::Version => ENTITY_TAG.replace("{r}", "s"),
                    SortKey::ResourceType => "s.resource_type".to_owned(),
                    _ => "s.id".to_owned(),
                };
                (format!("model.resource_@ s WHERE {listed}"), value, "s.id")
            }
        };
        let mut select = format!("SELECT {id} AS i, {value} AS v FROM {from}");
        let by_id = matches!(key, Some(SortKey::Id));
        if let Some(Place::Sorted { value: Some(last), id: last_id }) = after {
            let (beyond, last_id) = (self.beyond(), translator.arg(last_id));
            if by_id {
                select.push_str(&format!(" AND {id} {beyond} {last_id}"));
            } else {
                let last = match last {
                    SortValue::Number(number) => translator.arg(*number),
                    SortValue::Text(text) => translator.arg(text),
                };
                select.push_str(&format!(" AND ({value}, {id}) {beyond} ({last}, {last_id})"));
            }
        }
        let order = if by_id { vec!["s.id"] } else { vec!["v", id] };
        Ok(Some(Branch { select, order }))
    }

    fn valueless(
        &self,
        translator: &mut Translator<'a>,
        resource_type: &str,
        key: Option<&SortKey>,
        after: Option<&Place>,
    ) -> Result<Option<Branch>> {
        let path = match key {
            None => None,
            Some(SortKey::Value { always: false, key }) => self.paths.number(key),
            Some(_) => return Ok(None),
        };
        let listed = self.listed(translator, resource_type)?;
        let mut select = format!("SELECT s.id AS i FROM model.resource_@ s WHERE {listed}");
        if let Some(path) = path {
            let path = translator.arg(path);
            select.push_str(&format!(
                " AND NOT EXISTS (SELECT 1 FROM model.attribute_@ a WHERE a.tenant = $1 AND a.id = s.id \
                 AND a.path = {path}{LEAD}{FENCE})"
            ));
        }
        if let Some(Place::Sorted { value: None, id }) = after {
            select.push_str(&format!(" AND s.id {} {}", self.beyond(), translator.arg(id)));
        }
        Ok(Some(Branch { select, order: vec!["s.id"] }))
    }

    // ---- rows ----

    /// The rows of a page, in no order.
    pub(super) fn rows_sql(&self, page: &[Placed]) -> Option<(bool, Sql)> {
        const COLUMNS: &str = "m.id, m.resource_type, m.version, m.created, m.modified, m.document, m.origin";
        let by_origin = match page.first()?.at {
            At::Origin { .. } => true,
            At::Id(_) => false,
        };
        let mut rows = if by_origin {
            Rows::new(&[("resource_type", Col::Text), ("origin", Col::Int)])
        } else {
            Rows::new(&[("id", Col::Text)])
        };
        for placed in page {
            match &placed.at {
                At::Id(id) => rows.push(vec![id.into()]),
                At::Origin { resource_type, origin } => {
                    rows.push(vec![resource_type.into(), (*origin).into()]);
                }
            }
        }
        let on = if by_origin {
            "m.deleted = 0 AND m.resource_type = r.resource_type AND m.origin = r.origin"
        } else {
            "m.id = r.id"
        };
        let select = self.slot.sql(&format!(
            "SELECT {COLUMNS} FROM {{rows}} CROSS JOIN model.resource_@ m WHERE m.tenant = $1 AND {on}"
        ));
        Some((by_origin, select.bind(&self.search.tenant).rows(rows)))
    }
}

/// The part of a stretch that is of one type.
struct Branch {
    select: String,
    order: Vec<&'static str>,
}

impl Branch {
    fn order_by(&self, direction: &str) -> String {
        let columns: Vec<String> = self.order.iter().map(|column| format!("{column}{direction}")).collect();
        format!("ORDER BY {}", columns.join(", "))
    }
}

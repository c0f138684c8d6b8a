//! Lists and `.search` (RFC 7644 §3.4.2, §3.4.3).
//!
//! A filter that names an id, a `userName`, an `externalId` or a group's `displayName` by `eq`, alone or
//! in a top-level `and`, is answered from the journal's own look-ups: linearizable, without waiting (D2).
//! Every other query goes to the read model and waits until it has the tenant's last event (D3). Both
//! give the same order, so it does not matter which of them answers which page.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use annals_domain::ids::ResourceId;
use annals_domain::scim::dialect::Quirk;
use annals_domain::scim::error::ScimType;
use annals_domain::scim::filter::{
    Bound, Budget, Context, LinkSub, LookupTermKind, Subject, Target, Test, TestOp, bind, lookup_terms,
    matches, parse, uses_links,
};
use annals_domain::scim::fold::index_value;
use annals_domain::scim::message::SEARCH_REQUEST;
use annals_domain::scim::project::Projection;
use annals_domain::scim::schema::ResourceType;
use annals_domain::scim::sort::{Place, Sort};
use annals_domain::view::{IndexRow, index_rows};
use annals_store::model::Search;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::auth::{Caller, Reader};
use crate::cursor::{Binding, Cursor};
use crate::error::{ApiError, Result};
use crate::extract::{Endpoint, Query, ScimBody, check_accept};
use crate::respond::{Live, Paging, derived_links, groups_of, list};

/// Most resources that a look-up may bring to be looked at one by one; more are left to the read model.
const CANDIDATES_MAX: usize = 1_000;

/// `GET /{endpoint}`.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Reader,
    Endpoint(resource_type): Endpoint,
    headers: HeaderMap,
    query: Query,
) -> Result<Response> {
    check_accept(&headers, caller.is_strict())?;
    let ask = Ask::of_query(&query, Context::GET)?;
    answer(&app, &caller, vec![resource_type], ask).await
}

/// `POST /{endpoint}/.search`; its query string is ignored (RQ-008).
pub(crate) async fn post(
    State(app): State<App>,
    caller: Reader,
    Endpoint(resource_type): Endpoint,
    headers: HeaderMap,
    body: ScimBody,
) -> Result<Response> {
    check_accept(&headers, caller.is_strict())?;
    let ask = Ask::of_body(&body.json, Context::BODY)?;
    answer(&app, &caller, vec![resource_type], ask).await
}

/// `GET /`: over all resource types (RQ-005).
pub(crate) async fn get_root(
    State(app): State<App>,
    caller: Reader,
    headers: HeaderMap,
    query: Query,
) -> Result<Response> {
    check_accept(&headers, caller.is_strict())?;
    let ask = Ask::of_query(&query, Context::GET.root())?;
    let types = caller.registry.resource_types().cloned().collect();
    answer(&app, &caller, types, ask).await
}

/// `POST /.search`: over all resource types.
pub(crate) async fn post_root(
    State(app): State<App>,
    caller: Reader,
    headers: HeaderMap,
    body: ScimBody,
) -> Result<Response> {
    check_accept(&headers, caller.is_strict())?;
    let ask = Ask::of_body(&body.json, Context::BODY.root())?;
    let types = caller.registry.resource_types().cloned().collect();
    answer(&app, &caller, types, ask).await
}

/// What a client wants to see.
#[derive(Debug)]
struct Ask {
    filter: Option<String>,
    sort_by: Option<String>,
    sort_order: Option<String>,
    start_index: Option<i64>,
    /// Empty for the first page of a list by cursor (CU-001).
    cursor: Option<String>,
    count: Option<i64>,
    attributes: Option<String>,
    excluded: Option<String>,
    context: Context,
}

impl Ask {
    fn of_query(query: &Query, context: Context) -> Result<Ask> {
        let cursor = query.has("cursor").then(|| query.get("cursor")).transpose()?;
        let cursor = cursor.map(Option::unwrap_or_default);
        let count = query.integer("count").map_err(|error| invalid_count(error, cursor.is_some()))?;
        Ok(Ask {
            filter: query.get("filter")?,
            sort_by: query.get("sortBy")?,
            sort_order: query.get("sortOrder")?,
            start_index: query.integer("startIndex")?,
            cursor,
            count,
            attributes: query.list("attributes")?,
            excluded: query.list("excludedAttributes")?,
            context,
        })
    }

    /// What the pages of one list have in common, but `count` (CU-006).
    fn binding(&self, caller: &Caller, parts: &[Part]) -> Binding {
        let types = parts.iter().map(|part| Some(part.resource_type.name.as_str()));
        let given = [&self.filter, &self.sort_by, &self.sort_order, &self.attributes, &self.excluded];
        let given = given.into_iter().map(|part| part.as_deref());
        let root = if self.context.root { "/" } else { "" };
        let fixed =
            [Some(caller.tenant().as_str()), Some(caller.principal.connection.id.as_str()), Some(root)];
        Binding::of(fixed.into_iter().chain(given).chain(types))
    }

    /// Reads a SearchRequest (RQ-007).
    fn of_body(body: &Value, context: Context) -> Result<Ask> {
        let syntax = |detail: &str| ApiError::bad(ScimType::InvalidSyntax, detail);
        let body = body.as_object().ok_or_else(|| syntax("the body is no JSON object"))?;
        let schemas = member(body, "schemas")?.and_then(Value::as_array);
        let named = |urn: &Value| urn.as_str().is_some_and(|urn| urn.eq_ignore_ascii_case(SEARCH_REQUEST));
        if !schemas.is_some_and(|schemas| schemas.iter().any(named)) {
            return Err(syntax(&format!("schemas must name {SEARCH_REQUEST}")));
        }
        let integer = |name: &str| match member(body, name)? {
            None => Ok(None),
            Some(value) => {
                let wrong =
                    || ApiError::bad(ScimType::InvalidValue, format!("{name} must be a whole number"));
                // Beyond 64 bits serde_json has a float; a fraction is an error, size is not (PG-006).
                let float = |value: &Value| value.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64);
                value.as_i64().or_else(|| float(value)).map(Some).ok_or_else(wrong)
            }
        };
        let text = |name: &str| match member(body, name)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(ApiError::bad(ScimType::InvalidValue, format!("{name} must be a string"))),
        };
        let cursor = match member(body, "cursor")? {
            None => None,
            Some(Value::String(cursor)) => Some(cursor.clone()),
            Some(_) => return Err(ApiError::bad(ScimType::InvalidCursor, "cursor must be a string")),
        };
        let count = integer("count").map_err(|error| invalid_count(error, cursor.is_some()))?;
        Ok(Ask {
            filter: match member(body, "filter")? {
                None => None,
                Some(Value::String(filter)) => Some(filter.clone()),
                Some(_) => return Err(ApiError::bad(ScimType::InvalidFilter, "filter must be a string")),
            },
            sort_by: text("sortBy")?,
            sort_order: text("sortOrder")?,
            start_index: integer("startIndex")?,
            cursor,
            count,
            attributes: names(body, "attributes")?,
            excluded: names(body, "excludedAttributes")?,
            context,
        })
    }
}

/// RFC 9865 §2.1 has a keyword of its own for a count that is no number.
fn invalid_count(error: ApiError, by_cursor: bool) -> ApiError {
    match by_cursor {
        true => ApiError::bad(ScimType::InvalidCount, "count must be a whole number"),
        false => error,
    }
}

/// A member of a message, by its name in any case (CS-020); null is the same as absent.
fn member<'a>(body: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Value>> {
    let mut found = body.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => {
            Err(ApiError::bad(ScimType::InvalidSyntax, format!("{name} is given more than once")))
        }
        (value, _) => Ok(value.map(|(_, value)| value).filter(|value| !value.is_null())),
    }
}

/// An array of names, or one text with commas, as one text with commas.
fn names(body: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    let wrong = || ApiError::bad(ScimType::InvalidValue, format!("{name} must be an array of strings"));
    match member(body, name)? {
        None => Ok(None),
        Some(Value::String(names)) => Ok(Some(names.clone())),
        Some(Value::Array(list)) => {
            let names: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            Ok(Some(names.ok_or_else(wrong)?.join(",")))
        }
        Some(_) => Err(wrong()),
    }
}

/// A resource type with what was asked of it.
struct Part {
    resource_type: Arc<ResourceType>,
    filter: Option<Bound>,
    projection: Arc<Projection>,
}

async fn answer(app: &App, caller: &Caller, types: Vec<Arc<ResourceType>>, ask: Ask) -> Result<Response> {
    let registry = &*caller.registry;
    if ask.context.root && ask.filter.is_none() && caller.principal.settings.filtered_root_queries {
        let detail = "a query over all resource types needs a filter here (RQ-006)";
        return Err(ApiError::bad(ScimType::TooMany, detail));
    }
    let mut dialect = caller.dialect();
    if ask.context.root && ask.filter.is_none() && dialect.has(Quirk::RefuseRootLists) {
        let detail = "a list over all resource types needs a filter on this connection";
        return Err(ApiError::bad(ScimType::TooMany, detail));
    }
    let filter = ask.filter.as_deref().map(|text| parse(text, Budget::default())).transpose()?;
    let mut parts = Vec::with_capacity(types.len());
    for resource_type in types {
        let bound = match &filter {
            Some(filter) => Some(bind(filter, registry, &resource_type, ask.context, &mut dialect)?),
            None => None,
        };
        let (attributes, excluded) = (ask.attributes.as_deref(), ask.excluded.as_deref());
        let projection = Projection::new(registry, &resource_type, attributes, excluded, &mut dialect)?;
        parts.push(Part { resource_type, filter: bound, projection: Arc::new(projection) });
    }
    let sort = match ask.sort_by.as_deref().filter(|by| !by.trim().is_empty()) {
        None => None,
        Some(by) => {
            let types: Vec<&ResourceType> = parts.iter().map(|part| &*part.resource_type).collect();
            Some(Sort::bind(by, ask.sort_order.as_deref(), registry, &types, &mut dialect)?)
        }
    };
    if ask.cursor.is_some() && ask.start_index.is_some() {
        let detail = "startIndex and cursor cannot be given together";
        return Err(ApiError::bad(ScimType::InvalidValue, detail));
    }
    // Below 1 is 1, below 0 is 0 (PG-001, PG-002); beyond the page's bound is the bound (PG-004).
    let start = usize::try_from(ask.start_index.unwrap_or(1).max(1)).unwrap_or(usize::MAX);
    let bounds = caller.bounds(app);
    let page_max = bounds.page_resources_max;
    let count = match ask.count {
        None => bounds.page_resources_default,
        Some(count) => usize::try_from(count.max(0)).unwrap_or(usize::MAX).min(page_max),
    };
    let binding = ask.binding(caller, &parts);
    let cursor = match ask.cursor.as_deref() {
        None | Some("") => None,
        Some(text) => Some(Cursor::open(app, caller, text, binding, count).await?),
    };
    let (total, after) = match cursor {
        Some(cursor) => (Some(cursor.total), Some(cursor.after)),
        None => (None, None),
    };
    let wanted = Wanted { sort, start, after, total, count };
    let page = match looked_up(app, caller, &parts, &wanted).await? {
        Some(page) => page,
        None => searched(app, caller, &parts, wanted).await?,
    };
    let paging = match (&ask.cursor, page.next) {
        (None, _) => Paging::Index(start as u64),
        (Some(_), None) => Paging::Cursor(None),
        (Some(_), Some(next)) => {
            Paging::Cursor(Some(Cursor::seal(app, caller, binding, count, page.total, next).await?))
        }
    };
    let projections: HashMap<&str, &Arc<Projection>> =
        parts.iter().map(|part| (part.resource_type.name.as_str(), &part.projection)).collect();
    let found = page.found.into_iter().filter_map(|live: Live| {
        let projection = projections.get(live.resource_type.name.as_str()).map(|p| Arc::clone(p))?;
        Some((live, projection))
    });
    list(app, caller, page.total, paging, found.collect()).await
}

/// Which part of which order is wanted.
struct Wanted {
    sort: Option<Sort>,
    /// Number of the first one, from 1.
    start: usize,
    /// Or the place that it comes after.
    after: Option<Place>,
    /// How many matched on the first page.
    total: Option<u64>,
    count: usize,
}

/// What was found.
struct Page {
    total: u64,
    found: Vec<Live>,
    /// The place of the last one, if others come after it.
    next: Option<Place>,
}

/// Asks the read model.
async fn searched(app: &App, caller: &Caller, parts: &[Part], wanted: Wanted) -> Result<Page> {
    let search = Search {
        tenant: caller.tenant().clone(),
        resource_types: parts.iter().map(|part| part.resource_type.clone()).collect(),
        filter: whole_filter(parts),
        sort: wanted.sort,
        start_index: wanted.start,
        after: wanted.after,
        total: wanted.total.map(|total| i64::try_from(total).unwrap_or(i64::MAX)),
        count: wanted.count,
        timeout: app.options.search_timeout,
    };
    let page = app.store.search(&search).await?;
    let registry = &*caller.registry;
    let found = page.found.into_iter().filter_map(|found| Live::of_found(registry, found)).collect();
    Ok(Page { total: u64::try_from(page.total).unwrap_or_default(), found, next: page.next })
}

/// One filter for all types: each type's own, for resources of that type.
fn whole_filter(parts: &[Part]) -> Option<Bound> {
    if let [part] = parts {
        return part.filter.clone();
    }
    let of_type = |part: &Part| {
        let is_type = Test { target: Target::ResourceType, op: TestOp::Eq(part.resource_type.name.clone()) };
        Some(Bound::And(vec![Bound::Test(is_type), part.filter.clone()?]))
    };
    parts.iter().map(of_type).collect::<Option<Vec<_>>>().map(Bound::Or)
}

/// A page of the matches by look-up; `None` if some type's filter has no term for that.
async fn looked_up(app: &App, caller: &Caller, parts: &[Part], wanted: &Wanted) -> Result<Option<Page>> {
    let sort = wanted.sort.as_ref();
    let mut found = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let rt = &part.resource_type;
        let Some(filter) = &part.filter else { return Ok(None) };
        if *filter == Bound::False {
            continue;
        }
        let Some(term) = lookup_terms(filter, rt) else { return Ok(None) };
        let mut asked = BTreeSet::new();
        if !links_are_cheap(filter, rt, &mut asked) {
            return Ok(None);
        }
        let ids = match term.kind {
            LookupTermKind::Id => vec![ResourceId::from_text(&term.value)],
            LookupTermKind::Lookup(kind) => {
                app.store.find_by_lookup(caller.tenant(), &rt.name, kind, &term.value).await?
            }
        };
        if ids.len() > CANDIDATES_MAX {
            return Ok(None);
        }
        let states = app.store.states(caller.tenant(), &ids).await?;
        let live = states.into_iter().filter_map(|state| Live::of_state(&caller.registry, state));
        let live: Vec<Live> = live.filter(|live| live.resource_type.name == rt.name).collect();
        let mut links = links(app, caller, part, filter, &live, &asked).await?;
        for live in live {
            let mut rows = index_rows(rt, &live.document);
            rows.extend(links.remove(&live.id).unwrap_or_default());
            rows.sort();
            let subject = Subject {
                id: &live.id,
                created: live.created,
                last_modified: live.modified,
                version: live.version,
                resource_type: &rt.name,
                rows: &rows,
            };
            if matches(filter, &subject) {
                let key = sort.and_then(|sort| sort.keys.get(at)?.as_ref());
                found.push((Place::of(sort, key, &subject, 0), live));
            }
        }
    }
    if sort.is_none_or(Sort::is_creation) && (found.len() > 1 || wanted.after.is_some()) {
        let ids: Vec<_> = found.iter().map(|(_, live)| live.id.clone()).collect();
        let origins = app.store.origins(caller.tenant(), &ids).await?;
        for (place, live) in &mut found {
            *place = Place::Created(origins.get(&live.id).copied().unwrap_or_default());
        }
    }
    let descending = sort.is_some_and(|sort| sort.descending);
    found.sort_by(|(a, _), (b, _)| a.compare(b, descending));
    let total = wanted.total.unwrap_or(found.len() as u64);
    let skip = match &wanted.after {
        None => wanted.start - 1,
        Some(after) => found.iter().filter(|(place, _)| !place.compare(after, descending).is_gt()).count(),
    };
    let end = skip.saturating_add(wanted.count);
    let next = (wanted.count > 0 && end < found.len()).then(|| found.get(end - 1)).flatten();
    let next = next.map(|(place, _)| place.clone());
    let page = found.into_iter().skip(skip).take(wanted.count).map(|(_, live)| live);
    Ok(Some(Page { total, found: page.collect(), next }))
}

/// Whether everything a filter asks about links can be known without reading a group's members: `groups`
/// of a user always, `members` only if they are asked for one by one. Collects those asked for.
fn links_are_cheap(filter: &Bound, resource_type: &ResourceType, asked: &mut BTreeSet<ResourceId>) -> bool {
    let members = resource_type.link_attribute().map(|a| a.key.as_str());
    match filter {
        Bound::True | Bound::False => true,
        Bound::And(all) | Bound::Or(all) => all.iter().all(|f| links_are_cheap(f, resource_type, asked)),
        Bound::Not(inner) | Bound::Element { test: inner, .. } => {
            links_are_cheap(inner, resource_type, asked)
        }
        Bound::Test(Test { target: Target::Link { attribute, sub }, op }) => {
            match (Some(attribute.as_str()) == members, sub, op) {
                (false, _, _) => true,
                (true, LinkSub::Value, TestOp::Eq(id)) => {
                    asked.insert(ResourceId::from_text(id));
                    true
                }
                (true, _, _) => false,
            }
        }
        Bound::Test(_) => true,
    }
}

/// The index rows of the links that the filter asks about, by resource.
async fn links(
    app: &App,
    caller: &Caller,
    part: &Part,
    filter: &Bound,
    live: &[Live],
    asked: &BTreeSet<ResourceId>,
) -> Result<HashMap<ResourceId, Vec<IndexRow>>> {
    let mut rows: HashMap<ResourceId, Vec<IndexRow>> = HashMap::new();
    if !uses_links(filter) || live.is_empty() {
        return Ok(rows);
    }
    let rt = &part.resource_type;
    if let Some(members) = rt.link_attribute() {
        // From the member's side: which of the groups it is in are candidates.
        let asked: Vec<_> = asked.iter().cloned().collect();
        let states = app.store.states(caller.tenant(), &asked).await?;
        let deleted: BTreeSet<_> = states.into_iter().filter(|s| s.deleted).map(|s| s.id).collect();
        let alive = asked.into_iter().filter(|id| !deleted.contains(id)).collect();
        for (at, row) in groups_of(&app.store, caller, alive).await?.into_iter().enumerate() {
            if row.direct {
                let key = format!("{}.{}", members.key, LinkSub::Value.as_str());
                let index = IndexRow { key, element: position(at), value: row.member.as_str().to_owned() };
                rows.entry(row.group).or_default().push(index);
            }
        }
    } else if let Some(groups) = derived_links(rt) {
        let group_type = caller.registry.resource_types().find(|rt| rt.link_attribute().is_some());
        let ids = live.iter().map(|live| live.id.clone()).collect();
        for (at, row) in groups_of(&app.store, caller, ids).await?.into_iter().enumerate() {
            let location = group_type.map(|rt| caller.location(rt, &row.group));
            let values = [
                (LinkSub::Value, Some(json!(row.group))),
                (LinkSub::Type, Some(json!(if row.direct { "direct" } else { "indirect" }))),
                (LinkSub::Display, row.display.map(Value::from)),
                (LinkSub::Ref, location.map(Value::from)),
            ];
            let rows = rows.entry(row.member).or_default();
            for (sub, value) in values {
                let attribute = groups.sub(sub.as_str());
                let value =
                    attribute.zip(value).and_then(|(attribute, value)| index_value(attribute, &value));
                let key = format!("{}.{}", groups.key, sub.as_str());
                rows.extend(value.map(|value| IndexRow { key, element: position(at), value }));
            }
        }
    }
    Ok(rows)
}

/// Reads of groups are bounded far below this.
fn position(at: usize) -> i32 {
    i32::try_from(at).unwrap_or(i32::MAX)
}

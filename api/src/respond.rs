//! What answers look like: resources joined with what is derived (groups, members, the manager's name),
//! projected, and written out in bounded memory.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use annals_domain::clock::Timestamp;
use annals_domain::ids::{ResourceId, Version};
use annals_domain::scim::message::LIST_RESPONSE;
use annals_domain::scim::project::Projection;
use annals_domain::scim::resource::{Document, Meta, etag, render};
use annals_domain::scim::schema::{Attribute, Registry, ResourceType};
use annals_store::journal::read::{GROUPS_PER_READ_MAX, GroupRow};
use annals_store::model::Found;
use annals_store::{Content, MemberRow, StateRow, Store};
use axum::body::Body;
use axum::http::header::{CONTENT_LOCATION, CONTENT_TYPE, ETAG, LOCATION};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Result, chain};

/// The media type of every answer (MT-002), unless the client takes only plain JSON.
pub(crate) const SCIM_JSON: &str = "application/scim+json";
/// The media type for clients that take only that (MT-003).
pub(crate) const PLAIN_JSON: &str = "application/json";
/// Members read and written at once.
const MEMBERS_PER_PAGE: usize = 1_000;
/// An answer that is not larger is sent whole, with `Content-Length`; a larger one streams.
const WHOLE_BYTES_MAX: usize = 256 * 1024;

/// The header that marks the answer to a repeated request.
pub(crate) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// A live resource, from the journal or the read model.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) id: ResourceId,
    pub(crate) resource_type: Arc<ResourceType>,
    pub(crate) version: Version,
    pub(crate) created: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) document: Document,
    /// Created by this very request: nobody can have put it into a group yet, so nothing is looked up.
    pub(crate) is_new: bool,
}

impl Live {
    /// The resource of a state row; `None` if it was deleted or erased, or is of a type that nobody knows.
    pub(crate) fn of_state(registry: &Registry, state: StateRow) -> Option<Live> {
        let document = match state.content {
            Content::Open(document) if !state.deleted => document,
            _ => return None,
        };
        Some(Live {
            resource_type: registry.resource_type(&state.resource_type)?.clone(),
            id: state.id,
            version: state.version,
            created: state.created,
            modified: state.modified,
            document,
            is_new: false,
        })
    }

    /// The resource of a row of the read model.
    pub(crate) fn of_found(registry: &Registry, found: Found) -> Option<Live> {
        Some(Live {
            resource_type: registry.resource_type(&found.resource_type)?.clone(),
            id: found.id,
            version: found.version,
            created: found.created,
            modified: found.modified,
            document: found.document,
            is_new: false,
        })
    }
}

/// The attribute whose values are derived from other resources' links: `User.groups`.
pub(crate) fn derived_links(resource_type: &ResourceType) -> Option<&Attribute> {
    resource_type.attributes().find(|a| a.is_linked() && !a.link)
}

/// A resource as the client will see it. Members are written later, page by page.
struct Shown {
    head: Map<String, Value>,
    members: Option<(ResourceId, Arc<Projection>)>,
}

/// Joins and projects resources, all of one caller.
struct Presenter<'a> {
    app: &'a App,
    caller: &'a Caller,
}

impl Presenter<'_> {
    async fn show(&self, resources: Vec<(Live, Arc<Projection>)>) -> Result<Vec<Shown>> {
        let mut groups = self.groups(&resources).await?;
        let targets = self.targets(&resources).await?;
        let mut shown = Vec::with_capacity(resources.len());
        for (live, projection) in resources {
            let rt = &live.resource_type;
            let mut document = live.document;
            for attribute in references(rt) {
                let value = document.get(attribute).cloned();
                let joined = value.and_then(|value| self.join(attribute, value, &targets));
                document.set(attribute, joined);
            }
            let meta = Meta {
                created: live.created,
                last_modified: live.modified,
                version: live.version,
                location: self.caller.location(rt, &live.id),
            };
            let mut head = render(rt, &live.id, &document, &meta);
            if let (Some(attribute), Some(rows)) = (derived_links(rt), groups.remove(&live.id)) {
                let elements: Vec<Value> = rows.iter().filter_map(|row| self.group(row)).collect();
                if !elements.is_empty() {
                    head.insert(attribute.name.clone(), Value::Array(elements));
                }
            }
            let members = rt.link_attribute().filter(|a| projection.wants(&a.key));
            let members = members.map(|_| (live.id, projection.clone()));
            shown.push(Shown { head: projection.apply(head), members });
        }
        Ok(shown)
    }

    /// The groups of all users whose `groups` are wanted, by user.
    async fn groups(
        &self,
        resources: &[(Live, Arc<Projection>)],
    ) -> Result<HashMap<ResourceId, Vec<GroupRow>>> {
        let wanted = |(live, projection): &&(Live, Arc<Projection>)| {
            !live.is_new && derived_links(&live.resource_type).is_some_and(|a| projection.wants(&a.key))
        };
        let ids: Vec<_> = resources.iter().filter(wanted).map(|(live, _)| live.id.clone()).collect();
        let mut by_member: HashMap<ResourceId, Vec<GroupRow>> = HashMap::new();
        for row in groups_of(&self.app.store, self.caller, ids).await? {
            by_member.entry(row.member.clone()).or_default().push(row);
        }
        Ok(by_member)
    }

    fn group(&self, row: &GroupRow) -> Option<Value> {
        let registry = &self.caller.registry;
        let rt = registry.resource_types().find(|rt| rt.link_attribute().is_some())?;
        let mut element = json!({
            "value": row.group,
            "$ref": self.caller.location(rt, &row.group),
            "type": if row.direct { "direct" } else { "indirect" },
        });
        if let Some(display) = &row.display {
            element["display"] = json!(display);
        }
        Some(element)
    }

    /// What the stored references (`manager`) of these resources point to, tombstones included.
    async fn targets(&self, resources: &[(Live, Arc<Projection>)]) -> Result<HashMap<ResourceId, StateRow>> {
        let mut ids = BTreeSet::new();
        for (live, projection) in resources {
            for attribute in references(&live.resource_type).filter(|a| projection.wants(&a.key)) {
                let value = live.document.get(attribute);
                ids.extend(value.into_iter().flat_map(elements).filter_map(reference));
            }
        }
        let ids: Vec<_> = ids.into_iter().collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let states = self.app.store.states(self.caller.tenant(), &ids).await?;
        Ok(states.into_iter().map(|state| (state.id.clone(), state)).collect())
    }

    /// A stored reference with what its target says today. One whose target was deleted is left out; one
    /// that never had a target stays as it was given (idp-quirks §2.6).
    fn join(
        &self,
        attribute: &Attribute,
        value: Value,
        targets: &HashMap<ResourceId, StateRow>,
    ) -> Option<Value> {
        if let Value::Array(list) = value {
            let joined: Vec<_> = list.into_iter().filter_map(|v| self.join(attribute, v, targets)).collect();
            return (!joined.is_empty()).then_some(Value::Array(joined));
        }
        let Value::Object(mut element) = value else { return Some(value) };
        let target = element.get("value").and_then(Value::as_str).map(ResourceId::from_text);
        let state = target.as_ref().and_then(|id| targets.get(id));
        let reference = attribute.sub("$ref");
        let types = reference.map(|r| r.reference_types.as_slice()).unwrap_or_default();
        // The client's own text for these would go stale.
        element.remove("$ref");
        match state {
            Some(state) if state.deleted => return None,
            Some(state) if types.contains(&state.resource_type) => {
                let rt = self.caller.registry.resource_type(&state.resource_type);
                if let Some(rt) = rt {
                    element.insert("$ref".to_owned(), json!(self.caller.location(rt, &state.id)));
                }
                let name = ["displayName", "display"].into_iter().find_map(|name| attribute.sub(name));
                let display = state.document().and_then(|document| document.0.get("displayName"));
                if let (Some(name), Some(display)) = (name.filter(|n| n.is_read_only()), display) {
                    element.insert(name.name.clone(), display.clone());
                }
            }
            _ => {}
        }
        (!element.is_empty()).then_some(Value::Object(element))
    }
}

/// The groups that have these members. A list long enough to be cut short is asked for in parts; only
/// that of a single member is cut, at [`GROUPS_PER_READ_MAX`].
pub(crate) async fn groups_of(store: &Store, caller: &Caller, ids: Vec<ResourceId>) -> Result<Vec<GroupRow>> {
    let mut found = Vec::new();
    let mut parts = vec![ids];
    while let Some(mut ids) = parts.pop() {
        if ids.is_empty() {
            continue;
        }
        let rows = store.groups_of(caller.tenant(), &ids).await?;
        if rows.len() >= GROUPS_PER_READ_MAX && ids.len() > 1 {
            let half = ids.split_off(ids.len() / 2);
            parts.extend([ids, half]);
        } else {
            found.extend(rows);
        }
    }
    Ok(found)
}

/// The attributes that refer to one or few resources and are kept in documents: `manager`.
fn references(resource_type: &ResourceType) -> impl Iterator<Item = &Attribute> {
    resource_type.attributes().filter(|a| a.resource_ref && a.is_stored())
}

fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice)
}

fn reference(element: &Value) -> Option<ResourceId> {
    element.get("value")?.as_str().map(ResourceId::from_text)
}

/// A single resource with its headers (EP-010, CS-011).
pub(crate) async fn resource(
    app: &App,
    caller: &Caller,
    status: StatusCode,
    live: Live,
    projection: Projection,
) -> Result<Response> {
    let (version, location) = (live.version, caller.location(&live.resource_type, &live.id));
    let presenter = Presenter { app, caller };
    let mut pieces = VecDeque::new();
    for shown in presenter.show(vec![(live, Arc::new(projection))]).await? {
        push_resource(&mut pieces, shown);
    }
    let mut response = written(app, caller, pieces).await?;
    *response.status_mut() = status;
    name(&mut response, version, &location);
    set(&mut response, CONTENT_LOCATION, &location);
    Ok(response)
}

/// An answer without body that still names the resource: 204 and 304.
pub(crate) fn bare(status: StatusCode, version: Version, location: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    name(&mut response, version, location);
    response
}

fn name(response: &mut Response, version: Version, location: &str) {
    set(response, ETAG, &etag(version));
    set(response, LOCATION, location);
}

fn set(response: &mut Response, header: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(header, value);
    }
}

/// The text of a JSON object that is no resource.
pub(crate) fn json(text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(SCIM_JSON));
    response
}

/// What a page says about its list.
#[derive(Clone, Debug)]
pub(crate) enum Paging {
    /// By index: the number of the first resource, from 1.
    Index(u64),
    /// By cursor: the one for the next page, unless this is the last (CU-004).
    Cursor(Option<String>),
}

/// A page of a list (RQ-002, CU-007).
pub(crate) async fn list(
    app: &App,
    caller: &Caller,
    total: u64,
    paging: Paging,
    resources: Vec<(Live, Arc<Projection>)>,
) -> Result<Response> {
    let mut head = json!({
        "schemas": [LIST_RESPONSE],
        "totalResults": total,
        "itemsPerPage": resources.len(),
    });
    match paging {
        Paging::Index(start_index) => head["startIndex"] = json!(start_index),
        Paging::Cursor(Some(next)) => head["nextCursor"] = json!(next),
        Paging::Cursor(None) => {}
    }
    let mut pieces = VecDeque::from([Piece::Text(opened(&head.to_string()) + ",\"Resources\":[")]);
    let presenter = Presenter { app, caller };
    for (at, shown) in presenter.show(resources).await?.into_iter().enumerate() {
        if at > 0 {
            pieces.push_back(Piece::Text(",".to_owned()));
        }
        push_resource(&mut pieces, shown);
    }
    pieces.push_back(Piece::Text("]}".to_owned()));
    written(app, caller, pieces).await
}

/// A part of an answer.
enum Piece {
    Text(String),
    /// `,"members":[…]`, or nothing if there are none.
    Members {
        group: ResourceId,
        projection: Arc<Projection>,
        after: Option<ResourceId>,
    },
}

/// A JSON object without its closing brace.
fn opened(object: &str) -> String {
    object.strip_suffix('}').unwrap_or(object).to_owned()
}

fn push_resource(pieces: &mut VecDeque<Piece>, shown: Shown) {
    let text = Value::Object(shown.head).to_string();
    match shown.members {
        None => pieces.push_back(Piece::Text(text)),
        Some((group, projection)) => {
            // The head has `schemas` and `id` at least, so a comma may follow.
            pieces.push_back(Piece::Text(opened(&text)));
            pieces.push_back(Piece::Members { group, projection, after: None });
            pieces.push_back(Piece::Text("}".to_owned()));
        }
    }
}

/// Writes pieces one by one; holds one page of members at most.
struct Writer {
    store: Store,
    caller: Caller,
    pieces: VecDeque<Piece>,
}

impl Writer {
    /// The next text; `None` at the end. Empty texts are possible.
    async fn next(&mut self) -> Result<Option<String>> {
        match self.pieces.pop_front() {
            None => Ok(None),
            Some(Piece::Text(text)) => Ok(Some(text)),
            Some(Piece::Members { group, projection, after }) => {
                let tenant = self.caller.tenant();
                let rows = self.store.members(tenant, &group, after.as_ref(), MEMBERS_PER_PAGE).await?;
                let mut text = String::new();
                if after.is_none() && !rows.is_empty() {
                    text.push_str(",\"members\":[");
                }
                let elements = self.members(&rows, &projection).await?;
                for (at, element) in elements.iter().enumerate() {
                    if at > 0 || after.is_some() {
                        text.push(',');
                    }
                    text.push_str(&element.to_string());
                }
                match rows.last() {
                    // A full page may be the last one; the next is empty then.
                    Some(last) if rows.len() >= MEMBERS_PER_PAGE => {
                        let after = Some(last.id.clone());
                        self.pieces.push_front(Piece::Members { group, projection, after });
                    }
                    Some(_) => text.push(']'),
                    None if after.is_some() => text.push(']'),
                    None => {}
                }
                Ok(Some(text))
            }
        }
    }

    /// Members as the client will see them. Their names come from the read model and may lag (D4).
    async fn members(&self, rows: &[MemberRow], projection: &Projection) -> Result<Vec<Value>> {
        let ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
        let names = match projection.wants("members.display") && !ids.is_empty() {
            true => self.store.displays(self.caller.tenant(), &ids).await?,
            false => HashMap::new(),
        };
        let registry = &self.caller.registry;
        let element = |row: &MemberRow| {
            let mut element = json!({ "value": row.id });
            if let Some(rt) = registry.resource_type(&row.resource_type) {
                element["$ref"] = json!(self.caller.location(rt, &row.id));
                element["type"] = json!(rt.name);
            }
            if let Some(name) = names.get(&row.id) {
                element["display"] = json!(name);
            }
            element
        };
        let page = Map::from_iter([("members".to_owned(), rows.iter().map(element).collect())]);
        match projection.apply(page).remove("members") {
            Some(Value::Array(elements)) => Ok(elements),
            _ => Ok(Vec::new()),
        }
    }
}

/// Writes what is small at once, so that a failure is still an error answer; streams the rest.
async fn written(app: &App, caller: &Caller, pieces: VecDeque<Piece>) -> Result<Response> {
    let mut writer = Writer { store: app.store.clone(), caller: caller.clone(), pieces };
    let mut whole = String::new();
    let mut ended = false;
    while whole.len() <= WHOLE_BYTES_MAX && !ended {
        match writer.next().await? {
            Some(text) => whole.push_str(&text),
            None => ended = true,
        }
    }
    let body = if ended { Body::from(whole) } else { Body::from_stream(rest(whole, writer)) };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(SCIM_JSON));
    Ok(response)
}

/// An error in the middle breaks the connection off: the client sees that the answer is not whole.
fn rest(
    begun: String,
    writer: Writer,
) -> impl futures::Stream<Item = std::result::Result<Bytes, std::io::Error>> + Send {
    stream::try_unfold((Some(begun), writer), |(begun, mut writer)| async move {
        if let Some(text) = begun {
            return Ok(Some((Bytes::from(text), (None, writer))));
        }
        match writer.next().await {
            Ok(Some(text)) => Ok(Some((Bytes::from(text), (None, writer)))),
            Ok(None) => Ok(None),
            Err(error) => {
                let reason = match &error {
                    ApiError::Store(error) => chain(error),
                    other => format!("{other:?}"),
                };
                tracing::error!(error = reason, "a streamed answer broke off");
                Err(std::io::Error::other("the answer broke off"))
            }
        }
    })
}

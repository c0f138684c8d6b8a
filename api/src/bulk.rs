//! `POST /Bulk` (RFC 7644 §3.7): each operation as its single request would be, all in one answer.

use std::sync::Arc;

use annals_domain::ids::ResourceId;
use annals_domain::resource::Command;
use annals_domain::scim::bulk::{Method, Name, Operation, Plan, plan};
use annals_domain::scim::dialect::Dialect;
use annals_domain::scim::error::ScimError;
use annals_domain::scim::message::BULK_RESPONSE;
use annals_domain::scim::patch::parse_request;
use annals_domain::scim::resource::etag;
use annals_domain::scim::schema::{Registry, ResourceType};
use annals_store::{Bulk, BulkOutcome, Executed, IfMatch, Request, StoreError};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use crate::app::App;
use crate::auth::{Caller, Writer};
use crate::error::{ApiError, Result, told};
use crate::extract::{BulkBody, RequestLine, Target, check_accept, idempotency, if_match_text};
use crate::respond::{self, IDEMPOTENCY_REPLAYED};

/// `POST /Bulk` (BU-001 to BU-011).
pub(crate) async fn bulk(
    State(app): State<App>,
    caller: Writer,
    line: RequestLine,
    BulkBody(body): BulkBody,
) -> Result<Response> {
    check_accept(&line.headers, caller.is_strict())?;
    let idempotency = idempotency(&line, Some(&body.digest))?;
    let registry = caller.registry.clone();
    let mut dialect = caller.dialect();
    let plan = Arc::new(plan(&registry, body.json, caller.bounds(&app).bulk_operations_max, &mut dialect)?);
    let job = Job { app: &app, caller: &caller, registry: &registry, plan: &plan, dialect };
    let bulk = Bulk {
        tenant: caller.tenant().clone(),
        connection: Some(caller.principal.connection.id.clone()),
        plan: plan.clone(),
        idempotency,
        deadline: Some(app.options.write_timeout),
    };
    let outcomes = app.store.execute_bulk(bulk, |at, ids| job.request(at, ids)).await?;
    job.answer(outcomes)
}

struct Job<'a> {
    app: &'a App,
    caller: &'a Caller,
    registry: &'a Registry,
    plan: &'a Plan,
    /// With the quirks that reading the envelope needed; every operation's cause has them.
    dialect: Dialect,
}

impl Job<'_> {
    /// The command of an operation.
    fn request(&self, at: usize, ids: &[ResourceId]) -> Result<Request, ScimError> {
        let operation = &self.plan.operations[at];
        if let Some(error) = &operation.refused {
            return Err(error.clone());
        }
        let resolved = self.plan.resolve(self.registry, at, ids, &self.dialect);
        let (Some((id, data)), Some(target)) = (resolved, &operation.target) else {
            return Err(ScimError::not_found("no such path"));
        };
        let target = Target { resource_type: target.resource_type.clone(), id };
        if target.id.as_str().len() > ResourceId::LEN_BYTES_MAX {
            // Too long to be anybody's, and to be repeated.
            return Err(ScimError::not_found(format!("{} not found", target.resource_type.name)));
        }
        let mut dialect = self.dialect.clone();
        let (id, client) = (target.id.clone(), self.caller.client().clone());
        let (command, word) = match operation.method {
            Method::Post => (Command::Create { id, body: data, client }, "create"),
            Method::Put => (Command::Replace { id, body: data, client }, "replace"),
            Method::Patch => {
                let operations = parse_request(&data, &mut dialect)?;
                (Command::Patch { id, operations, client }, "patch")
            }
            Method::Delete => (Command::Delete, "delete"),
        };
        let if_match = match operation.method {
            // There is nothing yet that a create could match.
            Method::Post => IfMatch::Absent,
            _ => if_match_text(operation.version.as_deref(), self.caller.is_strict()),
        };
        if operation.method != Method::Post {
            self.caller.check_condition(&if_match)?;
        }
        let mut cause = self.caller.cause(word, &dialect.applied);
        cause.bulk_index = u32::try_from(at).ok();
        Ok(Request {
            tenant: self.caller.tenant().clone(),
            resource_type: target.resource_type,
            id: target.id,
            command,
            if_match,
            actor: self.caller.actor(),
            cause,
            connection: Some(self.caller.principal.connection.id.clone()),
            settings: self.caller.principal.settings.clone(),
            group_name_unique: self.caller.group_name_unique(),
            // The whole request has one key.
            idempotency: None,
            deadline: Some(self.app.options.write_timeout),
        })
    }

    /// The BulkResponse: one entry for each operation that was processed, in the given order (BU-003).
    fn answer(&self, outcomes: Vec<BulkOutcome>) -> Result<Response> {
        let executed = |outcome: &BulkOutcome| match outcome {
            Some(Ok(executed)) => Some((executed.state.id.clone(), executed.replayed)),
            _ => None,
        };
        let done: Vec<Option<(ResourceId, bool)>> = outcomes.iter().map(executed).collect();
        let is_replay = done.iter().flatten().any(|(_, replayed)| *replayed);
        let mut entries = Vec::with_capacity(outcomes.len());
        for (operation, outcome) in self.plan.operations.iter().zip(outcomes) {
            let Some(outcome) = outcome else { continue };
            let id = operation.target.as_ref().and_then(|target| match &target.name {
                Name::Given(id) => Some(id.clone()),
                Name::Created(at) => done.get(*at)?.as_ref().map(|(id, _)| id.clone()),
                Name::New => None,
            });
            entries.push(self.entry(operation, id, outcome));
        }
        let text = serde_json::to_string(&Answer { schemas: [BULK_RESPONSE], operations: entries })
            .map_err(|e| ApiError::status(500, format!("the answer could not be written: {e}")))?;
        let mut response = respond::json(text);
        if is_replay {
            response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
        }
        Ok(response)
    }

    fn entry<'a>(
        &self,
        operation: &'a Operation,
        id: Option<ResourceId>,
        outcome: std::result::Result<Executed, StoreError>,
    ) -> Entry<'a> {
        let (mut version, mut response) = (None, None);
        let resource_type = operation.target.as_ref().map(|target| &target.resource_type);
        let outcome = outcome.map_err(|error| told(error).0).and_then(|executed| match operation.method {
            Method::Delete => Ok(executed),
            // Only a repeated request can meet this: what it did is undone by now.
            _ if executed.state.document().is_none() => {
                Err(ScimError::not_found("the resource was deleted after this request was first carried out"))
            }
            _ => Ok(executed),
        });
        let (status, id) = match outcome {
            Ok(executed) => {
                if operation.method != Method::Delete {
                    version = Some(etag(executed.state.version));
                }
                (status(operation.method, resource_type), Some(executed.state.id))
            }
            Err(error) => {
                response = Some(error.to_json());
                (error.status, id)
            }
        };
        let shown = id.filter(|id| id.as_str().len() <= ResourceId::LEN_BYTES_MAX);
        let location = shown.zip(resource_type).map(|(id, rt)| self.caller.location(rt, &id));
        let status = status.to_string();
        metrics::counter!("annals_bulk_operations_total", "status" => status.clone()).increment(1);
        let (method, bulk_id) = (operation.method.as_str(), operation.bulk_id.as_deref());
        Entry { method, bulk_id, version, location, status, response }
    }
}

/// BulkResponse (RFC 7644 §3.7).
#[derive(Serialize)]
struct Answer<'a> {
    schemas: [&'static str; 1],
    #[serde(rename = "Operations")]
    operations: Vec<Entry<'a>>,
}

/// What became of one operation.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bulk_id: Option<&'a str>,
    /// Its entity tag, where something is there afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    status: String,
    /// The error, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<Value>,
}

/// The status of an operation that was carried out: that of its single request.
fn status(method: Method, resource_type: Option<&Arc<ResourceType>>) -> u16 {
    let has_members = resource_type.is_some_and(|rt| rt.link_attribute().is_some());
    let status = match method {
        Method::Post => StatusCode::CREATED,
        Method::Patch if has_members => StatusCode::NO_CONTENT,
        Method::Put | Method::Patch => StatusCode::OK,
        Method::Delete => StatusCode::NO_CONTENT,
    };
    status.as_u16()
}

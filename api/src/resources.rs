//! POST, GET, PUT, PATCH and DELETE, the same for every registered resource type.

use std::collections::BTreeSet;

use annals_domain::ids::ResourceId;
use annals_domain::resource::Command;
use annals_domain::scim::dialect::Quirk;
use annals_domain::scim::patch::parse_request;
use annals_domain::scim::project::{Projection, Written};
use annals_domain::scim::resource::etag;
use annals_store::{Executed, IfMatch, Request};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

use crate::app::App;
use crate::auth::{Caller, Reader, Writer};
use crate::error::{ApiError, Result};
use crate::extract::{
    Endpoint, Query, RequestLine, ScimBody, Target, check_accept, idempotency, if_match, none_match_hits,
    wants_representation,
};
use crate::respond::{IDEMPOTENCY_REPLAYED, Live, bare, resource};

/// `GET /{endpoint}/{id}` (RQ-001).
pub(crate) async fn get(
    State(app): State<App>,
    caller: Reader,
    target: Target,
    query: Query,
    line: RequestLine,
) -> Result<Response> {
    check_accept(&line.headers, caller.is_strict())?;
    let projection = projection(&caller, &target, &query)?;
    let live = match app.store.state(caller.tenant(), &target.id).await? {
        Some(state) => Live::of_state(&caller.registry, state),
        None => None,
    };
    let live = live.filter(|live| live.resource_type.name == target.resource_type.name);
    let Some(live) = live else { return Err(target.not_found()) };
    if none_match_hits(&line.headers, &etag(live.version)) {
        let location = caller.location(&live.resource_type, &live.id);
        return Ok(bare(StatusCode::NOT_MODIFIED, live.version, &location));
    }
    resource(&app, &caller, StatusCode::OK, live, projection).await
}

/// `POST /{endpoint}` (CR-002).
pub(crate) async fn create(
    State(app): State<App>,
    caller: Writer,
    Endpoint(resource_type): Endpoint,
    query: Query,
    line: RequestLine,
    body: ScimBody,
) -> Result<Response> {
    check_accept(&line.headers, caller.is_strict())?;
    let id = ResourceId::from_uuid(app.store.entropy().uuid_v7(app.store.now()));
    let target = Target { resource_type, id: id.clone() };
    let projection = projection(&caller, &target, &query)?;
    let projection = with_written(&caller, &target, projection, Written::Body(&body.json));
    let command = Command::Create { id, body: body.json, client: caller.client().clone() };
    let change = Change { target, command, operation: "create", quirks: BTreeSet::new() };
    let executed = change.execute(&app, &caller, &line, Some(&body.digest)).await?;
    let answer = Answer::Whole(StatusCode::CREATED, projection);
    respond(&app, &caller, executed, answer).await
}

/// `PUT /{endpoint}/{id}` (PU-001 to PU-007). Never creates (EP-002).
pub(crate) async fn replace(
    State(app): State<App>,
    caller: Writer,
    target: Target,
    query: Query,
    line: RequestLine,
    body: ScimBody,
) -> Result<Response> {
    check_accept(&line.headers, caller.is_strict())?;
    let projection = projection(&caller, &target, &query)?;
    let projection = with_written(&caller, &target, projection, Written::Body(&body.json));
    let command =
        Command::Replace { id: target.id.clone(), body: body.json, client: caller.client().clone() };
    let change = Change { target, command, operation: "replace", quirks: BTreeSet::new() };
    let executed = change.execute(&app, &caller, &line, Some(&body.digest)).await?;
    respond(&app, &caller, executed, Answer::Whole(StatusCode::OK, projection)).await
}

/// `PATCH /{endpoint}/{id}` (PA-010): a type with members answers 204 unless asked for more, as its
/// members may be many.
pub(crate) async fn patch(
    State(app): State<App>,
    caller: Writer,
    target: Target,
    query: Query,
    line: RequestLine,
    body: ScimBody,
) -> Result<Response> {
    check_accept(&line.headers, caller.is_strict())?;
    let projection = projection(&caller, &target, &query)?;
    let mut dialect = caller.dialect();
    let operations = parse_request(&body.json, &mut dialect)?;
    let projection = with_written(&caller, &target, projection, Written::Operations(&operations));
    let asked = projection.is_explicit() || wants_representation(&line.headers);
    let answer = match target.resource_type.link_attribute() {
        Some(_) if !asked => Answer::Bare,
        _ => Answer::Whole(StatusCode::OK, projection),
    };
    let command = Command::Patch { id: target.id.clone(), operations, client: caller.client().clone() };
    let change = Change { target, command, operation: "patch", quirks: dialect.applied };
    let executed = change.execute(&app, &caller, &line, Some(&body.digest)).await?;
    respond(&app, &caller, executed, answer).await
}

/// `DELETE /{endpoint}/{id}` (DE-001).
pub(crate) async fn delete(
    State(app): State<App>,
    caller: Writer,
    target: Target,
    line: RequestLine,
) -> Result<Response> {
    let change = Change { target, command: Command::Delete, operation: "delete", quirks: BTreeSet::new() };
    let executed = change.execute(&app, &caller, &line, None).await?;
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    mark_replay(&mut response, &executed);
    Ok(response)
}

fn projection(caller: &Caller, target: &Target, query: &Query) -> Result<Projection> {
    let (attributes, excluded) = (query.list("attributes")?, query.list("excludedAttributes")?);
    Ok(Projection::new(
        &caller.registry,
        &target.resource_type,
        attributes.as_deref(),
        excluded.as_deref(),
        &mut caller.dialect(),
    )?)
}

/// The projection of the answer to a change (CH-009).
fn with_written(
    caller: &Caller,
    target: &Target,
    projection: Projection,
    written: Written<'_>,
) -> Projection {
    projection.with_written(&caller.registry, &target.resource_type, written, &mut caller.dialect())
}

/// A change on its way to the store.
struct Change {
    target: Target,
    command: Command,
    operation: &'static str,
    /// What reading the body already rewrote.
    quirks: BTreeSet<Quirk>,
}

impl Change {
    async fn execute(
        self,
        app: &App,
        caller: &Caller,
        line: &RequestLine,
        digest: Option<&[u8; 32]>,
    ) -> Result<Executed> {
        let creating = matches!(self.command, Command::Create { .. });
        if !creating && self.target.id.as_str().len() > ResourceId::LEN_BYTES_MAX {
            return Err(self.target.not_found());
        }
        // There is nothing yet that a create could match.
        let if_match = match creating {
            true => IfMatch::Absent,
            false => if_match(&line.headers, caller.is_strict()),
        };
        if !creating {
            caller.check_condition(&if_match)?;
        }
        let request = Request {
            tenant: caller.tenant().clone(),
            resource_type: self.target.resource_type,
            id: self.target.id,
            command: self.command,
            if_match,
            actor: caller.actor(),
            cause: caller.cause(self.operation, &self.quirks),
            connection: Some(caller.principal.connection.id.clone()),
            settings: caller.principal.settings.clone(),
            group_name_unique: caller.group_name_unique(),
            idempotency: idempotency(line, digest)?,
            deadline: Some(app.options.write_timeout),
        };
        Ok(app.store.execute(request).await?)
    }
}

enum Answer {
    /// 204 with the resource's name and version.
    Bare,
    /// The resource.
    Whole(StatusCode, Projection),
}

async fn respond(app: &App, caller: &Caller, executed: Executed, answer: Answer) -> Result<Response> {
    let replayed = executed.replayed;
    let Some(mut live) = Live::of_state(&caller.registry, executed.state.clone()) else {
        // Only a repeated request can meet this: what it did is undone by now.
        return Err(ApiError::not_found("the resource was deleted after this request was first carried out"));
    };
    let mut response = match answer {
        Answer::Bare => {
            let location = caller.location(&live.resource_type, &live.id);
            bare(StatusCode::NO_CONTENT, live.version, &location)
        }
        Answer::Whole(status, projection) => {
            // A create that reactivated somebody (`reactivate-on-create`) is not about a new resource.
            live.is_new = executed.created;
            resource(app, caller, status, live, projection).await?
        }
    };
    if replayed {
        mark_replay(&mut response, &executed);
    }
    Ok(response)
}

fn mark_replay(response: &mut Response, executed: &Executed) {
    if executed.replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
}

//! `/Me` (RFC 7644 §3.11): the user for whom the token was made, processed directly (ME-002).

use annals_domain::ids::ResourceId;
use annals_store::{Account, StateRow};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;

use crate::app::App;
use crate::auth::{Caller, Reader, Writer, no_credentials};
use crate::error::{ApiError, Result};
use crate::extract::{Query, RequestLine, ScimBody, Target};
use crate::resources;

/// The user that `/Me` is for this token; 404 if the token is a machine's, or its user is gone (ME-003).
pub(crate) struct Me(Target);

impl FromRequestParts<App> for Me {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let caller = crate::auth::authenticate(parts, app).await?.ok_or_else(no_credentials)?;
        let user =
            subject(app, &caller).await?.ok_or_else(|| ApiError::not_found("this token is no user's"))?;
        let resource_type = caller.registry.resource_type(&user.resource_type).cloned();
        let resource_type = resource_type.ok_or_else(|| ApiError::not_found("there are no users"))?;
        Ok(Me(Target { resource_type, id: user.id }))
    }
}

/// The token's subject is an id or a `userName`.
async fn subject(app: &App, caller: &Caller) -> Result<Option<StateRow>> {
    let Some(subject) = &caller.principal.subject else { return Ok(None) };
    for account in [Account::Id(ResourceId::from_text(subject)), Account::UserName(subject.clone())] {
        if let Some(user) = app.store.find_account(caller.tenant(), &account).await? {
            return Ok(Some(user));
        }
    }
    Ok(None)
}

pub(crate) async fn get(
    app: State<App>,
    caller: Reader,
    Me(target): Me,
    query: Query,
    line: RequestLine,
) -> Result<Response> {
    resources::get(app, caller, target, query, line).await
}

pub(crate) async fn replace(
    app: State<App>,
    caller: Writer,
    Me(target): Me,
    query: Query,
    line: RequestLine,
    body: ScimBody,
) -> Result<Response> {
    resources::replace(app, caller, target, query, line, body).await
}

pub(crate) async fn patch(
    app: State<App>,
    caller: Writer,
    Me(target): Me,
    query: Query,
    line: RequestLine,
    body: ScimBody,
) -> Result<Response> {
    resources::patch(app, caller, target, query, line, body).await
}

pub(crate) async fn delete(
    app: State<App>,
    caller: Writer,
    Me(target): Me,
    line: RequestLine,
) -> Result<Response> {
    resources::delete(app, caller, target, line).await
}

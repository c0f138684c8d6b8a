//! Tokens of a tenant's connections, and of the installation's operators. The secret is in the answer to
//! its making and nowhere else.

use annals_domain::clock::Timestamp;
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::fold::parse_datetime;
use annals_domain::tenant::{OPERATORS, Scope, Token};
use annals_store::tenants::{IssuedToken, Stored};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{Entry, List, created, found, json, no_content, time};
use super::auth::{Administrator, InTenant, Operator};
use super::doc::{OperatorTokenParam, PageParams, TenantParam, TokenParam};
use super::extract::{Json, Key, Page, invalid};
use crate::app::App;
use crate::error::{ApiError, Result};

/// Longest `subject`, in bytes.
const SUBJECT_BYTES_MAX: usize = 1_024;

/// A token without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenView {
    /// Its public id, part of its text.
    #[schema(example = "0123456789ab")]
    id: String,
    /// Whose it is: the connection, or the operator's name.
    connection: ConnectionId,
    /// What it may do.
    scopes: Vec<Scope>,
    /// When it ends; absent = it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    expires: Option<String>,
    /// The user it stands for at `/Me`; absent = it is a machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    subject: Option<String>,
}

/// A token that was just made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NewTokenView {
    #[serde(flatten)]
    token: Entry<TokenView>,
    /// The whole token, shown this once.
    secret: String,
}

/// A token to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NewToken {
    connection: ConnectionId,
    /// What it may do; absent = read and write.
    #[schema(min_items = 1)]
    scopes: Option<Vec<Scope>>,
    /// When it ends (RFC 3339); absent = it does not.
    #[schema(format = DateTime)]
    expires: Option<String>,
    /// The user it stands for at `/Me`, by id or `userName`.
    #[schema(min_length = 1, max_length = 1024)]
    subject: Option<String>,
}

/// An operator's token to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NewOperatorToken {
    /// The operator's name.
    operator: ConnectionId,
    /// When it ends (RFC 3339); absent = it does not.
    #[schema(format = DateTime)]
    expires: Option<String>,
}

fn view(stored: Stored<Token>) -> Entry<TokenView> {
    let Stored { entity, version, created, modified } = stored;
    let Token { id, connection, scopes, expires, subject } = entity;
    let entity = TokenView { id, connection, scopes, expires: expires.map(time), subject };
    Entry::of(Stored { entity, version, created, modified })
}

fn end(app: &App, expires: Option<&str>) -> Result<Option<Timestamp>> {
    let Some(text) = expires else { return Ok(None) };
    match parse_datetime(text) {
        Some(at) if at > app.store.now() => Ok(Some(at)),
        Some(_) => Err(invalid("expires: this is in the past")),
        None => Err(invalid("expires: this is no moment such as 2027-01-01T00:00:00Z")),
    }
}

fn issued(administrator: &Administrator, path: &str, token: IssuedToken) -> Response {
    let path = format!("{path}/{}", token.id);
    let secret = token.secret.expose_secret().to_owned();
    let body = NewTokenView { token: view(token.token), secret };
    created(administrator, &path, body.token.version, &body)
}

async fn list_of(app: &App, tenant: &TenantId, page: Page) -> Result<Response> {
    let found = app.store.find_after(tenant, page.after.as_deref(), page.limit + 1).await?;
    let entries = found.into_iter().map(view).collect();
    let list = List::of(entries, page.limit, |entry: &Entry<TokenView>| entry.entity.id.clone());
    Ok(json(StatusCode::OK, &list))
}

async fn one_of(app: &App, tenant: &TenantId, key: &str, headers: &HeaderMap) -> Result<Response> {
    let token = app.store.find::<Token>(tenant, key).await?;
    let token = token.ok_or_else(|| ApiError::not_found("no such token"))?;
    Ok(found(headers, &view(token)))
}

/// A tenant's tokens, without their secrets.
#[utoipa::path(get, path = "/tenants/{tenant}/tokens", tag = "tokens", operation_id = "listTokens",
    params(TenantParam, PageParams), responses((status = 200, body = List<Entry<TokenView>>)))]
pub(crate) async fn list(State(app): State<App>, scope: InTenant, page: Page) -> Result<Response> {
    list_of(&app, &scope.tenant, page).await
}

/// Makes a token. Its secret is in this answer and nowhere else. Rotate by making a second one before
/// revoking the first.
#[utoipa::path(post, path = "/tenants/{tenant}/tokens", tag = "tokens", operation_id = "issueToken",
    params(TenantParam), request_body = NewToken, responses((status = 201, body = NewTokenView)))]
pub(crate) async fn issue(
    State(app): State<App>,
    scope: InTenant,
    Json(new): Json<NewToken>,
) -> Result<Response> {
    let scopes = new.scopes.unwrap_or_else(|| vec![Scope::Read, Scope::Write]);
    if scopes.is_empty() {
        return Err(invalid("scopes: at least one is needed"));
    }
    if new.subject.as_ref().is_some_and(|s| s.is_empty() || s.len() > SUBJECT_BYTES_MAX) {
        return Err(invalid(format!("subject: it has 1 to {SUBJECT_BYTES_MAX} bytes")));
    }
    let expires = end(&app, new.expires.as_deref())?;
    let (tenant, by) = (&scope.tenant, scope.by());
    let token = app.store.issue_token_for(tenant, &new.connection, scopes, expires, new.subject, by).await?;
    Ok(issued(&scope, &format!("/tenants/{tenant}/tokens"), token))
}

/// A token, without its secret.
#[utoipa::path(get, path = "/tenants/{tenant}/tokens/{token}", tag = "tokens", operation_id = "getToken",
    params(TokenParam), responses((status = 200, body = Entry<TokenView>)))]
pub(crate) async fn get(
    State(app): State<App>,
    scope: InTenant,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response> {
    one_of(&app, &scope.tenant, &key, &headers).await
}

/// Revokes a token: at once here, within five seconds elsewhere.
#[utoipa::path(delete, path = "/tenants/{tenant}/tokens/{token}", tag = "tokens",
    operation_id = "revokeToken", params(TokenParam), responses((status = 204)))]
pub(crate) async fn revoke(State(app): State<App>, scope: InTenant, Key(key): Key) -> Result<Response> {
    app.store.revoke_token(&scope.tenant, &key, scope.by()).await?;
    Ok(no_content())
}

fn operators() -> Result<TenantId> {
    TenantId::new(OPERATORS).map_err(|_| ApiError::not_found("no such token"))
}

/// The operators' tokens, without their secrets.
#[utoipa::path(get, path = "/operator-tokens", tag = "operators", operation_id = "listOperatorTokens",
    params(PageParams), responses((status = 200, body = List<Entry<TokenView>>)))]
pub(crate) async fn list_operators(State(app): State<App>, _: Operator, page: Page) -> Result<Response> {
    list_of(&app, &operators()?, page).await
}

/// Makes a token for an operator of the whole installation. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/operator-tokens", tag = "operators", operation_id = "issueOperatorToken",
    request_body = NewOperatorToken, responses((status = 201, body = NewTokenView)))]
pub(crate) async fn issue_operator(
    State(app): State<App>,
    operator: Operator,
    Json(new): Json<NewOperatorToken>,
) -> Result<Response> {
    let expires = end(&app, new.expires.as_deref())?;
    let token = app.store.issue_operator_token(&new.operator, expires, operator.by()).await?;
    Ok(issued(&operator, "/operator-tokens", token))
}

/// An operator's token, without its secret.
#[utoipa::path(get, path = "/operator-tokens/{token}", tag = "operators",
    operation_id = "getOperatorToken", params(OperatorTokenParam),
    responses((status = 200, body = Entry<TokenView>)))]
pub(crate) async fn get_operator(
    State(app): State<App>,
    _: Operator,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response> {
    one_of(&app, &operators()?, &key, &headers).await
}

/// Revokes an operator's token, one's own included: at once here, within five seconds elsewhere.
#[utoipa::path(delete, path = "/operator-tokens/{token}", tag = "operators",
    operation_id = "revokeOperatorToken", params(OperatorTokenParam), responses((status = 204)))]
pub(crate) async fn revoke_operator(
    State(app): State<App>,
    operator: Operator,
    Key(key): Key,
) -> Result<Response> {
    app.store.revoke_token(&operators()?, &key, operator.by()).await?;
    Ok(no_content())
}

//! Connections: the identity providers of a tenant, with client profile and switches.

use annals_domain::ids::ConnectionId;
use annals_domain::scim::dialect::{Client, Profile, Switches, switches_schema};
use annals_domain::tenant::Connection;
use annals_store::StoreError;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{Entry, List, changed, created, found, json};
use super::auth::InTenant;
use super::doc::{ConnectionParam, ConnectionPatch, PageParams, TenantParam};
use super::extract::{Json, Key, MergePatch, Page};
use crate::app::App;
use crate::error::{ApiError, Result};

/// A connection to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NewConnection {
    id: ConnectionId,
    /// How its requests are read.
    #[serde(default)]
    profile: Profile,
    /// What differs from the profile: docs/client-profiles.md.
    #[serde(default)]
    #[schema(schema_with = switches_schema, required = false)]
    switches: Switches,
}

fn missing() -> ApiError {
    ApiError::not_found("no such connection")
}

/// A tenant's connections.
#[utoipa::path(get, path = "/tenants/{tenant}/connections", tag = "connections",
    operation_id = "listConnections", params(TenantParam, PageParams),
    responses((status = 200, body = List<Entry<Connection>>)))]
pub(crate) async fn list(State(app): State<App>, scope: InTenant, page: Page) -> Result<Response> {
    let found = app.store.find_after(&scope.tenant, page.after.as_deref(), page.limit + 1).await?;
    let entries = found.into_iter().map(Entry::of).collect();
    let list = List::of(entries, page.limit, |entry: &Entry<Connection>| entry.entity.id.to_string());
    Ok(json(StatusCode::OK, &list))
}

/// Makes a connection. A name is not given again.
#[utoipa::path(post, path = "/tenants/{tenant}/connections", tag = "connections",
    operation_id = "createConnection", params(TenantParam), request_body = NewConnection,
    responses((status = 201, body = Entry<Connection>),
        (status = 409, description = "It exists, or did once")))]
pub(crate) async fn create(
    State(app): State<App>,
    scope: InTenant,
    Json(new): Json<NewConnection>,
) -> Result<Response> {
    let client = Client { profile: new.profile, switches: new.switches };
    let connection = Connection::new(new.id, client);
    let path = format!("/tenants/{}/connections/{}", scope.tenant, connection.id);
    let entry = Entry::of(app.store.create_connection(&scope.tenant, connection, scope.by()).await?);
    Ok(created(&scope, &path, entry.version, &entry))
}

/// A connection.
#[utoipa::path(get, path = "/tenants/{tenant}/connections/{connection}", tag = "connections",
    operation_id = "getConnection", params(ConnectionParam),
    responses((status = 200, body = Entry<Connection>)))]
pub(crate) async fn get(
    State(app): State<App>,
    scope: InTenant,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response> {
    let connection = app.store.find::<Connection>(&scope.tenant, &key).await?.ok_or_else(missing)?;
    Ok(found(&headers, &Entry::of(connection)))
}

/// Changes a connection's profile or switches; other processes notice within five seconds.
#[utoipa::path(patch, path = "/tenants/{tenant}/connections/{connection}", tag = "connections",
    operation_id = "changeConnection", params(ConnectionParam),
    request_body(content = ConnectionPatch, content_type = "application/merge-patch+json"),
    responses((status = 200, body = Entry<Connection>)))]
pub(crate) async fn change(
    State(app): State<App>,
    scope: InTenant,
    Key(key): Key,
    patch: MergePatch,
) -> Result<Response> {
    let id = ConnectionId::new(&key).map_err(|_| missing())?;
    let edit = |connection: Connection| patch.apply(&connection).map_err(StoreError::Refused);
    let connection = app.store.edit_connection(&scope.tenant, &id, scope.by(), edit).await?;
    Ok(changed(&Entry::of(connection)))
}

//! Schemas and resource types of a tenant (docs/schemas.md).

use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::answer::{Entry, List, changed, created, found, json, no_content};
use super::auth::InTenant;
use super::doc::{PageParams, ResourceTypeParam, SchemaParam, TenantParam};
use super::extract::{Json, Key, Page, invalid};
use crate::app::App;
use crate::error::{ApiError, Result};

/// What an answer has besides the definition: it may be sent back, and says nothing.
const ADDED: [&str; 4] = ["version", "created", "modified", "retired"];

fn definition(mut body: Value) -> Value {
    if let Value::Object(members) = &mut body {
        ADDED.iter().for_each(|name| drop(members.remove(*name)));
    }
    body
}

/// 400 unless the path and the body name the same.
fn check_key(member: &str, in_path: &str, in_body: &str) -> Result<()> {
    match in_path.eq_ignore_ascii_case(in_body) {
        true => Ok(()),
        false => Err(invalid(format!("{member}: {in_body}, and the path names {in_path}"))),
    }
}

/// 201 if it is new, else 200.
fn put<E: Serialize + ToSchema>(scope: &InTenant, path: &str, entry: &Entry<E>, is_new: bool) -> Response {
    if is_new { created(scope, path, entry.version, entry) } else { changed(entry) }
}

/// A tenant's own schemas, retired ones too.
#[utoipa::path(get, path = "/tenants/{tenant}/schemas", tag = "schemas", operation_id = "listSchemas",
    params(TenantParam, PageParams), responses((status = 200, body = List<Entry<SchemaDefinition>>)))]
pub(crate) async fn list_schemas(State(app): State<App>, scope: InTenant, page: Page) -> Result<Response> {
    let found = app.store.find_after(&scope.tenant, page.after.as_deref(), page.limit + 1).await?;
    let entries = found.into_iter().map(Entry::of).collect();
    let list = List::of(entries, page.limit, |entry: &Entry<SchemaDefinition>| entry.entity.key());
    Ok(json(StatusCode::OK, &list))
}

/// One of a tenant's own schemas.
#[utoipa::path(get, path = "/tenants/{tenant}/schemas/{urn}", tag = "schemas", operation_id = "getSchema",
    params(SchemaParam), responses((status = 200, body = Entry<SchemaDefinition>)))]
pub(crate) async fn get_schema(
    State(app): State<App>,
    scope: InTenant,
    Key(urn): Key,
    headers: HeaderMap,
) -> Result<Response> {
    let schema = app.store.own_schema(&scope.tenant, &urn).await?;
    let schema = schema.ok_or_else(|| ApiError::not_found("no such schema"))?;
    Ok(found(&headers, &Entry::of(schema)))
}

/// Makes a schema, changes it, or brings a retired one back; in force at once in every process.
#[utoipa::path(put, path = "/tenants/{tenant}/schemas/{urn}", tag = "schemas", operation_id = "putSchema",
    params(SchemaParam), request_body = SchemaDefinition,
    responses((status = 200, body = Entry<SchemaDefinition>), (status = 201, body = Entry<SchemaDefinition>),
        (status = 409, description = "Resources that exist would become wrong"),
        (status = 503, description = "Whether there are such resources cannot be found out now")))]
pub(crate) async fn put_schema(
    State(app): State<App>,
    scope: InTenant,
    Key(urn): Key,
    Json(body): Json<Value>,
) -> Result<Response> {
    let schema = SchemaDefinition::read(&definition(body))?;
    check_key("id", &urn, &schema.id)?;
    let path = format!("/tenants/{}/schemas/{}", scope.tenant, schema.id);
    let done = app.store.put_schema(&scope.tenant, schema, scope.by()).await?;
    Ok(put(&scope, &path, &Entry::of(done.stored), done.created))
}

/// Retires a schema that no resource type has.
#[utoipa::path(delete, path = "/tenants/{tenant}/schemas/{urn}", tag = "schemas",
    operation_id = "retireSchema", params(SchemaParam),
    responses((status = 204, description = "It is no longer served"),
        (status = 409, description = "A resource type has it")))]
pub(crate) async fn retire_schema(
    State(app): State<App>,
    scope: InTenant,
    Key(urn): Key,
) -> Result<Response> {
    app.store.retire_schema(&scope.tenant, &urn, scope.by()).await?;
    Ok(no_content())
}

/// A tenant's own resource types and what it adds to users and groups, retired ones too.
#[utoipa::path(get, path = "/tenants/{tenant}/resource-types", tag = "schemas",
    operation_id = "listResourceTypes", params(TenantParam, PageParams),
    responses((status = 200, body = List<Entry<ResourceTypeDefinition>>)))]
pub(crate) async fn list_types(State(app): State<App>, scope: InTenant, page: Page) -> Result<Response> {
    let found = app.store.find_after(&scope.tenant, page.after.as_deref(), page.limit + 1).await?;
    let entries = found.into_iter().map(Entry::of).collect();
    let list = List::of(entries, page.limit, |entry: &Entry<ResourceTypeDefinition>| entry.entity.key());
    Ok(json(StatusCode::OK, &list))
}

/// One of them.
#[utoipa::path(get, path = "/tenants/{tenant}/resource-types/{name}", tag = "schemas",
    operation_id = "getResourceType", params(ResourceTypeParam),
    responses((status = 200, body = Entry<ResourceTypeDefinition>)))]
pub(crate) async fn get_type(
    State(app): State<App>,
    scope: InTenant,
    Key(name): Key,
    headers: HeaderMap,
) -> Result<Response> {
    let resource_type = app.store.own_resource_type(&scope.tenant, &name).await?;
    let resource_type = resource_type.ok_or_else(|| ApiError::not_found("no such resource type"))?;
    Ok(found(&headers, &Entry::of(resource_type)))
}

/// Makes a resource type, changes it, or brings a retired one back. For `User` and `Group` it says which
/// extensions they have besides their own.
#[utoipa::path(put, path = "/tenants/{tenant}/resource-types/{name}", tag = "schemas",
    operation_id = "putResourceType", params(ResourceTypeParam), request_body = ResourceTypeDefinition,
    responses((status = 200, body = Entry<ResourceTypeDefinition>),
        (status = 201, body = Entry<ResourceTypeDefinition>),
        (status = 409, description = "Resources that exist would become wrong"),
        (status = 503, description = "Whether there are such resources cannot be found out now")))]
pub(crate) async fn put_type(
    State(app): State<App>,
    scope: InTenant,
    Key(name): Key,
    Json(body): Json<Value>,
) -> Result<Response> {
    let resource_type = ResourceTypeDefinition::read(&definition(body))?;
    check_key("name", &name, &resource_type.name)?;
    let path = format!("/tenants/{}/resource-types/{}", scope.tenant, resource_type.name);
    let done = app.store.put_resource_type(&scope.tenant, resource_type, scope.by()).await?;
    Ok(put(&scope, &path, &Entry::of(done.stored), done.created))
}

/// Retires a resource type that has no resources.
#[utoipa::path(delete, path = "/tenants/{tenant}/resource-types/{name}", tag = "schemas",
    operation_id = "retireResourceType", params(ResourceTypeParam),
    responses((status = 204, description = "Its endpoint is gone"),
        (status = 400, description = "Every tenant has it"),
        (status = 409, description = "There are resources of it")))]
pub(crate) async fn retire_type(State(app): State<App>, scope: InTenant, Key(name): Key) -> Result<Response> {
    app.store.retire_resource_type(&scope.tenant, &name, scope.by()).await?;
    Ok(no_content())
}

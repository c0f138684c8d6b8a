//! Tenants and their settings.

use annals_domain::ids::TenantId;
use annals_domain::tenant::{Tenant, TenantSettings};
use annals_store::StoreError;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{Entry, List, changed, created, found, json};
use super::auth::{Administrator, InTenant, Operator};
use super::extract::{Json, MergePatch, Page};
use crate::app::App;
use crate::error::{ApiError, Result};

/// A tenant to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NewTenant {
    id: TenantId,
    #[serde(default)]
    settings: TenantSettings,
}

/// Tenants by id. An administrator of one tenant sees that one.
#[utoipa::path(get, path = "/tenants", tag = "tenants", operation_id = "listTenants",
    params(super::doc::PageParams), responses((status = 200, body = List<Entry<Tenant>>)))]
pub(crate) async fn list(
    State(app): State<App>,
    administrator: Administrator,
    page: Page,
) -> Result<Response> {
    let entries = match administrator.only_tenant() {
        Some(own) => app.store.tenant_entity(own).await?.into_iter().collect(),
        None => {
            let after = page.after.as_deref().map(TenantId::new).transpose();
            let after = after.map_err(|_| super::extract::invalid("cursor is of another list"))?;
            app.store.tenants_after(after.as_ref(), page.limit + 1).await?
        }
    };
    let entries = entries.into_iter().map(Entry::of).collect();
    let list = List::of(entries, page.limit, |entry: &Entry<Tenant>| entry.entity.id.to_string());
    Ok(json(StatusCode::OK, &list))
}

/// Makes a tenant. Only operators may. A name is not given again.
#[utoipa::path(post, path = "/tenants", tag = "tenants", operation_id = "createTenant",
    request_body = NewTenant,
    responses((status = 201, body = Entry<Tenant>), (status = 409, description = "It exists, or did once")))]
pub(crate) async fn create(
    State(app): State<App>,
    operator: Operator,
    Json(new): Json<NewTenant>,
) -> Result<Response> {
    let made = app.store.create_tenant(&new.id, new.settings, operator.by()).await?;
    let entry = Entry::of(made);
    Ok(created(&operator, &format!("/tenants/{}", new.id), entry.version, &entry))
}

/// A tenant.
#[utoipa::path(get, path = "/tenants/{tenant}", tag = "tenants", operation_id = "getTenant",
    params(super::doc::TenantParam), responses((status = 200, body = Entry<Tenant>)))]
pub(crate) async fn get(State(app): State<App>, scope: InTenant, headers: HeaderMap) -> Result<Response> {
    let tenant = app.store.tenant_entity(&scope.tenant).await?;
    let tenant = tenant.ok_or_else(|| ApiError::not_found("no such tenant"))?;
    Ok(found(&headers, &Entry::of(tenant)))
}

/// Changes a tenant's settings; other processes notice within five seconds.
#[utoipa::path(patch, path = "/tenants/{tenant}", tag = "tenants", operation_id = "changeTenant",
    params(super::doc::TenantParam),
    request_body(content = super::doc::TenantPatch, content_type = "application/merge-patch+json"),
    responses((status = 200, body = Entry<Tenant>)))]
pub(crate) async fn change(State(app): State<App>, scope: InTenant, patch: MergePatch) -> Result<Response> {
    let edit = |tenant: Tenant| patch.apply(&tenant).map_err(StoreError::Refused);
    let tenant = app.store.edit_tenant(&scope.tenant, scope.by(), edit).await?;
    Ok(changed(&Entry::of(tenant)))
}

//! Downstream applications of a tenant. Credentials go in and never come out, but for a webhook's secret
//! that was made here.

use annals_domain::ids::AppId;
use annals_domain::tenant::{App as Target, Driver, generate_webhook_secret};
use annals_store::StoreError;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{Entry, List, changed, created, found, json, no_content, time};
use super::auth::InTenant;
use super::doc::{AppParam, AppPatch, PageParams, TenantParam};
use super::extract::{Json, Key, MergePatch, Page, invalid};
use crate::app::App;
use crate::error::{ApiError, Result};
use crate::extract::path_param;

/// Longest credential, in bytes.
const CREDENTIAL_BYTES_MAX: usize = 8_192;

/// An application to be added: it gets everything that exists, then every change.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewApp {
    id: AppId,
    driver: Driver,
    /// The bearer token (SCIM) or signing secret (webhook). A webhook without one gets a new secret.
    #[schema(min_length = 1, max_length = 8192, pattern = "^[!-~]+$")]
    credential: Option<String>,
    /// Resource types it gets; empty = all.
    #[serde(default)]
    resource_types: Vec<String>,
    /// Nothing is sent until resumed; what is due stays due.
    #[serde(default)]
    paused: bool,
    /// Most requests in flight at once.
    #[schema(minimum = 1, maximum = 1000, default = 8)]
    concurrency_max: Option<u16>,
    /// Most requests a second; 0 = no limit.
    #[serde(default)]
    rate_per_second_max: u32,
}

/// An application that was just added.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NewAppView {
    #[serde(flatten)]
    app: Entry<Target>,
    /// The signing secret that was made for a webhook, shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    credential: Option<String>,
}

/// An application's credential.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Credential {
    /// The new bearer token or signing secret.
    #[schema(min_length = 1, max_length = 8192, pattern = "^[!-~]+$")]
    credential: String,
}

/// What to send again.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Replay {
    /// Send even what the application has already.
    #[serde(default)]
    force: bool,
}

/// How an application answers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppStatus {
    /// Failures in a row.
    failures: i64,
    /// Nothing is sent before this moment; absent = it is not on hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    on_hold_until: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// The application that the path names, which exists.
pub(crate) struct InApp(AppId);

impl axum::extract::FromRequestParts<App> for InApp {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut axum::http::request::Parts, app: &App) -> Result<Self> {
        let scope = InTenant::from_request_parts(parts, app).await?;
        let key = path_param(parts, "app").await?.unwrap_or_default();
        let id = AppId::new(&key).map_err(|_| missing())?;
        match app.store.find::<Target>(&scope.tenant, &key).await? {
            Some(_) => Ok(InApp(id)),
            None => Err(missing()),
        }
    }
}

fn missing() -> ApiError {
    ApiError::not_found("no such app")
}

fn secret(text: String) -> Result<SecretString> {
    let legal = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !legal || text.len() > CREDENTIAL_BYTES_MAX {
        return Err(invalid(format!(
            "credential: it has 1 to {CREDENTIAL_BYTES_MAX} visible ASCII characters"
        )));
    }
    Ok(SecretString::from(text))
}

/// A tenant's applications.
#[utoipa::path(get, path = "/tenants/{tenant}/apps", tag = "apps", operation_id = "listApps",
    params(TenantParam, PageParams), responses((status = 200, body = List<Entry<Target>>)))]
pub(crate) async fn list(State(app): State<App>, scope: InTenant, page: Page) -> Result<Response> {
    let found = app.store.find_after(&scope.tenant, page.after.as_deref(), page.limit + 1).await?;
    let entries = found.into_iter().map(Entry::of).collect();
    let list = List::of(entries, page.limit, |entry: &Entry<Target>| entry.entity.id.to_string());
    Ok(json(StatusCode::OK, &list))
}

/// Adds an application. A name is not given again.
#[utoipa::path(post, path = "/tenants/{tenant}/apps", tag = "apps", operation_id = "createApp",
    params(TenantParam), request_body = NewApp,
    responses((status = 201, body = NewAppView), (status = 409, description = "It exists, or did once")))]
pub(crate) async fn create(
    State(app): State<App>,
    scope: InTenant,
    Json(new): Json<NewApp>,
) -> Result<Response> {
    let (credential, shown) = match (new.credential, &new.driver) {
        (Some(given), _) => (secret(given)?, None),
        (None, Driver::Webhook { .. }) => {
            let made = generate_webhook_secret(&**app.store.entropy());
            let shown = made.expose_secret().to_owned();
            (made, Some(shown))
        }
        (None, Driver::Scim { .. }) => {
            return Err(invalid("credential: the application's bearer token is needed"));
        }
    };
    let target = Target {
        id: new.id,
        driver: new.driver,
        resource_types: new.resource_types,
        paused: new.paused,
        concurrency_max: new.concurrency_max.map_or(8, usize::from),
        rate_per_second_max: new.rate_per_second_max,
    };
    let path = format!("/tenants/{}/apps/{}", scope.tenant, target.id);
    let entry = Entry::of(app.store.create_app(&scope.tenant, target, credential, scope.by()).await?);
    let version = entry.version;
    Ok(created(&scope, &path, version, &NewAppView { app: entry, credential: shown }))
}

/// An application.
#[utoipa::path(get, path = "/tenants/{tenant}/apps/{app}", tag = "apps", operation_id = "getApp",
    params(AppParam), responses((status = 200, body = Entry<Target>)))]
pub(crate) async fn get(
    State(app): State<App>,
    scope: InTenant,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response> {
    let target = app.store.find::<Target>(&scope.tenant, &key).await?.ok_or_else(missing)?;
    Ok(found(&headers, &Entry::of(target)))
}

/// Changes an application, such as `paused`; workers notice within five seconds. One that is resumed is
/// tried at once.
#[utoipa::path(patch, path = "/tenants/{tenant}/apps/{app}", tag = "apps", operation_id = "changeApp",
    params(AppParam), request_body(content = AppPatch, content_type = "application/merge-patch+json"),
    responses((status = 200, body = Entry<Target>)))]
pub(crate) async fn change(
    State(app): State<App>,
    scope: InTenant,
    InApp(id): InApp,
    patch: MergePatch,
) -> Result<Response> {
    let mut resumed = false;
    let edit = |target: Target| {
        let after = patch.apply(&target).map_err(StoreError::Refused)?;
        resumed = target.paused && !after.paused;
        Ok(after)
    };
    let target = app.store.edit_app(&scope.tenant, &id, None, scope.by(), edit).await?;
    if resumed {
        app.store.probe_target(&scope.tenant, &id).await?;
    }
    Ok(changed(&Entry::of(target)))
}

/// Removes an application. Nothing is deleted in it.
#[utoipa::path(delete, path = "/tenants/{tenant}/apps/{app}", tag = "apps", operation_id = "deleteApp",
    params(AppParam), responses((status = 204)))]
pub(crate) async fn delete(State(app): State<App>, scope: InTenant, InApp(id): InApp) -> Result<Response> {
    app.store.delete_app(&scope.tenant, &id, scope.by()).await?;
    Ok(no_content())
}

/// Replaces an application's credential, and tries it at once.
#[utoipa::path(put, path = "/tenants/{tenant}/apps/{app}/credential", tag = "apps",
    operation_id = "setAppCredential", params(AppParam), request_body = Credential,
    responses((status = 204)))]
pub(crate) async fn set_credential(
    State(app): State<App>,
    scope: InTenant,
    InApp(id): InApp,
    Json(new): Json<Credential>,
) -> Result<Response> {
    let credential = Some(secret(new.credential)?);
    app.store.edit_app(&scope.tenant, &id, credential, scope.by(), Ok).await?;
    app.store.probe_target(&scope.tenant, &id).await?;
    Ok(no_content())
}

/// Compares everything with what the application has got, and sends what differs; a worker does it page by
/// page.
#[utoipa::path(post, path = "/tenants/{tenant}/apps/{app}/replay", tag = "apps", operation_id = "replayApp",
    params(AppParam), request_body = Replay, responses((status = 202, description = "A worker will do it")))]
pub(crate) async fn replay(
    State(app): State<App>,
    scope: InTenant,
    InApp(id): InApp,
    Json(what): Json<Replay>,
) -> Result<Response> {
    app.store.replay_app(&scope.tenant, &id, what.force).await?;
    scope.log("an app is replayed");
    let mut response = no_content();
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// How an application answers.
#[utoipa::path(get, path = "/tenants/{tenant}/apps/{app}/status", tag = "apps",
    operation_id = "getAppStatus", params(AppParam), responses((status = 200, body = AppStatus)))]
pub(crate) async fn status(State(app): State<App>, scope: InTenant, InApp(id): InApp) -> Result<Response> {
    let status = app.store.target_status(&scope.tenant, &id).await?;
    let on_hold_until = status.open_until.filter(|_| status.failures > 0).map(time);
    let body = AppStatus { failures: status.failures, on_hold_until, reason: status.reason };
    Ok(json(StatusCode::OK, &body))
}

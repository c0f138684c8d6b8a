//! Who administers: operators the whole installation, a tenant's administrators their tenant.
//!
//! Both show a token with the scope `scim.admin`. An operator's belongs to the tenant
//! [`OPERATORS`], which no client can have; any other token's tenant is all it may see: another one is 404,
//! as if it did not exist.

use std::ops::Deref;
use std::sync::Arc;

use annals_domain::event::{Actor, Cause};
use annals_domain::ids::TenantId;
use annals_domain::tenant::{OPERATORS, Scope};
use annals_store::IfMatch;
use annals_store::tenants::{By, Principal};
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::app::App;
use crate::auth::{identify, insufficient, no_credentials};
use crate::error::{ApiError, AuthError, Result};
use crate::extract::{if_match, origin_of, path_param};
use crate::layers::RequestContext;

/// Somebody with a token for administration, and the request's circumstances.
#[derive(Clone, Debug)]
pub(crate) struct Administrator {
    principal: Arc<Principal>,
    context: Arc<RequestContext>,
    /// What the request demands of the version it changes.
    pub(crate) if_match: IfMatch,
    origin: String,
}

impl Administrator {
    /// Whether the token is an operator's, and so for the whole installation.
    pub(crate) fn is_operator(&self) -> bool {
        self.principal.tenant.as_str() == OPERATORS
    }

    /// The one tenant that this administrator may see; none = all.
    pub(crate) fn only_tenant(&self) -> Option<&TenantId> {
        (!self.is_operator()).then_some(&self.principal.tenant)
    }

    /// Who, why and on which version, for the journal: the event's cause names the token.
    pub(crate) fn by(&self) -> By {
        let holder = &self.principal.connection.id;
        By {
            actor: match self.is_operator() {
                true => Actor::operator(holder.as_str()),
                false => Actor::connection(holder),
            },
            cause: Cause {
                request_id: self.context.id.clone(),
                traceparent: self.context.traceparent.clone(),
                token: Some(self.principal.token_id.clone()),
                ..Cause::default()
            },
            if_match: self.if_match.clone(),
        }
    }

    /// Writes down what is no event, with the token that did it.
    pub(crate) fn log(&self, what: &str) {
        let (token, holder) = (&self.principal.token_id, self.principal.connection.id.as_str());
        tracing::info!(token, holder, "{what}");
    }

    /// The absolute URI of a path below [`super::BASE`].
    pub(crate) fn location(&self, path: &str) -> String {
        format!("{}{}{path}", self.origin, super::BASE)
    }
}

impl FromRequestParts<App> for Administrator {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let (principal, context) = identify(parts, app).await?.ok_or_else(no_credentials)?;
        if !principal.scopes.contains(&Scope::Admin) {
            return Err(insufficient(Scope::Admin).into());
        }
        let if_match = if_match(&parts.headers, false);
        let origin = origin_of(parts, &app.options)?;
        Ok(Administrator { principal, context, if_match, origin })
    }
}

/// An operator of the installation.
pub(crate) struct Operator(pub(crate) Administrator);

impl Deref for Operator {
    type Target = Administrator;
    fn deref(&self) -> &Administrator {
        &self.0
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let administrator = Administrator::from_request_parts(parts, app).await?;
        if !administrator.is_operator() {
            return Err(ApiError::Auth(AuthError {
                status: StatusCode::FORBIDDEN,
                error: Some("insufficient_scope"),
                detail: "only an operator's token may do this: annals operator token-issue",
                scope: None,
            }));
        }
        Ok(Operator(administrator))
    }
}

/// Somebody who may administer the tenant that the path names, which exists.
pub(crate) struct InTenant {
    /// Who.
    pub(crate) administrator: Administrator,
    /// The tenant.
    pub(crate) tenant: TenantId,
}

impl Deref for InTenant {
    type Target = Administrator;
    fn deref(&self) -> &Administrator {
        &self.administrator
    }
}

impl FromRequestParts<App> for InTenant {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let administrator = Administrator::from_request_parts(parts, app).await?;
        let missing = || ApiError::not_found("no such tenant");
        let named = path_param(parts, "tenant").await?.unwrap_or_default();
        let tenant = TenantId::new(&named).map_err(|_| missing())?;
        let may = administrator.only_tenant().is_none_or(|only| *only == tenant);
        if !may || app.store.tenant_entity(&tenant).await?.is_none() {
            return Err(missing());
        }
        Ok(InTenant { administrator, tenant })
    }
}

//! Tenants, connections, tokens and apps (D13). They are event-sourced like everything else; tokens are
//! found by their digest, credentials are sealed secrets. What is cached lives five seconds at most.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::event::{Actor, Cause, Event};
use annals_domain::ids::{AppId, ConnectionId, Position, ResourceId, TenantId, Version};
use annals_domain::scim::dialect::Profile;
use annals_domain::scim::error::ScimError;
use annals_domain::scim::resource::{Document, diff};
use annals_domain::scim::schema::Registry;
use annals_domain::tenant::{
    App, Connection, Driver, Entity, OPERATORS, Scope, Tenant, TenantSettings, Token, is_administrative,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::Store;
use crate::backend::{Area, Sql, sql};
use crate::error::{Result, StoreError};
use crate::execute::{Header, IfMatch};
use crate::journal::append::tenant_id;
use crate::journal::read::{STATE_COLUMNS, StateRow, secret_aad};
use crate::journal::{
    AppendError, Commit, Expect, NewEvent, Receipt, SecretWrite, StateWrite, StreamReceipt, StreamWrite,
    TokenWrite,
};

/// How long tenants, apps and tokens may be remembered (D13).
const CACHE_TTL: Duration = Duration::from_secs(5);
const CACHED_TOKENS_MAX: u64 = 10_000;
const CREDENTIAL: &str = "credential";
/// What every token begins with, so that secret scanners know it.
pub const TOKEN_PREFIX: &str = "annals_";

/// What is remembered for a moment.
pub(crate) struct TenantCache {
    principals: moka::future::Cache<[u8; 32], Arc<Principal>>,
    tenants: moka::future::Cache<TenantId, Option<Arc<Tenant>>>,
    apps: moka::future::Cache<(), Arc<Vec<(TenantId, App)>>>,
}

impl Default for TenantCache {
    fn default() -> Self {
        TenantCache {
            principals: moka::future::Cache::builder()
                .max_capacity(CACHED_TOKENS_MAX)
                .time_to_live(CACHE_TTL)
                .build(),
            tenants: moka::future::Cache::builder().max_capacity(10_000).time_to_live(CACHE_TTL).build(),
            apps: moka::future::Cache::builder().max_capacity(1).time_to_live(CACHE_TTL).build(),
        }
    }
}

impl TenantCache {
    fn forget(&self) {
        self.principals.invalidate_all();
        self.tenants.invalidate_all();
        self.apps.invalidate_all();
    }
}

/// A token just made. Its secret is shown once and stored nowhere.
#[derive(Debug)]
pub struct IssuedToken {
    /// The public part, by which it is listed and revoked.
    pub id: String,
    /// The whole token.
    pub secret: SecretString,
    /// What is kept of it.
    pub token: Stored<Token>,
}

/// Who a valid token speaks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Principal {
    /// The tenant.
    pub tenant: TenantId,
    /// The tenant's switches.
    pub settings: TenantSettings,
    /// The connection, with its client profile.
    pub connection: Connection,
    /// What the token may do.
    pub scopes: BTreeSet<Scope>,
    /// The token's public id.
    pub token_id: String,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// The user it stands for at `/Me`, by id or `userName`.
    pub subject: Option<String>,
}

/// What a presented token comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Authentication {
    /// No such token, or it was revoked.
    Unknown,
    /// It was valid once.
    Expired(Arc<Principal>),
    /// It is valid.
    Valid(Arc<Principal>),
}

/// Why an administrative change was refused.
fn refused(detail: String) -> StoreError {
    StoreError::Refused(ScimError::status(409, detail))
}

pub(crate) fn missing<E: Entity>(key: &str) -> StoreError {
    StoreError::Refused(ScimError::not_found(format!("{} {key} does not exist", E::TYPE.to_lowercase())))
}

/// Checks the version that an administrator has seen.
pub(crate) fn check_version<E: Entity>(by: &By, state: &StateRow, key: &str) -> Result<()> {
    match &by.if_match {
        IfMatch::Versions(versions) if !versions.contains(&state.version) => {
            let detail = format!("{} {key} has version {} by now", E::TYPE.to_lowercase(), state.version);
            Err(StoreError::Refused(ScimError::status(412, detail)))
        }
        _ => Ok(()),
    }
}

/// Who administers, why, and which version they have seen.
#[derive(Clone, Debug)]
pub struct By {
    /// Who.
    pub actor: Actor,
    /// Why. Its operation is filled in by what is done.
    pub cause: Cause,
    /// Which version may be changed.
    pub if_match: IfMatch,
}

impl From<Actor> for By {
    fn from(actor: Actor) -> By {
        By { actor, cause: Cause::default(), if_match: IfMatch::Absent }
    }
}

/// An administrative entity as it stands in the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<E> {
    /// What it is.
    pub entity: E,
    /// How many events it has had.
    pub version: Version,
    /// When it was made.
    pub created: Timestamp,
    /// When it was changed last.
    pub modified: Timestamp,
}

impl<E> Stored<E> {
    pub(crate) fn of(state: &StateRow, entity: E) -> Stored<E> {
        Stored { entity, version: state.version, created: state.created, modified: state.modified }
    }
}

/// How often a change is tried again when somebody else changed the same entity meanwhile.
const EDITS_MAX: usize = 5;

/// What an administrative change is besides its entity.
pub(crate) struct Change {
    secrets: Vec<SecretWrite>,
    tokens: Vec<TokenWrite>,
    operation: &'static str,
    /// Position of the tenant's newest definition that it was decided by.
    pub(crate) definition: Option<Position>,
    /// The tenant's last event when it was decided.
    pub(crate) head: Option<Position>,
}

impl Change {
    pub(crate) fn of(operation: &'static str) -> Change {
        Change { secrets: Vec::new(), tokens: Vec::new(), operation, definition: None, head: None }
    }
}

impl Store {
    /// Makes a tenant.
    ///
    /// # Errors
    /// Refused with 409 if it exists, or existed, or is the operators' own.
    pub async fn create_tenant(
        &self,
        id: &TenantId,
        settings: TenantSettings,
        by: impl Into<By>,
    ) -> Result<Stored<Tenant>> {
        if id.as_str() == OPERATORS {
            return Err(refused(format!("the tenant {OPERATORS} holds the tokens of operators")));
        }
        settings.check()?;
        let tenant = Tenant { id: id.clone(), settings };
        self.create_entity(id, id.as_str(), tenant, by.into(), Change::of("create")).await
    }

    /// Changes a tenant's switches.
    pub async fn set_tenant_settings(
        &self,
        id: &TenantId,
        settings: TenantSettings,
        by: impl Into<By>,
    ) -> Result<Stored<Tenant>> {
        self.edit_tenant(id, by, |tenant| Ok(Tenant { settings: settings.clone(), ..tenant })).await
    }

    /// Lets `edit` make a tenant's next state of its present one; again if somebody was faster.
    ///
    /// # Errors
    /// What `edit` returns; 404 if it does not exist, 412 if it has not the version asked for.
    pub async fn edit_tenant(
        &self,
        id: &TenantId,
        by: impl Into<By>,
        mut edit: impl FnMut(Tenant) -> Result<Tenant>,
    ) -> Result<Stored<Tenant>> {
        if self.tenant_entity(id).await?.is_none() {
            return Err(StoreError::NoTenant(id.clone()));
        }
        let edit = |tenant: Tenant| {
            let after = edit(tenant)?;
            after.settings.check()?;
            Ok(after)
        };
        self.edit_entity(id, id.as_str(), by.into(), None, edit).await
    }

    /// Every tenant, by id; not the operators' own.
    pub async fn tenants(&self) -> Result<Vec<Tenant>> {
        let select = sql("SELECT h.tenant FROM journal.tenant_head h ORDER BY h.tenant");
        let mut tenants = Vec::new();
        for row in self.backend().fetch_all(Area::Journal, select).await? {
            let id = tenant_id(&row.text(0)?)?;
            if let Some(tenant) = self.tenant_entity(&id).await? {
                tenants.push(tenant.entity);
            }
        }
        Ok(tenants)
    }

    /// Tenants by id, at most `max`, beginning after one; not the operators' own.
    pub async fn tenants_after(&self, after: Option<&TenantId>, max: usize) -> Result<Vec<Stored<Tenant>>> {
        // A tenant's own entity is in its own stream, and its key is the tenant's slug.
        let select = sql(format!(
            "SELECT {STATE_COLUMNS} FROM journal.state s WHERE s.tenant > $1 AND s.tenant <> $2 \
             AND s.id = $3 || s.tenant AND s.deleted = 0 ORDER BY s.tenant LIMIT $4"
        ))
        .bind(after.map_or("", TenantId::as_str))
        .bind(OPERATORS)
        .bind(Tenant::stream("").id.as_str())
        .bind(max);
        self.stored(select).await
    }

    /// A tenant as it stands in the journal; none if there is none, or it is the operators' own.
    pub async fn tenant_entity(&self, id: &TenantId) -> Result<Option<Stored<Tenant>>> {
        match id.as_str() {
            OPERATORS => Ok(None),
            key => self.find(id, key).await,
        }
    }

    /// An administrative entity of a tenant, by its key.
    pub async fn find<E: Entity>(&self, tenant: &TenantId, key: &str) -> Result<Option<Stored<E>>> {
        let found = self.entity::<E>(tenant, key).await?;
        Ok(found.map(|(state, entity)| Stored::of(&state, entity)))
    }

    /// A tenant's administrative entities of one kind by key, at most `max`, beginning after one.
    pub async fn find_after<E: Entity>(
        &self,
        tenant: &TenantId,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Stored<E>>> {
        let select = sql(format!(
            "SELECT {STATE_COLUMNS} FROM journal.state s WHERE s.tenant = $1 AND s.resource_type = $2 \
             AND s.deleted = 0 AND s.id > $3 ORDER BY s.id LIMIT $4"
        ))
        .bind(tenant)
        .bind(E::TYPE)
        .bind(E::stream(after.unwrap_or_default()).id.as_str())
        .bind(max);
        self.stored(select).await
    }

    async fn stored<E: Entity>(&self, select: Sql) -> Result<Vec<Stored<E>>> {
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        let states = self.open_state_rows(rows).await?;
        let entities = states.iter().filter_map(|state| Some((state, state.document()?)));
        entities.map(|(state, document)| Ok(Stored::of(state, read_entity::<E>(document)?))).collect()
    }

    /// A tenant; remembered for five seconds.
    pub async fn tenant(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>> {
        if let Some(known) = self.inner.tenants.tenants.get(id).await {
            return Ok(known);
        }
        let found = self.entity::<Tenant>(id, id.as_str()).await?.map(|(_, tenant)| Arc::new(tenant));
        self.inner.tenants.tenants.insert(id.clone(), found.clone()).await;
        Ok(found)
    }

    /// Makes a connection.
    pub async fn create_connection(
        &self,
        tenant: &TenantId,
        connection: Connection,
        by: impl Into<By>,
    ) -> Result<Stored<Connection>> {
        self.must_exist(tenant).await?;
        let key = connection.id.clone();
        self.create_entity(tenant, key.as_str(), connection, by.into(), Change::of("create")).await
    }

    /// Changes a connection, such as its profile.
    pub async fn update_connection(
        &self,
        tenant: &TenantId,
        connection: Connection,
        by: impl Into<By>,
    ) -> Result<Stored<Connection>> {
        let id = connection.id.clone();
        self.edit_connection(tenant, &id, by, |_| Ok(connection.clone())).await
    }

    /// Lets `edit` make a connection's next state of its present one; again if somebody was faster.
    ///
    /// # Errors
    /// What `edit` returns; 404 if it does not exist, 412 if it has not the version asked for.
    pub async fn edit_connection(
        &self,
        tenant: &TenantId,
        id: &ConnectionId,
        by: impl Into<By>,
        edit: impl FnMut(Connection) -> Result<Connection>,
    ) -> Result<Stored<Connection>> {
        self.edit_entity(tenant, id.as_str(), by.into(), None, edit).await
    }

    /// The tenant's connections, by id.
    pub async fn connections(&self, tenant: &TenantId) -> Result<Vec<Connection>> {
        self.entities(tenant).await
    }

    /// Makes a token for a connection. The secret is in the answer and nowhere else.
    pub async fn issue_token(
        &self,
        tenant: &TenantId,
        connection: &ConnectionId,
        scopes: Vec<Scope>,
        expires: Option<Timestamp>,
        by: impl Into<By>,
    ) -> Result<IssuedToken> {
        self.issue_token_for(tenant, connection, scopes, expires, None, by).await
    }

    /// The same for a user, by id or `userName`: `/Me` is that user. Whether there is one is found out when
    /// `/Me` is asked.
    pub async fn issue_token_for(
        &self,
        tenant: &TenantId,
        connection: &ConnectionId,
        scopes: Vec<Scope>,
        expires: Option<Timestamp>,
        subject: Option<String>,
        by: impl Into<By>,
    ) -> Result<IssuedToken> {
        if self.entity::<Connection>(tenant, connection.as_str()).await?.is_none() {
            return Err(missing::<Connection>(connection.as_str()));
        }
        // Operators administer; nothing of theirs is provisioned.
        if tenant.as_str() == OPERATORS && scopes.iter().any(|scope| *scope != Scope::Admin) {
            return Err(refused(format!(
                "an operator's token has the scope {} alone",
                Scope::Admin.as_str()
            )));
        }
        let mut random = [0u8; 38];
        self.entropy().fill(&mut random);
        let id = hex::encode(&random[..6]);
        let secret = SecretString::from(token_text(&id, &hex::encode(&random[6..])));
        let token = Token { id: id.clone(), connection: connection.clone(), scopes, expires, subject };
        let names: Vec<&str> = token.scopes.iter().map(|s| s.as_str()).collect();
        let mut change = Change::of("issue");
        change.tokens.push(TokenWrite::Add {
            digest: digest(secret.expose_secret()).to_vec(),
            id: Token::stream(&id).id,
            connection: connection.to_string(),
            scopes: names.join(" "),
            expires: expires.map(|t| t.0),
        });
        let token = self.create_entity(tenant, &id, token, by.into(), change).await?;
        Ok(IssuedToken { id, secret, token })
    }

    /// Makes a token for an operator of the whole installation, who has that name, and what it belongs to
    /// if this is the first.
    pub async fn issue_operator_token(
        &self,
        operator: &ConnectionId,
        expires: Option<Timestamp>,
        by: impl Into<By>,
    ) -> Result<IssuedToken> {
        let by = by.into();
        let tenant = TenantId::new(OPERATORS)
            .map_err(|_| StoreError::corrupt("the operators' tenant", "its name is no slug"))?;
        if self.entity::<Tenant>(&tenant, OPERATORS).await?.is_none() {
            let entity = Tenant { id: tenant.clone(), settings: TenantSettings::default() };
            let made = self.create_entity(&tenant, OPERATORS, entity, by.clone(), Change::of("create")).await;
            self.unless_there(made)?;
        }
        if self.entity::<Connection>(&tenant, operator.as_str()).await?.is_none() {
            let entity = Connection::new(operator.clone(), Profile::Strict);
            self.unless_there(self.create_connection(&tenant, entity, by.clone()).await)?;
        }
        self.issue_token(&tenant, operator, vec![Scope::Admin], expires, by).await
    }

    /// Somebody else may have made it at the same moment.
    fn unless_there<E>(&self, made: Result<Stored<E>>) -> Result<()> {
        match made {
            Err(StoreError::Refused(error)) if error.status == 409 => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends a token at once (within five seconds on other nodes).
    pub async fn revoke_token(&self, tenant: &TenantId, id: &str, by: impl Into<By>) -> Result<()> {
        let mut change = Change::of("revoke");
        change.tokens.push(TokenWrite::Remove { id: Token::stream(id).id });
        self.delete_entity::<Token>(tenant, id, by.into(), change).await
    }

    /// The tenant's tokens, without their secrets.
    pub async fn tokens(&self, tenant: &TenantId) -> Result<Vec<Token>> {
        self.entities(tenant).await
    }

    /// Who a token speaks for.
    pub async fn authenticate(&self, presented: &SecretString) -> Result<Authentication> {
        let text = presented.expose_secret();
        if !token_is_well_formed(text) {
            return Ok(Authentication::Unknown);
        }
        let digest = digest(text);
        let principal = match self.inner.tenants.principals.get(&digest).await {
            Some(principal) => principal,
            None => match self.find_principal(&digest).await? {
                Some(principal) => {
                    let principal = Arc::new(principal);
                    self.inner.tenants.principals.insert(digest, principal.clone()).await;
                    principal
                }
                None => return Ok(Authentication::Unknown),
            },
        };
        Ok(match principal.expires {
            Some(expires) if expires <= self.now() => Authentication::Expired(principal),
            _ => Authentication::Valid(principal),
        })
    }

    async fn find_principal(&self, digest: &[u8; 32]) -> Result<Option<Principal>> {
        let select = sql("SELECT t.digest, t.tenant, t.id, t.connection, t.scopes, t.expires \
             FROM journal.token t WHERE t.digest = $1")
        .bind(&digest[..]);
        let Some(row) = self.backend().fetch_optional(Area::Journal, select).await? else {
            return Ok(None);
        };
        // The index already compared; this keeps the comparison that decides free of timing.
        if !bool::from(row.bytes(0)?.ct_eq(&digest[..])) {
            return Ok(None);
        }
        let tenant = tenant_id(&row.text(1)?)?;
        let connection = row.text(3)?;
        let Some(known) = self.tenant(&tenant).await? else { return Ok(None) };
        let Some((_, connection)) = self.entity::<Connection>(&tenant, &connection).await? else {
            return Ok(None);
        };
        let prefix = format!("{}.", Token::TYPE.to_lowercase());
        let token_id = row.text(2)?.trim_start_matches(&prefix).to_owned();
        let Some((_, token)) = self.entity::<Token>(&tenant, &token_id).await? else { return Ok(None) };
        Ok(Some(Principal {
            settings: known.settings.clone(),
            tenant,
            connection,
            scopes: row.text(4)?.split(' ').filter_map(Scope::parse).collect(),
            token_id,
            subject: token.subject,
            expires: row.opt_int(5)?.map(Timestamp),
        }))
    }

    /// Makes a downstream app with its credential (a bearer token, or a webhook secret).
    pub async fn create_app(
        &self,
        tenant: &TenantId,
        app: App,
        credential: SecretString,
        by: impl Into<By>,
    ) -> Result<Stored<App>> {
        self.must_exist(tenant).await?;
        app.check()?;
        check_types(&app, &[], &*self.registry_of(tenant).await?)?;
        let key = app.id.clone();
        let mut change = Change::of("create");
        change.secrets.push(self.credential(tenant, key.as_str(), &credential).await?);
        self.create_entity(tenant, key.as_str(), app, by.into(), change).await
    }

    /// Changes an app, and its credential if one is given.
    pub async fn update_app(
        &self,
        tenant: &TenantId,
        app: App,
        credential: Option<SecretString>,
        by: impl Into<By>,
    ) -> Result<Stored<App>> {
        let id = app.id.clone();
        self.edit_app(tenant, &id, credential, by, |_| Ok(app.clone())).await
    }

    /// Lets `edit` make an app's next state of its present one, again if somebody was faster; with a new
    /// credential if one is given.
    ///
    /// # Errors
    /// What `edit` returns; 404 if it does not exist, 412 if it has not the version asked for.
    pub async fn edit_app(
        &self,
        tenant: &TenantId,
        id: &AppId,
        credential: Option<SecretString>,
        by: impl Into<By>,
        mut edit: impl FnMut(App) -> Result<App>,
    ) -> Result<Stored<App>> {
        let registry = self.registry_of(tenant).await?;
        let edit = |app: App| {
            let before = app.resource_types.clone();
            let after = edit(app)?;
            after.check()?;
            check_types(&after, &before, &registry)?;
            Ok(after)
        };
        self.edit_entity(tenant, id.as_str(), by.into(), credential.as_ref(), edit).await
    }

    /// Removes an app and its credential. Its name is not given again.
    pub async fn delete_app(&self, tenant: &TenantId, id: &AppId, by: impl Into<By>) -> Result<()> {
        self.delete_entity::<App>(tenant, id.as_str(), by.into(), Change::of("delete")).await
    }

    /// The tenant's apps, by id.
    pub async fn apps(&self, tenant: &TenantId) -> Result<Vec<App>> {
        self.entities(tenant).await
    }

    /// Every app of every tenant; remembered for five seconds.
    pub async fn all_apps(&self) -> Result<Arc<Vec<(TenantId, App)>>> {
        if let Some(known) = self.inner.tenants.apps.get(&()).await {
            return Ok(known);
        }
        let mut all = Vec::new();
        for tenant in self.tenants().await? {
            for app in self.apps(&tenant.id).await? {
                all.push((tenant.id.clone(), app));
            }
        }
        let all = Arc::new(all);
        self.inner.tenants.apps.insert((), all.clone()).await;
        Ok(all)
    }

    /// Drops what is remembered of tenants, tokens and apps, so that the next look is fresh.
    pub fn forget_tenants(&self) {
        self.inner.tenants.forget();
    }

    /// An app's credential, opened.
    pub async fn app_credential(&self, tenant: &TenantId, app: &AppId) -> Result<SecretString> {
        let id = App::stream(app.as_str()).id;
        let select = sql("SELECT s.sealed FROM journal.secret s \
             WHERE s.tenant = $1 AND s.id = $2 AND s.name = $3")
        .bind(tenant)
        .bind(&id)
        .bind(CREDENTIAL);
        let row = self.backend().fetch_optional(Area::Journal, select).await?;
        let row =
            row.ok_or_else(|| StoreError::corrupt(format!("app {app}"), "its credential is missing"))?;
        let keys = self.keys().tenant(tenant).await?;
        let plain = keys.secret().open(&secret_aad(tenant, &id, CREDENTIAL), &row.bytes(0)?)?;
        let text = String::from_utf8(plain)
            .map_err(|_| StoreError::corrupt(format!("app {app}"), "its credential is no text"))?;
        Ok(SecretString::from(text))
    }

    async fn credential(
        &self,
        tenant: &TenantId,
        key: &str,
        credential: &SecretString,
    ) -> Result<SecretWrite> {
        let id = App::stream(key).id;
        let keys = self.keys().tenant(tenant).await?;
        let aad = secret_aad(tenant, &id, CREDENTIAL);
        let sealed = keys.secret().seal(&aad, credential.expose_secret().as_bytes(), &**self.entropy())?;
        Ok(SecretWrite { id, name: CREDENTIAL, key_id: None, sealed: Some(sealed) })
    }

    pub(crate) async fn must_exist(&self, tenant: &TenantId) -> Result<()> {
        match self.entity::<Tenant>(tenant, tenant.as_str()).await? {
            Some(_) => Ok(()),
            None => Err(StoreError::NoTenant(tenant.clone())),
        }
    }

    /// An administrative entity with its state row.
    pub(crate) async fn entity<E: Entity>(
        &self,
        tenant: &TenantId,
        key: &str,
    ) -> Result<Option<(StateRow, E)>> {
        let Some(state) = self.state(tenant, &E::stream(key).id).await? else { return Ok(None) };
        let entity = state.document().map(read_entity::<E>).transpose()?;
        Ok(entity.map(|entity| (state, entity)))
    }

    /// All administrative entities of a kind, by key.
    pub(crate) async fn entities<E: Entity>(&self, tenant: &TenantId) -> Result<Vec<E>> {
        Ok(self.entity_rows(tenant).await?.into_iter().map(|(_, entity)| entity).collect())
    }

    /// The same with their state rows.
    pub(crate) async fn entity_rows<E: Entity>(&self, tenant: &TenantId) -> Result<Vec<(StateRow, E)>> {
        let select = sql(format!(
            "SELECT {STATE_COLUMNS} FROM journal.state s WHERE s.tenant = $1 AND s.resource_type = $2 \
             AND s.deleted = 0 ORDER BY s.id"
        ))
        .bind(tenant)
        .bind(E::TYPE);
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        let states = self.open_state_rows(rows).await?;
        let mut found = Vec::with_capacity(states.len());
        for state in states {
            if let Some(entity) = state.document().map(read_entity::<E>).transpose()? {
                found.push((state, entity));
            }
        }
        Ok(found)
    }

    /// Records that an entity came to be.
    async fn create_entity<E: Entity>(
        &self,
        tenant: &TenantId,
        key: &str,
        entity: E,
        by: By,
        change: Change,
    ) -> Result<Stored<E>> {
        let name = E::TYPE.to_lowercase();
        match self.change_entity(tenant, key, Some(&entity), None, &by, change).await? {
            Changed::Done(receipt) => Ok(receipt.stored(entity)),
            Changed::Rejected => Err(refused(format!("{name} {key} exists already, or did once"))),
        }
    }

    /// Records what `edit` made of an entity; nothing if that is what it was.
    async fn edit_entity<E: Entity>(
        &self,
        tenant: &TenantId,
        key: &str,
        by: By,
        credential: Option<&SecretString>,
        mut edit: impl FnMut(E) -> Result<E>,
    ) -> Result<Stored<E>> {
        for _ in 0..EDITS_MAX {
            let before = self.entity::<E>(tenant, key).await?;
            let Some((state, entity)) = before else { return Err(missing::<E>(key)) };
            check_version::<E>(&by, &state, key)?;
            let after = edit(entity)?;
            let mut change = Change::of("change");
            if let Some(credential) = credential {
                change.secrets.push(self.credential(tenant, key, credential).await?);
            }
            if change.secrets.is_empty() && state.document() == Some(&after.to_document()) {
                return Ok(Stored::of(&state, after));
            }
            match self.change_entity(tenant, key, Some(&after), Some(&state), &by, change).await? {
                Changed::Done(receipt) => return Ok(receipt.stored(after)),
                // The next round finds out what happened meanwhile.
                Changed::Rejected => {}
            }
        }
        Err(refused(format!("{} {key} is being changed by others", E::TYPE.to_lowercase())))
    }

    /// Records that an entity is no more.
    async fn delete_entity<E: Entity>(
        &self,
        tenant: &TenantId,
        key: &str,
        by: By,
        change: Change,
    ) -> Result<()> {
        let Some((state, _)) = self.entity::<E>(tenant, key).await? else { return Err(missing::<E>(key)) };
        check_version::<E>(&by, &state, key)?;
        match self.change_entity::<E>(tenant, key, None, Some(&state), &by, change).await? {
            Changed::Done(_) => Ok(()),
            Changed::Rejected => {
                Err(refused(format!("{} {key} was changed by someone else", E::TYPE.to_lowercase())))
            }
        }
    }

    /// Writes what an administrative change means: `after` none = deleted, `before` none = created.
    pub(crate) async fn change_entity<E: Entity>(
        &self,
        tenant: &TenantId,
        key: &str,
        after: Option<&E>,
        before: Option<&StateRow>,
        by: &By,
        change: Change,
    ) -> Result<Changed> {
        let stream = E::stream(key);
        let document = after.map(Entity::to_document);
        let event = match (&document, before) {
            (Some(document), None) => Event::Created { document: document.clone() },
            (Some(document), Some(state)) => {
                let empty = Document::default();
                Event::Changed { changes: diff(state.document().unwrap_or(&empty), document) }
            }
            (None, _) => Event::Deleted,
        };
        let cause = Cause { operation: change.operation.to_owned(), ..by.cause.clone() };
        let header = Header::of(&by.actor, &cause)?;
        let event_id = self.entropy().uuid_v7(self.now());
        let event = NewEvent::plain(event_id, tenant, &stream, &event, &header);
        let state = match &document {
            Some(document) => {
                let document =
                    serde_json::to_vec(document).map_err(|e| StoreError::corrupt("a document", e))?;
                StateWrite::Put { key_id: None, document }
            }
            None => StateWrite::Tombstone,
        };
        let write = StreamWrite {
            cause: None,
            stream: stream.clone(),
            expect: before.map_or(Expect::Absent, |state| Expect::Version(state.version)),
            events: vec![event],
            state,
            lookups_add: Vec::new(),
            lookups_remove: Vec::new(),
            members: None,
            references_add: Vec::new(),
            references_remove: Vec::new(),
        };
        let commit = Commit {
            id: self.entropy().uuid_v7(self.now()),
            tenant: tenant.clone(),
            actor: header.actor,
            cause: header.cause,
            writes: vec![write],
            secrets: change.secrets,
            tokens: change.tokens,
            fingerprint: None,
            definition: change.definition,
            head: change.head,
        };
        let result = self.inner.writer.append(commit).await;
        self.forget_tenants();
        match result {
            Ok(receipt) => Ok(Changed::Done(receipt)),
            Err(AppendError::Rejected(_)) => Ok(Changed::Rejected),
            Err(AppendError::Halted(reason)) => Err(StoreError::Halted(reason)),
            Err(error) => {
                tracing::error!(%error, "an administrative change failed");
                Err(StoreError::Busy { what: "the journal cannot be written", retry_after_s: 2 })
            }
        }
    }
}

/// What an administrative change came to.
pub(crate) enum Changed {
    Done(Receipt),
    /// The entity has another version than expected, or what it was decided by has changed.
    Rejected,
}

impl Receipt {
    pub(crate) fn stored<E>(&self, entity: E) -> Stored<E> {
        let stream = self.streams.first();
        let time = |of: fn(&StreamReceipt) -> i64| Timestamp(stream.map_or(0, of));
        Stored {
            entity,
            version: stream.map_or(0, |s| s.version),
            created: time(|s| s.created),
            modified: time(|s| s.modified),
        }
    }
}

fn read_entity<E: Entity>(document: &Document) -> Result<E> {
    E::from_document(document)
        .map_err(|_| StoreError::corrupt(format!("a {}", E::TYPE.to_lowercase()), "it has another shape"))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn checksum(id: &str, entropy: &str) -> String {
    let digest = Sha256::digest(format!("annals token {id} {entropy}").as_bytes());
    hex::encode(&digest[..4])
}

/// `annals_<id>_<256 random bits><checksum>`: a mistyped token is told from an unknown one without a
/// look-up.
fn token_text(id: &str, entropy: &str) -> String {
    format!("{TOKEN_PREFIX}{id}_{entropy}{}", checksum(id, entropy))
}

fn token_is_well_formed(text: &str) -> bool {
    let Some((id, rest)) = text.strip_prefix(TOKEN_PREFIX).and_then(|t| t.split_once('_')) else {
        return false;
    };
    match (rest.get(..64), rest.get(64..)) {
        (Some(entropy), Some(sum)) => checksum(id, entropy) == sum,
        _ => false,
    }
}

/// The stream id of an app, as `apps` are named in lanes and logs.
pub fn app_stream(app: &AppId) -> ResourceId {
    App::stream(app.as_str()).id
}

/// Refuses an app that names types nobody has: it would wait for them without a word. What it named before
/// is left alone.
fn check_types(app: &App, before: &[String], registry: &Registry) -> Result<()> {
    for name in app.resource_types.iter().filter(|name| !before.contains(name)) {
        let is_webhook = matches!(app.driver, Driver::Webhook { .. });
        if registry.resource_type(name).is_some() || (is_webhook && is_administrative(name)) {
            continue;
        }
        let there: Vec<&str> = registry.resource_types().map(|rt| rt.name.as_str()).collect();
        let detail =
            format!("resourceTypes: there is no resource type {name}; there are {}", there.join(", "));
        return Err(StoreError::Refused(ScimError::invalid_value(detail)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_carries_its_checksum() {
        let token = token_text("0123456789ab", &"cd".repeat(32));
        assert!(token.starts_with("annals_0123456789ab_"), "{token}");
        assert!(token_is_well_formed(&token));
        assert!(!token_is_well_formed(&token.replace("cdcd", "dcdc")));
        for bad in ["", "annals_", "annals_x", "annals_a_b", "Bearer", &token[..token.len() - 1]] {
            assert!(!token_is_well_formed(bad), "{bad}");
        }
    }
}

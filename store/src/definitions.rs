//! Schemas and resource types of a tenant: put, retired, listed (decision 0007).
//!
//! A definition is an administrative entity. What would make resources that exist wrong is refused while
//! there are such resources; so that none comes in between the look and the commit, the commit expects the
//! tenant's last event to be the one that was looked at.

use std::sync::Arc;
use std::time::Duration;

use annals_domain::definition::{
    Definitions, Obstacle, ResourceTypeDefinition, SchemaDefinition, resource_type_obstacles,
    schema_obstacles,
};
use annals_domain::ids::{Position, TenantId};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::filter::{Bound, Target, Test, TestOp};
use annals_domain::scim::schema::{Attribute, Registry, ResourceType};
use annals_domain::tenant::Entity;

use crate::Store;
use crate::backend::{Area, sql};
use crate::error::{Result, StoreError};
use crate::execute::IfMatch;
use crate::model::Search;
use crate::tenants::{By, Change, Changed, Stored, check_version};

/// How often a change is tried again when others write to the tenant in between.
const TRIES_MAX: usize = 20;
/// How long to wait for the read model when it is asked whether an attribute has values.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a put came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Put<T> {
    /// The definition afterwards.
    pub stored: Stored<T>,
    /// It is new.
    pub created: bool,
}

/// A kind of definition, for what both kinds have in common.
trait Kind: Entity + Clone + PartialEq {
    /// What to call it in errors.
    const NOUN: &'static str;
    fn key(&self) -> String;
    fn is_retired(&self) -> bool;
    fn retired(self) -> Self;
    /// The definitions with this one in its place.
    fn put(self, definitions: &Definitions) -> Definitions;
    /// What must not exist for it to take the place of another.
    fn obstacles(&self, before: Option<&Self>, definitions: &Definitions) -> Vec<(String, Obstacle)>;
}

impl Kind for SchemaDefinition {
    const NOUN: &'static str = "schema";
    fn key(&self) -> String {
        SchemaDefinition::key(self)
    }
    fn is_retired(&self) -> bool {
        self.retired
    }
    fn retired(self) -> Self {
        SchemaDefinition { retired: true, ..self }
    }
    fn put(self, definitions: &Definitions) -> Definitions {
        definitions.with_schema(self)
    }
    fn obstacles(&self, before: Option<&Self>, definitions: &Definitions) -> Vec<(String, Obstacle)> {
        let Some(before) = before else { return Vec::new() };
        let found = schema_obstacles(before, self);
        let users = definitions.users_of(&self.id);
        users.flat_map(|rt| found.iter().map(|o| (rt.name.clone(), o.clone()))).collect()
    }
}

impl Kind for ResourceTypeDefinition {
    const NOUN: &'static str = "resource type";
    fn key(&self) -> String {
        ResourceTypeDefinition::key(self)
    }
    fn is_retired(&self) -> bool {
        self.retired
    }
    fn retired(self) -> Self {
        ResourceTypeDefinition { retired: true, ..self }
    }
    fn put(self, definitions: &Definitions) -> Definitions {
        definitions.with_resource_type(self)
    }
    fn obstacles(&self, before: Option<&Self>, _: &Definitions) -> Vec<(String, Obstacle)> {
        // The built-in types are there before anything is said about them.
        let bare = ResourceTypeDefinition { schema_extensions: Vec::new(), ..self.clone() };
        let found = match before {
            Some(before) => resource_type_obstacles(before, self),
            None if self.is_built_in() => resource_type_obstacles(&bare, self),
            None => Vec::new(),
        };
        found.into_iter().map(|o| (self.name.clone(), o)).collect()
    }
}

impl Store {
    /// All definitions of a tenant, retired ones too.
    pub async fn definitions(&self, tenant: &TenantId) -> Result<Definitions> {
        Ok(Definitions {
            schemas: self.entities(tenant).await?,
            resource_types: self.entities(tenant).await?,
        })
    }

    /// The tenant's own schemas by URN, retired ones too.
    pub async fn own_schemas(&self, tenant: &TenantId) -> Result<Vec<Stored<SchemaDefinition>>> {
        self.defined(tenant).await
    }

    /// One of the tenant's own schemas, compared without case; retired ones too.
    pub async fn own_schema(&self, tenant: &TenantId, urn: &str) -> Result<Option<Stored<SchemaDefinition>>> {
        self.defined_one(tenant, urn).await
    }

    /// The tenant's own resource types, and what it adds to built-in ones, by name; retired ones too.
    pub async fn own_resource_types(&self, tenant: &TenantId) -> Result<Vec<Stored<ResourceTypeDefinition>>> {
        self.defined(tenant).await
    }

    /// One of them, compared without case.
    pub async fn own_resource_type(
        &self,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Option<Stored<ResourceTypeDefinition>>> {
        self.defined_one(tenant, name).await
    }

    /// Puts a schema: makes it, changes it, or brings a retired one back. The same again changes nothing.
    ///
    /// # Errors
    /// Refused with 400 if it does not fit the other definitions, with 409 if resources that exist would
    /// become wrong, with 412 if it has another version. [`StoreError::Busy`] if that cannot be found out now.
    pub async fn put_schema(
        &self,
        tenant: &TenantId,
        schema: SchemaDefinition,
        by: impl Into<By>,
    ) -> Result<Put<SchemaDefinition>> {
        self.put_definition(tenant, schema, by.into()).await
    }

    /// Retires a schema: it is no longer served. A put brings it back.
    ///
    /// # Errors
    /// Refused with 404 if there is none, with 409 while a resource type has it.
    pub async fn retire_schema(&self, tenant: &TenantId, urn: &str, by: impl Into<By>) -> Result<()> {
        let definitions = self.definitions(tenant).await?;
        if let Some(user) = definitions.users_of(urn).next() {
            let detail = format!("{urn} is in use by the resource type {}: put that without it", user.name);
            return Err(refused(409, detail));
        }
        self.retire_definition::<SchemaDefinition>(tenant, urn, by.into()).await
    }

    /// Puts a resource type; for `User` and `Group` it says which extensions they have besides their own.
    /// Its schemas must be there. Otherwise as [`Store::put_schema`].
    pub async fn put_resource_type(
        &self,
        tenant: &TenantId,
        resource_type: ResourceTypeDefinition,
        by: impl Into<By>,
    ) -> Result<Put<ResourceTypeDefinition>> {
        self.put_definition(tenant, resource_type, by.into()).await
    }

    /// Retires a resource type: its endpoint is gone. A put brings it back.
    ///
    /// # Errors
    /// Refused with 404 if there is none, with 409 while there are resources of it, with 400 for a built-in
    /// one.
    pub async fn retire_resource_type(&self, tenant: &TenantId, name: &str, by: impl Into<By>) -> Result<()> {
        if Registry::standard().resource_types().any(|rt| rt.name.eq_ignore_ascii_case(name)) {
            let detail = format!("every tenant has {name}: put it without schemaExtensions instead");
            return Err(refused(400, detail));
        }
        self.retire_definition::<ResourceTypeDefinition>(tenant, name, by.into()).await
    }

    async fn defined<K: Kind>(&self, tenant: &TenantId) -> Result<Vec<Stored<K>>> {
        self.must_exist(tenant).await?;
        let found = self.entity_rows::<K>(tenant).await?;
        Ok(found.into_iter().map(|(state, definition)| Stored::of(&state, definition)).collect())
    }

    async fn defined_one<K: Kind>(&self, tenant: &TenantId, key: &str) -> Result<Option<Stored<K>>> {
        self.must_exist(tenant).await?;
        let found = self.entity::<K>(tenant, &key.to_ascii_lowercase()).await?;
        Ok(found.map(|(state, definition)| Stored::of(&state, definition)))
    }

    async fn put_definition<K: Kind>(&self, tenant: &TenantId, new: K, by: By) -> Result<Put<K>> {
        self.must_exist(tenant).await?;
        let key = new.key();
        for _ in 0..TRIES_MAX {
            let definition = self.definition_of(tenant).await?;
            let before = self.entity::<K>(tenant, &key).await?;
            match &before {
                Some((state, _)) => check_version::<K>(&by, state, &key)?,
                None if by.if_match != IfMatch::Absent => return Err(absent::<K>(&key)),
                None => {}
            }
            if let Some((state, old)) = &before
                && *old == new
            {
                return Ok(Put { stored: Stored::of(state, new), created: false });
            }
            let definitions = self.definitions(tenant).await?;
            let registry = new.clone().put(&definitions).check()?;
            let old = before.as_ref().map(|(_, old)| old);
            let obstacles = new.obstacles(old, &definitions);
            let operation = match old {
                None => "create",
                Some(old) if old.is_retired() && !new.is_retired() => "restore",
                Some(_) if new.is_retired() => "retire",
                Some(_) => "change",
            };
            let head = self.check_obstacles(tenant, &registry, &obstacles).await?;
            let mut change = Change::of(operation);
            (change.definition, change.head) = (Some(definition), head);
            let state = before.as_ref().map(|(state, _)| state);
            match self.change_entity(tenant, &key, Some(&new), state, &by, change).await? {
                Changed::Done(receipt) => {
                    return Ok(Put { stored: receipt.stored(new), created: before.is_none() });
                }
                // The next round finds out what happened meanwhile.
                Changed::Rejected => metrics::counter!("annals_execute_retries_total").increment(1),
            }
        }
        Err(StoreError::Busy { what: "the tenant is written to too fast", retry_after_s: 5 })
    }

    async fn retire_definition<K: Kind>(&self, tenant: &TenantId, key: &str, by: By) -> Result<()> {
        self.must_exist(tenant).await?;
        let found = self.entity::<K>(tenant, &key.to_ascii_lowercase()).await?;
        let Some((state, definition)) = found.filter(|(_, definition)| !definition.is_retired()) else {
            return Err(StoreError::Refused(ScimError::not_found(format!("no {} {key}", K::NOUN))));
        };
        check_version::<K>(&by, &state, key)?;
        // What is retired is what was looked at.
        let by = By { if_match: IfMatch::Versions(vec![state.version]), ..by };
        self.put_definition(tenant, definition.retired(), by).await.map(drop)
    }

    /// Refuses if something is in the way. Some: the tenant's last event when it was looked at, which must
    /// still be the last.
    async fn check_obstacles(
        &self,
        tenant: &TenantId,
        after: &Registry,
        obstacles: &[(String, Obstacle)],
    ) -> Result<Option<Position>> {
        if obstacles.is_empty() {
            return Ok(None);
        }
        let head = self.tenant_position(tenant).await?;
        let before = self.registry_of(tenant).await?;
        for (name, obstacle) in obstacles {
            let Some(resource_type) = before.resource_type(name) else { continue };
            if let Some(detail) = self.in_the_way(tenant, resource_type, after, obstacle).await? {
                return Err(refused(409, detail));
            }
        }
        Ok(Some(head))
    }

    async fn in_the_way(
        &self,
        tenant: &TenantId,
        resource_type: &Arc<ResourceType>,
        after: &Registry,
        obstacle: &Obstacle,
    ) -> Result<Option<String>> {
        let name = &resource_type.name;
        match obstacle {
            Obstacle::Resource { what, why } => {
                let found = self.has_resources(tenant, name, false).await?;
                Ok(found.then(|| format!("{what}: {why}, and there are resources of the type {name}")))
            }
            Obstacle::Unsealed { what } => {
                // What is sealed anyway may be called personal at any time.
                if resource_type.personal || after.resource_type(name).is_none_or(|rt| !rt.personal) {
                    return Ok(None);
                }
                let found = self.has_resources(tenant, name, true).await?;
                Ok(found.then(|| {
                    format!(
                        "{what}: it would be personal, and the journal holds resources of the type {name} \
                         that are not sealed; define a new attribute or type"
                    )
                }))
            }
            Obstacle::Value { path, why } => {
                let attributes = resource_type.attributes();
                let own = attributes.flat_map(|a| std::iter::once(a).chain(&a.sub_attributes));
                let found: Vec<&Attribute> =
                    own.filter(|a| in_schema(a).eq_ignore_ascii_case(path)).collect();
                let found = self.has_values(tenant, resource_type, &found).await?;
                Ok(found.then(|| format!("{path}: {why}, and a {name} has a value of it")))
            }
            Obstacle::Extension { urn } => {
                let Some(extension) = resource_type.extension(urn) else { return Ok(None) };
                let found: Vec<&Attribute> = resource_type.extension_attributes(&extension.schema).collect();
                let found = self.has_values(tenant, resource_type, &found).await?;
                Ok(found.then(|| format!("{urn}: it would be removed, and a {name} has values of it")))
            }
        }
    }

    /// Whether there is a resource of a type; with `ever` deleted ones count.
    async fn has_resources(&self, tenant: &TenantId, resource_type: &str, ever: bool) -> Result<bool> {
        let select = sql("SELECT s.id FROM journal.state s WHERE s.tenant = $1 AND s.resource_type = $2 \
             AND s.deleted <= $3 LIMIT 1")
        .bind(tenant)
        .bind(resource_type)
        .bind(i64::from(ever));
        Ok(self.backend().fetch_optional(Area::Journal, select).await?.is_some())
    }

    /// Whether a resource of a type has a value of one of these attributes. The read model is asked, with
    /// all that was committed until now.
    async fn has_values(
        &self,
        tenant: &TenantId,
        resource_type: &Arc<ResourceType>,
        attributes: &[&Attribute],
    ) -> Result<bool> {
        let stored = attributes.iter().filter(|a| !a.is_read_only());
        let leaves = stored.flat_map(|a| {
            if a.is_complex() { a.sub_attributes.as_slice() } else { std::slice::from_ref(*a) }
        });
        // Every row is there for a value, and no value is less than the empty text.
        let any = |leaf: &Attribute| {
            let target = Target::Attribute { key: leaf.key.clone() };
            Bound::Test(Test { target, op: TestOp::Ge(String::new()) })
        };
        let tests: Vec<Bound> = leaves.map(any).collect();
        if tests.is_empty() {
            return Ok(false);
        }
        let search = Search {
            tenant: tenant.clone(),
            resource_types: vec![resource_type.clone()],
            filter: Some(Bound::Or(tests)),
            sort: None,
            start_index: 1,
            after: None,
            total: None,
            count: 1,
            timeout: LOOK_TIMEOUT,
        };
        Ok(!self.search(&search).await?.found.is_empty())
    }
}

/// An attribute's path within its schema.
fn in_schema(attribute: &Attribute) -> &str {
    let urn = attribute.extension.as_deref().map_or(0, |urn| urn.len() + 1);
    attribute.path.get(urn..).unwrap_or(&attribute.path)
}

fn refused(status: u16, detail: String) -> StoreError {
    StoreError::Refused(ScimError::status(status, detail))
}

/// A put that asked for a version of what does not exist.
fn absent<K: Kind>(key: &str) -> StoreError {
    let detail = format!("there is no {} {key}; nothing was changed", K::NOUN);
    StoreError::Refused(ScimError::precondition_failed(detail))
}

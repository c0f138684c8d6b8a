//! The schemas and resource types of each tenant, in force at once in every process (decision 0007).
//!
//! A registry is made of the tenant's definitions and remembered. Whether it is still the newest is seen from
//! one row: the journal's counter has the position of the newest definition of any tenant. It is read for every
//! request, but requests that come while it is read share the next reading. Commands are decided by what is
//! remembered, and the position it was made at goes with the commit: under the counter row an older one is
//! refused, and the command is decided again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use annals_domain::ids::{Position, TenantId};
use annals_domain::scim::schema::{Registry, ResourceType};

use crate::Store;
use crate::backend::{Area, sql};
use crate::error::{Result, StoreError};

const CACHED_TENANTS_MAX: u64 = 10_000;

/// A tenant's registry, as remembered.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) registry: Arc<Registry>,
    /// Position of the tenant's newest definition; 0: it has none.
    pub(crate) definition: Position,
    /// The newest definition of any tenant when this was last found to be in force.
    checked: AtomicI64,
}

/// What is remembered of all tenants.
pub(crate) struct RegistryCache {
    known: moka::future::Cache<TenantId, Arc<Known>>,
    newest: Newest,
}

impl Default for RegistryCache {
    fn default() -> Self {
        let known = moka::future::Cache::builder().max_capacity(CACHED_TENANTS_MAX).build();
        RegistryCache { known, newest: Newest::default() }
    }
}

/// Readings of one row that concurrent callers share. A caller may use every reading that began after it
/// came.
#[derive(Default)]
struct Newest {
    begun: AtomicU64,
    /// What the last reading found; none while it goes on, or if it failed.
    last: tokio::sync::Mutex<Option<Position>>,
}

/// The registries of several tenants, read before a transaction begins.
#[derive(Debug, Default)]
pub(crate) struct Registries(HashMap<TenantId, Arc<Registry>>);

impl Registries {
    /// A resource type of a tenant.
    pub(crate) fn resource_type(&self, tenant: &TenantId, name: &str) -> Option<&Arc<ResourceType>> {
        self.0.get(tenant)?.resource_type(name)
    }
}

impl Store {
    /// The schemas and resource types of a tenant, with every definition that was committed before this was
    /// asked, by whatever process.
    pub async fn registry_of(&self, tenant: &TenantId) -> Result<Arc<Registry>> {
        Ok(self.registry_now(tenant).await?.registry.clone())
    }

    /// The same with the position it was made at.
    pub(crate) async fn registry_now(&self, tenant: &TenantId) -> Result<Arc<Known>> {
        let newest = self.newest_definition().await?;
        let cache = &self.inner.registries.known;
        if let Some(known) = cache.get(tenant).await {
            if known.checked.load(Ordering::Acquire) == newest {
                return Ok(known);
            }
            if self.definition_of(tenant).await? == known.definition {
                known.checked.store(newest, Ordering::Release);
                return Ok(known);
            }
        }
        self.load_registry(tenant, newest).await
    }

    /// The same as it is remembered: it may have been replaced. For what the journal checks again.
    pub(crate) async fn registry_known(&self, tenant: &TenantId) -> Result<Arc<Known>> {
        if let Some(known) = self.inner.registries.known.get(tenant).await {
            return Ok(known);
        }
        let newest = self.newest_definition().await?;
        self.load_registry(tenant, newest).await
    }

    async fn load_registry(&self, tenant: &TenantId, newest: Position) -> Result<Arc<Known>> {
        // The position first: definitions that come in between make the registry newer than it says, and
        // the next look finds that out.
        let definition = self.definition_of(tenant).await?;
        let registry = if definition == 0 {
            Registry::standard()
        } else {
            let built = self.definitions(tenant).await?.registry();
            built.map_err(|error| StoreError::corrupt(format!("the schemas of tenant {tenant}"), error))?
        };
        let known = Arc::new(Known { registry, definition, checked: AtomicI64::new(newest) });
        self.inner.registries.known.insert(tenant.clone(), known.clone()).await;
        Ok(known)
    }

    /// Position of a tenant's newest definition; 0: it has none.
    pub(crate) async fn definition_of(&self, tenant: &TenantId) -> Result<Position> {
        let select = sql("SELECT h.definition FROM journal.tenant_head h WHERE h.tenant = $1").bind(tenant);
        let row = self.backend().fetch_optional(Area::Journal, select).await?;
        row.map_or(Ok(0), |row| row.int(0))
    }

    /// Position of the newest definition of any tenant.
    async fn newest_definition(&self) -> Result<Position> {
        let newest = &self.inner.registries.newest;
        let seen = newest.begun.load(Ordering::SeqCst);
        let mut last = newest.last.lock().await;
        if let Some(position) = *last
            && newest.begun.load(Ordering::SeqCst) > seen
        {
            return Ok(position);
        }
        newest.begun.fetch_add(1, Ordering::SeqCst);
        *last = None;
        let select = sql("SELECT c.definition FROM journal.counter c WHERE c.id = 1");
        let row = self.backend().fetch_optional(Area::Journal, select).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("the counter row", "it is missing"))?;
        let position = row.int(0)?;
        *last = Some(position);
        Ok(position)
    }

    /// The registries of these tenants.
    pub(crate) async fn registries_of(&self, tenants: impl Iterator<Item = &TenantId>) -> Result<Registries> {
        let tenants: BTreeSet<&TenantId> = tenants.collect();
        let mut found = Registries::default();
        for tenant in tenants {
            found.0.insert(tenant.clone(), self.registry_of(tenant).await?);
        }
        Ok(found)
    }
}

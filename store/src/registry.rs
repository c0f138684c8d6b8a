//! The schemas and resource types of each tenant.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use annals_domain::ids::TenantId;
use annals_domain::scim::schema::{Registry, ResourceType};

use crate::Store;
use crate::error::Result;

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
    /// The schemas and resource types of a tenant.
    pub async fn registry_of(&self, _tenant: &TenantId) -> Result<Arc<Registry>> {
        Ok(Registry::standard())
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

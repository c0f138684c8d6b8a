//! What holds for a tenant's clients: the server's bounds, and the tenant's where they are narrower. One place
//! for what ServiceProviderConfig tells and what is done (CFG-001).

use std::time::Duration;

use annals_domain::tenant::TenantSettings;

use crate::app::ApiOptions;

/// The bounds of one tenant's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// `bulk.maxOperations`; 0 = no bulk requests.
    pub(crate) bulk_operations_max: usize,
    /// `bulk.maxPayloadSize`.
    pub(crate) bulk_body_bytes_max: usize,
    /// `pagination.defaultPageSize`.
    pub(crate) page_resources_default: usize,
    /// `filter.maxResults`, `pagination.maxPageSize`.
    pub(crate) page_resources_max: usize,
    /// `pagination.cursorTimeout`.
    pub(crate) cursor_lifetime: Duration,
}

impl Bounds {
    /// The server's bounds, narrowed by a tenant's settings.
    pub(crate) fn of(options: &ApiOptions, settings: &TenantSettings) -> Bounds {
        let narrower = |of_server: usize, of_tenant: Option<u32>| {
            of_tenant.map_or(of_server, |bound| of_server.min(usize::try_from(bound).unwrap_or(usize::MAX)))
        };
        let lifetime = settings.cursor_lifetime_s.map(|s| Duration::from_secs(u64::from(s)));
        let page_resources_max = narrower(options.page_resources_max, settings.page_resources_max);
        let default = settings.page_resources_default.and_then(|n| usize::try_from(n).ok());
        Bounds {
            bulk_operations_max: narrower(options.bulk_operations_max, settings.bulk_operations_max),
            bulk_body_bytes_max: narrower(options.bulk_body_bytes_max, settings.bulk_body_bytes_max),
            page_resources_default: default.unwrap_or(options.page_resources_default).min(page_resources_max),
            page_resources_max,
            cursor_lifetime: lifetime.map_or(options.cursor_lifetime, |l| l.min(options.cursor_lifetime)),
        }
    }
}

//! What the handlers share: the store, and every bound of the HTTP surface.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annals_domain::ids::TenantId;
use annals_store::Store;
use tokio::sync::Semaphore;

use crate::rates::Buckets;
use crate::verify::Attempts;

/// Tokens whose rate is remembered at once.
const RATES_MAX: u64 = 10_000;
/// Addresses whose wrong tokens are remembered at once.
const GUESSERS_MAX: u64 = 10_000;

/// The other end of the connection that a request came over: an extension of requests, set by whoever
/// accepts connections. Without it nothing is counted by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// Bounds and switches of the HTTP surface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiOptions {
    /// Where clients reach the server, such as `https://scim.example.com`, without `/scim/v2`. None: the
    /// request's own `Host`.
    pub base_url: Option<String>,
    /// Whether `X-Forwarded-Proto` and `X-Forwarded-Host` are believed. Only behind a proxy that sets them.
    pub trust_forwarded: bool,
    /// Whether URIs begin with `https` when neither `base_url` nor a trusted header says so.
    pub https: bool,
    /// Largest request body, in bytes (SE-013).
    pub body_bytes_max: usize,
    /// Largest body of PUT and PATCH on a resource type with members, in bytes (SE-013).
    pub group_body_bytes_max: usize,
    /// Most operations of a bulk request: `bulk.maxOperations`. 0 = no bulk requests (BU-005, BU-011).
    pub bulk_operations_max: usize,
    /// Largest body of a bulk request, in bytes: `bulk.maxPayloadSize`. A thousand users as directories send
    /// them are about 1 MiB.
    pub bulk_body_bytes_max: usize,
    /// Deepest nesting of objects and arrays in a body, at most 127. The resources of RFC 7643 need 4.
    pub json_depth_max: usize,
    /// Requests served at once; more are answered 503 at once, without a queue.
    pub requests_in_flight_max: usize,
    /// How long a client may take to send a body.
    pub body_timeout: Duration,
    /// How long a write may be tried again when others change the same resource.
    pub write_timeout: Duration,
    /// How long a query waits for the read model to catch up (D3).
    pub search_timeout: Duration,
    /// Resources on a page if the client names no `count` (PG-003).
    pub page_resources_default: usize,
    /// Most resources on a page: `filter.maxResults` (PG-004).
    pub page_resources_max: usize,
    /// How long a cursor can be used after it was given out (RFC 9865 §2.1).
    pub cursor_lifetime: Duration,
    /// Whether ServiceProviderConfig, ResourceTypes and Schemas are readable without a token (DI-004).
    pub discovery_public: bool,
    /// Requests a second that one token may make; 0 = no limit (SE-013).
    pub token_requests_per_second_max: u32,
    /// Passwords a second that one token may check; 0 = no limit.
    pub password_checks_per_second_max: u32,
    /// Wrong passwords for one account within [`Self::password_failures_window`]; 0 = no limit.
    pub password_failures_max: u32,
    /// The time after which an account's wrong passwords are forgotten.
    pub password_failures_window: Duration,
    /// Requests a minute without a valid token that one address may make before it is told to wait (SE-010);
    /// 0 = no limit.
    pub token_failures_per_minute_max: u32,
}

impl Default for ApiOptions {
    fn default() -> ApiOptions {
        ApiOptions {
            base_url: None,
            trust_forwarded: false,
            https: false,
            body_bytes_max: 1024 * 1024,
            group_body_bytes_max: 10 * 1024 * 1024,
            bulk_operations_max: 1_000,
            bulk_body_bytes_max: 4 * 1024 * 1024,
            json_depth_max: 64,
            requests_in_flight_max: 1_024,
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(10),
            search_timeout: Duration::from_secs(2),
            page_resources_default: 100,
            page_resources_max: 200,
            cursor_lifetime: Duration::from_secs(3_600),
            discovery_public: true,
            token_requests_per_second_max: 0,
            password_checks_per_second_max: 20,
            password_failures_max: 10,
            password_failures_window: Duration::from_secs(300),
            token_failures_per_minute_max: 120,
        }
    }
}

/// Whether the process wants requests. The lifecycle module says so; the store is asked besides.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    stopping: Arc<AtomicBool>,
}

impl Readiness {
    /// Wants requests until told otherwise.
    pub fn new() -> Readiness {
        Readiness::default()
    }

    /// From now on `/health/ready` answers 503, so that load balancers look elsewhere; requests are still
    /// served.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the process is on its way out.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Renders the process's metrics in the text format of Prometheus.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What every handler has. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The storage.
    pub store: Store,
    /// Bounds and switches.
    pub options: Arc<ApiOptions>,
    /// Whether the process wants requests.
    pub readiness: Readiness,
    pub(crate) metrics: Option<RenderMetrics>,
    pub(crate) slots: Arc<Semaphore>,
    /// Requests by tenant and token. Touched by valid tokens only, so nobody can empty another's (SE-010).
    pub(crate) rates: Arc<Buckets<(TenantId, String)>>,
    pub(crate) attempts: Arc<Attempts>,
    /// Requests without a valid token, by address.
    pub(crate) guesses: Arc<Buckets<IpAddr>>,
    /// One verification of the journal at a time.
    pub(crate) verifications: Arc<Semaphore>,
}

impl App {
    /// An application without `/metrics`.
    pub fn new(store: Store, options: ApiOptions, readiness: Readiness) -> App {
        let slots = Arc::new(Semaphore::new(options.requests_in_flight_max.min(Semaphore::MAX_PERMITS)));
        let second = Duration::from_secs(1);
        let rates = Arc::new(Buckets::new(options.token_requests_per_second_max, second, RATES_MAX));
        let attempts = Arc::new(Attempts::new(&options));
        let minute = Duration::from_secs(60);
        let guesses = Arc::new(Buckets::new(options.token_failures_per_minute_max, minute, GUESSERS_MAX));
        let verifications = Arc::new(Semaphore::new(1));
        let (options, metrics) = (Arc::new(options), None);
        App { store, options, readiness, metrics, slots, rates, attempts, guesses, verifications }
    }

    /// The same, answering `/metrics` with what `render` returns.
    #[must_use]
    pub fn with_metrics(mut self, render: RenderMetrics) -> App {
        self.metrics = Some(render);
        self
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("options", &self.options).finish_non_exhaustive()
    }
}

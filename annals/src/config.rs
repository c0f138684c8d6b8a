//! The whole configuration: one TOML file and `ANNALS_*` variables (D14). Nothing set means everything
//! embedded in one process. `annals config` writes every default; unknown keys are refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use annals_api::ApiOptions;
use annals_domain::clock::{Clock, Entropy};
use annals_store::{Database, Limits, RootKey, Store, StoreOptions};
use anyhow::{Context, bail};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

/// The configuration file of the present folder.
const HERE: &str = "annals.toml";

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where data lives.
    pub storage: StorageConfig,
    /// How clients come in.
    pub http: HttpConfig,
    /// How often clients may ask and guess.
    pub limits: LimitsConfig,
    /// The message bus.
    pub nats: NatsConfig,
    /// What leaves the house.
    pub workers: WorkersConfig,
    /// What is proven.
    pub audit: AuditConfig,
    /// What is told.
    pub log: LogConfig,
}

/// `[storage]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StorageConfig {
    /// PostgreSQL URL; empty = SQLite in `data_dir`.
    pub url: String,
    /// Folder of the SQLite files and of a root key that was made at the first start.
    pub data_dir: PathBuf,
    /// Most PostgreSQL connections of this process; the journal's writer has up to four more.
    pub connections_max: u32,
    /// Root key as 64 hexadecimal digits; better kept in a file.
    pub root_key: String,
    /// File with the root key; empty = `data_dir/root.key`, made if it is missing.
    pub root_key_file: PathBuf,
    /// Whether `serve`, `api`, `projector` and `worker` bring the tables up to date when they start.
    pub migrate_at_start: bool,
}

impl Default for StorageConfig {
    fn default() -> Self {
        StorageConfig {
            url: String::new(),
            data_dir: PathBuf::from("data"),
            connections_max: 16,
            root_key: String::new(),
            root_key_file: PathBuf::new(),
            migrate_at_start: true,
        }
    }
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HttpConfig {
    /// Address of the SCIM endpoint.
    pub listen: SocketAddr,
    /// Public base URL, such as `https://scim.example.com`; empty = from the request's `Host`.
    pub base_url: String,
    /// Whether `X-Forwarded-Proto` and `X-Forwarded-Host` are believed: only behind a proxy that sets them.
    pub trust_forwarded: bool,
    /// Says that something in front ends TLS. Without it the SCIM endpoint is for this machine alone: an
    /// address that others reach is refused, as tokens would travel in the clear (SE-001).
    pub tls_in_front: bool,
    /// Address of health and metrics of `projector` and `worker`; empty = none.
    pub health_listen: String,
    /// Most requests in work at once; more get 503.
    pub requests_max: usize,
    /// Most connections at once; more wait until one ends.
    pub connections_max: usize,
    /// Longest wait for the whole head of a request, in seconds, the idle time before it included. Longer
    /// than what a proxy in front keeps idle connections for, as it would use one that was just closed.
    pub head_timeout_s: u64,
    /// Longest wait for the whole body of a request, in seconds.
    pub body_timeout_s: u64,
    /// Longest wait for a client that reads nothing of its answer, in seconds.
    pub write_timeout_s: u64,
    /// Most operations of one bulk request; 0 = no bulk requests.
    pub bulk_operations_max: usize,
    /// Largest body of a bulk request, in bytes.
    pub bulk_body_bytes_max: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            base_url: String::new(),
            trust_forwarded: false,
            tls_in_front: false,
            health_listen: String::new(),
            requests_max: 1_024,
            connections_max: 4_096,
            head_timeout_s: 75,
            body_timeout_s: 30,
            write_timeout_s: 60,
            bulk_operations_max: 1_000,
            bulk_body_bytes_max: 4 * 1024 * 1024,
        }
    }
}

/// `[limits]`: 0 is no limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Requests a second that one token may make; more get 429.
    pub token_requests_per_second_max: u32,
    /// Requests a minute without a valid token from one address; more get 429 instead of 401. Requests with
    /// a valid token are never touched.
    pub token_failures_per_minute_max: u32,
    /// Passwords a second that one token may check; more get 429.
    pub password_checks_per_second_max: u32,
    /// Wrong passwords for one account within the window; then 429, whatever the password.
    pub password_failures_max: u32,
    /// The window, in seconds: after it the wrong ones are forgotten.
    pub password_failures_window_s: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let api = ApiOptions::default();
        LimitsConfig {
            token_requests_per_second_max: api.token_requests_per_second_max,
            token_failures_per_minute_max: api.token_failures_per_minute_max,
            password_checks_per_second_max: api.password_checks_per_second_max,
            password_failures_max: api.password_failures_max,
            password_failures_window_s: api.password_failures_window.as_secs(),
        }
    }
}

/// `[nats]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NatsConfig {
    /// Server URLs, separated by commas; empty = no bus, readers follow the journal itself.
    pub url: String,
    /// Name of the stream that mirrors the journal.
    pub stream: String,
    /// File with NATS credentials (`.creds`); empty = what the URL says.
    pub credentials_file: PathBuf,
    /// How long the stream keeps events, in hours; history stays in the journal.
    pub retention_hours: u64,
    /// Most bytes the stream keeps; the server reserves as much.
    pub stream_bytes_max: u64,
    /// Copies of the stream in a NATS cluster.
    pub replicas: usize,
}

impl Default for NatsConfig {
    fn default() -> Self {
        NatsConfig {
            url: String::new(),
            stream: "ANNALS_EV".to_owned(),
            credentials_file: PathBuf::new(),
            retention_hours: 7 * 24,
            stream_bytes_max: 1024 * 1024 * 1024,
            replicas: 1,
        }
    }
}

/// `[workers]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WorkersConfig {
    /// Whether apps may be reached by plain HTTP and at private addresses. For tests and closed networks.
    pub allow_private: bool,
    /// Most deliveries in flight at once.
    pub concurrency_max: usize,
    /// Whole time of one request to an app, in seconds.
    pub request_timeout_s: u64,
}

impl Default for WorkersConfig {
    fn default() -> Self {
        WorkersConfig { allow_private: false, concurrency_max: 32, request_timeout_s: 60 }
    }
}

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AuditConfig {
    /// How often a checkpoint of the journal is signed while there are new events, in seconds; 0 = only on
    /// demand.
    pub checkpoint_interval_s: u64,
}

impl Default for AuditConfig {
    fn default() -> Self {
        AuditConfig { checkpoint_interval_s: 300 }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// What is logged, in the syntax of `RUST_LOG`.
    pub filter: String,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { format: LogFormat::Text, filter: "info,sqlx=warn,async_nats=warn".to_owned() }
    }
}

impl Config {
    /// Reads the file, if one is named or `annals.toml` lies in the present folder, then the environment:
    /// `ANNALS_STORAGE__URL` is `url` in `[storage]`.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Config> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        match file {
            Some(path) if !path.is_file() => {
                bail!("the configuration file {} does not exist", path.display())
            }
            Some(path) => figment = figment.merge(Toml::file_exact(path)),
            None if Path::new(HERE).is_file() => figment = figment.merge(Toml::file_exact(HERE)),
            None => {}
        }
        // ANNALS_CONFIG names the file itself; ANNALS_TEST_* belongs to the tests.
        let env = Env::prefixed("ANNALS_")
            .filter(|key| key != "config" && !key.as_str().to_ascii_lowercase().starts_with("test_"))
            .split("__");
        figment.merge(env).extract().context("reading the configuration")
    }

    /// Every setting with its default, as TOML.
    pub(crate) fn defaults_as_toml() -> anyhow::Result<String> {
        toml::to_string_pretty(&Config::default()).context("writing the defaults")
    }

    /// Whether everything runs on this machine alone.
    pub(crate) fn is_embedded(&self) -> bool {
        self.storage.url.is_empty()
    }

    /// Which database.
    pub(crate) fn database(&self) -> Database {
        if self.is_embedded() {
            Database::Sqlite { dir: self.storage.data_dir.clone() }
        } else {
            Database::Postgres {
                url: self.storage.url.clone(),
                connections_max: self.storage.connections_max,
            }
        }
    }

    fn root_key(&self, entropy: &dyn Entropy) -> anyhow::Result<RootKey> {
        if !self.storage.root_key.is_empty() {
            return RootKey::from_hex(&self.storage.root_key).context("reading storage.root_key");
        }
        if !self.storage.root_key_file.as_os_str().is_empty() {
            return RootKey::read(&self.storage.root_key_file)
                .context("reading storage.root_key_file (make one with: openssl rand -hex 32)");
        }
        if !self.is_embedded() {
            bail!(
                "PostgreSQL needs a root key that every process shares: set storage.root_key_file \
                 (ANNALS_STORAGE__ROOT_KEY_FILE) to a file made with: openssl rand -hex 32"
            );
        }
        let dir = &self.storage.data_dir;
        std::fs::create_dir_all(dir).with_context(|| format!("making the folder {}", dir.display()))?;
        RootKey::read_or_create(&dir.join("root.key"), entropy).context("reading or making the root key")
    }

    /// Refuses to serve SCIM in the clear to other machines (SE-001).
    pub(crate) fn check_tls(&self) -> anyhow::Result<()> {
        let listen = self.http.listen;
        if listen.ip().is_loopback() || self.http.tls_in_front {
            return Ok(());
        }
        bail!(
            "http.listen is {listen}, which other machines reach, and Annals speaks plain HTTP: put a proxy \
             that ends TLS in front and say so with http.tls_in_front = true (ANNALS_HTTP__TLS_IN_FRONT=true)"
        )
    }

    /// Opens the store.
    pub(crate) async fn open_store(
        &self,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> anyhow::Result<Store> {
        let options = StoreOptions {
            database: self.database(),
            root_key: self.root_key(&*entropy)?,
            clock,
            entropy,
            limits: Limits::default(),
        };
        let place = if self.is_embedded() {
            format!("SQLite in {}", self.storage.data_dir.display())
        } else {
            "PostgreSQL at storage.url".to_owned()
        };
        Store::open(options).await.with_context(|| format!("opening {place}"))
    }

    /// Whole time of one request to an app.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.workers.request_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_survive_being_written_and_read() {
        let text = Config::defaults_as_toml().unwrap();
        let read: Config = Figment::new().merge(Toml::string(&text)).extract().unwrap();
        assert_eq!(read, Config::default());
    }

    /// SE-001: other machines are served only where something in front ends TLS.
    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for (listen, tls_in_front, is_fine) in [
            ("127.0.0.1:8080", false, true),
            ("[::1]:8080", false, true),
            ("0.0.0.0:8080", false, false),
            ("[::]:8080", false, false),
            ("10.0.0.7:8080", false, false),
            ("0.0.0.0:8080", true, true),
        ] {
            let mut config = Config::default();
            (config.http.listen, config.http.tls_in_front) = (listen.parse().unwrap(), tls_in_front);
            let checked = config.check_tls();
            assert_eq!(checked.is_ok(), is_fine, "{listen} {tls_in_front}");
            if let Err(error) = checked {
                assert!(error.to_string().contains("http.tls_in_front"), "{error}");
            }
        }
    }

    #[test]
    #[expect(clippy::result_large_err, reason = "figment's own error type")]
    fn the_environment_wins_and_unknown_keys_are_refused() {
        figment::Jail::expect_with(|jail| {
            jail.create_file("annals.toml", "[http]\nlisten = \"127.0.0.1:1\"\n")?;
            jail.set_env("ANNALS_HTTP__LISTEN", "127.0.0.1:2");
            jail.set_env("ANNALS_TEST_POSTGRES_URL", "ignored");
            let config = Config::load(None).map_err(|e| e.to_string())?;
            assert_eq!(config.http.listen.port(), 2);
            jail.create_file("annals.toml", "[http]\nlissten = \"x\"\n")?;
            let error = Config::load(None).expect_err("an unknown key");
            assert!(format!("{error:#}").contains("lissten"), "{error:#}");
            Ok(())
        });
    }
}

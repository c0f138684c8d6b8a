//! The connection to NATS, and the stream that mirrors the journal (D5).
//!
//! One code path from nats-server 2.9.10 on. Servers ignore what they do not know, in silence, so
//! nothing younger is used (no `first_seq`, no atomic batch, no filter by several subjects), and every
//! stream configuration is compared with what the server echoes. Every request has a time-out: an outage
//! is an error within seconds, never a hang.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::header::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull};
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self};
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::UtcOffset;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use crate::message::{MESSAGE_BYTES_MAX, Message};

/// Messages a reader asks the server for at once.
const PULL_MESSAGES: usize = 500;
/// Bytes a reader asks the server for at once.
const PULL_BYTES: usize = 8 * 1024 * 1024;
/// How long the server keeps the consumer of a reader that is gone.
const READER_INACTIVE: Duration = Duration::from_secs(60);
/// How often a silent server says that it is there; a reader notices after two of them.
const READER_HEARTBEAT: Duration = Duration::from_secs(2);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);
/// JetStream's error code for a stream that is not there.
const STREAM_NOT_FOUND: u64 = 10_059;
/// JetStream's error code for a message that is not there.
const NO_MESSAGE_FOUND: u64 = 10_037;

/// How to reach NATS, and what the stream is like.
#[derive(Clone)]
pub struct NatsOptions {
    /// `nats://host:4222`, or `tls://…`; several servers of one cluster. `user:password@` or `token@` in
    /// front of the host counts, as it is written, if no other credential is given.
    pub servers: Vec<String>,
    /// User name; needs `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// A token instead of a user.
    pub token: Option<SecretString>,
    /// The seed of an nkey instead of a user.
    pub nkey_seed: Option<SecretString>,
    /// A `.creds` file (JWT and seed) instead of a user.
    pub credentials_file: Option<PathBuf>,
    /// Certificates to trust besides the system's, PEM.
    pub root_certificates: Option<PathBuf>,
    /// The stream's name.
    pub stream: String,
    /// What every subject begins with.
    pub subject_prefix: String,
    /// How long messages stay; history is in the journal.
    pub retention: Duration,
    /// How many bytes stay at most; the oldest messages go first. The server reserves as much.
    pub stream_bytes_max: u64,
    /// On how many servers of the cluster each message lies.
    pub replicas: usize,
    /// How long one request may take.
    pub request_timeout: Duration,
}

impl Default for NatsOptions {
    fn default() -> NatsOptions {
        NatsOptions {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            user: None,
            password: None,
            token: None,
            nkey_seed: None,
            credentials_file: None,
            root_certificates: None,
            stream: "ANNALS_EV".to_owned(),
            subject_prefix: "annals.ev".to_owned(),
            retention: Duration::from_secs(7 * 24 * 3600),
            stream_bytes_max: 1024 * 1024 * 1024,
            replicas: 1,
            request_timeout: Duration::from_secs(3),
        }
    }
}

impl NatsOptions {
    fn has_credentials(&self) -> bool {
        self.user.is_some()
            || self.token.is_some()
            || self.nkey_seed.is_some()
            || self.credentials_file.is_some()
    }
}

impl fmt::Debug for NatsOptions {
    /// Without the servers: a URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("stream", &self.stream)
            .field("subject_prefix", &self.subject_prefix)
            .finish_non_exhaustive()
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What NATS or its configuration refuses.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The options cannot work.
    #[error("the NATS configuration is not valid: {0}")]
    Options(String),
    /// No answer, or no connection.
    #[error("{doing} failed: NATS is out of reach")]
    Unreachable {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        source: Source,
    },
    /// JetStream answered with an error.
    #[error("{doing} was refused by JetStream: {description} ({code})")]
    Refused {
        /// What was attempted.
        doing: &'static str,
        /// JetStream's own error code.
        code: u64,
        /// JetStream's words.
        description: String,
    },
    /// The answer makes no sense.
    #[error("{doing}: the answer of NATS cannot be read: {reason}")]
    Answer {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        reason: String,
    },
    /// The stream is not what it must be: another stream of this name, or a server that ignored a part.
    #[error("stream {stream} has another configuration than Annals needs: {differences}")]
    StreamConfig {
        /// The stream's name.
        stream: String,
        /// Member by member.
        differences: String,
    },
}

/// The stream as the server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// When it was created, RFC 3339 in UTC: another time is another stream.
    pub created: String,
    /// How many messages it holds.
    pub messages: u64,
    /// Sequence of the oldest message; one past `last_sequence`, or 0, if there is none.
    pub first_sequence: u64,
    /// Sequence of the newest message it ever had, as far as it remembers.
    pub last_sequence: u64,
}

/// A message of the stream, read by its sequence.
#[derive(Clone, Debug)]
pub struct StreamMessage {
    /// Its sequence.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// What became of a window of messages.
#[derive(Debug)]
pub struct Published {
    /// How many are in the stream, from the first on.
    pub count: usize,
    /// Why it is not all of them.
    pub stop: Option<Stop>,
}

/// Why publishing stopped.
#[derive(Debug)]
pub enum Stop {
    /// The stream's last sequence is another one: look again. Nothing of the rest was stored.
    WrongLastSequence,
    /// There is no stream for the subject.
    NoStream,
    /// NATS failed, or did not answer in time; what it did not acknowledge may still arrive, and the
    /// expected sequence makes that harmless.
    Failed(NatsError),
}

/// Says what happens to the connection: an outage once, not at each attempt to end it.
#[derive(Default)]
struct ConnectionLog {
    said: Mutex<Option<String>>,
}

impl ConnectionLog {
    fn event(&self, event: &async_nats::Event) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            async_nats::Event::Connected => {
                metrics::gauge!("annals_nats_connected").set(1.0);
                *said = None;
                tracing::info!("connected to NATS");
            }
            async_nats::Event::Disconnected => {
                metrics::gauge!("annals_nats_connected").set(0.0);
                tracing::warn!("the connection to NATS is lost");
            }
            async_nats::Event::ServerError(_) | async_nats::Event::ClientError(_) => {
                let reason = event.to_string();
                if said.as_ref() != Some(&reason) {
                    tracing::warn!(reason, "connecting to NATS failed; trying on");
                    *said = Some(reason);
                }
            }
            event => tracing::debug!(%event, "NATS connection"),
        }
    }
}

/// A connection that mends itself. Cheap to clone.
#[derive(Clone)]
pub struct Nats {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    context: jetstream::Context,
    options: NatsOptions,
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn unreachable(doing: &'static str) -> impl Fn(Source) -> NatsError {
    move |source| NatsError::Unreachable { doing, source }
}

impl Nats {
    /// Connects in the background, for as long as it takes: the servers need not be there yet. With
    /// `tls://`, the process must have a rustls provider installed.
    ///
    /// # Errors
    /// [`NatsError::Options`]: a URL, name, file or seed is not usable.
    pub async fn connect(options: NatsOptions) -> Result<Nats, NatsError> {
        check_options(&options)?;
        let invalid = |what: &str, error: &dyn fmt::Display| NatsError::Options(format!("{what}: {error}"));
        let mut connect = ConnectOptions::new()
            .name("annals")
            .retry_on_initial_connect()
            .max_reconnects(None)
            .connection_timeout(options.request_timeout)
            .request_timeout(Some(options.request_timeout))
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(|attempts| {
                let step = 25u64.saturating_mul(1 << attempts.min(10));
                Duration::from_millis(step).min(RECONNECT_DELAY_MAX)
            })
            .event_callback({
                let log = Arc::new(ConnectionLog::default());
                move |event| {
                    log.event(&event);
                    std::future::ready(())
                }
            });
        let servers = options.servers.iter().map(|url| url.parse::<async_nats::ServerAddr>());
        // The URL may hold a password, so the message leaves it out.
        let servers: Vec<_> =
            servers.collect::<Result<_, _>>().map_err(|error| invalid("a server's URL", &error))?;
        // The client itself would ignore what stands in a URL.
        let in_url =
            servers.iter().find(|server| server.has_user_pass()).filter(|_| !options.has_credentials());
        if let Some(server) = in_url {
            connect = match (server.username(), server.password()) {
                (Some(user), Some(password)) => {
                    connect.user_and_password(user.to_owned(), password.to_owned())
                }
                (Some(token), None) => connect.token(token.to_owned()),
                (None, _) => connect,
            };
        }
        if let (Some(user), Some(password)) = (&options.user, &options.password) {
            connect = connect.user_and_password(user.clone(), password.expose_secret().to_owned());
        }
        if let Some(token) = &options.token {
            connect = connect.token(token.expose_secret().to_owned());
        }
        if let Some(seed) = &options.nkey_seed {
            connect = connect.nkey(seed.expose_secret().to_owned());
        }
        if let Some(path) = &options.credentials_file {
            connect = connect
                .credentials_file(path)
                .await
                .map_err(|error| invalid(&format!("credentials file {}", path.display()), &error))?;
        }
        if let Some(path) = &options.root_certificates {
            connect = connect.add_root_certificates(path.clone());
        }
        let client = connect.connect(servers).await.map_err(|error| invalid("connecting", &error))?;
        let context = ContextBuilder::new().timeout(options.request_timeout).build(client.clone());
        Ok(Nats { inner: Arc::new(Inner { client, context, options }) })
    }

    /// Whether the connection stands at this moment, as far as anyone can know.
    pub fn is_connected(&self) -> bool {
        self.inner.client.connection_state() == State::Connected
    }

    /// The options given at the start.
    pub fn options(&self) -> &NatsOptions {
        &self.inner.options
    }

    /// The stream's name.
    pub fn stream_name(&self) -> &str {
        &self.inner.options.stream
    }

    /// What every subject begins with.
    pub fn subject_prefix(&self) -> &str {
        &self.inner.options.subject_prefix
    }

    /// The stream, if it is there.
    ///
    /// # Errors
    /// NATS is out of reach or refuses.
    pub async fn stream(&self) -> Result<Option<StreamInfo>, NatsError> {
        let doing = "reading the stream";
        let subject = format!("STREAM.INFO.{}", self.stream_name());
        match self.api(doing, subject, &json!({})).await {
            Ok(answer) => stream_info(doing, &answer).map(Some),
            Err(NatsError::Refused { code: STREAM_NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates the stream if it is missing, brings its limits in line with the options, and refuses it
    /// if it still differs in what matters.
    ///
    /// # Errors
    /// NATS is out of reach or refuses, or [`NatsError::StreamConfig`].
    pub async fn ensure_stream(&self) -> Result<StreamInfo, NatsError> {
        let name = self.stream_name();
        let wanted = self.stream_config();
        let info = self.api("reading the stream", format!("STREAM.INFO.{name}"), &json!({})).await;
        let mut answer = match info {
            Ok(answer) => answer,
            Err(NatsError::Refused { code: STREAM_NOT_FOUND, .. }) => {
                tracing::info!(stream = name, "creating the stream");
                self.api("creating the stream", format!("STREAM.CREATE.{name}"), &wanted).await?
            }
            Err(error) => return Err(error),
        };
        let echoed = &answer["config"];
        let limits_differ = LIMITS.iter().any(|limit| echoed[limit] != wanted[limit]);
        if limits_differ && differences(&wanted, echoed, &LIMITS).is_empty() {
            tracing::info!(stream = name, "bringing the stream's limits in line with the configuration");
            let doing = "changing the stream's limits";
            // What the server added (metadata, compression) stays as it is.
            let mut update = echoed.clone();
            for limit in LIMITS {
                update[limit] = wanted[limit].clone();
            }
            answer = self.api(doing, format!("STREAM.UPDATE.{name}"), &update).await?;
        }
        let differences = differences(&wanted, &answer["config"], &[]);
        if !differences.is_empty() {
            let differences = differences.join(", ");
            return Err(NatsError::StreamConfig { stream: name.to_owned(), differences });
        }
        let payload_bytes = self.inner.client.max_payload();
        if payload_bytes < MESSAGE_BYTES_MAX {
            return Err(NatsError::StreamConfig {
                stream: name.to_owned(),
                differences: format!(
                    "the server's max_payload is {payload_bytes} bytes, {MESSAGE_BYTES_MAX} are needed"
                ),
            });
        }
        stream_info("reading the stream", &answer)
    }

    /// Deletes the stream with all its messages. For recovery and tests: no part of the house does so by itself.
    ///
    /// # Errors
    /// NATS is out of reach or refuses.
    pub async fn delete_stream(&self) -> Result<(), NatsError> {
        let subject = format!("STREAM.DELETE.{}", self.stream_name());
        match self.api("deleting the stream", subject, &json!({})).await {
            Ok(_) | Err(NatsError::Refused { code: STREAM_NOT_FOUND, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One message of the stream, if it is (still) there.
    ///
    /// # Errors
    /// NATS is out of reach or refuses.
    pub async fn message(&self, sequence: u64) -> Result<Option<StreamMessage>, NatsError> {
        let doing = "reading a message of the stream";
        let subject = format!("STREAM.MSG.GET.{}", self.stream_name());
        let answer = match self.api(doing, subject, &json!({ "seq": sequence })).await {
            Ok(answer) => answer,
            Err(NatsError::Refused { code: NO_MESSAGE_FOUND | STREAM_NOT_FOUND, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let unreadable = |reason: String| NatsError::Answer { doing, reason };
        let raw: jetstream::stream::RawMessage = serde_json::from_value(answer["message"].clone())
            .map_err(|error| unreadable(error.to_string()))?;
        let message: jetstream::message::StreamMessage =
            raw.try_into().map_err(|error: async_nats::Error| unreadable(error.to_string()))?;
        Ok(Some(StreamMessage {
            sequence: message.sequence,
            subject: message.subject.to_string(),
            headers: message.headers,
            body: message.payload,
        }))
    }

    /// Publishes messages one after the other without waiting in between, the first expecting the stream
    /// to end at `last_sequence` (0: to be empty), each next one at its predecessor. The server refuses
    /// duplicates, gaps and whatever comes late, so there is no dedupe id and nothing to remember.
    pub async fn publish(&self, last_sequence: u64, messages: Vec<Message>) -> Published {
        let doing = "publishing events";
        let mut waiting: Vec<PublishAckFuture> = Vec::with_capacity(messages.len());
        let mut stop = None;
        for (expected, message) in (last_sequence..).zip(messages) {
            let publish = PublishMessage::build()
                .payload(message.body)
                .headers(message.headers)
                .expected_stream(self.stream_name())
                .expected_last_sequence(expected);
            match self.inner.context.send_publish(message.subject, publish).await {
                Ok(ack) => waiting.push(ack),
                Err(error) => {
                    stop = Some(Stop::Failed(unreachable(doing)(error.into())));
                    break;
                }
            }
        }
        let mut count = 0;
        for (sequence, ack) in (last_sequence + 1..).zip(waiting) {
            let failed = match ack.await {
                Ok(ack) if ack.stream == self.stream_name() && ack.sequence == sequence => {
                    count += 1;
                    continue;
                }
                Ok(ack) => Stop::Failed(NatsError::Answer {
                    doing,
                    reason: format!(
                        "{} acknowledged sequence {}, expected {sequence}",
                        ack.stream, ack.sequence
                    ),
                }),
                Err(error) => match error.kind() {
                    PublishErrorKind::WrongLastSequence => Stop::WrongLastSequence,
                    PublishErrorKind::StreamNotFound => Stop::NoStream,
                    PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
                        Stop::Failed(unreachable(doing)(error.into()))
                    }
                    _ => {
                        Stop::Failed(NatsError::Refused { doing, code: 0, description: source_text(&error) })
                    }
                },
            };
            stop = Some(failed);
            break;
        }
        Published { count, stop }
    }

    /// The stream's messages from a sequence on, or from its first or next one if that is not there: an
    /// unfiltered consumer without acknowledgements, as a filter costs much and hides gaps. It is not
    /// recreated behind the reader's back, so that the reader can ask the journal instead.
    pub(crate) async fn read_from(&self, sequence: u64) -> Result<pull::Stream, NatsError> {
        let doing = "opening a consumer";
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) },
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            inactive_threshold: READER_INACTIVE,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let open = async {
            let consumer = self.inner.context.create_consumer_on_stream(config, self.stream_name()).await?;
            let stream = consumer
                .stream()
                .max_messages_per_batch(PULL_MESSAGES)
                .max_bytes_per_batch(PULL_BYTES)
                .heartbeat(READER_HEARTBEAT)
                .messages()
                .await?;
            Ok::<_, Source>(stream)
        };
        match timeout(self.inner.options.request_timeout, open).await {
            Ok(opened) => opened.map_err(unreachable(doing)),
            Err(elapsed) => Err(unreachable(doing)(elapsed.into())),
        }
    }

    /// Asks JetStream's API. The outer time-out covers the client's own queue, too.
    async fn api(&self, doing: &'static str, subject: String, request: &Value) -> Result<Value, NatsError> {
        let asked = self.inner.context.request::<_, _, Value>(subject, request);
        let answer = match timeout(self.inner.options.request_timeout, asked).await {
            Ok(answer) => answer.map_err(|error| unreachable(doing)(error.into()))?,
            Err(elapsed) => return Err(unreachable(doing)(elapsed.into())),
        };
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => {
                let error = ApiError::deserialize(error)
                    .map_err(|error| NatsError::Answer { doing, reason: error.to_string() })?;
                let code = if error.err_code == 0 { error.code } else { error.err_code };
                Err(NatsError::Refused { doing, code, description: error.description })
            }
        }
    }

    fn stream_config(&self) -> Value {
        let options = &self.inner.options;
        let nanoseconds = u64::try_from(options.retention.as_nanos()).unwrap_or(u64::MAX);
        json!({
            "name": options.stream,
            "subjects": [format!("{}.>", options.subject_prefix)],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "max_age": nanoseconds,
            "max_bytes": options.stream_bytes_max,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "max_msg_size": -1,
            "max_consumers": -1,
            "num_replicas": options.replicas,
            "deny_delete": true,
            "deny_purge": true,
        })
    }
}

/// Members of the configuration that an operator may change at any time.
const LIMITS: [&str; 3] = ["max_age", "max_bytes", "num_replicas"];
/// Members that must not be there, as they add, drop or rename messages.
const ABSENT: [&str; 6] = ["mirror", "sources", "subject_transform", "sealed", "no_ack", "allow_rollup_hdrs"];

fn differences(wanted: &Value, echoed: &Value, except: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (member, value) in wanted.as_object().into_iter().flatten() {
        if !except.contains(&member.as_str()) && &echoed[member] != value {
            found.push(format!("{member} is {}, not {value}", echoed[member]));
        }
    }
    for member in ABSENT {
        let value = &echoed[member];
        let absent = value.is_null() || value == false || value.as_array().is_some_and(Vec::is_empty);
        if !absent {
            found.push(format!("{member} is set"));
        }
    }
    found
}

fn stream_info(doing: &'static str, answer: &Value) -> Result<StreamInfo, NatsError> {
    let unreadable = |what: &str| NatsError::Answer { doing, reason: format!("{what} is missing") };
    let number = |name: &str| answer["state"][name].as_u64().ok_or_else(|| unreadable(name));
    let created = answer["created"].as_str().ok_or_else(|| unreadable("created"))?;
    // One form of the time, whatever zone a server's clock speaks.
    let created = OffsetDateTime::parse(created, &Rfc3339)
        .ok()
        .and_then(|at| at.to_offset(UtcOffset::UTC).format(&Rfc3339).ok())
        .unwrap_or_else(|| created.to_owned());
    Ok(StreamInfo {
        created,
        messages: number("messages")?,
        first_sequence: number("first_seq")?,
        last_sequence: number("last_seq")?,
    })
}

fn source_text(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

fn check_options(options: &NatsOptions) -> Result<(), NatsError> {
    let refuse = |why: &str| Err(NatsError::Options(why.to_owned()));
    let name_ok = |name: &str, dots: bool| {
        !name.is_empty()
            && name.len() <= 64
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || (dots && b == b'.'))
            && name.split('.').all(|token| !token.is_empty())
    };
    if options.servers.is_empty() {
        return refuse("no server is named");
    }
    if !name_ok(&options.stream, false) {
        return refuse("the stream's name must be 1 to 64 of letters, digits, '_' and '-'");
    }
    if !name_ok(&options.subject_prefix, true) {
        return refuse("the subject prefix must be tokens of letters, digits, '_' and '-' with '.' between");
    }
    if options.user.is_some() != options.password.is_some() {
        return refuse("user and password come together");
    }
    let ways = [
        options.user.is_some(),
        options.token.is_some(),
        options.nkey_seed.is_some(),
        options.credentials_file.is_some(),
    ];
    if ways.into_iter().filter(|given| *given).count() > 1 {
        return refuse("give one of user, token, nkey seed and credentials file");
    }
    if !(1..=5).contains(&options.replicas) {
        return refuse("replicas must be 1 to 5");
    }
    if options.retention < Duration::from_secs(60) {
        return refuse("retention must be a minute at least");
    }
    if options.stream_bytes_max < 16 * 1024 * 1024 || i64::try_from(options.stream_bytes_max).is_err() {
        return refuse("the stream's bytes must be 16 MiB at least");
    }
    if options.request_timeout < Duration::from_millis(100) {
        return refuse("the request time-out must be 100 ms at least");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_work_are_refused() {
        let refused = |change: fn(&mut NatsOptions)| {
            let mut options = NatsOptions::default();
            change(&mut options);
            check_options(&options).is_err()
        };
        assert!(!refused(|_| {}));
        assert!(refused(|o| o.servers.clear()));
        assert!(refused(|o| o.stream = "A.B".to_owned()));
        assert!(refused(|o| o.subject_prefix = "a..b".to_owned()));
        assert!(refused(|o| o.subject_prefix = "a.>".to_owned()));
        assert!(refused(|o| o.user = Some("u".to_owned())));
        assert!(refused(|o| {
            o.token = Some("t".into());
            o.nkey_seed = Some("s".into());
        }));
        assert!(refused(|o| o.replicas = 0));
        assert!(refused(|o| o.retention = Duration::ZERO));
        assert!(refused(|o| o.stream_bytes_max = 1));
    }

    #[test]
    fn neither_options_nor_their_errors_show_a_secret() {
        let options = NatsOptions {
            servers: vec!["nats://u:hunter2@host".to_owned()],
            password: Some("hunter2".into()),
            ..NatsOptions::default()
        };
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn a_configuration_that_a_server_ignored_is_noticed() {
        let wanted = json!({ "deny_purge": true, "max_age": 5 });
        assert!(differences(&wanted, &json!({ "deny_purge": true, "max_age": 5 }), &[]).is_empty());
        assert!(differences(&wanted, &json!({ "deny_purge": true, "max_age": 6 }), &LIMITS).is_empty());
        let found = differences(&wanted, &json!({ "max_age": 5, "mirror": { "name": "X" } }), &[]);
        assert_eq!(found, ["deny_purge is null, not true", "mirror is set"]);
    }
}

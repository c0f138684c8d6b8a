//! An event as a NATS message and back: CloudEvents 1.0 in binary mode (`docs/events.md`).
//!
//! Everything of the envelope is a header, the content is the body: by default the published shape as
//! JSON, for tenants with `sealed_bus` the bytes as the journal stores them. Decoding trusts nothing:
//! whoever may publish to the subjects could have sent the message.

use std::fmt::Write as _;

use annals_domain::clock::Timestamp;
use annals_domain::event::{Actor, Body, Cause, Event, EventError, Recorded, StreamId};
use annals_domain::ids::{Position, ResourceId, TenantId, Version};
use annals_domain::scim::schema::Registry;
use annals_domain::upcast::{SCHEMA_VERSION, upcast};
use annals_store::{Store, StoredEvent};
use async_nats::header::{HeaderMap, HeaderValue};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// Largest message with subject and headers, in bytes: what every NATS server takes by default.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// What a CloudEvents type begins with; the kind and the version of the body's shape follow.
pub const TYPE_PREFIX: &str = "dev.annals.";

/// What a CloudEvents source begins with; the tenant follows.
pub const SOURCE_PREFIX: &str = "/annals/";

/// Names of the headers. `ce-` ones are CloudEvents 1.0, `annals-` ones are ours.
pub mod header {
    /// `1.0`.
    pub const SPEC_VERSION: &str = "ce-specversion";
    /// The event's id, a UUID.
    pub const ID: &str = "ce-id";
    /// `/annals/<tenant>`.
    pub const SOURCE: &str = "ce-source";
    /// `dev.annals.user.created.v1`: the kind and the version of the body's shape.
    pub const TYPE: &str = "ce-type";
    /// `Users/<id>`: where the entity is served, or its type and id.
    pub const SUBJECT: &str = "ce-subject";
    /// When, RFC 3339 in UTC with milliseconds; never falls as positions rise.
    pub const TIME: &str = "ce-time";
    /// `application/json`, or `application/octet-stream` for a sealed body; absent without a body.
    pub const CONTENT_TYPE: &str = "ce-datacontenttype";
    /// The position, 20 digits, so that text order is number order (CloudEvents' sequence extension).
    pub const SEQUENCE: &str = "ce-sequence";
    /// The entity's id: what must stay in order has the same.
    pub const PARTITION_KEY: &str = "ce-partitionkey";
    /// `open`, `sealed` or `erased`.
    pub const BODY: &str = "annals-body";
    /// The key that seals the body; only with `sealed`.
    pub const KEY_ID: &str = "annals-key-id";
    /// `user.created`, …
    pub const KIND: &str = "annals-kind";
    /// `User`, `Group`, `Tenant`, …
    pub const RESOURCE_TYPE: &str = "annals-resource-type";
    /// The entity's version after the event.
    pub const VERSION: &str = "annals-version";
    /// Position of the entity's previous event, 0 if none.
    pub const PREVIOUS_OF_ENTITY: &str = "annals-previous-of-entity";
    /// Position of the tenant's previous event, 0 if none.
    pub const PREVIOUS_OF_TENANT: &str = "annals-previous-of-tenant";
    /// The commit it came with, a UUID; all of a commit's events are adjacent.
    pub const COMMIT_ID: &str = "annals-commit-id";
    /// Version of the payload's shape as the journal stores it.
    pub const SCHEMA_VERSION: &str = "annals-schema-version";
    /// Who, as JSON.
    pub const ACTOR: &str = "annals-actor";
    /// Why, as JSON.
    pub const CAUSE: &str = "annals-cause";
    /// W3C trace context of the request, if the client sent one.
    pub const TRACEPARENT: &str = "traceparent";

    /// All of them.
    pub const ALL: [&str; 21] = [
        SPEC_VERSION,
        ID,
        SOURCE,
        TYPE,
        SUBJECT,
        TIME,
        CONTENT_TYPE,
        SEQUENCE,
        PARTITION_KEY,
        BODY,
        KEY_ID,
        KIND,
        RESOURCE_TYPE,
        VERSION,
        PREVIOUS_OF_ENTITY,
        PREVIOUS_OF_TENANT,
        COMMIT_ID,
        SCHEMA_VERSION,
        ACTOR,
        CAUSE,
        TRACEPARENT,
    ];
}

/// An event that cannot become a message, or a message that is no event of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Larger than NATS takes. The journal refuses such events at the door, so this is a defect.
    #[error("position {position} makes a message of {bytes} bytes, {MESSAGE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Where.
        position: Position,
        /// The message's size.
        bytes: usize,
    },
    /// Not written by a relay of ours, or damaged.
    #[error("the message is no event of ours: {part} {reason}")]
    Foreign {
        /// The header, or `body` or `subject`.
        part: &'static str,
        /// What is wrong with it, without its value.
        reason: String,
    },
    /// Written by a newer build: readers stop and say so, they never skip it.
    #[error("position {position}: {reason}")]
    Upgrade {
        /// Where.
        position: Position,
        /// What is unknown.
        reason: String,
    },
}

fn foreign(part: &'static str, reason: impl Into<String>) -> MessageError {
    MessageError::Foreign { part, reason: reason.into() }
}

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Message {
    /// The event's position.
    pub position: Position,
    /// The event's id.
    pub event_id: Uuid,
    /// Where to publish it.
    pub subject: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Message {
    /// Its size as NATS counts it, in bytes.
    pub fn bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .flat_map(|(name, values)| {
                let name: &str = name.as_ref();
                values.iter().map(move |value| name.len() + value.as_str().len() + 4)
            })
            .sum();
        // "NATS/1.0", its line end and the empty line.
        self.subject.len() + headers + 12 + self.body.len()
    }
}

/// A message that was read back.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// The body was the published shape, or there was none.
    Open(Box<Recorded>),
    /// The body is sealed: [`open`] opens it.
    Sealed(Box<StoredEvent>),
}

impl Decoded {
    /// The event's position.
    pub fn position(&self) -> Position {
        match self {
            Decoded::Open(event) => event.position,
            Decoded::Sealed(event) => event.position,
        }
    }

    /// The event's id.
    pub fn event_id(&self) -> Uuid {
        match self {
            Decoded::Open(event) => event.event_id,
            Decoded::Sealed(event) => event.event_id,
        }
    }
}

/// The subject of an event: `<prefix>.<tenant>.<Type>.<what>`. No resource id: a million subjects hurt
/// the server (D7).
pub fn subject(prefix: &str, tenant: &TenantId, resource_type: &str, kind: &str) -> String {
    let what = kind.rsplit_once('.').map_or(kind, |(_, what)| what);
    format!("{prefix}.{tenant}.{}.{}", token(resource_type), token(what))
}

/// Text as one subject token: whatever NATS gives a meaning is percent-encoded.
fn token(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Encodes a header value as CloudEvents' HTTP binding does (§3.1.3.2): printable ASCII stays, but for
/// space, `"` and `%`.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, 0x21..=0x7e) && byte != b'"' && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn unpercent(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// JSON that fits a header: beyond ASCII there are escapes only, and those stand in strings.
fn ascii_json(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    if json.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 16);
    let mut units = [0u16; 2];
    for c in json.chars() {
        if matches!(c, ' '..='~') {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// What both bodies have in common.
struct Envelope<'a> {
    position: Position,
    event_id: Uuid,
    commit_id: Uuid,
    tenant: &'a TenantId,
    stream: &'a StreamId,
    version: Version,
    kind: &'a str,
    schema_version: u32,
    at: Timestamp,
    actor: &'a Actor,
    cause: &'a Cause,
    previous_of_entity: Position,
    previous_of_tenant: Position,
}

macro_rules! envelope {
    ($event:expr) => {
        Envelope {
            position: $event.position,
            event_id: $event.event_id,
            commit_id: $event.commit_id,
            tenant: &$event.tenant,
            stream: &$event.stream,
            version: $event.version,
            kind: &$event.kind,
            schema_version: $event.schema_version,
            at: $event.at,
            actor: &$event.actor,
            cause: &$event.cause,
            previous_of_entity: $event.previous_of_entity,
            previous_of_tenant: $event.previous_of_tenant,
        }
    };
}

/// How the body is to be read.
enum Shape<'a> {
    Open(Vec<u8>),
    Sealed { key_id: &'a str, payload: &'a [u8] },
    Erased,
}

/// The message of an event in the published shape.
///
/// # Errors
/// It is too large.
pub fn encode(prefix: &str, registry: &Registry, event: &Recorded) -> Result<Message, MessageError> {
    let shape = match &event.body {
        Body::Open(what) => Shape::Open(what.payload().to_string().into_bytes()),
        Body::Erased => Shape::Erased,
    };
    build(prefix, registry, &envelope!(event), shape)
}

/// The message of an event as it is stored; one that is not sealed in the journal has a readable body
/// here, too.
///
/// # Errors
/// It is too large, or its readable payload is no JSON of a version this build knows.
pub fn encode_stored(
    prefix: &str,
    registry: &Registry,
    event: &StoredEvent,
) -> Result<Message, MessageError> {
    let shape = match &event.key_id {
        Some(key_id) => Shape::Sealed { key_id, payload: &event.payload },
        None => {
            let payload = read_payload(event.position, &event.kind, event.schema_version, &event.payload)?;
            Shape::Open(payload.payload().to_string().into_bytes())
        }
    };
    build(prefix, registry, &envelope!(event), shape)
}

fn build(
    prefix: &str,
    registry: &Registry,
    event: &Envelope<'_>,
    shape: Shape<'_>,
) -> Result<Message, MessageError> {
    let resource_type = &event.stream.resource_type;
    let id = event.stream.id.as_str();
    let place = registry
        .resource_type(resource_type)
        .map_or(resource_type.as_str(), |known| known.endpoint.trim_start_matches('/'));
    let body_version = match &shape {
        Shape::Open(_) | Shape::Erased => SCHEMA_VERSION,
        Shape::Sealed { .. } => event.schema_version,
    };

    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: String| -> Result<(), MessageError> {
        let value: HeaderValue =
            value.parse().map_err(|_| foreign(name, "has a line end, which no header can have"))?;
        headers.insert(name, value);
        Ok(())
    };
    set(header::SPEC_VERSION, "1.0".to_owned())?;
    set(header::ID, event.event_id.hyphenated().to_string())?;
    set(header::SOURCE, format!("{SOURCE_PREFIX}{}", event.tenant))?;
    set(header::TYPE, format!("{TYPE_PREFIX}{}.v{body_version}", percent(event.kind)))?;
    set(header::SUBJECT, percent(&format!("{place}/{id}")))?;
    set(header::TIME, event.at.to_rfc3339())?;
    set(header::SEQUENCE, format!("{:020}", event.position))?;
    set(header::PARTITION_KEY, percent(id))?;
    set(header::KIND, percent(event.kind))?;
    set(header::RESOURCE_TYPE, percent(resource_type))?;
    set(header::VERSION, event.version.to_string())?;
    set(header::PREVIOUS_OF_ENTITY, event.previous_of_entity.to_string())?;
    set(header::PREVIOUS_OF_TENANT, event.previous_of_tenant.to_string())?;
    set(header::COMMIT_ID, event.commit_id.hyphenated().to_string())?;
    set(header::SCHEMA_VERSION, event.schema_version.to_string())?;
    set(header::ACTOR, ascii_json(event.actor))?;
    set(header::CAUSE, ascii_json(event.cause))?;
    if let Some(traceparent) = &event.cause.traceparent
        && traceparent.bytes().all(|byte| matches!(byte, 0x21..=0x7e))
    {
        set(header::TRACEPARENT, traceparent.clone())?;
    }
    let body = match shape {
        Shape::Open(json) => {
            set(header::BODY, "open".to_owned())?;
            set(header::CONTENT_TYPE, "application/json".to_owned())?;
            Bytes::from(json)
        }
        Shape::Sealed { key_id, payload } => {
            set(header::BODY, "sealed".to_owned())?;
            set(header::CONTENT_TYPE, "application/octet-stream".to_owned())?;
            set(header::KEY_ID, percent(key_id))?;
            Bytes::copy_from_slice(payload)
        }
        Shape::Erased => {
            set(header::BODY, "erased".to_owned())?;
            Bytes::new()
        }
    };

    let message = Message {
        position: event.position,
        event_id: event.event_id,
        subject: subject(prefix, event.tenant, resource_type, event.kind),
        headers,
        body,
    };
    match message.bytes() {
        bytes if bytes > MESSAGE_BYTES_MAX => Err(MessageError::TooLarge { position: event.position, bytes }),
        _ => Ok(message),
    }
}

/// The headers of a message, checked one by one.
struct Reader<'a>(&'a HeaderMap);

impl<'a> Reader<'a> {
    fn optional(&self, name: &'static str) -> Result<Option<&'a str>, MessageError> {
        let mut values = self.0.get_all(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(HeaderValue::as_str)),
            (_, Some(_)) => Err(foreign(name, "is there twice")),
        }
    }

    fn text(&self, name: &'static str) -> Result<&'a str, MessageError> {
        self.optional(name)?.ok_or_else(|| foreign(name, "is missing"))
    }

    fn decoded(&self, name: &'static str) -> Result<String, MessageError> {
        unpercent(self.text(name)?).ok_or_else(|| foreign(name, "is not percent-encoded UTF-8"))
    }

    fn uuid(&self, name: &'static str) -> Result<Uuid, MessageError> {
        Uuid::try_parse(self.text(name)?).map_err(|_| foreign(name, "is no UUID"))
    }

    fn number(&self, name: &'static str, min: i64) -> Result<i64, MessageError> {
        let text = self.text(name)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<i64>() {
            Ok(number) if digits && number >= min => Ok(number),
            _ => Err(foreign(name, format!("is no number from {min} on"))),
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &'static str) -> Result<T, MessageError> {
        // serde's own message may quote a value.
        serde_json::from_str(self.text(name)?).map_err(|_| foreign(name, "is not the JSON it should be"))
    }

    fn exactly(&self, name: &'static str, expected: &str) -> Result<(), MessageError> {
        match self.text(name)? == expected {
            true => Ok(()),
            false => Err(foreign(name, "does not agree with the other headers")),
        }
    }
}

/// Position and event id alone: enough to tell whose a message is.
///
/// # Errors
/// It is not ours.
pub fn identity(headers: &HeaderMap) -> Result<(Position, Uuid), MessageError> {
    let reader = Reader(headers);
    reader.exactly(header::SPEC_VERSION, "1.0")?;
    Ok((reader.number(header::SEQUENCE, 1)?, reader.uuid(header::ID)?))
}

/// Reads a message back, checking every part of it against the others.
///
/// # Errors
/// It is not ours, it is damaged, or a newer build wrote it.
pub fn decode(
    prefix: &str,
    message_subject: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Decoded, MessageError> {
    let reader = Reader(headers);
    let (position, event_id) = identity(headers)?;

    let source = reader.text(header::SOURCE)?;
    let tenant = source
        .strip_prefix(SOURCE_PREFIX)
        .and_then(|tenant| TenantId::new(tenant).ok())
        .ok_or_else(|| foreign(header::SOURCE, "names no tenant"))?;
    let resource_type = reader.decoded(header::RESOURCE_TYPE)?;
    let id = reader.decoded(header::PARTITION_KEY)?;
    let kind = reader.decoded(header::KIND)?;
    if resource_type.is_empty() || id.is_empty() {
        return Err(foreign(header::SUBJECT, "names no entity"));
    }
    match kind.rsplit_once('.') {
        Some((left, right)) if left == resource_type.to_lowercase() && !right.is_empty() => {}
        _ => return Err(foreign(header::KIND, "does not agree with the resource type")),
    }
    if subject(prefix, &tenant, &resource_type, &kind) != message_subject {
        return Err(foreign("subject", "does not agree with the headers"));
    }
    if !reader.decoded(header::SUBJECT)?.ends_with(&format!("/{id}")) {
        return Err(foreign(header::SUBJECT, "names another entity than ce-partitionkey"));
    }
    let body_version = reader
        .text(header::TYPE)?
        .strip_prefix(TYPE_PREFIX)
        .and_then(|rest| rest.strip_prefix(percent(&kind).as_str()))
        .and_then(|rest| rest.strip_prefix(".v"))
        .filter(|version| version.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|version| version.parse::<u32>().ok())
        .ok_or_else(|| foreign(header::TYPE, "does not agree with the kind"))?;

    let at = OffsetDateTime::parse(reader.text(header::TIME)?, &Rfc3339)
        .ok()
        .and_then(|at| i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).ok())
        .map(Timestamp)
        .ok_or_else(|| foreign(header::TIME, "is no RFC 3339 time"))?;
    let version = reader.number(header::VERSION, 1)?;
    let previous_of_entity = reader.number(header::PREVIOUS_OF_ENTITY, 0)?;
    let previous_of_tenant = reader.number(header::PREVIOUS_OF_TENANT, 0)?;
    if previous_of_entity > previous_of_tenant || previous_of_tenant >= position {
        return Err(foreign(header::PREVIOUS_OF_TENANT, "does not lie between the other positions"));
    }
    let commit_id = reader.uuid(header::COMMIT_ID)?;
    let schema_version = reader.number(header::SCHEMA_VERSION, 1)?;
    let schema_version =
        u32::try_from(schema_version).map_err(|_| foreign(header::SCHEMA_VERSION, "is too large"))?;
    let actor: Actor = reader.json(header::ACTOR)?;
    let cause: Cause = reader.json(header::CAUSE)?;
    let stream = StreamId { resource_type, id: ResourceId::from_text(&id) };

    let recorded = |body: Body| {
        Decoded::Open(Box::new(Recorded {
            position,
            event_id,
            commit_id,
            tenant: tenant.clone(),
            stream: stream.clone(),
            version,
            kind: kind.clone(),
            schema_version,
            at,
            actor: actor.clone(),
            cause: cause.clone(),
            previous_of_entity,
            previous_of_tenant,
            body,
        }))
    };
    match reader.text(header::BODY)? {
        "open" => {
            reader.exactly(header::CONTENT_TYPE, "application/json")?;
            Ok(recorded(Body::Open(read_payload(position, &kind, body_version, body)?)))
        }
        "erased" if body.is_empty() => Ok(recorded(Body::Erased)),
        "erased" => Err(foreign("body", "is there, though the person was erased")),
        "sealed" => {
            reader.exactly(header::CONTENT_TYPE, "application/octet-stream")?;
            if body_version != schema_version {
                return Err(foreign(header::TYPE, "does not agree with the schema version"));
            }
            let key_id = reader.decoded(header::KEY_ID)?;
            Ok(Decoded::Sealed(Box::new(StoredEvent {
                position,
                event_id,
                commit_id,
                tenant,
                stream,
                version,
                kind,
                schema_version,
                at,
                actor,
                cause,
                previous_of_entity,
                previous_of_tenant,
                key_id: Some(key_id),
                payload: body.to_vec(),
            })))
        }
        _ => Err(foreign(header::BODY, "is none of open, sealed and erased")),
    }
}

fn read_payload(position: Position, kind: &str, version: u32, json: &[u8]) -> Result<Event, MessageError> {
    let payload: Value = serde_json::from_slice(json).map_err(|_| foreign("body", "is no JSON"))?;
    let payload = upcast(kind, version, payload)
        .map_err(|error| MessageError::Upgrade { position, reason: error.to_string() })?;
    Event::from_payload(kind, payload).map_err(|error| match error {
        EventError::UnknownKind(_) => MessageError::Upgrade { position, reason: error.to_string() },
        EventError::Payload { .. } => foreign("body", error.to_string()),
    })
}

/// Opens what is sealed, keeping the order.
///
/// # Errors
/// A key is missing or does not fit.
pub async fn open(store: &Store, decoded: Vec<Decoded>) -> annals_store::Result<Vec<Recorded>> {
    let sealed: Vec<StoredEvent> = decoded
        .iter()
        .filter_map(|one| match one {
            Decoded::Sealed(event) => Some((**event).clone()),
            Decoded::Open(_) => None,
        })
        .collect();
    let mut opened = match sealed.is_empty() {
        true => Vec::new(),
        false => store.open_events(sealed).await?,
    }
    .into_iter();
    let events = decoded.into_iter().filter_map(|one| match one {
        Decoded::Open(event) => Some(*event),
        Decoded::Sealed(_) => opened.next(),
    });
    Ok(events.collect())
}

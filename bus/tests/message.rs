//! Events as messages and back, and that `docs/events.md` says what the code does.

use annals_bus::MessageError;
use annals_bus::message::{
    Decoded, MESSAGE_BYTES_MAX, Message, decode, encode, encode_stored, header, identity, subject,
};
use annals_domain::clock::Timestamp;
use annals_domain::definition::{Definitions, ResourceTypeDefinition, SchemaDefinition};
use annals_domain::event::{
    Actor, Body, Cause, EVENT_BYTES_MAX, Event, MEMBERS_PER_EVENT_MAX, Recorded, StreamId,
};
use annals_domain::ids::{ResourceId, TenantId};
use annals_domain::scim::resource::{Change, Document};
use annals_domain::scim::schema::Registry;
use annals_domain::tenant::Entity;
use annals_domain::upcast::SCHEMA_VERSION;
use annals_store::StoredEvent;
use async_nats::HeaderMap;
use serde_json::{Value, json};
use uuid::Uuid;

const PREFIX: &str = "annals.ev";
const DOCS: &str = include_str!("../../docs/events.md");

fn document(value: Value) -> Document {
    match value {
        Value::Object(map) => Document(map),
        _ => Document::default(),
    }
}

fn recorded(resource_type: &str, id: &str, event: Event) -> Recorded {
    Recorded {
        position: 42,
        event_id: Uuid::parse_str("019b76da-a800-7000-8000-000000000001").unwrap(),
        commit_id: Uuid::parse_str("019b76da-a800-7000-8000-000000000002").unwrap(),
        tenant: TenantId::new("acme").unwrap(),
        stream: StreamId { resource_type: resource_type.to_owned(), id: ResourceId::from_text(id) },
        version: 2,
        kind: event.kind(resource_type),
        schema_version: SCHEMA_VERSION,
        at: Timestamp(1_767_225_600_000),
        actor: Actor { kind: annals_domain::event::ActorKind::Connection, name: "okta".to_owned() },
        cause: Cause {
            request_id: "r-1".to_owned(),
            operation: "patch".to_owned(),
            profile: Some("okta".to_owned()),
            quirks: vec!["string-boolean".to_owned()],
            ..Cause::default()
        },
        previous_of_entity: 40,
        previous_of_tenant: 41,
        body: Body::Open(event),
    }
}

fn user(event: Event) -> Recorded {
    recorded("User", "019b76da-a800-7000-8000-0000000000aa", event)
}

fn changes() -> Vec<Change> {
    vec![
        Change { path: "title".into(), old: Some(json!("Engineer")), new: Some(json!("Boss")) },
        Change { path: "name.givenName".into(), old: None, new: Some(json!("Åsa \u{1F600}\n\"x\"")) },
        Change { path: "emails".into(), old: Some(json!([{ "value": "a@b" }])), new: None },
    ]
}

fn one_of_each() -> Vec<Event> {
    let ids = || vec![ResourceId::from_text("u1"), ResourceId::from_text("u2")];
    vec![
        Event::Created { document: document(json!({ "userName": "bjensen", "active": true })) },
        Event::Created { document: Document::default() },
        Event::Changed { changes: changes() },
        Event::Activated { changes: changes() },
        Event::Deactivated { changes: changes() },
        Event::RolesChanged { changes: changes() },
        Event::PasswordSet,
        Event::MembersAdded { members: ids() },
        Event::MembersRemoved { members: ids() },
        Event::Deleted,
        Event::Erased,
    ]
}

fn read(message: &Message) -> Result<Decoded, MessageError> {
    decode(PREFIX, &message.subject, &message.headers, &message.body)
}

#[track_caller]
fn survives(event: Recorded) -> Message {
    let message = encode(PREFIX, &Registry::standard(), &event).unwrap();
    for (name, values) in message.headers.iter() {
        for value in values {
            let text = value.as_str();
            assert!(text.bytes().all(|b| matches!(b, 0x20..=0x7e)), "{name:?}: {text:?}");
            assert_eq!(text, text.trim(), "{name:?}");
        }
    }
    assert_eq!(identity(&message.headers).unwrap(), (event.position, event.event_id));
    assert_eq!(read(&message).unwrap(), Decoded::Open(Box::new(event)));
    message
}

#[test]
fn every_event_survives() {
    for event in one_of_each() {
        for resource_type in ["User", "Group", "CostCenter", "Tenant", "Token"] {
            survives(recorded(resource_type, "id-1", event.clone()));
        }
    }
}

#[test]
fn an_erased_event_survives_without_a_body() {
    let mut event = user(Event::Changed { changes: changes() });
    event.body = Body::Erased;
    let message = survives(event);
    assert!(message.body.is_empty());
    assert!(message.headers.get(header::CONTENT_TYPE).is_none());
}

#[test]
fn unusual_envelopes_survive() {
    let odd = "Größe 100% \"x\" \u{1F600}\t\r\n\u{7f}";
    let mut event = recorded("Kosten stelle.*>é", "token.a b/ü%41", Event::Deleted);
    event.actor.name = odd.to_owned();
    event.cause = Cause {
        request_id: odd.to_owned(),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        operation: odd.to_owned(),
        profile: Some(odd.to_owned()),
        quirks: vec![odd.to_owned(), String::new()],
        bulk_index: Some(u32::MAX),
        token: Some(odd.to_owned()),
    };
    event.position = i64::MAX;
    event.version = i64::MAX;
    event.previous_of_tenant = i64::MAX - 1;
    event.at = Timestamp(-1);
    let message = survives(event.clone());
    let tokens: Vec<&str> = message.subject.split('.').collect();
    assert_eq!(tokens.len(), 5, "{}", message.subject);
    assert!(!message.subject.contains([' ', '*', '>']), "{}", message.subject);
    assert!(message.headers.get("traceparent").is_some());

    event.cause.traceparent = Some("no header: \r\n".to_owned());
    assert!(survives(event).headers.get("traceparent").is_none());
}

fn sealed() -> StoredEvent {
    let event = user(Event::Deleted);
    StoredEvent {
        position: event.position,
        event_id: event.event_id,
        commit_id: event.commit_id,
        tenant: event.tenant,
        stream: event.stream,
        version: event.version,
        kind: "user.changed".to_owned(),
        // What a younger build stored is passed on as it is.
        schema_version: 7,
        at: event.at,
        actor: event.actor,
        cause: event.cause,
        previous_of_entity: event.previous_of_entity,
        previous_of_tenant: event.previous_of_tenant,
        key_id: Some("k-1".to_owned()),
        payload: vec![0, 255, 13, 10, 1],
    }
}

/// A tenant's own resource type, and the definitions themselves.
#[test]
fn a_tenants_own_types_have_subjects_and_event_types() {
    let urn = "urn:example:schemas:2.0:Device";
    let schema = SchemaDefinition::read(&json!({"id": urn, "attributes": [{"name": "label"}]})).unwrap();
    let device = json!({"name": "Device", "endpoint": "/Devices", "schema": urn});
    let device = ResourceTypeDefinition::read(&device).unwrap();
    let definitions = Definitions::default().with_schema(schema.clone()).with_resource_type(device.clone());
    let registry = definitions.registry().unwrap();
    let created = |document| Event::Created { document };
    let content = document(json!({"label": "Kiosk"}));
    for (event, expected_subject, expected_type, at) in [
        (recorded("Device", "d1", created(content)), "Device.created", "device.created", "Devices/d1"),
        (
            recorded("Schema", &format!("schema.{urn}").to_lowercase(), created(schema.to_document())),
            "Schema.created",
            "schema.created",
            "Schema/schema.urn:example:schemas:2.0:device",
        ),
        (
            recorded("ResourceType", "resourcetype.device", created(device.to_document())),
            "ResourceType.created",
            "resourcetype.created",
            "ResourceType/resourcetype.device",
        ),
    ] {
        let message = encode(PREFIX, &registry, &event).unwrap();
        assert_eq!(message.subject, format!("annals.ev.acme.{expected_subject}"));
        let header = |name: &str| message.headers.get(name).unwrap().as_str().to_owned();
        assert_eq!(header(header::TYPE), format!("dev.annals.{expected_type}.v1"));
        assert_eq!(header(header::SUBJECT), at);
        assert_eq!(read(&message).unwrap(), Decoded::Open(Box::new(event)));
    }
}

#[test]
fn a_sealed_event_survives_as_stored() {
    let event = sealed();
    let message = encode_stored(PREFIX, &Registry::standard(), &event).unwrap();
    assert_eq!(message.headers.get(header::KEY_ID).unwrap().as_str(), "k-1");
    assert_eq!(message.headers.get(header::TYPE).unwrap().as_str(), "dev.annals.user.changed.v7");
    assert_eq!(&message.body[..], event.payload);
    assert_eq!(read(&message).unwrap(), Decoded::Sealed(Box::new(event)));
}

#[test]
fn what_the_journal_does_not_seal_is_readable_in_sealed_mode_too() {
    let mut event = sealed();
    event.key_id = None;
    event.kind = "user.members_added".to_owned();
    event.schema_version = 1;
    event.payload = br#"{"members":["u1"]}"#.to_vec();
    let message = encode_stored(PREFIX, &Registry::standard(), &event).unwrap();
    let Decoded::Open(open) = read(&message).unwrap() else { panic!("sealed") };
    assert_eq!(open.body, Body::Open(Event::MembersAdded { members: vec![ResourceId::from_text("u1")] }));
}

#[test]
fn what_a_newer_build_wrote_says_upgrade() {
    let message = survives(user(Event::Changed { changes: changes() }));
    let newer = |name: &'static str, value: &str| {
        let mut message = message.clone();
        message.headers.insert(name, value);
        message
    };
    let shape = newer(header::TYPE, "dev.annals.user.changed.v2");
    assert!(matches!(read(&shape), Err(MessageError::Upgrade { position: 42, .. })));
    let mut kind = newer(header::TYPE, "dev.annals.user.teleported.v1");
    kind.headers.insert(header::KIND, "user.teleported");
    kind.subject = subject(PREFIX, &TenantId::new("acme").unwrap(), "User", "user.teleported");
    assert!(matches!(read(&kind), Err(MessageError::Upgrade { position: 42, .. })));
}

/// Headers without which a message is as good as before.
const OPTIONAL: [&str; 2] = [header::KEY_ID, header::TRACEPARENT];

#[test]
fn foreign_and_damaged_messages_are_refused_and_never_panic() {
    let good = survives(user(Event::Changed { changes: changes() }));
    let sealed = encode_stored(PREFIX, &Registry::standard(), &sealed()).unwrap();
    assert!(decode(PREFIX, "any", &HeaderMap::new(), b"").is_err());
    assert!(decode("other.prefix", &good.subject, &good.headers, &good.body).is_err());
    for body in [&b""[..], b"null", b"[]", b"{}", b"{\"changes\":1}", b"\xff\xfe", b"{"] {
        assert!(decode(PREFIX, &good.subject, &good.headers, body).is_err());
    }
    let junk = [
        "",
        " ",
        "x",
        "-1",
        "0",
        "1",
        "+43",
        "043",
        "9223372036854775808",
        "99999999999999999999999",
        "%",
        "%4",
        "%zz",
        "%ff",
        "null",
        "{}",
        "[]",
        "1.0 ",
        "/annals/",
        "/annals/UPPER",
        "user.",
        ".created",
        "user",
        "dev.annals.user.changed.v",
        "dev.annals.user.changed.v0",
        "dev.annals.user.changed.v99999999999",
        "2026-13-01T00:00:00Z",
        "é",
        "open",
        "sealed",
        "erased",
        "application/json",
        "user.deleted",
        "00000000-0000-0000-0000-000000000000",
    ];
    for message in [&good, &sealed] {
        let before = read(message).unwrap();
        for name in header::ALL {
            let mut without = message.clone();
            without.headers = message
                .headers
                .iter()
                .filter(|(key, _)| AsRef::<str>::as_ref(*key) != name)
                .flat_map(|(key, values)| values.iter().map(|value| (key.clone(), value.clone())))
                .collect();
            let there = message.headers.get(name).is_some();
            if there && !(OPTIONAL.contains(&name) && message.headers.get(header::KEY_ID).is_none()) {
                assert!(read(&without).is_err(), "without {name}");
                let mut twice = message.clone();
                twice.headers.append(name, "second");
                assert!(read(&twice).is_err(), "twice {name}");
            }
            for value in junk {
                let mut damaged = message.clone();
                damaged.headers.insert(name, value);
                // Some junk is a legal value of its header; what it says then is not for us to know.
                if let Ok(decoded) = read(&damaged)
                    && decoded == before
                {
                    let same = message.headers.get(name).is_none_or(|v| v.as_str() == value)
                        || [header::SPEC_VERSION, header::TRACEPARENT].contains(&name);
                    assert!(same, "{name} {value:?} changed nothing");
                }
            }
        }
    }
}

#[test]
fn an_error_quotes_no_value() {
    let good = survives(user(Event::Changed { changes: changes() }));
    for (name, body) in [("body", &b"{\"changes\":\"hunter2\"}"[..]), ("json", b"hunter2")] {
        let error = decode(PREFIX, &good.subject, &good.headers, body).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{name}: {error}");
    }
    for header in header::ALL {
        let mut message = good.clone();
        message.headers.insert(header, "hunter2");
        if let Err(error) = read(&message) {
            assert!(!error.to_string().contains("hunter2"), "{header}: {error}");
        }
    }
}

#[test]
fn the_largest_events_fit_a_message() {
    let mut largest = sealed();
    largest.payload = vec![b'x'; EVENT_BYTES_MAX];
    let message = encode_stored(PREFIX, &Registry::standard(), &largest).unwrap();
    assert!(message.bytes() + 256 < MESSAGE_BYTES_MAX, "{}", message.bytes());

    let id = "x".repeat(ResourceId::LEN_BYTES_MAX);
    let members = vec![ResourceId::from_text(&id); MEMBERS_PER_EVENT_MAX];
    survives(recorded("Group", &id, Event::MembersAdded { members }));

    let text = "\u{1}".repeat(MESSAGE_BYTES_MAX);
    let too_large = user(Event::Created { document: document(json!({ "title": text })) });
    let refused = encode(PREFIX, &Registry::standard(), &too_large).unwrap_err();
    assert!(matches!(refused, MessageError::TooLarge { position: 42, .. }));
}

#[test]
fn the_documentation_names_every_header() {
    let table = DOCS.split("## Headers").nth(1).unwrap().split("## Body").next().unwrap();
    let named: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .collect();
    assert_eq!(named, header::ALL);
}

#[test]
fn the_documentation_names_every_kind() {
    let table = DOCS.split("## Kinds").nth(1).unwrap().split("With `operation`").next().unwrap();
    for event in one_of_each() {
        assert!(table.contains(&format!("`{}`", event.what())), "{}", event.what());
    }
}

#[test]
fn the_example_in_the_documentation_is_what_is_sent() {
    let change = Change { path: "title".into(), old: Some(json!("Engineer")), new: Some(json!("Boss")) };
    let event = user(Event::Changed { changes: vec![change] });
    let message = survives(event);
    let mut text = format!("{}\n", message.subject);
    for name in header::ALL {
        if let Some(value) = message.headers.get(name) {
            text.push_str(&format!("{name}: {value}\n"));
        }
    }
    text.push('\n');
    text.push_str(std::str::from_utf8(&message.body).unwrap());
    text.push('\n');
    let example = DOCS.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(example, text);
}

//! Webhooks: every event of an entity, one after the other, as a CloudEvent signed by Standard Webhooks.

use annals_domain::event::{Body, Recorded};
use annals_domain::scim::schema::Registry;
use annals_domain::upcast::SCHEMA_VERSION;
use annals_store::lanes::{LaneKind, Outcome};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use standardwebhooks::Webhook;

use super::{Ran, Run, Stop, texts};
use crate::delivery::{Class, Failure, classify_webhook};
use crate::http::secret_header;

/// Events delivered in one run of a lane.
const EVENTS_PER_RUN: usize = 100;
/// Events read at once.
const PAGE_EVENTS: usize = 25;

/// An event as a receiver gets it: CloudEvents 1.0, structured. The attributes are those of the bus
/// (`docs/events.md`); `data` is the published payload with the entity, its version, who and why.
pub fn cloud_event(registry: &Registry, event: &Recorded) -> Value {
    let resource_type = &event.stream.resource_type;
    let place = registry
        .resource_type(resource_type)
        .map_or(resource_type.as_str(), |known| known.endpoint.trim_start_matches('/'));
    let mut data = Map::new();
    data.insert("resourceType".into(), json!(resource_type));
    data.insert("id".into(), json!(event.stream.id));
    data.insert("version".into(), json!(event.version));
    data.insert("previousOfEntity".into(), json!(event.previous_of_entity));
    data.insert("actor".into(), json!(event.actor));
    data.insert("cause".into(), json!(event.cause));
    match &event.body {
        Body::Open(content) => {
            if let Value::Object(payload) = content.payload() {
                data.extend(payload);
            }
        }
        // The fact remains, the content is gone for good.
        Body::Erased => {
            data.insert("erased".into(), json!(true));
        }
    }
    let mut cloud_event = json!({
        "specversion": "1.0",
        "id": event.event_id.hyphenated().to_string(),
        "source": format!("{}{}", annals_bus::message::SOURCE_PREFIX, event.tenant),
        "type": format!("{}{}.v{SCHEMA_VERSION}", annals_bus::message::TYPE_PREFIX, event.kind),
        "subject": format!("{place}/{}", event.stream.id),
        "time": event.at.to_rfc3339(),
        "datacontenttype": "application/json",
        "sequence": format!("{:020}", event.position),
        "partitionkey": event.stream.id,
        "data": data,
    });
    if let Some(traceparent) = &event.cause.traceparent {
        cloud_event["traceparent"] = json!(traceparent);
    }
    cloud_event
}

/// The headers of a delivery. The same event has the same id in every try, so that a receiver can drop
/// what comes twice.
fn headers(webhook: &Webhook, id: &str, seconds: i64, body: &[u8]) -> Option<HeaderMap> {
    let signature = webhook.sign(id, seconds, body).ok()?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/cloudevents+json; charset=utf-8"));
    headers.insert(standardwebhooks::HEADER_WEBHOOK_ID, HeaderValue::from_str(id).ok()?);
    headers.insert(standardwebhooks::HEADER_WEBHOOK_TIMESTAMP, HeaderValue::from(seconds));
    headers.insert(standardwebhooks::HEADER_WEBHOOK_SIGNATURE, secret_header(&signature)?);
    Some(headers)
}

/// Sends the events after the one applied, up to the one wanted, strictly in order.
pub(crate) async fn deliver(run: &mut Run, url: &str) -> Ran {
    let url = Url::parse(url).map_err(|error| Run::misconfigured(format!("the webhook's URL: {error}")))?;
    let webhook = Webhook::new(run.credential.expose_secret())
        .map_err(|_| Run::misconfigured("the webhook's secret is no base64"))?;
    debug_assert_eq!(run.lease.kind, LaneKind::Log);
    let wanted = run.lease.wanted_version;
    let mut sent = 0;
    while run.lease.work.applied_version < wanted {
        let key = run.lease.key.clone();
        let applied = run.lease.work.applied_version;
        let page = run.store.read_stream(&key.tenant, &key.id, applied, PAGE_EVENTS).await?;
        if page.first().is_none_or(|first| first.version != applied + 1) {
            let message = format!("the journal has no version {} of this entity", applied + 1);
            return Err(Failure::new(Class::Transient, message).into());
        }
        for event in page.iter().take_while(|event| event.version <= wanted) {
            if sent == EVENTS_PER_RUN {
                return Err(Stop::Yield);
            }
            send(run, &webhook, &url, event).await?;
            sent += 1;
            run.lease.work.applied_version = event.version;
            run.lease.work.applied_position = event.position;
            // The end of the run writes down the last one.
            if event.version < wanted {
                run.save().await?;
            }
        }
    }
    Ok(if sent > 0 { Outcome::Delivered } else { Outcome::Unchanged })
}

async fn send(run: &mut Run, webhook: &Webhook, url: &Url, event: &Recorded) -> Result<(), Stop> {
    let cloud_event = cloud_event(&*run.store.registry_of(&event.tenant).await?, event);
    let body = cloud_event.to_string().into_bytes();
    let id = event.event_id.hyphenated().to_string();
    let headers = headers(webhook, &id, run.now().0.div_euclid(1_000), &body)
        .ok_or_else(|| Run::misconfigured("the event could not be signed"))?;
    let what = format!("POST version {}", event.version);
    let answer = run.send(&what, Method::POST, url.clone(), headers, Some(body)).await?;
    if answer.is_success() {
        return Ok(());
    }
    texts(&cloud_event["data"], &mut run.hide);
    let class = classify_webhook(answer.status, run.retry_after_ms(&answer));
    Err(run.refused(&what, &answer, class).into())
}

#[cfg(test)]
mod tests {
    use annals_domain::clock::Timestamp;
    use annals_domain::event::{Actor, Cause, Event, StreamId};
    use annals_domain::ids::{ResourceId, TenantId};

    use super::*;

    fn event(body: Body) -> Recorded {
        Recorded {
            position: 42,
            event_id: uuid::Uuid::from_u128(7),
            commit_id: uuid::Uuid::from_u128(8),
            tenant: TenantId::new("acme").unwrap(),
            stream: StreamId { resource_type: "Group".into(), id: ResourceId::from_text("g1") },
            version: 3,
            kind: "group.members_added".into(),
            schema_version: 1,
            at: Timestamp(1_767_225_600_000),
            actor: Actor::system("test"),
            cause: Cause { traceparent: Some("00-01-02-01".into()), ..Cause::default() },
            previous_of_entity: 40,
            previous_of_tenant: 41,
            body,
        }
    }

    #[test]
    fn an_event_is_a_cloud_event() {
        let body = Body::Open(Event::MembersAdded { members: vec![ResourceId::from_text("u1")] });
        let expected = json!({
            "specversion": "1.0",
            "id": "00000000-0000-0000-0000-000000000007",
            "source": "/annals/acme",
            "type": "dev.annals.group.members_added.v1",
            "subject": "Groups/g1",
            "time": "2026-01-01T00:00:00.000Z",
            "datacontenttype": "application/json",
            "sequence": "00000000000000000042",
            "partitionkey": "g1",
            "traceparent": "00-01-02-01",
            "data": {
                "resourceType": "Group", "id": "g1", "version": 3, "previousOfEntity": 40,
                "actor": {"kind": "system", "name": "test"}, "cause": {"traceparent": "00-01-02-01"},
                "members": ["u1"],
            },
        });
        assert_eq!(cloud_event(&Registry::standard(), &event(body)), expected);
    }

    #[test]
    fn an_erased_event_is_a_tombstone() {
        let cloud_event = cloud_event(&Registry::standard(), &event(Body::Erased));
        assert_eq!(cloud_event["data"]["erased"], json!(true));
        assert_eq!(cloud_event["data"]["version"], json!(3));
        assert!(cloud_event["data"].get("members").is_none());
    }

    #[test]
    fn the_signature_is_that_of_the_standard() {
        // The example of the specification.
        let webhook = Webhook::new("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
        let body = br#"{"email":"test@example.com","username":"test_user"}"#;
        let headers = headers(&webhook, "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1_649_367_553, body).unwrap();
        let signature = headers["webhook-signature"].to_str().unwrap();
        assert_eq!(signature, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
        assert_eq!(headers["webhook-timestamp"], "1649367553");
        assert!(!format!("{headers:?}").contains("tZ1I4"));
    }

    #[test]
    fn a_generated_secret_can_sign() {
        struct Fixed;
        impl annals_domain::clock::Entropy for Fixed {
            fn fill(&self, bytes: &mut [u8]) {
                bytes.fill(0x5a);
            }
        }
        let secret = annals_domain::tenant::generate_webhook_secret(&Fixed);
        assert!(secret.expose_secret().starts_with("whsec_"));
        assert!(Webhook::new(secret.expose_secret()).is_ok());
    }
}

//! How each kind of target is brought up to date.
//!
//! A driver gets a [`Run`]: one lane under its lease. It sends requests, notes in the lane's work what
//! the target has, saves that in between, and ends with what it came to or why it stopped. What is sent
//! is planned by pure functions; this module holds what drivers share.

pub mod scim;
pub mod webhook;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::ids::{AppId, TenantId};
use annals_domain::tenant::App;
use annals_store::lanes::{Leased, Outcome, Saved};
use annals_store::{Store, StoreError};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::delivery::{Class, Failure, redact};
use crate::http::{Answer, Http, HttpError, Outgoing};
use crate::retry::retry_after_ms;

/// Most bytes of a refusal that go into an attempt's detail.
const REFUSAL_DETAIL_BYTES_MAX: usize = 1_024;
/// Most lines of an attempt's detail.
const TRAIL_LINES_MAX: usize = 40;

/// Why a driver stops before the lane has all that is wanted.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The delivery failed.
    Failed(Failure),
    /// A bounded run ends here; the rest follows with another lease.
    Yield,
    /// Someone else has the lane: not one more request.
    LeaseLost,
    /// The database failed.
    Store(StoreError),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Store(error)
    }
}

/// What a driver works with.
pub(crate) struct Run {
    pub(crate) store: Store,
    pub(crate) http: Http,
    pub(crate) app: App,
    pub(crate) credential: SecretString,
    pub(crate) lease: Leased,
    pub(crate) lease_ttl: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) memory: Arc<Memory>,
    /// Values of the entity that a target may repeat in a refusal.
    pub(crate) hide: Vec<String>,
    /// Requests sent.
    pub(crate) requests: usize,
    /// The status of the last answer.
    pub(crate) status: Option<u16>,
    /// What was done, for the attempt's detail.
    pub(crate) trail: Vec<String>,
}

impl Run {
    /// The present moment.
    pub(crate) fn now(&self) -> Timestamp {
        self.store.now()
    }

    /// Notes a line for the attempt's detail.
    pub(crate) fn note(&mut self, line: impl Into<String>) {
        if self.trail.len() < TRAIL_LINES_MAX {
            self.trail.push(line.into());
        }
    }

    /// Sends a request and returns the answer, whatever its status. The lease always outlasts the
    /// request. `what` names it in the detail: no value in it.
    pub(crate) async fn send(
        &mut self,
        what: &str,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, Stop> {
        let needed = i64::try_from(self.request_timeout.as_millis()).unwrap_or(i64::MAX / 2);
        if self.lease.until < self.now().plus_ms(needed) {
            self.save().await?;
        }
        self.requests += 1;
        self.status = None;
        match self.http.send(Outgoing { method, url, headers, body }).await {
            Ok(answer) => {
                self.status = Some(answer.status);
                self.note(format!("{what} → {}", answer.status));
                Ok(answer)
            }
            Err(error) => {
                self.note(format!("{what} → {error}"));
                let class = match error {
                    HttpError::Blocked(_) | HttpError::Build(_) => Class::Refused,
                    HttpError::Unreachable(_) => Class::Busy { retry_after_ms: None },
                    HttpError::Timeout(_) | HttpError::Broken(_) => Class::Transient,
                };
                Err(Failure::new(class, format!("{what}: {error}")).into())
            }
        }
    }

    /// Writes down what is done so far and makes the lease longer.
    pub(crate) async fn save(&mut self) -> Result<(), Stop> {
        match self.store.save_lane(&mut self.lease, self.lease_ttl).await? {
            Saved::Until(_) => Ok(()),
            Saved::Lost => Err(Stop::LeaseLost),
        }
    }

    /// What an answer's `Retry-After` asks for.
    pub(crate) fn retry_after_ms(&self, answer: &Answer) -> Option<i64> {
        retry_after_ms(answer.header("retry-after")?, self.now())
    }

    /// The failure that an answer is.
    pub(crate) fn refused(&mut self, what: &str, answer: &Answer, class: Class) -> Failure {
        let body = self.redacted(&answer.body);
        let message = if body.is_empty() {
            format!("{what}: {}", answer.status)
        } else {
            format!("{what}: {}: {body}", answer.status)
        };
        Failure { class, status: Some(answer.status), message }
    }

    /// A body as it may be recorded.
    fn redacted(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(&body[..body.len().min(crate::http::REFUSAL_BYTES_MAX)]);
        let mut hide = self.hide.clone();
        hide.push(self.credential.expose_secret().to_owned());
        let text = redact(text.trim(), &hide);
        text[..text.floor_char_boundary(REFUSAL_DETAIL_BYTES_MAX)].to_owned()
    }

    /// The failure of a request that could not even be made.
    pub(crate) fn misconfigured(message: impl Into<String>) -> Stop {
        Failure::new(Class::Refused, message).into()
    }
}

/// What a process remembers of targets between runs.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    capabilities: Mutex<std::collections::HashMap<(TenantId, AppId), scim::Capabilities>>,
}

impl Memory {
    /// What is known of a target, unless it is too old or of another address.
    pub(crate) fn capabilities(&self, key: (&TenantId, &AppId)) -> Option<scim::Capabilities> {
        let known = self.capabilities.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(key.0.clone(), key.1.clone())).cloned()
    }

    /// Remembers what was found out.
    pub(crate) fn learn(&self, key: (&TenantId, &AppId), capabilities: scim::Capabilities) {
        let mut known = self.capabilities.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((key.0.clone(), key.1.clone()), capabilities);
    }
}

/// Every text in a value.
pub(crate) fn texts(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| texts(value, into)),
        Value::Object(map) => map.values().for_each(|value| texts(value, into)),
        _ => {}
    }
}

/// What a finished run came to.
pub(crate) type Ran = Result<Outcome, Stop>;

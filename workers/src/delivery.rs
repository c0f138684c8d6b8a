//! What an answer means, and what becomes of the lane and the target: pure, from numbers to decisions.
//!
//! Failures have five classes (WK-12). Two belong to the delivery: it may work later (*transient*), or
//! the target rejects what it is given (*object*). Three belong to the target: it asks for patience or
//! is out of reach (*busy*), or it refuses us altogether (*refused*), until someone repairs something.
//! Those hold the whole app and count for no lane.

use annals_domain::clock::Timestamp;
use annals_store::lanes::{Next, Outcome, TargetReport};

use crate::retry::Schedule;

/// Whose failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The target asks for patience, or cannot be reached.
    Busy {
        /// For how long it asks, in milliseconds.
        retry_after_ms: Option<i64>,
    },
    /// The target refuses us: credentials, address, settings.
    Refused,
    /// It may work the next time.
    Transient,
    /// The target rejects this content.
    Object,
    /// The target rejects this content, and another try would not help.
    Hopeless,
}

/// A failed delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose it is.
    pub class: Class,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What failed, without secrets and personal values.
    pub message: String,
}

impl Failure {
    /// A failure without an answer.
    pub fn new(class: Class, message: impl Into<String>) -> Failure {
        Failure { class, status: None, message: message.into() }
    }
}

/// What is done about a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The lane's next state.
    pub next: Next,
    /// What is recorded.
    pub outcome: Outcome,
    /// What it says about the target.
    pub target: TargetReport,
}

/// The class of an answer of a SCIM service provider that is no success.
pub fn classify_scim(status: u16, retry_after_ms: Option<i64>) -> Class {
    match status {
        401 | 403 => Class::Refused,
        // Redirects are not followed: the base URL is wrong.
        300..=399 => Class::Refused,
        429 | 503 => Class::Busy { retry_after_ms },
        408 | 412 | 425 => Class::Transient,
        // Not implemented: no other try will find it implemented.
        501 | 505 => Class::Object,
        500..=599 => Class::Transient,
        _ => Class::Object,
    }
}

/// The class of an answer of a webhook receiver that is no success. It has one address for everything:
/// what says that the address is wrong concerns all lanes.
pub fn classify_webhook(status: u16, retry_after_ms: Option<i64>) -> Class {
    match status {
        300..=399 | 401 | 403 | 404 | 405 | 410 => Class::Refused,
        429 | 503 => Class::Busy { retry_after_ms },
        408 | 425 | 500..=599 => Class::Transient,
        _ => Class::Object,
    }
}

/// What a failure leads to, after `attempts` failures of the lane and `target_failures` of the target
/// before it.
pub fn decide(
    failure: &Failure,
    attempts: i64,
    target_failures: i64,
    now: Timestamp,
    schedule: &Schedule,
    random: u64,
) -> Decision {
    let hold = |pause_ms: i64, outcome| {
        let until = now.plus_ms(pause_ms);
        Decision {
            // The breaker holds it; when that closes early, the lane goes on at once.
            next: Next::Later { at: now, failed: false },
            outcome,
            target: TargetReport::Open { until, reason: failure.message.clone() },
        }
    };
    let later = || Decision {
        next: Next::Later { at: now.plus_ms(schedule.lane.full_jitter_ms(attempts, random)), failed: true },
        outcome: Outcome::Failed,
        target: TargetReport::Silent,
    };
    let quarantine =
        || Decision { next: Next::Quarantine, outcome: Outcome::Quarantined, target: TargetReport::Silent };
    match failure.class {
        Class::Busy { retry_after_ms } => {
            let pause = schedule.busy.half_jitter_ms(target_failures, random);
            hold(retry_after_ms.unwrap_or(pause), Outcome::Throttled)
        }
        Class::Refused => hold(schedule.refused.half_jitter_ms(target_failures, random), Outcome::Refused),
        Class::Transient => later(),
        // The target answers; it is this content that it does not take.
        Class::Object if attempts + 1 < schedule.object_tries_max => {
            Decision { target: TargetReport::Well, ..later() }
        }
        Class::Object | Class::Hopeless => Decision { target: TargetReport::Well, ..quarantine() },
    }
}

/// Hides what must not be recorded from a text that a target sent: the given values, whatever looks like
/// an address, and control characters.
pub fn redact(text: &str, hide: &[String]) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut hide: Vec<&String> = hide.iter().filter(|value| value.chars().count() >= 3).collect();
    // Longer ones first, as one value may be part of another.
    hide.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in hide {
        text = replace_folded(&text, value);
    }
    let words: Vec<&str> = text.split(' ').map(|word| if word.contains('@') { "…" } else { word }).collect();
    words.join(" ")
}

/// Replaces a value whatever the case of its ASCII letters.
fn replace_folded(text: &str, value: &str) -> String {
    let (folded, needle) = (text.to_ascii_lowercase(), value.to_ascii_lowercase());
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = folded[at..].find(&needle) {
        out.push_str(&text[at..at + found]);
        out.push('…');
        at += found + needle.len();
    }
    out.push_str(&text[at..]);
    out
}

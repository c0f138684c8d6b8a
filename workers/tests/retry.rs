//! When to try again, and what failures lead to: tables and properties, no I/O.

use annals_domain::clock::Timestamp;
use annals_store::lanes::{Next, Outcome, TargetReport};
use annals_workers::delivery::{Class, Failure, classify_scim, classify_webhook, decide, redact};
use annals_workers::retry::{Backoff, RETRY_AFTER_MS_MAX, Schedule, retry_after_ms};

/// 2026-01-01T00:00:00Z
const NOW: Timestamp = Timestamp(1_767_225_600_000);
const RANDOM: [u64; 6] = [0, 1, 12_345, u64::MAX / 3, u64::MAX / 2, u64::MAX];

#[test]
fn pauses_double_up_to_their_bound() {
    let lane = Schedule::default().lane;
    let bounds: Vec<i64> = [0, 1, 2, 11, 12, 40, 1_000].map(|n| lane.bound_ms(n)).to_vec();
    assert_eq!(bounds, [1_000, 2_000, 4_000, 2_048_000, 3_600_000, 3_600_000, 3_600_000]);
    let odd = Backoff { first_ms: 0, max_ms: 0 };
    assert_eq!(odd.bound_ms(3), 1);
}

#[test]
fn full_jitter_spreads_over_the_whole_pause() {
    let lane = Schedule::default().lane;
    for failures in [0, 3, 20] {
        let bound = lane.bound_ms(failures);
        for random in RANDOM {
            let pause = lane.full_jitter_ms(failures, random);
            assert!((1..=bound).contains(&pause), "{pause} of {bound}");
            let pause = lane.half_jitter_ms(failures, random);
            assert!((bound / 2..=bound).contains(&pause), "{pause} of {bound}");
        }
        let draw = |n: u64| lane.full_jitter_ms(failures, n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mean = (0..1_000).map(draw).sum::<i64>() / 1_000;
        assert!((bound * 2 / 5..bound * 3 / 5).contains(&mean), "mean {mean} of {bound}");
    }
}

#[test]
fn retry_after_is_seconds_or_a_date_and_an_hour_at_most() {
    for (value, expected) in [
        ("7", Some(7_000)),
        (" 0 ", Some(0)),
        ("3600", Some(3_600_000)),
        ("86400", Some(RETRY_AFTER_MS_MAX)),
        ("99999999999999999999", Some(RETRY_AFTER_MS_MAX)),
        ("Thu, 01 Jan 2026 00:01:30 GMT", Some(90_000)),
        ("Thursday, 01-Jan-26 00:01:30 GMT", Some(90_000)),
        ("Wed, 31 Dec 2025 23:00:00 GMT", Some(0)),
        ("Fri, 02 Jan 2026 00:00:00 GMT", Some(RETRY_AFTER_MS_MAX)),
        ("soon", None),
        ("-3", None),
        ("1.5", None),
        ("", None),
    ] {
        assert_eq!(retry_after_ms(value, NOW), expected, "{value:?}");
    }
}

#[test]
fn answers_have_their_class() {
    let busy = Class::Busy { retry_after_ms: Some(7) };
    for (status, scim, webhook) in [
        (301, Class::Refused, Class::Refused),
        (308, Class::Refused, Class::Refused),
        (400, Class::Object, Class::Object),
        (401, Class::Refused, Class::Refused),
        (403, Class::Refused, Class::Refused),
        (404, Class::Object, Class::Refused),
        (408, Class::Transient, Class::Transient),
        (409, Class::Object, Class::Object),
        (410, Class::Object, Class::Refused),
        (412, Class::Transient, Class::Object),
        (413, Class::Object, Class::Object),
        (422, Class::Object, Class::Object),
        (429, busy, busy),
        (500, Class::Transient, Class::Transient),
        (501, Class::Object, Class::Transient),
        (502, Class::Transient, Class::Transient),
        (503, busy, busy),
        (504, Class::Transient, Class::Transient),
    ] {
        assert_eq!(classify_scim(status, Some(7)), scim, "{status}");
        assert_eq!(classify_webhook(status, Some(7)), webhook, "{status}");
    }
}

fn decided(class: Class, attempts: i64, target_failures: i64) -> (Next, Outcome, TargetReport) {
    let failure = Failure::new(class, "why");
    let decision = decide(&failure, attempts, target_failures, NOW, &Schedule::default(), u64::MAX);
    (decision.next, decision.outcome, decision.target)
}

#[test]
fn a_target_that_asks_for_patience_costs_no_lane_a_try() {
    let asked = decided(Class::Busy { retry_after_ms: Some(7_000) }, 2, 0);
    let open = TargetReport::Open { until: NOW.plus_ms(7_000), reason: "why".into() };
    assert_eq!(asked, (Next::Later { at: NOW, failed: false }, Outcome::Throttled, open));
    for failures in 0..30 {
        let (next, _, target) = decided(Class::Busy { retry_after_ms: None }, 0, failures);
        assert_eq!(next, Next::Later { at: NOW, failed: false });
        let TargetReport::Open { until, .. } = target else { panic!("{target:?}") };
        assert!(until > NOW && until <= NOW.plus_ms(5 * 60_000));
    }
    let (_, outcome, target) = decided(Class::Refused, 0, 0);
    let TargetReport::Open { until, .. } = target else { panic!("{target:?}") };
    assert_eq!(outcome, Outcome::Refused);
    assert!(until >= NOW.plus_ms(30_000) && until <= NOW.plus_ms(60_000));
}

#[test]
fn a_lane_is_tried_for_ever_or_three_times() {
    for attempts in [0, 5, 500] {
        let (next, outcome, target) = decided(Class::Transient, attempts, 0);
        let Next::Later { at, failed: true } = next else { panic!("{next:?}") };
        assert!(at > NOW && at <= NOW.plus_ms(3_600_000));
        assert_eq!((outcome, target), (Outcome::Failed, TargetReport::Silent));
    }
    let outcomes = [0, 1, 2, 3].map(|attempts| decided(Class::Object, attempts, 0).1);
    let (failed, quarantined) = (Outcome::Failed, Outcome::Quarantined);
    assert_eq!(outcomes, [failed, failed, quarantined, quarantined]);
    assert_eq!(decided(Class::Object, 2, 0).0, Next::Quarantine);
    assert_eq!(decided(Class::Object, 0, 0).2, TargetReport::Well, "it answers");
    assert_eq!(decided(Class::Hopeless, 0, 0).0, Next::Quarantine);
}

#[test]
fn refusals_are_redacted() {
    let hide = ["Inés".to_owned(), "Inés Quiroga".to_owned(), "s3cret".to_owned(), "de".to_owned()];
    let text = "user Inés Quiroga\r\n<b>S3CRET</b> of Inés: mail a@b.example, code de";
    assert_eq!(redact(text, &hide), "user …  <b>…</b> of …: mail … code de");
    assert_eq!(redact("", &hide), "");
    assert_eq!(redact("éé", &["é".to_owned()]), "éé", "too short to be found by");
}

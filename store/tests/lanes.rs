//! The ledger of lanes: one suite, run on SQLite and on PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use annals_domain::clock::Timestamp;
use annals_domain::event::{Actor, Cause};
use annals_domain::ids::{AppId, ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::Profile;
use annals_domain::scim::schema::Registry;
use annals_domain::tenant::{App, Driver, TenantSettings};
use annals_store::lanes::{
    ATTEMPTS_KEPT, DETAIL_BYTES_MAX, Delivery, DeliveryFilter, Finished, LANE_LOOK_MS, LaneKey, LaneKind,
    LaneState, LaneWish, Leased, Next, Outcome, PendingChange, Planned, Quota, RemoteId, Report, Saved,
    Snapshot, SweepMode, TargetReport,
};
use annals_store::{Database, IfMatch, Limits, Request, RootKey, Store, StoreOptions};
use annals_testkit::clock::{ManualClock, SeededEntropy};
use secrecy::SecretString;
use serde_json::json;

const TTL: Duration = Duration::from_secs(120);

struct Fixture {
    store: Store,
    clock: Arc<ManualClock>,
    database: Database,
    _dir: Option<tempfile::TempDir>,
}

impl Fixture {
    async fn sqlite() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        Fixture::open(Database::Sqlite { dir: dir.path().to_owned() }, Some(dir)).await
    }

    async fn postgres() -> Fixture {
        let url = annals_testkit::postgres::shared().await.create_database().await.unwrap();
        Fixture::open(Database::Postgres { url, connections_max: 8 }, None).await
    }

    async fn open(database: Database, dir: Option<tempfile::TempDir>) -> Fixture {
        let clock = ManualClock::new();
        let store = open(&database, clock.clone(), 1).await;
        store.migrate().await.unwrap();
        Fixture { store, clock, database, _dir: dir }
    }

    async fn wish(&self, wishes: &[LaneWish]) {
        let at = self.store.planner_checkpoint().await.unwrap().position;
        let planned = self.store.plan(at, at + 1, wishes, &[]).await.unwrap();
        assert_eq!(planned, Planned::Advanced(at + 1));
    }

    async fn lease(&self, max: usize) -> Vec<Leased> {
        self.store.lease_lanes("w1", TTL, &[quota("app")], max).await.unwrap()
    }

    async fn lane(&self, id: &str) -> Delivery {
        self.store.delivery(&key("app", id)).await.unwrap().unwrap()
    }

    async fn finish(&self, leased: &Leased, report: Report) -> Finished {
        self.store.finish_lane(leased, &report).await.unwrap()
    }
}

async fn open(database: &Database, clock: Arc<ManualClock>, seed: u64) -> Store {
    let options = StoreOptions {
        database: database.clone(),
        root_key: RootKey::from_bytes([7; 32]),
        clock,
        entropy: SeededEntropy::new(seed),
        limits: Limits::default(),
    };
    Store::open(options).await.unwrap()
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn app(name: &str) -> AppId {
    AppId::new(name).unwrap()
}

fn id(text: &str) -> ResourceId {
    ResourceId::from_text(text)
}

fn key(app_name: &str, text: &str) -> LaneKey {
    LaneKey { tenant: acme(), app: app(app_name), id: id(text) }
}

fn quota(name: &str) -> Quota {
    Quota { tenant: acme(), app: app(name), concurrency_max: 100, rate_per_second_max: 0, in_flight: 0 }
}

fn state_wish(text: &str, version: i64) -> LaneWish {
    LaneWish {
        key: key("app", text),
        resource_type: "User".into(),
        kind: LaneKind::State,
        first_version: version,
        version,
        position: version * 10,
        deleted: false,
    }
}

fn log_wish(text: &str, first_version: i64, version: i64) -> LaneWish {
    LaneWish { kind: LaneKind::Log, first_version, ..state_wish(text, version) }
}

fn report(next: Next, outcome: Outcome) -> Report {
    Report {
        next,
        outcome,
        at: ManualClock::START,
        duration_ms: 5,
        status: Some(200),
        detail: "POST Users → 201".into(),
        error: None,
        target: TargetReport::Well,
        requests: 1,
    }
}

fn done() -> Report {
    report(Next::Done, Outcome::Updated)
}

/// What a driver does to a lane it has brought up to date.
fn applied(mut leased: Leased) -> Leased {
    leased.work.applied_version = leased.wanted_version;
    leased.work.applied_position = leased.wanted_position;
    leased.work.applied_hash = Some(vec![1]);
    leased
}

fn with_remote(leased: Leased, remote: &str) -> Leased {
    let mut leased = applied(leased);
    leased.work.remote = Some(at_home(remote));
    leased
}

const HOME: &str = "home";

fn at_home(id: &str) -> RemoteId {
    RemoteId { id: id.to_owned(), home: HOME.to_owned() }
}

macro_rules! contract {
    ($($name:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::Fixture::sqlite().await).await })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::Fixture::postgres().await).await })*
        }
    };
}

contract! {
    a_page_is_planned_once
    a_burst_is_one_lane_at_the_newest_version
    a_log_lane_begins_before_its_first_event
    a_lane_is_leased_to_one
    a_lease_that_ended_is_taken_over_and_its_finisher_is_lost
    a_version_planned_during_a_lease_is_not_forgotten
    failures_wait_and_quarantine_blocks_only_its_lane
    a_new_version_frees_a_state_lane_but_no_log_lane
    a_breaker_holds_the_whole_app_and_lets_one_probe_through
    quotas_bound_concurrency_and_rate
    apps_that_hang_leave_room_for_others
    a_lane_waits_for_another_ones_remote_id
    a_remote_id_saved_in_mid_work_wakes_at_once
    a_parked_reference_wakes_nothing_until_redriven
    only_the_last_attempts_are_kept
    work_is_saved_in_mid_lease
    an_app_is_backfilled_replayed_resent_and_removed
    a_resend_during_a_lease_is_not_lost
    a_new_epoch_compares_everything_again
    remote_ids_are_found_both_ways
    the_next_due_moment_is_known
    counts_say_where_lanes_stand
}

async fn a_page_is_planned_once(f: Fixture) {
    let other = open(&f.database, f.clock.clone(), 2).await;
    assert_eq!(f.store.planner_checkpoint().await.unwrap().position, 0);
    let planned = f.store.plan(0, 7, &[state_wish("u1", 1)], &[]).await.unwrap();
    assert_eq!(planned, Planned::Advanced(7));
    let lost = other.plan(0, 7, &[state_wish("u2", 1)], &[]).await.unwrap();
    assert_eq!(lost, Planned::Lost { actual: 7 });
    assert_eq!(f.store.deliveries(&DeliveryFilter::default(), 10).await.unwrap().len(), 1);
}

async fn a_burst_is_one_lane_at_the_newest_version(f: Fixture) {
    for version in [1, 2, 5, 3] {
        f.wish(&[state_wish("u1", version)]).await;
    }
    let lane = f.lane("u1").await;
    assert_eq!((lane.state, lane.wanted_version, lane.applied_version), (LaneState::Due, 5, 0));
    let leased = f.lease(10).await;
    assert_eq!(leased.len(), 1);
    assert_eq!(leased[0].wanted_position, 50);
    assert_eq!(f.finish(&applied(leased[0].clone()), done()).await, Finished::As(LaneState::Idle));
    // An event that is older than what was applied wakes nothing.
    f.wish(&[state_wish("u1", 4)]).await;
    assert_eq!(f.lane("u1").await.state, LaneState::Idle);
}

async fn a_log_lane_begins_before_its_first_event(f: Fixture) {
    f.wish(&[log_wish("u1", 4, 6)]).await;
    assert_eq!(f.lane("u1").await.applied_version, 3);
    f.wish(&[log_wish("u1", 7, 7)]).await;
    let lane = f.lane("u1").await;
    assert_eq!((lane.applied_version, lane.wanted_version), (3, 7));
}

async fn a_lane_is_leased_to_one(f: Fixture) {
    let other = open(&f.database, f.clock.clone(), 2).await;
    let wishes: Vec<LaneWish> = (0..40).map(|n| state_wish(&format!("u{n:02}"), 1)).collect();
    f.wish(&wishes).await;
    let quotas = [quota("app")];
    let (a, b) =
        tokio::join!(f.store.lease_lanes("w1", TTL, &quotas, 25), other.lease_lanes("w2", TTL, &quotas, 25));
    let mut ids: Vec<ResourceId> = a.unwrap().into_iter().chain(b.unwrap()).map(|l| l.key.id).collect();
    ids.extend(f.lease(100).await.into_iter().map(|l| l.key.id));
    assert_eq!(ids.len(), 40);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 40);
    assert_eq!(f.lease(100).await.len(), 0);
}

async fn a_lease_that_ended_is_taken_over_and_its_finisher_is_lost(f: Fixture) {
    f.wish(&[state_wish("u1", 3)]).await;
    let first = f.lease(1).await.remove(0);
    assert_eq!((first.fence, first.until), (1, ManualClock::START.plus_ms(120_000)));
    f.clock.advance(Duration::from_secs(119));
    assert_eq!(f.lease(1).await.len(), 0);
    f.clock.advance(Duration::from_secs(1));
    let second = f.store.lease_lanes("w2", TTL, &[quota("app")], 1).await.unwrap().remove(0);
    assert_eq!(second.fence, 2);

    // The late one had sent something: the new owner's work is not the last word.
    let mut late = with_remote(first, "r-late");
    assert_eq!(f.store.save_lane(&mut late, TTL).await.unwrap(), Saved::Lost);
    assert_eq!(f.finish(&late, done()).await, Finished::Lost);
    assert_eq!(f.lane("u1").await.state, LaneState::Leased);
    assert_eq!(f.finish(&with_remote(second, "r1"), done()).await, Finished::As(LaneState::Due));
    let third = f.lease(1).await.remove(0);
    assert!(third.resync);
    assert_eq!((third.start_version, third.work.applied_hash.clone()), (0, None));
    assert_eq!(third.work.remote.clone(), Some(at_home("r1")));
    assert_eq!(f.finish(&applied(third), done()).await, Finished::As(LaneState::Idle));

    // Late again, now that nobody holds it: it becomes due, and the hash is not trusted.
    let lane = f.lane("u1").await;
    assert_eq!((lane.applied_version, lane.wanted_version), (3, 3));
    assert_eq!(f.finish(&late, done()).await, Finished::Lost);
    let fourth = f.lease(1).await.remove(0);
    assert!(fourth.resync && fourth.work.applied_hash.is_none());
}

async fn a_version_planned_during_a_lease_is_not_forgotten(f: Fixture) {
    f.wish(&[state_wish("u1", 1)]).await;
    let leased = f.lease(1).await.remove(0);
    f.wish(&[state_wish("u1", 2)]).await;
    assert_eq!(f.lane("u1").await.state, LaneState::Leased);
    assert_eq!(f.finish(&applied(leased), done()).await, Finished::As(LaneState::Due));
    let leased = f.lease(1).await.remove(0);
    assert_eq!((leased.start_version, leased.wanted_version), (1, 2));
    // A state target may already have more than was planned; the plan catches up without a delivery.
    let mut ahead = applied(leased);
    (ahead.work.applied_version, ahead.work.applied_position) = (5, 50);
    assert_eq!(f.finish(&ahead, done()).await, Finished::As(LaneState::Idle));
    f.wish(&[state_wish("u1", 5)]).await;
    assert_eq!(f.lane("u1").await.state, LaneState::Idle);
    f.wish(&[state_wish("u1", 6)]).await;
    assert_eq!(f.lane("u1").await.state, LaneState::Due);
}

async fn failures_wait_and_quarantine_blocks_only_its_lane(f: Fixture) {
    f.wish(&[state_wish("bad", 1), state_wish("good", 1)]).await;
    for leased in f.lease(10).await {
        if leased.key.id == id("good") {
            f.finish(&applied(leased), done()).await;
            continue;
        }
        let at = f.store.now().plus_ms(1_000);
        let mut failed = report(Next::Later { at, failed: true }, Outcome::Failed);
        failed.error = Some("400 invalidValue".into());
        assert_eq!(f.finish(&leased, failed).await, Finished::As(LaneState::Due));
    }
    assert_eq!(f.lane("good").await.state, LaneState::Idle);
    let bad = f.lane("bad").await;
    assert_eq!((bad.attempts, bad.last_error.as_deref()), (1, Some("400 invalidValue")));
    assert_eq!(f.lease(10).await.len(), 0);
    f.clock.advance(Duration::from_secs(1));
    let leased = f.lease(10).await.remove(0);
    assert_eq!(leased.attempts, 1);
    let quarantined = f.finish(&leased, report(Next::Quarantine, Outcome::Quarantined)).await;
    assert_eq!(quarantined, Finished::As(LaneState::Quarantined));
    f.clock.advance(Duration::from_secs(100_000));
    assert_eq!(f.lease(10).await.len(), 0);

    let elsewhere = DeliveryFilter { app: Some(app("other")), ..DeliveryFilter::default() };
    assert_eq!(f.store.redrive(&elsewhere).await.unwrap(), 0);
    assert_eq!(f.store.redrive(&DeliveryFilter::default()).await.unwrap(), 1);
    let bad = f.lane("bad").await;
    assert_eq!((bad.state, bad.attempts), (LaneState::Due, 0));
}

async fn a_new_version_frees_a_state_lane_but_no_log_lane(f: Fixture) {
    f.wish(&[state_wish("s", 1), log_wish("l", 1, 1), state_wish("t", 1)]).await;
    for leased in f.lease(10).await {
        if leased.key.id == id("t") {
            // It was refused, but meanwhile there is newer content.
            f.wish(&[state_wish("t", 2)]).await;
            let next = f.finish(&leased, report(Next::Quarantine, Outcome::Quarantined)).await;
            assert_eq!(next, Finished::As(LaneState::Due));
        } else {
            f.finish(&leased, report(Next::Quarantine, Outcome::Quarantined)).await;
        }
    }
    f.wish(&[state_wish("s", 2), log_wish("l", 2, 2)]).await;
    assert_eq!(f.lane("s").await.state, LaneState::Due);
    assert_eq!(f.lane("l").await.state, LaneState::Quarantined);
    assert_eq!(f.lane("l").await.wanted_version, 2);
}

async fn a_breaker_holds_the_whole_app_and_lets_one_probe_through(f: Fixture) {
    f.wish(&[state_wish("a", 1), state_wish("b", 1), state_wish("c", 1)]).await;
    let mut leased = f.lease(2).await;
    let now = f.store.now();
    let open = |ms: i64| {
        let target = TargetReport::Open { until: now.plus_ms(ms), reason: "429".into() };
        let next = Next::Later { at: now, failed: false };
        Report { target, ..report(next, Outcome::Throttled) }
    };
    let second = leased.remove(1);
    f.finish(&leased[0], open(20_000)).await;
    // The same storm counts once, the longer pause holds, and an older success does not end it.
    f.finish(&second, open(5_000)).await;
    let status = f.store.target_status(&acme(), &app("app")).await.unwrap();
    assert_eq!((status.failures, status.open_until), (1, Some(now.plus_ms(20_000))));
    assert_eq!(f.lane("a").await.attempts, 0);
    f.clock.advance(Duration::from_secs(19));
    assert_eq!(f.lease(10).await.len(), 0);
    assert_eq!(f.store.next_due(&[quota("app")]).await.unwrap(), Some(now.plus_ms(20_000)));
    f.clock.advance(Duration::from_secs(1));
    let mut probe = f.lease(10).await;
    assert_eq!(probe.len(), 1);
    assert_eq!(f.lease(10).await.len(), 0);
    let probe = probe.remove(0);
    assert_eq!(probe.target_failures, 1);
    f.finish(&applied(probe), done()).await;
    assert_eq!(f.store.target_status(&acme(), &app("app")).await.unwrap(), Default::default());
    assert_eq!(f.lease(10).await.len(), 2);
}

async fn quotas_bound_concurrency_and_rate(f: Fixture) {
    let wishes: Vec<LaneWish> = (0..20).map(|n| state_wish(&format!("u{n:02}"), 1)).collect();
    f.wish(&wishes).await;
    let narrow = Quota { concurrency_max: 3, ..quota("app") };
    let leased = f.store.lease_lanes("w1", TTL, std::slice::from_ref(&narrow), 10).await.unwrap();
    assert_eq!(leased.len(), 3);
    let other = open(&f.database, f.clock.clone(), 2).await;
    assert_eq!(other.lease_lanes("w2", TTL, &[narrow], 10).await.unwrap().len(), 0);
    for lane in leased {
        f.finish(&applied(lane), done()).await;
    }
    // Four a second, a second's worth at once; one delivery took three requests.
    let slow = [Quota { rate_per_second_max: 4, ..quota("app") }];
    let mut leased = f.store.lease_lanes("w1", TTL, &slow, 10).await.unwrap();
    assert_eq!(leased.len(), 4);
    f.finish(&applied(leased.remove(0)), Report { requests: 3, ..done() }).await;
    f.clock.advance(Duration::from_millis(740));
    assert_eq!(f.store.lease_lanes("w1", TTL, &slow, 10).await.unwrap().len(), 0);
    let next = f.store.next_due(&slow).await.unwrap().unwrap();
    assert_eq!(next, ManualClock::START.plus_ms(750));
    f.clock.advance_to(next);
    assert_eq!(f.store.lease_lanes("w1", TTL, &slow, 10).await.unwrap().len(), 1);
}

fn wait_for(member: &str) -> PendingChange {
    PendingChange::Wait { attribute: "members".into(), member: id(member) }
}

async fn apps_that_hang_leave_room_for_others(f: Fixture) {
    let wishes = |name: &str| -> Vec<LaneWish> {
        let wish = |n| LaneWish { key: key(name, &format!("u{n:02}")), ..state_wish("", 1) };
        (0..20).map(wish).collect()
    };
    f.wish(&[wishes("app"), wishes("other"), wishes("third")].concat()).await;
    let quotas = |counts: [usize; 3]| {
        let names = ["app", "other", "third"].into_iter().zip(counts);
        names.map(|(name, in_flight)| Quota { in_flight, ..quota(name) }).collect::<Vec<_>>()
    };
    let leased = f.store.lease_lanes("w1", TTL, &quotas([0, 0, 0]), 12).await.unwrap();
    let of = |leased: &[Leased], name: &str| leased.iter().filter(|l| l.key.app == app(name)).count();
    assert_eq!([of(&leased, "app"), of(&leased, "other"), of(&leased, "third")], [4, 4, 4]);
    // The first two took all there was before the third came; what becomes free is the third's.
    let leased = f.store.lease_lanes("w1", TTL, &quotas([6, 5, 0]), 1).await.unwrap();
    assert_eq!((leased.len(), of(&leased, "third")), (1, 1));
    // Fewer places than apps: nobody is always the last.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        for lane in f.store.lease_lanes("w1", TTL, &quotas([0, 0, 0]), 1).await.unwrap() {
            seen.insert(lane.key.app);
        }
    }
    assert_eq!(seen.len(), 3);
}

async fn a_lane_waits_for_another_ones_remote_id(f: Fixture) {
    f.wish(&[state_wish("group", 1)]).await;
    let mut group = with_remote(f.lease(1).await.remove(0), "g1");
    group.work.pending = vec![wait_for("u1"), wait_for("u2")];
    assert_eq!(f.finish(&group, done()).await, Finished::As(LaneState::Waiting));
    assert_eq!(f.lane("group").await.due_at, Some(f.store.now().plus_ms(LANE_LOOK_MS)));
    f.wish(&[state_wish("u1", 1), state_wish("u2", 1)]).await;
    for user in f.lease(10).await {
        assert_ne!(user.key.id, id("group"));
        let remote = format!("r-{}", user.key.id);
        f.finish(&with_remote(user, &remote), done()).await;
    }
    let mut group = f.lease(10).await.remove(0);
    let pending = f.store.pending(&group.key, HOME, None, 10).await.unwrap();
    let found: Vec<_> = pending.iter().map(|p| (p.member.as_str(), p.remote_id.as_deref())).collect();
    assert_eq!(found, [("u1", Some("r-u1")), ("u2", Some("r-u2"))]);
    let first = (pending[0].attribute.as_str(), &pending[0].member);
    assert_eq!(f.store.pending(&group.key, HOME, Some(first), 10).await.unwrap().len(), 1);
    group.work.pending = pending
        .into_iter()
        .map(|p| PendingChange::Done { attribute: p.attribute, member: p.member })
        .collect();
    assert_eq!(f.finish(&group, done()).await, Finished::As(LaneState::Idle));

    // The remote id came while the group was in someone's hands.
    f.wish(&[state_wish("group", 2), state_wish("u3", 1)]).await;
    let mut leased = f.lease(10).await;
    leased.sort_by(|a, b| a.key.cmp(&b.key));
    let user = leased.remove(1);
    let mut group = applied(leased.remove(0));
    f.finish(&with_remote(user, "r-u3"), done()).await;
    group.work.pending = vec![wait_for("u3")];
    assert_eq!(f.finish(&group, done()).await, Finished::As(LaneState::Due));
}

async fn a_remote_id_saved_in_mid_work_wakes_at_once(f: Fixture) {
    f.wish(&[state_wish("group", 1), state_wish("u1", 1)]).await;
    let mut leased = f.lease(10).await;
    leased.sort_by(|a, b| a.key.cmp(&b.key));
    let mut user = with_remote(leased.remove(1), "r1");
    let mut group = applied(leased.remove(0));
    group.work.pending = vec![wait_for("u1")];
    assert_eq!(f.finish(&group, done()).await, Finished::As(LaneState::Waiting));
    let mut woken = false;
    tokio::select! {
        () = f.store.wait_lanes(Duration::from_secs(20)) => woken = true,
        () = async {
            tokio::task::yield_now().await;
            f.store.save_lane(&mut user, TTL).await.unwrap();
            std::future::pending().await
        } => {}
    }
    assert!(woken);
    assert_eq!(f.lane("group").await.state, LaneState::Due);
}

async fn a_parked_reference_wakes_nothing_until_redriven(f: Fixture) {
    f.wish(&[state_wish("group", 1), state_wish("u1", 1)]).await;
    let mut leased = f.lease(10).await;
    leased.sort_by(|a, b| a.key.cmp(&b.key));
    f.finish(&with_remote(leased.remove(1), "r1"), done()).await;
    let mut group = with_remote(leased.remove(0), "g1");
    group.work.pending = vec![PendingChange::Park { attribute: "members".into(), member: id("u1") }];
    assert_eq!(f.finish(&group, done()).await, Finished::As(LaneState::Waiting));
    assert_eq!(f.lease(10).await.len(), 0);
    assert_eq!(f.store.redrive(&DeliveryFilter::default()).await.unwrap(), 1);
    let mut group = f.lease(10).await.remove(0);
    assert!(!f.store.pending(&group.key, HOME, None, 10).await.unwrap()[0].parked);
    group.work.pending = vec![PendingChange::ClearReferences];
    assert_eq!(
        f.finish(&group, done()).await,
        Finished::As(LaneState::Due),
        "members are no such references"
    );
    let mut group = f.lease(10).await.remove(0);
    group.work.pending = vec![PendingChange::ClearAll];
    assert_eq!(f.finish(&group, done()).await, Finished::As(LaneState::Idle));
}

async fn only_the_last_attempts_are_kept(f: Fixture) {
    for version in 1..=25 {
        f.wish(&[state_wish("u1", version)]).await;
        let leased = applied(f.lease(1).await.remove(0));
        f.finish(&leased, Report { detail: "é".repeat(DETAIL_BYTES_MAX), ..done() }).await;
    }
    let attempts = f.store.attempts(&acme(), &app("app"), &id("u1")).await.unwrap();
    assert_eq!(attempts.len(), ATTEMPTS_KEPT as usize);
    assert_eq!((attempts[0].number, attempts[0].status), (25, Some(200)));
    assert_eq!(attempts[0].outcome, "updated");
    assert_eq!(attempts[0].detail.len(), DETAIL_BYTES_MAX);
}

async fn work_is_saved_in_mid_lease(f: Fixture) {
    f.wish(&[state_wish("group", 4)]).await;
    let mut group = f.lease(1).await.remove(0);
    group.work.remote = Some(at_home("g1"));
    group.work.snapshot = Some(Snapshot { version: 4, after: "u5".into() });
    group.work.pending = vec![wait_for("u3")];
    f.clock.advance(Duration::from_secs(60));
    let saved = f.store.save_lane(&mut group, TTL).await.unwrap();
    assert_eq!(saved, Saved::Until(ManualClock::START.plus_ms(180_000)));
    assert!(group.work.pending.is_empty());
    // The process dies; the next one goes on where it was.
    f.clock.advance(Duration::from_secs(119));
    assert_eq!(f.lease(1).await.len(), 0);
    f.clock.advance(Duration::from_secs(1));
    let next = f.lease(1).await.remove(0);
    assert_eq!(next.work.snapshot, Some(Snapshot { version: 4, after: "u5".into() }));
    assert_eq!(next.work.remote.clone(), Some(at_home("g1")));
    assert_eq!(f.store.pending(&next.key, HOME, None, 10).await.unwrap().len(), 1);
}

fn scim_app() -> App {
    App {
        id: app("app"),
        driver: Driver::Scim { base_url: "https://app.example/scim/v2".into(), members_per_request_max: 100 },
        resource_types: Vec::new(),
        paused: false,
        concurrency_max: 8,
        rate_per_second_max: 0,
    }
}

async fn a_user(store: &Store, name: &str) -> ResourceId {
    let new = ResourceId::from_uuid(store.entropy().uuid_v7(store.now()));
    let body = json!({ "userName": name });
    let request = Request {
        tenant: acme(),
        resource_type: Registry::standard().resource_type("User").unwrap().clone(),
        id: new.clone(),
        command: Command::Create { id: new, body, client: Profile::Generic.into() },
        if_match: IfMatch::Absent,
        actor: Actor::system("test"),
        cause: Cause::default(),
        connection: None,
        settings: TenantSettings::default(),
        group_name_unique: false,
        idempotency: None,
        deadline: None,
    };
    store.execute(request).await.unwrap().state.id
}

async fn sweep(f: &Fixture) -> usize {
    let mut pages = 0;
    while f.store.sweep_step().await.unwrap() > 0 {
        pages += 1;
        assert!(pages < 100);
    }
    pages
}

async fn lanes(f: &Fixture, state: LaneState) -> usize {
    let filter = DeliveryFilter { state: Some(state), ..DeliveryFilter::default() };
    f.store.deliveries(&filter, 1_000).await.unwrap().len()
}

async fn an_app_is_backfilled_replayed_resent_and_removed(f: Fixture) {
    f.store.create_tenant(&acme(), TenantSettings::default(), Actor::system("test")).await.unwrap();
    let credential = SecretString::from("secret".to_owned());
    f.store.create_app(&acme(), scim_app(), credential, Actor::system("test")).await.unwrap();
    for n in 0..5 {
        a_user(&f.store, &format!("user{n}")).await;
    }
    f.store.backfill_app(&acme(), &scim_app()).await.unwrap();
    assert_eq!(sweep(&f).await, 2, "one page each of users and groups");
    assert_eq!(lanes(&f, LaneState::Due).await, 5);
    for leased in f.lease(10).await {
        let remote = format!("r-{}", leased.key.id);
        f.finish(&with_remote(leased, &remote), done()).await;
    }
    f.store.backfill_app(&acme(), &scim_app()).await.unwrap();
    sweep(&f).await;
    assert_eq!(lanes(&f, LaneState::Idle).await, 5);

    assert!(f.store.replay_app(&acme(), &app("app"), false).await.unwrap());
    assert!(!f.store.replay_app(&acme(), &app("none"), false).await.unwrap());
    sweep(&f).await;
    for leased in f.lease(10).await {
        assert_eq!(leased.work.applied_hash, Some(vec![1]));
        f.finish(&applied(leased), done()).await;
    }
    assert_eq!(lanes(&f, LaneState::Idle).await, 5);

    f.store.replay_app(&acme(), &app("app"), true).await.unwrap();
    sweep(&f).await;
    let leased = f.lease(10).await;
    assert_eq!(leased.len(), 5);
    for lane in leased {
        assert!(lane.resync && lane.work.applied_hash.is_none() && lane.work.remote.is_some());
        assert_eq!(lane.start_version, 0);
        f.finish(&applied(lane), done()).await;
    }
    assert_eq!(lanes(&f, LaneState::Idle).await, 5);

    let remove = f.store.sweep_of(&acme(), &scim_app(), SweepMode::Remove).await.unwrap();
    let at = f.store.planner_checkpoint().await.unwrap().position;
    f.store.plan(at, at + 1, &[], &[remove]).await.unwrap();
    sweep(&f).await;
    assert_eq!(f.store.deliveries(&DeliveryFilter::default(), 10).await.unwrap(), []);
}

async fn a_resend_during_a_lease_is_not_lost(f: Fixture) {
    f.store.create_tenant(&acme(), TenantSettings::default(), Actor::system("test")).await.unwrap();
    let credential = SecretString::from("secret".to_owned());
    f.store.create_app(&acme(), scim_app(), credential, Actor::system("test")).await.unwrap();
    let user = a_user(&f.store, "ines").await;
    f.store.backfill_app(&acme(), &scim_app()).await.unwrap();
    sweep(&f).await;
    let leased = f.lease(1).await.remove(0);
    assert_eq!(leased.key.id, user);
    f.store.replay_app(&acme(), &app("app"), true).await.unwrap();
    sweep(&f).await;
    assert_eq!(f.finish(&with_remote(leased, "r1"), done()).await, Finished::As(LaneState::Due));
    let again = f.lease(1).await.remove(0);
    assert!(again.resync);
    assert_eq!((again.start_version, again.work.applied_hash.clone()), (0, None));
    assert_eq!(f.finish(&applied(again), done()).await, Finished::As(LaneState::Idle));
}

async fn a_new_epoch_compares_everything_again(f: Fixture) {
    f.store.create_tenant(&acme(), TenantSettings::default(), Actor::system("test")).await.unwrap();
    let user = a_user(&f.store, "ines").await;
    let head = f.store.head().await.unwrap().position;
    let lanes = [("app", LaneKind::State), ("hook", LaneKind::Log)].map(|(name, kind)| LaneWish {
        key: key(name, user.as_str()),
        kind,
        position: head + 4,
        ..state_wish("", 5)
    });
    f.store.plan(0, head + 5, &lanes, &[]).await.unwrap();
    for leased in f.store.lease_lanes("w", TTL, &[quota("app"), quota("hook")], 10).await.unwrap() {
        f.finish(&applied(leased), done()).await;
    }
    // The journal was restored: the user has version 1 again.
    let before = f.store.planner_checkpoint().await.unwrap();
    f.store.follow_epoch(before, 2, head).await.unwrap();
    let after = f.store.planner_checkpoint().await.unwrap();
    assert_eq!((after.position, after.epoch), (head, 2));
    let state = f.store.delivery(&key("app", user.as_str())).await.unwrap().unwrap();
    assert_eq!((state.state, state.applied_version), (LaneState::Due, 0));
    let log = f.store.delivery(&key("hook", user.as_str())).await.unwrap().unwrap();
    assert_eq!((log.state, log.applied_version, log.wanted_version), (LaneState::Idle, 1, 1));
    f.store.follow_epoch(before, 2, head).await.unwrap();
    assert_eq!(f.store.planner_checkpoint().await.unwrap(), after, "once is enough");
}

async fn remote_ids_are_found_both_ways(f: Fixture) {
    f.wish(&[state_wish("u1", 1), state_wish("u2", 1)]).await;
    for leased in f.lease(10).await {
        f.finish(&with_remote(leased, "same"), done()).await;
    }
    let ids = [id("u1"), id("u2"), id("u3")];
    let found = f.store.remote_ids(&acme(), &app("app"), HOME, &ids).await.unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[&id("u1")], "same");
    // To another target these ids mean nothing.
    assert_eq!(f.store.remote_ids(&acme(), &app("app"), "elsewhere", &ids).await.unwrap().len(), 0);
    let elsewhere = RemoteId { home: "elsewhere".into(), ..at_home("same") };
    assert_eq!(f.store.linked_to(&key("app", "u1"), &elsewhere).await.unwrap(), None);
    let other = f.store.linked_to(&key("app", "u1"), &at_home("same")).await.unwrap();
    assert_eq!(other, Some((id("u2"), LaneState::Idle)));
    assert_eq!(f.store.linked_to(&key("app", "u1"), &at_home("none")).await.unwrap(), None);
}

async fn the_next_due_moment_is_known(f: Fixture) {
    let quotas = [quota("app"), quota("other")];
    assert_eq!(f.store.next_due(&quotas).await.unwrap(), None);
    f.wish(&[state_wish("u1", 1)]).await;
    assert_eq!(f.store.next_due(&quotas).await.unwrap(), Some(f.store.now()));
    let leased = f.lease(1).await.remove(0);
    assert_eq!(f.store.next_due(&quotas).await.unwrap(), Some(leased.until));
    let at = f.store.now().plus_ms(7_000);
    f.finish(&leased, report(Next::Later { at, failed: true }, Outcome::Failed)).await;
    assert_eq!(f.store.next_due(&quotas).await.unwrap(), Some(at));
}

async fn counts_say_where_lanes_stand(f: Fixture) {
    f.wish(&[state_wish("a", 1), state_wish("b", 1), state_wish("c", 1)]).await;
    let leased = f.lease(2).await;
    f.finish(&leased[0], report(Next::Quarantine, Outcome::Quarantined)).await;
    let counts = f.store.lane_counts().await.unwrap();
    assert_eq!((counts.due, counts.leased, counts.quarantined), (1, 1, 1));
    assert_eq!(counts.oldest_due, Some(ManualClock::START));
    assert_eq!(Timestamp(ManualClock::START.0), ManualClock::START);
}

//! The relay against real nats-servers: the stream holds every event of the journal once, in order,
//! whoever publishes; and a stream that does not fit is never written to.

#[path = "../../bus/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use annals_bus::nats::{NatsError, Stop};
use annals_bus::{BusError, Nats, NatsOptions, Progress, message};
use annals_domain::event::Actor;
use annals_domain::ids::Position;
use annals_domain::scim::schema::Registry;
use annals_projector::recover::{drop_tail, survey};
use annals_projector::{LowestCheckpoint, Relay};
use annals_store::{Store, StoreError};
use annals_testkit::child::wait_for;
use annals_testkit::nats::{Server, binaries};
use serde_json::json;

use common::{
    Journal, PATIENCE, Scaled, connected, copy_folder, journal_events, mirror, mirrored, open_store, options,
    relay, stream_events, user, users,
};

fn begins_at(position: Position) -> LowestCheckpoint {
    Arc::new(move |_| Box::pin(async move { Ok(position) }))
}

async fn halted(store: &Store) -> Option<String> {
    store.head().await.unwrap().halted
}

async fn stream_equals_journal(store: &Store, nats: &Nats) {
    let stream = stream_events(store, nats).await;
    let journal = journal_events(store).await;
    let first = stream.first().map_or(0, |event| event.position as usize - 1);
    assert_eq!(stream, journal[first..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_in_the_stream_once() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        for count in [0, 1, 40, 700] {
            users(scaled.store(), count).await;
            scaled.mirror().await;
            stream_equals_journal(scaled.store(), &scaled.nats).await;
        }
        // Nothing to do: no error, nothing published.
        assert_eq!(scaled.relay.step().await.unwrap(), Progress::done(0));
        // A relay that knows nothing finds the end by itself.
        let mut new = relay(scaled.store(), &scaled.nats, "test");
        assert_eq!(new.step().await.unwrap(), Progress::done(0));
        let epoch = scaled.store().bus_epoch().await.unwrap().unwrap();
        assert_eq!((epoch.epoch, epoch.offset), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_relay_wakes_when_an_event_is_written() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        scaled.mirror().await;
        let store = scaled.store().clone();
        let mut relay = Relay::new(store.clone(), scaled.nats.clone(), "test").with_idle_wait(PATIENCE);
        let began = Instant::now();
        let (idle, _) = tokio::join!(relay.step(), users(&store, 1));
        idle.unwrap();
        // If the event was there before the relay looked, it is published already, and a step would wait.
        if mirrored(&store, &scaled.nats).await < Some(store.head().await.unwrap().position) {
            mirror(&mut relay, &store, &scaled.nats).await;
        }
        assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_at_once_publish_nothing_twice() {
    for binary in binaries() {
        let scaled = Scaled::on(&binary).await;
        let (store, server) = (scaled.store().clone(), &scaled.server);
        users(&store, 100).await;
        // One owner: the lease, which is not what correctness rests on, lets both through. They disagree
        // about where the new stream begins, too.
        let mut relays = Vec::new();
        for lowest in [0, 7, 30] {
            let nats = connected(options(server)).await;
            relays.push(relay(&store, &nats, "same").with_lowest(begins_at(lowest)));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = tokio::task::JoinSet::new();
        for mut relay in relays {
            let stop = stop.clone();
            running.spawn(async move {
                let mut published = 0;
                while !stop.load(Ordering::SeqCst) {
                    published += relay.step().await.unwrap().done as u64;
                }
                published
            });
        }
        for _ in 0..10 {
            users(&store, 60).await;
        }
        let head = store.head().await.unwrap().position;
        let deadline = Instant::now() + PATIENCE;
        while mirrored(&store, &scaled.nats).await != Some(head) {
            assert!(Instant::now() < deadline, "the relays stand still");
            tokio::task::yield_now().await;
        }
        stop.store(true, Ordering::SeqCst);
        // What a refused relay had on its way may still have been the next event, so this may be less.
        let published: u64 = running.join_all().await.into_iter().sum();
        assert!(published <= scaled.nats.stream().await.unwrap().unwrap().messages);
        stream_equals_journal(&store, &scaled.nats).await;
        assert_eq!(halted(&store).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_relay_is_refused_and_finds_its_way() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 5).await;
        let mut stale = relay(scaled.store(), &scaled.nats, "test");
        mirror(&mut stale, scaled.store(), &scaled.nats).await;
        users(scaled.store(), 5).await;
        scaled.mirror().await;
        users(scaled.store(), 5).await;
        // It thinks the stream ends where it left it.
        assert_eq!(stale.step().await.unwrap().done, 0);
        mirror(&mut stale, scaled.store(), &scaled.nats).await;
        stream_equals_journal(scaled.store(), &scaled.nats).await;

        // What was on its way when a relay died, arriving late: nothing of it is stored again.
        let end = scaled.nats.stream().await.unwrap().unwrap();
        let last = end.last_sequence;
        for late in [0, 1, last / 2, last - 1] {
            let published = scaled.nats.publish(late, window(scaled.store(), late).await).await;
            assert_eq!(published.count, 0);
            assert!(matches!(published.stop, Some(Stop::WrongLastSequence)), "{published:?}");
            assert_eq!(scaled.nats.stream().await.unwrap().unwrap(), end);
        }
        // Neither is what leaves a gap; and of a window that overlaps the end, only what comes next is.
        users(scaled.store(), 5).await;
        scaled.nats.publish(last + 1, window(scaled.store(), last + 1).await).await;
        assert_eq!(scaled.nats.stream().await.unwrap().unwrap(), end);
        scaled.nats.publish(last - 3, window(scaled.store(), last - 3).await).await;
        // The refusal of the first ends the call; the others are still on their way.
        wait_for("the rest of the window", PATIENCE, async || {
            let stream = scaled.nats.stream().await?;
            anyhow::ensure!(stream.map(|stream| stream.last_sequence) == Some(last + 5));
            Ok(())
        })
        .await
        .unwrap();
        stream_equals_journal(scaled.store(), &scaled.nats).await;
    }
}

/// The messages from a sequence on, in a stream that began with the journal.
async fn window(store: &Store, last_sequence: u64) -> Vec<message::Message> {
    let events = store.read_events(last_sequence as Position, 100).await.unwrap();
    let registry = Registry::standard();
    events.iter().map(|event| message::encode("annals.ev", &registry, event).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_holder_of_the_lease_works() {
    let mut scaled = Scaled::on(&binaries()[0]).await;
    scaled.mirror().await;
    let mut second = relay(scaled.store(), &scaled.nats, "second");
    users(scaled.store(), 1).await;
    let standing_by = second.step().await.unwrap();
    assert_eq!(standing_by.done, 0);
    assert!(standing_by.wake_at.is_some_and(|at| at > scaled.store().now()));

    // A relay that fails lets go of the lease.
    scaled.server.kill_9();
    let began = Instant::now();
    let refused = scaled.relay.step().await;
    assert!(matches!(refused, Err(BusError::Nats(NatsError::Unreachable { .. }))), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(scaled.store().try_lease("relay", "second", Duration::from_secs(1)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_epoch_row_is_found_again_by_the_streams_content() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 12).await;
        scaled.relay = relay(scaled.store(), &scaled.nats, "test").with_lowest(begins_at(5));
        scaled.mirror().await;
        let before = scaled.nats.stream().await.unwrap().unwrap();
        let epoch = scaled.store().bus_epoch().await.unwrap().unwrap();
        assert_eq!(epoch.offset, 5);
        // As if the journal was restored with an older row, or two relays had opened epochs at once.
        for (created, offset) in [("2020-01-01T00:00:00Z", 0), (before.created.as_str(), 9)] {
            scaled.store().open_bus_epoch("ANNALS_EV", created, offset).await.unwrap();
            let mut relay = relay(scaled.store(), &scaled.nats, "test");
            assert_eq!(relay.step().await.unwrap().done, 0);
            let adopted = scaled.store().bus_epoch().await.unwrap().unwrap();
            assert_eq!((&adopted.stream_created, adopted.offset), (&before.created, 5));
        }
        assert_eq!(scaled.nats.stream().await.unwrap().unwrap(), before);
        users(scaled.store(), 3).await;
        scaled.mirror().await;
        stream_equals_journal(scaled.store(), &scaled.nats).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_other_content_is_never_written_to() {
    for binary in binaries() {
        // Another installation's stream, and one that a person filled.
        let mut other = Scaled::on(&binary).await;
        users(other.store(), 10).await;
        other.mirror().await;
        let mine = Journal::new().await;
        users(&mine.store, 20).await;
        let mut relay_of_mine = relay(&mine.store, &other.nats, "test");
        let before = other.nats.stream().await.unwrap();
        for _ in 0..2 {
            let refused = relay_of_mine.step().await.unwrap_err();
            assert!(matches!(refused, BusError::ForeignStream { .. }), "{refused:?}");
            assert!(refused.to_string().contains("ANNALS_EV"), "{refused}");
        }
        assert_eq!(other.nats.stream().await.unwrap(), before);
        // It might be the operator's mistake; that is no reason to refuse writes.
        assert_eq!(halted(&mine.store).await, None);

        let client = async_nats::connect(other.server.url()).await.unwrap();
        client.publish("annals.ev.acme.User.created", "{}".into()).await.unwrap();
        client.flush().await.unwrap();
        let mut relay_of_other = relay(other.store(), &other.nats, "test");
        let refused = relay_of_other.step().await.unwrap_err();
        assert!(matches!(refused, BusError::ForeignStream { .. }), "{refused:?}");
        assert_eq!(halted(other.store()).await, None);

        // What the error says helps.
        other.nats.delete_stream().await.unwrap();
        mirror(&mut relay_of_other, other.store(), &other.nats).await;
        stream_equals_journal(other.store(), &other.nats).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_another_configuration_is_refused() {
    for binary in binaries() {
        let journal = Journal::new().await;
        let server = Server::start_binary(&binary).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let context = async_nats::jetstream::new(client);
        let config = async_nats::jetstream::stream::Config {
            name: "ANNALS_EV".to_owned(),
            subjects: vec!["annals.ev.>".to_owned()],
            max_messages_per_subject: 1,
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        let nats = connected(options(&server)).await;
        let refused = relay(&journal.store, &nats, "test").step().await.unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, BusError::Nats(NatsError::StreamConfig { .. })), "{refused:?}");
        assert!(text.contains("max_msgs_per_subject is 1") && text.contains("deny_delete"), "{text}");

        // Somebody else has our subjects.
        let nats = connected(NatsOptions { stream: "OTHER".to_owned(), ..options(&server) }).await;
        let refused = relay(&journal.store, &nats, "test").step().await.unwrap_err();
        assert!(matches!(refused, BusError::Nats(NatsError::Refused { .. })), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_follow_the_configuration() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 3).await;
        scaled.mirror().await;
        let before = scaled.nats.stream().await.unwrap();
        let changed = NatsOptions {
            retention: Duration::from_secs(3600),
            stream_bytes_max: 64 * 1024 * 1024,
            ..options(&scaled.server)
        };
        let nats = connected(changed).await;
        relay(scaled.store(), &nats, "test").step().await.unwrap();
        assert_eq!(nats.stream().await.unwrap(), before);
        let client = async_nats::connect(scaled.server.url()).await.unwrap();
        let mut stream = async_nats::jetstream::new(client).get_stream("ANNALS_EV").await.unwrap();
        let config = &stream.info().await.unwrap().config;
        assert_eq!(config.max_age, Duration::from_secs(3600));
        assert_eq!(config.max_bytes, 64 * 1024 * 1024);
        assert!(config.deny_delete && config.deny_purge);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ahead_of_a_restored_journal_stops_writes() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 10).await;
        scaled.mirror().await;
        let backup = tempfile::tempdir().unwrap();
        scaled.store().close().await;
        copy_folder(scaled.journal.dir.path(), backup.path());
        let store = open_store(scaled.journal.dir.path()).await;
        users(&store, 10).await;
        mirror(&mut relay(&store, &scaled.nats, "test"), &store, &scaled.nats).await;
        store.close().await;

        // A new relay on the backup.
        let restored = open_store(backup.path()).await;
        let mut relay_of_restored = relay(&restored, &scaled.nats, "test");
        let before = scaled.nats.stream().await.unwrap();
        let refused = relay_of_restored.step().await.unwrap_err();
        assert!(matches!(refused, BusError::Diverged { .. }), "{refused:?}");
        assert!(halted(&restored).await.is_some_and(|reason| reason.contains("ANNALS_EV")));
        let write = user(&restored, json!({ "userName": "late" })).await;
        assert!(matches!(write, Err(StoreError::Halted(_))), "{write:?}");
        assert!(relay_of_restored.step().await.is_err());
        assert_eq!(scaled.nats.stream().await.unwrap(), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_event_at_the_streams_end_stops_writes() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 10).await;
        scaled.mirror().await;
        let backup = tempfile::tempdir().unwrap();
        scaled.store().close().await;
        copy_folder(scaled.journal.dir.path(), backup.path());
        let store = open_store(scaled.journal.dir.path()).await;
        users(&store, 5).await;
        mirror(&mut relay(&store, &scaled.nats, "test"), &store, &scaled.nats).await;
        store.close().await;

        // The restored journal went on before any relay saw it: same positions, other events. Also when
        // the epoch row is older than the stream.
        for forget_epoch in [false, true] {
            let copy = tempfile::tempdir().unwrap();
            copy_folder(backup.path(), copy.path());
            let restored = open_store(copy.path()).await;
            users(&restored, 8).await;
            if forget_epoch {
                restored.open_bus_epoch("ANNALS_EV", "2020-01-01T00:00:00Z", 0).await.unwrap();
            }
            let before = scaled.nats.stream().await.unwrap();
            let refused = relay(&restored, &scaled.nats, "test").step().await.unwrap_err();
            assert!(matches!(refused, BusError::Diverged { .. }), "{refused:?}");
            assert!(halted(&restored).await.is_some());
            assert_eq!(scaled.nats.stream().await.unwrap(), before);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_ahead_of_the_journal_stop_writes() {
    let scaled = Scaled::on(&binaries()[0]).await;
    let head = users(scaled.store(), 3).await;
    let mut relay = relay(scaled.store(), &scaled.nats, "test").with_lowest(begins_at(head + 1));
    let refused = relay.step().await.unwrap_err();
    assert!(matches!(refused, BusError::Diverged { .. }), "{refused:?}");
    assert!(halted(scaled.store()).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_server_is_an_error_within_the_time_out() {
    let options = NatsOptions { servers: vec!["nats://127.0.0.1:1".to_owned()], ..NatsOptions::default() };
    let nats =
        Nats::connect(NatsOptions { request_timeout: Duration::from_millis(300), ..options }).await.unwrap();
    let journal = Journal::new().await;
    let began = Instant::now();
    let refused = relay(&journal.store, &nats, "test").step().await.unwrap_err();
    assert!(matches!(refused, BusError::Nats(NatsError::Unreachable { .. })), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// D5: an older backup is restored; `recover` goes on without the lost tail, in a new epoch, and whoever
/// reads the bus is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_journal_goes_on_in_a_new_epoch() {
    for (goes_on, binary) in
        [false, true].into_iter().flat_map(|on| binaries().into_iter().map(move |b| (on, b)))
    {
        let mut scaled = Scaled::on(&binary).await;
        let backed_up = users(scaled.store(), 10).await;
        scaled.mirror().await;
        let backup = tempfile::tempdir().unwrap();
        scaled.store().close().await;
        copy_folder(scaled.journal.dir.path(), backup.path());
        let store = open_store(scaled.journal.dir.path()).await;
        let lost = users(&store, 7).await;
        mirror(&mut relay(&store, &scaled.nats, "test"), &store, &scaled.nats).await;
        store.close().await;

        let restored = open_store(backup.path()).await;
        let actor = Actor::operator("ada");
        if goes_on {
            // Before any relay looked, others were written at the lost positions.
            users(&restored, 3).await;
        }
        // The same owner: the backup holds the lease of its time.
        assert!(relay(&restored, &scaled.nats, "test").step().await.is_err());
        assert!(halted(&restored).await.is_some_and(|reason| reason.contains("annals recover")));

        // It says what it would do, and changes nothing.
        let before = (scaled.nats.stream().await.unwrap(), restored.head().await.unwrap());
        let seen = survey(&restored, Some(&scaled.nats)).await.unwrap();
        assert_eq!((scaled.nats.stream().await.unwrap(), restored.head().await.unwrap()), before);
        assert!(seen.is_needed());
        assert_eq!(seen.base(), backed_up);
        let stream = seen.stream.clone().unwrap();
        assert_eq!((stream.common, stream.last), (backed_up, lost));
        let created = ("acme".to_owned(), "user.created".to_owned());
        assert_eq!(stream.lost, [(created, 7)].into_iter().collect());

        // A relay that holds its lease does not give way; without one it is done.
        assert!(restored.try_lease("relay", "busy", Duration::from_secs(60)).await.unwrap());
        assert!(drop_tail(&restored, Some(&scaled.nats), &seen, &actor).await.is_err());
        restored.release_lease("relay", "busy").await.unwrap();
        assert_eq!(drop_tail(&restored, Some(&scaled.nats), &seen, &actor).await.unwrap(), 2);
        assert_eq!(halted(&restored).await, None);
        assert!(drop_tail(&restored, Some(&scaled.nats), &seen, &actor).await.is_err(), "not twice");

        // Writes and the relay go on, and the bus has what the journal has after the last common position.
        let head = users(&restored, 2).await;
        let mut relay = relay(&restored, &scaled.nats, "two");
        while relay.step().await.unwrap().done > 0 {}
        let seen = survey(&restored, Some(&scaled.nats)).await.unwrap();
        assert!(!seen.is_needed(), "{seen:?}");
        let info = scaled.nats.stream().await.unwrap().unwrap();
        assert_eq!(info.messages, (head - backed_up) as u64);
        let told = restored.read_events(backed_up, 100).await.unwrap();
        let told = told.iter().find(|event| event.kind == "journal.created").unwrap();
        let annals_domain::event::Body::Open(body) = &told.body else { panic!("it is open") };
        assert_eq!(body.payload(), json!({ "document": { "epoch": 2, "base": backed_up } }));
        assert_eq!(restored.base_since(1).await.unwrap(), Some(backed_up));
        assert_eq!(restored.base_since(2).await.unwrap(), None);
        assert_eq!(restored.verify().await.unwrap().findings, []);
    }
}

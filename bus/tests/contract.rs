//! The contract of a feed: one suite, run on the journal and on JetStream with every nats-server there is
//! to test with; and what JetStream must survive besides.

mod common;

use std::time::{Duration, Instant};

use annals_bus::jetstream_feed::FeedSource;
use annals_bus::{BusError, Feed, JetStreamFeed};
use annals_domain::event::Body;
use annals_domain::tenant::TenantSettings;
use annals_testkit::nats::binaries;
use serde_json::json;

use common::{
    Journal, PATIENCE, SOON, Scaled, copy_folder, journal_events, journal_feed, mirror, read_on, reconnected,
    relay, source, stream_events, until_stream, user, users,
};

/// What the suite runs on.
enum Bus {
    Journal(Journal),
    JetStream(Box<Scaled>),
}

impl Bus {
    fn store(&self) -> &annals_store::Store {
        match self {
            Bus::Journal(journal) => &journal.store,
            Bus::JetStream(scaled) => scaled.store(),
        }
    }

    fn feed(&self) -> Feed {
        match self {
            Bus::Journal(journal) => journal_feed(&journal.store),
            Bus::JetStream(scaled) => Feed::JetStream(scaled.feed()),
        }
    }

    /// Writes users, brings them to the stream where there is one, and returns the journal's end.
    async fn write(&mut self, count: usize) -> i64 {
        let head = users(self.store(), count).await;
        if let Bus::JetStream(scaled) = self {
            scaled.mirror().await;
        }
        head
    }

    /// That what was read came from where the suite means to read.
    fn check_source(&self, feed: &Feed) {
        if let Bus::JetStream(_) = self {
            assert_eq!(source(feed), Some(FeedSource::Stream));
        }
    }
}

async fn suite(mut bus: Bus) {
    // Empty at the time-out, though the tenant is there: its event is read first.
    let head = bus.write(0).await;
    let mut feed = bus.feed();
    assert_eq!(read_on(&mut feed, 0, head, 10).await.len() as i64, head);
    let began = Instant::now();
    assert!(feed.next(head, 10, Duration::from_millis(200)).await.unwrap().is_empty());
    let took = began.elapsed();
    assert!((Duration::from_millis(190)..Duration::from_secs(2)).contains(&took), "{took:?}");
    assert!(feed.next(head, 10, Duration::ZERO).await.unwrap().is_empty());

    // Order, no gap, the same events as the journal, pages no larger than asked for.
    let head = bus.write(60).await;
    let expected = journal_events(bus.store()).await;
    for max in [1, 7, 1_000] {
        let mut feed = bus.feed();
        assert_eq!(read_on(&mut feed, 0, head, max).await, expected);
        bus.check_source(&feed);
    }
    assert_eq!(bus.feed().next(0, 0, SOON).await.unwrap().len(), 1);

    // From any position, by one feed and by a new one each time: a restart.
    let mut same = bus.feed();
    for after in (0..head).step_by(9).chain([head - 1, 3, head - 2]) {
        for feed in [&mut same, &mut bus.feed()] {
            let page = feed.next(after, 5, PATIENCE).await.unwrap();
            assert_eq!(page[..], expected[after as usize..][..page.len()]);
            assert!(!page.is_empty());
            bus.check_source(feed);
        }
    }

    // Two readers do not take each other's events.
    let (mut one, mut two) = (bus.feed(), bus.feed());
    let (first, second) = tokio::join!(read_on(&mut one, 0, head, 10), read_on(&mut two, 0, head, 13));
    assert_eq!(first, expected);
    assert_eq!(second, expected);

    // Who waits is woken.
    let mut feed = bus.feed();
    read_on(&mut feed, 0, head, 1_000).await;
    let began = Instant::now();
    let (page, _) = tokio::join!(feed.next(head, 10, PATIENCE), bus.write(1));
    let page = page.unwrap();
    assert_eq!(page.first().map(|event| event.position), Some(head + 1));
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    bus.check_source(&feed);

    // A reader ahead of the journal is told so.
    let ahead = bus.store().head().await.unwrap().position + 1;
    let refused = bus.feed().next(ahead, 10, SOON).await;
    assert!(matches!(refused, Err(BusError::Diverged { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_feed_keeps_the_contract() {
    suite(Bus::Journal(Journal::new().await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_jetstream_feed_keeps_the_contract() {
    for binary in binaries() {
        suite(Bus::JetStream(Box::new(Scaled::on(&binary).await))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_relay_or_a_server_the_journal_answers() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        // No stream yet.
        let head = users(scaled.store(), 5).await;
        let mut feed = Feed::JetStream(scaled.feed());
        read_on(&mut feed, 0, head, 100).await;
        assert_eq!(source(&feed), Some(FeedSource::Journal));

        // A relay comes, and the feed takes the stream.
        let mut position = head;
        until_stream(&mut feed, &mut position, &mut scaled).await;

        // The relay stands still: the events come from the journal, in time and in full speed.
        let head = users(scaled.store(), 300).await;
        let began = Instant::now();
        read_on(&mut feed, position, head, 10).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(source(&feed), Some(FeedSource::Journal));

        // No server at all, from the start: no call takes longer than it was given.
        scaled.server.kill_9();
        let mut feed = Feed::JetStream(scaled.feed());
        read_on(&mut feed, 0, head, 100).await;
        let began = Instant::now();
        assert!(feed.next(head, 100, SOON).await.unwrap().is_empty());
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_survived_and_taken_up_again() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 20).await;
        let mut feed = Feed::JetStream(scaled.feed());
        let mut position = 0;
        until_stream(&mut feed, &mut position, &mut scaled).await;

        scaled.server.kill_9();
        let head = users(scaled.store(), 20).await;
        read_on(&mut feed, position, head, 7).await;
        assert_eq!(source(&feed), Some(FeedSource::Journal));
        position = head;
        assert!(scaled.relay.step().await.is_err());

        scaled.server.restart().await.unwrap();
        reconnected(&scaled.nats).await;
        users(scaled.store(), 20).await;
        until_stream(&mut feed, &mut position, &mut scaled).await;
        scaled.mirror().await;
        assert_eq!(stream_events(scaled.store(), &scaled.nats).await, journal_events(scaled.store()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_survived() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 20).await;
        let mut feed = Feed::JetStream(scaled.feed());
        let mut position = 0;
        until_stream(&mut feed, &mut position, &mut scaled).await;

        scaled.server.pause().unwrap();
        let head = users(scaled.store(), 20).await;
        let began = Instant::now();
        read_on(&mut feed, position, head, 100).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let began = Instant::now();
        assert!(scaled.relay.step().await.is_err());
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());

        scaled.server.resume().unwrap();
        position = head;
        until_stream(&mut feed, &mut position, &mut scaled).await;
        scaled.mirror().await;
        assert_eq!(stream_events(scaled.store(), &scaled.nats).await, journal_events(scaled.store()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_is_made_again() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 20).await;
        let mut feed = Feed::JetStream(scaled.feed());
        let mut position = 0;
        until_stream(&mut feed, &mut position, &mut scaled).await;
        let before = scaled.store().bus_epoch().await.unwrap().unwrap();

        scaled.nats.delete_stream().await.unwrap();
        let head = users(scaled.store(), 20).await;
        read_on(&mut feed, position, head, 7).await;
        position = head;
        users(scaled.store(), 5).await;
        scaled.mirror().await;
        until_stream(&mut feed, &mut position, &mut scaled).await;
        let after = scaled.store().bus_epoch().await.unwrap().unwrap();
        assert!(after.epoch > before.epoch && after.stream_created != before.stream_created);
        assert_eq!(stream_events(scaled.store(), &scaled.nats).await, journal_events(scaled.store()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_everything_is_filled_again() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 20).await;
        let mut feed = Feed::JetStream(scaled.feed());
        let mut position = 0;
        until_stream(&mut feed, &mut position, &mut scaled).await;

        scaled.server.kill_9();
        scaled.server.lose_data().unwrap();
        scaled.server.restart().await.unwrap();
        reconnected(&scaled.nats).await;
        users(scaled.store(), 20).await;
        scaled.mirror().await;
        until_stream(&mut feed, &mut position, &mut scaled).await;
        assert_eq!(stream_events(scaled.store(), &scaled.nats).await, journal_events(scaled.store()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_tail_is_published_again() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 20).await;
        scaled.mirror().await;
        let saved = tempfile::tempdir().unwrap();
        scaled.server.kill_9();
        copy_folder(&scaled.server.store_folder(), saved.path());
        scaled.server.restart().await.unwrap();
        reconnected(&scaled.nats).await;

        users(scaled.store(), 30).await;
        let mut feed = Feed::JetStream(scaled.feed());
        let mut position = 0;
        until_stream(&mut feed, &mut position, &mut scaled).await;
        let end = scaled.nats.stream().await.unwrap().unwrap();
        let epoch = scaled.store().bus_epoch().await.unwrap();

        scaled.server.kill_9();
        scaled.server.lose_data().unwrap();
        copy_folder(saved.path(), &scaled.server.store_folder());
        scaled.server.restart().await.unwrap();
        reconnected(&scaled.nats).await;
        let cut = scaled.nats.stream().await.unwrap().unwrap();
        assert_eq!(cut.created, end.created);
        assert!(cut.last_sequence < end.last_sequence, "nothing was lost: {cut:?}");

        // The reader is ahead of the stream now, and sees nothing twice when it is filled up.
        users(scaled.store(), 10).await;
        scaled.mirror().await;
        until_stream(&mut feed, &mut position, &mut scaled).await;
        assert_eq!(scaled.store().bus_epoch().await.unwrap(), epoch);
        assert_eq!(stream_events(scaled.store(), &scaled.nats).await, journal_events(scaled.store()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_before_the_stream_reads_the_journal_until_it_begins() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        let begins = users(scaled.store(), 30).await;
        scaled.relay = relay(scaled.store(), &scaled.nats, "test")
            .with_lowest(std::sync::Arc::new(move |_| Box::pin(async move { Ok(begins) })));
        let head = users(scaled.store(), 30).await;
        scaled.mirror().await;
        assert_eq!(scaled.nats.stream().await.unwrap().unwrap().messages as i64, head - begins);

        let mut feed = Feed::JetStream(scaled.feed());
        assert_eq!(read_on(&mut feed, 0, begins, 7).await.len() as i64, begins);
        assert_eq!(source(&feed), Some(FeedSource::Journal));
        assert_eq!(read_on(&mut feed, begins, head, 7).await.len() as i64, head - begins);
        assert_eq!(source(&feed), Some(FeedSource::Stream));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_body_is_unreadable_on_the_bus_and_the_same_event() {
    for binary in binaries() {
        let settings = TenantSettings { sealed_bus: true, ..TenantSettings::default() };
        let mut scaled = Scaled::with(&binary, settings).await;
        user(scaled.store(), json!({ "userName": "hunter2", "title": "hunter2" })).await.unwrap();
        let head = scaled.mirror().await;
        let info = scaled.nats.stream().await.unwrap().unwrap();
        let mut sealed = 0;
        for sequence in info.first_sequence..=info.last_sequence {
            let message = scaled.nats.message(sequence).await.unwrap().unwrap();
            let text = String::from_utf8_lossy(&message.body).into_owned();
            assert!(!text.contains("hunter2") && !format!("{:?}", message.headers).contains("hunter2"));
            sealed += usize::from(message.headers.get("annals-body").unwrap().as_str() == "sealed");
        }
        assert!(sealed >= 1);
        let mut feed = Feed::JetStream(scaled.feed());
        let events = read_on(&mut feed, 0, head, 100).await;
        assert_eq!(source(&feed), Some(FeedSource::Stream));
        assert_eq!(events, journal_events(scaled.store()).await);
        assert!(events.iter().all(|event| matches!(event.body, Body::Open(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_pass_in_windows_of_bytes() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        // More than a window of the relay, and more than one pull of the reader.
        for n in 0..24 {
            let title = "x".repeat(380 * 1024);
            user(scaled.store(), json!({ "userName": format!("u{n}"), "title": title })).await.unwrap();
        }
        let head = scaled.mirror().await;
        let mut feed = Feed::JetStream(scaled.feed());
        let events = read_on(&mut feed, 0, head, 1_000).await;
        assert_eq!(source(&feed), Some(FeedSource::Stream));
        assert_eq!(events, journal_events(scaled.store()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_in_the_stream_cannot_mislead_a_reader() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        users(scaled.store(), 10).await;
        let mut feed = Feed::JetStream(scaled.feed());
        let mut position = 0;
        until_stream(&mut feed, &mut position, &mut scaled).await;

        // One of our own messages again, under the next sequence; then something without headers.
        let client = async_nats::connect(scaled.server.url()).await.unwrap();
        let copy = scaled.nats.message(3).await.unwrap().unwrap();
        client.publish_with_headers(copy.subject, copy.headers, copy.body).await.unwrap();
        client.publish("annals.ev.acme.User.created", "{}".into()).await.unwrap();
        client.flush().await.unwrap();

        let head = users(scaled.store(), 10).await;
        read_on(&mut feed, position, head, 7).await;
        assert_eq!(source(&feed), Some(FeedSource::Journal));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_tells_another_story_than_the_journal_is_not_believed() {
    for binary in binaries() {
        // Two journals of the same shape; the stream mirrors the other one.
        let mut other = Scaled::on(&binary).await;
        users(other.store(), 10).await;
        other.mirror().await;
        let epoch = other.store().bus_epoch().await.unwrap().unwrap();
        let mine = Journal::new().await;
        let head = users(&mine.store, 10).await;
        mine.store.open_bus_epoch(&epoch.stream, &epoch.stream_created, epoch.offset).await.unwrap();

        let mut feed = Feed::JetStream(JetStreamFeed::new(mine.store.clone(), other.nats.clone(), "test"));
        let events = read_on(&mut feed, 0, head, 4).await;
        assert_eq!(source(&feed), Some(FeedSource::Journal));
        assert_eq!(events, journal_events(&mine.store).await);
    }
}

/// Prints how fast the stream is filled and read: `cargo test --release -p annals-bus --test contract -- --ignored
/// --nocapture rate`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rate() {
    for binary in binaries() {
        let mut scaled = Scaled::on(&binary).await;
        for _ in 0..20 {
            users(scaled.store(), 1_000).await;
        }
        let began = Instant::now();
        let head = mirror(&mut scaled.relay, &scaled.journal.store, &scaled.nats).await;
        let published = began.elapsed();
        let mut feed = Feed::JetStream(scaled.feed());
        let began = Instant::now();
        read_on(&mut feed, 0, head, 500).await;
        let stream = began.elapsed();
        let mut feed = journal_feed(scaled.store());
        let began = Instant::now();
        read_on(&mut feed, 0, head, 500).await;
        let journal = began.elapsed();
        let rate = |took: Duration| (head as f64 / took.as_secs_f64()) as u64;
        println!(
            "{}: {head} events, published {}/s, read from the stream {}/s, from the journal {}/s",
            binary.display(),
            rate(published),
            rate(stream),
            rate(journal)
        );
    }
}

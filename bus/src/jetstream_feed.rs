//! The stream as a feed, with the journal behind it.
//!
//! The reader keeps its own position; the server keeps nothing. Position must follow position: whatever
//! is not as expected (a gap, a lost tail, a foreign message, a stream of another time, silence of the
//! relay, no NATS at all) is answered from the journal, and NATS is tried again later. So a reader is
//! never wrong and never stands still because of NATS.

use std::time::Duration;

use annals_domain::event::Recorded;
use annals_domain::ids::Position;
use annals_store::{BusEpoch, Store};
use async_nats::jetstream::consumer::pull;
use futures::{FutureExt, StreamExt};
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout_at};

use crate::message::{self, Decoded};
use crate::nats::{Nats, StreamInfo};
use crate::{FEED_EVENTS_MAX, JournalFeed, Result};

/// Bytes after which a page is handed on, though more may be waiting.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// How long the rest of a page is waited for, when the server says that there is one.
const FOLLOW_TIMEOUT: Duration = Duration::from_millis(20);
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Quiet waits shorter than this say nothing about the relay.
const LATE_WAIT_MIN: Duration = Duration::from_millis(100);
/// How often in a row the journal had to help out before the relay counts as absent.
const LATE_MAX: u32 = 2;
/// How many messages an open consumer may skip before a new one is cheaper.
const SKIP_MAX: Position = 1_000;

/// Reads a JetStream stream from any position. One reader per feed.
pub struct JetStreamFeed {
    store: Store,
    nats: Nats,
    name: String,
    journal: JournalFeed,
    reader: Option<Box<Reader>>,
    source: Option<FeedSource>,
    retry_at: Instant,
    /// The stream's first position, if the reader was before it: until then there is no use in trying.
    resume_at: Option<Position>,
    failures: u32,
    late: u32,
}

/// Where a feed's events come from at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedSource {
    /// The stream.
    Stream,
    /// The journal: NATS is away, or does not have what is asked for.
    Journal,
}

struct Reader {
    epoch: BusEpoch,
    messages: pull::Stream,
    /// The position that must come next.
    next: Position,
}

impl std::fmt::Debug for JetStreamFeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JetStreamFeed").field("name", &self.name).field("source", &self.source).finish()
    }
}

/// What reading the stream came to.
enum Page {
    Events(Vec<Recorded>),
    Quiet,
    Surprise(String),
}

/// What opening a consumer came to.
enum Opening {
    Open(Box<Reader>),
    /// Retention has dropped what is asked for; the stream begins here.
    Before(Position),
    No(String),
}

impl JetStreamFeed {
    /// A feed of the stream that mirrors the store's journal. `name` tells feeds apart in logs and
    /// metrics.
    pub fn new(store: Store, nats: Nats, name: impl Into<String>) -> JetStreamFeed {
        JetStreamFeed {
            journal: JournalFeed::new(store.clone()),
            store,
            nats,
            name: name.into(),
            reader: None,
            source: None,
            retry_at: Instant::now(),
            resume_at: None,
            failures: 0,
            late: 0,
        }
    }

    /// Where the last events came from; none before the first call.
    pub fn source(&self) -> Option<FeedSource> {
        self.source
    }

    /// See [`crate::Feed::next`].
    ///
    /// # Errors
    /// As [`crate::Feed::next`]: whatever is wrong with NATS is no error.
    pub async fn next(&mut self, after: Position, max: usize, wait: Duration) -> Result<Vec<Recorded>> {
        let max = max.clamp(1, FEED_EVENTS_MAX);
        let deadline = Instant::now() + wait;
        if self.stands_at(after) || self.open(after).await? {
            match self.page(after, max, deadline).await? {
                Page::Events(events) => {
                    self.failures = 0;
                    self.late = 0;
                    self.count(&events, "stream");
                    return Ok(events);
                }
                Page::Quiet => {
                    let head = self.store.head().await?.position;
                    if head == after {
                        self.late = 0;
                        return Ok(Vec::new());
                    }
                    if head > after && wait >= LATE_WAIT_MIN {
                        self.late += 1;
                        if self.late >= LATE_MAX {
                            self.leave("the relay is behind or away");
                        }
                    }
                }
                Page::Surprise(reason) => self.leave(&reason),
            }
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        let events = self.journal.next(after, max, rest).await?;
        self.count(&events, "journal");
        Ok(events)
    }

    fn count(&self, events: &[Recorded], source: &'static str) {
        if !events.is_empty() {
            metrics::counter!("annals_feed_events_total", "feed" => self.name.clone(), "source" => source)
                .increment(events.len() as u64);
        }
    }

    /// Whether the open consumer serves a reader at `after`.
    fn stands_at(&mut self, after: Position) -> bool {
        let serves = self
            .reader
            .as_ref()
            .is_some_and(|reader| (reader.next..=reader.next + SKIP_MAX).contains(&(after + 1)));
        if !serves {
            self.reader = None;
        } else if !self.nats.is_connected() {
            self.leave("the connection to NATS is lost");
            return false;
        }
        serves
    }

    /// Goes over to the stream, if it is time to try and it has what is asked for.
    async fn open(&mut self, after: Position) -> Result<bool> {
        let caught_up = self.resume_at.is_some_and(|resume| after + 1 >= resume);
        if !caught_up && Instant::now() < self.retry_at {
            return Ok(false);
        }
        self.resume_at = None;
        match self.try_open(after).await? {
            Opening::Open(reader) => {
                self.reader = Some(reader);
                self.late = 0;
                self.set_source(FeedSource::Stream, "the stream has what comes next");
                Ok(true)
            }
            Opening::Before(first) => {
                self.leave("the stream begins later");
                self.resume_at = Some(first);
                Ok(false)
            }
            Opening::No(reason) => {
                self.leave(&reason);
                Ok(false)
            }
        }
    }

    async fn try_open(&mut self, after: Position) -> Result<Opening> {
        let no = |reason: &str| Ok(Opening::No(reason.to_owned()));
        if !self.nats.is_connected() {
            return no("NATS is out of reach");
        }
        let Some(epoch) = self.store.bus_epoch().await? else {
            return no("no relay has opened a stream yet");
        };
        if epoch.stream != self.nats.stream_name() {
            return no("the relay mirrors the journal to a stream of another name");
        }
        let info = match self.nats.stream().await {
            Ok(Some(info)) => info,
            Ok(None) => return no("the stream is missing"),
            Err(error) => return Ok(Opening::No(format!("the stream cannot be read: {error}"))),
        };
        if info.created != epoch.stream_created {
            return no("the stream is not the one the relay opened");
        }
        let start = after - epoch.offset + 1;
        let (first, last) = bounds(&info);
        if start < first {
            return Ok(Opening::Before(first + epoch.offset));
        }
        // What is past the end comes soon if the relay follows; if it does not, the journal is there.
        if start > last && self.store.head().await?.position > after {
            return no("the relay is behind or away");
        }
        let sequence = u64::try_from(start).unwrap_or(1);
        match self.nats.read_from(sequence).await {
            Ok(messages) => Ok(Opening::Open(Box::new(Reader { epoch, messages, next: after + 1 }))),
            Err(error) => Ok(Opening::No(format!("the stream cannot be read: {error}"))),
        }
    }

    async fn page(&mut self, after: Position, max: usize, deadline: Instant) -> Result<Page> {
        let Some(reader) = &mut self.reader else { return Ok(Page::Quiet) };
        let mut page: Vec<Decoded> = Vec::new();
        let mut bytes = 0;
        let mut next = after + 1;
        let mut more_on_the_way = true;
        let surprise = loop {
            let arrived = if more_on_the_way {
                let limit = if page.is_empty() { deadline } else { Instant::now() + FOLLOW_TIMEOUT };
                timeout_at(limit, reader.messages.next()).await.ok()
            } else {
                // It was the newest when the server sent it; what followed since may be here already, and
                // a page for each message of a busy stream would be a transaction each.
                unconstrained(reader.messages.next()).now_or_never()
            };
            let message = match arrived {
                None => break None,
                Some(None) => break Some("the consumer has ended".to_owned()),
                Some(Some(Err(error))) => break Some(format!("the consumer failed: {error}")),
                Some(Some(Ok(message))) => message,
            };
            let Ok(info) = message.info() else { break Some("a message has no sequence".to_owned()) };
            let headers = message.headers.as_ref();
            let decoded = match headers {
                None => break Some("a message has no headers".to_owned()),
                Some(headers) => {
                    let subject = message.subject.as_str();
                    match message::decode(self.nats.subject_prefix(), subject, headers, &message.payload) {
                        Ok(decoded) => decoded,
                        Err(error) => break Some(error.to_string()),
                    }
                }
            };
            let position = decoded.position();
            if i64::try_from(info.stream_sequence).ok().map(|s| s + reader.epoch.offset) != Some(position) {
                break Some(format!("sequence {} holds position {position}", info.stream_sequence));
            }
            if position < next {
                // A tail that was lost and published again, or a reader that others have overtaken.
                continue;
            }
            if position > next {
                break Some(format!("position {next} is not in the stream, {position} is"));
            }
            next += 1;
            bytes += message.payload.len();
            page.push(decoded);
            if page.len() >= max || bytes >= PAGE_BYTES {
                break None;
            }
            more_on_the_way = info.pending > 0;
        };
        reader.next = next;
        let Some(last) = page.last() else { return Ok(surprise.map_or(Page::Quiet, Page::Surprise)) };

        if let Some(reason) = self.differs_from_journal(last).await? {
            metrics::counter!("annals_feed_divergence_total", "feed" => self.name.clone()).increment(1);
            tracing::error!(feed = self.name, reason, "stream and journal differ; reading the journal");
            return Ok(Page::Surprise(reason));
        }
        let events = match message::open(&self.store, page).await {
            Ok(events) => events,
            // The journal tells whether that is true of the event or only of its message.
            Err(error) => return Ok(Page::Surprise(format!("a sealed message cannot be opened: {error}"))),
        };
        if let Some(reason) = surprise {
            // What came before it is good; the next call finds no open consumer.
            self.leave(&reason);
        }
        Ok(Page::Events(events))
    }

    /// Compares one message per page with the journal: a stream that went on from a restored journal
    /// would otherwise look right.
    async fn differs_from_journal(&self, message: &Decoded) -> Result<Option<String>> {
        let position = message.position();
        let stored = self.store.read_stored(position - 1, 1).await?;
        Ok(match stored.first() {
            None => Some(format!("the stream has position {position}, the journal does not")),
            Some(stored) if stored.event_id != message.event_id() => {
                Some(format!("stream and journal have different events at position {position}"))
            }
            Some(_) => None,
        })
    }

    /// Goes over to the journal, and tries the stream again later.
    fn leave(&mut self, reason: &str) {
        self.reader = None;
        self.late = 0;
        let backoff = BACKOFF_MIN.saturating_mul(1 << self.failures.min(10)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Instant::now() + backoff;
        self.set_source(FeedSource::Journal, reason);
    }

    fn set_source(&mut self, source: FeedSource, reason: &str) {
        let before = self.source.replace(source);
        if before == Some(source) {
            return;
        }
        metrics::gauge!("annals_feed_from_stream", "feed" => self.name.clone())
            .set(f64::from(u8::from(source == FeedSource::Stream)));
        match (before, source) {
            (Some(_), FeedSource::Journal) => {
                tracing::warn!(feed = self.name, reason, "reading the journal instead of the stream");
            }
            (None, FeedSource::Journal) => {
                tracing::info!(feed = self.name, reason, "reading the journal first")
            }
            (_, FeedSource::Stream) => tracing::info!(feed = self.name, "reading the stream"),
        }
    }
}

/// First and last sequence; an empty stream begins after its last one.
fn bounds(info: &StreamInfo) -> (i64, i64) {
    let last = i64::try_from(info.last_sequence).unwrap_or(i64::MAX);
    let first = i64::try_from(info.first_sequence).unwrap_or(i64::MAX);
    if info.messages == 0 { (last.saturating_add(1), last) } else { (first, last) }
}

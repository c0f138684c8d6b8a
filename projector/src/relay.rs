//! The relay: journal → stream (D5).
//!
//! The stream mirrors the journal: position = stream sequence + offset of the bus epoch. Every message
//! says which sequence it expects the stream to end at, so the server itself refuses duplicates, gaps
//! and relays that come late. Exactly once, without a dedupe id and without a memory: the stream's end
//! tells where to go on. The lease only saves double work.
//!
//! Two relays that meet an empty stream may each have opened an epoch, with different offsets. So the
//! first message into an empty stream goes alone: only one relay's is taken, the other looks again and
//! finds the offset that the stream's content proves.
//!
//! What is left: a relay that freezes between its look at the epoch and its publishing, while the stream is
//! deleted, made again under the same name and filled to just the sequence the sleeper expects. Its event
//! would stand in the stream twice. Our readers skip it (its position is not the next), outsiders are told
//! to (`docs/events.md`).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use annals_bus::message::{self, Message};
use annals_bus::nats::{NatsError, Stop, StreamMessage};
use annals_bus::{BusError, Nats, Progress, Result};
use annals_domain::clock::Timestamp;
use annals_domain::ids::{Position, TenantId};
use annals_domain::scim::schema::Registry;
use annals_store::{BusEpoch, Store, StoredEvent};
use uuid::Uuid;

/// Most messages on their way at once.
pub const WINDOW_MESSAGES_MAX: usize = 500;
/// Most bytes on their way at once; a single larger message still goes.
pub const WINDOW_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What headers and subject add to a payload, roughly, in bytes.
const ENVELOPE_BYTES: usize = 1_500;
const WINDOW_MESSAGES_MIN: usize = 16;
pub(crate) const LEASE_NAME: &str = "relay";
const LEASE_TTL: Duration = Duration::from_secs(10);
const LEASE_RENEWAL_MS: i64 = 3_000;
const STANDBY_MS: i64 = 2_500;
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// Tells after which position a new stream begins.
pub type LowestCheckpoint =
    Arc<dyn Fn(Store) -> Pin<Box<dyn Future<Output = annals_store::Result<Position>> + Send>> + Send + Sync>;

/// Publishes the journal's events to the stream, in order, once each.
pub struct Relay {
    store: Store,
    nats: Nats,
    owner: String,
    lowest: LowestCheckpoint,
    idle_wait: Duration,
    link: Option<Link>,
    lease_renewal: Option<Timestamp>,
    window: usize,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// What the relay knows of the stream. Forgotten at the first surprise.
#[derive(Clone, Debug)]
struct Link {
    epoch: BusEpoch,
    last_sequence: u64,
    /// The event at the stream's end; none if the stream is empty.
    last_event: Option<Uuid>,
}

impl Link {
    fn position(&self) -> Position {
        signed(self.last_sequence) + self.epoch.offset
    }
}

fn signed(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

impl Relay {
    /// A relay. `owner` names this process in the lease.
    pub fn new(store: Store, nats: Nats, owner: impl Into<String>) -> Relay {
        let retention = nats.options().retention;
        Relay {
            store,
            nats,
            owner: owner.into(),
            lowest: Arc::new(move |store| Box::pin(beginning(store, retention))),
            idle_wait: IDLE_WAIT,
            link: None,
            lease_renewal: None,
            window: WINDOW_MESSAGES_MAX,
        }
    }

    /// Takes another rule for where a new stream begins. The default is what the lost stream would still
    /// hold, by its retention, and what read model and planner have not seen.
    #[must_use]
    pub fn with_lowest(mut self, lowest: LowestCheckpoint) -> Relay {
        self.lowest = lowest;
        self
    }

    /// Waits so long for new events when there is nothing to do; a second if not said otherwise.
    #[must_use]
    pub fn with_idle_wait(mut self, idle_wait: Duration) -> Relay {
        self.idle_wait = idle_wait;
        self
    }

    /// Publishes one window of events, or waits a little for new ones.
    ///
    /// # Errors
    /// NATS is out of reach; the stream is not what it must be or belongs to another journal; the
    /// journal was restored to an earlier point ([`BusError::Diverged`]: writes are stopped then). Step
    /// again after a while: a relay needs no memory.
    pub async fn step(&mut self) -> Result<Progress> {
        if !self.holds_lease().await? {
            self.link = None;
            return Ok(Progress::idle_until(self.store.now().plus_ms(STANDBY_MS)));
        }
        let result = self.relay().await;
        if result.is_err() {
            // Perhaps another node can do what this one cannot.
            self.link = None;
            self.lease_renewal = None;
            metrics::counter!("annals_relay_errors_total").increment(1);
            if let Err(error) = self.store.release_lease(LEASE_NAME, &self.owner).await {
                tracing::debug!(%error, "the relay's lease could not be released; it will end by itself");
            }
        }
        result
    }

    async fn holds_lease(&mut self) -> Result<bool> {
        let now = self.store.now();
        if self.lease_renewal.is_some_and(|renewal| now < renewal) {
            return Ok(true);
        }
        let held = self.store.try_lease(LEASE_NAME, &self.owner, LEASE_TTL).await?;
        self.lease_renewal = held.then(|| now.plus_ms(LEASE_RENEWAL_MS));
        Ok(held)
    }

    async fn relay(&mut self) -> Result<Progress> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.find_end().await?,
        };
        let position = link.position();
        metrics::gauge!("annals_relay_position").set(position as f64);

        // The event at the stream's end is read along: should the journal be restored under a running
        // relay, it is gone or another one.
        let along = usize::from(link.last_event.is_some());
        let mut events = self.store.read_stored(position - signed(along as u64), self.window + along).await?;
        if let Some(last_event) = link.last_event {
            match events.first() {
                Some(event) if event.event_id == last_event => drop(events.remove(0)),
                Some(_) => return self.diverged(&format!("position {position} holds another event")).await,
                None => return self.diverged(&format!("position {position} is gone")).await,
            }
        }
        if events.is_empty() {
            metrics::gauge!("annals_relay_lag_events").set(0.0);
            let head = self.store.wait_journal(position, self.idle_wait).await?;
            if head < position {
                return self.diverged(&format!("the stream is at {position}, the journal at {head}")).await;
            }
            self.link = Some(link);
            return Ok(Progress::done(0));
        }
        if self.store.bus_epoch().await?.as_ref() != Some(&link.epoch) {
            // Another relay found the stream replaced while this one slept.
            return Ok(Progress::done(0));
        }

        let full = events.len() >= self.window;
        self.cut(&mut events, link.last_event.is_none());
        let messages = self.messages(events).await?;
        let ids: Vec<Uuid> = messages.iter().map(|message| message.event_id).collect();
        let published = self.nats.publish(link.last_sequence, messages).await;
        link.last_sequence += published.count as u64;
        link.last_event = published.count.checked_sub(1).map_or(link.last_event, |last| Some(ids[last]));
        let position = link.position();
        metrics::counter!("annals_relay_published_total").increment(published.count as u64);
        metrics::gauge!("annals_relay_position").set(position as f64);
        if full {
            let head = self.store.head().await?.position;
            metrics::gauge!("annals_relay_lag_events").set((head - position) as f64);
        }
        match published.stop {
            None => self.link = Some(link),
            Some(Stop::WrongLastSequence) => {
                tracing::debug!(position, "the stream ends elsewhere than expected; looking again");
            }
            Some(Stop::NoStream) => tracing::warn!(position, "the stream is gone; looking again"),
            Some(Stop::Failed(error)) if published.count == 0 => return Err(error.into()),
            Some(Stop::Failed(error)) => {
                tracing::warn!(%error, position, "publishing stopped; looking again")
            }
        }
        Ok(Progress::done(published.count))
    }

    /// Cuts a page to what may be on its way at once, and learns how many events fit.
    fn cut(&mut self, events: &mut Vec<StoredEvent>, alone: bool) {
        let mut bytes = 0;
        let fits = events
            .iter()
            .take_while(|event| {
                bytes += event.payload.len() + ENVELOPE_BYTES;
                bytes <= WINDOW_BYTES_MAX
            })
            .count();
        self.window = match fits < events.len() {
            true => (2 * fits).clamp(WINDOW_MESSAGES_MIN, WINDOW_MESSAGES_MAX),
            false => (2 * self.window).min(WINDOW_MESSAGES_MAX),
        };
        events.truncate(if alone { 1 } else { fits.max(1) });
    }

    /// The messages of a page, each in the form its tenant wants.
    async fn messages(&self, events: Vec<StoredEvent>) -> Result<Vec<Message>> {
        let mut sealed: HashMap<TenantId, bool> = HashMap::new();
        let mut registries: HashMap<TenantId, Arc<Registry>> = HashMap::new();
        for event in &events {
            if !sealed.contains_key(&event.tenant) {
                let registry = self.store.registry_of(&event.tenant).await?;
                registries.insert(event.tenant.clone(), registry);
                let tenant = self.store.tenant(&event.tenant).await?;
                let is_sealed = tenant.is_some_and(|tenant| tenant.settings.sealed_bus);
                sealed.insert(event.tenant.clone(), is_sealed);
            }
        }
        let is_sealed = |event: &StoredEvent| sealed.get(&event.tenant).copied().unwrap_or(false);
        let (closed, open): (Vec<_>, Vec<_>) = events.into_iter().partition(is_sealed);
        let prefix = self.nats.subject_prefix();
        let standard = Registry::standard();
        let registry = |tenant: &TenantId| &**registries.get(tenant).unwrap_or(&standard);
        let open = self.store.open_events(open).await?;
        let mut messages = Vec::with_capacity(closed.len() + open.len());
        for event in &open {
            messages.push(message::encode(prefix, registry(&event.tenant), event)?);
        }
        for event in &closed {
            messages.push(message::encode_stored(prefix, registry(&event.tenant), event)?);
        }
        messages.sort_unstable_by_key(|message| message.position);
        Ok(messages)
    }

    /// Where the stream ends, by its own content: creates it if it is missing, opens an epoch if the
    /// stream is another one than before.
    async fn find_end(&self) -> Result<Link> {
        let stream = self.nats.ensure_stream().await?;
        let name = self.nats.stream_name();
        let epoch = self
            .store
            .bus_epoch()
            .await?
            .filter(|epoch| epoch.stream == name && epoch.stream_created == stream.created);
        let last_sequence = stream.last_sequence;
        if stream.messages == 0 {
            let epoch = match epoch {
                Some(epoch) => epoch,
                None => {
                    let lowest = (self.lowest)(self.store.clone()).await?;
                    self.open_epoch(&stream.created, lowest - signed(last_sequence)).await?
                }
            };
            let link = Link { epoch, last_sequence, last_event: None };
            let head = self.store.head().await?.position;
            if head < link.position() {
                let reason = format!("stream or readers are at {}, the journal at {head}", link.position());
                return self.diverged(&reason).await;
            }
            return Ok(link);
        }

        let Some(last) = self.nats.message(last_sequence).await? else {
            return Err(NatsError::Answer {
                doing: "reading the stream's end",
                reason: format!("sequence {last_sequence} is not there"),
            }
            .into());
        };
        let (position, event_id) = self.identity(&last)?;
        if !self.journal_has(position, event_id).await? {
            let reason = format!("the stream's last event, at position {position}, is not in the journal");
            // A stream that begins as the journal does was written by us, and the journal lost its end.
            if epoch.is_some() || self.begins_as_journal(stream.first_sequence).await? {
                return self.diverged(&reason).await;
            }
            return Err(self.foreign(reason));
        }
        let offset = position - signed(last_sequence);
        let epoch = match epoch {
            Some(epoch) if epoch.offset == offset => epoch,
            _ => self.open_epoch(&stream.created, offset).await?,
        };
        Ok(Link { epoch, last_sequence, last_event: Some(event_id) })
    }

    async fn open_epoch(&self, stream_created: &str, offset: Position) -> Result<BusEpoch> {
        let epoch = self.store.open_bus_epoch(self.nats.stream_name(), stream_created, offset).await?;
        tracing::info!(epoch = epoch.epoch, stream = epoch.stream, offset, "opened a bus epoch");
        Ok(epoch)
    }

    fn identity(&self, message: &StreamMessage) -> Result<(Position, Uuid)> {
        message::identity(&message.headers)
            .map_err(|error| self.foreign(format!("at sequence {}, {error}", message.sequence)))
    }

    fn foreign(&self, reason: String) -> BusError {
        BusError::ForeignStream { stream: self.nats.stream_name().to_owned(), reason }
    }

    async fn journal_has(&self, position: Position, event_id: Uuid) -> Result<bool> {
        let stored = self.store.read_stored(position - 1, 1).await?;
        Ok(stored.first().is_some_and(|event| event.event_id == event_id))
    }

    async fn begins_as_journal(&self, first_sequence: u64) -> Result<bool> {
        let Some(first) = self.nats.message(first_sequence).await? else { return Ok(false) };
        match self.identity(&first) {
            Ok((position, event_id)) => self.journal_has(position, event_id).await,
            Err(_) => Ok(false),
        }
    }

    /// Stops writes: no position may be given twice in an epoch.
    async fn diverged<T>(&self, reason: &str) -> Result<T> {
        let reason = format!("stream {}: {reason}", self.nats.stream_name());
        self.store.halt(&format!("{reason}; an operator must run `annals recover`")).await?;
        Err(BusError::Diverged { reason })
    }
}

/// Our own readers can do with what they have not seen; other subscribers would miss what was written
/// while the stream was lost. So a new stream holds all that the old one would.
async fn beginning(store: Store, retention: Duration) -> annals_store::Result<Position> {
    let (lowest, head) = (lowest_checkpoint(&store).await?, store.head().await?.position);
    if lowest > head {
        // The journal lost its end: the caller finds out by this position.
        return Ok(lowest);
    }
    let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    let oldest = store.now().plus_ms(retention_ms.saturating_neg());
    Ok(lowest.min(store.last_position_before(oldest).await?))
}

async fn lowest_checkpoint(store: &Store) -> annals_store::Result<Position> {
    let (model, planner) = (store.model_health().await?, store.planner_checkpoint().await?);
    let (mut lowest, epoch) = (model.checkpoint.min(planner.position), store.head().await?.epoch);
    if !model.answers || planner.epoch < epoch {
        // A reader of an older epoch goes back to where the positions mean the same, or begins anew.
        if let Some(base) = store.base_since(0).await? {
            lowest = lowest.min(base);
        }
    }
    Ok(lowest)
}

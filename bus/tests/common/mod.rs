//! A journal on SQLite, and where wanted a nats-server with a relay: what the contract of the feeds and
//! the relay's own tests stand on.
#![expect(dead_code, reason = "two test programs share this, neither uses all of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annals_bus::jetstream_feed::FeedSource;
use annals_bus::{Feed, JetStreamFeed, JournalFeed, Nats, NatsOptions};
use annals_domain::event::{Actor, Cause, Recorded};
use annals_domain::ids::{Position, ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::Profile;
use annals_domain::scim::schema::Registry;
use annals_domain::tenant::TenantSettings;
use annals_projector::Relay;
use annals_store::{Database, IfMatch, Limits, Request, RootKey, Store, StoreOptions};
use annals_testkit::child::wait_for;
use annals_testkit::clock::{OsEntropy, SystemClock};
use annals_testkit::nats::Server;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const SOON: Duration = Duration::from_millis(50);

pub(crate) fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

pub(crate) async fn open_store(dir: &Path) -> Store {
    let store = Store::open(StoreOptions {
        database: Database::Sqlite { dir: dir.to_owned() },
        root_key: RootKey::from_bytes([7; 32]),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(OsEntropy),
        limits: Limits::default(),
    })
    .await
    .unwrap();
    store.migrate().await.unwrap();
    store
}

/// A journal with a tenant in it.
pub(crate) struct Journal {
    pub(crate) store: Store,
    pub(crate) dir: TempDir,
}

impl Journal {
    pub(crate) async fn new() -> Journal {
        Self::with(TenantSettings::default()).await
    }

    pub(crate) async fn with(settings: TenantSettings) -> Journal {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(dir.path()).await;
        store.create_tenant(&acme(), settings, Actor::system("test")).await.unwrap();
        Journal { store, dir }
    }
}

pub(crate) async fn user(store: &Store, body: Value) -> annals_store::Result<Position> {
    let id = ResourceId::from_uuid(store.entropy().uuid_v7(store.now()));
    let request = Request {
        tenant: acme(),
        resource_type: Registry::standard().resource_type("User").unwrap().clone(),
        id: id.clone(),
        command: Command::Create { id, body, client: Profile::Generic.into() },
        if_match: IfMatch::Absent,
        actor: Actor::system("test"),
        cause: Cause::default(),
        connection: None,
        settings: TenantSettings::default(),
        group_name_unique: false,
        idempotency: None,
        deadline: None,
    };
    store.execute(request).await.map(|executed| executed.position)
}

/// Writes `count` users and returns the journal's end.
pub(crate) async fn users(store: &Store, count: usize) -> Position {
    let mut writes = tokio::task::JoinSet::new();
    for _ in 0..count {
        let store = store.clone();
        let name = store.entropy().uuid_v7(store.now()).to_string();
        writes.spawn(async move { user(&store, json!({ "userName": name })).await.unwrap() });
    }
    writes.join_all().await;
    store.head().await.unwrap().position
}

pub(crate) async fn journal_events(store: &Store) -> Vec<Recorded> {
    let mut events: Vec<Recorded> = Vec::new();
    loop {
        let after = events.last().map_or(0, |event| event.position);
        let page = store.read_events(after, 1_000).await.unwrap();
        if page.is_empty() {
            return events;
        }
        events.extend(page);
    }
}

pub(crate) fn options(server: &Server) -> NatsOptions {
    NatsOptions {
        servers: vec![server.url()],
        stream_bytes_max: 256 * 1024 * 1024,
        request_timeout: Duration::from_secs(2),
        ..NatsOptions::default()
    }
}

pub(crate) async fn connected(options: NatsOptions) -> Nats {
    let nats = Nats::connect(options).await.unwrap();
    reconnected(&nats).await;
    nats
}

pub(crate) async fn reconnected(nats: &Nats) {
    wait_for("the connection to NATS", PATIENCE, async || match nats.is_connected() {
        true => Ok(()),
        false => anyhow::bail!("not connected"),
    })
    .await
    .unwrap();
}

/// A journal and a nats-server.
pub(crate) struct Scaled {
    pub(crate) journal: Journal,
    pub(crate) server: Server,
    pub(crate) nats: Nats,
    pub(crate) relay: Relay,
}

impl Scaled {
    pub(crate) async fn on(binary: &Path) -> Scaled {
        Self::with(binary, TenantSettings::default()).await
    }

    pub(crate) async fn with(binary: &Path, settings: TenantSettings) -> Scaled {
        let journal = Journal::with(settings).await;
        let server = Server::start_binary(binary).await.unwrap();
        let nats = connected(options(&server)).await;
        let relay = relay(&journal.store, &nats, "test");
        Scaled { journal, server, nats, relay }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.journal.store
    }

    /// Steps the relay until the stream ends where the journal does.
    pub(crate) async fn mirror(&mut self) -> Position {
        mirror(&mut self.relay, &self.journal.store, &self.nats).await
    }

    pub(crate) fn feed(&self) -> JetStreamFeed {
        JetStreamFeed::new(self.journal.store.clone(), self.nats.clone(), "test")
    }
}

pub(crate) fn relay(store: &Store, nats: &Nats, owner: &str) -> Relay {
    Relay::new(store.clone(), nats.clone(), owner).with_idle_wait(Duration::ZERO)
}

pub(crate) async fn mirror(relay: &mut Relay, store: &Store, nats: &Nats) -> Position {
    let head = store.head().await.unwrap().position;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let stepped = relay.step().await;
        let mirrored = mirrored(store, nats).await;
        if mirrored >= Some(head) {
            return head;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the stream is at {mirrored:?}, the journal at {head}; the last step: {stepped:?}"
        );
    }
}

/// The position at which the stream ends, if it is the present epoch's.
pub(crate) async fn mirrored(store: &Store, nats: &Nats) -> Option<Position> {
    let epoch = store.bus_epoch().await.unwrap()?;
    let info = nats.stream().await.ok()??;
    (info.created == epoch.stream_created).then(|| i64::try_from(info.last_sequence).unwrap() + epoch.offset)
}

/// Every message of the stream, in its order.
pub(crate) async fn stream_events(store: &Store, nats: &Nats) -> Vec<Recorded> {
    let info = nats.stream().await.unwrap().unwrap();
    let mut decoded = Vec::new();
    for sequence in info.first_sequence..=info.last_sequence {
        let message = nats.message(sequence).await.unwrap().unwrap();
        let prefix = nats.subject_prefix();
        decoded.push(
            annals_bus::message::decode(prefix, &message.subject, &message.headers, &message.body).unwrap(),
        );
    }
    annals_bus::message::open(store, decoded).await.unwrap()
}

/// Reads until `upto`, in pages of at most `max`, checking that nothing is missing or twice.
pub(crate) async fn read_on(feed: &mut Feed, after: Position, upto: Position, max: usize) -> Vec<Recorded> {
    let mut events: Vec<Recorded> = Vec::new();
    let mut position = after;
    let deadline = std::time::Instant::now() + PATIENCE;
    while position < upto {
        let max = max.min(usize::try_from(upto - position).unwrap());
        let page = feed.next(position, max, Duration::from_millis(500)).await.unwrap();
        assert!(page.len() <= max);
        for event in &page {
            position += 1;
            assert_eq!(event.position, position);
        }
        events.extend(page);
        assert!(std::time::Instant::now() < deadline, "{feed:?} stands still at {position}");
    }
    events
}

/// Reads a JetStream feed until it takes the stream; `position` moves with it.
pub(crate) async fn until_stream(feed: &mut Feed, position: &mut Position, scaled: &mut Scaled) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        for event in feed.next(*position, 100, Duration::from_millis(300)).await.unwrap() {
            *position += 1;
            assert_eq!(event.position, *position);
        }
        if source(feed) == Some(FeedSource::Stream)
            && *position == scaled.store().head().await.unwrap().position
        {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{feed:?} does not take the stream");
        let _ = scaled.relay.step().await;
    }
}

pub(crate) fn source(feed: &Feed) -> Option<FeedSource> {
    match feed {
        Feed::Journal(_) => None,
        Feed::JetStream(feed) => feed.source(),
    }
}

pub(crate) fn journal_feed(store: &Store) -> Feed {
    Feed::Journal(JournalFeed::new(store.clone()))
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

//! Wake-ups: hints that something happened, in this process or another. A hint may be lost, so whoever
//! waits also looks for itself every [`crate::Limits::poll_interval`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::postgres::PgListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    /// Events were committed.
    Journal,
    /// The read model's checkpoint moved.
    Model,
    /// Lanes became due.
    Lanes,
    /// Someone waits for the read model.
    Asked,
}

impl Topic {
    /// Its `NOTIFY` channel.
    pub(crate) fn channel(self) -> &'static str {
        match self {
            Topic::Journal => "annals_journal",
            Topic::Model => "annals_model",
            Topic::Lanes => "annals_lanes",
            Topic::Asked => "annals_asked",
        }
    }
}

const TOPICS: [Topic; 4] = [Topic::Journal, Topic::Model, Topic::Lanes, Topic::Asked];

/// The hints of one process.
#[derive(Debug)]
pub(crate) struct Wakes {
    senders: [watch::Sender<u64>; TOPICS.len()],
    count: AtomicU64,
    stop: CancellationToken,
}

impl Wakes {
    /// Begins to pass on the hints of other processes, where the database has any.
    pub(crate) fn start(backend: &Backend) -> Arc<Wakes> {
        let wakes = Arc::new(Wakes {
            senders: TOPICS.map(|_| watch::Sender::new(0)),
            count: AtomicU64::new(0),
            stop: CancellationToken::new(),
        });
        if let Some(pool) = backend.postgres() {
            tokio::spawn(listen(pool.clone(), Arc::downgrade(&wakes), wakes.stop.clone()));
        }
        wakes
    }

    /// Wakes everyone in this process who waits for the topic.
    pub(crate) fn wake(&self, topic: Topic) {
        let n = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.senders[topic as usize].send_replace(n);
    }

    /// A receiver that changes with each hint from now on.
    pub(crate) fn subscribe(&self, topic: Topic) -> watch::Receiver<u64> {
        self.senders[topic as usize].subscribe()
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn listen(pool: sqlx::PgPool, wakes: std::sync::Weak<Wakes>, stop: CancellationToken) {
    loop {
        let listening = listen_once(&pool, &wakes);
        tokio::select! {
            () = stop.cancelled() => return,
            result = listening => {
                if wakes.strong_count() == 0 {
                    return;
                }
                if let Err(error) = result {
                    tracing::debug!(%error, "listening for wake-ups ended; polling until it is back");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    }
}

async fn listen_once(pool: &sqlx::PgPool, wakes: &std::sync::Weak<Wakes>) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all(TOPICS.map(Topic::channel)).await?;
    loop {
        let notification = listener.recv().await?;
        let Some(wakes) = wakes.upgrade() else { return Ok(()) };
        if let Some(topic) = TOPICS.into_iter().find(|t| t.channel() == notification.channel()) {
            wakes.wake(topic);
        }
    }
}

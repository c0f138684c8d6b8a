//! Group commit: one task a process gathers what waits and writes it in one transaction (D1).
//!
//! The queue is bounded and fair by tenant: a bulk load of one cannot starve another. There is no delay;
//! while one batch commits, the next one gathers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use annals_domain::clock::{Clock, Entropy};
use annals_domain::ids::TenantId;
use tokio::sync::{Notify, oneshot};

use super::append::{Appender, BatchError};
use super::chain::{Answer, Chain, Outcome, Work};
use super::{AppendError, Commit, Receipt};
use crate::Limits;
use crate::backend::Backend;
use crate::error::StoreError;
use crate::wake::{Topic, Wakes};

/// Most payload bytes in one batch, so that a batch of large events stays one short transaction.
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;

type Reply = std::result::Result<Answer, AppendError>;

struct Waiting {
    tenant: TenantId,
    /// How many commits it has.
    commits: usize,
    work: Work,
    reply: oneshot::Sender<Reply>,
}

#[derive(Default)]
struct Queue {
    by_tenant: HashMap<TenantId, VecDeque<Waiting>>,
    turns: VecDeque<TenantId>,
    len: usize,
    closed: bool,
}

impl Queue {
    fn push(&mut self, waiting: Waiting) {
        let tenant = waiting.tenant.clone();
        self.len += waiting.commits;
        let lane = self.by_tenant.entry(tenant.clone()).or_default();
        if lane.is_empty() {
            self.turns.push_back(tenant);
        }
        lane.push_back(waiting);
    }

    /// Takes a batch, one commit or chain of each tenant in turn. The last chain may exceed the bound.
    fn take(&mut self, commits_max: usize) -> Vec<Waiting> {
        let mut batch = Vec::new();
        let (mut commits, mut bytes) = (0, 0);
        while commits < commits_max && bytes < BATCH_BYTES_MAX {
            let Some(tenant) = self.turns.pop_front() else { break };
            let Some(lane) = self.by_tenant.get_mut(&tenant) else { continue };
            if let Some(waiting) = lane.pop_front() {
                let writes = waiting.work.commits().flat_map(|commit| &commit.writes);
                bytes += writes.flat_map(|w| &w.events).map(|event| event.payload.len()).sum::<usize>();
                commits += waiting.commits;
                self.len -= waiting.commits;
                batch.push(waiting);
            }
            if lane.is_empty() {
                self.by_tenant.remove(&tenant);
            } else {
                self.turns.push_back(tenant);
            }
        }
        batch
    }
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Notify,
    queue_max: usize,
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        // Nothing panics between the queue's own steps, so a poisoned lock still guards a sound queue.
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// However the writer ends, nobody goes on waiting for it.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        *self.0.queue() = Queue { closed: true, ..Queue::default() };
    }
}

/// The journal's writer of this process.
///
/// It has a thread of its own: each of its steps waits for the database, and behind the requests of a busy
/// runtime it would wait for its turn once more after every one of them.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

impl Writer {
    pub(crate) fn start(
        backend: Arc<Backend>,
        wakes: Arc<Wakes>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        limits: Limits,
    ) -> std::result::Result<Writer, StoreError> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            arrived: Notify::new(),
            queue_max: limits.queue_commits_max,
        });
        let appender = Appender { backend, clock, entropy, links_max: limits.commit_links_max };
        let (end, ended) = oneshot::channel();
        let (begin, begun) = std::sync::mpsc::channel();
        let writing = run(shared.clone(), appender, wakes, limits.batch_commits_max);
        let over = Over(shared.clone());
        let thread = std::thread::Builder::new().name("journal-writer".to_owned());
        let spawned = thread.spawn(move || {
            let _over = over;
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(begin.send(Err(error))),
            };
            let _ = begin.send(Ok(()));
            runtime.block_on(writing);
            // Connections go with the runtime that serves them, before anybody is told.
            drop(runtime);
            let _ = end.send(());
        });
        let failed = |source| StoreError::Thread { what: "the journal's writer", source };
        spawned.map_err(failed)?;
        begun.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into())).map_err(failed)?;
        Ok(Writer { shared, ended: tokio::sync::Mutex::new(Some(ended)) })
    }

    /// Hands a commit in and waits until it is durable or refused. Dropping the future does not undo it.
    pub(crate) async fn append(&self, commit: Commit) -> std::result::Result<Receipt, AppendError> {
        let tenant = commit.tenant.clone();
        match self.hand_in(tenant, Work::One(Arc::new(commit))).await? {
            Answer::One(outcome) => outcome.map_err(AppendError::Rejected),
            Answer::Chain(_) => Err(AppendError::Failed("the answer is for a chain".to_owned())),
        }
    }

    /// Hands a chain in and waits until its outcomes are durable. Dropping the future does not undo it.
    pub(crate) async fn append_chain(
        &self,
        tenant: TenantId,
        chain: Arc<Chain>,
    ) -> std::result::Result<Vec<Outcome>, AppendError> {
        match self.hand_in(tenant, Work::Chain(chain)).await? {
            Answer::Chain(outcomes) => Ok(outcomes),
            Answer::One(_) => Err(AppendError::Failed("the answer is for one commit".to_owned())),
        }
    }

    async fn hand_in(&self, tenant: TenantId, work: Work) -> Reply {
        let (reply, answer) = oneshot::channel();
        {
            let mut queue = self.shared.queue();
            if queue.closed || queue.len >= self.shared.queue_max {
                return Err(AppendError::Full);
            }
            let commits = work.commits().count();
            queue.push(Waiting { tenant, commits, work, reply });
            metrics::gauge!("annals_journal_queue_commits").set(queue.len as f64);
        }
        self.shared.arrived.notify_one();
        answer.await.unwrap_or(Err(AppendError::Full))
    }

    /// Takes no more commits, finishes those that wait, and ends.
    pub(crate) async fn close(&self) {
        self.shared.queue().closed = true;
        self.shared.arrived.notify_one();
        if let Some(ended) = self.ended.lock().await.take() {
            let _ = ended.await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.arrived.notify_one();
    }
}

async fn run(shared: Arc<Shared>, appender: Appender, wakes: Arc<Wakes>, commits_max: usize) {
    loop {
        let batch = {
            let mut queue = shared.queue();
            let batch = queue.take(commits_max);
            if batch.is_empty() && queue.closed {
                break;
            }
            batch
        };
        if batch.is_empty() {
            shared.arrived.notified().await;
            continue;
        }
        metrics::histogram!("annals_journal_batch_commits")
            .record(batch.iter().map(|w| w.commits).sum::<usize>() as f64);
        write_batch(&appender, batch).await;
        wakes.wake(Topic::Journal);
    }
    appender.backend.close_appends().await;
}

async fn write_batch(appender: &Appender, batch: Vec<Waiting>) {
    let works: Vec<Work> = batch.iter().map(|w| w.work.clone()).collect();
    match append_certainly(appender, &works).await {
        Ok(answers) => {
            for (waiting, answer) in batch.into_iter().zip(answers) {
                let _ = waiting.reply.send(Ok(answer));
            }
        }
        Err(StoreError::Halted(reason)) => {
            for waiting in batch {
                let _ = waiting.reply.send(Err(AppendError::Halted(reason.clone())));
            }
        }
        // One commit may be what the database refuses: each once more, alone.
        Err(error) if batch.len() > 1 => {
            tracing::warn!(error = %chain(&error), entries = batch.len(), "a batch failed; trying each of its entries alone");
            for waiting in batch {
                let reply = match append_certainly(appender, std::slice::from_ref(&waiting.work)).await {
                    Ok(mut answers) => answers.pop().ok_or(AppendError::Full),
                    Err(error) => Err(failed(&error)),
                };
                let _ = waiting.reply.send(reply);
            }
        }
        Err(error) => {
            for waiting in batch {
                let _ = waiting.reply.send(Err(failed(&error)));
            }
        }
    }
}

fn failed(error: &StoreError) -> AppendError {
    match error {
        StoreError::Halted(reason) => AppendError::Halted(reason.clone()),
        error => AppendError::Failed(chain(error)),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Appends; if the outcome of COMMIT is unknown, finds out.
async fn append_certainly(
    appender: &Appender,
    works: &[Work],
) -> std::result::Result<Vec<Answer>, StoreError> {
    match appender.append(works).await {
        Ok(answers) => Ok(answers),
        Err(BatchError::Before(error)) => Err(error),
        Err(BatchError::Unknown(error, answers, mark)) => {
            tracing::warn!(error = %chain(&error), "the outcome of a COMMIT is unknown; looking it up");
            // A batch is one transaction: if what it wrote is there, the batch is, and with it all that was
            // found out under its row.
            if appender.is_there(works, &answers, &mark).await? { Ok(answers) } else { Err(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn commit(tenant: &str) -> Commit {
        Commit {
            id: Uuid::nil(),
            tenant: TenantId::new(tenant).unwrap(),
            actor: String::new(),
            cause: String::new(),
            writes: Vec::new(),
            secrets: Vec::new(),
            tokens: Vec::new(),
            fingerprint: None,
            definition: None,
            head: None,
        }
    }

    fn waiting(tenant: &str) -> Waiting {
        let commit = commit(tenant);
        let tenant = commit.tenant.clone();
        let work = Work::One(Arc::new(commit));
        Waiting { tenant, commits: 1, work, reply: oneshot::channel().0 }
    }

    #[tokio::test]
    async fn nobody_waits_for_a_writer_that_is_over() {
        let shared =
            Arc::new(Shared { queue: Mutex::new(Queue::default()), arrived: Notify::new(), queue_max: 10 });
        let writer = Writer { shared: shared.clone(), ended: tokio::sync::Mutex::new(None) };
        let over = Over(shared.clone());
        let over = async {
            while shared.queue().len == 0 {
                tokio::task::yield_now().await;
            }
            drop(over);
        };
        let (answer, ()) = tokio::join!(writer.append(commit("acme")), over);
        assert!(matches!(answer, Err(AppendError::Full)), "{answer:?}");
        let later = writer.append(commit("acme")).await;
        assert!(matches!(later, Err(AppendError::Full)), "{later:?}");
    }

    #[test]
    fn a_batch_takes_one_of_each_tenant_in_turn() {
        let mut queue = Queue::default();
        for tenant in ["bulk", "bulk", "bulk", "small", "bulk", "other"] {
            queue.push(waiting(tenant));
        }
        let order: Vec<String> = queue.take(4).iter().map(|w| w.tenant.as_str().to_owned()).collect();
        assert_eq!(order, ["bulk", "small", "other", "bulk"]);
        assert_eq!(queue.take(10).len(), 2);
        assert_eq!(queue.len, 0);
        assert!(queue.take(10).is_empty());
    }
}

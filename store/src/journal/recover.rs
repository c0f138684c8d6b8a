//! The journal after an older backup of it was restored (D5): a new epoch, so that no position is ever
//! given twice in one, and an event that says so.

use std::sync::Arc;

use annals_domain::event::{Actor, Cause, Event};
use annals_domain::ids::{Position, TenantId};
use annals_domain::scim::resource::diff;
use annals_domain::tenant::{Entity, Journal};

use super::append::{Appender, tenant_id};
use super::chain::{Answer, Work};
use super::{Commit, Expect, NewEvent, StateWrite, StreamWrite};
use crate::Store;
use crate::backend::{Area, sql};
use crate::error::{Result, StoreError};
use crate::execute::Header;
use crate::wake::Topic;

/// Tenants that are told in one transaction. Each is one event.
const TENANTS_MAX: usize = 100_000;

impl Store {
    /// Opens the epoch after `from`: positions above `base` were given before, to events that are no more,
    /// and mean something else from now on. Each tenant gets an event, and writes are let in again, all of
    /// it in one transaction. Returns the new epoch.
    ///
    /// # Errors
    /// The journal is not at epoch `from` any more, or ends before `base`; the database fails.
    pub async fn open_journal_epoch(&self, from: i64, base: Position, actor: &Actor) -> Result<i64> {
        let next = Journal { epoch: from + 1, base };
        let cause = Cause { operation: "recover".to_owned(), ..Cause::default() };
        let header = Header::of(actor, &cause)?;
        let mut works = Vec::new();
        for tenant in self.tenants_with_events().await? {
            works.push(Work::One(Arc::new(self.told(&tenant, &next, &header).await?)));
        }
        let commits: Vec<Arc<Commit>> = works.iter().flat_map(Work::commits).cloned().collect();
        let appender = Appender {
            backend: self.inner.backend.clone(),
            clock: self.clock().clone(),
            entropy: self.entropy().clone(),
            links_max: self.limits().commit_links_max,
        };
        let mut tx = self.backend().begin_write(Area::Journal).await?;
        // As the writer does: the counter row first.
        let lock = sql("SELECT c.position, m.epoch FROM journal.counter c CROSS JOIN journal.meta m \
             WHERE c.id = 1 AND m.id = 1 {for_update}");
        let missing = || StoreError::corrupt("the counter row", "it is missing");
        let row = tx.fetch_optional(lock).await?.ok_or_else(missing)?;
        if row.int(1)? != from || row.int(0)? < base {
            let found = format!("it is at epoch {}, position {}", row.int(1)?, row.int(0)?);
            return Err(StoreError::corrupt("the journal's end", found));
        }
        let raise = sql("UPDATE journal.meta SET epoch = $1, halted = NULL WHERE id = 1").bind(next.epoch);
        tx.execute(raise).await?;
        let insert = sql("INSERT INTO journal.recovery (epoch, base, at) VALUES ($1, $2, $3)")
            .bind(next.epoch)
            .bind(base)
            .bind(self.now());
        tx.execute(insert).await?;
        let (answers, end) = appender.append_in(&mut tx, &works, &commits).await?;
        if answers.iter().any(|answer| !matches!(answer, Answer::One(Ok(_)))) {
            return Err(StoreError::Busy { what: "another recovery is at work", retry_after_s: 1 });
        }
        if let Some(end) = end {
            tx.execute_all(end.writes).await?;
            tx.notify(Topic::Journal.channel(), &end.head.to_string()).await?;
        }
        tx.commit().await?;
        self.wakes().wake(Topic::Journal);
        Ok(next.epoch)
    }

    /// The last position that still means to a reader of an older epoch what it meant; `None` if it is of
    /// the present one.
    pub async fn base_since(&self, epoch: i64) -> Result<Option<Position>> {
        let select = sql("SELECT MIN(r.base) FROM journal.recovery r WHERE r.epoch > $1").bind(epoch);
        let row = self.backend().fetch_optional(Area::Journal, select).await?;
        row.map_or(Ok(None), |row| row.opt_int(0))
    }

    async fn tenants_with_events(&self) -> Result<Vec<TenantId>> {
        let select =
            sql("SELECT h.tenant FROM journal.tenant_head h ORDER BY h.tenant LIMIT $1").bind(TENANTS_MAX);
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        rows.iter().map(|row| tenant_id(&row.text(0)?)).collect()
    }

    /// The commit that tells a tenant's readers.
    async fn told(&self, tenant: &TenantId, next: &Journal, header: &Header) -> Result<Commit> {
        let stream = Journal::stream(Journal::KEY);
        let before = self.state(tenant, &stream.id).await?;
        let document = next.to_document();
        let event = match before.as_ref().and_then(|state| state.document()) {
            None => Event::Created { document: document.clone() },
            Some(before) => Event::Changed { changes: diff(before, &document) },
        };
        let event_id = self.entropy().uuid_v7(self.now());
        let event = NewEvent::plain(event_id, tenant, &stream, &event, header);
        let bytes = serde_json::to_vec(&document).map_err(|e| StoreError::corrupt("a document", e))?;
        let write = StreamWrite {
            cause: None,
            stream,
            expect: before.map_or(Expect::Absent, |state| Expect::Version(state.version)),
            events: vec![event],
            state: StateWrite::Put { key_id: None, document: bytes },
            lookups_add: Vec::new(),
            lookups_remove: Vec::new(),
            members: None,
            references_add: Vec::new(),
            references_remove: Vec::new(),
        };
        Ok(Commit {
            id: self.entropy().uuid_v7(self.now()),
            tenant: tenant.clone(),
            actor: header.actor.clone(),
            cause: header.cause.clone(),
            writes: vec![write],
            secrets: Vec::new(),
            tokens: Vec::new(),
            fingerprint: None,
            definition: None,
            head: None,
        })
    }
}

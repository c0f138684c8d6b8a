//! Which stream mirrors the journal, how positions map to its sequences (D5), and leases.

use std::time::Duration;

use annals_domain::ids::Position;

use crate::Store;
use crate::backend::{Area, Row, sql};
use crate::error::{Result, StoreError};

/// The stream of the present bus epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusEpoch {
    /// 1, 2, 3, …: one more whenever the stream was found missing or foreign.
    pub epoch: i64,
    /// The stream's name.
    pub stream: String,
    /// The stream's creation time as the server reports it.
    pub stream_created: String,
    /// Position minus stream sequence.
    pub offset: Position,
}

fn bus_epoch(row: &Row) -> Result<BusEpoch> {
    Ok(BusEpoch {
        epoch: row.int(0)?,
        stream: row.text(1)?,
        stream_created: row.text(2)?,
        offset: row.int(3)?,
    })
}

const COLUMNS: &str = "b.epoch, b.stream, b.stream_created, b.offset_";

impl Store {
    /// The present bus epoch, if a relay has ever opened one.
    pub async fn bus_epoch(&self) -> Result<Option<BusEpoch>> {
        let select = sql(format!("SELECT {COLUMNS} FROM journal.bus_epoch b ORDER BY b.epoch DESC LIMIT 1"));
        let row = self.backend().fetch_optional(Area::Journal, select).await?;
        row.as_ref().map(bus_epoch).transpose()
    }

    /// Opens the next bus epoch. Two relays that try at once get two epochs; the later one counts, and
    /// the server refuses what the other publishes.
    pub async fn open_bus_epoch(
        &self,
        stream: &str,
        stream_created: &str,
        offset: Position,
    ) -> Result<BusEpoch> {
        let mut tx = self.backend().begin_write(Area::Journal).await?;
        let lock = sql("SELECT m.epoch FROM journal.meta m WHERE m.id = 1 {for_update}");
        tx.fetch_all(lock).await?;
        let insert = sql("INSERT INTO journal.bus_epoch (epoch, stream, stream_created, offset_, at) \
             SELECT COALESCE(MAX(b.epoch), 0) + 1, $1, $2, $3, $4 FROM journal.bus_epoch b")
        .bind(stream)
        .bind(stream_created)
        .bind(offset)
        .bind(self.now());
        tx.execute(insert).await?;
        let select = sql(format!("SELECT {COLUMNS} FROM journal.bus_epoch b ORDER BY b.epoch DESC LIMIT 1"));
        let row = tx.fetch_optional(select).await?;
        let opened = row.as_ref().map(bus_epoch).transpose()?;
        tx.commit().await?;
        opened.ok_or_else(|| StoreError::corrupt("the bus epoch", "it vanished"))
    }

    /// Takes or renews a lease; false if another owner has it. Leases save double work, nothing is right
    /// because of them.
    pub async fn try_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool> {
        let now = self.now();
        let until = now.plus_ms(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        let upsert = sql("INSERT INTO journal.lease (name, owner, until) VALUES ($1, $2, $3) \
             ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until \
             WHERE journal.lease.owner = excluded.owner OR journal.lease.until <= $4")
        .bind(name)
        .bind(owner)
        .bind(until)
        .bind(now);
        Ok(self.backend().execute(Area::Journal, upsert).await? == 1)
    }

    /// Gives a lease back, if it is still one's own.
    pub async fn release_lease(&self, name: &str, owner: &str) -> Result<()> {
        let delete = sql("DELETE FROM journal.lease WHERE name = $1 AND owner = $2").bind(name).bind(owner);
        self.backend().execute(Area::Journal, delete).await.map(drop)
    }
}

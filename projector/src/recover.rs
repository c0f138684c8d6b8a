//! After an older backup of the journal was restored (D5): what is lost, and how to go on without it.
//!
//! The stream, the read model and the lanes may know events that the journal does not have any more. Their
//! positions will be given anew, so the journal goes on in a new epoch: the read model is rebuilt, lanes are
//! compared with their targets again, and the stream is made anew from the last position in common.

use std::collections::BTreeMap;
use std::time::Duration;

use annals_bus::message::{self, header};
use annals_bus::nats::StreamMessage;
use annals_bus::{BusError, Nats, Result};
use annals_domain::event::Actor;
use annals_domain::ids::Position;
use annals_store::Store;

use crate::relay::LEASE_NAME;

/// Messages of the lost tail that are looked at one by one.
pub const TAIL_MESSAGES_MAX: u64 = 1_000;
/// The relay's lease is held so long while the stream is replaced.
const LEASE_TTL: Duration = Duration::from_secs(60);
const LEASE_OWNER: &str = "annals recover";

/// What journal, stream and readers say about each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Position of the journal's last event.
    pub head: Position,
    /// The journal's epoch.
    pub epoch: i64,
    /// Why writes are stopped, if they are.
    pub halted: Option<String>,
    /// How far the read model is, if it is of this epoch.
    pub model: Option<Position>,
    /// How far deliveries are planned, if in this epoch.
    pub planned: Option<Position>,
    /// The stream, if there is one with messages.
    pub stream: Option<StreamSurvey>,
}

/// The stream beside the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSurvey {
    /// Position of its last event.
    pub last: Position,
    /// The last position at which stream and journal have the same event; one before the stream's first
    /// if there is none.
    pub common: Position,
    /// What the stream has after that, by tenant and kind; up to [`TAIL_MESSAGES_MAX`] messages.
    pub lost: BTreeMap<(String, String), u64>,
}

impl Survey {
    /// The last position that means the same to everybody.
    pub fn base(&self) -> Position {
        self.stream.as_ref().map_or(self.head, |stream| stream.common.min(self.head))
    }

    /// Whether anything is to be recovered.
    pub fn is_needed(&self) -> bool {
        let ahead = |position: Option<Position>| position.is_some_and(|position| position > self.head);
        self.halted.is_some()
            || ahead(self.model)
            || ahead(self.planned)
            || self.stream.as_ref().is_some_and(|stream| stream.common < stream.last)
    }
}

/// Looks, and changes nothing.
///
/// # Errors
/// The database or NATS fails, or the stream holds something that is not ours.
pub async fn survey(store: &Store, nats: Option<&Nats>) -> Result<Survey> {
    let head = store.head().await?;
    let model = store.model_health().await?;
    let planner = store.planner_checkpoint().await?;
    let stream = match nats {
        Some(nats) => survey_stream(store, nats).await?,
        None => None,
    };
    Ok(Survey {
        head: head.position,
        epoch: head.epoch,
        halted: head.halted,
        model: model.answers.then_some(model.checkpoint),
        planned: (planner.epoch == head.epoch).then_some(planner.position),
        stream,
    })
}

async fn survey_stream(store: &Store, nats: &Nats) -> Result<Option<StreamSurvey>> {
    let Some(info) = nats.stream().await?.filter(|info| info.messages > 0) else { return Ok(None) };
    let last = identity(nats, &message_at(nats, info.last_sequence).await?)?.0;
    // Journal and stream agree up to some point and never again: bisect for it.
    let (mut same, mut differs) = (info.first_sequence - 1, info.last_sequence + 1);
    while same + 1 < differs {
        let middle = same + (differs - same) / 2;
        let (position, event_id) = identity(nats, &message_at(nats, middle).await?)?;
        let stored = store.read_stored(position - 1, 1).await?;
        if stored.first().is_some_and(|event| event.position == position && event.event_id == event_id) {
            same = middle;
        } else {
            differs = middle;
        }
    }
    let offset = last - i64::try_from(info.last_sequence).unwrap_or(i64::MAX);
    let common = i64::try_from(same).unwrap_or(i64::MAX) + offset;
    let mut lost = BTreeMap::new();
    for sequence in (same + 1..=info.last_sequence).take(TAIL_MESSAGES_MAX as usize) {
        let message = message_at(nats, sequence).await?;
        let text = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned());
        let tenant = text(header::SOURCE).unwrap_or_default();
        let tenant = tenant.strip_prefix(message::SOURCE_PREFIX).unwrap_or("?").to_owned();
        let kind = text(header::KIND).unwrap_or_else(|| "?".to_owned());
        *lost.entry((tenant, kind)).or_insert(0) += 1;
    }
    Ok(Some(StreamSurvey { last, common, lost }))
}

async fn message_at(nats: &Nats, sequence: u64) -> Result<StreamMessage> {
    nats.message(sequence).await?.ok_or_else(|| {
        foreign(nats, format!("sequence {sequence} is not there: retention may be at work, try again"))
    })
}

fn identity(nats: &Nats, message: &StreamMessage) -> Result<(Position, uuid::Uuid)> {
    message::identity(&message.headers)
        .map_err(|error| foreign(nats, format!("at sequence {}, {error}", message.sequence)))
}

fn foreign(nats: &Nats, reason: String) -> BusError {
    BusError::ForeignStream { stream: nats.stream_name().to_owned(), reason }
}

/// Gives up what the journal does not have: replaces the stream by one that begins after the last position
/// in common, opens a journal epoch and lets writes in. Returns the epoch. If it fails half-way, survey and
/// do it again.
///
/// # Errors
/// A relay is running that does not give way; the database or NATS fails.
pub async fn drop_tail(store: &Store, nats: Option<&Nats>, survey: &Survey, actor: &Actor) -> Result<i64> {
    // No relay may look at the stream while it is replaced; a failing one gives its lease back at once.
    if !store.try_lease(LEASE_NAME, LEASE_OWNER, LEASE_TTL).await? {
        let reason = "a relay is at work: stop `annals serve` and `annals projector` first".to_owned();
        return Err(BusError::Diverged { reason });
    }
    let dropped = replace(store, nats, survey, actor).await;
    store.release_lease(LEASE_NAME, LEASE_OWNER).await?;
    dropped
}

async fn replace(store: &Store, nats: Option<&Nats>, survey: &Survey, actor: &Actor) -> Result<i64> {
    let base = survey.base();
    if store.head().await?.epoch != survey.epoch {
        return Err(BusError::Diverged { reason: "another recovery was faster: look again".to_owned() });
    }
    let Some(nats) = nats else { return Ok(store.open_journal_epoch(survey.epoch, base, actor).await?) };
    nats.delete_stream().await?;
    let stream = nats.ensure_stream().await?;
    let epoch = store.open_journal_epoch(survey.epoch, base, actor).await?;
    store.open_bus_epoch(nats.stream_name(), &stream.created, base).await?;
    Ok(epoch)
}

//! An export of the log, and how an outsider checks it without access to the database.
//!
//! JSON Lines. The first line has the log's name, its keys and the statements by which each key named its
//! successor. Then, if asked for, one line for each event with all that its hash covers; what is personal
//! is sealed as in the journal. The last line has a signed checkpoint, and the proof that the checkpoint the
//! outsider holds is a beginning of it.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use annals_domain::ids::Position;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::LEAVES_PER_STEP_MAX;
use super::note::{NoteError, SignedCheckpoint, SignedNote, VerifierKey, introduced};
use super::tree::{Hash, Prover, Tree, is_beginning};
use crate::Store;
use crate::backend::{Area, Row, sql};
use crate::error::{Result, StoreError};
use crate::journal::{BodyParts, chain_hash};

/// The form of exports that this build writes and reads.
pub const FORMAT: &str = "annals-export/1";
/// Longest line of an export, in bytes: an event of 512 KiB in base64, and its envelope.
pub const LINE_BYTES_MAX: usize = 2 * 1024 * 1024;
const PAGE_EVENTS: usize = 500;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct First {
    format: String,
    origin: String,
    keys: Vec<String>,
    introductions: Vec<String>,
    /// Whether event lines follow.
    events: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EventLine {
    position: Position,
    event_id: String,
    commit_id: String,
    tenant: String,
    resource_type: String,
    id: String,
    version: i64,
    kind: String,
    schema_version: u32,
    at: i64,
    /// As the journal has it, to the byte: the hash covers it.
    actor: String,
    cause: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    key_id: Option<String>,
    /// Base64.
    payload: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Last {
    checkpoint: String,
    /// Size of the older checkpoint that `consistency` is about; 0 if none was named.
    since: u64,
    consistency: Vec<String>,
}

/// What is wrong with an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be read.
    #[error("the export cannot be read")]
    Io(#[from] std::io::Error),
    /// A line is not what it must be.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A signature is missing or wrong.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The log has become shorter.
    #[error("history was cut: {held} events were signed before, the export ends after {now}")]
    Truncated {
        /// Size of the older checkpoint.
        held: u64,
        /// Size of the new one.
        now: u64,
    },
    /// The first events are not those that were signed before.
    #[error("history was rewritten: the first {held} events are not those that were signed before")]
    Rewritten {
        /// Size of the older checkpoint.
        held: u64,
    },
    /// The events of the export are not those of its checkpoint.
    #[error("the events of the export are not those that its checkpoint covers")]
    OtherEvents,
    /// The export says nothing about the checkpoint that is held.
    #[error("the export proves nothing about the first {held} events: ask for one made with --since")]
    NoProof {
        /// Size of the older checkpoint.
        held: u64,
    },
}

/// What an export proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its checkpoint: keep it for the next time.
    pub checkpoint: SignedCheckpoint,
    /// Every key that may be trusted from now on.
    pub keys: Vec<VerifierKey>,
    /// Events whose content was hashed anew; 0 if the export has none.
    pub events: u64,
}

impl Store {
    /// Signs a checkpoint and writes an export up to it. `since` is the size of an older checkpoint that
    /// somebody holds; with `events`, the whole journal goes along, personal content sealed.
    ///
    /// # Errors
    /// The database fails, the output fails, or the log was never as long as `since`.
    pub async fn audit_export(
        &self,
        since: u64,
        events: bool,
        out: &mut (dyn Write + Send),
    ) -> Result<SignedCheckpoint> {
        let checkpoint = self.checkpoint_now().await?;
        let size = checkpoint.checkpoint.size;
        if since > size {
            let reason = format!("it has {size} events, {since} were asked for");
            return Err(StoreError::corrupt("the log", reason));
        }
        let keys = self.audit_keys().await?;
        let first = First {
            format: FORMAT.to_owned(),
            origin: checkpoint.checkpoint.origin.clone(),
            keys: keys.iter().map(|key| key.public.to_string()).collect(),
            introductions: keys.iter().filter_map(|key| key.introduced.clone()).collect(),
            events,
        };
        write_line(out, &first)?;
        let mut prover = Prover::new(since, size);
        let mut at = 0;
        while at < size {
            let left = usize::try_from(size - at).unwrap_or(usize::MAX);
            let leaves = if events {
                self.export_events(at, PAGE_EVENTS.min(left), out).await?
            } else {
                self.leaves(at, LEAVES_PER_STEP_MAX.min(left)).await?
            };
            if leaves.is_empty() {
                return Err(StoreError::corrupt(format!("position {}", at + 1), "it is missing"));
            }
            at += leaves.len() as u64;
            leaves.iter().for_each(|leaf| prover.push(leaf));
        }
        let consistency = prover.finish().unwrap_or_default();
        let last = Last {
            checkpoint: checkpoint.to_string(),
            since,
            consistency: consistency.iter().map(|hash| BASE64.encode(hash)).collect(),
        };
        write_line(out, &last)?;
        Ok(checkpoint)
    }

    async fn export_events(
        &self,
        after: u64,
        max: usize,
        out: &mut (dyn Write + Send),
    ) -> Result<Vec<Vec<u8>>> {
        let select = sql("SELECT e.position, e.event_id, e.commit_id, e.tenant, e.resource_type, e.id, \
             e.version, e.kind, e.schema_version, e.at, e.actor, e.cause, e.key_id, e.payload, e.chain_hash \
             FROM journal.event e WHERE e.position > $1 ORDER BY e.position LIMIT $2")
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(max);
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        let mut leaves = Vec::with_capacity(rows.len());
        for row in &rows {
            write_line(out, &event_line(row)?)?;
            leaves.push(row.bytes(14)?);
        }
        Ok(leaves)
    }
}

fn event_line(row: &Row) -> Result<EventLine> {
    Ok(EventLine {
        position: row.int(0)?,
        event_id: row.text(1)?,
        commit_id: row.text(2)?,
        tenant: row.text(3)?,
        resource_type: row.text(4)?,
        id: row.text(5)?,
        version: row.int(6)?,
        kind: row.text(7)?,
        schema_version: u32::try_from(row.int(8)?)
            .map_err(|error| StoreError::corrupt("a schema version", error))?,
        at: row.int(9)?,
        actor: row.text(10)?,
        cause: row.text(11)?,
        key_id: row.opt_text(12)?,
        payload: BASE64.encode(row.bytes(13)?),
    })
}

fn write_line(out: &mut dyn Write, line: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(line).map_err(|error| StoreError::corrupt("an export line", error))?;
    writeln!(out, "{text}").map_err(StoreError::Export)
}

/// Lines of a reader that never hold more than [`LINE_BYTES_MAX`].
struct Lines<R> {
    reader: R,
    line: usize,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> std::result::Result<Option<Vec<u8>>, ExportError> {
        let mut text = Vec::new();
        let mut limited = std::io::Read::take(&mut self.reader, LINE_BYTES_MAX as u64 + 1);
        limited.read_until(b'\n', &mut text)?;
        self.line += 1;
        if text.len() > LINE_BYTES_MAX {
            return Err(self.wrong("it is too long"));
        }
        Ok((!text.is_empty()).then_some(text))
    }

    fn wrong(&self, reason: impl ToString) -> ExportError {
        ExportError::Line { line: self.line, reason: reason.to_string() }
    }

    fn read<T: for<'de> Deserialize<'de>>(&mut self) -> std::result::Result<T, ExportError> {
        let text = self.next()?.ok_or_else(|| self.wrong("the export ends here"))?;
        serde_json::from_slice(&text).map_err(|error| self.wrong(error))
    }
}

/// Checks an export as an outsider: with the public keys that are trusted and, if there is one, an older
/// checkpoint. Memory grows with the number of tenants, not with that of events.
///
/// # Errors
/// Anything is not as it must be; the first thing that is found.
pub fn check_export(
    reader: impl BufRead,
    trusted: &[VerifierKey],
    held: Option<&SignedCheckpoint>,
) -> std::result::Result<Checked, ExportError> {
    let mut lines = Lines { reader, line: 0 };
    let first: First = lines.read()?;
    if first.format != FORMAT {
        return Err(lines.wrong(format!("its format is {:?}, {FORMAT} can be checked", first.format)));
    }
    let mut keys = trusted.to_vec();
    for text in &first.introductions {
        let note: SignedNote = text.parse()?;
        if let Some(key) = introduced(&note, &keys).filter(|key| !keys.contains(key)) {
            keys.push(key);
        }
    }
    if let Some(held) = held {
        held.verify_any(&keys)?;
    }
    let held = held.map(|held| &held.checkpoint);

    let mut walk = Walk::default();
    let last: Last = loop {
        let text = lines.next()?.ok_or_else(|| lines.wrong("the export ends here"))?;
        match serde_json::from_slice::<EventLine>(&text) {
            Ok(event) if first.events => {
                walk.event(&event).map_err(|reason| lines.wrong(reason))?;
                if let Some(held) = held.filter(|held| held.size == walk.tree.size())
                    && held.root != walk.tree.root()
                {
                    return Err(ExportError::Rewritten { held: held.size });
                }
            }
            _ => break serde_json::from_slice(&text).map_err(|error| lines.wrong(error))?,
        }
    };
    if lines.next()?.is_some() {
        return Err(lines.wrong("nothing may follow the checkpoint"));
    }
    let checkpoint: SignedCheckpoint = last.checkpoint.parse()?;
    checkpoint.verify_any(&keys)?;
    let now = &checkpoint.checkpoint;
    if first.events && (now.size, now.root) != (walk.tree.size(), walk.tree.root()) {
        return Err(ExportError::OtherEvents);
    }
    if let Some(held) = held {
        if held.size > now.size {
            return Err(ExportError::Truncated { held: held.size, now: now.size });
        }
        // The events themselves are proof enough; without them, the hashes between the two roots are.
        if !first.events {
            if last.since != held.size && held.size != now.size {
                return Err(ExportError::NoProof { held: held.size });
            }
            let proof = last.consistency.iter().map(|hash| {
                let hash = BASE64.decode(hash).ok().and_then(|hash| Hash::try_from(hash).ok());
                hash.ok_or_else(|| lines.wrong("a hash of the proof is malformed"))
            });
            let proof: Vec<Hash> = if held.size == now.size {
                Vec::new()
            } else {
                proof.collect::<std::result::Result<_, _>>()?
            };
            if !is_beginning((held.size, &held.root), (now.size, &now.root), &proof) {
                return Err(ExportError::Rewritten { held: held.size });
            }
        }
    }
    Ok(Checked { events: walk.tree.size(), checkpoint, keys })
}

/// What is recomputed from the events of an export.
#[derive(Default)]
struct Walk {
    tree: Tree,
    /// The last hash of each tenant's chain.
    chains: HashMap<String, Hash>,
}

impl Walk {
    fn event(&mut self, event: &EventLine) -> std::result::Result<(), String> {
        if u64::try_from(event.position).ok() != Some(self.tree.size() + 1) {
            return Err(format!("position {} follows {}", event.position, self.tree.size()));
        }
        let payload = BASE64.decode(&event.payload).map_err(|_| "the payload is not base64".to_owned())?;
        let body = BodyParts {
            event_id: &event.event_id,
            tenant: &event.tenant,
            resource_type: &event.resource_type,
            id: &event.id,
            kind: &event.kind,
            schema_version: event.schema_version,
            actor: &event.actor,
            cause: &event.cause,
            key_id: event.key_id.as_deref(),
            payload: &payload,
        }
        .hash();
        let chain = self.chains.entry(event.tenant.clone()).or_insert([0; 32]);
        *chain = chain_hash(&chain[..], &body, event.position, event.version, event.at, &event.commit_id);
        self.tree.push(&chain[..]);
        Ok(())
    }
}

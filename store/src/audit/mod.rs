//! Signed checkpoints (D9): proof for outsiders that history was not rewritten.
//!
//! The hash chain shows that the journal fits itself. Whoever owns the database could still write the whole
//! of it anew. So the journal's Merkle tree ([`tree`]) is signed from time to time, and the signed
//! checkpoints ([`note`]) leave the house: an old one and the public key are enough to check any later
//! export ([`proof`]).
//!
//! The tree is no part of a commit: a step extends it from the events and signs, minutes later.

pub mod note;
pub mod proof;
pub mod tree;

use annals_domain::clock::Timestamp;
use annals_domain::ids::Position;
use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

use crate::Store;
use crate::backend::{Area, Row, sql};
use crate::error::{Result, StoreError};
use note::{Checkpoint, NoteError, SignedCheckpoint, VerifierKey};
use tree::Tree;

/// Leaves that are read at once.
pub(crate) const LEAVES_PER_STEP_MAX: usize = 10_000;
/// Keys that a log may have had.
const KEYS_MAX: usize = 1_000;

/// A key that signs or signed checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditKey {
    /// 1, 2, 3, …
    pub number: i64,
    /// What outsiders verify with.
    pub public: VerifierKey,
    /// With which statement its predecessor named it; none for the first.
    pub introduced: Option<String>,
    /// When it was made.
    pub made: Timestamp,
    /// When another one took over; none = it signs.
    pub retired: Option<Timestamp>,
}

fn aad(number: i64) -> String {
    format!("audit-key|{number}")
}

fn unfit(error: NoteError) -> StoreError {
    StoreError::corrupt("the audit log's key or checkpoint", error)
}

fn audit_key(row: &Row) -> Result<AuditKey> {
    Ok(AuditKey {
        number: row.int(0)?,
        public: VerifierKey::new(&row.text(1)?, &row.bytes(2)?).map_err(unfit)?,
        introduced: row.opt_text(3)?,
        made: Timestamp(row.int(4)?),
        retired: row.opt_int(5)?.map(Timestamp),
    })
}

const KEY_COLUMNS: &str = "k.number, k.origin, k.public, k.introduced, k.made, k.retired";

fn signed(row: &Row, column: usize) -> Result<SignedCheckpoint> {
    row.text(column)?.parse().map_err(unfit)
}

impl Store {
    /// Every key that ever signed checkpoints, the present one last. The first is made when it is asked
    /// for, with a name for the log that no other has.
    pub async fn audit_keys(&self) -> Result<Vec<AuditKey>> {
        let known = self.known_audit_keys().await?;
        if !known.is_empty() {
            return Ok(known);
        }
        let origin = format!("annals-log/{}", self.entropy().uuid_v7(self.now()).simple());
        let (key, sealed) = self.new_audit_key(1)?;
        let insert = sql("INSERT INTO keys.audit_key (number, origin, public, wrapped, made) \
             VALUES (1, $1, $2, $3, $4) ON CONFLICT (number) DO NOTHING")
        .bind(origin)
        .bind(&key.verifying_key().as_bytes()[..])
        .bind(sealed)
        .bind(self.now());
        // Another process may have been first: what is stored counts.
        self.backend().execute(Area::Keys, insert).await?;
        self.known_audit_keys().await
    }

    async fn known_audit_keys(&self) -> Result<Vec<AuditKey>> {
        let select = sql(format!("SELECT {KEY_COLUMNS} FROM keys.audit_key k ORDER BY k.number LIMIT $1"))
            .bind(KEYS_MAX);
        self.backend().fetch_all(Area::Keys, select).await?.iter().map(audit_key).collect()
    }

    fn new_audit_key(&self, number: i64) -> Result<(SigningKey, Vec<u8>)> {
        let mut seed = Zeroizing::new([0u8; 32]);
        self.entropy().fill(&mut *seed);
        let sealed = self.keys().seal_by_root(&aad(number), &*seed)?;
        Ok((SigningKey::from_bytes(&seed), sealed))
    }

    fn open_audit_key(&self, number: i64, wrapped: &[u8]) -> Result<SigningKey> {
        let seed = self.keys().open_by_root(&aad(number), wrapped)?;
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(
            seed.as_slice().try_into().map_err(|_| StoreError::Unsealable { what: aad(number) })?,
        );
        Ok(SigningKey::from_bytes(&seed))
    }

    /// Makes the next key. The present one signs a statement that names it, and is destroyed.
    ///
    /// # Errors
    /// The database fails, or the present key does not open.
    pub async fn rotate_audit_key(&self) -> Result<AuditKey> {
        self.audit_keys().await?;
        let mut tx = self.backend().begin_write(Area::Keys).await?;
        let select = sql("SELECT k.number, k.origin, k.wrapped FROM keys.audit_key k \
             WHERE k.retired IS NULL ORDER BY k.number DESC LIMIT 1 {for_update}");
        let missing = || StoreError::KeyMissing { key: "of the audit log".to_owned() };
        let row = tx.fetch_optional(select).await?.ok_or_else(missing)?;
        let (number, origin) = (row.int(0)?, row.text(1)?);
        let present = self.open_audit_key(number, &row.bytes(2)?)?;
        let (next, sealed) = self.new_audit_key(number + 1)?;
        let public = VerifierKey::new(&origin, next.verifying_key().as_bytes()).map_err(unfit)?;
        let statement = note::introduce(&public, &present).map_err(unfit)?.to_string();
        let now = self.now();
        let retire = sql(
            "UPDATE keys.audit_key SET wrapped = NULL, retired = $2 WHERE number = $1 AND retired IS NULL",
        )
        .bind(number)
        .bind(now);
        tx.execute(retire).await?;
        let insert = sql("INSERT INTO keys.audit_key (number, origin, public, wrapped, introduced, made) \
             VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(number + 1)
        .bind(origin)
        .bind(&next.verifying_key().as_bytes()[..])
        .bind(sealed)
        .bind(&statement)
        .bind(now);
        tx.execute(insert).await?;
        tx.commit().await?;
        Ok(AuditKey { number: number + 1, public, introduced: Some(statement), made: now, retired: None })
    }

    /// The checkpoints of sizes above `after`, oldest first, at most `max`.
    pub async fn checkpoints(&self, after: Position, max: usize) -> Result<Vec<SignedCheckpoint>> {
        let select =
            sql("SELECT c.note FROM journal.checkpoint c WHERE c.size > $1 ORDER BY c.size LIMIT $2")
                .bind(after)
                .bind(max);
        let rows = self.backend().fetch_all(Area::Journal, select).await?;
        rows.iter().map(|row| signed(row, 0)).collect()
    }

    /// The last checkpoint and when it was signed, if there is one.
    pub async fn last_checkpoint(&self) -> Result<Option<(SignedCheckpoint, Timestamp)>> {
        let select = sql("SELECT c.note, c.at FROM journal.checkpoint c ORDER BY c.size DESC LIMIT 1");
        let row = self.backend().fetch_optional(Area::Journal, select).await?;
        row.map(|row| Ok((signed(&row, 0)?, Timestamp(row.int(1)?)))).transpose()
    }

    /// The journal's tree as the last checkpoint has it; empty if there is none.
    ///
    /// # Errors
    /// The last checkpoint is not one of ours, or the journal ends before it: somebody changed history,
    /// and nothing more is signed until an operator has looked (`annals audit verify`).
    pub async fn audit_tree(&self) -> Result<Tree> {
        let select =
            sql("SELECT c.size, c.edge, c.note FROM journal.checkpoint c ORDER BY c.size DESC LIMIT 1");
        let Some(row) = self.backend().fetch_optional(Area::Journal, select).await? else {
            return Ok(Tree::default());
        };
        let corrupt = |why: String| StoreError::corrupt("the last checkpoint", why);
        let size = u64::try_from(row.int(0)?).unwrap_or(0);
        let note = signed(&row, 2)?;
        let tree = Tree::from_edge(size, &row.bytes(1)?);
        let tree = tree.filter(|tree| note.checkpoint.size == size && note.checkpoint.root == tree.root());
        let tree = tree.ok_or_else(|| corrupt("it is not that of the stored tree".to_owned()))?;
        let keys = self.audit_keys().await?;
        note.verify_any(keys.iter().map(|key| &key.public)).map_err(|error| corrupt(error.to_string()))?;
        let head = self.head().await?.position;
        if u64::try_from(head).unwrap_or(0) < size {
            return Err(corrupt(format!("it covers {size} events, the journal has {head}")));
        }
        Ok(tree)
    }

    /// Adds the next events to a tree, at most 10,000; returns how many there were.
    pub async fn extend_audit_tree(&self, tree: &mut Tree) -> Result<usize> {
        let leaves = self.leaves(tree.size(), LEAVES_PER_STEP_MAX).await?;
        for leaf in &leaves {
            tree.push(leaf);
        }
        Ok(leaves.len())
    }

    /// The chain hashes that follow the first `size`, in order.
    pub(crate) async fn leaves(&self, size: u64, max: usize) -> Result<Vec<Vec<u8>>> {
        let after = i64::try_from(size).unwrap_or(i64::MAX);
        let select = sql("SELECT e.position, e.chain_hash FROM journal.event e \
             WHERE e.position > $1 ORDER BY e.position LIMIT $2")
        .bind(after)
        .bind(max);
        let mut leaves = Vec::new();
        for (row, expected) in self.backend().fetch_all(Area::Journal, select).await?.iter().zip(after + 1..)
        {
            if row.int(0)? != expected {
                return Err(StoreError::corrupt(format!("position {expected}"), "it is missing"));
            }
            leaves.push(row.bytes(1)?);
        }
        Ok(leaves)
    }

    /// Signs a tree with the present key and keeps the checkpoint. Signing the same twice is no harm.
    pub async fn sign_checkpoint(&self, tree: &Tree) -> Result<SignedCheckpoint> {
        self.audit_keys().await?;
        let select = sql("SELECT k.number, k.origin, k.wrapped FROM keys.audit_key k \
             WHERE k.retired IS NULL ORDER BY k.number DESC LIMIT 1");
        let missing = || StoreError::KeyMissing { key: "of the audit log".to_owned() };
        let row = self.backend().fetch_optional(Area::Keys, select).await?.ok_or_else(missing)?;
        let key = self.open_audit_key(row.int(0)?, &row.bytes(2)?)?;
        let checkpoint = Checkpoint { origin: row.text(1)?, size: tree.size(), root: tree.root() };
        let note = SignedCheckpoint::sign(checkpoint, &key).map_err(unfit)?;
        let upsert = sql("INSERT INTO journal.checkpoint (size, edge, note, at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (size) DO UPDATE SET edge = excluded.edge, note = excluded.note, at = excluded.at")
        .bind(i64::try_from(tree.size()).unwrap_or(i64::MAX))
        .bind(tree.edge())
        .bind(note.to_string())
        .bind(self.now());
        self.backend().execute(Area::Journal, upsert).await?;
        metrics::gauge!("annals_audit_checkpoint_position").set(tree.size() as f64);
        Ok(note)
    }

    /// Signs the journal as it is now, however far the last checkpoint lies back.
    pub async fn checkpoint_now(&self) -> Result<SignedCheckpoint> {
        let mut tree = self.audit_tree().await?;
        while self.extend_audit_tree(&mut tree).await? == LEAVES_PER_STEP_MAX {}
        self.sign_checkpoint(&tree).await
    }
}

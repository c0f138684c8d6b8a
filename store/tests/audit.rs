//! Signed checkpoints (D9): whoever owns the database and every key can write history anew so that it fits
//! itself. An outsider with an old checkpoint and the public key finds out. On SQLite and on PostgreSQL.

mod common;

use std::collections::{BTreeMap, HashMap};

use annals_domain::event::Actor;
use annals_store::audit::note::{NoteError, SignedCheckpoint, VerifierKey};
use annals_store::audit::proof::{Checked, ExportError, check_export};
use annals_store::backend::{Area, Backend, sql};
use sha2::{Digest, Sha256};

use common::{Fixture, acme, contract, group, user};

contract! {
    an_honest_log_is_proven_with_and_without_its_events
    truncation_is_found
    replacement_is_found
    reordering_is_found
    an_edit_is_found
    a_checkpoint_that_was_altered_is_found
    an_erasure_changes_no_checkpoint
    a_new_key_is_trusted_because_the_old_one_names_it
    the_secret_key_is_in_no_readable_column
}

/// One event as stored.
#[derive(Clone)]
struct Row {
    position: i64,
    event_id: String,
    commit_id: String,
    tenant: String,
    resource_type: String,
    id: String,
    version: i64,
    kind: String,
    schema_version: i64,
    at: i64,
    actor: String,
    cause: String,
    key_id: Option<String>,
    payload: Vec<u8>,
}

/// The hash of docs/audit.md, written a second time.
fn hash(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in [&[domain.as_bytes()], parts].concat() {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

impl Row {
    fn body_hash(&self) -> [u8; 32] {
        let schema_version = u32::try_from(self.schema_version).unwrap().to_be_bytes();
        let key_id = self.key_id.as_deref().unwrap_or_default();
        hash(
            "annals body 1",
            &[
                self.event_id.as_bytes(),
                self.tenant.as_bytes(),
                self.resource_type.as_bytes(),
                self.id.as_bytes(),
                self.kind.as_bytes(),
                &schema_version,
                self.actor.as_bytes(),
                self.cause.as_bytes(),
                key_id.as_bytes(),
                &self.payload,
            ],
        )
    }

    fn chain_hash(&self, previous: &[u8], body: &[u8]) -> [u8; 32] {
        hash(
            "annals chain 1",
            &[
                previous,
                body,
                &self.position.to_be_bytes(),
                &self.version.to_be_bytes(),
                &self.at.to_be_bytes(),
                self.commit_id.as_bytes(),
            ],
        )
    }
}

/// Writes the whole journal anew with other events: every hash, head and state row's position fits. The
/// signed checkpoints go as well if the attacker thinks of them.
async fn forge(f: &Fixture, forget_checkpoints: bool, attack: impl FnOnce(&mut Vec<Row>)) {
    let backend = Backend::connect(&f.database).await.unwrap();
    let mut tx = backend.begin_write(Area::Journal).await.unwrap();
    let select = sql("SELECT e.position, e.event_id, e.commit_id, e.tenant, e.resource_type, e.id, \
         e.version, e.kind, e.schema_version, e.at, e.actor, e.cause, e.key_id, e.payload \
         FROM journal.event e ORDER BY e.position");
    let mut events = Vec::new();
    for row in tx.fetch_all(select).await.unwrap() {
        events.push(Row {
            position: row.int(0).unwrap(),
            event_id: row.text(1).unwrap(),
            commit_id: row.text(2).unwrap(),
            tenant: row.text(3).unwrap(),
            resource_type: row.text(4).unwrap(),
            id: row.text(5).unwrap(),
            version: row.int(6).unwrap(),
            kind: row.text(7).unwrap(),
            schema_version: row.int(8).unwrap(),
            at: row.int(9).unwrap(),
            actor: row.text(10).unwrap(),
            cause: row.text(11).unwrap(),
            key_id: row.opt_text(12).unwrap(),
            payload: row.bytes(13).unwrap(),
        });
    }
    attack(&mut events);
    for table in ["event", "batch", "tenant_head"] {
        tx.execute(sql(format!("DELETE FROM journal.{table}"))).await.unwrap();
    }
    if forget_checkpoints {
        tx.execute(sql("DELETE FROM journal.checkpoint")).await.unwrap();
    }
    let (mut batch, mut at) = ([0u8; 32], 0);
    let mut tenants: BTreeMap<String, (i64, i64, [u8; 32])> = BTreeMap::new();
    let mut entities: HashMap<String, (i64, i64, i64)> = HashMap::new();
    for (position, event) in (1..).zip(&mut events) {
        event.position = position;
        at = event.at;
        let head = tenants.entry(event.tenant.clone()).or_insert((0, 0, [0; 32]));
        let body = event.body_hash();
        let chain = event.chain_hash(&head.2, &body);
        let entity = entities.entry(event.id.clone()).or_insert((0, at, 0));
        let insert = sql("INSERT INTO journal.event (position, event_id, commit_id, tenant, resource_type, \
             id, version, kind, schema_version, at, actor, cause, key_id, payload, body_hash, chain_hash, \
             previous_of_entity, previous_of_tenant) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)")
        .bind(position)
        .bind(&event.event_id)
        .bind(&event.commit_id)
        .bind(&event.tenant)
        .bind(&event.resource_type)
        .bind(&event.id)
        .bind(event.version)
        .bind(&event.kind)
        .bind(event.schema_version)
        .bind(event.at)
        .bind(&event.actor)
        .bind(&event.cause)
        .bind(event.key_id.clone())
        .bind(event.payload.clone())
        .bind(body.to_vec())
        .bind(chain.to_vec())
        .bind(entity.0)
        .bind(head.0);
        tx.execute(insert).await.unwrap();
        *entity = (position, entity.1, at);
        *head = (position, head.1 + 1, chain);
        // A batch of one: the root of a single leaf.
        let root = hash("annals leaf 1", &[&chain]);
        let bounds = position.to_be_bytes();
        batch = hash("annals batch 1", &[&batch, &bounds, &bounds, &root]);
        let insert = sql("INSERT INTO journal.batch (last_position, first_position, merkle_root, hash) \
             VALUES ($1, $1, $2, $3)")
        .bind(position)
        .bind(root.to_vec())
        .bind(batch.to_vec());
        tx.execute(insert).await.unwrap();
    }
    for (tenant, (position, count, chain)) in &tenants {
        let insert =
            sql("INSERT INTO journal.tenant_head (tenant, position, events, chain_hash, definition) \
             VALUES ($1, $2, $3, $4, 0)")
            .bind(tenant)
            .bind(*position)
            .bind(*count)
            .bind(chain.to_vec());
        tx.execute(insert).await.unwrap();
    }
    let update = sql("UPDATE journal.counter SET position = $1, at = $2, batch_hash = $3 WHERE id = 1")
        .bind(events.len())
        .bind(at)
        .bind(batch.to_vec());
    tx.execute(update).await.unwrap();
    for row in tx.fetch_all(sql("SELECT s.id FROM journal.state s")).await.unwrap() {
        let id = row.text(0).unwrap();
        let Some((position, created, modified)) = entities.get(&id) else {
            for statement in ["state WHERE id", "lookup WHERE owner", "link WHERE from_id"] {
                tx.execute(sql(format!("DELETE FROM journal.{statement} = $1")).bind(&id)).await.unwrap();
            }
            continue;
        };
        let update = sql("UPDATE journal.state SET position = $1, created = $2, modified = $3 WHERE id = $4")
            .bind(*position)
            .bind(*created)
            .bind(*modified)
            .bind(&id);
        tx.execute(update).await.unwrap();
    }
    tx.commit().await.unwrap();
    backend.close().await;
}

/// What an outsider keeps.
struct Outsider {
    key: VerifierKey,
    held: SignedCheckpoint,
}

impl Outsider {
    /// Has a few people and a group in the journal, and takes a checkpoint of it.
    async fn of(f: &Fixture) -> Outsider {
        for n in 0..4 {
            user(&f.store, &format!("u{n}")).await;
            f.clock.advance(1_000);
        }
        group(&f.store, "crew", &[]).await;
        let held = f.store.checkpoint_now().await.unwrap().to_string().parse().unwrap();
        let key = f.store.audit_keys().await.unwrap()[0].public.to_string().parse().unwrap();
        Outsider { key, held }
    }

    async fn check(&self, f: &Fixture, events: bool) -> Result<Checked, ExportError> {
        let mut export = Vec::new();
        // A cut log cannot prove anything about what it had.
        let since = self.held.checkpoint.size.min(f.store.head().await.unwrap().position as u64);
        f.store.audit_export(since, events, &mut export).await.unwrap();
        check_export(&export[..], std::slice::from_ref(&self.key), Some(&self.held))
    }

    /// The attack leaves a journal that fits itself, and yet is found: from outside with and without the
    /// events, and by the house itself with the checkpoint from outside.
    async fn finds(&self, f: &Fixture, expected: fn(&ExportError) -> bool) {
        let seen = f.store.verify().await.unwrap();
        assert_eq!(seen.findings, [], "the forgery is a good one");
        for events in [false, true] {
            let error = self.check(f, events).await.unwrap_err();
            assert!(expected(&error), "with events: {events}: {error:?}");
        }
        let seen = f.store.verify_with(std::slice::from_ref(&self.held)).await.unwrap();
        assert!(seen.findings.iter().all(|finding| finding.place.starts_with("checkpoint")), "{seen:?}");
        assert!(!seen.findings.is_empty());
    }
}

fn rewritten(error: &ExportError) -> bool {
    matches!(error, ExportError::Rewritten { held: 6 })
}

async fn an_honest_log_is_proven_with_and_without_its_events(f: Fixture) {
    let outsider = Outsider::of(&f).await;
    for n in 0..3 {
        let checked = outsider.check(&f, false).await.unwrap();
        assert_eq!((checked.checkpoint.checkpoint.size, checked.events), (6 + n, 0));
        let checked = outsider.check(&f, true).await.unwrap();
        assert_eq!((checked.checkpoint.checkpoint.size, checked.events), (6 + n, 6 + n));
        user(&f.store, &format!("more{n}")).await;
    }
    let seen = f.store.verify_with(std::slice::from_ref(&outsider.held)).await.unwrap();
    assert_eq!((seen.findings, seen.checkpoints), (vec![], 4));

    // An export that proves something else is no proof, and one in which anything was altered is none.
    let mut export = Vec::new();
    f.store.audit_export(3, false, &mut export).await.unwrap();
    let keys = [outsider.key.clone()];
    let other = check_export(&export[..], &keys, Some(&outsider.held)).unwrap_err();
    assert!(matches!(other, ExportError::NoProof { held: 6 }), "{other:?}");
    let mut export = Vec::new();
    f.store.audit_export(6, true, &mut export).await.unwrap();
    let text = String::from_utf8(export).unwrap();
    let without_one: String = text
        .lines()
        .filter(|line| !line.contains("\"position\":9,"))
        .map(|line| format!("{line}\n"))
        .collect();
    for altered in [
        text.replacen("\\\"kind\\\":\\\"system\\\"", "\\\"kind\\\":\\\"operator\\\"", 1),
        text.replacen("\"version\":1", "\"version\":2", 1),
        text.replacen("\\n9\\n", "\\n8\\n", 1),
        without_one,
        text.lines().take(4).map(|line| format!("{line}\n")).collect(),
        format!("{text}{{}}\n"),
    ] {
        assert_ne!(altered, text);
        assert!(check_export(altered.as_bytes(), &keys, None).is_err(), "{altered}");
    }
    let stranger = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
    let error = check_export(text.as_bytes(), &[stranger], None).unwrap_err();
    assert!(matches!(error, ExportError::Note(NoteError::Unsigned(_))), "{error:?}");
}

async fn truncation_is_found(f: Fixture) {
    let outsider = Outsider::of(&f).await;
    forge(&f, true, |events| events.truncate(4)).await;
    outsider.finds(&f, |error| matches!(error, ExportError::Truncated { held: 6, now: 4 })).await;
    // Filled up again with other events, it has the size but not the root.
    for n in 0..3 {
        user(&f.store, &format!("other{n}")).await;
    }
    outsider.finds(&f, rewritten).await;
}

async fn replacement_is_found(f: Fixture) {
    let outsider = Outsider::of(&f).await;
    // The second person never came; somebody else did. Both are created the same way, by other requests.
    user(&f.store, "u9").await;
    forge(&f, true, |events| {
        let other = events.pop().unwrap();
        let at = events[2].at;
        events[2] = Row { at, ..other };
    })
    .await;
    outsider.finds(&f, rewritten).await;
}

async fn reordering_is_found(f: Fixture) {
    let outsider = Outsider::of(&f).await;
    forge(&f, true, |events| {
        let (first, second) = (events[2].at, events[3].at);
        events.swap(2, 3);
        (events[2].at, events[3].at) = (first, second);
    })
    .await;
    outsider.finds(&f, rewritten).await;
}

async fn an_edit_is_found(f: Fixture) {
    let outsider = Outsider::of(&f).await;
    forge(&f, true, |events| events[2].actor = r#"{"kind":"operator","name":"mallory"}"#.to_owned()).await;
    outsider.finds(&f, rewritten).await;
}

async fn a_checkpoint_that_was_altered_is_found(f: Fixture) {
    let outsider = Outsider::of(&f).await;
    // The attacker leaves the stored checkpoint: the house itself finds it.
    forge(&f, false, |events| events[2].actor = r#"{"kind":"operator","name":"mallory"}"#.to_owned()).await;
    let places = |seen: annals_store::Verification| -> Vec<String> {
        seen.findings.into_iter().map(|finding| finding.place).collect()
    };
    assert_eq!(places(f.store.verify().await.unwrap()), ["checkpoint 6"]);
    // Or writes another text into it: the signature does not fit, and nothing more is signed.
    let backend = Backend::connect(&f.database).await.unwrap();
    let text = outsider.held.to_string().replace("\n6\n", "\n5\n");
    let update = sql("UPDATE journal.checkpoint SET note = $1").bind(text);
    backend.execute(Area::Journal, update).await.unwrap();
    backend.close().await;
    assert_eq!(places(f.store.verify().await.unwrap()), ["checkpoint 5", "checkpoint 5"]);
    let error = f.store.checkpoint_now().await.unwrap_err().to_string();
    assert!(error.contains("the last checkpoint"), "{error}");
}

async fn an_erasure_changes_no_checkpoint(f: Fixture) {
    let outsider = Outsider::of(&f).await;
    let ines = user(&f.store, "ines").await;
    let held = f.store.checkpoint_now().await.unwrap();
    f.store.erase(&acme(), &ines, Actor::system("test")).await.unwrap();
    let outsider = Outsider { held, ..outsider };
    let checked = outsider.check(&f, true).await.unwrap();
    assert_eq!(checked.events, 9);
    assert_eq!(f.store.verify_with(&[outsider.held]).await.unwrap().findings, []);
}

async fn a_new_key_is_trusted_because_the_old_one_names_it(f: Fixture) {
    let outsider = Outsider::of(&f).await;
    let second = f.store.rotate_audit_key().await.unwrap();
    let third = f.another().await.rotate_audit_key().await.unwrap();
    user(&f.store, "after").await;
    let checked = outsider.check(&f, true).await.unwrap();
    assert_eq!(checked.keys, [outsider.key.clone(), second.public.clone(), third.public.clone()]);
    assert_eq!(checked.checkpoint.verify(&third.public), Ok(()));
    assert!(checked.checkpoint.verify(&outsider.key).is_err(), "the old key signs no more");
    // Who knows the newest key only cannot tell what older ones signed.
    let mut export = Vec::new();
    f.store.audit_export(6, true, &mut export).await.unwrap();
    let newest = [third.public];
    assert!(check_export(&export[..], &newest, None).is_ok());
    let error = check_export(&export[..], &newest, Some(&outsider.held)).unwrap_err();
    assert!(matches!(error, ExportError::Note(NoteError::Unsigned(_))), "{error:?}");
    assert_eq!(f.store.verify().await.unwrap().findings, []);
    let keys = f.store.audit_keys().await.unwrap();
    assert_eq!(keys.iter().map(|key| key.retired.is_some()).collect::<Vec<_>>(), [true, true, false]);
}

async fn the_secret_key_is_in_no_readable_column(f: Fixture) {
    Outsider::of(&f).await;
    f.store.rotate_audit_key().await.unwrap();
    let backend = Backend::connect(&f.database).await.unwrap();
    let select = sql("SELECT k.wrapped FROM keys.audit_key k ORDER BY k.number");
    let rows = backend.fetch_all(Area::Keys, select).await.unwrap();
    assert_eq!(rows[0].opt_bytes(0).unwrap(), None, "a retired key is destroyed");
    // Nonce, 32 bytes, tag: sealed by the root key.
    assert_eq!(rows[1].bytes(0).unwrap().len(), 12 + 32 + 16);
    backend.close().await;
}

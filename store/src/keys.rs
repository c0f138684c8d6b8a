//! Keys and what they seal (D9).
//!
//! root key → tenant key → key of a person. A person's key seals the payloads of their events and their
//! state document; look-up values are keyed hashes. Destroying a key erases the person everywhere at
//! once; its tombstone stays, so that "erased" (readers skip) is never mistaken for "missing" (readers
//! stop). Keys are made in durable blocks ahead of need: no commit spans two databases or waits.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use annals_domain::clock::{Clock, Entropy, Timestamp};
use annals_domain::ids::TenantId;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::backend::{Area, Backend, Col, Rows, sql};
use crate::error::{Result, StoreError};

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
/// Keys made at once for a tenant that needs few.
const BLOCK_KEYS_MIN: usize = 256;
/// Keys made at once for a tenant that is loaded in bulk. A crash wastes as many at most.
const BLOCK_KEYS_MAX: usize = 4_096;
/// A block that is used up sooner is followed by one of twice its size.
const BLOCK_LASTS_MS: i64 = 2_000;
/// How long a destroyed key may still be found in another process's memory.
const CACHE_TTL: Duration = Duration::from_secs(30);
const CACHE_KEYS_MAX: u64 = 100_000;

/// 256 bits that are wiped when dropped.
#[derive(Clone)]
pub(crate) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl Key {
    fn random(entropy: &dyn Entropy) -> Key {
        let mut bytes = Zeroizing::new([0u8; KEY_BYTES]);
        entropy.fill(&mut *bytes);
        Key(bytes)
    }

    fn from_slice(bytes: &[u8]) -> Option<Key> {
        <[u8; KEY_BYTES]>::try_from(bytes).ok().map(|b| Key(Zeroizing::new(b)))
    }

    fn derive(&self, purpose: &str) -> Key {
        Key(Zeroizing::new(mac(&self.0[..], &[purpose.as_bytes()])))
    }

    /// Seals: nonce, then ciphertext with its tag. `aad` binds it to its place.
    pub(crate) fn seal(&self, aad: &str, plain: &[u8], entropy: &dyn Entropy) -> Result<Vec<u8>> {
        let mut nonce = [0u8; NONCE_BYTES];
        entropy.fill(&mut nonce);
        let sealed = Aes256Gcm::new(self.0[..].into())
            .encrypt(Nonce::from_slice(&nonce), Payload { msg: plain, aad: aad.as_bytes() })
            .map_err(|_| StoreError::Unsealable { what: "a value to seal".to_owned() })?;
        let mut out = Vec::with_capacity(NONCE_BYTES + sealed.len());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens what [`Key::seal`] made with the same `aad`.
    pub(crate) fn open(&self, aad: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        let fail = || StoreError::Unsealable { what: aad.to_owned() };
        if sealed.len() < NONCE_BYTES {
            return Err(fail());
        }
        let (nonce, sealed) = sealed.split_at(NONCE_BYTES);
        Aes256Gcm::new(self.0[..].into())
            .decrypt(Nonce::from_slice(nonce), Payload { msg: sealed, aad: aad.as_bytes() })
            .map_err(|_| fail())
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length, so this cannot fail; a zero hash would only ever find nothing.
    let Ok(mut mac) = <Hmac<Sha256> as Mac>::new_from_slice(key) else { return [0; 32] };
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// The key that wraps every tenant's key. It comes from a file or the environment, never from the
/// database.
#[derive(Clone)]
pub struct RootKey(Key);

/// A root key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootKeyError {
    /// Not 64 hexadecimal digits.
    #[error("the root key must be 64 hexadecimal digits (32 bytes)")]
    Form,
    /// The file cannot be read or written.
    #[error("the root key's file {path} cannot be used")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl RootKey {
    /// From 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> RootKey {
        RootKey(Key(Zeroizing::new(bytes)))
    }

    /// From 64 hexadecimal digits; blanks around them are ignored.
    pub fn from_hex(text: &str) -> std::result::Result<RootKey, RootKeyError> {
        let bytes = Zeroizing::new(hex::decode(text.trim()).map_err(|_| RootKeyError::Form)?);
        Key::from_slice(&bytes).map(RootKey).ok_or(RootKeyError::Form)
    }

    /// Reads the key's file.
    pub fn read(path: &Path) -> std::result::Result<RootKey, RootKeyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RootKeyError::File { path: path.to_owned(), source })?;
        RootKey::from_hex(&Zeroizing::new(text))
    }

    /// Reads the key's file, or makes it with a new key, readable by its owner alone.
    pub fn read_or_create(path: &Path, entropy: &dyn Entropy) -> std::result::Result<RootKey, RootKeyError> {
        use std::io::Write as _;
        let file = |source| RootKeyError::File { path: path.to_owned(), source };
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.open(path) {
            Ok(mut out) => {
                let key = Key::random(entropy);
                let text = Zeroizing::new(hex::encode(&key.0[..]));
                out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(file)?;
                Ok(RootKey(key))
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => RootKey::read(path),
            Err(error) => Err(file(error)),
        }
    }
}

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootKey(…)")
    }
}

/// The keys derived from a tenant's key.
#[derive(Clone)]
pub(crate) struct TenantKeys {
    wrap: Key,
    lookup: Key,
    secret: Key,
    cursor: Key,
}

impl TenantKeys {
    /// The keyed hash under which a look-up value is stored.
    pub(crate) fn lookup_hash(&self, kind: &str, value: &str) -> Vec<u8> {
        mac(&self.lookup.0[..], &[kind.as_bytes(), value.as_bytes()]).to_vec()
    }

    /// A keyed hash of a request, to tell whether an idempotency key comes back with another body.
    pub(crate) fn fingerprint(&self, request: &[u8]) -> Vec<u8> {
        mac(&self.lookup.0[..], &[b"request", request]).to_vec()
    }

    /// The key of cursors, which every process derives alike (CU-016).
    pub(crate) fn cursor(&self) -> &Key {
        &self.cursor
    }

    /// The key of secrets that belong to no person.
    pub(crate) fn secret(&self) -> &Key {
        &self.secret
    }
}

/// A person's key with its id.
#[derive(Clone)]
pub(crate) struct SubjectKey {
    pub(crate) id: String,
    pub(crate) key: Key,
}

struct Block {
    keys: Vec<SubjectKey>,
    refilling: bool,
    /// Size of the last block made.
    size: usize,
    made: Timestamp,
}

impl Default for Block {
    fn default() -> Self {
        Block { keys: Vec::new(), refilling: false, size: BLOCK_KEYS_MIN, made: Timestamp::default() }
    }
}

impl Block {
    /// With fewer keys left, the next block is made in the background.
    fn is_low(&self) -> bool {
        self.keys.len() < self.size / 2
    }

    fn next_size(&self, now: Timestamp) -> usize {
        let fast = now.0 - self.made.0 < BLOCK_LASTS_MS;
        if fast { (self.size * 2).min(BLOCK_KEYS_MAX) } else { BLOCK_KEYS_MIN }
    }

    fn fill(&mut self, made: Vec<SubjectKey>, now: Timestamp) {
        self.size = made.len();
        self.made = now;
        self.keys.extend(made);
    }
}

struct Shared {
    backend: Arc<Backend>,
    root: RootKey,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    tenants: moka::sync::Cache<TenantId, Arc<TenantKeys>>,
    /// `None` is a tombstone.
    subjects: moka::sync::Cache<String, Option<Key>>,
    blocks: Mutex<HashMap<TenantId, Block>>,
    /// Held while a block is made that someone waits for: the others then find its keys.
    making: tokio::sync::Mutex<()>,
}

/// The key store of one process.
#[derive(Clone)]
pub(crate) struct Keys {
    shared: Arc<Shared>,
}

impl Keys {
    pub(crate) fn new(
        backend: Arc<Backend>,
        root: RootKey,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Keys {
        Keys {
            shared: Arc::new(Shared {
                backend,
                root,
                clock,
                entropy,
                tenants: moka::sync::Cache::new(10_000),
                subjects: moka::sync::Cache::builder()
                    .max_capacity(CACHE_KEYS_MAX)
                    .time_to_live(CACHE_TTL)
                    .build(),
                blocks: Mutex::new(HashMap::new()),
                making: tokio::sync::Mutex::new(()),
            }),
        }
    }

    /// The tenant's keys, made on first use.
    pub(crate) async fn tenant(&self, tenant: &TenantId) -> Result<Arc<TenantKeys>> {
        if let Some(keys) = self.shared.tenants.get(tenant) {
            return Ok(keys);
        }
        let aad = format!("tenant-key|{tenant}");
        let shared = &self.shared;
        let select = || sql("SELECT wrapped FROM keys.tenant_key WHERE tenant = $1").bind(tenant);
        let wrapped = match shared.backend.fetch_optional(Area::Keys, select()).await? {
            Some(row) => row.bytes(0)?,
            None => {
                let fresh = Key::random(&*shared.entropy);
                let wrapped = shared.root.0.seal(&aad, &fresh.0[..], &*shared.entropy)?;
                let insert = sql("INSERT INTO keys.tenant_key (tenant, wrapped) VALUES ($1, $2) \
                     ON CONFLICT (tenant) DO NOTHING")
                .bind(tenant)
                .bind(wrapped);
                shared.backend.execute(Area::Keys, insert).await?;
                // Another process may have been first: what is stored counts.
                match shared.backend.fetch_optional(Area::Keys, select()).await? {
                    Some(row) => row.bytes(0)?,
                    None => return Err(StoreError::KeyMissing { key: aad }),
                }
            }
        };
        let plain = Zeroizing::new(shared.root.0.open(&aad, &wrapped)?);
        let key = Key::from_slice(&plain).ok_or_else(|| StoreError::Unsealable { what: aad })?;
        let keys = Arc::new(TenantKeys {
            wrap: key.derive("wrap"),
            lookup: key.derive("lookup"),
            secret: key.derive("secret"),
            cursor: key.derive("cursor"),
        });
        shared.tenants.insert(tenant.clone(), keys.clone());
        Ok(keys)
    }

    /// Seals something of the installation itself with the root key.
    pub(crate) fn seal_by_root(&self, aad: &str, plain: &[u8]) -> Result<Vec<u8>> {
        self.shared.root.0.seal(aad, plain, &*self.shared.entropy)
    }

    /// Opens what [`Keys::seal_by_root`] sealed.
    pub(crate) fn open_by_root(&self, aad: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        self.shared.root.0.open(aad, sealed).map(Zeroizing::new)
    }

    /// A key for a new person. It is durable already.
    pub(crate) async fn take(&self, tenant: &TenantId) -> Result<SubjectKey> {
        if let Some(key) = self.take_made(tenant) {
            return Ok(key);
        }
        let _making = self.shared.making.lock().await;
        if let Some(key) = self.take_made(tenant) {
            return Ok(key);
        }
        self.refill(tenant).await?;
        self.take_made(tenant).ok_or_else(|| StoreError::KeyMissing { key: "new".to_owned() })
    }

    /// Takes a key that is there; begins to make more when few are left.
    fn take_made(&self, tenant: &TenantId) -> Option<SubjectKey> {
        let (taken, refill) = {
            let mut blocks = lock(&self.shared.blocks);
            let block = blocks.entry(tenant.clone()).or_default();
            let taken = block.keys.pop();
            let refill = taken.is_some() && block.is_low() && !block.refilling;
            block.refilling |= refill;
            (taken, refill)
        };
        if refill {
            let (keys, tenant) = (self.clone(), tenant.clone());
            tokio::spawn(async move {
                if let Err(error) = keys.refill(&tenant).await {
                    tracing::warn!(%error, "making keys ahead of need failed");
                }
                lock(&keys.shared.blocks).entry(tenant).or_default().refilling = false;
            });
        }
        taken
    }

    async fn refill(&self, tenant: &TenantId) -> Result<()> {
        let now = self.shared.clock.now();
        let size = lock(&self.shared.blocks).entry(tenant.clone()).or_default().next_size(now);
        let made = self.make_block(tenant, size).await?;
        lock(&self.shared.blocks).entry(tenant.clone()).or_default().fill(made, now);
        Ok(())
    }

    async fn make_block(&self, tenant: &TenantId, size: usize) -> Result<Vec<SubjectKey>> {
        let shared = &self.shared;
        let tenant_keys = self.tenant(tenant).await?;
        let now = shared.clock.now();
        let mut made = Vec::with_capacity(size);
        let mut rows = Rows::new(&[
            ("key_id", Col::Text),
            ("tenant", Col::Text),
            ("wrapped", Col::Bytes),
            ("made", Col::Int),
        ]);
        for _ in 0..size {
            let key = SubjectKey {
                id: shared.entropy.uuid_v7(now).hyphenated().to_string(),
                key: Key::random(&*shared.entropy),
            };
            let wrapped =
                tenant_keys.wrap.seal(&wrap_aad(tenant, &key.id), &key.key.0[..], &*shared.entropy)?;
            rows.push(vec![(&key.id).into(), tenant.into(), wrapped.into(), now.into()]);
            made.push(key);
        }
        let insert = sql("INSERT INTO keys.subject_key (key_id, tenant, wrapped, made) \
             SELECT r.key_id, r.tenant, r.wrapped, r.made FROM {rows}")
        .rows(rows);
        shared.backend.execute(Area::Keys, insert).await?;
        for key in &made {
            shared.subjects.insert(key.id.clone(), Some(key.key.clone()));
        }
        Ok(made)
    }

    /// The keys of these ids; `None` where it was destroyed.
    ///
    /// # Errors
    /// [`StoreError::KeyMissing`] if an id was never made: that is loss, not erasure.
    pub(crate) async fn subjects(
        &self,
        wanted: impl IntoIterator<Item = (&TenantId, &str)>,
    ) -> Result<HashMap<String, Option<Key>>> {
        let mut found = HashMap::new();
        let mut rows = Rows::new(&[("key_id", Col::Text)]);
        let mut tenants = HashMap::new();
        for (tenant, id) in wanted {
            if found.contains_key(id) || tenants.contains_key(id) {
                continue;
            }
            match self.shared.subjects.get(id) {
                Some(key) => drop(found.insert(id.to_owned(), key)),
                None => {
                    tenants.insert(id.to_owned(), tenant.clone());
                    rows.push(vec![id.into()]);
                }
            }
        }
        if rows.is_empty() {
            return Ok(found);
        }
        let select = sql("SELECT k.key_id, k.wrapped FROM {rows} CROSS JOIN keys.subject_key k \
             WHERE k.key_id = r.key_id")
        .rows(rows);
        for row in self.shared.backend.fetch_all(Area::Keys, select).await? {
            let id = row.text(0)?;
            let Some(tenant) = tenants.remove(&id) else { continue };
            let key = match row.opt_bytes(1)? {
                None => None,
                Some(wrapped) => {
                    let aad = wrap_aad(&tenant, &id);
                    let plain = Zeroizing::new(self.tenant(&tenant).await?.wrap.open(&aad, &wrapped)?);
                    Some(Key::from_slice(&plain).ok_or(StoreError::Unsealable { what: aad })?)
                }
            };
            self.shared.subjects.insert(id.clone(), key.clone());
            found.insert(id, key);
        }
        match tenants.into_keys().next() {
            Some(key) => Err(StoreError::KeyMissing { key }),
            None => Ok(found),
        }
    }

    /// The key of one id; `None` if it was destroyed.
    pub(crate) async fn subject(&self, tenant: &TenantId, id: &str) -> Result<Option<SubjectKey>> {
        let found = self.subjects([(tenant, id)]).await?;
        Ok(found.into_iter().next().and_then(|(id, key)| key.map(|key| SubjectKey { id, key })))
    }

    /// Destroys a key for good and leaves its tombstone. Destroying it twice is no error.
    pub(crate) async fn destroy(&self, tenant: &TenantId, id: &str) -> Result<()> {
        let update = sql("UPDATE keys.subject_key SET wrapped = NULL, destroyed = $3 \
             WHERE key_id = $1 AND tenant = $2 AND wrapped IS NOT NULL")
        .bind(id)
        .bind(tenant)
        .bind(self.shared.clock.now());
        self.shared.backend.execute(Area::Keys, update).await?;
        self.shared.subjects.insert(id.to_owned(), None);
        Ok(())
    }
}

fn wrap_aad(tenant: &TenantId, id: &str) -> String {
    format!("subject-key|{tenant}|{id}")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic while holding the lock leaves only a list of unused keys behind: still fit for use.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u8);
    impl Entropy for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn a_sealed_value_opens_only_in_its_place() {
        let key = Key::random(&Fixed(7));
        let sealed = key.seal("acme|u1", b"Ines", &Fixed(9)).unwrap();
        assert_eq!(key.open("acme|u1", &sealed).unwrap(), b"Ines");
        assert!(key.open("acme|u2", &sealed).is_err(), "another place");
        assert!(Key::random(&Fixed(8)).open("acme|u1", &sealed).is_err(), "another key");
        let mut tampered = sealed.clone();
        *tampered.last_mut().unwrap() ^= 1;
        assert!(key.open("acme|u1", &tampered).is_err(), "tampered with");
        assert!(key.open("acme|u1", &sealed[..5]).is_err(), "cut short");
    }

    #[test]
    fn a_root_key_is_64_hex_digits() {
        assert!(RootKey::from_hex(&"ab".repeat(32)).is_ok());
        assert!(RootKey::from_hex(&format!("{}\n", "ab".repeat(32))).is_ok());
        for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(RootKey::from_hex(bad).is_err(), "{bad}");
        }
    }
}

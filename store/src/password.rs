//! Passwords: hashed with argon2id, compared in constant time, never read back (US-003, SE-009).

use std::sync::OnceLock;

use annals_domain::ids::{ResourceId, TenantId};
use annals_domain::scim::fold::{prepare_password, prepare_username};
use annals_domain::scim::patch::PasswordChange;
use annals_domain::view::LookupKind;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::Store;
use crate::backend::{Area, sql};
use crate::error::{Result, StoreError};
use crate::journal::read::{StateRow, secret_aad};

/// Most passwords hashed at once; argon2id wants 19 MiB each.
const PASSWORD_HASHES_MAX: usize = 4;
static PASSWORD_HASHING: Semaphore = Semaphore::const_new(PASSWORD_HASHES_MAX);

/// The name of the secret.
pub(crate) const PASSWORD: &str = "password";

const USER: &str = "User";

/// How somebody names a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// By id.
    Id(ResourceId),
    /// By `userName`, in any case.
    UserName(String),
}

impl Store {
    /// The living user of that name.
    pub async fn find_account(&self, tenant: &TenantId, account: &Account) -> Result<Option<StateRow>> {
        let id = match account {
            Account::Id(id) => id.clone(),
            Account::UserName(name) => {
                let value = prepare_username(name);
                let owners = self.find_by_lookup(tenant, USER, LookupKind::UserName, &value).await?;
                match owners.into_iter().next() {
                    Some(id) => id,
                    None => return Ok(None),
                }
            }
        };
        let state = self.state(tenant, &id).await?;
        Ok(state.filter(|state| state.resource_type == USER && state.document().is_some()))
    }

    /// Whether this is the user's password, and the user is active. Takes as long for nobody, for a user
    /// without a password and for an inactive one as for a wrong password.
    ///
    /// # Errors
    /// Storage fails; [`StoreError::Busy`] if nothing can be hashed any more.
    pub async fn verify_password(
        &self,
        tenant: &TenantId,
        user: Option<&StateRow>,
        password: &SecretString,
    ) -> Result<bool> {
        let nobody = ResourceId::from_text("nobody");
        let id = user.map_or(&nobody, |user| &user.id);
        let known = self.password_hash(tenant, id).await?;
        let active =
            user.and_then(StateRow::document).is_some_and(|d| d.0.get("active") == Some(&json!(true)));
        let (hash, real) = match known {
            Some(hash) => (hash, active),
            None => (self.hash_of_nobody().await?, false),
        };
        let given = SecretString::from(prepare_password(password.expose_secret()));
        Ok(compare(hash, given).await? && real)
    }

    /// Whether a change of a user's password leaves it as it is.
    ///
    /// A client that may write can set a password and so learn nothing by being told that it was set; but a
    /// request that is refused for another reason sets none. So that its time tells nothing either, the
    /// present password costs as much as a new one, which is compared and then hashed.
    pub(crate) async fn is_present_password(
        &self,
        tenant: &TenantId,
        id: &ResourceId,
        change: &PasswordChange,
    ) -> Result<bool> {
        let known = self.password_hash(tenant, id).await?;
        match (known, change) {
            (known, PasswordChange::Clear) => Ok(known.is_none()),
            (None, PasswordChange::Set(_)) => Ok(false),
            (Some(hash), PasswordChange::Set(password)) => {
                let same = compare(hash, password.clone()).await?;
                if same {
                    self.hash_password(password.clone()).await?;
                }
                Ok(same)
            }
        }
    }

    async fn password_hash(&self, tenant: &TenantId, id: &ResourceId) -> Result<Option<SecretString>> {
        let select = sql("SELECT s.sealed, s.key_id FROM journal.secret s \
             WHERE s.tenant = $1 AND s.id = $2 AND s.name = $3")
        .bind(tenant)
        .bind(id)
        .bind(PASSWORD);
        let Some(row) = self.backend().fetch_optional(Area::Journal, select).await? else { return Ok(None) };
        let aad = secret_aad(tenant, id, PASSWORD);
        let plain = match row.opt_text(1)? {
            Some(key) => match self.keys().subject(tenant, &key).await? {
                Some(key) => key.key.open(&aad, &row.bytes(0)?)?,
                // The person was erased.
                None => return Ok(None),
            },
            None => self.keys().tenant(tenant).await?.secret().open(&aad, &row.bytes(0)?)?,
        };
        let text =
            String::from_utf8(plain).map_err(|_| StoreError::corrupt("a password", "its hash is no text"))?;
        Ok(Some(SecretString::from(text)))
    }

    /// A hash that costs as much as a real one and that no password has.
    async fn hash_of_nobody(&self) -> Result<SecretString> {
        static NOBODY: OnceLock<SecretString> = OnceLock::new();
        if let Some(hash) = NOBODY.get() {
            return Ok(hash.clone());
        }
        let mut random = [0u8; 32];
        self.entropy().fill(&mut random);
        let hash = self.hash_password(SecretString::from(hex::encode(random))).await?;
        Ok(NOBODY.get_or_init(|| SecretString::from(hash)).clone())
    }

    /// The argon2id hash of a prepared password, with a fresh salt.
    pub(crate) async fn hash_password(&self, password: SecretString) -> Result<String> {
        let mut salt = [0u8; 16];
        self.entropy().fill(&mut salt);
        hashing(move || {
            let fail = |e: argon2::password_hash::Error| StoreError::corrupt("a password", e);
            let salt = SaltString::encode_b64(&salt).map_err(fail)?;
            let hash = argon2::Argon2::default()
                .hash_password(password.expose_secret().as_bytes(), &salt)
                .map_err(fail)?;
            Ok(hash.to_string())
        })
        .await
    }
}

/// Whether a hash is that of a prepared password.
async fn compare(hash: SecretString, given: SecretString) -> Result<bool> {
    hashing(move || {
        let fail = |e: argon2::password_hash::Error| StoreError::corrupt("a password", e);
        let hash = PasswordHash::new(hash.expose_secret()).map_err(fail)?;
        match argon2::Argon2::default().verify_password(given.expose_secret().as_bytes(), &hash) {
            Ok(()) => Ok(true),
            Err(argon2::password_hash::Error::Password) => Ok(false),
            Err(error) => Err(fail(error)),
        }
    })
    .await
}

/// Does one piece of hashing beside the runtime's threads.
async fn hashing<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let _permit = PASSWORD_HASHING
        .acquire()
        .await
        .map_err(|_| StoreError::Busy { what: "password hashing has ended", retry_after_s: 1 })?;
    tokio::task::spawn_blocking(work).await.map_err(|e| StoreError::corrupt("a password", e))?
}

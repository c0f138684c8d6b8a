//! Seals for cursors (RFC 9865 §5.2): a text that only this installation makes and reads, for one tenant.

use annals_domain::ids::TenantId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::Store;
use crate::error::{Result, StoreError};

/// Longest cursor that is looked at, in bytes. Ours hold one sort value of 256 characters at most.
const CURSOR_BYTES_MAX: usize = 8 * 1024;

impl Store {
    /// Seals what a cursor says. The text has only the characters `A-Z a-z 0-9 - _` (CU-002).
    pub async fn seal_cursor(&self, tenant: &TenantId, plain: &[u8]) -> Result<String> {
        let keys = self.keys().tenant(tenant).await?;
        let sealed = keys.cursor().seal(&place(tenant), plain, &*self.inner.entropy)?;
        Ok(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens what [`Store::seal_cursor`] made for the same tenant; `None` for any other text.
    pub async fn open_cursor(&self, tenant: &TenantId, text: &str) -> Result<Option<Vec<u8>>> {
        if text.len() > CURSOR_BYTES_MAX {
            return Ok(None);
        }
        let Ok(sealed) = URL_SAFE_NO_PAD.decode(text) else { return Ok(None) };
        match self.keys().tenant(tenant).await?.cursor().open(&place(tenant), &sealed) {
            Ok(plain) => Ok(Some(plain)),
            Err(StoreError::Unsealable { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn place(tenant: &TenantId) -> String {
    format!("cursor|{tenant}")
}

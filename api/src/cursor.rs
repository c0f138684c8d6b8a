//! Cursors (RFC 9865): where a list goes on, sealed for the client that got them.
//!
//! A cursor holds the place of the last resource of its page, so nothing is remembered here (CU-018), and
//! what is created, changed or deleted between two pages neither skips nor repeats any other resource.
//! It is sealed with a key derived from the tenant's, so every process reads every other's, and nobody
//! else reads or makes one (CU-016). It grants nothing: each page is authorized as the first one (CU-015).

use annals_domain::clock::Timestamp;
use annals_domain::scim::error::ScimType;
use annals_domain::scim::sort::Place;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Result};

/// Raised when what is sealed changes its form or meaning; cursors of another form are invalid.
const FORM: u8 = 1;

/// What a client's next page must have in common with the one before (CU-006), as a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding([u8; 16]);

impl Binding {
    /// Of the parts of a query; a part that is not given differs from an empty one.
    pub(crate) fn of<'a>(parts: impl IntoIterator<Item = Option<&'a str>>) -> Binding {
        let mut hash = Sha256::new();
        for part in parts {
            let length = part.map_or(0, |part| part.len() as u64 + 1);
            hash.update(length.to_be_bytes());
            hash.update(part.unwrap_or_default());
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finalize()[..16]);
        Binding(short)
    }
}

/// Where a list goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cursor {
    #[serde(rename = "f")]
    form: u8,
    #[serde(rename = "x")]
    expires: Timestamp,
    #[serde(rename = "b")]
    binding: Binding,
    #[serde(rename = "n")]
    count: usize,
    /// How many resources matched when the list was begun.
    #[serde(rename = "t")]
    pub(crate) total: u64,
    /// The place of the last resource of the page.
    #[serde(rename = "p")]
    pub(crate) after: Place,
}

impl Cursor {
    /// Seals where a list goes on after a page.
    pub(crate) async fn seal(
        app: &App,
        caller: &Caller,
        binding: Binding,
        count: usize,
        total: u64,
        after: Place,
    ) -> Result<String> {
        let lifetime_ms = i64::try_from(caller.bounds(app).cursor_lifetime.as_millis()).unwrap_or(i64::MAX);
        let expires = Timestamp(app.store.now().0.saturating_add(lifetime_ms));
        let cursor = Cursor { form: FORM, expires, binding, count, total, after };
        let plain =
            serde_json::to_vec(&cursor).map_err(|_| ApiError::status(500, "sealing a cursor failed"))?;
        Ok(app.store.seal_cursor(caller.tenant(), &plain).await?)
    }

    /// Opens a cursor for the same query.
    pub(crate) async fn open(
        app: &App,
        caller: &Caller,
        text: &str,
        binding: Binding,
        count: usize,
    ) -> Result<Cursor> {
        // One text for all reasons: nothing is learned from it (CU-017).
        let invalid = || {
            let detail = "the cursor is not one of this list; begin with an empty cursor";
            ApiError::bad(ScimType::InvalidCursor, detail)
        };
        let plain = app.store.open_cursor(caller.tenant(), text).await?.ok_or_else(invalid)?;
        let cursor: Cursor = serde_json::from_slice(&plain).map_err(|_| invalid())?;
        if cursor.form != FORM || cursor.binding != binding {
            return Err(invalid());
        }
        if cursor.count != count {
            let detail = format!("count must stay {} from page to page", cursor.count);
            return Err(ApiError::bad(ScimType::InvalidCount, detail));
        }
        if app.store.now() >= cursor.expires {
            let detail = "the cursor has expired; begin with an empty cursor";
            return Err(ApiError::bad(ScimType::ExpiredCursor, detail));
        }
        Ok(cursor)
    }
}

//! Time and chance as arguments: the only clock and randomness the house knows.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use uuid::Uuid;

/// Milliseconds since the Unix epoch, UTC. Every time in the journal has this precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

const RFC3339_MS: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

impl Timestamp {
    /// `2026-01-10T08:00:00.000Z`: UTC with millisecond precision (CS-026). Years outside 0..=9999
    /// are clamped to their bounds, as the format has four digits.
    pub fn to_rfc3339(self) -> String {
        const MIN: i64 = -62_167_219_200_000;
        const MAX: i64 = 253_402_300_799_999;
        let nanos = i128::from(self.0.clamp(MIN, MAX)) * 1_000_000;
        OffsetDateTime::from_unix_timestamp_nanos(nanos)
            .ok()
            .and_then(|t| t.format(RFC3339_MS).ok())
            .unwrap_or_default()
    }

    /// This moment plus `ms` milliseconds, saturating.
    pub fn plus_ms(self, ms: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(ms))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

/// Where time comes from. The system's clock lives in the binary; tests move theirs by hand.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Timestamp;
}

/// Where chance comes from: the operating system in production, a seed in tests.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` with random data.
    fn fill(&self, bytes: &mut [u8]);

    /// A UUID version 7 for the given moment (RFC 9562 §5.7).
    fn uuid_v7(&self, now: Timestamp) -> Uuid {
        let mut random = [0u8; 10];
        self.fill(&mut random);
        uuid::Builder::from_unix_timestamp_millis(now.0.max(0) as u64, &random).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_utc_milliseconds() {
        assert_eq!(Timestamp(1_767_225_600_123).to_rfc3339(), "2026-01-01T00:00:00.123Z");
        assert_eq!(Timestamp(0).to_rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp(i64::MAX).to_rfc3339(), "9999-12-31T23:59:59.999Z");
    }
}

//! When to try again: exponential pauses with jitter, and what `Retry-After` says.

use annals_domain::clock::{Entropy, Timestamp};

/// Longest pause a target may ask for, in milliseconds (OC-12).
pub const RETRY_AFTER_MS_MAX: i64 = 60 * 60 * 1_000;

/// A pause that doubles with every failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the first pause, in milliseconds.
    pub first_ms: i64,
    /// Bound of every pause, in milliseconds.
    pub max_ms: i64,
}

impl Backoff {
    /// The bound of the pause after this many failures before, in milliseconds.
    pub fn bound_ms(self, failures: i64) -> i64 {
        let doublings = u32::try_from(failures.clamp(0, 40)).unwrap_or(0);
        self.first_ms.saturating_mul(1_i64 << doublings).clamp(1, self.max_ms.max(1))
    }

    /// Full jitter: anything between 1 ms and the bound. Lanes that failed together come back apart.
    pub fn full_jitter_ms(self, failures: i64, random: u64) -> i64 {
        1 + below(self.bound_ms(failures), random)
    }

    /// Half jitter: between half the bound and the bound, for a target that needs the pause.
    pub fn half_jitter_ms(self, failures: i64, random: u64) -> i64 {
        let bound = self.bound_ms(failures);
        bound - below(bound / 2 + 1, random)
    }
}

/// A number from 0 to `bound - 1`.
fn below(bound: i64, random: u64) -> i64 {
    let bound = u64::try_from(bound.max(1)).unwrap_or(1);
    // The shift keeps it within i64; the bias of the remainder does not matter here.
    i64::try_from((random >> 1) % bound).unwrap_or(0)
}

/// The pauses of each class of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Of a lane whose delivery failed.
    pub lane: Backoff,
    /// Of a target that is out of reach, or asks for patience without saying how much.
    pub busy: Backoff,
    /// Of a target that refuses us: someone has to repair something first.
    pub refused: Backoff,
    /// How often a delivery that the target rejects is tried before its lane is put in quarantine.
    pub object_tries_max: i64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            lane: Backoff { first_ms: 1_000, max_ms: 60 * 60 * 1_000 },
            busy: Backoff { first_ms: 1_000, max_ms: 5 * 60 * 1_000 },
            refused: Backoff { first_ms: 60 * 1_000, max_ms: 60 * 60 * 1_000 },
            object_tries_max: 3,
        }
    }
}

/// Draws a number.
pub fn draw(entropy: &dyn Entropy) -> u64 {
    let mut bytes = [0; 8];
    entropy.fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// The pause a `Retry-After` value asks for, in milliseconds: a number of seconds or an HTTP date, at
/// most [`RETRY_AFTER_MS_MAX`]. None: it says neither.
pub fn retry_after_ms(value: &str, now: Timestamp) -> Option<i64> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = value.parse::<i64>().unwrap_or(i64::MAX);
        return Some(seconds.saturating_mul(1_000).min(RETRY_AFTER_MS_MAX));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    let at = i64::try_from(since.as_millis()).ok()?;
    Some((at - now.0).clamp(0, RETRY_AFTER_MS_MAX))
}

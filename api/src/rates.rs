//! Buckets that fill with time: how many requests a token may make, how often a password or a token may be
//! guessed.

use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use annals_domain::clock::Timestamp;

/// Buckets by key, the most recently used of them. Each holds what may happen in one window and fills evenly
/// within one.
pub(crate) struct Buckets<K: Hash + Eq + Send + Sync + 'static> {
    /// What one happening costs, in microseconds of filling; 0 = everything is free.
    cost_us: i64,
    full_us: i64,
    buckets: moka::sync::Cache<K, Arc<Mutex<Bucket>>>,
}

/// A bucket after something was taken out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    /// What a full one holds.
    pub(crate) max: u32,
    /// How often something can be taken at once.
    pub(crate) left: u32,
    /// Whole seconds until it is full.
    pub(crate) full_in_s: u64,
    /// It was empty: the whole seconds until there is one again.
    pub(crate) retry_after_s: Option<u64>,
}

struct Bucket {
    level_us: i64,
    filled: Timestamp,
}

impl<K: Hash + Eq + Send + Sync + 'static> Buckets<K> {
    /// `max` in each `window`, 0 = no limit; at most `keys_max` buckets are remembered.
    pub(crate) fn new(max: u32, window: Duration, keys_max: u64) -> Buckets<K> {
        let window_us = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        let cost_us = window_us.checked_div(i64::from(max)).unwrap_or(0);
        let full_us = cost_us.saturating_mul(i64::from(max));
        Buckets { cost_us, full_us, buckets: moka::sync::Cache::new(keys_max) }
    }

    /// Takes one out of a bucket.
    ///
    /// # Errors
    /// It is empty: the whole seconds until there is one again.
    pub(crate) fn take(&self, key: K, now: Timestamp) -> Result<(), u64> {
        self.level(key, now).and_then(|level| level.retry_after_s).map_or(Ok(()), Err)
    }

    /// Takes one out of a bucket, if there is one, and says how it stands; `None`: everything is free.
    pub(crate) fn level(&self, key: K, now: Timestamp) -> Option<Level> {
        if self.cost_us == 0 {
            return None;
        }
        let new = || Arc::new(Mutex::new(Bucket { level_us: self.full_us, filled: now }));
        let bucket = self.buckets.get_with(key, new);
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed_us = now.0.saturating_sub(bucket.filled.0).max(0).saturating_mul(1_000);
        bucket.level_us = bucket.level_us.saturating_add(elapsed_us).min(self.full_us);
        bucket.filled = now;
        let seconds = |us: i64| u64::try_from(us).unwrap_or(0).div_ceil(1_000_000);
        let times = |us: i64| u32::try_from(us / self.cost_us).unwrap_or(u32::MAX);
        let missing_us = self.cost_us - bucket.level_us;
        if missing_us <= 0 {
            bucket.level_us -= self.cost_us;
        }
        Some(Level {
            max: times(self.full_us),
            left: times(bucket.level_us),
            full_in_s: seconds(self.full_us - bucket.level_us),
            retry_after_s: (missing_us > 0).then(|| seconds(missing_us)),
        })
    }

    /// Puts one back.
    pub(crate) fn give_back(&self, key: &K) {
        if let Some(bucket) = self.buckets.get(key) {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.level_us = bucket.level_us.saturating_add(self.cost_us).min(self.full_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_with_time() {
        let buckets = Buckets::new(2, Duration::from_secs(60), 10);
        let at = |seconds: i64| Timestamp(seconds * 1_000);
        assert_eq!(buckets.take("a", at(0)), Ok(()));
        assert_eq!(buckets.take("a", at(0)), Ok(()));
        assert_eq!(buckets.take("a", at(0)), Err(30));
        assert_eq!(buckets.take("b", at(0)), Ok(()));
        assert_eq!(buckets.take("a", at(29)), Err(1));
        assert_eq!(buckets.take("a", at(30)), Ok(()));
        assert_eq!(buckets.take("a", at(30)), Err(30));
        buckets.give_back(&"a");
        assert_eq!(buckets.take("a", at(30)), Ok(()));
        // A clock that goes back gives nothing away.
        assert_eq!(buckets.take("a", at(0)), Err(30));
        let level = |at_s| buckets.level("c", at(at_s)).unwrap();
        assert_eq!(level(0), Level { max: 2, left: 1, full_in_s: 30, retry_after_s: None });
        assert_eq!(level(0), Level { max: 2, left: 0, full_in_s: 60, retry_after_s: None });
        assert_eq!(level(10), Level { max: 2, left: 0, full_in_s: 50, retry_after_s: Some(20) });
        let free = Buckets::new(0, Duration::from_secs(1), 10);
        assert!((0..1_000).all(|_| free.take("a", at(0)).is_ok()));
    }
}

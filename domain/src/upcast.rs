//! Old payload shapes become current ones when they are read; the journal is never rewritten.
//!
//! A change of shape raises [`SCHEMA_VERSION`], adds a step to [`STEPS`] and a frozen specimen under
//! `tests/specimens/`, and leaves the old specimens as they are: they are what journals out there hold.

use serde_json::Value;

/// The schema version that this build writes, for every kind.
pub const SCHEMA_VERSION: u32 = 1;

/// Lifts a payload of the given kind by one version.
pub type Step = fn(kind: &str, payload: Value) -> Value;

/// `STEPS[n]` lifts version `n + 1` to `n + 2`.
pub const STEPS: &[Step] = &[];

/// A payload whose version this build cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} has schema version {found}, this build reads 1 to {known}: upgrade")]
pub struct UnknownVersion {
    /// The kind.
    pub kind: String,
    /// The version found.
    pub found: u32,
    /// The newest version known.
    pub known: u32,
}

/// Lifts a payload of `version` to [`SCHEMA_VERSION`].
///
/// # Errors
/// [`UnknownVersion`] if a newer build wrote it: readers stop, they never guess.
pub fn upcast(kind: &str, version: u32, payload: Value) -> Result<Value, UnknownVersion> {
    upcast_by(STEPS, kind, version, payload)
}

fn upcast_by(steps: &[Step], kind: &str, version: u32, payload: Value) -> Result<Value, UnknownVersion> {
    let known = steps.len() as u32 + 1;
    let unknown = || UnknownVersion { kind: kind.to_owned(), found: version, known };
    let done = version.checked_sub(1).ok_or_else(unknown)?;
    let rest = steps.get(done as usize..).ok_or_else(unknown)?;
    Ok(rest.iter().fold(payload, |payload, step| step(kind, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn there_is_a_step_for_every_version_but_the_first() {
        assert_eq!(STEPS.len() as u32 + 1, SCHEMA_VERSION);
    }

    #[test]
    fn steps_run_in_order_from_the_stored_version_on() {
        fn mark(mark: &str, payload: Value) -> Value {
            let mut list = payload.as_array().cloned().unwrap_or_default();
            list.push(json!(mark));
            Value::Array(list)
        }
        let steps: &[Step] = &[|_, p| mark("1→2", p), |_, p| mark("2→3", p)];
        assert_eq!(upcast_by(steps, "user.changed", 1, json!([])), Ok(json!(["1→2", "2→3"])));
        assert_eq!(upcast_by(steps, "user.changed", 2, json!([])), Ok(json!(["2→3"])));
        assert_eq!(upcast_by(steps, "user.changed", 3, json!([])), Ok(json!([])));
        let error = upcast_by(steps, "user.changed", 4, json!([])).unwrap_err();
        assert_eq!(error.to_string(), "user.changed has schema version 4, this build reads 1 to 3: upgrade");
        assert!(upcast_by(steps, "user.changed", 0, json!([])).is_err());
    }
}

//! Evaluation in memory, over the same rows that SQL asks.

use std::collections::BTreeSet;

use super::bind::{Bound, Target, Test, TestOp};
use crate::clock::Timestamp;
use crate::ids::{ResourceId, Version};
use crate::scim::resource::etag;
use crate::view::IndexRow;

/// What is asked: a resource as its rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its id.
    pub id: &'a ResourceId,
    /// When it was created.
    pub created: Timestamp,
    /// When it last changed.
    pub last_modified: Timestamp,
    /// How many changes it has had.
    pub version: Version,
    /// The name of its type.
    pub resource_type: &'a str,
    /// Its index rows; for links, rows with keys such as `members.value`, one element per link.
    pub rows: &'a [IndexRow],
}

/// Whether a filter holds for a resource.
pub fn matches(bound: &Bound, subject: &Subject<'_>) -> bool {
    holds(bound, Some(subject), subject.rows, None)
}

/// Whether a filter on elements holds for the one whose rows these are.
pub(crate) fn matches_element(bound: &Bound, rows: &[IndexRow]) -> bool {
    holds(bound, None, rows, None)
}

/// `element` narrows the rows to those of one element.
fn holds(bound: &Bound, subject: Option<&Subject<'_>>, rows: &[IndexRow], element: Option<i32>) -> bool {
    match bound {
        Bound::True => true,
        Bound::False => false,
        Bound::And(all) => all.iter().all(|b| holds(b, subject, rows, element)),
        Bound::Or(all) => all.iter().any(|b| holds(b, subject, rows, element)),
        Bound::Not(inner) => !holds(inner, subject, rows, element),
        Bound::Test(test) => test_holds(test, subject, rows, element),
        Bound::Element { attribute, test } => {
            let belongs = |row: &&IndexRow| {
                row.key.strip_prefix(attribute.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.'))
            };
            let elements: BTreeSet<i32> = rows.iter().filter(belongs).map(|row| row.element).collect();
            elements.into_iter().any(|element| holds(test, subject, rows, Some(element)))
        }
    }
}

fn test_holds(test: &Test, subject: Option<&Subject<'_>>, rows: &[IndexRow], element: Option<i32>) -> bool {
    let rows = rows.iter().filter(|row| element.is_none_or(|element| row.element == element));
    let of = |fixed: &dyn Fn(&Subject<'_>) -> String| {
        subject.is_some_and(|subject| answer(&test.op, std::iter::once(fixed(subject).as_str())))
    };
    match &test.target {
        Target::Attribute { key } => answer(&test.op, values(rows, |k| k == key)),
        Target::AnyOf { keys } => answer(&test.op, values(rows, |k| keys.iter().any(|key| key == k))),
        Target::Link { attribute, sub } => {
            let key = format!("{attribute}.{}", sub.as_str());
            answer(&test.op, values(rows, |k| k == key))
        }
        Target::Id => of(&|s| s.id.as_str().to_owned()),
        Target::Created => of(&|s| s.created.to_rfc3339()),
        Target::LastModified => of(&|s| s.last_modified.to_rfc3339()),
        Target::Version => of(&|s| etag(s.version)),
        Target::ResourceType => of(&|s| s.resource_type.to_owned()),
    }
}

fn values<'a>(
    rows: impl Iterator<Item = &'a IndexRow>,
    fits: impl Fn(&str) -> bool,
) -> impl Iterator<Item = &'a str> {
    rows.filter(move |row| fits(&row.key)).map(|row| row.value.as_str())
}

/// One value that fits is enough (FI-008); without a value only `IsNull` and `Ne` hold (FI-014).
fn answer<'a>(op: &TestOp, values: impl Iterator<Item = &'a str>) -> bool {
    let mut values = values.peekable();
    match op {
        TestOp::IsNull => values.peek().is_none(),
        TestOp::NotNull => values.peek().is_some(),
        TestOp::Present => values.any(|v| !v.is_empty()),
        TestOp::Ne(x) => values.peek().is_none() || values.any(|v| v != x),
        TestOp::Eq(x) => values.any(|v| v == x),
        TestOp::Co(x) => values.any(|v| v.contains(x.as_str())),
        TestOp::Sw(x) => values.any(|v| v.starts_with(x.as_str())),
        TestOp::Ew(x) => values.any(|v| v.ends_with(x.as_str())),
        TestOp::Gt(x) => values.any(|v| v > x.as_str()),
        TestOp::Ge(x) => values.any(|v| v >= x.as_str()),
        TestOp::Lt(x) => values.any(|v| v < x.as_str()),
        TestOp::Le(x) => values.any(|v| v <= x.as_str()),
    }
}

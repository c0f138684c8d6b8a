//! Filters (RFC 7644 §3.4.2.2): text to syntax tree ([`parse`]), syntax tree to typed questions about a
//! resource type ([`bind()`]), questions answered from index rows ([`matches()`]).
//!
//! The grammar is the RFC's with its errata: `and` before `or`, no value path inside a value path. What
//! clients send beyond it is read by the parser and judged by their dialect when it is bound.

mod bind;
mod eval;
mod parse;

use std::fmt;

use serde_json::Number;

pub(crate) use bind::bind_element;
pub use bind::{
    Bound, Context, LinkSub, LookupTerm, LookupTermKind, Target, Test, TestOp, bind, lookup_terms, uses_links,
};
pub(crate) use eval::matches_element;
pub use eval::{Subject, matches};
pub use parse::{parse, parse_inner};

/// Bounds on a filter (FI-020), so that none costs more than a client may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Longest text, in bytes.
    pub bytes_max: usize,
    /// Most comparisons.
    pub terms_max: usize,
    /// Deepest nesting of parentheses, brackets and `not`.
    pub depth_max: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_max: 8 * 1024, terms_max: 100, depth_max: 20 }
    }
}

/// A filter as written. Prints as text that parses to an equal filter.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// At least one holds. Never directly inside another `Or`.
    Or(Vec<Filter>),
    /// All hold. Never directly inside another `And`.
    And(Vec<Filter>),
    /// It does not hold.
    Not(Box<Filter>),
    /// `path pr`
    Present {
        /// The attribute path.
        path: String,
    },
    /// `path op literal`
    Compare {
        /// The attribute path.
        path: String,
        /// The operator.
        op: CompareOp,
        /// What to compare with.
        literal: Literal,
    },
    /// `path[filter]`: one element for which all of the filter holds.
    Element {
        /// The path of the multi-valued attribute.
        path: String,
        /// The filter on its elements.
        filter: Box<Filter>,
    },
    /// `path[filter].sub op literal`: not in the RFC, but sent (FI-023).
    Postfix {
        /// The path of the multi-valued attribute.
        path: String,
        /// The filter on its elements.
        filter: Box<Filter>,
        /// The test on the same element, about its sub-attribute.
        test: Box<Filter>,
    },
}

impl Filter {
    /// Joins filters by `and`; one alone stays itself.
    pub fn and(filters: Vec<Filter>) -> Filter {
        let flat = filters.into_iter().flat_map(|f| match f {
            Filter::And(inner) => inner,
            other => vec![other],
        });
        one_or(flat.collect(), Filter::And)
    }

    /// Joins filters by `or`; one alone stays itself.
    pub fn or(filters: Vec<Filter>) -> Filter {
        let flat = filters.into_iter().flat_map(|f| match f {
            Filter::Or(inner) => inner,
            other => vec![other],
        });
        one_or(flat.collect(), Filter::Or)
    }
}

fn one_or(mut filters: Vec<Filter>, join: fn(Vec<Filter>) -> Filter) -> Filter {
    match filters.pop() {
        Some(only) if filters.is_empty() => only,
        Some(last) => {
            filters.push(last);
            join(filters)
        }
        None => join(filters),
    }
}

/// A comparison operator (RFC 7644 Table 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Contains.
    Co,
    /// Starts with.
    Sw,
    /// Ends with.
    Ew,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
}

impl CompareOp {
    /// Every operator.
    pub const ALL: [CompareOp; 9] =
        [Self::Eq, Self::Ne, Self::Co, Self::Sw, Self::Ew, Self::Gt, Self::Ge, Self::Lt, Self::Le];

    /// The operator as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Co => "co",
            Self::Sw => "sw",
            Self::Ew => "ew",
            Self::Gt => "gt",
            Self::Ge => "ge",
            Self::Lt => "lt",
            Self::Le => "le",
        }
    }
}

/// What an attribute is compared with: a JSON value that is no object or array.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// `TRUE`, `False`, `NULL`: no JSON, but sent (FI-024).
    Word(String),
    /// `anna`, `'anna'`: text without double quotes, which only a lenient dialect reads (FI-022).
    Loose {
        /// The text.
        text: String,
        /// Whether it stood in single quotes.
        quoted: bool,
        /// Where it stands.
        place: Place,
    },
}

/// Where something stands in a filter, counted in characters from 1. For errors only: it is no part of what
/// the filter means, so all places are equal.
#[derive(Clone, Copy, Debug)]
pub struct Place(pub usize);

impl PartialEq for Place {
    fn eq(&self, _: &Place) -> bool {
        true
    }
}

impl Eq for Place {}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::String(text) => write!(f, "{}", serde_json::Value::from(text.as_str())),
            Self::Word(word) => f.write_str(word),
            Self::Loose { text, quoted: true, .. } => write!(f, "'{text}'"),
            Self::Loose { text, .. } => f.write_str(text),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, filters: &[Filter], word: &str| {
            for (at, filter) in filters.iter().enumerate() {
                if at > 0 {
                    write!(f, " {word} ")?;
                }
                match filter {
                    Filter::Or(_) => write!(f, "({filter})")?,
                    _ => write!(f, "{filter}")?,
                }
            }
            Ok(())
        };
        match self {
            Self::Or(filters) => joined(f, filters, "or"),
            Self::And(filters) => joined(f, filters, "and"),
            Self::Not(filter) => write!(f, "not ({filter})"),
            Self::Present { path } => write!(f, "{path} pr"),
            Self::Compare { path, op, literal } => write!(f, "{path} {} {literal}", op.as_str()),
            Self::Element { path, filter } => write!(f, "{path}[{filter}]"),
            Self::Postfix { path, filter, test } => write!(f, "{path}[{filter}].{test}"),
        }
    }
}

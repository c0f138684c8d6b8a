//! Binding: a filter's names and literals checked against a resource type, so that what remains are
//! questions about encoded values, the same for SQL and for evaluation in memory.

use serde_json::{Value, json};

use super::{CompareOp, Filter, Literal};
use crate::scim::dialect::{Dialect, Quirk};
use crate::scim::error::{ScimError, ScimType};
use crate::scim::fold::index_value;
use crate::scim::path::{Named, PathError, comparable, resolve};
use crate::scim::schema::{AttrType, Attribute, Registry, ResourceType, Returned};
use crate::scim::value;
use crate::view::LookupKind;

/// A filter that fits a resource type.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// Always holds.
    True,
    /// Never holds.
    False,
    /// All hold.
    And(Vec<Bound>),
    /// At least one holds.
    Or(Vec<Bound>),
    /// It does not hold.
    Not(Box<Bound>),
    /// A test of one value.
    Test(Test),
    /// There is an element for which the test holds.
    Element {
        /// The key of the multi-valued attribute.
        attribute: String,
        /// Tests of that attribute's parts only.
        test: Box<Bound>,
    },
}

/// What is asked of what.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// The values that are tested. One that fits is enough.
    pub target: Target,
    /// The question.
    pub op: TestOp,
}

/// Where the tested values are.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Index rows of a simple attribute.
    Attribute {
        /// Its key.
        key: String,
    },
    /// Index rows of a complex attribute's parts, for questions of presence.
    AnyOf {
        /// The keys of the parts.
        keys: Vec<String>,
    },
    /// The id.
    Id,
    /// `meta.created`, as its RFC 3339 text with milliseconds.
    Created,
    /// `meta.lastModified`, as its RFC 3339 text with milliseconds.
    LastModified,
    /// `meta.version`, as the entity tag `W/"n"`.
    Version,
    /// `meta.resourceType`.
    ResourceType,
    /// Links: `members` of a group, `groups` of a user.
    Link {
        /// The key of the attribute.
        attribute: String,
        /// The part.
        sub: LinkSub,
    },
}

/// A part of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkSub {
    /// The id of the other end.
    Value,
    /// `User`, `Group`; `direct`, `indirect`.
    Type,
    /// The name of the other end.
    Display,
    /// The URI of the other end.
    Ref,
}

impl LinkSub {
    /// The part's name in keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Type => "type",
            Self::Display => "display",
            Self::Ref => "$ref",
        }
    }
}

/// A question about values; operands are encoded as [`index_value`] does.
#[derive(Clone, Debug, PartialEq)]
pub enum TestOp {
    /// There is a value that is not the empty string (FI-015).
    Present,
    /// There is no value at all (FI-014).
    IsNull,
    /// There is a value, even an empty one.
    NotNull,
    /// A value is equal.
    Eq(String),
    /// A value differs, or there is none (FI-014, FI-016).
    Ne(String),
    /// A value contains the operand.
    Co(String),
    /// A value starts with the operand.
    Sw(String),
    /// A value ends with the operand.
    Ew(String),
    /// A value is greater.
    Gt(String),
    /// A value is greater or equal.
    Ge(String),
    /// A value is less.
    Lt(String),
    /// A value is less or equal.
    Le(String),
}

/// Where a filter stands, for the two rules that depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// In a URI, where a password must not stand: 403 `sensitive` (US-005).
    pub in_uri: bool,
    /// On all resource types at once, where an unknown attribute has no value (FI-006).
    pub root: bool,
}

impl Context {
    /// A filter in the query string of a resource type's endpoint.
    pub const GET: Context = Context { in_uri: true, root: false };
    /// A filter in the body of `.search`, or in a PATCH path.
    pub const BODY: Context = Context { in_uri: false, root: false };

    /// The same, on all resource types.
    #[must_use]
    pub fn root(self) -> Self {
        Self { root: true, ..self }
    }
}

/// Checks a filter against a resource type.
pub fn bind(
    filter: &Filter,
    registry: &Registry,
    resource_type: &ResourceType,
    context: Context,
    dialect: &mut Dialect,
) -> Result<Bound, ScimError> {
    Binder { registry, resource_type, context, dialect }.bind(filter, None)
}

/// Checks a filter on the elements of a multi-valued attribute, as it stands in brackets.
pub(crate) fn bind_element(
    filter: &Filter,
    registry: &Registry,
    resource_type: &ResourceType,
    attribute: &Attribute,
    dialect: &mut Dialect,
) -> Result<Bound, ScimError> {
    check_multi_valued(attribute)?;
    Binder { registry, resource_type, context: Context::BODY, dialect }.bind(filter, Some(attribute))
}

fn check_multi_valued(attribute: &Attribute) -> Result<(), ScimError> {
    if attribute.multi_valued {
        return Ok(());
    }
    let detail = format!("{} has one value, so it cannot be filtered by [...]", attribute.path);
    Err(ScimError::invalid_filter(detail))
}

struct Binder<'a, 'd> {
    registry: &'a Registry,
    resource_type: &'a ResourceType,
    context: Context,
    dialect: &'d mut Dialect,
}

impl<'a> Binder<'a, '_> {
    /// `within` is the attribute whose brackets the filter stands in.
    fn bind(&mut self, filter: &Filter, within: Option<&'a Attribute>) -> Result<Bound, ScimError> {
        let mut all = |filters: &[Filter]| -> Result<Vec<Bound>, ScimError> {
            filters.iter().map(|f| self.bind(f, within)).collect()
        };
        match filter {
            Filter::Or(filters) => Ok(Bound::Or(all(filters)?)),
            Filter::And(filters) => Ok(Bound::And(all(filters)?)),
            Filter::Not(filter) => Ok(Bound::Not(Box::new(self.bind(filter, within)?))),
            Filter::Present { path } => self.test(path, None, within),
            Filter::Compare { path, op, literal } => self.test(path, Some((*op, literal)), within),
            Filter::Element { path, filter } => self.element(path, filter, None),
            Filter::Postfix { path, filter, test } => {
                if !self.dialect.allow(Quirk::PostfixFilter) {
                    let detail = format!("nothing may follow ']' in {path}[...]");
                    return Err(ScimError::invalid_filter(detail));
                }
                self.element(path, filter, Some(test))
            }
        }
    }

    fn element(&mut self, path: &str, filter: &Filter, test: Option<&Filter>) -> Result<Bound, ScimError> {
        let Some((attribute, sub)) = self.resolve(path)? else { return Ok(Bound::False) };
        if let Some(sub) = sub {
            return Err(ScimError::invalid_filter(format!("{} cannot be filtered by [...]", sub.path)));
        }
        check_multi_valued(attribute)?;
        let mut bound = self.bind(filter, Some(attribute))?;
        if let Some(test) = test {
            bound = Bound::And(vec![bound, self.bind(test, Some(attribute))?]);
        }
        Ok(Bound::Element { attribute: attribute.key.clone(), test: Box::new(bound) })
    }

    fn test(
        &mut self,
        path: &str,
        comparison: Option<(CompareOp, &Literal)>,
        within: Option<&'a Attribute>,
    ) -> Result<Bound, ScimError> {
        let found = match within {
            Some(parent) => Some((parent, Some(inner(parent, path)?))),
            None => self.resolve(path)?,
        };
        let comparison = match comparison {
            Some((op, literal)) => Some((op, self.plain(literal)?)),
            None => None,
        };
        let Some((attribute, sub)) = found else { return Ok(absent(comparison.as_ref())) };
        if attribute.returned == Returned::Never || sub.is_some_and(|s| s.returned == Returned::Never) {
            let keyword = if self.context.in_uri { ScimType::Sensitive } else { ScimType::InvalidFilter };
            return Err(ScimError::bad(keyword, format!("{} cannot be filtered by", attribute.path)));
        }
        let whole = sub.unwrap_or(attribute);
        let presence = match &comparison {
            None => Some(TestOp::Present),
            Some((CompareOp::Eq, Literal::Null)) => Some(TestOp::IsNull),
            Some((CompareOp::Ne, Literal::Null)) => Some(TestOp::NotNull),
            Some(_) => None,
        };
        if let Some(op) = presence {
            return presence_test(attribute, whole, op);
        }
        let Some((op, literal)) = comparison else { return Ok(Bound::False) };
        let leaf = comparable(whole).ok_or_else(|| {
            let detail = format!("{} has parts and no value of its own; name one of them", whole.path);
            ScimError::invalid_filter(detail)
        })?;
        let operand = self.operand(leaf, op, &literal)?;
        Ok(Bound::Test(Test { target: target(attribute, leaf)?, op: test_op(op, operand) }))
    }

    /// The attribute a path names; nothing if it is unknown and that is no error.
    fn resolve(&mut self, path: &str) -> Result<Option<(&'a Attribute, Option<&'a Attribute>)>, ScimError> {
        match resolve(self.registry, self.resource_type, path, self.dialect) {
            Ok(Named::Attribute { attribute, sub }) => Ok(Some((attribute, sub))),
            Ok(Named::Extension(urn)) => {
                Err(ScimError::invalid_filter(format!("{urn} is a schema; ask for schemas eq {urn:?}")))
            }
            Err(PathError::Unknown(..)) if self.context.root => Ok(None),
            Err(error) => Err(ScimError::invalid_filter(error.to_string())),
        }
    }

    /// The literal in JSON's spelling (FI-022, FI-024).
    fn plain(&mut self, literal: &Literal) -> Result<Literal, ScimError> {
        if let Literal::Loose { text, place, .. } = literal {
            if self.dialect.allow(Quirk::LenientFilterLiterals) {
                return Ok(Literal::String(text.clone()));
            }
            let shown: String = literal.to_string().chars().take(40).collect();
            return Err(ScimError::invalid_filter(format!(
                "filter at position {}: expected a JSON string, number, true, false or null, found {shown:?}",
                place.0
            )));
        }
        let Literal::Word(word) = literal else { return Ok(literal.clone()) };
        if !self.dialect.allow(Quirk::LiteralCase) {
            let lower = word.to_ascii_lowercase();
            return Err(ScimError::invalid_filter(format!("{word} is no JSON literal, {lower} would be")));
        }
        Ok(value::boolean(word).map_or(Literal::Null, Literal::Bool))
    }

    /// The literal as an encoded operand, if operator and literal fit the attribute's type.
    fn operand(&mut self, leaf: &Attribute, op: CompareOp, literal: &Literal) -> Result<String, ScimError> {
        use CompareOp::{Co, Eq, Ew, Ne, Sw};
        let text = matches!(leaf.kind, AttrType::String | AttrType::Reference);
        let ordered = !matches!(leaf.kind, AttrType::Boolean | AttrType::Binary);
        let fits = match op {
            Eq | Ne => true,
            Co | Sw | Ew => text,
            _ => ordered && *literal != Literal::Null,
        };
        let op = op.as_str();
        if !fits {
            let detail = format!("operator {op} cannot be used with {} and {literal}", leaf.path);
            return Err(ScimError::invalid_filter(detail));
        }
        let value = match (leaf.kind, literal) {
            (AttrType::Boolean, Literal::Bool(b)) => Some(json!(b)),
            (AttrType::Boolean, Literal::String(text)) => {
                value::boolean(text).filter(|_| self.dialect.allow(Quirk::StringBoolean)).map(Value::from)
            }
            (AttrType::Integer | AttrType::Decimal, Literal::Number(n)) => Some(Value::Number(n.clone())),
            (AttrType::Integer | AttrType::Decimal, Literal::String(text)) => {
                value::number(leaf, text).filter(|_| self.dialect.allow(Quirk::StringNumber))
            }
            (AttrType::Boolean | AttrType::Integer | AttrType::Decimal, _) => None,
            (_, Literal::String(text)) => Some(json!(text)),
            // `employeeNumber eq 4711`: a string without its quotes.
            (AttrType::String, Literal::Number(n)) if n.is_u64() => {
                self.dialect.allow(Quirk::LenientFilterLiterals).then(|| json!(n.to_string()))
            }
            _ => None,
        };
        value.and_then(|value| index_value(leaf, &value)).ok_or_else(|| {
            ScimError::invalid_filter(format!("{} cannot be compared with {literal}", leaf.path))
        })
    }
}

/// A name inside brackets: a part of the attribute, or `value` for the elements of a simple one (erratum
/// 7122).
fn inner<'a>(parent: &'a Attribute, name: &str) -> Result<&'a Attribute, ScimError> {
    let simple = (!parent.is_complex() && name.eq_ignore_ascii_case("value")).then_some(parent);
    parent
        .sub(name)
        .or(simple)
        .ok_or_else(|| ScimError::invalid_filter(format!("{} has no sub-attribute {name:?}", parent.path)))
}

/// The answer for an attribute the resource type does not have: no value (FI-006, FI-014).
fn absent(comparison: Option<&(CompareOp, Literal)>) -> Bound {
    match comparison {
        Some((CompareOp::Eq, Literal::Null)) => Bound::True,
        Some((CompareOp::Ne, literal)) if *literal != Literal::Null => Bound::True,
        _ => Bound::False,
    }
}

fn presence_test(attribute: &Attribute, whole: &Attribute, op: TestOp) -> Result<Bound, ScimError> {
    if matches!(attribute.key.as_str(), "id" | "meta" | "schemas") {
        // The server's own values are always there.
        return Ok(if op == TestOp::IsNull { Bound::False } else { Bound::True });
    }
    if attribute.is_linked() {
        let leaf = comparable(whole).unwrap_or(whole);
        return Ok(Bound::Test(Test { target: target(attribute, leaf)?, op }));
    }
    if !whole.is_complex() {
        return Ok(Bound::Test(Test { target: Target::Attribute { key: whole.key.clone() }, op }));
    }
    // A row for `primary` may stand for what the element does not say, so it proves no presence.
    let telling = whole.sub_attributes.iter().filter(|s| op != TestOp::Present || s.name != "primary");
    let keys = telling.map(|sub| sub.key.clone()).collect();
    Ok(Bound::Test(Test { target: Target::AnyOf { keys }, op }))
}

fn target(attribute: &Attribute, leaf: &Attribute) -> Result<Target, ScimError> {
    if attribute.is_linked() {
        let sub = match leaf.name.as_str() {
            "value" => LinkSub::Value,
            "type" => LinkSub::Type,
            "display" => LinkSub::Display,
            _ => LinkSub::Ref,
        };
        return Ok(Target::Link { attribute: attribute.key.clone(), sub });
    }
    match leaf.key.as_str() {
        "id" => Ok(Target::Id),
        "meta.created" => Ok(Target::Created),
        "meta.lastmodified" => Ok(Target::LastModified),
        "meta.version" => Ok(Target::Version),
        "meta.resourcetype" => Ok(Target::ResourceType),
        "schemas" => Ok(Target::Attribute { key: leaf.key.clone() }),
        _ if leaf.is_read_only() || attribute.is_read_only() => {
            Err(ScimError::invalid_filter(format!("{} cannot be filtered by", leaf.path)))
        }
        key => Ok(Target::Attribute { key: key.to_owned() }),
    }
}

fn test_op(op: CompareOp, operand: String) -> TestOp {
    match op {
        CompareOp::Eq => TestOp::Eq(operand),
        CompareOp::Ne => TestOp::Ne(operand),
        CompareOp::Co => TestOp::Co(operand),
        CompareOp::Sw => TestOp::Sw(operand),
        CompareOp::Ew => TestOp::Ew(operand),
        CompareOp::Gt => TestOp::Gt(operand),
        CompareOp::Ge => TestOp::Ge(operand),
        CompareOp::Lt => TestOp::Lt(operand),
        CompareOp::Le => TestOp::Le(operand),
    }
}

/// Which look-up answers a filter without the read model (D2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupTermKind {
    /// The id.
    Id,
    /// A look-up of the store.
    Lookup(LookupKind),
}

/// An equality that holds for every match of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupTerm {
    /// What is equal.
    pub kind: LookupTermKind,
    /// The encoded value.
    pub value: String,
}

/// The equality by which a filter's matches can be looked up: the filter itself, or a term of a top-level
/// `and`; the rest is then evaluated in memory. The id is preferred, then the narrowest look-up.
pub fn lookup_terms(bound: &Bound, resource_type: &ResourceType) -> Option<LookupTerm> {
    let terms = match bound {
        Bound::And(terms) => terms.as_slice(),
        one => std::slice::from_ref(one),
    };
    let found = terms.iter().filter_map(|term| {
        let Bound::Test(Test { target, op: TestOp::Eq(value) }) = term else { return None };
        let (rank, kind) = match target {
            Target::Id => (0, LookupTermKind::Id),
            Target::Attribute { key } => {
                let kind = LookupKind::of(resource_type, key)?;
                (1 + kind.rank(), LookupTermKind::Lookup(kind))
            }
            _ => return None,
        };
        Some((rank, LookupTerm { kind, value: value.clone() }))
    });
    found.min_by_key(|(rank, _)| *rank).map(|(_, term)| term)
}

/// Whether a filter asks about `members` or `groups`, whose rows the caller supplies.
pub fn uses_links(bound: &Bound) -> bool {
    match bound {
        Bound::True | Bound::False => false,
        Bound::And(all) | Bound::Or(all) => all.iter().any(uses_links),
        Bound::Not(inner) => uses_links(inner),
        Bound::Element { test, .. } => uses_links(test),
        Bound::Test(test) => matches!(test.target, Target::Link { .. }),
    }
}

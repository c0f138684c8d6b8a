//! Filters to SQL: the only SQL that is put together at run time. Values are bound, names are ours.
//!
//! A filter has two translations. As a *predicate* it is asked of one row at a time, by primary key;
//! that works for all of them. As a *set* of ids it is read from an index; that works unless it is
//! negative. A set of the narrowest positive part drives a query, predicates do the rest: so neither
//! database has to guess, and none builds a large list to look things up in.
//!
//! Attribute rows hold the first [`VALUE_CHARS_MAX`] characters in `value` and what follows in `rest`.
//! Order of the halves is order of the whole, so each comparison asks the index first and looks at
//! `rest` only where `value` leaves it open.

use std::collections::BTreeSet;
use std::sync::Arc;

use annals_domain::ids::TenantId;
use annals_domain::scim::error::ScimError;
use annals_domain::scim::filter::{Bound, LinkSub, Target, Test, TestOp};
use annals_domain::scim::fold::parse_datetime;
use annals_domain::scim::schema::{Registry, ResourceType};

use super::{MEMBERS, Paths, Slot};
use crate::backend::{Arg, Sql};
use crate::error::{Result, StoreError};
use crate::journal::read::GROUP_DEPTH_MAX;

/// Characters of a value that are indexed: PostgreSQL refuses index rows over 2.7 kB.
pub(super) const VALUE_CHARS_MAX: usize = 256;

/// The attribute whose rows are the `display` of links.
const DISPLAY_NAME: &str = "displayname";

/// The entity tag of the resource row `{r}`. The empty piece of a column lends its collation to the whole.
pub(super) const ENTITY_TAG: &str = "(substr({r}.id, 1, 0) || 'W/\"' || {r}.version || '\"')";

const ALWAYS: &str = "1 = 1";
const NEVER: &str = "1 = 0";

/// The indexed head of a value and what follows it.
pub(super) fn split(value: &str) -> (&str, &str) {
    match value.char_indices().nth(VALUE_CHARS_MAX) {
        Some((at, _)) => value.split_at(at),
        None => (value, ""),
    }
}

/// The keys whose numbers a filter's translation needs.
pub(super) fn keys(bound: &Bound, types: &[Arc<ResourceType>]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(bound, types, &mut found);
    found
}

fn collect(bound: &Bound, types: &[Arc<ResourceType>], found: &mut BTreeSet<String>) {
    match bound {
        Bound::True | Bound::False => {}
        Bound::And(all) | Bound::Or(all) => all.iter().for_each(|b| collect(b, types, found)),
        Bound::Not(inner) => collect(inner, types, found),
        Bound::Element { attribute, test } => {
            found.extend(element_keys(attribute, types));
            collect(test, types, found);
        }
        Bound::Test(test) => match &test.target {
            Target::Attribute { key } => found.extend([key.clone()]),
            Target::AnyOf { keys } => found.extend(keys.iter().cloned()),
            Target::Link { .. } => found.extend([DISPLAY_NAME.to_owned()]),
            _ => {}
        },
    }
}

/// The keys under which an element of the attribute can have rows.
fn element_keys(attribute: &str, types: &[Arc<ResourceType>]) -> BTreeSet<String> {
    let found = types.iter().filter_map(|rt| rt.attribute(attribute));
    found
        .flat_map(|a| std::iter::once(&a.key).chain(a.sub_attributes.iter().map(|sub| &sub.key)))
        .cloned()
        .collect()
}

/// Whose values a predicate asks for.
#[derive(Clone, Copy)]
enum Subject<'a> {
    /// Those of a resource row, by its alias.
    Resource(&'a str),
    /// Those of one element, by the alias of one of its attribute rows.
    Element(&'a str),
    /// Those of one link.
    Link(&'a Far<'a>),
}

/// The other end of a link.
struct Far<'a> {
    /// SQL for its id.
    id: &'a str,
    /// SQL for how many links away it is; only groups of a member have that.
    depth: Option<&'a str>,
}

/// Translates the filter of one query, and collects its arguments. `$1` is the tenant.
pub(super) struct Translator<'a> {
    paths: &'a Paths,
    registry: &'a Registry,
    types: &'a [Arc<ResourceType>],
    args: Vec<Arg>,
    aliases: usize,
    /// Stands at the end of each question to one row.
    fence: &'static str,
}

/// Keeps PostgreSQL from turning a question to one row into a join over all rows, which would have to be
/// sorted for each page. It changes no answer.
pub(super) const FENCE: &str = " LIMIT 1 OFFSET 0";

impl<'a> Translator<'a> {
    pub(super) fn new(
        tenant: &TenantId,
        paths: &'a Paths,
        registry: &'a Registry,
        types: &'a [Arc<ResourceType>],
    ) -> Self {
        Translator { paths, registry, types, args: vec![tenant.into()], aliases: 0, fence: "" }
    }

    /// Binds a value and gives its placeholder.
    pub(super) fn arg(&mut self, arg: impl Into<Arg>) -> String {
        self.args.push(arg.into());
        format!("${}", self.args.len())
    }

    /// A statement about a slot with the arguments so far.
    pub(super) fn sql(&self, slot: Slot, text: &str) -> Sql {
        self.args.iter().fold(slot.sql(text), |sql, arg| sql.bind(arg.clone()))
    }

    /// The simplified filter as a list of ids to begin with, if an index has one, and the condition on the
    /// row by the alias `row` that is left. The list has no id twice.
    ///
    /// The list belongs in front of a `CROSS JOIN`: SQLite takes `id IN (…)` for something to ask of all rows
    /// of a type, and reads them all.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for the few questions that only make sense to who knows our base URL.
    pub(super) fn led(&mut self, bound: &Bound, row: &str) -> Result<(Option<String>, String)> {
        let terms = terms(bound);
        let leader = self.leader(terms);
        let ids = leader.map(|at| self.ids(&terms[at])).transpose()?;
        let mut conditions = vec![ALWAYS.to_owned()];
        for (_, term) in terms.iter().enumerate().filter(|(at, _)| Some(*at) != leader) {
            conditions.push(self.predicate(term, Subject::Resource(row))?);
        }
        Ok((ids, conditions.join(" AND ")))
    }

    /// Whether the index that leads to what a filter holds for tells the whole answer: its rows are of the
    /// query's types only, and the rest of the filter asks for ids and values. A resource that is deleted
    /// has no values.
    pub(super) fn is_led_alone(&self, bound: &Bound) -> bool {
        let terms = terms(bound);
        self.leader(terms).is_some_and(|at| {
            self.is_of_types(&terms[at])
                && terms.iter().enumerate().all(|(n, term)| n == at || asks_values(term))
        })
    }

    /// Whether all rows of a set are of the query's types.
    fn is_of_types(&self, bound: &Bound) -> bool {
        match bound {
            Bound::Or(all) => all.iter().all(|bound| self.is_of_types(bound)),
            Bound::Element { attribute, test } => {
                !self.is_link(attribute)
                    && asks_values(test)
                    && element_keys(attribute, self.types).iter().all(|key| self.is_theirs(key))
            }
            Bound::Test(Test { target: Target::Attribute { key }, .. }) => self.is_theirs(key),
            Bound::Test(Test { target: Target::AnyOf { keys }, .. }) => {
                keys.iter().all(|key| self.is_theirs(key))
            }
            _ => false,
        }
    }

    /// Whether only the query's types have the attribute.
    fn is_theirs(&self, key: &str) -> bool {
        let mut holders = self.holders(key).peekable();
        holders.peek().is_some() && holders.all(|(rt, _)| self.types.iter().any(|own| own.name == rt.name))
    }

    /// Whether only this type has the attribute.
    pub(super) fn is_only_of(&self, key: &str, resource_type: &str) -> bool {
        let mut holders = self.holders(key).peekable();
        holders.peek().is_some() && holders.all(|(rt, _)| rt.name == resource_type)
    }

    /// Whether no resource has two rows of the attribute.
    pub(super) fn is_single(&self, key: &str) -> bool {
        let mut holders = self.holders(key).peekable();
        holders.peek().is_some() && holders.all(|(_, single)| single)
    }

    /// The resource types that have an attribute or a part of one, and whether it has one value at most.
    fn holders<'k>(&self, key: &'k str) -> impl Iterator<Item = (&'a Arc<ResourceType>, bool)> + use<'a, 'k> {
        self.registry.resource_types().filter_map(move |rt| {
            if let Some(attribute) = rt.attribute(key) {
                return Some((rt, !attribute.multi_valued));
            }
            let whole = rt.attribute(key.rsplit_once('.')?.0)?;
            let part = whole.sub_attributes.iter().find(|sub| sub.key == key)?;
            Some((rt, !whole.multi_valued && !part.multi_valued))
        })
    }

    /// Whether a set may have an id twice.
    fn repeats(&self, bound: &Bound) -> bool {
        match bound {
            Bound::Test(Test { target: Target::Attribute { key }, .. }) => !self.is_single(key),
            Bound::Test(Test { target: Target::Id, .. }) => false,
            _ => true,
        }
    }

    /// A set with each id once.
    fn ids(&mut self, bound: &Bound) -> Result<String> {
        let set = self.set(bound)?;
        if !self.repeats(bound) {
            return Ok(set);
        }
        // Without the limit, SQLite reads all rows of a tenant by the key that has ids in order, only not
        // to sort the few.
        let z = self.alias('z');
        Ok(format!("SELECT DISTINCT {z}.id FROM ({set} LIMIT {}) {z}", i64::MAX))
    }

    /// Which term's set leads: the narrowest. The index on times of change belongs to the resource's own row,
    /// which needs no set.
    fn leader(&self, terms: &[Bound]) -> Option<usize> {
        let ranks = terms.iter().enumerate().filter_map(|(at, term)| Some((self.rank(term)?, at)));
        ranks.min().map(|(_, at)| at).filter(|at| !is_modified(&terms[*at]))
    }

    /// The same condition on another alias, as a question to one row after another.
    pub(super) fn predicate_on(&mut self, bound: &Bound, alias: &str) -> Result<String> {
        self.fence = FENCE;
        let predicate = self.predicate(bound, Subject::Resource(alias));
        self.fence = "";
        predicate
    }

    /// Whether an index leads to what the filter holds for.
    pub(super) fn is_narrow(&self, bound: &Bound) -> bool {
        self.rank(bound).is_some()
    }

    /// Whether that index is no guide, as a value of it stands for a large part of a tenant.
    pub(super) fn is_wide(&self, bound: &Bound) -> bool {
        self.rank(bound).is_some_and(|rank| rank == BOOLEAN_RANK || rank == PRESENCE_RANK)
    }

    fn alias(&mut self, letter: char) -> String {
        self.aliases += 1;
        format!("{letter}{}", self.aliases)
    }

    /// Settles what does not need the database: attributes that no resource has ever had, and operands
    /// with U+0000, which no stored text contains.
    pub(super) fn simplify(&self, bound: &Bound) -> Bound {
        match bound {
            Bound::True | Bound::False => bound.clone(),
            Bound::Not(inner) => match self.simplify(inner) {
                Bound::True => Bound::False,
                Bound::False => Bound::True,
                other => Bound::Not(Box::new(other)),
            },
            Bound::And(all) => join(all.iter().map(|b| self.simplify(b)), true),
            Bound::Or(all) => join(all.iter().map(|b| self.simplify(b)), false),
            Bound::Element { attribute, test } => {
                let links = self.is_link(attribute);
                let known =
                    element_keys(attribute, self.types).iter().any(|k| self.paths.number(k).is_some());
                match self.simplify(test) {
                    Bound::False => Bound::False,
                    _ if !links && !known => Bound::False,
                    test => Bound::Element { attribute: attribute.clone(), test: Box::new(test) },
                }
            }
            Bound::Test(Test { target, op }) => {
                let (target, known) = match target {
                    Target::Attribute { key } => (target.clone(), self.paths.number(key).is_some()),
                    Target::AnyOf { keys } => {
                        let known = keys.iter().filter(|k| self.paths.number(k).is_some());
                        let keys: Vec<String> = known.cloned().collect();
                        let any = !keys.is_empty();
                        (Target::AnyOf { keys }, any)
                    }
                    _ => (target.clone(), true),
                };
                match without_nul(op) {
                    Ok(op) if known => Bound::Test(Test { target, op }),
                    Ok(TestOp::IsNull | TestOp::Ne(_)) | Err(true) => Bound::True,
                    Ok(_) | Err(false) => Bound::False,
                }
            }
        }
    }

    fn is_link(&self, attribute: &str) -> bool {
        self.types.iter().filter_map(|rt| rt.attribute(attribute)).any(|a| a.is_linked())
    }

    /// Whether the links of the attribute are the resource's own, rather than those that point to it.
    fn is_forward(&self, attribute: &str) -> bool {
        self.types.iter().filter_map(|rt| rt.link_attribute()).any(|a| a.key == attribute)
    }

    // ---- sets ----

    /// The filter as a condition on a resource row, led by its narrowest set.
    fn conjunction(&mut self, bound: &Bound, alias: &str) -> Result<String> {
        let terms = terms(bound);
        let leader = self.leader(terms);
        let mut conditions = Vec::with_capacity(terms.len());
        if let Some(at) = leader {
            conditions.push(format!("{alias}.id IN ({})", self.set(&terms[at])?));
        }
        for (at, term) in terms.iter().enumerate() {
            if Some(at) != leader {
                conditions.push(self.predicate(term, Subject::Resource(alias))?);
            }
        }
        Ok(conditions.join(" AND "))
    }

    /// How well an index answers: the lower the fewer rows; `None` = not as a set.
    fn rank(&self, bound: &Bound) -> Option<u8> {
        match bound {
            Bound::True | Bound::False | Bound::Not(_) => None,
            Bound::And(all) => all.iter().filter_map(|b| self.rank(b)).min(),
            Bound::Or(all) => {
                let ranks: Option<Vec<u8>> = all.iter().map(|b| self.rank(b)).collect();
                ranks?.into_iter().max()
            }
            Bound::Element { attribute, test } if self.is_link(attribute) => {
                if self.is_forward(attribute) {
                    Some(link_rank(test).unwrap_or(65))
                } else {
                    link_rank(test)
                }
            }
            // If nothing else, the rows of all its elements.
            Bound::Element { test, .. } => Some(element_rank(test).unwrap_or(80)),
            Bound::Test(test) => match &test.target {
                Target::Id => matches!(test.op, TestOp::Eq(_)).then_some(0),
                // The resource's own row has an index for that, so it leads without a set.
                Target::LastModified => match test.op {
                    TestOp::Eq(_) => Some(15),
                    TestOp::Gt(_) | TestOp::Ge(_) => Some(35),
                    TestOp::Lt(_) | TestOp::Le(_) => Some(45),
                    _ => None,
                },
                Target::Attribute { .. } | Target::AnyOf { .. } => op_rank(&test.op),
                Target::Link { attribute, .. } => {
                    op_rank(&test.op)?;
                    let rank = link_rank(bound);
                    if self.is_forward(attribute) { Some(rank.unwrap_or(65)) } else { rank }
                }
                _ => None,
            },
        }
    }

    /// A `SELECT` of the ids for which a filter with a rank holds; they may repeat, and may be ids of
    /// what is deleted or of another type.
    fn set(&mut self, bound: &Bound) -> Result<String> {
        match bound {
            Bound::Or(all) => {
                let sets: Result<Vec<String>> = all.iter().map(|b| self.set(b)).collect();
                Ok(sets?.join(" UNION ALL "))
            }
            Bound::Element { attribute, test } if self.is_link(attribute) => self.link_set(attribute, test),
            Bound::Element { attribute, test } => self.element_set(attribute, test),
            Bound::Test(test) => match &test.target {
                Target::Attribute { key } => {
                    let key = key.clone();
                    self.attribute_set(&[key], &test.op)
                }
                Target::AnyOf { keys } => {
                    let keys = keys.clone();
                    self.attribute_set(&keys, &test.op)
                }
                Target::Link { attribute, .. } => self.link_set(attribute, bound),
                _ => self.resource_set(bound),
            },
            _ => self.resource_set(bound),
        }
    }

    fn resource_set(&mut self, bound: &Bound) -> Result<String> {
        let x = self.alias('x');
        let condition = match bound {
            Bound::And(_) => self.conjunction(bound, &x)?,
            other => self.predicate(other, Subject::Resource(&x))?,
        };
        // For the index on times of change.
        let types: Vec<String> = match is_modified(bound) {
            true => self.types.iter().map(|rt| rt.name.clone()).collect(),
            false => Vec::new(),
        };
        let mut listed = String::new();
        if !types.is_empty() {
            let types: Vec<String> = types.iter().map(|name| self.arg(name)).collect();
            listed = format!(" AND {x}.deleted = 0 AND {x}.resource_type IN ({})", types.join(", "));
        }
        Ok(format!("SELECT {x}.id FROM model.resource_@ {x} WHERE {x}.tenant = $1{listed} AND {condition}"))
    }

    fn attribute_set(&mut self, keys: &[String], op: &TestOp) -> Result<String> {
        let t = self.alias('t');
        let paths = self.path_is(&t, keys.iter());
        let from = format!("SELECT {t}.id FROM model.attribute_@ {t} WHERE {t}.tenant = $1 AND {paths}");
        if !matches!(op, TestOp::Co(x) | TestOp::Ew(x) if !x.is_empty()) {
            return Ok(from + &self.and_value(&t, op));
        }
        // These read every value of the path. The index has no `rest`, so the few long values are
        // fetched by their key and the others never leave the index.
        let short = self.text(&format!("{t}.value"), op);
        let u = self.alias('u');
        let long = self.text(&format!("({u}.value || COALESCE({u}.rest, ''))"), op);
        Ok(format!(
            "{from} AND length({t}.value) < {VALUE_CHARS_MAX} AND {short} UNION ALL \
             SELECT {u}.id FROM model.attribute_@ {t} CROSS JOIN model.attribute_@ {u} \
             WHERE {t}.tenant = $1 AND {paths} AND length({t}.value) = {VALUE_CHARS_MAX} \
             AND {u}.tenant = $1 AND {u}.id = {t}.id AND {u}.path = {t}.path AND {long}"
        ))
    }

    fn element_set(&mut self, attribute: &str, test: &Bound) -> Result<String> {
        if let Bound::Or(all) = test
            && element_rank(test).is_some()
        {
            let sets: Result<Vec<String>> = all.iter().map(|b| self.element_set(attribute, b)).collect();
            return Ok(sets?.join(" UNION ALL "));
        }
        let terms = match test {
            Bound::And(terms) => terms.as_slice(),
            one => std::slice::from_ref(one),
        };
        let e = self.alias('e');
        // The leader must be a plain test: its row is the element's representative.
        let ranks = terms.iter().enumerate().filter_map(|(at, term)| match term {
            Bound::Test(Test { target: Target::Attribute { .. }, op }) => Some((op_rank(op)?, at)),
            _ => None,
        });
        let leader = ranks.min().map(|(_, at)| at);
        let mut conditions = String::new();
        match leader.map(|at| &terms[at]) {
            Some(Bound::Test(Test { target: Target::Attribute { key }, op })) => {
                conditions.push_str(&self.path_is(&e, std::iter::once(key)));
                conditions.push_str(&self.and_value(&e, op));
            }
            _ => conditions.push_str(&self.path_is(&e, element_keys(attribute, self.types).iter())),
        }
        for (at, term) in terms.iter().enumerate() {
            if Some(at) != leader {
                conditions.push_str(" AND ");
                conditions.push_str(&self.predicate(term, Subject::Element(&e))?);
            }
        }
        Ok(format!("SELECT {e}.id FROM model.attribute_@ {e} WHERE {e}.tenant = $1 AND {conditions}"))
    }

    /// Who has a link for which the test holds.
    fn link_set(&mut self, attribute: &str, test: &Bound) -> Result<String> {
        let l = self.alias('l');
        let links = format!("{l}.tenant = $1 AND {l}.attribute = '{MEMBERS}'");
        if self.is_forward(attribute) {
            let to = format!("{l}.to_id");
            let alive = self.not_deleted(&to);
            let condition = self.predicate(test, Subject::Link(&Far { id: &to, depth: None }))?;
            return Ok(format!(
                "SELECT {l}.from_id AS id FROM model.link_@ {l} WHERE {links} AND {alive} AND {condition}"
            ));
        }
        // From the groups that can fit down to everyone in them.
        let root = self.root(test, &format!("{l}.from_id"))?;
        let (d, e, y) = (self.alias('d'), self.alias('e'), self.alias('y'));
        let alive = self.exists(&format!("{l}.from_id"));
        let (group, depth) = (format!("{e}.root"), format!("{e}.depth"));
        let far = Far { id: &group, depth: Some(&depth) };
        let condition = self.predicate(test, Subject::Link(&far))?;
        Ok(format!(
            "SELECT {y}.id FROM (WITH RECURSIVE {d}(root, id, depth) AS ( \
               SELECT {l}.from_id, {l}.to_id, 1 FROM model.link_@ {l} WHERE {links} AND {root} AND {alive} \
             UNION \
               SELECT {d}.root, {l}.to_id, {d}.depth + 1 FROM {d} CROSS JOIN model.link_@ {l} \
               WHERE {links} AND {l}.from_id = {d}.id AND {d}.depth < {GROUP_DEPTH_MAX} AND {alive} \
             ) SELECT {e}.id FROM (SELECT {d}.root, {d}.id, MIN({d}.depth) AS depth FROM {d} \
             GROUP BY {d}.root, {d}.id) {e} WHERE {condition}) {y}"
        ))
    }

    /// What narrows the groups at the far end of a test with a [`link_rank`].
    fn root(&mut self, test: &Bound, id: &str) -> Result<String> {
        let terms = match test {
            Bound::And(terms) => terms.as_slice(),
            one => std::slice::from_ref(one),
        };
        let ranks = terms.iter().enumerate().filter_map(|(at, term)| Some((link_rank(term)?, at)));
        match ranks.min().map(|(_, at)| &terms[at]) {
            Some(Bound::Test(Test { target: Target::Link { sub: LinkSub::Value, .. }, op })) => {
                Ok(self.text(id, op))
            }
            Some(Bound::Test(Test { target: Target::Link { sub: LinkSub::Display, .. }, op })) => {
                if self.paths.number(DISPLAY_NAME).is_none() {
                    return Ok(NEVER.to_owned());
                }
                Ok(format!("{id} IN ({})", self.attribute_set(&[DISPLAY_NAME.to_owned()], op)?))
            }
            Some(Bound::Or(all)) => {
                let roots: Result<Vec<String>> = all.iter().map(|b| self.root(b, id)).collect();
                Ok(format!("({})", roots?.join(" OR ")))
            }
            _ => Ok(ALWAYS.to_owned()),
        }
    }

    // ---- predicates ----

    fn predicate(&mut self, bound: &Bound, subject: Subject<'_>) -> Result<String> {
        match bound {
            Bound::True => Ok(ALWAYS.to_owned()),
            Bound::False => Ok(NEVER.to_owned()),
            Bound::And(all) => self.joined(all, subject, " AND "),
            Bound::Or(all) => self.joined(all, subject, " OR "),
            Bound::Not(inner) => Ok(format!("NOT ({})", self.predicate(inner, subject)?)),
            Bound::Element { attribute, test } => match subject {
                Subject::Resource(r) if self.is_link(attribute) => self.link_exists(attribute, test, r),
                Subject::Resource(r) => {
                    let e = self.alias('e');
                    let paths = self.path_is(&e, element_keys(attribute, self.types).iter());
                    let condition = self.predicate(test, Subject::Element(&e))?;
                    Ok(format!(
                        "EXISTS (SELECT 1 FROM model.attribute_@ {e} WHERE {e}.tenant = $1 \
                         AND {e}.id = {r}.id AND {paths} AND {condition}{})",
                        self.fence
                    ))
                }
                _ => Err(StoreError::corrupt("the filter", "a value path stands inside a value path")),
            },
            Bound::Test(test) => self.test(test, subject),
        }
    }

    fn joined(&mut self, all: &[Bound], subject: Subject<'_>, word: &str) -> Result<String> {
        let all: Result<Vec<String>> = all.iter().map(|b| self.predicate(b, subject)).collect();
        Ok(format!("({})", all?.join(word)))
    }

    fn test(&mut self, test: &Test, subject: Subject<'_>) -> Result<String> {
        match (&test.target, subject) {
            (Target::Attribute { key }, _) => self.attribute_test(&[key], &test.op, subject),
            (Target::AnyOf { keys }, _) => {
                self.attribute_test(&keys.iter().collect::<Vec<_>>(), &test.op, subject)
            }
            (Target::Link { sub, .. }, Subject::Link(far)) => self.far_test(*sub, &test.op, far),
            (Target::Link { attribute, sub }, Subject::Resource(r)) => {
                let is = |op: TestOp| {
                    let target = Target::Link { attribute: attribute.clone(), sub: *sub };
                    Bound::Test(Test { target, op })
                };
                match &test.op {
                    TestOp::IsNull => {
                        Ok(format!("NOT ({})", self.link_exists(attribute, &is(TestOp::NotNull), r)?))
                    }
                    // Outside of brackets a value differs only if there is one.
                    TestOp::Ne(_) => {
                        let differs = Bound::And(vec![is(TestOp::NotNull), is(test.op.clone())]);
                        let any = self.link_exists(attribute, &is(TestOp::NotNull), r)?;
                        Ok(format!("(NOT ({any}) OR {})", self.link_exists(attribute, &differs, r)?))
                    }
                    _ => self.link_exists(attribute, &Bound::Test(test.clone()), r),
                }
            }
            (Target::Id, Subject::Resource(r)) => Ok(self.text(&format!("{r}.id"), &test.op)),
            (Target::ResourceType, Subject::Resource(r)) => {
                Ok(self.text(&format!("{r}.resource_type"), &test.op))
            }
            (Target::Version, Subject::Resource(r)) => Ok(self.text(&ENTITY_TAG.replace("{r}", r), &test.op)),
            (Target::Created, Subject::Resource(r)) => self.moment(&format!("{r}.created"), &test.op),
            (Target::LastModified, Subject::Resource(r)) => self.moment(&format!("{r}.modified"), &test.op),
            _ => Err(StoreError::corrupt("the filter", "a test stands where its values are not")),
        }
    }

    /// A question to the rows of some keys, of a resource or of one element.
    fn attribute_test(&mut self, keys: &[&String], op: &TestOp, subject: Subject<'_>) -> Result<String> {
        let t = self.alias('t');
        let whose = match subject {
            Subject::Resource(r) => format!("{t}.id = {r}.id"),
            Subject::Element(e) => format!("{t}.id = {e}.id AND {t}.element = {e}.element"),
            Subject::Link(far) => format!("{t}.id = {}", far.id),
        };
        let paths = self.path_is(&t, keys.iter().copied());
        let some = format!(
            "EXISTS (SELECT 1 FROM model.attribute_@ {t} WHERE {t}.tenant = $1 AND {whose} AND {paths}"
        );
        let fence = self.fence;
        Ok(match op {
            TestOp::IsNull => format!("NOT {some}{fence})"),
            TestOp::Ne(_) => format!("(NOT {some}{fence}) OR {some}{}{fence}))", self.and_value(&t, op)),
            _ => format!("{some}{}{fence})", self.and_value_of_one(&t, op)),
        })
    }

    /// Whether a resource has a link for which the test holds.
    fn link_exists(&mut self, attribute: &str, test: &Bound, r: &str) -> Result<String> {
        let l = self.alias('l');
        let links = format!("{l}.tenant = $1 AND {l}.attribute = '{MEMBERS}'");
        if self.is_forward(attribute) {
            let to = format!("{l}.to_id");
            let alive = self.not_deleted(&to);
            let condition = self.predicate(test, Subject::Link(&Far { id: &to, depth: None }))?;
            return Ok(format!(
                "EXISTS (SELECT 1 FROM model.link_@ {l} WHERE {links} AND {l}.from_id = {r}.id \
                 AND {alive} AND {condition}{})",
                self.fence
            ));
        }
        let (u, e) = (self.alias('u'), self.alias('e'));
        let alive = self.exists(&format!("{l}.from_id"));
        let (group, depth) = (format!("{e}.grp"), format!("{e}.depth"));
        let far = Far { id: &group, depth: Some(&depth) };
        let condition = self.predicate(test, Subject::Link(&far))?;
        Ok(format!(
            "EXISTS (WITH RECURSIVE {u}(grp, depth) AS ( \
               SELECT {l}.from_id, 1 FROM model.link_@ {l} WHERE {links} AND {l}.to_id = {r}.id AND {alive} \
             UNION \
               SELECT {l}.from_id, {u}.depth + 1 FROM {u} CROSS JOIN model.link_@ {l} \
               WHERE {links} AND {l}.to_id = {u}.grp AND {u}.depth < {GROUP_DEPTH_MAX} AND {alive} \
             ) SELECT 1 FROM (SELECT {u}.grp, MIN({u}.depth) AS depth FROM {u} GROUP BY {u}.grp) {e} \
             WHERE {condition})"
        ))
    }

    /// A question about one link's part, which has one value at most.
    fn far_test(&mut self, sub: LinkSub, op: &TestOp, far: &Far<'_>) -> Result<String> {
        match (sub, far.depth) {
            (LinkSub::Value, _) => Ok(self.text(far.id, op)),
            (LinkSub::Display, _) if self.paths.number(DISPLAY_NAME).is_none() => {
                Ok(if matches!(op, TestOp::IsNull | TestOp::Ne(_)) { ALWAYS } else { NEVER }.to_owned())
            }
            (LinkSub::Display, _) => self.attribute_test(&[&DISPLAY_NAME.to_owned()], op, Subject::Link(far)),
            (LinkSub::Type, Some(depth)) => {
                let (direct, indirect) = (fits(op, "direct"), fits(op, "indirect"));
                Ok(match (direct, indirect) {
                    (true, true) => ALWAYS.to_owned(),
                    (true, false) => format!("{depth} = 1"),
                    (false, true) => format!("{depth} > 1"),
                    (false, false) => NEVER.to_owned(),
                })
            }
            (LinkSub::Type, None) => {
                let m = self.alias('m');
                let some = format!(
                    "EXISTS (SELECT 1 FROM model.resource_@ {m} WHERE {m}.tenant = $1 AND {m}.id = {} \
                     AND {m}.deleted = 0",
                    far.id
                );
                let is = self.text(&format!("lower({m}.resource_type)"), op);
                Ok(match op {
                    TestOp::IsNull => format!("NOT {some})"),
                    TestOp::Ne(_) => format!("(NOT {some}) OR {some} AND {is}))"),
                    _ => format!("{some} AND {is})"),
                })
            }
            (LinkSub::Ref, _) => self.reference(op, far),
        }
    }

    /// A link's URI ends in `/{endpoint}/{id}`; what stands before is not ours to know.
    fn reference(&mut self, op: &TestOp, far: &Far<'_>) -> Result<String> {
        let exists = self.exists(far.id);
        let (uri, equal) = match op {
            TestOp::Present | TestOp::NotNull => return Ok(exists),
            TestOp::IsNull => return Ok(format!("NOT {exists}")),
            TestOp::Eq(uri) => (uri, true),
            TestOp::Ne(uri) => (uri, false),
            _ => {
                let detail = "$ref can be compared by eq, ne and pr only";
                return Err(StoreError::Refused(ScimError::invalid_filter(detail)));
            }
        };
        let mut parts = uri.rsplitn(3, '/');
        let (id, endpoint) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let Some(resource_type) = self.registry.by_endpoint(endpoint) else {
            return Ok(if equal { NEVER } else { ALWAYS }.to_owned());
        };
        let (id, name) = (self.arg(id), self.arg(&resource_type.name));
        let m = self.alias('m');
        let is = format!(
            "({} = {id} AND EXISTS (SELECT 1 FROM model.resource_@ {m} WHERE {m}.tenant = $1 \
             AND {m}.id = {id} AND {m}.resource_type = {name} AND {m}.deleted = 0))",
            far.id
        );
        Ok(if equal { is } else { format!("NOT {is}") })
    }

    fn exists(&mut self, id: &str) -> String {
        let m = self.alias('m');
        format!(
            "EXISTS (SELECT 1 FROM model.resource_@ {m} WHERE {m}.tenant = $1 AND {m}.id = {id} \
             AND {m}.deleted = 0)"
        )
    }

    /// What does not exist may be a member where the tenant allows that; what was deleted is none.
    fn not_deleted(&mut self, id: &str) -> String {
        let m = self.alias('m');
        format!(
            "NOT EXISTS (SELECT 1 FROM model.resource_@ {m} WHERE {m}.tenant = $1 AND {m}.id = {id} \
             AND {m}.deleted = 1)"
        )
    }

    // ---- values ----

    fn path_is<'k>(&mut self, alias: &str, keys: impl Iterator<Item = &'k String>) -> String {
        let numbers: Vec<i64> = keys.filter_map(|key| self.paths.number(key)).collect();
        match numbers.as_slice() {
            [] => NEVER.to_owned(),
            [one] => format!("{alias}.path = {}", self.arg(*one)),
            many => {
                let all: Vec<String> = many.iter().map(|n| self.arg(*n)).collect();
                format!("{alias}.path IN ({})", all.join(", "))
            }
        }
    }

    /// The same on a row that is found by its key. SQLite takes a range of values for the better way to it and
    /// reads that range once for each resource, so a range is asked of what no index has.
    fn and_value_of_one(&mut self, t: &str, op: &TestOp) -> String {
        match op {
            TestOp::Eq(_) | TestOp::Ne(_) => self.and_value(t, op),
            _ => self.and_value_by(t, &format!("({t}.value || '')"), op),
        }
    }

    /// ` AND …` on an attribute row: the index on `value` first, `rest` where that leaves it open. `Ne`
    /// asks for a value that differs, `IsNull` is for the caller.
    fn and_value(&mut self, t: &str, op: &TestOp) -> String {
        self.and_value_by(t, &format!("{t}.value"), op)
    }

    fn and_value_by(&mut self, t: &str, value: &str, op: &TestOp) -> String {
        let (operand, sign) = match op {
            TestOp::NotNull | TestOp::IsNull => return String::new(),
            TestOp::Present => return format!(" AND {value} > ''"),
            TestOp::Co(x) | TestOp::Ew(x) | TestOp::Sw(x) if x.is_empty() => return String::new(),
            TestOp::Co(_) | TestOp::Ew(_) => {
                let whole = format!("({t}.value || COALESCE({t}.rest, ''))");
                return format!(" AND {}", self.text(&whole, op));
            }
            TestOp::Sw(x) => {
                let (head, rest) = split(x);
                if rest.is_empty() {
                    return format!(" AND {}", self.starts_with(value, head));
                }
                let head = self.arg(head);
                let tail = self.starts_with(&format!("{t}.rest"), rest);
                return format!(" AND {t}.value = {head} AND {tail}");
            }
            TestOp::Eq(x) => (x, "="),
            TestOp::Ne(x) => (x, "<>"),
            TestOp::Gt(x) => (x, ">"),
            TestOp::Ge(x) => (x, ">="),
            TestOp::Lt(x) => (x, "<"),
            TestOp::Le(x) => (x, "<="),
        };
        let (head, rest) = split(operand);
        let full = head.chars().count() == VALUE_CHARS_MAX;
        let head = self.arg(head);
        if !full {
            // A row with a rest has a longer value, which differs from the operand's within it.
            return format!(" AND {value} {sign} {head}");
        }
        let tail = format!("COALESCE({t}.rest, '') {sign} {}", self.arg(rest));
        match sign {
            "=" => format!(" AND {t}.value = {head} AND {tail}"),
            "<>" => format!(" AND ({t}.value <> {head} OR {tail})"),
            _ => {
                let strict = &sign[..1];
                format!(" AND {value} {strict}= {head} AND ({value} {strict} {head} OR {tail})")
            }
        }
    }

    /// A condition on a text that is not null, of any length.
    fn text(&mut self, text: &str, op: &TestOp) -> String {
        match op {
            TestOp::NotNull => ALWAYS.to_owned(),
            TestOp::IsNull => NEVER.to_owned(),
            TestOp::Present => format!("{text} <> ''"),
            TestOp::Co(x) | TestOp::Sw(x) | TestOp::Ew(x) if x.is_empty() => ALWAYS.to_owned(),
            // One spelling for both databases; only what is there can be replaced.
            TestOp::Co(x) => format!("replace({text}, {}, '') <> {text}", self.arg(x)),
            TestOp::Sw(x) => self.starts_with(text, x),
            TestOp::Ew(x) => {
                let before = x.chars().count().saturating_sub(1);
                format!("substr({text}, length({text}) - {before}) = {}", self.arg(x))
            }
            TestOp::Eq(x) => format!("{text} = {}", self.arg(x)),
            TestOp::Ne(x) => format!("{text} <> {}", self.arg(x)),
            TestOp::Gt(x) => format!("{text} > {}", self.arg(x)),
            TestOp::Ge(x) => format!("{text} >= {}", self.arg(x)),
            TestOp::Lt(x) => format!("{text} < {}", self.arg(x)),
            TestOp::Le(x) => format!("{text} <= {}", self.arg(x)),
        }
    }

    /// A prefix as a range, which an index can answer.
    fn starts_with(&mut self, text: &str, prefix: &str) -> String {
        let from = format!("{text} >= {}", self.arg(prefix));
        match after_prefix(prefix) {
            Some(end) => format!("{from} AND {text} < {}", self.arg(end)),
            None => from,
        }
    }

    /// A condition on a time in ms; the operand is its text.
    fn moment(&mut self, column: &str, op: &TestOp) -> Result<String> {
        let (operand, sign) = match op {
            TestOp::Present | TestOp::NotNull => return Ok(ALWAYS.to_owned()),
            TestOp::IsNull => return Ok(NEVER.to_owned()),
            TestOp::Eq(x) => (x, "="),
            TestOp::Ne(x) => (x, "<>"),
            TestOp::Gt(x) => (x, ">"),
            TestOp::Ge(x) => (x, ">="),
            TestOp::Lt(x) => (x, "<"),
            TestOp::Le(x) => (x, "<="),
            TestOp::Co(_) | TestOp::Sw(_) | TestOp::Ew(_) => {
                let detail = "co, sw and ew cannot be used with a dateTime";
                return Err(StoreError::Refused(ScimError::invalid_filter(detail)));
            }
        };
        let moment = parse_datetime(operand).ok_or_else(|| {
            StoreError::Refused(ScimError::invalid_filter(format!("{operand:?} is no dateTime")))
        })?;
        // In a walk, no index on times may lead: what it gives would have to be sorted for each page.
        let column = if self.fence.is_empty() { column.to_owned() } else { format!("+{column}") };
        Ok(format!("{column} {sign} {}", self.arg(moment)))
    }
}

/// The parts of which all must hold.
fn terms(bound: &Bound) -> &[Bound] {
    match bound {
        Bound::And(terms) => terms,
        one => std::slice::from_ref(one),
    }
}

/// Whether a filter asks for ids, values and links only, and not for what a resource's own row has.
pub(super) fn asks_values(bound: &Bound) -> bool {
    match bound {
        Bound::True | Bound::False => true,
        Bound::And(all) | Bound::Or(all) => all.iter().all(asks_values),
        Bound::Not(inner) | Bound::Element { test: inner, .. } => asks_values(inner),
        Bound::Test(test) => match &test.target {
            Target::Attribute { .. } | Target::AnyOf { .. } | Target::Id | Target::Link { .. } => true,
            Target::Created | Target::LastModified | Target::Version | Target::ResourceType => false,
        },
    }
}

/// Whether this asks for the time of the last change.
fn is_modified(bound: &Bound) -> bool {
    matches!(bound, Bound::Test(Test { target: Target::LastModified, .. }))
}

/// Joins simplified filters: `and` if `all`, else `or`.
fn join(terms: impl Iterator<Item = Bound>, all: bool) -> Bound {
    let (neutral, decisive) = if all { (Bound::True, Bound::False) } else { (Bound::False, Bound::True) };
    let mut joined = Vec::new();
    for term in terms {
        match term {
            term if term == decisive => return decisive,
            term if term == neutral => {}
            Bound::And(inner) if all => joined.extend(inner),
            Bound::Or(inner) if !all => joined.extend(inner),
            term => joined.push(term),
        }
    }
    match joined.pop() {
        None => neutral,
        Some(only) if joined.is_empty() => only,
        Some(last) => {
            joined.push(last);
            if all { Bound::And(joined) } else { Bound::Or(joined) }
        }
    }
}

/// The question without U+0000 in its operand, or the answer for any value. Text without U+0000 that
/// comes after `a` comes after `a\0…` as well.
fn without_nul(op: &TestOp) -> std::result::Result<TestOp, bool> {
    let (TestOp::Eq(x)
    | TestOp::Ne(x)
    | TestOp::Co(x)
    | TestOp::Sw(x)
    | TestOp::Ew(x)
    | TestOp::Gt(x)
    | TestOp::Ge(x)
    | TestOp::Lt(x)
    | TestOp::Le(x)) = op
    else {
        return Ok(op.clone());
    };
    let Some((before, _)) = x.split_once('\0') else { return Ok(op.clone()) };
    match op {
        TestOp::Gt(_) | TestOp::Ge(_) => Ok(TestOp::Gt(before.to_owned())),
        TestOp::Lt(_) | TestOp::Le(_) => Ok(TestOp::Le(before.to_owned())),
        TestOp::Ne(_) => Err(true),
        _ => Err(false),
    }
}

/// The least text after all that start with the prefix; none if there is no such text.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            other => char::from_u32(other as u32 + 1),
        };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// The rank of a question for `true` or `false`.
const BOOLEAN_RANK: u8 = 50;
/// The rank of the question whether there is a value.
const PRESENCE_RANK: u8 = 70;

/// How many rows the index of values gives for a question; `None` = it cannot answer.
fn op_rank(op: &TestOp) -> Option<u8> {
    match op {
        TestOp::IsNull | TestOp::Ne(_) => None,
        TestOp::Eq(x) if x == "true" || x == "false" => Some(BOOLEAN_RANK),
        // A guess, where several could lead: long values are rarer than `work` and `US`.
        TestOp::Eq(x) => Some(18 - u8::try_from(x.len()).unwrap_or(8).min(8)),
        TestOp::Sw(x) if !x.is_empty() => Some(20),
        TestOp::Gt(_) | TestOp::Ge(_) | TestOp::Lt(_) | TestOp::Le(_) => Some(40),
        TestOp::Co(_) | TestOp::Ew(_) | TestOp::Sw(_) => Some(60),
        TestOp::Present | TestOp::NotNull => Some(PRESENCE_RANK),
    }
}

/// The same for a test of elements; `None` = every element has to be looked at.
fn element_rank(test: &Bound) -> Option<u8> {
    match test {
        Bound::Test(Test { target: Target::Attribute { .. }, op }) => op_rank(op),
        Bound::And(all) => all
            .iter()
            .filter_map(|b| match b {
                Bound::Test(_) => element_rank(b),
                _ => None,
            })
            .min(),
        Bound::Or(all) => {
            let ranks: Option<Vec<u8>> = all.iter().map(element_rank).collect();
            ranks?.into_iter().max()
        }
        _ => None,
    }
}

/// The same for a test of links: only ids and names narrow the far ends.
fn link_rank(test: &Bound) -> Option<u8> {
    match test {
        Bound::Test(Test { target: Target::Link { sub: LinkSub::Value, .. }, op: TestOp::Eq(_) }) => Some(10),
        Bound::Test(Test { target: Target::Link { sub: LinkSub::Display, .. }, op }) => {
            op_rank(op).filter(|rank| *rank < PRESENCE_RANK).map(|rank| rank.max(30))
        }
        Bound::And(all) => all.iter().filter_map(link_rank).min(),
        Bound::Or(all) => {
            let ranks: Option<Vec<u8>> = all.iter().map(link_rank).collect();
            ranks?.into_iter().max()
        }
        _ => None,
    }
}

/// Whether one value that is there answers a question.
fn fits(op: &TestOp, value: &str) -> bool {
    match op {
        TestOp::Present => !value.is_empty(),
        TestOp::NotNull => true,
        TestOp::IsNull => false,
        TestOp::Eq(x) => value == x,
        TestOp::Ne(x) => value != x,
        TestOp::Co(x) => value.contains(x.as_str()),
        TestOp::Sw(x) => value.starts_with(x.as_str()),
        TestOp::Ew(x) => value.ends_with(x.as_str()),
        TestOp::Gt(x) => value > x.as_str(),
        TestOp::Ge(x) => value >= x.as_str(),
        TestOp::Lt(x) => value < x.as_str(),
        TestOp::Le(x) => value <= x.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_split_after_256_characters() {
        let long = "é".repeat(300);
        let (head, rest) = split(&long);
        assert_eq!((head.chars().count(), rest.chars().count()), (256, 44));
        assert_eq!(split("short"), ("short", ""));
        assert_eq!(split(&"x".repeat(256)).1, "");
    }

    #[test]
    fn a_prefix_ends_before_the_next_text_that_lacks_it() {
        assert_eq!(after_prefix("ab").as_deref(), Some("ac"));
        assert_eq!(after_prefix("a\u{10FFFF}").as_deref(), Some("b"));
        assert_eq!(after_prefix("\u{D7FF}").as_deref(), Some("\u{E000}"));
        assert_eq!(after_prefix("\u{10FFFF}"), None);
        assert_eq!(after_prefix(""), None);
    }

    #[test]
    fn an_operand_with_nul_is_settled_or_cut() {
        assert_eq!(without_nul(&TestOp::Eq("a\0".into())), Err(false));
        assert_eq!(without_nul(&TestOp::Ne("a\0".into())), Err(true));
        assert_eq!(without_nul(&TestOp::Ge("a\0b".into())), Ok(TestOp::Gt("a".into())));
        assert_eq!(without_nul(&TestOp::Lt("a\0b".into())), Ok(TestOp::Le("a".into())));
    }
}

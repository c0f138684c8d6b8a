//! Operations on the elements of a multi-valued attribute: by filter, by part, by equality.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::Op;
use super::apply::{Patcher, merge_parts};
use crate::scim::dialect::Quirk;
use crate::scim::error::ScimError;
use crate::scim::filter::{Bound, CompareOp, Filter, Literal, bind_element, matches_element};
use crate::scim::schema::Attribute;
use crate::scim::value::{
    self, Given, check_len, check_primary, check_required_parts, element_key, elements, identity, is_primary,
    one, parts,
};
use crate::view::element_rows;

impl<'a> Patcher<'a, '_> {
    fn list(&self, attribute: &Attribute) -> Vec<Value> {
        match self.document.get(attribute) {
            Some(Value::Array(list)) => list.clone(),
            _ => Vec::new(),
        }
    }

    /// Stores a list. `touched` are the elements this operation brought or changed: if one of them is
    /// primary, no other is (PA-007).
    fn assign_list(
        &mut self,
        attribute: &Attribute,
        mut list: Vec<Value>,
        touched: &BTreeSet<usize>,
    ) -> Result<(), ScimError> {
        let primary: Vec<usize> =
            touched.iter().copied().filter(|&at| list.get(at).is_some_and(is_primary)).collect();
        if primary.len() > 1 {
            let detail = format!("{}: more than one element would be primary", attribute.path);
            return Err(ScimError::invalid_value(detail));
        }
        if let [only] = primary[..] {
            for (at, element) in list.iter_mut().enumerate() {
                if at != only && is_primary(element) {
                    element["primary"] = json!(false);
                }
            }
        }
        for &at in touched {
            if let Some(Value::Object(object)) = list.get(at)
                && !object.is_empty()
            {
                check_required_parts(attribute, object)?;
            }
        }
        list.retain(|element| !element.as_object().is_some_and(Map::is_empty));
        // CS-035: what became the same is there once, as in a PUT of it.
        let mut seen = HashSet::with_capacity(list.len());
        list.retain(|element| seen.insert(identity(attribute, element)));
        check_len(attribute, &list)?;
        self.assign(attribute, (!list.is_empty()).then_some(Value::Array(list)))
    }

    /// `add` of elements: appended; one that is there already is updated with what the new one says.
    pub(super) fn append(&mut self, attribute: &Attribute, new: Option<Value>) -> Result<(), ScimError> {
        let Some(Value::Array(new)) = new else { return Ok(()) };
        let mut list = self.list(attribute);
        let mut known = HashMap::new();
        for (at, element) in list.iter().enumerate() {
            known.entry(element_key(attribute, element)).or_insert(at);
        }
        let mut touched = BTreeSet::new();
        for element in new {
            let at = *known.entry(element_key(attribute, &element)).or_insert(list.len());
            match list.get_mut(at) {
                Some(known) => update(attribute, known, element),
                None => list.push(element),
            }
            touched.insert(at);
        }
        self.assign_list(attribute, list, &touched)
    }

    /// `remove` with a `value` (G04): the elements that are equal to, or have the `value` of, one listed.
    pub(super) fn remove_listed(&mut self, attribute: &Attribute, given: &Value) -> Result<(), ScimError> {
        if !self.dialect.allow(Quirk::RemoveWithValue) {
            let detail = format!("remove takes no value; use {}[...]", attribute.path);
            return Err(ScimError::invalid_value(detail));
        }
        // By `value` where there is one: clients list ids or addresses, not whole elements.
        let key = |element: &Value| match attribute.sub("value").and_then(|sub| element.get(&sub.name)) {
            Some(value) => json!({ "value": value }),
            None => element.clone(),
        };
        let mut listed = HashSet::new();
        for element in elements(attribute, given, self.dialect)? {
            let element = one(attribute, element, self.dialect)?;
            listed.extend(element.map(|element| identity(attribute, &key(&element))));
        }
        let mut list = self.list(attribute);
        list.retain(|known| !listed.contains(&identity(attribute, &key(known))));
        self.assign_list(attribute, list, &BTreeSet::new())
    }

    /// Which elements a filter selects.
    fn selected(
        &mut self,
        attribute: &'a Attribute,
        filter: &Filter,
        list: &[Value],
    ) -> Result<BTreeSet<usize>, ScimError> {
        let bound = bind_element(filter, self.registry, self.resource_type, attribute, self.dialect)?;
        Ok(select(attribute, &bound, list))
    }

    /// The URNs a filter on `schemas` leaves.
    pub(super) fn unselected(
        &mut self,
        attribute: &'a Attribute,
        filter: &Filter,
        urns: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, ScimError> {
        let list: Vec<Value> = urns.iter().map(|urn| json!(urn)).collect();
        let selected = self.selected(attribute, filter, &list)?;
        Ok(urns
            .into_iter()
            .enumerate()
            .filter(|(at, _)| !selected.contains(at))
            .map(|(_, urn)| urn)
            .collect())
    }

    /// An operation on `attribute[filter]` or `attribute[filter].sub`.
    pub(super) fn filtered(
        &mut self,
        op: Op,
        attribute: &'a Attribute,
        filter: &Filter,
        sub: Option<&'a Attribute>,
        value: &Value,
    ) -> Result<(), ScimError> {
        let mut list = self.list(attribute);
        let mut selected = self.selected(attribute, filter, &list)?;
        // The part `value` of a simple element is the element.
        let sub = sub.filter(|sub| sub.key != attribute.key);
        if op == Op::Remove || (value.is_null() && !selected.is_empty()) {
            return self.remove_selected(attribute, list, selected, sub);
        }
        let mut created = false;
        if selected.is_empty() {
            let miss = || ScimError::no_target(format!("no element of {} fits [{filter}]", attribute.path));
            let seed = self.seed(attribute, filter)?.ok_or_else(miss)?;
            if op == Op::Replace && !self.dialect.allow(Quirk::CreateOnFilterMiss) {
                return Err(miss());
            }
            selected.insert(list.len());
            list.push(Value::Object(seed));
            created = true;
        }
        let seed = self.seed(attribute, filter)?.unwrap_or_default();
        for &at in &selected {
            list[at] = match sub {
                Some(sub) => self.with_part(attribute, &list[at], sub, value)?,
                None if op == Op::Add || created => self.merged(attribute, &list[at], value)?,
                None => self.merged(attribute, &Value::Object(seed.clone()), value)?,
            };
        }
        self.assign_list(attribute, list, &selected)
    }

    fn remove_selected(
        &mut self,
        attribute: &Attribute,
        mut list: Vec<Value>,
        selected: BTreeSet<usize>,
        sub: Option<&Attribute>,
    ) -> Result<(), ScimError> {
        for &at in &selected {
            match (&mut list[at], sub) {
                (Value::Object(object), Some(sub)) => merge_parts(object, vec![(sub, None)])?,
                (element, _) => *element = json!({}),
            }
        }
        self.assign_list(attribute, list, &BTreeSet::new())
    }

    /// An element with one part set or, by null, unassigned.
    fn with_part(
        &mut self,
        attribute: &Attribute,
        element: &Value,
        sub: &Attribute,
        value: &Value,
    ) -> Result<Value, ScimError> {
        let mut object = element.as_object().cloned().unwrap_or_default();
        let value = self.part_value(attribute, sub, value)?;
        merge_parts(&mut object, vec![(sub, value)])?;
        Ok(Value::Object(object))
    }

    /// An element with the parts that a value mentions; a simple element is replaced.
    fn merged(&mut self, attribute: &Attribute, element: &Value, value: &Value) -> Result<Value, ScimError> {
        if !attribute.is_complex() {
            return Ok(one(attribute, value, self.dialect)?.unwrap_or_else(|| json!({})));
        }
        let mut object = element.as_object().cloned().unwrap_or_default();
        if let Given::Parts(parts) = parts(attribute, value, self.dialect)? {
            merge_parts(&mut object, parts)?;
        }
        Ok(Value::Object(object))
    }

    /// What an element that fits a filter has at least: the filter's `eq` terms joined by `and`. Nothing if
    /// the filter says anything else.
    fn seed(
        &mut self,
        attribute: &Attribute,
        filter: &Filter,
    ) -> Result<Option<Map<String, Value>>, ScimError> {
        let terms = match filter {
            Filter::And(terms) => terms.as_slice(),
            one => std::slice::from_ref(one),
        };
        let mut seed = Map::new();
        for term in terms {
            let Filter::Compare { path, op: CompareOp::Eq, literal } = term else { return Ok(None) };
            let Some(sub) = attribute.sub(path).filter(|sub| !sub.is_read_only()) else { return Ok(None) };
            let value = match literal {
                Literal::Bool(b) => json!(b),
                Literal::Number(number) => json!(number),
                Literal::String(text) | Literal::Loose { text, .. } => json!(text),
                Literal::Word(word) => value::boolean(word).map_or(Value::Null, Value::from),
                Literal::Null => Value::Null,
            };
            if let Some(value) = self.part_value(attribute, sub, &value)?
                && seed.insert(sub.name.clone(), value.clone()).is_some_and(|other| other != value)
            {
                return Ok(None);
            }
        }
        Ok(Some(seed))
    }

    /// An operation on `attribute.sub` without filter: on every element (P58).
    pub(super) fn part_of_all(
        &mut self,
        op: Op,
        attribute: &'a Attribute,
        sub: &'a Attribute,
        value: &Value,
    ) -> Result<(), ScimError> {
        let mut list = self.list(attribute);
        if op == Op::Remove {
            let all = (0..list.len()).collect();
            return self.remove_selected(attribute, list, all, Some(sub));
        }
        if list.is_empty() {
            if op == Op::Replace {
                let detail = format!("{} has no element whose {} could be set", attribute.path, sub.name);
                return Err(ScimError::no_target(detail));
            }
            list.push(json!({}));
        }
        for element in &mut list {
            *element = self.with_part(attribute, element, sub, value)?;
        }
        let all = (0..list.len()).collect();
        self.assign_list(attribute, list, &all)
    }

    /// `{"emails.value": …}` (idp-quirks §2.8): of the primary element, else of the only one, else of a new
    /// one.
    pub(super) fn part_of_preferred(
        &mut self,
        op: Op,
        attribute: &'a Attribute,
        sub: &'a Attribute,
        value: &Value,
    ) -> Result<(), ScimError> {
        let mut list = self.list(attribute);
        let at = match (list.iter().position(is_primary), list.len()) {
            (Some(at), _) => at,
            (None, 0) => {
                list.push(json!({}));
                0
            }
            (None, 1) => 0,
            (None, _) => {
                let detail = format!("{} of which element? None is primary", sub.path);
                return Err(ScimError::no_target(detail));
            }
        };
        debug_assert!(op != Op::Remove, "remove has a path");
        list[at] = self.with_part(attribute, &list[at], sub, value)?;
        check_primary(attribute, &mut list, self.dialect)?;
        self.assign_list(attribute, list, &BTreeSet::from([at]))
    }
}

/// Takes over what a new element says about one that is there. What is equal in the attribute's own
/// terms stays as it was first sent, so that sending it again changes nothing.
fn update(attribute: &Attribute, known: &mut Value, new: Value) {
    let (Value::Object(known), Value::Object(new)) = (known, new) else { return };
    for (name, value) in new {
        let default = name == "primary" && value == json!(false) && !known.contains_key(&name);
        let equal = |old: &Value| attribute.sub(&name).is_some_and(|sub| value::same(sub, old, &value));
        if !default && !known.get(&name).is_some_and(equal) {
            known.insert(name, value);
        }
    }
}

fn select(attribute: &Attribute, bound: &Bound, list: &[Value]) -> BTreeSet<usize> {
    let fits = |element: &Value| {
        let mut rows = Vec::new();
        element_rows(attribute, element, 0, &mut rows);
        matches_element(bound, &rows)
    };
    list.iter().enumerate().filter(|(_, element)| fits(element)).map(|(at, _)| at).collect()
}

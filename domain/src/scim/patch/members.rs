//! Members are links, not content (D4): a PATCH yields what to add and what to remove, whatever is there.

use std::collections::BTreeSet;

use serde_json::Value;

use super::apply::Patcher;
use super::{Op, Operation};
use crate::ids::ResourceId;
use crate::scim::dialect::Quirk;
use crate::scim::error::ScimError;
use crate::scim::filter::{CompareOp, Filter, Literal};
use crate::scim::path::PatchPath;
use crate::scim::resource::member_ids;
use crate::scim::schema::Attribute;

/// The net change of a set of links: if `clear`, all go; then `remove` goes and `add` comes. An id is
/// never in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkDelta {
    /// Whether all that is there goes.
    pub clear: bool,
    /// What comes.
    pub add: BTreeSet<ResourceId>,
    /// What goes; empty if all go.
    pub remove: BTreeSet<ResourceId>,
}

impl LinkDelta {
    /// Whether it changes nothing, whatever is there.
    pub fn is_empty(&self) -> bool {
        !self.clear && self.add.is_empty() && self.remove.is_empty()
    }

    /// And then these come.
    pub fn add(&mut self, ids: impl IntoIterator<Item = ResourceId>) {
        for id in ids {
            self.remove.remove(&id);
            self.add.insert(id);
        }
    }

    /// And then these go.
    pub fn remove(&mut self, ids: impl IntoIterator<Item = ResourceId>) {
        for id in ids {
            self.add.remove(&id);
            if !self.clear {
                self.remove.insert(id);
            }
        }
    }

    /// And then there are exactly these.
    pub fn replace(&mut self, ids: impl IntoIterator<Item = ResourceId>) {
        *self = Self { clear: true, add: ids.into_iter().collect(), remove: BTreeSet::new() };
    }
}

impl Patcher<'_, '_> {
    /// An operation on members.
    pub(super) fn members(
        &mut self,
        operation: &Operation,
        attribute: &Attribute,
        path: &PatchPath,
    ) -> Result<(), ScimError> {
        let unalterable =
            || ScimError::mutability(format!("elements of {} are added and removed only", attribute.path));
        if path.sub.is_some() {
            return Err(unalterable());
        }
        match (operation.op, &path.filter, &operation.value) {
            (Op::Remove, Some(filter), _) => self.delta.remove(ids_of(filter, attribute)?),
            (_, Some(filter), _) => {
                ids_of(filter, attribute)?;
                return Err(unalterable());
            }
            (Op::Remove, None, None | Some(Value::Null)) => self.delta.replace([]),
            (Op::Remove, None, Some(value)) => {
                // Read as "remove all" this would empty the group, which nobody means by it (G04).
                if !self.dialect.allow(Quirk::RemoveWithValue) {
                    let detail = format!("remove takes no value; use {}[value eq \"...\"]", attribute.path);
                    return Err(ScimError::invalid_value(detail));
                }
                let ids = member_ids(attribute, value, self.dialect)?;
                self.delta.remove(ids);
            }
            (op, None, value) => {
                let value = value.as_ref().unwrap_or(&Value::Null);
                self.add_members(op, attribute, value)?;
            }
        }
        Ok(())
    }

    /// `add` or `replace` without filter.
    pub(super) fn add_members(
        &mut self,
        op: Op,
        attribute: &Attribute,
        value: &Value,
    ) -> Result<(), ScimError> {
        let ids = member_ids(attribute, value, self.dialect)?;
        if ids.contains(self.id) {
            let detail = format!("{}: {} cannot be a member of itself", attribute.path, self.id);
            return Err(ScimError::invalid_value(detail));
        }
        if op == Op::Replace && !self.dialect.allow(Quirk::MergeMembers) {
            self.delta.replace(ids);
        } else {
            self.delta.add(ids);
        }
        Ok(())
    }
}

/// The ids a filter on members names. Only `value eq` joined by `or` can be answered without reading the
/// members; anything else is refused, never guessed.
fn ids_of(filter: &Filter, attribute: &Attribute) -> Result<Vec<ResourceId>, ScimError> {
    let refused = || {
        let name = &attribute.path;
        ScimError::invalid_filter(format!(
            "elements of {name} are selected by {name}[value eq \"...\"], several joined by or"
        ))
    };
    let terms = match filter {
        Filter::Or(terms) => terms.as_slice(),
        one => std::slice::from_ref(one),
    };
    let id = |term: &Filter| match term {
        Filter::Compare { path, op: CompareOp::Eq, literal: Literal::String(id) }
            if path.eq_ignore_ascii_case("value") =>
        {
            Ok(ResourceId::from_text(id))
        }
        _ => Err(refused()),
    };
    terms.iter().map(id).collect()
}

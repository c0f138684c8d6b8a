//! Operations on a document, one after the other.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{LinkDelta, Op, Operation, PasswordChange, Patched, at_operation};
use crate::ids::ResourceId;
use crate::scim::dialect::{Dialect, Quirk};
use crate::scim::error::ScimError;
use crate::scim::path::{Named, PatchPath, PatchPathError, PathError, resolve};
use crate::scim::resource::{Document, check_required, check_username, immutable, secret};
use crate::scim::schema::{Attribute, Mutability, Registry, ResourceType};
use crate::scim::value::{self, Given, canonical, check_id, check_keys, parts, same};

/// Applies operations in order. All or nothing: on an error, which names its operation, the caller keeps
/// what it had.
pub fn apply(
    registry: &Registry,
    resource_type: &ResourceType,
    id: &ResourceId,
    current: &Document,
    operations: &[Operation],
    dialect: &mut Dialect,
) -> Result<Patched, ScimError> {
    let document = current.clone();
    let delta = LinkDelta::default();
    let mut patcher = Patcher { registry, resource_type, id, document, password: None, delta, dialect };
    for (at, operation) in operations.iter().enumerate() {
        patcher.operation(operation).map_err(|error| at_operation(error, at))?;
    }
    // PA-012: what no operation touched is not validated again.
    if patcher.document.schemas(resource_type) != current.schemas(resource_type) {
        check_required(resource_type, &patcher.document)?;
    }
    Ok(Patched { document: patcher.document, password: patcher.password, members: patcher.delta })
}

/// The state between two operations.
pub(super) struct Patcher<'a, 'd> {
    pub(super) registry: &'a Registry,
    pub(super) resource_type: &'a ResourceType,
    pub(super) id: &'a ResourceId,
    pub(super) document: Document,
    pub(super) password: Option<PasswordChange>,
    pub(super) delta: LinkDelta,
    pub(super) dialect: &'d mut Dialect,
}

impl<'a> Patcher<'a, '_> {
    fn operation(&mut self, operation: &Operation) -> Result<(), ScimError> {
        match (&operation.path, &operation.value) {
            (Some(path), _) => self.at_path(operation, path),
            (None, _) if operation.op == Op::Remove => Err(ScimError::no_target("remove needs a path")),
            (None, Some(Value::Object(object))) => self.object(operation.op, object),
            (None, _) => Err(ScimError::invalid_value("without a path the value must be an object")),
        }
    }

    /// An operation with a path.
    fn at_path(&mut self, operation: &Operation, text: &str) -> Result<(), ScimError> {
        let path = PatchPath::parse(text).map_err(|error| match error {
            PatchPathError::Path(detail) => ScimError::invalid_path(detail),
            PatchPathError::Filter(error) => error,
        })?;
        let named = resolve(self.registry, self.resource_type, &path.attribute, self.dialect)
            .map_err(|error| ScimError::invalid_path(error.to_string()))?;
        match named {
            Named::Extension(_) if path.filter.is_some() => {
                Err(ScimError::invalid_filter(format!("{} has no elements", path.attribute)))
            }
            Named::Extension(urn) => self.extension(operation, urn),
            Named::Attribute { attribute, .. } if attribute.key == "schemas" => {
                self.schemas(operation, attribute, &path)
            }
            Named::Attribute { attribute, sub } => {
                let part = sub.map(|sub| sub.name.clone()).or(path.sub.clone());
                if sub.is_some() && path.filter.is_some() {
                    let detail = format!("{} cannot be filtered by [...]", path.attribute);
                    return Err(ScimError::invalid_filter(detail));
                }
                self.attribute(operation, attribute, PatchPath { sub: part, ..path })
            }
        }
    }

    fn attribute(
        &mut self,
        operation: &Operation,
        attribute: &'a Attribute,
        path: PatchPath,
    ) -> Result<(), ScimError> {
        let sub = match &path.sub {
            Some(name) => Some(find_part(attribute, name)?),
            None => None,
        };
        if attribute.is_read_only() || sub.is_some_and(Attribute::is_read_only) {
            return Err(ScimError::mutability(format!("{} is readOnly", sub.unwrap_or(attribute).path)));
        }
        if attribute.link {
            return self.members(operation, attribute, &path);
        }
        let null = Value::Null;
        let value = operation.value.as_ref().unwrap_or(&null);
        if let Some(filter) = &path.filter {
            return self.filtered(operation.op, attribute, filter, sub, value);
        }
        match (operation.op, sub) {
            (Op::Remove, None) if attribute.multi_valued && !value.is_null() => {
                self.remove_listed(attribute, value)
            }
            (Op::Remove, None) => self.assign(attribute, None),
            (op, None) => self.give(op, attribute, value),
            (op, Some(sub)) if attribute.multi_valued => self.part_of_all(op, attribute, sub, value),
            (Op::Remove, Some(sub)) => self.give_parts(attribute, vec![(sub, None)]),
            (_, Some(sub)) => {
                let value = self.part_value(attribute, sub, value)?;
                match value {
                    None if attribute.resource_ref && sub.name == "value" => self.assign(attribute, None),
                    value => self.give_parts(attribute, vec![(sub, value)]),
                }
            }
        }
    }

    /// The canonical value for one part. The server's own `$ref` is accepted and not kept.
    pub(super) fn part_value(
        &mut self,
        attribute: &Attribute,
        sub: &Attribute,
        value: &Value,
    ) -> Result<Option<Value>, ScimError> {
        let value = canonical(sub, value, self.dialect)?;
        let id = attribute.resource_ref && sub.name == "value";
        if id && value == Some(json!("")) {
            if self.dialect.allow(Quirk::EmptyUnassigns) {
                return Ok(None);
            }
            return Err(ScimError::invalid_value(format!("{} is empty", sub.path)));
        }
        if id {
            check_id(sub, value.as_ref())?;
        }
        Ok(value.filter(|_| !(attribute.resource_ref && sub.name == "$ref")))
    }

    /// `add` or `replace` of a whole attribute.
    fn give(&mut self, op: Op, attribute: &'a Attribute, value: &Value) -> Result<(), ScimError> {
        if attribute.link {
            return self.add_members(op, attribute, value);
        }
        if attribute.mutability == Mutability::WriteOnly {
            if let Some(change) = secret(attribute, value, self.dialect)? {
                self.password = Some(change);
            }
            return Ok(());
        }
        if attribute.multi_valued {
            let new = canonical(attribute, value, self.dialect)?;
            return match op {
                Op::Add => self.append(attribute, new),
                _ => self.assign(attribute, new),
            };
        }
        if !attribute.is_complex() {
            let new = canonical(attribute, value, self.dialect)?;
            return self.assign(attribute, new);
        }
        match parts(attribute, value, self.dialect)? {
            Given::Unassign => self.assign(attribute, None),
            Given::Parts(parts) => {
                let unassigned = |(sub, value): &(&Attribute, Option<Value>)| {
                    attribute.resource_ref && sub.name == "value" && value.is_none()
                };
                if parts.iter().any(unassigned) {
                    return self.assign(attribute, None);
                }
                self.give_parts(attribute, parts)
            }
        }
    }

    /// Merges parts into a single complex attribute.
    fn give_parts(
        &mut self,
        attribute: &Attribute,
        parts: Vec<(&Attribute, Option<Value>)>,
    ) -> Result<(), ScimError> {
        let mut object = match self.document.get(attribute) {
            Some(Value::Object(object)) => object.clone(),
            _ => Map::new(),
        };
        merge_parts(&mut object, parts)?;
        if !object.is_empty() {
            value::check_required_parts(attribute, &object)?;
        }
        self.assign(attribute, (!object.is_empty()).then_some(Value::Object(object)))
    }

    /// Puts a value in the place of what is there, if the attribute's characteristics allow it.
    pub(super) fn assign(&mut self, attribute: &Attribute, new: Option<Value>) -> Result<(), ScimError> {
        if attribute.mutability == Mutability::WriteOnly {
            if !self.dialect.allow(Quirk::IgnoreClientPasswords) {
                self.password = Some(PasswordChange::Clear);
            }
            return Ok(());
        }
        if attribute.required && new.is_none() {
            return Err(ScimError::mutability(format!("{} is required", attribute.path)));
        }
        if attribute.required && new == Some(json!("")) {
            return Err(ScimError::invalid_value(format!(
                "{} is required and cannot be empty",
                attribute.path
            )));
        }
        let old = self.document.get(attribute);
        if attribute.mutability == Mutability::Immutable
            && old.is_some_and(|old| new.as_ref().is_none_or(|new| old != new && !same(attribute, old, new)))
        {
            return Err(immutable(attribute));
        }
        self.document.set(attribute, new);
        if attribute.key == "username" {
            check_username(self.resource_type, &self.document, self.dialect)?;
        }
        Ok(())
    }

    /// A whole extension by its URN.
    fn extension(&mut self, operation: &Operation, urn: &'a str) -> Result<(), ScimError> {
        match (operation.op, &operation.value) {
            (Op::Remove, _) | (Op::Replace, Some(Value::Null)) => self.drop_extension(urn),
            (op, Some(Value::Object(object))) => self.extension_object(op, urn, object),
            _ => Err(ScimError::invalid_value(format!("{urn} must be an object"))),
        }
    }

    fn drop_extension(&mut self, urn: &str) -> Result<(), ScimError> {
        if self.resource_type.extension(urn).is_some_and(|extension| extension.required) {
            return Err(ScimError::mutability(format!("{urn} is required")));
        }
        for attribute in self.resource_type.extension_attributes(urn) {
            let value = self.document.get(attribute);
            if attribute.mutability == Mutability::Immutable && value.is_some() {
                return Err(immutable(attribute));
            }
        }
        self.document.0.remove(urn);
        Ok(())
    }

    fn extension_object(&mut self, op: Op, urn: &str, object: &Map<String, Value>) -> Result<(), ScimError> {
        check_keys(object, urn)?;
        for (name, value) in object {
            match self.resource_type.extension_attribute(urn, name) {
                Some(attribute) if attribute.is_read_only() => {}
                Some(attribute) => self.give(op, attribute, value)?,
                None => self.unknown(format!("{urn} has no attribute {name:?}"))?,
            }
        }
        Ok(())
    }

    /// An operation without path: each member of the value by itself. ReadOnly ones are ignored (P24).
    fn object(&mut self, op: Op, object: &Map<String, Value>) -> Result<(), ScimError> {
        check_keys(object, "value")?;
        object.iter().try_for_each(|(key, value)| self.member(op, key, value))
    }

    /// One member of a value without path (idp-quirks §2.8): an extension's URN, a path behind a URN, a
    /// path with a filter or a dot, a plain name.
    fn member(&mut self, op: Op, key: &str, value: &Value) -> Result<(), ScimError> {
        let (attribute, sub) = match resolve(self.registry, self.resource_type, key, self.dialect) {
            Ok(Named::Extension(urn)) => {
                let operation = Operation { op, path: None, value: Some(value.clone()) };
                return self.extension(&operation, urn);
            }
            Ok(Named::Attribute { attribute, sub }) => (attribute, sub),
            Err(PathError::Malformed(_)) if key.contains('[') && self.dialect.allow(Quirk::FilterKeys) => {
                let operation = Operation { op, path: Some(key.to_owned()), value: Some(value.clone()) };
                return self.at_path(&operation, key);
            }
            Err(error) => return self.unknown(error.to_string()),
        };
        let quirk = if key.contains(':') { Some(Quirk::UrnKeys) } else { sub.map(|_| Quirk::DottedKeys) };
        if quirk.is_some_and(|quirk| !self.dialect.allow(quirk)) {
            let detail = format!("{key:?} is a path; without a path the value has plain names");
            return Err(ScimError::invalid_path(detail));
        }
        if attribute.is_read_only() || sub.is_some_and(Attribute::is_read_only) {
            return Ok(());
        }
        match sub {
            None => self.give(op, attribute, value),
            Some(sub) if attribute.multi_valued && !attribute.link => {
                self.part_of_preferred(op, attribute, sub, value)
            }
            Some(sub) => {
                let path = PatchPath { attribute: String::new(), filter: None, sub: Some(sub.name.clone()) };
                let operation = Operation { op, path: None, value: Some(value.clone()) };
                self.attribute(&operation, attribute, path)
            }
        }
    }

    fn unknown(&mut self, detail: String) -> Result<(), ScimError> {
        if self.dialect.allow(Quirk::UnknownAttributes) {
            Ok(())
        } else {
            Err(ScimError::invalid_path(detail))
        }
    }

    /// Explicit operations on `schemas` (PA-009): an extension that is no longer named loses its data; the
    /// base schema stays. Naming one adds nothing, as only data does.
    fn schemas(
        &mut self,
        operation: &Operation,
        attribute: &'a Attribute,
        path: &PatchPath,
    ) -> Result<(), ScimError> {
        let urns = |value: &Value| -> Result<BTreeSet<String>, ScimError> {
            let list = match value {
                Value::Array(list) => list.as_slice(),
                one => std::slice::from_ref(one),
            };
            let text = |urn: &Value| urn.as_str().map(str::to_ascii_lowercase);
            let texts: Option<BTreeSet<String>> = list.iter().map(text).collect();
            texts.ok_or_else(|| ScimError::invalid_value("schemas must be an array of strings"))
        };
        let present: BTreeSet<String> =
            self.document.schemas(self.resource_type).into_iter().map(str::to_ascii_lowercase).collect();
        let remaining: BTreeSet<String> = match (operation.op, &operation.value, &path.filter) {
            (Op::Remove, _, Some(filter)) => self.unselected(attribute, filter, present)?,
            (_, _, Some(_)) => return Err(ScimError::mutability("schemas are added and removed only")),
            (Op::Remove, None | Some(Value::Null), None) => BTreeSet::new(),
            (Op::Remove, Some(value), None) => present.difference(&urns(value)?).cloned().collect(),
            (Op::Add, value, None) => {
                value.as_ref().map_or(Ok(BTreeSet::new()), urns)?;
                present
            }
            (Op::Replace, value, None) => value.as_ref().map_or(Ok(BTreeSet::new()), urns)?,
        };
        if !remaining.contains(&self.resource_type.schema.to_ascii_lowercase()) {
            return Err(ScimError::mutability(format!("{} stays", self.resource_type.schema)));
        }
        let resource_type = self.resource_type;
        for extension in &resource_type.extensions {
            let dropped = !remaining.contains(&extension.schema.to_ascii_lowercase());
            if dropped && self.document.0.contains_key(&extension.schema) {
                self.drop_extension(&extension.schema)?;
            }
        }
        Ok(())
    }
}

/// The part of an attribute by name; for a simple list, `value` is the element itself (erratum 7122).
fn find_part<'a>(attribute: &'a Attribute, name: &str) -> Result<&'a Attribute, ScimError> {
    let simple = !attribute.is_complex() && attribute.multi_valued && name.eq_ignore_ascii_case("value");
    attribute
        .sub(name)
        .or(simple.then_some(attribute))
        .ok_or_else(|| ScimError::invalid_path(format!("{} has no sub-attribute {name:?}", attribute.path)))
}

/// Sets and unassigns parts of an object, if their characteristics allow it.
pub(super) fn merge_parts(
    object: &mut Map<String, Value>,
    parts: Vec<(&Attribute, Option<Value>)>,
) -> Result<(), ScimError> {
    for (sub, value) in parts {
        let old = object.get(&sub.name);
        let differs = |old: &Value| value.as_ref().is_none_or(|new| old != new && !same(sub, old, new));
        if sub.mutability == Mutability::Immutable && old.is_some_and(differs) {
            return Err(immutable(sub));
        }
        match value {
            Some(value) => {
                object.insert(sub.name.clone(), value);
            }
            None if sub.required && old.is_some() => {
                return Err(ScimError::mutability(format!("{} is required", sub.path)));
            }
            None => {
                object.remove(&sub.name);
            }
        }
    }
    Ok(())
}

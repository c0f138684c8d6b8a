//! Projection (RFC 7644 §3.9): which attributes an answer has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::dialect::Dialect;
use super::error::ScimError;
use super::patch::{Op, Operation};
use super::path::{Named, PatchPath, resolve};
use super::schema::{Attribute, Registry, ResourceType, Returned};

/// What a client asked to see. Cheap to ask before anything is loaded.
#[derive(Clone, Debug)]
pub struct Projection {
    choice: Choice,
    /// The characteristic of every attribute and sub-attribute that is not `default`.
    returned: BTreeMap<String, Returned>,
    /// The keys of the extensions.
    extensions: BTreeSet<String>,
    /// What a change supplied of that which is returned only on request.
    supplied: BTreeSet<String>,
}

/// What a client wrote, as it stands in the request.
#[derive(Clone, Copy)]
pub enum Written<'a> {
    /// The body of POST and PUT.
    Body(&'a Value),
    /// The operations of PATCH.
    Operations(&'a [Operation]),
}

#[derive(Clone, Debug)]
enum Choice {
    /// The default set.
    Default,
    /// Only these keys.
    Only(BTreeSet<String>),
    /// The default set without these keys.
    Without(BTreeSet<String>),
}

impl Projection {
    /// Reads the two parameters: names separated by commas (lists are joined by the caller). Unknown names
    /// are ignored (AT-006), both at once is an error (AT-004), empty is not given.
    pub fn new(
        registry: &Registry,
        resource_type: &ResourceType,
        attributes: Option<&str>,
        excluded: Option<&str>,
        dialect: &mut Dialect,
    ) -> Result<Self, ScimError> {
        let mut keys = |names: &str| -> BTreeSet<String> {
            let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
            names.filter_map(|name| key(registry, resource_type, name, dialect)).collect()
        };
        let given = |names: &&str| !names.trim().is_empty();
        let choice = match (attributes.filter(given), excluded.filter(given)) {
            (Some(_), Some(_)) => {
                let detail = "attributes and excludedAttributes cannot be given together";
                return Err(ScimError::invalid_value(detail));
            }
            (Some(names), None) => Choice::Only(keys(names)),
            (None, Some(names)) => Choice::Without(keys(names)),
            (None, None) => Choice::Default,
        };
        let with_subs = resource_type.attributes().flat_map(|a| std::iter::once(a).chain(&a.sub_attributes));
        let special = with_subs.filter(|a| a.returned != Returned::Default);
        Ok(Self {
            choice,
            returned: special.map(|a| (a.key.clone(), a.returned)).collect(),
            extensions: resource_type.extensions.iter().map(|e| e.schema.to_ascii_lowercase()).collect(),
            supplied: BTreeSet::new(),
        })
    }

    /// The same for the answer to a change: what is returned only on request is there as well if the client
    /// wrote it, unless the client chose attributes itself (CH-009).
    #[must_use]
    pub fn with_written(
        mut self,
        registry: &Registry,
        resource_type: &ResourceType,
        written: Written<'_>,
        dialect: &mut Dialect,
    ) -> Self {
        if !self.returned.values().any(|returned| *returned == Returned::Request) {
            return self;
        }
        match written {
            Written::Body(body) => {
                for (name, value) in body.as_object().into_iter().flatten() {
                    match (resource_type.extension(dialect.modern_urn(resource_type, name)), value) {
                        (Some(extension), Value::Object(inner)) => {
                            for (name, value) in inner {
                                let found = resource_type.extension_attribute(&extension.schema, name);
                                self.supply(found, None, Some(value));
                            }
                        }
                        _ => self.supply(resource_type.core(name), None, Some(value)),
                    }
                }
            }
            Written::Operations(operations) => {
                let given = operations.iter().filter(|operation| operation.op != Op::Remove);
                for Operation { path, value, .. } in given {
                    let value = value.as_ref();
                    match (path, value) {
                        (Some(path), value) => self.supply_at(registry, resource_type, path, value, dialect),
                        (None, Some(Value::Object(parts))) => {
                            for (path, value) in parts {
                                self.supply_at(registry, resource_type, path, Some(value), dialect);
                            }
                        }
                        (None, _) => {}
                    }
                }
            }
        }
        self
    }

    /// Notes what a value at a PATCH path supplies.
    fn supply_at(
        &mut self,
        registry: &Registry,
        resource_type: &ResourceType,
        path: &str,
        value: Option<&Value>,
        dialect: &mut Dialect,
    ) {
        let Ok(path) = PatchPath::parse(path) else { return };
        match resolve(registry, resource_type, &path.attribute, dialect) {
            Ok(Named::Extension(urn)) => {
                for (name, value) in value.and_then(Value::as_object).into_iter().flatten() {
                    self.supply(resource_type.extension_attribute(urn, name), None, Some(value));
                }
            }
            Ok(Named::Attribute { attribute, sub }) => {
                let part = path.sub.and_then(|name| attribute.sub(&name));
                self.supply(Some(attribute), sub.or(part), value);
            }
            Err(_) => {}
        }
    }

    fn supply(&mut self, attribute: Option<&Attribute>, sub: Option<&Attribute>, value: Option<&Value>) {
        let Some(attribute) = attribute else { return };
        let elements = value.map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice));
        let parts = elements.into_iter().flatten().filter_map(Value::as_object).flatten();
        let parts = parts.filter_map(|(name, _)| attribute.sub(name));
        let all = [Some(attribute), sub].into_iter().flatten().chain(parts);
        self.supplied.extend(all.filter(|a| a.returned == Returned::Request).map(|a| a.key.clone()));
    }

    /// Whether the client named attributes, which makes PATCH answer 200 with a body (AT-009).
    pub fn is_explicit(&self) -> bool {
        !matches!(self.choice, Choice::Default)
    }

    /// Whether an answer has an attribute or part of it, so whether it must be loaded: `members`.
    pub fn wants(&self, key: &str) -> bool {
        match &self.choice {
            _ if self.returned.contains_key(key) => self.visible(key, &[]),
            Choice::Only(names) => {
                let inside = |name: &String| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
                self.visible(key, &[]) || names.iter().any(inside)
            }
            _ => self.visible(key, &[]),
        }
    }

    /// Leaves in a resource what is to be seen. What becomes empty goes; `schemas` keeps naming it (CS-003).
    pub fn apply(&self, resource: Map<String, Value>) -> Map<String, Value> {
        let mut out = Map::new();
        for (name, value) in resource {
            let key = name.to_ascii_lowercase();
            let value = match value {
                Value::Object(inner) if self.extensions.contains(&key) => {
                    let shown = inner.into_iter().filter_map(|(name, value)| {
                        let inner_key = format!("{key}:{}", name.to_ascii_lowercase());
                        Some((name, self.attribute(&inner_key, &[&key], value)?))
                    });
                    let shown: Map<_, _> = shown.collect();
                    (!shown.is_empty()).then_some(Value::Object(shown))
                }
                value => self.attribute(&key, &[], value),
            };
            if let Some(value) = value {
                out.insert(name, value);
            }
        }
        out
    }

    /// What is to be seen of an attribute.
    fn attribute(&self, key: &str, parents: &[&str], value: Value) -> Option<Value> {
        if self.returned.get(key) == Some(&Returned::Never) {
            return None;
        }
        let mut chain = vec![key];
        chain.extend(parents);
        match value {
            Value::Object(parts) => self.parts(key, &chain, parts).map(Value::Object),
            Value::Array(list) if list.iter().any(Value::is_object) => {
                let shown = list.into_iter().filter_map(|element| match element {
                    Value::Object(parts) => self.parts(key, &chain, parts).map(Value::Object),
                    simple => Some(simple),
                });
                let shown: Vec<_> = shown.collect();
                (!shown.is_empty()).then_some(Value::Array(shown))
            }
            // An empty list was put there on purpose, as for a group without members.
            value => self.visible(key, parents).then_some(value),
        }
    }

    fn parts(&self, key: &str, chain: &[&str], parts: Map<String, Value>) -> Option<Map<String, Value>> {
        let shown = |(name, _): &(String, Value)| {
            self.visible(&format!("{key}.{}", name.to_ascii_lowercase()), chain)
        };
        let shown: Map<_, _> = parts.into_iter().filter(shown).collect();
        (!shown.is_empty()).then_some(shown)
    }

    /// Whether the value at a key is seen; `parents` are the keys of what contains it.
    fn visible(&self, key: &str, parents: &[&str]) -> bool {
        let named =
            |names: &BTreeSet<String>| names.contains(key) || parents.iter().any(|p| names.contains(*p));
        // A part is returned as its attribute is, unless it says otherwise itself.
        let inherited = || parents.first().and_then(|p| self.returned.get(*p));
        match self.returned.get(key).or_else(inherited).copied().unwrap_or_default() {
            Returned::Always => true,
            Returned::Never => false,
            Returned::Request => match &self.choice {
                Choice::Default => named(&self.supplied),
                Choice::Only(names) => named(names),
                Choice::Without(names) => named(&self.supplied) && !named(names),
            },
            Returned::Default => match &self.choice {
                Choice::Default => true,
                Choice::Only(names) => named(names),
                Choice::Without(names) => !named(names),
            },
        }
    }
}

fn key(
    registry: &Registry,
    resource_type: &ResourceType,
    name: &str,
    dialect: &mut Dialect,
) -> Option<String> {
    match resolve(registry, resource_type, name, dialect).ok()? {
        Named::Extension(urn) => Some(urn.to_ascii_lowercase()),
        Named::Attribute { attribute, sub } => {
            Some(sub.map_or(&attribute.key, |sub: &Attribute| &sub.key).clone())
        }
    }
}

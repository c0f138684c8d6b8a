//! Projection (RFC 7644 §3.9): which attributes an answer has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::dialect::Dialect;
use super::error::ScimError;
use super::path::{Named, resolve};
use super::schema::{Attribute, Registry, ResourceType, Returned};

/// What a client asked to see. Cheap to ask before anything is loaded.
#[derive(Clone, Debug)]
pub struct Projection {
    choice: Choice,
    /// The characteristic of every attribute and sub-attribute that is not `default`.
    returned: BTreeMap<String, Returned>,
    /// The keys of the extensions.
    extensions: BTreeSet<String>,
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
        })
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
            Returned::Request => matches!(&self.choice, Choice::Only(names) if named(names)),
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

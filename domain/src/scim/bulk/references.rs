//! Where `bulkId:` stands for an id (BU-006): wherever the schema says that the id or the URI of a resource
//! belongs there, in resources, PATCH values, PATCH paths and their filters. Anywhere else it is just text.

use serde_json::{Map, Value};

use super::BULK_ID;
use crate::scim::dialect::Dialect;
use crate::scim::filter::{Filter, Literal};
use crate::scim::path::{Named, PatchPath, resolve};
use crate::scim::schema::{AttrType, Attribute, Registry, ResourceType};

/// Whether a text of a value, or a key, mentions a `bulkId:` at all.
pub(super) fn mentioned(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(BULK_ID),
        Value::Array(list) => list.iter().any(mentioned),
        Value::Object(object) => object.iter().any(|(key, value)| key.contains(BULK_ID) || mentioned(value)),
        _ => false,
    }
}

/// Tells `replace` each name behind a `bulkId:` that is a reference, and puts what it answers in its place.
pub(super) fn visit(
    registry: &Registry,
    resource_type: &ResourceType,
    patch: bool,
    data: &mut Value,
    dialect: &Dialect,
    replace: &mut dyn FnMut(&str) -> Option<String>,
) {
    // Quirks are recorded where the data is read, not here.
    let mut visitor = Visitor { registry, resource_type, dialect: dialect.clone(), replace };
    let Value::Object(data) = data else { return };
    if patch {
        visitor.patch(data);
    } else {
        visitor.resource(data);
    }
}

struct Visitor<'a> {
    registry: &'a Registry,
    resource_type: &'a ResourceType,
    dialect: Dialect,
    replace: &'a mut dyn FnMut(&str) -> Option<String>,
}

impl<'a> Visitor<'a> {
    fn resource(&mut self, data: &mut Map<String, Value>) {
        let rt = self.resource_type;
        for (name, value) in data {
            if let Some(attribute) = rt.core(name) {
                self.value(attribute, None, value);
            } else if let Some(extension) = rt.extension(self.dialect.modern_urn(rt, name)) {
                self.extension(&extension.schema, value);
            }
        }
    }

    fn extension(&mut self, urn: &str, value: &mut Value) {
        let rt = self.resource_type;
        for (name, value) in value.as_object_mut().into_iter().flatten() {
            if let Some(attribute) = rt.extension_attribute(urn, name) {
                self.value(attribute, None, value);
            }
        }
    }

    fn patch(&mut self, data: &mut Map<String, Value>) {
        let operations = data.iter_mut().find(|(key, _)| key.eq_ignore_ascii_case("Operations"));
        for operation in operations.and_then(|(_, list)| list.as_array_mut()).into_iter().flatten() {
            let Some(operation) = operation.as_object_mut() else { continue };
            let key = |name: &str| operation.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
            let (path_key, value_key) = (key("path"), key("value"));
            let path =
                path_key.and_then(|key| operation.get(&key)?.as_str().map(|path| (key, path.to_owned())));
            match path {
                None => {
                    let value = value_key.and_then(|key| operation.get_mut(&key)?.as_object_mut());
                    if let Some(object) = value {
                        self.keys(object);
                    }
                }
                Some((key, path)) => {
                    let mut nothing = Value::Null;
                    let value = value_key.and_then(|key| operation.get_mut(&key)).unwrap_or(&mut nothing);
                    if let Some(rewritten) = self.path(&path, value) {
                        operation.insert(key, Value::String(rewritten));
                    }
                }
            }
        }
    }

    /// The value of a PATCH without path: its keys are names, some clients' are paths.
    fn keys(&mut self, object: &mut Map<String, Value>) {
        let mut renamed = Vec::new();
        for (key, value) in object.iter_mut() {
            if let Some(rewritten) = self.path(key, value) {
                renamed.push((key.clone(), rewritten));
            }
        }
        for (old, new) in renamed {
            if let Some(value) = object.remove(&old) {
                object.insert(new, value);
            }
        }
    }

    /// Visits the value a path selects; the path with its references replaced, if there are any.
    fn path(&mut self, text: &str, value: &mut Value) -> Option<String> {
        // What cannot be read is refused, with its reason, when the PATCH is.
        let mut path = PatchPath::parse(text).ok()?;
        let (registry, rt) = (self.registry, self.resource_type);
        let (attribute, sub) = match resolve(registry, rt, &path.attribute, &mut self.dialect).ok()? {
            Named::Extension(urn) => {
                self.extension(urn, value);
                return None;
            }
            Named::Attribute { attribute, sub } => (attribute, sub),
        };
        let sub = path.sub.as_deref().map_or(sub, |name| attribute.sub(name));
        self.value(attribute, sub, value);
        let filter = path.filter.as_mut().filter(|_| text.contains(BULK_ID))?;
        let replaced = attribute.resource_ref && self.filter(filter);
        let sub = path.sub.iter().map(|sub| format!(".{sub}")).collect::<String>();
        replaced.then(|| format!("{}[{filter}]{sub}", path.attribute))
    }

    /// Whether anything in a filter on the elements of a reference was replaced.
    fn filter(&mut self, filter: &mut Filter) -> bool {
        match filter {
            // Not short-circuited: every term is visited.
            Filter::Or(terms) | Filter::And(terms) => {
                terms.iter_mut().fold(false, |any, term| self.filter(term) | any)
            }
            Filter::Not(inner) => self.filter(inner),
            Filter::Compare { path, literal: Literal::String(text), .. } if is_name_of_resource(path) => {
                self.text(text)
            }
            _ => false,
        }
    }

    fn value(&mut self, attribute: &'a Attribute, sub: Option<&'a Attribute>, value: &mut Value) {
        if attribute.is_read_only() {
            return;
        }
        if let Value::Array(list) = value {
            list.iter_mut().for_each(|element| self.value(attribute, sub, element));
            return;
        }
        match (value, sub) {
            (Value::String(text), None) if attribute.resource_ref || names_resource(attribute) => {
                self.text(text);
            }
            (Value::String(text), Some(sub)) if self.refers(attribute, &sub.name) => {
                self.text(text);
            }
            (Value::Object(object), None) => {
                for (key, value) in object {
                    if self.refers(attribute, key)
                        && let Value::String(text) = value
                    {
                        self.text(text);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether a part of a complex attribute holds the id or the URI of a resource.
    fn refers(&self, attribute: &Attribute, key: &str) -> bool {
        let legacy = key.eq_ignore_ascii_case("managerId") && !attribute.multi_valued;
        attribute.resource_ref && (is_name_of_resource(key) || legacy)
            || attribute.sub(key).is_some_and(names_resource)
    }

    /// `bulkId:u1`, or a URI that ends with it. Whether it was replaced.
    fn text(&mut self, text: &mut String) -> bool {
        let at = text.rfind('/').map_or(0, |slash| slash + 1);
        let Some(name) = text.get(at..).and_then(|last| last.strip_prefix(BULK_ID)) else { return false };
        let Some(id) = (self.replace)(name) else { return false };
        text.replace_range(at.., &id);
        true
    }
}

/// The parts of a reference that say which resource is meant.
fn is_name_of_resource(key: &str) -> bool {
    key.eq_ignore_ascii_case("value") || key.eq_ignore_ascii_case("$ref")
}

/// Whether an attribute's value is the URI of a resource of ours.
fn names_resource(attribute: &Attribute) -> bool {
    let web = |t: &String| t == "external" || t == "uri";
    attribute.kind == AttrType::Reference
        && !attribute.reference_types.is_empty()
        && !attribute.reference_types.iter().any(web)
}

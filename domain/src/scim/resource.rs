//! Resources as data: the canonical document, how a body becomes one, how two differ, how one is shown.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::dialect::{Dialect, Quirk};
use super::error::ScimError;
use super::fold::{is_password, prepare_password};
use super::patch::PasswordChange;
use super::schema::{AttrType, Attribute, Mutability, Registry, ResourceType, member};
use super::value::{canonical, check_keys, elements, parts, same, wrong_type};
use crate::clock::Timestamp;
use crate::ids::{ResourceId, Version};

/// The content of a resource: attributes in the schema's spelling, core ones at the top, those of an
/// extension in an object under its URN. Without `id`, `meta`, `schemas`, readOnly attributes, password
/// and members. Nothing in it is `null` or empty but strings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Document(pub Map<String, Value>);

impl Document {
    /// The value of an attribute.
    pub fn get(&self, attribute: &Attribute) -> Option<&Value> {
        match &attribute.extension {
            None => self.0.get(&attribute.name),
            Some(urn) => self.0.get(urn)?.get(&attribute.name),
        }
    }

    /// Sets or, with `None`, unassigns an attribute; an extension left empty goes with it.
    pub fn set(&mut self, attribute: &Attribute, value: Option<Value>) {
        let mut path: Vec<&str> = attribute.extension.as_deref().into_iter().collect();
        path.push(&attribute.name);
        put(&mut self.0, &path, value);
    }

    /// The URNs of the schemas in use: the base schema and each extension with a value (CS-003).
    pub fn schemas<'a>(&self, resource_type: &'a ResourceType) -> Vec<&'a str> {
        let used = resource_type.extensions.iter().filter(|e| self.0.contains_key(&e.schema));
        std::iter::once(resource_type.schema.as_str()).chain(used.map(|e| e.schema.as_str())).collect()
    }
}

/// What a body says.
#[derive(Debug)]
pub struct Parsed {
    /// The content.
    pub document: Document,
    /// What becomes of the password; `None` if the body does not mention it.
    pub password: Option<PasswordChange>,
    /// The members, without repetition; `None` if the body does not mention them. Whether they exist and
    /// what they are is the server's to find out.
    pub members: Option<Vec<ResourceId>>,
}

/// Reads the body of a POST (RFC 7644 §3.3). `active` is true if it is not mentioned (CR-004).
pub fn parse(
    registry: &Registry,
    resource_type: &ResourceType,
    body: &Value,
    dialect: &mut Dialect,
) -> Result<Parsed, ScimError> {
    let mut draft = Draft::read(registry, resource_type, body, dialect)?;
    let flag = |a: &&Attribute| a.kind == AttrType::Boolean && !a.multi_valued && a.is_stored();
    let active = resource_type.core("active").filter(flag);
    if let Some(active) = active.filter(|a| !draft.mentioned.contains(&a.key)) {
        draft.document.set(active, Some(json!(true)));
    }
    draft.finish(resource_type, dialect)
}

/// Reads the body of a PUT (RFC 7644 §3.5.1): what is omitted is cleared, members too, but `active`,
/// the password and what cannot change any more (PU-003, PU-004).
pub fn parse_replacement(
    registry: &Registry,
    resource_type: &ResourceType,
    current: &Document,
    body: &Value,
    dialect: &mut Dialect,
) -> Result<Parsed, ScimError> {
    let mut draft = Draft::read(registry, resource_type, body, dialect)?;
    for attribute in resource_type.attributes().filter(|a| a.is_stored()) {
        let mentioned = draft.mentioned.contains(&attribute.key);
        let Some(old) = current.get(attribute) else { continue };
        if attribute.key == "active" && !mentioned {
            draft.document.set(attribute, Some(old.clone()));
        } else if attribute.mutability == Mutability::Immutable {
            match draft.document.get(attribute) {
                Some(new) if !same(attribute, old, new) => return Err(immutable(attribute)),
                Some(_) => {}
                None => draft.document.set(attribute, Some(old.clone())),
            }
        } else if !attribute.multi_valued && attribute.is_complex() {
            keep_immutable_parts(attribute, old, &mut draft.document)?;
        }
    }
    for extension in &resource_type.extensions {
        if let Some(old) = current.0.get(&extension.schema)
            && !draft.extensions.contains(&extension.schema)
            && dialect.allow(Quirk::KeepOmittedExtensions)
        {
            draft.document.0.insert(extension.schema.clone(), old.clone());
        }
    }
    let mut parsed = draft.finish(resource_type, dialect)?;
    if resource_type.link_attribute().is_some()
        && parsed.members.is_none()
        && !dialect.allow(Quirk::PutWithoutMembersKeeps)
    {
        parsed.members = Some(Vec::new());
    }
    Ok(parsed)
}

/// The error for a change of what may be set only once (CH-004).
pub(crate) fn immutable(attribute: &Attribute) -> ScimError {
    ScimError::mutability(format!("{} is immutable and has another value", attribute.path))
}

fn keep_immutable_parts(
    attribute: &Attribute,
    old: &Value,
    document: &mut Document,
) -> Result<(), ScimError> {
    let mut new = document.get(attribute).cloned();
    for sub in attribute.sub_attributes.iter().filter(|sub| sub.mutability == Mutability::Immutable) {
        let Some(old) = old.get(&sub.name) else { continue };
        match new.as_ref().and_then(|new| new.get(&sub.name)) {
            Some(given) if !same(sub, old, given) => return Err(immutable(sub)),
            Some(_) => {}
            None => new.get_or_insert_with(|| json!({}))[&sub.name] = old.clone(),
        }
    }
    document.set(attribute, new);
    Ok(())
}

/// A body on its way to becoming a document.
#[derive(Default)]
struct Draft {
    document: Document,
    password: Option<PasswordChange>,
    members: Option<Vec<ResourceId>>,
    /// The keys of all attributes the body names, with or without a value.
    mentioned: BTreeSet<String>,
    /// The URNs of all extensions the body names.
    extensions: BTreeSet<String>,
}

impl Draft {
    fn read(
        registry: &Registry,
        resource_type: &ResourceType,
        body: &Value,
        dialect: &mut Dialect,
    ) -> Result<Self, ScimError> {
        let body = body.as_object().ok_or_else(|| ScimError::invalid_syntax("the body is no JSON object"))?;
        check_keys(body, "the body")?;
        check_schemas(registry, resource_type, member(body, "schemas"), dialect)?;
        let mut draft = Draft::default();
        for (name, value) in body {
            if let Some(attribute) = resource_type.core(name) {
                draft.take(attribute, value, dialect)?;
            } else if let Some(extension) = resource_type.extension(dialect.modern_urn(resource_type, name)) {
                draft.take_extension(resource_type, &extension.schema, value, dialect)?;
            } else {
                ignore_unknown(name, dialect)?;
            }
        }
        Ok(draft)
    }

    fn take_extension(
        &mut self,
        resource_type: &ResourceType,
        urn: &str,
        value: &Value,
        dialect: &mut Dialect,
    ) -> Result<(), ScimError> {
        self.extensions.insert(urn.to_owned());
        let object = match value {
            Value::Null => return Ok(()),
            Value::Object(object) => object,
            _ => return Err(ScimError::invalid_value(format!("{urn} must be an object"))),
        };
        check_keys(object, urn)?;
        for (name, value) in object {
            match resource_type.extension_attribute(urn, name) {
                Some(attribute) => self.take(attribute, value, dialect)?,
                None => ignore_unknown(name, dialect)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, attribute: &Attribute, value: &Value, dialect: &mut Dialect) -> Result<(), ScimError> {
        self.mentioned.insert(attribute.key.clone());
        if attribute.link {
            self.members = Some(member_ids(attribute, value, dialect)?);
        } else if attribute.mutability == Mutability::WriteOnly {
            self.password = secret(attribute, value, dialect)?;
        } else if attribute.is_stored() {
            let value = canonical(attribute, value, dialect)?;
            self.document.set(attribute, value);
        }
        Ok(())
    }

    fn finish(self, resource_type: &ResourceType, dialect: &Dialect) -> Result<Parsed, ScimError> {
        check_required(resource_type, &self.document)?;
        check_username(resource_type, &self.document, dialect)?;
        Ok(Parsed { document: self.document, password: self.password, members: self.members })
    }
}

fn ignore_unknown(name: &str, dialect: &mut Dialect) -> Result<(), ScimError> {
    if dialect.allow(Quirk::UnknownAttributes) {
        return Ok(());
    }
    Err(ScimError::invalid_syntax(format!("no schema defines the attribute {name:?}")))
}

/// CR-005, CR-006: `schemas` names the base schema; unknown URNs are ignored; another type's base schema
/// is an error in every profile.
fn check_schemas(
    registry: &Registry,
    resource_type: &ResourceType,
    schemas: Option<&Value>,
    dialect: &mut Dialect,
) -> Result<(), ScimError> {
    let shape = || ScimError::invalid_syntax("schemas must be an array of strings");
    let mut base = false;
    let list = match schemas {
        None | Some(Value::Null) => &Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(shape()),
    };
    for urn in list {
        let urn = dialect.modern_urn(resource_type, urn.as_str().ok_or_else(shape)?);
        if urn.eq_ignore_ascii_case(&resource_type.schema) {
            base = true;
        } else if let Some(other) = registry.resource_types().find(|o| o.schema.eq_ignore_ascii_case(urn)) {
            let detail = format!("schemas names {}, but this is a {}", other.name, resource_type.name);
            return Err(ScimError::invalid_syntax(detail));
        } else if resource_type.extension(urn).is_none() && !dialect.allow(Quirk::UnknownSchemas) {
            return Err(ScimError::invalid_syntax(format!("schemas names {urn:?}, which is not known")));
        }
    }
    if !base && !dialect.allow(Quirk::MissingSchemas) {
        return Err(ScimError::invalid_syntax(format!("schemas must name {}", resource_type.schema)));
    }
    Ok(())
}

/// The ids a value for `members` names. An element without `value` takes it from its `$ref` (GR-003);
/// one with neither is an error, null too: read as nothing, a list of them would empty a group.
pub(crate) fn member_ids(
    attribute: &Attribute,
    value: &Value,
    dialect: &mut Dialect,
) -> Result<Vec<ResourceId>, ScimError> {
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for element in elements(attribute, value, dialect)? {
        let given = match parts(attribute, element, dialect)? {
            super::value::Given::Parts(parts) => parts,
            super::value::Given::Unassign => {
                return Err(wrong_type(attribute, "an array of objects", element));
            }
        };
        let value = given.into_iter().find(|(sub, _)| sub.name == "value").and_then(|(_, value)| value);
        let Some(id) = value.as_ref().and_then(Value::as_str) else {
            return Err(ScimError::invalid_value(format!("{}: an element has no value", attribute.path)));
        };
        let id = ResourceId::from_text(id);
        if seen.insert(id.clone()) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Longest password, in bytes of UTF-8. Hashing is slow on purpose and takes no longer for a long one, but
/// nobody types this.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// What a value for the password means; `None` if the connection throws passwords away. Every non-empty one
/// is taken (US-004); it is prepared by PRECIS here (IN-001), so that what is hashed is what is compared.
/// Errors do not repeat it.
pub(crate) fn secret(
    attribute: &Attribute,
    value: &Value,
    dialect: &mut Dialect,
) -> Result<Option<PasswordChange>, ScimError> {
    let text = match value {
        Value::Null => return Ok(Some(PasswordChange::Clear)),
        Value::String(text) if !text.is_empty() && !text.contains('\0') => text,
        _ => return Err(wrong_type(attribute, "a string that is neither empty nor contains U+0000", value)),
    };
    if text.len() > PASSWORD_BYTES_MAX {
        let detail = format!("{} is longer than {PASSWORD_BYTES_MAX} bytes", attribute.path);
        return Err(ScimError::invalid_value(detail));
    }
    if dialect.is_strict() && !is_password(text) {
        let detail = format!("{} has characters that RFC 8265 does not allow", attribute.path);
        return Err(ScimError::invalid_value(detail));
    }
    if dialect.allow(Quirk::IgnoreClientPasswords) {
        return Ok(None);
    }
    Ok(Some(PasswordChange::Set(prepare_password(text).into())))
}

/// CH-013, RT-001: required attributes have values, required extensions are there.
pub(crate) fn check_required(resource_type: &ResourceType, document: &Document) -> Result<(), ScimError> {
    let missing = |what: &str| Err(ScimError::invalid_value(format!("{what} is required")));
    for extension in resource_type.extensions.iter().filter(|e| e.required) {
        if !document.0.contains_key(&extension.schema) {
            return missing(&extension.schema);
        }
    }
    for attribute in resource_type.attributes().filter(|a| a.required && a.is_stored()) {
        let applies = attribute.extension.as_ref().is_none_or(|urn| document.0.contains_key(urn));
        if applies && document.get(attribute).is_none_or(|value| *value == json!("")) {
            return missing(&attribute.path);
        }
    }
    Ok(())
}

/// IN-003: a strict client is held to PRECIS; for all others names with spaces work.
pub(crate) fn check_username(
    resource_type: &ResourceType,
    document: &Document,
    dialect: &Dialect,
) -> Result<(), ScimError> {
    let name = resource_type.core("userName").and_then(|a| document.get(a)).and_then(Value::as_str);
    match name {
        Some(name) if dialect.is_strict() && !super::fold::is_username(name) => {
            Err(ScimError::invalid_value("userName has characters that RFC 8265 does not allow"))
        }
        _ => Ok(()),
    }
}

/// One difference between two documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The attribute, or the part of a single complex one: `title`, `name.givenName`,
    /// `urn:…:User:manager.value`. A multi-valued attribute changes as its whole list.
    pub path: String,
    /// The value before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// The value after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
}

/// The differences between two documents, sorted by path. Needs no schema, like [`apply_changes`], so
/// events stay readable whatever becomes of the schema.
pub fn diff(old: &Document, new: &Document) -> Vec<Change> {
    let mut changes = BTreeMap::new();
    for (name, old, new) in pairs(Some(&old.0), Some(&new.0)) {
        if is_urn(name) {
            let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            for (inner, old, new) in pairs(old, new) {
                diff_attribute(&format!("{name}:{inner}"), old, new, &mut changes);
            }
        } else {
            diff_attribute(name, old, new, &mut changes);
        }
    }
    changes.into_values().collect()
}

fn diff_attribute(
    path: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    changes: &mut BTreeMap<String, Change>,
) {
    let complex = |value: Option<&Value>| value.is_none_or(Value::is_object);
    if complex(old) && complex(new) {
        let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
        for (sub, old, new) in pairs(old, new) {
            note(format!("{path}.{sub}"), old, new, changes);
        }
    } else {
        note(path.to_owned(), old, new, changes);
    }
}

fn note(path: String, old: Option<&Value>, new: Option<&Value>, changes: &mut BTreeMap<String, Change>) {
    if old != new {
        changes.insert(path.clone(), Change { path, old: old.cloned(), new: new.cloned() });
    }
}

/// The members of two objects side by side.
fn pairs<'a>(
    old: Option<&'a Map<String, Value>>,
    new: Option<&'a Map<String, Value>>,
) -> Vec<(&'a str, Option<&'a Value>, Option<&'a Value>)> {
    let names: BTreeSet<&str> =
        [old, new].into_iter().flatten().flat_map(Map::keys).map(String::as_str).collect();
    let get = |object: Option<&'a Map<String, Value>>, name| object.and_then(|o| o.get(name));
    names.into_iter().map(|name| (name, get(old, name), get(new, name))).collect()
}

fn is_urn(path: &str) -> bool {
    path.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("urn:"))
}

/// Makes the new document of the old one: `apply_changes(a, diff(a, b))` is `b`. Needs no schema: a path
/// that starts with `urn:` is split at its last `:`, the rest at `.`; what is left empty is removed.
pub fn apply_changes(document: &mut Document, changes: &[Change]) {
    for change in changes {
        let (urn, rest) = match change.path.rsplit_once(':') {
            Some((urn, rest)) if is_urn(&change.path) => (Some(urn), rest),
            _ => (None, change.path.as_str()),
        };
        let path: Vec<&str> = urn.into_iter().chain(rest.split('.')).collect();
        put(&mut document.0, &path, change.new.clone());
    }
}

/// Sets or removes what is at a path of at most three names; objects come and go as needed.
fn put(object: &mut Map<String, Value>, path: &[&str], value: Option<Value>) {
    match (path, value) {
        ([], _) => {}
        ([name], Some(value)) => {
            object.insert((*name).to_owned(), value);
        }
        ([name], None) => {
            object.remove(*name);
        }
        ([name, rest @ ..], value) => {
            if value.is_none() && !object.get(*name).is_some_and(Value::is_object) {
                return;
            }
            let inner = object.entry(*name).or_insert_with(|| json!({}));
            if !inner.is_object() {
                *inner = json!({});
            }
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
                if inner.is_empty() {
                    object.remove(*name);
                }
            }
        }
    }
}

/// What the journal knows about a resource besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// When it was created.
    pub created: Timestamp,
    /// When it last changed.
    pub last_modified: Timestamp,
    /// How many changes it has had.
    pub version: Version,
    /// Its URI.
    pub location: String,
}

/// The entity tag of a version: weak, as one version has several representations (CS-012).
pub fn etag(version: Version) -> String {
    format!("W/\"{version}\"")
}

/// The resource as shown to a client: the content with `schemas`, `id` and `meta`.
pub fn render(
    resource_type: &ResourceType,
    id: &ResourceId,
    document: &Document,
    meta: &Meta,
) -> Map<String, Value> {
    let mut out = document.0.clone();
    out.insert("schemas".to_owned(), json!(document.schemas(resource_type)));
    out.insert("id".to_owned(), json!(id));
    let meta = json!({
        "resourceType": resource_type.name,
        "created": meta.created.to_rfc3339(),
        "lastModified": meta.last_modified.to_rfc3339(),
        "location": meta.location,
        "version": etag(meta.version),
    });
    out.insert("meta".to_owned(), meta);
    out
}

//! From the JSON of RFC 7643 §6 and §7 to a checked definition. Every error names the place.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    API_PREFIX, ATTRIBUTES_MAX, AttributeDefinition, BUILT_IN, CORE_PREFIX, DEFINITION_BYTES_MAX,
    DESCRIPTION_BYTES_MAX, EXTENSIONS_MAX, NAME_BYTES_MAX, RESERVED_ATTRIBUTES, RESERVED_ENDPOINTS,
    RESERVED_TYPES, ResourceTypeDefinition, SchemaDefinition, URN_BYTES_MAX, VALUES_MAX, invalid,
};
use crate::scim::error::ScimError;
use crate::scim::path::is_name;
use crate::scim::schema::{AttrType, Extension, Mutability, Registry, Uniqueness};

type Result<T> = std::result::Result<T, ScimError>;

/// The members of a JSON object, taken one by one, so that what is left over is an error.
struct Members<'a> {
    place: String,
    object: Map<String, Value>,
    json: &'a Value,
}

impl<'a> Members<'a> {
    fn of(json: &'a Value, place: &str) -> Result<Self> {
        match json {
            Value::Object(object) => {
                let mut object = object.clone();
                object.retain(|_, value| !value.is_null());
                Ok(Members { place: place.to_owned(), object, json })
            }
            _ => Err(invalid(place, "it must be a JSON object")),
        }
    }

    fn at(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name)
    }

    fn text(&mut self, name: &str, bytes_max: usize) -> Result<Option<String>> {
        let place = self.at(name);
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= bytes_max && !text.contains(char::is_control) => {
                Ok(Some(text))
            }
            Some(Value::String(_)) => {
                Err(invalid(&place, format!("at most {bytes_max} bytes without control characters")))
            }
            Some(_) => Err(invalid(&place, "it must be a string")),
        }
    }

    fn required_text(&mut self, name: &str, bytes_max: usize) -> Result<String> {
        let place = self.at(name);
        let text = self.text(name, bytes_max)?.filter(|text| !text.is_empty());
        text.ok_or_else(|| invalid(&place, "it is missing"))
    }

    fn flag(&mut self, name: &str) -> Result<bool> {
        let place = self.at(name);
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(invalid(&place, "it must be true or false")),
        }
    }

    /// A keyword of RFC 7643 §7; absent is the default.
    fn keyword<T: DeserializeOwned + Default>(&mut self, name: &str, all: &str) -> Result<T> {
        let place = self.at(name);
        match self.take(name) {
            None => Ok(T::default()),
            Some(value) => {
                serde_json::from_value(value).map_err(|_| invalid(&place, format!("it must be one of {all}")))
            }
        }
    }

    fn list(&mut self, name: &str, max: usize) -> Result<Vec<Value>> {
        let place = self.at(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() <= max => Ok(list),
            Some(Value::Array(_)) => Err(invalid(&place, format!("at most {max} elements"))),
            Some(_) => Err(invalid(&place, "it must be an array")),
        }
    }

    fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        let place = self.at(name);
        let mut texts = Vec::new();
        for value in self.list(name, VALUES_MAX)? {
            match value {
                Value::String(text)
                    if !text.is_empty()
                        && text.len() <= NAME_BYTES_MAX
                        && !text.contains(char::is_control) =>
                {
                    if texts.contains(&text) {
                        return Err(invalid(&place, format!("{text:?} is there twice")));
                    }
                    texts.push(text);
                }
                _ => {
                    let why = format!("its elements must be strings of 1 to {NAME_BYTES_MAX} bytes");
                    return Err(invalid(&place, why));
                }
            }
        }
        Ok(texts)
    }

    /// Ends the reading: nothing may be left but what the server adds itself.
    fn end(mut self, served: &[&str]) -> Result<()> {
        for name in served {
            self.object.remove(*name);
        }
        match self.object.keys().next() {
            None => Ok(()),
            Some(name) => Err(invalid(&self.at(name), "there is no such member")),
        }
    }

    fn check_size(&self) -> Result<()> {
        if self.json.to_string().len() > DEFINITION_BYTES_MAX {
            return Err(invalid("the definition", format!("it is larger than {DEFINITION_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

pub(super) fn schema(json: &Value) -> Result<SchemaDefinition> {
    let mut members = Members::of(json, "")?;
    members.check_size()?;
    let id = members.required_text("id", URN_BYTES_MAX)?;
    check_urn(&id)?;
    let name = members.text("name", NAME_BYTES_MAX)?.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| id.rsplit(':').next().unwrap_or(&id).to_owned());
    let description = members.text("description", DESCRIPTION_BYTES_MAX)?.unwrap_or_default();
    let given = members.list("attributes", ATTRIBUTES_MAX)?;
    members.end(&["schemas", "meta"])?;
    if given.is_empty() {
        return Err(invalid("attributes", "a schema needs at least one"));
    }
    let mut attributes = Vec::with_capacity(given.len());
    let mut names = BTreeSet::new();
    for (at, json) in given.iter().enumerate() {
        let attribute = attribute(json, &format!("attributes[{at}]"), None)?;
        if !names.insert(attribute.name.to_ascii_lowercase()) {
            return Err(invalid(&attribute.name, "the attribute is defined twice"));
        }
        attributes.push(attribute);
    }
    let count = attributes.iter().map(|a| 1 + a.sub_attributes.len()).sum::<usize>();
    if count > ATTRIBUTES_MAX {
        return Err(invalid("attributes", format!("at most {ATTRIBUTES_MAX}, parts included")));
    }
    Ok(SchemaDefinition { id, name, description, attributes, retired: false })
}

/// RFC 8141 without what paths, subjects and URLs give a meaning: `urn:<nid>:<letters, digits, . _ - :>`.
fn check_urn(urn: &str) -> Result<()> {
    let wrong = |why: &str| Err(invalid("id", format!("{urn}: {why}")));
    let mut parts = urn.splitn(3, ':');
    let (scheme, nid, nss) =
        (parts.next(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if !scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("urn")) || nid.len() < 2 || nid.len() > 32 {
        return wrong("it is no URN, such as urn:example:schemas:2.0:Device");
    }
    let nid_ok = nid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !nid.starts_with('-');
    let segment_ok = |segment: &str| {
        !segment.is_empty()
            && !segment.ends_with('.')
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if !nid_ok || !nss.split(':').all(segment_ok) {
        return wrong("after urn:, parts of letters, digits, '.', '_' and '-' with ':' between them");
    }
    let lower = urn.to_ascii_lowercase();
    if Registry::standard().schema(urn).is_some() {
        return wrong("every tenant has this schema, and it cannot be changed");
    }
    if lower.starts_with(CORE_PREFIX) || lower.starts_with(API_PREFIX) {
        return wrong("the name belongs to the standard");
    }
    Ok(())
}

fn attribute(json: &Value, place: &str, parent: Option<&str>) -> Result<AttributeDefinition> {
    let mut members = Members::of(json, place)?;
    let name = members.required_text("name", NAME_BYTES_MAX)?;
    let path = parent.map_or_else(|| name.clone(), |parent| format!("{parent}.{name}"));
    members.place.clone_from(&path);
    let kind: AttrType = members
        .keyword("type", "string, boolean, decimal, integer, dateTime, binary, reference and complex")?;
    let case_exact = members.take("caseExact");
    let mut attribute = AttributeDefinition {
        kind,
        multi_valued: members.flag("multiValued")?,
        description: members.text("description", DESCRIPTION_BYTES_MAX)?.unwrap_or_default(),
        required: members.flag("required")?,
        canonical_values: members.texts("canonicalValues")?,
        // RFC 7643 §2.3: references and binary values are compared exactly.
        case_exact: match case_exact {
            None => matches!(kind, AttrType::Reference | AttrType::Binary),
            Some(Value::Bool(exact)) => exact,
            Some(_) => return Err(invalid(&members.at("caseExact"), "it must be true or false")),
        },
        mutability: members.keyword("mutability", "readOnly, readWrite and immutable")?,
        returned: members.keyword("returned", "always, never, default and request")?,
        uniqueness: members.keyword("uniqueness", "none, server and global")?,
        reference_types: members.texts("referenceTypes")?,
        sub_attributes: Vec::new(),
        personal: members.flag("x-personal")?,
        closed: members.flag("x-closed")?,
        name,
    };
    let subs = members.list("subAttributes", ATTRIBUTES_MAX)?;
    members.end(&[])?;
    if parent.is_some() && !subs.is_empty() {
        return Err(invalid(&path, "parts of a complex attribute cannot have parts"));
    }
    let mut names = BTreeSet::new();
    for (at, json) in subs.iter().enumerate() {
        let sub = self::attribute(json, &format!("{path}.subAttributes[{at}]"), Some(&path))?;
        if !names.insert(sub.name.to_ascii_lowercase()) {
            return Err(invalid(&format!("{path}.{}", sub.name), "the part is defined twice"));
        }
        attribute.sub_attributes.push(sub);
    }
    check_name(&attribute, &path, parent.is_some())?;
    check_kind(&attribute, &path, parent.is_some())?;
    check_characteristics(&attribute, &path, parent.is_some())?;
    Ok(attribute)
}

fn check_name(attribute: &AttributeDefinition, path: &str, is_sub: bool) -> Result<()> {
    let name = attribute.name.as_str();
    if is_sub && name == "$ref" {
        return match attribute.kind {
            AttrType::Reference if !attribute.multi_valued => Ok(()),
            _ => Err(invalid(path, "$ref must be a single reference")),
        };
    }
    if !is_name(name) || name.contains('$') {
        return Err(invalid(path, "a name is a letter, then letters, digits, '-' and '_'"));
    }
    if !is_sub && RESERVED_ATTRIBUTES.iter().any(|reserved| reserved.eq_ignore_ascii_case(name)) {
        return Err(invalid(path, "the name is reserved"));
    }
    if is_sub && name == "primary" && (attribute.kind != AttrType::Boolean || attribute.multi_valued) {
        return Err(invalid(path, "primary must be a single boolean"));
    }
    Ok(())
}

fn check_kind(attribute: &AttributeDefinition, path: &str, is_sub: bool) -> Result<()> {
    let complex = attribute.kind == AttrType::Complex;
    if complex && is_sub {
        return Err(invalid(path, "a part of a complex attribute cannot be complex"));
    }
    if complex == attribute.sub_attributes.is_empty() {
        return Err(invalid(path, "subAttributes are what makes an attribute complex"));
    }
    if is_sub && attribute.multi_valued {
        return Err(invalid(path, "a part of a complex attribute cannot be multiValued"));
    }
    if attribute.case_exact
        && !matches!(attribute.kind, AttrType::String | AttrType::Reference | AttrType::Binary)
    {
        return Err(invalid(path, "caseExact is for strings"));
    }
    if !attribute.case_exact && matches!(attribute.kind, AttrType::Reference | AttrType::Binary) {
        return Err(invalid(path, "values of this type are compared exactly, caseExact must be true"));
    }
    if !attribute.canonical_values.is_empty() && attribute.kind != AttrType::String {
        return Err(invalid(path, "canonicalValues are for strings"));
    }
    if attribute.closed && attribute.canonical_values.is_empty() {
        return Err(invalid(path, "x-closed needs canonicalValues"));
    }
    if !attribute.reference_types.is_empty() && attribute.kind != AttrType::Reference {
        return Err(invalid(path, "referenceTypes are for references"));
    }
    let refers = attribute.sub_attributes.iter().any(|sub| sub.name == "$ref");
    let value = attribute.sub_attributes.iter().find(|sub| sub.name == "value");
    if refers && value.is_some_and(|value| value.kind != AttrType::String) {
        return Err(invalid(
            &format!("{path}.value"),
            "beside a $ref it holds an id, so it must be a string",
        ));
    }
    Ok(())
}

fn check_characteristics(attribute: &AttributeDefinition, path: &str, is_sub: bool) -> Result<()> {
    let read_only = attribute.mutability == Mutability::ReadOnly;
    if attribute.mutability == Mutability::WriteOnly {
        let why = "only the password of users can be writeOnly; `returned: never` keeps a value from answers";
        return Err(invalid(path, why));
    }
    if read_only && attribute.required {
        return Err(invalid(path, "nobody could give it a value: readOnly and required exclude each other"));
    }
    if attribute.uniqueness == Uniqueness::None {
        return Ok(());
    }
    // RFC 7643 §7 asks of `global` what a server can do about it: the same as for `server`.
    if is_sub || attribute.multi_valued {
        return Err(invalid(path, "only a single value can be unique, no list and no part"));
    }
    if matches!(attribute.kind, AttrType::Complex | AttrType::Boolean | AttrType::Binary) {
        return Err(invalid(path, "values of this type cannot be unique (RFC 7643 §2.3)"));
    }
    if read_only {
        return Err(invalid(path, "nobody could give it a value: readOnly and unique exclude each other"));
    }
    Ok(())
}

pub(super) fn resource_type(json: &Value) -> Result<ResourceTypeDefinition> {
    let mut members = Members::of(json, "")?;
    members.check_size()?;
    let name = members.required_text("name", NAME_BYTES_MAX)?;
    let is_built_in = BUILT_IN.contains(&name.as_str());
    let standard = Registry::standard();
    let known = standard.resource_type(&name).filter(|_| is_built_in);
    let endpoint = members.text("endpoint", NAME_BYTES_MAX)?;
    let schema = members.text("schema", URN_BYTES_MAX)?;
    let description = members.text("description", DESCRIPTION_BYTES_MAX)?;
    let personal = members.flag("x-personal")?;
    let mut schema_extensions: Vec<Extension> = Vec::new();
    for (at, json) in members.list("schemaExtensions", EXTENSIONS_MAX)?.iter().enumerate() {
        let mut inner = Members::of(json, &format!("schemaExtensions[{at}]"))?;
        let extension = Extension {
            schema: inner.required_text("schema", URN_BYTES_MAX)?,
            required: inner.flag("required")?,
        };
        inner.end(&[])?;
        if schema_extensions.iter().any(|other| other.schema.eq_ignore_ascii_case(&extension.schema)) {
            return Err(invalid("schemaExtensions", format!("{} is there twice", extension.schema)));
        }
        schema_extensions.push(extension);
    }
    members.end(&["schemas", "meta", "id"])?;
    if let Some(known) = known {
        // What the server serves can be sent back; the rest of a built-in type is not the tenant's to change.
        if endpoint.is_some_and(|endpoint| endpoint != known.endpoint) {
            return Err(invalid("endpoint", format!("that of {name} is {}", known.endpoint)));
        }
        if schema.is_some_and(|schema| schema != known.schema) {
            return Err(invalid("schema", format!("that of {name} is {}", known.schema)));
        }
        if personal && !known.personal {
            return Err(invalid("x-personal", format!("{name} becomes personal by an attribute that is")));
        }
        return Ok(ResourceTypeDefinition {
            endpoint: known.endpoint.clone(),
            description: known.description.clone(),
            schema: known.schema.clone(),
            personal: false,
            retired: false,
            schema_extensions,
            name,
        });
    }
    check_type_name(&name)?;
    let endpoint = endpoint.ok_or_else(|| invalid("endpoint", "it is missing"))?;
    check_endpoint(&endpoint)?;
    let schema = schema.filter(|s| !s.is_empty()).ok_or_else(|| invalid("schema", "it is missing"))?;
    let description = description.unwrap_or_default();
    Ok(ResourceTypeDefinition {
        name,
        endpoint,
        description,
        schema,
        schema_extensions,
        personal,
        retired: false,
    })
}

/// The name is a token of NATS subjects, and in lower case the beginning of event kinds.
fn check_type_name(name: &str) -> Result<()> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    if !first || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(invalid("name", format!("{name}: a name is a letter, then letters and digits")));
    }
    let reserved = RESERVED_TYPES.iter().chain(&BUILT_IN);
    if reserved.into_iter().any(|reserved| reserved.eq_ignore_ascii_case(name)) {
        return Err(invalid("name", format!("{name} is reserved")));
    }
    Ok(())
}

fn check_endpoint(endpoint: &str) -> Result<()> {
    let wrong = |why: &str| Err(invalid("endpoint", format!("{endpoint}: {why}")));
    let Some(segment) = endpoint.strip_prefix('/') else { return wrong("it begins with '/'") };
    let first = segment.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    if !first || !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return wrong("after '/', a letter, then letters, digits, '-' and '_'");
    }
    let digits = segment.strip_prefix(['v', 'V']).unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return wrong("it would be read as a version of the protocol");
    }
    if RESERVED_ENDPOINTS.iter().any(|reserved| reserved.eq_ignore_ascii_case(endpoint)) {
        return wrong("it is reserved");
    }
    Ok(())
}

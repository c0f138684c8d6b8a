//! Schemas and resource types (RFC 7643 §6, §7): the data that drives everything else.
//!
//! A [`Registry`] is immutable; a tenant's own schemas make a new one from a [`RegistryBuilder`]. A
//! [`ResourceType`] carries its resolved attributes, core and extensions, each under its *key*: the
//! lower-case path (`emails.value`, `urn:…:user:manager.value`) that index rows, projections and
//! filters share.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

/// The base schema of users.
pub const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
/// The base schema of groups.
pub const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";
/// The enterprise extension of users.
pub const ENTERPRISE_USER: &str = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";

/// The type of an attribute's values (RFC 7643 §2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AttrType {
    /// Unicode text.
    #[default]
    String,
    /// `true` or `false`.
    Boolean,
    /// A number.
    Decimal,
    /// A number without fraction or exponent.
    Integer,
    /// An xsd:dateTime.
    DateTime,
    /// Base64 text.
    Binary,
    /// A URI.
    Reference,
    /// An object of simple attributes.
    Complex,
}

/// Who may change an attribute and when (RFC 7643 §7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mutability {
    /// Only the server.
    ReadOnly,
    /// The client, at any time.
    #[default]
    ReadWrite,
    /// The client, while there is no value.
    Immutable,
    /// The client, but it is never returned.
    WriteOnly,
}

/// When an attribute is part of an answer (RFC 7643 §7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Returned {
    /// Always.
    Always,
    /// Never, not even if asked for.
    Never,
    /// Unless the client chose otherwise.
    #[default]
    Default,
    /// Only if asked for.
    Request,
}

/// Within which bounds a value may occur only once (RFC 7643 §7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Uniqueness {
    /// Values may repeat.
    #[default]
    None,
    /// Unique within the resource type of a tenant.
    Server,
    /// Unique in the world.
    Global,
}

/// An attribute or sub-attribute with its characteristics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// The name in the schema's spelling.
    pub name: String,
    /// The full path in the schema's spelling; extension attributes begin with their schema's URN.
    pub path: String,
    /// The path in lower case, by which rows, filters and projections know the attribute.
    pub key: String,
    /// The URN of the extension that defines it, in the schema's spelling; none for core attributes.
    pub extension: Option<String>,
    /// The type of its values.
    pub kind: AttrType,
    /// Whether it holds a list.
    pub multi_valued: bool,
    /// What it means.
    pub description: String,
    /// Whether it must have a value (CH-013).
    pub required: bool,
    /// Whether upper and lower case differ (CH-001).
    pub case_exact: bool,
    /// Who may change it.
    pub mutability: Mutability,
    /// When it is returned.
    pub returned: Returned,
    /// Within which bounds its values are unique.
    pub uniqueness: Uniqueness,
    /// What a reference may point to.
    pub reference_types: Vec<String>,
    /// Suggested values.
    pub canonical_values: Vec<String>,
    /// Whether only the suggested values are allowed (CS-037).
    pub closed: bool,
    /// The parts of a complex attribute.
    pub sub_attributes: Vec<Attribute>,
    /// Whether its elements are kept as links, never in the document (D4): `Group.members`.
    pub link: bool,
    /// Whether it is complex and its `value` holds the id of a resource: `manager`, `members`, `groups`.
    pub resource_ref: bool,
    /// Whether its values are about a person: then resources of a type that has it are sealed (D9).
    pub personal: bool,
}

impl Attribute {
    /// The sub-attribute of that name, compared without case (CS-020).
    pub fn sub(&self, name: &str) -> Option<&Attribute> {
        self.sub_attributes.iter().find(|sub| sub.name.eq_ignore_ascii_case(name))
    }

    /// Whether it is an object of sub-attributes.
    pub fn is_complex(&self) -> bool {
        self.kind == AttrType::Complex
    }

    /// Whether only the server writes it (CH-002).
    pub fn is_read_only(&self) -> bool {
        self.mutability == Mutability::ReadOnly
    }

    /// Whether its values are links, kept (`members`) or derived from those kept elsewhere (`groups`).
    pub fn is_linked(&self) -> bool {
        self.link || (self.resource_ref && self.multi_valued && self.is_read_only() && self.key == "groups")
    }

    /// Whether no two resources of the type may have the same value of it. One value of a plain type can be
    /// unique, a list or its parts cannot.
    pub fn is_unique(&self) -> bool {
        self.uniqueness != Uniqueness::None && !self.multi_valued && !self.is_complex() && self.is_stored()
    }

    /// Whether documents hold it: not the server's own values, not secrets, not links.
    pub fn is_stored(&self) -> bool {
        !self.link && matches!(self.mutability, Mutability::ReadWrite | Mutability::Immutable)
    }

    fn to_json(&self) -> Value {
        let mut out = json!({
            "name": self.name,
            "type": self.kind,
            "multiValued": self.multi_valued,
            "description": self.description,
            "required": self.required,
            "mutability": self.mutability,
            "returned": self.returned,
        });
        if self.is_complex() {
            out["subAttributes"] = self.sub_attributes.iter().map(Attribute::to_json).collect();
        } else {
            out["uniqueness"] = json!(self.uniqueness);
        }
        if matches!(self.kind, AttrType::String | AttrType::Reference | AttrType::Binary) {
            out["caseExact"] = json!(self.case_exact);
        }
        if !self.canonical_values.is_empty() {
            out["canonicalValues"] = json!(self.canonical_values);
        }
        if !self.reference_types.is_empty() {
            out["referenceTypes"] = json!(self.reference_types);
        }
        out
    }
}

/// A schema: a URN and its attributes (RFC 7643 §7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The URN.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// What it describes.
    pub description: String,
    /// Its attributes, keyed as core attributes.
    pub attributes: Vec<Attribute>,
    /// Out of use: not served; only a retired resource type has it.
    pub retired: bool,
}

impl Schema {
    /// As served by `/Schemas`, without `meta`: no null members, keywords in camel case (RT-006).
    pub fn to_json(&self) -> Value {
        json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:Schema"],
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "attributes": self.attributes.iter().map(Attribute::to_json).collect::<Vec<_>>(),
        })
    }
}

/// An extension of a resource type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extension {
    /// The URN of its schema.
    pub schema: String,
    /// Whether every resource must have it (RT-001).
    pub required: bool,
}

/// What defines a resource type, before its attributes are resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceTypeDef {
    /// The name, as in `meta.resourceType`.
    pub name: String,
    /// Where its resources are, such as `/Users`.
    pub endpoint: String,
    /// What its resources are.
    pub description: String,
    /// The URN of the base schema.
    pub schema: String,
    /// Its extensions.
    #[serde(default)]
    pub extensions: Vec<Extension>,
    /// Whether its resources are about persons, and so sealed and erasable (D9).
    #[serde(default)]
    pub personal: bool,
    /// Out of use: not served; events of the past still name it.
    #[serde(default)]
    pub retired: bool,
}

/// A kind of resource with its resolved attributes (RFC 7643 §6).
#[derive(Clone, Debug)]
pub struct ResourceType {
    /// The name, as in `meta.resourceType`.
    pub name: String,
    /// Where its resources are, such as `/Users`.
    pub endpoint: String,
    /// What its resources are.
    pub description: String,
    /// The URN of the base schema.
    pub schema: String,
    /// Its extensions.
    pub extensions: Vec<Extension>,
    /// Whether its resources are about persons, and so sealed and erasable (D9): because its definition says
    /// so, or because an attribute does.
    pub personal: bool,
    /// Out of use: not served, and without resources; events of the past still name it.
    pub retired: bool,
    /// What its definition says of `personal`.
    declared_personal: bool,
    attributes: Vec<Attribute>,
    by_key: HashMap<String, usize>,
}

impl ResourceType {
    /// The attributes: common ones, those of the base schema, those of the extensions.
    pub fn attributes(&self) -> impl Iterator<Item = &Attribute> {
        self.attributes.iter()
    }

    /// The attributes of one extension.
    pub fn extension_attributes<'a>(&'a self, urn: &'a str) -> impl Iterator<Item = &'a Attribute> {
        self.attributes.iter().filter(move |a| a.extension.as_deref() == Some(urn))
    }

    /// A core or common attribute by name, compared without case.
    pub fn core(&self, name: &str) -> Option<&Attribute> {
        self.attribute(&name.to_ascii_lowercase()).filter(|a| a.extension.is_none())
    }

    /// An attribute by its key; not a sub-attribute.
    pub fn attribute(&self, key: &str) -> Option<&Attribute> {
        self.by_key.get(key).map(|&at| &self.attributes[at])
    }

    /// An attribute of an extension by name, compared without case.
    pub fn extension_attribute(&self, urn: &str, name: &str) -> Option<&Attribute> {
        self.attribute(&format!("{urn}:{name}").to_ascii_lowercase())
    }

    /// The only attribute of any extension with that name (FI-005).
    pub fn bare_extension_attribute(&self, name: &str) -> Option<&Attribute> {
        let mut found =
            self.attributes.iter().filter(|a| a.extension.is_some() && a.name.eq_ignore_ascii_case(name));
        found.next().filter(|_| found.next().is_none())
    }

    /// The extension of that URN, compared without case.
    pub fn extension(&self, urn: &str) -> Option<&Extension> {
        self.extensions.iter().find(|e| e.schema.eq_ignore_ascii_case(urn))
    }

    /// The attribute whose elements are links, if the type has one: `members`.
    pub fn link_attribute(&self) -> Option<&Attribute> {
        self.attributes.iter().find(|a| a.link)
    }

    /// As served by `/ResourceTypes`, without `meta`.
    pub fn to_json(&self) -> Value {
        let mut out = json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ResourceType"],
            "id": self.name,
            "name": self.name,
            "description": self.description,
            "endpoint": self.endpoint,
            "schema": self.schema,
        });
        if !self.extensions.is_empty() {
            out["schemaExtensions"] = json!(self.extensions);
        }
        out
    }
}

/// The schemas and resource types of a tenant. Immutable.
#[derive(Clone, Debug)]
pub struct Registry {
    schemas: BTreeMap<String, Arc<Schema>>,
    resource_types: Vec<Arc<ResourceType>>,
}

impl Registry {
    /// User, Group and the enterprise extension, as every tenant has them.
    pub fn standard() -> Arc<Registry> {
        static STANDARD: LazyLock<Arc<Registry>> = LazyLock::new(|| {
            let built = standard_builder().and_then(RegistryBuilder::build);
            Arc::new(built.expect("the schemas in domain/schemas are part of the program"))
        });
        STANDARD.clone()
    }

    /// A builder that has all of this registry, to add a tenant's own schemas to.
    pub fn to_builder(&self) -> RegistryBuilder {
        let definition = |rt: &Arc<ResourceType>| ResourceTypeDef {
            name: rt.name.clone(),
            endpoint: rt.endpoint.clone(),
            description: rt.description.clone(),
            schema: rt.schema.clone(),
            extensions: rt.extensions.clone(),
            personal: rt.declared_personal,
            retired: rt.retired,
        };
        RegistryBuilder {
            schemas: self.schemas.clone(),
            resource_types: self.resource_types.iter().map(definition).collect(),
        }
    }

    /// The resource type of that name, compared exactly (CS-010); retired ones too.
    pub fn resource_type(&self, name: &str) -> Option<&Arc<ResourceType>> {
        self.resource_types.iter().find(|rt| rt.name == name)
    }

    /// The served resource type at `Users` or `/Users`, compared without case.
    pub fn by_endpoint(&self, endpoint: &str) -> Option<&Arc<ResourceType>> {
        let endpoint = endpoint.trim_start_matches('/');
        self.resource_types().find(|rt| rt.endpoint.trim_start_matches('/').eq_ignore_ascii_case(endpoint))
    }

    /// All served resource types, in the order of their definition.
    pub fn resource_types(&self) -> impl Iterator<Item = &Arc<ResourceType>> {
        self.resource_types.iter().filter(|rt| !rt.retired)
    }

    /// All served schemas, by URN.
    pub fn schemas(&self) -> impl Iterator<Item = &Arc<Schema>> {
        self.schemas.values().filter(|schema| !schema.retired)
    }

    /// The served schema of that URN, compared without case.
    pub fn schema(&self, urn: &str) -> Option<&Arc<Schema>> {
        self.schemas.get(&urn.to_ascii_lowercase()).filter(|schema| !schema.retired)
    }

    /// Splits `urn:…:User:name.givenName` after the longest registered URN that is its prefix, compared
    /// without case (FI-004). `separators` are what may follow the URN.
    pub fn split_urn<'a>(&self, text: &'a str, separators: &[char]) -> Option<(&Arc<Schema>, char, &'a str)> {
        let fits = |schema: &&Arc<Schema>| {
            let head = text.get(..schema.id.len());
            let next = text.get(schema.id.len()..).and_then(|rest| rest.chars().next());
            head.is_some_and(|head| head.eq_ignore_ascii_case(&schema.id))
                && next.is_some_and(|c| separators.contains(&c))
        };
        let schema = self.schemas.values().filter(fits).max_by_key(|schema| schema.id.len())?;
        let rest = &text[schema.id.len()..];
        let separator = rest.chars().next()?;
        Some((schema, separator, &rest[separator.len_utf8()..]))
    }
}

/// A schema or resource type that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema definition: {0}")]
pub struct SchemaError(pub String);

/// Collects schemas and resource types and checks that they fit together.
#[derive(Clone, Debug, Default)]
pub struct RegistryBuilder {
    schemas: BTreeMap<String, Arc<Schema>>,
    resource_types: Vec<ResourceTypeDef>,
}

impl RegistryBuilder {
    /// Adds a schema in the JSON form of RFC 7643 §7, with four keys of ours: `closed`, `link`, `x-personal`
    /// and, of the schema itself, `retired`.
    pub fn schema(mut self, definition: &Value) -> Result<Self, SchemaError> {
        let raw: RawSchema =
            serde_json::from_value(definition.clone()).map_err(|e| SchemaError(e.to_string()))?;
        let schema = raw.build()?;
        if self.schemas.insert(schema.id.to_ascii_lowercase(), Arc::new(schema)).is_some() {
            return Err(SchemaError("a schema URN is defined twice".to_owned()));
        }
        Ok(self)
    }

    /// Adds a resource type; its schemas may follow.
    #[must_use]
    pub fn resource_type(mut self, definition: ResourceTypeDef) -> Self {
        self.resource_types.push(definition);
        self
    }

    /// Adds an extension to a resource type that is already there.
    pub fn extend(mut self, resource_type: &str, extension: Extension) -> Result<Self, SchemaError> {
        let found = self.resource_types.iter_mut().find(|rt| rt.name == resource_type);
        let rt = found.ok_or_else(|| SchemaError(format!("no resource type {resource_type:?}")))?;
        rt.extensions.push(extension);
        Ok(self)
    }

    /// Gives a resource type that is already there these extensions, besides what it has. One it has may
    /// become required.
    pub fn extend_with(mut self, resource_type: &str, extensions: &[Extension]) -> Result<Self, SchemaError> {
        let found = self.resource_types.iter_mut().find(|rt| rt.name == resource_type);
        let rt = found.ok_or_else(|| SchemaError(format!("no resource type {resource_type:?}")))?;
        for extension in extensions {
            match rt.extensions.iter_mut().find(|has| has.schema.eq_ignore_ascii_case(&extension.schema)) {
                Some(has) => has.required = extension.required,
                None => rt.extensions.push(extension.clone()),
            }
        }
        Ok(self)
    }

    /// Resolves every resource type's attributes.
    pub fn build(self) -> Result<Registry, SchemaError> {
        let mut resource_types: Vec<Arc<ResourceType>> = Vec::new();
        for definition in self.resource_types {
            let same = |rt: &Arc<ResourceType>| {
                rt.name.eq_ignore_ascii_case(&definition.name)
                    || rt.endpoint.eq_ignore_ascii_case(&definition.endpoint)
            };
            if resource_types.iter().any(same) {
                return Err(SchemaError(format!("resource type {:?} is defined twice", definition.name)));
            }
            resource_types.push(Arc::new(resolve(&self.schemas, definition)?));
        }
        Ok(Registry { schemas: self.schemas, resource_types })
    }
}

fn resolve(
    schemas: &BTreeMap<String, Arc<Schema>>,
    definition: ResourceTypeDef,
) -> Result<ResourceType, SchemaError> {
    let find = |urn: &str| {
        let missing = || SchemaError(format!("{}: no schema {urn:?}", definition.name));
        schemas.get(&urn.to_ascii_lowercase()).ok_or_else(missing)
    };
    let mut attributes = common_attributes();
    attributes.extend(find(&definition.schema)?.attributes.iter().cloned());
    let mut extensions = Vec::with_capacity(definition.extensions.len());
    for extension in &definition.extensions {
        let schema = find(&extension.schema)?;
        attributes.extend(schema.attributes.iter().map(|a| qualify(a, &schema.id)));
        // Documents have the schema's spelling.
        extensions.push(Extension { schema: schema.id.clone(), required: extension.required });
    }
    let base = find(&definition.schema)?.id.clone();
    let mut by_key = HashMap::new();
    for (at, attribute) in attributes.iter().enumerate() {
        if attribute.mutability == Mutability::WriteOnly && attribute.key != "password" {
            // Documents hold no secrets, and there is one place for one secret.
            return Err(SchemaError(format!("{}: only password can be writeOnly", attribute.path)));
        }
        if by_key.insert(attribute.key.clone(), at).is_some() {
            return Err(SchemaError(format!("{}: {} is defined twice", definition.name, attribute.key)));
        }
    }
    let ResourceTypeDef { name, endpoint, description, personal, retired, .. } = definition;
    let is_personal = |a: &Attribute| a.personal || a.sub_attributes.iter().any(|sub| sub.personal);
    Ok(ResourceType {
        personal: personal || attributes.iter().any(is_personal),
        declared_personal: personal,
        name,
        endpoint,
        description,
        schema: base,
        extensions,
        retired,
        attributes,
        by_key,
    })
}

/// The same attribute as one of an extension.
fn qualify(attribute: &Attribute, urn: &str) -> Attribute {
    let path = format!("{urn}:{}", attribute.path);
    Attribute {
        key: path.to_ascii_lowercase(),
        path,
        extension: Some(urn.to_owned()),
        sub_attributes: attribute.sub_attributes.iter().map(|sub| qualify(sub, urn)).collect(),
        ..attribute.clone()
    }
}

/// `schemas`, `id`, `externalId` and `meta`: on every resource, in no schema (CS-013).
fn common_attributes() -> Vec<Attribute> {
    let meta_parts = json!([
        { "name": "resourceType", "caseExact": true, "mutability": "readOnly" },
        { "name": "created", "type": "dateTime", "mutability": "readOnly" },
        { "name": "lastModified", "type": "dateTime", "mutability": "readOnly" },
        { "name": "location", "type": "reference", "mutability": "readOnly" },
        { "name": "version", "caseExact": true, "mutability": "readOnly" },
    ]);
    let raw = json!([
        { "name": "schemas", "multiValued": true, "mutability": "readOnly", "returned": "always" },
        { "name": "id", "caseExact": true, "mutability": "readOnly", "returned": "always" },
        { "name": "externalId", "caseExact": true },
        { "name": "meta", "type": "complex", "mutability": "readOnly", "subAttributes": meta_parts },
    ]);
    let raw: Vec<RawAttribute> = serde_json::from_value(raw).unwrap_or_default();
    raw.into_iter().map(|a| a.build("")).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSchema {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    attributes: Vec<RawAttribute>,
    #[serde(default)]
    retired: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct RawAttribute {
    name: String,
    #[serde(rename = "type")]
    kind: AttrType,
    multi_valued: bool,
    description: String,
    required: bool,
    canonical_values: Vec<String>,
    case_exact: Option<bool>,
    mutability: Mutability,
    returned: Returned,
    uniqueness: Uniqueness,
    reference_types: Vec<String>,
    sub_attributes: Vec<RawAttribute>,
    #[serde(alias = "x-closed")]
    closed: bool,
    link: bool,
    #[serde(rename = "x-personal")]
    personal: bool,
}

impl RawSchema {
    fn build(self) -> Result<Schema, SchemaError> {
        // A document's path is split after the URN (`resource::apply_changes`), so it must be one.
        if !self.id.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("urn:")) {
            return Err(SchemaError(format!("{:?} is not a URN", self.id)));
        }
        for attribute in &self.attributes {
            attribute.check()?;
        }
        let RawSchema { id, name, description, attributes, retired } = self;
        let attributes = attributes.into_iter().map(|a| a.build("")).collect();
        Ok(Schema { id, name, description, attributes, retired })
    }
}

impl RawAttribute {
    fn check(&self) -> Result<(), SchemaError> {
        if !super::path::is_name(&self.name) {
            return Err(SchemaError(format!("{:?} is not an attribute name", self.name)));
        }
        if (self.kind == AttrType::Complex) == self.sub_attributes.is_empty() {
            return Err(SchemaError(format!(
                "{}: sub-attributes are what makes an attribute complex",
                self.name
            )));
        }
        self.sub_attributes.iter().try_for_each(RawAttribute::check)
    }

    fn build(self, parent: &str) -> Attribute {
        let path = format!("{parent}{}", self.name);
        let inner = format!("{path}.");
        let sub_attributes: Vec<_> = self.sub_attributes.into_iter().map(|a| a.build(&inner)).collect();
        let exact = matches!(self.kind, AttrType::Reference | AttrType::Binary);
        Attribute {
            resource_ref: points_to_resource(&sub_attributes),
            name: self.name,
            key: path.to_ascii_lowercase(),
            path,
            extension: None,
            kind: self.kind,
            multi_valued: self.multi_valued,
            description: self.description,
            required: self.required,
            case_exact: self.case_exact.unwrap_or(exact),
            mutability: self.mutability,
            returned: self.returned,
            uniqueness: self.uniqueness,
            reference_types: self.reference_types,
            canonical_values: self.canonical_values,
            closed: self.closed,
            sub_attributes,
            link: self.link,
            personal: self.personal,
        }
    }
}

/// A complex attribute with a `value` and a `$ref` to resource types holds a resource's id in `value`.
fn points_to_resource(subs: &[Attribute]) -> bool {
    let web = |t: &String| t == "external" || t == "uri";
    let reference = subs.iter().find(|sub| sub.name == "$ref");
    subs.iter().any(|sub| sub.name == "value")
        && reference.is_some_and(|r| !r.reference_types.is_empty() && !r.reference_types.iter().any(web))
}

fn standard_builder() -> Result<RegistryBuilder, SchemaError> {
    const FILES: [&str; 6] = [
        include_str!("../../schemas/user.json"),
        include_str!("../../schemas/group.json"),
        include_str!("../../schemas/enterprise_user.json"),
        include_str!("../../schemas/service_provider_config.json"),
        include_str!("../../schemas/resource_type.json"),
        include_str!("../../schemas/schema.json"),
    ];
    let mut builder = RegistryBuilder::default();
    for file in FILES {
        let definition: Value = serde_json::from_str(file).map_err(|e| SchemaError(e.to_string()))?;
        builder = builder.schema(&definition)?;
    }
    let users = ResourceTypeDef {
        name: "User".to_owned(),
        endpoint: "/Users".to_owned(),
        description: "A person's account".to_owned(),
        schema: USER.to_owned(),
        extensions: vec![Extension { schema: ENTERPRISE_USER.to_owned(), required: false }],
        personal: true,
        retired: false,
    };
    let groups = ResourceTypeDef {
        name: "Group".to_owned(),
        endpoint: "/Groups".to_owned(),
        description: "A set of users and of other groups".to_owned(),
        schema: GROUP.to_owned(),
        extensions: Vec::new(),
        personal: false,
        retired: false,
    };
    Ok(builder.resource_type(users).resource_type(groups))
}

/// The value of a key of an object, compared without case.
pub(crate) fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

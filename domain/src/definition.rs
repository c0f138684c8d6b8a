//! A tenant's own schemas and resource types (RFC 7643 §6, §7): read, checked, compared, and made into the
//! tenant's [`Registry`].
//!
//! Definitions are administration, so events (decision 0007). They may grow at any time. What would make
//! resources that exist wrong is an [`Obstacle`]: the store refuses the change while there are such
//! resources. Nothing is ever forgotten: what is out of use is *retired*, as events of the past name it.

mod compare;
mod read;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

pub use compare::{Obstacle, resource_type_obstacles, schema_obstacles};

use crate::ids::ResourceId;
use crate::scim::error::ScimError;
use crate::scim::schema::{
    AttrType, Extension, Mutability, Registry, ResourceTypeDef, Returned, Schema, SchemaError, Uniqueness,
};

/// Most schemas of a tenant, retired ones too.
pub const SCHEMAS_MAX: usize = 64;
/// Most resource types of a tenant, retired ones too.
pub const RESOURCE_TYPES_MAX: usize = 32;
/// Most extensions of a resource type.
pub const EXTENSIONS_MAX: usize = 16;
/// Most attributes of a schema, parts included.
pub const ATTRIBUTES_MAX: usize = 256;
/// Most suggested values or reference types of an attribute.
pub const VALUES_MAX: usize = 200;
/// Longest name, and suggested value, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest description, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 1_024;
/// Largest definition as JSON, in bytes: an event holds the old and the new one.
pub const DEFINITION_BYTES_MAX: usize = 160 * 1024;
/// Longest URN, in bytes: it is part of the id of the schema's stream.
pub const URN_BYTES_MAX: usize = ResourceId::LEN_BYTES_MAX - "schema.".len();

/// Attributes that every resource has, or that mean something to the server.
const RESERVED_ATTRIBUTES: [&str; 5] = ["schemas", "id", "externalId", "meta", "password"];
/// Attributes of core types whose values are links.
const RESERVED_IN_BASE: [&str; 2] = ["members", "groups"];
/// Resource types that every tenant has.
const BUILT_IN: [&str; 2] = ["User", "Group"];
/// Names of streams of other kinds; names are compared without case, as event kinds are lower case.
const RESERVED_TYPES: [&str; 10] = [
    "Tenant",
    "Connection",
    "Token",
    "App",
    "Schema",
    "ResourceType",
    "ServiceProviderConfig",
    "Bulk",
    "Me",
    "Resource",
];
/// Paths beside resource types.
const RESERVED_ENDPOINTS: [&str; 8] = [
    "/Me",
    "/Bulk",
    "/Schemas",
    "/ResourceTypes",
    "/ServiceProviderConfig",
    "/ServiceProviderConfigs",
    "/Users",
    "/Groups",
];
const CORE_PREFIX: &str = "urn:ietf:params:scim:schemas:core:";
const API_PREFIX: &str = "urn:ietf:params:scim:api:";

/// A schema of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SchemaDefinition {
    /// Its URN.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// What it describes.
    #[serde(default)]
    pub description: String,
    /// Its attributes.
    pub attributes: Vec<AttributeDefinition>,
    /// Out of use.
    #[serde(default, skip_serializing_if = "is_false")]
    pub retired: bool,
}

/// An attribute of a tenant's schema (RFC 7643 §7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttributeDefinition {
    /// Its name.
    pub name: String,
    /// The type of its values.
    #[serde(rename = "type")]
    pub kind: AttrType,
    /// Whether it holds a list.
    pub multi_valued: bool,
    /// What it means.
    #[serde(default)]
    pub description: String,
    /// Whether it must have a value.
    pub required: bool,
    /// Suggested values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canonical_values: Vec<String>,
    /// Whether upper and lower case differ.
    pub case_exact: bool,
    /// Who may change it.
    pub mutability: Mutability,
    /// When it is returned.
    pub returned: Returned,
    /// `server`: no two resources of a type have the same value.
    pub uniqueness: Uniqueness,
    /// What a reference may point to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reference_types: Vec<String>,
    /// The parts of a complex attribute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub sub_attributes: Vec<AttributeDefinition>,
    /// Whether its values are about a person: resources that can have it are sealed, each with a key of its
    /// own, and can be erased.
    #[serde(rename = "x-personal", default, skip_serializing_if = "is_false")]
    pub personal: bool,
    /// Whether only the suggested values are allowed.
    #[serde(rename = "x-closed", default, skip_serializing_if = "is_false")]
    pub closed: bool,
}

/// A resource type of a tenant, or what a tenant adds to `User` or `Group`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceTypeDefinition {
    /// Its name.
    pub name: String,
    /// Where its resources are: `/Devices`.
    pub endpoint: String,
    /// What its resources are.
    #[serde(default)]
    pub description: String,
    /// The URN of its base schema.
    pub schema: String,
    /// Its extensions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schema_extensions: Vec<Extension>,
    /// Whether its resources are about persons, whatever its attributes say.
    #[serde(rename = "x-personal", default, skip_serializing_if = "is_false")]
    pub personal: bool,
    /// Out of use.
    #[serde(default, skip_serializing_if = "is_false")]
    pub retired: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form serde asks for")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// An error about a definition, with the place in it that is wrong.
fn invalid(place: &str, why: impl std::fmt::Display) -> ScimError {
    ScimError::invalid_value(format!("{place}: {why}"))
}

impl SchemaDefinition {
    /// Reads and checks a schema in the form of RFC 7643 §7, with two members of ours: `x-personal` and
    /// `x-closed`. What the server adds (`schemas`, `meta`) may be there.
    ///
    /// # Errors
    /// 400 `invalidValue`, naming the attribute.
    pub fn read(json: &Value) -> Result<SchemaDefinition, ScimError> {
        read::schema(json)
    }

    /// The key of its entity: the URN in lower case.
    pub fn key(&self) -> String {
        self.id.to_ascii_lowercase()
    }

    /// In the form of RFC 7643 §7, with our `x-` members.
    pub fn to_json(&self) -> Value {
        let mut out = json!(self);
        out["schemas"] = json!(["urn:ietf:params:scim:schemas:core:2.0:Schema"]);
        out
    }
}

impl ResourceTypeDefinition {
    /// Reads and checks a resource type in the form of RFC 7643 §6, with one member of ours: `x-personal`.
    ///
    /// # Errors
    /// 400 `invalidValue`, naming the member.
    pub fn read(json: &Value) -> Result<ResourceTypeDefinition, ScimError> {
        read::resource_type(json)
    }

    /// The key of its entity: the name in lower case.
    pub fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// Whether every tenant has this type, and the definition only says with which extensions.
    pub fn is_built_in(&self) -> bool {
        BUILT_IN.contains(&self.name.as_str())
    }

    /// In the form of RFC 7643 §6, with our `x-` members.
    pub fn to_json(&self) -> Value {
        let mut out = json!(self);
        out["schemas"] = json!(["urn:ietf:params:scim:schemas:core:2.0:ResourceType"]);
        out["id"] = json!(self.name);
        out
    }
}

/// All definitions of a tenant, retired ones too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definitions {
    /// The schemas.
    pub schemas: Vec<SchemaDefinition>,
    /// The resource types.
    pub resource_types: Vec<ResourceTypeDefinition>,
}

impl Definitions {
    /// The registry of the tenant: what every tenant has and what this one adds.
    pub fn registry(&self) -> Result<Arc<Registry>, SchemaError> {
        if self.schemas.is_empty() && self.resource_types.is_empty() {
            return Ok(Registry::standard());
        }
        let mut builder = Registry::standard().to_builder();
        for schema in &self.schemas {
            builder = builder.schema(&json!(schema))?;
        }
        for definition in &self.resource_types {
            if definition.is_built_in() {
                builder = builder.extend_with(&definition.name, &definition.schema_extensions)?;
                continue;
            }
            builder = builder.resource_type(ResourceTypeDef {
                name: definition.name.clone(),
                endpoint: definition.endpoint.clone(),
                description: definition.description.clone(),
                schema: definition.schema.clone(),
                extensions: definition.schema_extensions.clone(),
                personal: definition.personal,
                retired: definition.retired,
            });
        }
        builder.build().map(Arc::new)
    }

    /// A schema of the tenant, compared without case.
    pub fn schema(&self, urn: &str) -> Option<&SchemaDefinition> {
        self.schemas.iter().find(|schema| schema.id.eq_ignore_ascii_case(urn))
    }

    /// A resource type of the tenant, compared without case.
    pub fn resource_type(&self, name: &str) -> Option<&ResourceTypeDefinition> {
        self.resource_types.iter().find(|rt| rt.name.eq_ignore_ascii_case(name))
    }

    /// The same with a schema put in its place.
    #[must_use]
    pub fn with_schema(&self, schema: SchemaDefinition) -> Definitions {
        let mut all = self.clone();
        all.schemas.retain(|other| other.key() != schema.key());
        all.schemas.push(schema);
        all.schemas.sort_by_key(SchemaDefinition::key);
        all
    }

    /// The same with a resource type put in its place.
    #[must_use]
    pub fn with_resource_type(&self, resource_type: ResourceTypeDefinition) -> Definitions {
        let mut all = self.clone();
        all.resource_types.retain(|other| other.key() != resource_type.key());
        all.resource_types.push(resource_type);
        all.resource_types.sort_by_key(ResourceTypeDefinition::key);
        all
    }

    /// Checks that the definitions fit together, and gives their registry.
    ///
    /// # Errors
    /// 400 `invalidValue`, naming what does not fit.
    pub fn check(&self) -> Result<Arc<Registry>, ScimError> {
        if self.schemas.len() > SCHEMAS_MAX {
            return Err(invalid("schemas", format!("a tenant has at most {SCHEMAS_MAX}")));
        }
        if self.resource_types.len() > RESOURCE_TYPES_MAX {
            return Err(invalid("resource types", format!("a tenant has at most {RESOURCE_TYPES_MAX}")));
        }
        let standard = Registry::standard();
        for schema in &self.schemas {
            let key = schema.key();
            if standard.schema(&key).is_some() {
                return Err(invalid(&schema.id, "every tenant has this schema, and it cannot be changed"));
            }
            let own = self.schemas.iter().map(|other| {
                let names = other.attributes.iter().map(|a| a.name.as_str()).collect::<Vec<_>>();
                (other.id.as_str(), names)
            });
            let built_in = standard.schemas().map(|other| {
                let names = other.attributes.iter().map(|a| a.name.as_str()).collect::<Vec<_>>();
                (other.id.as_str(), names)
            });
            for (outer, names) in own.chain(built_in) {
                // `urn:a:b` could be the attribute `b` of `urn:a`, or this schema.
                let begins = key.strip_prefix(&outer.to_ascii_lowercase());
                let rest = begins.and_then(|rest| rest.strip_prefix(':')).unwrap_or_default();
                let rest = rest.split('.').next().unwrap_or_default();
                if names.iter().any(|name| name.eq_ignore_ascii_case(rest)) {
                    return Err(invalid(&schema.id, format!("it is a path of an attribute of {outer}")));
                }
            }
        }
        let mut bases = BTreeSet::new();
        for rt in standard.resource_types() {
            bases.insert(rt.schema.to_ascii_lowercase());
        }
        for definition in self.resource_types.iter().filter(|definition| !definition.is_built_in()) {
            self.check_base(definition, &standard)?;
            if !bases.insert(definition.schema.to_ascii_lowercase()) {
                let why = format!("{} is the base schema of another resource type", definition.schema);
                return Err(invalid(&format!("{}.schema", definition.name), why));
            }
        }
        for definition in &self.resource_types {
            self.check_extensions(definition, &bases, &standard)?;
        }
        self.registry().map_err(|error| ScimError::invalid_value(error.0))
    }

    fn check_base(&self, definition: &ResourceTypeDefinition, standard: &Registry) -> Result<(), ScimError> {
        let place = format!("{}.schema", definition.name);
        let Some(schema) = self.schema(&definition.schema) else {
            let why = match standard.schema(&definition.schema) {
                Some(_) => "a resource type needs a base schema of its own",
                None => "there is no such schema; put it first",
            };
            return Err(invalid(&place, format!("{}: {why}", definition.schema)));
        };
        if schema.retired && !definition.retired {
            return Err(invalid(&place, format!("{} is retired", schema.id)));
        }
        let reserved =
            |a: &&AttributeDefinition| RESERVED_IN_BASE.iter().any(|name| a.name.eq_ignore_ascii_case(name));
        if let Some(attribute) = schema.attributes.iter().find(reserved) {
            let why = "the name is kept for membership, a base schema cannot use it";
            return Err(invalid(&format!("{}.{}", schema.id, attribute.name), why));
        }
        let same = |other: &&ResourceTypeDefinition| {
            other.key() != definition.key() && other.endpoint.eq_ignore_ascii_case(&definition.endpoint)
        };
        if let Some(other) = self.resource_types.iter().find(same) {
            let why = format!("{} is the endpoint of {}", definition.endpoint, other.name);
            return Err(invalid(&format!("{}.endpoint", definition.name), why));
        }
        Ok(())
    }

    fn check_extensions(
        &self,
        definition: &ResourceTypeDefinition,
        bases: &BTreeSet<String>,
        standard: &Registry,
    ) -> Result<(), ScimError> {
        let place = format!("{}.schemaExtensions", definition.name);
        for extension in &definition.schema_extensions {
            let urn = &extension.schema;
            if bases.contains(&urn.to_ascii_lowercase()) {
                return Err(invalid(&place, format!("{urn} is the base schema of a resource type")));
            }
            match (self.schema(urn), standard.schema(urn)) {
                (Some(schema), _) if schema.retired && !definition.retired => {
                    return Err(invalid(&place, format!("{urn} is retired")));
                }
                (Some(_), _) => {}
                (None, Some(schema)) if is_extension(schema) => {}
                (None, Some(_)) => return Err(invalid(&place, format!("{urn} cannot extend anything"))),
                (None, None) => {
                    return Err(invalid(&place, format!("{urn}: there is no such schema; put it first")));
                }
            }
        }
        Ok(())
    }

    /// The resource types that have a schema, as base or extension, and are in use.
    pub fn users_of<'a>(&'a self, urn: &'a str) -> impl Iterator<Item = &'a ResourceTypeDefinition> {
        self.resource_types.iter().filter(move |rt| {
            let extends = |e: &Extension| e.schema.eq_ignore_ascii_case(urn);
            !rt.retired && (rt.schema.eq_ignore_ascii_case(urn) || rt.schema_extensions.iter().any(extends))
        })
    }
}

/// Whether a built-in schema is an extension.
fn is_extension(schema: &Schema) -> bool {
    schema.id == crate::scim::schema::ENTERPRISE_USER
}

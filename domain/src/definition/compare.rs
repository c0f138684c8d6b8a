//! What a change of a definition asks of the resources that exist.

use super::{AttributeDefinition, ResourceTypeDefinition, SchemaDefinition};
use crate::scim::schema::{Mutability, Uniqueness};

/// Something that must not exist for a change of a definition to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A resource with a value of this attribute (`badge`) or part (`badge.colour`) of the schema.
    Value {
        /// The path within the schema.
        path: String,
        /// What would change.
        why: &'static str,
    },
    /// A resource with any value of this extension.
    Extension {
        /// Its URN.
        urn: String,
    },
    /// A resource.
    Resource {
        /// What the change is about.
        what: String,
        /// What would change.
        why: &'static str,
    },
    /// A resource that is not sealed, deleted ones included: what they held stands readable in the journal.
    Unsealed {
        /// What the change is about.
        what: String,
    },
}

/// What must not exist for a schema to become another.
pub fn schema_obstacles(old: &SchemaDefinition, new: &SchemaDefinition) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for before in &old.attributes {
        let path = before.name.clone();
        match find(&new.attributes, &before.name) {
            None => found.push(Obstacle::Value { path, why: "it would be removed" }),
            Some(after) => compare(before, after, &path, None, &mut found),
        }
    }
    for after in &new.attributes {
        if find(&old.attributes, &after.name).is_none() && after.required {
            let why = "a new attribute would be required of it";
            found.push(Obstacle::Resource { what: after.name.clone(), why });
        }
    }
    found
}

fn find<'a>(attributes: &'a [AttributeDefinition], name: &str) -> Option<&'a AttributeDefinition> {
    attributes.iter().find(|attribute| attribute.name.eq_ignore_ascii_case(name))
}

fn compare(
    before: &AttributeDefinition,
    after: &AttributeDefinition,
    path: &str,
    parent: Option<&str>,
    found: &mut Vec<Obstacle>,
) {
    let read_only = |a: &AttributeDefinition| a.mutability == Mutability::ReadOnly;
    let closes = after.closed
        && (!before.closed || before.canonical_values.iter().any(|v| !after.canonical_values.contains(v)));
    let reasons = [
        (before.name != after.name, "its name would be spelt otherwise"),
        (before.kind != after.kind, "its type would change"),
        (before.multi_valued != after.multi_valued, "multiValued would change"),
        (before.case_exact != after.case_exact, "caseExact would change"),
        (read_only(before) != read_only(after), "it would become, or cease to be, readOnly"),
        (
            (before.uniqueness == Uniqueness::None) != (after.uniqueness == Uniqueness::None),
            "uniqueness would change",
        ),
        (closes, "values would no longer be allowed"),
        (refers(before) != refers(after), "it would become, or cease to be, a reference to resources"),
    ];
    for (_, why) in reasons.into_iter().filter(|(changed, _)| *changed) {
        found.push(Obstacle::Value { path: path.to_owned(), why });
    }
    if after.required && !before.required {
        let why = "it would be required";
        found.push(match parent {
            None => Obstacle::Resource { what: path.to_owned(), why },
            // A part is required only where the whole is there.
            Some(parent) => Obstacle::Value { path: parent.to_owned(), why },
        });
    }
    if after.personal && !before.personal {
        found.push(Obstacle::Unsealed { what: path.to_owned() });
    }
    for part in &before.sub_attributes {
        let path = format!("{path}.{}", part.name);
        match find(&after.sub_attributes, &part.name) {
            None => found.push(Obstacle::Value { path, why: "it would be removed" }),
            Some(other) => compare(part, other, &path, Some(&before.name), found),
        }
    }
    for part in &after.sub_attributes {
        if find(&before.sub_attributes, &part.name).is_some() {
            continue;
        }
        if part.required {
            found.push(Obstacle::Value { path: path.to_owned(), why: "a new part would be required of it" });
        }
        if part.name.eq_ignore_ascii_case("primary") {
            // Every element that does not say so is indexed as not primary.
            found.push(Obstacle::Value { path: path.to_owned(), why: "it would get the part primary" });
        }
        if part.personal {
            found.push(Obstacle::Unsealed { what: format!("{path}.{}", part.name) });
        }
    }
}

/// Whether the attribute holds the ids of resources, see `schema::Attribute::resource_ref`.
fn refers(attribute: &AttributeDefinition) -> bool {
    let web = |t: &String| t == "external" || t == "uri";
    let reference = attribute.sub_attributes.iter().find(|sub| sub.name == "$ref");
    attribute.sub_attributes.iter().any(|sub| sub.name == "value")
        && reference.is_some_and(|r| !r.reference_types.is_empty() && !r.reference_types.iter().any(web))
}

/// What must not exist for a resource type to become another.
pub fn resource_type_obstacles(old: &ResourceTypeDefinition, new: &ResourceTypeDefinition) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let mut must_be_empty = |changed: bool, what: &str, why: &'static str| {
        if changed {
            found.push(Obstacle::Resource { what: what.to_owned(), why });
        }
    };
    must_be_empty(old.name != new.name, "name", "its type would be spelt otherwise");
    must_be_empty(old.endpoint != new.endpoint, "endpoint", "it would move");
    must_be_empty(
        !old.schema.eq_ignore_ascii_case(&new.schema),
        "schema",
        "it would get another base schema",
    );
    must_be_empty(new.retired && !old.retired, &old.name, "it would be retired");
    for extension in &new.schema_extensions {
        let had = old.schema_extensions.iter().find(|e| e.schema.eq_ignore_ascii_case(&extension.schema));
        let asked_before = had.is_some_and(|had| had.required);
        must_be_empty(extension.required && !asked_before, &extension.schema, "it would be required of it");
    }
    for extension in &old.schema_extensions {
        if !new.schema_extensions.iter().any(|e| e.schema.eq_ignore_ascii_case(&extension.schema)) {
            found.push(Obstacle::Extension { urn: extension.schema.clone() });
        }
    }
    if new.personal && !old.personal {
        found.push(Obstacle::Unsealed { what: "x-personal".to_owned() });
    }
    found
}

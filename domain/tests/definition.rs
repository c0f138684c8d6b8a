//! Schemas and resource types of a tenant: what is taken, what is refused and why, what a change asks for.

use annals_domain::definition::{
    Definitions, Obstacle, ResourceTypeDefinition, SchemaDefinition, resource_type_obstacles,
    schema_obstacles,
};
use annals_domain::scim::schema::{ENTERPRISE_USER, USER};
use serde_json::{Value, json};

const URN: &str = "urn:example:schemas:2.0:Thing";

fn with(attribute: Value) -> Value {
    json!({"id": URN, "attributes": [attribute]})
}

fn schema(attributes: Value) -> SchemaDefinition {
    SchemaDefinition::read(&json!({"id": URN, "attributes": attributes})).unwrap()
}

fn thing() -> Value {
    json!({"name": "Thing", "endpoint": "/Things", "schema": URN})
}

/// What is served can be sent back.
#[test]
fn a_definition_survives_its_own_json() {
    let given = json!({
        "id": URN, "name": "Thing", "description": "A thing",
        "attributes": [
            {"name": "label", "type": "string", "required": true, "uniqueness": "server", "x-personal": true},
            {"name": "size", "type": "complex", "multiValued": true, "subAttributes": [
                {"name": "value", "type": "decimal"}, {"name": "primary", "type": "boolean"}]},
            {"name": "kind", "canonicalValues": ["a", "b"], "x-closed": true, "mutability": "immutable"},
            {"name": "at", "type": "dateTime", "returned": "request", "description": null},
            {"name": "guid", "caseExact": true, "uniqueness": "global"},
        ],
    });
    let read = SchemaDefinition::read(&given).unwrap();
    assert_eq!(SchemaDefinition::read(&read.to_json()).unwrap(), read);
    assert_eq!(read.to_json()["attributes"][0]["x-personal"], true);
    let mut given = thing();
    given["schemaExtensions"] = json!([{"schema": "urn:example:ext", "required": true}]);
    given["x-personal"] = json!(true);
    let read = ResourceTypeDefinition::read(&given).unwrap();
    assert_eq!(ResourceTypeDefinition::read(&read.to_json()).unwrap(), read);
}

/// RFC 7643 §7 and what a server can keep: every refusal names the place.
#[test]
fn schemas_that_cannot_be_taken() {
    let name = |name: &str| with(json!({"name": name}));
    let sub = |sub: Value| with(json!({"name": "a", "type": "complex", "subAttributes": [sub]}));
    let id = |id: &str| json!({"id": id, "attributes": [{"name": "a"}]});
    let long = "x".repeat(65);
    let many: Vec<Value> = (0..257).map(|n| json!({"name": format!("a{n}")})).collect();
    for (given, place, why) in [
        (json!([]), "", "JSON object"),
        (json!({"attributes": [{"name": "a"}]}), "id", "missing"),
        (json!({"id": URN}), "attributes", "at least one"),
        (json!({"id": URN, "attributes": many}), "attributes", "at most"),
        (json!({"id": URN, "attributes": [{"name": "a"}], "x": 1}), "x", "no such member"),
        (id("thing"), "id", "no URN"),
        (id("urn:example"), "id", "after urn:"),
        (id("urn:example:a b"), "id", "after urn:"),
        (id("urn:example:a::b"), "id", "after urn:"),
        (id("urn:example:a."), "id", "after urn:"),
        (id("urn:example:a*"), "id", "after urn:"),
        (id(&format!("urn:example:{}", "x".repeat(120))), "id", "bytes"),
        (id(USER), "id", "every tenant"),
        (id(&ENTERPRISE_USER.to_uppercase().replace("URN", "urn")), "id", "every tenant"),
        (id("urn:ietf:params:scim:schemas:core:2.0:Device"), "id", "belongs to the standard"),
        (id("urn:ietf:params:scim:api:messages:2.0:X"), "id", "belongs to the standard"),
        (name(""), "attributes[0].name", "missing"),
        (name("1a"), "1a", "a letter"),
        (name("a.b"), "a.b", "a letter"),
        (name("$ref"), "$ref", "a letter"),
        (name("ID"), "ID", "reserved"),
        (name("meta"), "meta", "reserved"),
        (name("password"), "password", "reserved"),
        (name(&long), "attributes[0].name", "64 bytes"),
        (json!({"id": URN, "attributes": [{"name": "a"}, {"name": "A"}]}), "A", "twice"),
        (with(json!({"name": "a", "type": "text"})), "a.type", "one of"),
        (with(json!({"name": "a", "type": "complex"})), "a", "subAttributes"),
        (with(json!({"name": "a", "subAttributes": [{"name": "b"}]})), "a", "subAttributes"),
        (with(json!({"name": "a", "multiValued": "yes"})), "a.multiValued", "true or false"),
        (with(json!({"name": "a", "mutability": "writeOnly"})), "a", "writeOnly"),
        (with(json!({"name": "a", "mutability": "readOnly", "required": true})), "a", "readOnly"),
        (with(json!({"name": "a", "mutability": "sometimes"})), "a.mutability", "one of"),
        (with(json!({"name": "a", "returned": "maybe"})), "a.returned", "one of"),
        (with(json!({"name": "a", "uniqueness": "always"})), "a.uniqueness", "one of"),
        (with(json!({"name": "a", "uniqueness": "global", "multiValued": true})), "a", "single value"),
        (with(json!({"name": "a", "uniqueness": "server", "multiValued": true})), "a", "single value"),
        (with(json!({"name": "a", "type": "boolean", "uniqueness": "server"})), "a", "cannot be unique"),
        (with(json!({"name": "a", "type": "binary", "uniqueness": "server"})), "a", "cannot be unique"),
        (with(json!({"name": "a", "uniqueness": "server", "mutability": "readOnly"})), "a", "readOnly"),
        (with(json!({"name": "a", "type": "integer", "caseExact": true})), "a", "caseExact"),
        (with(json!({"name": "a", "type": "reference", "caseExact": false})), "a", "caseExact"),
        (with(json!({"name": "a", "type": "integer", "canonicalValues": ["1"]})), "a", "canonicalValues"),
        (with(json!({"name": "a", "canonicalValues": [1]})), "a.canonicalValues", "strings"),
        (with(json!({"name": "a", "canonicalValues": ["x", "x"]})), "a.canonicalValues", "twice"),
        (with(json!({"name": "a", "x-closed": true})), "a", "canonicalValues"),
        (with(json!({"name": "a", "referenceTypes": ["User"]})), "a", "referenceTypes"),
        (with(json!({"name": "a", "unique": true})), "a.unique", "no such member"),
        (with(json!({"name": "a", "description": "a\u{0}b"})), "a.description", "control"),
        (sub(json!({"name": "b", "type": "complex"})), "a.b", "complex"),
        (sub(json!({"name": "b", "multiValued": true})), "a.b", "multiValued"),
        (sub(json!({"name": "b", "uniqueness": "server"})), "a.b", "no part"),
        (sub(json!({"name": "primary"})), "a.primary", "boolean"),
        (sub(json!({"name": "$ref"})), "a.$ref", "reference"),
        (sub(json!({"name": "b", "subAttributes": [{"name": "c"}]})), "a.b", "cannot have parts"),
    ] {
        let error = SchemaDefinition::read(&given).expect_err(&given.to_string());
        assert_eq!((error.status, error.scim_type.map(|t| t.as_str())), (400, Some("invalidValue")));
        assert!(error.detail.starts_with(&format!("{place}: ")), "{given}: {}", error.detail);
        assert!(error.detail.contains(why), "{given}: {}", error.detail);
    }
}

/// Names are parts of subjects, event kinds and paths.
#[test]
fn resource_types_that_cannot_be_taken() {
    let edit = |member: &str, value: Value| {
        let mut given = thing();
        given[member] = value;
        given
    };
    let user = |member: &str, value: Value| json!({"name": "User", member: value});
    for (given, place, why) in [
        (edit("name", json!(null)), "name", "missing"),
        (edit("name", json!("My Thing")), "name", "letters and digits"),
        (edit("name", json!("a.b")), "name", "letters and digits"),
        (edit("name", json!("Thing>")), "name", "letters and digits"),
        (edit("name", json!("tenant")), "name", "reserved"),
        (edit("name", json!("SCHEMA")), "name", "reserved"),
        (edit("name", json!("user")), "name", "reserved"),
        (edit("endpoint", json!(null)), "endpoint", "missing"),
        (edit("endpoint", json!("Things")), "endpoint", "begins with"),
        (edit("endpoint", json!("/a/b")), "endpoint", "a letter"),
        (edit("endpoint", json!("/.search")), "endpoint", "a letter"),
        (edit("endpoint", json!("/me")), "endpoint", "reserved"),
        (edit("endpoint", json!("/USERS")), "endpoint", "reserved"),
        (edit("endpoint", json!("/v2")), "endpoint", "version"),
        (edit("schema", json!(null)), "schema", "missing"),
        (edit("color", json!(1)), "color", "no such member"),
        (edit("schemaExtensions", json!([{"required": true}])), "schemaExtensions[0].schema", "missing"),
        (
            edit("schemaExtensions", json!([{"schema": "urn:a:b"}, {"schema": "URN:a:b"}])),
            "schemaExtensions",
            "twice",
        ),
        (user("endpoint", json!("/People")), "endpoint", "/Users"),
        (user("schema", json!(URN)), "schema", USER),
    ] {
        let error = ResourceTypeDefinition::read(&given).expect_err(&given.to_string());
        assert!(error.detail.starts_with(&format!("{place}: ")), "{given}: {}", error.detail);
        assert!(error.detail.contains(why), "{given}: {}", error.detail);
    }
}

#[test]
fn definitions_must_fit_together() {
    let other = "urn:example:ext:Other";
    let all = |schemas: &[Value], types: &[Value]| {
        let mut all = Definitions::default();
        for schema in schemas {
            all = all.with_schema(SchemaDefinition::read(schema).unwrap());
        }
        for rt in types {
            all = all.with_resource_type(ResourceTypeDefinition::read(rt).unwrap());
        }
        all.check().map(drop).map_err(|error| error.detail)
    };
    let base = with(json!({"name": "a"}));
    let extension = json!({"id": other, "attributes": [{"name": "a"}]});
    let extends = |name: &str, urn: &str| json!({"name": name, "schemaExtensions": [{"schema": urn}]});
    all(&[base.clone(), extension.clone()], &[thing(), extends("User", other), extends("Group", other)])
        .unwrap();
    all(&[], &[extends("User", ENTERPRISE_USER)]).unwrap();
    let second = json!({"name": "Second", "endpoint": "/Things", "schema": other});
    let rival = json!({"name": "Rival", "endpoint": "/Rivals", "schema": URN});
    let with_members = with(json!({"name": "Members"}));
    let ambiguous = json!({"id": format!("{URN}:a"), "attributes": [{"name": "b"}]});
    for (schemas, types, why) in [
        (vec![], vec![thing()], "no such schema"),
        (vec![], vec![extends("User", other)], "no such schema"),
        (vec![base.clone()], vec![thing(), extends("User", URN)], "base schema"),
        (vec![], vec![extends("Group", USER)], "base schema"),
        (vec![base.clone(), extension.clone()], vec![thing(), second], "the endpoint of"),
        (vec![base.clone()], vec![thing(), rival], "base schema of another"),
        (vec![with_members], vec![thing()], "membership"),
        (vec![base, ambiguous], vec![], "a path of an attribute"),
    ] {
        let error = all(&schemas, &types).expect_err(why);
        assert!(error.contains(why), "{error}");
    }
}

/// What may grow at any time, and what waits until nothing is in the way.
#[test]
fn obstacles_of_a_change() {
    let old = schema(json!([
        {"name": "a"},
        {"name": "b", "canonicalValues": ["x", "y"]},
        {"name": "c", "type": "complex", "subAttributes": [{"name": "value"}, {"name": "n", "type": "integer"}]},
    ]));
    let change = |at: usize, attribute: Value| {
        let mut json = old.to_json();
        let attributes = json["attributes"].as_array_mut().unwrap();
        attributes.splice(at..attributes.len().min(at + 1), [attribute]);
        let mut found: Vec<String> = schema_obstacles(&old, &SchemaDefinition::read(&json).unwrap())
            .into_iter()
            .map(|obstacle| match obstacle {
                Obstacle::Value { path, why } => format!("value {path}: {why}"),
                Obstacle::Resource { what, why } => format!("resource {what}: {why}"),
                Obstacle::Unsealed { what } => format!("unsealed {what}"),
                Obstacle::Extension { urn } => format!("extension {urn}"),
            })
            .collect();
        found.sort();
        found.join("; ")
    };
    let complex = |subs: Value| json!({"name": "c", "type": "complex", "subAttributes": subs});
    for (at, attribute, expected) in [
        (0, json!({"name": "a", "description": "new words", "returned": "request"}), ""),
        (0, json!({"name": "a", "mutability": "immutable"}), ""),
        (3, json!({"name": "d"}), ""),
        (1, json!({"name": "b", "canonicalValues": ["x", "y", "z"]}), ""),
        (1, json!({"name": "b"}), ""),
        (0, json!({"name": "A"}), "value a: its name would be spelt otherwise"),
        (0, json!({"name": "z"}), "value a: it would be removed"),
        (0, json!({"name": "a", "type": "integer"}), "value a: its type would change"),
        (0, json!({"name": "a", "multiValued": true}), "value a: multiValued would change"),
        (0, json!({"name": "a", "uniqueness": "server"}), "value a: uniqueness would change"),
        (0, json!({"name": "a", "caseExact": true}), "value a: caseExact would change"),
        (
            0,
            json!({"name": "a", "mutability": "readOnly"}),
            "value a: it would become, or cease to be, readOnly",
        ),
        (0, json!({"name": "a", "required": true}), "resource a: it would be required"),
        (0, json!({"name": "a", "x-personal": true}), "unsealed a"),
        (3, json!({"name": "d", "required": true}), "resource d: a new attribute would be required of it"),
        (
            1,
            json!({"name": "b", "canonicalValues": ["x", "y"], "x-closed": true}),
            "value b: values would no longer be allowed",
        ),
        (2, complex(json!([{"name": "value"}])), "value c.n: it would be removed"),
        (2, complex(json!([{"name": "value"}, {"name": "n", "type": "integer"}, {"name": "m"}])), ""),
        (
            2,
            complex(json!([{"name": "value"}, {"name": "n", "type": "integer", "required": true}])),
            "value c: it would be required",
        ),
        (
            2,
            complex(json!([
                {"name": "value"}, {"name": "n", "type": "integer"},
                {"name": "$ref", "type": "reference", "referenceTypes": ["User"]},
            ])),
            "value c: it would become, or cease to be, a reference to resources",
        ),
    ] {
        assert_eq!(change(at, attribute.clone()), expected, "{attribute}");
    }
    let read = |json: &Value| ResourceTypeDefinition::read(json).unwrap();
    let mut wider = thing();
    wider["schemaExtensions"] = json!([{"schema": "urn:example:ext"}]);
    assert_eq!(resource_type_obstacles(&read(&thing()), &read(&wider)), []);
    let gone = Obstacle::Extension { urn: "urn:example:ext".to_owned() };
    assert_eq!(resource_type_obstacles(&read(&wider), &read(&thing())), [gone]);
    let mut required = wider.clone();
    required["schemaExtensions"][0]["required"] = json!(true);
    assert!(matches!(
        resource_type_obstacles(&read(&wider), &read(&required)).as_slice(),
        [Obstacle::Resource { .. }]
    ));
    let moved = json!({"name": "Thing", "endpoint": "/Stuff", "schema": URN, "x-personal": true});
    assert_eq!(resource_type_obstacles(&read(&thing()), &read(&moved)).len(), 2);
}

//! The schemas we publish, against the tables of RFC 7643 with its errata, and what their characteristics do
//! to a PATCH.

use annals_domain::ids::ResourceId;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::patch::{apply, parse_request};
use annals_domain::scim::path::{Named, is_name, resolve};
use annals_domain::scim::resource::{Document, parse};
use annals_domain::scim::schema::{
    AttrType, Attribute, ENTERPRISE_USER, GROUP, Mutability, Registry, ResourceTypeDef, Returned, USER,
    Uniqueness,
};
use serde_json::{Map, Value, json};

/// One attribute in a line: `name type[*] flags`; a part stands under its attribute. The flags say only what
/// is not the default of RFC 7643 §2.2.
fn line(attribute: &Attribute) -> String {
    let mut out = format!("{} {}", attribute.name, json!(attribute.kind).as_str().unwrap_or_default());
    if attribute.multi_valued {
        out += "*";
    }
    let flags = [
        (attribute.required, "required".to_owned()),
        (attribute.case_exact, "caseExact".to_owned()),
        (attribute.mutability != Mutability::ReadWrite, json!(attribute.mutability).to_string()),
        (attribute.returned != Returned::Default, json!(attribute.returned).to_string()),
        (attribute.uniqueness != Uniqueness::None, json!(attribute.uniqueness).to_string()),
        (!attribute.reference_types.is_empty(), attribute.reference_types.join("|")),
        (!attribute.canonical_values.is_empty(), format!("{{{}}}", attribute.canonical_values.join(" "))),
    ];
    for (_, flag) in flags.into_iter().filter(|(is, _)| *is) {
        out += &format!(" {}", flag.trim_matches('"'));
    }
    out
}

fn lines(attributes: &[Attribute]) -> Vec<String> {
    let with_parts = |a: &Attribute| {
        std::iter::once(line(a))
            .chain(a.sub_attributes.iter().map(|s| format!("  {}", line(s))))
            .collect::<Vec<_>>()
    };
    attributes.iter().flat_map(with_parts).collect()
}

/// A list of things with `value`, `display`, `type`, `primary`, as RFC 7643 §2.4 has them.
fn plural(name: &str, value: &str, kind: &str) -> Vec<String> {
    let kind = if kind.is_empty() { "  type string".to_owned() } else { format!("  type string {{{kind}}}") };
    vec![
        format!("{name} complex*"),
        format!("  value {value}"),
        "  display string".into(),
        kind,
        "  primary boolean".into(),
    ]
}

/// CS-013, CS-023, CH-005, CH-010, CH-011, CH-012: User as in RFC 7643 §4.1 and §8.7.1, corrected by errata
/// 6001, 6004 and 8471.
#[test]
fn the_user_schema_is_that_of_the_rfc() {
    let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let mut expect = text(&[
        "userName string required server",
        "name complex",
        "  formatted string",
        "  familyName string",
        "  givenName string",
        "  middleName string",
        "  honorificPrefix string",
        "  honorificSuffix string",
        "displayName string",
        "nickName string",
        "profileUrl reference caseExact external",
        "title string",
        "userType string",
        "preferredLanguage string",
        "locale string",
        "timezone string",
        "active boolean",
        "password string writeOnly never",
    ]);
    expect.extend(plural("emails", "string", "work home other"));
    expect.extend(plural("phoneNumbers", "string", "work home mobile fax pager other"));
    expect.extend(plural("ims", "string", "aim gtalk icq xmpp msn skype qq yahoo other"));
    expect.extend(plural("photos", "reference caseExact external", "photo thumbnail"));
    expect.extend(text(&[
        "addresses complex*",
        "  formatted string",
        "  streetAddress string",
        "  locality string",
        "  region string",
        "  postalCode string",
        "  country string",
        "  type string {work home other}",
        "  primary boolean",
        "groups complex* readOnly",
        "  value string caseExact readOnly",
        "  $ref reference caseExact readOnly Group",
        "  display string readOnly",
        "  type string readOnly {direct indirect}",
    ]));
    expect.extend(plural("entitlements", "string", ""));
    expect.extend(plural("roles", "string", ""));
    expect.extend(plural("x509Certificates", "binary caseExact", ""));
    let registry = Registry::standard();
    assert_eq!(lines(&registry.schema(USER).unwrap().attributes), expect);
}

/// CS-013, CH-004, GR-003: Group as in RFC 7643 §4.2, corrected by errata 5368 and 6011; the enterprise extension as in
/// §4.3, by 8472.
#[test]
fn the_group_and_enterprise_schemas_are_those_of_the_rfc() {
    let registry = Registry::standard();
    assert_eq!(
        lines(&registry.schema(GROUP).unwrap().attributes),
        [
            "displayName string required",
            "members complex*",
            "  value string caseExact immutable",
            "  $ref reference caseExact immutable User|Group",
            "  type string immutable {User Group}",
            "  display string readOnly",
        ]
    );
    assert_eq!(
        lines(&registry.schema(ENTERPRISE_USER).unwrap().attributes),
        [
            "employeeNumber string",
            "costCenter string",
            "organization string",
            "division string",
            "department string",
            "manager complex",
            "  value string caseExact",
            "  $ref reference caseExact User",
            "  displayName string readOnly",
        ]
    );
    let user = registry.resource_type("User").unwrap();
    assert!(user.extensions.iter().all(|e| !e.required));
}

/// CS-005, CS-009, CS-013: the common attributes are those of every resource type and of no schema.
#[test]
fn common_attributes_are_in_no_schema() {
    let registry = Registry::standard();
    let common = ["schemas", "id", "externalId", "meta"];
    for resource_type in registry.resource_types() {
        assert!(common.iter().all(|name| resource_type.core(name).is_some()), "{}", resource_type.name);
        assert_eq!(line(resource_type.core("id").unwrap()), "id string caseExact readOnly always");
        assert_eq!(line(resource_type.core("externalId").unwrap()), "externalId string caseExact");
        let meta = resource_type.core("meta").unwrap();
        assert_eq!(line(meta), "meta complex readOnly");
        assert!(meta.sub_attributes.iter().all(|s| s.is_read_only() && s.returned == Returned::Default));
    }
    for urn in [USER, GROUP, ENTERPRISE_USER] {
        let schema = registry.schema(urn).unwrap();
        let names: Vec<&str> = schema.attributes.iter().map(|a| a.name.as_str()).collect();
        assert!(common.iter().all(|name| !names.contains(name)), "{urn}: {names:?}");
    }
}

/// CS-023, CS-031: `Schema` describes attributes of all types, and parts of all but `complex` (errata 5606, 8415).
#[test]
fn the_schema_of_schemas_knows_every_type() {
    let schema =
        Registry::standard().schema("urn:ietf:params:scim:schemas:core:2.0:Schema").unwrap().to_json();
    let find = |list: &Value, name: &str| {
        let list = list.as_array().unwrap();
        list.iter().find(|a| a["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let attributes = find(&schema["attributes"], "attributes");
    let all = ["string", "boolean", "decimal", "integer", "dateTime", "reference", "binary", "complex"];
    let kinds = |of: &Value| {
        let list = find(&of["subAttributes"], "type")["canonicalValues"].as_array().unwrap().clone();
        list.iter().map(|v| v.as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(kinds(&attributes), all.iter().map(|s| (*s).to_owned()).collect());
    let parts = find(&attributes["subAttributes"], "subAttributes");
    assert_eq!(kinds(&parts), all[..7].iter().map(|s| (*s).to_owned()).collect());
    let references = find(&attributes["subAttributes"], "referenceTypes");
    assert_eq!(references["multiValued"], true, "erratum 5607");
}

/// CS-021: names, in bodies and in paths, `$ref` among them (erratum 8924).
#[test]
fn names_of_attributes() {
    for good in ["a", "$ref", "a-b", "a_b", "x1", "a$"] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "1a", "-a", "_a", "a b", "a.b", "a:b", "ä", "a\u{301}", "a[", "a\"", "a\0"] {
        assert!(!is_name(bad), "{bad}");
    }
    let (registry, group) =
        (Registry::standard(), Registry::standard().resource_type("Group").unwrap().clone());
    let named = |path| resolve(&registry, &group, path, &mut Dialect::new(Profile::Strict)).ok();
    let Some(Named::Attribute { sub: Some(sub), .. }) = named("MEMBERS.$REF") else { panic!("not found") };
    assert_eq!(sub.name, "$ref");
    assert_eq!(named("members.ref"), None);
}

/// FI-004, PA-008: a path behind the URN of a schema, in any case, and what merely looks like one.
#[test]
fn paths_behind_urns() {
    let (registry, user) =
        (Registry::standard(), Registry::standard().resource_type("User").unwrap().clone());
    let shown = |path: &str| match resolve(
        &registry,
        &user,
        &path.replace("ENT", ENTERPRISE_USER),
        &mut Dialect::new(Profile::Strict),
    ) {
        Ok(Named::Extension(urn)) => urn.replace(ENTERPRISE_USER, "ENT"),
        Ok(Named::Attribute { attribute, sub }) => sub.map_or(attribute.key.clone(), |sub| sub.key.clone()),
        Err(_) => "unknown".to_owned(),
    };
    let urn = USER;
    for (path, expect) in [
        (format!("{urn}:userName"), "username"),
        (format!("{}:NAME.givenname", urn.to_uppercase()), "name.givenname"),
        (format!("{urn}:emails.value"), "emails.value"),
        (format!("{urn}:department"), "unknown"),
        (format!("{urn}:id"), "id"),
        ("ENT".to_owned(), "ENT"),
        ("ENT:userName".to_owned(), "unknown"),
        ("ENT:".to_owned(), "unknown"),
        ("ENT.department".to_owned(), "unknown"),
        ("urn:ietf:params:scim:schemas:core:2.0".to_owned(), "unknown"),
        ("urn:ietf:params:scim:schemas:core:2.0:User2:userName".to_owned(), "unknown"),
        ("urn:x:y:userName".to_owned(), "unknown"),
    ] {
        assert_eq!(shown(&path), expect, "{path}");
    }
    let manager = shown("ENT:manager.value");
    assert!(manager.ends_with(":user:manager.value"), "{manager}");
}

/// A tenant's own resource type with every characteristic: its endpoint is its name with an `s` (RT-005).
fn badges() -> std::sync::Arc<Registry> {
    let schema = json!({"id": "urn:example:Badge", "name": "Badge", "attributes": [
        {"name": "serial", "mutability": "immutable", "caseExact": true},
        {"name": "color", "mutability": "immutable"},
        {"name": "state", "mutability": "readOnly"},
        {"name": "note"},
        {"name": "level", "type": "integer"},
        {"name": "size", "type": "decimal"},
        {"name": "issued", "type": "dateTime"},
        {"name": "door", "type": "complex", "required": false, "subAttributes": [
            {"name": "value", "required": true}, {"name": "tags", "multiValued": true}]},
    ]});
    let badge = ResourceTypeDef {
        name: "Badge".to_owned(),
        endpoint: "/Badges".to_owned(),
        description: String::new(),
        schema: "urn:example:Badge".to_owned(),
        extensions: Vec::new(),
        personal: false,
        retired: false,
    };
    let builder = Registry::standard().to_builder().schema(&schema).unwrap().resource_type(badge);
    std::sync::Arc::new(builder.build().unwrap())
}

fn patch_badge(current: Value, operation: Value) -> String {
    let registry = badges();
    let badge = registry.resource_type("Badge").unwrap();
    let current = Document(current.as_object().unwrap().clone());
    let mut dialect = Dialect::new(Profile::Strict);
    let body =
        json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": [operation]});
    let operations = parse_request(&body, &mut dialect).unwrap();
    let id = ResourceId::from_text("b1");
    match apply(&registry, badge, &id, &current, &operations, &mut dialect) {
        Ok(patched) => json!(patched.document).to_string(),
        Err(error) => format!("{} {}", error.status, error.scim_type.map_or("", |t| t.as_str())),
    }
}

/// CH-002, CH-003, CH-004, PA-006: what a PATCH may do by the attribute's mutability.
#[test]
fn mutability_decides_what_a_patch_may_do() {
    let old = json!({"serial": "S1", "color": "red", "note": "n"});
    let same = old.to_string();
    let unset = |op: &str, path: &str, value: &str| {
        patch_badge(json!({"note": "n"}), json!({"op": op, "path": path, "value": value}))
    };
    let set = |op: &str, path: &str, value: &str| {
        let mut operation = json!({"op": op, "path": path});
        if op != "remove" {
            operation["value"] = json!(value);
        }
        patch_badge(old.clone(), operation)
    };
    assert_eq!(unset("add", "serial", "S2"), r#"{"note":"n","serial":"S2"}"#);
    assert_eq!(unset("replace", "serial", "S2"), r#"{"note":"n","serial":"S2"}"#);
    assert_eq!(set("add", "serial", "S2"), "400 mutability");
    assert_eq!(set("replace", "serial", "S2"), "400 mutability");
    assert_eq!(set("replace", "serial", "s1"), "400 mutability", "another case is another value");
    assert_eq!(set("remove", "serial", ""), "400 mutability");
    assert_eq!(set("replace", "serial", "S1"), same, "the same value");
    assert_eq!(set("replace", "color", "red"), same);
    assert_eq!(set("replace", "state", "on"), "400 mutability");
    assert_eq!(set("remove", "state", ""), "400 mutability");
    assert_eq!(set("replace", "note", "m"), r#"{"color":"red","note":"m","serial":"S1"}"#);
    let both = json!({"op": "replace", "value": {"note": "m", "serial": "S2"}});
    assert_eq!(patch_badge(old, both), "400 mutability");
}

/// PA-012: a stored value that would be refused today does not block a change of something else; touched, it
/// must be good.
#[test]
fn what_a_patch_does_not_touch_is_not_validated() {
    let old = json!({"level": "seven", "issued": "yesterday", "door": {"tags": ["a"]}});
    let note = json!({"op": "add", "path": "note", "value": "n"});
    let expect = json!({"level": "seven", "issued": "yesterday", "door": {"tags": ["a"]}, "note": "n"});
    assert_eq!(patch_badge(old.clone(), note), expect.to_string());
    let level = json!({"op": "replace", "path": "level", "value": "eight"});
    assert_eq!(patch_badge(old.clone(), level), "400 invalidValue");
    let door = json!({"op": "add", "path": "door.tags", "value": ["b"]});
    assert_eq!(patch_badge(old, door), "400 invalidValue", "CH-013: door.value is required in a door");
}

/// CS-023, CS-025, CS-026, CS-031, CS-033, CH-013: values of every type, at their edges.
#[test]
fn values_of_every_type() {
    let registry = badges();
    let badge = registry.resource_type("Badge").unwrap();
    let post = |body: Value| -> Result<Map<String, Value>, ScimError> {
        let mut dialect = Dialect::new(Profile::Generic);
        parse(&registry, badge, &body, &mut dialect).map(|parsed| parsed.document.0)
    };
    for (body, expect) in [
        (r#"{"level": 0}"#, r#"{"level":0}"#),
        (r#"{"level": -9223372036854775808}"#, r#"{"level":-9223372036854775808}"#),
        (r#"{"level": 9223372036854775808}"#, "invalidValue"),
        (r#"{"level": 1.0}"#, "invalidValue"),
        (r#"{"level": 1e3}"#, "invalidValue"),
        (r#"{"level": true}"#, "invalidValue"),
        (r#"{"size": 1.5}"#, r#"{"size":1.5}"#),
        (r#"{"size": 3}"#, r#"{"size":3}"#),
        (r#"{"size": "big"}"#, "invalidValue"),
        (r#"{"issued": "2026-02-01T00:00:00"}"#, r#"{"issued":"2026-02-01T00:00:00.000Z"}"#),
        (r#"{"issued": "2026-02-01"}"#, "invalidValue"),
        (r#"{"issued": ""}"#, "invalidValue"),
        (r#"{"issued": 1767225600}"#, "invalidValue"),
        (r#"{"note": ""}"#, r#"{"note":""}"#),
        (r#"{"note": null, "level": null, "door": null, "serial": []}"#, "{}"),
        (r#"{"door": {"value": "a", "tags": ["x", "y"]}}"#, r#"{"door":{"tags":["x","y"],"value":"a"}}"#),
        (r#"{"door": {"value": "a", "tags": []}}"#, r#"{"door":{"value":"a"}}"#),
        (r#"{"door": {"value": {"a": 1}}}"#, "invalidValue"),
        (r#"{"door": {"tags": ["x"]}}"#, "invalidValue"),
        (r#"{"door": {}}"#, "{}"),
    ] {
        let found = post(serde_json::from_str(body).unwrap());
        let found = match found {
            Ok(document) => Value::Object(document).to_string(),
            Err(error) => error.scim_type.map_or("", |t| t.as_str()).to_owned(),
        };
        assert_eq!(found, expect, "{body}");
    }
    assert!(badge.attributes().all(|a| a.kind != AttrType::Complex || a.uniqueness == Uniqueness::None));
    assert_eq!(registry.by_endpoint("badges").unwrap().name, "Badge");
}

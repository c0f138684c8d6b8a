//! Bodies of POST and PUT, rendering, projection, differences: the cases X01 to X15 of the requirements
//! (§7.5) that need no server, by their ids, and properties.

mod fixture;

use annals_domain::clock::Timestamp;
use annals_domain::ids::ResourceId;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::project::{Projection, Written};
use annals_domain::scim::resource::{
    Document, Meta, Parsed, apply_changes, diff, parse, parse_replacement, render,
};
use annals_domain::scim::schema::{Extension, Registry, ResourceTypeDef};
use annals_domain::view::{LookupSettings, lookups, references};
use fixture::{document, full, resource_type, short};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const STRICT: Profile = Profile::Strict;
const GENERIC: Profile = Profile::Generic;
const USER: &str = r#""schemas":["urn:ietf:params:scim:schemas:core:2.0:User"]"#;

fn outcome(parsed: Result<Parsed, ScimError>) -> String {
    match parsed {
        Ok(parsed) => {
            let mut out = short(&json!(parsed.document));
            if parsed.password.is_some() {
                out += " password";
            }
            if let Some(members) = parsed.members {
                out += &format!(" {members:?}");
            }
            out
        }
        Err(error) => format!("{} {}", error.status, error.scim_type.map_or("", |t| t.as_str())),
    }
}

/// The one door: the body of a POST (`id` says only which type) in one profile.
#[track_caller]
fn check(case: &str, id: &str, profile: Profile, body: &str, expect: &str) {
    let body: Value = serde_json::from_str(&full(body)).unwrap();
    let found = parse(&Registry::standard(), &resource_type(id), &body, &mut Dialect::new(profile));
    assert_eq!(outcome(found), expect, "{case} {profile}: {body}");
}

#[test]
fn bodies_that_every_profile_reads_alike() {
    for (case, body, expect) in [
        (
            "X01",
            r#""userName":"a","id":"hack","meta":{"created":"x"},"groups":[{"value":"g1"}]"#,
            r#"{"active":true,"userName":"a"}"#,
        ),
        ("X04", r#""title":"x""#, "400 invalidValue"),
        ("X04b", r#""userName":"""#, "400 invalidValue"),
        ("X06", r#""userName":"a","emails":[],"title":null"#, r#"{"active":true,"userName":"a"}"#),
        ("CR-004", r#""userName":"a","active":null"#, r#"{"userName":"a"}"#),
        (
            "CS-020",
            r#""USERNAME":"a","Name":{"GIVENNAME":"A"}"#,
            r#"{"active":true,"name":{"givenName":"A"},"userName":"a"}"#,
        ),
        ("CS-022", r#""userName":"a","username":"b""#, "400 invalidSyntax"),
        ("CS-022b", r#""userName":"a","name":{"givenName":"a","GivenName":"b"}"#, "400 invalidSyntax"),
        (
            "CS-033",
            r#""userName":"a","name":{"givenName":null},"emails":[{},null]"#,
            r#"{"active":true,"userName":"a"}"#,
        ),
        ("CS-033b", r#""userName":"a","title":"""#, r#"{"active":true,"title":"","userName":"a"}"#),
        (
            "CS-034",
            r#""userName":"a","emails":[{"value":"a","primary":true},{"value":"b","primary":true}]"#,
            "400 invalidValue",
        ),
        (
            "CS-035",
            r#""userName":"a","emails":[{"value":"a","type":"work"},{"value":"A","type":"work"}]"#,
            r#"{"active":true,"emails":[{"type":"work","value":"a"}],"userName":"a"}"#,
        ),
        (
            "EN-018",
            r#""userName":"a","emails":[{"value":"a","type":"work"},{"value":"b","type":"work"}]"#,
            r#"{"active":true,"emails":[{"type":"work","value":"a"},{"type":"work","value":"b"}],"userName":"a"}"#,
        ),
        (
            "CS-037",
            r#""userName":"a","emails":[{"value":"a","type":"cottage"}]"#,
            r#"{"active":true,"emails":[{"type":"cottage","value":"a"}],"userName":"a"}"#,
        ),
        (
            "CR-007",
            r#""userName":"a","ENT":{"department":"D"}"#,
            r#"{"active":true,"ENT":{"department":"D"},"userName":"a"}"#,
        ),
        ("CR-008", r#""userName":"a","emails":"x""#, "400 invalidValue"),
        ("CR-008b", r#""userName":"a","name":"x""#, "400 invalidValue"),
        ("CR-008c", r#""userName":["a"]"#, "400 invalidValue"),
        ("CR-008d", r#""userName":"a","name":[{"givenName":"x"}]"#, "400 invalidValue"),
        ("CR-008e", r#""userName":"a","active":[true]"#, "400 invalidValue"),
        ("CR-008f", r#""userName":"a","emails":["x"]"#, "400 invalidValue"),
        (
            "CS-027",
            r#""userName":"a","x509Certificates":[{"value":"AAECAw"}]"#,
            r#"{"active":true,"userName":"a","x509Certificates":[{"value":"AAECAw"}]}"#,
        ),
        ("CS-027b", r#""userName":"a","x509Certificates":[{"value":"%"}]"#, "400 invalidValue"),
        ("IN-005", r#""userName":"a\u0000""#, "400 invalidValue"),
        ("IN-005b", r#""userName":"a","ENT":{"manager":{"$ref":"a\u0000b"}}"#, "400 invalidValue"),
        ("US-004", r#""userName":"a","password":"x""#, r#"{"active":true,"userName":"a"} password"#),
        ("US-004b", r#""userName":"a","password":"""#, "400 invalidValue"),
        (
            "OK-021",
            r#""userName":"a","groups":"nonsense","ENT":{"manager":{"value":"u2","displayName":"x","$ref":"y"}}"#,
            r#"{"active":true,"ENT":{"manager":{"value":"u2"}},"userName":"a"}"#,
        ),
    ] {
        let body = format!("{{{USER},{body}}}");
        check(case, "u", STRICT, &body, expect);
        check(case, "u", GENERIC, &body, expect);
    }
}

/// CS-004: an extension's attribute at the top of a body is an unknown one.
#[test]
fn bodies_that_profiles_read_differently() {
    let minimal = r#"{"active":true,"userName":"a"}"#;
    for (case, body, strict, generic) in [
        ("X05", r#"{"schemas":[]}"#.to_owned(), "400 invalidSyntax", "400 invalidValue"),
        ("X05b", "[]".to_owned(), "400 invalidSyntax", "400 invalidSyntax"),
        ("CR-005", r#"{"userName":"a"}"#.to_owned(), "400 invalidSyntax", minimal),
        ("CR-005b", r#"{"userName":"a","schemas":"x"}"#.to_owned(), "400 invalidSyntax", "400 invalidSyntax"),
        (
            "CR-005c",
            r#"{"userName":"a","schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"]}"#.to_owned(),
            "400 invalidSyntax",
            "400 invalidSyntax",
        ),
        (
            "CR-006",
            r#"{"userName":"a","schemas":["urn:x","urn:ietf:params:scim:schemas:core:2.0:user"]}"#.to_owned(),
            "400 invalidSyntax",
            minimal,
        ),
        ("CR-007", format!(r#"{{{USER},"userName":"a","foo":1}}"#), "400 invalidSyntax", minimal),
        ("FI-005", format!(r#"{{{USER},"userName":"a","department":"D"}}"#), "400 invalidSyntax", minimal),
        ("X11", format!(r#"{{{USER},"userName":"a","active":"True"}}"#), "400 invalidValue", minimal),
        (
            "IN-003",
            format!(r#"{{{USER},"userName":"ana ruiz"}}"#),
            "400 invalidValue",
            r#"{"active":true,"userName":"ana ruiz"}"#,
        ),
        (
            "PI-003",
            format!(
                r#"{{{USER},"userName":"a","emails":[{{"value":"a","primary":true}},{{"value":"a","primary":true,"type":"work"}}]}}"#
            ),
            "400 invalidValue",
            r#"{"active":true,"emails":[{"primary":true,"value":"a"},{"primary":false,"type":"work","value":"a"}],"userName":"a"}"#,
        ),
    ] {
        check(case, "u", STRICT, &body, strict);
        check(case, "u", GENERIC, &body, generic);
    }
}

#[test]
fn groups_carry_members_beside_the_document() {
    let group = r#""schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"],"displayName":"G""#;
    for (case, body, expect) in [
        ("none", format!("{{{group}}}"), r#"{"displayName":"G"}"#),
        ("OK", format!(r#"{{{group},"members":[]}}"#), r#"{"displayName":"G"} []"#),
        (
            "GR-003",
            format!(
                r#"{{{group},"members":[{{"value":"u1"}},{{"$ref":"https://h/v2/Users/u2"}},{{"value":"u1","type":"User"}}]}}"#
            ),
            r#"{"displayName":"G"} ["u1", "u2"]"#,
        ),
        ("GR-003b", format!(r#"{{{group},"members":[{{"display":"x"}}]}}"#), "400 invalidValue"),
        (
            "CH-013",
            r#"{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"]}"#.to_owned(),
            "400 invalidValue",
        ),
    ] {
        check(case, "g", STRICT, &body, expect);
        check(case, "g", GENERIC, &body, expect);
    }
}

fn put(id: &str, body: &Value) -> Result<Parsed, ScimError> {
    let mut dialect = Dialect::new(GENERIC);
    parse_replacement(&Registry::standard(), &resource_type(id), &document(id), body, &mut dialect)
}

fn shown(id: &str) -> Map<String, Value> {
    let meta = Meta {
        created: Timestamp(1_767_225_600_123),
        last_modified: Timestamp(1_767_225_600_123),
        version: 5,
        location: format!("https://h/v2/Users/{id}"),
    };
    render(&resource_type(id), &ResourceId::from_text(id), &document(id), &meta)
}

/// PU-002, PU-005
#[test]
fn put_replaces() {
    let parsed = put("u1", &json!({"userName": "a"})).unwrap();
    assert_eq!(outcome(Ok(parsed)), r#"{"active":true,"userName":"a"}"#, "X07: all else is cleared");
    let suspended = put("u2", &json!({"userName": "bo"})).unwrap();
    assert_eq!(outcome(Ok(suspended)), r#"{"active":false,"userName":"bo"}"#, "PU-003: active stays");
    let unset = put("u2", &json!({"userName": "bo", "active": null})).unwrap();
    assert_eq!(outcome(Ok(unset)), r#"{"userName":"bo"}"#, "PU-007");
    assert_eq!(outcome(put("u1", &json!({"title": "x"}))), "400 invalidValue", "X08");
    assert_eq!(outcome(put("g1", &json!({"displayName": "Ops"}))), r#"{"displayName":"Ops"} []"#, "KC-003");
    for id in ["u1", "u2", "u3"] {
        let mut echo = json!(shown(id));
        echo["groups"] = json!([{"value": "g1"}]);
        assert_eq!(put(id, &echo).unwrap().document, document(id), "X10, OK-025");
    }
}

/// PU-004, CH-004
#[test]
fn immutable_attributes_are_set_once() {
    let registry = badges();
    let badge = registry.resource_type("Badge").unwrap();
    let parse_put = |current: Value, body: Value| {
        let current = Document(current.as_object().unwrap().clone());
        outcome(parse_replacement(&registry, badge, &current, &body, &mut Dialect::new(GENERIC)))
    };
    let old = json!({"serial": "S1", "level": 3});
    assert_eq!(parse_put(old.clone(), json!({"serial": "S2"})), "400 mutability");
    assert_eq!(parse_put(old.clone(), json!({"serial": "S1"})), r#"{"serial":"S1"}"#);
    assert_eq!(parse_put(old, json!({})), r#"{"serial":"S1"}"#);
    assert_eq!(parse_put(json!({}), json!({"serial": "S2"})), r#"{"serial":"S2"}"#);
    let doors = json!({"doors": [{"value": "a"}]});
    assert_eq!(parse_put(doors.clone(), json!({"doors": [{"value": "b"}]})), "400 mutability");
    assert_eq!(parse_put(doors, json!({"doors": [{"value": "A"}]})), r#"{"doors":[{"value":"A"}]}"#);
    let parse_post = |body: Value| outcome(parse(&registry, badge, &body, &mut Dialect::new(GENERIC)));
    assert_eq!(parse_post(json!({"level": 1.0})), "400 invalidValue", "CS-025");
    assert_eq!(parse_post(json!({"level": "7"})), r#"{"level":7}"#, "EN-054");
    assert_eq!(parse_post(json!({"color": "green"})), "400 invalidValue", "CS-037: closed");
    assert_eq!(parse_post(json!({"color": "Red"})), r#"{"color":"Red"}"#);
    assert_eq!(
        parse_post(json!({"issued": "2026-02-01T01:00:00+01:00"})),
        r#"{"issued":"2026-02-01T00:00:00.000Z"}"#,
        "CS-026"
    );
    assert_eq!(parse_post(json!({"issued": "2026-02-01"})), "400 invalidValue", "CS-026");
    assert_eq!(parse_post(json!({"tags": "x"})), r#"{"tags":["x"]}"#, "CR-008");
}

/// A tenant's own resource type, added at run time.
fn badges() -> Registry {
    let schema = json!({"id": "urn:example:Badge", "name": "Badge", "attributes": [
        {"name": "serial", "mutability": "immutable", "caseExact": true},
        {"name": "level", "type": "integer"},
        {"name": "issued", "type": "dateTime"},
        {"name": "color", "canonicalValues": ["red", "blue"], "closed": true},
        {"name": "tags", "multiValued": true},
        {"name": "doors", "type": "complex", "multiValued": true, "mutability": "immutable",
         "subAttributes": [{"name": "value"}]},
        {"name": "note", "returned": "request"},
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
    Registry::standard().to_builder().schema(&schema).unwrap().resource_type(badge).build().unwrap()
}

/// CH-009: what is returned only on request is in the answer to a change that wrote it.
#[test]
fn what_a_change_wrote_is_returned() {
    let schema = json!({"id": "urn:example:Extra", "name": "Extra", "attributes": [
        {"name": "note", "returned": "request"},
        {"name": "plan", "type": "complex", "subAttributes": [
            {"name": "name"}, {"name": "price", "returned": "request"}]},
    ]});
    let extension = Extension { schema: "urn:example:Extra".to_owned(), required: false };
    let builder = Registry::standard().to_builder().schema(&schema).unwrap();
    let registry = builder.extend("User", extension).unwrap().build().unwrap();
    let user = registry.resource_type("User").unwrap();
    let resource = json!({"userName": "a", "urn:example:Extra":
        {"note": "n", "plan": {"name": "p", "price": "9"}}});
    let shown = |attributes: Option<&str>, excluded: Option<&str>, written: Written<'_>| {
        let mut dialect = Dialect::new(GENERIC);
        let projection = Projection::new(&registry, user, attributes, excluded, &mut dialect).unwrap();
        let projection = projection.with_written(&registry, user, written, &mut dialect);
        json!(projection.apply(resource.as_object().unwrap().clone())["urn:example:Extra"])
    };
    let all = json!({"note": "n", "plan": {"name": "p", "price": "9"}});
    let none = json!({"plan": {"name": "p"}});
    let note = json!({"note": "n", "plan": {"name": "p"}});
    let price = json!({"plan": {"name": "p", "price": "9"}});
    let body = |extra: Value| json!({"userName": "a", "URN:example:extra": extra});
    for (body, expected) in [
        (json!({"userName": "a"}), &none),
        (body(json!({"note": "n", "plan": {"PRICE": "9"}})), &all),
        (body(json!({"Note": "n"})), &note),
        (body(json!({"plan": {"name": "p"}})), &none),
        (json!({"note": "elsewhere"}), &none),
    ] {
        assert_eq!(shown(None, None, Written::Body(&body)), *expected, "{body}");
    }
    for (operations, expected) in [
        (json!([{"op": "add", "value": {"urn:example:Extra:note": "n"}}]), &note),
        (json!([{"op": "add", "value": {"urn:example:Extra": {"note": "n"}}}]), &note),
        (json!([{"op": "replace", "path": "urn:example:Extra:plan", "value": {"price": "9"}}]), &price),
        (json!([{"op": "replace", "path": "urn:example:Extra:plan.price", "value": "9"}]), &price),
        (json!([{"op": "replace", "path": "urn:example:Extra", "value": {"plan": {"price": "9"}}}]), &price),
        (json!([{"op": "remove", "path": "urn:example:Extra:note"}]), &none),
        (json!([{"op": "replace", "path": "title", "value": "t"}]), &none),
    ] {
        let request = json!({"schemas": [annals_domain::scim::message::PATCH_OP], "Operations": operations});
        let read = annals_domain::scim::patch::parse_request(&request, &mut Dialect::new(GENERIC)).unwrap();
        assert_eq!(shown(None, None, Written::Operations(&read)), *expected, "{operations}");
    }
    // Who chooses gets what was chosen.
    let wrote = body(json!({"note": "n", "plan": {"price": "9"}}));
    let plan = shown(Some("urn:example:Extra:plan.name"), None, Written::Body(&wrote));
    assert_eq!(plan, json!({"plan": {"name": "p"}}));
    assert_eq!(shown(None, Some("urn:example:Extra:note"), Written::Body(&wrote)), price);
}

#[test]
fn a_list_has_an_end() {
    let emails = |n: usize| (0..n).map(|n| json!({"value": format!("{n}@x.test")})).collect::<Value>();
    let post = |n| {
        let body = json!({"userName": "a", "emails": emails(n)});
        parse(&Registry::standard(), &resource_type("u"), &body, &mut Dialect::new(GENERIC)).is_ok()
    };
    assert!(post(2_000) && !post(2_001));
}

#[test]
fn registries_refuse_what_does_not_fit() {
    let builder = || Registry::standard().to_builder();
    let attributes = |a: Value| json!({"id": "urn:x:y", "attributes": [a]});
    for bad in [
        json!({"id": "http://x/y", "attributes": []}),
        attributes(json!({"name": "a b"})),
        attributes(json!({"name": "a", "type": "complex"})),
        attributes(json!({"name": "a", "subAttributes": [{"name": "b"}]})),
        attributes(json!({"name": "a", "type": "colour"})),
        json!({"id": "urn:ietf:params:scim:schemas:core:2.0:user", "attributes": []}),
    ] {
        assert!(builder().schema(&bad).is_err(), "{bad}");
    }
    let extension = Extension { schema: "urn:x:y".to_owned(), required: true };
    assert!(builder().extend("Nope", extension.clone()).is_err());
    assert!(builder().extend("User", extension.clone()).unwrap().build().is_err(), "no such schema");
    let with = builder().schema(&attributes(json!({"name": "level", "required": true}))).unwrap();
    let registry = with.extend("User", extension).unwrap().build().unwrap();
    let user = registry.resource_type("User").unwrap();
    let post = |body: Value| outcome(parse(&registry, user, &body, &mut Dialect::new(GENERIC)));
    assert_eq!(post(json!({"userName": "a"})), "400 invalidValue", "RT-001");
    assert_eq!(post(json!({"userName": "a", "urn:x:y": {}})), "400 invalidValue", "RT-001");
    let good = r#"{"active":true,"urn:x:y":{"level":"1"},"userName":"a"}"#;
    assert_eq!(post(json!({"userName": "a", "URN:x:y": {"level": "1"}})), good);
}

#[test]
fn a_resource_is_shown_with_schemas_id_and_meta() {
    let shown = shown("u1");
    assert_eq!(short(&shown["schemas"]), r#"["urn:ietf:params:scim:schemas:core:2.0:User","ENT"]"#);
    assert_eq!(
        shown["meta"],
        json!({"resourceType": "User", "created": "2026-01-01T00:00:00.123Z", "lastModified": "2026-01-01T00:00:00.123Z",
               "location": "https://h/v2/Users/u1", "version": "W/\"5\""})
    );
}

fn project(attributes: Option<&str>, excluded: Option<&str>) -> Result<String, ScimError> {
    let user = resource_type("u1");
    let mut dialect = Dialect::new(GENERIC);
    let (attributes, excluded) = (attributes.map(full), excluded.map(full));
    let registry = Registry::standard();
    let projection =
        Projection::new(&registry, &user, attributes.as_deref(), excluded.as_deref(), &mut dialect)?;
    let mut out = projection.apply(shown("u1"));
    out.remove("schemas").unwrap();
    Ok(short(&Value::Object(out)))
}

#[test]
fn projections() {
    for (case, attributes, expect) in [
        ("P55", "userName", r#"{"id":"u1","userName":"Anna.Berg@Example.com"}"#),
        ("P54", "password,userName", r#"{"id":"u1","userName":"Anna.Berg@Example.com"}"#),
        (
            "X12",
            "emails.value",
            r#"{"emails":[{"value":"anna@work.test"},{"value":"anna@home.test"}],"id":"u1"}"#,
        ),
        (
            "X15",
            "ENT",
            r#"{"id":"u1","ENT":{"department":"R&D","employeeNumber":"42","manager":{"value":"u2"}}}"#,
        ),
        (
            "AT-005",
            " NAME.givenname , ENT:manager ",
            r#"{"id":"u1","name":{"givenName":"Anna"},"ENT":{"manager":{"value":"u2"}}}"#,
        ),
        ("AT-005b", "manager.value", r#"{"id":"u1","ENT":{"manager":{"value":"u2"}}}"#),
        ("AT-006", "nosuch", r#"{"id":"u1"}"#),
        ("AT-008", "meta.version", r#"{"id":"u1","meta":{"version":"W/\"5\""}}"#),
    ] {
        assert_eq!(project(Some(attributes), None).unwrap(), expect, "{case}");
    }
    let without =
        project(None, Some("id,emails,name.familyName,meta,externalId,title,userType,phoneNumbers,ENT"));
    assert_eq!(
        without.unwrap_or_default(),
        r#"{"active":true,"displayName":"Anna Berg","id":"u1","name":{"givenName":"Anna"},"userName":"Anna.Berg@Example.com"}"#,
        "X13"
    );
    let both = project(Some("userName"), Some("emails")).unwrap_err();
    assert_eq!(both.scim_type.unwrap().as_str(), "invalidValue", "X14");
    assert_eq!(project(Some(" "), None).unwrap(), project(None, None).unwrap(), "AT-006: empty is not given");
}

/// GR-002: members that nobody wants are not loaded.
#[test]
fn wanted_attributes_are_known_before_loading() {
    let wants = |id: &str, attributes, excluded, key: &str| {
        let mut dialect = Dialect::new(GENERIC);
        Projection::new(&Registry::standard(), &resource_type(id), attributes, excluded, &mut dialect)
            .unwrap()
            .wants(key)
    };
    assert!(wants("g1", None, None, "members") && wants("g1", Some("members.value"), None, "members"));
    assert!(
        !wants("g1", None, Some("members"), "members") && !wants("g1", Some("displayName"), None, "members")
    );
    assert!(wants("u1", None, Some("groups.display"), "groups") && !wants("u1", Some("id"), None, "groups"));
    assert!(!wants("u1", None, None, "password") && wants("u1", Some("userName"), None, "id"));
    let registry = badges();
    let badge = registry.resource_type("Badge").unwrap();
    let note = |attributes| {
        let projection =
            Projection::new(&registry, badge, attributes, None, &mut Dialect::new(GENERIC)).unwrap();
        projection.apply(Map::from_iter([("note".to_owned(), json!("n"))])).len()
    };
    assert_eq!((note(None), note(Some("note"))), (0, 1), "CH-009");
}

#[test]
fn look_ups_and_references() {
    let found = |id: &str, settings: &LookupSettings| {
        let found = lookups(&resource_type(id), &document(id), settings);
        let text = |l: &annals_domain::view::Lookup| format!("{}={} {}", l.kind, l.value, l.exclusive);
        found.iter().map(text).collect::<Vec<_>>().join("; ")
    };
    let off = LookupSettings::default();
    assert_eq!(found("u1", &off), "username=anna.berg@example.com true; externalid=E-1 false");
    assert_eq!(found("g1", &off), "displayname=ops false");
    let on = LookupSettings { external_id_unique: true, group_name_unique: true };
    assert_eq!(found("u1", &on), "username=anna.berg@example.com true; externalid=E-1 true");
    assert_eq!(found("g1", &on), "displayname=ops true");
    let manager = [("manager".to_owned(), ResourceId::from_text("u2"))];
    assert_eq!(references(&resource_type("u1"), &document("u1")), manager);
    assert!(references(&resource_type("u2"), &document("u2")).is_empty());
}

#[test]
fn discovery_documents_are_clean() {
    let registry = Registry::standard();
    assert_eq!(registry.schemas().count(), 6, "RT-002");
    for schema in registry.schemas() {
        let text = schema.to_json().to_string();
        assert!(!text.contains("null") && !text.contains("\"link\""), "RT-006: {}", schema.id);
        assert!(!text.contains(r#""type":"complex","uniqueness""#), "CH-011");
    }
    let user = registry.by_endpoint("/users").unwrap();
    assert_eq!(user.to_json()["schemaExtensions"][0]["required"], json!(false));
    assert!(registry.by_endpoint("Groups").is_some() && registry.by_endpoint("Nope").is_none());
    assert_eq!(registry.resource_types().count(), 2);
}

/// Canonical documents: no nulls, nothing empty but strings.
fn documents() -> impl Strategy<Value = Document> {
    let simple = prop_oneof![any::<bool>().prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
    let name = "[a-d]";
    let object = proptest::collection::btree_map(name, simple.clone(), 1..4).prop_map(|m| json!(m));
    let list =
        proptest::collection::vec(prop_oneof![simple.clone(), object.clone()], 1..3).prop_map(Value::from);
    let attribute = prop_oneof![simple, object, list].boxed();
    let extension = proptest::collection::btree_map("[a-d]", attribute.clone(), 1..4).prop_map(|m| json!(m));
    let core = proptest::collection::btree_map("[a-d]", attribute, 0..4);
    let extensions = proptest::collection::btree_map("(urn:x:2.0:U|urn:x:2.0:U:y|URN:z)", extension, 0..3);
    (core, extensions).prop_map(|(core, extensions)| Document(core.into_iter().chain(extensions).collect()))
}

/// Bodies of users, sensible and not.
fn bodies() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "(|a|A|true|work|ß|u2|x/u3)".prop_map(Value::from),
    ];
    let part = "(value|Type|primary|\\$ref|display|givenName|formatted|country|managerId|x)";
    let object = proptest::collection::btree_map(part, leaf.clone(), 0..4).prop_map(|m| json!(m)).boxed();
    let list =
        proptest::collection::vec(prop_oneof![leaf.clone(), object.clone()], 0..4).prop_map(Value::from);
    let value = prop_oneof![2 => leaf, 2 => object, 3 => list].boxed();
    let name = "(active|title|name|emails|roles|addresses|photos|groups|externalId|password|meta|id|nosuch)";
    let extension = proptest::collection::btree_map("(department|manager|Manager|x)", value.clone(), 0..3)
        .prop_map(|m| json!(m));
    let core = proptest::collection::btree_map(name, value, 0..5);
    (core, prop_oneof![Just(Value::Null), extension]).prop_map(|(core, extension)| {
        let mut body = json!(core);
        body["userName"] = json!("a");
        body[full("ENT")] = extension;
        body
    })
}

proptest! {
    #[test]
    fn what_was_read_reads_back_as_itself(body in bodies()) {
        let (registry, user) = (Registry::standard(), resource_type("u"));
        for &profile in Profile::ALL {
            let Ok(parsed) = parse(&registry, &user, &body, &mut Dialect::new(profile)) else { continue };
            let meta = Meta {
                created: Timestamp(0), last_modified: Timestamp(0), version: 1, location: String::new(),
            };
            let shown = json!(render(&user, &ResourceId::from_text("u"), &parsed.document, &meta));
            let mut strict = Dialect::new(STRICT);
            let again = parse_replacement(&registry, &user, &parsed.document, &shown, &mut strict);
            let again = again.map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(&again.document, &parsed.document);
            prop_assert!(strict.applied.is_empty());
        }
    }

    #[test]
    fn changes_lead_from_one_document_to_the_other(a in documents(), b in documents()) {
        let changes = diff(&a, &b);
        let mut there = a.clone();
        apply_changes(&mut there, &changes);
        prop_assert_eq!(&there, &b);
        prop_assert!(diff(&there, &b).is_empty());
        let back: Vec<_> = changes.into_iter().map(|mut c| { std::mem::swap(&mut c.old, &mut c.new); c }).collect();
        apply_changes(&mut there, &back);
        prop_assert_eq!(there, a);
    }
}

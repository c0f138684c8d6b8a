//! Bulk requests: the envelope, references by `bulkId`, the order of carrying out (requirements §2.14).

use std::sync::Arc;

use annals_domain::ids::ResourceId;
use annals_domain::scim::bulk::{Name, Plan, plan};
use annals_domain::scim::dialect::{Dialect, Profile, Quirk};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::schema::{ENTERPRISE_USER, Extension, Registry};
use serde_json::{Value, json};

const BULK: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";

fn read_as(profile: Profile, body: Value) -> Result<Plan, ScimError> {
    plan(&Registry::standard(), body, 1_000, &mut Dialect::new(profile))
}

fn planned(operations: Value) -> Plan {
    read_as(Profile::Generic, json!({"schemas": [BULK], "Operations": operations})).unwrap()
}

/// `404`, `400 invalidValue`.
fn code(error: &ScimError) -> String {
    match error.scim_type {
        Some(scim_type) => format!("{} {}", error.status, scim_type.as_str()),
        None => error.status.to_string(),
    }
}

/// New resources get the ids `id-0`, `id-1`, … by the index of their operation.
fn resolve(plan: &Plan, at: usize) -> (String, Value) {
    let ids: Vec<ResourceId> =
        (0..plan.operations.len()).map(|at| ResourceId::from_text(&format!("id-{at}"))).collect();
    let dialect = Dialect::new(Profile::Generic);
    let (id, data) = plan.resolve(&Registry::standard(), at, &ids, &dialect).expect("not refused");
    (id.as_str().to_owned(), data)
}

fn units(plan: &Plan) -> Vec<Vec<usize>> {
    plan.units.iter().map(|unit| unit.operations.clone()).collect()
}

fn post(bulk_id: &str, path: &str, data: Value) -> Value {
    json!({"method": "POST", "bulkId": bulk_id, "path": path, "data": data})
}

/// BU-001, BU-004, BU-005, BU-008, BU-011: what fails the request as a whole.
#[test]
fn malformed_envelopes_are_refused() {
    let delete = json!({"method": "DELETE", "path": "/Users/u1"});
    let with = |operation: Value| json!({"schemas": [BULK], "Operations": [operation]});
    let errors = |value: Value| json!({"schemas": [BULK], "failOnErrors": value, "Operations": [delete]});
    let twice = json!([post("a", "/Users", json!({})), post("a", "/Groups", json!({}))]);
    let cases = [
        (json!([]), "400 invalidSyntax", "the body is no JSON object"),
        (
            json!({"schemas": "x", "Operations": [delete]}),
            "400 invalidSyntax",
            "schemas must be an array of strings",
        ),
        (
            json!({"schemas": [BULK]}),
            "400 invalidSyntax",
            "Operations must be an array of at least one operation",
        ),
        (
            json!({"schemas": [BULK], "Operations": []}),
            "400 invalidSyntax",
            "Operations must be an array of at least one operation",
        ),
        (
            json!({"schemas": [BULK], "Operations": {}}),
            "400 invalidSyntax",
            "Operations must be an array of at least one operation",
        ),
        (with(json!("DELETE")), "400 invalidSyntax", "Operations[0]: an operation must be an object"),
        (
            with(json!({"path": "/Users/u1"})),
            "400 invalidSyntax",
            "Operations[0]: method must be one of POST, PUT, PATCH and DELETE",
        ),
        (
            with(json!({"method": "GET", "path": "/Users/u1"})),
            "400 invalidSyntax",
            "Operations[0]: method must be one of POST, PUT, PATCH and DELETE",
        ),
        (
            with(json!({"method": 1, "path": "/Users"})),
            "400 invalidSyntax",
            "Operations[0]: method must be a string",
        ),
        (with(json!({"method": "DELETE"})), "400 invalidSyntax", "Operations[0]: path is missing"),
        (
            with(json!({"method": "DELETE", "path": 1})),
            "400 invalidSyntax",
            "Operations[0]: path must be a string",
        ),
        (
            with(json!({"method": "DELETE", "path": "/Users/u1", "version": 1})),
            "400 invalidSyntax",
            "Operations[0]: version must be a string",
        ),
        (
            with(json!({"method": "DELETE", "path": "/Users/u1", "Path": "/Users/u2"})),
            "400 invalidSyntax",
            "Operations[0]: the operation: \"path\" is given twice",
        ),
        (
            json!({"schemas": [BULK], "Operations": twice}),
            "400 invalidSyntax",
            "Operations[1]: bulkId \"a\" is that of Operations[0] too",
        ),
        (errors(json!(0)), "400 invalidValue", "failOnErrors must be at least 1"),
        (errors(json!(-1)), "400 invalidValue", "failOnErrors must be at least 1"),
        (errors(json!("1")), "400 invalidSyntax", "failOnErrors must be a whole number"),
        (errors(json!(1.5)), "400 invalidSyntax", "failOnErrors must be a whole number"),
    ];
    for (body, expected, detail) in cases {
        let error = read_as(Profile::Generic, body.clone()).expect_err(&body.to_string());
        assert_eq!((code(&error).as_str(), error.detail.as_str()), (expected, detail), "{body}");
    }
    assert_eq!(read_as(Profile::Generic, errors(json!(2))).unwrap().fail_on_errors, Some(2));
    assert_eq!(read_as(Profile::Generic, errors(json!(null))).unwrap().fail_on_errors, None);
}

/// BU-005, X26
#[test]
fn more_operations_than_allowed_are_too_many() {
    let operations: Vec<Value> =
        (0..1_001).map(|_| json!({"method": "DELETE", "path": "/Users/u1"})).collect();
    let error = read_as(Profile::Generic, json!({"schemas": [BULK], "Operations": operations})).unwrap_err();
    assert_eq!((error.status, error.scim_type), (413, None));
    assert_eq!(error.detail, "1001 operations are more than maxOperations (1000)");
}

/// BU-001: what strict clients may not, others may, and it is noted.
#[test]
fn tolerance_is_the_profiles() {
    let body = json!({"operations": [{"Method": "delete", "PATH": "Users/u1"}]});
    let mut dialect = Dialect::new(Profile::Generic);
    let read = plan(&Registry::standard(), body.clone(), 10, &mut dialect).unwrap();
    assert!(read.operations[0].refused.is_none());
    assert!(dialect.applied.contains(&Quirk::MissingSchemas) && dialect.applied.contains(&Quirk::MemberCase));
    assert_eq!(code(&read_as(Profile::Strict, body).unwrap_err()), "400 invalidSyntax");
    // The case of the method is free in every profile.
    let body = json!({"schemas": [BULK], "Operations": [{"method": "delete", "path": "/Users/u1"}]});
    assert!(read_as(Profile::Strict, body).unwrap().operations[0].refused.is_none());
}

/// BU-001, BU-002: what fails one operation alone.
#[test]
fn paths_and_parts_of_an_operation() {
    let ok = "";
    let cases = [
        ("DELETE", "/Users/u1", ok),
        ("DELETE", "Users/u1", ok),
        ("DELETE", "/Users/u1/", ok),
        ("DELETE", "/v2/Users/u1", ok),
        ("DELETE", "v2/Users/u1", ok),
        ("DELETE", "/users/u1", ok),
        ("POST", "/Groups", ok),
        ("POST", "/v2/Groups", ok),
        ("DELETE", "/Users", "400 invalidValue"),
        ("PUT", "/Users", "400 invalidValue"),
        ("PATCH", "/v2/Users/", "400 invalidValue"),
        ("POST", "/Users/u1", "400 invalidValue"),
        ("POST", "/Users/.search", "400 invalidValue"),
        ("DELETE", "/Users/u1?attributes=id", "400 invalidValue"),
        ("POST", "/Bulk", "400 invalidValue"),
        ("PATCH", "/Me", "400 invalidValue"),
        ("POST", "/.search", "400 invalidValue"),
        ("PUT", "/ServiceProviderConfig", "400 invalidValue"),
        ("DELETE", "/Schemas/urn:x", "400 invalidValue"),
        ("DELETE", "/resourcetypes/User", "400 invalidValue"),
        ("DELETE", "https://h.test/scim/v2/Users/u1", "400 invalidValue"),
        ("DELETE", "", "404"),
        ("DELETE", "/", "404"),
        ("DELETE", "/Nope/u1", "404"),
        ("DELETE", "/Users/u1/emails", "404"),
    ];
    for (method, path, expected) in cases {
        let read = planned(json!([{"method": method, "path": path, "bulkId": "b", "data": {}}]));
        let refused = read.operations[0].refused.as_ref().map(code).unwrap_or_default();
        assert_eq!(refused, expected, "{method} {path}");
    }
    let strict = json!({"schemas": [BULK], "Operations": [{"method": "DELETE", "path": "/users/u1"}]});
    let strict = read_as(Profile::Strict, strict).unwrap();
    assert_eq!(strict.operations[0].refused.as_ref().unwrap().status, 404);
    let lacking = [
        (json!({"method": "POST", "path": "/Users", "data": {}}), "POST needs a bulkId"),
        (json!({"method": "POST", "path": "/Users", "bulkId": "", "data": {}}), "POST needs a bulkId"),
        (json!({"method": "POST", "path": "/Users", "bulkId": "b"}), "POST needs data"),
        (json!({"method": "PUT", "path": "/Users/u1", "data": null}), "PUT needs data"),
        (json!({"method": "PATCH", "path": "/Users/u1"}), "PATCH needs data"),
    ];
    for (operation, detail) in lacking {
        let read = planned(json!([operation]));
        let refused = read.operations[0].refused.as_ref().expect(detail);
        assert_eq!((code(refused).as_str(), refused.detail.as_str()), ("400 invalidSyntax", detail));
    }
}

/// BU-006: wherever an id is expected.
#[test]
fn references_are_replaced_by_ids() {
    let ent = ENTERPRISE_USER;
    let manager = format!("{ent}:manager");
    let cases = [
        // In resources.
        (
            "POST",
            "/Groups",
            json!({"members": [{"value": "bulkId:u", "type": "User"}]}),
            json!({"members": [{"value": "id-0", "type": "User"}]}),
        ),
        (
            "POST",
            "/Groups",
            json!({"Members": [{"Value": "bulkId:u"}]}),
            json!({"Members": [{"Value": "id-0"}]}),
        ),
        ("POST", "/Groups", json!({"members": ["bulkId:u"]}), json!({"members": ["id-0"]})),
        ("POST", "/Groups", json!({"members": {"value": "bulkId:u"}}), json!({"members": {"value": "id-0"}})),
        (
            "POST",
            "/Groups",
            json!({"members": [{"$ref": "/Users/bulkId:u"}]}),
            json!({"members": [{"$ref": "/Users/id-0"}]}),
        ),
        (
            "POST",
            "/Groups",
            json!({"members": [{"$ref": "https://h/v2/Users/bulkId:u"}]}),
            json!({"members": [{"$ref": "https://h/v2/Users/id-0"}]}),
        ),
        (
            "PUT",
            "/Users/x",
            json!({(ent): {"manager": {"value": "bulkId:u", "$ref": "../Users/bulkId:u"}}}),
            json!({(ent): {"manager": {"value": "id-0", "$ref": "../Users/id-0"}}}),
        ),
        ("PUT", "/Users/x", json!({(ent): {"manager": "bulkId:u"}}), json!({(ent): {"manager": "id-0"}})),
        (
            "PUT",
            "/Users/x",
            json!({(ent): {"manager": {"managerId": "bulkId:u"}}}),
            json!({(ent): {"manager": {"managerId": "id-0"}}}),
        ),
        // In PATCH.
        (
            "PATCH",
            "/Groups/x",
            json!({"Operations": [{"op": "add", "path": "members", "value": [{"value": "bulkId:u"}]}]}),
            json!({"Operations": [{"op": "add", "path": "members", "value": [{"value": "id-0"}]}]}),
        ),
        (
            "PATCH",
            "/Groups/x",
            json!({"operations": [{"op": "Add", "Path": "Members", "Value": "bulkId:u"}]}),
            json!({"operations": [{"op": "Add", "Path": "Members", "Value": "id-0"}]}),
        ),
        (
            "PATCH",
            "/Groups/x",
            json!({"Operations": [{"op": "add", "value": {"members": [{"value": "bulkId:u"}]}}]}),
            json!({"Operations": [{"op": "add", "value": {"members": [{"value": "id-0"}]}}]}),
        ),
        (
            "PATCH",
            "/Groups/x",
            json!({"Operations": [{"op": "remove", "path": "members[value eq \"bulkId:u\"]"}]}),
            json!({"Operations": [{"op": "remove", "path": "members[value eq \"id-0\"]"}]}),
        ),
        (
            "PATCH",
            "/Groups/x",
            json!({"Operations": [{"op": "remove", "path": "members[value eq \"bulkId:u\" or value eq \"x\" or value eq \"bulkId:v\"]"}]}),
            json!({"Operations": [{"op": "remove", "path": "members[value eq \"id-0\" or value eq \"x\" or value eq \"id-1\"]"}]}),
        ),
        (
            "PATCH",
            "/Users/x",
            json!({"Operations": [{"op": "replace", "path": (manager), "value": {"value": "bulkId:u"}}]}),
            json!({"Operations": [{"op": "replace", "path": (manager), "value": {"value": "id-0"}}]}),
        ),
        (
            "PATCH",
            "/Users/x",
            json!({"Operations": [{"op": "replace", "path": format!("{manager}.value"), "value": "bulkId:u"}]}),
            json!({"Operations": [{"op": "replace", "path": format!("{manager}.value"), "value": "id-0"}]}),
        ),
        (
            "PATCH",
            "/Users/x",
            json!({"Operations": [{"op": "replace", "value": {(manager.clone()): "bulkId:u"}}]}),
            json!({"Operations": [{"op": "replace", "value": {(manager.clone()): "id-0"}}]}),
        ),
        (
            "PATCH",
            "/Users/x",
            json!({"Operations": [{"op": "replace", "value": {(ent): {"manager": {"value": "bulkId:u"}}}}]}),
            json!({"Operations": [{"op": "replace", "value": {(ent): {"manager": {"value": "id-0"}}}}]}),
        ),
        (
            "PATCH",
            "/Users/x",
            json!({"Operations": [{"op": "add", "path": (ent), "value": {"manager": {"value": "bulkId:u"}}}]}),
            json!({"Operations": [{"op": "add", "path": (ent), "value": {"manager": {"value": "id-0"}}}]}),
        ),
    ];
    for (method, path, data, expected) in cases {
        let read = planned(json!([
            post("u", "/Users", json!({})),
            post("v", "/Users", json!({})),
            {"method": method, "path": path, "bulkId": "x", "data": data},
        ]));
        assert!(read.operations[2].refused.is_none(), "{data}");
        assert_eq!(resolve(&read, 2).1, expected, "{data}");
        assert!(read.units[2].needs.contains(&0), "{data}");
    }
}

/// BU-006: anywhere else the same text is text, even of an unknown name.
#[test]
fn other_texts_are_left_alone() {
    let bodies = [
        json!({"userName": "bulkId:nobody", "title": "bulkId:u"}),
        json!({"userName": "x", "emails": [{"value": "bulkId:nobody"}], "roles": [{"value": "bulkId:u"}]}),
        json!({"userName": "x", "photos": [{"value": "https://h.test/bulkId:u"}]}),
        json!({"userName": "x", "groups": [{"value": "bulkId:nobody"}]}),
        json!({"userName": "x", "unknown": {"value": "bulkId:nobody"}}),
    ];
    for data in bodies {
        let read = planned(json!([post("u", "/Users", json!({})), post("x", "/Users", data.clone())]));
        assert!(read.operations[1].refused.is_none(), "{data}");
        assert_eq!((resolve(&read, 1).1, &read.units[1].needs), (data, &vec![]));
    }
}

/// BU-006: references of a tenant's own extension, complex and simple ones.
#[test]
fn references_of_extensions() {
    let urn = "urn:example:Desk";
    let schema = json!({
        "id": urn, "name": "Desk", "description": "d",
        "attributes": [
            {"name": "owner", "type": "complex", "multiValued": false, "description": "d", "subAttributes": [
                {"name": "value", "type": "string", "multiValued": false, "description": "d"},
                {"name": "$ref", "type": "reference", "referenceTypes": ["User"], "multiValued": false, "description": "d"}]},
            {"name": "team", "type": "reference", "referenceTypes": ["Group"], "multiValued": true, "description": "d"},
            {"name": "site", "type": "reference", "referenceTypes": ["external"], "multiValued": false, "description": "d"},
        ],
    });
    let extension = Extension { schema: urn.to_owned(), required: false };
    let builder =
        Registry::standard().to_builder().schema(&schema).unwrap().extend("User", extension).unwrap();
    let registry = Arc::new(builder.build().unwrap());
    let desk = |a: &str, b: &str| json!({(urn): {"owner": {"value": a}, "team": [format!("/Groups/{b}")], "site": "https://h/bulkId:u"}});
    let body = json!({"schemas": [BULK], "Operations": [
        post("u", "/Users", json!({})),
        post("g", "/Groups", json!({})),
        post("x", "/Users", desk("bulkId:u", "bulkId:g")),
    ]});
    let mut dialect = Dialect::new(Profile::Strict);
    let read = plan(&registry, body, 10, &mut dialect).unwrap();
    let ids: Vec<ResourceId> = ["a", "b", "c"].map(ResourceId::from_text).into();
    assert_eq!(read.resolve(&registry, 2, &ids, &dialect).unwrap().1, desk("a", "b"));
}

/// BU-006: in paths.
#[test]
fn a_path_may_name_a_new_resource() {
    let read = planned(json!([
        {"method": "PATCH", "path": "/Groups/bulkId:g1", "data": {}},
        post("g1", "/Groups", json!({"displayName": "x"})),
        {"method": "DELETE", "path": "Groups/bulkId:g1"},
    ]));
    assert_eq!(read.operations[0].target.as_ref().unwrap().name, Name::Created(1));
    assert_eq!(resolve(&read, 0).0, "id-1");
    assert_eq!(resolve(&read, 2).0, "id-1");
    assert_eq!(units(&read), [[1], [0], [2]]);
}

/// BU-007, X28: in both directions, through others, in circles.
#[test]
fn what_is_referred_to_comes_first() {
    let group = |bulk_id: &str, members: &[&str]| {
        let members: Vec<Value> = members.iter().map(|m| json!({"value": format!("bulkId:{m}")})).collect();
        post(bulk_id, "/Groups", json!({"displayName": bulk_id, "members": members}))
    };
    let of = |groups: &[(&str, &[&str])]| {
        let operations: Vec<Value> = groups.iter().map(|(name, members)| group(name, members)).collect();
        units(&planned(json!(operations)))
    };
    assert_eq!(of(&[("a", &[]), ("b", &["a"])]), [[0], [1]]);
    assert_eq!(of(&[("a", &["b"]), ("c", &[]), ("b", &[])]), [[2], [0], [1]]);
    assert_eq!(of(&[("a", &["b"]), ("b", &["a"])]), [vec![0, 1]]);
    assert_eq!(of(&[("a", &["b"]), ("b", &["c", "d"]), ("c", &["a"]), ("d", &[])]), [vec![3], vec![0, 1, 2]]);
    // A resource that names itself is no circle: whether it may is the resource's own rule.
    assert_eq!(of(&[("a", &["a"])]), [[0]]);
}

/// BU-008
#[test]
fn unknown_references_fail_their_operation() {
    let read = planned(json!([
        post("g", "/Groups", json!({"displayName": "x", "members": [{"value": "bulkId:nobody"}]})),
        {"method": "DELETE", "path": "/Users/bulkId:nobody"},
        {"method": "PATCH", "bulkId": "p", "path": "/Users/u1", "data": {}},
        // Only a POST makes something new.
        {"method": "DELETE", "path": "/Users/bulkId:p"},
    ]));
    let refused = |at: usize| read.operations[at].refused.clone().map(|e| (code(&e), e.detail));
    let unknown = |name: &str| {
        let detail = format!("bulkId:{name}: no POST of this request has this bulkId");
        Some(("400 invalidValue".to_owned(), detail))
    };
    assert_eq!(refused(0), unknown("nobody"));
    assert_eq!(refused(1), unknown("nobody"));
    assert_eq!(refused(2), None);
    assert_eq!(refused(3), unknown("p"));
    assert!(read.resolve(&Registry::standard(), 0, &[], &Dialect::new(Profile::Generic)).is_none());
    let failed = read.reference_failed(0);
    assert_eq!((code(&failed), failed.detail), ("409".into(), "it refers to bulkId:g, which failed".into()));
}

/// A bulk request of many references is planned in time that grows with its size, not with its square.
#[test]
fn ten_thousand_operations_are_planned() {
    let mut operations: Vec<Value> =
        (0..9_999).map(|n| post(&format!("u{n}"), "/Users", json!({}))).collect();
    let members: Vec<Value> = (0..9_999).map(|n| json!({"value": format!("bulkId:u{n}")})).collect();
    operations.insert(0, post("g", "/Groups", json!({"members": members})));
    let body = json!({"schemas": [BULK], "Operations": operations});
    let read = plan(&Registry::standard(), body, 10_000, &mut Dialect::new(Profile::Generic)).unwrap();
    assert_eq!(read.units.len(), 10_000);
    assert_eq!(read.units.last().unwrap().operations, [0]);
    assert_eq!(resolve(&read, 0).1["members"][9_998]["value"], "id-9999");
}

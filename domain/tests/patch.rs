//! PATCH: the cases P01 to P64 and G01 to G23 of the requirements (§7.3, §7.4) by their ids, and properties.

mod fixture;

use std::collections::BTreeSet;

use annals_domain::ids::ResourceId;
use annals_domain::scim::dialect::{Dialect, Profile, Quirk};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::patch::{LinkDelta, PasswordChange, Patched, apply, parse_request};
use annals_domain::scim::resource::diff;
use annals_domain::scim::schema::Registry;
use fixture::{document, full, resource_type, short};
use proptest::prelude::*;
use serde_json::{Value, json};

const STRICT: Profile = Profile::Strict;
const GENERIC: Profile = Profile::Generic;
const ENTRA: Profile = Profile::Entra;

/// The operations of a case: one, or a list of them.
fn run(id: &str, operations: &Value, dialect: &mut Dialect) -> Result<Patched, ScimError> {
    let list = if operations.is_array() { operations.clone() } else { json!([operations]) };
    let body = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": list});
    let operations = parse_request(&body, dialect)?;
    let id_given = ResourceId::from_text(id);
    apply(&Registry::standard(), &resource_type(id), &id_given, &document(id), &operations, dialect)
}

/// What changed, as `path=value` sorted by path, and the members as `clear`, `-id`, `+id`; or the error.
fn outcome(id: &str, result: Result<Patched, ScimError>) -> String {
    let patched = match result {
        Ok(patched) => patched,
        Err(error) => return format!("{} {}", error.status, error.scim_type.map_or("", |t| t.as_str())),
    };
    let mut parts: Vec<String> = diff(&document(id), &patched.document)
        .into_iter()
        .map(|change| short(&json!(change.path)).trim_matches('"').to_owned() + "=" + &shown(&change.new))
        .collect();
    parts.extend(patched.password.map(|p| match p {
        PasswordChange::Set(_) => "password set".to_owned(),
        PasswordChange::Clear => "password cleared".to_owned(),
    }));
    let LinkDelta { clear, add, remove } = patched.members;
    parts.extend(clear.then(|| "clear".to_owned()));
    parts.extend(remove.iter().map(|id| format!("-{id}")));
    parts.extend(add.iter().map(|id| format!("+{id}")));
    parts.join("; ")
}

/// A replacement by a value in which `LONG` stands for a text that is too long for an id.
fn replace_by(path: &str, value: &str) -> String {
    let value = value.replace("LONG", &"x".repeat(ResourceId::LEN_BYTES_MAX + 1));
    format!(r#"{{"op":"replace","path":"{path}","value":{value}}}"#)
}

fn shown(value: &Option<Value>) -> String {
    value.as_ref().map_or("∅".to_owned(), short)
}

/// The one door: a case in one profile.
#[track_caller]
fn check(case: &str, id: &str, profile: Profile, operations: &str, expect: &str) {
    let operations: Value = serde_json::from_str(&full(operations)).unwrap();
    let found = outcome(id, run(id, &operations, &mut Dialect::new(profile)));
    assert_eq!(found, expect, "{case} {profile}: {operations}");
}

const HOME: &str = r#"{"type":"home","value":"anna@home.test"}"#;
const WORK: &str = r#"{"primary":true,"type":"work","value":"anna@work.test"}"#;
const WORK_LAST: &str = r#"{"primary":false,"type":"work","value":"anna@work.test"}"#;

/// Cases on u1 that are the same in every profile. PA-007: P08, P13, P43, P53.
#[test]
fn users() {
    for (case, operations, expect) in [
        ("P01", r#"{"op":"replace","path":"active","value":false}"#, "active=false".to_owned()),
        ("P03", r#"{"op":"replace","value":{"active":false}}"#, "active=false".to_owned()),
        ("P04", r#"{"op":"replace","path":"active","value":true}"#, String::new()),
        (
            "P05",
            r#"{"op":"add","path":"emails","value":[{"value":"x@y.test","type":"other"}]}"#,
            format!(r#"emails=[{WORK},{HOME},{{"type":"other","value":"x@y.test"}}]"#),
        ),
        (
            "P06",
            r#"{"op":"add","path":"emails","value":[{"value":"anna@home.test","type":"home"}]}"#,
            String::new(),
        ),
        (
            "P06 case",
            r#"{"op":"add","path":"emails","value":[{"value":"ANNA@home.test","type":"home"}]}"#,
            String::new(),
        ),
        (
            "P08",
            r#"{"op":"add","path":"emails","value":[{"value":"anna@home.test","type":"home","primary":true}]}"#,
            format!(r#"emails=[{WORK_LAST},{{"primary":true,"type":"home","value":"anna@home.test"}}]"#),
        ),
        (
            "P09",
            r#"{"op":"replace","path":"emails[type eq \"work\"].value","value":"n@work.test"}"#,
            format!(r#"emails=[{{"primary":true,"type":"work","value":"n@work.test"}},{HOME}]"#),
        ),
        (
            "P11",
            r#"{"op":"add","path":"emails[type eq \"other\"].value","value":"o@x.test"}"#,
            format!(r#"emails=[{WORK},{HOME},{{"type":"other","value":"o@x.test"}}]"#),
        ),
        (
            "P12",
            r#"{"op":"add","path":"emails[type ne \"work\" and type ne \"home\"].value","value":"o@x.test"}"#,
            "400 noTarget".to_owned(),
        ),
        (
            "P13",
            r#"{"op":"replace","path":"emails[type eq \"home\"]","value":{"value":"h2@home.test","primary":true}}"#,
            format!(r#"emails=[{WORK_LAST},{{"primary":true,"type":"home","value":"h2@home.test"}}]"#),
        ),
        (
            "P14",
            r#"{"op":"replace","path":"emails[type eq \"work\" or type eq \"home\"].display","value":"d"}"#,
            r#"emails=[{"display":"d","primary":true,"type":"work","value":"anna@work.test"},{"display":"d","type":"home","value":"anna@home.test"}]"#.to_owned(),
        ),
        ("P15", r#"{"op":"remove","path":"emails[type eq \"work\"]"}"#, format!("emails=[{HOME}]")),
        ("P16", r#"{"op":"remove","path":"emails[type eq \"fax\"]"}"#, String::new()),
        ("P17", r#"{"op":"remove","path":"emails"}"#, "emails=∅".to_owned()),
        ("P18", r#"{"op":"replace","path":"emails","value":[]}"#, "emails=∅".to_owned()),
        ("P19", r#"{"op":"replace","path":"emails","value":null}"#, "emails=∅".to_owned()),
        ("P20", r#"{"op":"remove"}"#, "400 noTarget".to_owned()),
        ("P21", r#"{"op":"remove","path":"userName"}"#, "400 mutability".to_owned()),
        ("P22", r#"{"op":"replace","path":"userName","value":null}"#, "400 mutability".to_owned()),
        ("P22b", r#"{"op":"replace","path":"userName","value":""}"#, "400 invalidValue".to_owned()),
        ("P23", r#"{"op":"remove","path":"id"}"#, "400 mutability".to_owned()),
        ("P23b", r#"{"op":"replace","path":"meta.location","value":"x"}"#, "400 mutability".to_owned()),
        ("P23c", r#"{"op":"add","path":"groups","value":[{"value":"g9"}]}"#, "400 mutability".to_owned()),
        (
            "P24",
            r#"{"op":"replace","value":{"id":"zzz","meta":{"created":"x"},"displayName":"A"}}"#,
            r#"displayName="A""#.to_owned(),
        ),
        ("P25", r#"{"op":"replace","path":"name","value":{"familyName":"Berger"}}"#, r#"name.familyName="Berger""#.to_owned()),
        ("P26", r#"{"op":"replace","path":"name.familyName","value":null}"#, "name.familyName=∅".to_owned()),
        ("P27", r#"{"op":"remove","path":"name"}"#, "name.familyName=∅; name.givenName=∅".to_owned()),
        (
            "P30",
            r#"{"op":"replace","value":{"ENT":{"department":"Ops"}}}"#,
            r#"ENT:department="Ops""#.to_owned(),
        ),
        ("P34", r#"{"op":"remove","path":"ENT:manager"}"#, "ENT:manager.value=∅".to_owned()),
        (
            "P37",
            r#"{"op":"remove","path":"ENT"}"#,
            "ENT:department=∅; ENT:employeeNumber=∅; ENT:manager.value=∅".to_owned(),
        ),
        (
            "P38",
            r#"{"op":"replace","path":"urn:ietf:params:scim:schemas:core:2.0:User:name.givenName","value":"Ann"}"#,
            r#"name.givenName="Ann""#.to_owned(),
        ),
        ("P39", r#"{"op":"replace","path":"DISPLAYNAME","value":"A"}"#, r#"displayName="A""#.to_owned()),
        (
            "P41",
            r#"{"op":"replace","path":"userName","value":"ANNA.BERG@EXAMPLE.COM"}"#,
            r#"userName="ANNA.BERG@EXAMPLE.COM""#.to_owned(),
        ),
        (
            "P42",
            r#"[{"op":"replace","path":"title","value":"X"},{"op":"replace","path":"foo","value":"y"}]"#,
            "400 invalidPath".to_owned(),
        ),
        (
            "P43",
            r#"[{"op":"add","path":"emails","value":[{"value":"p@x.test","primary":true}]},{"op":"remove","path":"emails[primary eq true]"}]"#,
            format!("emails=[{WORK_LAST},{HOME}]"),
        ),
        (
            "P44",
            r#"[{"op":"remove","path":"title"},{"op":"add","path":"title","value":"T"}]"#,
            r#"title="T""#.to_owned(),
        ),
        (
            "P45",
            r#"[{"op":"replace","path":"title","value":"X"},{"op":"replace","path":"title","value":"Engineer"}]"#,
            String::new(),
        ),
        ("P46", r#"{"op":"move","path":"title","value":"x"}"#, "400 invalidSyntax".to_owned()),
        ("P47", "[]", "400 invalidSyntax".to_owned()),
        ("P48", r#"{"op":"replace","path":"emails[type eq \"work\"","value":"x"}"#, "400 invalidPath".to_owned()),
        ("P48b", r#"{"op":"replace","path":"/name/familyName","value":"x"}"#, "400 invalidPath".to_owned()),
        ("P48c", r#"{"op":"replace","path":"name..x","value":"x"}"#, "400 invalidPath".to_owned()),
        ("P48d", r#"{"op":"replace","path":"","value":"x"}"#, "400 invalidPath".to_owned()),
        ("P49", r#"{"op":"replace","path":"emails[type xx \"work\"].value","value":"x"}"#, "400 invalidFilter".to_owned()),
        ("P49b", r#"{"op":"replace","path":"emails[0]","value":"x"}"#, "400 invalidFilter".to_owned()),
        (
            "P49c",
            r#"{"op":"replace","path":"name[givenName eq \"Anna\"].familyName","value":"x"}"#,
            "400 invalidFilter".to_owned(),
        ),
        ("P50", r#"{"op":"replace","path":"nosuch","value":"x"}"#, "400 invalidPath".to_owned()),
        ("P51", r#"{"op":"add","path":"title"}"#, "400 invalidValue".to_owned()),
        ("PA-004", r#"{"op":"replace","path":"title"}"#, "400 invalidValue".to_owned()),
        ("PA-004b", r#"{"op":"add"}"#, "400 invalidValue".to_owned()),
        ("P52", r#"{"op":"replace","path":"title","value":{"a":1}}"#, "400 invalidValue".to_owned()),
        (
            "P53",
            r#"{"op":"replace","path":"emails","value":[{"value":"a","primary":true},{"value":"b","primary":true}]}"#,
            "400 invalidValue".to_owned(),
        ),
        ("P54", r#"{"op":"add","path":"password","value":"S3cret!x"}"#, "password set".to_owned()),
        ("P54b", r#"{"op":"remove","path":"password"}"#, "password cleared".to_owned()),
        ("P54c", r#"{"op":"add","value":{"password":"n3w!"}}"#, "password set".to_owned()),
        (
            "P58",
            r#"{"op":"replace","path":"emails.type","value":"other"}"#,
            r#"emails=[{"primary":true,"type":"other","value":"anna@work.test"},{"type":"other","value":"anna@home.test"}]"#.to_owned(),
        ),
        (
            "P58b",
            r#"{"op":"replace","path":"emails.primary","value":true}"#,
            "400 invalidValue".to_owned(),
        ),
        ("P58c", r#"{"op":"replace","path":"ims.type","value":"icq"}"#, "400 noTarget".to_owned()),
        (
            "P59",
            r#"{"op":"remove","path":"emails[type eq \"home\"].type"}"#,
            format!(r#"emails=[{WORK},{{"value":"anna@home.test"}}]"#),
        ),
        (
            "P06 primary",
            r#"{"op":"add","path":"emails","value":[{"value":"anna@home.test","type":"HOME","primary":false}]}"#,
            String::new(),
        ),
        (
            "update",
            r#"{"op":"add","path":"emails","value":[{"value":"ANNA@home.test","type":"home","display":"d"}]}"#,
            format!(r#"emails=[{WORK},{{"display":"d","type":"home","value":"anna@home.test"}}]"#),
        ),
        (
            "remove part",
            r#"[{"op":"remove","path":"phoneNumbers.type"},{"op":"remove","path":"phoneNumbers.value"}]"#,
            "phoneNumbers=∅".to_owned(),
        ),
        ("P63", r#"{"op":"add","value":{"nickname":"Nan"}}"#, r#"nickName="Nan""#.to_owned()),
        ("PA-009", r#"{"op":"remove","path":"schemas[value eq \"ENT\"]"}"#, "ENT:department=∅; ENT:employeeNumber=∅; ENT:manager.value=∅".to_owned()),
        ("PA-009b", r#"{"op":"remove","path":"schemas"}"#, "400 mutability".to_owned()),
        ("PA-009c", r#"{"op":"add","path":"schemas","value":["ENT"]}"#, String::new()),
        ("PA-006", r#"{"op":"replace","path":"ENT:manager.displayName","value":"x"}"#, "400 mutability".to_owned()),
        ("CS-022", r#"{"op":"replace","value":{"title":"a","TITLE":"b"}}"#, "400 invalidSyntax".to_owned()),
        ("IN-005", "{\"op\":\"replace\",\"path\":\"title\",\"value\":\"a\\u0000\"}", "400 invalidValue".to_owned()),
        (
            "CS-035",
            r#"{"op":"replace","path":"emails[type pr]","value":{"type":"work","value":"x"}}"#,
            r#"emails=[{"type":"work","value":"x"}]"#.to_owned(),
        ),
        (
            "IN-005b",
            r#"{"op":"replace","path":"ENT:manager","value":{"$ref":"../Users/a\u0000"}}"#,
            "400 invalidValue".to_owned(),
        ),
        ("no id", &replace_by("ENT:manager", r#"{"value":"LONG"}"#), "400 invalidValue".to_owned()),
        ("no id, $ref", &replace_by("ENT:manager", r#"{"$ref":"../Users/LONG"}"#), "400 invalidValue".to_owned()),
        ("no id, part", &replace_by("ENT:manager.value", r#""LONG""#), "400 invalidValue".to_owned()),
        ("add merge", r#"{"op":"add","path":"name","value":{"middleName":"M"}}"#, r#"name.middleName="M""#.to_owned()),
        (
            "add filter merge",
            r#"{"op":"add","path":"emails[type eq \"home\"]","value":{"display":"h"}}"#,
            format!(r#"emails=[{WORK},{{"display":"h","type":"home","value":"anna@home.test"}}]"#),
        ),
        ("PA-003", r#"{"op":"replace","path":"emails[type eq \"]\"].value","value":"x"}"#, "400 noTarget".to_owned()),
    ] {
        check(case, "u1", STRICT, operations, &expect);
        check(case, "u1", GENERIC, operations, &expect);
    }
}

#[test]
fn what_profiles_decide() {
    let added = |element: &str| format!("emails=[{WORK},{HOME},{element}]");
    for (case, operations, strict, generic) in [
        (
            "P02",
            r#"{"op":"Replace","path":"active","value":"False"}"#,
            "400 invalidValue",
            "active=false".to_owned(),
        ),
        (
            "P07",
            r#"{"op":"add","path":"emails","value":{"value":"x@y.test","type":"other","primary":true}}"#,
            "400 invalidValue",
            format!(r#"emails=[{WORK_LAST},{HOME},{{"primary":true,"type":"other","value":"x@y.test"}}]"#),
        ),
        (
            "P29",
            r#"{"op":"replace","value":{"name.familyName":"Berger","ENT:department":"Ops"}}"#,
            "400 invalidPath",
            r#"name.familyName="Berger"; ENT:department="Ops""#.to_owned(),
        ),
        (
            "P31",
            r#"{"op":"replace","path":"ENT:manager","value":"u3"}"#,
            "400 invalidValue",
            r#"ENT:manager.value="u3""#.to_owned(),
        ),
        (
            "P32",
            r#"{"op":"Add","path":"manager","value":[{"$ref":"https://h/v2/Users/u3","value":"u3"}]}"#,
            "400 invalidPath",
            r#"ENT:manager.value="u3""#.to_owned(),
        ),
        (
            "P33",
            r#"{"op":"replace","path":"ENT:manager","value":{"value":""}}"#,
            "400 invalidValue",
            "ENT:manager.value=∅".to_owned(),
        ),
        (
            "P33b",
            r#"{"op":"replace","path":"ENT:manager","value":""}"#,
            "400 invalidValue",
            "ENT:manager.value=∅".to_owned(),
        ),
        (
            "P33c",
            r#"{"op":"replace","path":"ENT:manager.value","value":""}"#,
            "400 invalidValue",
            "ENT:manager.value=∅".to_owned(),
        ),
        (
            "P61",
            r#"{"op":"Add","path":"roles[primary eq \"True\"].value","value":"Admin"}"#,
            "400 invalidFilter",
            r#"roles=[{"primary":true,"value":"Admin"}]"#.to_owned(),
        ),
        (
            "§2.8",
            r#"{"op":"add","value":{"emails[type eq \"other\"].value":"o@x.test"}}"#,
            "400 invalidPath",
            added(r#"{"type":"other","value":"o@x.test"}"#),
        ),
        (
            "§2.8b",
            r#"{"op":"replace","value":{"emails.value":"n@x.test"}}"#,
            "400 invalidPath",
            format!(r#"emails=[{{"primary":true,"type":"work","value":"n@x.test"}},{HOME}]"#),
        ),
        ("PA-013", r#"{"op":"replace","value":{"nosuch":1}}"#, "400 invalidPath", String::new()),
        (
            "remove+value",
            r#"{"op":"remove","path":"emails","value":[{"value":"ANNA@work.test"}]}"#,
            "400 invalidValue",
            format!("emails=[{HOME}]"),
        ),
    ] {
        check(case, "u1", STRICT, operations, strict);
        check(case, "u1", GENERIC, operations, &generic);
        check(case, "u1", ENTRA, operations, &generic);
    }
}

#[test]
fn p10_and_p62_create_on_filter_miss() {
    let email = r#"{"op":"replace","path":"emails[type eq \"other\"].value","value":"o@x.test"}"#;
    let address = r#"{"op":"replace","path":"addresses[type eq \"work\"].country","value":"DE"}"#;
    for profile in [STRICT, GENERIC, Profile::Okta] {
        check("P10", "u1", profile, email, "400 noTarget");
        check("P62", "u1", profile, address, "400 noTarget");
    }
    for profile in [ENTRA, Profile::OneLogin, Profile::JumpCloud] {
        let expect = format!(r#"emails=[{WORK},{HOME},{{"type":"other","value":"o@x.test"}}]"#);
        check("P10", "u1", profile, email, &expect);
        check("P62", "u1", profile, address, r#"addresses=[{"country":"DE","type":"work"}]"#);
    }
    let unseedable =
        r#"{"op":"replace","path":"emails[type ne \"work\" and type ne \"home\"].value","value":"x"}"#;
    check("P12", "u1", ENTRA, unseedable, "400 noTarget");
}

#[test]
fn users_without_the_attribute() {
    for profile in [STRICT, GENERIC] {
        let middle = r#"{"op":"add","path":"name.middleName","value":"M"}"#;
        check("P28", "u2", profile, middle, r#"name.middleName="M""#);
        let add = r#"{"op":"add","path":"ENT:employeeNumber","value":"7"}"#;
        check("P35", "u2", profile, add, r#"ENT:employeeNumber="7""#);
        let both = format!(r#"[{add},{{"op":"remove","path":"ENT:employeeNumber"}}]"#);
        check("P36", "u2", profile, &both, "");
        check("nc", "u2", profile, r#"{"op":"remove","path":"title"}"#, "");
        check("nc", "u2", profile, r#"{"op":"remove","path":"ENT"}"#, "");
    }
    let dotted = r#"{"op":"add","value":{"addresses.country":"DE"}}"#;
    check("§2.8c", "u2", GENERIC, dotted, r#"addresses=[{"country":"DE"}]"#);
}

#[test]
fn p60_a_role_in_a_string_is_kept_or_split() {
    let role = r#"{"id":"r1","value":"Admin","displayName":"Admin"}"#;
    let operation = json!({"op": "Add", "path": "roles", "value": [{"value": role}]});
    let kept = outcome("u1", run("u1", &operation, &mut Dialect::new(ENTRA)));
    assert_eq!(kept, format!("roles={}", json!([{"value": role}])));
    let mut dialect = Dialect::new(ENTRA).with(Quirk::UnwrapRoleJson, true);
    let split = outcome("u1", run("u1", &operation, &mut dialect));
    assert_eq!(split, r#"roles=[{"display":"Admin","value":"Admin"}]"#);
    assert!(dialect.applied.contains(&Quirk::UnwrapRoleJson));
}

#[test]
fn groups() {
    for (case, operations, expect) in [
        ("G01", r#"{"op":"add","path":"members","value":[{"value":"u3"}]}"#, "+u3"),
        ("G02", r#"{"op":"add","path":"members","value":[{"value":"u1","display":"other"}]}"#, "+u1"),
        ("G03", r#"{"op":"Add","path":"members","value":[{"$ref":null,"value":"u3"}]}"#, "+u3"),
        ("G06", r#"{"op":"remove","path":"members[value eq \"u1\"]"}"#, "-u1"),
        ("G07", r#"{"op":"remove","path":"members[value eq \"zz\"]"}"#, "-zz"),
        ("G08", r#"{"op":"remove","path":"members[value eq \"u1\" or value eq \"u2\"]"}"#, "-u1; -u2"),
        ("G09", r#"{"op":"remove","path":"members"}"#, "clear"),
        ("G10", r#"{"op":"replace","path":"members","value":[{"value":"u3"}]}"#, "clear; +u3"),
        (
            "G11",
            r#"{"op":"replace","path":"members","value":[{"value":"u1"},{"value":"u2"}]}"#,
            "clear; +u1; +u2",
        ),
        ("OK-032", r#"{"op":"replace","path":"members","value":[]}"#, "clear"),
        ("G12", r#"{"op":"add","path":"members","value":[{"value":"u3"},{"value":"u3"}]}"#, "+u3"),
        ("G13", r#"{"op":"add","value":{"members":[{"value":"u3"}]}}"#, "+u3"),
        ("G14", r#"{"op":"replace","value":{"id":"g1","displayName":"Ops 2"}}"#, r#"displayName="Ops 2""#),
        ("G15", r#"{"op":"remove","path":"displayName"}"#, "400 mutability"),
        ("G16", r#"{"op":"replace","path":"members[value eq \"u1\"].value","value":"u3"}"#, "400 mutability"),
        ("G18", r#"{"op":"add","path":"members","value":[{"value":"g1"}]}"#, "400 invalidValue"),
        ("G20", r#"{"op":"add","path":"members","value":[{"value":"g2"}]}"#, "+g2"),
        (
            "G21",
            r#"[{"op":"remove","path":"members[value eq \"u1\"]"},{"op":"add","path":"members","value":[{"value":"u1"}]}]"#,
            "+u1",
        ),
        (
            "sequence",
            r#"[{"op":"replace","path":"members","value":[{"value":"u1"},{"value":"u2"}]},{"op":"remove","path":"members[value eq \"u1\"]"},{"op":"add","path":"members","value":[{"value":"u3"}]}]"#,
            "clear; +u2; +u3",
        ),
        ("GR-003", r#"{"op":"add","path":"members","value":[{"$ref":"../Users/u3"}]}"#, "+u3"),
        ("GR-003b", r#"{"op":"add","path":"members","value":[{"type":"User"}]}"#, "400 invalidValue"),
        ("GR-003c", r#"{"op":"add","path":"members","value":[{"value":""}]}"#, "400 invalidValue"),
        ("no id", &replace_by("members", r#"[{"value":"LONG"}]"#), "400 invalidValue"),
        ("null", r#"{"op":"replace","path":"members","value":[null]}"#, "400 invalidValue"),
        ("filter", r#"{"op":"remove","path":"members[type eq \"User\"]"}"#, "400 invalidFilter"),
        (
            "filter and",
            r#"{"op":"remove","path":"members[value eq \"a\" and value eq \"b\"]"}"#,
            "400 invalidFilter",
        ),
        ("empty string", r#"{"op":"replace","path":"members","value":""}"#, "400 invalidValue"),
        ("part", r#"{"op":"remove","path":"members.value"}"#, "400 mutability"),
        (
            "EN-052",
            r#"{"op":"add","path":"urn:ietf:params:scim:schemas:core:2.0:User:members","value":[]}"#,
            "400 invalidPath",
        ),
    ] {
        for profile in [STRICT, GENERIC, ENTRA] {
            check(case, "g1", profile, operations, expect);
        }
    }
}

#[test]
fn remove_with_value_never_empties_a_group() {
    for (case, operations, generic) in [
        ("G04", r#"{"op":"Remove","path":"members","value":[{"$ref":null,"value":"u1"}]}"#, "-u1"),
        ("G05", r#"{"op":"remove","path":"members","value":[{"value":"u1"},{"value":"u2"}]}"#, "-u1; -u2"),
        ("G05 empty", r#"{"op":"remove","path":"members","value":[]}"#, ""),
        ("G05 one", r#"{"op":"remove","path":"members","value":{"value":"u1"}}"#, "-u1"),
        ("G05 bad", r#"{"op":"remove","path":"members","value":[{}]}"#, "400 invalidValue"),
        ("G05 bad", r#"{"op":"remove","path":"members","value":[[]]}"#, "400 invalidValue"),
    ] {
        check(case, "g1", STRICT, operations, "400 invalidValue");
        for profile in [GENERIC, ENTRA, Profile::Okta, Profile::JumpCloud] {
            check(case, "g1", profile, operations, generic);
        }
    }
    check("G19", "g1", STRICT, r#"{"op":"add","path":"members","value":"u3"}"#, "400 invalidValue");
    check("G19", "g1", GENERIC, r#"{"op":"add","path":"members","value":"u3"}"#, "+u3");
}

#[test]
fn g23_five_thousand_removals() {
    let remove = |n| json!({"op": "remove", "path": format!("members[value eq \"m{n}\"]")});
    let operations: Value = (0..5_000).map(remove).collect();
    let patched = run("g1", &operations, &mut Dialect::new(STRICT)).unwrap();
    assert_eq!(patched.members.remove.len(), 5_000);
    assert!(!patched.members.is_empty() && LinkDelta::default().is_empty());
}

/// PA-005
#[test]
fn errors_carry_the_operation() {
    let operations = json!([{"op": "remove", "path": "title"}, {"op": "remove", "path": "userName"}]);
    let error = run("u1", &operations, &mut Dialect::new(GENERIC)).unwrap_err();
    assert_eq!(error.detail, "Operations[1]: userName is required");
}

/// PA-001
#[test]
fn messages() {
    let parse = |body: Value, profile| {
        parse_request(&body, &mut Dialect::new(profile))
            .map(|operations| operations.len())
            .map_err(|error| error.scim_type.map_or("", |t| t.as_str()))
    };
    let operation = json!([{"op": "remove", "path": "title"}]);
    for (body, strict, generic) in [
        (json!({"Operations": operation}), Err("invalidSyntax"), Ok(1)),
        (
            json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "operations": operation}),
            Err("invalidSyntax"),
            Ok(1),
        ),
        (json!([]), Err("invalidSyntax"), Err("invalidSyntax")),
        (json!({"schemas": "x", "Operations": operation}), Err("invalidSyntax"), Err("invalidSyntax")),
        (
            json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": [1]}),
            Err("invalidSyntax"),
            Err("invalidSyntax"),
        ),
    ] {
        assert_eq!(parse(body.clone(), STRICT), strict, "{body}");
        assert_eq!(parse(body.clone(), GENERIC), generic, "{body}");
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z\\[\\]\" .:]{0,8}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        4 => "(value|type|primary|\\$ref|display|emails|name|name.givenName|members|active|schemas|password)",
        1 => "[a-z.\\[\\]]{0,6}",
    ];
    leaf.prop_recursive(3, 16, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..4).prop_map(|m| json!(m)),
        ]
    })
}

fn operation() -> impl Strategy<Value = Value> {
    let attribute =
        "(emails|name|members|title|active|schemas|roles|userName|groups|manager|password|ims|id)";
    let filter = "(\\[type eq \"work\"\\]|\\[value pr\\]|\\[value eq \"u1\"\\]|\\[primary ne true\\])?";
    let path = (attribute, filter, "(\\.(value|type|givenName|primary|display))?")
        .prop_map(|(attribute, filter, sub)| Value::from(attribute + &filter + &sub));
    let path = prop_oneof![3 => path, 1 => json_value()];
    ("(add|remove|replace)", path, json_value())
        .prop_map(|(op, path, value)| json!({"op": op, "path": path, "value": value}))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn patch_never_panics_and_is_canonical(
        operations in proptest::collection::vec(operation(), 1..5),
        on_group in any::<bool>(),
        strict in any::<bool>(),
    ) {
        let id = if on_group { "g1" } else { "u1" };
        let profile = if strict { STRICT } else { ENTRA };
        if let Ok(patched) = run(id, &json!(operations), &mut Dialect::new(profile)) {
            let empty = |v: &Value| {
                v.is_null() || v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(|o| o.is_empty())
            };
            for value in patched.document.0.values() {
                prop_assert!(!empty(value));
                for element in value.as_array().into_iter().flatten() {
                    prop_assert!(!empty(element));
                }
            }
            prop_assert!(patched.members.add.is_disjoint(&patched.members.remove));
        }
    }

    #[test]
    fn a_link_delta_is_the_sum_of_its_operations(
        start in proptest::collection::btree_set(0..6u8, 0..6),
        operations in proptest::collection::vec((0..3u8, proptest::collection::btree_set(0..6u8, 0..4)), 0..6),
    ) {
        let id = |n: u8| ResourceId::from_text(&n.to_string());
        let ids = |set: BTreeSet<u8>| set.into_iter().map(id).collect::<BTreeSet<_>>();
        let (mut model, mut delta) = (ids(start.clone()), LinkDelta::default());
        for (op, set) in operations {
            let set = ids(set);
            match op {
                0 => { model.extend(set.clone()); delta.add(set); }
                1 => { model.retain(|id| !set.contains(id)); delta.remove(set); }
                _ => { model = set.clone(); delta.replace(set); }
            }
        }
        let kept = ids(start).into_iter().filter(|id| !delta.clear && !delta.remove.contains(id));
        prop_assert_eq!(kept.chain(delta.add.clone()).collect::<BTreeSet<_>>(), model);
    }

    #[test]
    fn parse_request_never_panics(body in json_value()) {
        let _ = parse_request(&body, &mut Dialect::new(GENERIC));
    }
}

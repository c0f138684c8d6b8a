//! What real clients send (idp-quirks §2 to §5), by the ids there: what we make of it, and which quirks
//! did the work. Every quirk must occur here.

mod fixture;

use std::collections::BTreeSet;

use annals_domain::ids::ResourceId;
use annals_domain::scim::dialect::{Client, Dialect, Profile, Quirk, ResponseMediaType};
use annals_domain::scim::filter::{Budget, Context, bind, parse as parse_filter};
use annals_domain::scim::patch::{apply, parse_request};
use annals_domain::scim::resource::{Document, parse, parse_replacement};
use annals_domain::scim::schema::Registry;
use fixture::{document, full, resource_type, short};
use serde_json::{Value, json};

use Profile::{Entra, Generic, JumpCloud, Okta, OneLogin, Strict};

/// How a client sends something.
#[derive(Clone, Copy)]
enum Sent {
    Post,
    Put,
    Patch,
    Filter,
}

/// The one door: what is sent about a resource, the canonical outcome (document and members), and the
/// quirks that were applied, by name.
#[track_caller]
fn check(case: &str, profile: Profile, id: &str, sent: Sent, text: &str, expect: &str, quirks: &str) {
    let mut dialect = Dialect::new(profile);
    let found = run(id, sent, &full(text), &mut dialect);
    assert_eq!(found, expect, "{case} {profile}: {text}");
    if !found.starts_with("400") {
        let applied: Vec<&str> = dialect.applied.iter().map(|quirk| quirk.as_str()).collect();
        assert_eq!(applied.join(" "), quirks, "{case} {profile}: {text}");
    }
}

fn run(id: &str, sent: Sent, text: &str, dialect: &mut Dialect) -> String {
    let registry = Registry::standard();
    let resource_type = resource_type(id);
    let body = || serde_json::from_str::<Value>(text).unwrap();
    let shown = |document: &Document| short(&json!(document));
    let result = match sent {
        Sent::Post => parse(&registry, &resource_type, &body(), dialect).map(|p| shown(&p.document)),
        Sent::Put => parse_replacement(&registry, &resource_type, &document(id), &body(), dialect)
            .map(|p| shown(&p.document)),
        Sent::Patch => parse_request(&body(), dialect)
            .and_then(|ops| {
                let given = ResourceId::from_text(id);
                apply(&registry, &resource_type, &given, &document(id), &ops, dialect)
            })
            .map(|patched| {
                let content = shown(&patched.document);
                let delta = patched.members;
                if delta.is_empty() { content } else { format!("-{:?} +{:?}", delta.remove, delta.add) }
            }),
        Sent::Filter => parse_filter(text, Budget::default())
            .and_then(|f| bind(&f, &registry, &resource_type, Context::GET, dialect))
            .map(|_| "ok".to_owned()),
    };
    result.unwrap_or_else(|e| format!("{} {}", e.status, e.scim_type.map_or("", |t| t.as_str())))
}

/// A PATCH message around operations.
fn patch(operations: &str) -> String {
    format!(r#"{{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":{operations}}}"#)
}

const CORE: &str = r#""schemas":["urn:ietf:params:scim:schemas:core:2.0:User"]"#;
const U3: &str = r#"{"active":true,"title":"","userName":"celik"}"#;

#[test]
fn entra_posts() {
    let created = r#"{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User","ENT"],
        "externalId":"ines","userName":"ines@acme.test","active":true,"displayName":"Ines Roth",
        "emails":[{"primary":true,"type":"work","value":"ines@acme.test"}],"meta":{"resourceType":"User"},
        "name":{"formatted":"Ines Roth","familyName":"Roth","givenName":"Ines"},"roles":[],
        "addresses":null,"title":null,"manager":null}"#;
    let expect = r#"{"active":true,"displayName":"Ines Roth","emails":[{"primary":true,"type":"work","value":"ines@acme.test"}],"externalId":"ines","name":{"familyName":"Roth","formatted":"Ines Roth","givenName":"Ines"},"userName":"ines@acme.test"}"#;
    for profile in [Entra, Generic] {
        check("EN-040", profile, "u", Sent::Post, created, expect, "unknown-attributes");
    }
    check("EN-040", Strict, "u", Sent::Post, created, "400 invalidSyntax", "");
    let group = r#"{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group","http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group"],
        "externalId":"0d6f","displayName":"Blue Team","meta":{"resourceType":"Group"}}"#;
    let expect = r#"{"displayName":"Blue Team","externalId":"0d6f"}"#;
    check("EN-071", Entra, "g", Sent::Post, group, expect, "unknown-schemas");
    let extended = r#"{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"a","ENT":{"manager":"123456"}}"#;
    let expect = r#"{"active":true,"ENT":{"manager":{"value":"123456"}},"userName":"a"}"#;
    check("M6", Entra, "u", Sent::Post, extended, expect, "wrap-unwrap");
    let roles = format!(
        r#"{{{CORE},"userName":"a","roles":[{{"primary":false,"value":"Admin","displayName":"Admin"}}]}}"#
    );
    let expect =
        r#"{"active":true,"roles":[{"display":"Admin","primary":false,"value":"Admin"}],"userName":"a"}"#;
    check("§2.9", Entra, "u", Sent::Post, &roles, expect, "role-display-name");
}

#[test]
fn entra_updates_with_the_flag_off() {
    let update = patch(
        r#"[{"op":"Replace","path":"displayName","value":"Ines"},
            {"op":"Replace","path":"emails[type eq \"work\"].value","value":"i@acme.test"},
            {"op":"Add","path":"phoneNumbers[type eq \"mobile\"].value","value":"+49 151 000"},
            {"op":"Add","path":"ENT:department","value":"R&D"}]"#,
    );
    let expect = r#"{"active":true,"displayName":"Ines","emails":[{"type":"work","value":"i@acme.test"}],"phoneNumbers":[{"type":"mobile","value":"+49 151 000"}],"title":"","ENT":{"department":"R&D"},"userName":"celik"}"#;
    check("EN-050", Entra, "u3", Sent::Patch, &update, expect, "op-case create-on-filter-miss");
    check("EN-050", Generic, "u3", Sent::Patch, &update, "400 noTarget", "");
    for (value, quirks) in [
        (r#""False""#, "op-case string-boolean"),
        (r#""false""#, "op-case string-boolean"),
        ("false", "op-case"),
    ] {
        let disable = patch(&format!(r#"[{{"op":"Replace","path":"active","value":{value}}}]"#));
        let expect = r#"{"active":false,"title":"","userName":"celik"}"#;
        check("EN-060", Entra, "u3", Sent::Patch, &disable, expect, quirks);
    }
    let dotted = patch(r#"[{"op":"add","path":"ENT.department","value":"R&D"}]"#);
    let expect = r#"{"active":true,"title":"","ENT":{"department":"R&D"},"userName":"celik"}"#;
    check("EN-051", Entra, "u3", Sent::Patch, &dotted, expect, "dotted-urn");
    check("EN-051", Strict, "u3", Sent::Patch, &dotted, "400 invalidPath", "");
    let unknown =
        patch(r#"[{"op":"add","path":"urn:ietf:params:scim:schemas:core:2.0:User:role","value":"x"}]"#);
    check("EN-052", Entra, "u3", Sent::Patch, &unknown, "400 invalidPath", "");
    let members = patch(r#"[{"op":"Add","path":"members","value":[{"$ref":null,"value":"77c"}]}]"#);
    check("EN-073", Entra, "g1", Sent::Patch, &members, r#"-{} +{"77c"}"#, "op-case");
    let members = patch(r#"[{"op":"Remove","path":"members","value":[{"$ref":null,"value":"77c"}]}]"#);
    check("EN-072", Entra, "g1", Sent::Patch, &members, r#"-{"77c"} +{}"#, "op-case remove-with-value");
}

#[test]
fn entra_updates_with_the_flag_on() {
    let update = patch(
        r#"[{"op":"replace","value":{"displayName":"Ines","name.givenName":"Ines","name.familyName":"Roth",
             "ENT:employeeNumber":"4711"}}]"#,
    );
    let expect = r#"{"active":true,"displayName":"Ines","name":{"familyName":"Roth","givenName":"Ines"},"title":"","ENT":{"employeeNumber":"4711"},"userName":"celik"}"#;
    for profile in [Entra, Generic] {
        check("§2.8", profile, "u3", Sent::Patch, &update, expect, "dotted-keys urn-keys");
    }
    let email = patch(r#"[{"op":"add","value":{"emails[type eq \"work\"].value":"i@acme.test"}}]"#);
    let expect =
        r#"{"active":true,"emails":[{"type":"work","value":"i@acme.test"}],"title":"","userName":"celik"}"#;
    check("§2.8", Entra, "u3", Sent::Patch, &email, expect, "filter-keys");
    let ambiguous = patch(
        r#"[{"op":"replace","path":"emails","value":[{"value":"a"},{"value":"b"}]},
            {"op":"replace","value":{"emails.value":"c"}}]"#,
    );
    check("§2.8", Entra, "u3", Sent::Patch, &ambiguous, "400 noTarget", "");
}

#[test]
fn managers_in_every_shape() {
    let with = r#"{"active":true,"title":"","ENT":{"manager":{"value":"9f1"}},"userName":"celik"}"#;
    for (case, operation, expect, quirks) in [
        (
            "M1",
            r#"{"op":"Add","path":"manager","value":[{"$ref":"https://h/v2/Users/9f1","value":"9f1"}]}"#,
            with,
            "op-case wrap-unwrap bare-extension-names",
        ),
        ("M2", r#"{"op":"add","path":"ENT:manager","value":"9f1"}"#, with, "wrap-unwrap"),
        ("M3", r#"{"op":"replace","path":"ENT:manager","value":{"value":"9f1"}}"#, with, ""),
        ("M4", r#"{"op":"replace","path":"ENT:manager","value":""}"#, U3, "empty-unassigns"),
        ("M4b", r#"{"op":"replace","path":"ENT:manager","value":{"value":""}}"#, U3, "empty-unassigns"),
        ("M4c", r#"{"op":"replace","path":"ENT:manager.value","value":""}"#, U3, "empty-unassigns"),
        ("M5", r#"{"op":"remove","path":"ENT:manager"}"#, U3, ""),
        ("M7", r#"{"op":"replace","path":"ENT:manager.value","value":"9f1"}"#, with, ""),
        ("$ref", r#"{"op":"replace","path":"ENT:manager","value":{"$ref":"../Users/9f1"}}"#, with, ""),
    ] {
        for profile in [Entra, Generic, Okta] {
            let message = patch(&format!("[{operation}]"));
            check(case, profile, "u3", Sent::Patch, &message, expect, quirks);
        }
    }
}

#[test]
fn okta() {
    let created = r#"{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"ines@acme.test",
        "name":{"givenName":"Ines","familyName":"Roth"},
        "emails":[{"primary":true,"value":"ines@acme.test","type":"work"}],"displayName":"Ines Roth",
        "locale":"en-US","externalId":"00u1","groups":[],"password":"r4nd0m!x","active":true}"#;
    let expect = r#"{"active":true,"displayName":"Ines Roth","emails":[{"primary":true,"type":"work","value":"ines@acme.test"}],"externalId":"00u1","locale":"en-US","name":{"familyName":"Roth","givenName":"Ines"},"userName":"ines@acme.test"}"#;
    for profile in [Okta, Generic, Strict] {
        check("§3.3", profile, "u", Sent::Post, created, expect, "");
        let off = patch(r#"[{"op":"replace","value":{"active":false}}]"#);
        let inactive = r#"{"active":false,"title":"","userName":"celik"}"#;
        check("OK-026", profile, "u3", Sent::Patch, &off, inactive, "");
        let rename = patch(r#"[{"op":"replace","value":{"id":"g1","displayName":"Ops"}}]"#);
        check("OK-030", profile, "g1", Sent::Patch, &rename, r#"{"displayName":"Ops"}"#, "");
        let push = patch(
            r#"[{"op":"remove","path":"members[value eq \"77c\"]"},
                {"op":"add","path":"members","value":[{"value":"9f1","display":"max@acme.test"}]}]"#,
        );
        check("OK-031", profile, "g1", Sent::Patch, &push, r#"-{"77c"} +{"9f1"}"#, "");
    }
}

#[test]
fn onelogin_and_jumpcloud() {
    let put = r#"{"schemas":["urn:scim:schemas:core:2.0","urn:scim:schemas:extension:enterprise:2.0"],
        "userName":"ol-user","active":"true","id":null,
        "urn:scim:schemas:extension:enterprise:2.0":{"department":"D","manager":{"managerId":"9f1","displayName":"x"}}}"#;
    let expect = r#"{"active":true,"ENT":{"department":"D","manager":{"value":"9f1"}},"userName":"ol-user"}"#;
    check(
        "OL-005, OL-006",
        OneLogin,
        "u3",
        Sent::Put,
        put,
        expect,
        "string-boolean legacy-schema-urns manager-id",
    );
    check("X42", Strict, "u3", Sent::Put, put, "400 invalidSyntax", "");
    let group = r#"{"schemas":["urn:scim:schemas:core:1.0"],"displayName":"G"}"#;
    check("OL-005", OneLogin, "g1", Sent::Put, group, r#"{"displayName":"G"}"#, "legacy-schema-urns");
    let email = patch(r#"[{"op":"replace","path":"emails","value":{"value":"a"}}]"#);
    let expect = r#"{"active":true,"emails":[{"value":"a"}],"title":"","userName":"celik"}"#;
    check("OL-007", OneLogin, "u3", Sent::Patch, &email, expect, "wrap-unwrap");
    let remove = patch(r#"[{"op":"remove","path":"members","value":[{"value":"77c"}]}]"#);
    check("JC-005", JumpCloud, "g1", Sent::Patch, &remove, r#"-{"77c"} +{}"#, "remove-with-value");
}

#[test]
fn others() {
    let sailpoint = patch(r#"[{"op":"add","value":{"active":false}}]"#);
    let inactive = r#"{"active":false,"title":"","userName":"celik"}"#;
    check("SP-003", Generic, "u3", Sent::Patch, &sailpoint, inactive, "");
    let groups = patch(r#"[{"op":"add","path":"groups","value":[{"value":"g1"}]}]"#);
    check("SP-004", Generic, "u3", Sent::Patch, &groups, "400 mutability", "");
    let twice = format!(
        r#"{{{CORE},"userName":"a","emails":[{{"value":"a","primary":true,"type":"work"}},{{"value":"a","primary":true}}]}}"#
    );
    let expect = r#"{"active":true,"emails":[{"primary":true,"type":"work","value":"a"},{"primary":false,"value":"a"}],"userName":"a"}"#;
    check("PI-003", Generic, "u", Sent::Post, &twice, expect, "duplicate-primary");
    let bare = r#"{"operations":[{"OP":"add","Path":"title","VALUE":"x"}]}"#;
    let expect = r#"{"active":true,"title":"x","userName":"celik"}"#;
    check("PA-002", Generic, "u3", Sent::Patch, bare, expect, "member-case missing-schemas");
    check(
        "CR-005",
        Generic,
        "u",
        Sent::Post,
        r#"{"userName":"a"}"#,
        r#"{"active":true,"userName":"a"}"#,
        "missing-schemas",
    );
}

#[test]
fn filters() {
    for (case, filter, quirks) in [
        ("F26", r#"emails[type eq "work"].value eq "a""#, "postfix-filter"),
        ("F31", r#"emails[primary eq "True"]"#, "string-boolean"),
        ("F18", "active eq FALSE", "literal-case"),
        ("F45", r#"id eq "77c" and manager eq "9f1""#, "bare-extension-names"),
    ] {
        check(case, Strict, "u1", Sent::Filter, filter, "400 invalidFilter", "");
        check(case, Entra, "u1", Sent::Filter, filter, "ok", quirks);
    }
}

#[test]
fn the_table_of_profiles() {
    for &profile in Profile::ALL {
        assert!(profile.has(Quirk::OpCase) && !profile.has(Quirk::UnwrapRoleJson), "{profile}");
        assert_eq!(profile.as_str().parse(), Ok(profile));
        assert_eq!(json!(profile), json!(profile.as_str()));
        assert_eq!(profile.has(Quirk::GroupNameUnique), profile == Entra);
    }
    assert_eq!(Profile::default(), Generic);
    let media_type = |profile: Profile| Client::from(profile).response_media_type();
    assert_eq!(media_type(Entra), ResponseMediaType::Scim);
    assert_eq!(media_type(OneLogin), ResponseMediaType::Json);
    assert_eq!(media_type(Okta), ResponseMediaType::Negotiate);
    let switched = Client::from(OneLogin).with(Quirk::JsonMediaType, false);
    assert_eq!(switched.response_media_type(), ResponseMediaType::Negotiate);
    let strict: Vec<_> = Quirk::ALL.iter().filter(|quirk| Strict.has(**quirk)).collect();
    assert_eq!(strict, [&Quirk::OpCase]);
}

/// The table of `docs/client-profiles.md` says what the code does: every quirk once, every profile right.
#[test]
fn the_documented_table_is_the_code() {
    let page = include_str!("../../docs/client-profiles.md");
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim().trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    let head = page.lines().find(|line| line.starts_with("| Switch")).map(cells).expect("a table");
    let profiles: Vec<Profile> = head[2..].iter().map(|name| name.parse().expect("a profile")).collect();
    assert_eq!(profiles, Profile::ALL);
    let mut documented = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let row = cells(line);
        let quirk: Quirk = row[0].trim_matches('`').parse().expect("a quirk");
        documented.push(quirk);
        for (profile, cell) in profiles.iter().zip(&row[2..]) {
            assert_eq!(cell == "✓", profile.has(quirk), "{quirk} {profile}: {cell:?}");
        }
    }
    documented.sort();
    assert_eq!(documented, Quirk::ALL);
}

/// What is stored of a connection: the profile, and only what differs from it.
#[test]
fn a_client_as_stored() {
    let plain: Client = serde_json::from_value(json!({"profile": "okta"})).unwrap();
    assert_eq!(plain, Okta.into());
    assert_eq!(json!(plain), json!({"profile": "okta"}));
    let switched = plain.with(Quirk::CreateOnFilterMiss, true).with(Quirk::WrapUnwrap, false);
    let stored =
        json!({"profile": "okta", "switches": {"wrap-unwrap": false, "create-on-filter-miss": true}});
    assert_eq!(json!(switched), stored);
    assert_eq!(serde_json::from_value::<Client>(stored).unwrap(), switched);
    assert!(switched.has(Quirk::CreateOnFilterMiss) && !switched.has(Quirk::WrapUnwrap));
    assert!(switched.has(Quirk::DottedKeys) && !switched.has(Quirk::MergeMembers));
}

/// Adding a quirk without a case here fails.
#[test]
fn every_quirk_has_a_case() {
    let cases = include_str!("dialect.rs");
    let elsewhere = BTreeSet::from([
        Quirk::UnwrapRoleJson, // patch.rs: P60
        Quirk::StringNumber,   // resource.rs: EN-054, as it needs a schema of its own
        // These change what is answered, not what is read: api/tests.
        Quirk::ReactivateOnCreate,
        Quirk::GroupNameUnique,
        Quirk::ScimMediaType,
        Quirk::JsonMediaType,
        Quirk::BareToken,
        Quirk::RequireIfMatch,
        Quirk::RefuseRootLists,
    ]);
    let cases = format!("{cases}{}", include_str!("switches.rs"));
    for quirk in Quirk::ALL.iter().filter(|quirk| !elsewhere.contains(quirk)) {
        assert!(cases.contains(&format!("{quirk}")), "{quirk} occurs in no case");
    }
}

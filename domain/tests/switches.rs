//! What an administrator may switch on for one connection, and what no client can do by accident: the
//! shapes that have emptied groups elsewhere, each with what it does here.

mod fixture;

use annals_domain::ids::ResourceId;
use annals_domain::scim::dialect::{Client, Dialect, Profile, Quirk};
use annals_domain::scim::filter::{Budget, Context, bind, parse as parse_filter};
use annals_domain::scim::patch::{LinkDelta, PasswordChange, apply, parse_request};
use annals_domain::scim::resource::{PASSWORD_BYTES_MAX, parse, parse_replacement};
use annals_domain::scim::schema::{ENTERPRISE_USER, Registry};
use fixture::{document, full, resource_type, short};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use Profile::{Entra, Generic, JumpCloud, Okta, OneLogin, Strict};

const TOLERANT: [Profile; 5] = [Generic, Entra, Okta, OneLogin, JumpCloud];

/// What a change of members comes to, in words.
fn said(delta: &LinkDelta) -> String {
    let ids = |ids: &std::collections::BTreeSet<ResourceId>| {
        ids.iter().map(ResourceId::as_str).collect::<Vec<_>>().join(" ")
    };
    match (delta.clear, delta.add.is_empty(), delta.remove.is_empty()) {
        (false, true, true) => "nothing".to_owned(),
        (true, true, _) => "empties".to_owned(),
        (true, false, _) => format!("exactly {}", ids(&delta.add)),
        (false, false, true) => format!("adds {}", ids(&delta.add)),
        (false, true, false) => format!("removes {}", ids(&delta.remove)),
        (false, false, false) => format!("removes {} adds {}", ids(&delta.remove), ids(&delta.add)),
    }
}

/// What one operation does to the members of a group.
fn members(client: &Client, operation: &str) -> (String, Vec<Quirk>) {
    let mut dialect = Dialect::new(client.clone());
    let text = format!(
        r#"{{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{operation}]}}"#
    );
    let body: Value = serde_json::from_str(&text).expect(operation);
    let (registry, rt, id) = (Registry::standard(), resource_type("g1"), ResourceId::from_text("g1"));
    let patched = parse_request(&body, &mut dialect)
        .and_then(|ops| apply(&registry, &rt, &id, &document("g1"), &ops, &mut dialect));
    let outcome = match patched {
        Ok(patched) => {
            assert_eq!(patched.document, document("g1"), "{operation}: only members may change");
            said(&patched.members)
        }
        Err(error) => format!("{} {}", error.status, error.scim_type.map_or("", |t| t.as_str())),
    };
    (outcome, dialect.applied.into_iter().collect())
}

/// The shapes of PATCH that have emptied groups elsewhere, or could: what strict and what every other
/// profile makes of them. Only those that the RFC defines as "all of them" empty a group.
#[test]
fn no_patch_empties_a_group_by_accident() {
    const REFUSED: &str = "400 invalidValue";
    for (operation, strict, tolerant) in [
        // G04, G05, EN-072, JC-005: remove with a value.
        (r#"{"op":"remove","path":"members","value":[{"value":"a"}]}"#, REFUSED, "removes a"),
        (r#"{"op":"Remove","path":"members","value":[{"$ref":null,"value":"a"}]}"#, REFUSED, "removes a"),
        (r#"{"op":"remove","path":"members","value":[{"value":"a"},{"value":"b"}]}"#, REFUSED, "removes a b"),
        (r#"{"op":"remove","path":"members","value":{"value":"a"}}"#, REFUSED, "removes a"),
        (r#"{"op":"remove","path":"members","value":"a"}"#, REFUSED, "removes a"),
        (r#"{"op":"remove","path":"members","value":["a"]}"#, REFUSED, "removes a"),
        (r#"{"op":"remove","path":"members","value":[]}"#, REFUSED, "nothing"),
        (r#"{"op":"remove","path":"members","value":[{}]}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":{}}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":[null]}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":""}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":[""]}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":[{"value":""}]}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":[{"value":null}]}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":[{"display":"Ada"}]}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":true}"#, REFUSED, REFUSED),
        (r#"{"op":"remove","path":"members","value":7}"#, REFUSED, REFUSED),
        // G09: this is the RFC's way to empty a group, and null is no value (CS-033).
        (r#"{"op":"remove","path":"members"}"#, "empties", "empties"),
        (r#"{"op":"remove","path":"members","value":null}"#, "empties", "empties"),
        // Without a path nothing says what to remove (P20).
        (r#"{"op":"remove"}"#, "400 noTarget", "400 noTarget"),
        (r#"{"op":"remove","path":null}"#, "400 noTarget", "400 noTarget"),
        (r#"{"op":"remove","value":{"members":[{"value":"a"}]}}"#, "400 noTarget", "400 noTarget"),
        (r#"{"op":"remove","value":"members"}"#, "400 noTarget", "400 noTarget"),
        (r#"{"op":"remove","path":""}"#, "400 invalidPath", "400 invalidPath"),
        (r#"{"op":"remove","path":"member"}"#, "400 invalidPath", "400 invalidPath"),
        // G06 to G08: filters. Only what can be answered by looking at ids alone is; the rest is refused.
        (r#"{"op":"remove","path":"members[value eq \"a\"]"}"#, "removes a", "removes a"),
        (
            r#"{"op":"remove","path":"members[value eq \"a\" or value eq \"b\"]"}"#,
            "removes a b",
            "removes a b",
        ),
        (r#"{"op":"remove","path":"members[value eq \"\"]"}"#, "removes ", "removes "),
        (r#"{"op":"remove","path":"members[value ne \"a\"]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (r#"{"op":"remove","path":"members[value pr]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (r#"{"op":"remove","path":"members[value co \"\"]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (
            r#"{"op":"remove","path":"members[not (value eq \"a\")]"}"#,
            "400 invalidFilter",
            "400 invalidFilter",
        ),
        (r#"{"op":"remove","path":"members[value eq null]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (r#"{"op":"remove","path":"members[value eq a]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (r#"{"op":"remove","path":"members[type eq \"User\"]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (r#"{"op":"remove","path":"members[display eq \"Ada\"]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (r#"{"op":"remove","path":"members[]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (r#"{"op":"remove","path":"members[value eq \"a\""}"#, "400 invalidPath", "400 invalidPath"),
        (r#"{"op":"remove","path":"members[0]"}"#, "400 invalidFilter", "400 invalidFilter"),
        (r#"{"op":"remove","path":"members.value"}"#, "400 mutability", "400 mutability"),
        // G10, OK-032: replace means exactly these, and an empty list is one.
        (r#"{"op":"replace","path":"members","value":[{"value":"a"}]}"#, "exactly a", "exactly a"),
        (r#"{"op":"replace","path":"members","value":[]}"#, "empties", "empties"),
        (r#"{"op":"replace","path":"members","value":null}"#, "empties", "empties"),
        (r#"{"op":"replace","path":"members"}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","path":"members","value":[{}]}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","path":"members","value":{}}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","path":"members","value":[null]}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","path":"members","value":""}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","path":"members","value":[{"value":""}]}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","path":"members","value":{"members":[{"value":"a"}]}}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","path":"members","value":"a"}"#, REFUSED, "exactly a"),
        (
            r#"{"op":"replace","path":"members[value eq \"a\"]","value":[]}"#,
            "400 mutability",
            "400 mutability",
        ),
        (
            r#"{"op":"replace","path":"members[value eq \"a\"]","value":null}"#,
            "400 mutability",
            "400 mutability",
        ),
        (
            r#"{"op":"replace","path":"members[value eq \"a\"].value","value":"b"}"#,
            "400 mutability",
            "400 mutability",
        ),
        // Without a path.
        (r#"{"op":"replace","value":{"members":[{"value":"a"}]}}"#, "exactly a", "exactly a"),
        (r#"{"op":"replace","value":{"members":[]}}"#, "empties", "empties"),
        (r#"{"op":"replace","value":{"members":null}}"#, "empties", "empties"),
        (r#"{"op":"replace","value":{"members":{}}}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","value":{"members":""}}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","value":{"members.value":"a"}}"#, "400 invalidPath", "400 mutability"),
        (r#"{"op":"replace","value":{}}"#, "nothing", "nothing"),
        (r#"{"op":"replace","value":{"id":"g1"}}"#, "nothing", "nothing"),
        (r#"{"op":"replace","value":[]}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","value":[{"value":"a"}]}"#, REFUSED, REFUSED),
        (r#"{"op":"replace","value":null}"#, REFUSED, REFUSED),
        (r#"{"op":"replace"}"#, REFUSED, REFUSED),
        // add never takes anything away.
        (r#"{"op":"add","path":"members","value":[]}"#, "nothing", "nothing"),
        (r#"{"op":"add","path":"members","value":null}"#, "nothing", "nothing"),
        (r#"{"op":"add","path":"members","value":[{}]}"#, REFUSED, REFUSED),
        (r#"{"op":"add","path":"members","value":[{"value":"a"}]}"#, "adds a", "adds a"),
        (r#"{"op":"add","value":{"members":[{"value":"a"}]}}"#, "adds a", "adds a"),
        // What is no operation.
        (r#"{"op":"clear","path":"members"}"#, "400 invalidSyntax", "400 invalidSyntax"),
        (r#"{"op":"","path":"members"}"#, "400 invalidSyntax", "400 invalidSyntax"),
        (r#"{"op":null,"path":"members"}"#, "400 invalidSyntax", "400 invalidSyntax"),
        (r#"{"path":"members"}"#, "400 invalidSyntax", "400 invalidSyntax"),
        (r#"{"op":"remove","path":["members"]}"#, "400 invalidSyntax", "400 invalidSyntax"),
        (r#"[]"#, "400 invalidSyntax", "400 invalidSyntax"),
    ] {
        assert_eq!(members(&Strict.into(), operation).0, strict, "strict: {operation}");
        for profile in TOLERANT {
            assert_eq!(members(&profile.into(), operation).0, tolerant, "{profile}: {operation}");
        }
    }
}

/// EN-075: with `merge-members` a replace adds and never removes; what says "all" in so many words still does.
#[test]
fn merge_members() {
    let client = Client::from(Entra).with(Quirk::MergeMembers, true);
    for (operation, outcome, applied) in [
        (r#"{"op":"replace","path":"members","value":[{"value":"a"}]}"#, "adds a", true),
        (r#"{"op":"replace","value":{"members":[{"value":"a"}]}}"#, "adds a", true),
        (r#"{"op":"replace","path":"members","value":[]}"#, "nothing", true),
        (r#"{"op":"add","path":"members","value":[{"value":"a"}]}"#, "adds a", false),
        (r#"{"op":"remove","path":"members"}"#, "empties", false),
    ] {
        let (said, quirks) = members(&client, operation);
        assert_eq!((said.as_str(), quirks.contains(&Quirk::MergeMembers)), (outcome, applied), "{operation}");
    }
}

/// PUT: what is not mentioned is cleared (PU-003), members too, unless `put-without-members-keeps` (KC-003);
/// what is no list is refused.
#[test]
fn put_and_members() {
    let keeps = Client::from(Generic).with(Quirk::PutWithoutMembersKeeps, true);
    let rt = resource_type("g1");
    for (members, plain, switched) in [
        ("", Ok(Some(0)), Ok(None)),
        (r#","members":[]"#, Ok(Some(0)), Ok(Some(0))),
        (r#","members":null"#, Ok(Some(0)), Ok(Some(0))),
        (r#","members":[{"value":"a"}]"#, Ok(Some(1)), Ok(Some(1))),
        (r#","members":{}"#, Err(400), Err(400)),
        (r#","members":"""#, Err(400), Err(400)),
        (r#","members":[{}]"#, Err(400), Err(400)),
        (r#","members":[null]"#, Err(400), Err(400)),
    ] {
        let text = format!(r#"{{"displayName":"Ops"{members}}}"#);
        let body: Value = serde_json::from_str(&text).unwrap();
        for (client, expect) in [(Client::from(Generic), plain), (keeps.clone(), switched)] {
            let mut dialect = Dialect::new(client);
            let parsed = parse_replacement(&Registry::standard(), &rt, &document("g1"), &body, &mut dialect);
            let found = parsed.map(|p| p.members.map(|m| m.len())).map_err(|e| e.status);
            assert_eq!(found, expect, "{text}");
            let kept = expect == Ok(None);
            assert_eq!(dialect.applied.contains(&Quirk::PutWithoutMembersKeeps), kept, "{text}");
        }
    }
}

/// PU-003: an extension that a PUT does not mention is cleared, or kept with `keep-omitted-extensions`; one
/// that it mentions says all there is.
#[test]
fn keep_omitted_extensions() {
    let keeps = Client::from(Okta).with(Quirk::KeepOmittedExtensions, true);
    let old = document("u1").0[ENTERPRISE_USER].clone();
    for (extension, plain, switched) in [
        ("", None, Some(old)),
        (r#","ENT":null"#, None, None),
        (r#","ENT":{}"#, None, None),
        (
            r#","ENT":{"department":"Ops"}"#,
            Some(json!({"department": "Ops"})),
            Some(json!({"department": "Ops"})),
        ),
    ] {
        let text = full(&format!(r#"{{"userName":"anna"{extension}}}"#));
        let body: Value = serde_json::from_str(&text).unwrap();
        for (client, expect) in [(Client::from(Okta), &plain), (keeps.clone(), &switched)] {
            let mut dialect = Dialect::new(client);
            let registry = Registry::standard();
            let parsed =
                parse_replacement(&registry, &resource_type("u1"), &document("u1"), &body, &mut dialect);
            let document = json!(parsed.unwrap().document);
            assert_eq!(document.get(ENTERPRISE_USER), expect.as_ref(), "{}", short(&document));
        }
    }
}

/// FI-022: text without double quotes is refused, and read with `lenient-filter-literals`.
#[test]
fn lenient_filter_literals() {
    let lenient = Client::from(Generic).with(Quirk::LenientFilterLiterals, true);
    let bound = |client: &Client, filter: &str| {
        let mut dialect = Dialect::new(client.clone());
        let rt = resource_type("u1");
        parse_filter(filter, Budget::default())
            .and_then(|f| bind(&f, &Registry::standard(), &rt, Context::GET, &mut dialect))
            .map(|bound| (format!("{bound:?}"), dialect.applied.contains(&Quirk::LenientFilterLiterals)))
    };
    for (loose, exact) in [
        ("userName eq anna", r#"userName eq "anna""#),
        ("userName eq 'anna berg'", r#"userName eq "anna berg""#),
        ("userName eq '' or title sw x", r#"userName eq "" or title sw "x""#),
        ("userName eq anna@example.test and title pr", r#"userName eq "anna@example.test" and title pr"#),
        ("emails[type eq work]", r#"emails[type eq "work"]"#),
        ("ENT:employeeNumber eq 4711", r#"ENT:employeeNumber eq "4711""#),
        ("meta.created gt 2026-01-01T00:00:00Z", r#"meta.created gt "2026-01-01T00:00:00Z""#),
    ] {
        let (loose, exact) = (full(loose), full(exact));
        for profile in Profile::ALL {
            let refused = bound(&Client::from(*profile), &loose).unwrap_err();
            assert_eq!(refused.scim_type.map(|t| t.as_str()), Some("invalidFilter"), "{profile}: {loose}");
        }
        assert_eq!(bound(&lenient, &loose).unwrap(), (bound(&lenient, &exact).unwrap().0, true), "{loose}");
        assert!(!bound(&lenient, &exact).unwrap().1, "{exact}");
    }
    for broken in
        ["userName eq 'anna", "userName eq", "userName eq ]", "userName eq )", "userName eq anna berg"]
    {
        assert_eq!(bound(&lenient, broken).unwrap_err().status, 400, "{broken}");
    }
    let refused = bound(&Generic.into(), "title pr and userName eq anna").unwrap_err();
    assert!(refused.detail.contains("position 26"), "{}", refused.detail);
}

/// OK-020, `ignore-client-passwords`: passwords are thrown away, whatever way they come; a bad one is still
/// refused.
#[test]
fn ignore_client_passwords() {
    let ignores = Client::from(Okta).with(Quirk::IgnoreClientPasswords, true);
    for (client, expect) in [(Client::from(Okta), true), (ignores, false)] {
        let (registry, rt, id) = (Registry::standard(), resource_type("u1"), ResourceId::from_text("u1"));
        let body = json!({"userName": "anna", "password": "r4nd0m!x"});
        let mut dialect = Dialect::new(client.clone());
        let created = parse(&registry, &rt, &body, &mut dialect).unwrap();
        let replaced = parse_replacement(&registry, &rt, &document("u1"), &body, &mut dialect).unwrap();
        assert_eq!((created.password.is_some(), replaced.password.is_some()), (expect, expect));
        for operation in [
            json!({"op": "replace", "path": "password", "value": "n3w!"}),
            json!({"op": "replace", "value": {"password": "n3w!"}}),
            json!({"op": "remove", "path": "password"}),
        ] {
            let ops = parse_request(&json!({"Operations": [operation]}), &mut dialect).unwrap();
            let patched = apply(&registry, &rt, &id, &document("u1"), &ops, &mut dialect).unwrap();
            assert_eq!(patched.password.is_some(), expect, "{operation}");
        }
        assert_eq!(dialect.applied.contains(&Quirk::IgnoreClientPasswords), !expect);
        let bad = json!({"userName": "anna", "password": 7});
        assert_eq!(parse(&registry, &rt, &bad, &mut dialect).unwrap_err().status, 400);
    }
}

/// US-004, IN-001, IN-002, SE-009: what a password may be, what is hashed, and that no error repeats it.
#[test]
fn passwords_are_prepared() {
    let set = |client: Profile, password: Value| {
        let body = json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": "anna",
            "password": password});
        match parse(&Registry::standard(), &resource_type("u1"), &body, &mut Dialect::new(client)) {
            Ok(parsed) => match parsed.password {
                Some(PasswordChange::Set(secret)) => Ok(Some(secret.expose_secret().to_owned())),
                _ => Ok(None),
            },
            Err(error) => Err((error.status, error.scim_type.map_or("", |t| t.as_str()), error.detail)),
        }
    };
    for (given, prepared) in [
        ("Correct Horse", "Correct Horse"),
        ("a\u{a0}b\u{3000}c", "a b c"),
        ("e\u{301}te\u{301}", "\u{e9}t\u{e9}"),
        ("\u{ff21}bc", "\u{ff21}bc"),
        ("STRASSE \u{df}", "STRASSE \u{df}"),
    ] {
        for profile in Profile::ALL {
            assert_eq!(set(*profile, json!(given)), Ok(Some(prepared.to_owned())), "{given:?}");
        }
    }
    // PRECIS allows no control characters; a generator may have made one.
    assert_eq!(set(Okta, json!("a\tb")), Ok(Some("a\tb".to_owned())));
    assert_eq!(set(Strict, json!("a\tb")).unwrap_err().1, "invalidValue");
    assert_eq!(set(Generic, Value::Null), Ok(None));
    assert_eq!(
        set(Generic, json!("x".repeat(PASSWORD_BYTES_MAX))).unwrap().unwrap().len(),
        PASSWORD_BYTES_MAX
    );
    for refused in [
        json!("sEcr3t".repeat(200)),
        json!(""),
        json!("sEcr3t\u{0}"),
        json!({"sEcr3t": 1}),
        json!(["sEcr3t"]),
    ] {
        let (status, keyword, detail) = set(Generic, refused).unwrap_err();
        assert_eq!((status, keyword), (400, "invalidValue"), "{detail}");
        assert!(detail.contains("password") && !detail.contains("sEcr3t"), "{detail}");
    }
}

/// PU-007: an explicit null in a PUT takes the password away; one that is not mentioned stays (PU-003).
#[test]
fn put_and_the_password() {
    for (password, expect) in
        [("", "kept"), (r#","password":null"#, "cleared"), (r#","password":"n3w""#, "set")]
    {
        let body: Value = serde_json::from_str(&format!(r#"{{"userName":"anna"{password}}}"#)).unwrap();
        let mut dialect = Dialect::new(Generic);
        let parsed = parse_replacement(
            &Registry::standard(),
            &resource_type("u1"),
            &document("u1"),
            &body,
            &mut dialect,
        );
        let found = match parsed.unwrap().password {
            None => "kept",
            Some(PasswordChange::Clear) => "cleared",
            Some(PasswordChange::Set(_)) => "set",
        };
        assert_eq!(found, expect, "{password}");
    }
}

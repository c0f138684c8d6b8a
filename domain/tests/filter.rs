//! Filters: the cases F01 to F69 of the requirements (§7.2) by their ids, and properties.

mod fixture;

use annals_domain::clock::Timestamp;
use annals_domain::ids::ResourceId;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::filter::{
    Bound, Budget, CompareOp, Context, Filter, Literal, LookupTermKind, Subject, bind, lookup_terms, matches,
    parse, uses_links,
};
use annals_domain::scim::fold::{index_value, parse_datetime};
use annals_domain::scim::schema::{AttrType, Attribute, Registry};
use annals_domain::view::{IndexRow, LookupKind, index_rows};
use fixture::{document, full, resource_type, short};
use proptest::prelude::*;
use serde_json::{Value, json};

const STRICT: Profile = Profile::Strict;
const COMPAT: Profile = Profile::Generic;

fn links(id: &str) -> Vec<IndexRow> {
    let links: &[(&str, i32, &str, &str)] = match id {
        "u1" | "u2" => &[("groups", 0, "g1", "direct"), ("groups", 1, "g2", "indirect")],
        "g1" => &[("members", 0, "u1", "user"), ("members", 1, "u2", "user")],
        "g2" => &[("members", 0, "g1", "group")],
        _ => &[],
    };
    let row = |attribute: &str, sub: &str, element, value: &str| IndexRow {
        key: format!("{attribute}.{sub}"),
        element,
        value: value.to_owned(),
    };
    let rows = links.iter().flat_map(|&(attribute, element, id, kind)| {
        [row(attribute, "value", element, id), row(attribute, "type", element, kind)]
    });
    rows.collect()
}

fn holds(bound: &Bound, id: &str) -> bool {
    let (created, last_modified, version) = match id {
        "u1" => ("2026-01-10T08:00:00.000Z", "2026-03-01T12:00:00.000Z", 5),
        "u2" => ("2026-02-01T00:00:00.000Z", "2026-02-01T00:00:00.000Z", 1),
        "u3" => ("2026-03-05T09:00:00.000Z", "2026-03-05T09:00:00.000Z", 1),
        _ => ("2026-03-06T00:00:00.000Z", "2026-03-06T00:00:00.000Z", 1),
    };
    let time = |text| parse_datetime(text).unwrap_or(Timestamp(0));
    let resource_type = resource_type(id);
    let mut rows = index_rows(&resource_type, &document(id));
    rows.extend(links(id));
    let subject = Subject {
        id: &ResourceId::from_text(id),
        created: time(created),
        last_modified: time(last_modified),
        version,
        resource_type: &resource_type.name,
        rows: &rows,
    };
    matches(bound, &subject)
}

fn bound(filter: &str, id: &str, context: Context, profile: Profile) -> Result<Bound, ScimError> {
    let filter = parse(&full(filter), Budget::default())?;
    bind(&filter, &Registry::standard(), &resource_type(id), context, &mut Dialect::new(profile))
}

/// Who matches at an endpoint (`Users`, `Groups`, or `` for the root), or the error.
fn run(endpoint: &str, filter: &str, context: Context, profile: Profile) -> String {
    let mut found = Vec::new();
    for id in ["u1", "u2", "u3", "g1", "g2"] {
        if !resource_type(id).endpoint.trim_start_matches('/').starts_with(endpoint) {
            continue;
        }
        match bound(filter, id, context, profile) {
            Ok(bound) if holds(&bound, id) => found.push(id),
            Ok(_) => {}
            Err(error) => {
                return format!("{} {}", error.status, error.scim_type.map_or("", |t| t.as_str()));
            }
        }
    }
    found.join(" ")
}

/// The one door: a case, in both profiles.
#[track_caller]
fn check(case: &str, endpoint: &str, filter: &str, strict: &str, compat: &str) {
    let context = if endpoint.is_empty() { Context::GET.root() } else { Context::GET };
    for (profile, expect) in [(STRICT, strict), (COMPAT, compat)] {
        assert_eq!(run(endpoint, filter, context, profile), expect, "{case} {profile}: {filter}");
    }
}

const BAD: &str = "400 invalidFilter";

/// FI-001: F11 to F14. FI-002: F02. FI-003: F33, F50, F51. FI-006: F59. FI-007: F01, F56. FI-008: F21 to F24.
/// FI-009: F19, F20, F36. FI-010: F15, F57. FI-011: F38, F39, F46, F47. FI-012: F17, F55. FI-016: F27, F28. FI-018: F42.
/// FI-019: F04, F05, F41, F44.
#[test]
fn filters_on_users() {
    let same: &[(&str, &str, &str)] = &[
        ("F01", r#"userName eq "anna.berg@example.com""#, "u1"),
        ("F02", r#"USERNAME Eq "ANNA.BERG@EXAMPLE.COM""#, "u1"),
        ("F03", r#"urn:ietf:params:scim:schemas:core:2.0:User:userName sw "anna""#, "u1"),
        ("F04", r#"externalId eq "E-1""#, "u1"),
        ("F05", r#"externalId eq "e-1""#, "u2"),
        ("F06", "title pr", "u1"),
        ("F07", "not (title pr)", "u2 u3"),
        ("F08", "title eq null", "u2"),
        ("F08b", "title ne null", "u1 u3"),
        ("F09", r#"title eq """#, "u3"),
        ("F10", r#"title ne "Engineer""#, "u2 u3"),
        ("F11", r#"active eq true or userType eq "Contractor" and userType eq "Employee""#, "u1 u3"),
        ("F12", r#"(active eq true or userType eq "Contractor") and userType eq "Employee""#, "u1"),
        ("F13", "not (active eq true)", "u2"),
        ("F13b", "not(active eq true)", "u2"),
        ("F14", "not active eq true", BAD),
        ("F15", "active gt true", BAD),
        ("F17", r#"active co "tr""#, BAD),
        ("F19", r#"emails eq "anna@home.test""#, "u1"),
        ("F20", r#"emails co "home.test""#, "u1 u2"),
        ("F21", r#"emails.type eq "work" and emails.value co "home""#, "u1"),
        ("F22", r#"emails[type eq "work" and value co "home"]"#, ""),
        ("F23", r#"emails[type eq "work" and (value ew ".test" or primary eq false)]"#, "u1"),
        ("F24", r#"emails[type eq "home"] and active eq false"#, "u2"),
        ("F25", r#"emails[type eq "work"] or userName eq "bo""#, "u1 u2"),
        ("F27", r#"emails.type ne "work""#, "u1 u2 u3"),
        ("F28", r#"not (emails.type eq "work")"#, "u2 u3"),
        ("F29", "emails pr", "u1 u2"),
        ("F29b", "emails eq null", "u3"),
        ("F30", "emails[primary eq true]", "u1"),
        ("F32", "emails[primary eq false]", "u1 u2"),
        ("F33", r#"emails[type eq "work""#, BAD),
        ("F34", r#"emails[emails[type eq "work"]]"#, BAD),
        ("F35", "name pr", "u1"),
        ("F35b", "name eq null", "u2 u3"),
        ("F36", r#"name eq "Anna""#, BAD),
        ("F37", r#"name.givenName sw "AN""#, "u1"),
        ("F38", r#"meta.lastModified gt "2026-02-01T01:00:00+01:00""#, "u1 u3"),
        ("F39", r#"meta.lastModified ge "2026-02-01T01:00:00+01:00""#, "u1 u2 u3"),
        ("F40", r#"meta.created gt "yesterday""#, BAD),
        ("CS-026", r#"meta.created eq "2026-01-10T08:00:00.000Z""#, "u1"),
        ("F41", r#"meta.resourceType eq "user""#, ""),
        ("F41b", r#"meta.resourceType eq "User""#, "u1 u2 u3"),
        ("CS-012", r#"meta.version eq "W/\"5\"""#, "u1"),
        ("F42", r#"schemas eq "ENT""#, "u1"),
        ("F43", r#"ENT:manager.value eq "u2""#, "u1"),
        ("F44", r#"ENT:manager.value eq "U2""#, ""),
        ("F46", r#"ENT:employeeNumber gt "5""#, ""),
        ("F47", r#"ENT:employeeNumber ge "4""#, "u1"),
        ("F48", r#"groups.value eq "g1""#, "u1 u2"),
        ("F49", r#"groups[value eq "g2" and type eq "indirect"]"#, "u1 u2"),
        ("F49b", r#"groups[value eq "g1" and type eq "indirect"]"#, ""),
        ("F50", r#"userName regex "a.*""#, BAD),
        ("F51", "userName eq", BAD),
        ("F51b", r#"eq "x""#, BAD),
        ("F51c", r#"userName eq "a" and"#, BAD),
        ("F51d", "", BAD),
        ("F52", "userName eq anna", BAD),
        ("F52b", "userName eq 'bo'", BAD),
        ("F53", r#"userName eq "b\u006f""#, "u2"),
        ("F54", r#"displayName eq "a\"b""#, ""),
        ("F55", r#"displayName co """#, "u1 u2"),
        ("F56", "userName eq \"ａnna.berg@example.com\"", "u1"),
        ("F57", r#"x509Certificates.value gt "AA""#, BAD),
        ("F58", "title gt null", BAD),
        ("F59", r#"foo eq "x""#, BAD),
        ("F60", r#"password eq "x""#, "403 sensitive"),
        ("F60b", "password pr", "403 sensitive"),
        ("F67", r#"(((userName eq "bo")))"#, "u2"),
        ("F69", r#"userName eq "x' OR '1'='1""#, ""),
        ("FI-004", r#"urn:ietf:params:scim:schemas:core:2.0:Group:displayName eq "Ops""#, BAD),
        ("FI-013", r#"userName eq 5"#, BAD),
        ("FI-013b", r#"title eq true"#, BAD),
        ("FI-020", &vec!["title pr"; 101].join(" and "), BAD),
        ("FI-020b", &vec!["title pr"; 100].join(" and "), "u1"),
        ("FI-022", r#"userName eq"bo""#, "u2"),
        ("FI-024", "  userName \t eq   \"bo\"  ", "u2"),
        ("FI-012", r#"meta.created co "2026""#, BAD),
        ("FI-012b", r#"x509Certificates.value sw "AA""#, BAD),
        ("FI-012c", r#"emails.primary ew "e""#, BAD),
        ("FI-018", r#"schemas eq "URN:ietf:params:scim:schemas:core:2.0:USER""#, "u1 u2 u3"),
        ("CH-011", r#"name[givenName eq "Anna"]"#, BAD),
        ("7122", r#"schemas[value eq "ENT"]"#, "u1"),
        ("id", r#"id eq "u2" or id eq "U1""#, "u2"),
        ("id pr", "id pr and meta pr", "u1 u2 u3"),
        ("id null", "id eq null", ""),
        ("location", "meta.location pr", "u1 u2 u3"),
        ("location eq", r#"meta.location eq "x""#, BAD),
    ];
    for (case, filter, expect) in same {
        check(case, "Users", filter, expect, expect);
    }
}

#[test]
fn filters_that_only_tolerant_profiles_take() {
    for (case, filter, compat) in [
        ("F16", r#"active eq "True""#, "u1 u3"),
        ("F18", "active eq FALSE", "u2"),
        ("F18b", "title eq NULL", "u2"),
        ("F26", r#"emails[type eq "work"].value eq "anna@work.test""#, "u1"),
        ("FI-023", r#"emails[type eq "home"].value pr"#, "u1 u2"),
        ("F31", r#"emails[primary eq "True"]"#, "u1"),
        ("F45", r#"id eq "u1" and manager eq "u2""#, "u1"),
        ("FI-005", r#"department eq "r&d""#, "u1"),
        ("EN-051", r#"ENT.department eq "r&d""#, "u1"),
    ] {
        check(case, "Users", filter, BAD, compat);
    }
}

/// FI-006: F59. FI-019: F65.
#[test]
fn filters_on_groups_and_on_everything() {
    for (case, endpoint, filter, expect) in [
        ("F59", "", r#"foo eq "x""#, ""),
        ("FI-014", "", "foo eq null", "u1 u2 u3 g1 g2"),
        ("F61", "", r#"displayName sw "o""#, "g1 g2"),
        ("F62", "", "title pr", "u1"),
        ("RQ-005", "", r#"meta.resourceType eq "Group""#, "g1 g2"),
        ("F63", "Groups", r#"displayName eq "OPS""#, "g1"),
        ("F64", "Groups", r#"members eq "u1""#, "g1"),
        ("F64b", "Groups", r#"members[value eq "u1"]"#, "g1"),
        ("F64c", "Groups", r#"members.type eq "Group""#, "g2"),
        ("F64d", "Groups", "members pr", "g1 g2"),
        ("F65", "Groups", r#"members.value eq "U1""#, ""),
    ] {
        check(case, endpoint, filter, expect, expect);
    }
}

/// US-005, FI-021
#[test]
fn f60_a_password_filter_in_a_body_is_an_invalid_filter() {
    assert_eq!(run("Users", r#"password eq "x""#, Context::BODY, COMPAT), BAD);
}

#[test]
fn f68_ten_thousand_parentheses_are_refused() {
    let deep = format!("{}title pr{}", "(".repeat(3_000), ")".repeat(3_000));
    check("F68", "Users", &deep, BAD, BAD);
    let deeper = format!("{}title pr{}", "(".repeat(10_000), ")".repeat(10_000));
    let unbounded = Budget { bytes_max: usize::MAX, ..Budget::default() };
    assert!(parse(&deeper, unbounded).unwrap_err().detail.contains("nested deeper than 20"));
    let nots = format!("{}title pr{}", "not (".repeat(21), ")".repeat(21));
    check("F68", "Users", &nots, BAD, BAD);
}

/// FI-003
#[test]
fn errors_name_position_and_token() {
    for (filter, expect) in [
        (
            r#"userName regex "a""#,
            r#"filter at position 10: expected an operator after "userName", found "regex""#,
        ),
        ("title pr or", r#"filter at position 12: expected an attribute, found nothing"#),
        ("title pr xor active pr", r#"filter at position 10: expected 'and', 'or' or the end, found "xor""#),
        (
            "userName eq anna",
            r#"filter at position 13: expected a JSON string, number, true, false or null, found "anna""#,
        ),
        ("not title pr", r#"filter at position 5: expected '(' after 'not', found "title""#),
    ] {
        let rt = Registry::standard().resource_type("User").unwrap().clone();
        let error = parse(filter, Budget::default()).and_then(|parsed| {
            bind(&parsed, &Registry::standard(), &rt, Context::GET, &mut Dialect::new(COMPAT))
        });
        assert_eq!(error.unwrap_err().detail, expect);
    }
    let error = bound(r#"manager.value eq "u2""#, "u1", Context::GET, Profile::Strict).unwrap_err();
    let full = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager.value";
    assert_eq!(error.detail, format!(r#""manager.value" must be written in full, as "{full}""#));
}

#[test]
fn a_look_up_answers_an_equality() {
    let term = |filter, id| {
        let found = lookup_terms(&bound(filter, id, Context::GET, COMPAT).unwrap(), &resource_type(id));
        found.map(|term| (term.kind, term.value))
    };
    let lookup = |kind, value: &str| Some((LookupTermKind::Lookup(kind), value.to_owned()));
    assert_eq!(term(r#"userName eq "BO""#, "u1"), lookup(LookupKind::UserName, "bo"));
    assert_eq!(term(r#"active eq true and externalId eq "E""#, "u1"), lookup(LookupKind::ExternalId, "E"));
    assert_eq!(term(r#"displayName eq "OPS""#, "g1"), lookup(LookupKind::DisplayName, "ops"));
    assert_eq!(term(r#"displayName eq "Anna""#, "u1"), None);
    let by_id = Some((LookupTermKind::Id, "u1".to_owned()));
    assert_eq!(term(r#"userName eq "a" and id eq "u1""#, "u1"), by_id);
    assert_eq!(term(r#"userName eq "a" or id eq "u1""#, "u1"), None);
    let linked = |filter, id| uses_links(&bound(filter, id, Context::GET, COMPAT).unwrap());
    assert!(linked(r#"not (active eq true and groups[value eq "g1"])"#, "u1") && linked("members pr", "g1"));
    assert!(!linked(r#"manager eq "u2""#, "u1"));
}

#[test]
fn index_rows_are_what_a_query_sees() {
    let rows: Vec<String> = index_rows(&resource_type("u1"), &document("u1"))
        .iter()
        .map(|row| short(&json!(format!("{}[{}]={}", row.key, row.element, row.value))))
        .collect();
    let text = rows.join("\n").to_lowercase();
    for row in [
        "active[0]=true",
        "emails.primary[0]=true",
        "emails.primary[1]=false",
        "emails.value[1]=anna@home.test",
        "externalid[0]=e-1",
        "schemas[0]=urn:ietf:params:scim:schemas:core:2.0:user",
        ":user:manager.value[0]=u2",
        "username[0]=anna.berg@example.com",
    ] {
        assert!(text.contains(row), "{row} in\n{text}");
    }
}

fn numeric(kind: AttrType) -> Attribute {
    let user = Registry::standard().resource_type("User").unwrap().clone();
    Attribute { kind, ..user.core("title").unwrap().clone() }
}

fn literal() -> impl Strategy<Value = Literal> {
    prop_oneof![
        Just(Literal::Null),
        any::<bool>().prop_map(Literal::Bool),
        any::<i64>().prop_map(|n| Literal::Number(n.into())),
        any::<String>().prop_map(Literal::String),
        prop_oneof!["TRUE", "False", "NuLL"].prop_map(Literal::Word),
    ]
}

/// Filters of the RFC's grammar if `rfc`, else with what the parser takes besides.
fn filters(rfc: bool) -> impl Strategy<Value = Filter> {
    let path = "[a-z][a-zA-Z0-9_-]{0,6}(\\.[a-z]{1,5})?"
        .prop_filter("keywords", |p| !["not", "pr", "and", "or"].contains(&p.as_str()));
    let op = proptest::sample::select(CompareOp::ALL.to_vec());
    let literal = literal().prop_filter("rfc", move |l| !rfc || !matches!(l, Literal::Word(_)));
    let test = prop_oneof![
        path.clone().prop_map(|path| Filter::Present { path }),
        (path.clone(), op, literal).prop_map(|(path, op, literal)| Filter::Compare { path, op, literal }),
    ];
    let logic = |inner: BoxedStrategy<Filter>| {
        inner.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 2..4).prop_map(Filter::and),
                proptest::collection::vec(inner.clone(), 2..4).prop_map(Filter::or),
                inner.prop_map(|f| Filter::Not(Box::new(f))),
            ]
        })
    };
    let name = "[a-z]{1,6}".prop_filter("keywords", |p| !["not", "pr", "and", "or"].contains(&p.as_str()));
    let element = (name.clone(), logic(test.clone().boxed()))
        .prop_map(|(path, filter)| Filter::Element { path, filter: Box::new(filter) });
    if rfc {
        logic(prop_oneof![3 => test, 1 => element].boxed()).boxed()
    } else {
        let sub = name.clone().prop_map(|path| Filter::Present { path });
        let postfix = (name, logic(test.clone().boxed()), sub).prop_map(|(path, filter, test)| {
            Filter::Postfix { path, filter: Box::new(filter), test: Box::new(test) }
        });
        logic(prop_oneof![3 => test, 1 => element, 1 => postfix].boxed()).boxed()
    }
}

/// What is put where it may not belong.
const TOKENS: [&str; 16] = [
    "and", "or", "not", "(", ")", "pr", "eq", "co", "a", "a.b", "null", "true", "1", "\"s\"", "a[b pr]", "]",
];

const ROOMY: Budget = Budget { bytes_max: usize::MAX, terms_max: 1000, depth_max: 50 };

proptest! {
    #[test]
    fn a_filter_prints_as_itself(filter in filters(false)) {
        let text = filter.to_string();
        prop_assert_eq!(parse(&text, ROOMY).map_err(|e| format!("{e}: {text}")), Ok(filter));
    }

    #[test]
    fn the_parser_agrees_with_scim_v2(filter in filters(true)) {
        let text = filter.to_string();
        let theirs: Result<scim_v2::filter::Filter, _> = text.parse();
        let theirs = theirs.map_err(|e| TestCaseError::fail(format!("{e:?}: {text}")))?;
        // Their text of it means the same to us: trees are compared in our terms.
        prop_assert_eq!(parse(&theirs.to_string(), ROOMY), Ok(filter));
    }

    /// Tokens too many, too few, or wrong: whatever they still read, we read, and read the same.
    #[test]
    fn the_parser_reads_what_scim_v2_reads(
        filter in filters(true),
        at in any::<proptest::sample::Index>(),
        token in proptest::sample::select(TOKENS.to_vec()),
        change in 0..3,
    ) {
        let text = filter.to_string();
        let mut tokens: Vec<&str> = text.split(' ').collect();
        let at = at.index(tokens.len());
        match change {
            0 => { tokens.remove(at); }
            1 => tokens.insert(at, token),
            _ => tokens[at] = token,
        }
        let text = tokens.join(" ");
        let theirs: Result<scim_v2::filter::Filter, _> = text.parse();
        match (parse(&text, ROOMY), theirs) {
            (Ok(ours), Ok(theirs)) => {
                prop_assert_eq!(parse(&theirs.to_string(), ROOMY), Ok(ours), "{}", text);
            }
            // We also read words as literals, and attributes named "null": binding judges them.
            (_, Err(_)) => {}
            (Err(error), Ok(_)) => prop_assert!(false, "only they read {}: {}", text, error),
        }
    }

    #[test]
    fn the_parser_never_panics(text in any::<String>(), tokens in "[a-z.\\[\\]()\" \\\\:$0-9]{0,60}") {
        let _ = parse(&text, Budget::default());
        let _ = parse(&tokens, Budget::default());
    }

    /// Also what is kept: a document whose text is read again has the same decimals, to the last bit.
    #[test]
    fn a_number_is_the_same_when_it_is_read_again(text in "-?[1-9][0-9]{0,30}(\\.[0-9]{1,25})?(e-?[0-9]{1,2})?") {
        let filter = parse(&format!("size eq {text}"), Budget::default()).unwrap();
        prop_assert_eq!(parse(&filter.to_string(), Budget::default()), Ok(filter), "{}", text);
        let document: Value = serde_json::from_str(&format!(r#"{{"size": {text}}}"#)).unwrap();
        let again: Value = serde_json::from_str(&document.to_string()).unwrap();
        prop_assert_eq!(document, again, "{}", text);
    }

    #[test]
    fn encoded_numbers_keep_their_order(a in any::<i64>(), b in any::<i64>(), x in -1e300f64..1e300, y in -1e3f64..1e3) {
        let integer = |n: i64| index_value(&numeric(AttrType::Integer), &json!(n)).unwrap();
        prop_assert_eq!(a.cmp(&b), integer(a).cmp(&integer(b)));
        let decimal = |n: f64| index_value(&numeric(AttrType::Decimal), &json!(n)).unwrap();
        prop_assert_eq!(x.total_cmp(&y), decimal(x).cmp(&decimal(y)));
        prop_assert_eq!(decimal(0.0), decimal(-0.0));
    }
}

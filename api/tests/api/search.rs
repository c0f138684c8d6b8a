//! Lists, filters, pages, `.search` (scim-requirements §2.6 to §2.10, §7.2, §7.5).

use annals_domain::scim::dialect::Profile;
use futures::future::join_all;
use serde_json::json;

use crate::world::{ENT, Fixture, GROUP, LIST, SEARCH, USER, World, encode};

enum Want {
    /// These, in any order.
    Ids(&'static [&'static str]),
    /// 400 `invalidFilter`.
    Bad,
}
use Want::{Bad, Ids};

const ALL: &[&str] = &["u1", "u2", "u3"];

/// The cases of §7.2 as they are for a tolerant client.
const TOLERANT: &[(&str, &str, Want)] = &[
    ("F01", r#"userName eq "anna.berg@example.com""#, Ids(&["u1"])),
    ("F02", r#"USERNAME Eq "ANNA.BERG@EXAMPLE.COM""#, Ids(&["u1"])),
    ("F03", r#"urn:ietf:params:scim:schemas:core:2.0:User:userName sw "anna""#, Ids(&["u1"])),
    ("F04", r#"externalId eq "E-1""#, Ids(&["u1"])),
    ("F05", r#"externalId eq "e-1""#, Ids(&["u2"])),
    ("F06", "title pr", Ids(&["u1"])),
    ("F07", "not (title pr)", Ids(&["u2", "u3"])),
    ("F08", "title eq null", Ids(&["u2"])),
    ("F09", r#"title eq """#, Ids(&["u3"])),
    ("F10", r#"title ne "Engineer""#, Ids(&["u2", "u3"])),
    ("F11", r#"active eq true or userType eq "Contractor" and userType eq "Employee""#, Ids(&["u1", "u3"])),
    ("F12", r#"(active eq true or userType eq "Contractor") and userType eq "Employee""#, Ids(&["u1"])),
    ("F13", "not (active eq true)", Ids(&["u2"])),
    ("F13b", "not(active eq true)", Ids(&["u2"])),
    ("F14", "not active eq true", Bad),
    ("F15", "active gt true", Bad),
    ("F16", r#"active eq "True""#, Ids(&["u1", "u3"])),
    ("F17", r#"active co "tr""#, Bad),
    ("F18", "active eq FALSE", Ids(&["u2"])),
    ("F19", r#"emails eq "anna@home.test""#, Ids(&["u1"])),
    ("F20", r#"emails co "home.test""#, Ids(&["u1", "u2"])),
    ("F21", r#"emails.type eq "work" and emails.value co "home""#, Ids(&["u1"])),
    ("F22", r#"emails[type eq "work" and value co "home"]"#, Ids(&[])),
    ("F23", r#"emails[type eq "work" and (value ew ".test" or primary eq false)]"#, Ids(&["u1"])),
    ("F24", r#"emails[type eq "home"] and active eq false"#, Ids(&["u2"])),
    ("F25", r#"emails[type eq "work"] or userName eq "bo""#, Ids(&["u1", "u2"])),
    ("F26", r#"emails[type eq "work"].value eq "anna@work.test""#, Ids(&["u1"])),
    ("F27", r#"emails.type ne "work""#, Ids(ALL)),
    ("F28", r#"not (emails.type eq "work")"#, Ids(&["u2", "u3"])),
    ("F29", "emails pr", Ids(&["u1", "u2"])),
    ("F30", "emails[primary eq true]", Ids(&["u1"])),
    ("F31", r#"emails[primary eq "True"]"#, Ids(&["u1"])),
    ("F32", "emails[primary eq false]", Ids(&["u1", "u2"])),
    ("F33", r#"emails[type eq "work""#, Bad),
    ("F34", r#"emails[emails[type eq "work"]]"#, Bad),
    ("F35", "name pr", Ids(&["u1"])),
    ("F36", r#"name eq "Anna""#, Bad),
    ("F37", r#"name.givenName sw "AN""#, Ids(&["u1"])),
    ("F38", r#"meta.lastModified gt "2026-02-01T01:00:00+01:00""#, Ids(&["u1", "u3"])),
    ("F39", r#"meta.lastModified ge "2026-02-01T01:00:00+01:00""#, Ids(ALL)),
    ("F40", r#"meta.created gt "yesterday""#, Bad),
    ("F41", r#"meta.resourceType eq "user""#, Ids(&[])),
    ("F41b", r#"meta.resourceType eq "User""#, Ids(ALL)),
    ("F42", r#"schemas eq "ENT""#, Ids(&["u1"])),
    ("F43", r#"ENT:manager.value eq "u2""#, Ids(&["u1"])),
    ("F44", r#"ENT:manager.value eq "U2""#, Ids(&[])),
    ("F45", r#"id eq "u1" and manager eq "u2""#, Ids(&["u1"])),
    ("F45b", r#"id eq "u1" and manager eq "u3""#, Ids(&[])),
    ("F46", r#"ENT:employeeNumber gt "5""#, Ids(&[])),
    ("F47", r#"ENT:employeeNumber ge "4""#, Ids(&["u1"])),
    ("F48", r#"groups.value eq "g1""#, Ids(&["u1", "u2"])),
    ("F48b", r#"id eq "u1" and groups.value eq "g1""#, Ids(&["u1"])),
    ("F48c", r#"userName eq "celik" and groups.value eq "g1""#, Ids(&[])),
    ("F49", r#"groups[value eq "g2" and type eq "indirect"]"#, Ids(&["u1", "u2"])),
    ("F49b", r#"id eq "u2" and groups[value eq "g2" and type eq "indirect"]"#, Ids(&["u2"])),
    ("F49c", r#"id eq "u2" and groups[value eq "g2" and type eq "direct"]"#, Ids(&[])),
    ("F50", r#"userName regex "a.*""#, Bad),
    ("F51", "userName eq", Bad),
    ("F51b", r#"eq "x""#, Bad),
    ("F51c", r#"userName eq "a" and"#, Bad),
    ("F51d", "", Bad),
    ("F52", "userName eq anna", Bad),
    ("F52b", "userName eq 'bo'", Bad),
    ("F53", r#"userName eq "b\u006f""#, Ids(&["u2"])),
    ("F54", r#"displayName eq "a\"b""#, Ids(&[])),
    ("F55", r#"displayName co """#, Ids(&["u1", "u2"])),
    ("F56", "userName eq \"ａnna.berg@example.com\"", Ids(&["u1"])),
    ("F57", r#"x509Certificates.value gt "AA""#, Bad),
    ("F58", "title gt null", Bad),
    ("F59", r#"foo eq "x""#, Bad),
    ("F67", r#"(((userName eq "bo")))"#, Ids(&["u2"])),
    ("F69", r#"userName eq "x' OR '1'='1""#, Ids(&[])),
];

/// Where a strict client is answered differently.
const STRICT: &[(&str, &str, Want)] = &[
    ("F16", r#"active eq "True""#, Bad),
    ("F18", "active eq FALSE", Bad),
    ("F26", r#"emails[type eq "work"].value eq "anna@work.test""#, Bad),
    ("F31", r#"emails[primary eq "True"]"#, Bad),
    ("F45", r#"id eq "u1" and manager eq "u2""#, Bad),
    ("F01", r#"userName eq "anna.berg@example.com""#, Ids(&["u1"])),
];

#[track_caller]
fn check(f: &Fixture, case: &str, answer: &crate::world::Answer, want: &Want) {
    match want {
        Bad => {
            assert_eq!(answer.status, 400, "{case}: {}", answer.body);
            answer.is_error(400, "invalidFilter");
        }
        Ids(expected) => {
            assert_eq!(answer.status, 200, "{case}: {}", answer.body);
            let ids = answer.ids();
            let mut names: Vec<&str> = ids.iter().map(|id| f.name(id)).collect();
            names.sort();
            assert_eq!(names, *expected, "{case}");
            assert_eq!(answer.body["totalResults"], expected.len(), "{case}");
        }
    }
}

#[tokio::test]
async fn filters_of_a_tolerant_client() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    for (case, filter, want) in TOLERANT {
        let filter = f.fill(filter);
        check(&f, case, &world.filter("/Users", &filter).await, want);
        let body = json!({"schemas": [SEARCH], "filter": filter});
        check(&f, case, &world.post("/Users/.search", body).await, want);
    }
    let answer = world.filter("/Users", r#"userName regex "a.*""#).await;
    assert!(answer.detail().contains("regex"), "F50: {}", answer.detail());
}

#[tokio::test]
async fn filters_of_a_strict_client() {
    let world = World::of(Profile::Strict).await;
    let f = Fixture::in_world(&world).await;
    for (case, filter, want) in STRICT {
        check(&f, case, &world.filter("/Users", &f.fill(filter)).await, want);
    }
}

#[tokio::test]
async fn f61_to_f65_groups_and_all_types() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let cases: &[(&str, &str, &str, Want)] = &[
        ("F61", "/", r#"displayName sw "o""#, Ids(&["g1", "g2"])),
        ("F62", "/", "title pr", Ids(&["u1"])),
        ("F59", "/", r#"foo eq "x""#, Ids(&[])),
        ("root id", "/", r#"id eq "g1""#, Ids(&["g1"])),
        ("root name", "/", r#"userName eq "bo""#, Ids(&["u2"])),
        ("root or", "/", r#"userName eq "bo" or displayName eq "ops""#, Ids(&["g1", "u2"])),
        ("root type", "/", r#"meta.resourceType eq "Group""#, Ids(&["g1", "g2"])),
        ("root not", "/", r#"not (meta.resourceType eq "User")"#, Ids(&["g1", "g2"])),
        ("F63", "/Groups", r#"displayName eq "OPS""#, Ids(&["g1"])),
        ("F64", "/Groups", r#"members eq "u1""#, Ids(&["g1"])),
        ("F64b", "/Groups", r#"members[value eq "u1"]"#, Ids(&["g1"])),
        ("F64c", "/Groups", r#"id eq "g1" and members eq "u1""#, Ids(&["g1"])),
        ("F64d", "/Groups", r#"id eq "g1" and members[value eq "u3"]"#, Ids(&[])),
        ("F64e", "/Groups", r#"id eq "g1" and not (members.value eq "u3")"#, Ids(&["g1"])),
        ("F64f", "/Groups", r#"id eq "g2" and members.type eq "Group""#, Ids(&["g2"])),
        ("F64g", "/Groups", r#"displayName eq "ops" and members.display eq "BO""#, Ids(&["g1"])),
        ("F65", "/Groups", r#"members.value eq "U1""#, Ids(&[])),
        ("id of the other type", "/Groups", r#"id eq "u1""#, Ids(&[])),
    ];
    for (case, path, filter, want) in cases {
        check(&f, case, &world.filter(path, &f.fill(filter)).await, want);
        let body = json!({"schemas": [SEARCH], "filter": f.fill(filter)});
        let path = format!("{}/.search", path.trim_end_matches('/'));
        check(&f, case, &world.post(&path, body).await, want);
    }
}

#[tokio::test]
async fn f45_projection_of_a_reference_check() {
    let world = World::of(Profile::Entra).await;
    let f = Fixture::in_world(&world).await;
    let filter = encode(&f.fill(r#"id eq "u1" and manager eq "u2""#));
    let answer = world.get(&format!("/Users?filter={filter}&attributes=id")).await;
    assert_eq!(answer.body["Resources"], json!([{"id": f.u1, "schemas": [USER, ENT]}]));
}

/// US-005, FI-021; SE-008: sensitive in a URI, refused in a body.
#[tokio::test]
async fn f60_a_password_is_no_question() {
    let world = World::new().await;
    world.filter("/Users", r#"password eq "x""#).await.is_error(403, "sensitive");
    let body = json!({"schemas": [SEARCH], "filter": r#"password eq "x""#});
    world.post("/Users/.search", body).await.is_error(400, "invalidFilter");
}

/// RQ-003
#[tokio::test]
async fn f66_no_match_is_an_empty_list() {
    let world = World::new().await;
    let empty =
        json!({"schemas": [LIST], "totalResults": 0, "startIndex": 1, "itemsPerPage": 0, "Resources": []});
    let filter = encode(r#"userName eq "nobody""#);
    let answer = world.get(&format!("/Users?filter={filter}&startIndex=1&count=100")).await;
    assert_eq!(answer.is(200).body, empty);
    assert_eq!(world.get("/Groups").await.body, empty);
    assert_eq!(world.get("/").await.body, empty);
}

#[tokio::test]
async fn f68_ten_thousand_parentheses_are_refused() {
    let world = World::new().await;
    let filter = "(".repeat(10_000) + "title pr" + &")".repeat(10_000);
    world.filter("/Users", &filter).await.is_error(400, "invalidFilter");
    let filter = "(".repeat(2_000) + "title pr" + &")".repeat(2_000);
    world.filter("/Users", &filter).await.is_error(400, "invalidFilter");
    let filter = vec!["title pr"; 101].join(" or ");
    world.filter("/Users", &filter).await.is_error(400, "invalidFilter");
}

/// PG-001, PG-002, PG-004 to PG-006
#[tokio::test]
async fn x16_to_x18_pages() {
    let world = World::new().await;
    Fixture::in_world(&world).await;
    let page = async |query: &str| {
        let answer = world.get(&format!("/Users?{query}")).await;
        answer.is(200);
        let body = answer.body;
        (
            body["totalResults"].clone(),
            body["startIndex"].clone(),
            body["itemsPerPage"].clone(),
            body["Resources"].as_array().unwrap().len(),
        )
    };
    assert_eq!(page("startIndex=0&count=-5").await, (json!(3), json!(1), json!(0), 0), "X16");
    assert_eq!(page("count=0").await, (json!(3), json!(1), json!(0), 0));
    assert_eq!(page("startIndex=99").await, (json!(3), json!(99), json!(0), 0), "X17");
    assert_eq!(page("count=100000").await, (json!(3), json!(1), json!(3), 3), "X18");
    assert_eq!(page("startIndex=2&count=1").await, (json!(3), json!(2), json!(1), 1));
    assert_eq!(page("startIndex=3").await, (json!(3), json!(3), json!(1), 1));
    let by_lookup = encode(r#"userName eq "bo""#);
    assert_eq!(page(&format!("filter={by_lookup}&startIndex=2")).await, (json!(1), json!(2), json!(0), 0));
    assert_eq!(page("startIndex=99999999999999999999").await.0, json!(3));
    for bad in ["count=x", "count=1.5", "startIndex=", "count=1&count=2"] {
        world.get(&format!("/Users?{bad}")).await.is_error(400, "invalidValue");
    }
}

/// PG-004; CU-018: no page is larger than advertised.
#[tokio::test]
async fn x18_a_page_is_never_larger_than_advertised_and_pages_do_not_overlap() {
    let world = World::new().await;
    let users = join_all((0..450).map(async |n| world.user(&format!("user{n:04}")).await)).await;
    let first = world.get("/Users").await;
    assert_eq!(first.ids().len(), 100, "PG-003");
    assert_eq!(world.get("/Users?count=100000").await.ids().len(), 200, "X18");
    let mut seen = Vec::new();
    while seen.len() < 450 {
        seen.extend(world.get(&format!("/Users?startIndex={}&count=200", seen.len() + 1)).await.ids());
    }
    let events = world.store.read_events(0, 1_000).await.unwrap();
    let created = events.iter().filter(|e| e.kind == "user.created").map(|e| e.stream.id.to_string());
    assert_eq!(seen, created.collect::<Vec<_>>(), "a stable order: that of creation");
    assert_eq!(seen.len(), users.len());
}

#[tokio::test]
async fn x39_x40_queries_as_entra_sends_them() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    assert_eq!(world.get("/Users?filter=userName+eq+%22bo%22&").await.ids(), [f.u2.as_str()]);
    let query = "/Users?aadOptscim062020&filter=userName%20eq%20%22bo%22";
    assert_eq!(world.get(query).await.ids(), [f.u2.as_str()]);
    assert_eq!(world.get("/users/?filter=userName+eq+%22bo%22").await.ids(), [f.u2]);
}

/// RQ-007; RQ-008: the query string of a `.search` counts for nothing.
#[tokio::test]
async fn a_search_request_is_read_like_a_query() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let body = json!({"schemas": [SEARCH], "attributes": ["userName"], "startIndex": 2, "count": 1});
    let answer = world.post("/Users/.search?count=0&attributes=id", body).await;
    assert_eq!(
        answer.is(200).body,
        json!({
            "schemas": [LIST], "totalResults": 3, "startIndex": 2, "itemsPerPage": 1,
            "Resources": [{"schemas": [USER], "id": f.u2, "userName": "bo"}],
        })
    );
    let body = json!({"schemas": [SEARCH], "excludedAttributes": "meta, emails,groups", "filter": "userName eq \"bo\""});
    let answer = world.post("/.search", body).await;
    assert_eq!(answer.body["Resources"][0]["emails"], json!(null));
    for (bad, scim_type) in [
        (json!({"filter": "title pr"}), "invalidSyntax"),
        (json!({"schemas": [USER]}), "invalidSyntax"),
        (json!({"schemas": [SEARCH], "count": "ten"}), "invalidValue"),
        (json!({"schemas": [SEARCH], "count": 1.5}), "invalidValue"),
        (json!({"schemas": [SEARCH], "filter": 7}), "invalidFilter"),
        (json!({"schemas": [SEARCH], "attributes": [1]}), "invalidValue"),
        (json!({"schemas": [SEARCH], "attributes": ["a"], "excludedAttributes": ["b"]}), "invalidValue"),
        (json!([]), "invalidSyntax"),
    ] {
        world.post("/Users/.search", bad).await.is_error(400, scim_type);
    }
}

#[tokio::test]
async fn look_ups_do_not_wait_for_the_read_model() {
    use annals_api::{ApiOptions, App, Readiness, router};
    let mut world = World::new().await;
    let f = Fixture::in_world(&world).await;
    // From here on nothing is projected any more.
    world.stop_projector().await;
    let options =
        ApiOptions { search_timeout: std::time::Duration::from_millis(50), ..crate::world::options() };
    world.router = router(App::new(world.store.clone(), options, Readiness::new()));
    let id = world.user("dora").await["id"].as_str().unwrap().to_owned();
    let group = world.group("Late", &[&id]).await;
    assert_eq!(world.filter("/Users", "userName eq \"DORA\"").await.ids(), [id.as_str()]);
    assert_eq!(
        world.filter("/Users", &format!("id eq \"{id}\" and active eq true")).await.ids(),
        [id.as_str()]
    );
    assert_eq!(world.filter("/Groups", "displayName eq \"late\"").await.ids(), [group.as_str()]);
    let reference_check = format!("id eq \"{group}\" and members eq \"{id}\"");
    assert_eq!(world.filter("/Groups", &reference_check).await.ids(), [group]);
    assert_eq!(world.filter("/Users", "externalId eq \"E-1\"").await.ids(), [f.u1]);
    let waiting = world.filter("/Users", "title pr").await;
    waiting.is_error(503, "");
    assert!(waiting.header("retry-after").parse::<u32>().unwrap() >= 1);
}

#[tokio::test]
async fn what_was_written_is_found_at_once() {
    let world = World::new().await;
    for n in 0..20 {
        let body = json!({"schemas": [USER], "userName": format!("u{n}"), "title": format!("T{n}")});
        let id = world.post("/Users", body).await.id();
        assert_eq!(world.filter("/Users", &format!("title eq \"t{n}\"")).await.ids(), [id]);
    }
    let body = json!({"schemas": [GROUP], "displayName": "g"});
    world.post("/Groups", body).await.is(201);
    assert_eq!(world.get("/Groups").await.body["totalResults"], 1);
}

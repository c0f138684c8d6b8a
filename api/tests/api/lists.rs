//! Orders and cursors (scim-requirements §2.8, §2.9, §3, §7.5).

use std::time::Duration;

use annals_api::{ApiOptions, App, Readiness, router};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::TenantSettings;
use serde_json::{Value, json};

use crate::world::{Answer, ENT, Fixture, GROUP, SEARCH, USER, World, encode, options};

fn names(fixture: &Fixture, answer: &Answer) -> Vec<&'static str> {
    answer.ids().iter().map(|id| fixture.name(id)).collect()
}

/// SO-001 to SO-004; X19, X20.
#[tokio::test]
async fn so_lists_are_sorted_by_any_attribute() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    let cases: &[(&str, &[&str])] = &[
        ("sortBy=title&sortOrder=descending", &["u2", "u1", "u3"]),
        ("sortBy=title", &["u3", "u1", "u2"]),
        ("sortBy=emails.value", &["u1", "u2", "u3"]),
        ("sortBy=emails", &["u1", "u2", "u3"]),
        ("sortBy=EMAILS.VALUE&sortOrder=DESCENDING", &["u3", "u2", "u1"]),
        ("sortBy=userName&sortOrder=Ascending", &["u1", "u2", "u3"]),
        ("sortBy=externalId", &["u1", "u2", "u3"]),
        ("sortBy=active", &["u2", "u1", "u3"]),
        ("sortBy=meta.created&sortOrder=descending", &["u3", "u2", "u1"]),
        ("sortBy=meta.lastModified", &["u2", "u1", "u3"]),
        (
            "sortBy=urn%3Aietf%3Aparams%3Ascim%3Aschemas%3Acore%3A2.0%3AUser%3Aname.familyName",
            &["u1", "u2", "u3"],
        ),
        ("sortBy=employeeNumber&sortOrder=descending", &["u2", "u3", "u1"]),
        // Without sortBy the order means nothing, whatever it is.
        ("sortOrder=sideways", &["u1", "u2", "u3"]),
        ("sortBy=&sortOrder=descending", &["u1", "u2", "u3"]),
        // The second page of a sorted list.
        ("sortBy=title&startIndex=2&count=1", &["u1"]),
        ("sortBy=title&startIndex=3", &["u2"]),
        ("sortBy=title&startIndex=4", &[]),
    ];
    for (query, wanted) in cases {
        let answer = world.get(&format!("/Users?{query}")).await;
        // What ties is ordered by id, and ids of different milliseconds are in the order of creation.
        let mut wanted = wanted.to_vec();
        if query.contains("employeeNumber") {
            wanted[..2].sort_by_key(|name| std::cmp::Reverse(*name));
        }
        assert_eq!(names(&f, &answer), wanted, "{query}");
    }
    let sort = |by: &str| json!({"schemas": [SEARCH], "sortBy": by, "sortOrder": "descending"});
    let answer = world.post("/Users/.search", sort("title")).await;
    assert_eq!(names(&f, &answer), ["u2", "u1", "u3"]);
    // Over all types: what a type does not have has no value.
    let answer = world.get("/?sortBy=displayName").await;
    assert_eq!(names(&f, &answer), ["u1", "u2", "g1", "g2", "u3"]);
    let answer = world.post("/.search", sort("title")).await;
    assert_eq!(names(&f, &answer)[3..], ["u1", "u3"]);
}

/// SO-001, SO-002, SO-006.
#[tokio::test]
async fn so_a_sort_that_makes_no_sense_is_refused() {
    let world = World::new().await;
    let bad = |by: &str, order: &str| format!("/Users?sortBy={by}&sortOrder={order}");
    for (query, named) in [
        (bad("title", "up"), "sortOrder"),
        (bad("shoeSize", "ascending"), "shoeSize"),
        (bad("password", "ascending"), "password"),
        (bad("name", "ascending"), "name"),
        (bad("meta", "ascending"), "meta"),
        (bad("a%20b", "ascending"), "a b"),
        (bad(&encode(ENT), "ascending"), ENT),
        (bad("groups", "ascending"), "groups"),
        ("/Groups?sortBy=members".to_owned(), "members"),
        ("/?sortBy=shoeSize".to_owned(), "shoeSize"),
    ] {
        let answer = world.get(&query).await;
        answer.is_error(400, "invalidValue");
        assert!(answer.detail().contains(named), "{query}: {}", answer.detail());
    }
    let body = json!({"schemas": [SEARCH], "sortBy": ["title"]});
    world.post("/Users/.search", body).await.is_error(400, "invalidValue");
}

/// SO-005: without `sortBy` the order is that of creation, also among ids of one millisecond.
#[tokio::test]
async fn so_005_the_default_order_is_that_of_creation() {
    let world = World::new().await;
    let mut created = Vec::new();
    for n in 0..30 {
        created.push(world.user(&format!("user{n}")).await["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(world.get("/Users").await.ids(), created);
    assert_eq!(world.get("/Users?startIndex=11&count=5").await.ids(), created[10..15]);
    // By look-up as well: an externalId may occur more than once.
    let mut same = Vec::new();
    for n in 0..5 {
        let body = json!({"schemas": [USER], "userName": format!("same{n}"), "externalId": "S"});
        same.push(world.post("/Users", body).await.is(201).id());
    }
    let filter = encode("externalId eq \"S\"");
    assert_eq!(world.get(&format!("/Users?filter={filter}")).await.ids(), same);
    let sorted = format!("/Users?filter={filter}&sortBy=userName&sortOrder=descending");
    assert_eq!(world.get(&sorted).await.ids(), same.iter().rev().cloned().collect::<Vec<_>>());
    let mut walked = walk(&world, &format!("/Users?filter={filter}"), 2).await;
    assert_eq!(walked, same);
    walked = walk(&world, &sorted, 2).await;
    walked.reverse();
    assert_eq!(walked, same);
}

fn cursor_of(answer: &Answer) -> Option<String> {
    let cursor = answer.body["nextCursor"].as_str().map(str::to_owned);
    if let Some(cursor) = &cursor {
        let unreserved = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        assert!(cursor.chars().all(unreserved), "CU-002: {cursor}");
    }
    cursor
}

/// All ids of a list by cursor.
async fn walk(world: &World, path: &str, count: usize) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    let join = if path.contains('?') { '&' } else { '?' };
    loop {
        let answer = world.get(&format!("{path}{join}count={count}&cursor={cursor}")).await;
        let page = answer.ids();
        assert!(page.len() <= count, "CU-003");
        assert_eq!(answer.body["itemsPerPage"], page.len());
        assert_eq!(answer.body["startIndex"], Value::Null, "CU-007");
        ids.extend(page);
        match cursor_of(&answer) {
            Some(next) => cursor = next,
            None => return ids,
        }
    }
}

/// CU-001 to CU-004, CU-007, CU-009, CU-013; X21.
#[tokio::test]
async fn cu_a_list_is_walked_by_cursor() {
    let world = World::new().await;
    let f = Fixture::in_world(&world).await;
    for first in ["/Users?cursor&count=2", "/Users?cursor=&count=2"] {
        let page = world.get(first).await;
        assert_eq!(names(&f, &page), ["u1", "u2"], "{first}");
        assert_eq!(page.body["totalResults"], 3);
        let next = cursor_of(&page).expect("not the last page");
        let page = world.get(&format!("/Users?count=2&cursor={next}")).await;
        assert_eq!(names(&f, &page), ["u3"]);
        assert_eq!(page.body["totalResults"], 3, "CU-007");
        assert_eq!(cursor_of(&page), None, "CU-004");
        assert_eq!(page.body["previousCursor"], Value::Null, "CU-005");
    }
    // A page that is just full is the last one, too.
    assert_eq!(cursor_of(&world.get("/Users?cursor&count=3").await), None);
    let nothing = world.get("/Users?cursor&count=0").await;
    assert_eq!((nothing.ids().len(), &nothing.body["totalResults"]), (0, &json!(3)), "CU-003");
    assert_eq!(world.get("/Users?cursor&count=-1").await.ids().len(), 0, "CU-003");

    let body = |cursor: &str| json!({"schemas": [SEARCH], "cursor": cursor, "count": 2, "sortBy": "displayName", "attributes": ["id"]});
    let page = world.post("/.search", body("")).await;
    assert_eq!(names(&f, &page), ["u1", "u2"], "CU-013, CU-009");
    let page = world.post("/.search", body(&cursor_of(&page).unwrap())).await;
    assert_eq!(names(&f, &page), ["g1", "g2"]);
    let page = world.post("/.search", body(&cursor_of(&page).unwrap())).await;
    assert_eq!(names(&f, &page), ["u3"]);
    assert_eq!(cursor_of(&page), None);
    assert!(page.body["Resources"][0]["userName"].is_null());

    for by in ["title", "emails.type", "active", "meta.lastModified", "nickName", "id"] {
        for order in ["ascending", "descending"] {
            let path = format!("/Users?sortBy={by}&sortOrder={order}");
            assert_eq!(walk(&world, &path, 1).await, world.get(&path).await.ids(), "{path}");
        }
    }
}

/// CU-006, CU-008, CU-012, CU-015, CU-016; X22 to X25.
#[tokio::test]
async fn cu_a_cursor_goes_on_with_its_own_list_only() {
    let world = World::new().await;
    Fixture::in_world(&world).await;
    let filter = encode("active pr or title pr");
    let own = format!("/Users?filter={filter}&sortBy=userName&count=1");
    let next = cursor_of(&world.get(&format!("{own}&cursor=")).await).unwrap();
    world.get(&format!("{own}&cursor={next}")).await.is(200);
    let other = format!("/Users?filter={}&sortBy=userName&count=1", encode("active pr"));
    for path in [
        other,
        format!("/Users?filter={filter}&count=1"),
        format!("/Users?filter={filter}&sortBy=userName&sortOrder=descending&count=1"),
        format!("/Users?filter={filter}&sortBy=title&count=1"),
        format!("{own}&attributes=id"),
        format!("{own}&excludedAttributes=emails"),
        own.replace("/Users", "/Groups")
            .replace(&filter, &encode("displayName pr"))
            .replace("userName", "displayName"),
        own.replace("/Users", "/"),
    ] {
        world.get(&format!("{path}&cursor={next}")).await.is_error(400, "invalidCursor");
    }
    world
        .get(&format!("{}&cursor={next}", own.replace("count=1", "count=3")))
        .await
        .is_error(400, "invalidCount");
    world.get(&format!("{own}&cursor={next}&startIndex=1")).await.is_error(400, "invalidValue");
    world.get("/Users?startIndex=1&cursor=").await.is_error(400, "invalidValue");
    world.get("/Users?cursor&count=x").await.is_error(400, "invalidCount");
    let body = json!({"schemas": [SEARCH], "cursor": "", "count": "x"});
    world.post("/Users/.search", body).await.is_error(400, "invalidCount");
    let body = json!({"schemas": [SEARCH], "cursor": 7});
    world.post("/Users/.search", body).await.is_error(400, "invalidCursor");

    let mut tampered: Vec<char> = next.chars().collect();
    let middle = tampered.len() / 2;
    tampered[middle] = if tampered[middle] == 'A' { 'B' } else { 'A' };
    let tampered: String = tampered.into_iter().collect();
    for forged in ["x", "AAAA", "%00", "ü", tampered.as_str(), &next[..next.len() - 4], &"A".repeat(5_000)] {
        world.get(&format!("{own}&cursor={}", encode(forged))).await.is_error(400, "invalidCursor");
    }
    // Another client of the same tenant, and one of another tenant.
    for token in
        [world.connect("acme", "second", Profile::Generic).await, world.other_tenant("umbrella").await]
    {
        let answer = world.call("GET", &format!("{own}&cursor={next}")).token(&token).send().await;
        answer.is_error(400, "invalidCursor");
    }
    // A count beyond the largest page is that page, on every page.
    let first = world.get("/Users?cursor&count=100000").await;
    assert_eq!(first.ids().len(), 3, "CU-008");
}

/// CU-008, CU-016: cursors expire, and any process reads those of another.
/// CU-018: the server keeps nothing of a cursor.
#[tokio::test]
async fn cu_cursors_expire_and_belong_to_no_process() {
    let options = ApiOptions { cursor_lifetime: Duration::from_secs(60), ..options() };
    let mut world = World::with(Profile::Generic, TenantSettings::default(), options.clone()).await;
    Fixture::in_world(&world).await;
    let next = cursor_of(&world.get("/Users?cursor&count=1").await).unwrap();
    let path = format!("/Users?count=1&cursor={next}");
    world.router = router(App::new(world.store.clone(), options, Readiness::new()));
    world.clock.advance_ms(59_999);
    assert_eq!(world.get(&path).await.ids().len(), 1);
    world.clock.advance_ms(1);
    world.get(&path).await.is_error(400, "expiredCursor");
    let config = world.get("/ServiceProviderConfig").await;
    assert_eq!(config.body["pagination"]["cursorTimeout"], 60, "CU-014");
    assert_eq!(config.body["pagination"]["cursor"], true);
    assert_eq!(config.body["pagination"]["defaultPaginationMethod"], "index", "CU-011");
    assert_eq!(config.body["sort"]["supported"], true);
}

/// CU-004, SO-005: whatever happens to others between two pages, what exists throughout comes once.
#[tokio::test]
async fn cu_a_walk_neither_skips_nor_repeats() {
    let world = World::new().await;
    let mut stays = Vec::new();
    let mut goes = Vec::new();
    for n in 0..24 {
        let body =
            json!({"schemas": [USER], "userName": format!("user{n:02}"), "title": format!("t{}", n % 3)});
        let id = world.post("/Users", body).await.is(201).id();
        if n % 3 == 0 { goes.push(id) } else { stays.push(id) }
    }
    for query in [
        "",
        "sortBy=title&",
        "sortBy=userName&sortOrder=descending&",
        "sortBy=nickName&",
        "filter=title+sw+%22t%22+and+not+(title+co+%22x%22)&sortBy=title&",
    ] {
        let (mut seen, mut cursor, mut round) = (Vec::new(), String::new(), 0);
        loop {
            let answer = world.get(&format!("/Users?{query}count=4&cursor={cursor}")).await;
            seen.extend(answer.ids());
            let Some(next) = cursor_of(&answer) else { break };
            cursor = next;
            round += 1;
            // Someone comes, someone goes, someone changes.
            let name = format!("a{round:02}{}", encode(query).len());
            let body = json!({"schemas": [USER], "userName": name, "title": "t1"});
            world.post("/Users", body).await.is(201);
            if let Some(id) = goes.pop() {
                world.delete(&format!("/Users/{id}")).await.is(204);
            }
            if let Some(id) = goes.last() {
                let title = json!([{"op": "replace", "path": "title", "value": format!("t{round}")}]);
                world.patch(&format!("/Users/{id}"), title).await.is(200);
            }
        }
        for id in &stays {
            assert_eq!(seen.iter().filter(|seen| *seen == id).count(), 1, "{query}");
        }
    }
}

/// AT-007, RQ-005: groups in a sorted root query keep their own projection.
#[tokio::test]
async fn a_sorted_root_query_projects_each_type() {
    let world = World::new().await;
    world.user("anna").await;
    world.post("/Groups", json!({"schemas": [GROUP], "displayName": "g"})).await.is(201);
    let answer = world.get("/?sortBy=meta.resourceType&attributes=displayName,userName").await;
    let shown: Vec<Value> = answer.body["Resources"].as_array().unwrap().clone();
    assert_eq!((&shown[0]["displayName"], &shown[1]["userName"]), (&json!("g"), &json!("anna")));
    assert!(shown.iter().all(|resource| resource["meta"].is_null()));
}

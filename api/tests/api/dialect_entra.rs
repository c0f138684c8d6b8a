//! Microsoft Entra ID as a client: the replay fixtures of idp-quirks §2.14.

use annals_domain::scim::dialect::Profile;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};

use crate::world::{ENT, World, encode};

const BOTH: [Profile; 2] = [Profile::Entra, Profile::Generic];

async fn created(world: &World, name: &str) -> String {
    // EN-030: the probe, then the match.
    let probe = world.get("/Users?filter=userName+eq+%22f0b2-random-guid%22").await;
    assert_eq!(probe.is(200).body["totalResults"], 0);
    let answer = world
        .post(
            "/Users",
            json!({
                "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User", ENT],
                "externalId": "ines", "userName": name, "active": true, "displayName": "Ines Roth",
                "emails": [{"primary": true, "type": "work", "value": name}],
                "meta": {"resourceType": "User"},
                "name": {"formatted": "Ines Roth", "familyName": "Roth", "givenName": "Ines"},
                "roles": [], "addresses": null, "title": null, "manager": null,
            }),
        )
        .await;
    answer.is(201).id()
}

async fn group(world: &World, name: &str) -> String {
    let body = json!({
        "schemas": [
            "urn:ietf:params:scim:schemas:core:2.0:Group",
            "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group",
        ],
        "externalId": "0d6f", "displayName": name, "meta": {"resourceType": "Group"},
    });
    let answer = world.post("/Groups", body).await;
    answer.is(201);
    assert_eq!(answer.body["schemas"].as_array().unwrap().len(), 1, "EN-071");
    answer.id()
}

#[tokio::test]
async fn entra_off_lifecycle() {
    for profile in BOTH {
        let world = World::of(profile).await;
        let boss = created(&world, "boss@acme.test").await;
        let id = created(&world, "ines@acme.test").await;
        let path = format!("/Users/{id}");
        let answer = world
            .patch(
                &path,
                json!([
                    {"op": "Replace", "path": "displayName", "value": "Ines Roth-Kern"},
                    {"op": "Replace", "path": "emails[type eq \"work\"].value", "value": "ines.rk@acme.test"},
                    {"op": "Add", "path": "phoneNumbers[type eq \"mobile\"].value", "value": "+49 151 000"},
                    {"op": "Add", "path": format!("{ENT}:department"), "value": "R&D"},
                ]),
            )
            .await;
        answer.is(200);
        assert_eq!(
            answer.body["emails"],
            json!([{"primary": true, "type": "work", "value": "ines.rk@acme.test"}])
        );
        assert_eq!(answer.body["phoneNumbers"], json!([{"type": "mobile", "value": "+49 151 000"}]));
        assert_eq!(answer.body[ENT]["department"], "R&D");
        // M1, then the reference check Entra makes.
        let answer = world
            .patch(
                &path,
                json!([{"op": "Add", "path": "manager",
            "value": [{"$ref": format!("https://scim.test/scim/v2/Users/{boss}"), "value": boss}]}]),
            )
            .await;
        assert_eq!(answer.is(200).body[ENT]["manager"]["value"], boss);
        assert_eq!(answer.body[ENT]["manager"]["displayName"], "Ines Roth");
        let check = encode(&format!("id eq \"{id}\" and manager eq \"{boss}\""));
        assert_eq!(world.get(&format!("/Users?filter={check}&attributes=id")).await.ids(), [id.as_str()]);
        for (text, active) in [("False", false), ("True", true)] {
            let answer =
                world.patch(&path, json!([{"op": "Replace", "path": "active", "value": text}])).await;
            assert_eq!(answer.is(200).body["active"], active, "{profile}");
        }
        world.delete(&path).await.is(204);
        world.get(&path).await.is_error(404, "");
    }
}

#[tokio::test]
async fn entra_on_lifecycle() {
    for profile in BOTH {
        let world = World::of(profile).await;
        let id = created(&world, "ines@acme.test").await;
        let path = format!("/Users/{id}?aadOptscim062020");
        let answer = world.patch(&path, json!([
            {"op": "replace", "path": "emails[type eq \"work\"].value", "value": "ines.rk@acme.test"},
            {"op": "replace", "value": {
                "displayName": "Ines Roth-Kern", "name.givenName": "Ines", "name.familyName": "Roth-Kern",
                format!("{ENT}:employeeNumber"): "4711",
            }},
        ])).await;
        answer.is(200);
        assert_eq!(answer.body["name"]["familyName"], "Roth-Kern");
        assert_eq!(answer.body["name"]["formatted"], "Ines Roth");
        assert_eq!(answer.body[ENT]["employeeNumber"], "4711");
        let answer = world.patch(&path, json!([{"op": "replace", "path": "active", "value": false}])).await;
        assert_eq!(answer.is(200).body["active"], false);
        // EN-015: an inactive user is still found.
        assert_eq!(world.filter("/Users", "userName eq \"ines@acme.test\"").await.ids(), [id.as_str()]);
        world.delete(&path).await.is(204);
    }
}

#[tokio::test]
async fn entra_mixed_shapes_and_managers() {
    for profile in BOTH {
        let world = World::of(profile).await;
        let boss = created(&world, "boss@acme.test").await;
        let id = created(&world, "ines@acme.test").await;
        let path = format!("/Users/{id}");
        let manager = format!("{ENT}:manager");
        let set = [
            json!([{"op": "Add", "path": manager, "value": boss}]),
            json!([{"op": "Replace", "path": manager, "value": {"value": boss}}]),
            json!([{"op": "Replace", "path": format!("{manager}.value"), "value": boss}]),
        ];
        let clear = [
            json!([{"op": "Replace", "path": manager, "value": ""}]),
            json!([{"op": "Replace", "path": manager, "value": {"value": ""}}]),
            json!([{"op": "Remove", "path": manager}]),
        ];
        for (set, clear) in set.into_iter().zip(clear) {
            let answer = world.patch(&path, set.clone()).await;
            assert_eq!(answer.is(200).body[ENT]["manager"]["value"], boss, "{profile} {set}");
            let etag = answer.header("etag").to_owned();
            assert_eq!(world.patch(&path, set).await.header("etag"), etag, "EN-055");
            let answer = world.patch(&path, clear.clone()).await;
            assert_eq!(answer.is(200).body[ENT]["manager"], Value::Null, "{profile} {clear}");
        }
    }
}

#[tokio::test]
async fn entra_group_many_parallel_members() {
    let world = World::of(Profile::Entra).await;
    let group = group(&world, "Blue Team").await;
    let path = format!("/Groups/{group}");
    let ids: Vec<String> = stream::iter(0..200)
        .map(|n| {
            let world = &world;
            async move { world.user(&format!("u{n}")).await["id"].as_str().unwrap().to_owned() }
        })
        .buffered(5)
        .collect()
        .await;
    let change = |op: &'static str, id: String| {
        let (world, path) = (&world, &path);
        async move {
            world
                .patch(path, json!([{"op": op, "path": "members", "value": [{"$ref": null, "value": id}]}]))
                .await
        }
    };
    let adds = stream::iter(ids.clone()).map(|id| change("Add", id)).buffer_unordered(5);
    adds.for_each(async |answer| {
        answer.is(204);
    })
    .await;
    assert_eq!(world.members(&group).await.len(), 200);
    let removes = stream::iter(ids[..100].to_vec()).map(|id| change("Remove", id)).buffer_unordered(5);
    removes
        .for_each(async |answer| {
            answer.is(204);
        })
        .await;
    let mut left = ids[100..].to_vec();
    left.sort();
    assert_eq!(world.members(&group).await, left, "EN-072: only the listed ones went");
    let check = encode(&format!("id eq \"{group}\" and members eq \"{}\"", ids[150]));
    let answer = world.get(&format!("/Groups?filter={check}&excludedAttributes=members")).await;
    assert_eq!(answer.ids(), [group.as_str()], "EN-078a");
    assert_eq!(answer.body["Resources"][0].get("members"), None);
    let gone = encode(&format!("id eq \"{group}\" and members eq \"{}\"", ids[50]));
    assert!(world.get(&format!("/Groups?filter={gone}&attributes=id")).await.ids().is_empty());
}

#[tokio::test]
async fn entra_no_element() {
    let paths = [
        "emails[type eq \"work\"].value",
        "phoneNumbers[type eq \"work\"].value",
        "addresses[type eq \"work\"].Formatted",
    ];
    for (profile, op, status) in [
        (Profile::Entra, "Replace", 200),
        (Profile::Entra, "Add", 200),
        (Profile::Generic, "Add", 200),
        (Profile::Generic, "Replace", 400),
    ] {
        let world = World::of(profile).await;
        let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
        for path in paths {
            let answer =
                world.patch(&format!("/Users/{id}"), json!([{"op": op, "path": path, "value": "v"}])).await;
            assert_eq!(answer.status, status, "{profile} {op} {path}: {}", answer.body);
        }
        let body = world.get(&format!("/Users/{id}")).await.body;
        if status == 200 {
            assert_eq!(body["emails"], json!([{"type": "work", "value": "v"}]));
            assert_eq!(body["addresses"], json!([{"type": "work", "formatted": "v"}]));
        } else {
            assert_eq!(body["emails"], Value::Null);
        }
    }
}

#[tokio::test]
async fn entra_roles_in_three_shapes() {
    for profile in BOTH {
        let world = World::of(profile).await;
        let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
        let path = format!("/Users/{id}");
        let answer = world
            .patch(
                &path,
                json!([{"op": "Add", "path": "roles[primary eq \"True\"].value", "value": "Admin"}]),
            )
            .await;
        assert_eq!(answer.is(200).body["roles"], json!([{"primary": true, "value": "Admin"}]), "P61");
        let packed = "{\"id\":\"r1\",\"value\":\"Editor\",\"displayName\":\"Editor\"}";
        let answer =
            world.patch(&path, json!([{"op": "Add", "path": "roles", "value": [{"value": packed}]}])).await;
        assert_eq!(answer.is(200).body["roles"].as_array().unwrap().len(), 2, "P60: kept as it is");
        let list = json!([
            {"primary": false, "type": "WindowsAzureActiveDirectoryRole", "value": "Admin", "display": "Admin"},
            {"primary": false, "type": "WindowsAzureActiveDirectoryRole", "value": "Other", "displayName": "Other"},
        ]);
        let answer = world.patch(&path, json!([{"op": "replace", "path": "roles", "value": list}])).await;
        assert_eq!(answer.is(200).body["roles"][1]["display"], "Other");
    }
}

#[tokio::test]
async fn entra_groups_are_found_without_their_members_and_names_are_unique() {
    let world = World::of(Profile::Entra).await;
    let probe = world.get("/Groups?excludedAttributes=members&filter=displayName+eq+%22Blue+Team%22").await;
    assert_eq!(probe.is(200).body["totalResults"], 0, "EN-031");
    let id = group(&world, "Blue Team").await;
    let found = world.get("/Groups?excludedAttributes=members&filter=displayName+eq+%22blue+team%22").await;
    assert_eq!(found.ids(), [id.as_str()], "V13");
    world.post("/Groups", json!({"displayName": "BLUE TEAM"})).await.is_error(409, "uniqueness");
    let path = format!("/Groups/{id}");
    world.patch(&path, json!([{"op": "replace", "value": {"externalId": "e2"}}])).await.is(204);
    world
        .patch(&path, json!([{"op": "Replace", "path": "displayName", "value": "Blue Team 2"}]))
        .await
        .is(204);
    let got = world.get(&format!("{path}?excludedAttributes=members")).await;
    assert_eq!(
        (got.body["displayName"].as_str(), got.body["externalId"].as_str()),
        (Some("Blue Team 2"), Some("e2"))
    );
    world.delete(&path).await.is(204);
    world.delete(&path).await.is_error(404, "");
}

#[tokio::test]
async fn entra_headers() {
    let world = World::of(Profile::Entra).await;
    let id = created(&world, "ines@acme.test").await;
    // The harness sends no User-Agent and no Accept.
    let uri = "/t/acme/scim/v2//Users/?aadOptscim062020&filter=userName+eq+%22ines%40acme.test%22";
    let answer = world.get(uri).await;
    assert_eq!(answer.ids(), [id]);
    assert_eq!(answer.header("content-type"), "application/scim+json");
}

//! Schemas and resource types that a tenant defines while the service runs (decision 0007).

use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use annals_domain::event::{Body, Event};
use annals_domain::ids::{ResourceId, TenantId};
use annals_store::StoreError;
use serde_json::{Value, json};

use crate::world::{Answer, USER, World, actor};

const BADGE: &str = "urn:example:schemas:extension:badge:2.0:User";
const DEVICE: &str = "urn:example:schemas:2.0:Device";
const BULK: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";

/// An extension with every type there is.
fn badge() -> Value {
    json!({
        "id": BADGE, "name": "Badge", "description": "What opens doors",
        "attributes": [
            {"name": "number", "type": "string", "caseExact": true, "uniqueness": "server", "x-personal": true},
            {"name": "level", "type": "integer"},
            {"name": "ratio", "type": "decimal"},
            {"name": "valid", "type": "boolean"},
            {"name": "issued", "type": "dateTime"},
            {"name": "photo", "type": "binary"},
            {"name": "page", "type": "reference", "referenceTypes": ["external"]},
            {"name": "site", "type": "string", "canonicalValues": ["north", "south"], "x-closed": true},
            {"name": "zones", "type": "string", "multiValued": true},
            {"name": "batch", "type": "string", "mutability": "immutable"},
            {"name": "pin", "type": "string", "returned": "never"},
            {"name": "memo", "type": "string", "returned": "request"},
            {"name": "printer", "type": "complex", "subAttributes": [
                {"name": "model", "type": "string"}, {"name": "ink", "type": "integer"}]},
            {"name": "doors", "type": "complex", "multiValued": true, "subAttributes": [
                {"name": "value", "type": "string"}, {"name": "type", "type": "string"},
                {"name": "primary", "type": "boolean"}]},
            {"name": "deputy", "type": "complex", "subAttributes": [
                {"name": "value", "type": "string"},
                {"name": "$ref", "type": "reference", "referenceTypes": ["User"]}]},
        ],
    })
}

fn device() -> Value {
    json!({
        "id": DEVICE, "name": "Device",
        "attributes": [
            {"name": "label", "required": true},
            {"name": "serial", "uniqueness": "global", "caseExact": false},
            {"name": "location", "x-personal": true},
            {"name": "ports", "type": "complex", "multiValued": true, "subAttributes": [
                {"name": "value", "type": "integer"}, {"name": "type"}]},
        ],
    })
}

async fn put_schema(world: &World, schema: Value) -> Result<(), StoreError> {
    let schema = SchemaDefinition::read(&schema)?;
    world.store.put_schema(&world.tenant, schema, actor()).await.map(drop)
}

async fn put_type(world: &World, resource_type: Value) -> Result<(), StoreError> {
    let resource_type = ResourceTypeDefinition::read(&resource_type)?;
    world.store.put_resource_type(&world.tenant, resource_type, actor()).await.map(drop)
}

/// Users with badges.
async fn with_badges() -> World {
    let world = World::new().await;
    put_schema(&world, badge()).await.unwrap();
    put_type(&world, json!({"name": "User", "schemaExtensions": [{"schema": BADGE, "required": false}]}))
        .await
        .unwrap();
    world
}

/// Devices.
async fn with_devices() -> World {
    let world = World::new().await;
    put_schema(&world, device()).await.unwrap();
    put_type(&world, json!({"name": "Device", "endpoint": "/Devices", "schema": DEVICE})).await.unwrap();
    world
}

fn anna(deputy: &str) -> Value {
    json!({
        "schemas": [USER, BADGE], "userName": "anna",
        BADGE: {
            "number": "B-1", "level": 3, "ratio": 0.5, "valid": true, "issued": "2026-01-02T03:04:05Z",
            "photo": "AAEC", "page": "https://badge.test/1", "site": "north", "zones": ["Lab", "Roof"],
            "batch": "x1", "pin": "4711", "memo": "left-handed", "printer": {"model": "Zebra", "ink": 7},
            "doors": [{"value": "d1", "type": "main", "primary": true}, {"value": "d2", "type": "side"}],
            "deputy": {"value": deputy},
        },
    })
}

async fn device_of(world: &World, label: &str, serial: &str) -> Answer {
    let body = json!({"schemas": [DEVICE], "label": label, "serial": serial, "location": "Bö’s desk"});
    world.post("/Devices", body).await
}

/// An extension of a core type is served, stored, and shown where it has values (CH-009 for `memo`).
#[tokio::test]
async fn an_extension_is_in_force_at_once() {
    let world = World::new().await;
    let refused =
        world.post("/Users", json!({"schemas": [USER], "userName": "x", BADGE: {"level": 1}})).await;
    assert_eq!(refused.body.get(BADGE), None, "{}", refused.body);
    let world = with_badges().await;

    let served = world.get(&format!("/Schemas/{BADGE}")).await;
    let names: Vec<&str> = served.is(200).body["attributes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 15, "{names:?}");
    assert_eq!(served.body["attributes"][0]["uniqueness"], "server");
    let listed = world.get("/Schemas").await;
    assert!(listed.body["Resources"].as_array().unwrap().iter().any(|s| s["id"] == BADGE));
    let users = world.get("/ResourceTypes/User").await;
    let extensions = users.is(200).body["schemaExtensions"].as_array().unwrap().clone();
    assert!(extensions.contains(&json!({"schema": BADGE, "required": false})), "{extensions:?}");

    let bo = world.user("bo").await;
    let bo = bo["id"].as_str().unwrap();
    let made = world.post("/Users", anna(bo)).await;
    made.is(201);
    let shown = &made.body[BADGE];
    assert_eq!(made.body["schemas"], json!([USER, BADGE]));
    assert_eq!(shown["deputy"]["value"], json!(bo));
    assert_eq!(shown["deputy"]["$ref"], json!(format!("https://scim.test/scim/v2/Users/{bo}")), "{shown}");
    assert_eq!(shown.get("pin"), None, "returned: never");
    assert_eq!(shown["memo"], "left-handed", "CH-009: returned on request, or to who wrote it");
    let got = world.get(&format!("/Users/{}", made.id())).await;
    assert_eq!(got.is(200).body[BADGE].get("memo"), None, "returned: request");
    let asked = world.get(&format!("/Users/{}?attributes={BADGE}:memo,{BADGE}:pin", made.id())).await;
    assert_eq!(asked.is(200).body[BADGE], json!({"memo": "left-handed"}));
}

/// Every operator on every type of a tenant's own attribute.
#[tokio::test]
async fn own_attributes_are_filtered_and_sorted_by() {
    let world = with_badges().await;
    let bo = world.post("/Users", json!({"schemas": [USER, BADGE], "userName": "bo", BADGE: {
        "number": "b-1", "level": -4, "ratio": 12.25, "valid": false, "issued": "2025-01-02T03:04:05+01:00",
        "zones": ["Cellar"], "doors": [{"value": "d2", "type": "main"}], "printer": {"ink": 70},
    }}))
    .await;
    let bo = bo.is(201).id();
    let anna = world.post("/Users", anna(&bo)).await.is(201).id();
    let cem = world.user("cem").await["id"].as_str().unwrap().to_owned();
    let name = |id: &String| match id {
        id if *id == anna => "anna",
        id if *id == bo => "bo",
        id if *id == cem => "cem",
        _ => "?",
    };
    for (filter, expected) in [
        (r#"number eq "B-1""#, "anna"),
        (r#"number eq "b-1""#, "bo"),
        (r#"number ne "B-1""#, "bo cem"),
        (r#"number sw "B""#, "anna"),
        (r#"number co "-""#, "anna bo"),
        (r#"number ew "1""#, "anna bo"),
        ("number pr", "anna bo"),
        ("not (number pr)", "cem"),
        ("level eq 3", "anna"),
        ("level gt -5", "anna bo"),
        ("level ge 3", "anna"),
        ("level lt 0", "bo"),
        ("level le -4", "bo"),
        ("ratio gt 0.5", "bo"),
        ("ratio eq 12.25", "bo"),
        ("valid eq true", "anna"),
        ("valid ne true", "bo cem"),
        (r#"issued gt "2025-06-01T00:00:00Z""#, "anna"),
        (r#"issued eq "2025-01-02T02:04:05Z""#, "bo"),
        (r#"photo eq "AAEC""#, "anna"),
        (r#"page sw "https://badge.test""#, "anna"),
        (r#"site eq "NORTH""#, "anna"),
        (r#"zones eq "lab""#, "anna"),
        (r#"zones co "ell""#, "bo"),
        (r#"printer.model eq "zebra""#, "anna"),
        ("printer.ink ge 7", "anna bo"),
        ("printer pr", "anna bo"),
        (r#"doors.type eq "side""#, "anna"),
        (r#"doors[value eq "d2" and type eq "main"]"#, "bo"),
        ("doors[primary eq true]", "anna"),
    ] {
        // The attribute is the first word, behind `not (` at times.
        let full = match filter.strip_prefix("not (") {
            Some(inner) => format!("not ({BADGE}:{inner}"),
            None => format!("{BADGE}:{filter}"),
        };
        let mut found: Vec<&str> = world.filter("/Users", &full).await.ids().iter().map(name).collect();
        found.sort_unstable();
        assert_eq!(found.join(" "), expected, "{full}");
    }
    // A reference to a resource compares by its id.
    let deputy = format!(r#"{BADGE}:deputy.value eq "{bo}""#);
    assert_eq!(world.filter("/Users", &deputy).await.ids(), [anna.as_str()]);
    for (by, order, expected) in [
        ("level", "ascending", "bo anna cem"),
        ("level", "descending", "cem anna bo"),
        ("ratio", "ascending", "anna bo cem"),
        ("issued", "ascending", "bo anna cem"),
        ("printer.ink", "ascending", "anna bo cem"),
    ] {
        let page = world.get(&format!("/Users?sortBy={BADGE}:{by}&sortOrder={order}")).await;
        let found: Vec<&str> = page.ids().iter().map(name).collect();
        assert_eq!(found.join(" "), expected, "{by} {order}");
    }
    // What a type does not have is an error.
    world.filter("/Users", &format!(r#"{BADGE}:nope eq "x""#)).await.is_error(400, "invalidFilter");
}

/// PATCH and PUT know an own attribute's characteristics.
#[tokio::test]
async fn own_attributes_are_patched_and_replaced() {
    let world = with_badges().await;
    let bo = world.user("bo").await["id"].as_str().unwrap().to_owned();
    let made = world.post("/Users", anna(&bo)).await;
    let path = format!("/Users/{}", made.is(201).id());
    let at = |name: &str| format!("{BADGE}:{name}");
    let patched = world
        .patch(
            &path,
            json!([
                {"op": "replace", "path": at("level"), "value": 4},
                {"op": "add", "path": at("zones"), "value": ["Yard"]},
                {"op": "remove", "path": at(r#"doors[type eq "side"]"#)},
                {"op": "replace", "path": at("printer.ink"), "value": 1},
                {"op": "remove", "path": at("deputy")},
                {"op": "add", "value": {BADGE: {"ratio": 0.25}}},
            ]),
        )
        .await;
    let shown = &patched.is(200).body[BADGE];
    assert_eq!(shown["level"], 4);
    assert_eq!(shown["zones"], json!(["Lab", "Roof", "Yard"]));
    assert_eq!(shown["doors"], json!([{"value": "d1", "type": "main", "primary": true}]));
    assert_eq!(shown["printer"], json!({"model": "Zebra", "ink": 1}));
    assert_eq!(shown["ratio"], 0.25);
    assert_eq!(shown.get("deputy"), None);
    for (operation, scim_type, attribute) in [
        (json!({"op": "replace", "path": at("level"), "value": "high"}), "invalidValue", "level"),
        (json!({"op": "replace", "path": at("level"), "value": 1.5}), "invalidValue", "level"),
        (json!({"op": "replace", "path": at("site"), "value": "west"}), "invalidValue", "site"),
        (json!({"op": "replace", "path": at("issued"), "value": "yesterday"}), "invalidValue", "issued"),
        (json!({"op": "replace", "path": at("photo"), "value": "%"}), "invalidValue", "photo"),
        (json!({"op": "replace", "path": at("batch"), "value": "x2"}), "mutability", "batch"),
    ] {
        let answer = world.patch(&path, json!([operation])).await;
        assert!(answer.is_error(400, scim_type).detail().contains(attribute), "{}", answer.body);
    }
    // PUT clears what it leaves out, but what is immutable.
    let put =
        world.put(&path, json!({"schemas": [USER, BADGE], "userName": "anna", BADGE: {"level": 5}})).await;
    assert_eq!(put.is(200).body[BADGE], json!({"level": 5, "batch": "x1"}));
    // The read model follows: what went is not found, what came is.
    let found = world.filter("/Users", &format!("{BADGE}:level eq 5")).await.ids();
    assert_eq!(found, [made.id()]);
    assert!(world.filter("/Users", &format!(r#"{BADGE}:zones pr"#)).await.ids().is_empty());
    world.delete(&path).await.is(204);
    assert!(world.filter("/Users", &format!("{BADGE}:level eq 5")).await.ids().is_empty());
}

/// A unique attribute is an exclusive look-up: 409 for whoever comes second, free after a delete.
#[tokio::test]
async fn a_unique_attribute_is_unique_in_its_type() {
    let world = with_devices().await;
    let first = device_of(&world, "one", "S-1").await;
    first.is(201);
    let taken = device_of(&world, "two", "s-1").await;
    assert!(taken.is_error(409, "uniqueness").detail().contains("serial"), "{}", taken.body);
    let second = device_of(&world, "two", "S-2").await;
    let path = format!("/Devices/{}", second.is(201).id());
    let operations = json!([{"op": "replace", "path": "serial", "value": "S-1"}]);
    world.patch(&path, operations.clone()).await.is_error(409, "uniqueness");
    let body = json!({"schemas": [DEVICE], "label": "two", "serial": "S-1"});
    world.put(&path, body.clone()).await.is_error(409, "uniqueness");
    // One that keeps its value is not its own rival.
    world.put(&path, json!({"schemas": [DEVICE], "label": "zwei", "serial": "S-2"})).await.is(200);
    world.delete(&format!("/Devices/{}", first.id())).await.is(204);
    world.patch(&path, operations).await.is(200);
    let (tenant, id) = (&world.tenant, first.id());
    assert!(world.store.state(tenant, &ResourceId::from_text(&id)).await.unwrap().unwrap().deleted);
    assert_eq!(world.store.verify().await.unwrap().findings, []);
}

/// A whole resource type, through every method.
#[tokio::test]
async fn a_resource_type_of_a_tenant_has_everything_that_users_have() {
    let world = with_devices().await;
    let types = world.get("/ResourceTypes").await;
    assert!(types.body["Resources"].as_array().unwrap().iter().any(|t| t["endpoint"] == "/Devices"));
    let missing = world.post("/Devices", json!({"schemas": [DEVICE], "serial": "S-1"})).await;
    assert!(missing.is_error(400, "invalidValue").detail().contains("label"), "{}", missing.body);

    let made = device_of(&world, "Kiosk", "S-1").await;
    let (id, path) = (made.is(201).id(), format!("/Devices/{}", made.id()));
    assert_eq!(made.body["meta"]["resourceType"], "Device");
    assert_eq!(made.header("location"), format!("https://scim.test/scim/v2{path}"));
    world.get(&path).await.is(200);
    world.call("GET", &path).header("if-none-match", made.header("etag")).send().await.is(304);
    world.get(&format!("/Users/{id}")).await.is_error(404, "");
    assert_eq!(world.filter("/Devices", r#"label eq "kiosk""#).await.ids(), [id.as_str()]);
    assert_eq!(world.filter("/Devices", r#"serial eq "s-1" and location pr"#).await.ids(), [id.as_str()]);
    let ports =
        json!([{"op": "add", "path": "ports", "value": [{"value": 22, "type": "ssh"}, {"value": 80}]}]);
    let patched = world.patch(&path, ports).await;
    assert_eq!(patched.is(200).body["ports"][0], json!({"value": 22, "type": "ssh"}));
    assert_eq!(world.filter("/Devices", "ports[value gt 79]").await.ids(), [id.as_str()]);
    let stale = json!({"schemas": [DEVICE], "label": "Other"});
    world.call("PUT", &path).header("if-match", "W/\"1\"").json(&stale).send().await.is_error(412, "");

    // Bulk, with a reference to a user that the same request makes.
    let bulk = json!({"schemas": [BULK], "Operations": [
        {"method": "POST", "path": "/Devices", "bulkId": "d", "data": {"schemas": [DEVICE], "label": "b", "serial": "S-9"}},
        {"method": "POST", "path": "/Devices", "bulkId": "e", "data": {"schemas": [DEVICE], "label": "c", "serial": "s-9"}},
        {"method": "PUT", "path": path, "data": {"schemas": [DEVICE], "label": "Kiosk 2", "serial": "S-1"}},
        {"method": "DELETE", "path": "/Devices/bulkId:d"},
    ]});
    let answer = world.post("/Bulk", bulk).await;
    let statuses: Vec<&str> = answer.is(200).body["Operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["201", "409", "200", "204"], "{}", answer.body);
    assert_eq!(world.get(&path).await.body["label"], "Kiosk 2");
    // At the root, beside users.
    world.user("anna").await;
    assert_eq!(world.filter("/", r#"meta.resourceType eq "Device""#).await.ids(), [id]);
    world.delete(&path).await.is(204);
    world.get(&path).await.is_error(404, "");

    let events = world.store.read_events(0, 500).await.unwrap();
    let kinds: Vec<&str> =
        events.iter().map(|e| e.kind.as_str()).filter(|k| k.starts_with("device.")).collect();
    let expected = [
        "device.created",
        "device.changed",
        "device.created",
        "device.changed",
        "device.deleted",
        "device.deleted",
    ];
    assert_eq!(kinds, expected);
    let kinds: Vec<&str> = events.iter().map(|e| e.kind.as_str()).collect();
    assert!(kinds.contains(&"schema.created") && kinds.contains(&"resourcetype.created"), "{kinds:?}");
    assert_eq!(world.store.verify().await.unwrap().findings, []);
}

/// D9: what is declared personal stands nowhere readable in the journal, and can be erased.
#[tokio::test]
async fn personal_values_are_sealed_and_erasable() {
    let world = with_devices().await;
    let secret = "under the plum tree";
    let body = json!({"schemas": [DEVICE], "label": "Kiosk", "serial": "S-1", "location": secret});
    let id = ResourceId::from_text(&world.post("/Devices", body).await.is(201).id());
    // The read model has it, for queries; the journal does not.
    assert_eq!(world.filter("/Devices", r#"location co "plum""#).await.ids(), [id.to_string()]);
    let journal = world.journal_bytes();
    let finds = |text: &str| journal.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(finds("device.created") && finds(DEVICE), "it is the journal");
    assert!(!finds(secret) && !finds("Kiosk"));

    world.store.erase(&world.tenant, &id, actor()).await.unwrap();
    world.get(&format!("/Devices/{id}")).await.is_error(404, "");
    let history = world.store.read_stream(&world.tenant, &id, 0, 10).await.unwrap();
    assert!(matches!(history[0].body, Body::Erased), "{:?}", history[0].body);
    assert!(matches!(history.last().unwrap().body, Body::Open(Event::Erased)));
    assert!(world.filter("/Devices", r#"location co "plum""#).await.ids().is_empty());
    assert_eq!(world.store.verify().await.unwrap().findings, []);
}

/// A type that becomes personal by an extension: what is written from then on is sealed.
#[tokio::test]
async fn groups_become_personal_with_a_personal_extension() {
    let world = World::new().await;
    let group = world.group("Ops", &[]).await;
    let urn = "urn:example:ext:Contact";
    put_schema(&world, json!({"id": urn, "attributes": [{"name": "phone", "x-personal": true}]}))
        .await
        .unwrap();
    let with = json!({"name": "Group", "schemaExtensions": [{"schema": urn, "required": false}]});
    put_type(&world, with).await.unwrap();
    let phone = json!([{"op": "add", "path": format!("{urn}:phone"), "value": "+49 30 901820"}]);
    world.patch(&format!("/Groups/{group}"), phone).await.is(204);
    let shown = world.get(&format!("/Groups/{group}")).await;
    assert_eq!(shown.is(200).body[urn]["phone"], "+49 30 901820");
    let journal = world.journal_bytes();
    assert!(!journal.windows(9).any(|w| w == b"30 901820"));
    // Out of the type again once no group has it; the group stays readable.
    let without = json!({"name": "Group"});
    let refused = put_type(&world, without.clone()).await;
    assert!(matches!(&refused, Err(StoreError::Refused(e)) if e.status == 409), "{refused:?}");
    let gone = json!([{"op": "remove", "path": format!("{urn}:phone")}]);
    world.patch(&format!("/Groups/{group}"), gone).await.is(204);
    put_type(&world, without).await.unwrap();
    world
        .patch(
            &format!("/Groups/{group}"),
            json!([{"op": "replace", "path": "displayName", "value": "Oops"}]),
        )
        .await;
    assert_eq!(world.get(&format!("/Groups/{group}")).await.is(200).body["displayName"], "Oops");
    assert_eq!(world.store.verify().await.unwrap().findings, []);
}

/// Definitions are a tenant's own.
#[tokio::test]
async fn another_tenant_sees_nothing_of_it() {
    let world = with_devices().await;
    let other = world.other_tenant("globex").await;
    let of = |path: &str| world.call("GET", path).token(&other).send();
    of("/Devices").await.is_error(404, "");
    of(&format!("/Schemas/{DEVICE}")).await.is_error(404, "");
    of("/ResourceTypes/Device").await.is_error(404, "");
    assert!(!of("/Schemas").await.body.to_string().contains(DEVICE));
    // It may have one of the same name, with other attributes.
    let tenant = TenantId::new("globex").unwrap();
    let own = json!({"id": DEVICE, "attributes": [{"name": "colour"}]});
    world.store.put_schema(&tenant, SchemaDefinition::read(&own).unwrap(), actor()).await.unwrap();
    let served = of(&format!("/Schemas/{DEVICE}")).await;
    assert_eq!(served.is(200).body["attributes"][0]["name"], "colour");
    let ours = world.get(&format!("/Schemas/{DEVICE}")).await;
    assert_eq!(ours.body["attributes"][0]["name"], "label");
}

/// A definition may grow at any time; what would make resources wrong waits until there are none such.
#[tokio::test]
async fn incompatible_changes_are_refused_while_in_use() {
    let world = with_devices().await;
    let made = device_of(&world, "one", "S-1").await;
    let path = format!("/Devices/{}", made.is(201).id());
    let change = |edit: fn(&mut Vec<Value>)| {
        let mut schema = device();
        let attributes = schema["attributes"].as_array_mut().unwrap();
        attributes.push(json!({"name": "colour"}));
        edit(attributes);
        schema
    };
    // Growing: at once in force for what is there.
    let grown = change(|_| {});
    put_schema(&world, grown.clone()).await.unwrap();
    world.patch(&path, json!([{"op": "add", "path": "colour", "value": "red"}])).await.is(200);
    assert_eq!(world.filter("/Devices", r#"colour eq "RED""#).await.ids(), [made.id()]);
    for (what, schema) in [
        ("colour", device()),
        ("serial", change(|a| a[1] = json!({"name": "serial", "caseExact": false}))),
        ("label", change(|a| a[0] = json!({"name": "label", "type": "boolean"}))),
        ("owner", change(|a| a.push(json!({"name": "owner", "required": true})))),
        ("serial", change(|a| a[1]["caseExact"] = json!(true))),
    ] {
        match put_schema(&world, schema).await {
            Err(StoreError::Refused(error)) => {
                assert_eq!(error.status, 409, "{error}");
                assert!(error.detail.starts_with(what), "{error}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    let retired = world.store.retire_schema(&world.tenant, DEVICE, actor()).await;
    assert!(matches!(retired, Err(StoreError::Refused(e)) if e.status == 409));
    let retired = world.store.retire_resource_type(&world.tenant, "Device", actor()).await;
    assert!(matches!(retired, Err(StoreError::Refused(e)) if e.status == 409));
    // No device has ports: they may go.
    let mut smaller = grown.clone();
    smaller["attributes"].as_array_mut().unwrap().retain(|a| a["name"] != "ports");
    put_schema(&world, smaller).await.unwrap();
    world.filter("/Devices", "ports.value pr").await.is_error(400, "invalidFilter");
    // Without devices everything may; retired is not served, and comes back.
    world.delete(&path).await.is(204);
    world.store.retire_resource_type(&world.tenant, "Device", actor()).await.unwrap();
    world.get("/Devices").await.is_error(404, "");
    world.get("/ResourceTypes/Device").await.is_error(404, "");
    world.store.retire_schema(&world.tenant, DEVICE, actor()).await.unwrap();
    world.get(&format!("/Schemas/{DEVICE}")).await.is_error(404, "");
    put_schema(&world, device()).await.unwrap();
    put_type(&world, json!({"name": "Device", "endpoint": "/Devices", "schema": DEVICE})).await.unwrap();
    device_of(&world, "one", "S-1").await.is(201);
    assert_eq!(world.store.verify().await.unwrap().findings, []);
}

/// Over HTTP: put, versions, problems that name the attribute, retired; only by who administers.
#[tokio::test]
async fn administrators_define_over_http() {
    let world = World::new().await;
    let operator = world.operator().await;
    let (schema, rt) = (format!("/tenants/acme/schemas/{DEVICE}"), "/tenants/acme/resource-types/Device");
    let devices = json!({"name": "Device", "endpoint": "/Devices", "schema": DEVICE});
    let ask = |method: &'static str, path: &str, body: Value| {
        let (world, operator, path) = (&world, &operator, path.to_owned());
        async move { world.admin(operator, method, &path, body).await }
    };
    let early = ask("PUT", rt, devices.clone()).await;
    assert!(early.is_problem(400).detail().contains(DEVICE), "{}", early.body);
    let made = ask("PUT", &schema, device()).await;
    made.is(201);
    assert_eq!((made.header("etag"), &made.body["version"]), ("\"1\"", &json!(1)));
    ask("PUT", rt, devices.clone()).await.is(201);
    device_of(&world, "Kiosk", "S-1").await.is(201);

    // What was read can be sent back, and changes nothing.
    let read = ask("GET", &schema, Value::Null).await;
    assert_eq!(ask("PUT", &schema, read.is(200).body.clone()).await.is(200).body["version"], 1);
    let mut wrong = device();
    wrong["attributes"][1]["type"] = json!("text");
    let refused = ask("PUT", &schema, wrong).await;
    assert!(refused.is_problem(400).detail().starts_with("serial.type: "), "{}", refused.body);
    let mut smaller = device();
    smaller["attributes"].as_array_mut().unwrap().remove(1);
    let refused = ask("PUT", &schema, smaller).await;
    assert!(refused.is_problem(409).detail().starts_with("serial: "), "{}", refused.body);
    let mut wider = device();
    wider["attributes"].as_array_mut().unwrap().push(json!({"name": "colour"}));
    let path = format!("/admin/v1{schema}");
    let put = |version: &'static str| {
        let call = world.call("PUT", &path).token(&operator).header("if-match", version);
        call.header("content-type", "application/json").raw(wider.to_string()).send()
    };
    put("\"7\"").await.is_problem(412);
    assert_eq!(put("\"1\"").await.is(200).body["version"], 2);
    ask("PUT", &format!("{schema}x"), device()).await.is_problem(400);
    ask("DELETE", rt, Value::Null).await.is_problem(409);
    ask("DELETE", "/tenants/acme/resource-types/User", Value::Null).await.is_problem(400);
    ask("GET", "/tenants/acme/resource-types/Nope", Value::Null).await.is_problem(404);
    let listed = ask("GET", "/tenants/acme/resource-types?limit=1", Value::Null).await;
    assert_eq!(listed.is(200).body["items"][0]["endpoint"], "/Devices");
    let unused = "/tenants/acme/schemas/urn:example:Unused";
    ask("PUT", unused, json!({"id": "urn:example:Unused", "attributes": [{"name": "a"}]})).await.is(201);
    ask("DELETE", unused, Value::Null).await.is(204);
    assert_eq!(ask("GET", unused, Value::Null).await.is(200).body["retired"], true);
    // A token of a connection is no administrator's.
    world.admin(&world.token, "PUT", &schema, device()).await.is_problem(403);
}

/// A deleted resource leaves no reference in an own attribute.
#[tokio::test]
async fn references_of_own_attributes_end_with_what_they_refer_to() {
    let world = with_badges().await;
    let bo = world.user("bo").await["id"].as_str().unwrap().to_owned();
    let made = world.post("/Users", anna(&bo)).await;
    let path = format!("/Users/{}", made.is(201).id());
    world.delete(&format!("/Users/{bo}")).await.is(204);
    while world.store.janitor_step(10).await.unwrap() > 0 {}
    let shown = world.get(&path).await;
    assert_eq!(shown.is(200).body[BADGE].get("deputy"), None, "{}", shown.body);
    assert_eq!(world.store.verify().await.unwrap().findings, []);
}

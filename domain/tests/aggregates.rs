//! Given past events, when a command, then new events or an error: what the aggregates decide.

use std::sync::Arc;

use annals_domain::event::Event;
use annals_domain::ids::ResourceId;
use annals_domain::resource::{Command, Group, Services, User, member_events};
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::patch::parse_request;
use annals_domain::scim::resource::{Change, Document};
use annals_domain::scim::schema::Registry;
use annals_domain::upcast::{SCHEMA_VERSION, upcast};
use cqrs_es::Aggregate;
use cqrs_es::test::{AggregateTestExecutor, TestFramework};
use serde_json::{Value, json};

fn services(resource_type: &str) -> Services {
    let registry = Registry::standard();
    let resource_type = Arc::clone(registry.resource_type(resource_type).unwrap());
    Services { registry, resource_type }
}

fn id() -> ResourceId {
    ResourceId::from_text("e1")
}

fn document(value: Value) -> Document {
    serde_json::from_value(value).unwrap()
}

fn created(value: Value) -> Event {
    Event::Created { document: document(value) }
}

fn change(path: &str, old: Value, new: Value) -> Change {
    let some = |v: Value| (!v.is_null()).then_some(v);
    Change { path: path.to_owned(), old: some(old), new: some(new) }
}

fn given_user(events: Vec<Event>) -> AggregateTestExecutor<User> {
    TestFramework::<User>::with(services("User")).given(events)
}

fn given_group(events: Vec<Event>) -> AggregateTestExecutor<Group> {
    TestFramework::<Group>::with(services("Group")).given(events)
}

fn create(body: Value) -> Command {
    Command::Create { id: id(), body, client: Profile::Generic.into() }
}

fn put(body: Value) -> Command {
    Command::Replace { id: id(), body, client: Profile::Generic.into() }
}

fn patch(operations: Value) -> Command {
    let body =
        json!({ "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": operations });
    let operations = parse_request(&body, &mut Dialect::new(Profile::Entra)).unwrap();
    Command::Patch { id: id(), operations, client: Profile::Entra.into() }
}

fn bo() -> Event {
    created(json!({ "userName": "bo", "active": true, "title": "Cook" }))
}

#[test]
fn a_user_is_created_active_and_without_its_password() {
    TestFramework::<User>::with(services("User"))
        .given_no_previous_events()
        .when(create(json!({ "userName": "bo", "password": "s3cret", "id": "hack", "groups": [] })))
        .then_expect_events(vec![created(json!({ "userName": "bo", "active": true })), Event::PasswordSet]);
}

#[test]
fn a_user_without_a_name_is_refused() {
    let result = TestFramework::<User>::with(services("User"))
        .given_no_previous_events()
        .when(create(json!({ "displayName": "Bo" })))
        .inspect_result();
    let error = result.unwrap_err();
    assert_eq!(error.status, 400);
    assert!(error.detail.contains("userName"), "{}", error.detail);
}

#[test]
fn a_change_has_old_and_new_values() {
    given_user(vec![bo()])
        .when(patch(json!([{ "op": "Replace", "path": "title", "value": "Chef" }])))
        .then_expect_events(vec![Event::Changed {
            changes: vec![change("title", json!("Cook"), json!("Chef"))],
        }]);
}

#[test]
fn a_no_op_makes_no_event() {
    given_user(vec![bo()])
        .when(patch(json!([
            { "op": "replace", "path": "title", "value": "Chef" },
            { "op": "replace", "path": "title", "value": "Cook" },
        ])))
        .then_expect_events(vec![]);
    given_user(vec![bo()]).when(put(json!({ "userName": "bo", "title": "Cook" }))).then_expect_events(vec![]);
}

#[test]
fn entras_string_false_deactivates_and_says_so() {
    given_user(vec![bo()])
        .when(patch(json!([{ "op": "Replace", "path": "active", "value": "False" }])))
        .then_expect_events(vec![Event::Deactivated {
            changes: vec![change("active", json!(true), json!(false))],
        }]);
    let off = Event::Deactivated { changes: vec![change("active", json!(true), json!(false))] };
    given_user(vec![bo()])
        .and(vec![off])
        .when(patch(json!([{ "op": "Replace", "path": "active", "value": "True" }])))
        .then_expect_events(vec![Event::Activated {
            changes: vec![change("active", json!(false), json!(true))],
        }]);
}

#[test]
fn one_request_may_mean_several_events() {
    given_user(vec![bo()])
        .when(patch(json!([
            { "op": "add", "path": "roles", "value": [{ "value": "admin" }] },
            { "op": "remove", "path": "title" },
            { "op": "replace", "path": "active", "value": false },
        ])))
        .then_expect_events(vec![
            Event::Changed { changes: vec![change("title", json!("Cook"), json!(null))] },
            Event::RolesChanged {
                changes: vec![change("roles", json!(null), json!([{ "value": "admin" }]))],
            },
            Event::Deactivated { changes: vec![change("active", json!(true), json!(false))] },
        ]);
}

#[test]
fn a_put_clears_what_it_omits_but_not_active() {
    let off = Event::Deactivated { changes: vec![change("active", json!(true), json!(false))] };
    given_user(vec![bo(), off]).when(put(json!({ "userName": "bo" }))).then_expect_events(vec![
        Event::Changed { changes: vec![change("title", json!("Cook"), json!(null))] },
    ]);
}

#[test]
fn a_deleted_user_takes_no_more_commands() {
    given_user(vec![bo()]).when(Command::Delete).then_expect_events(vec![Event::Deleted]);
    for command in [
        Command::Delete,
        put(json!({ "userName": "bo" })),
        patch(json!([{ "op": "remove", "path": "title" }])),
    ] {
        let result = given_user(vec![bo(), Event::Deleted]).when(command).inspect_result();
        assert_eq!(result.unwrap_err().status, 404);
    }
}

#[test]
fn members_are_proposed_and_never_part_of_the_state() {
    let body = json!({ "displayName": "Ops", "members": [{ "value": "u1" }, { "value": "u2" }] });
    TestFramework::<Group>::with(services("Group"))
        .given_no_previous_events()
        .when(create(body))
        .then_expect_events(vec![created(json!({ "displayName": "Ops" }))]);
    let ops = vec![created(json!({ "displayName": "Ops" }))];
    given_group(ops.clone())
        .when(patch(json!([{ "op": "Add", "path": "members", "value": [{ "$ref": null, "value": "u3" }] }])))
        .then_expect_events(vec![]);
    let itself = patch(json!([{ "op": "add", "path": "members", "value": [{ "value": "e1" }] }]));
    let error = given_group(ops).when(itself).inspect_result().unwrap_err();
    assert_eq!(error.status, 400);
    assert!(error.detail.contains("itself"), "{}", error.detail);
}

#[tokio::test]
async fn a_patch_proposes_the_net_change_of_members() {
    let mut group = Group::of(document(json!({ "displayName": "Ops" })));
    let command = patch(json!([
        { "op": "Remove", "path": "members", "value": [{ "value": "u1" }] },
        { "op": "Add", "path": "members", "value": [{ "value": "u1" }, { "value": "u2" }] },
        { "op": "remove", "path": "members[value eq \"u3\"]" },
    ]));
    let sink = cqrs_es::event_sink::EventSink::default();
    group.handle(command, &services("Group"), &sink).await.unwrap();
    let delta = &group.proposal.members;
    let ids = |set: &std::collections::BTreeSet<ResourceId>| {
        set.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert!(!delta.clear);
    assert_eq!(ids(&delta.add), ["u1", "u2"]);
    assert_eq!(ids(&delta.remove), ["u3"]);
}

#[test]
fn member_events_are_bounded_removals_first() {
    let ids = |n: usize| (0..n).map(|i| ResourceId::from_text(&format!("{i:05}"))).collect::<Vec<_>>();
    let events = member_events(ids(1), ids(2_500));
    let sizes: Vec<(&str, usize)> = events
        .iter()
        .map(|event| match event {
            Event::MembersAdded { members } | Event::MembersRemoved { members } => {
                (event.what(), members.len())
            }
            _ => (event.what(), 0),
        })
        .collect();
    let expected =
        [("members_removed", 1), ("members_added", 1_000), ("members_added", 1_000), ("members_added", 500)];
    assert_eq!(sizes, expected);
    assert_eq!(member_events(Vec::new(), Vec::new()), []);
}

/// What journals out there hold. A specimen is never edited: a new shape is a new version beside it.
#[test]
fn every_frozen_specimen_can_still_be_read() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/specimens");
    let mut seen = std::collections::BTreeSet::new();
    for version in 1..=SCHEMA_VERSION {
        for entry in std::fs::read_dir(root.join(format!("v{version}"))).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let stored: Value = serde_json::from_str(&text).unwrap();
            let lifted = upcast(&kind, version, stored.clone()).unwrap();
            let event = Event::from_payload(&kind, lifted.clone())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(event.payload(), lifted, "{}: written as it is read", path.display());
            seen.insert(event.what());
        }
    }
    let all = [
        "activated",
        "changed",
        "created",
        "deactivated",
        "deleted",
        "erased",
        "members_added",
        "members_removed",
        "password_set",
        "roles_changed",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all, "a specimen of every event");
}

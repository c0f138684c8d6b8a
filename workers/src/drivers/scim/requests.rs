//! Which requests bring a SCIM target up to date: pure, from what is wanted and what is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use annals_domain::event::{Body, Event, Recorded};
use annals_domain::ids::ResourceId;
use annals_domain::scim::message::PATCH_OP;
use annals_domain::scim::resource::{Change, Document};
use annals_domain::scim::schema::{Attribute, ResourceType};
use hmac::{Hmac, Mac};
use serde_json::{Map, Value, json};
use sha2::Sha256;

/// A resource as the target shall have it, and what could not be said yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The body, without `id` and `meta`. References hold the target's ids.
    pub body: Map<String, Value>,
    /// References to what the target does not have, by attribute.
    pub missing: Vec<(String, ResourceId)>,
}

/// The path of an attribute in a PATCH.
pub fn path_of(attribute: &Attribute) -> String {
    match &attribute.extension {
        Some(urn) => format!("{urn}:{}", attribute.name),
        None => attribute.name.clone(),
    }
}

/// What is sent of a document: `externalId` is our own id (OC-15), whatever the source says, and
/// references are translated by `remote`. Whatever the target does not have yet is left out.
pub fn desired(
    resource_type: &ResourceType,
    id: &ResourceId,
    document: &Document,
    remote: &HashMap<ResourceId, String>,
) -> Desired {
    let mut document = document.clone();
    let mut missing = Vec::new();
    let references = resource_type.attributes().filter(|a| a.resource_ref && a.is_stored());
    for attribute in references {
        let Some(value) = document.get(attribute).cloned() else { continue };
        let mut translate = |element: &Value| {
            let mut element = element.as_object()?.clone();
            // Our own address says nothing there.
            element.remove("$ref");
            let own = element.get("value").and_then(Value::as_str).map(ResourceId::from_text);
            if let Some(own) = own {
                match remote.get(&own) {
                    Some(remote) => element.insert("value".into(), json!(remote)),
                    None => {
                        missing.push((attribute.name.clone(), own));
                        return None;
                    }
                };
            }
            (!element.is_empty()).then_some(Value::Object(element))
        };
        let translated = match &value {
            Value::Array(list) => {
                let list: Vec<Value> = list.iter().filter_map(&mut translate).collect();
                (!list.is_empty()).then_some(Value::Array(list))
            }
            single => translate(single),
        };
        document.set(attribute, translated);
    }
    let schemas: Vec<String> = document.schemas(resource_type).into_iter().map(str::to_owned).collect();
    let mut body = document.0;
    body.insert("schemas".into(), json!(schemas));
    body.insert("externalId".into(), json!(id));
    Desired { body, missing }
}

/// Keyed hash of a body. The key is the app's credential, so that a copy of the lanes tells nothing
/// about the persons in them.
pub fn hash(credential: &str, body: &Map<String, Value>) -> Vec<u8> {
    let mut text = String::new();
    canonical(&Value::Object(body.clone()), &mut text);
    match Hmac::<Sha256>::new_from_slice(credential.as_bytes()) {
        Ok(mut mac) => {
            mac.update(b"annals applied 1\0");
            mac.update(text.as_bytes());
            mac.finalize().into_bytes().to_vec()
        }
        // HMAC takes keys of any length.
        Err(_) => Vec::new(),
    }
}

/// JSON with sorted keys, however the map at hand orders them.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            out.push('{');
            for (name, value) in map.iter().collect::<BTreeMap<_, _>>() {
                out.push_str(&Value::String(name.clone()).to_string());
                out.push(':');
                canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for value in list {
                canonical(value, out);
                out.push(',');
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// A PATCH body.
pub fn patch_body(operations: &[Value]) -> Value {
    json!({ "schemas": [PATCH_OP], "Operations": operations })
}

fn operation(op: &str, path: &str, value: Option<&Value>) -> Value {
    let mut operation = json!({ "op": op, "path": path });
    if let Some(value) = value {
        operation["value"] = value.clone();
    }
    operation
}

/// The names on the way to a path's value: `urn:…:User:manager.value` has three.
fn steps(path: &str) -> Vec<&str> {
    let is_urn = path.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("urn:"));
    let (urn, rest) = match path.rsplit_once(':') {
        Some((urn, rest)) if is_urn => (Some(urn), rest),
        _ => (None, path),
    };
    urn.into_iter().chain(rest.split('.')).collect()
}

/// A member of an object, its name compared without case (OC-02).
pub fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let exact = object.get(name);
    exact.or_else(|| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

/// The value at a path of a body.
pub fn value_at<'a>(body: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut steps = steps(path).into_iter();
    let mut value = member(body, steps.next()?)?;
    for step in steps {
        value = member(value.as_object()?, step)?;
    }
    (!value.is_null()).then_some(value)
}

/// The paths of references, which are always written as a whole.
pub fn reference_paths(resource_type: &ResourceType) -> Vec<String> {
    resource_type.attributes().filter(|a| a.resource_ref && a.is_stored()).map(path_of).collect()
}

/// What happened to the content in a row of events: per path, whether there was a value before. None:
/// not all of it can be read.
pub fn changed_paths(events: &[Recorded]) -> Option<BTreeMap<String, bool>> {
    let mut paths = BTreeMap::new();
    for event in events {
        let changes: &[Change] = match &event.body {
            Body::Open(
                Event::Changed { changes }
                | Event::Activated { changes }
                | Event::Deactivated { changes }
                | Event::RolesChanged { changes },
            ) => changes,
            Body::Open(Event::Created { .. }) | Body::Erased => return None,
            Body::Open(_) => &[],
        };
        for change in changes {
            paths.entry(change.path.clone()).or_insert(change.old.is_some());
        }
    }
    Some(paths)
}

/// The operations that follow from changed paths, without looking at the target: the wanted value where
/// there is one, else a removal. One operation per path.
pub fn operations_for(
    paths: &BTreeMap<String, bool>,
    references: &[String],
    desired: &Map<String, Value>,
) -> Vec<Value> {
    let mut whole: BTreeMap<&str, bool> = BTreeMap::new();
    for (path, existed) in paths {
        let reference = references.iter().find(|reference| {
            path.strip_prefix(reference.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        let path = reference.map_or(path.as_str(), String::as_str);
        // Ours alone, and it never changes.
        if path != "externalId" {
            *whole.entry(path).or_insert(false) |= existed;
        }
    }
    whole
        .into_iter()
        .filter_map(|(path, existed)| match value_at(desired, path) {
            Some(value) => Some(operation(if existed { "replace" } else { "add" }, path, Some(value))),
            None if existed => Some(operation("remove", path, None)),
            // It came and went.
            None => None,
        })
        .collect()
}

/// The operations that make `remote` what is wanted. What the target has besides is its own, unless it
/// is at a path that was `cleared` on our side.
pub fn operations_against(
    remote: &Map<String, Value>,
    desired: &Map<String, Value>,
    references: &[String],
    cleared: &BTreeSet<String>,
) -> Vec<Value> {
    let mut operations = Vec::new();
    for (path, value) in flat(desired, references) {
        match value_at(remote, &path) {
            Some(there) if covers(there, value) => {}
            Some(_) => operations.push(operation("replace", &path, Some(value))),
            None => operations.push(operation("add", &path, Some(value))),
        }
    }
    for path in cleared {
        if value_at(desired, path).is_none() && value_at(remote, path).is_some() {
            operations.push(operation("remove", path, None));
        }
    }
    operations
}

/// A body as paths and values: the parts of complex attributes each for itself, references and lists
/// as a whole.
fn flat<'a>(body: &'a Map<String, Value>, references: &[String]) -> Vec<(String, &'a Value)> {
    let mut out = Vec::new();
    let mut attribute = |path: String, value: &'a Value| match value {
        Value::Object(parts) if !references.contains(&path) => {
            out.extend(parts.iter().map(|(name, value)| (format!("{path}.{name}"), value)));
        }
        _ => out.push((path, value)),
    };
    for (name, value) in body {
        match value {
            _ if ["schemas", "id", "meta"].contains(&name.as_str()) => {}
            Value::Object(inner) if name.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("urn:")) => {
                for (inner_name, value) in inner {
                    attribute(format!("{name}:{inner_name}"), value);
                }
            }
            _ => attribute(name.clone(), value),
        }
    }
    out
}

/// Whether a target's value says what ours says: it may add parts (`$ref`, `display`), order a list
/// anew, and write booleans and numbers as text.
pub fn covers(there: &Value, ours: &Value) -> bool {
    match (there, ours) {
        (Value::Object(there), Value::Object(ours)) => {
            ours.iter().all(|(name, ours)| member(there, name).is_some_and(|there| covers(there, ours)))
        }
        (Value::Array(there), Value::Array(ours)) => {
            let mut free: Vec<&Value> = there.iter().collect();
            there.len() == ours.len()
                && ours.iter().all(|ours| match free.iter().position(|there| covers(there, ours)) {
                    Some(found) => {
                        free.swap_remove(found);
                        true
                    }
                    None => false,
                })
        }
        (Value::String(there), Value::Bool(_) | Value::Number(_)) => {
            there.eq_ignore_ascii_case(&ours.to_string())
        }
        _ => there == ours,
    }
}

/// A filter as every target understands it (OC-03), as the value of a query.
pub fn filter_query(attribute: &str, value: &str) -> String {
    let filter = format!("{attribute} eq {}", Value::String(value.to_owned()));
    let mut query = String::from("filter=");
    for byte in filter.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                query.push(char::from(byte))
            }
            _ => query.push_str(&format!("%{byte:02X}")),
        }
    }
    query
}

/// The resources of a list, read leniently. None: it is no list.
pub fn resources(body: &[u8]) -> Option<Vec<Map<String, Value>>> {
    let Ok(Value::Object(list)) = serde_json::from_slice(body) else { return None };
    match member(&list, "Resources") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => Some(list.iter().filter_map(|r| r.as_object().cloned()).collect()),
        Some(_) => None,
    }
}

/// Whether a resource of a list is really a hit: some targets ignore filters they do not know.
pub fn is_hit(resource: &Map<String, Value>, attribute: &str, value: &str, case_exact: bool) -> bool {
    match member(resource, attribute).and_then(Value::as_str) {
        Some(found) if case_exact => found == value,
        Some(found) => found.to_lowercase() == value.to_lowercase(),
        None => false,
    }
}

/// What a target's `/ResourceTypes` says about a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Its resources are at this path, without slashes at its ends.
    At(String),
    /// The target has other types only.
    Nowhere,
    /// It is no list of resource types, or what it names is no path below the base URL.
    Unclear,
}

/// Where a target has the resources of a schema, by its `/ResourceTypes`.
pub fn listed(body: &[u8], schema: &str) -> Listed {
    let text =
        |of: &Map<String, Value>, name: &str| member(of, name).and_then(Value::as_str).map(str::to_owned);
    let resources = resources(body).unwrap_or_default();
    let mut types =
        resources.iter().filter_map(|of| Some((text(of, "schema")?, text(of, "endpoint")))).peekable();
    if types.peek().is_none() {
        return Listed::Unclear;
    }
    let Some((_, endpoint)) = types.find(|(urn, _)| urn.eq_ignore_ascii_case(schema)) else {
        return Listed::Nowhere;
    };
    let endpoint = endpoint.as_deref().unwrap_or_default().trim_matches('/');
    let is_name = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'~'))
    };
    if endpoint.split('/').all(is_name) { Listed::At(endpoint.to_owned()) } else { Listed::Unclear }
}

/// The `id` of a resource, whether text or number.
pub fn id_of(resource: &Map<String, Value>) -> Option<String> {
    match member(resource, "id")? {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

/// The last part of a `Location`.
pub fn id_of_location(location: &str) -> Option<String> {
    let path = location.split(['?', '#']).next()?.trim_end_matches('/');
    let id = path.rsplit('/').next()?;
    (!id.is_empty()).then(|| id.to_owned())
}

/// What `/ServiceProviderConfig` says about PATCH; a target that says nothing is taken to know it.
pub fn supports_patch(body: &[u8]) -> bool {
    let Ok(Value::Object(config)) = serde_json::from_slice(body) else { return true };
    let supported = member(&config, "patch").and_then(|patch| member(patch.as_object()?, "supported"));
    supported.is_none_or(|value| *value != json!(false) && !is_false_text(value))
}

fn is_false_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("false"))
}

/// The net of a row of member events: of each member, whether it was added or removed last. Who came and
/// went is removed all the same: the target may have it, from a snapshot that was read later than the row
/// begins, or from a request of which the lane does not know.
pub fn net_members(events: &[Recorded]) -> (Vec<ResourceId>, Vec<ResourceId>) {
    let mut last: BTreeMap<&ResourceId, bool> = BTreeMap::new();
    for event in events {
        let (members, added) = match &event.body {
            Body::Open(Event::MembersAdded { members }) => (members, true),
            Body::Open(Event::MembersRemoved { members }) => (members, false),
            _ => continue,
        };
        last.extend(members.iter().map(|member| (member, added)));
    }
    let of = |wanted: bool| {
        let members = last.iter().filter(|(_, added)| **added == wanted);
        members.map(|(member, _)| (*member).clone()).collect()
    };
    (of(true), of(false))
}

/// Adds members by their ids at the target.
pub fn add_members(remote: &[&str]) -> Vec<Value> {
    let values: Vec<Value> = remote.iter().map(|id| json!({ "value": id })).collect();
    vec![json!({ "op": "add", "path": "members", "value": values })]
}

/// Removes members by their ids at the target.
pub fn remove_members(remote: &[&str]) -> Vec<Value> {
    let path = |id: &str| format!("members[value eq {}]", Value::String(id.to_owned()));
    remote.iter().map(|id| json!({ "op": "remove", "path": path(id) })).collect()
}

#[cfg(test)]
mod tests {
    use annals_domain::clock::Timestamp;
    use annals_domain::event::{Actor, Cause, StreamId};
    use annals_domain::ids::TenantId;
    use annals_domain::scim::schema::{ENTERPRISE_USER, Registry, USER};

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("an object") };
        map
    }

    fn event(body: Event) -> Recorded {
        Recorded {
            position: 1,
            event_id: Default::default(),
            commit_id: Default::default(),
            tenant: TenantId::new("acme").unwrap(),
            stream: StreamId { resource_type: "User".into(), id: ResourceId::from_text("u1") },
            version: 1,
            kind: body.kind("User"),
            schema_version: 1,
            at: Timestamp(0),
            actor: Actor::system("test"),
            cause: Cause::default(),
            previous_of_entity: 0,
            previous_of_tenant: 0,
            body: Body::Open(body),
        }
    }

    fn change(path: &str, old: Option<Value>, new: Option<Value>) -> Change {
        Change { path: path.into(), old, new }
    }

    fn ids(names: &[&str]) -> Vec<ResourceId> {
        names.iter().map(|name| ResourceId::from_text(name)).collect()
    }

    #[test]
    fn external_id_is_ours_and_references_are_translated() {
        let registry = Registry::standard();
        let user = registry.resource_type("User").unwrap();
        let document = Document(object(json!({
            "userName": "ines", "externalId": "theirs", "name": {"givenName": "Inés"},
            ENTERPRISE_USER: {"department": "R", "manager": {"value": "u2", "$ref": "x"}},
        })));
        let id = ResourceId::from_text("u1");
        let without = desired(user, &id, &document, &HashMap::new());
        assert_eq!(without.missing, [("manager".to_owned(), ResourceId::from_text("u2"))]);
        assert_eq!(
            Value::Object(without.body.clone()),
            json!({
                "schemas": [USER, ENTERPRISE_USER], "userName": "ines", "externalId": "u1",
                "name": {"givenName": "Inés"}, ENTERPRISE_USER: {"department": "R"},
            })
        );
        let known = HashMap::from([(ResourceId::from_text("u2"), "r2".to_owned())]);
        let with = desired(user, &id, &document, &known);
        assert_eq!(with.missing, []);
        assert_eq!(with.body[ENTERPRISE_USER]["manager"], json!({"value": "r2"}));
        assert_ne!(hash("k", &with.body), hash("k", &without.body));
        assert_ne!(hash("k", &with.body), hash("l", &with.body));
        assert_eq!(hash("k", &with.body), hash("k", &with.body.clone()));
    }

    #[test]
    fn changed_paths_become_one_operation_each() {
        let manager = format!("{ENTERPRISE_USER}:manager");
        let events = [
            event(Event::Changed {
                changes: vec![
                    change("title", None, Some(json!("A"))),
                    change("nickName", Some(json!("n")), None),
                    change("externalId", Some(json!("a")), Some(json!("b"))),
                    change(&format!("{manager}.value"), Some(json!("u2")), None),
                ],
            }),
            event(Event::Deactivated {
                changes: vec![change("active", Some(json!(true)), Some(json!(false)))],
            }),
            event(Event::Changed { changes: vec![change("title", Some(json!("A")), Some(json!("B")))] }),
            event(Event::PasswordSet),
        ];
        let paths = changed_paths(&events).unwrap();
        let wanted = object(json!({"title": "B", "active": false, "externalId": "u1"}));
        assert_eq!(
            operations_for(&paths, std::slice::from_ref(&manager), &wanted),
            [
                json!({"op": "replace", "path": "active", "value": false}),
                json!({"op": "remove", "path": "nickName"}),
                json!({"op": "add", "path": "title", "value": "B"}),
                json!({"op": "remove", "path": manager}),
            ]
        );
        assert_eq!(changed_paths(&[event(Event::Created { document: Document::default() })]), None);
    }

    #[test]
    fn a_difference_is_sent_and_nothing_else() {
        let manager = format!("{ENTERPRISE_USER}:manager");
        let wanted = object(json!({
            "schemas": [USER], "userName": "ines", "active": true, "externalId": "u1",
            "name": {"givenName": "Inés", "familyName": "X"},
            "emails": [{"value": "b", "type": "home"}, {"value": "a", "type": "work"}],
            ENTERPRISE_USER: {"manager": {"value": "r2"}, "department": "R"},
        }));
        let there = object(json!({
            "id": "r1", "USERNAME": "ines", "active": "True", "photos": [{"value": "theirs"}],
            "nickName": "old", "name": {"givenName": "Inés", "formatted": "Inés Y", "familyName": "Y"},
            "emails": [{"value": "a", "type": "work", "primary": true}, {"value": "b", "type": "home"}],
            ENTERPRISE_USER: {"manager": {"value": "r3", "displayName": "Boss"}},
        }));
        let cleared =
            BTreeSet::from(["nickName".to_owned(), "title".to_owned(), "name.givenName".to_owned()]);
        let mut operations = operations_against(&there, &wanted, std::slice::from_ref(&manager), &cleared);
        operations.sort_by_key(|operation| operation["path"].to_string());
        assert_eq!(
            operations,
            [
                json!({"op": "add", "path": "externalId", "value": "u1"}),
                json!({"op": "replace", "path": "name.familyName", "value": "X"}),
                json!({"op": "remove", "path": "nickName"}),
                json!({"op": "add", "path": format!("{ENTERPRISE_USER}:department"), "value": "R"}),
                json!({"op": "replace", "path": manager, "value": {"value": "r2"}}),
            ]
        );
        assert_eq!(operations_against(&wanted, &wanted, &[], &BTreeSet::new()), [] as [Value; 0]);
    }

    #[test]
    fn filters_are_written_one_way_and_hits_are_verified() {
        assert_eq!(
            filter_query("userName", "o'ne \"x\""),
            "filter=userName%20eq%20%22o%27ne%20%5C%22x%5C%22%22"
        );
        let resource = object(json!({"UserName": "Ines", "externalId": "A"}));
        assert!(is_hit(&resource, "userName", "iNES", false));
        assert!(!is_hit(&resource, "externalId", "a", true));
        assert!(!is_hit(&resource, "displayName", "Ines", false));
    }

    #[test]
    fn answers_are_read_leniently() {
        assert_eq!(resources(br#"{"totalResults": "0"}"#).unwrap().len(), 0);
        assert_eq!(resources(br#"{"resources": [{"id": 7}, 3]}"#).unwrap().len(), 1);
        assert_eq!(resources(b"<html>"), None);
        assert_eq!(id_of(&object(json!({"ID": 7}))), Some("7".to_owned()));
        assert_eq!(id_of_location("https://x/Users/r1/?a=b"), Some("r1".to_owned()));
        for (body, expected) in [
            (r#"{"patch": {"supported": true}}"#, true),
            (r#"{"PATCH": {"Supported": "False"}}"#, false),
            (r#"{"patch": {"supported": false}}"#, false),
            ("{}", true),
            ("<html>", true),
        ] {
            assert_eq!(supports_patch(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_type_is_found_by_its_schema() {
        let list = |resources: Value| json!({"totalResults": 2, "Resources": resources}).to_string();
        let user = json!({"name": "User", "endpoint": "/Users", "schema": USER});
        let machine =
            |endpoint: &str| json!({"name": "Machine", "endpoint": endpoint, "SCHEMA": "urn:x:Device"});
        let of = |body: String| listed(body.as_bytes(), "URN:x:device");
        let there = of(list(json!([user, machine("/inventory/Machines/")])));
        assert_eq!(there, Listed::At("inventory/Machines".into()));
        assert_eq!(of(list(json!([user]))), Listed::Nowhere);
        for odd in ["", "/", "/../x", "https://evil.example/Devices", "/a//b", "/a?b"] {
            assert_eq!(of(list(json!([user, machine(odd)]))), Listed::Unclear, "{odd}");
        }
        for none in [list(json!([])), list(json!([{"name": "User"}])), "<html>".into(), "{}".into()] {
            assert_eq!(of(none.clone()), Listed::Unclear, "{none}");
        }
    }

    #[test]
    fn members_are_netted() {
        let events = [
            event(Event::MembersAdded { members: ids(&["a", "b", "c"]) }),
            event(Event::MembersRemoved { members: ids(&["b", "x", "y"]) }),
            event(Event::MembersAdded { members: ids(&["y"]) }),
        ];
        assert_eq!(net_members(&events), (ids(&["a", "c", "y"]), ids(&["b", "x"])));
        assert_eq!(
            patch_body(&remove_members(&["r\"1"]))["Operations"],
            json!([{"op": "remove", "path": "members[value eq \"r\\\"1\"]"}])
        );
        let add = json!([{"op": "add", "path": "members", "value": [{"value": "r1"}, {"value": "r2"}]}]);
        assert_eq!(patch_body(&add_members(&["r1", "r2"]))["Operations"], add);
    }
}

//! The OpenAPI document holds for what is really answered: every answer of every test in this crate is compared
//! with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};

use annals_api::{openapi, other_routes, scim_routes};
use annals_domain::scim::schema::Registry;
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::world::{Answer, World};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The path of the document that a request's path belongs to.
fn template(path: &str) -> Option<&'static str> {
    let segments: Vec<&str> = path.split('/').collect();
    let fits = |known: &str| {
        let known: Vec<&str> = known.split('/').collect();
        known.len() == segments.len()
            && known.iter().zip(&segments).all(|(k, s)| k == s || (k.starts_with('{') && !s.is_empty()))
    };
    let paths = openapi()["paths"].as_object().expect("paths");
    // A fixed segment goes before a parameter.
    let mut known: Vec<&String> = paths.keys().filter(|known| fits(known)).collect();
    known.sort_by_key(|known| known.matches('{').count());
    known.first().map(|known| known.as_str())
}

fn validator(schema: &Value) -> Arc<Validator> {
    static KNOWN: LazyLock<Mutex<BTreeMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);
    let key = schema.to_string();
    if let Some(known) = KNOWN.lock().unwrap().get(&key) {
        return known.clone();
    }
    let root = json!({"components": openapi()["components"], "allOf": [schema]});
    let made = jsonschema::draft202012::new(&root).unwrap_or_else(|error| panic!("{schema}: {error}"));
    let made = Arc::new(made);
    KNOWN.lock().unwrap().insert(key, made.clone());
    made
}

/// Panics if an answer is none that the document knows.
pub(crate) fn check(method: &str, uri: &str, answer: &Answer) {
    let path = uri.split('?').next().unwrap_or_default();
    let status = answer.status.as_u16();
    let Some(template) = template(path) else { return };
    let method = method.to_lowercase();
    let method = if method == "head" { "get" } else { method.as_str() };
    let Some(operation) = openapi()["paths"][template].get(method) else {
        assert!(
            [405, 404, 429, 503].contains(&status),
            "{method} {template} is not described and answers {status}"
        );
        return;
    };
    let described = &operation["responses"][status.to_string()];
    assert!(
        described.is_object(),
        "{method} {template} answers {status}, which is not described: {}",
        answer.body
    );
    if answer.bytes == 0 {
        assert!(
            described.get("content").is_none() || status == 304 || method == "get",
            "{method} {template} {status} without a body"
        );
        return;
    }
    let media = answer.header("content-type").split(';').next().unwrap_or_default().to_owned();
    let content = &described["content"][&media];
    assert!(content.is_object(), "{method} {template} {status} is {media}, which is not described");
    let errors: Vec<String> = validator(&content["schema"])
        .iter_errors(&answer.body)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{method} {template} {status}: {}\n{}", errors.join("\n"), answer.body);
}

/// Every route with its methods as the document should have them.
fn routes() -> BTreeSet<(String, String)> {
    let registry = Registry::standard();
    let mut all = BTreeSet::new();
    let mut add = |path: String, methods: &[&str]| {
        all.extend(methods.iter().map(|method| (path.clone(), method.to_lowercase())));
    };
    for (path, methods) in scim_routes() {
        let full = format!("/scim/v2{}", path.trim_end_matches('/'));
        if full.contains("{endpoint}") {
            for rt in registry.resource_types() {
                add(full.replace("/{endpoint}", &rt.endpoint), methods);
            }
        } else {
            add(full, methods);
        }
    }
    for (path, methods) in other_routes() {
        add(path.to_owned(), methods);
    }
    all
}

fn described() -> BTreeSet<(String, String)> {
    let paths = openapi()["paths"].as_object().expect("paths");
    let methods = |(path, item): (&String, &Value)| {
        let item = item.as_object().expect("an object").clone();
        let path = path.clone();
        item.into_iter().map(|(method, _)| (path.clone(), method)).collect::<Vec<_>>()
    };
    paths.iter().flat_map(methods).collect()
}

#[test]
fn the_document_has_every_route_and_no_other() {
    let is_admin = |(path, _): &&(String, String)| path.starts_with("/admin/v1/");
    let described = described();
    let others: BTreeSet<_> = described.iter().filter(|route| !is_admin(route)).cloned().collect();
    assert_eq!(others, routes());
    assert!(described.iter().filter(is_admin).count() >= 25, "administration is described by its own router");
    assert_eq!(openapi()["openapi"].as_str().map(|v| &v[..4]), Some("3.1."));
}

/// What the document says is what the router has: asked for each path with each method.
#[tokio::test]
async fn every_described_method_exists_and_no_other_does() {
    let world = World::new().await;
    let described = described();
    let paths: BTreeSet<&String> = described.iter().map(|(path, _)| path).collect();
    for path in paths {
        let uri = path.replace("{tenant}", "acme").replace("{id}", "x");
        let uri =
            uri.split('/').map(|s| if s.starts_with('{') { "x" } else { s }).collect::<Vec<_>>().join("/");
        for method in METHODS {
            let answer =
                world.call(&method.to_uppercase(), &format!("//raw{uri}")).anonymous().raw("{}").send().await;
            let known = described.contains(&(path.clone(), method.to_owned()));
            assert_eq!(answer.status != 405, known, "{method} {path}: {}", answer.status);
        }
    }
}

#[test]
fn operations_have_names_of_their_own_and_references_lead_somewhere() {
    let mut ids = BTreeSet::new();
    for item in openapi()["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().expect("an operationId").to_owned();
            assert!(ids.insert(id.clone()), "{id} twice");
        }
    }
    fn references(value: &Value, all: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                all.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|value| references(value, all));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, all)),
            _ => {}
        }
    }
    let mut all = BTreeSet::new();
    references(openapi(), &mut all);
    for reference in all {
        let pointer = reference.trim_start_matches('#');
        assert!(openapi().pointer(pointer).is_some(), "{reference}");
    }
}

/// An example is valid, and the server takes it.
#[tokio::test]
async fn examples_are_what_the_schemas_say_and_the_server_takes() {
    let world = World::new().await;
    let mut seen = 0;
    for (path, method) in described() {
        let operation = &openapi()["paths"][&path][&method];
        let Some(content) = operation["requestBody"]["content"].as_object() else { continue };
        for (media, body) in content {
            let Some(example) = body.get("example") else { continue };
            assert!(validator(&body["schema"]).is_valid(example), "{method} {path} {media}: {example}");
            if method == "post" && path.starts_with("/scim/v2") {
                let call = world.call("POST", &path).header("content-type", media);
                let answer = call.raw(example.to_string()).send().await;
                assert!([200, 201].contains(&answer.status.as_u16()), "{path}: {}", answer.body);
                seen += 1;
            }
        }
    }
    assert!(seen >= 6, "{seen}");
}

#[tokio::test]
async fn the_document_is_served() {
    let world = World::new().await;
    let answer = world.call("GET", "//raw/openapi.json").anonymous().send().await;
    assert_eq!(answer.is(200).header("content-type"), "application/json");
    assert_eq!(&answer.body, openapi());
}

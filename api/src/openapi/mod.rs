//! The OpenAPI 3.1 document of everything that is served: `GET /openapi.json`.
//!
//! Administration describes itself: its router is made of the same descriptions ([`crate::admin::routes`]).
//! SCIM is described from the table its router is made of and from the schemas that every tenant has
//! ([`scim`]); a tenant's own schemas and resource types are at `/Schemas` and `/ResourceTypes`.

mod scim;

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::admin;
use crate::respond::PLAIN_JSON;

/// Paths of the document by method.
type Paths = Map<String, Value>;

/// The document; the same for every tenant and every process of this build.
pub fn openapi() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
    &DOCUMENT
}

/// `GET /openapi.json`
pub(crate) async fn serve() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(|| openapi().to_string());
    let mut response = Response::new(Body::from(TEXT.as_str()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PLAIN_JSON));
    response
}

fn document() -> Value {
    let (_, described) = admin::routes().split_for_parts();
    let mut document = serde_json::to_value(described).unwrap_or_default();
    document["info"] = json!({
        "title": "Annals",
        "version": env!("CARGO_PKG_VERSION"),
        "description": "An identity ledger: SCIM 2.0 (RFC 7643, RFC 7644, RFC 9865) and its administration. \
            What is below /scim/v2 is below /t/{tenant}/scim/v2 too, for tokens of that tenant.",
        "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
    });
    document["security"] = json!([{"token": []}]);
    document["components"]["securitySchemes"] = json!({"token": {
        "type": "http",
        "scheme": "bearer",
        "description": "scim.read and scim.write for SCIM, scim.admin for administration, scim.verify for \
            checking passwords",
    }});
    complete_administration(&mut document);
    let mut paths = match document["paths"].take() {
        Value::Object(paths) => paths,
        _ => Paths::new(),
    };
    let mut schemas = match document["components"]["schemas"].take() {
        Value::Object(schemas) => schemas,
        _ => Map::new(),
    };
    schemas.insert("Problem".into(), problem());
    scim::describe(&mut paths, &mut schemas);
    describe_the_rest(&mut paths);
    document["paths"] = Value::Object(paths);
    document["components"]["schemas"] = Value::Object(schemas);
    document["tags"] = json!([
        {"name": "scim", "description": "RFC 7644"},
        {"name": "discovery", "description": "What the server has (RFC 7644 §4)"},
        {"name": "applications", "description": "For applications that let their users in"},
        {"name": "tenants"}, {"name": "connections"}, {"name": "tokens"}, {"name": "operators"},
        {"name": "apps"}, {"name": "deliveries"}, {"name": "status"}, {"name": "audit"},
        {"name": "operation", "description": "For machines next door"},
    ]);
    document
}

fn problem() -> Value {
    use utoipa::PartialSchema;
    serde_json::to_value(admin::Problem::schema()).unwrap_or_default()
}

/// A parameter of a path as it stands in every operation.
fn has_parameter(operation: &Value, place: &str) -> bool {
    operation["parameters"].as_array().is_some_and(|all| all.iter().any(|p| p["in"] == place))
}

/// What all operations of administration have in common: failures, conditions.
fn complete_administration(document: &mut Value) {
    let problem = |description: &str| {
        json!({
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        })
    };
    let Some(paths) = document["paths"].as_object_mut() else { return };
    for item in paths.values_mut().filter_map(Value::as_object_mut) {
        for (method, operation) in item.iter_mut() {
            let (has_body, in_path) =
                (operation.get("requestBody").is_some(), has_parameter(operation, "path"));
            let tagged = operation["responses"]["200"].to_string();
            let versioned = tagged.contains("Entry_") && !tagged.contains("List_") && in_path;
            let guards = matches!(method.as_str(), "patch" | "put" | "delete");
            let mut statuses: Vec<(&str, &str)> = vec![
                ("400", "The request is malformed; the detail names what is wrong"),
                ("401", "No valid token"),
                ("403", "The token may not do this"),
                ("429", "This token makes too many requests"),
                ("500", "The server failed; its log has the cause under the id in X-Request-Id"),
                ("503", "The server is busy, its database out of reach, or writes are stopped"),
            ];
            if in_path || has_body {
                statuses.push(("404", "There is no such thing, or the token may not see it"));
            }
            if has_body || guards {
                statuses.push(("409", "It is in use, or others change it at the same time"));
            }
            if has_body {
                statuses.push(("408", "The body took too long to arrive"));
                statuses.push(("413", "The body is larger than 256 KiB"));
                statuses.push(("415", "The media type is none that is taken, or the body is compressed"));
            }
            let mut headers = Vec::new();
            if guards {
                statuses.push(("412", "It has another version by now"));
                headers.push(("If-Match", "The version that may be changed, such as \"3\"; else 412"));
            }
            if versioned && method == "get" {
                operation["responses"]["304"] = json!({"description": "The client has this version"});
                headers.push(("If-None-Match", "The version that the client has"));
            }
            for (status, description) in statuses {
                operation["responses"][status] = problem(description);
            }
            for (name, description) in headers {
                let parameter = json!({
                    "name": name, "in": "header", "required": false, "description": description,
                    "schema": {"type": "string", "pattern": "^(\\*|\"[0-9]{1,9}\")$"},
                });
                match operation["parameters"].as_array_mut() {
                    Some(all) => all.push(parameter),
                    None => operation["parameters"] = json!([parameter]),
                }
            }
        }
    }
}

/// What is neither SCIM nor administration.
fn describe_the_rest(paths: &mut Paths) {
    let json = |description: &str, schema: Value| json!({"description": description, "content": {"application/json": {"schema": schema}}});
    let text = json!({"type": "string"});
    let verified = json!({
        "type": "object",
        "properties": {"verified": {"type": "boolean"}, "id": {"type": "string"}},
        "required": ["verified"],
        "additionalProperties": false,
    });
    let mut responses =
        json!({"200": json("Whether the password is this active user's, and then who", verified)});
    scim::add_errors(&mut responses, &[400, 401, 403, 408, 413, 415, 429, 500, 503]);
    let account = |name: &str| {
        json!({
            "type": "object",
            "properties": {
                name: {"type": "string", "minLength": 1, "maxLength": 128},
                "password": {"type": "string", "minLength": 1, "maxLength": 1024, "writeOnly": true},
            },
            "required": [name, "password"],
            "additionalProperties": false,
        })
    };
    let body = json!({"oneOf": [account("userName"), account("id")]});
    paths.insert(
        "/auth/v1/verify-password".into(),
        json!({"post": {
            "tags": ["applications"], "operationId": "verifyPassword",
            "summary": "Whether a password is a user's; needs the scope scim.verify",
            "requestBody": {"required": true, "content": {"application/json": {
                "schema": body,
                "example": {"userName": "ada@example.com", "password": "correct horse battery staple"},
            }}},
            "responses": responses,
        }}),
    );
    let state = json!({
        "type": "object",
        "properties": {"status": {"enum": ["ok", "degraded", "stopping", "failed"]}},
        "required": ["status"],
    });
    let public = |id: &str, summary: &str, mut responses: Value| {
        scim::add_errors(&mut responses, &[500]);
        json!({"get": {
            "tags": ["operation"], "operationId": id, "summary": summary, "security": [],
            "responses": responses,
        }})
    };
    let live = json!({"200": json("The process answers", state.clone())});
    paths.insert("/health/live".into(), public("live", "Whether the process answers", live));
    let ready = json!({
        "200": json("Requests can be served", state.clone()),
        "503": json("They cannot", state),
    });
    paths.insert("/health/ready".into(), public("ready", "Whether requests can be served", ready));
    let mut metrics = json!({"200": {
        "description": "The text format of Prometheus", "content": {"text/plain": {"schema": text}},
    }});
    scim::add_errors(&mut metrics, &[404]);
    paths.insert("/metrics".into(), public("metrics", "What the process counts", metrics));
    let document = json!({"200": json("An OpenAPI 3.1 document", json!({"type": "object"}))});
    paths.insert("/openapi.json".into(), public("openapi", "This document", document));
}

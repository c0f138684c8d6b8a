//! SCIM as OpenAPI: operations from the table of routes, bodies from the schemas that every tenant has.

use annals_domain::scim::schema::{AttrType, Attribute, GROUP, Mutability, Registry, ResourceType, Returned};
use serde_json::{Map, Value, json};

use super::Paths;
use crate::respond::{PLAIN_JSON, SCIM_JSON};
use crate::scim_routes;

const BASE: &str = "/scim/v2";
const LIST: &str = "urn:ietf:params:scim:api:messages:2.0:ListResponse";
const PATCH: &str = "urn:ietf:params:scim:api:messages:2.0:PatchOp";
const SEARCH: &str = "urn:ietf:params:scim:api:messages:2.0:SearchRequest";
const BULK: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";

/// Adds every SCIM route and what its bodies are.
pub(super) fn describe(paths: &mut Paths, schemas: &mut Map<String, Value>) {
    let registry = Registry::standard();
    for rt in registry.resource_types() {
        schemas.insert(rt.name.clone(), resource(rt, false));
        schemas.insert(format!("{}Request", rt.name), resource(rt, true));
    }
    let messages = messages(&registry);
    for (name, schema) in messages {
        schemas.insert(name.to_owned(), schema);
    }
    for (path, methods) in scim_routes() {
        if path.contains("{endpoint}") {
            for rt in registry.resource_types() {
                let path = path.replace("/{endpoint}", &rt.endpoint);
                add(paths, &path, methods, Some(rt));
            }
        } else {
            add(paths, path, methods, None);
        }
    }
}

fn add(paths: &mut Paths, path: &str, methods: &[&str], rt: Option<&ResourceType>) {
    let operations = methods.iter().map(|method| (method.to_lowercase(), operation(path, method, rt)));
    let full = if path == "/" { BASE.to_owned() } else { format!("{BASE}{path}") };
    paths.insert(full, Value::Object(operations.collect()));
}

/// One operation of one path.
fn operation(path: &str, method: &str, rt: Option<&ResourceType>) -> Value {
    let name = rt.map_or("User", |rt| rt.name.as_str());
    let discovery = ["/ServiceProviderConfig", "/ResourceTypes", "/Schemas"];
    if discovery.iter().any(|known| path.starts_with(known)) {
        return discover(path);
    }
    let one = path.ends_with("/{id}") || path == "/Me";
    let id = operation_id(path, method, rt);
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let list = match rt {
        Some(rt) => format!("{}List", rt.name),
        None => "ResourceList".to_owned(),
    };
    let answer = |description: &str, name: &str| content(description, reference(name));
    let (summary, request, mut responses, extra): (String, Option<String>, Value, &[u16]) = match method {
        "GET" if one => (
            format!("A {name}"),
            None,
            json!({"200": answer("The resource", name), "304": {"description": "The client has this version"}}),
            &[404],
        ),
        "GET" => (
            "Resources by filter, order and page".into(),
            None,
            json!({"200": answer("A page", &list)}),
            &[404],
        ),
        "POST" if path.ends_with("/.search") => (
            "Resources by filter, order and page".into(),
            Some("SearchRequest".into()),
            json!({"200": answer("A page", &list)}),
            &[404, 408, 413, 415],
        ),
        "POST" if path == "/Bulk" => (
            "Many operations in one request".into(),
            Some("BulkRequest".into()),
            json!({"200": answer("What each operation came to", "BulkResponse")}),
            &[404, 408, 409, 413, 415, 422, 501],
        ),
        "POST" if path == "/Me" => ("Not supported".into(), None, json!({}), &[404, 501]),
        "POST" => (
            format!("Makes a {name}"),
            Some(format!("{name}Request")),
            json!({
                "201": answer("It was made", name),
                "200": answer("It was there and was reactivated (the switch reactivate-on-create)", name),
            }),
            &[404, 408, 409, 413, 415, 422],
        ),
        "PUT" => (
            format!("Replaces a {name}"),
            Some(format!("{name}Request")),
            json!({"200": answer("What it is now", name)}),
            &[404, 408, 409, 412, 413, 415, 422, 428],
        ),
        "PATCH" => (
            format!("Changes a {name}"),
            Some("PatchOp".into()),
            json!({
                "200": answer("What it is now", name),
                "204": {"description": "It is changed; the answer would be long, or was not wanted"},
            }),
            &[404, 408, 409, 412, 413, 415, 422, 428],
        ),
        _ => (
            format!("Deletes a {name}"),
            None,
            json!({"204": {"description": "It is deleted"}}),
            &[404, 409, 412, 422, 428],
        ),
    };
    add_errors(&mut responses, &[400, 401, 403, 406, 429, 500, 503]);
    add_errors(&mut responses, extra);
    let mut parameters = Vec::new();
    if path.ends_with("/{id}") {
        parameters.push(json!({
            "name": "id", "in": "path", "required": true, "description": "The resource's id",
            "schema": {"type": "string", "minLength": 1},
        }));
    }
    if method != "DELETE"
        && path != "/Bulk"
        && !path.ends_with("/.search")
        && !(path == "/Me" && method == "POST")
    {
        parameters.extend(projection());
    }
    if method == "GET" && !one {
        parameters.extend(search());
    }
    if matches!(method, "PUT" | "PATCH" | "DELETE") {
        parameters.push(header("If-Match", "The version that may be changed, such as W/\"3\"; else 412"));
    }
    if method == "GET" && one {
        parameters.push(header("If-None-Match", "The version that the client has"));
    }
    if matches!(method, "POST" | "PUT" | "PATCH" | "DELETE") && !path.ends_with("/.search") && id != "postMe"
    {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "The same request with the same key is carried out once",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[A-Za-z0-9-]+$"},
        }));
    }
    let mut operation = json!({
        "tags": ["scim"], "operationId": id, "summary": summary, "parameters": parameters,
        "responses": responses,
    });
    if let Some(request) = request {
        let schema = reference(&request);
        operation["requestBody"] = json!({"required": true, "content": {
            SCIM_JSON: {"schema": schema, "example": example(&request)},
            PLAIN_JSON: {"schema": schema},
        }});
    }
    operation
}

fn operation_id(path: &str, method: &str, rt: Option<&ResourceType>) -> String {
    let verb = match (method, path.ends_with("/{id}") || path == "/Me") {
        ("POST", _) if path.ends_with("/.search") => "search",
        ("GET", false) => "list",
        ("GET", true) => "get",
        ("POST", _) if rt.is_some() => "create",
        ("PUT", _) => "replace",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => "post",
    };
    let what = match rt {
        Some(rt) => rt.endpoint.trim_start_matches('/'),
        None if path == "/Me" => "Me",
        None if path == "/Bulk" => "Bulk",
        None => "All",
    };
    format!("{verb}{what}")
}

/// ServiceProviderConfig, ResourceTypes and Schemas, which a server may show to anybody.
fn discover(path: &str) -> Value {
    let name = path.trim_start_matches('/').replace("/{id}", "One");
    let schema = match name.as_str() {
        "ResourceTypes" | "Schemas" => "ResourceList",
        _ => "AnyResource",
    };
    let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
    let mut responses = json!({
        "200": content("What the tenant has", schema),
        "304": {"description": "The client has this version"},
    });
    add_errors(&mut responses, &[400, 401, 403, 404, 429, 500, 503]);
    let mut parameters = vec![header("If-None-Match", "The version that the client has")];
    if path.ends_with("/{id}") {
        let schema = json!({"type": "string", "minLength": 1, "example": if path.starts_with("/S") { GROUP } else { "User" }});
        parameters.push(json!({"name": "id", "in": "path", "required": true, "schema": schema}));
    }
    json!({
        "tags": ["discovery"], "operationId": format!("get{name}"), "summary": "What the tenant has",
        "security": [{}, {"token": []}], "parameters": parameters, "responses": responses,
    })
}

/// A body in either of the media types (MT-003).
fn content(description: &str, schema: Value) -> Value {
    json!({"description": description, "content": {
        SCIM_JSON: {"schema": schema}, PLAIN_JSON: {"schema": schema},
    }})
}

fn header(name: &str, description: &str) -> Value {
    json!({
        "name": name, "in": "header", "required": false, "description": description,
        "schema": {"type": "string", "pattern": "^(\\*|(W/)?\"[0-9]{1,9}\")$"},
    })
}

fn projection() -> Vec<Value> {
    ["attributes", "excludedAttributes"]
        .map(|name| {
            json!({
                "name": name, "in": "query", "required": false,
                "description": "Names of attributes, separated by commas",
                "schema": {"type": "string", "example": "userName,name.familyName"},
            })
        })
        .into()
}

fn search() -> Vec<Value> {
    let query = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "required": false, "description": description, "schema": schema});
    vec![
        query("filter", "RFC 7644 §3.4.2.2", json!({"type": "string", "example": "userName sw \"a\""})),
        query("sortBy", "An attribute", json!({"type": "string", "example": "userName"})),
        query("sortOrder", "Default: ascending", json!({"enum": ["ascending", "descending"]})),
        query("startIndex", "The first resource of an index page, from 1", json!({"type": "integer"})),
        query("count", "At most so many resources", json!({"type": "integer"})),
        query("cursor", "Empty for the first page, then nextCursor (RFC 9865)", json!({"type": "string"})),
    ]
}

/// Error statuses with their body.
pub(super) fn add_errors(responses: &mut Value, statuses: &[u16]) {
    for status in statuses {
        let description = match status {
            400 => "The request is malformed; scimType and detail say how",
            401 => "No valid token",
            403 => "The token may not do this",
            404 => "There is no such resource",
            406 => "A strict client accepts neither of our media types",
            408 => "The body took too long to arrive",
            409 => "A unique value is taken, or references go in a circle that cannot be",
            412 => "The resource has another version",
            428 => "The connection requires If-Match and the request has none",
            413 => "The request is too large",
            415 => "The body has a media type that is not taken",
            422 => "The Idempotency-Key was used for another request",
            429 => "Too many requests",
            501 => "This is not supported; see ServiceProviderConfig",
            503 => "The server is busy; see Retry-After",
            _ => "The server failed",
        };
        let schema = json!({"$ref": "#/components/schemas/ScimError"});
        responses[status.to_string()] = content(description, schema);
    }
}

/// A resource as it is answered, or as it is sent.
fn resource(rt: &ResourceType, request: bool) -> Value {
    let mut properties = Map::new();
    let mut required = vec![json!("schemas")];
    if !request {
        required.push(json!("id"));
    }
    let schemas = json!({"type": "array", "items": {"type": "string"}, "minItems": 1});
    properties.insert("schemas".into(), schemas);
    for attribute in rt.attributes().filter(|a| a.extension.is_none()) {
        if shown(attribute, request) {
            properties.entry(attribute.name.clone()).or_insert_with(|| schema(attribute, request));
        }
        if request && attribute.required && !attribute.is_read_only() && attribute.name != "schemas" {
            required.push(json!(attribute.name));
        }
    }
    for extension in &rt.extensions {
        let members: Map<String, Value> = rt
            .extension_attributes(&extension.schema)
            .filter(|attribute| shown(attribute, request))
            .map(|attribute| (attribute.name.clone(), schema(attribute, request)))
            .collect();
        properties.insert(extension.schema.clone(), json!({"type": "object", "properties": members}));
    }
    if !request {
        properties.insert(
            "meta".into(),
            json!({"type": "object", "properties": {
                "resourceType": {"const": rt.name},
                "created": {"type": "string", "format": "date-time"},
                "lastModified": {"type": "string", "format": "date-time"},
                "location": {"type": "string", "format": "uri"},
                "version": {"type": "string"},
            }}),
        );
    }
    json!({
        "type": "object", "description": rt.description, "properties": properties, "required": required,
        "additionalProperties": true,
    })
}

fn shown(attribute: &Attribute, request: bool) -> bool {
    match request {
        true => !attribute.is_read_only() && !["schemas", "id", "meta"].contains(&attribute.name.as_str()),
        false => attribute.returned != Returned::Never && attribute.mutability != Mutability::WriteOnly,
    }
}

fn schema(attribute: &Attribute, request: bool) -> Value {
    let mut one = match attribute.kind {
        AttrType::String => json!({"type": "string"}),
        AttrType::Boolean => json!({"type": "boolean"}),
        AttrType::Decimal => json!({"type": "number"}),
        AttrType::Integer => json!({"type": "integer"}),
        AttrType::DateTime => json!({"type": "string", "format": "date-time"}),
        AttrType::Binary => json!({"type": "string", "contentEncoding": "base64"}),
        AttrType::Reference => json!({"type": "string", "format": "uri-reference"}),
        AttrType::Complex => {
            let members: Map<String, Value> = attribute
                .sub_attributes
                .iter()
                .filter(|sub| shown(sub, request))
                .map(|sub| (sub.name.clone(), schema(sub, request)))
                .collect();
            json!({"type": "object", "properties": members})
        }
    };
    if !attribute.description.is_empty() {
        one["description"] = json!(attribute.description);
    }
    if !attribute.canonical_values.is_empty() {
        one["examples"] = json!(attribute.canonical_values);
    }
    match attribute.multi_valued {
        true => json!({"type": "array", "items": one}),
        false => one,
    }
}

fn messages(registry: &Registry) -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    let list = |items: Value| {
        json!({
            "type": "object",
            "properties": {
                "schemas": {"type": "array", "contains": {"const": LIST}},
                "totalResults": {"type": "integer", "minimum": 0},
                "startIndex": {"type": "integer", "minimum": 1},
                "itemsPerPage": {"type": "integer", "minimum": 0},
                "nextCursor": {"type": "string"},
                "previousCursor": {"type": "string"},
                "Resources": {"type": "array", "items": items},
            },
            "required": ["schemas", "totalResults"],
        })
    };
    for rt in registry.resource_types() {
        let name = match rt.name.as_str() {
            "User" => "UserList",
            "Group" => "GroupList",
            // Every tenant has these two; others are a tenant's own.
            _ => continue,
        };
        all.push((name, list(json!({"$ref": format!("#/components/schemas/{}", rt.name)}))));
    }
    all.push(("ResourceList", list(json!({"$ref": "#/components/schemas/AnyResource"}))));
    let schemas = |urn: &str| json!({"type": "array", "items": {"const": urn}, "minItems": 1, "maxItems": 1});
    let any = json!({
        "type": "object",
        "properties": {"schemas": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
        "required": ["schemas"],
    });
    all.push(("AnyResource", any));
    let error = json!({
        "type": "object",
        "properties": {
            "schemas": {"const": ["urn:ietf:params:scim:api:messages:2.0:Error"]},
            "status": {"type": "string", "pattern": "^[45][0-9]{2}$"},
            "scimType": {"type": "string"},
            "detail": {"type": "string"},
        },
        "required": ["schemas", "status", "detail"],
        "additionalProperties": false,
    });
    all.push(("ScimError", error));
    let operation = json!({
        "type": "object",
        "properties": {
            "op": {"enum": ["add", "remove", "replace"]}, "path": {"type": "string"}, "value": {},
        },
        "required": ["op"],
    });
    let patch = json!({
        "type": "object",
        "properties": {"schemas": schemas(PATCH), "Operations": {"type": "array", "items": operation, "minItems": 1}},
        "required": ["schemas", "Operations"],
    });
    all.push(("PatchOp", patch));
    let names = json!({"type": "array", "items": {"type": "string"}});
    let search = json!({
        "type": "object",
        "properties": {
            "schemas": schemas(SEARCH), "attributes": names, "excludedAttributes": names,
            "filter": {"type": "string"}, "sortBy": {"type": "string"},
            "sortOrder": {"enum": ["ascending", "descending"]}, "startIndex": {"type": "integer"},
            "count": {"type": "integer"}, "cursor": {"type": "string"},
        },
        "required": ["schemas"],
    });
    all.push(("SearchRequest", search));
    let request = json!({
        "type": "object",
        "properties": {
            "method": {"enum": ["POST", "PUT", "PATCH", "DELETE"]}, "path": {"type": "string"},
            "bulkId": {"type": "string"}, "version": {"type": "string"}, "data": {"type": "object"},
        },
        "required": ["method", "path"],
    });
    let bulk = json!({
        "type": "object",
        "properties": {
            "schemas": schemas(BULK), "failOnErrors": {"type": "integer", "minimum": 1},
            "Operations": {"type": "array", "items": request},
        },
        "required": ["schemas", "Operations"],
    });
    all.push(("BulkRequest", bulk));
    let outcome = json!({
        "type": "object",
        "properties": {
            "method": {"type": "string"}, "bulkId": {"type": "string"}, "version": {"type": "string"},
            "location": {"type": "string"}, "status": {"type": "string", "pattern": "^[2-5][0-9]{2}$"},
            "response": {},
        },
        "required": ["status"],
    });
    let answer = json!({
        "type": "object",
        "properties": {
            "schemas": {"const": ["urn:ietf:params:scim:api:messages:2.0:BulkResponse"]},
            "Operations": {"type": "array", "items": outcome},
        },
        "required": ["schemas", "Operations"],
    });
    all.push(("BulkResponse", answer));
    all
}

/// A body that is taken as it stands.
fn example(name: &str) -> Value {
    match name {
        "UserRequest" => json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
            "userName": "ada@example.com", "name": {"givenName": "Ada", "familyName": "Lovelace"},
            "emails": [{"value": "ada@example.com", "type": "work", "primary": true}], "active": true,
        }),
        "GroupRequest" => json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"], "displayName": "Engineers",
        }),
        "PatchOp" => json!({
            "schemas": [PATCH],
            "Operations": [{"op": "replace", "path": "displayName", "value": "Ada Lovelace"}],
        }),
        "SearchRequest" => json!({"schemas": [SEARCH], "filter": "displayName sw \"a\"", "count": 10}),
        _ => json!({
            "schemas": [BULK],
            "Operations": [{"method": "POST", "path": "/Users", "bulkId": "ada", "data": {
                "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": "ada.l@example.com",
            }}],
        }),
    }
}

//! What clients ask before anything else: ServiceProviderConfig, ResourceTypes, Schemas (RFC 7644 §4).
//! Only what really works is advertised (CFG-001).

use annals_domain::scim::dialect::Quirk;
use annals_domain::scim::message::list_response;
use annals_domain::scim::schema::{GROUP, ResourceType, Schema};
use axum::extract::FromRequestParts;
use axum::extract::State;
use axum::http::header::{CONTENT_LOCATION, ETAG, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::auth::Visitor;
use crate::bounds::Bounds;
use crate::error::{ApiError, Result};
use crate::extract::{Query, none_match_hits, path_param};
use crate::respond;

/// The `{id}` of a discovery path.
pub(crate) struct Named(String);

impl<S: Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Ok(Named(path_param(parts, "id").await?.unwrap_or_default()))
    }
}

/// `GET /ServiceProviderConfig`, also under its old plural (EP-008).
pub(crate) async fn config(
    State(app): State<App>,
    visitor: Visitor,
    headers: HeaderMap,
    query: Query,
) -> Result<Response> {
    refuse_filter(&query)?;
    let bounds = Bounds::of(&app.options, &visitor.settings);
    let ignores_passwords =
        visitor.caller.as_ref().is_some_and(|caller| caller.client().has(Quirk::IgnoreClientPasswords));
    let mut body = json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"],
        "patch": { "supported": true },
        "bulk": {
            "supported": bounds.bulk_operations_max > 0,
            "maxOperations": bounds.bulk_operations_max,
            "maxPayloadSize": bounds.bulk_body_bytes_max,
        },
        "filter": { "supported": true, "maxResults": bounds.page_resources_max },
        "changePassword": { "supported": !ignores_passwords },
        "sort": { "supported": true },
        "etag": { "supported": true },
        "pagination": {
            "cursor": true,
            "index": true,
            "defaultPaginationMethod": "index",
            "defaultPageSize": bounds.page_resources_default,
            "maxPageSize": bounds.page_resources_max,
            "cursorTimeout": bounds.cursor_lifetime.as_secs().max(1),
        },
        "authenticationSchemes": [{
            "type": "oauthbearertoken",
            "name": "OAuth Bearer Token",
            "description": "A bearer token in the Authorization header",
            "specUri": "https://www.rfc-editor.org/info/rfc6750",
            "primary": true,
        }],
    });
    if let Some(uri) = &visitor.settings.documentation_uri {
        body["documentationUri"] = json!(uri);
    }
    let path = "/ServiceProviderConfig";
    Ok(answer(&headers, &visitor, path, with_meta(body, "ServiceProviderConfig", &visitor, path)))
}

/// `GET /ResourceTypes`.
pub(crate) async fn resource_types(visitor: Visitor, headers: HeaderMap, query: Query) -> Result<Response> {
    refuse_filter(&query)?;
    let all = visitor.registry.resource_types().map(|rt| resource_type_json(rt, &visitor));
    Ok(answer_list(&headers, &visitor, "/ResourceTypes", all.collect()))
}

/// `GET /ResourceTypes/{id}`.
pub(crate) async fn resource_type(
    visitor: Visitor,
    Named(id): Named,
    headers: HeaderMap,
    query: Query,
) -> Result<Response> {
    refuse_filter(&query)?;
    let found = visitor.registry.resource_types().find(|rt| rt.name == id);
    let found = found.ok_or_else(|| ApiError::not_found("no such resource type"))?;
    let path = format!("/ResourceTypes/{}", found.name);
    Ok(answer(&headers, &visitor, &path, resource_type_json(found, &visitor)))
}

/// `GET /Schemas`.
pub(crate) async fn schemas(visitor: Visitor, headers: HeaderMap, query: Query) -> Result<Response> {
    refuse_filter(&query)?;
    let all = visitor.registry.schemas().map(|schema| schema_json(schema, &visitor));
    Ok(answer_list(&headers, &visitor, "/Schemas", all.collect()))
}

/// `GET /Schemas/{urn}`, compared without case (DI-006).
pub(crate) async fn schema(
    visitor: Visitor,
    Named(id): Named,
    headers: HeaderMap,
    query: Query,
) -> Result<Response> {
    refuse_filter(&query)?;
    let found = visitor.registry.schema(&id);
    let found = found.ok_or_else(|| ApiError::not_found("no such schema"))?;
    let path = format!("/Schemas/{}", found.id);
    Ok(answer(&headers, &visitor, &path, schema_json(found, &visitor)))
}

/// DI-002: a client that filters here has mistaken the endpoint. All other parameters are ignored.
fn refuse_filter(query: &Query) -> Result<()> {
    if query.has("filter") {
        return Err(ApiError::status(403, "this endpoint lists all it has; it takes no filter"));
    }
    Ok(())
}

fn resource_type_json(resource_type: &ResourceType, visitor: &Visitor) -> Value {
    let path = format!("/ResourceTypes/{}", resource_type.name);
    with_meta(resource_type.to_json(), "ResourceType", visitor, &path)
}

fn schema_json(schema: &Schema, visitor: &Visitor) -> Value {
    let mut body = schema.to_json();
    if schema.id == GROUP && visitor.caller.as_ref().is_some_and(|caller| caller.group_name_unique()) {
        // What the switch does is published (idp-quirks §1).
        let attributes = body.get_mut("attributes").and_then(Value::as_array_mut);
        let name = attributes.into_iter().flatten().find(|a| a["name"] == "displayName");
        if let Some(name) = name {
            name["uniqueness"] = json!("server");
        }
    }
    with_meta(body, "Schema", visitor, &format!("/Schemas/{}", schema.id))
}

fn with_meta(mut body: Value, resource_type: &str, visitor: &Visitor, path: &str) -> Value {
    body["meta"] = json!({ "resourceType": resource_type, "location": format!("{}{path}", visitor.base) });
    body
}

fn answer_list(headers: &HeaderMap, visitor: &Visitor, path: &str, all: Vec<Value>) -> Response {
    let all: Vec<Map<String, Value>> = all
        .into_iter()
        .filter_map(|one| match one {
            Value::Object(object) => Some(object),
            _ => None,
        })
        .collect();
    answer(headers, visitor, path, list_response(all.len() as u64, 1, all))
}

/// With an entity tag over the very text (DI-005).
fn answer(headers: &HeaderMap, visitor: &Visitor, path: &str, body: Value) -> Response {
    let text = body.to_string();
    let etag = format!("W/\"{}\"", &hex::encode(Sha256::digest(&text))[..16]);
    let mut response = if none_match_hits(headers, &etag) {
        let mut response = Response::new(axum::body::Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        respond::json(text)
    };
    let location = format!("{}{path}", visitor.base);
    let named: [(HeaderName, &str); 3] =
        [(ETAG, &etag), (LOCATION, &location), (CONTENT_LOCATION, &location)];
    for (name, value) in named {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

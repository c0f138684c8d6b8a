//! Message URNs and the small envelopes around resources (RFC 7644 §3.4.2, §8.2).

use serde_json::{Map, Value, json};

/// Answer to a query (RFC 7644 §3.4.2).
pub const LIST_RESPONSE: &str = "urn:ietf:params:scim:api:messages:2.0:ListResponse";
/// Query by POST (RFC 7644 §3.4.3).
pub const SEARCH_REQUEST: &str = "urn:ietf:params:scim:api:messages:2.0:SearchRequest";
/// Change by PATCH (RFC 7644 §3.5.2).
pub const PATCH_OP: &str = "urn:ietf:params:scim:api:messages:2.0:PatchOp";
/// Several operations in one request (RFC 7644 §3.7).
pub const BULK_REQUEST: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
/// Answer to a bulk request (RFC 7644 §3.7).
pub const BULK_RESPONSE: &str = "urn:ietf:params:scim:api:messages:2.0:BulkResponse";
/// An error (RFC 7644 §3.12).
pub const ERROR: &str = "urn:ietf:params:scim:api:messages:2.0:Error";

/// A page of a list by index: always all five members, numbers as integers (RQ-002).
pub fn list_response(total: u64, start_index: u64, resources: Vec<Map<String, Value>>) -> Value {
    json!({
        "schemas": [LIST_RESPONSE],
        "totalResults": total,
        "startIndex": start_index,
        "itemsPerPage": resources.len(),
        "Resources": resources,
    })
}

/// A page of a list by cursor (RFC 9865 §2): no `startIndex`, and `nextCursor` unless it is the last.
pub fn cursor_response(
    total: u64,
    resources: Vec<Map<String, Value>>,
    next: Option<&str>,
    previous: Option<&str>,
) -> Value {
    let mut body = json!({
        "schemas": [LIST_RESPONSE],
        "totalResults": total,
        "itemsPerPage": resources.len(),
        "Resources": resources,
    });
    for (name, cursor) in [("nextCursor", next), ("previousCursor", previous)] {
        if let Some(cursor) = cursor {
            body[name] = json!(cursor);
        }
    }
    body
}

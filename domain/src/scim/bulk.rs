//! Bulk requests (RFC 7644 §3.7): the envelope, what its operations mean, and the order to carry them out.
//!
//! New resources get their ids before anything is written, so a `bulkId` is known wherever it is mentioned,
//! before or after the operation that brings it (BU-007). Operations are carried out in the given order,
//! with one exception: what is referred to before it comes is created just before its first reference.
//! Operations that refer to each other in a circle are one unit: all of them or none.

mod order;
mod references;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::dialect::{Dialect, Quirk};
use super::error::ScimError;
use super::message::BULK_REQUEST;
use super::schema::{Registry, ResourceType};
use super::value::check_keys;
use crate::ids::ResourceId;

/// What a reference to a new resource begins with (RFC 7644 §3.7.2). No id contains it (CS-006).
pub const BULK_ID: &str = "bulkId:";

/// What an operation does to its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Creates one.
    Post,
    /// Replaces it.
    Put,
    /// Changes it.
    Patch,
    /// Deletes it.
    Delete,
}

impl Method {
    const ALL: [Method; 4] = [Self::Post, Self::Put, Self::Patch, Self::Delete];

    /// The method as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// Which resource an operation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// One that it creates.
    New,
    /// One that may exist.
    Given(ResourceId),
    /// The one that the operation of this index creates.
    Created(usize),
}

/// Where an operation goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The type of the resource.
    pub resource_type: Arc<ResourceType>,
    /// Which one.
    pub name: Name,
}

/// One operation as far as it is understood without looking at any resource.
///
/// `Debug` leaves the data out: it may hold a password.
#[derive(Clone)]
pub struct Operation {
    /// What to do.
    pub method: Method,
    /// The client's own name for it.
    pub bulk_id: Option<String>,
    /// Acts as `If-Match`.
    pub version: Option<String>,
    /// Where; none if the path makes no sense.
    pub target: Option<Target>,
    /// Why it fails whatever else is true.
    pub refused: Option<ScimError>,
    data: Value,
    /// Whether the data or the path mention a `bulkId:`.
    refers: bool,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operation")
            .field("method", &self.method)
            .field("bulk_id", &self.bulk_id)
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

/// Operations that are carried out together: one, or those of a reference cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Their indices, ascending.
    pub operations: Vec<usize>,
    /// The operations of earlier units that create what these refer to, ascending.
    pub needs: Vec<usize>,
}

/// A bulk request, ready to be carried out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The operations in the given order.
    pub operations: Vec<Operation>,
    /// The same in the order to carry them out.
    pub units: Vec<Unit>,
    /// Stop once so many operations have failed (BU-004).
    pub fail_on_errors: Option<usize>,
    /// The `bulkId`s of new resources with the operations that create them.
    names: HashMap<String, usize>,
}

/// Reads the body of a bulk request and plans it.
///
/// # Errors
/// What is wrong with the request as a whole: 413 for more than `operations_max` operations (BU-005), 400
/// for a malformed envelope (BU-011), a `bulkId` given twice (BU-008), or a `failOnErrors` below 1 (BU-004).
pub fn plan(
    registry: &Registry,
    body: Value,
    operations_max: usize,
    dialect: &mut Dialect,
) -> Result<Plan, ScimError> {
    let Value::Object(mut body) = body else {
        return Err(ScimError::invalid_syntax("the body is no JSON object"));
    };
    check_keys(&body, "the body")?;
    let named = match take(&mut body, "schemas", dialect) {
        None | Some(Value::Null) => false,
        Some(Value::Array(urns)) => {
            urns.iter().any(|urn| urn.as_str().is_some_and(|urn| urn.eq_ignore_ascii_case(BULK_REQUEST)))
        }
        Some(_) => return Err(ScimError::invalid_syntax("schemas must be an array of strings")),
    };
    if !named && !dialect.allow(Quirk::MissingSchemas) {
        return Err(ScimError::invalid_syntax(format!("schemas must name {BULK_REQUEST}")));
    }
    let given = match take(&mut body, "Operations", dialect) {
        Some(Value::Array(operations)) if !operations.is_empty() => operations,
        _ => return Err(ScimError::invalid_syntax("Operations must be an array of at least one operation")),
    };
    if given.len() > operations_max {
        let detail = format!("{} operations are more than maxOperations ({operations_max})", given.len());
        return Err(ScimError::status(413, detail));
    }
    let fail_on_errors = fail_on_errors(take(&mut body, "failOnErrors", dialect))?;
    let mut operations = Vec::with_capacity(given.len());
    let mut names: HashMap<String, usize> = HashMap::new();
    for (at, operation) in given.into_iter().enumerate() {
        let within = |error: ScimError| error.within(&format!("Operations[{at}]"));
        let operation = read(registry, operation, dialect).map_err(within)?;
        if let Some(bulk_id) = &operation.bulk_id
            && let Some(first) = names.insert(bulk_id.clone(), at)
        {
            let detail = format!("Operations[{at}]: bulkId {bulk_id:?} is that of Operations[{first}] too");
            return Err(ScimError::invalid_syntax(detail));
        }
        operations.push(operation);
    }
    // Only a POST brings a resource that has no id yet.
    names.retain(|_, at| operations[*at].method == Method::Post);
    let mut needs = Vec::with_capacity(operations.len());
    for operation in &mut operations {
        needs.push(bind(registry, operation, &names, dialect));
    }
    let units = order::units(&needs);
    Ok(Plan { operations, units, fail_on_errors, names })
}

impl Plan {
    /// The id of the resource an operation is about, and its data, with every reference replaced by the id
    /// that `ids` has for the operation of that index. None if the operation is refused.
    pub fn resolve(
        &self,
        registry: &Registry,
        at: usize,
        ids: &[ResourceId],
        dialect: &Dialect,
    ) -> Option<(ResourceId, Value)> {
        let operation = self.operations.get(at)?;
        let target = operation.target.as_ref().filter(|_| operation.refused.is_none())?;
        let id = match &target.name {
            Name::New => ids.get(at)?.clone(),
            Name::Given(id) => id.clone(),
            Name::Created(other) => ids.get(*other)?.clone(),
        };
        let mut data = operation.data.clone();
        if operation.refers {
            let mut replace = |name: &str| {
                let id = self.names.get(name).and_then(|at| ids.get(*at));
                id.map(|id| id.as_str().to_owned())
            };
            let patch = operation.method == Method::Patch;
            references::visit(registry, &target.resource_type, patch, &mut data, dialect, &mut replace);
        }
        Some((id, data))
    }

    /// 409 for an operation that refers to what a failed one was to create (BU-008).
    pub fn reference_failed(&self, on: usize) -> ScimError {
        let detail = format!("it refers to {}, which failed", self.name_of(on));
        ScimError::status(409, detail)
    }

    /// 409 for an operation of a reference cycle of which another one failed (BU-010).
    pub fn cycle_failed(&self, on: usize) -> ScimError {
        let detail = format!("it is in one circle of references with {}, which failed", self.name_of(on));
        ScimError::status(409, detail)
    }

    fn name_of(&self, at: usize) -> String {
        match self.operations.get(at).and_then(|operation| operation.bulk_id.as_deref()) {
            Some(bulk_id) => format!("{BULK_ID}{bulk_id}"),
            None => format!("Operations[{at}]"),
        }
    }
}

/// Takes a member out of a message, by its exact name or, in a tolerant dialect, by that name in any case.
fn take(object: &mut Map<String, Value>, name: &str, dialect: &mut Dialect) -> Option<Value> {
    if let Some(value) = object.remove(name) {
        return Some(value);
    }
    let key = object.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone();
    if dialect.allow(Quirk::MemberCase) { object.remove(&key) } else { None }
}

fn fail_on_errors(value: Option<Value>) -> Result<Option<usize>, ScimError> {
    let number = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) if number.is_u64() || number.is_i64() => number,
        Some(_) => return Err(ScimError::invalid_syntax("failOnErrors must be a whole number")),
    };
    match number.as_u64() {
        Some(errors) if errors > 0 => Ok(Some(usize::try_from(errors).unwrap_or(usize::MAX))),
        _ => Err(ScimError::invalid_value("failOnErrors must be at least 1")),
    }
}

/// Reads one operation. An error is the whole request's; what only this operation fails by is noted in it.
fn read(registry: &Registry, operation: Value, dialect: &mut Dialect) -> Result<Operation, ScimError> {
    let Value::Object(mut operation) = operation else {
        return Err(ScimError::invalid_syntax("an operation must be an object"));
    };
    check_keys(&operation, "the operation")?;
    let mut text = |name: &str| match take(&mut operation, name, dialect) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ScimError::invalid_syntax(format!("{name} must be a string"))),
    };
    let word = text("method")?.unwrap_or_default();
    let method = Method::ALL.into_iter().find(|method| method.as_str().eq_ignore_ascii_case(&word));
    let method = method
        .ok_or_else(|| ScimError::invalid_syntax("method must be one of POST, PUT, PATCH and DELETE"))?;
    let path = text("path")?.ok_or_else(|| ScimError::invalid_syntax("path is missing"))?;
    let bulk_id = text("bulkId")?;
    let version = text("version")?;
    let data = take(&mut operation, "data", dialect).unwrap_or(Value::Null);
    let (target, mut refused) = match target(registry, method, &path, dialect) {
        Ok(target) => (Some(target), None),
        Err(error) => (None, Some(error)),
    };
    if method == Method::Post && bulk_id.as_deref().is_none_or(str::is_empty) {
        refused.get_or_insert_with(|| ScimError::invalid_syntax("POST needs a bulkId"));
    }
    if method != Method::Delete && data.is_null() {
        refused.get_or_insert_with(|| ScimError::invalid_syntax(format!("{} needs data", method.as_str())));
    }
    let in_path =
        matches!(&target, Some(Target { name: Name::Given(id), .. }) if id.as_str().starts_with(BULK_ID));
    let refers = in_path || references::mentioned(&data);
    Ok(Operation { method, bulk_id, version, target, refused, data, refers })
}

/// Endpoints that are none of resources.
const OTHER_ENDPOINTS: [&str; 7] =
    ["Bulk", "Me", "ServiceProviderConfig", "ServiceProviderConfigs", "ResourceTypes", "Schemas", ".search"];

/// What a path names (BU-002).
fn target(registry: &Registry, method: Method, path: &str, dialect: &Dialect) -> Result<Target, ScimError> {
    if path.contains("://") {
        return Err(ScimError::invalid_value("path must be relative to the base, such as /Users"));
    }
    if path.contains(['?', '#']) {
        return Err(ScimError::invalid_value("path must have no query string"));
    }
    let mut segments = path.split('/').filter(|segment| !segment.is_empty()).peekable();
    segments.next_if_eq(&"v2");
    let endpoint = segments.next().unwrap_or_default();
    let other = OTHER_ENDPOINTS.iter().find(|other| other.eq_ignore_ascii_case(endpoint));
    if let Some(other) = other {
        return Err(ScimError::invalid_value(format!("path: /{other} cannot be part of a bulk request")));
    }
    let resource_type = registry.by_endpoint(endpoint).filter(|_| !endpoint.is_empty());
    let resource_type = resource_type.ok_or_else(|| ScimError::not_found("no such path"))?;
    if dialect.is_strict() && resource_type.endpoint.trim_start_matches('/') != endpoint {
        return Err(ScimError::not_found("no such path; upper and lower case differ"));
    }
    let name = match (method, segments.next()) {
        (Method::Post, None) => Name::New,
        (Method::Post, Some(_)) => {
            let detail = format!("path of a POST must be {} alone", resource_type.endpoint);
            return Err(ScimError::invalid_value(detail));
        }
        (_, Some(id)) => Name::Given(ResourceId::from_text(id)),
        (_, None) => {
            let detail =
                format!("path of a {} needs an id behind {}", method.as_str(), resource_type.endpoint);
            return Err(ScimError::invalid_value(detail));
        }
    };
    if segments.next().is_some() {
        return Err(ScimError::not_found("no such path"));
    }
    Ok(Target { resource_type: resource_type.clone(), name })
}

/// Finds the operations that an operation refers to; itself is not among them.
fn bind(
    registry: &Registry,
    operation: &mut Operation,
    names: &HashMap<String, usize>,
    dialect: &Dialect,
) -> BTreeSet<usize> {
    let mut needs = BTreeSet::new();
    let Some(target) = operation.target.as_mut().filter(|_| operation.refers) else { return needs };
    let mut unknown = None;
    let mut refer = |name: &str| {
        match names.get(name) {
            Some(at) => drop(needs.insert(*at)),
            None => drop(unknown.get_or_insert_with(|| name.to_owned())),
        }
        None
    };
    if let Name::Given(id) = &target.name
        && let Some(name) = id.as_str().strip_prefix(BULK_ID)
    {
        let known = names.get(name).copied();
        refer(name);
        target.name = known.map_or_else(|| target.name.clone(), Name::Created);
    }
    let patch = operation.method == Method::Patch;
    references::visit(registry, &target.resource_type, patch, &mut operation.data, dialect, &mut refer);
    if let Some(name) = unknown {
        let detail = format!("{BULK_ID}{name}: no POST of this request has this bulkId");
        operation.refused.get_or_insert_with(|| ScimError::invalid_value(detail));
    }
    needs
}

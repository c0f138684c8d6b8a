//! The SCIM protocol engine (RFC 7643, RFC 7644): JSON and text in, canonical values or a SCIM error out.
//!
//! Everything is driven by schema definitions ([`schema`]), never by fixed structs, so a tenant's own
//! extension is as good as `userName`. What a client sends passes the same stations each time:
//! [`dialect`] names the deviations its profile allows, [`value`] turns JSON into canonical values,
//! [`resource`] and [`patch`] build documents of them, and [`filter`] asks questions about documents
//! by the same index rows that the read model stores. [`bulk`] plans many requests in one.

pub mod bulk;
pub mod dialect;
pub mod error;
pub mod filter;
pub mod fold;
pub mod message;
pub mod patch;
pub mod path;
pub mod project;
pub mod resource;
pub mod schema;
pub mod sort;
pub mod value;

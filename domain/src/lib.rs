//! The pure half of Annals: the SCIM engine and the decisions.
//!
//! Nothing here reads a clock, draws a random number, or does I/O; a string goes in and an expected
//! string comes out. [`scim`] is the protocol (schemas, resources, filters, PATCH), driven by schema
//! definitions and never by fixed structs. The other modules decide: a command and a state become
//! events ([`event`]), and events become states again.

pub mod clock;
pub mod definition;
pub mod event;
pub mod ids;
pub mod resource;
pub mod scim;
pub mod tenant;
pub mod upcast;
pub mod view;

//! The HTTP surface, in process, on SQLite in a temporary folder; one module per behaviour.

mod admin;
mod auth;
mod bulk;
mod cases;
mod config;
mod contract;
mod dialect_entra;
mod dialect_okta;
mod discovery;
mod etag;
mod groups;
mod health;
mod idempotency;
mod input;
mod lists;
mod me;
mod observe;
mod password;
mod patch;
mod requirements;
mod schemas;
mod search;
mod switches;
mod users;
mod world;

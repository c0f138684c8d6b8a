//! Administration as events: tenants, connections, tokens, apps, schemas and resource types (D8, D13).
//!
//! These entities live in the same journal as SCIM resources and use the same
//! [`Event`](crate::event::Event)s; only their
//! content is typed here. They are no resources: no endpoint serves them, no read model holds them.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::definition::{ResourceTypeDefinition, SchemaDefinition};
use crate::event::StreamId;
use crate::ids::{AppId, ConnectionId, ResourceId, TenantId};
use crate::scim::dialect::Client;
use crate::scim::resource::Document;

/// A kind of administrative entity.
pub trait Entity: Serialize + DeserializeOwned {
    /// Its type name in streams; the event kinds are its lower case.
    const TYPE: &'static str;

    /// Its stream.
    fn stream(key: &str) -> StreamId {
        StreamId {
            resource_type: Self::TYPE.to_owned(),
            // No SCIM id has a dot in front of a slug, so the two can never meet.
            id: ResourceId::from_text(&format!("{}.{key}", Self::TYPE.to_lowercase())),
        }
    }

    /// Its content as a document.
    fn to_document(&self) -> Document {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => Document(map),
            _ => Document::default(),
        }
    }

    /// Its content from a document.
    fn from_document(document: &Document) -> Result<Self, serde_json::Error> {
        serde_json::from_value(Value::Object(document.0.clone()))
    }
}

impl Entity for Tenant {
    const TYPE: &'static str = "Tenant";
}
impl Entity for Connection {
    const TYPE: &'static str = "Connection";
}
impl Entity for Token {
    const TYPE: &'static str = "Token";
}
impl Entity for App {
    const TYPE: &'static str = "App";
}
impl Entity for SchemaDefinition {
    const TYPE: &'static str = "Schema";
}
impl Entity for ResourceTypeDefinition {
    const TYPE: &'static str = "ResourceType";
}

/// Name of the tenant that holds the tokens of the installation's operators, one connection for each
/// operator. It is made with the first of them; no other tenant can have its name, and no SCIM client
/// belongs to it.
pub const OPERATORS: &str = "annals";

/// Whether a type name belongs to administration rather than to SCIM.
pub fn is_administrative(resource_type: &str) -> bool {
    [Tenant::TYPE, Connection::TYPE, Token::TYPE, App::TYPE].contains(&resource_type)
        || is_definition(resource_type)
}

/// Whether a type name is that of a schema or resource type: its events change what resources may hold.
pub fn is_definition(resource_type: &str) -> bool {
    [SchemaDefinition::TYPE, ResourceTypeDefinition::TYPE].contains(&resource_type)
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// Its slug.
    pub id: TenantId,
    /// What it does differently.
    #[serde(default)]
    pub settings: TenantSettings,
}

/// Switches of a tenant; each one's default is what the RFCs say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TenantSettings {
    /// `externalId` is unique per resource type and connection (CS-008).
    pub external_id_unique: bool,
    /// Group `displayName` is unique, whatever the connection's profile (CS-007, EN-021).
    pub group_name_unique: bool,
    /// `members.value` may name what does not exist (CS-030).
    pub dangling_members: bool,
    /// A query over all resource types needs a filter; without one it is 400 `tooMany` (RQ-006).
    pub filtered_root_queries: bool,
    /// The bus carries sealed bodies instead of the published shape (D7).
    pub sealed_bus: bool,
    /// Fewest characters of a password; 0 and 1 = every password (US-004).
    pub password_characters_min: u32,
}

/// A connection: one identity provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Its slug, unique in the tenant.
    pub id: ConnectionId,
    /// How its requests are read: the members `profile` and `switches`.
    #[serde(flatten)]
    pub client: Client,
}

impl Connection {
    /// A connection of that name.
    pub fn new(id: ConnectionId, client: impl Into<Client>) -> Connection {
        Connection { id, client: client.into() }
    }
}

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// Read resources.
    #[serde(rename = "scim.read")]
    Read,
    /// Change resources.
    #[serde(rename = "scim.write")]
    Write,
    /// Administer the tenant.
    #[serde(rename = "scim.admin")]
    Admin,
    /// Read the event feed.
    #[serde(rename = "scim.events")]
    Events,
    /// Check users' passwords, and nothing else.
    #[serde(rename = "scim.verify")]
    Verify,
}

impl Scope {
    /// Every scope there is.
    pub const ALL: [Scope; 5] = [Scope::Read, Scope::Write, Scope::Admin, Scope::Events, Scope::Verify];
}

impl Scope {
    /// The scope's name in tokens and challenges (SE-006).
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "scim.read",
            Scope::Write => "scim.write",
            Scope::Admin => "scim.admin",
            Scope::Events => "scim.events",
            Scope::Verify => "scim.verify",
        }
    }

    /// The scope of a name.
    pub fn parse(name: &str) -> Option<Scope> {
        Scope::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

/// A bearer token. The secret is stored nowhere, its digest in a table of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Its public id, part of the token's text, so that an operator can tell tokens apart.
    pub id: String,
    /// The connection it speaks for.
    pub connection: ConnectionId,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it ends; none = long-lived.
    pub expires: Option<Timestamp>,
    /// The user it stands for at `/Me`, by id or `userName`; none = a machine (ME-003).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// How a downstream application is fed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Driver {
    /// A SCIM service provider, kept in step with the newest state.
    #[serde(rename_all = "camelCase")]
    Scim {
        /// Base URL, such as `https://app.example/scim/v2`.
        base_url: String,
        /// Most members named in one request.
        #[serde(default = "members_per_request")]
        members_per_request_max: usize,
    },
    /// An HTTP endpoint that gets every event in order (CloudEvents, Standard Webhooks).
    #[serde(rename_all = "camelCase")]
    Webhook {
        /// Where to POST.
        url: String,
    },
}

fn members_per_request() -> usize {
    100
}

/// A downstream application. Its credential is a sealed secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// Its slug, unique in the tenant.
    pub id: AppId,
    /// How it is fed.
    pub driver: Driver,
    /// Resource types it gets; empty = all.
    #[serde(default)]
    pub resource_types: Vec<String>,
    /// Paused by an operator: lanes are planned, nothing is sent.
    #[serde(default)]
    pub paused: bool,
    /// Most requests in flight at once.
    #[serde(default = "concurrency")]
    pub concurrency_max: usize,
    /// Most requests a second; 0 = no limit.
    #[serde(default)]
    pub rate_per_second_max: u32,
}

fn concurrency() -> usize {
    8
}

//! Administration as events: tenants, connections, tokens, apps, schemas and resource types (D8, D13).
//!
//! These entities live in the same journal as SCIM resources and use the same
//! [`Event`](crate::event::Event)s; only their
//! content is typed here. They are no resources: no endpoint serves them, no read model holds them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::ToSchema;

use crate::clock::{Entropy, Timestamp};
use crate::definition::{ResourceTypeDefinition, SchemaDefinition};
use crate::event::StreamId;
use crate::ids::{AppId, ConnectionId, Position, ResourceId, TenantId};
use crate::scim::dialect::Client;
use crate::scim::error::ScimError;
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

/// How the journal goes on after an older backup of it was restored: one for each tenant, so that whoever
/// reads a tenant's events alone is told, too (D5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// The journal's epoch from here on.
    pub epoch: i64,
    /// The last position that means the same as before. What was above it is withdrawn, and its positions
    /// are given anew.
    pub base: Position,
}

impl Journal {
    /// The one there is in each tenant.
    pub const KEY: &'static str = "history";
}

impl Entity for Journal {
    const TYPE: &'static str = "Journal";
}

/// Name of the tenant that holds the tokens of the installation's operators, one connection for each
/// operator. It is made with the first of them; no other tenant can have its name, and no SCIM client
/// belongs to it.
pub const OPERATORS: &str = "annals";

/// Whether a type name belongs to administration rather than to SCIM.
pub fn is_administrative(resource_type: &str) -> bool {
    [Tenant::TYPE, Connection::TYPE, Token::TYPE, App::TYPE, Journal::TYPE].contains(&resource_type)
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
    /// Most operations of a bulk request, if fewer than the server takes anyway; 0 = no bulk requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bulk_operations_max: Option<u32>,
    /// Largest body of a bulk request in bytes, if smaller than what the server takes anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub bulk_body_bytes_max: Option<u32>,
    /// Resources on a page if the client names no `count`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub page_resources_default: Option<u32>,
    /// Most resources on a page, if fewer than the server gives anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub page_resources_max: Option<u32>,
    /// How long a cursor can be used in seconds, if shorter than the server allows anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub cursor_lifetime_s: Option<u32>,
    /// Where the tenant's clients find help: `documentationUri` of ServiceProviderConfig.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^https?://[!-~]+$", max_length = 2048)]
    pub documentation_uri: Option<String>,
}

impl TenantSettings {
    /// Whether every setting has a sense.
    ///
    /// # Errors
    /// 400, naming the setting.
    pub fn check(&self) -> Result<(), ScimError> {
        let bounds = [
            ("bulkBodyBytesMax", self.bulk_body_bytes_max),
            ("pageResourcesDefault", self.page_resources_default),
            ("pageResourcesMax", self.page_resources_max),
            ("cursorLifetimeS", self.cursor_lifetime_s),
        ];
        if let Some((name, _)) = bounds.into_iter().find(|(_, bound)| *bound == Some(0)) {
            return Err(ScimError::invalid_value(format!("{name} must be at least 1")));
        }
        self.documentation_uri.as_deref().map_or(Ok(()), |uri| check_url("documentationUri", uri))
    }
}

/// Longest URL that is kept, in bytes.
const URL_BYTES_MAX: usize = 2_048;

fn check_url(name: &str, url: &str) -> Result<(), ScimError> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let legal = rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()));
    if !legal || url.len() > URL_BYTES_MAX {
        return Err(ScimError::invalid_value(format!(
            "{name} must be a URL with http or https, of at most {URL_BYTES_MAX} bytes"
        )));
    }
    Ok(())
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
        #[schema(pattern = "^https?://[!-~]+$", max_length = 2048)]
        base_url: String,
        /// Most members named in one request.
        #[schema(minimum = 1, maximum = 10000)]
        #[serde(default = "members_per_request")]
        members_per_request_max: usize,
    },
    /// An HTTP endpoint that gets every event in order (CloudEvents, Standard Webhooks).
    #[serde(rename_all = "camelCase")]
    Webhook {
        /// Where to POST.
        #[schema(pattern = "^https?://[!-~]+$", max_length = 2048)]
        url: String,
    },
}

/// Random bytes of a webhook's secret.
const WEBHOOK_SECRET_BYTES: usize = 32;

/// A signing secret for a new webhook, as Standard Webhooks writes it: `whsec_` and base64.
pub fn generate_webhook_secret(entropy: &dyn Entropy) -> SecretString {
    let mut bytes = [0; WEBHOOK_SECRET_BYTES];
    entropy.fill(&mut bytes);
    SecretString::from(format!("whsec_{}", STANDARD.encode(bytes)))
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
    #[schema(minimum = 1, maximum = 1000)]
    #[serde(default = "concurrency")]
    pub concurrency_max: usize,
    /// Most requests a second; 0 = no limit.
    #[serde(default)]
    pub rate_per_second_max: u32,
}

fn concurrency() -> usize {
    8
}

/// Most requests in flight at once that can be asked for.
const CONCURRENCY_MAX: usize = 1_000;
/// Most members in one request that can be asked for.
const MEMBERS_PER_REQUEST_MAX: usize = 10_000;

impl App {
    /// Whether it can be fed at all.
    ///
    /// # Errors
    /// 400, naming the member.
    pub fn check(&self) -> Result<(), ScimError> {
        match &self.driver {
            Driver::Scim { base_url, members_per_request_max } => {
                check_url("baseUrl", base_url)?;
                if !(1..=MEMBERS_PER_REQUEST_MAX).contains(members_per_request_max) {
                    let detail = format!("membersPerRequestMax must be 1 to {MEMBERS_PER_REQUEST_MAX}");
                    return Err(ScimError::invalid_value(detail));
                }
            }
            Driver::Webhook { url } => check_url("url", url)?,
        }
        if !(1..=CONCURRENCY_MAX).contains(&self.concurrency_max) {
            return Err(ScimError::invalid_value(format!("concurrencyMax must be 1 to {CONCURRENCY_MAX}")));
        }
        Ok(())
    }
}

//! Client profiles (idp-quirks §1): each deviation from the RFC that a client's traffic needs is a named
//! value, allowed by profile, recorded where it really rewrote something.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, ObjectBuilder, Schema, Type};

use super::schema::{ENTERPRISE_USER, ResourceType};

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// Every value there is.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The stable name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        // utoipa does not see names that a macro passes on.
        impl utoipa::PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let names = Self::ALL.iter().map(|value| value.as_str());
                ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).into()
            }
        }

        impl ToSchema for $name {}

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;
            fn from_str(s: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|v| v.as_str() == s).ok_or_else(|| UnknownName(s.to_owned()))
            }
        }
    };
}

/// A name that is neither a profile nor a quirk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name {0:?}")]
pub struct UnknownName(pub String);

named! {
    /// What kind of client speaks on a connection. Chosen by the administrator, never by `User-Agent`.
    #[derive(Default)]
    Profile {
        /// The letter of the RFCs.
        Strict = "strict",
        /// Tolerant of what several real clients send; the default.
        #[default]
        Generic = "generic",
        /// Microsoft Entra ID.
        Entra = "entra",
        /// Okta.
        Okta = "okta",
        /// OneLogin.
        OneLogin = "onelogin",
        /// JumpCloud.
        JumpCloud = "jumpcloud",
    }
}

named! {
    /// A named deviation, and the canonical form it is rewritten to.
    Quirk {
        /// Entra sends `{"op":"Replace"}`; read as `replace` (PA-002).
        OpCase = "op-case",
        /// `operations`, `Op`, `Path`: names of a PATCH message in another case (PA-002).
        MemberCase = "member-case",
        /// Entra sends `"active":"False"`, OneLogin `"true"`; read as a boolean (CS-024).
        StringBoolean = "string-boolean",
        /// Entra sends custom numbers as `"42"`; read as a number (EN-054).
        StringNumber = "string-number",
        /// One object for a list, `"manager":"9f1"`, `"manager":[{"value":"9f1"}]`; wrapped or unwrapped
        /// (CR-008). Bare strings and one-element lists only where `value` is a resource's id.
        WrapUnwrap = "wrap-unwrap",
        /// Entra sends `{"name.givenName":"x"}` in a PATCH without path; read as a path (P29).
        DottedKeys = "dotted-keys",
        /// Entra sends `{"urn:…:User:department":"x"}` in a PATCH without path; read as a path (P29).
        UrnKeys = "urn-keys",
        /// `{"emails[type eq \"work\"].value":"x"}` in a PATCH without path; read as a path (idp-quirks §2.8).
        FilterKeys = "filter-keys",
        /// Entra's old job writes `urn:…:User.department`; the dot is read as a colon (EN-051).
        DottedUrn = "dotted-urn",
        /// Entra replaces `emails[type eq "work"].value` where there is none; it is created (P10).
        CreateOnFilterMiss = "create-on-filter-miss",
        /// Entra and JumpCloud remove `members` with a `value` list; only those are removed (G04).
        RemoveWithValue = "remove-with-value",
        /// Entra filters by `emails[type eq "work"].value eq "x"`; read as one value path (FI-023).
        PostfixFilter = "postfix-filter",
        /// Entra names `manager` without its URN; read as the only extension's attribute (FI-005).
        BareExtensionNames = "bare-extension-names",
        /// OneLogin sends `urn:scim:schemas:core:2.0`; read as the schemas of SCIM 2.0 (OL-005).
        LegacySchemaUrns = "legacy-schema-urns",
        /// OneLogin sends SCIM 1.1's `"manager":{"managerId":"9f1"}`; read as `value` (OL-006).
        ManagerId = "manager-id",
        /// Entra sends `roles[].displayName`; read as `display` (idp-quirks §2.9).
        RoleDisplayName = "role-display-name",
        /// Entra sends a role as JSON inside a string; split into `value` and `display`. A tenant's switch (P60).
        UnwrapRoleJson = "unwrap-role-json",
        /// Ping sends one address twice, both primary; the first stays primary (PI-003).
        DuplicatePrimary = "duplicate-primary",
        /// Entra clears by `""` or `{"value":""}`; a single complex attribute loses its value (CS-033).
        EmptyUnassigns = "empty-unassigns",
        /// `schemas` is missing or without the base schema; it is inferred from the endpoint (CR-005).
        MissingSchemas = "missing-schemas",
        /// Entra lists a schema of its own on groups; ignored (CR-006).
        UnknownSchemas = "unknown-schemas",
        /// An attribute that no schema defines; ignored (CR-007).
        UnknownAttributes = "unknown-attributes",
        /// Filters with `TRUE`, `False`, `NULL`; read as literals (FI-024).
        LiteralCase = "literal-case",
        /// Filters with `eq anna` or `eq 'anna'`; read as `eq "anna"` (FI-022).
        LenientFilterLiterals = "lenient-filter-literals",
        /// A PUT that does not mention an extension keeps it; else it is cleared (PU-003).
        KeepOmittedExtensions = "keep-omitted-extensions",
        /// A PUT of a group that does not mention `members` keeps them; else all go (KC-003).
        PutWithoutMembersKeeps = "put-without-members-keeps",
        /// PATCH `replace` on `members` adds what it names and removes nobody (EN-075, `replaceMembers: merge`).
        MergeMembers = "merge-members",
        /// Passwords are taken and thrown away, for clients that send random ones (OK-020).
        IgnoreClientPasswords = "ignore-client-passwords",
        /// POST of a `userName` that an inactive user has replaces and reactivates that user; else 409.
        ReactivateOnCreate = "reactivate-on-create",
        /// Two groups may not have the same name: 409 (V14).
        GroupNameUnique = "group-name-unique",
        /// Answers always are `application/scim+json`, whatever `Accept` says (EN-006).
        ScimMediaType = "scim-media-type",
        /// Answers always are `application/json` (OL-003); before `scim-media-type`.
        JsonMediaType = "json-media-type",
        /// `Authorization` may hold the token alone, without `Bearer` (OK-002).
        BareToken = "bare-token",
        /// PUT, PATCH and DELETE without `If-Match` are refused: 428 (RFC 6585 §3).
        RequireIfMatch = "require-if-match",
        /// A list over all resource types needs a filter: 400 `tooMany` (RQ-006).
        RefuseRootLists = "refuse-root-lists",
    }
}

/// What `Content-Type` answers have (MT-003).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseMediaType {
    /// By the request's `Accept`.
    Negotiate,
    /// Always `application/scim+json` (EN-006).
    Scim,
    /// Always `application/json` (OL-003).
    Json,
}

impl Profile {
    /// Whether the profile allows a quirk (the table of idp-quirks §1).
    pub fn has(self, quirk: Quirk) -> bool {
        match quirk {
            Quirk::OpCase => true,
            Quirk::UnwrapRoleJson
            | Quirk::LenientFilterLiterals
            | Quirk::KeepOmittedExtensions
            | Quirk::PutWithoutMembersKeeps
            | Quirk::MergeMembers
            | Quirk::IgnoreClientPasswords
            | Quirk::ReactivateOnCreate
            | Quirk::BareToken
            | Quirk::RequireIfMatch
            | Quirk::RefuseRootLists => false,
            Quirk::CreateOnFilterMiss => matches!(self, Self::Entra | Self::OneLogin | Self::JumpCloud),
            Quirk::GroupNameUnique | Quirk::ScimMediaType => self == Self::Entra,
            Quirk::LegacySchemaUrns | Quirk::ManagerId | Quirk::JsonMediaType => self == Self::OneLogin,
            _ => self != Self::Strict,
        }
    }
}

/// Quirks switched by an administrator, whatever the profile says.
pub type Switches = BTreeMap<Quirk, bool>;

/// [`Switches`] as OpenAPI describes them.
pub fn switches_schema() -> Object {
    let on = ObjectBuilder::new().schema_type(Type::Boolean);
    ObjectBuilder::new()
        .description(Some("What differs from the profile"))
        .additional_properties(Some(on))
        .property_names(Some(<Quirk as utoipa::PartialSchema>::schema()))
        .build()
}

/// How a connection's requests are read: a profile, and what its administrator switched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Client {
    /// The profile.
    pub profile: Profile,
    /// What differs from it.
    #[serde(default, skip_serializing_if = "Switches::is_empty")]
    #[schema(schema_with = switches_schema, required = false)]
    pub switches: Switches,
}

impl From<Profile> for Client {
    fn from(profile: Profile) -> Self {
        Self { profile, switches: Switches::new() }
    }
}

impl Client {
    /// The same with one quirk switched.
    #[must_use]
    pub fn with(mut self, quirk: Quirk, on: bool) -> Self {
        self.switches.insert(quirk, on);
        self
    }

    /// Whether a quirk is allowed.
    pub fn has(&self, quirk: Quirk) -> bool {
        self.switches.get(&quirk).copied().unwrap_or_else(|| self.profile.has(quirk))
    }

    /// The `Content-Type` of answers.
    pub fn response_media_type(&self) -> ResponseMediaType {
        if self.has(Quirk::JsonMediaType) {
            ResponseMediaType::Json
        } else if self.has(Quirk::ScimMediaType) {
            ResponseMediaType::Scim
        } else {
            ResponseMediaType::Negotiate
        }
    }
}

/// A client's profile and switches at work on one request, and the quirks that rewrote something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// How the client's requests are read.
    pub client: Client,
    /// The quirks that rewrote something so far.
    pub applied: BTreeSet<Quirk>,
}

impl Dialect {
    /// A dialect that has applied nothing yet.
    pub fn new(client: impl Into<Client>) -> Self {
        Self { client: client.into(), applied: BTreeSet::new() }
    }

    /// The same with one quirk switched.
    #[must_use]
    pub fn with(mut self, quirk: Quirk, on: bool) -> Self {
        self.client.switches.insert(quirk, on);
        self
    }

    /// Whether a quirk is allowed.
    pub fn has(&self, quirk: Quirk) -> bool {
        self.client.has(quirk)
    }

    /// Asks for a quirk where it would rewrite something: recorded if allowed.
    pub fn allow(&mut self, quirk: Quirk) -> bool {
        let allowed = self.has(quirk);
        if allowed {
            self.applied.insert(quirk);
        }
        allowed
    }

    /// Whether the letter of the RFCs holds.
    pub fn is_strict(&self) -> bool {
        self.client.profile == Profile::Strict
    }

    /// The schema a URN names on a resource type: itself, or the one a legacy URN stands for (OL-005).
    pub(crate) fn modern_urn<'a>(&mut self, resource_type: &'a ResourceType, urn: &'a str) -> &'a str {
        let modern = match urn.to_ascii_lowercase().as_str() {
            "urn:scim:schemas:core:1.0" | "urn:scim:schemas:core:2.0" => &resource_type.schema,
            "urn:scim:schemas:extension:enterprise:1.0" | "urn:scim:schemas:extension:enterprise:2.0" => {
                ENTERPRISE_USER
            }
            _ => return urn,
        };
        if self.allow(Quirk::LegacySchemaUrns) { modern } else { urn }
    }
}

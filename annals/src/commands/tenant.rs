//! `annals tenant`

use annals_domain::ids::TenantId;
use annals_domain::tenant::TenantSettings;
use anyhow::bail;
use clap::{Args, Subcommand};

use super::{open, operator};
use crate::config::Config;

/// What to do with tenants.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a tenant.
    Create {
        /// Its slug: 1 to 32 of a-z, 0-9 and '-'.
        tenant: TenantId,
        #[command(flatten)]
        settings: Settings,
    },
    /// Sets a tenant's switches; what is not named goes back to its default.
    Set {
        /// Its slug.
        tenant: TenantId,
        #[command(flatten)]
        settings: Settings,
    },
    /// Lists the tenants with their switches.
    List,
}

/// A tenant's switches.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// `externalId` is unique per resource type and connection.
    #[arg(long)]
    external_id_unique: bool,
    /// Group `displayName` is unique.
    #[arg(long)]
    group_name_unique: bool,
    /// Members may name what does not exist.
    #[arg(long)]
    dangling_members: bool,
    /// A query over all resource types needs a filter.
    #[arg(long)]
    filtered_root_queries: bool,
    /// The bus carries sealed bodies.
    #[arg(long)]
    sealed_bus: bool,
    /// Fewest characters of a password; 0 = every password is taken.
    #[arg(long, value_name = "CHARACTERS", default_value_t = 0)]
    password_characters_min: u32,
    /// Most operations of a bulk request, if fewer than the server takes anyway; 0 = no bulk requests.
    #[arg(long)]
    bulk_operations_max: Option<u32>,
    /// Largest body of a bulk request in bytes, if smaller than what the server takes anyway.
    #[arg(long)]
    bulk_body_bytes_max: Option<u32>,
    /// Resources on a page if the client names no count.
    #[arg(long)]
    page_resources_default: Option<u32>,
    /// Most resources on a page, if fewer than the server gives anyway.
    #[arg(long)]
    page_resources_max: Option<u32>,
    /// How long a cursor can be used in seconds, if shorter than the server allows anyway.
    #[arg(long)]
    cursor_lifetime_s: Option<u32>,
    /// Where the tenant's clients find help.
    #[arg(long)]
    documentation_uri: Option<String>,
}

impl From<Settings> for TenantSettings {
    fn from(s: Settings) -> TenantSettings {
        TenantSettings {
            external_id_unique: s.external_id_unique,
            group_name_unique: s.group_name_unique,
            dangling_members: s.dangling_members,
            filtered_root_queries: s.filtered_root_queries,
            sealed_bus: s.sealed_bus,
            password_characters_min: s.password_characters_min,
            bulk_operations_max: s.bulk_operations_max,
            bulk_body_bytes_max: s.bulk_body_bytes_max,
            page_resources_default: s.page_resources_default,
            page_resources_max: s.page_resources_max,
            cursor_lifetime_s: s.cursor_lifetime_s,
            documentation_uri: s.documentation_uri,
        }
    }
}

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let store = open(config).await?;
    match command {
        Command::Create { tenant, settings } => {
            store.create_tenant(&tenant, settings.into(), operator()).await?;
            println!(
                "Tenant {tenant} was made. Next: annals connection create {tenant} <name> --profile entra"
            );
        }
        Command::Set { tenant, settings } => {
            if store.tenant(&tenant).await?.is_none() {
                bail!("tenant {tenant} does not exist: see `annals tenant list`");
            }
            store.set_tenant_settings(&tenant, settings.into(), operator()).await?;
            println!("Tenant {tenant} was changed; other processes notice within five seconds.");
        }
        Command::List => {
            for tenant in store.tenants().await? {
                println!("{}\t{}", tenant.id, serde_json::to_string(&tenant.settings)?);
            }
        }
    }
    store.close().await;
    Ok(())
}

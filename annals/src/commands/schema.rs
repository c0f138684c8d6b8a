//! `annals schema` and `annals resource-type`

use std::io::Read as _;
use std::path::PathBuf;

use annals_domain::definition::{DEFINITION_BYTES_MAX, ResourceTypeDefinition, SchemaDefinition};
use annals_domain::ids::{TenantId, Version};
use annals_store::definitions::Put;
use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::Value;

use super::{open, operator};
use crate::config::Config;

/// What to do with a tenant's own schemas.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists a tenant's own schemas.
    List {
        /// The tenant.
        tenant: TenantId,
    },
    /// Prints a schema as JSON.
    Show {
        /// The tenant.
        tenant: TenantId,
        /// Its URN.
        urn: String,
    },
    /// Makes a schema, changes it, or brings a retired one back; in force at once, everywhere.
    Put {
        /// The tenant.
        tenant: TenantId,
        /// File with the JSON of RFC 7643 §7, see docs/schemas.md; "-" = standard input.
        file: PathBuf,
    },
    /// Takes a schema out of use that no resource type has.
    Retire {
        /// The tenant.
        tenant: TenantId,
        /// Its URN.
        urn: String,
    },
}

/// What to do with a tenant's own resource types, and with extensions of users and groups.
#[derive(Debug, Subcommand)]
pub(crate) enum ResourceTypeCommand {
    /// Lists a tenant's own resource types and what it adds to users and groups.
    List {
        /// The tenant.
        tenant: TenantId,
    },
    /// Prints a resource type as JSON.
    Show {
        /// The tenant.
        tenant: TenantId,
        /// Its name.
        name: String,
    },
    /// Makes a resource type, changes it, or brings a retired one back; in force at once, everywhere.
    Put {
        /// The tenant.
        tenant: TenantId,
        /// File with the JSON of RFC 7643 §6, see docs/schemas.md; "-" = standard input.
        file: PathBuf,
    },
    /// Takes a resource type out of use that has no resources.
    Retire {
        /// The tenant.
        tenant: TenantId,
        /// Its name.
        name: String,
    },
}

/// Runs `annals schema`.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let store = open(config).await?;
    match command {
        Command::List { tenant } => {
            let definitions = store.definitions(&tenant).await?;
            for schema in store.own_schemas(&tenant).await? {
                let id = &schema.entity.id;
                let users: Vec<&str> = definitions.users_of(id).map(|rt| rt.name.as_str()).collect();
                let state = state(schema.entity.retired);
                println!("{id}\tversion {}\t{state}\t{}", schema.version, users.join(", "));
            }
        }
        Command::Show { tenant, urn } => match store.own_schema(&tenant, &urn).await? {
            Some(schema) => println!("{:#}", schema.entity.to_json()),
            None => bail!("{tenant} has no schema {urn} of its own"),
        },
        Command::Put { tenant, file } => {
            let schema = SchemaDefinition::read(&read(&file)?)?;
            let id = schema.id.clone();
            said("Schema", &id, &store.put_schema(&tenant, schema, operator()).await?);
        }
        Command::Retire { tenant, urn } => {
            store.retire_schema(&tenant, &urn, operator()).await?;
            println!("Schema {urn} was retired.");
        }
    }
    store.close().await;
    Ok(())
}

/// Runs `annals resource-type`.
pub(crate) async fn run_resource_type(config: &Config, command: ResourceTypeCommand) -> anyhow::Result<()> {
    let store = open(config).await?;
    match command {
        ResourceTypeCommand::List { tenant } => {
            for rt in store.own_resource_types(&tenant).await? {
                let extensions = rt.entity.schema_extensions.iter().map(|e| e.schema.as_str());
                let schemas: Vec<&str> =
                    std::iter::once(rt.entity.schema.as_str()).chain(extensions).collect();
                println!(
                    "{}\t{}\tversion {}\t{}\t{}",
                    rt.entity.name,
                    rt.entity.endpoint,
                    rt.version,
                    state(rt.entity.retired),
                    schemas.join(", ")
                );
            }
        }
        ResourceTypeCommand::Show { tenant, name } => match store.own_resource_type(&tenant, &name).await? {
            Some(rt) => println!("{:#}", rt.entity.to_json()),
            None => bail!("{tenant} has no resource type {name} of its own"),
        },
        ResourceTypeCommand::Put { tenant, file } => {
            let rt = ResourceTypeDefinition::read(&read(&file)?)?;
            let name = rt.name.clone();
            let put = store.put_resource_type(&tenant, rt, operator()).await?;
            said("Resource type", &name, &put);
        }
        ResourceTypeCommand::Retire { tenant, name } => {
            store.retire_resource_type(&tenant, &name, operator()).await?;
            println!("Resource type {name} was retired.");
        }
    }
    store.close().await;
    Ok(())
}

fn state(retired: bool) -> &'static str {
    if retired { "retired" } else { "in use" }
}

fn said<T>(noun: &str, name: &str, put: &Put<T>) {
    let version: Version = put.stored.version;
    let what = if put.created { "was made" } else { "is in force" };
    println!("{noun} {name} {what}, version {version}.");
}

fn read(file: &PathBuf) -> anyhow::Result<Value> {
    let bytes_max = 2 * DEFINITION_BYTES_MAX as u64;
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().take(bytes_max).read_to_string(&mut text).context("reading standard input")?;
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
        opened
            .take(bytes_max)
            .read_to_string(&mut text)
            .with_context(|| format!("reading {}", file.display()))?;
    }
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))
}

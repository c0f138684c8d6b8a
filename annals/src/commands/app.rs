//! `annals app`

use std::io::Read as _;
use std::path::PathBuf;

use annals_domain::ids::{AppId, TenantId};
use annals_domain::tenant::{App, Driver, generate_webhook_secret};
use annals_store::Store;
use anyhow::{Context, bail};
use clap::Subcommand;
use secrecy::{ExposeSecret, SecretString};

use super::{open, operator};
use crate::config::Config;

/// What to do with downstream applications.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Adds an application; it gets everything that exists, then every change.
    Create {
        /// The tenant.
        tenant: TenantId,
        /// The application's slug.
        app: AppId,
        /// Base URL of its SCIM service, such as https://app.example/scim/v2.
        #[arg(long, conflicts_with = "webhook", required_unless_present = "webhook")]
        scim: Option<String>,
        /// Where to POST every event instead.
        #[arg(long)]
        webhook: Option<String>,
        /// File with the bearer token (SCIM) or signing secret (webhook); "-" = standard input. A webhook
        /// without one gets a new secret, printed once.
        #[arg(long)]
        credential_file: Option<PathBuf>,
        /// Only this resource type; may be given several times.
        #[arg(long)]
        resource_type: Vec<String>,
        /// Most requests in flight at once.
        #[arg(long, default_value_t = 8)]
        concurrency: usize,
        /// Most requests a second; 0 = no limit.
        #[arg(long, default_value_t = 0)]
        rate: u32,
    },
    /// Lists a tenant's applications.
    List {
        /// The tenant.
        tenant: TenantId,
    },
    /// Sends nothing more until resumed; what is due stays due.
    Pause {
        /// The tenant.
        tenant: TenantId,
        /// The application.
        app: AppId,
    },
    /// Goes on sending.
    Resume {
        /// The tenant.
        tenant: TenantId,
        /// The application.
        app: AppId,
    },
    /// Replaces the credential.
    SetCredential {
        /// The tenant.
        tenant: TenantId,
        /// The application.
        app: AppId,
        /// File with the new one; "-" = standard input.
        #[arg(long)]
        credential_file: PathBuf,
    },
    /// Makes everything due again; what the application has already is skipped.
    Replay {
        /// The tenant.
        tenant: TenantId,
        /// The application.
        app: AppId,
        /// Send even what the application has already.
        #[arg(long)]
        force: bool,
    },
    /// Removes an application. Nothing is deleted in it.
    Delete {
        /// The tenant.
        tenant: TenantId,
        /// The application.
        app: AppId,
    },
}

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let store = open(config).await?;
    match command {
        Command::Create { tenant, app, scim, webhook, credential_file, resource_type, concurrency, rate } => {
            let driver = match (scim, webhook) {
                (Some(base_url), _) => Driver::Scim { base_url, members_per_request_max: 100 },
                (None, Some(url)) => Driver::Webhook { url },
                (None, None) => bail!("name --scim or --webhook"),
            };
            let credential = credential_for(&store, &driver, credential_file)?;
            let entity = App {
                id: app.clone(),
                driver,
                resource_types: resource_type,
                paused: false,
                concurrency_max: concurrency,
                rate_per_second_max: rate,
            };
            store.create_app(&tenant, entity, credential, operator()).await?;
            println!("App {app} was made; everything that exists in {tenant} is due for it.");
        }
        Command::List { tenant } => {
            for app in store.apps(&tenant).await? {
                println!("{}", serde_json::to_string(&app)?);
            }
        }
        Command::Pause { tenant, app } => set_paused(&store, &tenant, &app, true).await?,
        Command::Resume { tenant, app } => set_paused(&store, &tenant, &app, false).await?,
        Command::SetCredential { tenant, app, credential_file } => {
            let entity = find(&store, &tenant, &app).await?;
            let credential = read_credential(&credential_file)?;
            store.update_app(&tenant, entity, Some(credential), operator()).await?;
            store.probe_target(&tenant, &app).await?;
            println!("App {app} has the new credential.");
        }
        Command::Replay { tenant, app, force } => {
            find(&store, &tenant, &app).await?;
            store.replay_app(&tenant, &app, force).await?;
            println!("Everything is compared with what {app} has got; a worker does it page by page.");
        }
        Command::Delete { tenant, app } => {
            store.delete_app(&tenant, &app, operator()).await?;
            println!("App {app} was removed.");
        }
    }
    store.close().await;
    Ok(())
}

async fn find(store: &Store, tenant: &TenantId, app: &AppId) -> anyhow::Result<App> {
    let found = store.apps(tenant).await?.into_iter().find(|a| a.id == *app);
    found.with_context(|| format!("app {app} does not exist: see `annals app list {tenant}`"))
}

async fn set_paused(store: &Store, tenant: &TenantId, app: &AppId, paused: bool) -> anyhow::Result<()> {
    let entity = App { paused, ..find(store, tenant, app).await? };
    store.update_app(tenant, entity, None, operator()).await?;
    if !paused {
        store.probe_target(tenant, app).await?;
    }
    println!("App {app} is {} (within five seconds).", if paused { "paused" } else { "active" });
    Ok(())
}

fn credential_for(store: &Store, driver: &Driver, file: Option<PathBuf>) -> anyhow::Result<SecretString> {
    match (file, driver) {
        (Some(file), _) => read_credential(&file),
        (None, Driver::Webhook { .. }) => {
            let secret = generate_webhook_secret(&**store.entropy());
            eprintln!("Signing secret (Standard Webhooks). It is shown this once:");
            println!("{}", secret.expose_secret());
            Ok(secret)
        }
        (None, Driver::Scim { .. }) => bail!("name --credential-file with the application's bearer token"),
    }
}

fn read_credential(file: &PathBuf) -> anyhow::Result<SecretString> {
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("reading the credential")?;
    } else {
        text = std::fs::read_to_string(file)
            .with_context(|| format!("reading the credential from {}", file.display()))?;
    }
    let text = text.trim();
    if text.is_empty() {
        bail!("the credential is empty");
    }
    Ok(SecretString::from(text))
}

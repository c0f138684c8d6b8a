//! `annals connection`

use annals_domain::clock::Timestamp;
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Connection, Scope};
use annals_store::Store;
use clap::{Subcommand, ValueEnum};
use secrecy::ExposeSecret;

use super::{open, operator};
use crate::config::Config;

/// What to do with connections and their tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a connection: one identity provider's way into a tenant.
    Create {
        /// The tenant.
        tenant: TenantId,
        /// The connection's slug.
        connection: ConnectionId,
        /// How its requests are read: strict, generic, entra, okta, onelogin or jumpcloud.
        #[arg(long, default_value = "generic")]
        profile: Profile,
    },
    /// Changes a connection's profile.
    Set {
        /// The tenant.
        tenant: TenantId,
        /// The connection.
        connection: ConnectionId,
        /// The new profile.
        #[arg(long)]
        profile: Profile,
    },
    /// Lists a tenant's connections.
    List {
        /// The tenant.
        tenant: TenantId,
    },
    /// Makes a token and prints it, once. Rotate by making a second one before revoking the first.
    TokenIssue {
        /// The tenant.
        tenant: TenantId,
        /// The connection.
        connection: ConnectionId,
        /// What it may do; may be given several times. Default: read and write.
        #[arg(long, value_enum)]
        scope: Vec<ScopeArg>,
        /// Days until it ends; default: it does not end.
        #[arg(long)]
        days: Option<u32>,
    },
    /// Lists a tenant's tokens, without their secrets.
    TokenList {
        /// The tenant.
        tenant: TenantId,
    },
    /// Ends a token: at once here, within five seconds elsewhere.
    TokenRevoke {
        /// The tenant.
        tenant: TenantId,
        /// The token's public id, as listed.
        token: String,
    },
}

/// A scope on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScopeArg {
    /// Read resources.
    Read,
    /// Change resources.
    Write,
    /// Administer the tenant.
    Admin,
    /// Read the event feed.
    Events,
}

impl From<ScopeArg> for Scope {
    fn from(arg: ScopeArg) -> Scope {
        match arg {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Write => Scope::Write,
            ScopeArg::Admin => Scope::Admin,
            ScopeArg::Events => Scope::Events,
        }
    }
}

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let store = open(config).await?;
    match command {
        Command::Create { tenant, connection, profile } => {
            let entity = Connection { id: connection.clone(), profile };
            store.create_connection(&tenant, entity, operator()).await?;
            println!(
                "Connection {connection} was made. Next: annals connection token-issue {tenant} {connection}"
            );
        }
        Command::Set { tenant, connection, profile } => {
            let entity = Connection { id: connection.clone(), profile };
            store.update_connection(&tenant, entity, operator()).await?;
            println!("Connection {connection} now has the profile {profile}.");
        }
        Command::List { tenant } => {
            for connection in store.connections(&tenant).await? {
                println!("{}\t{}", connection.id, connection.profile);
            }
        }
        Command::TokenIssue { tenant, connection, scope, days } => {
            let expires = days.map(|days| store.now().plus_ms(i64::from(days) * DAY_MS));
            let scopes = match scope.is_empty() {
                true => vec![Scope::Read, Scope::Write],
                false => scope.into_iter().map(Scope::from).collect(),
            };
            let issued = store.issue_token(&tenant, &connection, scopes, expires, operator()).await?;
            // The token alone on standard output, so that a script can take it.
            eprintln!("Token {} for {tenant}/{connection}. It is shown this once:", issued.id);
            println!("{}", issued.secret.expose_secret());
        }
        Command::TokenList { tenant } => list_tokens(&store, &tenant).await?,
        Command::TokenRevoke { tenant, token } => {
            store.revoke_token(&tenant, &token, operator()).await?;
            println!("Token {token} was revoked.");
        }
    }
    store.close().await;
    Ok(())
}

async fn list_tokens(store: &Store, tenant: &TenantId) -> anyhow::Result<()> {
    for token in store.tokens(tenant).await? {
        let scopes: Vec<&str> = token.scopes.iter().map(|s| s.as_str()).collect();
        let ends = token.expires.map_or("never ends".to_owned(), |at: Timestamp| format!("ends {at}"));
        println!("{}\t{}\t{}\t{ends}", token.id, token.connection, scopes.join(" "));
    }
    Ok(())
}

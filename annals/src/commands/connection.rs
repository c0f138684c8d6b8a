//! `annals connection`

use std::str::FromStr;

use annals_domain::clock::Timestamp;
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::dialect::{Client, Profile, Quirk};
use annals_domain::tenant::{Connection, Scope, Token};
use annals_store::Store;
use anyhow::bail;
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
        /// A switch of docs/client-profiles.md as name=on or name=off; may be given several times.
        #[arg(long, value_name = "NAME=on|off")]
        switch: Vec<SwitchArg>,
    },
    /// Changes a connection's profile or switches.
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
    Set {
        /// The tenant.
        tenant: TenantId,
        /// The connection.
        connection: ConnectionId,
        /// The new profile.
        #[arg(long, group = "what")]
        profile: Option<Profile>,
        /// A switch as name=on, name=off, or name=default for what the profile says; may be given several
        /// times. Others stay as they are.
        #[arg(long, value_name = "NAME=on|off|default", group = "what")]
        switch: Vec<SwitchArg>,
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
        /// The user it stands for at /Me, by id or userName; default: it is a machine's.
        #[arg(long)]
        subject: Option<String>,
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

/// `name=on`, `name=off` or `name=default`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SwitchArg {
    quirk: Quirk,
    on: Option<bool>,
}

impl FromStr for SwitchArg {
    type Err = String;

    fn from_str(text: &str) -> Result<SwitchArg, String> {
        let (name, state) = text.split_once('=').ok_or("write name=on, name=off or name=default")?;
        let on = match state {
            "on" => Some(true),
            "off" => Some(false),
            "default" => None,
            _ => return Err(format!("{state:?} is none of on, off, default")),
        };
        let names = || Quirk::ALL.iter().map(|q| q.as_str()).collect::<Vec<_>>().join(", ");
        let quirk = name.parse().map_err(|_| format!("no switch {name:?}; there are: {}", names()))?;
        Ok(SwitchArg { quirk, on })
    }
}

fn switch(client: &mut Client, switches: &[SwitchArg]) {
    for SwitchArg { quirk, on } in switches {
        match on {
            Some(on) => client.switches.insert(*quirk, *on),
            None => client.switches.remove(quirk),
        };
    }
}

/// A profile with what differs from it: `okta merge-members=on`.
fn described(client: &Client) -> String {
    let state = |on: &bool| if *on { "on" } else { "off" };
    let switches = client.switches.iter().map(|(quirk, on)| format!(" {quirk}={}", state(on)));
    format!("{}{}", client.profile, switches.collect::<String>())
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
    /// Check users' passwords.
    Verify,
}

impl From<ScopeArg> for Scope {
    fn from(arg: ScopeArg) -> Scope {
        match arg {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Write => Scope::Write,
            ScopeArg::Admin => Scope::Admin,
            ScopeArg::Events => Scope::Events,
            ScopeArg::Verify => Scope::Verify,
        }
    }
}

/// A day, in milliseconds.
pub(crate) const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let store = open(config).await?;
    match command {
        Command::Create { tenant, connection, profile, switch: switches } => {
            let mut client = Client::from(profile);
            switch(&mut client, &switches);
            store.create_connection(&tenant, Connection::new(connection.clone(), client), operator()).await?;
            println!(
                "Connection {connection} was made. Next: annals connection token-issue {tenant} {connection}"
            );
        }
        Command::Set { tenant, connection, profile, switch: switches } => {
            let known = store.connections(&tenant).await?.into_iter().find(|c| c.id == connection);
            let Some(mut entity) = known else { bail!("{tenant} has no connection {connection}") };
            entity.client.profile = profile.unwrap_or(entity.client.profile);
            switch(&mut entity.client, &switches);
            let now = described(&entity.client);
            store.update_connection(&tenant, entity, operator()).await?;
            println!("Connection {connection} now has the profile {now}.");
        }
        Command::List { tenant } => {
            for connection in store.connections(&tenant).await? {
                println!("{}\t{}", connection.id, described(&connection.client));
            }
        }
        Command::TokenIssue { tenant, connection, scope, days, subject } => {
            let expires = days.map(|days| store.now().plus_ms(i64::from(days) * DAY_MS));
            let scopes = match scope.is_empty() {
                true => vec![Scope::Read, Scope::Write],
                false => scope.into_iter().map(Scope::from).collect(),
            };
            let issued =
                store.issue_token_for(&tenant, &connection, scopes, expires, subject, operator()).await?;
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
    print_tokens(&store.tokens(tenant).await?);
    Ok(())
}

/// One line for each token, without its secret.
pub(crate) fn print_tokens(tokens: &[Token]) {
    for token in tokens {
        let scopes: Vec<&str> = token.scopes.iter().map(|s| s.as_str()).collect();
        let ends = token.expires.map_or("never ends".to_owned(), |at: Timestamp| format!("ends {at}"));
        let of = token.subject.as_ref().map(|subject| format!("\t{subject}")).unwrap_or_default();
        println!("{}\t{}\t{}\t{ends}{of}", token.id, token.connection, scopes.join(" "));
    }
}

//! `annals operator`

use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::tenant::OPERATORS;
use clap::Subcommand;
use secrecy::ExposeSecret;

use super::connection::{DAY_MS, print_tokens};
use super::{open, operator};
use crate::config::Config;

/// What to do with the tokens of those who operate the whole installation.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a token for administration over HTTP and prints it, once.
    #[command(name = "token-issue")]
    Issue {
        /// Who gets it: 1 to 32 of a-z, 0-9 and '-'. The journal names them.
        name: ConnectionId,
        /// Days until it ends; default: it does not end.
        #[arg(long)]
        days: Option<u32>,
    },
    /// Lists operators' tokens, without their secrets.
    #[command(name = "token-list")]
    List,
    /// Ends a token: at once here, within five seconds elsewhere.
    #[command(name = "token-revoke")]
    Revoke {
        /// The token's public id, as listed.
        token: String,
    },
}

/// Runs it.
pub(crate) async fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let store = open(config).await?;
    let tenant = TenantId::new(OPERATORS)?;
    match command {
        Command::Issue { name, days } => {
            let expires = days.map(|days| store.now().plus_ms(i64::from(days) * DAY_MS));
            let issued = store.issue_operator_token(&name, expires, operator()).await?;
            // The token alone on standard output, so that a script can take it.
            eprintln!("Token {} for the operator {name}. It is shown this once:", issued.id);
            println!("{}", issued.secret.expose_secret());
        }
        Command::List => print_tokens(&store.tokens(&tenant).await?),
        Command::Revoke { token } => {
            store.revoke_token(&tenant, &token, operator()).await?;
            println!("Token {token} was revoked.");
        }
    }
    store.close().await;
    Ok(())
}

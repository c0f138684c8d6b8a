//! The one binary: every role, and the operator's commands.
//!
//! `annals` without a subcommand is `annals serve`: everything in one process.

mod commands;
mod config;
mod lifecycle;
mod server;
mod telemetry;
mod wiring;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{
    app, audit, bench, connection, deliveries, doctor, erase, events, operator, rebuild, recover, schema,
    serve, tenant,
};
use config::Config;

/// Small values come and go by the million; the system's allocator takes a fifth of the time otherwise.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An event-sourced SCIM 2.0 service with a message bus.
#[derive(Debug, Parser)]
#[command(name = "annals", version, about)]
struct Cli {
    /// Configuration file (TOML); default: annals.toml in the present folder, if there is one.
    #[arg(long, global = true, env = "ANNALS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything in one process: API, projector and worker (the default).
    Serve,
    /// The SCIM API alone.
    Api,
    /// The relay (journal to NATS) and the projector (read model) alone.
    Projector,
    /// The worker alone: plans and makes deliveries to downstream apps.
    Worker,
    /// Brings the tables up to date.
    Migrate,
    /// Looks at the deployment and says what is wrong and what to do.
    Doctor,
    /// Writes every setting with its default, or checks the present ones.
    Config {
        /// Check the configuration that would be used instead, and say where data lives.
        #[arg(long)]
        check: bool,
    },
    /// Tenants.
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// Connections of identity providers, and their tokens.
    #[command(subcommand)]
    Connection(connection::Command),
    /// Operators' tokens for administration over HTTP (docs/admin-api.md).
    #[command(subcommand)]
    Operator(operator::Command),
    /// A tenant's own schemas.
    #[command(subcommand)]
    Schema(schema::Command),
    /// A tenant's own resource types, and its extensions of users and groups.
    #[command(subcommand)]
    ResourceType(schema::ResourceTypeCommand),
    /// Downstream applications.
    #[command(subcommand)]
    App(app::Command),
    /// What is to be delivered, and what went wrong.
    #[command(subcommand)]
    Deliveries(deliveries::Command),
    /// The journal's events.
    #[command(subcommand)]
    Events(events::Command),
    /// Rebuilds the read model beside the live one, compares, and switches.
    Rebuild,
    /// Goes on after an older backup of the journal was restored. Says what it would do; does it on demand.
    Recover(recover::Args),
    /// Erases a person for good: deletes the user, records it, destroys the key of their history.
    Erase(erase::Args),
    /// Proof that history was not touched.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Measures what is claimed about speed (docs/performance.md).
    #[command(subcommand)]
    Bench(bench::Command),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("annals: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let command = cli.command.unwrap_or(Command::Serve);
    if let Command::Config { check: false } = command {
        print!("{}", Config::defaults_as_toml()?);
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(cli.config.as_deref())?;
    // Two crypto providers are compiled in by way of dependencies; name ours before any TLS is spoken.
    let _ = rustls::crypto::ring::default_provider().install_default();
    telemetry::start_logging(&config.log)?;
    match command {
        Command::Serve => serve::run(config, serve::Roles::ALL).await?,
        Command::Api => serve::run(config, serve::Roles::API).await?,
        Command::Projector => serve::run(config, serve::Roles::PROJECTOR).await?,
        Command::Worker => serve::run(config, serve::Roles::WORKER).await?,
        Command::Migrate => commands::migrate(&config).await?,
        Command::Doctor => return doctor::run(&config).await,
        Command::Config { .. } => commands::check_config(&config)?,
        Command::Tenant(command) => tenant::run(&config, command).await?,
        Command::Connection(command) => connection::run(&config, command).await?,
        Command::Operator(command) => operator::run(&config, command).await?,
        Command::Schema(command) => schema::run(&config, command).await?,
        Command::ResourceType(command) => schema::run_resource_type(&config, command).await?,
        Command::App(command) => app::run(&config, command).await?,
        Command::Deliveries(command) => deliveries::run(&config, command).await?,
        Command::Events(command) => events::run(&config, command).await?,
        Command::Rebuild => rebuild::run(&config).await?,
        Command::Recover(args) => recover::run(&config, args).await?,
        Command::Erase(args) => erase::run(&config, args).await?,
        Command::Audit(command) => return audit::run(&config, command).await,
        Command::Bench(command) => bench::run(&config, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

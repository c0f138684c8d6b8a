//! The conformance testers of others, scim2-tester and scim-sanity (PyPI), against the real processes: in
//! one process on SQLite, and on PostgreSQL and NATS, where each request goes to the other node.
//!
//! What they skip and what they expect against the RFCs stands in docs/conformance.md; anything else fails.

use std::path::Path;
use std::process::Command;

use annals_domain::event::Actor;
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Connection, Scope, TenantSettings};
use annals_testkit::cluster::Cluster;
use annals_testkit::process::Role;
use annals_testkit::scim2_server::python_program;
use anyhow::{Context as _, Result, ensure};
use secrecy::ExposeSecret as _;

const BINARY: &str = env!("CARGO_BIN_EXE_annals");

/// What scim2-client puts into an extension's object, where RFC 7643 has no such attribute: a strict
/// connection says so, the default one ignores it.
const CLIENT_QUIRK: &str = "has no attribute \"schemas\"";

/// What scim-sanity holds against us, where the RFCs say otherwise: RFC 7644 §3.5.2 allows 204 (PA-010),
/// and members must exist (CS-030).
const SANITY_DIFFERS: [&str; 3] = [
    "FAIL Lifecycle PATCH /Groups/{id}: Expected HTTP 200, got 204 (RFC 7644 §3.3); Response body is empty",
    "FAIL Lifecycle PATCH /Groups/{id} add member: Expected 200, got 400",
    "FAIL Lifecycle PATCH /Groups/{id} remove members: Expected 200, got 204",
];

/// Resource types of a draft that we do not have.
const SANITY_SKIPS: [&str; 3] = [
    "SKIP Lifecycle Agent CRUD Lifecycle: Agent not supported by server",
    "SKIP Lifecycle AgenticApplication CRUD Lifecycle: AgenticApplication not supported by server",
    "SKIP Lifecycle Agent Rapid Lifecycle: Agent not supported or not in scope",
];

/// A tenant of its own, so that no test sees what another has left; its token.
async fn tenant(cluster: &Cluster, name: &str, profile: Profile, settings: TenantSettings) -> Result<String> {
    let (id, actor) = (TenantId::new(name)?, Actor::operator("test"));
    cluster.store.create_tenant(&id, settings, actor.clone()).await?;
    let connection = Connection::new(ConnectionId::new("idp")?, profile);
    cluster.store.create_connection(&id, connection.clone(), actor.clone()).await?;
    let scopes = vec![Scope::Read, Scope::Write];
    let issued = cluster.store.issue_token(&id, &connection.id, scopes, None, actor).await?;
    Ok(issued.secret.expose_secret().to_owned())
}

/// What a tester says that is no success, one finding a line. At least `passed_min` checks must have passed.
async fn findings(
    cluster: &Cluster,
    script: &str,
    first: &[&str],
    token: &str,
    passed_min: u32,
) -> Result<Vec<String>> {
    let mut command = Command::new(python_program("ANNALS_TEST_PYTHON", "python")?);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script)).args(first).arg(token);
    let serving = cluster.processes.iter().filter(|p| matches!(p.role(), Role::Serve | Role::Api));
    command.args(serving.map(|process| process.scim_url()));
    let output =
        tokio::task::spawn_blocking(move || command.output()).await?.context("running the tester")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{script}: {said}");
    ensure!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let (counts, findings): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| line.starts_with("counts "));
    let passed = counts
        .concat()
        .split([' ', '='])
        .skip_while(|word| !["SUCCESS", "PASS"].contains(word))
        .nth(1)
        .and_then(|count| count.parse::<u32>().ok());
    ensure!(passed.unwrap_or(0) >= passed_min, "only {counts:?}");
    Ok(findings.into_iter().map(str::to_owned).collect())
}

async fn conforms(cluster: Cluster) -> Result<()> {
    for profile in [Profile::Strict, Profile::Generic] {
        let token = tenant(&cluster, profile.as_str(), profile, TenantSettings::default()).await?;
        let mut found = findings(&cluster, "conformance.py", &[], &token, 100).await?;
        found.retain(|line| profile != Profile::Strict || !line.contains(CLIENT_QUIRK));
        ensure!(found.is_empty(), "scim2-tester, {profile}: {}", found.join("\n"));
    }

    let token = tenant(&cluster, "sane", Profile::Strict, TenantSettings::default()).await?;
    let found = findings(&cluster, "sanity.py", &[""], &token, 25).await?;
    let expect: Vec<&str> = SANITY_DIFFERS.into_iter().chain(SANITY_SKIPS).collect();
    ensure!(found == expect, "scim-sanity: {}", found.join("\n"));

    // With what it wants switched on, it has nothing to say.
    let settings = TenantSettings { dangling_members: true, ..TenantSettings::default() };
    for profile in [Profile::Strict, Profile::Generic] {
        let name = format!("saner-{profile}");
        let token = tenant(&cluster, &name, profile, settings.clone()).await?;
        let found = findings(&cluster, "sanity.py", &["return=representation"], &token, 28).await?;
        ensure!(found == SANITY_SKIPS, "scim-sanity, {profile}: {}", found.join("\n"));
    }
    cluster.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_in_one_process() -> Result<()> {
    conforms(Cluster::embedded(BINARY, Profile::Generic).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_and_nats_in_five_processes() -> Result<()> {
    conforms(Cluster::scaled(BINARY, Profile::Generic).await?).await
}

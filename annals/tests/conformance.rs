//! The conformance tester of scim2-tester (PyPI) against the real process.

use std::path::Path;
use std::process::Command;

use annals_domain::scim::dialect::Profile;
use annals_testkit::cluster::Cluster;
use annals_testkit::scim2_server::python_program;
use anyhow::{Context as _, Result, ensure};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");

/// What scim2-client puts into an extension's object, where RFC 7643 has no such attribute: a strict
/// connection says so, the default one ignores it.
const CLIENT_QUIRK: &str = "has no attribute \"schemas\"";

async fn conforms(profile: Profile) -> Result<()> {
    let cluster = Cluster::embedded(BINARY, profile).await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance.py");
    let mut command = Command::new(python_program("ANNALS_TEST_PYTHON", "python")?);
    command.arg(script).arg(cluster.processes[0].scim_url()).arg(&cluster.token);
    let output =
        tokio::task::spawn_blocking(move || command.output()).await?.context("running the tester")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{profile:?}: {said}");
    ensure!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let counts = said.lines().find_map(|line| line.strip_prefix("counts ")).context("no counts")?;
    let passed = counts.split(' ').find_map(|one| one.strip_prefix("SUCCESS=")?.parse::<u32>().ok());
    ensure!(passed.unwrap_or(0) > 100, "only {counts}");
    let bad: Vec<&str> = said
        .lines()
        .filter(|line| !line.starts_with("counts "))
        .filter(|line| profile != Profile::Strict || !line.contains(CLIENT_QUIRK))
        .collect();
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_rfcs_say() -> Result<()> {
    conforms(Profile::Strict).await
}

#[tokio::test(flavor = "multi_thread")]
async fn as_tolerant_as_by_default() -> Result<()> {
    conforms(Profile::Generic).await
}

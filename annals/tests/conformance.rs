//! The conformance tester of scim2-tester (PyPI) against the real process.

use std::path::Path;
use std::process::Command;

use annals_domain::scim::dialect::Profile;
use annals_testkit::cluster::Cluster;
use annals_testkit::scim2_server::python_program;
use anyhow::{Context as _, Result, ensure};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");

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
    let bad: Vec<&str> =
        ["ERROR", "CRITICAL", "DEVIATION"].into_iter().filter(|s| counts.contains(s)).collect();
    ensure!(bad.is_empty(), "{said}");
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

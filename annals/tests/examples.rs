//! What we ship as examples is what the program understands.

use annals_testkit::process::Installation;
use anyhow::{Result, ensure};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const EXAMPLE: &str = include_str!("../../deploy/config.example.toml");

#[tokio::test]
async fn the_example_configuration_holds_every_default() -> Result<()> {
    let installation = Installation::sqlite(BINARY)?;
    let output = installation.run(&["config"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written: toml::Table = String::from_utf8(output.stdout)?.parse()?;
    let example: toml::Table = EXAMPLE.parse()?;
    ensure!(example == written, "deploy/config.example.toml: {example:#?}\nannals config: {written:#?}");

    let file = installation.folder().join("annals.toml");
    std::fs::write(&file, EXAMPLE)?;
    let output = installation.run(&["--config", &file.display().to_string(), "config", "--check"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

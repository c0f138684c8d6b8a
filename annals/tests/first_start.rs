//! What a newcomer sees: one command, one line to paste, an answer; and nothing lost by `kill -9`.

use std::process::Command;

use annals_testkit::child::free_port;
use annals_testkit::process::{Installation, Role};
use annals_testkit::scim::Scim;
use anyhow::{Context as _, Result, ensure};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");

/// The line that the greeting tells to paste.
fn curl_line(log: &str) -> Option<&str> {
    log.lines().find(|line| line.trim_start().starts_with("curl "))
}

#[tokio::test]
async fn the_printed_line_works_and_kill_9_loses_nothing() -> Result<()> {
    let mut installation = Installation::sqlite(BINARY)?;
    // As a newcomer has it: no key of the test's, the one that the first start makes.
    installation.unset("ANNALS_STORAGE__ROOT_KEY_FILE");
    let mut process = installation.start(Role::Serve).await?;
    let log = process.log();
    let line = curl_line(&log).with_context(|| format!("no curl line in\n{log}"))?.to_owned();
    ensure!(log.matches("Bearer ").count() == 1, "the token is printed more than once:\n{log}");

    let pasted = paste(line.clone()).await?;
    ensure!(pasted.lines().next().is_some_and(|status| status.contains("201")), "{line}\n{pasted}");
    let token = line.split("Bearer ").nth(1).and_then(|rest| rest.split(['\'', '"']).next());
    let token = token.context("no token in the line")?.to_owned();
    let scim = process.scim(&token);
    let users = scim.get("/Users").await?.expect(200)?.json();
    ensure!(users["totalResults"] == 1, "{users}");

    process.kill_9();
    let before = process.log().len();
    let process = installation.restart(process).await?;
    let log = process.log();
    ensure!(curl_line(&log[before..]).is_none() && !log[before..].contains(&token), "printed again:\n{log}");
    let again: Scim = process.scim(&token);
    ensure!(again.get("/Users").await?.expect(200)?.json()["totalResults"] == 1, "the user is lost");
    // The same line again: the name is taken, and the server says so.
    let pasted = paste(line).await?;
    ensure!(pasted.contains("409") && pasted.contains("uniqueness"), "{pasted}");
    process.terminate()
}

/// Runs the line as a shell would after pasting.
async fn paste(line: String) -> Result<String> {
    let output = tokio::task::spawn_blocking(move || {
        Command::new("sh").args(["-c", &line]).env("no_proxy", "*").output()
    });
    Ok(String::from_utf8_lossy(&output.await?.context("running the line")?.stdout).into_owned())
}

#[tokio::test]
async fn an_address_in_use_is_the_only_thing_said() -> Result<()> {
    let first = Installation::sqlite(BINARY)?;
    let process = first.start(Role::Serve).await?;
    let mut second = Installation::sqlite(BINARY)?;
    second.set("ANNALS_HTTP__LISTEN", format!("127.0.0.1:{}", process.port()));
    let output = second.run(&["serve"]).await?;
    ensure!(!output.status.success(), "it ended with success");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains(&process.port().to_string()) && said.contains("listening"), "{said}");
    ensure!(curl_line(&said).is_none(), "a token was printed although nothing listens: {said}");
    process.terminate()
}

#[tokio::test]
async fn wrong_settings_are_refused_by_name() -> Result<()> {
    let mut installation = Installation::sqlite(BINARY)?;
    installation.set("ANNALS_HTTP__LISSTEN", "127.0.0.1:1");
    let output = installation.run(&["serve"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.to_lowercase().contains("lissten"), "{said}");

    let mut installation = Installation::sqlite(BINARY)?;
    installation.unset("ANNALS_HTTP__LISSTEN");
    let output = installation.run(&["projector"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("storage.url"), "{said}");
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_it_in_order_and_the_port_is_free() -> Result<()> {
    let installation = Installation::sqlite(BINARY)?;
    let process = installation.start(Role::Serve).await?;
    let port = process.port();
    process.terminate()?;
    ensure!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() && free_port().is_ok());
    Ok(())
}

//! A tenant's own schemas from the command line, beside a service that runs: in force at once there.

use annals_domain::ids::TenantId;
use annals_domain::scim::dialect::Profile;
use annals_testkit::process::{Installation, Role, make_tenant};
use anyhow::{Result, ensure};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");
const DEVICE: &str = "urn:example:schemas:2.0:Device";

/// Runs a command; what it printed, on either channel.
async fn annals(installation: &Installation, arguments: &[&str], succeeds: bool) -> Result<String> {
    let output = installation.run(arguments).await?;
    let printed =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() == succeeds, "{arguments:?}: {printed}");
    Ok(printed)
}

#[tokio::test]
async fn what_the_command_line_defines_is_in_force_in_a_running_service() -> Result<()> {
    let installation = Installation::sqlite(BINARY)?;
    let process = installation.start(Role::Serve).await?;
    let store = installation.open_store().await?;
    let token = make_tenant(&store, &TenantId::new("acme")?, Profile::Generic).await?;
    let scim = process.scim(token.expose_secret());
    scim.get("/Devices").await?.expect(404)?;

    let write = |name: &str, json: Value| {
        let path = installation.folder().join(name);
        std::fs::write(&path, json.to_string()).map(|()| path.to_string_lossy().into_owned())
    };
    let attributes = json!([{"name": "label", "required": true}, {"name": "serial", "uniqueness": "server"}]);
    let schema = write("device.json", json!({"id": DEVICE, "name": "Device", "attributes": attributes}))?;
    let wrong =
        write("wrong.json", json!({"id": DEVICE, "attributes": [{"name": "serial", "type": "text"}]}))?;
    let devices = write("devices.json", json!({"name": "Device", "endpoint": "/Devices", "schema": DEVICE}))?;

    let refused = annals(&installation, &["schema", "put", "acme", &wrong], false).await?;
    ensure!(refused.contains("serial.type: it must be one of"), "{refused}");
    let early = annals(&installation, &["resource-type", "put", "acme", &devices], false).await?;
    ensure!(early.contains("no such schema"), "{early}");
    let put = annals(&installation, &["schema", "put", "acme", &schema], true).await?;
    ensure!(put.contains("was made, version 1"), "{put}");
    annals(&installation, &["resource-type", "put", "acme", &devices], true).await?;

    // The service is another process and was asked about this endpoint before.
    let kiosk = json!({"schemas": [DEVICE], "label": "Kiosk", "serial": "S-1"});
    let made = scim.post("/Devices", &kiosk).await?.expect(201)?;
    scim.post("/Devices", &kiosk).await?.expect(409)?;
    let found = scim.get("/Devices?filter=label%20eq%20%22kiosk%22").await?.expect(200)?.json();
    ensure!(found["Resources"][0]["id"] == json!(made.id()), "{found}");

    let listed = annals(&installation, &["schema", "list", "acme"], true).await?;
    ensure!(listed.contains(&format!("{DEVICE}\tversion 1\tin use\tDevice")), "{listed}");
    let shown: Value = serde_json::from_str(
        &annals(&installation, &["resource-type", "show", "acme", "Device"], true).await?,
    )?;
    ensure!(shown["endpoint"] == "/Devices", "{shown}");
    let refused = annals(&installation, &["resource-type", "retire", "acme", "Device"], false).await?;
    ensure!(refused.contains("there are resources of the type Device"), "{refused}");
    scim.delete(&format!("/Devices/{}", made.id())).await?.expect(204)?;
    annals(&installation, &["resource-type", "retire", "acme", "Device"], true).await?;
    scim.get("/Devices").await?.expect(404)?;
    store.close().await;
    Ok(())
}

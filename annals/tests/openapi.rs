//! The OpenAPI document against the real process: schemathesis (PyPI) makes requests of it, sound ones and broken
//! ones, and holds every answer against it. docs/conformance.md lists the checks that are left out, and why.

use std::process::Command;

use annals_domain::event::Actor;
use annals_domain::ids::{ConnectionId, TenantId};
use annals_domain::scim::dialect::Profile;
use annals_domain::tenant::{Connection, Driver, Scope, generate_webhook_secret};
use annals_store::Store;
use annals_testkit::cluster::Cluster;
use annals_testkit::process::make_app;
use annals_testkit::scim2_server::python_program;
use anyhow::{Context as _, Result, ensure};
use secrecy::{ExposeSecret as _, SecretString};

const BINARY: &str = env!("CARGO_BIN_EXE_annals");

/// Requests for each operation in a phase, and the time of one run: enough for every parameter's edges, little
/// enough for every push.
const EXAMPLES_MAX: &str = "8";
const SECONDS_MAX: &str = "40";
/// The least a run must have asked.
const REQUESTS_MIN: u64 = 500;
const SEED: &str = "20261124";

/// Those left out stand in docs/conformance.md.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
     response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,\
     ignored_auth";

/// Answers 501, as RFC 7644 §3.11 has it: a server error by number, none by meaning.
const NOT_SUPPORTED: &str = "postMe";

async fn run(cluster: &Cluster, token: &SecretString, paths: &str) -> Result<()> {
    let url = cluster.processes.first().context("a process")?.url();
    let folder = tempfile::tempdir().context("a folder")?;
    let mut command = Command::new(python_program("ANNALS_TEST_SCHEMATHESIS", "schemathesis")?);
    command.current_dir(folder.path()).args(["run", &format!("{url}/openapi.json"), "--url", &url]);
    command.args(["--include-path-regex", paths, "--exclude-operation-id", NOT_SUPPORTED]);
    command.args(["--header", &format!("Authorization: Bearer {}", token.expose_secret())]);
    command.args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--continue-on-failure"]);
    command.args(["--max-examples", EXAMPLES_MAX, "--max-time", SECONDS_MAX, "--seed", SEED]);
    command.args(["--suppress-health-check", "all", "--no-shrink", "--generation-database", "none"]);
    command.args(["--no-color", "--warnings", "off"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await?;
    let output = output.context("running schemathesis")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{paths}: {said}");
    ensure!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    // A run that asked nothing has found nothing: "  1450 generated, 1450 passed, 48 skipped".
    let generated = |line: &str| line.trim().split_once(" generated")?.0.replace(',', "").parse::<u64>().ok();
    let asked: u64 = said.lines().filter_map(generated).sum();
    ensure!(asked >= REQUESTS_MIN, "only {asked} requests: {said}");
    Ok(())
}

/// Gives the tenant `acme` a connection and an application of that name: the document's examples name them, so
/// that not all of them lead to a 404. A token with every scope of SCIM.
async fn acme(store: &Store, tenant: &TenantId) -> Result<SecretString> {
    let (actor, id) = (Actor::operator("test"), ConnectionId::new("acme")?);
    store.create_connection(tenant, Connection::new(id.clone(), Profile::Generic), actor.clone()).await?;
    let nowhere = Driver::Webhook { url: "http://127.0.0.1:9/".into() };
    let secret = generate_webhook_secret(&**store.entropy());
    make_app(store, tenant, "acme", nowhere, secret.expose_secret()).await?;
    let scopes = vec![Scope::Read, Scope::Write, Scope::Verify];
    Ok(store.issue_token(tenant, &id, scopes, None, actor).await?.secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_is_what_the_document_says() -> Result<()> {
    let cluster = Cluster::embedded(BINARY, Profile::Generic).await?;
    let token = acme(&cluster.store, &cluster.tenant).await?;
    let name = ConnectionId::new("olga")?;
    let operator = cluster.store.issue_operator_token(&name, None, Actor::operator("test")).await?;
    run(&cluster, &token, "^/(scim|auth|health|metrics|openapi)").await?;
    run(&cluster, &operator.secret, "^/admin").await?;
    cluster.check().await
}

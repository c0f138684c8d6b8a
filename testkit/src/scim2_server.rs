//! `scim2-server` from PyPI: a SCIM service provider that others wrote, as the downstream application.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::child::{Child, find_program, free_port, wait_for};
use crate::scim::Scim;

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const PAGE_RESOURCES: usize = 100;

/// A running `scim2-server`.
#[derive(Debug)]
pub struct Scim2Server {
    scim: Scim,
    url: String,
    child: Child,
    _folder: TempDir,
}

/// A program of the tests' Python environment: named by `variable`, or where ./test has put it.
///
/// # Errors
/// It is not installed; the error says what to do.
pub fn python_program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folder = cache.map(|cache| cache.join("annals/venv/bin")).unwrap_or_default();
    find_program(name, &[&folder.display().to_string()])
        .filter(|program| program.starts_with(&folder))
        .with_context(|| format!("{name} is not installed: run ./test setup, or set {variable}"))
}

impl Scim2Server {
    /// Starts one that wants this bearer token.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub async fn start(token: &str) -> Result<Scim2Server> {
        let program = python_program("ANNALS_TEST_SCIM2_SERVER", "scim2-server")?;
        let folder = tempfile::Builder::new().prefix("annals-scim2-").tempdir().context("making a folder")?;
        let port = free_port()?;
        let mut command = Command::new(program);
        command.args(["--hostname", "127.0.0.1", "--port", &port.to_string(), "--bearer-token", token]);
        command.env("PYTHONUNBUFFERED", "1");
        let log = folder.path().join("log");
        let mut child = Child::spawn("scim2-server", &mut command, &log, Some(folder.path()))?;
        let url = format!("http://127.0.0.1:{port}/v2");
        let scim = Scim::http(&url, token);
        let ready = wait_for("scim2-server", READY_TIMEOUT, async || {
            if let Some(status) = child.ended() {
                return Ok(Err(format!("scim2-server ended: {status}\n{}", child.log())));
            }
            scim.get("/ServiceProviderConfig").await?.expect(200)?;
            Ok(Ok(()))
        });
        ready.await?.map_err(anyhow::Error::msg)?;
        Ok(Scim2Server { scim, url, child, _folder: folder })
    }

    /// Its base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.child.log()
    }

    /// Every resource of an endpoint (`/Users`, `/Groups`), by its id there.
    ///
    /// # Errors
    /// A page cannot be read.
    pub async fn all(&self, endpoint: &str) -> Result<BTreeMap<String, Map<String, Value>>> {
        let mut all = BTreeMap::new();
        loop {
            let start = all.len() + 1;
            let path = format!("{endpoint}?startIndex={start}&count={PAGE_RESOURCES}");
            let page = self.scim.get(&path).await?.expect(200)?.json();
            let resources = page["Resources"].as_array().cloned().unwrap_or_default();
            if resources.is_empty() {
                ensure!(page["totalResults"] == all.len(), "{} of {}", all.len(), page["totalResults"]);
                return Ok(all);
            }
            for resource in resources {
                let Value::Object(resource) = resource else { bail!("a resource is no object") };
                let id = resource.get("id").and_then(Value::as_str).context("a resource has no id")?;
                all.insert(id.to_owned(), resource);
            }
        }
    }
}

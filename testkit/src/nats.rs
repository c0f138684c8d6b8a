//! A real nats-server with JetStream as a child process, on a free loopback port.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

use crate::child::{Child, find_program, free_port, wait_for};

const FOLDERS: [&str; 3] = ["/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Every nats-server to test with: `ANNALS_TEST_NATS_SERVERS` (colon-separated), or the one installed.
///
/// # Panics
/// There is none; the message says what to do.
pub fn binaries() -> Vec<PathBuf> {
    let named = std::env::var("ANNALS_TEST_NATS_SERVERS").unwrap_or_default();
    let named: Vec<PathBuf> = named.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if !named.is_empty() {
        return named;
    }
    match find_program("nats-server", &FOLDERS) {
        Some(program) => vec![program],
        None => panic!("nats-server is not installed: run ./test, or set ANNALS_TEST_NATS_SERVERS"),
    }
}

/// A nats-server of this test's own.
#[derive(Debug)]
pub struct Server {
    binary: PathBuf,
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// Starts the oldest nats-server there is to test with: what works there works on all.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start() -> Result<Server> {
        let binaries = binaries();
        Self::start_binary(&binaries[0]).await
    }

    /// Starts one nats-server per installed version, oldest first as named.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start_each() -> Result<Vec<Server>> {
        let mut servers = Vec::new();
        for binary in binaries() {
            servers.push(Self::start_binary(&binary).await?);
        }
        Ok(servers)
    }

    /// Starts the given binary.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_binary(binary: &Path) -> Result<Server> {
        let folder = tempfile::Builder::new().prefix("annals-nats-").tempdir().context("making a folder")?;
        let port = free_port()?;
        let mut server = Server { binary: binary.to_owned(), folder, port, child: None };
        server.restart().await?;
        Ok(server)
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where JetStream keeps its data. To be copied or replaced only while the server is down.
    pub fn store_folder(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        self.child.as_ref().map(Child::log).unwrap_or_default()
    }

    /// `kill -9`: acknowledged messages that were not yet on disk are lost.
    pub fn kill_9(&mut self) {
        self.child.take();
    }

    /// Stops it so that it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// It is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.running()?.signal("STOP")
    }

    /// Lets it go on after [`Server::pause`].
    ///
    /// # Errors
    /// It is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.running()?.signal("CONT")
    }

    /// Deletes everything JetStream stored; the server must be down.
    ///
    /// # Errors
    /// It is running, or the folder cannot be deleted.
    pub fn lose_data(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("nats-server must be down before its data can go");
        }
        let store = self.store_folder();
        if store.exists() {
            std::fs::remove_dir_all(&store).context("deleting JetStream's folder")?;
        }
        Ok(())
    }

    /// Starts it again, with its data, on the same port, and waits until it greets.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.child.take();
        let config = self.folder.path().join("nats.conf");
        let store = self.store_folder();
        let text = format!(
            "listen: 127.0.0.1:{}\nmax_payload: 1048576\njetstream {{\n  store_dir: {:?}\n  \
             max_memory_store: 64MB\n  max_file_store: 2GB\n}}\n",
            self.port,
            store.display().to_string(),
        );
        std::fs::write(&config, text).context("writing nats.conf")?;
        let log = self.folder.path().join("log");
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(&config);
        let mut child = Child::spawn("nats-server", &mut command, &log, Some(self.folder.path()))?;
        let address = ("127.0.0.1", self.port);
        let greeted = wait_for("nats-server's greeting", READY_TIMEOUT, async || {
            if let Some(status) = child.ended() {
                return Ok(Err(format!("nats-server ended: {status}\n{}", child.log())));
            }
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            let mut greeting = [0u8; 4];
            stream.read_exact(&mut greeting).await?;
            if &greeting != b"INFO" || !child.log().contains("Server is ready") {
                bail!("not ready");
            }
            Ok(Ok(()))
        })
        .await?;
        greeted.map_err(anyhow::Error::msg)?;
        self.child = Some(child);
        Ok(())
    }

    fn running(&mut self) -> Result<&mut Child> {
        self.child.as_mut().context("nats-server is not running")
    }
}

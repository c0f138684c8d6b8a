//! A real PostgreSQL as a child process, in a temporary folder, on a free loopback port.
//!
//! `fsync` is on: durability is what the tests are about. The default collation is ICU's English, not
//! `C`, so a text key that forgot its `COLLATE "C"` is found.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::child::{Child, find_program, free_port, wait_for};

/// Where Debian keeps the binaries that are not in `PATH`.
const FOLDERS: [&str; 3] =
    ["/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin"];
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Who may run PostgreSQL here: it refuses root.
#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

/// A PostgreSQL server, of ours or of the one who runs the tests.
#[derive(Debug)]
pub struct Server {
    admin_url: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    child: Option<Child>,
    folder: TempDir,
    account: Option<Account>,
    postgres: PathBuf,
    port: u16,
}

impl Server {
    /// Starts a server of its own, with a fresh cluster.
    ///
    /// # Errors
    /// PostgreSQL is not installed or does not start; the error says what to do.
    pub async fn start() -> Result<Server> {
        let initdb = find_program("initdb", &FOLDERS);
        let postgres = find_program("postgres", &FOLDERS);
        let (Some(initdb), Some(postgres)) = (initdb, postgres) else {
            bail!("PostgreSQL is not installed: run ./test, or set ANNALS_TEST_POSTGRES_URL")
        };
        let account = account()?;
        let folder = tempfile::Builder::new().prefix("annals-pg-").tempdir().context("making a folder")?;
        if let Some(account) = account {
            std::os::unix::fs::chown(folder.path(), Some(account.uid), Some(account.gid))
                .context("giving the folder to the user postgres")?;
        }
        let data = folder.path().join("data");
        let mut command = as_account(&initdb, account);
        command.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]);
        command.args(["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"]);
        let made = tokio::task::spawn_blocking(move || command.output()).await?.context("running initdb")?;
        if !made.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        let port = free_port()?;
        let own = Own { child: None, folder, account, postgres, port };
        let admin_url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let mut server = Server { admin_url, own: Some(own) };
        server.restart().await?;
        Ok(server)
    }

    /// The server at `ANNALS_TEST_POSTGRES_URL`, if that is set.
    pub fn of_environment() -> Option<Server> {
        let url = std::env::var("ANNALS_TEST_POSTGRES_URL").ok().filter(|url| !url.is_empty())?;
        Some(Server { admin_url: url, own: None })
    }

    /// The URL of a database of this server.
    pub fn url(&self, database: &str) -> String {
        let (base, query) = self.admin_url.split_once('?').unwrap_or((&self.admin_url, ""));
        let (server, _) = base.rsplit_once('/').unwrap_or((base, ""));
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{server}/{database}{mark}{query}")
    }

    /// Makes an empty database with a name of its own and returns its URL.
    ///
    /// # Errors
    /// The server is out of reach.
    pub async fn create_database(&self) -> Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        // The process id keeps test binaries apart that share one server.
        let name = format!("t{}_{n}_{:x}", std::process::id(), rand::random::<u32>());
        let mut admin = PgConnection::connect(&self.admin_url)
            .await
            .with_context(|| format!("connecting to PostgreSQL to make {name}"))?;
        // template0 has no sessions of others, so parallel tests do not wait for each other.
        let make = format!("CREATE DATABASE {name} TEMPLATE template0");
        admin.execute(make.as_str()).await.with_context(|| format!("making the database {name}"))?;
        admin.close().await.context("closing the connection")?;
        Ok(self.url(&name))
    }

    /// `kill -9` of the postmaster; its backends follow as soon as they notice.
    ///
    /// # Errors
    /// The server is not ours.
    pub fn kill_9(&mut self) -> Result<()> {
        let Some(own) = &mut self.own else { bail!("the server of ANNALS_TEST_POSTGRES_URL is not ours") };
        own.child.take();
        Ok(())
    }

    /// Starts it again on the same port and waits until it answers.
    ///
    /// # Errors
    /// The server is not ours or does not start.
    pub async fn restart(&mut self) -> Result<()> {
        let admin_url = self.admin_url.clone();
        let Some(own) = &mut self.own else { bail!("the server of ANNALS_TEST_POSTGRES_URL is not ours") };
        own.child.take();
        let log = own.folder.path().join("log");
        let data = own.folder.path().join("data");
        // A dead postmaster leaves its lock file; orphaned backends hold its shared memory for a moment,
        // so the first tries may be refused.
        let started = wait_for("PostgreSQL", READY_TIMEOUT, async || {
            let mut command = as_account(&own.postgres, own.account);
            command.arg("-D").arg(&data).arg("-p").arg(own.port.to_string());
            for setting in [
                "listen_addresses=127.0.0.1",
                "unix_socket_directories=",
                "fsync=on",
                "max_connections=300",
                "shared_buffers=64MB",
                "max_wal_size=512MB",
                "autovacuum_naptime=10s",
                "log_min_messages=warning",
            ] {
                command.arg("-c").arg(setting);
            }
            let mut child = Child::spawn("postgres", &mut command, &log, Some(own.folder.path()))?;
            wait_for("an answer", READY_TIMEOUT, async || match PgConnection::connect(&admin_url).await {
                Ok(connection) => Ok(Ok(connection.close().await?)),
                Err(_) if child.ended().is_some() => Ok(Err(child.log())),
                Err(error) => Err(error.into()),
            })
            .await?
            .map_err(anyhow::Error::msg)?;
            Ok(child)
        })
        .await?;
        own.child = Some(started);
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGINT: fast shutdown, so that nothing still writes into the folder that goes away.
            let _ = child.signal("INT");
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while child.ended().is_none() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn as_account(program: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").env("LC_ALL", "C.UTF-8").process_group(0);
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// The account to switch to; none if this process is not root.
fn account() -> Result<Option<Account>> {
    let uid = std::fs::metadata("/proc/self").context("reading /proc/self")?;
    if std::os::unix::fs::MetadataExt::uid(&uid) != 0 {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    for line in passwd.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let ["postgres", _, uid, gid, ..] = fields[..] {
            return Ok(Some(Account { uid: uid.parse()?, gid: gid.parse()? }));
        }
    }
    bail!("PostgreSQL refuses to run as root and there is no user postgres: run ./test")
}

/// The server that all tests of this process share: `ANNALS_TEST_POSTGRES_URL`, or one of our own that
/// ends with the process.
///
/// # Panics
/// PostgreSQL cannot be started; the message says what to do.
pub async fn shared() -> &'static Server {
    static SHARED: OnceCell<Server> = OnceCell::const_new();
    SHARED
        .get_or_init(async || match Server::of_environment() {
            Some(server) => server,
            None => match Server::start().await {
                Ok(server) => server,
                Err(error) => panic!("{error:#}"),
            },
        })
        .await
}

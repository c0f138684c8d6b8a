//! Child processes that never outlive the test: one guard for every server we start.
//!
//! A test binary may panic, be killed or run out of time. So each child has a watchdog, a shell that reads
//! from a pipe only this process holds; the pipe closes however this process ends, and the watchdog kills
//! the child by its pid. Whoever reaps the child dismisses the watchdog first, so a reused pid is safe.

use std::fs::File;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A running child process whose output goes to a file.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    watchdog: Option<Watchdog>,
    log: PathBuf,
}

#[derive(Debug)]
struct Watchdog {
    shell: std::process::Child,
    _pipe: Option<ChildStdin>,
}

impl Child {
    /// Starts `command` with its output appended to `log`. `remove` names folders that the watchdog
    /// deletes should this process die before it can clean up.
    ///
    /// # Errors
    /// The program cannot be started or the log cannot be opened.
    pub fn spawn(name: &str, command: &mut Command, log: &Path, remove: Option<&Path>) -> Result<Child> {
        let open = || File::options().create(true).append(true).open(log);
        let out = open().with_context(|| format!("opening {name}'s log {}", log.display()))?;
        let err = out.try_clone().context("sharing the log")?;
        let process = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("starting {name}: {}", command.get_program().display()))?;
        let watchdog = Some(Watchdog::start(process.id(), remove)?);
        Ok(Child { name: name.to_owned(), process, watchdog, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill_9(&mut self) {
        self.dismiss();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Sends a signal by name, such as `STOP`, `CONT` or `TERM`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        if let Some(status) = self.ended() {
            bail!("{} has ended ({status}) before it could get SIG{name}\n{}", self.name, self.log());
        }
        let pid = self.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().context("running kill")?;
        if !status.success() {
            bail!("sending SIG{name} to {} failed", self.name);
        }
        Ok(())
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// It is still there after `timeout`; it is killed then.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        if self.ended().is_none() {
            self.signal("TERM")?;
        }
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                self.dismiss();
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let log = self.log();
        self.kill_9();
        bail!("{} did not end within {timeout:?} of SIGTERM\n{log}", self.name)
    }

    fn dismiss(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            let _ = watchdog.shell.kill();
            let _ = watchdog.shell.wait();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill_9();
    }
}

impl Watchdog {
    fn start(pid: u32, remove: Option<&Path>) -> Result<Watchdog> {
        // A process group of its own: Ctrl-C must not end the watchdog before it has done its work.
        let script = r#"read _; kill -9 "$1" 2>/dev/null; if [ -n "$2" ]; then sleep 0.2; rm -rf "$2"; fi"#;
        let mut command = Command::new("sh");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut shell = command
            .args(["-c", script, "watchdog", &pid.to_string()])
            .arg(remove.map(Path::as_os_str).unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the watchdog of a child process")?;
        let pipe = shell.stdin.take();
        Ok(Watchdog { shell, _pipe: pipe })
    }
}

/// A loopback port that was free a moment ago. It lies below the range that the kernel takes the ports of
/// outgoing connections from, so a server that is down for a while finds it free again.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    const PORTS: std::ops::Range<u16> = 15_000..32_000;
    const TRIES_MAX: usize = 1_000;
    for _ in 0..TRIES_MAX {
        // At random, as several test binaries look at the same time.
        let port = rand::random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port found in {TRIES_MAX} tries")
}

/// Finds a program: the path itself, or its first occurrence in `folders` and `PATH`.
pub fn find_program(name: &str, folders: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = folders.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Tries `probe` until it gives a value or `timeout` has passed.
///
/// # Errors
/// The time is over: the error carries what `what` says and the probe's last word.
pub async fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waiting {timeout:?} for {what}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

//! A running server.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use herald_local_process::{Log, Process, Signal, command};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::binary::Binary;
use crate::config::{Config, Layout, Ports, render};
use crate::error::{Error, Result};
use crate::leftover;
use crate::password::{Password, write_private};
use crate::ready::{self, Ready};

/// Delay before a restart tries a port in use again.
const PORT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// A nats-server with JetStream, as a child of this process. Dropping it kills and reaps the child.
#[derive(Debug)]
pub struct Server {
    // Fields are dropped in this order: the process before its lock and its directory.
    process: Process,
    ready: Ready,
    log: Log,
    binary: Binary,
    config: Config,
    layout: Layout,
    password: Option<Password>,
    _lock: File,
    _temp: Option<TempDir>,
}

impl Server {
    /// Starts a server and waits until it is ready: it accepts clients, and its JetStream has recovered.
    pub async fn start(config: Config) -> Result<Self> {
        let binary = Binary::locate(config.locate.clone()).await?;
        let temp = match config.dir {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("herald-nats-")
                    .tempdir()
                    .map_err(Error::io("create a temporary directory"))?,
            ),
        };
        let dir = config
            .dir
            .as_deref()
            .or(temp.as_ref().map(TempDir::path))
            .unwrap_or(Path::new("."));
        let layout = Layout { dir: prepare(dir)? };
        let lock = lock(&layout)?;
        leftover::stop(&layout, config.stop_limit).await?;

        let password = match config.user {
            Some(_) => Some(Password::load_or_create(&layout.password())?),
            None => None,
        };
        let ports = Ports {
            client: config.port,
            monitor: config.monitor_port,
        };
        let (process, log) = spawn(&binary, &config, &layout, ports, password.as_ref())?;
        let ready = ready::wait(&process, &layout.ports(), &log, config.start_limit).await?;
        let server = Self {
            process,
            ready,
            log,
            binary,
            config,
            layout,
            password,
            _lock: lock,
            _temp: temp,
        };
        server.log_ready();
        Ok(server)
    }

    /// Stops the server if it runs, and starts it again with the same ports and the same state.
    ///
    /// If another process uses a port, for example as a client's local port, the start is retried until
    /// [`Config::start_limit`].
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        let deadline = Instant::now() + self.config.start_limit;
        loop {
            (self.process, self.log) = spawn(
                &self.binary,
                &self.config,
                &self.layout,
                self.ready.ports,
                self.password.as_ref(),
            )?;
            let left = deadline.saturating_duration_since(Instant::now());
            match ready::wait(&self.process, &self.layout.ports(), &self.log, left).await {
                Ok(ready) => {
                    self.ready = ready;
                    self.log_ready();
                    return Ok(());
                }
                Err(Error::PortTaken { .. }) if Instant::now() < deadline => sleep(PORT_RETRY_DELAY).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Stops the server: it finishes its writes and exits. After [`Config::stop_limit`], it is killed. Idempotent:
    /// returns the exit status of a server that has already exited.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.process
            .stop(Signal::TERM, self.config.stop_limit)
            .await
            .map_err(Error::io("stop nats-server"))
    }

    /// Kills the server, like a crash, and waits for its exit.
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill().await.map_err(Error::io("kill nats-server"))
    }

    /// Waits for the exit of the current server process. The future does not borrow `self`, so that a `select!` can
    /// watch the server. After a [`restart`](Self::restart), call it again.
    pub fn exited(&self) -> impl Future<Output = io::Result<ExitStatus>> + Send + use<> {
        self.process.exited()
    }

    /// URL for clients without credentials, such as `nats://127.0.0.1:4222`.
    pub fn client_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.ready.ports.client)
    }

    /// The user and password that clients connect with; `None` without [`Config::user`].
    pub fn credentials(&self) -> Option<(&str, &str)> {
        Some((self.config.user.as_deref()?, self.password.as_ref()?.expose()))
    }

    /// URL of the monitoring API, such as `http://127.0.0.1:8222`.
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ready.ports.monitor)
    }

    /// Port for clients.
    pub fn port(&self) -> u16 {
        self.ready.ports.client
    }

    /// Port of the monitoring API.
    pub fn monitor_port(&self) -> u16 {
        self.ready.ports.monitor
    }

    /// Process id of the current or last server process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Version that the server reports to its clients.
    pub fn version(&self) -> &str {
        &self.ready.version
    }

    /// The nats-server executable.
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// Directory of the server's state.
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }

    /// Path of the log file.
    pub fn log_path(&self) -> &Path {
        self.log.path()
    }

    /// The last log lines since the start.
    pub fn log_tail(&self) -> String {
        self.log.tail()
    }

    fn log_ready(&self) {
        tracing::info!(
            pid = self.pid(),
            version = self.version(),
            url = self.client_url(),
            monitor_url = self.monitor_url(),
            dir = %self.dir().display(),
            "nats-server ready"
        );
    }
}

/// Creates the directory and returns its canonical path, by which a leftover server is identified.
fn prepare(dir: &Path) -> Result<PathBuf> {
    let action = format!("create the directory {}", dir.display());
    std::fs::create_dir_all(dir).map_err(Error::io(action.clone()))?;
    dir.canonicalize().map_err(Error::io(action))
}

fn lock(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    let action = format!("lock {}", path.display());
    let file = File::create(&path).map_err(Error::io(action.clone()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse {
            dir: layout.dir.clone(),
        }),
        Err(TryLockError::Error(source)) => Err(Error::Io { action, source }),
    }
}

fn spawn(
    binary: &Binary,
    config: &Config,
    layout: &Layout,
    ports: Ports,
    password: Option<&Password>,
) -> Result<(Process, Log)> {
    let path = layout.config();
    write_private(&path, &render(config, layout, ports, password)?)
        .map_err(Error::io(format!("write {}", path.display())))?;
    recreate(&layout.ports()).map_err(Error::io(format!("empty {}", layout.ports().display())))?;
    let (log, stderr) =
        Log::open(layout.log()).map_err(Error::io(format!("open {}", layout.log().display())))?;
    let mut command = command(binary.path(), config.dies_with_parent.then_some("KILL"));
    command.arg("--config").arg(&path).current_dir(&layout.dir);
    command
        .stdout(stderr.try_clone().map_err(Error::io("share the log file"))?)
        .stderr(stderr);
    let process = Process::spawn("nats-server", command).map_err(Error::io("start nats-server"))?;
    Ok((process, log))
}

fn recreate(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => std::fs::create_dir(dir),
    }
}

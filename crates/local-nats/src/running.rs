//! Finding the server that another process runs in a directory.

use std::io;
use std::path::Path;

use crate::config::Layout;
use crate::ready;

/// How to reach the server of a directory.
#[derive(Clone, PartialEq, Eq)]
pub struct Running {
    /// Process id.
    pub pid: u32,
    /// URL for clients without credentials, such as `nats://127.0.0.1:4222`.
    pub client_url: String,
    /// URL of the monitoring API.
    pub monitor_url: String,
    /// The password of its user; `None` if it takes every client.
    pub password: Option<String>,
}

impl std::fmt::Debug for Running {
    /// Hides the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("pid", &self.pid)
            .field("client_url", &self.client_url)
            .field("monitor_url", &self.monitor_url)
            .finish_non_exhaustive()
    }
}

impl Running {
    /// Reads the files that the server of a directory has written; `None` if no server was started in it. A server that
    /// was killed leaves its files behind.
    ///
    /// # Errors
    /// The files can't be read.
    pub fn find(dir: &Path) -> io::Result<Option<Self>> {
        let layout = Layout { dir: dir.to_owned() };
        let read = |path: &Path| match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let Some(pid) = read(&layout.pid())?.and_then(|pid| pid.parse().ok()) else {
            return Ok(None);
        };
        let ports = match ready::read_ports(pid, &layout.ports()) {
            Ok(ports) => ports,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Self {
            pid,
            client_url: format!("nats://127.0.0.1:{}", ports.client),
            monitor_url: format!("http://127.0.0.1:{}", ports.monitor),
            password: read(&layout.password())?,
        }))
    }
}

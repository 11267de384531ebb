//! Configuration of a server, and the nats-server configuration file generated from it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::locate::Locate;
use crate::password::Password;

/// When JetStream syncs acknowledged messages to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncInterval {
    /// The default of nats-server: every two minutes. A crash of the process loses nothing; a loss of power can lose
    /// the messages acknowledged since the last sync.
    #[default]
    ServerDefault,
    /// Before each acknowledgement.
    Always,
    /// At this interval.
    Every(Duration),
}

/// Configuration of a server. The default is a server for tests: free ports and a temporary directory.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the server's state, log and configuration. `None` uses a temporary directory that is removed when
    /// the [`Server`](crate::Server) is dropped.
    pub dir: Option<PathBuf>,
    /// Where to find the nats-server executable.
    pub locate: Locate,
    /// Name of the server, visible to clients. `None` lets the server generate one.
    pub name: Option<String>,
    /// Port for clients. 0 picks a free port, which stays the same across restarts.
    pub port: u16,
    /// Port for HTTP monitoring. 0 picks a free port, which stays the same across restarts.
    pub monitor_port: u16,
    /// JetStream's limit for file storage, bytes. `None` uses nats-server's default, three quarters of the free disk
    /// space. The default is 64 GiB, because a fixed limit does not change between restarts. The server does not
    /// reserve the space.
    pub max_file_bytes: Option<u64>,
    /// JetStream's limit for memory storage, bytes. `None` uses nats-server's default, three quarters of the memory.
    pub max_memory_bytes: Option<u64>,
    /// Maximum message size, bytes. `None` uses nats-server's default, 1 MiB.
    pub max_payload_bytes: Option<u32>,
    /// When JetStream syncs to disk.
    pub sync_interval: SyncInterval,
    /// The only user that may connect. Its password is generated at the first start and kept in the directory
    /// ([`Server::credentials`](crate::Server::credentials)). `None`: every process of this machine may connect.
    pub user: Option<String>,
    /// Lines appended to the generated nats-server configuration file.
    pub extra: String,
    /// Timeout of a start, including the recovery of streams.
    pub start_limit: Duration,
    /// Timeout of a stop. After it, the server is killed.
    pub stop_limit: Duration,
    /// Whether the kernel kills the server when this process dies without stopping it. Works on Linux with `setpriv`. A
    /// test disables it to get the behaviour of other systems.
    pub dies_with_parent: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: None,
            locate: Locate::default(),
            name: None,
            port: 0,
            monitor_port: 0,
            max_file_bytes: Some(64 << 30),
            max_memory_bytes: None,
            max_payload_bytes: None,
            sync_interval: SyncInterval::default(),
            user: None,
            extra: String::new(),
            start_limit: Duration::from_mins(1),
            stop_limit: Duration::from_secs(10),
            dies_with_parent: true,
        }
    }
}

impl Config {
    /// The default configuration with this directory, which is created if it does not exist.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: Some(dir.into()),
            ..Self::default()
        }
    }
}

/// Paths in a server's directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("nats-server.conf")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("nats-server.log")
    }

    /// The password of [`Config::user`], mode 0600.
    pub(crate) fn password(&self) -> PathBuf {
        self.dir.join("nats-server.password")
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.dir.join("nats-server.pid")
    }

    /// Locked by the parent process while it runs.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("nats-server.lock")
    }

    /// Directory of the server's ports file. Emptied at each start, because a killed server leaves its file behind.
    pub(crate) fn ports(&self) -> PathBuf {
        self.dir.join("ports")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("jetstream")
    }
}

/// Ports to listen on; 0 picks a free port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) client: u16,
    pub(crate) monitor: u16,
}

/// Generates the nats-server configuration file.
pub(crate) fn render(
    config: &Config,
    layout: &Layout,
    ports: Ports,
    password: Option<&Password>,
) -> Result<String> {
    let mut text = String::from("# Generated by Herald at each start: changes to this file are lost.\n");
    // Writing to a `String` can't fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name}: {value}");
    };
    line("listen", &listen(ports.client));
    line("http", &listen(ports.monitor));
    line("pid_file", &quoted_path(&layout.pid())?);
    line("ports_file_dir", &quoted_path(&layout.ports())?);
    if let Some(name) = &config.name {
        line("server_name", &quoted(name)?);
    }
    if let (Some(user), Some(password)) = (&config.user, password) {
        let (user, password) = (quoted(user)?, quoted(password.expose())?);
        line(
            "authorization",
            &format!("{{ user: {user}, password: {password} }}"),
        );
    }
    if let Some(bytes) = config.max_payload_bytes {
        line("max_payload", &bytes.to_string());
    }
    line("jetstream", "{");
    line("  store_dir", &quoted_path(&layout.store())?);
    if let Some(bytes) = config.max_file_bytes {
        line("  max_file_store", &bytes.to_string());
    }
    if let Some(bytes) = config.max_memory_bytes {
        line("  max_memory_store", &bytes.to_string());
    }
    match config.sync_interval {
        SyncInterval::ServerDefault => {}
        SyncInterval::Always => line("  sync_interval", "always"),
        SyncInterval::Every(interval) => line("  sync_interval", &format!("\"{}ms\"", interval.as_millis())),
    }
    text.push_str("}\n");
    text.push_str(&config.extra);
    text.push('\n');
    Ok(text)
}

/// The loopback address only: the monitoring port has no authentication, and neither has a server without a user.
fn listen(port: u16) -> String {
    match port {
        0 => "\"127.0.0.1:-1\"".into(),
        port => format!("\"127.0.0.1:{port}\""),
    }
}

fn quoted_path(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => quoted(text),
        None => Err(Error::Config {
            value: path.display().to_string(),
            reason: "the path is not valid UTF-8",
        }),
    }
}

fn quoted(text: &str) -> Result<String> {
    if text.chars().any(char::is_control) {
        return Err(Error::Config {
            value: text.escape_debug().to_string(),
            reason: "it contains control characters",
        });
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_contains_all_configured_values() {
        let config = Config {
            name: Some("a \"b\" \\c".into()),
            max_file_bytes: Some(1 << 30),
            max_memory_bytes: Some(1 << 20),
            max_payload_bytes: Some(2 << 20),
            sync_interval: SyncInterval::Every(Duration::from_millis(1500)),
            user: Some("herald".into()),
            extra: "debug: true".into(),
            ..Config::default()
        };
        let layout = Layout {
            dir: "/some where".into(),
        };
        let expected = r#"# Generated by Herald at each start: changes to this file are lost.
listen: "127.0.0.1:-1"
http: "127.0.0.1:8222"
pid_file: "/some where/nats-server.pid"
ports_file_dir: "/some where/ports"
server_name: "a \"b\" \\c"
authorization: { user: "herald", password: "0123" }
max_payload: 2097152
jetstream: {
  store_dir: "/some where/jetstream"
  max_file_store: 1073741824
  max_memory_store: 1048576
  sync_interval: "1500ms"
}
debug: true
"#;
        assert_eq!(
            render(
                &config,
                &layout,
                Ports {
                    client: 0,
                    monitor: 8222
                },
                Some(&Password::new("0123")),
            )
            .unwrap(),
            expected
        );
    }

    #[test]
    fn a_value_with_a_line_break_is_refused() {
        assert!(matches!(quoted("a\nport: 1"), Err(Error::Config { .. })));
    }
}

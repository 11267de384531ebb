//! What a server is started with, and nats-server's configuration file made from it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::locate::Locate;

/// When JetStream writes to the disk what it has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncInterval {
    /// As nats-server does by itself: every two minutes. A process that dies loses nothing; a machine that loses power
    /// may lose what was acknowledged since.
    #[default]
    ServerDefault,
    /// Before each acknowledgement.
    Always,
    /// At this interval.
    Every(Duration),
}

/// What a server is started with. The default is a server for a test: free ports and a temporary directory.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of the server's state, log and configuration; without one, a temporary directory that is removed
    /// with the [`Server`](crate::Server).
    pub dir: Option<PathBuf>,
    /// Where the nats-server comes from.
    pub locate: Locate,
    /// The server's name, as clients see it; without one, the server makes one up.
    pub name: Option<String>,
    /// The port for clients; 0 for any free one, which stays the same over restarts.
    pub port: u16,
    /// The port for monitoring over HTTP; 0 for any free one, which stays the same over restarts.
    pub monitor_port: u16,
    /// The most that JetStream may store in files; without it, three quarters of what is free on the disk. By default
    /// 64 GiB: nothing is set aside on the disk, the server only counts, and streams that fit one day should fit the next.
    pub max_file_bytes: Option<u64>,
    /// The most that JetStream may store in memory; without it, three quarters of the memory.
    pub max_memory_bytes: Option<u64>,
    /// The largest message; without it, 1 MiB.
    pub max_payload_bytes: Option<u32>,
    /// When JetStream writes to the disk.
    pub sync_interval: SyncInterval,
    /// More lines for nats-server's configuration file, after the ones made from the fields above.
    pub extra: String,
    /// How long a start may take until the server is ready, with the recovery of its streams.
    pub start_limit: Duration,
    /// How long the server may take to stop before it is killed.
    pub stop_limit: Duration,
    /// Whether the kernel is asked to kill the server when this process dies without stopping it. Done where that is
    /// possible (Linux with `setpriv`); a test of what happens elsewhere switches it off.
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
            extra: String::new(),
            start_limit: Duration::from_mins(1),
            stop_limit: Duration::from_secs(10),
            dies_with_parent: true,
        }
    }
}

impl Config {
    /// A server that keeps its state in this directory, which is made if there is none.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: Some(dir.into()),
            ..Self::default()
        }
    }
}

/// The files in a server's directory.
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

    pub(crate) fn pid(&self) -> PathBuf {
        self.dir.join("nats-server.pid")
    }

    /// Held by the parent while it lives.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("nats-server.lock")
    }

    /// Where the server tells its ports. A directory of its own, emptied at each start: a server that was killed leaves
    /// its file behind.
    pub(crate) fn ports(&self) -> PathBuf {
        self.dir.join("ports")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("jetstream")
    }
}

/// The ports to listen on, 0 for any.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) client: u16,
    pub(crate) monitor: u16,
}

/// nats-server's configuration file.
pub(crate) fn render(config: &Config, layout: &Layout, ports: Ports) -> Result<String> {
    let mut text = String::from("# Written anew by Herald at each start: changes made here are lost.\n");
    // Writing to a string can't fail.
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

/// Only the loopback address: the server has no authentication.
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
            reason: "it has control characters",
        });
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_the_fields_say() {
        let config = Config {
            name: Some("a \"b\" \\c".into()),
            max_file_bytes: Some(1 << 30),
            max_memory_bytes: Some(1 << 20),
            max_payload_bytes: Some(2 << 20),
            sync_interval: SyncInterval::Every(Duration::from_millis(1500)),
            extra: "debug: true".into(),
            ..Config::default()
        };
        let layout = Layout {
            dir: "/some where".into(),
        };
        let expected = r#"# Written anew by Herald at each start: changes made here are lost.
listen: "127.0.0.1:-1"
http: "127.0.0.1:8222"
pid_file: "/some where/nats-server.pid"
ports_file_dir: "/some where/ports"
server_name: "a \"b\" \\c"
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
                }
            )
            .unwrap(),
            expected
        );
    }

    #[test]
    fn a_name_can_not_smuggle_lines_in() {
        assert!(matches!(quoted("a\nport: 1"), Err(Error::Config { .. })));
    }
}

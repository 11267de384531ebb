//! The file by which commands find the process of a data directory.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Its name in the data directory.
const FILE: &str = "process.json";

/// The process of a data directory. One that was killed leaves its file behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessFile {
    pub(crate) pid: u32,
    /// The address of `/readyz`, `/metrics` and `/about`, which this machine can connect to.
    pub(crate) http: SocketAddr,
}

impl ProcessFile {
    /// Reads the file of a data directory; `None` if there is none that can be read.
    pub(crate) fn find(data_dir: &Path) -> Option<Self> {
        let text = fs::read(data_dir.join(FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// The file of this process; removed when this is dropped.
pub(super) struct Announced(PathBuf);

impl Announced {
    /// Writes the file into the data directory. Without it, commands look at the port of the configuration.
    pub(super) fn new(data_dir: &Path, http: SocketAddr) -> Self {
        let file = ProcessFile {
            pid: std::process::id(),
            http: reachable(http),
        };
        let path = data_dir.join(FILE);
        let text = serde_json::to_string(&file).unwrap_or_default();
        if let Err(error) = fs::write(&path, text) {
            tracing::warn!(%error, "can't write {FILE}: name the HTTP port to `herald doctor` with --metrics");
        }
        Self(path)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The address at which this process reaches its own listener.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

//! Free ports.

use std::net::{Ipv4Addr, TcpListener};

use crate::error::{Error, Result};

/// A port on loopback on which nobody listens now. Another process can take it before the server does, so a start that
/// fails because of its port is tried again with another one.
pub(crate) fn free() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(Error::io("find a free port"))
}

/// Whether a server's log says that its port was taken.
pub(crate) fn taken(log: &str) -> bool {
    log.contains("Address already in use") || log.contains("Failed listening on port")
}

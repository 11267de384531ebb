//! Ports that stay reserved for a process while it is down.

use std::net::{Ipv4Addr, TcpListener};

/// First port. All are below the kernel's `ip_local_port_range`, so no client connection can take the port of a server
/// that is about to restart.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A random free port; random, so that concurrent runs rarely choose the same one.
pub(crate) fn free_port() -> u16 {
    for _ in 0..COUNT {
        let port = FIRST + rand::random_range(0..COUNT);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("found no free port from {FIRST} on");
}

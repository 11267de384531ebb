//! Ports that stay a process's own while it is dead.

use std::net::{Ipv4Addr, TcpListener};

/// Below the range from which the kernel takes the ports of connections (`ip_local_port_range`): a client's connection can't
/// take the port of a server that is about to be started again.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port that nobody listens on. At random, so that two runs at the same time seldom choose the same.
pub(crate) fn free_port() -> u16 {
    for _ in 0..COUNT {
        let port = FIRST + rand::random_range(0..COUNT);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} on is free");
}

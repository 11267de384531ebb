//! Ports that stay reserved for a process while it is down.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, TcpListener},
};

use parking_lot::Mutex;

/// First port. All are below the kernel's `ip_local_port_range`, so no client connection can take the port of a server
/// that is about to restart.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// Ports that this run has given out: a process may not have bound its port yet, or may be down.
static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A random free port, given out once; random, so that concurrent runs rarely choose the same one.
pub fn free_port() -> u16 {
    let mut given = GIVEN.lock();
    let given = given.get_or_insert_default();
    for _ in 0..COUNT {
        let port = FIRST + rand::random_range(0..COUNT);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
    panic!("found no free port from {FIRST} on");
}

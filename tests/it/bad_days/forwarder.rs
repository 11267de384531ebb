//! A name that follows the primary of Redis.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{net::TcpListener, task::AbortHandle};

/// An address of Redis that leads to one server or another, as a name does that follows the primary.
pub(super) struct Forwarder {
    pub(super) address: SocketAddr,
    target: Arc<AtomicU16>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Forwarder {
    pub(super) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(AtomicU16::new(port));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (to, open) = (Arc::clone(&target), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let to = Arc::clone(&to);
                let connection = tokio::spawn(async move {
                    let port = to.load(Ordering::Relaxed);
                    if let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                        // A connection that breaks is closed on both sides.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
                open.lock().push(connection.abort_handle());
            }
        });
        Self {
            address,
            target,
            connections,
        }
    }

    pub(super) fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
        for connection in self.connections.lock().drain(..) {
            connection.abort();
        }
    }
}

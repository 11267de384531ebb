//! A TCP address that leads to another server after a fail-over, as the name of a service does.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Forwards connections to a port on loopback. Drop closes all connections.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    target: Arc<AtomicU16>,
    /// Each change ends the connections that began before it.
    cuts: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Starts with connections to this port.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let target = Arc::new(AtomicU16::new(port));
        let (cuts, cut) = watch::channel(());
        Self {
            address,
            target: target.clone(),
            cuts,
            task: tokio::spawn(accept(listener, target, cut)),
        }
    }

    /// The address of the forwarder.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends new connections to this port.
    pub fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::SeqCst);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.cuts.send_replace(());
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, target: Arc<AtomicU16>, cut: watch::Receiver<()>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            continue;
        };
        let port = target.load(Ordering::SeqCst);
        let mut cut = cut.clone();
        cut.mark_unchanged();
        tokio::spawn(async move {
            // A server that is down refuses: the client's connection is closed then.
            let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
                return;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

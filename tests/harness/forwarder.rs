//! A TCP address that leads to another server after a fail-over, as the name of a service does, or to nobody for a
//! while.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
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
    is_frozen: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Starts with connections to this port.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let target = Arc::new(AtomicU16::new(port));
        let (cuts, cut) = watch::channel(());
        let (is_frozen, frozen) = watch::channel(false);
        Self {
            address,
            target: target.clone(),
            cuts,
            is_frozen,
            task: tokio::spawn(accept(listener, target, cut, frozen)),
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

    /// Forwards nothing from now on. What is sent, also by a client that closes its connection then, arrives after
    /// [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.is_frozen.send_replace(true);
    }

    /// Forwards again.
    pub fn thaw(&self) {
        self.is_frozen.send_replace(false);
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

async fn accept(
    listener: TcpListener,
    target: Arc<AtomicU16>,
    cut: watch::Receiver<()>,
    frozen: watch::Receiver<bool>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let port = target.load(Ordering::SeqCst);
        let (mut cut, frozen) = (cut.clone(), frozen.clone());
        cut.mark_unchanged();
        tokio::spawn(async move {
            // A server that is down refuses: the client's connection is closed then.
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
                return;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let copies = async {
                tokio::join!(
                    copy(from_client, to_server, frozen.clone()),
                    copy(from_server, to_client, frozen)
                )
            };
            tokio::select! {
                _ = copies => {}
                _ = cut.changed() => {}
            }
        });
    }
}

/// Copies one direction of a connection, also after the other one has ended.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut frozen: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if frozen.wait_for(|frozen| !frozen).await.is_err() {
            return Ok(());
        }
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

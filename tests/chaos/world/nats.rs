//! The broker: one nats-server, or a cluster of three with each of its links in our hands.

use std::{path::Path, time::Duration};

use async_nats::{Client, ServerAddr, jetstream};
use futures::future::join_all;
use herald_local_nats::{Config, Server};
use rustix::process::Signal;

use super::{Proxy, Toxiproxy, free_port, signal};

/// More than all streams' limits together. Nothing is set aside on the disk, and a run stores some megabytes.
const FILE_BYTES_MAX: u64 = 64 << 30;
const START_LIMIT: Duration = Duration::from_mins(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// One or more nats-servers.
pub(crate) struct Nats {
    pub(crate) servers: Vec<Server>,
    /// From the first server to the second, in a cluster with a toxiproxy.
    links: Vec<(usize, usize, Proxy)>,
}

impl Nats {
    /// One server.
    pub(crate) async fn single(dir: &Path) -> Self {
        let config = Config {
            port: free_port(),
            monitor_port: free_port(),
            max_file_bytes: Some(FILE_BYTES_MAX),
            ..Config::in_dir(dir.join("nats"))
        };
        Self {
            servers: vec![Server::start(config).await.expect("nats-server starts")],
            links: Vec::new(),
        }
    }

    /// A cluster in which streams can have a replica on each server.
    pub(crate) async fn cluster(dir: &Path, size: usize, toxiproxy: Option<&Toxiproxy>) -> Self {
        let routes: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let mut links = Vec::new();
        for from in 0..size {
            for to in (0..size).filter(|to| *to != from) {
                if let Some(toxiproxy) = toxiproxy {
                    let upstream = format!("127.0.0.1:{}", routes[to]);
                    links.push((
                        from,
                        to,
                        toxiproxy.proxy(&format!("{from}-{to}"), &upstream).await,
                    ));
                }
            }
        }
        let starts = (0..size).map(|n| {
            let others = (0..size).filter(|other| *other != n).map(|other| {
                let link = links.iter().find(|(from, to, _)| (*from, *to) == (n, other));
                let address = link.map_or_else(
                    || format!("127.0.0.1:{}", routes[other]),
                    |(_, _, proxy)| proxy.address().to_string(),
                );
                format!("nats-route://{address}")
            });
            // What servers tell each other of themselves leads nowhere: there are only the links that can be cut.
            let extra = format!(
                "cluster {{\n  name: chaos\n  listen: \"127.0.0.1:{}\"\n  advertise: \"127.0.0.1:1\"\n  routes: [{}]\n}}\n",
                routes[n],
                others.map(|route| format!("\"{route}\"")).collect::<Vec<_>>().join(", ")
            );
            Server::start(Config {
                name: Some(name(n)),
                port: free_port(),
                monitor_port: free_port(),
                max_file_bytes: Some(FILE_BYTES_MAX),
                start_limit: START_LIMIT,
                extra,
                ..Config::in_dir(dir.join(name(n)))
            })
        });
        let servers = join_all(starts).await.into_iter();
        let servers = servers
            .map(|server| server.expect("a nats-server starts"))
            .collect();
        Self { servers, links }
    }

    /// Where clients connect, not through any proxy.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<_> = self.servers.iter().map(Server::client_url).collect();
        urls.join(",")
    }

    /// A client of the suite's own, to whichever server answers.
    pub(crate) async fn client(&self) -> Result<Client, async_nats::Error> {
        let servers: Vec<ServerAddr> = self
            .servers
            .iter()
            .map(|server| server.client_url().parse())
            .collect::<Result<_, _>>()?;
        let connecting = async_nats::ConnectOptions::new()
            .retry_on_initial_connect()
            .connect(servers);
        Ok(tokio::time::timeout(CONNECT_LIMIT, connecting).await??)
    }

    /// Which server leads a stream.
    pub(crate) async fn leader(&self, stream: &str) -> Option<usize> {
        let broker = jetstream::new(self.client().await.ok()?);
        let stream = broker.get_stream(stream).await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        (0..self.servers.len()).find(|n| name(*n) == leader)
    }

    /// Stops a server as a debugger or a starved machine would, or lets it go on.
    pub(crate) fn freeze(&self, server: usize, frozen: bool) {
        let signal_to_send = if frozen { Signal::STOP } else { Signal::CONT };
        signal(self.servers[server].pid(), signal_to_send);
    }

    /// Whether the links can be cut.
    pub(crate) fn can_be_cut(&self) -> bool {
        !self.links.is_empty()
    }

    /// Cuts a server off from the others, clients not, or mends that.
    pub(crate) async fn cut(&self, server: usize, cut: bool) {
        for (from, to, proxy) in &self.links {
            if *from == server || *to == server {
                proxy.enable(!cut).await;
            }
        }
    }
}

/// A server's name in its cluster.
pub(crate) fn name(server: usize) -> String {
    format!("nats-{server}")
}

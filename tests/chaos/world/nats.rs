//! The broker: one nats-server, or a cluster of three whose links can be partitioned.

use std::{path::Path, time::Duration};

use async_nats::{Client, ServerAddr, jetstream};
use futures::future::join_all;
use herald_local_nats::{Config, Server};
use rustix::process::Signal;

use super::{Proxy, Toxiproxy, free_port, signal};

/// Larger than the limits of all streams together. It reserves no disk space; a run stores some megabytes.
const FILE_BYTES_MAX: u64 = 64 << 30;
const START_LIMIT: Duration = Duration::from_mins(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// One or more nats-servers.
pub(crate) struct Nats {
    pub(crate) servers: Vec<Server>,
    /// Links of a cluster with toxiproxy: from server, to server, proxy.
    links: Vec<(usize, usize, Proxy)>,
}

impl Nats {
    /// Starts one server.
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

    /// Starts a cluster of `size` servers.
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
            // Advertise an unreachable address, so that servers have no links besides the proxies.
            let extra = format!(
                "cluster {{\n  name: chaos\n  listen: \"127.0.0.1:{}\"\n  advertise: \"127.0.0.1:1\"\n  routes: [{}]\n}}\n",
                routes[n],
                others.map(|route| format!("\"{route}\"")).collect::<Vec<_>>().join(", ")
            );
            Server::start(Config {
                name: Some(server_name(n)),
                port: free_port(),
                monitor_port: free_port(),
                max_file_bytes: Some(FILE_BYTES_MAX),
                start_limit: START_LIMIT,
                extra,
                ..Config::in_dir(dir.join(server_name(n)))
            })
        });
        let servers = join_all(starts).await.into_iter();
        let servers = servers
            .map(|server| server.expect("a nats-server starts"))
            .collect();
        Self { servers, links }
    }

    /// URLs for clients, without a proxy.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<_> = self.servers.iter().map(Server::client_url).collect();
        urls.join(",")
    }

    /// Connects a client of the suite to any server.
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

    /// The leader of a stream.
    pub(crate) async fn leader(&self, stream: &str) -> Option<usize> {
        let broker = jetstream::new(self.client().await.ok()?);
        let stream = broker.get_stream(stream).await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        (0..self.servers.len()).find(|n| server_name(*n) == leader)
    }

    /// Sends SIGSTOP or SIGCONT to a server.
    pub(crate) fn freeze(&self, server: usize, selected: bool) {
        let signal_to_send = if selected { Signal::STOP } else { Signal::CONT };
        signal(self.servers[server].pid(), signal_to_send);
    }

    /// Whether servers can be partitioned from each other.
    pub(crate) fn can_partition(&self) -> bool {
        !self.links.is_empty()
    }

    /// Partitions a server from the other servers, but not from clients, or ends the partition.
    pub(crate) async fn set_partitioned(&self, server: usize, partitioned: bool) {
        for (from, to, proxy) in &self.links {
            if *from == server || *to == server {
                proxy.set_enabled(!partitioned).await;
            }
        }
    }
}

/// Name of a server in the cluster.
pub(crate) fn server_name(server: usize) -> String {
    format!("nats-{server}")
}

//! The broker: one nats-server, or a cluster of three whose links can be partitioned.

use std::path::Path;

use harness::{NatsCluster, free_port};

use super::{Proxy, Toxiproxy};

/// One or more nats-servers.
pub(crate) struct Nats {
    pub(crate) cluster: NatsCluster,
    /// Links of a cluster with toxiproxy: from server, to server, proxy.
    links: Vec<(usize, usize, Proxy)>,
}

impl Nats {
    /// Starts one server.
    pub(crate) async fn single(dir: &Path) -> Self {
        Self {
            cluster: NatsCluster::start_direct(dir, 1).await,
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
        let address = |from, to: usize| {
            let link = links.iter().find(|link| (link.0, link.1) == (from, to));
            link.map_or_else(
                || format!("127.0.0.1:{}", routes[to]),
                |(_, _, proxy)| proxy.address().to_string(),
            )
        };
        let cluster = NatsCluster::start(dir, &routes, address).await;
        Self { cluster, links }
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

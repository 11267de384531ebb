//! A private Redis or Valkey cluster.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};
use crate::redis::{Redis, RedisOptions};

const SLOTS: usize = 16_384;
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const START_LIMIT: Duration = Duration::from_mins(1);

/// A cluster of servers on loopback, each with an equal part of the slots.
#[derive(Debug)]
pub struct RedisCluster {
    /// Servers that began with a part of the slots.
    nodes: Vec<Redis>,
    /// A replica of each node, or none.
    replicas: Vec<Redis>,
}

impl RedisCluster {
    /// Starts a cluster and waits until each of its nodes knows all others.
    pub async fn start(nodes: usize) -> Result<Self> {
        Self::start_with(nodes, RedisOptions::default()).await
    }

    /// Starts a cluster whose nodes have these options.
    pub async fn start_with(nodes: usize, options: RedisOptions) -> Result<Self> {
        let cluster = Self {
            nodes: start_nodes(nodes, &options).await?,
            replicas: Vec::new(),
        };
        cluster.join().await?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Starts a cluster whose nodes have a replica each, and waits until these have what their nodes have.
    pub async fn start_with_replicas(nodes: usize) -> Result<Self> {
        let options = RedisOptions::default();
        let cluster = Self {
            nodes: start_nodes(nodes, &options).await?,
            replicas: start_nodes(nodes, &options).await?,
        };
        cluster.join().await?;
        cluster.wait_ready().await?;
        for (node, replica) in cluster.nodes.iter().zip(&cluster.replicas) {
            let id = node.text(&["CLUSTER", "MYID"]).await?;
            replica.command(&["CLUSTER", "REPLICATE", &id]).await?;
            wait_for_info(replica, &["INFO", "replication"], "master_link_status:up").await?;
        }
        Ok(cluster)
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// The replica of each node.
    pub fn replicas(&self) -> &[Redis] {
        &self.replicas
    }

    /// URLs of the nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// Removes all keys of all nodes.
    pub async fn flush(&self) -> Result<()> {
        for node in &self.nodes {
            node.flush().await?;
        }
        Ok(())
    }

    async fn join(&self) -> Result<()> {
        let count = self.nodes.len();
        for (index, node) in self.nodes.iter().enumerate() {
            let (first, end) = (SLOTS * index / count, SLOTS * (index + 1) / count);
            let epoch = (index + 1).to_string();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await?;
            let (first, last) = (first.to_string(), (end - 1).to_string());
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await?;
        }
        for node in self.nodes.iter().skip(1).chain(&self.replicas) {
            let (port, bus) = (node.port().to_string(), node.bus_port().to_string());
            self.nodes[0]
                .command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])
                .await?;
        }
        Ok(())
    }

    /// Waits until each server knows all others, and that all slots are served.
    pub async fn wait_ready(&self) -> Result<()> {
        let count = self.nodes.len() + self.replicas.len();
        for node in self.nodes.iter().chain(&self.replicas) {
            let known = format!("cluster_known_nodes:{count}\r");
            wait_for_info(node, &["CLUSTER", "INFO"], &known).await?;
            wait_for_info(node, &["CLUSTER", "INFO"], "cluster_state:ok").await?;
        }
        Ok(())
    }
}

async fn start_nodes(count: usize, options: &RedisOptions) -> Result<Vec<Redis>> {
    let mut started = Vec::with_capacity(count);
    for _ in 0..count {
        let options = RedisOptions {
            cluster: true,
            ..options.clone()
        };
        started.push(Redis::start(options).await?);
    }
    Ok(started)
}

/// Waits until the answer to a command contains a text.
async fn wait_for_info(node: &Redis, command: &[&str], wanted: &str) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let info = node.text(command).await?;
        if info.contains(wanted) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::NotReady {
                program: "the Redis cluster",
                limit: START_LIMIT,
                reason: info,
                log: node.log_tail(),
            });
        }
        sleep(POLL_INTERVAL).await;
    }
}

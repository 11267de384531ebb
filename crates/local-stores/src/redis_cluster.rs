//! A private Redis or Valkey cluster.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};
use crate::redis::{Redis, RedisOptions};

const SLOTS: usize = 16_384;
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const START_LIMIT: Duration = Duration::from_mins(1);

/// A cluster of servers on loopback, each with an equal part of the slots and without replicas.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts a cluster and waits until each of its nodes knows all others.
    pub async fn start(nodes: usize) -> Result<Self> {
        Self::start_with(nodes, RedisOptions::default()).await
    }

    /// Starts a cluster whose nodes have these options.
    pub async fn start_with(nodes: usize, options: RedisOptions) -> Result<Self> {
        let mut started = Vec::with_capacity(nodes);
        for _ in 0..nodes {
            let options = RedisOptions {
                cluster: true,
                ..options.clone()
            };
            started.push(Redis::start(options).await?);
        }
        let cluster = Self { nodes: started };
        cluster.join().await?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
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
        for node in self.nodes.iter().skip(1) {
            let (port, bus) = (node.port().to_string(), node.bus_port().to_string());
            self.nodes[0]
                .command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])
                .await?;
        }
        Ok(())
    }

    async fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        for node in &self.nodes {
            loop {
                let info = node.text(&["CLUSTER", "INFO"]).await?;
                let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
                if info.contains("cluster_state:ok") && info.contains(&known) {
                    break;
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
        Ok(())
    }
}

//! Members of a cluster of nats-servers that are lost, replaced, or come back with an older state.
//!
//! Raft counts on what a server has promised. So each of these faults begins with complete replicas, and the server comes
//! back when the others have elected leaders and agree: nothing that was acknowledged may be lost then. What happens when
//! it comes back too early is in `tests/it/recover_replicas.rs`.

use std::{fmt, time::Duration};

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::{Kills, inject::kill_nats, schedule::LED_STREAMS, wait_accepted};
use crate::{workload::Journal, world::World};

/// Time limit for the cluster to learn what room a new server has.
const MOVE_LIMIT: Duration = Duration::from_secs(30);

/// A fault of the server that leads a stream, or of another one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MemberFault {
    stream: &'static str,
    is_leader: bool,
    change: Change,
}

/// What happens to the server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    /// It loses its disk: it starts again empty, under its name.
    Empty,
    /// It is lost for good and removed from the cluster; an empty server with another name takes its place.
    Replace,
    /// A fourth server joins, and the stream is moved to it; then the fourth is lost and removed, and the stream moves back.
    Move,
    /// It loses what it stored during this many posts, as after a loss of power.
    RollBack {
        posts: usize,
        /// Whether the copy of its state is made while it runs.
        running: bool,
    },
    /// The same, and another server is stopped until it is back: it is needed for each majority meanwhile.
    RollBackBesideStopped { posts: usize },
}

impl MemberFault {
    /// A fault with the loss of a tail, and another one.
    pub(super) fn round(random: &mut StdRng) -> [Self; 2] {
        let posts = random.random_range(5..40);
        let lost_tails = [
            Change::RollBack {
                posts,
                running: random.random(),
            },
            Change::RollBackBesideStopped { posts },
        ];
        let others = [Change::Empty, Change::Replace, Change::Move];
        let changes = [lost_tails.choose(random), others.choose(random)];
        changes.map(|change| Self {
            stream: LED_STREAMS.choose(random).expect("the list is not empty"),
            is_leader: random.random(),
            change: *change.expect("the list is not empty"),
        })
    }
}

/// Injects a fault and waits until all replicas are complete again.
pub(super) async fn inject(world: &mut World, journal: &Journal, fault: &MemberFault, kills: &mut Kills) {
    if let Err(missing) = try_inject(world, journal, fault, kills).await {
        journal.record_violation(format!("replicas are not complete after a minute: {missing}"));
    }
}

async fn try_inject(
    world: &mut World,
    journal: &Journal,
    fault: &MemberFault,
    kills: &mut Kills,
) -> Result<(), String> {
    world.nats.cluster.wait_complete(None).await?;
    let leader = world.nats.cluster.wait_leader(fault.stream).await?;
    let server = if fault.is_leader {
        leader
    } else {
        (leader + 1) % world.nats.cluster.size()
    };
    let name = world.nats.cluster.name(server).to_owned();
    let role = if fault.is_leader { "led" } else { "followed" };
    world.log.print(format!("{name} {role} {}", fault.stream));
    match fault.change {
        Change::Empty => {
            kill_nats(world, server, kills).await;
            world.nats.cluster.wait_complete(Some(server)).await?;
            world.nats.cluster.remove_store(server);
            world.nats.cluster.restart(server).await;
        }
        Change::Replace => {
            kill_nats(world, server, kills).await;
            world.nats.cluster.remove_server(&name).await;
            world.nats.cluster.replace(server).await;
        }
        Change::Move => move_away(world, fault.stream, &name, kills).await?,
        Change::RollBack { posts, running } => {
            world.nats.cluster.freeze(server, !running);
            let copy = world.nats.cluster.copy_store(server).await;
            world.nats.cluster.freeze(server, false);
            wait_accepted(journal, posts).await;
            kill_nats(world, server, kills).await;
            world.nats.cluster.wait_complete(Some(server)).await?;
            world.nats.cluster.put_store(server, &copy);
            world.nats.cluster.restart(server).await;
        }
        Change::RollBackBesideStopped { posts } => {
            let copy = world.nats.cluster.copy_store(server).await;
            wait_accepted(journal, posts).await;
            let stopped = (server + 1) % world.nats.cluster.size();
            world.nats.cluster.freeze(stopped, true);
            // Both others have now what is acknowledged.
            let others = world.nats.cluster.wait_complete(Some(stopped)).await;
            if others.is_ok() {
                kill_nats(world, server, kills).await;
                world.nats.cluster.put_store(server, &copy);
                world.nats.cluster.restart(server).await;
                wait_accepted(journal, 1).await;
            }
            world.nats.cluster.freeze(stopped, false);
            others?;
        }
    }
    world.nats.cluster.wait_complete(None).await
}

/// Moves a stream from a server to a fourth one and back.
async fn move_away(world: &World, stream: &str, name: &str, kills: &mut Kills) -> Result<(), String> {
    let cluster = &world.nats.cluster;
    let refused = cluster.remove_peer(stream, name).await;
    if refused.is_ok() {
        return Err(format!("{stream} was taken from {name} without a replacement"));
    }
    let (spare_name, mut spare) = cluster.start_spare().await;
    let moved = harness::until_some("the fourth server can take the stream", MOVE_LIMIT, || async {
        cluster.remove_peer(stream, name).await.ok()
    });
    moved.await;
    cluster.wait_complete(None).await?;
    spare.kill().await.expect("nats-server can be killed");
    kills.nats += 1;
    cluster.remove_server(&spare_name).await;
    Ok(())
}

impl fmt::Display for MemberFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.is_leader { "leader" } else { "a follower" };
        let of = format!("{role} of {}", self.stream);
        match self.change {
            Change::Empty => write!(f, "{of} loses its disk"),
            Change::Replace => write!(
                f,
                "{of} is removed from the cluster, and another server takes its place"
            ),
            Change::Move => write!(f, "{of} loses the stream to a fourth server, which is lost then"),
            Change::RollBack { posts, running } => {
                let how = if running { "running" } else { "stopped" };
                write!(f, "{of} loses the tail of {posts} posts, copied while {how}")
            }
            Change::RollBackBesideStopped { posts } => {
                write!(
                    f,
                    "{of} loses the tail of {posts} posts while another server is stopped"
                )
            }
        }
    }
}

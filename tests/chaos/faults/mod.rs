//! Faults: a schedule derived from a seed, and their injection.

mod fleet;
mod inject;
mod members;
mod schedule;

use std::time::{Duration, Instant};

use self::schedule::Fault;
pub(crate) use self::schedule::{FaultKind, Schedule};
use crate::{workload::Journal, world::World};

/// Time limit for the mesh to accept posts again after a fault.
const RECOVERY_LIMIT: Duration = Duration::from_mins(1);

/// When to stop injecting faults.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// After this time and the end of the active fault.
    Time(Duration),
    /// After this many killed processes.
    Kills(u64),
}

/// Number of killed processes.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Kills {
    pub(crate) herald: u64,
    pub(crate) nats: u64,
    /// PostgreSQL and Redis.
    pub(crate) stores: u64,
}

impl Kills {
    pub(crate) fn total(self) -> u64 {
        self.herald + self.nats + self.stores
    }
}

/// Injects the faults of a schedule one by one, each after some more posts were accepted.
pub(crate) async fn run(world: &mut World, journal: &Journal, schedule: Schedule, budget: Budget) -> Kills {
    let started = Instant::now();
    let mut kills = Kills::default();
    for step in schedule {
        let over = match budget {
            Budget::Time(limit) => started.elapsed() >= limit,
            Budget::Kills(limit) => kills.total() >= limit,
        };
        if over || !wait_accepted(journal, step.posts_before).await {
            break;
        }
        inject::inject(world, journal, &step.fault, &mut kills).await;
        kills.herald = world.herald.kills();
    }
    wait_accepted(journal, 1).await;
    kills
}

/// Waits until `posts` more posts are accepted. Returns false and records a violation after [`RECOVERY_LIMIT`].
async fn wait_accepted(journal: &Journal, posts: usize) -> bool {
    let goal = journal.accepted_count() + posts;
    let accepted = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while journal.accepted_count() < goal {
            ticks.tick().await;
        }
    };
    let accepted = tokio::time::timeout(RECOVERY_LIMIT, accepted).await.is_ok();
    if !accepted {
        journal.record_violation(format!(
            "the mesh did not accept {posts} posts within {RECOVERY_LIMIT:?} after a fault"
        ));
    }
    accepted
}

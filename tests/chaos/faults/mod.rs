//! What is done to a mesh under load: a schedule that derives from a seed, and the hands that do it.

mod inflict;
mod schedule;

use std::time::{Duration, Instant};

use self::schedule::Fault;
pub(crate) use self::schedule::{Kind, Schedule};
use crate::{workload::Journal, world::World};

/// A mesh that accepts nothing for so long after a fault has not recovered from it.
const RECOVERY_LIMIT: Duration = Duration::from_mins(1);

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// After so long; the fault that is in force then is let go first.
    Time(Duration),
    /// After so many kills, of whichever process.
    Kills(u64),
}

/// Processes that were killed.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Kills {
    pub(crate) herald: u64,
    pub(crate) nats: u64,
}

impl Kills {
    pub(crate) fn total(self) -> u64 {
        self.herald + self.nats
    }
}

/// Inflicts one fault after the other, each after some posts were accepted since the last one.
pub(crate) async fn run(world: &mut World, journal: &Journal, schedule: Schedule, budget: Budget) -> Kills {
    let started = Instant::now();
    let mut kills = Kills::default();
    for step in schedule {
        let over = match budget {
            Budget::Time(limit) => started.elapsed() >= limit,
            Budget::Kills(limit) => kills.total() >= limit,
        };
        if over || !accepts(journal, step.posts_before).await {
            break;
        }
        inflict::inflict(world, journal, &step.fault, &mut kills).await;
        kills.herald = world.herald.deaths();
    }
    accepts(journal, 1).await;
    kills
}

/// Waits until so many more posts were accepted; false, and on record, when they weren't.
async fn accepts(journal: &Journal, posts: usize) -> bool {
    let goal = journal.accepted_count() + posts;
    let accepted = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while journal.accepted_count() < goal {
            ticks.tick().await;
        }
    };
    let accepted = tokio::time::timeout(RECOVERY_LIMIT, accepted).await.is_ok();
    if !accepted {
        journal.wrong(format!(
            "no post was accepted for {RECOVERY_LIMIT:?} after a fault"
        ));
    }
    accepted
}

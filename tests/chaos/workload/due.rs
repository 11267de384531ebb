//! Accepted posts that somebody comes back to.

use std::time::Duration;

use rand::{Rng, rngs::StdRng};
use tokio::time::Instant;

use super::{Journal, Posted};

/// Some of the posts that were accepted, each with the moment at which it is to be looked at again.
#[derive(Default)]
pub(super) struct Due {
    /// How many posts were taken from the journal.
    known: usize,
    waiting: Vec<(Instant, Posted)>,
}

impl Due {
    /// Chooses one in so many of the posts that were accepted since the last call, each to be due after `wait`; and gives
    /// those that are due now.
    pub(super) fn take(
        &mut self,
        journal: &Journal,
        random: &mut StdRng,
        one_in: u32,
        mut wait: impl FnMut(&mut StdRng) -> Duration,
    ) -> Vec<Posted> {
        let now = Instant::now();
        let posts = journal.posts_from(self.known);
        self.known += posts.len();
        for post in posts {
            if random.random_ratio(1, one_in) {
                self.waiting.push((now + wait(random), post));
            }
        }
        let (due, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| *at <= now);
        self.waiting = waiting;
        due.into_iter().map(|(_, post)| post).collect()
    }
}

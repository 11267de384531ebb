//! Schedules a second request for some of the accepted posts.

use std::time::Duration;

use rand::{Rng, rngs::StdRng};
use tokio::time::Instant;

use super::{AcceptedPost, Journal};

/// Accepted posts with the time of their second request.
#[derive(Default)]
pub(super) struct SecondRequests {
    /// Posts read from the journal so far.
    read_count: usize,
    waiting: Vec<(Instant, AcceptedPost)>,
}

impl SecondRequests {
    /// Schedules one in `one_in` of the newly accepted posts for after `wait`, and returns the posts that are due.
    pub(super) fn take_due(
        &mut self,
        journal: &Journal,
        random: &mut StdRng,
        one_in: u32,
        mut wait: impl FnMut(&mut StdRng) -> Duration,
    ) -> Vec<AcceptedPost> {
        let now = Instant::now();
        let posts = journal.posts_from(self.read_count);
        self.read_count += posts.len();
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

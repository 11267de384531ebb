//! Generates a social graph; the same seed gives the same graph.

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Pareto exponent of the followers per author; 1.5 gives a few authors with very many.
const PARETO_ALPHA: f64 = 1.5;

/// Distribution of followers over authors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// Pareto distribution with the given mean.
    PowerLaw,
    /// The same number for each author.
    Fixed,
}

/// A social graph.
#[derive(Debug)]
pub(super) struct Graph {
    /// Number of users. Users are numbered from 0.
    pub(super) users: u32,
    /// Followers of each author, ascending. Author `a` is user `a`.
    pub(super) followers: Vec<Vec<u32>>,
}

impl Graph {
    /// Generates a graph of `users` users with `authors` authors and `mean` followers per author; `big` sets the
    /// followers of author 0.
    pub(super) fn generate(
        users: u32,
        authors: u32,
        mean: u32,
        shape: Shape,
        big: Option<u32>,
        seed: u64,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut counts = match shape {
            Shape::Fixed => vec![mean; authors as usize],
            Shape::PowerLaw => power_law(&mut rng, authors, mean, users - 1),
        };
        if let (Some(first), Some(big)) = (counts.first_mut(), big) {
            *first = big;
        }
        let followers = (0..authors)
            .zip(counts)
            .map(|(author, count)| choose_followers(&mut rng, users, author, count))
            .collect();
        Self { users, followers }
    }

    /// Total number of follows.
    pub(super) fn follow_count(&self) -> u64 {
        self.followers.iter().map(|f| f.len() as u64).sum()
    }

    /// Id of a user.
    pub(super) fn id(user: u32) -> String {
        format!("u{user}")
    }
}

/// Pareto-distributed numbers scaled to the mean, each from 1 to `max`.
fn power_law(rng: &mut StdRng, authors: u32, mean: u32, max: u32) -> Vec<u32> {
    let draws: Vec<f64> = (0..authors)
        .map(|_| (1.0 - rng.random::<f64>()).powf(-1.0 / PARETO_ALPHA))
        .collect();
    let goal = f64::from(mean) * f64::from(authors);
    // Clamping at the maximum lowers the sum, so the scale is found by iteration.
    let mut scale = goal / draws.iter().sum::<f64>();
    for _ in 0..32 {
        let sum: f64 = draws.iter().map(|d| (d * scale).clamp(1.0, f64::from(max))).sum();
        scale *= goal / sum;
    }
    draws
        .iter()
        .map(|d| (d * scale).round().clamp(1.0, f64::from(max)) as u32)
        .collect()
}

/// `count` distinct users other than `author`, ascending.
fn choose_followers(rng: &mut StdRng, users: u32, author: u32, count: u32) -> Vec<u32> {
    let others = users - 1;
    let mut chosen: Vec<u32> = rand::seq::index::sample(rng, others as usize, count.min(others) as usize)
        .into_iter()
        .map(|i| i as u32 + u32::from(i as u32 >= author))
        .collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_matches_and_nobody_follows_themselves() {
        let graph = Graph::generate(20_000, 200, 100, Shape::PowerLaw, None, 7);
        let mean = graph.follow_count() as f64 / 200.0;
        assert!((95.0..105.0).contains(&mean), "{mean}");
        let longest = graph.followers.iter().map(Vec::len).max().unwrap();
        assert!(longest > 500, "no big author in a power law: {longest}");
        for (author, followers) in (0_u32..).zip(&graph.followers) {
            assert!(followers.is_sorted_by(|a, b| a < b));
            assert!(!followers.contains(&author));
            assert!(followers.iter().all(|f| *f < graph.users));
        }
    }

    #[test]
    fn the_big_author_is_the_first() {
        let graph = Graph::generate(500, 10, 20, Shape::Fixed, Some(499), 1);
        assert_eq!(graph.followers[0].len(), 499);
        assert!(graph.followers[1..].iter().all(|f| f.len() == 20));
    }

    #[test]
    fn the_same_seed_makes_the_same_graph() {
        let a = Graph::generate(500, 10, 40, Shape::PowerLaw, None, 1);
        let b = Graph::generate(500, 10, 40, Shape::PowerLaw, None, 1);
        assert_eq!(a.followers, b.followers);
        assert!(
            Graph::generate(500, 10, 40, Shape::Fixed, None, 1)
                .followers
                .iter()
                .all(|f| f.len() == 40)
        );
    }
}

//! A made-up social graph: always the same for the same seed.

use rand::{Rng, SeedableRng, rngs::StdRng};

/// The exponent of the power law of followers an author; 1.5 gives a few authors with very many.
const PARETO_ALPHA: f64 = 1.5;

/// How many followers an author has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// A Pareto distribution with the mean asked for.
    PowerLaw,
    /// All the same.
    Fixed,
}

/// Who follows whom.
#[derive(Debug)]
pub(super) struct Graph {
    /// Users there are; each is known by its number.
    pub(super) users: u32,
    /// For each author their followers, ascending. Author `a` is user `a`.
    pub(super) followers: Vec<Vec<u32>>,
}

impl Graph {
    /// Makes `authors` authors with `mean` followers on average among `users` users; `big` followers for author 0, if asked for.
    pub(super) fn make(
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
            .map(|(author, count)| choose(&mut rng, users, author, count))
            .collect();
        Self { users, followers }
    }

    /// Follows in all.
    pub(super) fn follow_count(&self) -> u64 {
        self.followers.iter().map(|f| f.len() as u64).sum()
    }

    /// A user's id.
    pub(super) fn id(user: u32) -> String {
        format!("u{user}")
    }
}

/// Pareto numbers scaled to the mean, none below 1 or above `max`.
fn power_law(rng: &mut StdRng, authors: u32, mean: u32, max: u32) -> Vec<u32> {
    let draws: Vec<f64> = (0..authors)
        .map(|_| (1.0 - rng.random::<f64>()).powf(-1.0 / PARETO_ALPHA))
        .collect();
    let goal = f64::from(mean) * f64::from(authors);
    // Cutting off at the maximum lowers the sum, so the scale is found in a few rounds.
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

/// `count` different users other than `author`, ascending.
fn choose(rng: &mut StdRng, users: u32, author: u32, count: u32) -> Vec<u32> {
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
    fn the_mean_is_as_asked_for_and_nobody_follows_themselves() {
        let graph = Graph::make(20_000, 200, 100, Shape::PowerLaw, None, 7);
        let mean = graph.follow_count() as f64 / 200.0;
        assert!((95.0..105.0).contains(&mean), "{mean}");
        let longest = graph.followers.iter().map(Vec::len).max().unwrap();
        assert!(longest > 500, "a power law has big authors: {longest}");
        for (author, followers) in (0_u32..).zip(&graph.followers) {
            assert!(followers.is_sorted_by(|a, b| a < b));
            assert!(!followers.contains(&author));
            assert!(followers.iter().all(|f| *f < graph.users));
        }
    }

    #[test]
    fn the_big_author_is_the_first() {
        let graph = Graph::make(500, 10, 20, Shape::Fixed, Some(499), 1);
        assert_eq!(graph.followers[0].len(), 499);
        assert!(graph.followers[1..].iter().all(|f| f.len() == 20));
    }

    #[test]
    fn the_same_seed_makes_the_same_graph() {
        let a = Graph::make(500, 10, 40, Shape::PowerLaw, None, 1);
        let b = Graph::make(500, 10, 40, Shape::PowerLaw, None, 1);
        assert_eq!(a.followers, b.followers);
        assert!(
            Graph::make(500, 10, 40, Shape::Fixed, None, 1)
                .followers
                .iter()
                .all(|f| f.len() == 40)
        );
    }
}

//! The Facebook social graph as test data.

use std::collections::{BTreeMap, BTreeSet};

/// Follows by user id.
#[derive(Debug, Clone)]
pub struct Edges {
    /// Followers by author.
    pub followers: BTreeMap<String, BTreeSet<String>>,
}

impl Edges {
    /// Total number of follows.
    pub fn count(&self) -> usize {
        self.followers.values().map(BTreeSet::len).sum()
    }
}

/// Path of the edge file that `herald import follows --mutual` reads.
pub const FACEBOOK: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../services/herald/data/facebook-edges.txt"
);

/// Reads the Facebook graph; each friendship becomes two follows.
pub fn facebook_graph() -> Edges {
    let text = std::fs::read_to_string(FACEBOOK).expect("the graph is in the repository");
    let mut followers = BTreeMap::<String, BTreeSet<String>>::new();
    for line in text.lines() {
        let (a, b) = line.split_once(' ').expect("an edge a line");
        followers.entry(a.into()).or_default().insert(b.into());
        followers.entry(b.into()).or_default().insert(a.into());
    }
    Edges { followers }
}

//! A real social graph.

use std::collections::{BTreeMap, BTreeSet};

/// Who follows whom, by user id.
#[derive(Debug, Clone)]
pub struct Edges {
    /// The followers of each author.
    pub followers: BTreeMap<String, BTreeSet<String>>,
}

impl Edges {
    /// Follows in all.
    pub fn count(&self) -> usize {
        self.followers.values().map(BTreeSet::len).sum()
    }
}

/// Where the file stands that `herald import follows --mutual` takes.
pub const FACEBOOK: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../services/herald/data/facebook-edges.txt"
);

/// The Facebook graph, each friendship as two follows.
pub fn facebook() -> Edges {
    let text = std::fs::read_to_string(FACEBOOK).expect("the graph is in the repository");
    let mut followers = BTreeMap::<String, BTreeSet<String>>::new();
    for line in text.lines() {
        let (a, b) = line.split_once(' ').expect("an edge a line");
        followers.entry(a.into()).or_default().insert(b.into());
        followers.entry(b.into()).or_default().insert(a.into());
    }
    Edges { followers }
}

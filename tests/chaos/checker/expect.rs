//! Who must, may and must not have a post: pure decisions over the journal.

use std::collections::{HashMap, HashSet};

use crate::workload::{AUTHORS, Change, Deletion, Posted, Tie, tie};

/// The newest posts that a new follow brings.
const BACKFILL_POSTS: usize = 20;

/// What the journal implies.
pub(super) struct Expected {
    changes: HashMap<(usize, usize), Vec<Change>>,
    /// Of each author, by id.
    by_author: Vec<Vec<Posted>>,
    /// Posts that may have been deleted at any moment.
    deleted: HashSet<u64>,
}

impl Expected {
    pub(super) fn new(
        posts: &[Posted],
        changes: &HashMap<(usize, usize), Vec<Change>>,
        deletions: &HashMap<u64, Deletion>,
    ) -> Self {
        let mut by_author = vec![Vec::new(); AUTHORS];
        for post in posts {
            by_author[post.author].push(post.clone());
        }
        for posts in &mut by_author {
            posts.sort_by_key(|post| post.id);
        }
        Self {
            changes: changes.clone(),
            by_author,
            deleted: deletions.keys().copied().collect(),
        }
    }

    /// The ties that a reader may have had when a post was accepted: one, or several when the tie was being changed
    /// meanwhile.
    pub(super) fn ties(&self, post: &Posted, reader: usize) -> Vec<Tie> {
        let changes = self.changes_of(reader, post.author);
        let settled = changes.iter().rev().find(|change| change.ended < post.started);
        let mut ties = vec![settled.map_or_else(|| tie(reader, post.author), |change| change.tie)];
        ties.extend(
            changes
                .iter()
                .filter(|change| change.started < post.ended && change.ended >= post.started)
                .map(|change| change.tie),
        );
        ties
    }

    /// Whether a follow may have brought a post that fan-out did not: the post may have been accepted before it, among
    /// the author's newest.
    pub(super) fn may_be_backfilled(&self, post: &Posted, reader: usize) -> bool {
        self.changes_of(reader, post.author)
            .iter()
            .filter(|change| change.tie != Tie::None)
            .any(|change| {
                // Whoever looks them up leaves out what was deleted meanwhile, and comes to an older one.
                let newer = self
                    .newer(post)
                    .filter(|newer| newer.ended < change.started && !self.deleted.contains(&newer.id));
                post.started < change.ended && newer.count() < BACKFILL_POSTS
            })
    }

    /// Whether a follow must have brought a post: it was accepted before, and was among the author's newest whenever
    /// they were looked up.
    pub(super) fn must_be_backfilled(&self, post: &Posted, reader: usize) -> bool {
        self.changes_of(reader, post.author)
            .iter()
            .filter(|change| change.tie != Tie::None && post.ended < change.started)
            .any(|change| {
                self.newer(post)
                    .filter(|newer| newer.started < change.ended)
                    .count()
                    < BACKFILL_POSTS
            })
    }

    fn changes_of(&self, reader: usize, author: usize) -> &[Change] {
        self.changes.get(&(reader, author)).map_or(&[], Vec::as_slice)
    }

    fn newer<'a>(&'a self, post: &Posted) -> impl Iterator<Item = &'a Posted> + use<'a> {
        let posts = &self.by_author[post.author];
        posts[posts.partition_point(|other| other.id <= post.id)..].iter()
    }
}

//! Expected recipients of a post, derived from the journal. Pure functions.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use crate::workload::{AUTHORS, AcceptedPost, Change, Deletion, Relation, initial_relation};

/// Posts that a new follow backfills.
const BACKFILL_POSTS: usize = 20;

/// When a post was accepted and its followers were pinned, by the broker's clock. The journal doesn't know it: a call can
/// be in flight for long before the broker stores its post.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    /// POSTS stored the post.
    pub(super) accepted_at: Timestamp,
    /// TIMELINE stored the first chunk, after the followers were pinned; `None` for a post without recipients.
    pub(super) pinned_by: Option<Timestamp>,
}

/// Expectations derived from the journal.
pub(super) struct Expected {
    changes: HashMap<(usize, usize), Vec<Change>>,
    /// Posts of each author, ordered by id.
    by_author: Vec<Vec<AcceptedPost>>,
    /// Posts with a requested deletion, which may have been done at any time.
    deleted: HashSet<u64>,
}

impl Expected {
    pub(super) fn new(
        posts: &[AcceptedPost],
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

    /// Possible relations of a reader to the author of a post. The promise: a post that was accepted after a Follow was
    /// answered reaches the follower, and one that was accepted after an Unfollow was answered does not. A change that
    /// came later counts or not, but the same for all chunks: none that started after the first chunk was published.
    pub(super) fn possible_relations(
        &self,
        post: &AcceptedPost,
        moments: &Moments,
        reader: usize,
    ) -> Vec<Relation> {
        let changes = self.changes_of(reader, post.author);
        let answered = changes
            .iter()
            .rev()
            .find(|change| change.answered_at < moments.accepted_at);
        let mut relations =
            vec![answered.map_or_else(|| initial_relation(reader, post.author), |change| change.relation)];
        relations.extend(
            changes
                .iter()
                .filter(|change| change.answered_at >= moments.accepted_at)
                .filter(|change| moments.pinned_by.is_none_or(|pinned| change.started_at <= pinned))
                .map(|change| change.relation),
        );
        relations
    }

    /// Whether a follow may have backfilled a post: the post may have been accepted before the follow and been among
    /// the author's newest.
    pub(super) fn may_be_backfilled(&self, post: &AcceptedPost, reader: usize) -> bool {
        self.changes_of(reader, post.author)
            .iter()
            .filter(|change| change.relation != Relation::None)
            .any(|change| {
                // The backfill skips deleted posts and takes older ones instead.
                let newer = self
                    .newer(post)
                    .filter(|newer| newer.ended < change.started && !self.deleted.contains(&newer.id));
                post.started < change.ended && newer.count() < BACKFILL_POSTS
            })
    }

    /// Whether a follow must have backfilled a post: the post was accepted before the follow and was among the author's
    /// newest during the whole call.
    pub(super) fn must_be_backfilled(&self, post: &AcceptedPost, reader: usize) -> bool {
        self.changes_of(reader, post.author)
            .iter()
            .filter(|change| change.relation != Relation::None && post.ended < change.started)
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

    fn newer<'a>(&'a self, post: &AcceptedPost) -> impl Iterator<Item = &'a AcceptedPost> + use<'a> {
        let posts = &self.by_author[post.author];
        posts[posts.partition_point(|other| other.id <= post.id)..].iter()
    }
}

//! Pages of followers at any version within the retained history.

use herald_model::{FollowVersion, Recipients, RecipientsBuilder, UserKey};

use crate::{Error, ErrorKind, FollowerPage};

use super::{
    block::{Follower, Followers, Malformed},
    history::UndoEntry,
};

/// Builds a page.
pub(super) struct PageBuilder {
    followers: RecipientsBuilder,
    notify: RecipientsBuilder,
    last: Option<u32>,
    remaining: usize,
    complete: bool,
}

impl PageBuilder {
    /// An empty page for up to `limit` followers.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            followers: RecipientsBuilder::default(),
            notify: RecipientsBuilder::default(),
            last: None,
            remaining: limit,
            complete: true,
        }
    }

    /// Adds a follower. Returns false if the page is full.
    #[inline]
    fn push(&mut self, follower: Follower) -> bool {
        if self.remaining == 0 {
            self.complete = false;
            return false;
        }
        self.remaining -= 1;
        self.followers.push(UserKey(follower.key));
        if follower.notify {
            self.notify.push(UserKey(follower.key));
        }
        self.last = Some(follower.key);
        true
    }

    /// Adds the followers of a block that are greater than `after`, with `undone` applied, and removes the used changes
    /// from `undone`. Returns false if the page is full.
    pub(super) fn extend(
        &mut self,
        block: Followers<'_>,
        after: Option<u32>,
        undone: &mut &[UndoEntry],
    ) -> Result<bool, Malformed> {
        for follower in block {
            let follower = follower?;
            if after.is_some_and(|after| follower.key <= after) {
                continue;
            }
            if !self.undo_until(follower.key, undone) {
                return Ok(false);
            }
            let before = match undone {
                [first, rest @ ..] if first.follower == follower.key => {
                    let before = first.before.follower(first.follower);
                    *undone = rest;
                    before
                }
                _ => Some(follower),
            };
            if let Some(follower) = before
                && !self.push(follower)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds former followers less than `end`.
    #[inline]
    fn undo_until(&mut self, end: u32, undone: &mut &[UndoEntry]) -> bool {
        while let [first, rest @ ..] = undone
            && first.follower < end
        {
            *undone = rest;
            if let Some(follower) = first.before.follower(first.follower)
                && !self.push(follower)
            {
                return false;
            }
        }
        true
    }

    /// Adds former followers after the last block.
    pub(super) fn undo_rest(&mut self, undone: &[UndoEntry]) {
        for follower in undone.iter().filter_map(|u| u.before.follower(u.follower)) {
            if !self.push(follower) {
                return;
            }
        }
    }

    /// Returns the page.
    pub(super) fn finish(mut self, version: u64) -> FollowerPage {
        FollowerPage {
            followers: self.followers.finish(),
            notify: self.notify.finish(),
            version: FollowVersion(version),
            last: self.last.map(UserKey),
            complete: self.complete,
        }
    }
}

/// The empty page after the greatest possible key.
pub(super) fn empty_page(version: u64) -> FollowerPage {
    FollowerPage {
        followers: Recipients::default(),
        notify: Recipients::default(),
        version: FollowVersion(version),
        last: None,
        complete: true,
    }
}

/// Error for a version that does not exist in this store.
pub(super) fn unknown_version(author: u32, asked: u64, current: u64) -> Error {
    Error::new(
        ErrorKind::UnknownVersion,
        format!(
            "follow version {asked} of author {author} does not exist in this store, whose newest is {current}: the \
             version comes from another store"
        ),
    )
}

/// Error for a version that is older than the retained history.
pub(super) fn trimmed(author: u32, asked: u64) -> Error {
    Error::new(
        ErrorKind::HistoryTrimmed,
        format!(
            "follow version {asked} of author {author} is older than the retained history \
             (follow_history_keep_hours)"
        ),
    )
}

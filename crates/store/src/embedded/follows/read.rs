//! Pages of followers, as of any version whose history is kept.

use herald_model::{FollowVersion, Recipients, RecipientsBuilder, UserKey};

use crate::{Error, ErrorKind, FollowerPage};

use super::{
    block::{Follower, Followers, Malformed},
    history::Undone,
};

/// A page in the making.
pub(super) struct Page {
    followers: RecipientsBuilder,
    notify: RecipientsBuilder,
    last: Option<u32>,
    room: usize,
    complete: bool,
}

impl Page {
    /// An empty one for up to `limit` followers.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            followers: RecipientsBuilder::default(),
            notify: RecipientsBuilder::default(),
            last: None,
            room: limit,
            complete: true,
        }
    }

    /// Adds a follower; false when there is no room for it.
    #[inline]
    fn push(&mut self, follower: Follower) -> bool {
        if self.room == 0 {
            self.complete = false;
            return false;
        }
        self.room -= 1;
        self.followers.push(UserKey(follower.key));
        if follower.bell {
            self.notify.push(UserKey(follower.key));
        }
        self.last = Some(follower.key);
        true
    }

    /// Adds those of a block that come after `after`, as they stood before what is undone; takes off `undone` what was
    /// used. False when there is no room for all of them.
    pub(super) fn extend(
        &mut self,
        block: Followers<'_>,
        after: Option<u32>,
        undone: &mut &[Undone],
    ) -> Result<bool, Malformed> {
        for follower in block {
            let follower = follower?;
            if after.is_some_and(|after| follower.key <= after) {
                continue;
            }
            if !self.undo_until(follower.key, undone) {
                return Ok(false);
            }
            let stood = match undone {
                [first, rest @ ..] if first.follower == follower.key => {
                    let stood = first.before.follower(first.follower);
                    *undone = rest;
                    stood
                }
                _ => Some(follower),
            };
            if let Some(follower) = stood
                && !self.push(follower)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds those who are no followers any more and come before `end`.
    #[inline]
    fn undo_until(&mut self, end: u32, undone: &mut &[Undone]) -> bool {
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

    /// Adds those who are no followers any more and come after all blocks.
    pub(super) fn undo_rest(&mut self, undone: &[Undone]) {
        for follower in undone.iter().filter_map(|u| u.before.follower(u.follower)) {
            if !self.push(follower) {
                return;
            }
        }
    }

    /// The page.
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

/// The page after the greatest key there can be.
pub(super) fn nobody(version: u64) -> FollowerPage {
    FollowerPage {
        followers: Recipients::default(),
        notify: Recipients::default(),
        version: FollowVersion(version),
        last: None,
        complete: true,
    }
}

/// The asked version was never made here.
pub(super) fn unknown_version(author: u32, asked: u64, current: u64) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("follow version {asked} of author {author} is not of this store, whose newest is {current}"),
    )
}

/// The asked version can't be told any more.
pub(super) fn trimmed(author: u32, asked: u64) -> Error {
    Error::new(
        ErrorKind::HistoryTrimmed,
        format!("follow version {asked} of author {author} is older than the kept history"),
    )
}

//! The follow graph and its history.

use async_trait::async_trait;
use herald_model::{FollowVersion, Recipients, UserKey};

use crate::Result;

/// One change of the follow graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowChange {
    /// The user who follows.
    pub follower: UserKey,
    /// The user who is followed.
    pub author: UserKey,
    /// What happens to the follow.
    pub action: FollowAction,
}

impl FollowChange {
    /// The change that ends a follow.
    pub fn unfollow(follower: UserKey, author: UserKey) -> Self {
        Self {
            follower,
            author,
            action: FollowAction::Unfollow,
        }
    }
}

/// What a change does to a follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowAction {
    /// Follows.
    Follow {
        /// Notifications (pushes) on or off; `None` keeps the setting of a follow that exists, and is off for a new one.
        notify: Option<bool>,
    },
    /// Unfollows.
    Unfollow,
}

/// The effect of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowEffect {
    /// Whether the change changed anything.
    pub changed: bool,
    /// Whether the follow has notifications on after the change; false without a follow.
    pub notify: bool,
}

/// Number of an author's followers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowerCount {
    /// All followers.
    pub followers: u64,
    /// Followers with notifications on.
    pub notify: u64,
    /// The current version, at which they were counted.
    pub version: FollowVersion,
}

/// A page of an author's followers, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FollowerPage {
    /// All followers of the page.
    pub followers: Recipients,
    /// The followers of the page with notifications on.
    pub notify: Recipients,
    /// The version of the page.
    pub version: FollowVersion,
    /// The greatest follower of the page: the `after` of the next page. `None` if the page is empty.
    pub last: Option<UserKey>,
    /// Whether this is the last page.
    pub complete: bool,
}

/// An author whom a user follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Following {
    /// The user who is followed.
    pub author: UserKey,
    /// Whether the follow has notifications on.
    pub notify: bool,
}

/// The follow graph.
///
/// *Invariant:* `followers(author, Some(v), …)` returns the same set on every call, page by page, until version `v` is
/// trimmed from the history (7 days by default). The plan of a post's first slice pins `v`, so all slices, retries and
/// channels of the post use the same followers.
#[async_trait]
pub trait Follows: Send + Sync {
    /// Applies changes in order, all or nothing, and returns the effect of each. Durable on return.
    ///
    /// The changes of one author in one call raise the author's version by one, unless none of them changes anything.
    async fn apply(&self, changes: &[FollowChange]) -> Result<Vec<FollowEffect>>;

    /// Counts an author's followers at the current version, which is durable and includes every change that has
    /// returned.
    async fn count(&self, author: UserKey) -> Result<FollowerCount>;

    /// Reads up to `limit` followers greater than `after`, ascending, at version `at`; `None` reads the current
    /// version, which is durable on return.
    ///
    /// [`HistoryTrimmed`](crate::ErrorKind::HistoryTrimmed) if the version is older than the retained history,
    /// [`UnknownVersion`](crate::ErrorKind::UnknownVersion) if it is greater than the current one: it was pinned
    /// with another store.
    async fn followers(
        &self,
        author: UserKey,
        at: Option<FollowVersion>,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<FollowerPage>;

    /// Lists up to `limit` authors greater than `after` whom a user follows, ascending.
    async fn following(
        &self,
        follower: UserKey,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<Vec<Following>>;

    /// Removes the follows of a user, and those of the user's followers, also those that can't be decoded. Only for a
    /// user who is erased, and only if [`apply`](Self::apply) can't: earlier versions of the user's followers can't be
    /// read any more. What can't be decoded of an author whom the user follows stays: only the number of the user is in
    /// it. Durable on return. Not atomic. Returns the number of follows that were removed.
    async fn erase(&self, user: UserKey) -> Result<u64>;
}

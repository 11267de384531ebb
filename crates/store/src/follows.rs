//! Who follows whom, now and as it was.

use async_trait::async_trait;
use herald_model::{FollowVersion, Recipients, UserKey};

use crate::Result;

/// One change to the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowChange {
    /// Who follows.
    pub follower: UserKey,
    /// Who is followed.
    pub author: UserKey,
    /// `Some(bell)` to follow with the bell on or off, `None` to unfollow.
    pub notify: Option<bool>,
}

/// An author's followers in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowerCount {
    /// All of them.
    pub followers: u64,
    /// Those with the bell on.
    pub notify: u64,
    /// The version that was counted.
    pub version: FollowVersion,
}

/// Some followers of an author, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FollowerPage {
    /// The followers.
    pub followers: Recipients,
    /// Those of them with the bell on.
    pub notify: Recipients,
    /// The version that was read.
    pub version: FollowVersion,
    /// The greatest follower of the page, to go on after.
    pub last: Option<UserKey>,
    /// Whether none comes after these.
    pub complete: bool,
}

/// One follow of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Following {
    /// Who is followed.
    pub author: UserKey,
    /// Whether with the bell.
    pub notify: bool,
}

/// The social graph.
///
/// *Invariant:* `followers(author, Some(v), …)` answers the same set whenever it is asked, page by page, until the
/// history is trimmed (7 days by default). A post pins `v` when it is accepted, so retries and channels agree.
#[async_trait]
pub trait Follows: Send + Sync {
    /// Applies changes in order and says of each whether it changed something. All changes of one author in one call
    /// raise its version once; changes that change nothing don't. Durable on return.
    async fn apply(&self, changes: &[FollowChange]) -> Result<Vec<bool>>;

    /// Counts an author's followers, and tells the current version: every change answered before is in it.
    async fn count(&self, author: UserKey) -> Result<FollowerCount>;

    /// Reads up to `limit` followers greater than `after`, as of a version (`None`: the current one).
    /// [`HistoryTrimmed`](crate::ErrorKind::HistoryTrimmed) when it can no longer be told,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) when there never was such a version: whoever pinned it used another store.
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
}

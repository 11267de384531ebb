//! A pair of user and post packed into 64 bits: sorting the numbers sorts the pairs.
//!
//! | set of users | size | purpose |
//! |---|---|---|
//! | group | 64 | one row on disk for each group and run, so that users share the cost of a row |
//! | partition | 256 | one vector of the buffer: appending to partitions is the first pass of a radix sort |
//! | shard | 16,384 | the unit of merging |

use herald_model::{PostId, UserKey};

use crate::{Error, ErrorKind, Result};

/// The largest post id; the upper bits of a pair hold the user's index in its partition.
pub(super) const POST_MAX: u64 = (1 << POST_BITS) - 1;

/// Users in a group, as a power of two.
pub(super) const GROUP_BITS: u32 = 6;

/// Users in a partition of the buffer, as a power of two.
pub(super) const PARTITION_BITS: u32 = 8;

/// Groups in a shard, as a power of two.
pub(super) const SHARD_GROUP_BITS: u32 = 8;

const POST_BITS: u32 = 56;

/// Checks that a post id fits into a pair.
///
/// # Errors
/// [`ErrorKind::LimitExceeded`] if it doesn't.
pub(crate) fn check(post: PostId) -> Result<u64> {
    if post.0 > POST_MAX {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("post id {post} exceeds the maximum of {POST_MAX}"),
        ));
    }
    Ok(post.0)
}

/// A pair with the user's index in its partition.
#[inline]
pub(super) fn in_partition(user: UserKey, post: u64) -> u64 {
    u64::from(user.0 & ((1 << PARTITION_BITS) - 1)) << POST_BITS | post
}

/// A pair with the user's index in its group.
#[inline]
pub(super) fn in_group(user_in_group: u8, post: u64) -> u64 {
    u64::from(user_in_group) << POST_BITS | post
}

/// The post of a pair.
#[inline]
pub(crate) fn post(pair: u64) -> u64 {
    pair & POST_MAX
}

/// The index in its group of a pair's user.
#[inline]
pub(crate) fn user_in_group(pair: u64) -> u8 {
    (pair >> POST_BITS) as u8 & ((1 << GROUP_BITS) - 1)
}

/// The index in its partition of a pair's group.
#[inline]
pub(super) fn group_in_partition(pair: u64) -> u32 {
    (pair >> (POST_BITS + GROUP_BITS)) as u32
}

/// The group of a user.
#[inline]
pub(crate) fn group(user: UserKey) -> u32 {
    user.0 >> GROUP_BITS
}

/// The index of a user in its group.
#[inline]
pub(crate) fn index(user: UserKey) -> u8 {
    user.0 as u8 & ((1 << GROUP_BITS) - 1)
}

/// The user at an index of a group.
#[inline]
pub(crate) fn user(group: u32, index: u8) -> UserKey {
    UserKey(group << GROUP_BITS | u32::from(index))
}

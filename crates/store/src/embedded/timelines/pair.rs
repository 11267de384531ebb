//! A user and a post in 64 bits, so that sorting numbers sorts pairs.
//!
//! | users | how many | why |
//! |---|---|---|
//! | a group | 64 | one row a group and run on disk: the cost of a row is shared |
//! | a part | 256 | one vector of the buffer: appending to parts is the first round of the sort |
//! | a slice | 16,384 | what is merged in one go |

use herald_model::{PostId, UserKey};

use crate::{Error, ErrorKind, Result};

/// Post ids are less than this, so that a user of a part fits beside one.
pub(super) const POST_MAX: u64 = (1 << POST_BITS) - 1;

/// Users of a group, as a power of two.
pub(super) const GROUP_BITS: u32 = 6;

/// Users of a part of the buffer, as a power of two.
pub(super) const PART_BITS: u32 = 8;

/// Groups of a slice, as a power of two.
pub(super) const SLICE_GROUP_BITS: u32 = 8;

const POST_BITS: u32 = 56;

/// A post id that fits.
pub(super) fn check(post: PostId) -> Result<u64> {
    if post.0 > POST_MAX {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("post ids end at {POST_MAX}, {post} is greater"),
        ));
    }
    Ok(post.0)
}

/// A pair within the user's part.
#[inline]
pub(super) fn in_part(user: UserKey, post: u64) -> u64 {
    u64::from(user.0 & ((1 << PART_BITS) - 1)) << POST_BITS | post
}

/// A pair within a group.
#[inline]
pub(super) fn in_group(user_in_group: u8, post: u64) -> u64 {
    u64::from(user_in_group) << POST_BITS | post
}

/// The post of a pair.
#[inline]
pub(super) fn post(pair: u64) -> u64 {
    pair & POST_MAX
}

/// Who of the group.
#[inline]
pub(super) fn user_in_group(pair: u64) -> u8 {
    (pair >> POST_BITS) as u8 & ((1 << GROUP_BITS) - 1)
}

/// Which group of the part.
#[inline]
pub(super) fn group_in_part(pair: u64) -> u32 {
    (pair >> (POST_BITS + GROUP_BITS)) as u32
}

/// A user's group.
#[inline]
pub(super) fn group(user: UserKey) -> u32 {
    user.0 >> GROUP_BITS
}

/// Who of the group a user is.
#[inline]
pub(super) fn index(user: UserKey) -> u8 {
    user.0 as u8 & ((1 << GROUP_BITS) - 1)
}

/// A user by group and place in it.
#[inline]
pub(super) fn user(group: u32, index: u8) -> UserKey {
    UserKey(group << GROUP_BITS | u32::from(index))
}

//! Keys, ids and limits as PostgreSQL's `bigint`.

use herald_model::{PostId, UserKey};

use crate::{Error, ErrorKind, Result};

/// A stored user key.
pub(crate) fn user(key: i64) -> Result<UserKey> {
    u32::try_from(key)
        .map(UserKey)
        .map_err(|_| Error::new(ErrorKind::Corrupt, format!("{key} is no key of a user")))
}

/// A stored id of a post.
pub(super) fn post(id: i64) -> Result<PostId> {
    number(id).map(PostId)
}

/// A stored number that is never negative.
pub(super) fn number(stored: i64) -> Result<u64> {
    u64::try_from(stored).map_err(|_| {
        Error::new(
            ErrorKind::Corrupt,
            format!("{stored} is stored where a number must not be negative"),
        )
    })
}

/// A number to store or compare. The greatest `bigint` stands for all greater ones, which no counter reaches.
pub(crate) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A `LIMIT`.
pub(crate) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

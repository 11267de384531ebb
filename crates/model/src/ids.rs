//! Who and what, as numbers and names.

use std::fmt;

/// The longest user id, bytes.
pub const USER_ID_BYTES_MAX: usize = 128;

/// A user's id: the caller's own string, 1 to 128 bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(String);

/// Why a string is not a [`UserId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUserId {
    /// It is empty.
    #[error("must not be empty")]
    Empty,
    /// It is longer than [`USER_ID_BYTES_MAX`].
    #[error("must be at most {USER_ID_BYTES_MAX} bytes long, is {0}")]
    TooLong(usize),
    /// It has a control character.
    #[error("must not contain control characters")]
    ControlCharacter,
}

impl UserId {
    /// Checks a caller's string.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidUserId> {
        let id = id.into();
        if id.is_empty() {
            Err(InvalidUserId::Empty)
        } else if id.len() > USER_ID_BYTES_MAX {
            Err(InvalidUserId::TooLong(id.len()))
        } else if id.chars().any(char::is_control) {
            Err(InvalidUserId::ControlCharacter)
        } else {
            Ok(Self(id))
        }
    }

    /// The caller's string.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The caller's string.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user's number inside the mesh: dense, from 1, given once by the dictionary in the store and never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserKey(pub u32);

/// A post's id: its sequence number in the POSTS stream, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PostId(pub u64);

/// How often an author's followers have changed. A post pins it, so that each retry and channel sees the same followers.
/// 0 is the version of an author whom nobody ever followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FollowVersion(pub u64);

/// Names a chunk by its content: a hash of its recipients, so that only the same chunk can be taken for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub u64);

impl fmt::Display for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for PostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_is_any_short_text_without_control_characters() {
        assert!(UserId::new("107").is_ok());
        assert!(UserId::new("übermut@example").is_ok());
        assert_eq!(UserId::new(""), Err(InvalidUserId::Empty));
        assert_eq!(UserId::new("a".repeat(129)), Err(InvalidUserId::TooLong(129)));
        assert_eq!(UserId::new("a\nb"), Err(InvalidUserId::ControlCharacter));
    }
}

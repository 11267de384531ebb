//! Ids of users, posts, follow versions and chunks.

use std::fmt;

/// Maximum length of a user id, bytes.
pub const USER_ID_BYTES_MAX: usize = 128;

/// Id of a user, chosen by the client: 1 to 128 bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(String);

/// Error of [`UserId::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUserId {
    /// The string is empty.
    #[error("must not be empty")]
    Empty,
    /// The string is longer than [`USER_ID_BYTES_MAX`]. Holds its length, bytes.
    #[error("must be at most {USER_ID_BYTES_MAX} bytes long, is {0}")]
    TooLong(usize),
    /// The string contains a control character.
    #[error("must not contain control characters")]
    ControlCharacter,
}

impl UserId {
    /// Validates a string of a client.
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

    /// The string of the client.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The string of the client.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Key of a user inside Herald: dense, from 1, assigned by the store and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserKey(pub u32);

/// Id of a post: its sequence in the POSTS stream, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PostId(pub u64);

/// Version of an author's followers: the number of changes, 0 for an author who never had a follower. A post pins it,
/// so that all retries and channels use the same followers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FollowVersion(pub u64);

/// Id of a chunk: a hash of its recipients (XXH3, 64 bits), so that equal chunks have equal ids.
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
    fn user_ids_are_validated() {
        assert!(UserId::new("107").is_ok());
        assert!(UserId::new("übermut@example").is_ok());
        assert_eq!(UserId::new(""), Err(InvalidUserId::Empty));
        assert_eq!(UserId::new("a".repeat(129)), Err(InvalidUserId::TooLong(129)));
        assert_eq!(UserId::new("a\nb"), Err(InvalidUserId::ControlCharacter));
    }
}

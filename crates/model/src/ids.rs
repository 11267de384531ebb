//! Ids of users, posts, follow versions and chunks.

use std::fmt;

/// Maximum length of a user id, bytes.
pub const USER_ID_BYTES_MAX: usize = 128;

/// Id of a user, chosen by the client: 1 to 128 bytes of UTF-8, at least one visible character, no control characters.
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
    /// The string has only spaces and invisible characters.
    #[error("must have a visible character")]
    Invisible,
    /// The string has the form of a [placeholder](UserId::is_placeholder).
    #[error("must not be the placeholder of an erased user")]
    Placeholder,
}

impl UserId {
    /// What the placeholder of an erased user begins with.
    pub const PLACEHOLDER_PREFIX: &str = "erased-";

    /// Validates a string of a client.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidUserId> {
        let id = Self::from_stored(id)?;
        if id.0.chars().all(is_invisible) {
            Err(InvalidUserId::Invisible)
        } else if id.is_placeholder() {
            Err(InvalidUserId::Placeholder)
        } else {
            Ok(id)
        }
    }

    /// Validates a string of a store or a stream. Accepts an id without a visible character, because such ids were
    /// accepted from clients before and are not corrupt.
    pub fn from_stored(id: impl Into<String>) -> Result<Self, InvalidUserId> {
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

    /// Whether the store gave this id to the key of an erased user: `erased-` and a UUID. No client can use it.
    pub fn is_placeholder(&self) -> bool {
        let Some(uuid) = self.0.strip_prefix(Self::PLACEHOLDER_PREFIX) else {
            return false;
        };
        let is_at_its_place = |(at, byte): (usize, u8)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        };
        uuid.len() == 36 && uuid.bytes().enumerate().all(is_at_its_place)
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

/// Whether a character leaves no mark by itself: white space, control characters, characters with the Unicode property
/// `Default_Ignorable_Code_Point` (zero width, direction marks, variation selectors, fillers, byte order mark), the
/// other invisible format characters, and the empty Braille pattern.
pub fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c,
            '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
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

/// Version of an author's followers: the number of changes, 0 for an author who never had a follower. The plan of a post
/// pins it, so that all slices, retries and channels use the same followers.
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

    #[test]
    fn no_client_has_the_placeholder_of_an_erased_user() {
        let placeholder = "erased-01234567-89ab-4def-8123-456789abcdef";
        assert_eq!(UserId::new(placeholder), Err(InvalidUserId::Placeholder));
        assert!(UserId::from_stored(placeholder).unwrap().is_placeholder());
        for id in [
            "erased",
            "erased-",
            "erased-01234567-89ab-4def-8123-456789abcde",
            "erased-01234567-89ab-4def-8123-456789abcdeg",
            "erased-0123456789ab-4def-8123-456789abcdef-",
            "Erased-01234567-89ab-4def-8123-456789abcdef",
        ] {
            assert!(!UserId::new(id).unwrap().is_placeholder(), "{id}");
        }
    }

    #[test]
    fn a_user_id_has_a_visible_character() {
        for blank in [
            " ",
            "   ",
            "\u{a0}",
            "\u{3000}",
            "\u{2028}",
            "\u{feff}",
            "\u{200b}\u{200d} ",
            "\u{2060}",
            "\u{ad}",
            "\u{200e}\u{202e}",
            "\u{3164}",
            "\u{fe0f}",
            "\u{e0041}",
            "\u{2800}",
        ] {
            assert_eq!(UserId::new(blank), Err(InvalidUserId::Invisible), "{blank:?}");
            assert!(UserId::from_stored(blank).is_ok(), "{blank:?}");
        }
        for visible in [" a", "a b", "\u{feff}1", "👩\u{200d}💻", "❤\u{fe0f}", "़", "."] {
            assert!(UserId::new(visible).is_ok(), "{visible:?}");
        }
        assert_eq!(UserId::new("\0"), Err(InvalidUserId::ControlCharacter));
        assert_eq!(UserId::from_stored(""), Err(InvalidUserId::Empty));
    }
}

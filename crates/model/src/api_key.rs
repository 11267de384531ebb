//! API keys and their scopes.

use std::{fmt, str::FromStr};

use crate::{UnknownName, time::Timestamp};

/// Maximum length of the name of a key, bytes.
pub const KEY_NAME_BYTES_MAX: usize = 64;

/// What a credential allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Submit and delete posts.
    Post,
    /// Read posts, timelines, follows, deliveries and statistics.
    Read,
    /// Follow, unfollow and import follows.
    Graph,
    /// Read and change devices and notification preferences.
    Devices,
    /// Read, redrive and discard dead letters, rebuild timelines, and create, list and revoke keys.
    Operate,
    /// Run audits, and read the history of operations on dead letters.
    Audit,
    /// Read the lag of consumers.
    Scale,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 7] = [
        Self::Post,
        Self::Read,
        Self::Graph,
        Self::Devices,
        Self::Operate,
        Self::Audit,
        Self::Scale,
    ];

    /// Name in tokens, errors and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Post => "post",
            Self::Read => "read",
            Self::Graph => "graph",
            Self::Devices => "devices",
            Self::Operate => "operate",
            Self::Audit => "audit",
            Self::Scale => "scale",
        }
    }

    /// The bit in the store; it never changes.
    const fn bit(self) -> u32 {
        1 << match self {
            Self::Post => 0,
            Self::Read => 1,
            Self::Graph => 2,
            Self::Devices => 3,
            Self::Operate => 4,
            Self::Audit => 5,
            Self::Scale => 6,
        }
    }
}

impl FromStr for Scope {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == name)
            .ok_or_else(|| UnknownName {
                name: name.into(),
                known: "post, read, graph, devices, operate, audit, scale",
            })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Scopes(u32);

impl Scopes {
    /// No scope.
    pub const NONE: Self = Self(0);

    /// Every scope.
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether a scope is in the set.
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The scopes, in the order of [`Scope::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }

    /// The set as the store has it: a bit a scope.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of [`bits`](Self::bits). A bit that this version doesn't know allows nothing.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits & Self::all().0)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Display for Scopes {
    /// The names, separated by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Scope::as_str).collect();
        f.write_str(&names.join(","))
    }
}

/// Id of an API key: 64 random bits, 16 hexadecimal digits in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiKeyId(pub u64);

/// Error of a text that is not the id of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 16 hexadecimal digits, lowercase")]
pub struct InvalidApiKeyId;

impl FromStr for ApiKeyId {
    type Err = InvalidApiKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidApiKeyId> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 16 || !text.bytes().all(is_digit) {
            return Err(InvalidApiKeyId);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| InvalidApiKeyId)
    }
}

impl fmt::Display for ApiKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The record of an API key. It has no secret, only the hash of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Id, a part of the key.
    pub id: ApiKeyId,
    /// Name, as [`is_key_name`] allows it. Several keys can have one name.
    pub name: String,
    /// SHA-256 of the secret. The secret is 256 random bits, which can't be guessed: a slow hash, made for passwords that
    /// people choose, would only cost time at each call.
    pub secret_hash: [u8; 32],
    /// What the key allows.
    pub scopes: Scopes,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it ends; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    /// Whether the key is neither revoked nor expired.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// Whether a text can be the name of a key: 1 to 64 letters, digits, `.`, `_` and `-` of ASCII.
pub fn is_key_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=KEY_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scopes_have_names_and_bits_of_their_own() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(scope));
            let one: Scopes = [scope].into_iter().collect();
            assert_eq!(one.iter().collect::<Vec<_>>(), [scope]);
            assert_eq!(Scopes::from_bits(one.bits()), one);
        }
        assert_eq!(Scopes::from_bits(u32::MAX), Scopes::all());
        assert_eq!(
            Scopes::all().to_string(),
            "post,read,graph,devices,operate,audit,scale"
        );
        assert!("admin".parse::<Scope>().is_err());
    }

    #[test]
    fn a_key_ends_when_it_expires_or_is_revoked() {
        let mut key = ApiKey {
            id: ApiKeyId(1),
            name: "ci".into(),
            secret_hash: [0; 32],
            scopes: Scopes::NONE,
            created_at: Timestamp(1),
            expires_at: Some(Timestamp(10)),
            revoked_at: None,
        };
        assert!(key.is_valid_at(Timestamp(9)) && !key.is_valid_at(Timestamp(10)));
        key.revoked_at = Some(Timestamp(20));
        assert!(!key.is_valid_at(Timestamp(9)));
    }

    #[test]
    fn names_are_ascii() {
        for name in ["a", "ci-deploy_2.x", &"n".repeat(64)] {
            assert!(is_key_name(name), "{name}");
        }
        for name in ["", "a b", "user:ann", "ünal", &"n".repeat(65)] {
            assert!(!is_key_name(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_id_round_trips(id: u64) {
            prop_assert_eq!(ApiKeyId(id).to_string().parse(), Ok(ApiKeyId(id)));
        }

        #[test]
        fn only_16_digits_are_an_id(text in "[0-9a-fA-F+_x]{0,20}") {
            if let Ok(id) = text.parse::<ApiKeyId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}

//! A URL that can hold a password.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// A URL that `Debug` and `Serialize` redact, because it can hold a password. An empty one stays empty, which shows
/// that it is unset.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The plain text.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the URL is unset.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn redacted(&self) -> &'static str {
        if self.is_empty() { "" } else { "[hidden]" }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.redacted(), f)
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.redacted())
    }
}

impl From<&str> for SecretUrl {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_redacted() {
        assert_eq!(
            format!("{:?}", SecretUrl::from("postgres://u:hunter2@h/d")),
            "\"[hidden]\""
        );
        assert_eq!(format!("{:?}", SecretUrl::default()), "\"\"");
    }
}

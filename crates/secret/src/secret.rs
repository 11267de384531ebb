//! A setting that is never printed.

use std::cell::Cell;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use crate::redact::{self, HIDDEN};

thread_local! {
    /// Whether secrets are serialised in plain text: only while the loader converts defaults and flags to layers.
    static EXPOSING: Cell<bool> = const { Cell::new(false) };
}

/// A string that `Debug` and `Serialize` redact. An empty string stays empty, which shows that the setting is unset.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a string.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The plain text.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the secret is empty, that is, unset.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn redacted(&self) -> &str {
        if self.is_empty() { "" } else { HIDDEN }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.redacted(), f)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if EXPOSING.get() { &self.0 } else { self.redacted() })
    }
}

/// A URL that can contain a password, or several URLs separated by commas. `Debug` and `Serialize` redact the password.
/// An empty URL is unset.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The whole URL, with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the URL is empty, that is, unset.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the URL contains a password or a token.
    pub fn has_password(&self) -> bool {
        // A port that is no number is hidden too.
        self.0.contains(['@', '?']) && self.redacted() != self.0
    }

    /// Checks that the URL can be read in one way only: a character such as `#` in a password must be percent-encoded.
    ///
    /// # Errors
    /// Says what is wrong and what to do, without any part of the URL.
    pub fn check(&self) -> Result<(), &'static str> {
        redact::check(&self.0)
    }

    /// The URL without its password. Of a text that is no URL, what is before `@` is hidden: it can be a mistyped one.
    pub fn redacted(&self) -> String {
        if let Some(redacted) = redact::password(&self.0) {
            return redacted;
        }
        match self.0.rsplit_once('@') {
            Some((_, host)) if !self.0.contains("://") => format!("{HIDDEN}@{host}"),
            _ => self.0.clone(),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.redacted(), f)
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if EXPOSING.get() {
            serializer.serialize_str(&self.0)
        } else {
            serializer.serialize_str(&self.redacted())
        }
    }
}

impl From<&str> for SecretUrl {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

/// Runs a function that serialises secrets in plain text on this thread. For a loader of settings, which converts them to
/// layers.
pub fn with_secrets_exposed<R>(run: impl FnOnce() -> R) -> R {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            EXPOSING.set(self.0);
        }
    }
    let _reset = Reset(EXPOSING.replace(true));
    run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_redacted() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "\"[hidden]\"");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[hidden]\"");
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(serde_json::to_string(&Secret::default()).unwrap(), "\"\"");
    }

    #[test]
    fn the_password_of_a_url_is_redacted() {
        let url = SecretUrl::new("postgres://me:hunter2@host/db");
        assert!(url.has_password());
        assert_eq!(format!("{url:?}"), "\"postgres://me:[hidden]@host/db\"");
        assert_eq!(
            serde_json::to_string(&url).unwrap(),
            "\"postgres://me:[hidden]@host/db\""
        );
        assert_eq!(
            SecretUrl::new("http:/me:hunter2@host").redacted(),
            "[hidden]@host"
        );
        assert!(!SecretUrl::new("postgres://me@host/db").has_password());
        assert!(SecretUrl::new("nats://token@host").has_password());
        assert!(SecretUrl::new("me:hunter2@host:4222").has_password());
        assert!(!SecretUrl::new("nats://host:port").has_password());
    }

    #[test]
    fn secrets_are_redacted_again_after_with_secrets_exposed() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            with_secrets_exposed(|| serde_json::to_string(&secret)).unwrap(),
            "\"hunter2\""
        );
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[hidden]\"");
    }
}

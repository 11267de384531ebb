//! A setting that is never shown.

use std::cell::Cell;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// What stands in place of a secret.
const HIDDEN: &str = "[hidden]";

thread_local! {
    /// Whether secrets are serialised as they are: only while the defaults become a layer.
    static EXPOSING: Cell<bool> = const { Cell::new(false) };
}

/// A string that neither `Debug` nor `Serialize` shows; an empty one is shown as empty, to tell that it is unset.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides a string.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The string itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn shown(&self) -> &str {
        if self.is_empty() { "" } else { HIDDEN }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.shown(), f)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if EXPOSING.get() { &self.0 } else { self.shown() })
    }
}

/// Runs a function on this thread in which secrets are serialised as they are.
pub(super) fn exposing<R>(run: impl FnOnce() -> R) -> R {
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
    fn a_secret_is_not_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "\"[hidden]\"");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[hidden]\"");
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(serde_json::to_string(&Secret::default()).unwrap(), "\"\"");
    }

    #[test]
    fn exposing_ends() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            exposing(|| serde_json::to_string(&secret)).unwrap(),
            "\"hunter2\""
        );
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[hidden]\"");
    }
}

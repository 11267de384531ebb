//! What tests do on a machine without the programs.

use std::io::Write as _;

use crate::error::{Error, Result};

/// Set to a value other than 0, it makes a missing program a failure of the tests. `.ci/run` sets it.
const REQUIRE_ALL: &str = "TESTS_REQUIRE_SERVERS";

/// The started server; `None` if its program is missing on this machine, after a line on standard error that says so.
///
/// # Panics
/// If the server can't be started for another reason, or if its program is missing and `TESTS_REQUIRE_SERVERS` is set.
pub fn required<T>(what: &str, started: Result<T>) -> Option<T> {
    match started {
        Ok(server) => Some(server),
        Err(error @ Error::Missing { .. })
            if std::env::var_os(REQUIRE_ALL).is_none_or(|value| value == *"0" || value.is_empty()) =>
        {
            // Written past the capture of the test harness, which hides what successful tests print.
            let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {error}");
            None
        }
        Err(error) => panic!("{what}: {}", with_sources(&error)),
    }
}

fn with_sources(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

//! Places where a test can make a process die, fail or dawdle.
//!
//! A kill at a random moment seldom hits the narrow gaps that matter: between the broker's answer and the caller's, between
//! a commit and its acknowledgement. A failpoint stands in such a gap by name:
//!
//! - [`point!`]`("timeline.recorded")`: here a process can die or wait.
//! - [`point!`]`("ledger.settle", error)`: here the function can also return that error.
//! - [`sabotaged!`]`("fanout.drop-chunk")`: true when a negative control breaks the rule at this place on purpose, so
//!   that it can be seen that the checker notices.
//!
//! The feature `failpoints` compiles them in. Nothing in the product asks for it, only the tests' `herald-under-test`;
//! without it the macros expand to nothing, and `cargo xtask failpoints` checks that a release has none. What a point does
//! is said by the environment variable `FAILPOINTS` in the words of the `fail` crate, as
//! `timeline.recorded=20*off->1*return(kill);ledger.settle=5*return(error)`, with these arguments of `return`:
//!
//! | argument | does |
//! |---|---|
//! | `kill` | ends the process with SIGKILL: no destructor runs, nothing is flushed |
//! | `error` | returns the error of the place, where it has one |
//! | `delay 250` | waits so many milliseconds |
//! | none | breaks the rule, at a [`sabotaged!`] |

#[cfg(feature = "failpoints")]
mod active;

#[cfg(feature = "failpoints")]
pub use active::{from_environment, hit, is_sabotaged};

/// A place in async code where a test can kill, delay, or, with a second argument, return that error.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! point {
    ($name:expr) => {
        $crate::hit($name).await;
    };
    ($name:expr, $error:expr) => {
        if $crate::hit($name).await {
            return Err($error);
        }
    };
}

/// A place in async code where a test can kill, delay, or, with a second argument, return that error.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! point {
    ($name:expr) => {};
    ($name:expr, $error:expr) => {};
}

/// Whether a negative control wants the rule broken here.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! sabotaged {
    ($name:literal) => {
        $crate::is_sabotaged($name)
    };
}

/// Whether a negative control wants the rule broken here.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! sabotaged {
    ($name:literal) => {
        false
    };
}

//! Failpoints: places where a test can kill, fail or delay a process.
//!
//! A kill at a random time seldom hits the short gaps that matter: between the broker's reply and the caller's, between
//! a commit and its acknowledgement. A failpoint marks such a gap with a name:
//!
//! - [`point!`]`("timeline.recorded")`: the process can be killed or delayed here.
//! - [`point!`]`("ledger.settle", error)`: the function can also return this error.
//! - [`negative_control!`]`("fanout.drop-chunk")`: returns true if a negative control breaks the rule here on purpose, to
//!   prove that the checker detects it.
//!
//! The feature `failpoints` compiles them in. Only the tests' `herald-under-test` enables it. Without it the macros
//! expand to nothing; `cargo xtask failpoints` checks that a release has none. The environment variable `FAILPOINTS`
//! configures the actions in the syntax of the `fail` crate, for example
//! `timeline.recorded=20*off->1*return(kill);ledger.settle=5*return(error)`, with these arguments of `return`:
//!
//! | argument | action |
//! |---|---|
//! | `kill` | kills the process with SIGKILL: no destructor runs, nothing is flushed |
//! | `error` | returns the error of the failpoint, if it has one |
//! | `delay 250` | waits for 250 milliseconds |
//! | none | breaks the rule at a [`negative_control!`] |

#[cfg(feature = "failpoints")]
mod active;

#[cfg(feature = "failpoints")]
pub use active::{from_environment, hit, is_sabotaged};

/// A failpoint in async code: a test can kill or delay the process here or, with a second argument, return this error.
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

/// A failpoint in async code: a test can kill or delay the process here or, with a second argument, return this error.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! point {
    ($name:expr) => {};
    ($name:expr, $error:expr) => {};
}

/// Whether a negative control breaks the rule here.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! negative_control {
    ($name:literal) => {
        $crate::is_sabotaged($name)
    };
}

/// Whether a negative control breaks the rule here.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! negative_control {
    ($name:literal) => {
        false
    };
}

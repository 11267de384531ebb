//! Classifies failures as transient or permanent, and isolates the failing items of a batch.
//!
//! Each error type implements [`Classify`]. A worker decides by the class and never by the error's text: it retries a
//! transient failure, and bisects a permanent one with [`isolate`] down to the failing items. A panic is a permanent
//! failure.

mod isolate;

use std::{any::Any, fmt, time::Duration};

pub use isolate::{Isolated, isolate};

/// Whether a retry of the same call can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// A retry can succeed without intervention.
    Transient,
    /// Every retry fails until the data or the program is repaired.
    Permanent,
}

/// An error with a [`FailureClass`].
pub trait Classify {
    /// The error's class.
    fn class(&self) -> FailureClass;

    /// Delay before the retry; `None` uses the consumer's back-off.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// Whether the class is [`FailureClass::Transient`].
    fn is_transient(&self) -> bool {
        self.class() == FailureClass::Transient
    }
}

/// A failed call: an error with its class, or a panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classified<E> {
    /// The call returned a transient error.
    Transient(E),
    /// The text of a permanent error or of a panic.
    Permanent(String),
}

impl<E: Classify + fmt::Display> From<E> for Classified<E> {
    fn from(error: E) -> Self {
        match error.class() {
            FailureClass::Transient => Self::Transient(error),
            FailureClass::Permanent => Self::Permanent(error.to_string()),
        }
    }
}

impl<E: Classify> Classify for Classified<E> {
    fn class(&self) -> FailureClass {
        match self {
            Self::Transient(_) => FailureClass::Transient,
            Self::Permanent(_) => FailureClass::Permanent,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Transient(error) => error.retry_after(),
            Self::Permanent(_) => None,
        }
    }
}

impl<E: fmt::Display> fmt::Display for Classified<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transient(error) => error.fmt(f),
            Self::Permanent(reason) => f.write_str(reason),
        }
    }
}

/// Text of a caught panic, for logs and dead letters: `panic: ` and the message.
pub fn panic_reason(panic: &(dyn Any + Send)) -> String {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", message.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_panic_reason_contains_the_message() {
        let reason = |panic: fn()| panic_reason(&*catch_unwind(panic).unwrap_err());
        assert_eq!(reason(|| panic!("literal")), "panic: literal");
        assert_eq!(reason(|| panic!("formatted {}", 7)), "panic: formatted 7");
        let other = || std::panic::panic_any(7);
        assert_eq!(reason(other), "panic: without a message");
    }
}

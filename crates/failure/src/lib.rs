//! Whether a failure is worth a retry, and which items of a batch cause it.
//!
//! Each error type implements [`Classify`]. A worker acts on the class and never on the error's text: a transient failure is
//! retried, a permanent one is bisected by [`isolate`] down to the items that cause it. A panic is a permanent failure.

mod isolate;

use std::{any::Any, fmt, time::Duration};

pub use isolate::{Isolated, isolate};

/// Whether a retry of the same call can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// It can succeed without anybody's intervention.
    Transient,
    /// It fails until somebody repairs the data or the program.
    Permanent,
}

/// An error that knows its class.
pub trait Classify {
    /// Whether a retry can succeed.
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
    /// The call returned a permanent error or panicked; the text of either.
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

/// A caught panic as a reason for logs and dead letters.
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
    fn a_panic_gives_its_message() {
        let reason = |panic: fn()| panic_reason(&*catch_unwind(panic).unwrap_err());
        assert_eq!(reason(|| panic!("literal")), "panic: literal");
        assert_eq!(reason(|| panic!("formatted {}", 7)), "panic: formatted 7");
        let other = || std::panic::panic_any(7);
        assert_eq!(reason(other), "panic: without a message");
    }
}

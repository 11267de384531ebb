//! Whether a failure is worth a retry.
//!
//! Each error type implements [`Classify`]. A worker acts on the class and never on the error's text. A panic is a permanent
//! failure.

use std::{any::Any, time::Duration};

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

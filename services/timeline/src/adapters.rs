//! The way out: to watchers and to analytics.

mod reporter;
mod watchers;

pub(crate) use reporter::Reporter;
pub(crate) use watchers::Watchers;

//! Outbound adapters: watchers and analytics.

mod reporter;
mod watchers;

pub(crate) use reporter::Reporter;
pub(crate) use watchers::Watchers;

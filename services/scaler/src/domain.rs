//! Pure decisions: how much work a role has, how fast one process does it, and whether the role is active.
//!
//! Times are durations since the start of the scaler.

mod history;
mod meter;
mod monitor;
mod scope;
mod state;
mod trigger;

pub(crate) use history::Reading;
pub(crate) use monitor::{Failure, Limits, Measured, Monitor, Snapshot};
pub(crate) use scope::{Role, Scope, Source};
pub(crate) use state::State;
pub(crate) use trigger::{Trigger, Violation};

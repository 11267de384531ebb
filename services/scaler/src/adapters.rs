//! The way out: reads the consumers from NATS.

mod broker;
mod deliveries;

pub(crate) use broker::Broker;
pub use deliveries::{Assumptions, Known};

//! Outbound adapters: the graph service and the backlog of the downstream streams.

mod followers;
mod gate;

pub(crate) use followers::{Followers, SliceFollowers};
pub(crate) use gate::watch_gate;

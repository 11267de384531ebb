//! The way out: to the graph service and to the streams below.

mod followers;
mod gate;

pub(crate) use followers::Followers;
pub(crate) use gate::watch_gate;

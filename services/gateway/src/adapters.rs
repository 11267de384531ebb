//! Outbound calls to other services.

mod forward;

pub(crate) use forward::{Analytics, Audits, DeadLetters, Forward, Forwarding, Graph, UserData};

//! Outbound calls to other services.

mod follow_versions;
mod forward;

pub use follow_versions::FollowVersions;
pub(crate) use follow_versions::GraphFollowVersions;
pub(crate) use forward::{Analytics, Audits, DeadLetters, Forward, Graph};

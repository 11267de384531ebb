//! The way out: to other services, to the archive and the POSTS stream.

mod follow_versions;
mod forward;
mod posts;

pub use follow_versions::FollowVersions;
pub(crate) use follow_versions::GraphFollowVersions;
pub(crate) use forward::{Analytics, Audits, DeadLetters, Forward, Graph};
pub(crate) use posts::{PostReader, ReadError};

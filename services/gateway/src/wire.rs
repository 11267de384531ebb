//! Conversion of model types to the public API.

use herald_model::Post;
use herald_proto::v1;

/// Converts a post to a timeline entry.
pub(crate) fn timeline_entry_to_v1(post: Post) -> v1::TimelineEntry {
    v1::TimelineEntry {
        post: Some(post.into()),
    }
}

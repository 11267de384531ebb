//! Conversion of model types to the public API.

use herald_model::Post;
use herald_proto::{timestamp_to_proto, v1};

/// Converts a post.
pub(crate) fn post_to_v1(post: Post) -> v1::Post {
    v1::Post {
        post_id: post.id.0,
        author_id: post.author_id.into_string(),
        text: post.text,
        links: post.links,
        media_urls: post.media_urls,
        lane: v1::Lane::from(post.lane).into(),
        accepted_time: Some(timestamp_to_proto(post.accepted_at)),
        push_title: post.push.title,
        push_collapse_key: post.push.collapse_key,
        push_data: post.push.data,
    }
}

/// Converts a post to a timeline entry.
pub(crate) fn timeline_entry_to_v1(post: Post) -> v1::TimelineEntry {
    v1::TimelineEntry {
        post: Some(post_to_v1(post)),
    }
}

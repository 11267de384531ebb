//! Between the words of the model and those on the wire.

use std::time::Duration;

use herald_model::{FollowVersion, Lane, Post, PostId, UserId, UserKey, time::Micros};
use herald_proto::{mesh_v1, timestamp, v1};

/// A lane as callers say it; `None` for a number that is none.
pub(crate) fn lane_from_v1(lane: i32) -> Option<Lane> {
    Some(match v1::Lane::try_from(lane).ok()? {
        v1::Lane::Unspecified | v1::Lane::Normal => Lane::Normal,
        v1::Lane::High => Lane::High,
        v1::Lane::Low => Lane::Low,
    })
}

/// A post as callers see it.
pub(crate) fn post_to_v1(post: Post) -> v1::Post {
    v1::Post {
        post_id: post.id.0,
        author_id: post.author_id.into_string(),
        text: post.text,
        links: post.links,
        media_urls: post.media_urls,
        lane: v1::Lane::from(post.lane).into(),
        accepted_time: Some(timestamp(post.accepted_at)),
    }
}

/// A post on a timeline as callers see it.
pub(crate) fn timeline_entry(post: Post) -> v1::TimelineEntry {
    v1::TimelineEntry {
        post: Some(post_to_v1(post)),
    }
}

/// The post in a `PostCreated` message; `Err` says why it is none.
pub(crate) fn post_from_mesh(id: PostId, created: mesh_v1::PostCreated) -> Result<Post, String> {
    if created.author_key == 0 {
        return Err("the author's key is missing".into());
    }
    let author_id = UserId::new(created.author_id).map_err(|e| format!("the author's id {e}"))?;
    let lane = lane_from_v1(created.lane).ok_or_else(|| format!("there is no lane {}", created.lane))?;
    Ok(Post {
        id,
        author: UserKey(created.author_key),
        author_id,
        request_id: created.request_id,
        text: created.text,
        links: created.links,
        media_urls: created.media_urls,
        lane,
        follow_version: FollowVersion(created.follow_version),
        accepted_at: Micros(created.accepted_at_us),
        push_ttl: Duration::from_secs(created.push_ttl_seconds.into()),
        deleted_at: None,
    })
}

/// What a `PostDeleted` message with this sequence deletes, and when; `Err` says why it deletes nothing.
pub(crate) fn deletion_from_mesh(
    sequence: u64,
    deleted: mesh_v1::PostDeleted,
) -> Result<(PostId, Micros), String> {
    if deleted.post_id == 0 || deleted.post_id >= sequence {
        return Err(format!("post {} can't have been deleted here", deleted.post_id));
    }
    Ok((PostId(deleted.post_id), Micros(deleted.deleted_at_us)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_no_post_says_why() {
        let good = mesh_v1::PostCreated {
            author_key: 7,
            author_id: "107".into(),
            ..Default::default()
        };
        assert_eq!(
            post_from_mesh(PostId(1), good.clone()).unwrap().lane,
            Lane::Normal
        );
        for bad in [
            mesh_v1::PostCreated {
                author_key: 0,
                ..good.clone()
            },
            mesh_v1::PostCreated {
                author_id: String::new(),
                ..good.clone()
            },
            mesh_v1::PostCreated { lane: 9, ..good },
        ] {
            assert!(post_from_mesh(PostId(1), bad).is_err());
        }
    }
}

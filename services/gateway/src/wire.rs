//! Between the words of the model and those on the wire.

use std::time::Duration;

use herald_model::{
    Channel, DeliveryState, FollowVersion, Lane, Post, PostId, UserId, UserKey, time::Micros,
};
use herald_proto::{mesh_v1, v1};
use prost_types::Timestamp;

/// A moment as callers see it.
pub(crate) fn timestamp(at: Micros) -> Timestamp {
    Timestamp {
        seconds: at.0.div_euclid(1_000_000),
        // Less than 1,000,000,000, so it fits.
        nanos: (at.0.rem_euclid(1_000_000) * 1_000) as i32,
    }
}

/// A lane as callers see it.
pub(crate) fn lane_to_v1(lane: Lane) -> v1::Lane {
    match lane {
        Lane::High => v1::Lane::High,
        Lane::Normal => v1::Lane::Normal,
        Lane::Low => v1::Lane::Low,
    }
}

/// A lane as callers say it; `None` for a number that is none.
pub(crate) fn lane_from_v1(lane: i32) -> Option<Lane> {
    Some(match v1::Lane::try_from(lane).ok()? {
        v1::Lane::Unspecified | v1::Lane::Normal => Lane::Normal,
        v1::Lane::High => Lane::High,
        v1::Lane::Low => Lane::Low,
    })
}

/// A channel as callers see it.
pub(crate) fn channel_to_v1(channel: Channel) -> v1::Channel {
    match channel {
        Channel::Timeline => v1::Channel::Timeline,
        Channel::Push => v1::Channel::Push,
    }
}

/// A state as callers see it.
pub(crate) fn state_to_v1(state: DeliveryState) -> v1::DeliveryState {
    match state {
        DeliveryState::Pending => v1::DeliveryState::Pending,
        DeliveryState::Delivered => v1::DeliveryState::Delivered,
        DeliveryState::Suppressed => v1::DeliveryState::Suppressed,
        DeliveryState::Expired => v1::DeliveryState::Expired,
        DeliveryState::Dead => v1::DeliveryState::Dead,
    }
}

/// A post as callers see it.
pub(crate) fn post_to_v1(post: Post) -> v1::Post {
    v1::Post {
        post_id: post.id.0,
        author_id: post.author_id.into_string(),
        text: post.text,
        links: post.links,
        media_urls: post.media_urls,
        lane: lane_to_v1(post.lane).into(),
        accepted_time: Some(timestamp(post.accepted_at)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_before_1970_has_positive_nanos() {
        assert_eq!(
            timestamp(Micros(1_500_000)),
            Timestamp {
                seconds: 1,
                nanos: 500_000_000
            }
        );
        assert_eq!(
            timestamp(Micros(-1)),
            Timestamp {
                seconds: -1,
                nanos: 999_999_000
            }
        );
    }

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

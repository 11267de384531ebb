//! Conversions between the model's types and their Protobuf forms.

use herald_model::{Channel, DeliveryState, Lane, Post, time::Timestamp};

use crate::v1;

impl From<Lane> for v1::Lane {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::High => Self::High,
            Lane::Normal => Self::Normal,
            Lane::Low => Self::Low,
        }
    }
}

/// Reads a lane; unspecified is [`Lane::Normal`], an unknown number is `None`.
pub fn lane(lane: i32) -> Option<Lane> {
    Some(match v1::Lane::try_from(lane).ok()? {
        v1::Lane::Unspecified | v1::Lane::Normal => Lane::Normal,
        v1::Lane::High => Lane::High,
        v1::Lane::Low => Lane::Low,
    })
}

impl From<Channel> for v1::Channel {
    fn from(channel: Channel) -> Self {
        match channel {
            Channel::Timeline => Self::Timeline,
            Channel::Push => Self::Push,
        }
    }
}

impl From<DeliveryState> for v1::DeliveryState {
    fn from(state: DeliveryState) -> Self {
        match state {
            DeliveryState::Pending => Self::Pending,
            DeliveryState::Delivered => Self::Delivered,
            DeliveryState::Suppressed => Self::Suppressed,
            DeliveryState::Expired => Self::Expired,
            DeliveryState::Dead => Self::Dead,
        }
    }
}

impl From<Post> for v1::Post {
    fn from(post: Post) -> Self {
        Self {
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
}

/// Converts a timestamp, microseconds since 1970, to its Protobuf form.
pub fn timestamp_to_proto(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.0.div_euclid(1_000_000),
        // Less than 1,000,000,000, so it fits.
        nanos: (at.0.rem_euclid(1_000_000) * 1_000) as i32,
    }
}

/// Reads a timestamp, truncated to microseconds; `None` when it is malformed or out of range.
pub fn timestamp_from_proto(at: &prost_types::Timestamp) -> Option<Timestamp> {
    let nanos = i64::from(at.nanos);
    let valid = (0..1_000_000_000).contains(&nanos);
    let micros = at.seconds.checked_mul(1_000_000)?.checked_add(nanos / 1_000)?;
    valid.then_some(Timestamp(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_before_1970_has_positive_nanos() {
        assert_eq!(
            timestamp_to_proto(Timestamp(1_500_000)),
            prost_types::Timestamp {
                seconds: 1,
                nanos: 500_000_000
            }
        );
        assert_eq!(
            timestamp_to_proto(Timestamp(-1)),
            prost_types::Timestamp {
                seconds: -1,
                nanos: 999_999_000
            }
        );
    }

    #[test]
    fn timestamps_round_trip() {
        for micros in [0, -1, 1_769_846_400_123_456] {
            assert_eq!(
                timestamp_from_proto(&timestamp_to_proto(Timestamp(micros))),
                Some(Timestamp(micros))
            );
        }
        let out_of_range = prost_types::Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        };
        assert_eq!(timestamp_from_proto(&out_of_range), None);
        let malformed = prost_types::Timestamp {
            seconds: 0,
            nanos: -1,
        };
        assert_eq!(timestamp_from_proto(&malformed), None);
    }
}

//! Decodes messages of the POSTS stream.

use std::time::Duration;

use bytes::Bytes;
use herald_mesh::Subject;
use herald_model::{Post, PostId, PushContent, UserId, UserKey, time::Timestamp};
use herald_proto::{
    mesh_v1::{PostCreated, PostDeleted},
    v1,
};
use herald_store::Archived;
use prost::Message;

/// Decodes a message of POSTS into a post or a deletion. The post's id is the message's sequence.
///
/// The key of the author is [`NO_KEY`](crate::NO_KEY) if the message lacks it: call
/// [`resolve_authors`](crate::resolve_authors).
///
/// # Errors
/// The reason why the message is neither: another subject, an undecodable payload, or an invalid field.
pub fn entry(subject: Subject, sequence: u64, payload: Bytes) -> Result<Archived, String> {
    match subject {
        Subject::PostCreated(_) => {
            created(PostId(sequence), decode(subject, payload)?).map(Archived::Created)
        }
        Subject::PostDeleted(_) => deleted(sequence, &decode(subject, payload)?),
        other => Err(format!("subject {other} is not a subject of POSTS")),
    }
}

/// The message of POSTS for an archived post.
pub fn created_message(post: &Post) -> PostCreated {
    PostCreated {
        author_key: post.author.0,
        author_id: post.author_id.as_str().to_owned(),
        request_id: post.request_id.clone(),
        text: post.text.clone(),
        links: post.links.clone(),
        media_urls: post.media_urls.clone(),
        lane: v1::Lane::from(post.lane).into(),
        accepted_at_us: post.accepted_at.0,
        push_ttl_seconds: u32::try_from(post.push_ttl.as_secs()).unwrap_or(u32::MAX),
        push_title: post.push.title.clone(),
        push_collapse_key: post.push.collapse_key.clone(),
        push_data: post.push.data.clone(),
    }
}

/// Whether two posts with the same id are the same post. Keys of authors may differ: a message can lack one. Of an
/// erased post only the time of acceptance is left to compare.
pub fn is_same_post(one: &Post, other: &Post) -> bool {
    if one.is_erased() || other.is_erased() {
        return one.accepted_at == other.accepted_at;
    }
    (&one.author_id, &one.request_id, one.accepted_at)
        == (&other.author_id, &other.request_id, other.accepted_at)
}

fn decode<M: Message + Default>(subject: Subject, payload: Bytes) -> Result<M, String> {
    let kind = subject.message_type();
    M::decode(payload).map_err(|error| format!("undecodable {kind} on {subject}: {error}"))
}

fn created(id: PostId, created: PostCreated) -> Result<Post, String> {
    let author_id = UserId::from_stored(created.author_id).map_err(|e| format!("author_id {e}"))?;
    let lane = herald_proto::lane(created.lane).ok_or_else(|| format!("unknown lane {}", created.lane))?;
    Ok(Post {
        id,
        author: UserKey(created.author_key),
        author_id,
        request_id: created.request_id,
        text: created.text,
        links: created.links,
        media_urls: created.media_urls,
        lane,
        accepted_at: Timestamp(created.accepted_at_us),
        push_ttl: Duration::from_secs(created.push_ttl_seconds.into()),
        push: PushContent {
            title: created.push_title,
            collapse_key: created.push_collapse_key,
            data: created.push_data,
        },
        deleted_at: None,
    })
}

fn deleted(sequence: u64, deleted: &PostDeleted) -> Result<Archived, String> {
    if deleted.post_id == 0 || deleted.post_id >= sequence {
        return Err(format!(
            "invalid deletion: post {} is not before sequence {sequence}",
            deleted.post_id
        ));
    }
    Ok(Archived::Deleted {
        post: PostId(deleted.post_id),
        at: Timestamp(deleted.deleted_at_us),
    })
}

#[cfg(test)]
mod tests {
    use herald_model::Lane;
    use proptest::prelude::*;

    use super::*;

    fn decode_post(post: &PostCreated) -> Result<Archived, String> {
        entry(Subject::PostCreated(Lane::Low), 1, post.encode_to_vec().into())
    }

    fn decode_deletion(post_id: u64) -> Result<Archived, String> {
        let deleted = PostDeleted {
            post_id,
            ..PostDeleted::default()
        };
        entry(Subject::PostDeleted(Lane::Low), 9, deleted.encode_to_vec().into())
    }

    #[test]
    fn an_invalid_post_is_refused_with_the_reason() {
        let good = PostCreated {
            author_key: 7,
            author_id: "107".into(),
            ..PostCreated::default()
        };
        let Archived::Created(post) = decode_post(&good).unwrap() else {
            panic!("a post")
        };
        assert_eq!((post.id, post.lane), (PostId(1), Lane::Normal));
        for bad in [
            PostCreated {
                author_id: String::new(),
                ..good.clone()
            },
            PostCreated { lane: 9, ..good },
        ] {
            assert!(decode_post(&bad).is_err());
        }
        let subject = Subject::PostCreated(Lane::Low);
        let error = entry(subject, 1, "nonsense".into()).unwrap_err();
        assert!(error.starts_with("undecodable herald.mesh.v1.PostCreated on post.v1.created.low"));
    }

    #[test]
    fn an_archived_post_makes_the_message_that_it_came_from() {
        let message = PostCreated {
            author_key: 7,
            author_id: "107".into(),
            request_id: "request".into(),
            text: "text".into(),
            links: vec!["https://example.org/".into()],
            media_urls: vec!["https://example.org/a.png".into()],
            lane: v1::Lane::Low.into(),
            accepted_at_us: 5,
            push_ttl_seconds: 60,
            push_title: "title".into(),
            push_collapse_key: "key".into(),
            push_data: [("a".to_owned(), "b".to_owned())].into(),
        };
        let Archived::Created(post) = decode_post(&message).unwrap() else {
            panic!("a post")
        };
        assert_eq!(created_message(&post), message);
    }

    #[test]
    fn a_deletion_must_name_an_earlier_post() {
        assert!(matches!(
            decode_deletion(8),
            Ok(Archived::Deleted { post: PostId(8), .. })
        ));
        assert!(decode_deletion(0).is_err());
        assert!(decode_deletion(9).is_err());
        assert!(entry(Subject::LiveTimeline, 9, Bytes::new()).is_err());
    }

    fn posts() -> impl Strategy<Value = Vec<u8>> {
        let numbers = (
            herald_fuzz::u32s(),
            herald_fuzz::micros(),
            herald_fuzz::u32s(),
            -1..5,
        );
        let pairs = prop::collection::btree_map(".{0,5}", ".{0,5}", 0..4);
        (".{0,20}", ".{0,20}", numbers, pairs).prop_map(|(author_id, text, numbers, pairs)| {
            let (author_key, accepted_at_us, push_ttl_seconds, lane) = numbers;
            let post = PostCreated {
                author_key,
                author_id,
                request_id: "request".into(),
                text,
                links: vec!["https://example.org/".into()],
                lane,
                accepted_at_us,
                push_ttl_seconds,
                push_data: pairs.into_iter().collect(),
                ..PostCreated::default()
            };
            post.encode_to_vec()
        })
    }

    proptest! {
        /// What is archived of any payload makes the same message again.
        #[test]
        fn bytes_near_a_post_are_a_post_or_refused(payload in herald_fuzz::near(posts()), sequence: u64) {
            let subject = Subject::PostCreated(Lane::High);
            match entry(subject, sequence, payload.into()) {
                Ok(Archived::Created(post)) => {
                    prop_assert_eq!(post.id, PostId(sequence));
                    let again = created_message(&post).encode_to_vec();
                    prop_assert_eq!(entry(subject, sequence, again.into()), Ok(Archived::Created(post)));
                }
                Ok(other) => prop_assert!(false, "{:?}", other),
                Err(reason) => prop_assert!(!reason.is_empty()),
            }
        }

        #[test]
        fn bytes_near_a_deletion_are_one_of_an_earlier_post_or_refused(
            payload in herald_fuzz::near((herald_fuzz::u64s(), herald_fuzz::micros()).prop_map(
                |(post_id, deleted_at_us)| PostDeleted { post_id, author_key: 1, deleted_at_us }.encode_to_vec(),
            )),
            sequence in herald_fuzz::u64s(),
        ) {
            if let Ok(entry) = entry(Subject::PostDeleted(Lane::High), sequence, payload.into()) {
                let is_earlier = matches!(entry, Archived::Deleted { post, .. } if post.0 > 0 && post.0 < sequence);
                prop_assert!(is_earlier);
            }
        }
    }
}

//! What a message of POSTS says.

use std::time::Duration;

use bytes::Bytes;
use herald_mesh::Subject;
use herald_model::{FollowVersion, Post, PostId, UserId, UserKey, time::Timestamp};
use herald_proto::mesh_v1::{PostCreated, PostDeleted};
use herald_store::Archived;
use prost::Message;

/// The post or the deletion in a message of POSTS with this sequence; `Err` says why it is neither.
pub fn entry(subject: Subject, sequence: u64, payload: Bytes) -> Result<Archived, String> {
    match subject {
        Subject::PostCreated(_) => {
            created(PostId(sequence), decode(subject, payload)?).map(Archived::Created)
        }
        Subject::PostDeleted(_) => deleted(sequence, &decode(subject, payload)?),
        other => Err(format!("{other} is no subject of posts")),
    }
}

fn decode<M: Message + Default>(subject: Subject, payload: Bytes) -> Result<M, String> {
    let kind = subject.message_type();
    M::decode(payload).map_err(|error| format!("undecodable {kind} on {subject}: {error}"))
}

fn created(id: PostId, created: PostCreated) -> Result<Post, String> {
    if created.author_key == 0 {
        return Err("the author's key is missing".into());
    }
    let author_id = UserId::new(created.author_id).map_err(|e| format!("the author's id {e}"))?;
    let lane =
        herald_proto::lane(created.lane).ok_or_else(|| format!("there is no lane {}", created.lane))?;
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
        accepted_at: Timestamp(created.accepted_at_us),
        push_ttl: Duration::from_secs(created.push_ttl_seconds.into()),
        deleted_at: None,
    })
}

fn deleted(sequence: u64, deleted: &PostDeleted) -> Result<Archived, String> {
    if deleted.post_id == 0 || deleted.post_id >= sequence {
        return Err(format!("post {} can't have been deleted here", deleted.post_id));
    }
    Ok(Archived::Deleted {
        post: PostId(deleted.post_id),
        at: Timestamp(deleted.deleted_at_us),
    })
}

#[cfg(test)]
mod tests {
    use herald_model::Lane;

    use super::*;

    fn of_post(post: &PostCreated) -> Result<Archived, String> {
        entry(Subject::PostCreated(Lane::Low), 1, post.encode_to_vec().into())
    }

    fn of_deletion(post_id: u64) -> Result<Archived, String> {
        let deleted = PostDeleted {
            post_id,
            ..PostDeleted::default()
        };
        entry(Subject::PostDeleted(Lane::Low), 9, deleted.encode_to_vec().into())
    }

    #[test]
    fn a_message_that_is_no_post_says_why() {
        let good = PostCreated {
            author_key: 7,
            author_id: "107".into(),
            ..PostCreated::default()
        };
        let Archived::Created(post) = of_post(&good).unwrap() else {
            panic!("a post")
        };
        assert_eq!((post.id, post.lane), (PostId(1), Lane::Normal));
        for bad in [
            PostCreated {
                author_key: 0,
                ..good.clone()
            },
            PostCreated {
                author_id: String::new(),
                ..good.clone()
            },
            PostCreated { lane: 9, ..good },
        ] {
            assert!(of_post(&bad).is_err());
        }
        let subject = Subject::PostCreated(Lane::Low);
        let error = entry(subject, 1, "nonsense".into()).unwrap_err();
        assert!(error.starts_with("undecodable herald.mesh.v1.PostCreated on post.v1.created.low"));
    }

    #[test]
    fn only_an_earlier_post_can_be_deleted() {
        assert!(matches!(
            of_deletion(8),
            Ok(Archived::Deleted { post: PostId(8), .. })
        ));
        assert!(of_deletion(0).is_err());
        assert!(of_deletion(9).is_err());
        assert!(entry(Subject::LiveTimeline, 9, Bytes::new()).is_err());
    }
}

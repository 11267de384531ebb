//! Posts of users who are erased already.
//!
//! NATS can store a post long after its publish has failed, for example when the connection of a gateway that was cut off
//! works again. If an erasure of the author was complete by then, another one has to remove the post.

use std::collections::BTreeMap;

use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use herald_store::{Archived, Erasures, Result, Users};

/// Who asks for the erasure, in its record.
const ACTOR: &str = "archive: a post that came after the erasure";

/// Begins another erasure of each author whose erasure has not found a post of these.
///
/// Call it after the posts were archived and before their messages are acknowledged: an erasure begins with waiting until
/// the archive has passed the end of POSTS.
pub(crate) async fn erase(users: &dyn Users, erasures: &dyn Erasures, entries: &[Archived]) -> Result<()> {
    let mut newest: BTreeMap<UserKey, PostId> = BTreeMap::new();
    for entry in entries {
        if let Archived::Created(post) = entry {
            let newest = newest.entry(post.author).or_insert(post.id);
            *newest = post.id.max(*newest);
        }
    }
    let authors: Vec<_> = newest.keys().copied().collect();
    let ids = users.ids(&authors).await?;
    for ((author, post), id) in newest.into_iter().zip(ids) {
        if !id.as_ref().is_some_and(UserId::is_placeholder) {
            continue;
        }
        if let Some(erasure) = erasures
            .begin_again(author, post, ACTOR, Timestamp::now())
            .await?
        {
            tracing::warn!(
                erasure_id = erasure.id.0,
                post_id = post.0,
                "a post of an erased user came late, after its publish had failed; it is erased now"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use herald_model::{Lane, Post, PushContent};
    use herald_store::{
        Forgotten,
        embedded::{Config, Embedded},
    };

    use super::*;

    fn post(id: u64, author: UserKey) -> Archived {
        Archived::Created(Post {
            id: PostId(id),
            author,
            author_id: UserId::new("ann").unwrap(),
            request_id: format!("request {id}"),
            text: "text".into(),
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: Lane::Normal,
            accepted_at: Timestamp::now(),
            push_ttl: std::time::Duration::from_hours(1),
            push: PushContent::default(),
            deleted_at: None,
        })
    }

    #[tokio::test]
    async fn a_post_that_no_erasure_of_its_author_finds_begins_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&Config {
            data_dir: dir.path().into(),
            disk_free_mb_min: 0,
            ..Config::default()
        })
        .unwrap();
        let stores = store.stores();
        let ids = ["ann", "bob"].map(|id| UserId::new(id).unwrap());
        let keys = stores.users.intern(&ids).await.unwrap();
        let (ann, bob) = (keys[0], keys[1]);
        let erase = async |entries: &[Archived]| erase(&*stores.users, &*stores.erasures, entries).await;
        let running = async || {
            let running = stores.erasures.running().await.unwrap();
            running
                .into_iter()
                .map(|erasure| erasure.user)
                .collect::<Vec<_>>()
        };
        let deleted = Archived::Deleted {
            post: PostId(1),
            at: Timestamp::now(),
        };
        erase(&[post(1, ann), deleted.clone(), post(2, bob)])
            .await
            .unwrap();
        assert_eq!(running().await, []);

        let now = Timestamp::now();
        let first = stores.erasures.begin(&ids[0], "ops", now).await.unwrap().unwrap();
        erase(&[post(3, ann)]).await.unwrap();
        let forgotten = Forgotten {
            at: now,
            last_post: PostId(3),
        };
        stores
            .erasures
            .record_forgotten(first.id, &forgotten)
            .await
            .unwrap();
        erase(&[post(3, ann), post(4, bob)]).await.unwrap();
        assert_eq!(running().await, [ann], "it finds the post");
        stores.erasures.complete(first.id, now).await.unwrap();

        erase(&[deleted]).await.unwrap();
        assert_eq!(running().await, [], "there is no post to erase");
        // The newest post decides.
        let late = [post(5, bob), post(7, ann), post(6, ann)];
        erase(&late).await.unwrap();
        let begun = stores.erasures.running().await.unwrap();
        assert_eq!(begun.len(), 1, "{begun:?}");
        assert_eq!((begun[0].user, begun[0].actor.as_str()), (ann, ACTOR));
        let forgotten = Forgotten {
            at: now,
            last_post: PostId(6),
        };
        stores
            .erasures
            .record_forgotten(begun[0].id, &forgotten)
            .await
            .unwrap();
        erase(&late).await.unwrap();
        assert_eq!(running().await, [ann, ann]);
        // Redelivered.
        erase(&late).await.unwrap();
        assert_eq!(running().await, [ann, ann]);
    }
}

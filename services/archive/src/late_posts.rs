//! Posts of users who are erased already.
//!
//! NATS can store a post long after its publish has failed, for example when the connection of a gateway that was cut
//! off works again. If an erasure of the author was complete by then, another one has to remove the post.

use std::collections::BTreeMap;

use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use herald_store::{Archived, Erasures, ErrorKind, Result, Users};

/// Who asks for the erasure, in its record.
const ACTOR: &str = "archive: a post that came after the erasure";

/// Begins another erasure of each author whose erasure has not found a post of these.
///
/// Call it after the posts were archived and before their messages are acknowledged: an erasure begins with waiting
/// until the archive has passed the end of POSTS.
pub(crate) async fn erase(users: &dyn Users, erasures: &dyn Erasures, entries: &[Archived]) -> Result<()> {
    let mut newest: BTreeMap<UserKey, PostId> = BTreeMap::new();
    for entry in entries {
        if let Archived::Created(post) = entry {
            let newest = newest.entry(post.author).or_insert(post.id);
            *newest = post.id.max(*newest);
        }
    }
    let authors: Vec<_> = newest.keys().copied().collect();
    let erased = possibly_erased(users, &authors).await?;
    for (author, post) in newest.into_iter().filter(|(author, _)| erased.contains(author)) {
        herald_failpoints::point!("archive.late-post");
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

/// Those of some users who have placeholders as their ids, and those whose rows are damaged, who can be erased too.
async fn possibly_erased(users: &dyn Users, keys: &[UserKey]) -> Result<Vec<UserKey>> {
    let is_erased = |id: &Option<UserId>| id.as_ref().is_some_and(UserId::is_placeholder);
    match users.ids(keys).await {
        Err(error) if error.kind() == ErrorKind::Corrupt => {}
        ids => {
            let all = keys.iter().copied().zip(ids?);
            return Ok(all.filter(|(_, id)| is_erased(id)).map(|(key, _)| key).collect());
        }
    }
    let mut erased = Vec::new();
    for key in keys {
        let is_possible = match users.ids(&[*key]).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => true,
            id => id?.iter().any(is_erased),
        };
        if is_possible {
            erased.push(*key);
        }
    }
    Ok(erased)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use herald_store::{Error, Forgotten, KeyUse};

    use super::*;
    use crate::testing::{self, post};

    /// A dictionary whose row of one user is damaged.
    struct Damaged {
        inner: Arc<dyn Users>,
        user: UserKey,
    }

    #[async_trait]
    impl Users for Damaged {
        async fn find(&self, ids: &[UserId]) -> Result<Vec<Option<UserKey>>> {
            self.inner.find(ids).await
        }

        async fn intern(&self, ids: &[UserId]) -> Result<Vec<UserKey>> {
            self.inner.intern(ids).await
        }

        async fn ids(&self, keys: &[UserKey]) -> Result<Vec<Option<UserId>>> {
            if keys.contains(&self.user) {
                return Err(Error::new(ErrorKind::Corrupt, "the id is malformed"));
            }
            self.inner.ids(keys).await
        }

        async fn last_key(&self) -> Result<Option<UserKey>> {
            self.inner.last_key().await
        }

        fn cached_key(&self, id: &UserId) -> Option<UserKey> {
            self.inner.cached_key(id)
        }

        fn use_keys(&self) -> KeyUse {
            self.inner.use_keys()
        }
    }

    #[tokio::test]
    async fn a_post_that_no_erasure_of_its_author_finds_begins_one() {
        let (_dir, store) = testing::store();
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

    #[tokio::test]
    async fn a_damaged_row_of_an_author_holds_up_no_post_and_no_erasure() {
        let (_dir, store) = testing::store();
        let stores = store.stores();
        let ids = ["ann", "bob", "cid"].map(|id| UserId::new(id).unwrap());
        let keys = stores.users.intern(&ids).await.unwrap();
        for id in &ids[..2] {
            let now = Timestamp::now();
            let begun = stores.erasures.begin(id, "ops", now).await.unwrap().unwrap();
            stores.erasures.complete(begun.id, now).await.unwrap();
        }
        let posts = [post(7, keys[0]), post(8, keys[1]), post(9, keys[2])];
        for user in [keys[0], keys[2]] {
            let users = Damaged {
                inner: stores.users.clone(),
                user,
            };
            erase(&users, &*stores.erasures, &posts).await.unwrap();
            let running = stores.erasures.running().await.unwrap();
            let running: Vec<_> = running.iter().map(|erasure| erasure.user).collect();
            assert_eq!(running, keys[..2], "{user} is damaged");
        }
    }
}

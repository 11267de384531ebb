//! Erases all that is held of a user.

mod accounts;
mod dead_letters;
mod messages;
mod posts;
mod settled;

use herald_mesh::{consumers, streams};
use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use herald_proto::mesh_v1::PostCreated;
use herald_store::{ErasedCounts, Erasure};

use crate::{Error, Result, UserData};

impl UserData {
    /// Erases all that is held of a user, and completes the erasure. Waits until messages in flight are settled, so it
    /// can take long; it can be cancelled at any time and run again.
    ///
    /// # Errors
    /// A store or a stream failed, or data came while it was erased: run it again.
    pub async fn erase(&self, erasure: &Erasure) -> Result<()> {
        let Some(user_id) = &erasure.user_id else {
            return Ok(());
        };
        tracing::info!(erasure_id = erasure.id.0, "erasure begins");
        // Other processes can act for the key until they have forgotten it: nothing is removed before.
        let forgotten = self.until_forgotten(erasure.id).await?;
        let erase = Erase {
            data: self,
            erasure,
            author: Author {
                key: erasure.user,
                id: user_id,
                last_post: forgotten.last_post,
            },
        };
        herald_failpoints::point!("erasure.forgotten");
        let last = self.mesh.last_sequence(streams::POSTS).await?;
        erase
            .wait_until_settled(streams::POSTS, |consumer| {
                (consumer.name == consumers::ARCHIVE).then_some(last)
            })
            .await?;
        erase.accounts().await?;
        let posts = erase.find_posts().await?;
        let keyless = erase.delete_posts(&posts).await?;
        herald_failpoints::point!("erasure.posts-deleted");
        erase.delete_messages(streams::POSTS, posts).await?;
        erase.settle_dead_letters(&keyless).await?;
        erase
            .delete_messages(streams::REDRIVE, erase.find_redriven().await?)
            .await?;
        erase
            .delete_messages(streams::DLQ, erase.find_dead_letters().await?)
            .await?;
        herald_failpoints::point!("erasure.messages-deleted");
        erase.texts(&keyless).await?;
        herald_failpoints::point!("erasure.texts-erased");
        erase.timeline().await?;
        // The archive has handled what POSTS had until now.
        erase.check_posts().await?;
        // What calls have added that had read the user's key before it was forgotten.
        erase.accounts().await?;
        self.stores
            .erasures
            .complete(erasure.id, Timestamp::now())
            .await?;
        tracing::info!(erasure_id = erasure.id.0, "erasure is complete");
        Ok(())
    }
}

/// A running erasure.
struct Erase<'a> {
    data: &'a UserData,
    erasure: &'a Erasure,
    author: Author<'a>,
}

/// The author whose posts are erased.
struct Author<'a> {
    key: UserKey,
    id: &'a UserId,
    /// Later posts without a key are those of a new user with the same id.
    last_post: PostId,
}

impl Author<'_> {
    /// Whether the author wrote a post. A gateway that can't reach the store accepts posts without the author's key.
    fn wrote(&self, id: PostId, post: &PostCreated) -> bool {
        if UserKey(post.author_key) != herald_posts::NO_KEY {
            return UserKey(post.author_key) == self.key;
        }
        post.author_id == self.id.as_str() && id <= self.last_post
    }
}

impl Erase<'_> {
    async fn count(&self, counts: ErasedCounts) -> Result<()> {
        if counts != ErasedCounts::default() {
            self.data.stores.erasures.add(self.erasure.id, &counts).await?;
        }
        Ok(())
    }

    /// Removes the timeline, after the deliveries in flight have reached it.
    async fn timeline(&self) -> Result<()> {
        for stream in [streams::POSTS, streams::SLICES, streams::TIMELINE] {
            let last = self.data.mesh.last_sequence(stream).await?;
            self.wait_until_settled(stream, |consumer| {
                (consumer.name != consumers::ANALYTICS_POSTS).then_some(last)
            })
            .await?;
        }
        let timeline_entries = self.data.stores.timelines.erase(self.erasure.user).await?;
        self.count(ErasedCounts {
            timeline_entries,
            ..ErasedCounts::default()
        })
        .await
    }

    /// Refuses to complete the erasure while a post of the user is left, such as one that was archived late, from a
    /// redriven dead letter.
    async fn check_posts(&self) -> Result<()> {
        let posts = &self.data.stores.posts;
        let held = posts.of_author(self.erasure.user, None, 1).await?;
        let newest = posts
            .newest_by_author(self.erasure.user, PostId(u64::MAX), 1)
            .await?;
        if held.is_empty() && newest.is_empty() {
            Ok(())
        } else {
            Err(Error::Unfinished)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_without_a_key_is_the_authors_until_the_id_is_forgotten() {
        let id = UserId::from_stored("107").unwrap();
        let author = Author {
            key: UserKey(7),
            id: &id,
            last_post: PostId(100),
        };
        let wrote = |author_key, author_id: &str, post| {
            let message = PostCreated {
                author_key,
                author_id: author_id.into(),
                ..PostCreated::default()
            };
            author.wrote(PostId(post), &message)
        };
        assert!(wrote(7, "107", 50));
        assert!(wrote(7, "107", 500));
        assert!(wrote(0, "107", 100));
        assert!(!wrote(0, "107", 101));
        assert!(!wrote(0, "108", 50));
        // The id is that of a new user.
        assert!(!wrote(8, "107", 50));
    }
}

//! Lets damaged streams begin anew, above all sequences that are known.

use std::{collections::HashMap, sync::Arc};

use futures::StreamExt as _;
use herald_mesh::{Mesh, RawMessage, SequenceRange, Topology, streams};
use herald_model::{Post, PostId};
use herald_posts::NO_KEY;
use herald_store::{Archived, Stores};

use crate::{
    Checker, Error, Problem, Result, discard::discard_renamed, last_dead_letter, lost::lost_posts,
    retry::Retry, reused_id::read_entry,
};

/// Posts that are archived at once.
const BATCH: usize = 256;
/// Ids of posts are left out in steps of this many. A gateway can have answered with ids that neither the archive nor a
/// mark has seen: those of the last second, or, while the store was away, of that time.
const POSTS_STEP: u64 = 1_000_000;

/// Recovers the streams and the store of a stopped mesh.
pub struct Recovery {
    /// The streams. Its user may create, purge and delete.
    pub mesh: Mesh,
    /// Their specifications.
    pub topology: Arc<Topology>,
    /// The store.
    pub stores: Stores,
}

/// What a recovery found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// What was wrong.
    pub problems: Vec<Problem>,
    /// The streams that began anew.
    pub streams: Vec<RecoveredStream>,
    /// Posts of POSTS that the store lacked, and has now.
    pub posts_archived: u64,
    /// Posts of POSTS whose id another post of the store has: they are in the store with another id.
    pub posts_renamed: Vec<RenamedPost>,
    /// Dead letters of renamed posts, which the archive had refused, that were discarded.
    pub dead_letters_discarded: u64,
    /// Messages of POSTS that are neither a post nor a deletion.
    pub messages_unreadable: u64,
    /// Number of posts that were seen in POSTS, and that neither POSTS nor the store has. Posts of the moments before the
    /// loss that nobody had seen yet are not among them.
    pub posts_lost: u64,
    /// Those of them whose ids are known, because their deliveries were planned; ascending.
    pub posts_lost_ids: Vec<PostId>,
}

/// A stream that begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredStream {
    /// The stream.
    pub stream: String,
    /// Messages that were removed from it.
    pub removed: u64,
    /// Sequence of its next message.
    pub first_sequence: u64,
}

/// A post with another id than the one that its author was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenamedPost {
    /// The id that its author was told.
    pub told: PostId,
    /// Its id now.
    pub now: PostId,
}

impl Recovery {
    /// Compares streams and store and changes nothing. Waits for up to a minute while the NATS servers elect leaders.
    ///
    /// # Errors
    /// The streams or the store can't be read.
    pub async fn find_problems(&self) -> Result<Vec<Problem>> {
        self.find(&Retry::start()).await
    }

    async fn find(&self, retry: &Retry) -> Result<Vec<Problem>> {
        let checker = self.checker();
        retry.run(async || checker.check_thoroughly().await).await
    }

    fn checker(&self) -> Checker {
        Checker {
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            posts: self.stores.posts.clone(),
            dead_letters: self.stores.dead_letters.clone(),
            stream_marks: self.stores.stream_marks.clone(),
        }
    }

    /// Archives what POSTS has and the store lacks, and lets each damaged stream begin anew above all known sequences.
    /// Deliveries that a removed message would have made are found by the next audit, and sent again by a repairing one.
    ///
    /// Waits for up to a minute while the NATS servers elect leaders. Can be repeated after a failure: what is archived
    /// stays archived, and a stream that began anew is sound.
    ///
    /// # Errors
    /// [`Error::InUse`] while a process of Herald runs; [`Error::Unavailable`] if the wait was not enough; other errors of
    /// the streams and the store.
    pub async fn run(&self) -> Result<Recovered> {
        let retry = Retry::start();
        let problems = self.find(&retry).await?;
        if problems.is_empty() {
            return Ok(Recovered::default());
        }
        let concerns =
            |problem: &Problem, stream: &str| problem.stream().is_none_or(|damaged| damaged == stream);
        let is_damaged = |stream: &str| problems.iter().any(|problem| concerns(problem, stream));
        let mut recovered = self.begin_anew(&retry, is_damaged).await?;
        recovered.problems = problems;
        Ok(recovered)
    }

    /// Lets all streams begin anew after a restore: they are older than the store, and a mark that would tell so can be
    /// missing.
    ///
    /// # Errors
    /// As [`Recovery::run`].
    pub async fn run_after_restore(&self) -> Result<Recovered> {
        self.begin_anew(&Retry::start(), |_| true).await
    }

    async fn begin_anew(&self, retry: &Retry, is_damaged: impl Fn(&str) -> bool) -> Result<Recovered> {
        retry.run(async || self.check_unused().await).await?;
        let mut recovered = Recovered::default();
        let topology = self.checker().topology_to_make().await?;
        retry.run(async || Ok(self.mesh.ensure(&topology).await?)).await?;
        let last_dead_letter =
            last_dead_letter(&*self.stores.dead_letters, &*self.stores.stream_marks).await?;
        for spec in &topology.streams {
            let stream = spec.name.as_str();
            let range = retry.run(async || Ok(self.mesh.sequences(stream).await?)).await?;
            let in_stream = range.map_or(0, |range| range.last);
            let is_behind = async || self.is_behind_consumer(stream, in_stream).await;
            if !is_damaged(stream) && !retry.run(is_behind).await? {
                continue;
            }
            let known = self.known(stream).await?.max(in_stream);
            let mut first = spec.first_sequence.max(known + 1);
            let mut keeps = 0;
            if stream == streams::POSTS {
                first = next_posts(known);
                retry
                    .run(async || self.archive_posts(range, &mut recovered).await)
                    .await?;
                recovered.dead_letters_discarded =
                    discard_renamed(&*self.stores.dead_letters, &recovered.posts_renamed).await?;
                let kept = self
                    .stores
                    .posts
                    .last()
                    .await?
                    .map_or(0, |post| post.0)
                    .max(in_stream);
                recovered.posts_lost_ids = lost_posts(&self.stores, in_stream).await?;
                let named = recovered.posts_lost_ids.len() as u64;
                recovered.posts_lost = known.saturating_sub(kept).max(named);
                retry
                    .run(async || self.check_unchanged(stream, in_stream).await)
                    .await?;
            } else if stream == streams::DLQ {
                // Its messages are the payloads of the dead letters in the store. Later ones belong to no dead letter.
                keeps = last_dead_letter;
            }
            let removed = retry
                .run(async || Ok(self.mesh.begin_anew(&topology, stream, first, keeps).await?))
                .await?;
            tracing::info!(stream, removed, first_sequence = first, "stream begins anew");
            recovered.streams.push(RecoveredStream {
                stream: stream.to_owned(),
                removed,
                first_sequence: first,
            });
        }
        Ok(recovered)
    }

    /// Whether a consumer has acknowledged messages that its stream doesn't have: they were lost before the stream got a
    /// mark. The consumer would not be sent the messages that get their sequences.
    async fn is_behind_consumer(&self, stream: &str, last: u64) -> Result<bool> {
        for consumer in self.topology.consumers_of(stream) {
            if self.mesh.ack_floor(stream, &consumer.name).await? > last {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A running process pulls from its consumers.
    async fn check_unused(&self) -> Result<()> {
        for spec in &self.topology.streams {
            if self.mesh.sequences(&spec.name).await?.is_none() {
                continue;
            }
            for consumer in self.topology.consumers_of(&spec.name) {
                let Some(pulls) = self.mesh.waiting_pulls(consumer).await? else {
                    continue;
                };
                if pulls > 0 {
                    return Err(Error::InUse {
                        stream: spec.name.clone(),
                        consumer: consumer.name.clone(),
                        pulls,
                    });
                }
            }
        }
        Ok(())
    }

    /// Nobody may publish to a stream whose messages are about to be removed.
    async fn check_unchanged(&self, stream: &str, last: u64) -> Result<()> {
        match self.mesh.sequences(stream).await? {
            Some(now) if now.last > last => Err(Error::Changed {
                stream: stream.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// The greatest sequence of a stream that its mark or, for POSTS, the archive has seen.
    async fn known(&self, stream: &str) -> Result<u64> {
        let marks = self.stores.stream_marks.all().await?;
        let mark = marks
            .iter()
            .find(|mark| mark.stream == stream)
            .map_or(0, |mark| mark.sequence);
        let stored = match stream {
            streams::POSTS => self.stores.posts.last().await?.map_or(0, |post| post.0),
            streams::DLQ => last_dead_letter(&*self.stores.dead_letters, &*self.stores.stream_marks).await?,
            _ => 0,
        };
        Ok(mark.max(stored))
    }

    /// Archives the posts and deletions of POSTS that the store lacks. A post whose id another one has gets the next id
    /// after all known ones, which POSTS will never give. Can be repeated after a message could not be read.
    async fn archive_posts(&self, range: Option<SequenceRange>, recovered: &mut Recovered) -> Result<()> {
        let Some(range) = range.filter(|range| range.first <= range.last) else {
            return Ok(());
        };
        let mut new_id = self.known(streams::POSTS).await?.max(range.last);
        recovered.messages_unreadable = 0;
        let renamed = recovered.posts_renamed.iter();
        let mut renamed: HashMap<PostId, PostId> = renamed.map(|post| (post.told, post.now)).collect();
        let messages = self.mesh.scan(streams::POSTS, None, range.first, range.last);
        let mut messages = std::pin::pin!(messages.ready_chunks(BATCH));
        while let Some(batch) = messages.next().await {
            let batch: Vec<RawMessage> = batch.into_iter().collect::<herald_mesh::Result<_>>()?;
            let ids: Vec<PostId> = batch.iter().map(|message| PostId(message.sequence)).collect();
            let stored = self.stores.posts.get(&ids).await?;
            let mut entries = Vec::new();
            for (message, stored) in batch.into_iter().zip(stored) {
                let mut entry = match read_entry(&message) {
                    Ok(entry) => entry,
                    Err(reason) => {
                        tracing::warn!(
                            sequence = message.sequence,
                            reason,
                            "a message of POSTS is left out"
                        );
                        recovered.messages_unreadable += 1;
                        continue;
                    }
                };
                match &mut entry {
                    Archived::Deleted { post, .. } => *post = renamed.get(post).copied().unwrap_or(*post),
                    Archived::Created(post) => {
                        match stored {
                            Some(stored) if herald_posts::is_same_post(&stored, post) => continue,
                            Some(_) => {
                                let told = post.id;
                                let Some(now) = self.rename(post, &mut new_id).await? else {
                                    continue;
                                };
                                renamed.insert(told, now);
                                recovered.posts_renamed.push(RenamedPost { told, now });
                            }
                            None => recovered.posts_archived += 1,
                        }
                        // The store may have given the key to another user since.
                        post.author = NO_KEY;
                    }
                }
                entries.push(entry);
            }
            herald_posts::resolve_authors(&*self.stores.users, &mut entries).await?;
            self.stores.posts.archive(&entries).await?;
        }
        Ok(())
    }

    /// Gives a post another id; `None` if an interrupted recovery has done so.
    async fn rename(&self, post: &mut Post, new_id: &mut u64) -> Result<Option<PostId>> {
        let authors = self
            .stores
            .users
            .find(std::slice::from_ref(&post.author_id))
            .await?;
        if let Some(Some(author)) = authors.first()
            && let Some(known) = self
                .stores
                .posts
                .find_by_request(*author, &post.request_id)
                .await?
            && let Some(Some(stored)) = self.stores.posts.get(&[known]).await?.first()
            && herald_posts::is_same_post(stored, post)
        {
            return Ok(None);
        }
        *new_id += 1;
        post.id = PostId(*new_id);
        Ok(Some(post.id))
    }
}

/// The first id after a gap that leaves room for ids that nobody remembers.
fn next_posts(known: u64) -> u64 {
    (known / POSTS_STEP + 2) * POSTS_STEP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_left_out_for_posts_that_nobody_remembers() {
        assert_eq!(next_posts(0), 2_000_000);
        assert_eq!(next_posts(812), 2_000_000);
        assert_eq!(next_posts(2_000_001), 4_000_000);
    }
}

//! Lets damaged streams begin anew, above all sequences that are known.

use std::sync::Arc;

use futures::StreamExt as _;
use herald_mesh::{Mesh, RawMessage, SequenceRange, Subject, Topology, streams};
use herald_model::PostId;
use herald_posts::NO_KEY;
use herald_proto::mesh_v1::PostCreated;
use herald_store::{Archived, Stores};

use crate::{Checker, Error, Problem, Result};

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
    /// Posts of POSTS whose id another post of the store has: they were accepted again with another id.
    pub posts_renamed: Vec<RenamedPost>,
    /// Upper bound of the number of posts that were accepted and are neither in POSTS nor in the store.
    pub posts_lost_max: u64,
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
    /// Compares streams and store and changes nothing.
    ///
    /// # Errors
    /// The streams or the store can't be read.
    pub async fn find_problems(&self) -> Result<Vec<Problem>> {
        self.checker().check().await
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
    /// Can be repeated after a failure: what is archived stays archived, and a stream that began anew is sound.
    ///
    /// # Errors
    /// [`Error::InUse`] while a process of Herald runs; other errors of the streams and the store.
    pub async fn run(&self) -> Result<Recovered> {
        let problems = self.find_problems().await?;
        if problems.is_empty() {
            return Ok(Recovered::default());
        }
        self.check_unused().await?;
        let mut recovered = Recovered::default();
        let topology = self.checker().topology_to_make().await?;
        self.mesh.ensure(&topology).await?;
        let is_damaged = |stream: &str| {
            let concerned = |problem: &Problem| problem.stream().is_none_or(|damaged| damaged == stream);
            problems.iter().any(concerned)
        };
        let mut renamed = Vec::new();
        for spec in &topology.streams {
            if !is_damaged(&spec.name) {
                continue;
            }
            let mut first = spec.first_sequence;
            if spec.name == streams::POSTS {
                let range = self.mesh.sequences(streams::POSTS).await?;
                let in_stream = range.map_or(0, |range| range.last);
                let known = self.known_posts(&problems).await?.max(in_stream);
                recovered.posts_archived = self.archive_posts(range, &mut renamed).await?;
                let safe = self
                    .stores
                    .posts
                    .last()
                    .await?
                    .map_or(0, |post| post.0)
                    .max(in_stream);
                recovered.posts_lost_max = known - safe.min(known);
                first = next_posts(known);
            }
            let removed = self.mesh.begin_anew(&topology, &spec.name, first).await?;
            tracing::warn!(
                stream = spec.name,
                removed,
                first_sequence = first,
                "stream begins anew"
            );
            recovered.streams.push(RecoveredStream {
                stream: spec.name.clone(),
                removed,
                first_sequence: first,
            });
        }
        for message in renamed {
            recovered.posts_renamed.push(self.accept_again(&message).await?);
        }
        recovered.problems = problems;
        Ok(recovered)
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

    /// The greatest id of a post that the store or a mark has seen.
    async fn known_posts(&self, problems: &[Problem]) -> Result<u64> {
        let archived = self.stores.posts.last().await?.map_or(0, |post| post.0);
        let marks = self.stores.stream_marks.all().await?;
        let mark = marks.iter().find(|mark| mark.stream == streams::POSTS);
        let seen = problems.iter().map(|problem| match problem {
            Problem::LostTail { stream, known, .. } if stream == streams::POSTS => *known,
            Problem::StoreOlder { acknowledged, .. } => acknowledged.0,
            _ => 0,
        });
        let seen = seen.max().unwrap_or(0);
        Ok(archived.max(mark.map_or(0, |mark| mark.sequence)).max(seen))
    }

    /// Archives the posts and deletions of POSTS that the store lacks. Collects those whose id another post has.
    async fn archive_posts(
        &self,
        range: Option<SequenceRange>,
        renamed: &mut Vec<RawMessage>,
    ) -> Result<u64> {
        let Some(range) = range.filter(|range| range.first <= range.last) else {
            return Ok(0);
        };
        let messages = self.mesh.scan(streams::POSTS, None, range.first, range.last);
        let mut messages = std::pin::pin!(messages.ready_chunks(BATCH));
        let mut archived = 0;
        while let Some(batch) = messages.next().await {
            let batch: Vec<RawMessage> = batch.into_iter().collect::<herald_mesh::Result<_>>()?;
            let ids: Vec<PostId> = batch.iter().map(|message| PostId(message.sequence)).collect();
            let stored = self.stores.posts.get(&ids).await?;
            let mut entries = Vec::new();
            for (message, stored) in batch.into_iter().zip(stored) {
                let malformed = |reason| Error::Malformed {
                    sequence: message.sequence,
                    reason,
                };
                let subject = Subject::parse(&message.subject);
                let subject =
                    subject.ok_or_else(|| malformed(format!("unknown subject {}", message.subject)))?;
                let mut entry = herald_posts::entry(subject, message.sequence, message.payload.clone())
                    .map_err(malformed)?;
                if let Archived::Created(post) = &mut entry {
                    match stored {
                        Some(stored) if herald_posts::is_same_post(&stored, post) => continue,
                        Some(_) => {
                            renamed.push(message);
                            continue;
                        }
                        None => archived += 1,
                    }
                    // The store may have given the key to another user since.
                    post.author = NO_KEY;
                }
                entries.push(entry);
            }
            herald_posts::resolve_authors(&*self.stores.users, &mut entries).await?;
            self.stores.posts.archive(&entries).await?;
        }
        Ok(archived)
    }

    /// Publishes a post again, so that it gets an id of its own.
    async fn accept_again(&self, message: &RawMessage) -> Result<RenamedPost> {
        let malformed = |reason| Error::Malformed {
            sequence: message.sequence,
            reason,
        };
        let subject = Subject::parse(&message.subject)
            .ok_or_else(|| malformed(format!("unknown subject {}", message.subject)))?;
        let mut post: PostCreated = message.decode()?;
        post.author_key = NO_KEY.0;
        let published = self.mesh.publish(subject, None, &post).await?;
        Ok(RenamedPost {
            told: PostId(message.sequence),
            now: PostId(published.sequence),
        })
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

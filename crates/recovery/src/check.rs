//! Compares the streams with what is known of them.

use std::{collections::HashMap, sync::Arc};

use futures::future::try_join_all;
use herald_mesh::{Mesh, SequenceRange, Subject, Topology, consumers, streams};
use herald_model::{PostId, time::Timestamp};
use herald_store::{DeadLetterFilter, DeadLetters, Order, Posts, StreamMark, StreamMarks};

use crate::{Problem, Result};

/// Messages below the archive's last acknowledgement that are compared with the store.
const ACKNOWLEDGED_CHECKED: u64 = 32;

/// Compares the streams with the store.
#[derive(Clone)]
pub struct Checker {
    /// The streams.
    pub mesh: Mesh,
    /// Their specifications.
    pub topology: Arc<Topology>,
    /// The archive.
    pub posts: Arc<dyn Posts>,
    /// Explain posts that were not archived.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// What was seen of each stream.
    pub stream_marks: Arc<dyn StreamMarks>,
}

impl Checker {
    /// Compares all streams with their marks and with the archive, and records new marks of the streams that are sound.
    ///
    /// # Errors
    /// A stream or the store can't be read.
    pub async fn check(&self) -> Result<Vec<Problem>> {
        // The store first: what is published or archived in between is in the streams already.
        let archived = self.posts.last().await?;
        let marks = self.stream_marks.all().await?;
        let marks: HashMap<&str, &StreamMark> =
            marks.iter().map(|mark| (mark.stream.as_str(), mark)).collect();
        let checks = self.topology.streams.iter().map(|spec| {
            let mark = marks.get(spec.name.as_str()).copied();
            self.check_stream(&spec.name, mark, archived)
        });
        let mut problems = Vec::new();
        let mut seen = Vec::new();
        for found in try_join_all(checks).await? {
            match found {
                Found::Sound(mark) => seen.extend(mark),
                Found::Damaged(problem) => problems.push(problem),
            }
        }
        if !problems
            .iter()
            .any(|problem| problem.stream() == Some(streams::POSTS))
        {
            problems.extend(self.check_age().await?);
        }
        self.stream_marks.record(&seen).await?;
        Ok(problems)
    }

    /// The specifications with which a missing stream is made again.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn topology_to_make(&self) -> Result<Topology> {
        let last = last_dead_letter(&*self.dead_letters, &*self.stream_marks).await?;
        Ok((*self.topology).clone().beginning(Timestamp::now(), last))
    }

    async fn check_stream(
        &self,
        stream: &str,
        mark: Option<&StreamMark>,
        archived: Option<PostId>,
    ) -> Result<Found> {
        let damaged = |problem| Ok(Found::Damaged(problem));
        let Some(range) = self.mesh.sequences(stream).await? else {
            return damaged(Problem::Missing {
                stream: stream.to_owned(),
            });
        };
        let archived = archived
            .filter(|_| stream == streams::POSTS)
            .map_or(0, |post| post.0);
        let known = mark.map_or(0, |mark| mark.sequence).max(archived);
        if range.last < known {
            return damaged(Problem::LostTail {
                stream: stream.to_owned(),
                last: range.last,
                known,
            });
        }
        if let Some(mark) = mark
            && range.first <= mark.sequence
            && let Some(message) = self.mesh.message(stream, mark.sequence).await?
            && message.published_at != mark.published_at
        {
            return damaged(Problem::Replaced {
                stream: stream.to_owned(),
                sequence: mark.sequence,
                seen_at: mark.published_at,
                stored_at: message.published_at,
            });
        }
        Ok(Found::Sound(new_mark(stream, range, mark)))
    }

    /// Whether the store lacks posts that the archive has acknowledged.
    async fn check_age(&self) -> Result<Option<Problem>> {
        let floor = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await?;
        // Read after the floor: a post is in the store before it is acknowledged.
        let archived = self.posts.last().await?;
        let from = archived
            .map_or(0, |post| post.0)
            .max(floor.saturating_sub(ACKNOWLEDGED_CHECKED));
        // Deletions and dead letters of the archive are no posts in the store, so the newest messages can all be absent.
        for sequence in (from + 1..=floor).rev() {
            let Some(message) = self.mesh.message(streams::POSTS, sequence).await? else {
                continue;
            };
            let is_post = matches!(Subject::parse(&message.subject), Some(Subject::PostCreated(_)));
            let acknowledged = PostId(sequence);
            if is_post && !self.has_dead_letter(acknowledged).await? {
                return Ok(Some(Problem::StoreOlder {
                    acknowledged,
                    archived,
                }));
            }
        }
        Ok(None)
    }

    async fn has_dead_letter(&self, post: PostId) -> Result<bool> {
        let filter = DeadLetterFilter {
            stream: Some(streams::POSTS.into()),
            consumer: Some(consumers::ARCHIVE.into()),
            post: Some(post),
            ..DeadLetterFilter::default()
        };
        let found = self
            .dead_letters
            .scan(&filter, Order::NewestFirst, None, 1)
            .await?;
        Ok(!found.dead_letters.is_empty())
    }
}

/// The greatest id of a dead letter that the store or the mark of DLQ has seen; 0 if there is none.
///
/// # Errors
/// Those of the store.
pub async fn last_dead_letter(
    dead_letters: &dyn DeadLetters,
    marks: &dyn StreamMarks,
) -> herald_store::Result<u64> {
    let all = DeadLetterFilter::default();
    let newest = dead_letters.scan(&all, Order::NewestFirst, None, 1).await?;
    let stored = newest.dead_letters.first().map_or(0, |newest| newest.id.0);
    let marks = marks.all().await?;
    let mark = marks.iter().find(|mark| mark.stream == streams::DLQ);
    Ok(stored.max(mark.map_or(0, |mark| mark.sequence)))
}

/// The result of a comparison of one stream.
enum Found {
    /// The mark to record, if it changed.
    Sound(Option<StreamMark>),
    Damaged(Problem),
}

fn new_mark(stream: &str, range: SequenceRange, mark: Option<&StreamMark>) -> Option<StreamMark> {
    let published_at = range.last_at?;
    // The time belongs to a message; an empty stream that begins above its last one has none with its last sequence.
    let has_messages = range.first <= range.last;
    let is_newer = mark.is_none_or(|mark| mark.sequence < range.last);
    (has_messages && is_newer).then(|| StreamMark {
        stream: stream.to_owned(),
        sequence: range.last,
        published_at,
    })
}

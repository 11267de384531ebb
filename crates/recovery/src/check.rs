//! Compares the streams with what is known of them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::join_all;
use herald_mesh::{Mesh, SequenceRange, Subject, Topology, consumers, streams};
use herald_model::{PostId, time::Timestamp};
use herald_store::{DeadLetterFilter, DeadLetters, Order, Posts, StreamMark, StreamMarks};

use crate::{Problem, Result};

/// Messages below the archive's last acknowledgement that are compared with the store.
const ACKNOWLEDGED_CHECKED: u64 = 32;
/// Newest posts of the store that are compared with POSTS if POSTS has no mark.
const UNMARKED_CHECKED: u64 = 4_096;
/// Posts that the archive has acknowledged and the store lacks, at which the store is older than the streams.
const MISSING_MIN: u32 = 2;

/// Comparisons that must find a problem before it is acted upon, and the delay between them.
pub(crate) const CHECKS: u32 = 4;
pub(crate) const CHECK_DELAY: Duration = Duration::from_secs(1);

/// What is logged of a stream that is missing.
pub(crate) const LOST: &str =
    "stream was missing and is made again; the messages that it held are lost: run `herald audit --repair`";

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
    /// Compares all streams with their marks and with the archive. If all are sound, records new marks: those of streams
    /// that don't belong to the store must never be taken for its own.
    ///
    /// # Errors
    /// A stream or the store can't be read, and nothing is known to be wrong.
    pub async fn check(&self) -> Result<Vec<Problem>> {
        let (problems, seen) = self.compare().await?;
        if problems.is_empty() {
            self.stream_marks.record(&seen).await?;
        }
        Ok(problems)
    }

    /// Compares as [`Checker::check`] does, several times, and changes nothing. A problem is one that each comparison
    /// finds: the leader of a stream can be elected and not know its end yet.
    ///
    /// # Errors
    /// As [`Checker::check`].
    pub async fn check_thoroughly(&self) -> Result<Vec<Problem>> {
        let (mut problems, _) = self.compare().await?;
        for _ in 1..CHECKS {
            if problems.is_empty() {
                break;
            }
            tokio::time::sleep(CHECK_DELAY).await;
            let (again, _) = self.compare().await?;
            problems.retain(|problem| again.iter().any(|other| other.stream() == problem.stream()));
        }
        Ok(problems)
    }

    /// The problems, and the new marks of sound streams.
    async fn compare(&self) -> Result<(Vec<Problem>, Vec<StreamMark>)> {
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
        // A stream that can't be read hides no problem of another one.
        let mut unreadable = None;
        for found in join_all(checks).await {
            match found {
                Ok(Found::Sound(mark)) => seen.extend(mark),
                Ok(Found::Damaged(problem)) => problems.push(problem),
                Err(error) => unreadable = Some(error),
            }
        }
        if !problems
            .iter()
            .any(|problem| problem.stream() == Some(streams::POSTS))
        {
            match self.check_age().await {
                Ok(problem) => problems.extend(problem),
                Err(error) => unreadable = Some(error),
            }
        }
        match unreadable {
            Some(error) if problems.is_empty() => Err(error),
            _ => Ok((problems, seen)),
        }
    }

    /// Logs which streams are missing that were seen before. Call it before missing streams are made. POSTS is left out: a
    /// check refuses it afterwards.
    ///
    /// # Errors
    /// A stream or the store can't be read.
    pub async fn report_missing(&self) -> Result<()> {
        for mark in self.stream_marks.all().await? {
            let is_made = mark.stream != streams::POSTS && self.topology.stream(&mark.stream).is_some();
            if is_made && self.mesh.sequences(&mark.stream).await?.is_none() {
                tracing::error!(stream = mark.stream, "{LOST}");
            }
        }
        Ok(())
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
        // A mark moves only past posts that are those of the store: until then, ids that were given twice can be found.
        let marked = mark.map_or(archived.saturating_sub(UNMARKED_CHECKED), |mark| mark.sequence);
        let (from, to) = (range.first.max(marked + 1), range.last.min(archived));
        if let Some(post) = self.find_reused_id(from, to).await? {
            return damaged(Problem::ReusedId { post });
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
        // Deletions and dead letters of the archive are no posts in the store. The dead letter of a post can come some time
        // after the archive has given it up, so one post is not enough: an audit finds that one.
        let mut missing = 0;
        let mut newest = None;
        for sequence in (from + 1..=floor).rev() {
            let Some(message) = self.mesh.message(streams::POSTS, sequence).await? else {
                continue;
            };
            let is_post = matches!(Subject::parse(&message.subject), Some(Subject::PostCreated(_)));
            let post = PostId(sequence);
            if !is_post || self.has_dead_letter(post).await? {
                continue;
            }
            missing += 1;
            let acknowledged = *newest.get_or_insert(post);
            if missing >= MISSING_MIN {
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

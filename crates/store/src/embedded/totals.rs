//! Totals by post and hour, and which messages are in them.
//!
//! | keyspace | row |
//! |---|---|
//! | `totals_seen` | (stream, page) → one bit a message, [`PAGE`] messages |
//! | `totals_intents` | file → nothing |
//! | `totals_posts` | post → author, counts, latencies |
//! | `totals_hours` | hour → counts |

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use fjall::{Keyspace, OwnedWriteBatch};
use futures::executor::block_on;
use herald_model::{PostId, UserKey};

use super::{
    records::{self, Records, map_err},
    rounds::Rounds,
    varint,
};
use crate::{Counts, Error, ErrorKind, PostTotals, Result, TotalsBatch};

/// How many messages a row of `totals_seen` tells of.
const PAGE: u64 = 4_096;

/// How many files one commit takes before it leaves the rest to the next one.
const ROUND_FILES: usize = 64;

/// The embedded engine's [`Totals`](crate::Totals).
pub(crate) struct TotalsBook {
    tables: Arc<Tables>,
    rounds: Rounds<Job, ()>,
}

struct Tables {
    records: Arc<Records>,
    seen: Keyspace,
    intents: Keyspace,
    posts: Keyspace,
    hours: Keyspace,
}

enum Job {
    Intend(String),
    Abandon(String),
    Commit(TotalsBatch),
}

/// One row of `totals_seen`.
type Bits = [u8; PAGE as usize / 8];

/// The round in hand: what is in its batch and can't be read yet.
#[derive(Default)]
struct Round {
    intents: BTreeMap<String, bool>,
    seen: HashMap<Vec<u8>, Bits>,
    posts: BTreeMap<u64, PostTotals>,
    hours: BTreeMap<u32, Counts>,
}

impl TotalsBook {
    /// Opens the totals.
    pub(crate) fn open(records: &Arc<Records>) -> Result<Self> {
        let keyspace = |name| records.keyspace(name, records::options);
        let tables = Arc::new(Tables {
            seen: keyspace("totals_seen")?,
            intents: keyspace("totals_intents")?,
            posts: keyspace("totals_posts")?,
            hours: keyspace("totals_hours")?,
            records: Arc::clone(records),
        });
        let shared = Arc::clone(&tables);
        let rounds = Rounds::start("totals", ROUND_FILES, |_| 1, move |jobs| shared.round(jobs))?;
        Ok(Self { tables, rounds })
    }
}

impl Tables {
    fn round(&self, jobs: Vec<Job>) -> Result<Vec<Result<()>>> {
        let mut round = Round::default();
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            answers.push(match job {
                Job::Intend(file) => {
                    round.intents.insert(file, true);
                    Ok(())
                }
                Job::Abandon(file) => {
                    round.intents.insert(file, false);
                    Ok(())
                }
                Job::Commit(batch) => self.add(&mut round, batch)?,
            });
        }
        let mut batch = self.records.batch();
        self.write(&mut batch, round);
        if !batch.is_empty() {
            block_on(self.records.commit(batch))?;
        }
        Ok(answers)
    }

    /// Adds what a file holds. A file whose messages were all counted before adds nothing and its intent stays, so that it
    /// is found as left over; one of which some were counted before is refused.
    fn add(&self, round: &mut Round, batch: TotalsBatch) -> Result<Result<()>> {
        let sequences: BTreeSet<_> = batch.sequences.iter().copied().collect();
        let mut pages: HashMap<Vec<u8>, Bits> = HashMap::new();
        let mut known = 0;
        for sequence in &sequences {
            let key = page_key(&batch.stream, *sequence);
            let bits = match pages.entry(key) {
                std::collections::hash_map::Entry::Occupied(bits) => bits.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    let bits = match round.seen.get(new.key()) {
                        Some(bits) => *bits,
                        None => self.bits(new.key())?,
                    };
                    new.insert(bits)
                }
            };
            known += usize::from(has(bits, *sequence));
            set(bits, *sequence);
        }
        if known > 0 && known == sequences.len() {
            return Ok(Ok(()));
        }
        if known > 0 {
            return Ok(Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{known} of the {} messages of {} were counted before",
                    sequences.len(),
                    batch.file
                ),
            )));
        }
        round.seen.extend(pages);
        round.intents.insert(batch.file, false);
        for (post, more) in batch.posts {
            let known = match round.posts.get(&post.0) {
                Some(known) => Some(*known),
                None => self.post(post.0)?,
            };
            round
                .posts
                .insert(post.0, known.map_or(more, |known| merge(known, more)));
        }
        for (hour, more) in batch.hours {
            let mut counts = match round.hours.get(&hour) {
                Some(known) => *known,
                None => self.hour(hour)?,
            };
            counts += more;
            round.hours.insert(hour, counts);
        }
        Ok(Ok(()))
    }

    fn write(&self, batch: &mut OwnedWriteBatch, round: Round) {
        for (file, intended) in round.intents {
            if intended {
                batch.insert(&self.intents, file, []);
            } else {
                batch.remove(&self.intents, file);
            }
        }
        for (key, bits) in round.seen {
            batch.insert(&self.seen, key, bits);
        }
        for (post, totals) in round.posts {
            batch.insert(&self.posts, post.to_be_bytes(), encode_post(&totals));
        }
        for (hour, counts) in round.hours {
            batch.insert(&self.hours, hour.to_be_bytes(), encode_counts(&counts));
        }
    }

    fn bits(&self, key: &[u8]) -> Result<Bits> {
        let Some(bits) = self.seen.get(key).map_err(map_err)? else {
            return Ok([0; _]);
        };
        (*bits).try_into().map_err(|_| corrupt("seen messages"))
    }

    fn post(&self, post: u64) -> Result<Option<PostTotals>> {
        let Some(bytes) = self.posts.get(post.to_be_bytes()).map_err(map_err)? else {
            return Ok(None);
        };
        decode_post(&bytes)
            .map(Some)
            .ok_or_else(|| corrupt("totals of a post"))
    }

    fn hour(&self, hour: u32) -> Result<Counts> {
        let Some(bytes) = self.hours.get(hour.to_be_bytes()).map_err(map_err)? else {
            return Ok(Counts::default());
        };
        decode_counts(&mut &*bytes).ok_or_else(|| corrupt("totals of an hour"))
    }
}

fn merge(mut known: PostTotals, more: PostTotals) -> PostTotals {
    known.counts += more.counts;
    known.timeline_latency_ms_max = known.timeline_latency_ms_max.max(more.timeline_latency_ms_max);
    known.push_latency_ms_max = known.push_latency_ms_max.max(more.push_latency_ms_max);
    known
}

fn page_key(stream: &str, sequence: u64) -> Vec<u8> {
    [stream.as_bytes(), &(sequence / PAGE).to_be_bytes()].concat()
}

fn has(bits: &Bits, sequence: u64) -> bool {
    let at = (sequence % PAGE) as usize;
    bits[at / 8] & 1 << (at % 8) != 0
}

fn set(bits: &mut Bits, sequence: u64) {
    let at = (sequence % PAGE) as usize;
    bits[at / 8] |= 1 << (at % 8);
}

fn encode_counts(counts: &Counts) -> Vec<u8> {
    let Counts {
        posts,
        deleted_posts,
        timeline_delivered,
        push_delivered,
        push_suppressed,
        push_expired,
        push_dead,
    } = *counts;
    let mut bytes = Vec::with_capacity(32);
    for count in [
        posts,
        deleted_posts,
        timeline_delivered,
        push_delivered,
        push_suppressed,
        push_expired,
        push_dead,
    ] {
        varint::write(&mut bytes, count);
    }
    bytes
}

fn decode_counts(bytes: &mut &[u8]) -> Option<Counts> {
    Some(Counts {
        posts: varint::read(bytes)?,
        deleted_posts: varint::read(bytes)?,
        timeline_delivered: varint::read(bytes)?,
        push_delivered: varint::read(bytes)?,
        push_suppressed: varint::read(bytes)?,
        push_expired: varint::read(bytes)?,
        push_dead: varint::read(bytes)?,
    })
}

fn encode_post(totals: &PostTotals) -> Vec<u8> {
    let mut bytes = encode_counts(&totals.counts);
    for part in [
        u64::from(totals.author.0),
        totals.timeline_latency_ms_max,
        totals.push_latency_ms_max,
    ] {
        varint::write(&mut bytes, part);
    }
    bytes
}

fn decode_post(mut bytes: &[u8]) -> Option<PostTotals> {
    let bytes = &mut bytes;
    Some(PostTotals {
        counts: decode_counts(bytes)?,
        author: UserKey(u32::try_from(varint::read(bytes)?).ok()?),
        timeline_latency_ms_max: varint::read(bytes)?,
        push_latency_ms_max: varint::read(bytes)?,
    })
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a row of {what} can't be read"))
}

#[async_trait]
impl crate::Totals for TotalsBook {
    async fn seen(&self, stream: &str, sequences: &[u64]) -> Result<Vec<bool>> {
        let mut page: Option<(u64, Bits)> = None;
        sequences
            .iter()
            .map(|sequence| {
                let number = sequence / PAGE;
                let bits = match page {
                    Some((known, bits)) if known == number => bits,
                    _ => self.tables.bits(&page_key(stream, *sequence))?,
                };
                page = Some((number, bits));
                Ok(has(&bits, *sequence))
            })
            .collect()
    }

    async fn intend(&self, file: &str) -> Result<()> {
        self.rounds.run(Job::Intend(file.into())).await
    }

    async fn intended(&self) -> Result<Vec<String>> {
        self.tables
            .intents
            .iter()
            .map(|row| {
                String::from_utf8(row.key().map_err(map_err)?.to_vec())
                    .map_err(|_| corrupt("announced files"))
            })
            .collect()
    }

    async fn abandon(&self, file: &str) -> Result<()> {
        self.rounds.run(Job::Abandon(file.into())).await
    }

    async fn commit(&self, batch: &TotalsBatch) -> Result<()> {
        self.rounds.run(Job::Commit(batch.clone())).await
    }

    async fn of_post(&self, post: PostId) -> Result<Option<PostTotals>> {
        self.tables.post(post.0)
    }

    async fn of_hours(&self, start: u32, end: u32) -> Result<Vec<(u32, Counts)>> {
        if start >= end {
            return Ok(Vec::new());
        }
        self.tables
            .hours
            .range(start.to_be_bytes()..end.to_be_bytes())
            .map(|row| {
                let (key, bytes) = row.into_inner().map_err(map_err)?;
                let hour = (*key).try_into().map_err(|_| corrupt("totals of an hour"))?;
                let counts = decode_counts(&mut &*bytes).ok_or_else(|| corrupt("totals of an hour"))?;
                Ok((u32::from_be_bytes(hour), counts))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Totals, embedded::testing::Store};

    fn open(store: &Store) -> TotalsBook {
        TotalsBook::open(store.records()).unwrap()
    }

    fn batch(file: &str, sequences: &[u64]) -> TotalsBatch {
        let counts = Counts {
            posts: 1,
            timeline_delivered: sequences.len() as u64,
            push_dead: 3,
            ..Counts::default()
        };
        TotalsBatch {
            stream: "EVENTS".into(),
            sequences: sequences.to_vec(),
            file: file.into(),
            posts: vec![(
                PostId(5),
                PostTotals {
                    author: UserKey(9),
                    counts,
                    timeline_latency_ms_max: sequences[0],
                    push_latency_ms_max: 7,
                },
            )],
            hours: vec![(100, counts), (102, counts)],
        }
    }

    #[tokio::test]
    async fn a_commit_counts_marks_and_clears_at_once() {
        let mut store = Store::new();
        let totals = open(&store);
        totals.intend("a").await.unwrap();
        totals.intend("b").await.unwrap();
        assert_eq!(totals.intended().await.unwrap(), ["a", "b"]);
        totals.commit(&batch("a", &[4_095, 4_096, 70_000])).await.unwrap();
        assert_eq!(totals.intended().await.unwrap(), ["b"]);
        totals.commit(&batch("b", &[1, 2])).await.unwrap();

        drop(totals);
        store.reopen();
        let totals = open(&store);
        assert_eq!(totals.intended().await.unwrap(), [""; 0]);
        let seen = totals
            .seen("EVENTS", &[0, 1, 2, 3, 4_095, 4_096, 4_097, 70_000])
            .await
            .unwrap();
        assert_eq!(seen, [false, true, true, false, true, true, false, true]);
        assert_eq!(totals.seen("POSTS", &[1]).await.unwrap(), [false]);
        let post = totals.of_post(PostId(5)).await.unwrap().unwrap();
        assert_eq!(
            (post.author, post.counts.posts, post.counts.timeline_delivered),
            (UserKey(9), 2, 5)
        );
        assert_eq!(
            (post.timeline_latency_ms_max, post.push_latency_ms_max),
            (4_095, 7)
        );
        assert_eq!(totals.of_post(PostId(6)).await.unwrap(), None);
        let hours = totals.of_hours(100, 102).await.unwrap();
        assert_eq!(hours.len(), 1);
        assert_eq!((hours[0].0, hours[0].1.push_dead), (100, 6));
        assert_eq!(totals.of_hours(0, u32::MAX).await.unwrap().len(), 2);
        assert_eq!(totals.of_hours(5, 2).await.unwrap(), []);
    }

    #[tokio::test]
    async fn no_message_is_counted_twice() {
        let store = Store::new();
        let totals = open(&store);
        totals.commit(&batch("a", &[1, 2])).await.unwrap();
        // The same again, in another file: it is left over.
        totals.intend("again").await.unwrap();
        totals.commit(&batch("again", &[2, 1])).await.unwrap();
        assert_eq!(totals.intended().await.unwrap(), ["again"]);
        let error = totals.commit(&batch("b", &[2, 3])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(totals.seen("EVENTS", &[3]).await.unwrap(), [false]);
        assert_eq!(
            totals
                .of_post(PostId(5))
                .await
                .unwrap()
                .unwrap()
                .counts
                .timeline_delivered,
            2
        );
        totals.abandon("again").await.unwrap();
        assert_eq!(totals.intended().await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn files_that_come_together_are_added_up() {
        let store = Store::new();
        let totals = open(&store);
        let batches: Vec<_> = (0..50_u64)
            .map(|n| batch(&n.to_string(), &[2 * n, 2 * n + 1]))
            .collect();
        futures::future::join_all(batches.iter().map(|batch| totals.commit(batch)))
            .await
            .into_iter()
            .for_each(Result::unwrap);
        assert_eq!(
            totals
                .of_post(PostId(5))
                .await
                .unwrap()
                .unwrap()
                .counts
                .timeline_delivered,
            100
        );
        assert_eq!(
            totals.of_hours(100, 101).await.unwrap()[0].1.timeline_delivered,
            100
        );
    }
}

//! Finds what of a batch can't be counted, and has the rest counted.
//!
//! A batch is counted as a whole, so one row of the store that can't be read would keep thousands of messages from their
//! totals. Most often reading tells which they are: those of one page of what was seen, of one chunk, post or hour. What reading doesn't
//! tell is found by writing part by part.

use std::collections::{BTreeMap, BTreeSet};

use herald_mesh::Settle;
use herald_model::PostId;
use herald_runtime::isolate::{self, Failure, Isolated};
use herald_store::ChunkRef;

use crate::batcher::{Batch, Batcher};
use crate::domain::{Entry, File, Place};
use crate::error::CommitError;

/// Messages that can't be counted: by what of them can't be read, and why.
struct Ill<K>(BTreeMap<K, String>);

impl<K: Copy + Ord> Ill<K> {
    fn of(keys: &[K], isolated: Isolated<(), CommitError>) -> Result<Self, CommitError> {
        match (isolated.stopped, isolated.fault) {
            (Some(error), _) => Err(error),
            (None, Some(fault)) => Ok(Self(
                isolated
                    .bad
                    .into_iter()
                    .map(|index| (keys[index], fault.clone()))
                    .collect(),
            )),
            (None, None) => Ok(Self(BTreeMap::new())),
        }
    }
}

impl Batcher {
    /// Which of these messages were counted before. Of which that can't be told are settled here, and left out.
    pub(crate) async fn seen(
        &self,
        batch: &mut Batch,
        sequences: &[u64],
    ) -> Result<Vec<(u64, bool)>, CommitError> {
        let read = |part: Vec<u64>| async move {
            let reading = async {
                let seen = self.totals.seen(self.stream, &part).await?;
                Ok(part.iter().copied().zip(seen).collect::<Vec<_>>())
            };
            isolate::sorted(reading, CommitError::is_passing).await
        };
        let isolated = match read(sequences.to_vec()).await {
            Ok(seen) => return Ok(seen),
            Err(Failure::Passing(error)) => return Err(error),
            Err(Failure::Fault(_)) => {
                isolate::isolate(sequences.len(), |part| read(sequences[part].to_vec())).await
            }
        };
        if let Some(error) = isolated.stopped {
            return Err(error);
        }
        let fault = isolated.fault.unwrap_or_default();
        for index in isolated.bad {
            self.metrics.isolated.inc();
            batch.settle(sequences[index], &Settle::fault(&fault));
        }
        Ok(isolated.good.into_iter().flat_map(|(_, seen)| seen).collect())
    }

    /// Counts what can be counted of a file that has failed by a fault, and settles all of it. What fails in passing leaves
    /// the rest waiting.
    pub(crate) async fn isolate(&self, batch: &mut Batch, file: File) -> Result<(), CommitError> {
        let sound = self.sound(batch, file).await?;
        if sound.entries.is_empty() {
            return Ok(());
        }
        let part_of = |entries: &[Entry]| File {
            entries: entries.to_vec(),
            ..sound
        };
        let count = sound.entries.len();
        let write = |range: std::ops::Range<usize>| {
            let part = part_of(&sound.entries[range]);
            async move { isolate::sorted(self.write(&part), CommitError::is_passing).await }
        };
        let isolated = match write(0..count).await {
            Ok(()) => Isolated {
                good: vec![(0..count, ())],
                bad: Vec::new(),
                fault: None,
                stopped: None,
            },
            Err(Failure::Passing(error)) => return Err(error),
            Err(Failure::Fault(_)) => isolate::isolate(count, write).await,
        };
        for (part, ()) in isolated.good {
            batch.acknowledge(&sound.entries[part]);
        }
        let fault = isolated.fault.unwrap_or_default();
        for index in isolated.bad {
            self.give_up(batch, sound.entries[index].place, &fault);
        }
        isolated.stopped.map_or(Ok(()), Err)
    }

    /// What is left of a file when those are settled that reading shows to be impossible to count.
    async fn sound(&self, batch: &mut Batch, mut file: File) -> Result<File, CommitError> {
        let hour = async {
            self.totals.of_hours(file.hour, file.hour + 1).await?;
            Ok(())
        };
        match isolate::sorted(hour, CommitError::is_passing).await {
            Ok(()) => {}
            Err(Failure::Passing(error)) => return Err(error),
            Err(Failure::Fault(fault)) => {
                for entry in file.entries.drain(..) {
                    self.give_up(batch, entry.place, &fault);
                }
                return Ok(file);
            }
        }
        let posts: BTreeSet<PostId> = file.entries.iter().map(|entry| entry.row.post()).collect();
        let posts: Vec<PostId> = posts.into_iter().collect();
        let read = |range: std::ops::Range<usize>| {
            let posts = &posts[range];
            let reading = async move {
                for post in posts {
                    self.totals.of_post(*post).await?;
                }
                Ok(())
            };
            isolate::sorted(reading, CommitError::is_passing)
        };
        let ill_posts = Ill::of(&posts, isolate::isolate(posts.len(), read).await)?;
        let chunks = file.chunks();
        let read = |range: std::ops::Range<usize>| {
            let chunks = &chunks[range];
            let reading = async move {
                self.totals.counted(chunks).await?;
                Ok(())
            };
            isolate::sorted(reading, CommitError::is_passing)
        };
        let ill_chunks = Ill::of(&chunks, isolate::isolate(chunks.len(), read).await)?;
        file.entries.retain(|entry| {
            let of_chunk = |chunk: ChunkRef| ill_chunks.0.get(&chunk);
            let fault = ill_posts
                .0
                .get(&entry.row.post())
                .or_else(|| entry.row.chunk().and_then(of_chunk));
            if let Some(fault) = fault {
                self.give_up(batch, entry.place, fault);
            }
            fault.is_none()
        });
        Ok(file)
    }

    /// Settles a row that can't be counted, whatever comes with it. Its message fails; the others of its rows are counted.
    fn give_up(&self, batch: &mut Batch, place: Place, fault: &str) {
        self.metrics.isolated.inc();
        batch.settle_row(place, &Settle::fault(fault));
    }
}

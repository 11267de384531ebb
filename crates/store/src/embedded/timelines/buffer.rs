//! The in-memory buffer of one run.

use std::time::Instant;

use herald_model::{Recipients, UserKey};
use tokio::sync::watch;

use super::{block, pair};
use crate::{Durable, Error, ErrorKind, Result, embedded::shared_error::SharedError};

/// Result of flushing a run; `None` until the flush has ended.
type FlushResult = Option<std::result::Result<(), SharedError>>;

/// Partitions of a page, as a power of two.
const PAGE_BITS: u32 = 12;

/// Consecutive partitions, about a million users.
type Page = Vec<Vec<u64>>;

/// The pairs of one run until the run is readable on disk.
pub(crate) struct Buffer {
    /// Pairs by partition of the users, each in insertion order. Pages without users are empty.
    pages: Vec<Page>,
    pairs: usize,
    chunks: usize,
    since: Option<Instant>,
    outcome: watch::Sender<FlushResult>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            pairs: 0,
            chunks: 0,
            since: None,
            outcome: watch::Sender::new(None),
        }
    }
}

impl Buffer {
    /// Number of pairs, duplicates included.
    pub(crate) fn pairs(&self) -> usize {
        self.pairs
    }

    /// Number of chunks added by [`push`](Self::push).
    pub(crate) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Time of the first push; `None` if the buffer is empty.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Adds a chunk: one post and its recipients.
    pub(crate) fn push(&mut self, post: u64, recipients: &Recipients) {
        for user in recipients {
            let (page, partition) = locate(user);
            match self.pages.get_mut(page).and_then(|page| page.get_mut(partition)) {
                Some(partition) => partition.push(pair::in_partition(user, post)),
                None => self.make_page(page)[partition].push(pair::in_partition(user, post)),
            }
        }
        self.pairs += recipients.len() as usize;
        self.chunks += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    /// Appends a user's posts to `out`, in insertion order.
    pub(crate) fn posts_of(&self, user: UserKey, out: &mut Vec<u64>) {
        let wanted = pair::in_partition(user, 0);
        let (page, partition) = locate(user);
        if let Some(partition) = self.pages.get(page).and_then(|page| page.get(partition)) {
            out.extend(
                partition
                    .iter()
                    .filter(|p| **p & !pair::POST_MAX == wanted)
                    .map(|p| pair::post(*p)),
            );
        }
    }

    /// Resolves with the result of the flush.
    pub(crate) fn durable(&self) -> Durable {
        let mut outcome = self.outcome.subscribe();
        Box::pin(async move {
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(failure))) => Err(failure.error()),
                Ok(_) => Ok(()),
                Err(_) => Err(Error::new(
                    ErrorKind::Unavailable,
                    "the timelines were closed before the run was flushed",
                )),
            }
        })
    }

    /// Publishes the result of the flush to all waiters of [`durable`](Self::durable).
    pub(crate) fn resolve(&self, outcome: std::result::Result<(), SharedError>) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Empties the buffer and keeps its memory for the next run.
    pub(crate) fn reuse(mut self) -> Self {
        self.pages.iter_mut().flatten().for_each(Vec::clear);
        Self {
            pages: self.pages,
            ..Self::default()
        }
    }

    /// Calls `each` with the number and the block of each group, ascending. Duplicate pairs are dropped.
    pub(crate) fn blocks(&self, mut each: impl FnMut(u32, &[u8]) -> Result<()>) -> Result<()> {
        let (mut sorted, mut scratch, mut out) = (Vec::new(), Vec::new(), Vec::new());
        for (number, partition) in self.partitions() {
            sorted.clear();
            sorted.extend_from_slice(partition);
            sorted.sort_unstable();
            sorted.dedup();
            for group in sorted.chunk_by(|a, b| pair::group_in_partition(*a) == pair::group_in_partition(*b))
            {
                out.clear();
                block::encode(group, &mut scratch, &mut out);
                let first = number << (pair::PARTITION_BITS - pair::GROUP_BITS);
                each(first + pair::group_in_partition(group[0]), &out)?;
            }
        }
        Ok(())
    }

    #[cold]
    fn make_page(&mut self, page: usize) -> &mut Page {
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, Vec::new);
        }
        self.pages[page].resize_with(1 << PAGE_BITS, Vec::new);
        &mut self.pages[page]
    }

    /// The allocated partitions with their numbers, ascending.
    fn partitions(&self) -> impl Iterator<Item = (u32, &Vec<u64>)> {
        let with_numbers = |(number, page)| ((number as u32) << PAGE_BITS..).zip(page);
        self.pages.iter().enumerate().flat_map(with_numbers)
    }
}

/// The page of a user's partition, and the index of the partition in the page.
fn locate(user: UserKey) -> (usize, usize) {
    let partition = (user.0 >> pair::PARTITION_BITS) as usize;
    (partition >> PAGE_BITS, partition & ((1 << PAGE_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_hold_each_pair_once(
            chunks in prop::collection::vec((1_u64..50, prop::collection::btree_set(0_u32..2_000, 1..60)), 1..20),
        ) {
            let mut buffer = Buffer::default();
            let mut expected = BTreeSet::new();
            for (post, users) in &chunks {
                buffer.push(*post, &Recipients::from_sorted(users.iter().copied().map(UserKey)));
                expected.extend(users.iter().map(|user| (*user, *post)));
            }
            let mut found = Vec::new();
            buffer
                .blocks(|group, block| {
                    let mut pairs = Vec::new();
                    block::decode_pairs(block, &mut pairs)?;
                    found.extend(pairs.iter().map(|p| (pair::user(group, pair::user_in_group(*p)).0, pair::post(*p))));
                    Ok(())
                })
                .unwrap();
            prop_assert_eq!(found, expected.iter().copied().collect::<Vec<_>>());
            for user in [0, 63, 64, 255, 256, 1_999] {
                let mut posts = Vec::new();
                buffer.posts_of(UserKey(user), &mut posts);
                let posts: BTreeSet<u64> = posts.into_iter().collect();
                let of_user: BTreeSet<u64> = expected.iter().filter(|(u, _)| *u == user).map(|(_, p)| *p).collect();
                prop_assert_eq!(posts, of_user);
            }
        }
    }
}

//! Deliveries on their way to the disk.

use std::time::Instant;

use herald_model::{Recipients, UserKey};
use tokio::sync::watch;

use super::{block, pair};
use crate::{Durable, Error, ErrorKind, Result, embedded::shared_error::SharedError};

/// What became of a run: `None` while it isn't flushed.
type Outcome = Option<std::result::Result<(), SharedError>>;

/// Parts of a page, as a power of two.
const PAGE_BITS: u32 = 12;

/// Some parts that follow each other: a million users.
type Page = Vec<Vec<u64>>;

/// The pairs of one run, before and while they are written.
pub(super) struct Buffer {
    /// Pairs by part of the users, each in the order of their coming. Pages without users are empty.
    pages: Vec<Page>,
    pairs: usize,
    chunks: usize,
    since: Option<Instant>,
    outcome: watch::Sender<Outcome>,
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
    /// How many pairs there are, repeats included.
    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }

    /// How many times a post was added for some recipients.
    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Since when there are some.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Adds a post for its recipients.
    pub(super) fn push(&mut self, post: u64, recipients: &Recipients) {
        for user in recipients {
            let (page, part) = place(user);
            match self.pages.get_mut(page).and_then(|page| page.get_mut(part)) {
                Some(part) => part.push(pair::in_part(user, post)),
                None => self.make_page(page)[part].push(pair::in_part(user, post)),
            }
        }
        self.pairs += recipients.len() as usize;
        self.chunks += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    /// Adds a user's posts to `out`.
    pub(super) fn posts_of(&self, user: UserKey, out: &mut Vec<u64>) {
        let wanted = pair::in_part(user, 0);
        let (page, part) = place(user);
        if let Some(part) = self.pages.get(page).and_then(|page| page.get(part)) {
            out.extend(
                part.iter()
                    .filter(|p| **p & !pair::POST_MAX == wanted)
                    .map(|p| pair::post(*p)),
            );
        }
    }

    /// Resolves with what becomes of the run.
    pub(super) fn durable(&self) -> Durable {
        let mut outcome = self.outcome.subscribe();
        Box::pin(async move {
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(failure))) => Err(failure.error()),
                Ok(_) => Ok(()),
                Err(_) => Err(Error::new(
                    ErrorKind::Unavailable,
                    "the timelines were closed before the run was written",
                )),
            }
        })
    }

    /// Tells all who wait what became of the run.
    pub(super) fn resolve(&self, outcome: std::result::Result<(), SharedError>) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Empties it, keeping the memory for the next run.
    pub(super) fn reuse(mut self) -> Self {
        self.pages.iter_mut().flatten().for_each(Vec::clear);
        Self {
            pages: self.pages,
            ..Self::default()
        }
    }

    /// Passes each group's number and block, ascending, to `each`. Repeats are left out.
    pub(super) fn blocks(&self, mut each: impl FnMut(u32, &[u8]) -> Result<()>) -> Result<()> {
        let (mut sorted, mut scratch, mut out) = (Vec::new(), Vec::new(), Vec::new());
        for (number, part) in self.parts() {
            sorted.clear();
            sorted.extend_from_slice(part);
            sorted.sort_unstable();
            sorted.dedup();
            for group in sorted.chunk_by(|a, b| pair::group_in_part(*a) == pair::group_in_part(*b)) {
                out.clear();
                block::encode(group, &mut scratch, &mut out);
                let first = number << (pair::PART_BITS - pair::GROUP_BITS);
                each(first + pair::group_in_part(group[0]), &out)?;
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

    /// The parts that there are, ascending, with their numbers.
    fn parts(&self) -> impl Iterator<Item = (u32, &Vec<u64>)> {
        let of_page = |(number, page)| ((number as u32) << PAGE_BITS..).zip(page);
        self.pages.iter().enumerate().flat_map(of_page)
    }
}

/// The page of a user's part, and the part's place in it.
fn place(user: UserKey) -> (usize, usize) {
    let part = (user.0 >> pair::PART_BITS) as usize;
    (part >> PAGE_BITS, part & ((1 << PAGE_BITS) - 1))
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
                    block::pairs(block, &mut pairs)?;
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

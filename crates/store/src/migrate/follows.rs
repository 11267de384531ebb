//! The follow graph: blocks of followers with an undo log become intervals of versions.

use std::{iter::Peekable, ops::Bound};

use super::{
    part::{Batches, Part},
    source::{Source, corrupt, read_u32, read_u64, rows_after, show_key, undecodable, user_of},
    table::{Rows, Table, Type, bigints},
};
use crate::{
    Result,
    embedded::{
        database::map_err,
        follows::{
            block::{Follower, Followers},
            history::{self, Edge, UndoEntry},
            tables::{Count, decode_version, pair_key, second_user, version_key},
        },
    },
};

pub(super) const FOLLOWS: Part = Part {
    name: "follows",
    tables: &[&EDGES, &AUTHORS],
    estimate: |source| source.following.approximate_len() as u64,
    read: read_follows,
};

pub(super) const MOMENTS: Part = Part {
    name: "follow history",
    tables: &[&MOMENTS_TABLE],
    estimate: |source| source.follow_moments.approximate_len() as u64,
    read: read_moments,
};

static EDGES: Table = Table {
    name: "follow_edges",
    columns: &[
        ("author", Type::Bigint),
        ("follower", Type::Bigint),
        ("since", Type::Bigint),
        ("until", Type::Bigint),
        ("ended_at", Type::Bigint),
        ("notify", Type::Boolean),
    ],
    key: 3,
    replaces: false,
    only: "",
};

static AUTHORS: Table = Table {
    name: "follow_authors",
    columns: &[
        ("author", Type::Bigint),
        ("version", Type::Bigint),
        ("followers", Type::Bigint),
        ("notify", Type::Bigint),
        ("trimmed_version", Type::Bigint),
    ],
    key: 1,
    replaces: false,
    only: "",
};

static MOMENTS_TABLE: Table = Table {
    name: "follow_moments",
    columns: &[
        ("at", Type::Bigint),
        ("authors", Type::Bigints),
        ("versions", Type::Bigints),
        ("author_count", Type::Integer),
    ],
    key: 1,
    replaces: false,
    only: "",
};

/// Changes of the history in memory at a time, about 24 bytes each. More are read in several passes over the history.
const CHANGES_MAX: usize = 1 << 20;

/// The history of one author.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    /// The first version that can be read.
    pub(super) first_readable: u64,
    /// The current version.
    pub(super) current: u64,
    /// Time of the newest version of all authors. Ended follows get it as their end: the times of versions are not
    /// indexed by author, and a follow that is retained for some days longer changes nothing that can be read.
    ended_at: i64,
}

/// One change of the history.
#[derive(Debug, Clone, Copy)]
struct Change {
    follower: u32,
    version: u64,
    before: Edge,
}

/// Reads the counts of an author; `None` for one who never had a follower.
pub(super) fn count_of(source: &Source, author: u32) -> Result<Option<Count>> {
    let Some(row) = source.follow_counts.get(author.to_be_bytes()).map_err(map_err)? else {
        return Ok(None);
    };
    Count::decode(&row)
        .map(Some)
        .ok_or_else(|| undecodable(format!("the follower count of author {author}"), "follow_counts"))
}

/// Reads which versions of an author can be read: from before the first of the versions that go without a gap up to the
/// current one.
pub(super) fn history_of(source: &Source, author: u32, current: u64) -> Result<History> {
    let mut first = current + 1;
    let keys = version_key(author, 0)..=version_key(author, current);
    for row in source.follow_history.range(keys).rev() {
        let key = row.key().map_err(map_err)?;
        if decode_version(&key) != first.checked_sub(1) {
            break;
        }
        first -= 1;
    }
    let newest = source.follow_moments.last_key_value();
    let newest = newest.map(|row| row.key().map_err(map_err)).transpose()?;
    let ended_at = newest.as_deref().and_then(read_u64).map(u64::cast_signed);
    Ok(History {
        first_readable: first.saturating_sub(1),
        current,
        ended_at: ended_at.unwrap_or(i64::MAX),
    })
}

/// A position: the author, and the first follower that is not moved yet; 2^32 after the last one.
fn position(author: u32, next_follower: u64) -> Vec<u8> {
    [&author.to_be_bytes()[..], &next_follower.to_be_bytes()].concat()
}

fn read_follows(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    let (mut after_author, mut resume) = (None, None);
    if let Some(position) = after
        && let (Some(author), Some(next)) = (read_u32(position), position.get(4..).and_then(read_u64))
    {
        match u32::try_from(next) {
            Ok(follower) => resume = Some((author, follower)),
            Err(_) => after_author = Some(author),
        }
    }
    if let Some((author, follower)) = resume {
        read_author(source, author, follower, out)?;
        after_author = Some(author);
    }
    let after_author = after_author.map(u32::to_be_bytes);
    for row in rows_after(
        &source.follow_counts,
        after_author.as_ref().map(<[u8; 4]>::as_slice),
    ) {
        let (key, _) = row?;
        let author = user_of(&key, "follow_counts")?.0;
        read_author(source, author, 0, out)?;
    }
    Ok(())
}

/// Reads the follows of one author from a follower on.
fn read_author(source: &Source, author: u32, from: u32, out: &mut Batches) -> Result<()> {
    let Some(count) = count_of(source, author)? else {
        return Err(undecodable(
            format!("the follower count of author {author}"),
            "follow_counts",
        ));
    };
    let history = history_of(source, author, count.version)?;
    let mut next = Some(from);
    let (mut followers, mut notify) = (0, 0);
    while let Some(start) = next {
        let (changes, end) = read_changes(source, author, history, start)?;
        let mut changes = changes.chunk_by(|a, b| a.follower == b.follower).peekable();
        let mut current = CurrentFollowers::new(source, author, start, end)?;
        while let Some((follower, now, changes)) = next_follower(&mut current, &mut changes)? {
            followers += u64::from(now.is_some());
            notify += u64::from(now == Some(true));
            let rows = out.rows(0);
            add_intervals(rows, author, follower, now, changes, history)?;
            out.end_rows(
                u64::from(now.is_some()),
                &position(author, u64::from(follower) + 1),
            )?;
        }
        next = end;
    }
    if from == 0 && (followers, notify) != (count.followers, count.notify) {
        return Err(corrupt(
            format!("the followers of author {author}"),
            format!(
                "there are {followers}, {notify} of them with notifications on, and the counts say {} and {}",
                count.followers, count.notify
            ),
        ));
    }
    out.rows(1).push([
        author.into(),
        count.version.into(),
        count.followers.into(),
        count.notify.into(),
        history.first_readable.into(),
    ]);
    out.end_rows(0, &position(author, 1 << 32))
}

/// The current followers of an author in a range.
struct CurrentFollowers {
    author: u32,
    followers: std::vec::IntoIter<Follower>,
    blocks: Box<dyn Iterator<Item = fjall::Guard>>,
    start: u32,
    end: Option<u32>,
    next: Option<Follower>,
}

impl CurrentFollowers {
    /// The followers from `start` to before `end`.
    fn new(source: &Source, author: u32, start: u32, end: Option<u32>) -> Result<Self> {
        // The block of `start` begins at or before it.
        let first = source
            .followers
            .range(pair_key(author, 0)..=pair_key(author, start))
            .next_back()
            .map(|row| second_user(&row.key().map_err(map_err)?))
            .transpose()?
            .unwrap_or(start);
        let last = match end {
            Some(end) => Bound::Excluded(pair_key(author, end)),
            None => Bound::Included(pair_key(author, u32::MAX)),
        };
        let blocks = source
            .followers
            .range((Bound::Included(pair_key(author, first)), last));
        let mut current = Self {
            author,
            followers: Vec::new().into_iter(),
            blocks: Box::new(blocks),
            start,
            end,
            next: None,
        };
        current.advance()?;
        Ok(current)
    }

    fn advance(&mut self) -> Result<()> {
        loop {
            for follower in self.followers.by_ref() {
                if follower.key >= self.start && self.end.is_none_or(|end| follower.key < end) {
                    self.next = Some(follower);
                    return Ok(());
                }
            }
            let Some(row) = self.blocks.next() else {
                self.next = None;
                return Ok(());
            };
            let (key, bytes) = row.into_inner().map_err(map_err)?;
            let malformed = |_| undecodable(format!("the followers of author {}", self.author), "followers");
            let followers: std::result::Result<Vec<_>, _> = Followers::new(&bytes, second_user(&key)?)
                .map_err(malformed)?
                .collect();
            self.followers = followers.map_err(malformed)?.into_iter();
        }
    }
}

type Changed<'a> = (u32, Option<bool>, &'a [Change]);

/// The next follower, present or past: whether notifications are on if present, and the changes, newest first.
fn next_follower<'a>(
    current: &mut CurrentFollowers,
    changes: &mut Peekable<impl Iterator<Item = &'a [Change]>>,
) -> Result<Option<Changed<'a>>> {
    let changed = changes.peek().map(|changes| changes[0].follower);
    let present = current.next;
    let follower = match (present, changed) {
        (None, None) => return Ok(None),
        (Some(present), None) => present.key,
        (None, Some(changed)) => changed,
        (Some(present), Some(changed)) => present.key.min(changed),
    };
    let now = match present {
        Some(present) if present.key == follower => {
            current.advance()?;
            Some(present.notify)
        }
        _ => None,
    };
    let changes = if changed == Some(follower) {
        changes.next().unwrap_or_default()
    } else {
        &[]
    };
    Ok(Some((follower, now, changes)))
}

/// Reads the changes of followers from `start` on, by follower and newest first, and the follower at which the rest
/// begins.
fn read_changes(
    source: &Source,
    author: u32,
    history: History,
    start: u32,
) -> Result<(Vec<Change>, Option<u32>)> {
    let mut changes: Vec<Change> = Vec::new();
    let mut end: Option<u32> = None;
    let mut undone: Vec<UndoEntry> = Vec::new();
    if history.first_readable == history.current {
        return Ok((changes, None));
    }
    let keys = version_key(author, history.first_readable + 1)..=version_key(author, history.current);
    for row in source.follow_history.range(keys) {
        let (key, row) = row.into_inner().map_err(map_err)?;
        let what = || format!("the follow history of author {author}");
        let version = decode_version(&key).ok_or_else(|| undecodable(what(), "follow_history"))?;
        undone.clear();
        history::decode(&row, &mut undone)
            .map_err(|_| undecodable(format!("{} at version {version}", what()), "follow_history"))?;
        changes.extend(
            undone
                .iter()
                .filter(|entry| entry.follower >= start && end.is_none_or(|end| entry.follower < end))
                .map(|entry| Change {
                    follower: entry.follower,
                    version,
                    before: entry.before,
                }),
        );
        if changes.len() > 2 * CHANGES_MAX {
            sort(&mut changes);
            // The changes of one follower stay together.
            let cut = changes[CHANGES_MAX].follower;
            let kept = changes.partition_point(|change| change.follower < cut);
            if kept > 0 {
                changes.truncate(kept);
                end = Some(cut);
            }
        }
    }
    sort(&mut changes);
    Ok((changes, end))
}

fn sort(changes: &mut [Change]) {
    changes.sort_unstable_by(|a, b| (a.follower, b.version).cmp(&(b.follower, a.version)));
}

/// Adds the intervals of versions in which a user follows an author. `changes` are the newest first.
fn add_intervals(
    rows: &mut Rows,
    author: u32,
    follower: u32,
    now: Option<bool>,
    changes: &[Change],
    history: History,
) -> Result<()> {
    let mut push = |since: u64, until: Option<u64>, notify: bool| {
        rows.push([
            author.into(),
            follower.into(),
            since.into(),
            until.map(u64::cast_signed).into(),
            until.map(|_| history.ended_at).into(),
            notify.into(),
        ]);
    };
    let mut after = now.map(|notify| (notify, None));
    for change in changes {
        if let Some((notify, until)) = after {
            push(change.version, until, notify);
        }
        after = match change.before {
            Edge::Absent => None,
            Edge::Quiet => Some((false, Some(change.version))),
            Edge::Notify => Some((true, Some(change.version))),
        };
    }
    if let Some((notify, until)) = after {
        if history.first_readable == 0 {
            return Err(corrupt(
                format!("the follow of author {author} by user {follower}"),
                "the history says that there was a follow before the first one",
            ));
        }
        push(history.first_readable, until, notify);
    }
    Ok(())
}

fn read_moments(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.follow_moments, after) {
        let (key, row) = row?;
        let what = || format!("the follow versions of the time {}", show_key(&key));
        let at = read_u64(&key).ok_or_else(|| undecodable(what(), "follow_moments"))?;
        let versions = history::decode_versions(&row).map_err(|_| undecodable(what(), "follow_moments"))?;
        out.rows(0).push([
            at.into(),
            bigints(versions.iter().map(|(author, _)| i64::from(*author))).into(),
            bigints(versions.iter().map(|(_, version)| version.cast_signed())).into(),
            i64::try_from(versions.len()).unwrap_or(i64::MAX).into(),
        ]);
        out.end_row(&key)?;
    }
    Ok(())
}

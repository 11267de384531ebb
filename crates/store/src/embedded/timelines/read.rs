//! Reading of whole timelines for audits.

use herald_model::{PostId, UserKey};

use super::{
    Shared,
    groups::{Groups, retained},
    pair,
};
use crate::{Result, TimelineEntries};

/// Greatest difference of the groups of two users that are read with one cursor. Skipping a group costs less than
/// opening a cursor.
const GROUPS_SKIPPED_MAX: u32 = 8;

impl Shared {
    /// The durable timelines of users, in their order. Ascending keys that are close together share a cursor.
    pub(super) fn read(&self, users: &[UserKey]) -> Result<Vec<TimelineEntries>> {
        let mut timelines = Vec::with_capacity(users.len());
        let last_run = self.disk.last_run();
        let close =
            |a: &UserKey, b: &UserKey| a <= b && pair::group(*b) - pair::group(*a) <= GROUPS_SKIPPED_MAX;
        for range in users.chunk_by(close) {
            self.read_range(range, last_run, &mut timelines)?;
        }
        Ok(timelines)
    }

    /// Appends the timelines of ascending users.
    fn read_range(
        &self,
        users: &[UserKey],
        last_run: u64,
        timelines: &mut Vec<TimelineEntries>,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (users.first(), users.last()) else {
            return Ok(());
        };
        // The last group of all users has no end.
        let end = (pair::group(*last) < pair::group(UserKey(u32::MAX))).then(|| pair::group(*last) + 1);
        let mut groups = Groups::new(&self.disk, pair::group(*first), end, last_run)?;
        let oldest = self.disk.oldest();
        let mut pairs = Vec::new();
        let mut group = groups.next(&mut pairs)?;
        for user in users {
            while group
                .as_ref()
                .is_some_and(|group| group.number < pair::group(*user))
            {
                group = groups.next(&mut pairs)?;
            }
            let posts = match &group {
                Some(group) if group.number == pair::group(*user) => {
                    let start = pairs.partition_point(|one| pair::user_in_group(*one) < pair::index(*user));
                    let own = &pairs[start..];
                    let own =
                        &own[..own.partition_point(|one| pair::user_in_group(*one) == pair::index(*user))];
                    let kept = retained(own, oldest, self.config.entries_max).iter();
                    kept.map(|one| PostId(pair::post(*one))).collect()
                }
                _ => Vec::new(),
            };
            timelines.push(if self.disk.is_erased(*user) {
                TimelineEntries::default()
            } else {
                TimelineEntries {
                    posts,
                    complete: true,
                }
            });
        }
        Ok(())
    }
}

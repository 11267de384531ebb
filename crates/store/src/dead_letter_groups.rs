//! Groups of dead letters with equal failures.

use std::{cmp::Reverse, collections::HashMap};

use herald_model::time::Timestamp;

use crate::{Cause, DeadLetter, DeadLetterId};

/// Maximum number of groups in memory. Dead letters of further groups are counted, but in no group.
pub const DEAD_LETTER_GROUPS_MAX: usize = 10_000;

/// Dead letters with equal failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterGroup {
    /// The id of the group.
    pub group: u64,
    /// Kind of the consumers, without their lane.
    pub kind: String,
    /// Cause of the failures.
    pub cause: Cause,
    /// The reason without ids, numbers and quoted text.
    pub reason: String,
    /// Number of dead letters.
    pub dead_letters: u64,
    /// Earliest first failure.
    pub first_failed_at: Timestamp,
    /// Latest last failure.
    pub last_failed_at: Timestamp,
    /// The newest dead letter of the group.
    pub example: DeadLetterId,
}

/// Counts dead letters by group, without keeping them.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterGroups {
    groups: HashMap<u64, DeadLetterGroup>,
    dead_letters: u64,
}

impl DeadLetterGroups {
    /// Groups that a store has counted, up to [`DEAD_LETTER_GROUPS_MAX`], and the number of dead letters in all groups.
    pub(crate) fn from_counted(groups: Vec<DeadLetterGroup>, dead_letters: u64) -> Self {
        Self {
            groups: groups.into_iter().map(|group| (group.group, group)).collect(),
            dead_letters,
        }
    }

    /// Counts a dead letter.
    pub fn add(&mut self, dead_letter: DeadLetter) {
        self.dead_letters += 1;
        if self.groups.len() >= DEAD_LETTER_GROUPS_MAX && !self.groups.contains_key(&dead_letter.group) {
            return;
        }
        let group = self
            .groups
            .entry(dead_letter.group)
            .or_insert_with(|| DeadLetterGroup {
                group: dead_letter.group,
                kind: dead_letter.kind,
                cause: dead_letter.cause,
                reason: dead_letter.group_reason,
                dead_letters: 0,
                first_failed_at: dead_letter.first_failed_at,
                last_failed_at: dead_letter.last_failed_at,
                example: dead_letter.id,
            });
        group.dead_letters += 1;
        group.first_failed_at = group.first_failed_at.min(dead_letter.first_failed_at);
        group.last_failed_at = group.last_failed_at.max(dead_letter.last_failed_at);
        group.example = group.example.max(dead_letter.id);
    }

    /// Number of dead letters, also of those that are in no group.
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters
    }

    /// The groups, the largest first.
    pub fn into_largest_first(self) -> Vec<DeadLetterGroup> {
        let mut groups: Vec<_> = self.groups.into_values().collect();
        groups.sort_unstable_by_key(|group| (Reverse(group.dead_letters), group.group));
        groups
    }
}

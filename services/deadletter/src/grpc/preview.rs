//! Dry runs: counts the selected dead letters without keeping them.

use herald_proto::v1;
use herald_store::{DeadLetter, DeadLetterGroups, NewOperation};

use super::{PAGE_SIZE_MAX, select::Selected};
use crate::convert;

/// Counts the dead letters that an operation would select.
pub(super) struct Preview<'a> {
    operation: &'a NewOperation,
    groups: DeadLetterGroups,
    /// Selected dead letters whose pushes would be expired.
    pub(super) expired: u64,
}

impl<'a> Preview<'a> {
    pub(super) fn new(operation: &'a NewOperation) -> Self {
        Self {
            operation,
            groups: DeadLetterGroups::default(),
            expired: 0,
        }
    }

    /// Number of selected dead letters.
    pub(super) fn selected(&self) -> u64 {
        self.groups.dead_letters()
    }

    /// The largest groups, and the number of all groups.
    pub(super) fn into_groups(self) -> (Vec<v1::DeadLetterGroup>, u64) {
        let groups = self.groups.into_largest_first();
        let count = groups.len() as u64;
        let largest = groups.into_iter().take(PAGE_SIZE_MAX);
        (largest.map(convert::group_to_proto).collect(), count)
    }
}

impl Selected for Preview<'_> {
    fn add(&mut self, dead_letter: DeadLetter) {
        self.expired += u64::from(self.operation.finds_expired(&dead_letter, self.operation.at));
        self.groups.add(dead_letter);
    }
}

//! The slots of a cluster, and which of them a primary has.

use redis::Value;

use super::keys::SLOTS;

/// Slots that one primary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotRange {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl SlotRange {
    /// The range of a single server.
    pub(super) const ALL: Self = Self {
        first: 0,
        last: SLOTS - 1,
    };

    pub(super) fn contains(self, slot: u16) -> bool {
        (self.first..=self.last).contains(&slot)
    }
}

/// The slots by primary of an answer to `CLUSTER SLOTS`; `None` if it is malformed.
pub(super) fn read_ranges(slots: &Value) -> Option<Vec<SlotRange>> {
    let Value::Array(rows) = slots else { return None };
    let mut ranges = Vec::with_capacity(rows.len());
    for row in rows {
        let Value::Array(columns) = row else { return None };
        let [Value::Int(first), Value::Int(last), ..] = columns.as_slice() else {
            return None;
        };
        ranges.push(SlotRange {
            first: u16::try_from(*first).ok()?,
            last: u16::try_from(*last).ok()?,
        });
    }
    ranges
        .iter()
        .all(|range| range.first <= range.last)
        .then_some(ranges)
}

//! Counts of settled recipients by state.

use std::ops::Sub;

use herald_model::DeliveryState;

/// Counts of settled recipients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Counts {
    pub(crate) delivered: u32,
    pub(crate) suppressed: u32,
    pub(crate) expired: u32,
    pub(crate) dead: u32,
}

impl Counts {
    /// Number of settled recipients.
    pub(crate) fn total(self) -> u32 {
        self.delivered + self.suppressed + self.expired + self.dead
    }

    /// The count of a final state; `None` for pending.
    pub(crate) fn count_mut(&mut self, state: DeliveryState) -> Option<&mut u32> {
        match state {
            DeliveryState::Pending => None,
            DeliveryState::Delivered => Some(&mut self.delivered),
            DeliveryState::Suppressed => Some(&mut self.suppressed),
            DeliveryState::Expired => Some(&mut self.expired),
            DeliveryState::Dead => Some(&mut self.dead),
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            delivered: self.delivered.saturating_sub(other.delivered),
            suppressed: self.suppressed.saturating_sub(other.suppressed),
            expired: self.expired.saturating_sub(other.expired),
            dead: self.dead.saturating_sub(other.dead),
        }
    }
}

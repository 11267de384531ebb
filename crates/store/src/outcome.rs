//! The outcome of a chunk: its recipients by state, and what is known about single recipients and devices.

use herald_model::{DeviceId, Recipients, UserKey, time::Timestamp};

/// Outcome of a chunk.
#[expect(clippy::large_enum_variant, reason = "few outcomes are in memory at a time")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All recipients are delivered.
    Delivered {
        /// Number of recipients.
        count: u32,
    },
    /// Recipients by state. A recipient in none of the sets is pending. The sets do not overlap.
    Mixed {
        /// Delivered.
        delivered: Recipients,
        /// Not sent on purpose: push disabled, author muted, no device, post deleted.
        suppressed: Recipients,
        /// Not sent because the TTL of the post had passed.
        expired: Recipients,
        /// Marked dead: only a redrive delivers them.
        dead: Recipients,
        /// What is known about single recipients and devices; empty for the timeline.
        details: OutcomeDetails,
    },
}

/// What a push chunk records about its recipients and devices besides their states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutcomeDetails {
    /// Number of copies of the message that were made for waiting recipients. The newest copy names this generation in
    /// its payload; 0 for the message of fan-out. All waiting recipients belong to this generation.
    pub generation: u32,
    /// End of the pushes' time to live, if some recipients waited. A redrive can extend it.
    pub expires_at: Option<Timestamp>,
    /// Pending recipients with a device that was tried, ascending. A pending recipient without an entry has not
    /// been tried, or was revived by a redrive.
    pub pending: Vec<PendingRecipient>,
    /// Suppressed recipients by reason; the sets don't overlap. No reason is known of a suppressed recipient in none of
    /// them.
    pub suppressed: Vec<(SuppressedReason, Recipients)>,
    /// The last failures of dead and expired recipients, ascending. A recipient without an entry had none, and belongs
    /// to generation 0.
    pub failed: Vec<FailedRecipient>,
}

impl OutcomeDetails {
    /// The waiting devices of a pending recipient.
    pub fn waiting(&self, user: UserKey) -> &[DeviceRetry] {
        self.pending(user).map_or(&[], |recipient| &recipient.waiting)
    }

    /// The entry of a pending recipient.
    pub fn pending(&self, user: UserKey) -> Option<&PendingRecipient> {
        let index = self
            .pending
            .binary_search_by_key(&user, |recipient| recipient.user);
        index.ok().map(|index| &self.pending[index])
    }

    /// The entry of a dead or expired recipient.
    pub fn failed(&self, user: UserKey) -> Option<&FailedRecipient> {
        let index = self
            .failed
            .binary_search_by_key(&user, |recipient| recipient.user);
        index.ok().map(|index| &self.failed[index])
    }

    /// Why a recipient is suppressed, if known.
    pub fn suppressed(&self, user: UserKey) -> Option<SuppressedReason> {
        let mut sets = self.suppressed.iter();
        sets.find(|(_, users)| users.contains(user))
            .map(|(reason, _)| *reason)
    }
}

/// A pending recipient of whom some devices were tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRecipient {
    /// The recipient.
    pub user: UserKey,
    /// Devices whose provider accepted the push. No more attempts are made for them.
    pub done: Vec<DeviceId>,
    /// Devices whose last attempt failed, each with its next one.
    pub waiting: Vec<DeviceRetry>,
    /// Devices that failed for good. No more attempts are made for them.
    pub failed: Vec<DeviceFailure>,
}

impl PendingRecipient {
    /// A recipient without a device that was tried.
    pub fn new(user: UserKey) -> Self {
        Self {
            user,
            done: Vec::new(),
            waiting: Vec::new(),
            failed: Vec::new(),
        }
    }
}

/// A device that waits for its next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRetry {
    /// The device.
    pub device: DeviceId,
    /// Failed attempts. Waits that the provider asked for, or for an open circuit breaker, are not counted.
    pub attempts: u32,
    /// Earliest time of the next attempt.
    pub next_at: Timestamp,
    /// Why the last attempt failed.
    pub failure: PushFailure,
}

/// Why a push to a device failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PushFailure {
    /// Provider and reason, such as `web_push status 429`; up to [`REASON_BYTES_MAX`](Self::REASON_BYTES_MAX).
    pub reason: String,
    /// Host of the endpoint, with the port unless it is the default; up to [`HOST_BYTES_MAX`](Self::HOST_BYTES_MAX).
    /// Empty if no endpoint was involved.
    pub host: String,
}

impl PushFailure {
    /// Maximum length of a reason, bytes; the rest is cut off.
    pub const REASON_BYTES_MAX: usize = 96;
    /// Maximum length of a host, bytes; the rest is cut off.
    pub const HOST_BYTES_MAX: usize = 96;

    /// A failure with its texts cut to their limits.
    pub fn new(reason: &str, host: &str) -> Self {
        let cut = |text: &str, max| text[..text.floor_char_boundary(max)].to_owned();
        Self {
            reason: cut(reason, Self::REASON_BYTES_MAX),
            host: cut(host, Self::HOST_BYTES_MAX),
        }
    }
}

/// The failure of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFailure {
    /// The device; `None` if the recipient's devices could not be read.
    pub device: Option<DeviceId>,
    /// The failure.
    pub failure: PushFailure,
}

/// A dead or expired recipient with the last failures of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRecipient {
    /// The recipient.
    pub user: UserKey,
    /// Generation of the message that settled the recipient. The dead letter of that message covers it.
    pub generation: u32,
    /// The last failure of each device that failed.
    pub failures: Vec<DeviceFailure>,
}

/// Why a recipient is suppressed: nothing was sent, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SuppressedReason {
    /// The recipient has no device.
    NoDevice = 1,
    /// The recipient has muted the author.
    Muted = 2,
    /// The recipient has switched pushes off.
    PushOff = 3,
    /// The post was deleted.
    PostDeleted = 4,
    /// All devices of the recipient are gone: their provider said so.
    DeviceGone = 5,
    /// All devices of the recipient are disabled.
    DeviceDisabled = 6,
    /// The recipient has no user id.
    UnknownUser = 7,
    /// The recipient has not read the timeline for a long time. It is rebuilt when the recipient reads it again.
    Inactive = 8,
    /// The recipient follows so many authors that the timeline gets only a part of their posts.
    Drowning = 9,
}

impl SuppressedReason {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::NoDevice,
        Self::Muted,
        Self::PushOff,
        Self::PostDeleted,
        Self::DeviceGone,
        Self::DeviceDisabled,
        Self::UnknownUser,
        Self::Inactive,
        Self::Drowning,
    ];
}

/// Number of settled recipients of a chunk, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettledCounts {
    /// Delivered recipients.
    pub delivered: u32,
    /// Suppressed recipients.
    pub suppressed: u32,
    /// Expired recipients.
    pub expired: u32,
    /// Dead recipients.
    pub dead: u32,
}

impl Outcome {
    /// Number of settled recipients, by state.
    pub fn counts(&self) -> SettledCounts {
        match self {
            Self::Delivered { count } => SettledCounts {
                delivered: *count,
                ..SettledCounts::default()
            },
            Self::Mixed {
                delivered,
                suppressed,
                expired,
                dead,
                ..
            } => SettledCounts {
                delivered: delivered.len(),
                suppressed: suppressed.len(),
                expired: expired.len(),
                dead: dead.len(),
            },
        }
    }
}

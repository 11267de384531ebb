//! Devices, push addresses and preferences of users.

use std::{collections::BTreeSet, time::Duration};

use crate::{UserKey, time::Timestamp};

/// Length of a day of a [`FailingStreak`].
const DAY: Duration = Duration::from_hours(24);

/// Id of a device, unique across all users, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u64);

/// A device of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The id.
    pub id: DeviceId,
    /// The owner.
    pub user: UserKey,
    /// The push address.
    pub address: Address,
    /// Time of the first registration.
    pub registered_at: Timestamp,
    /// Number of registrations of this device; being enabled again counts as one. The result of a push changes a device
    /// only while its generation is the one that the push was sent to.
    pub generation: u32,
    /// Set while pushes to the device fail.
    pub failing: Option<FailingStreak>,
    /// Set while the device gets no pushes.
    pub disabled: Option<Disabled>,
    /// The webhook secret before the current one, if it was replaced recently.
    pub previous_secret: Option<PreviousSecret>,
}

impl Device {
    /// A device that was registered once.
    pub fn new(id: DeviceId, user: UserKey, address: Address, registered_at: Timestamp) -> Self {
        Self {
            id,
            user,
            address,
            registered_at,
            generation: 1,
            failing: None,
            disabled: None,
            previous_secret: None,
        }
    }

    /// The current registration.
    pub fn registration(&self) -> Registration {
        Registration {
            user: self.user,
            device: self.id,
            generation: self.generation,
        }
    }
}

/// One registration of a device: what a push was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// The owner.
    pub user: UserKey,
    /// The device.
    pub device: DeviceId,
    /// The device's generation.
    pub generation: u32,
}

/// Pushes to a device that failed, without a success in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailingStreak {
    /// Time of the first failure.
    pub since: Timestamp,
    /// Number of days with a failure. A day starts with a failure and lasts 24 hours.
    pub days: u32,
    /// Start of the last of these days.
    pub day_started_at: Timestamp,
}

impl FailingStreak {
    /// The streak with a failure at `now` added; `None` if the failure changes nothing, because its day is counted.
    #[must_use]
    pub fn with_failure(streak: Option<Self>, now: Timestamp) -> Option<Self> {
        let Some(streak) = streak else {
            return Some(Self {
                since: now,
                days: 1,
                day_started_at: now,
            });
        };
        (now.since(streak.day_started_at) >= DAY).then(|| Self {
            days: streak.days.saturating_add(1),
            day_started_at: now,
            ..streak
        })
    }
}

/// Why a device is disabled, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disabled {
    /// The reason.
    pub reason: DisabledReason,
    /// The time.
    pub at: Timestamp,
}

/// Why a device was disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DisabledReason {
    /// The endpoint responded 410 (Gone).
    Gone,
    /// No push succeeded for days.
    Failing,
}

impl DisabledReason {
    /// Name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

/// A webhook secret that was replaced. Until it expires, pushes are signed with it too.
#[derive(Clone, PartialEq, Eq)]
pub struct PreviousSecret {
    /// The secret, without prefix and base64.
    pub secret: Vec<u8>,
    /// The time from which it is not used any more.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for PreviousSecret {
    /// Hides the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreviousSecret")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// A push address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A browser's push subscription (RFC 8030, RFC 8291).
    WebPush {
        /// The push service's URL.
        endpoint: String,
        /// The browser's public key: an uncompressed P-256 point, 65 bytes.
        p256dh: Vec<u8>,
        /// The authentication secret (RFC 8291), 16 bytes.
        auth: Vec<u8>,
    },
    /// A webhook of the client. Requests are signed according to Standard Webhooks.
    Webhook {
        /// The URL of the POST requests.
        url: String,
        /// The signing secret, without prefix and base64.
        secret: Vec<u8>,
    },
}

impl Address {
    /// The URL of the push requests.
    pub fn url(&self) -> &str {
        match self {
            Self::WebPush { endpoint, .. } => endpoint,
            Self::Webhook { url, .. } => url,
        }
    }
}

impl std::fmt::Debug for Address {
    /// Hides the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::WebPush { .. } => "WebPush",
            Self::Webhook { .. } => "Webhook",
        };
        f.debug_struct(name)
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

/// Push setting and muted authors of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preferences {
    /// Whether pushes are sent.
    pub push_enabled: bool,
    /// Authors whose posts are neither shown nor pushed.
    pub muted: BTreeSet<UserKey>,
}

impl Default for Preferences {
    fn default() -> Self {
        Self {
            push_enabled: true,
            muted: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_day_starts_with_a_failure_and_lasts_24_hours() {
        let at = |hours| Timestamp(0).plus(Duration::from_hours(hours));
        let first = FailingStreak::with_failure(None, at(5)).unwrap();
        assert_eq!((first.since, first.days), (at(5), 1));
        assert_eq!(FailingStreak::with_failure(Some(first), at(28)), None);
        let second = FailingStreak::with_failure(Some(first), at(29)).unwrap();
        assert_eq!((second.since, second.days), (at(5), 2));
        // A pause of a week without pushes is not a week of failures.
        let third = FailingStreak::with_failure(Some(second), at(200)).unwrap();
        assert_eq!((third.since, third.days), (at(5), 3));
        assert_eq!(FailingStreak::with_failure(Some(third), at(223)), None);
    }

    #[test]
    fn secrets_are_not_printed() {
        let address = Address::Webhook {
            url: "https://a.example/".into(),
            secret: vec![77; 24],
        };
        let mut device = Device::new(DeviceId(1), UserKey(1), address, Timestamp(0));
        device.previous_secret = Some(PreviousSecret {
            secret: vec![77; 24],
            expires_at: Timestamp(9),
        });
        assert!(!format!("{device:?}").contains("77"));
    }
}

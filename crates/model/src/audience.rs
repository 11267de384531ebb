//! Devices, push addresses and preferences of users.

use std::collections::BTreeSet;

use crate::{UserKey, time::Timestamp};

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

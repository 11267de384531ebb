//! Whom a user can be reached by, and what they want to hear.

use std::collections::BTreeSet;

use crate::{UserKey, time::Timestamp};

/// A device's id, unique over all users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u64);

/// One device of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Whose it is.
    pub user: UserKey,
    /// Where to push to.
    pub address: Address,
    /// When it was registered first.
    pub registered_at: Timestamp,
}

/// Where to push to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A browser's push subscription (RFC 8030, RFC 8291).
    WebPush {
        /// The push service's URL.
        endpoint: String,
        /// The browser's public key, an uncompressed P-256 point.
        p256dh: Vec<u8>,
        /// The shared secret.
        auth: Vec<u8>,
    },
    /// An endpoint of the caller's own, signed as Standard Webhooks says.
    Webhook {
        /// Where to POST to.
        url: String,
        /// The signing secret, decoded.
        secret: Vec<u8>,
    },
}

impl Address {
    /// The URL that is called.
    pub fn url(&self) -> &str {
        match self {
            Self::WebPush { endpoint, .. } => endpoint,
            Self::Webhook { url, .. } => url,
        }
    }
}

impl std::fmt::Debug for Address {
    /// Shows no secret.
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

/// What a user wants to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preferences {
    /// Whether pushes are sent at all.
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

//! Users, their devices and their preferences.

use async_trait::async_trait;
use herald_model::{Address, Device, DeviceId, UserId, UserKey, time::Timestamp};

use crate::Result;

/// Maximum number of devices of one user.
pub const DEVICES_PER_USER_MAX: usize = 32;

/// Maximum number of authors that one user can mute.
pub const MUTED_AUTHORS_MAX: usize = 1_000;

/// The dictionary of users: maps user ids, chosen by clients, to user keys, used inside Herald.
///
/// *Invariant:* an id and its key never change and are never reused. Keys are dense and start at 1.
#[async_trait]
pub trait Users: Send + Sync {
    /// Reads the keys of users; `None` for an id without a key. Creates no keys. Every returned key is durable.
    async fn find(&self, ids: &[UserId]) -> Result<Vec<Option<UserKey>>>;

    /// Reads the keys of users and creates the missing ones. Durable on return. An id that is repeated in one call, or
    /// interned by concurrent calls, gets one key. [`Full`](crate::ErrorKind::Full) when all 2^32 − 1 keys are in use.
    async fn intern(&self, ids: &[UserId]) -> Result<Vec<UserKey>>;

    /// Reads the ids of users; `None` for a key that does not exist.
    async fn ids(&self, keys: &[UserKey]) -> Result<Vec<Option<UserId>>>;
}

/// The devices that pushes are sent to.
#[async_trait]
pub trait Devices: Send + Sync {
    /// Registers a device. Durable on return. If the user already has a device with this URL, its address is updated
    /// and its id and registration time (`now`) stay. Device ids are never reused.
    ///
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) if the user already has [`DEVICES_PER_USER_MAX`] devices.
    async fn register(&self, user: UserKey, address: Address, now: Timestamp) -> Result<Device>;

    /// Removes a device. Durable on return. Returns whether the user had this device.
    async fn unregister(&self, user: UserKey, device: DeviceId) -> Result<bool>;

    /// Lists the devices of each user, oldest registration first; empty for a user without devices.
    async fn of(&self, users: &[UserKey]) -> Result<Vec<Vec<Device>>>;
}

/// A change of a user's preferences. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreferencesChange {
    /// Turns pushes on or off; `None` keeps the setting.
    pub push_enabled: Option<bool>,
    /// Replaces all muted authors; `None` keeps them. Applied before `mute`.
    pub muted: Option<Vec<UserKey>>,
    /// Authors to mute. Applied before `unmute`.
    pub mute: Vec<UserKey>,
    /// Authors to unmute.
    pub unmute: Vec<UserKey>,
}

/// The push setting and the muted authors of each user.
#[async_trait]
pub trait Preferences: Send + Sync {
    /// Reads the preferences of each user; the defaults for a user who never changed them.
    async fn of(&self, users: &[UserKey]) -> Result<Vec<herald_model::Preferences>>;

    /// Changes a user's preferences and returns the new ones. Durable on return. Concurrent changes of one user are
    /// applied one after the other; none is lost.
    ///
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) if more than [`MUTED_AUTHORS_MAX`] authors would be muted;
    /// then nothing is changed.
    async fn update(&self, user: UserKey, change: &PreferencesChange) -> Result<herald_model::Preferences>;
}

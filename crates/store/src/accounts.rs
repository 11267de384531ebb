//! Users, their devices and their preferences.

use std::time::Duration;

use async_trait::async_trait;
use herald_model::{
    Address, Device, DeviceId, Disabled, FailingStreak, Registration, UserId, UserKey, time::Timestamp,
};

use crate::{Result, users_cache::KeyUse};

/// Maximum number of devices of one user.
pub const DEVICES_PER_USER_MAX: usize = 32;

/// Maximum number of authors that one user can mute.
pub const MUTED_AUTHORS_MAX: usize = 1_000;

/// The dictionary of users: maps user ids, chosen by clients, to user keys, used inside Herald.
///
/// *Invariant:* a key is never given to another user. An id keeps its key until the user is erased
/// ([`Erasures`](crate::Erasures)); then the key gets a placeholder as its id, and a client that uses the id again
/// gets a new key for it. Keys are dense and start at 1.
#[async_trait]
pub trait Users: Send + Sync {
    /// Reads the keys of users; `None` for an id without a key. Creates no keys. Every returned key is durable.
    async fn find(&self, ids: &[UserId]) -> Result<Vec<Option<UserKey>>>;

    /// Reads the keys of users and creates the missing ones. Durable on return. An id that is repeated in one call, or
    /// interned by concurrent calls, gets one key. [`Full`](crate::ErrorKind::Full) when all 2^32 − 1 keys are in use.
    async fn intern(&self, ids: &[UserId]) -> Result<Vec<UserKey>>;

    /// Reads the ids of users; `None` for a key that does not exist.
    async fn ids(&self, keys: &[UserKey]) -> Result<Vec<Option<UserId>>>;

    /// Reads the greatest key; `None` without users. Keys are dense, so all keys are 1 to this one.
    async fn last_key(&self) -> Result<Option<UserKey>>;

    /// The key of a user, if this process has it in its cache: what [`find`](Self::find) would return without reading
    /// the store.
    fn cached_key(&self, id: &UserId) -> Option<UserKey>;

    /// Begins the use of keys: whoever has checked [`cached_key`](Self::cached_key) after this uses the key until it
    /// drops what this returns. [`Erasures::is_forgotten`](crate::Erasures::is_forgotten) waits for it.
    fn use_keys(&self) -> KeyUse;
}

/// Time for which a webhook secret that was replaced by a registration signs pushes too.
pub const SECRET_OVERLAP: Duration = Duration::from_hours(24);

/// The devices that pushes are sent to.
///
/// A call that takes a [`Registration`] acts only if the device still has its generation: the late result of a push
/// never changes a device that was registered again, or enabled again, after the push was sent.
#[async_trait]
pub trait Devices: Send + Sync {
    /// Registers a device. Durable on return. If the user already has a device with this endpoint, its address is
    /// updated, it is enabled, and its id and registration time (`now`) stay. A webhook secret that this replaces signs
    /// too for [`SECRET_OVERLAP`]. Device ids are never reused.
    ///
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) if the user already has [`DEVICES_PER_USER_MAX`] devices.
    async fn register(&self, user: UserKey, address: Address, now: Timestamp) -> Result<Device>;

    /// Registers a webhook as [`register`](Self::register) does, but keeps the secret of a webhook that is already
    /// registered. A new webhook gets `new_secret`.
    async fn register_webhook(
        &self,
        user: UserKey,
        url: String,
        new_secret: Vec<u8>,
        now: Timestamp,
    ) -> Result<Device>;

    /// Replaces the secret of a webhook; until `previous_expires_at` the secret before it signs too. Durable on return.
    /// Repeating the call with the same secret changes nothing. `None` if the user has no such webhook.
    async fn rotate_secret(
        &self,
        user: UserKey,
        device: DeviceId,
        secret: Vec<u8>,
        previous_expires_at: Timestamp,
    ) -> Result<Option<Device>>;

    /// Enables a device. Durable on return. An enabled device only gets a new generation and no failing streak. `None`
    /// if the user has no such device.
    async fn enable(&self, user: UserKey, device: DeviceId) -> Result<Option<Device>>;

    /// Removes a device. Durable on return. Returns whether the user had this device.
    async fn unregister(&self, user: UserKey, device: DeviceId) -> Result<bool>;

    /// Removes all devices of a user, also those that can't be decoded or decrypted. Durable on return. Returns their
    /// number, at least one if the user had a row of devices that can't be decoded.
    async fn erase(&self, user: UserKey) -> Result<u64>;

    /// Removes a device if this is its current registration. Durable on return. Returns whether it was removed.
    async fn unregister_current(&self, registration: Registration) -> Result<bool>;

    /// Disables a device if this is its current registration. Durable on return. Returns whether it is changed: a
    /// disabled device keeps its reason and time.
    async fn disable(&self, registration: Registration, disabled: Disabled) -> Result<bool>;

    /// Records that a push to a registration failed. Durable on return. Returns the device's failing streak with this
    /// failure; `None` if this is not its current registration.
    async fn record_failure(
        &self,
        registration: Registration,
        now: Timestamp,
    ) -> Result<Option<FailingStreak>>;

    /// Records that a push to a registration succeeded: ends the failing streak. Durable on return.
    async fn record_success(&self, registration: Registration) -> Result<()>;

    /// Lists the devices of each user, oldest registration first; empty for a user without devices. Includes disabled
    /// devices.
    async fn of(&self, users: &[UserKey]) -> Result<Vec<Vec<Device>>>;

    /// Whether any user has a Web Push device. Can read all devices.
    async fn has_web_push(&self) -> Result<bool>;

    /// The VAPID public key that Web Push devices were registered with, as [`set_vapid_key`](Self::set_vapid_key)
    /// recorded it.
    async fn vapid_key(&self) -> Result<Option<Vec<u8>>>;

    /// Records the VAPID public key that Web Push devices are registered with. Durable on return.
    async fn set_vapid_key(&self, public_key: &[u8]) -> Result<()>;

    /// Removes all Web Push devices of all users, in several atomic writes. Durable on return. Returns their number.
    /// Only for use before pushes and registrations start.
    async fn unregister_web_push(&self) -> Result<u64>;
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

    /// Sets a user's preferences to the defaults, also if they can't be decoded. Durable on return.
    async fn erase(&self, user: UserKey) -> Result<()>;
}

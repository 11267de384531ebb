//! Users, their devices and their preferences.

use async_trait::async_trait;
use herald_model::{Address, Device, DeviceId, UserId, UserKey, time::Timestamp};

use crate::Result;

/// The most devices one user can have.
pub const DEVICES_PER_USER_MAX: usize = 32;

/// The most authors one user can mute.
pub const MUTED_AUTHORS_MAX: usize = 1_000;

/// The dictionary of users: the caller's own ids and the numbers used inside the mesh.
#[async_trait]
pub trait Users: Send + Sync {
    /// The keys of users, `None` where Herald never heard of one. Never makes one.
    async fn find(&self, ids: &[UserId]) -> Result<Vec<Option<UserKey>>>;

    /// The keys of users, made where there was none. Durable on return; the same id always has the same key.
    async fn intern(&self, ids: &[UserId]) -> Result<Vec<UserKey>>;

    /// The ids of users, `None` for a key that was never given.
    async fn ids(&self, keys: &[UserKey]) -> Result<Vec<Option<UserId>>>;
}

/// The devices that pushes go to.
#[async_trait]
pub trait Devices: Send + Sync {
    /// Registers a device; the same URL again updates its address and keeps its id.
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) past [`DEVICES_PER_USER_MAX`].
    async fn register(&self, user: UserKey, address: Address, now: Timestamp) -> Result<Device>;

    /// Removes a device; false when the user has no such one.
    async fn unregister(&self, user: UserKey, device: DeviceId) -> Result<bool>;

    /// Each user's devices, oldest first.
    async fn of(&self, users: &[UserKey]) -> Result<Vec<Vec<Device>>>;
}

/// What to change about a user's preferences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreferencesChange {
    /// Pushes on or off; `None`: as it was.
    pub push_enabled: Option<bool>,
    /// Authors to mute.
    pub mute: Vec<UserKey>,
    /// Authors to mute no longer.
    pub unmute: Vec<UserKey>,
}

/// What users want to hear.
#[async_trait]
pub trait Preferences: Send + Sync {
    /// Each user's preferences; the defaults where none were set.
    async fn of(&self, users: &[UserKey]) -> Result<Vec<herald_model::Preferences>>;

    /// Changes some of them and answers with what they are now.
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) past [`MUTED_AUTHORS_MAX`].
    async fn update(&self, user: UserKey, change: &PreferencesChange) -> Result<herald_model::Preferences>;
}

//! The domain types of all services: users ([`UserId`], [`UserKey`]), posts ([`Post`]), lanes ([`Lane`]), channels and
//! devices ([`Channel`], [`Device`]), delivery states ([`DeliveryState`]), API keys ([`ApiKey`], [`Scope`]), sets of
//! recipients ([`Recipients`]) and timestamps ([`time`]); and the encoding of numbers ([`varint`]).
//!
//! This crate depends on no transport and no store.

mod api_key;
mod audience;
mod ids;
mod lane;
mod post;
mod push_ttl;
mod recipients;
pub mod time;
pub mod varint;

pub use api_key::{ApiKey, ApiKeyId, InvalidApiKeyId, KEY_NAME_BYTES_MAX, Scope, Scopes, is_key_name};
pub use audience::{
    Address, Device, DeviceId, Disabled, DisabledReason, FailingStreak, Preferences, PreviousSecret,
    Registration,
};
pub use ids::{
    ChunkId, FollowVersion, InvalidUserId, PostId, USER_ID_BYTES_MAX, UserId, UserKey, is_invisible,
};
pub use lane::{Channel, DeliveryState, Lane, UnknownName};
pub use post::{Post, PostScoped, PushContent};
pub use push_ttl::{PUSH_TTL_MAX, PUSH_TTL_MIN, parse_push_ttl};
pub use recipients::{Keys, MalformedRecipients, Recipients, RecipientsBuilder};

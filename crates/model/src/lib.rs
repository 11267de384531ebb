//! The words that every service shares: who ([`UserId`], [`UserKey`]), what ([`Post`]), in which queue ([`Lane`]), by
//! which way ([`Channel`], [`Device`]), how far ([`DeliveryState`]), for whom ([`Recipients`]), and when ([`time`]); and
//! how numbers are packed into bytes ([`varint`]).
//!
//! Nothing here knows a transport or a store.

mod audience;
mod ids;
mod lane;
mod post;
mod recipients;
pub mod time;
pub mod varint;

pub use audience::{Address, Device, DeviceId, Preferences};
pub use ids::{ChunkId, FollowVersion, InvalidUserId, PostId, USER_ID_BYTES_MAX, UserId, UserKey};
pub use lane::{Channel, DeliveryState, Lane, UnknownName};
pub use post::Post;
pub use recipients::{Keys, MalformedRecipients, Recipients, RecipientsBuilder};

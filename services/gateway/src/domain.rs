//! Pure decisions: what is valid, who of the watchers is meant, what a watcher has seen.

mod device;
mod post;
mod seen;
mod targets;

pub(crate) use device::{WEBHOOK_SECRET_PREFIX, p256dh, web_push_auth, webhook_secret};
pub(crate) use post::{PUSH_TTL_DEFAULT, push_ttl, request_id, text, urls};
pub(crate) use seen::{Seen, WINDOW};
pub(crate) use targets::for_each_watched;

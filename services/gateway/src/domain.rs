//! Pure domain logic: field validation, matching of watchers and recipients, the posts a watcher has seen.

mod device;
mod post;
mod seen;
mod targets;

pub(crate) use device::{
    WEBHOOK_SECRET_PREFIX, parse_overlap, parse_p256dh, parse_web_push_auth, parse_webhook_secret,
    requires_vapid_subject,
};
pub(crate) use post::{
    PUSH_TTL_DEFAULT, check_collapse_key, check_push_data, check_push_title, check_text, check_urls,
    parse_request_id,
};
pub(crate) use seen::{SeenPosts, WATCH_WINDOW};
pub(crate) use targets::for_each_watched_recipient;

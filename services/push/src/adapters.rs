//! Outbound adapters: HTTP to devices.

mod admission;
mod client;
mod dispatcher;
mod payload;
mod request_spans;
mod resolver;
mod sender;
mod shared_vapid;
mod vapid;
mod vapid_key_file;
pub(crate) mod vapid_subject;
mod web_push;
mod webhook;

pub(crate) use client::Client;
pub(crate) use dispatcher::{Dispatcher, Turn, host};
pub(crate) use payload::Push;
pub(crate) use request_spans::RequestSpans;
pub use shared_vapid::public_key;
pub use vapid::Vapid;
pub(crate) use vapid::check_key as check_vapid_key;

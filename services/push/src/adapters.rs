//! The way out: to devices over HTTP, and to what the ledger is made of.

mod client;
mod dispatcher;
mod gates;
mod ledger;
mod payload;
mod resolver;
mod sender;
mod vapid;
mod web_push;
mod webhook;

pub(crate) use dispatcher::Dispatcher;
pub(crate) use ledger::{outcome, recorded};
pub(crate) use payload::Push;
pub use vapid::Vapid;

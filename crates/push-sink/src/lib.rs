//! The other end of a push: a server that receives what Herald sends, checks it as a browser and a careful webhook
//! receiver would, and tells what came. For tests, benchmarks and `herald push-sink`.
//!
//! | path | does |
//! |---|---|
//! | `POST /webhook/{name}` | checks the Standard Webhooks signature: 204, or 401 |
//! | `POST /webpush/{name}` | checks the VAPID token (401), decrypts (400): 201 |
//! | `GET /received` | counts, latencies and the newest entries as JSON |
//!
//! ```no_run
//! # async fn example() -> Result<(), herald_push_sink::Error> {
//! let sink = herald_push_sink::Running::start().await?;
//! let webhook = sink.webhook("phone");
//! println!("{} {}", webhook.url, webhook.secret);
//! // … register it, post something …
//! let entries = sink.wait_for(1).await;
//! println!("{:?}", entries[0].latency);
//! # Ok(())
//! # }
//! ```
//!
//! What it keeps is bounded: the newest [`ENTRIES_MAX`] entries, and the keys of [`SEEN_MAX`] for counting duplicates.

mod entry;
mod keys;
mod server;
mod sink;
mod vapid;

pub use entry::{Entry, Kind, Latencies, Summary};
pub use keys::Keys;
pub use sink::{ENTRIES_MAX, InjectedFailure, Running, SEEN_MAX, Sink, Subscription, Webhook};

/// Why a sink could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be listened on, or the listener failed.
    #[error("can't listen")]
    Listen(#[source] std::io::Error),
    /// The file of the keys can't be read or written.
    #[error("can't use the key file {path}")]
    KeyFile {
        /// Which file.
        path: std::path::PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The file is there and doesn't hold keys.
    #[error("the key file {path} doesn't hold a sink's keys")]
    MalformedKeys {
        /// Which file.
        path: std::path::PathBuf,
    },
    /// The base URL is none.
    #[error("{0:?} is not an http or https URL")]
    BaseUrl(String),
}

//! A server that receives Herald's pushes, verifies them like a push service, a browser or a webhook receiver, and
//! reports them. Used by tests, benchmarks and `herald push-sink`.
//!
//! | route | behaviour |
//! |---|---|
//! | `POST /webhook/{name}` | verifies the Standard Webhooks signature: 204, or 401 |
//! | `POST /webpush/{name}` | verifies the VAPID token (401), decrypts the message (400): 201 |
//! | `GET /received` | counts, latencies and the newest entries as JSON |
//!
//! ```no_run
//! # async fn example() -> Result<(), herald_push_sink::Error> {
//! let sink = herald_push_sink::Running::start().await?;
//! let webhook = sink.webhook("phone");
//! println!("{} {}", webhook.url, webhook.secret);
//! // … register the webhook, submit a post …
//! let entries = sink.wait_for(1).await;
//! println!("{:?}", entries[0].latency);
//! # Ok(())
//! # }
//! ```
//!
//! Memory is bounded: the sink keeps the newest [`ENTRIES_MAX`] entries, and [`SEEN_MAX`] fingerprints to count
//! duplicates.

mod entry;
mod keys;
mod server;
mod sink;
mod vapid;

pub use entry::{Entry, Kind, Latencies, Summary};
pub use keys::Keys;
pub use sink::{ENTRIES_MAX, InjectedFailure, Running, SEEN_MAX, Sink, Subscription, Webhook};

/// An error that prevents the sink from starting or running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener failed.
    #[error("the push sink can't listen on its address")]
    Listen(#[source] std::io::Error),
    /// The key file can't be read or written.
    #[error("key file {path} can't be read or written")]
    KeyFile {
        /// The key file.
        path: std::path::PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// The key file is malformed.
    #[error("key file {path} is malformed: delete it to generate new keys, or give another file")]
    MalformedKeys {
        /// The key file.
        path: std::path::PathBuf,
    },
    /// The base URL is not an absolute http or https URL.
    #[error("{0:?} is not an http or https URL")]
    BaseUrl(String),
}

//! The archive service: writes posts and deletions from POSTS to the store.
//!
//! For each message, [`handler`] parses it and adds it to the next batch; the message is acknowledged after its batch is
//! committed. Until a post is archived, it is read from the stream (`herald_posts::PostReader`).
//!
//! Any number of instances can run: a post is written under its id, so writing it twice changes nothing.

mod config;
mod error;
mod handler;
mod late_posts;
mod metrics;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, Mesh, Topology, Workers, consumers};
use herald_store::{Erasures, Posts, Users};
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::handler::{Archive, Stores};

/// Dependencies of the service.
pub struct Deps {
    /// Connection to the broker. Streams and consumers of `topology` exist.
    pub mesh: Mesh,
    /// Streams and consumers.
    pub topology: Arc<Topology>,
    /// User ids and their keys.
    pub users: Arc<dyn Users>,
    /// Erasures of users.
    pub erasures: Arc<dyn Erasures>,
    /// Posts and request ids.
    pub posts: Arc<dyn Posts>,
    /// Metrics of the service.
    pub metrics: Metrics,
}

/// Runs until `shutdown`, then finishes the messages in flight.
///
/// # Errors
/// [`Error::Stream`] when the store was filled from another POSTS stream.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled in this crate; an `async fn` would be compiled again in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        mesh,
        topology,
        users,
        erasures,
        posts,
        metrics,
    } = deps;
    herald_posts::check_stream_matches_store(&mesh, &*posts).await?;
    let archive = Arc::new(Archive::new(
        Stores {
            users,
            erasures,
            posts,
        },
        metrics,
        config.batch_max,
        shutdown.clone(),
    ));
    let mut workers = Workers::new(mesh, topology, &shutdown);
    for (consumer, in_flight_max) in [
        (consumers::ARCHIVE, config.in_flight_max),
        (
            consumers::redrive(consumers::ConsumerKind::Archive),
            config.redrive_in_flight_max,
        ),
    ] {
        let options = ConsumeOptions {
            in_flight_max,
            batch_max: config.batch_max.min(in_flight_max),
            ..ConsumeOptions::default()
        };
        workers.spawn(consumer, archive.clone(), options)?;
    }
    drop(archive);
    Ok(workers.join().await?)
}

//! The deadletter service: keeps what was given up, tells why, and gives it another chance.
//!
//! The way of a dead letter: an advisory ([`advisories`]) names a message that was given up; the message is copied into DLQ
//! with all that is known about it ([`origin`]); the [`index`] writes it to the store, where operators find it, and gives
//! up in the ledger what it still owed. [`grpc`] shows dead letters and takes orders; [`redrive`] sends dead letters once more to the
//! consumers that had failed on them. The auditor is served here too ([`grpc`]), and goes its rounds ([`continuous_audit`]).
//!
//! *Invariant:* DLQ is the truth and the store follows it: an advisory is acknowledged when DLQ has the dead letter, and a
//! dead letter when the store has it. Both can come again without making a second one.
//!
//! *Invariant:* a dead letter is sent once a round. The round begins in the store before it is sent, and only for one redrive.
//!
//! *Invariant:* each operation is recorded before it does anything.

mod advisories;
mod config;
mod continuous_audit;
mod domain;
mod error;
mod failures;
mod grpc;
mod index;
mod metrics;
mod origin;
mod redrive;
mod wire;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_audit::Auditor;
use herald_mesh::{ConsumeOptions, Mesh, Topology, Workers, consumers};
use herald_proto::{
    DESCRIPTORS,
    v1::{
        audit_service_server::{AuditServiceServer, SERVICE_NAME as AUDIT_SERVICE},
        dead_letter_service_server::{DeadLetterServiceServer, SERVICE_NAME as DEAD_LETTER_SERVICE},
    },
};
use herald_runtime::grpc as grpc_server;
use herald_store::{DeadLetters, Ledger, Users};
use prost_reflect::DescriptorPool;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::{Config, ContinuousAudit};
pub use error::Error;
pub use metrics::Metrics;

use crate::{
    advisories::Advisories,
    failures::Failures,
    grpc::{Api, AuditApi},
    index::Index,
    redrive::Redrives,
};

/// What the service needs from outside.
pub struct Deps {
    /// Where advisories and dead letters come from and go to.
    pub mesh: Mesh,
    /// The consumers to work on, and those whose failures are ours.
    pub topology: Arc<Topology>,
    /// User ids.
    pub users: Arc<dyn Users>,
    /// What became of each delivery.
    pub ledger: Arc<dyn Ledger>,
    /// Dead letters.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// What audits the posts, on request and continuously.
    pub auditor: Auditor,
    /// Where to serve gRPC.
    pub listener: TcpListener,
    /// Counters.
    pub metrics: Metrics,
}

/// Works and serves until `shutdown`, then finishes the messages and calls under way.
///
/// Only one may run on the same store: redrives that an earlier run left under way are gone on with at the start, and two
/// would do so at the same time.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled here; an `async fn` would be compiled again in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        mesh,
        topology,
        users,
        ledger,
        dead_letters,
        auditor,
        listener,
        metrics,
    } = deps;
    let descriptors = DescriptorPool::decode(DESCRIPTORS).map_err(Error::Descriptors)?;
    let mut workers = Workers::new(mesh.clone(), topology.clone(), &shutdown);
    let stop = workers.stop();
    let options = ConsumeOptions {
        in_flight_max: config.in_flight_max,
        batch_max: config.in_flight_max.div_ceil(2),
        paused: None,
    };
    let advisories = Advisories {
        mesh: mesh.clone(),
        topology,
        metrics: metrics.clone(),
    };
    workers.spawn(consumers::DEADLETTER, Arc::new(advisories), options.clone())?;
    let failures = Failures {
        mesh: mesh.clone(),
        dead_letters: dead_letters.clone(),
        ledger: ledger.clone(),
        metrics: metrics.clone(),
    };
    let index = Index {
        dead_letters: dead_letters.clone(),
        failures: failures.clone(),
        metrics: metrics.clone(),
    };
    workers.spawn(consumers::DEAD_LETTERS, Arc::new(index), options)?;

    let continuous_audit = (config.continuous_audit.interval_seconds > 0).then(|| {
        continuous_audit::run(
            config.continuous_audit,
            auditor.clone(),
            metrics.clone(),
            stop.clone(),
        )
    });
    let (redrives, begun) = Redrives::new(
        mesh.clone(),
        dead_letters.clone(),
        failures,
        metrics,
        config.redrive_in_flight_max,
        stop.clone(),
    );
    let api = Api {
        mesh,
        dead_letters,
        ledger,
        users,
        redrives: redrives.clone(),
        descriptors,
        config,
        stop: stop.clone(),
    };
    let mut parts: JoinSet<Result<(), Error>> = JoinSet::new();
    parts.spawn(async move { Ok(workers.join().await?) });
    parts.spawn(async move {
        redrives.run(begun).await;
        Ok(())
    });
    if let Some(continuous_audit) = continuous_audit {
        parts.spawn(async move {
            continuous_audit.await;
            Ok(())
        });
    }
    let audits = AuditApi::new(auditor, stop.clone());
    let routes = Routes::new(DeadLetterServiceServer::new(api)).add_service(AuditServiceServer::new(audits));
    let routes = grpc_server::with_health(routes, &[DEAD_LETTER_SERVICE, AUDIT_SERVICE], &stop).await;
    let serving = grpc_server::serve(listener, routes, stop.clone());
    parts.spawn(async move { serving.await.map_err(Error::Serve) });

    let mut outcome = Ok(());
    while let Some(ended) = parts.join_next().await {
        // One part's failure ends the service: it would be half of one otherwise.
        stop.cancel();
        outcome = outcome.and(ended.map_err(Error::Worker).flatten());
    }
    outcome
}

//! The deadletter service: stores terminated messages with the reason of the failure, and redrives them.
//!
//! The path of a dead letter: a JetStream advisory ([`advisories`]) names a message that was terminated or whose
//! deliveries are exhausted. The service builds an entry from the message and the advisory ([`dlq_entry`]) and
//! publishes the entry to DLQ. The [`index`] writes the entry to the store and marks the pending recipients of its
//! chunk dead in the ledger. [`grpc`] lists dead letters and starts operations. [`redrive`] publishes dead letters
//! again to the consumer that failed.
//!
//! The service also runs audits: on request ([`grpc`]) and continuously ([`continuous_audit`]). It exports and erases
//! all that is held of a user ([`erasures`]).
//!
//! Any number of instances share the store and the streams. All of them index dead letters and serve calls. Redrives,
//! erasures, the continuous audit and retention have a lease each, and its holder does the work ([`leases`]).
//!
//! *Invariant:* DLQ is the source of truth and the store is derived from it. An advisory is acknowledged after its
//! entry is in DLQ; an entry is acknowledged after its dead letter is in the store. Redelivery of either creates no
//! second dead letter.
//!
//! *Invariant:* a dead letter is sent once a round. The store records the new round before the dead letter is sent, and
//! lets only one redrive begin that round.
//!
//! *Invariant:* an operation is in the audit log before it changes a dead letter.

mod advisories;
mod config;
mod continuous_audit;
mod convert;
mod dlq_entry;
mod domain;
mod erasures;
mod error;
mod failure_recorder;
mod grpc;
mod index;
mod leases;
mod metrics;
mod redrive;
mod sampler;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_audit::Auditor;
use herald_mesh::{ConsumeOptions, Mesh, Topology, Workers, consumers};
use herald_proto::{
    DESCRIPTORS,
    v1::{
        audit_service_server::{AuditServiceServer, SERVICE_NAME as AUDIT_SERVICE},
        dead_letter_service_server::{DeadLetterServiceServer, SERVICE_NAME as DEAD_LETTER_SERVICE},
        user_data_service_server::{SERVICE_NAME as USER_DATA_SERVICE, UserDataServiceServer},
    },
};
use herald_runtime::{
    grpc::{self as grpc_server, Listener},
    wait::Waiting,
};
use herald_store::{DeadLetters, Leases, Ledger, Retention, Users};
use herald_user_data::UserData;
use prost_reflect::DescriptorPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::{Config, ContinuousAudit};
pub use error::Error;
pub use metrics::Metrics;

use crate::{
    advisories::AdvisoryHandler,
    erasures::ErasureRunner,
    failure_recorder::FailureRecorder,
    grpc::{Api, AuditApi, UserDataApi},
    index::DlqIndexer,
    leases::LeasedWork,
    redrive::OperationRunner,
};

/// The dependencies of the service.
pub struct Deps {
    /// The connection to the streams.
    pub mesh: Mesh,
    /// The declared consumers. Advisories about other consumers are ignored.
    pub topology: Arc<Topology>,
    /// User ids.
    pub users: Arc<dyn Users>,
    /// Outcomes of deliveries, by chunk.
    pub ledger: Arc<dyn Ledger>,
    /// Dead letters and the audit log.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Who runs redrives, erasures, the continuous audit and retention.
    pub leases: Arc<dyn Leases>,
    /// Removes data past its retention.
    pub retention: Arc<dyn Retention>,
    /// Runs the requested and the continuous audits.
    pub auditor: Auditor,
    /// Exports and erases all that is held of a user.
    pub user_data: UserData,
    /// The socket of the gRPC server.
    pub listener: Listener,
    /// The metrics of the service.
    pub metrics: Metrics,
}

/// Runs until `shutdown`, then finishes the messages and calls in progress.
///
/// # Errors
/// [`Error::Config`] for a configuration out of bounds; another [`Error`] when a task of the service fails.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // The boxed future is compiled in this crate; an `async fn` would be compiled again in each calling crate.
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
        leases,
        retention,
        auditor,
        user_data,
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
    let advisories = AdvisoryHandler {
        mesh: mesh.clone(),
        topology,
        metrics: metrics.clone(),
    };
    workers.spawn(consumers::DEADLETTER, Arc::new(advisories), options.clone())?;
    let recorder = FailureRecorder {
        mesh: mesh.clone(),
        dead_letters: dead_letters.clone(),
        ledger: ledger.clone(),
        metrics: metrics.clone(),
    };
    let index = DlqIndexer {
        dead_letters: dead_letters.clone(),
        recorder: recorder.clone(),
        waiting: Waiting::new("index of dead letters", metrics.waiting.clone()),
        metrics: metrics.clone(),
        stop: stop.clone(),
    };
    workers.spawn(consumers::DEAD_LETTERS, Arc::new(index), options)?;

    let leased = LeasedWork {
        leases,
        duration: config.lease_duration(),
        metrics: metrics.clone(),
        stop: stop.clone(),
    };
    let runner = OperationRunner::new(
        mesh.clone(),
        dead_letters.clone(),
        recorder,
        metrics.clone(),
        config.redrive_in_flight_max,
    );
    let erasures = ErasureRunner::new(user_data, metrics.clone());
    let continuous_audit = config.continuous_audit;
    let sampling = sampler::run(dead_letters.clone(), metrics, stop.clone());
    let api = Api {
        mesh,
        dead_letters,
        ledger,
        users,
        runner: runner.clone(),
        descriptors,
        config,
        stop: stop.clone(),
    };
    let mut tasks: JoinSet<Result<(), Error>> = JoinSet::new();
    tasks.spawn(async move { Ok(workers.join().await?) });
    let mut spawn = |task: BoxFuture<'static, ()>| {
        tasks.spawn(async move {
            task.await;
            Ok(())
        });
    };
    spawn(Box::pin(leased.clone().run_operations(runner)));
    spawn(Box::pin(leased.clone().run_erasures(erasures.clone())));
    spawn(Box::pin(leased.clone().run_retention(retention)));
    if continuous_audit.interval_seconds > 0 {
        let auditor = auditor.clone();
        spawn(Box::pin(leased.run_continuous_audit(continuous_audit, auditor)));
    }
    spawn(Box::pin(sampling));
    let audits = AuditApi::new(auditor, stop.clone());
    let user_data = UserDataApi {
        runner: erasures,
        stop: stop.clone(),
    };
    let routes = Routes::new(DeadLetterServiceServer::new(api))
        .add_service(AuditServiceServer::new(audits))
        .add_service(UserDataServiceServer::new(user_data));
    let serving = grpc_server::serve(
        "deadletter",
        listener,
        routes,
        &[DEAD_LETTER_SERVICE, AUDIT_SERVICE, USER_DATA_SERVICE],
        stop.clone(),
    );
    tasks.spawn(async move { serving.await.map_err(Error::Serve) });

    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        // The failure of one task ends the service: without that task the others can't do their work.
        stop.cancel();
        outcome = outcome.and(ended.map_err(Error::Worker).flatten());
    }
    outcome
}

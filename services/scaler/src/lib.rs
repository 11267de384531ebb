//! The scaler answers KEDA how much work each role has, in seconds of one process.
//!
//! [`adapters`] read the consumers of all workers every second, each from its leader, and sample how many deliveries their
//! messages have. [`domain`] makes of the readings how much work a role has, how fast one process does it, and whether the role is
//! active. [`grpc`] answers KEDA from the newest reading, and [`metrics`] show the same.
//!
//! *Invariant:* what can't be read is an error, never 0. KEDA would scale down for a 0 while the work piles up.

mod adapters;
mod config;
mod domain;
mod error;
mod grpc;
mod metrics;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::future::BoxFuture;
use herald_mesh::{Gate, Mesh, PerLane, Topology, consumers};
use herald_model::Lane;
use herald_proto::{
    SCALER_DESCRIPTORS,
    externalscaler::external_scaler_server::{ExternalScalerServer, SERVICE_NAME},
};
use herald_runtime::grpc::{self as grpc_server, Listener};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use adapters::{Assumptions, Known};
pub use config::{Config, Rates};
pub use error::Error;
pub use metrics::Metrics;

use crate::{
    adapters::Broker,
    domain::{Limits, Monitor, Role, Scope, Snapshot},
    grpc::{Api, Read},
};

/// Dependencies of the service.
pub struct Deps {
    /// Connection to the broker.
    pub mesh: Mesh,
    /// The consumers. They are read, never made.
    pub topology: Arc<Topology>,
    /// How the workers are configured.
    pub workers: Workers,
    /// Listener of the gRPC port.
    pub listener: Listener,
    /// Metrics of the service.
    pub metrics: Metrics,
}

/// What the scaler must know of the configuration of the workers.
#[derive(Debug, Clone, Copy)]
pub struct Workers {
    /// Posts, and slices, that a fan-out process has in flight.
    pub fanout_in_flight_max: PerLane,
    /// Recipients of a slice.
    pub slice_recipients_max: u32,
    /// When fan-out holds a lane back.
    pub gate: Gate,
    /// Chunks that a timeline process has in flight.
    pub timeline_in_flight_max: PerLane,
    /// Posts that a backfill brings.
    pub backfill_posts_max: usize,
    /// Chunks that a push process has in flight in a lane.
    pub push_in_flight_max: usize,
    /// Posts that an archive process has in flight.
    pub archive_in_flight_max: usize,
    /// Posts that an analytics process has in flight.
    pub analytics_posts_in_flight_max: usize,
    /// Events that an analytics process has in flight.
    pub analytics_events_in_flight_max: usize,
}

impl Workers {
    fn in_flight_max(&self) -> BTreeMap<&'static str, usize> {
        let mut all = BTreeMap::from([
            (consumers::ARCHIVE, self.archive_in_flight_max),
            (consumers::ANALYTICS_POSTS, self.analytics_posts_in_flight_max),
            (consumers::ANALYTICS_EVENTS, self.analytics_events_in_flight_max),
        ]);
        for lane in Lane::ALL {
            all.insert(consumers::fanout(lane), self.fanout_in_flight_max.of(lane));
            all.insert(consumers::slice(lane), self.fanout_in_flight_max.of(lane));
            all.insert(consumers::timeline(lane), self.timeline_in_flight_max.of(lane));
            all.insert(consumers::push(lane), self.push_in_flight_max);
        }
        all
    }
}

/// Serves until `shutdown`, then finishes the calls in flight.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled in this crate; an `async fn` would be compiled again in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        mesh,
        topology,
        workers,
        listener,
        metrics,
    } = deps;
    let assumptions = Assumptions {
        post_recipients: config.post_recipients as f64,
        slice_recipients: workers.slice_recipients_max.into(),
        backfill_posts: workers.backfill_posts_max.max(1) as f64,
    };
    let broker = Broker::new(mesh, &topology, assumptions, &config)?;
    let monitor = Monitor::new(Limits {
        keep_active: config.keep_active(),
        rates: Role::ALL.map(|role| (role, config.rates.of(role))).into(),
        rate_factor_max: config.rate_factor_max as f64,
        in_flight_max: workers.in_flight_max(),
        gate: workers.gate,
    });
    let (readings, read) = watch::channel(None);
    let api = Api::new(config.clone(), read, shutdown.clone());
    let routes = Routes::new(ExternalScalerServer::new(api));
    let routes =
        grpc_server::with_reflection(routes, SCALER_DESCRIPTORS, &[SERVICE_NAME]).map_err(Error::Serve)?;
    let reading = read_until(shutdown.clone(), config, broker, monitor, metrics, readings);
    let serving = grpc_server::serve("scaler", listener, routes, &[SERVICE_NAME], shutdown);
    let ((), served) = tokio::join!(reading, serving);
    served.map_err(Error::Serve)
}

/// Reads the consumers at the interval, until the shutdown.
async fn read_until(
    shutdown: CancellationToken,
    config: Config,
    mut broker: Broker,
    mut monitor: Monitor,
    metrics: Metrics,
    readings: watch::Sender<Option<Arc<Read>>>,
) {
    let started = Instant::now();
    let mut ticks = interval(config.read_interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = BTreeSet::new();
    let reading = async {
        loop {
            ticks.tick().await;
            let read = broker.read().await;
            let at = Instant::now();
            let snapshot = monitor.update(at.duration_since(started), &read);
            metrics.show(&snapshot, |state| {
                state.work_seconds(config.target(), config.work_seconds_max as f64)
            });
            log_changes(&mut failing, &snapshot);
            readings.send_replace(Some(Arc::new(Read { at, snapshot })));
        }
    };
    shutdown.run_until_cancelled(reading).await;
}

/// Logs which scopes can't be read any more, in one line for each reason, and which can be read again.
fn log_changes(failing: &mut BTreeSet<Scope>, snapshot: &Snapshot) {
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (scope, state) in snapshot {
        match state {
            Ok(_) => {
                if failing.remove(scope) {
                    tracing::info!(%scope, "the work can be read again");
                }
            }
            Err(failure) => {
                if failing.insert(*scope) {
                    let reason = error::failure_to_status(failure).message().to_owned();
                    reasons.entry(reason).or_default().push(scope.to_string());
                }
            }
        }
    }
    for (reason, scopes) in reasons {
        tracing::warn!(scopes = scopes.join(", "), reason, "the work can't be read");
    }
}

//! Starts nats-server with the streams of the mesh, and the scaler.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use herald_local_nats::Server;
use herald_mesh::{Gate, Mesh, PerLane, Subject, Topology, TopologyConfig};
use herald_model::Lane;
use herald_proto::{
    externalscaler::{
        GetMetricsRequest, MetricValue, ScaledObjectRef, external_scaler_client::ExternalScalerClient,
    },
    mesh_v1::{PostCreated, PushChunk, TimelineChunk},
};
use herald_runtime::metrics::Shared;
use herald_scaler::{Config, Deps, Error, Metrics, Rates, Workers, run};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Timeout of [`until`].
const LIMIT: Duration = Duration::from_secs(30);

/// Chunks of a lane at which fan-out of these tests holds it back.
pub(crate) const GATE: u64 = 8;

pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) mesh: Mesh,
    pub(crate) topology: Arc<Topology>,
}

/// A running scaler and its client.
pub(crate) struct Scaler {
    pub(crate) client: ExternalScalerClient<Channel>,
    pub(crate) channel: Channel,
    shared: Shared,
    shutdown: CancellationToken,
    pub(crate) service: JoinHandle<Result<(), Error>>,
}

impl Drop for Scaler {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Reads often, and takes a scope for idle after a second.
pub(crate) fn config() -> Config {
    Config {
        keep_active_seconds: 1,
        read_interval_ms: 100,
        sample_interval_ms: 100,
        rates: Rates {
            fanout: 1_000,
            timeline: 1_000,
            push: 100,
            archive: 10,
            analytics: 10,
        },
        ..Config::default()
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with_topology(|_| ()).await
    }

    pub(crate) async fn with_topology(change: impl FnOnce(&mut TopologyConfig)) -> Self {
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let mesh = Mesh::connect(&herald_mesh::Config::at(server.client_url()))
            .await
            .unwrap();
        let mut topology = TopologyConfig::default();
        change(&mut topology);
        let topology = Arc::new(Topology::new(&topology).unwrap());
        mesh.ensure(&topology).await.unwrap();
        Self {
            server,
            mesh,
            topology,
        }
    }

    pub(crate) async fn scaler(&self, config: Config) -> Scaler {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::new();
        let shutdown = CancellationToken::new();
        let per_lane = |count| PerLane {
            high: count,
            normal: count,
            low: count,
        };
        // A connection of its own, as a process of its own has.
        let mesh = Mesh::connect(&herald_mesh::Config::at(self.server.client_url())).await;
        let deps = Deps {
            mesh: mesh.unwrap(),
            topology: self.topology.clone(),
            workers: Workers {
                fanout_in_flight_max: per_lane(64),
                slice_recipients_max: 65_536,
                gate: Gate {
                    pending_chunks_max: GATE,
                    ..Gate::default()
                },
                timeline_in_flight_max: per_lane(64),
                backfill_posts_max: 20,
                push_in_flight_max: 32,
                archive_in_flight_max: 512,
                analytics_posts_in_flight_max: 2_048,
                analytics_events_in_flight_max: 8_192,
            },
            listener: listener.into(),
            metrics: shared.register(Metrics::new),
        };
        let service = tokio::spawn(run(config, deps, shutdown.clone()));
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_lazy();
        Scaler {
            client: ExternalScalerClient::new(channel.clone()),
            channel,
            shared,
            shutdown,
            service,
        }
    }

    /// A JetStream client outside the mesh.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.server.client_url()).await.unwrap())
    }

    pub(crate) async fn publish_push(&self, lane: Lane, recipients: u32) {
        let chunk = PushChunk {
            recipient_count: recipients,
            ..PushChunk::default()
        };
        let sent = self.mesh.publish(Subject::PushDeliver(lane), None, &chunk).await;
        sent.unwrap();
    }

    pub(crate) async fn publish_timeline(&self, lane: Lane, recipients: u32) {
        let chunk = TimelineChunk {
            recipient_count: recipients,
            ..TimelineChunk::default()
        };
        let sent = self
            .mesh
            .publish(Subject::TimelineDeliver(lane), None, &chunk)
            .await;
        sent.unwrap();
    }

    pub(crate) async fn publish_post(&self, lane: Lane) {
        let sent = self
            .mesh
            .publish(Subject::PostCreated(lane), None, &PostCreated::default())
            .await;
        sent.unwrap();
    }
}

impl Scaler {
    /// The value of the metric.
    pub(crate) async fn value(&self, object: &ScaledObjectRef) -> Result<MetricValue, Status> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object.clone()),
            metric_name: String::new(),
        };
        let values = self
            .client
            .clone()
            .get_metrics(request)
            .await?
            .into_inner()
            .metric_values;
        assert_eq!(values.len(), 1);
        Ok(values.into_iter().next().unwrap())
    }

    /// The work in seconds.
    pub(crate) async fn work(&self, object: &ScaledObjectRef) -> f64 {
        self.value(object).await.unwrap().metric_value_float
    }

    /// Waits until the work is this many seconds.
    pub(crate) async fn until_work(&self, object: &ScaledObjectRef, seconds: f64) {
        until(&format!("the work is {seconds} s"), async || {
            (self.work(object).await - seconds).abs() < 1e-6
        })
        .await;
    }

    pub(crate) async fn is_active(&self, object: &ScaledObjectRef) -> bool {
        let answer = self.client.clone().is_active(object.clone()).await;
        answer.unwrap().into_inner().result
    }

    /// The code of a call that fails.
    pub(crate) async fn error(&self, object: &ScaledObjectRef) -> Option<Status> {
        let active = self.client.clone().is_active(object.clone()).await;
        let value = self.value(object).await;
        let (active, value) = (active.err()?, value.err()?);
        (active.code() == value.code()).then_some(value)
    }

    pub(crate) async fn until_error(&self, object: &ScaledObjectRef, code: Code) -> Status {
        let mut error = None;
        until(&format!("calls fail with {code:?}"), async || {
            error = self.error(object).await;
            error.as_ref().is_some_and(|error| error.code() == code)
        })
        .await;
        error.unwrap()
    }

    /// The value of a metric of `/metrics`.
    pub(crate) fn metric(&self, name: &str, role: &str, lane: &str) -> Option<f64> {
        let start = format!("herald_scaler_{name}{{role=\"{role}\",lane=\"{lane}\"}} ");
        let text = self.shared.open_metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.map(|value| value.parse().unwrap())
    }
}

/// The trigger of a role in a lane; empty: all lanes.
pub(crate) fn object(role: &str, lane: &str) -> ScaledObjectRef {
    with_metadata(&[("role", role), ("lane", lane), ("targetSeconds", "5")])
}

pub(crate) fn with_metadata(pairs: &[(&str, &str)]) -> ScaledObjectRef {
    let pairs = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    ScaledObjectRef {
        name: "workers".into(),
        namespace: "herald".into(),
        scaler_metadata: pairs.collect(),
    }
}

/// Waits until a condition is true.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    while !condition().await {
        assert!(started.elapsed() < LIMIT, "timed out waiting until {what}");
        interval.tick().await;
    }
}

//! KEDA's contract of an external scaler.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use herald_proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef, external_scaler_server::ExternalScaler,
};
use herald_rpc::status;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    config::Config,
    domain::{Scope, Snapshot, State, Trigger},
    error::{failure_to_status, violation_to_status},
};

/// How long a call waits for the first reading after the start.
const FIRST_READING_WAIT: Duration = Duration::from_secs(3);
/// Age from which a reading is not used any more. Readings are newer than this as long as the service works.
const READING_AGE_MAX: Duration = Duration::from_secs(15);
/// Concurrent StreamIsActive calls, at most. KEDA has one for each trigger.
const STREAMS_MAX: usize = 1_024;
const STREAMS_RETRY_AFTER: Duration = Duration::from_secs(5);

/// The newest readings; `None` before the first.
pub(crate) type Readings = watch::Receiver<Option<Arc<Read>>>;

/// What was read, and when.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) at: Instant,
    pub(crate) snapshot: Snapshot,
}

impl Read {
    fn state(&self, scope: Scope) -> Result<State, Status> {
        let age = self.at.elapsed();
        if age > READING_AGE_MAX {
            let message = format!(
                "the work is not known: the last reading is {} s old",
                age.as_secs()
            );
            return Err(status::unavailable("READING_TOO_OLD", message));
        }
        match self.snapshot.get(&scope) {
            Some(Ok(state)) => Ok(*state),
            Some(Err(failure)) => Err(failure_to_status(failure)),
            None => Err(status::unavailable("NOT_READ", format!("{scope} is not read"))),
        }
    }
}

/// Implements the contract.
pub(crate) struct Api {
    config: Config,
    readings: Readings,
    streams: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Api {
    pub(crate) fn new(config: Config, readings: Readings, shutdown: CancellationToken) -> Self {
        Self {
            config,
            readings,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            shutdown,
        }
    }

    fn trigger(&self, object: &ScaledObjectRef) -> Result<Trigger, Status> {
        Trigger::parse(&object.scaler_metadata, self.config.target())
            .map_err(|violation| violation_to_status(&violation))
    }

    async fn state(&self, scope: Scope) -> Result<State, Status> {
        let mut readings = self.readings.clone();
        let first = timeout(FIRST_READING_WAIT, readings.wait_for(Option::is_some)).await;
        let read = match first {
            Ok(Ok(read)) => read.clone(),
            _ => None,
        };
        let read = read.ok_or_else(|| {
            status::unavailable(
                "NOT_READ",
                "the work is not known: NATS was not read since the start",
            )
        })?;
        read.state(scope)
    }
}

#[tonic::async_trait]
impl ExternalScaler for Api {
    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let trigger = self.trigger(request.get_ref())?;
        let result = self.state(trigger.scope).await?.active;
        Ok(Response::new(IsActiveResponse { result }))
    }

    type StreamIsActiveStream = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = self.trigger(request.get_ref())?;
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| {
            let message = format!("the maximum of {STREAMS_MAX} concurrent StreamIsActive calls is reached");
            status::exhausted("TOO_MANY_STREAMS", message, STREAMS_RETRY_AFTER)
        })?;
        let mut readings = self.readings.clone();
        readings.mark_changed();
        let activations = Activations {
            scope: trigger.scope,
            readings,
            active: false,
            shutdown: self.shutdown.clone(),
            _permit: permit,
        };
        let responses = stream::unfold(Some(activations), |activations| async {
            let mut activations = activations?;
            let response = activations.next().await?;
            // An error ends the stream.
            let next = response.is_ok().then_some(activations);
            Some((response, next))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let trigger = self.trigger(request.get_ref())?;
        let spec = MetricSpec {
            metric_name: trigger.metric_name(),
            target_size: trigger.target_seconds.ceil() as i64,
            target_size_float: trigger.target_seconds,
        };
        Ok(Response::new(GetMetricSpecResponse {
            metric_specs: vec![spec],
        }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let request = request.into_inner();
        // A scaler has one metric for each trigger, so its name needs no check.
        let object = request.scaled_object_ref.unwrap_or_default();
        let trigger = self.trigger(&object)?;
        let state = self.state(trigger.scope).await?;
        let seconds = state.work_seconds(trigger.target_seconds, self.config.work_seconds_max as f64);
        let value = MetricValue {
            metric_name: trigger.metric_name(),
            metric_value: seconds.ceil() as i64,
            metric_value_float: seconds,
        };
        Ok(Response::new(GetMetricsResponse {
            metric_values: vec![value],
        }))
    }
}

/// One StreamIsActive call.
///
/// It sends `true` whenever the scope becomes active, so that a worker is started at once, and never `false`: KEDA would scale
/// the workload down at once, even if another trigger of it is active. KEDA finds out by IsActive that a scope is idle.
struct Activations {
    scope: Scope,
    readings: Readings,
    active: bool,
    shutdown: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Activations {
    async fn next(&mut self) -> Option<Result<IsActiveResponse, Status>> {
        loop {
            let changed = self.shutdown.run_until_cancelled(self.readings.changed()).await?;
            changed.ok()?;
            let read = self.readings.borrow_and_update().clone();
            let Some(read) = read else { continue };
            let active = match read.state(self.scope) {
                Ok(state) => state.active,
                Err(status) => return Some(Err(status)),
            };
            let was_active = std::mem::replace(&mut self.active, active);
            if active && !was_active {
                return Some(Ok(IsActiveResponse { result: true }));
            }
        }
    }
}

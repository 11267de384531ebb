//! MeshService.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, stream};
use herald_mesh::{Mesh, StreamLag, Topology};
use herald_model::time::Timestamp;
use herald_proto::v1::{self, mesh_service_server::MeshService};
use herald_rpc::status;
use herald_runtime::{
    connections::Connection,
    shares::{Share, Shares},
};
use parking_lot::Mutex;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(200);
const INTERVAL_MAX: Duration = Duration::from_mins(1);
/// Maximum number of concurrent WatchLag streams. Each reading sends about twenty requests to the broker.
const WATCHERS_MAX: usize = 64;
const WATCHERS_RETRY_AFTER: Duration = Duration::from_secs(5);
/// Shortest time over which GetLag computes a rate, if it has a reading that old.
const BASELINE_AGE_MIN: Duration = Duration::from_secs(2);
/// Shortest time between two readings that are kept as baselines.
const BASELINE_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// Implements MeshService.
pub(crate) struct MeshApi {
    mesh: Mesh,
    topology: Arc<Topology>,
    /// Readings of GetLag, shared by all callers.
    history: Mutex<AckHistory>,
    watchers: Shares,
    shutdown: CancellationToken,
}

impl MeshApi {
    pub(crate) fn new(mesh: Mesh, topology: Arc<Topology>, shutdown: CancellationToken) -> Self {
        let watchers = Shares::new(WATCHERS_MAX);
        Self {
            mesh,
            topology,
            history: Mutex::default(),
            watchers,
            shutdown,
        }
    }
}

/// Numbers of acknowledged messages at one time.
#[derive(Debug)]
struct AckCounts {
    at: Instant,
    /// Acknowledged messages by stream and consumer.
    acknowledged: HashMap<(String, String), u64>,
}

impl AckCounts {
    fn new(streams: &[StreamLag], at: Instant) -> Self {
        let consumers = streams
            .iter()
            .flat_map(|stream| stream.consumers.iter().map(move |c| (stream, c)));
        let acknowledged = consumers
            .map(|(s, c)| ((s.stream.clone(), c.consumer.clone()), c.acknowledged_count))
            .collect();
        Self { at, acknowledged }
    }

    /// Messages acknowledged per second since the reading; 0 for a new or recreated consumer.
    fn rate_since(&self, stream: &str, consumer: &str, acknowledged: u64, now: Instant) -> f64 {
        let seconds = now.duration_since(self.at).as_secs_f64();
        match self.acknowledged.get(&(stream.into(), consumer.into())) {
            Some(before) if seconds > 0.0 => acknowledged.saturating_sub(*before) as f64 / seconds,
            _ => 0.0,
        }
    }
}

/// The newest readings. A reading of one caller doesn't replace the baseline of another: the rate is computed since
/// the newest reading of at least [`BASELINE_AGE_MIN`], or else since the oldest one.
#[derive(Debug, Default)]
struct AckHistory {
    /// The oldest first: one that may be older than [`BASELINE_AGE_MIN`], and all newer ones.
    readings: VecDeque<AckCounts>,
}

impl AckHistory {
    fn baseline(&self, now: Instant) -> Option<&AckCounts> {
        let mut newest_first = self.readings.iter().rev();
        newest_first
            .find(|reading| now.duration_since(reading.at) >= BASELINE_AGE_MIN)
            .or(self.readings.front())
    }

    /// Adds a reading, unless one of nearly the same time is there.
    fn record(&mut self, reading: AckCounts) {
        let newest = self.readings.back();
        if newest.is_some_and(|newest| reading.at.duration_since(newest.at) < BASELINE_INTERVAL_MIN) {
            return;
        }
        let is_old = |old: &AckCounts| reading.at.duration_since(old.at) >= BASELINE_AGE_MIN;
        while self.readings.get(1).is_some_and(is_old) {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
    }
}

fn to_v1(streams: Vec<StreamLag>, last: Option<&AckCounts>, now: Instant) -> Vec<v1::StreamLag> {
    let consumers = |stream: &StreamLag| {
        let lags = stream.consumers.iter().map(|lag| v1::ConsumerLag {
            consumer: lag.consumer.clone(),
            pending_count: lag.pending_count,
            ack_pending_count: lag.ack_pending_count,
            redelivered_count: lag.redelivered_count,
            waiting_pull_count: lag.waiting_pull_count,
            oldest_age_seconds: lag.oldest_age.as_secs_f64(),
            acknowledged_per_second: last.map_or(0.0, |last| {
                last.rate_since(&stream.stream, &lag.consumer, lag.acknowledged_count, now)
            }),
        });
        lags.collect()
    };
    let streams = streams.into_iter().map(|stream| v1::StreamLag {
        consumers: consumers(&stream),
        message_count: stream.message_count,
        byte_count: stream.byte_count,
        byte_count_max: stream.byte_count_max,
        last_sequence: stream.last_sequence,
        stream: stream.stream,
    });
    streams.collect()
}

/// Reads the lag of each stream and consumer.
async fn read_lag(mesh: &Mesh, topology: &Topology) -> Result<(Vec<StreamLag>, AckCounts), Status> {
    let streams = mesh.lag(topology).await.map_err(|e| status::from_mesh(&e))?;
    let counts = AckCounts::new(&streams, Instant::now());
    Ok((streams, counts))
}

/// One WatchLag stream.
struct LagWatch {
    mesh: Mesh,
    topology: Arc<Topology>,
    last: Option<AckCounts>,
    interval: Interval,
    shutdown: CancellationToken,
    _share: Share,
}

impl LagWatch {
    async fn next(&mut self) -> Option<Result<v1::WatchLagResponse, Status>> {
        self.shutdown.run_until_cancelled(self.interval.tick()).await?;
        Some(match read_lag(&self.mesh, &self.topology).await {
            Ok((streams, counts)) => {
                let streams = to_v1(streams, self.last.as_ref(), counts.at);
                self.last = Some(counts);
                Ok(v1::WatchLagResponse {
                    streams,
                    read_time: Some(herald_proto::timestamp_to_proto(Timestamp::now())),
                })
            }
            Err(status) => Err(status),
        })
    }
}

/// Checks the interval between two readings.
fn parse_interval(requested: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let Some(requested) = requested else {
        return Ok(INTERVAL_DEFAULT);
    };
    match Duration::try_from(requested) {
        Ok(interval) if (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) => Ok(interval),
        _ => Err(status::invalid(&[(
            "interval",
            "must be 200 milliseconds to 1 minute",
        )])),
    }
}

#[tonic::async_trait]
impl MeshService for MeshApi {
    async fn get_lag(&self, _: Request<v1::GetLagRequest>) -> Result<Response<v1::GetLagResponse>, Status> {
        let (streams, counts) = read_lag(&self.mesh, &self.topology).await?;
        let mut history = self.history.lock();
        let streams = to_v1(streams, history.baseline(counts.at), counts.at);
        history.record(counts);
        drop(history);
        Ok(Response::new(v1::GetLagResponse {
            streams,
            read_time: Some(herald_proto::timestamp_to_proto(Timestamp::now())),
        }))
    }

    type WatchLagStream = Pin<Box<dyn Stream<Item = Result<v1::WatchLagResponse, Status>> + Send>>;

    async fn watch_lag(
        &self,
        request: Request<v1::WatchLagRequest>,
    ) -> Result<Response<Self::WatchLagStream>, Status> {
        let caller = Connection::caller_of(request.extensions());
        let mut interval = interval(parse_interval(request.into_inner().interval)?);
        // After a slow reading the missed ticks are skipped.
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let share = self.watchers.try_acquire(caller, 1).ok_or_else(|| {
            let message = format!(
                "the maximum of concurrent WatchLag streams is reached: all callers have {WATCHERS_MAX}, and an address may \
                 have as many as are left for others, a connection half as many"
            );
            status::exhausted("TOO_MANY_WATCHERS", message, WATCHERS_RETRY_AFTER)
        })?;
        let watch = LagWatch {
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            last: None,
            interval,
            shutdown: self.shutdown.clone(),
            _share: share,
        };
        let responses = stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            let response = watch.next().await?;
            // An error ends the stream.
            let next = response.is_ok().then_some(watch);
            Some((response, next))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_bounds() {
        let requested = |seconds, nanos| parse_interval(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(parse_interval(None).unwrap(), INTERVAL_DEFAULT);
        assert_eq!(requested(0, 200_000_000).unwrap(), INTERVAL_MIN);
        assert_eq!(requested(60, 0).unwrap(), INTERVAL_MAX);
        for (seconds, nanos) in [
            (0, 0),
            (0, 199_999_999),
            (60, 1),
            (-1, 0),
            (i64::MAX, 0),
            (1, i32::MIN),
        ] {
            assert_eq!(
                requested(seconds, nanos).unwrap_err().code(),
                tonic::Code::InvalidArgument
            );
        }
    }

    /// The rate of a caller that reads `acknowledged`, and records its reading.
    fn rate(history: &mut AckHistory, acknowledged: u64, at: Instant) -> f64 {
        let rate = history.baseline(at).map_or(0.0, |baseline| {
            baseline.rate_since("POSTS", "archive", acknowledged, at)
        });
        let key = ("POSTS".to_owned(), "archive".to_owned());
        history.record(AckCounts {
            at,
            acknowledged: HashMap::from([(key, acknowledged)]),
        });
        rate
    }

    #[test]
    fn callers_do_not_reset_the_rates_of_each_other() {
        // 100 messages a second are acknowledged, in lots of 100. Two callers read every 2 seconds, 10 ms apart.
        let mut history = AckHistory::default();
        let start = Instant::now();
        for second in (0..20).step_by(2) {
            let at = start + Duration::from_secs(second);
            let first = rate(&mut history, second * 100, at);
            let second_at = at + Duration::from_millis(10);
            let second_rate = rate(&mut history, second * 100, second_at);
            if second > 0 {
                assert!((99.0..=101.0).contains(&first), "{first} after {second} s");
                assert!(
                    (99.0..=101.0).contains(&second_rate),
                    "{second_rate} after {second} s"
                );
            }
        }
    }

    #[test]
    fn the_number_of_readings_is_bounded() {
        let mut history = AckHistory::default();
        let start = Instant::now();
        for n in 0..10_000 {
            rate(&mut history, n, start + Duration::from_millis(n));
            assert!(history.readings.len() <= 12, "{}", history.readings.len());
        }
        // A reading after a pause is the rate of the pause.
        let after = rate(&mut history, 10_000 + 60_000, start + Duration::from_secs(70));
        assert!((999.0..=1001.0).contains(&after), "{after}");
        assert_eq!(history.readings.len(), 2);
    }

    #[test]
    fn a_rate_is_computed_from_two_readings() {
        let at = Instant::now();
        let key = ("POSTS".to_owned(), "archive".to_owned());
        let counts = AckCounts {
            at,
            acknowledged: HashMap::from([(key, 100)]),
        };
        let now = at + Duration::from_secs(2);
        assert!((counts.rate_since("POSTS", "archive", 150, now) - 25.0).abs() < f64::EPSILON);
        assert!(counts.rate_since("POSTS", "other", 150, now).abs() < f64::EPSILON);
        // The count of a recreated consumer starts at 0.
        assert!(counts.rate_since("POSTS", "archive", 3, now).abs() < f64::EPSILON);
        assert!(counts.rate_since("POSTS", "archive", 150, at).abs() < f64::EPSILON);
    }
}

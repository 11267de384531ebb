//! Watches timelines, computes latencies, and waits until the consumers are drained.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use herald_cli::{
    client::{Client, OperatorClient},
    failure::Failure,
};
use herald_model::time::Timestamp;
use herald_proto::v1::{self, watch_timeline_response::Event};
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinSet};

use super::{graph::Graph, load::Submitted};

/// Interval of lag readings while the mesh drains, milliseconds.
const LAG_INTERVAL_MS: i32 = 200;
/// Consecutive readings without lag that count as drained. One reading may fall between the acknowledgement in one
/// stream and the publish to the next.
const DRAINED_READINGS: usize = 2;

/// Observed posts with the time of observation.
pub(super) type Seen = Arc<Mutex<Vec<(u64, Timestamp)>>>;

/// Watches the timelines of some users until dropped.
#[derive(Debug)]
pub(super) struct Watchers {
    _tasks: JoinSet<()>,
    seen: Seen,
}

impl Watchers {
    /// Starts the watchers. On return every watcher has its snapshot, so no later post is missed.
    pub(super) async fn start(client: &Client, users: &[u32]) -> Result<Self, Failure> {
        let seen = Seen::default();
        let mut tasks = JoinSet::new();
        let (started, mut starts) = mpsc::channel(users.len().max(1));
        for user in users {
            let (client, seen, started) = (client.clone(), seen.clone(), started.clone());
            let request = v1::WatchTimelineRequest {
                user_id: Graph::id(*user),
                ..Default::default()
            };
            tasks.spawn(async move {
                let outcome = watch(&client, request, &seen, &started).await;
                if let Err(status) = outcome {
                    // Fails the benchmark during the start; later it only costs samples.
                    let _ = started.try_send(Err(status));
                }
            });
        }
        drop(started);
        for _ in users {
            match starts.recv().await {
                Some(Ok(())) => {}
                Some(Err(status)) => return Err(Failure::from(status)),
                None => {
                    return Err(Failure::failed(
                        "a timeline watch ended before its snapshot".to_owned(),
                    ));
                }
            }
        }
        Ok(Self { _tasks: tasks, seen })
    }

    /// Posts observed so far.
    pub(super) fn seen(&self) -> Vec<(u64, Timestamp)> {
        self.seen.lock().clone()
    }
}

async fn watch(
    client: &Client,
    request: v1::WatchTimelineRequest,
    seen: &Seen,
    started: &mpsc::Sender<Result<(), tonic::Status>>,
) -> Result<(), tonic::Status> {
    let mut stream = client.timelines().watch_timeline(request).await?.into_inner();
    while let Some(answer) = stream.message().await? {
        match answer.event {
            // The receiver may be gone.
            Some(Event::Snapshot(_)) => drop(started.try_send(Ok(()))),
            Some(Event::Entry(entry)) => {
                seen.lock()
                    .push((entry.post.map_or(0, |post| post.post_id), Timestamp::now()));
            }
            Some(Event::Removal(_) | Event::Heartbeat(_)) | None => {}
        }
    }
    Ok(())
}

/// Latencies from the scheduled time of each post, microseconds. A stall of the server thus counts for every delayed
/// post (no coordinated omission).
pub(super) fn latencies(submitted: &[Submitted], seen: &[(u64, Timestamp)]) -> Histogram<u64> {
    let due: HashMap<u64, Timestamp> = submitted.iter().map(|s| (s.post_id, s.scheduled)).collect();
    let mut histogram = histogram();
    for (post, at) in seen {
        if let Some(due) = due.get(post) {
            record(&mut histogram, at.since(*due));
        }
    }
    histogram
}

/// One latency per post: until the last of its watchers has it, microseconds. With one sample per watcher, the few
/// authors with most followers would dominate the percentiles.
pub(super) fn post_latencies(submitted: &[Submitted], seen: &[(u64, Timestamp)]) -> Histogram<u64> {
    let mut last: HashMap<u64, Timestamp> = HashMap::new();
    for (post, at) in seen {
        let last = last.entry(*post).or_insert(*at);
        *last = (*last).max(*at);
    }
    let last: Vec<_> = last.into_iter().collect();
    latencies(submitted, &last)
}

/// Latencies of the SubmitPost answers from the scheduled time, microseconds.
pub(super) fn submit_latencies(submitted: &[Submitted]) -> Histogram<u64> {
    let mut histogram = histogram();
    for s in submitted {
        if let Some(answered) = s.answered {
            record(&mut histogram, answered.since(s.scheduled));
        }
    }
    histogram
}

#[expect(
    clippy::expect_used,
    reason = "an auto-resizing histogram accepts every value"
)]
pub(super) fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram
        .record(latency.as_micros() as u64)
        .expect("the histogram resizes");
}

/// An auto-resizing histogram with three significant digits.
#[expect(clippy::expect_used, reason = "the number of digits is a valid constant")]
pub(super) fn histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new(3).expect("0 to 5 digits are allowed");
    histogram.auto(true);
    histogram
}

/// Waits until the consumers with these name `prefixes` have no pending or unacknowledged messages, and returns since
/// when. Reports the number of messages left to `progress`.
pub(super) async fn wait_drained(
    client: &OperatorClient,
    prefixes: &[&str],
    mut progress: impl FnMut(u64),
) -> Result<Timestamp, Failure> {
    let interval = prost_types::Duration {
        seconds: 0,
        nanos: LAG_INTERVAL_MS * 1_000_000,
    };
    let request = v1::WatchLagRequest {
        interval: Some(interval),
    };
    let mut stream = client
        .mesh()
        .watch_lag(request)
        .await
        .map_err(Failure::from)?
        .into_inner();
    let mut drained_readings = 0;
    let mut drained_since = Timestamp::now();
    while let Some(lag) = stream.message().await.map_err(Failure::from)? {
        let left: u64 = lag
            .streams
            .iter()
            .flat_map(|stream| &stream.consumers)
            .filter(|consumer| {
                prefixes
                    .iter()
                    .any(|prefix| consumer.consumer.starts_with(prefix))
            })
            .map(|consumer| consumer.pending_count + consumer.ack_pending_count)
            .sum();
        progress(left);
        if left > 0 {
            drained_readings = 0;
            continue;
        }
        if drained_readings == 0 {
            drained_since = Timestamp::now();
        }
        drained_readings += 1;
        if drained_readings >= DRAINED_READINGS {
            return Ok(drained_since);
        }
    }
    Err(Failure::failed(
        "the server closed the lag stream; see the server's log".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_starts_at_the_scheduled_time() {
        let submitted = [Submitted {
            post_id: 1,
            author: 0,
            scheduled: Timestamp(1_000),
            answered: Some(Timestamp(3_000)),
        }];
        let seen = [(1, Timestamp(5_000_000)), (2, Timestamp(9))];
        let visible = latencies(&submitted, &seen);
        assert_eq!(visible.len(), 1, "an unknown post is not counted");
        assert!(
            (4_990_000..5_010_000).contains(&visible.max()),
            "{}",
            visible.max()
        );
        assert!((1_990..2_010).contains(&submit_latencies(&submitted).max()));
        let twice = [(1, Timestamp(3_000)), (1, Timestamp(5_000_000))];
        let posts = post_latencies(&submitted, &twice);
        assert_eq!(posts.len(), 1, "a post counts once, with its last watcher");
        assert!((4_990_000..5_010_000).contains(&posts.max()));
    }
}

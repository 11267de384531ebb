//! Lists timelines at a fixed rate while posts are submitted.

use std::{sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use herald_cli::{client::Client, failure::Failure};
use herald_model::time::Timestamp;
use herald_proto::v1;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::task::{JoinHandle, JoinSet};

use super::{
    graph::Graph,
    observe::{self, record},
};

/// Entries of a page.
const PAGE_SIZE: i32 = 50;
/// Lists in flight before the measurement.
const FIRST_LISTS_IN_FLIGHT: usize = 16;

/// What the readers got.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    /// From the scheduled time of a call to its answer, microseconds.
    pub(super) latencies: Histogram<u64>,
    pub(super) sums: Sums,
}

/// Sums over all pages.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Sums {
    pub(super) entries: u64,
    /// Entries without the text of the post.
    pub(super) without_text: u64,
    /// Pages that said that the timeline was being rebuilt.
    pub(super) rebuilding: u64,
}

/// Lists timelines until it is stopped.
pub(super) struct Readers {
    task: JoinHandle<Result<Reads, Failure>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Readers {
    /// Lists each timeline once, as every user with a client has done before, and then `rate` timelines a second.
    pub(super) async fn start(client: Client, users: Vec<u32>, rate: f64) -> Result<Self, Failure> {
        for users in users.chunks(FIRST_LISTS_IN_FLIGHT) {
            let lists = users.iter().map(|user| list(client.clone(), *user));
            futures::future::try_join_all(lists).await?;
        }
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(list_at_rate(client, users.into(), rate, stopped));
        Ok(Self { task, stop })
    }

    /// Stops and returns what the readers got.
    pub(super) async fn stop(self) -> Result<Reads, Failure> {
        self.stop.send_replace(true);
        let failed = |error| Failure::failed(format!("the readers failed: {error}"));
        self.task.await.map_err(failed)?
    }
}

/// An open loop: a call does not wait for earlier answers.
async fn list_at_rate(
    client: Client,
    users: Arc<[u32]>,
    rate: f64,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) -> Result<Reads, Failure> {
    let mut random = StdRng::seed_from_u64(1);
    let (start, start_time) = (tokio::time::Instant::now(), Timestamp::now());
    let mut calls = JoinSet::new();
    let mut reads = Reads {
        latencies: observe::histogram(),
        sums: Sums::default(),
    };
    let mut add = |call: Result<Result<(Duration, Sums), Failure>, tokio::task::JoinError>| {
        let (latency, sums) =
            call.map_err(|error| Failure::failed(format!("a reader failed: {error}")))??;
        record(&mut reads.latencies, latency);
        reads.sums.entries += sums.entries;
        reads.sums.without_text += sums.without_text;
        reads.sums.rebuilding += sums.rebuilding;
        Ok::<_, Failure>(())
    };
    for call in 0_u64.. {
        let after = Duration::from_secs_f64(call as f64 / rate);
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            () = tokio::time::sleep_until(start + after) => {}
        }
        let scheduled = start_time.plus(after);
        let (client, user) = (client.clone(), users[random.random_range(0..users.len())]);
        calls.spawn(async move {
            let sums = list(client, user).await?;
            Ok::<_, Failure>((Timestamp::now().since(scheduled), sums))
        });
        while let Some(call) = calls.try_join_next() {
            add(call)?;
        }
    }
    while let Some(call) = calls.join_next().await {
        add(call)?;
    }
    Ok(reads)
}

async fn list(client: Client, user: u32) -> Result<Sums, Failure> {
    let request = client.request(v1::ListTimelineRequest {
        user_id: Graph::id(user),
        page_size: PAGE_SIZE,
        page_token: String::new(),
    });
    let page = client.timelines().list_timeline(request).await?.into_inner();
    let has_text = |entry: &&v1::TimelineEntry| entry.post.as_ref().is_some_and(|post| !post.text.is_empty());
    let entries = page.entries.len() as u64;
    Ok(Sums {
        entries,
        without_text: entries - page.entries.iter().filter(has_text).count() as u64,
        rebuilding: page.rebuilding.into(),
    })
}

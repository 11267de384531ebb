//! Waits until the mesh has drained.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use harness::Clients;
use herald_proto::v1;
use tonic::Status;

use crate::{
    workload::{AcceptedPost, Journal},
    world::World,
};

/// Time limit for all accepted posts to settle after the last fault; includes AckWait and back-off.
const LIMIT: Duration = Duration::from_mins(3);
const INTERVAL: Duration = Duration::from_millis(200);
/// Posts that stay unsettled for this long without any message left are stuck.
const STUCK: Duration = Duration::from_secs(12);
const CALLS: usize = 32;

/// Returns the work that is left after [`LIMIT`], or the posts that are stuck.
pub(super) async fn wait(world: &World, journal: &Journal) -> Remaining {
    let clients = world.patient_clients();
    let posts = journal.posts();
    let mut left = Remaining::Work(vec!["the lag could not be read".to_owned()]);
    let mut changed_at = Instant::now();
    let started = changed_at;
    loop {
        let now = match unsettled(&clients, &posts).await {
            Ok(now) => now,
            Err(status) => Remaining::Work(vec![format!("{status:?}")]),
        };
        if now != left || matches!(now, Remaining::Work(_)) {
            changed_at = Instant::now();
        }
        left = now;
        let over = match &left {
            Remaining::Nothing => true,
            Remaining::Posts(_) => changed_at.elapsed() > STUCK || started.elapsed() > LIMIT,
            Remaining::Work(_) => started.elapsed() > LIMIT,
        };
        if over {
            return left;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Work that is left.
#[derive(PartialEq, Eq)]
pub(super) enum Remaining {
    Nothing,
    /// Consumers have messages left.
    Work(Vec<String>),
    /// No messages are left, but these posts are not settled.
    Posts(Vec<String>),
}

impl Remaining {
    /// Report lines; none if the mesh has drained.
    pub(super) fn into_lines(self) -> Vec<String> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Work(what) | Self::Posts(what) => what,
        }
    }
}

async fn unsettled(clients: &Clients, posts: &[AcceptedPost]) -> Result<Remaining, Status> {
    let lag = clients.mesh().get_lag(v1::GetLagRequest {}).await?.into_inner();
    // Messages in LATER, for a minute at most, belong to no consumer.
    let later = lag.streams.iter().find(|stream| stream.stream == "LATER");
    if let Some(waiting) = later
        .map(|stream| stream.message_count)
        .filter(|count| *count > 0)
    {
        return Ok(Remaining::Work(vec![format!(
            "LATER has {waiting} delayed messages"
        )]));
    }
    let busy: Vec<_> = lag
        .streams
        .iter()
        .flat_map(|stream| &stream.consumers)
        .filter(|consumer| consumer.pending_count + consumer.ack_pending_count > 0)
        .map(|consumer| {
            format!(
                "consumer {} has {} pending and {} unacknowledged messages",
                consumer.consumer, consumer.pending_count, consumer.ack_pending_count
            )
        })
        .collect();
    if !busy.is_empty() {
        return Ok(Remaining::Work(busy));
    }
    let unsettled: Vec<Option<String>> = stream::iter(posts.iter().map(|post| post.id))
        .map(|post_id| async move {
            let request = v1::GetDeliveryRequest { post_id };
            let delivery = clients.deliveries().get_delivery(request).await?.into_inner();
            let pending: u64 = delivery
                .channels
                .iter()
                .map(|channel| channel.pending_count)
                .sum();
            let unsettled = !delivery.planned || pending > 0;
            Ok::<_, Status>(unsettled.then(|| {
                format!(
                    "post {post_id} is not settled: planned {}, {pending} deliveries pending",
                    delivery.planned
                )
            }))
        })
        .buffer_unordered(CALLS)
        .try_collect()
        .await?;
    let mut unsettled: Vec<String> = unsettled.into_iter().flatten().collect();
    unsettled.sort_unstable();
    Ok(if unsettled.is_empty() {
        Remaining::Nothing
    } else {
        Remaining::Posts(unsettled)
    })
}

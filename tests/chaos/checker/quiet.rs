//! Waits until nothing is left to do.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use harness::Clients;
use herald_proto::v1;
use tonic::Status;

use crate::{
    workload::{Journal, Posted},
    world::World,
};

/// For everything that was accepted to settle after the last fault: AckWait, back-off, and the work itself.
const LIMIT: Duration = Duration::from_mins(3);
const INTERVAL: Duration = Duration::from_millis(200);
/// Posts that stay unsettled for so long while no consumer has anything to do, and nothing waits, will stay so for ever.
const STUCK: Duration = Duration::from_secs(12);
const CALLS: usize = 32;

/// What is not settled in the end.
pub(super) async fn wait(world: &World, journal: &Journal) -> Vec<String> {
    let clients = world.clients();
    let posts = journal.posts();
    let mut left = Left::Work(vec!["nothing could be read".to_owned()]);
    let mut changed_at = Instant::now();
    let started = changed_at;
    loop {
        let now = match unsettled(&clients, &posts).await {
            Ok(now) => now,
            Err(status) => Left::Work(vec![format!("{status:?}")]),
        };
        if now != left || matches!(now, Left::Work(_)) {
            changed_at = Instant::now();
        }
        left = now;
        match left {
            Left::Nothing => return Vec::new(),
            Left::Posts(posts) if changed_at.elapsed() > STUCK => return posts,
            Left::Posts(what) | Left::Work(what) if started.elapsed() > LIMIT => return what,
            Left::Posts(_) | Left::Work(_) => {}
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What is not settled.
#[derive(PartialEq, Eq)]
enum Left {
    Nothing,
    /// Consumers have something to do.
    Work(Vec<String>),
    /// They don't, and these posts are not settled.
    Posts(Vec<String>),
}

async fn unsettled(clients: &Clients, posts: &[Posted]) -> Result<Left, Status> {
    let lag = clients.mesh().get_lag(v1::GetLagRequest {}).await?.into_inner();
    // Messages that wait there for their time, a minute at most here, are in nobody's hands.
    let later = lag.streams.iter().find(|stream| stream.stream == "LATER");
    if let Some(waiting) = later
        .map(|stream| stream.message_count)
        .filter(|count| *count > 0)
    {
        return Ok(Left::Work(vec![format!("{waiting} messages wait in LATER")]));
    }
    let busy: Vec<_> = lag
        .streams
        .iter()
        .flat_map(|stream| &stream.consumers)
        .filter(|consumer| consumer.pending_count + consumer.ack_pending_count > 0)
        .map(|consumer| {
            format!(
                "{} has {} pending and {} unacknowledged",
                consumer.consumer, consumer.pending_count, consumer.ack_pending_count
            )
        })
        .collect();
    if !busy.is_empty() {
        return Ok(Left::Work(busy));
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
                    "post {post_id}: planned {}, {pending} deliveries pending",
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
        Left::Nothing
    } else {
        Left::Posts(unsettled)
    })
}

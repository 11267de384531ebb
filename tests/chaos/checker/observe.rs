//! Reads the complete state of the mesh.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use futures::{StreamExt, TryStreamExt, stream};
use harness::Clients;
use herald_mesh::{Mesh, RawMessage, streams};
use herald_proto::{mesh_v1::TimelineChunk, v1};
use jiff::Timestamp;
use tonic::{Code, Status};

use super::expect::Moments;
use crate::{
    workload::{Journal, READERS, reader},
    world::{Receipts, World},
};

const CALLS: usize = 32;
/// Time limit for reads that fail because something is away.
const LIMIT: Duration = Duration::from_mins(2);
const INTERVAL: Duration = Duration::from_millis(500);

/// Observed state of the mesh.
pub(super) struct Observed {
    /// By post id.
    pub(super) posts: HashMap<u64, PostState>,
    /// By reader: post id and text, newest first.
    pub(super) timelines: Vec<Vec<(u64, String)>>,
    /// By post id.
    pub(super) moments: HashMap<u64, Moments>,
    /// By device and post id.
    pub(super) received: HashMap<(String, u64), Receipts>,
    /// Messages in POSTS.
    pub(super) posts_messages: u64,
    /// Deletions among the messages in POSTS.
    pub(super) deletion_messages: u64,
    /// Analytics totals over all posts.
    pub(super) totals: v1::Totals,
}

/// State of a post in the archive, the ledger and analytics.
pub(super) struct PostState {
    /// The archive no longer has the post.
    pub(super) deleted: bool,
    pub(super) timeline: v1::ChannelDelivery,
    pub(super) push: v1::ChannelDelivery,
    /// States by reader number.
    pub(super) timeline_states: HashMap<usize, v1::DeliveryState>,
    pub(super) push_states: HashMap<usize, v1::DeliveryState>,
    /// Recipients that are listed twice or are no readers.
    pub(super) unexpected_recipients: Vec<String>,
    pub(super) stats: Option<v1::Totals>,
}

/// Reads the state. A read that a busy machine fails is repeated, as clients do.
///
/// # Errors
/// The state can't be read within [`LIMIT`], or a read fails for good.
pub(super) async fn read_all(world: &World, journal: &Journal) -> Result<Observed, Status> {
    let started = Instant::now();
    loop {
        match read_once(world, journal).await {
            Err(status) if status.code() == Code::Unavailable && started.elapsed() < LIMIT => {
                world
                    .log
                    .print(format!("the state is read again: {}", status.message()));
                tokio::time::sleep(INTERVAL).await;
            }
            read => return read,
        }
    }
}

async fn read_once(world: &World, journal: &Journal) -> Result<Observed, Status> {
    let clients = world.patient_clients();
    let posts = stream::iter(journal.posts())
        .map(|post| {
            let clients = clients.clone();
            async move { Ok::<_, Status>((post.id, read_post(&clients, post.id).await?)) }
        })
        .buffer_unordered(CALLS)
        .try_collect()
        .await?;
    let timelines = stream::iter(0..READERS)
        .map(|r| read_timeline(clients.clone(), reader(r)))
        .buffered(CALLS)
        .try_collect()
        .await?;
    let lag = clients.mesh().get_lag(v1::GetLagRequest {}).await?.into_inner();
    let of_posts = lag.streams.iter().find(|stream| stream.stream == "POSTS");
    let totals = clients
        .analytics()
        .get_totals(v1::GetTotalsRequest::default())
        .await?;
    Ok(Observed {
        posts,
        timelines,
        moments: read_moments(world).await?,
        received: world.sink.received(),
        deletion_messages: deletion_messages(world).await?,
        posts_messages: of_posts.map_or(0, |stream| stream.message_count),
        totals: totals.into_inner().totals.unwrap_or_default(),
    })
}

/// Reads the timestamps of posts and of their first chunks.
async fn read_moments(world: &World) -> Result<HashMap<u64, Moments>, Status> {
    let read = async {
        let config = herald_mesh::Config {
            urls: world.nats.cluster.urls().split(',').map(Into::into).collect(),
            ..herald_mesh::Config::default()
        };
        let mesh = Mesh::connect(&config).await?;
        let scan = async |stream, filter| {
            let last = mesh.last_sequence(stream).await?;
            let messages = mesh.scan(stream, Some(filter), 1, last);
            messages.try_collect::<Vec<RawMessage>>().await
        };
        let posts = scan(streams::POSTS, "post.v1.created.*").await?;
        let mut moments: HashMap<u64, Moments> = posts
            .into_iter()
            .map(|post| {
                let moments = Moments {
                    accepted_at: stored_at(&post),
                    pinned_by: None,
                };
                (post.sequence, moments)
            })
            .collect();
        for message in scan(streams::TIMELINE, "timeline.v1.deliver.*").await? {
            // The suite publishes undecodable messages too.
            let Ok(chunk) = message.decode::<TimelineChunk>() else {
                continue;
            };
            if let Some(moments) = moments.get_mut(&chunk.post_id) {
                let at = stored_at(&message);
                moments.pinned_by = Some(moments.pinned_by.map_or(at, |first| first.min(at)));
            }
        }
        Ok::<_, herald_mesh::Error>(moments)
    };
    read.await.map_err(|error| Status::unavailable(error.to_string()))
}

fn stored_at(message: &RawMessage) -> Timestamp {
    Timestamp::from_microsecond(message.published_at.0).expect("a time of this run")
}

/// Counts deletions with the broker's API.
async fn deletion_messages(world: &World) -> Result<u64, Status> {
    let counted = async {
        let broker = jetstream::new(world.nats.cluster.client().await?);
        let stream = broker.get_stream("POSTS").await?;
        let mut subjects = stream.info_with_subjects("post.v1.deleted.*").await?;
        let mut count = 0;
        while let Some((_, messages)) = subjects.try_next().await? {
            count += messages as u64;
        }
        Ok::<_, async_nats::Error>(count)
    };
    counted
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}

async fn read_post(clients: &Clients, post_id: u64) -> Result<PostState, Status> {
    let request = v1::GetDeliveryRequest { post_id };
    let delivery = clients.deliveries().get_delivery(request).await?.into_inner();
    let of = |channel| {
        let found = delivery
            .channels
            .iter()
            .find(|counts| counts.channel() == channel);
        found.cloned().unwrap_or_default()
    };
    let mut unexpected_recipients = Vec::new();
    let timeline_states = read_states(
        clients,
        post_id,
        v1::Channel::Timeline,
        &mut unexpected_recipients,
    )
    .await?;
    let push_states = read_states(clients, post_id, v1::Channel::Push, &mut unexpected_recipients).await?;
    let stats = clients
        .analytics()
        .get_post_stats(v1::GetPostStatsRequest { post_id })
        .await;
    let stats = match stats {
        Ok(stats) => stats.into_inner().totals,
        Err(status) if status.code() == tonic::Code::NotFound => None,
        Err(status) => return Err(status),
    };
    let deleted = match clients.posts().get_post(v1::GetPostRequest { post_id }).await {
        Ok(_) => false,
        Err(status) if status.code() == tonic::Code::NotFound => true,
        Err(status) => return Err(status),
    };
    Ok(PostState {
        deleted,
        timeline: of(v1::Channel::Timeline),
        push: of(v1::Channel::Push),
        timeline_states,
        push_states,
        unexpected_recipients,
        stats,
    })
}

/// States of the recipients of a post on one channel. Duplicate and unknown recipients go to `unexpected_recipients`.
async fn read_states(
    clients: &Clients,
    post_id: u64,
    channel: v1::Channel,
    unexpected_recipients: &mut Vec<String>,
) -> Result<HashMap<usize, v1::DeliveryState>, Status> {
    let mut states = HashMap::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListRecipientsRequest {
            post_id,
            channel: channel.into(),
            page_size: 1_000,
            page_token,
            ..Default::default()
        };
        let page = clients.deliveries().list_recipients(request).await?.into_inner();
        for recipient in page.recipients {
            let state = recipient.state();
            let number = recipient
                .user_id
                .strip_prefix("reader")
                .and_then(|n| n.parse().ok());
            let known = number.filter(|n| *n < READERS);
            if known.is_none_or(|n| states.insert(n, state).is_some()) {
                unexpected_recipients.push(recipient.user_id);
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(states);
        }
    }
}

/// Reads a whole timeline, again while it is being rebuilt.
async fn read_timeline(clients: Clients, user_id: String) -> Result<Vec<(u64, String)>, Status> {
    let started = Instant::now();
    loop {
        if let Some(entries) = read_complete_timeline(&clients, &user_id).await? {
            return Ok(entries);
        }
        if started.elapsed() > LIMIT {
            return Err(Status::deadline_exceeded(format!(
                "the timeline of {user_id} is still being rebuilt"
            )));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// `None` while the timeline is being rebuilt.
async fn read_complete_timeline(
    clients: &Clients,
    user_id: &str,
) -> Result<Option<Vec<(u64, String)>>, Status> {
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListTimelineRequest {
            user_id: user_id.to_owned(),
            page_size: 200,
            page_token,
        };
        let page = clients.timelines().list_timeline(request).await?.into_inner();
        if page.rebuilding {
            return Ok(None);
        }
        entries.extend(
            page.entries
                .into_iter()
                .filter_map(|entry| entry.post)
                .map(|post| (post.post_id, post.text)),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(Some(entries));
        }
    }
}

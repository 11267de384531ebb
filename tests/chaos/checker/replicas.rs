//! Replicas agree: each server of the cluster, made the leader of POSTS in turn, tells the same posts.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use async_nats::{Client, jetstream};
use futures::{StreamExt, TryStreamExt, stream};
use harness::until_some;
use serde_json::Value;

use crate::world::{World, name};

const STREAM: &str = "POSTS";
/// To elect a leader, and to catch up.
const LIMIT: Duration = Duration::from_mins(1);
const READS: usize = 64;

/// What one server has of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Copy {
    first: u64,
    last: u64,
    messages: u64,
    digest: u64,
}

/// What is different.
pub(super) async fn disagreements(world: &World) -> Vec<String> {
    let size = world.nats.servers.len();
    if size == 1 {
        return Vec::new();
    }
    let client = world.nats.client().await.expect("a server answers");
    let mut copies = Vec::new();
    for server in 0..size {
        lead(world, &client, server).await;
        copies.push(copy(&client).await);
    }
    let differ = copies.iter().any(|copy| *copy != copies[0]);
    if differ {
        copies
            .iter()
            .enumerate()
            .map(|(server, copy)| format!("{} has {copy:?}", name(server)))
            .collect()
    } else {
        world
            .log
            .say(format!("{size} replicas of {STREAM} agree: {:?}", copies[0]));
        Vec::new()
    }
}

/// Makes a server the leader.
async fn lead(world: &World, client: &Client, server: usize) {
    let what = format!("{} leads {STREAM}", name(server));
    until_some(&what, LIMIT, || async {
        if world.nats.leader(STREAM).await == Some(server) {
            return Some(());
        }
        let placement = format!("{{\"placement\":{{\"preferred\":\"{}\"}}}}", name(server));
        let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}");
        // A replica that is behind can't lead yet; it is tried again.
        let _ = client.request(subject, placement.into()).await;
        None
    })
    .await;
}

/// Reads what the leader has: `STREAM.MSG.GET` is answered by it alone.
async fn copy(client: &Client) -> Copy {
    let broker = jetstream::new(client.clone());
    let state = until_some("the leader tells the stream's state", LIMIT, || async {
        let stream = broker.get_stream(STREAM).await.ok()?;
        Some(stream.cached_info().state.clone())
    })
    .await;
    let digests: Vec<u64> = stream::iter(state.first_sequence..=state.last_sequence)
        .map(|sequence| message_digest(client, sequence))
        .buffered(READS)
        .try_collect()
        .await
        .expect("every message can be read");
    let mut hasher = DefaultHasher::new();
    digests.hash(&mut hasher);
    Copy {
        first: state.first_sequence,
        last: state.last_sequence,
        messages: state.messages,
        digest: hasher.finish(),
    }
}

async fn message_digest(client: &Client, sequence: u64) -> Result<u64, async_nats::Error> {
    let request = format!("{{\"seq\":{sequence}}}");
    let answer = client
        .request(format!("$JS.API.STREAM.MSG.GET.{STREAM}"), request.into())
        .await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    let message = &answer["message"];
    let mut hasher = DefaultHasher::new();
    for field in ["subject", "seq", "hdrs", "data", "time"] {
        message[field].to_string().hash(&mut hasher);
    }
    Ok(hasher.finish())
}

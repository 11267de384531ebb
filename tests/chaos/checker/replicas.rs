//! Replicas: each server of the cluster is made leader of POSTS in turn and must return the same messages.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use async_nats::{Client, jetstream};
use futures::{StreamExt, TryStreamExt, stream};
use harness::until_some;
use serde_json::Value;

use crate::world::World;

const STREAM: &str = "POSTS";
/// Time limit for the election of a leader, including its catch-up.
const LIMIT: Duration = Duration::from_mins(1);
const READS: usize = 64;

/// Content of a stream on one server.
#[derive(Debug, PartialEq, Eq)]
struct Replica {
    first: u64,
    last: u64,
    messages: u64,
    digest: u64,
}

/// Differences between the replicas; empty if they agree.
pub(super) async fn find_differences(world: &World) -> Vec<String> {
    let size = world.nats.cluster.size();
    if size == 1 {
        return Vec::new();
    }
    let client = world.nats.cluster.client().await.expect("a server answers");
    let mut replicas = Vec::new();
    for server in 0..size {
        make_leader(world, &client, server).await;
        replicas.push(read_replica(&client).await);
    }
    let differ = replicas.iter().any(|replica| *replica != replicas[0]);
    if differ {
        replicas
            .iter()
            .enumerate()
            .map(|(server, replica)| format!("{} has {replica:?}", world.nats.cluster.name(server)))
            .collect()
    } else {
        world
            .log
            .print(format!("{size} replicas of {STREAM} agree: {:?}", replicas[0]));
        Vec::new()
    }
}

/// Makes a server the leader of [`STREAM`].
async fn make_leader(world: &World, client: &Client, server: usize) {
    let name = world.nats.cluster.name(server);
    let what = format!("{name} leads {STREAM}");
    until_some(&what, LIMIT, || async {
        if world.nats.cluster.leader(STREAM).await == Some(server) {
            return Some(());
        }
        let placement = format!("{{\"placement\":{{\"preferred\":\"{name}\"}}}}");
        let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}");
        // A lagging replica can't become leader yet; the request is repeated.
        let _ = client.request(subject, placement.into()).await;
        None
    })
    .await;
}

/// Reads the stream from its leader: only the leader answers `STREAM.MSG.GET`.
async fn read_replica(client: &Client) -> Replica {
    let broker = jetstream::new(client.clone());
    let state = until_some("the leader reports the stream's state", LIMIT, || async {
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
    Replica {
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

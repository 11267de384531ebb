//! ImportFollows.

use futures::StreamExt as _;
use herald_proto::v1;
use herald_rpc::status;
use herald_store::{FollowAction, FollowChange, FollowEffect};
use tonic::{Status, Streaming};

use crate::{domain, graph::Graph};

/// Maximum number of follows in one message.
const BATCH_FOLLOWS_MAX: usize = 10_000;

/// Follows of an import that are applied together.
const COMMIT_FOLLOWS_MAX: usize = 1_000;

/// Maximum number of failures that a response lists; further failures are only counted.
const FAILURES_MAX: usize = 1_000;

/// Maximum number of messages that are applied together.
const MESSAGES_JOINED_MAX: usize = 1_000;

/// Applies the batches in the order sent. Those that have arrived by now are applied together: a caller who sends each
/// follow in a message of its own would else wait for a write of the store a follow.
pub(crate) async fn import(
    graph: &Graph,
    batches: Streaming<v1::ImportFollowsRequest>,
) -> Result<v1::ImportFollowsResponse, Status> {
    let mut response = v1::ImportFollowsResponse::default();
    let mut arrived = batches.ready_chunks(MESSAGES_JOINED_MAX);
    let mut joined = Vec::new();
    let mut index = 0_u64;
    while let Some(messages) = arrived.next().await {
        for message in messages {
            let refused = match message {
                Ok(batch) if batch.follows.len() <= BATCH_FOLLOWS_MAX => {
                    if joined.len() + batch.follows.len() > BATCH_FOLLOWS_MAX {
                        apply_joined(graph, &mut joined, &mut index, &mut response).await?;
                    }
                    joined.extend(batch.follows);
                    continue;
                }
                Ok(batch) => {
                    let description = format!(
                        "must contain at most {BATCH_FOLLOWS_MAX} follows, contains {}",
                        batch.follows.len()
                    );
                    status::invalid(&[("follows", &description)])
                }
                Err(status) => status,
            };
            // Batches before it remain applied.
            apply_joined(graph, &mut joined, &mut index, &mut response).await?;
            return Err(refused);
        }
        apply_joined(graph, &mut joined, &mut index, &mut response).await?;
    }
    Ok(response)
}

async fn apply_joined(
    graph: &Graph,
    joined: &mut Vec<v1::Follow>,
    index: &mut u64,
    response: &mut v1::ImportFollowsResponse,
) -> Result<(), Status> {
    let follows = std::mem::take(joined);
    if follows.is_empty() {
        return Ok(());
    }
    let first = *index;
    *index += follows.len() as u64;
    apply_batch(graph, follows, first, response).await
}

async fn apply_batch(
    graph: &Graph,
    follows: Vec<v1::Follow>,
    first: u64,
    response: &mut v1::ImportFollowsResponse,
) -> Result<(), Status> {
    let mut valid = Vec::with_capacity(follows.len());
    for (at, follow) in (first..).zip(follows) {
        match domain::parse_follow(follow) {
            Ok(follow) => valid.push(follow),
            Err(violation) => {
                response.failed_count += 1;
                if response.failures.len() < FAILURES_MAX {
                    response.failures.push(v1::ImportFailure {
                        index: at,
                        status: Some(status::to_proto(&super::violation_to_status(&violation, ""))),
                    });
                }
            }
        }
    }
    for part in valid.chunks(COMMIT_FOLLOWS_MAX) {
        let effects = graph.pace.bulk(apply_follows(graph, part)).await?;
        let imported = effects.iter().filter(|effect| effect.changed).count() as u64;
        response.imported_count += imported;
        response.unchanged_count += effects.len() as u64 - imported;
    }
    Ok(())
}

/// Applies validated follows and requests their backfills; returns the effect of each.
pub(crate) async fn apply_follows(
    graph: &Graph,
    valid: &[domain::Follow],
) -> Result<Vec<FollowEffect>, Status> {
    let keys = graph
        .intern_all(valid.iter().flat_map(|f| [&f.follower, &f.author]))
        .await?;
    let changes: Vec<_> = valid
        .iter()
        .filter_map(|f| {
            Some(FollowChange {
                follower: *keys.get(&f.follower)?,
                author: *keys.get(&f.author)?,
                action: FollowAction::Follow { notify: f.notify },
            })
        })
        .collect();
    let effects = graph.apply(&changes).await?;
    // Backfills are published for existing follows too: a retried batch may not have published them before.
    graph
        .request_backfills(changes.iter().map(|c| (c.author, c.follower)))
        .await?;
    Ok(effects)
}

//! ImportFollows.

use std::collections::{BTreeSet, VecDeque};

use futures::{FutureExt as _, StreamExt as _};
use herald_proto::v1;
use herald_rpc::status;
use herald_store::{FollowAction, FollowChange, FollowEffect};
use tonic::{Status, Streaming};

use crate::{domain, graph::Graph, quota};

/// Maximum number of follows in one message.
const BATCH_FOLLOWS_MAX: usize = 10_000;

/// Follows of an import that are applied together.
const COMMIT_FOLLOWS_MAX: usize = 1_000;

/// Maximum number of failures that a response lists; further failures are only counted.
const FAILURES_MAX: usize = 1_000;

/// Applies the batches in the order sent. Those that have arrived by now are applied together: a caller who sends each
/// follow in a message of its own would else wait for a write of the store a follow.
///
/// Messages are taken between the parts that are applied, not after many of them: beside live calls and other imports a
/// part may take long, and whoever forwards the stream waits only so long until a message is taken.
pub(crate) async fn import(
    graph: &Graph,
    mut batches: Streaming<v1::ImportFollowsRequest>,
) -> Result<v1::ImportFollowsResponse, Status> {
    let mut response = v1::ImportFollowsResponse::default();
    let mut joined = VecDeque::new();
    let mut index = 0;
    // How the stream ended.
    let mut ended = None;
    loop {
        while ended.is_none() && joined.len() < BATCH_FOLLOWS_MAX {
            let message = if joined.is_empty() {
                Some(batches.next().await)
            } else {
                batches.next().now_or_never()
            };
            match message {
                None => break,
                Some(None) => ended = Some(Ok(())),
                Some(Some(Err(status))) => ended = Some(Err(status)),
                Some(Some(Ok(batch))) if batch.follows.len() <= BATCH_FOLLOWS_MAX => {
                    joined.extend(batch.follows);
                }
                Some(Some(Ok(batch))) => {
                    let description = format!(
                        "must contain at most {BATCH_FOLLOWS_MAX} follows, contains {}",
                        batch.follows.len()
                    );
                    ended = Some(Err(status::invalid(&[("follows", &description)])));
                }
            }
        }
        match &mut ended {
            // Batches before the end remain applied.
            Some(end) if joined.is_empty() => return std::mem::replace(end, Ok(())).map(|()| response),
            _ => {}
        }
        let part: Vec<_> = joined.drain(..joined.len().min(COMMIT_FOLLOWS_MAX)).collect();
        let first = index;
        index += part.len() as u64;
        apply_part(graph, part, first, &mut response).await?;
    }
}

async fn apply_part(
    graph: &Graph,
    follows: Vec<v1::Follow>,
    first: u64,
    response: &mut v1::ImportFollowsResponse,
) -> Result<(), Status> {
    let mut valid = Vec::with_capacity(follows.len());
    for (at, follow) in (first..).zip(follows) {
        match domain::parse_follow(follow) {
            Ok(follow) => valid.push((at, follow)),
            Err(violation) => add_failure(response, at, || super::violation_to_status(&violation, "")),
        }
    }
    if valid.is_empty() {
        return Ok(());
    }
    let (indices, valid): (Vec<u64>, Vec<domain::Follow>) = valid.into_iter().unzip();
    let (effects, refused) = graph.pace.bulk(apply_with_room(graph, &valid)).await?;
    let imported = effects.iter().filter(|effect| effect.changed).count() as u64;
    response.imported_count += imported;
    response.unchanged_count += effects.len() as u64 - imported;
    for at in refused {
        add_failure(response, indices[at], || quota::exceeded("follower_id"));
    }
    Ok(())
}

fn add_failure(response: &mut v1::ImportFollowsResponse, index: u64, status: impl FnOnce() -> Status) {
    response.failed_count += 1;
    if response.failures.len() < FAILURES_MAX {
        response.failures.push(v1::ImportFailure {
            index,
            status: Some(status::to_proto(&status())),
        });
    }
}

/// Applies all of these follows, and requests their backfills; returns the effect of each.
///
/// # Errors
/// RESOURCE_EXHAUSTED, `QUOTA_EXCEEDED`, when one of them has no room; then none is applied.
pub(crate) async fn apply_follows(
    graph: &Graph,
    valid: &[domain::Follow],
) -> Result<Vec<FollowEffect>, Status> {
    let changes = changes(graph, valid).await?;
    let effects = graph
        .apply(&changes, |index| format!("follows[{index}].follower_id"))
        .await?;
    request_backfills(graph, &changes).await?;
    Ok(effects)
}

/// Applies those follows that have room in the quotas of their followers, and requests their backfills. Returns their
/// effects, and the indices of the others.
async fn apply_with_room(
    graph: &Graph,
    valid: &[domain::Follow],
) -> Result<(Vec<FollowEffect>, BTreeSet<usize>), Status> {
    let mut changes = changes(graph, valid).await?;
    let (reserved, refused) = graph.reserve(&changes).await?;
    let mut at = 0..;
    changes.retain(|_| at.next().is_none_or(|at| !refused.contains(&at)));
    if changes.is_empty() {
        return Ok((Vec::new(), refused));
    }
    let effects = graph.apply_reserved(&changes, reserved).await?;
    request_backfills(graph, &changes).await?;
    Ok((effects, refused))
}

/// Backfills are published for existing follows too: a retried batch may not have published them before.
async fn request_backfills(graph: &Graph, changes: &[FollowChange]) -> Result<(), Status> {
    graph
        .request_backfills(changes.iter().map(|c| (c.author, c.follower)))
        .await
}

async fn changes(graph: &Graph, valid: &[domain::Follow]) -> Result<Vec<FollowChange>, Status> {
    let keys = graph
        .intern_all(valid.iter().flat_map(|f| [&f.follower, &f.author]))
        .await?;
    let changes = valid
        .iter()
        .filter_map(|f| {
            Some(FollowChange {
                follower: *keys.get(&f.follower)?,
                author: *keys.get(&f.author)?,
                action: FollowAction::Follow { notify: f.notify },
            })
        })
        .collect();
    Ok(changes)
}

//! ImportFollows: many follows on one stream.

use herald_proto::v1;
use herald_rpc::status;
use herald_store::FollowChange;
use tonic::{Status, Streaming};

use crate::{domain, graph::Graph};

/// Follows in one message.
const BATCH_FOLLOWS_MAX: usize = 10_000;

/// Refusals told one by one; the rest is only counted.
const FAILURES_TOLD_MAX: usize = 1_000;

/// Applies one batch after the other, in the order sent.
pub(crate) async fn import(
    graph: &Graph,
    mut batches: Streaming<v1::ImportFollowsRequest>,
) -> Result<v1::ImportFollowsResponse, Status> {
    let mut answer = v1::ImportFollowsResponse::default();
    let mut index = 0_u64;
    while let Some(batch) = batches.message().await? {
        if batch.follows.len() > BATCH_FOLLOWS_MAX {
            let description = format!(
                "must have at most {BATCH_FOLLOWS_MAX} entries, has {}",
                batch.follows.len()
            );
            return Err(status::invalid(&[("follows", &description)]));
        }
        let first = index;
        index += batch.follows.len() as u64;
        apply(graph, batch.follows, first, &mut answer).await?;
    }
    Ok(answer)
}

async fn apply(
    graph: &Graph,
    follows: Vec<v1::Follow>,
    first: u64,
    answer: &mut v1::ImportFollowsResponse,
) -> Result<(), Status> {
    let mut good = Vec::with_capacity(follows.len());
    for (at, follow) in (first..).zip(follows) {
        match domain::follow(follow) {
            Ok(follow) => good.push(follow),
            Err(violation) => {
                answer.failed_count += 1;
                if answer.failures.len() < FAILURES_TOLD_MAX {
                    answer.failures.push(v1::ImportFailure {
                        index: at,
                        field: violation.field.into(),
                        message: violation.description,
                    });
                }
            }
        }
    }
    let keys = graph
        .intern_all(good.iter().flat_map(|f| [&f.follower, &f.author]))
        .await?;
    let changes: Vec<_> = good
        .iter()
        .filter_map(|f| {
            Some(FollowChange {
                follower: *keys.get(&f.follower)?,
                author: *keys.get(&f.author)?,
                notify: Some(f.notify),
            })
        })
        .collect();
    let changed = graph.apply(&changes).await?;
    let imported = changed.iter().filter(|c| **c).count() as u64;
    answer.imported_count += imported;
    answer.unchanged_count += changed.len() as u64 - imported;
    // Also for what was there already: a caller that lost the answer sends the batch again, and its backfill with it.
    graph
        .backfill(changes.iter().map(|c| (c.author, c.follower)))
        .await
}

//! Discards the dead letters of posts that have another id now.

use std::collections::HashSet;

use herald_mesh::{consumers, streams};
use herald_model::{PostId, time::Timestamp};
use herald_store::{
    DeadLetterFilter, DeadLetterState, DeadLetterVersion, DeadLetters, NewOperation, OperationKind,
    OperationState, Order,
};

use crate::{RenamedPost, Result};

/// Who discards, in the log of operations.
const ACTOR: &str = "herald recover";
/// Dead letters that are read or discarded at once.
const BATCH: usize = 256;

/// Discards the open dead letters with which the archive refused these posts. A redrive could never resolve them: their
/// messages still have the ids of other posts. Returns their number.
pub(crate) async fn discard_renamed(dead_letters: &dyn DeadLetters, renamed: &[RenamedPost]) -> Result<u64> {
    if renamed.is_empty() {
        return Ok(0);
    }
    let told: HashSet<PostId> = renamed.iter().map(|post| post.told).collect();
    let filter = DeadLetterFilter {
        stream: Some(streams::POSTS.into()),
        consumer: Some(consumers::ARCHIVE.into()),
        state: Some(DeadLetterState::Open),
        ..DeadLetterFilter::default()
    };
    let mut selected = Vec::new();
    let mut after = None;
    loop {
        let page = dead_letters
            .scan(&filter, Order::OldestFirst, after, BATCH)
            .await?;
        let refused = page.dead_letters.iter();
        let refused = refused.filter(|one| one.post.is_some_and(|post| told.contains(&post)));
        selected.extend(refused.map(|one| DeadLetterVersion {
            id: one.id,
            round: one.round,
        }));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if selected.is_empty() {
        return Ok(0);
    }
    let discard = NewOperation {
        kind: OperationKind::Discard,
        actor: ACTOR.into(),
        at: Timestamp::now(),
        selection: bytes::Bytes::new(),
        excluded: 0,
        rate_max: 0,
        failures_max: 0,
        push_ttl: None,
        target: None,
    };
    let mut operation = dead_letters.begin(&discard, &selected).await?;
    while operation.state == OperationState::Running {
        let step = dead_letters
            .discard(operation.id, BATCH, Timestamp::now())
            .await?;
        operation = step.operation;
    }
    Ok(operation.applied())
}

//! Invariants: compares the observed state with the journal.

use std::collections::{HashMap, HashSet};

use herald_proto::v1::{ChannelDelivery, DeliveryState};

use super::{
    expect::Expected,
    observe::{Observed, PostState},
};
use crate::workload::{AcceptedPost, READERS, Relation, reader};

/// Each accepted request is exactly one post, and POSTS has no other posts.
pub(super) fn requests(posts: &[AcceptedPost], observed: &Observed, foreign: u64) -> Vec<String> {
    let mut violations = Vec::new();
    let mut ids = HashMap::new();
    for post in posts {
        if let Some(other) = ids.insert(post.id, &post.request_id) {
            violations.push(format!(
                "post {} was the answer to two requests: {other} and {}",
                post.id, post.request_id
            ));
        }
    }
    let expected = ids.len() as u64 + foreign;
    let messages = observed.posts_messages.saturating_sub(observed.deletion_messages);
    if messages != expected {
        violations.push(format!(
            "POSTS has {messages} messages besides deletions, expected {expected}: a request was accepted twice or a \
post was lost"
        ));
    }
    violations
}

/// The plan in the ledger has exactly the expected recipients on both channels.
pub(super) fn fanout(posts: &[AcceptedPost], observed: &Observed, expected: &Expected) -> Vec<String> {
    let mut violations = Vec::new();
    for (post, seen) in pairs(posts, observed) {
        for recipient in &seen.unexpected_recipients {
            violations.push(format!(
                "post {}: recipient {recipient} is listed twice or unknown",
                post.id
            ));
        }
        let Some(moments) = observed.moments.get(&post.id) else {
            violations.push(format!("post {} is not in POSTS", post.id));
            continue;
        };
        for r in 0..READERS {
            let planned = match (
                seen.timeline_states.contains_key(&r),
                seen.push_states.contains_key(&r),
            ) {
                (false, false) => Some(Relation::None),
                (true, false) => Some(Relation::Follows),
                (true, true) => Some(Relation::Notified),
                (false, true) => None,
            };
            let relations = expected.possible_relations(post, moments, r);
            if !planned.is_some_and(|planned| relations.contains(&planned)) {
                violations.push(format!(
                    "post {} of author {}: {} is planned as {planned:?}, expected one of {relations:?}",
                    post.id,
                    post.author,
                    reader(r)
                ));
            }
        }
    }
    violations
}

/// Each timeline has the planned and backfilled posts exactly once, and no others.
pub(super) fn timelines(posts: &[AcceptedPost], observed: &Observed, expected: &Expected) -> Vec<String> {
    let mut violations = Vec::new();
    for (r, entries) in observed.timelines.iter().enumerate() {
        if !entries.is_sorted_by(|(newer, _), (older, _)| newer > older) {
            violations.push(format!(
                "the timeline of {} has duplicate or unordered entries",
                reader(r)
            ));
        }
        let on: HashMap<u64, &String> = entries.iter().map(|(id, text)| (*id, text)).collect();
        for (post, seen) in pairs(posts, observed) {
            let planned = seen.timeline_states.contains_key(&r);
            let name = || format!("post {} of author {} for {}", post.id, post.author, reader(r));
            match on.get(&post.id) {
                Some(text) if **text != post.text => {
                    violations.push(format!("{} has the wrong text {text:?}", name()));
                }
                Some(_) if !planned && !expected.may_be_backfilled(post, r) => {
                    violations.push(format!("{} is on the timeline but not planned", name()));
                }
                None if planned && !seen.deleted => {
                    violations.push(format!("{} is planned but not on the timeline", name()));
                }
                Some(_) | None => {}
            }
        }
        let known: HashSet<u64> = posts.iter().map(|post| post.id).collect();
        for (id, _) in entries.iter().filter(|(id, _)| !known.contains(id)) {
            violations.push(format!(
                "the timeline of {} has post {id}, which was never accepted",
                reader(r)
            ));
        }
    }
    violations
}

/// Each follow has backfilled the newest posts of the author.
pub(super) fn backfills(posts: &[AcceptedPost], observed: &Observed, expected: &Expected) -> Vec<String> {
    let mut violations = Vec::new();
    for (r, entries) in observed.timelines.iter().enumerate() {
        let on: HashSet<u64> = entries.iter().map(|(id, _)| *id).collect();
        for (post, seen) in pairs(posts, observed) {
            if !on.contains(&post.id) && !seen.deleted && expected.must_be_backfilled(post, r) {
                violations.push(format!(
                    "post {} of author {} was not backfilled to {} after a follow",
                    post.id,
                    post.author,
                    reader(r)
                ));
            }
        }
    }
    violations
}

/// `targeted = delivered + suppressed + expired + pending + dead`, the recipient lists agree, and nothing is pending.
pub(super) fn conservation(posts: &[AcceptedPost], observed: &Observed) -> Vec<String> {
    let mut violations = Vec::new();
    for (post, seen) in pairs(posts, observed) {
        for (channel, counts, states) in [
            ("timeline", &seen.timeline, &seen.timeline_states),
            ("push", &seen.push, &seen.push_states),
        ] {
            let ChannelDelivery {
                targeted_count,
                delivered_count,
                suppressed_count,
                expired_count,
                pending_count,
                dead_count,
                ..
            } = *counts;
            let sum = delivered_count + suppressed_count + expired_count + pending_count + dead_count;
            let listed = |state| states.values().filter(|found| **found == state).count() as u64;
            let same = targeted_count == sum
                && targeted_count == states.len() as u64
                && delivered_count == listed(DeliveryState::Delivered)
                && suppressed_count == listed(DeliveryState::Suppressed)
                && expired_count == listed(DeliveryState::Expired)
                && dead_count == listed(DeliveryState::Dead);
            if !same || pending_count > 0 {
                violations.push(format!(
                    "post {}, {channel}: the counts don't add up or deliveries are pending: {counts:?}, {} listed",
                    post.id,
                    states.len()
                ));
            }
            if channel == "timeline" && delivered_count != targeted_count {
                violations.push(format!(
                    "post {}, {channel}: not all recipients are delivered: {counts:?}",
                    post.id
                ));
            }
        }
    }
    violations
}

/// Analytics has counted each post and delivery once.
pub(super) fn totals(posts: &[AcceptedPost], observed: &Observed) -> Vec<String> {
    let mut violations = Vec::new();
    for (post, seen) in pairs(posts, observed) {
        let ledger = [
            1,
            seen.timeline.delivered_count,
            seen.push.delivered_count,
            seen.push.suppressed_count,
            seen.push.expired_count,
            seen.push.dead_count,
        ];
        let counted = seen.stats.map(|totals| {
            [
                totals.post_count,
                totals.timeline_delivered_count,
                totals.push_delivered_count,
                totals.push_suppressed_count,
                totals.push_expired_count,
                // The count may fall after a redrive, but not below 0.
                u64::try_from(totals.push_dead_count).unwrap_or(u64::MAX),
            ]
        });
        if counted != Some(ledger) {
            violations.push(format!(
                "post {}: analytics has {counted:?}, the ledger {ledger:?}",
                post.id
            ));
        }
    }
    if observed.totals.post_count != posts.len() as u64 {
        violations.push(format!(
            "analytics counts {} posts, expected {}",
            observed.totals.post_count,
            posts.len()
        ));
    }
    violations
}

fn pairs<'a>(
    posts: &'a [AcceptedPost],
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a AcceptedPost, &'a PostState)> {
    posts
        .iter()
        .filter_map(|post| Some((post, observed.posts.get(&post.id)?)))
}

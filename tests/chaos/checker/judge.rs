//! Compares what was seen with what must be.

use std::collections::{HashMap, HashSet};

use herald_proto::v1::{ChannelDelivery, DeliveryState};

use super::{
    expect::Expected,
    observe::{Observed, Seen},
};
use crate::workload::{Posted, READERS, Tie, reader};

/// Each request is one post, and there are no others.
pub(super) fn requests(posts: &[Posted], observed: &Observed, foreign: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut ids = HashMap::new();
    for post in posts {
        if let Some(other) = ids.insert(post.id, &post.request_id) {
            wrong.push(format!(
                "post {} answers both {other} and {}",
                post.id, post.request_id
            ));
        }
    }
    let expected = ids.len() as u64 + foreign;
    let messages = observed.posts_messages.saturating_sub(observed.deletion_messages);
    if messages != expected {
        wrong.push(format!(
            "POSTS has {messages} messages that are no deletions, of which {expected} are known: a request was accepted \
             twice, or a post was lost"
        ));
    }
    wrong
}

/// The plan in the ledger has whom it must have, on both channels alike.
pub(super) fn fanout(posts: &[Posted], observed: &Observed, expected: &Expected) -> Vec<String> {
    let mut wrong = Vec::new();
    for (post, seen) in pairs(posts, observed) {
        for stranger in &seen.strangers {
            wrong.push(format!(
                "post {}: recipient {stranger} is twice in it or nobody",
                post.id
            ));
        }
        for r in 0..READERS {
            let planned = match (
                seen.timeline_states.contains_key(&r),
                seen.push_states.contains_key(&r),
            ) {
                (false, false) => Some(Tie::None),
                (true, false) => Some(Tie::Follows),
                (true, true) => Some(Tie::Bell),
                (false, true) => None,
            };
            let ties = expected.ties(post, r);
            if !planned.is_some_and(|planned| ties.contains(&planned)) {
                wrong.push(format!(
                    "post {} of author {}: {} was planned as {planned:?}, was {ties:?}",
                    post.id,
                    post.author,
                    reader(r)
                ));
            }
        }
    }
    wrong
}

/// Each timeline has what the plan says and what follows brought, once, and nothing else.
pub(super) fn timelines(posts: &[Posted], observed: &Observed, expected: &Expected) -> Vec<String> {
    let mut wrong = Vec::new();
    for (r, entries) in observed.timelines.iter().enumerate() {
        if !entries.is_sorted_by(|(newer, _), (older, _)| newer > older) {
            wrong.push(format!("{} has entries twice or out of order", reader(r)));
        }
        let on: HashMap<u64, &String> = entries.iter().map(|(id, text)| (*id, text)).collect();
        for (post, seen) in pairs(posts, observed) {
            let planned = seen.timeline_states.contains_key(&r);
            let name = || format!("post {} of author {} for {}", post.id, post.author, reader(r));
            match on.get(&post.id) {
                Some(text) if **text != post.text => wrong.push(format!("{} reads {text:?}", name())),
                Some(_) if !planned && !expected.may_be_backfilled(post, r) => {
                    wrong.push(format!("{} is a phantom", name()));
                }
                None if planned && !seen.gone => wrong.push(format!("{} is missing", name())),
                Some(_) | None => {}
            }
        }
        let known: HashSet<u64> = posts.iter().map(|post| post.id).collect();
        for (id, _) in entries.iter().filter(|(id, _)| !known.contains(id)) {
            wrong.push(format!("{} has post {id}, which nobody wrote", reader(r)));
        }
    }
    wrong
}

/// Each follow has brought the author's newest posts.
pub(super) fn backfills(posts: &[Posted], observed: &Observed, expected: &Expected) -> Vec<String> {
    let mut wrong = Vec::new();
    for (r, entries) in observed.timelines.iter().enumerate() {
        let on: HashSet<u64> = entries.iter().map(|(id, _)| *id).collect();
        for (post, seen) in pairs(posts, observed) {
            if !on.contains(&post.id) && !seen.gone && expected.must_be_backfilled(post, r) {
                wrong.push(format!(
                    "post {} of author {} was not brought to {} by a follow",
                    post.id,
                    post.author,
                    reader(r)
                ));
            }
        }
    }
    wrong
}

/// `targeted = delivered + suppressed + expired + pending + dead`, the lists say the same, and nothing is pending.
pub(super) fn conservation(posts: &[Posted], observed: &Observed) -> Vec<String> {
    let mut wrong = Vec::new();
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
                wrong.push(format!(
                    "post {}, {channel}: {counts:?}, {} listed",
                    post.id,
                    states.len()
                ));
            }
            if channel == "timeline" && delivered_count != targeted_count {
                wrong.push(format!(
                    "post {}, {channel}: not all are delivered: {counts:?}",
                    post.id
                ));
            }
        }
    }
    wrong
}

/// Analytics has counted each delivery once.
pub(super) fn totals(posts: &[Posted], observed: &Observed) -> Vec<String> {
    let mut wrong = Vec::new();
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
                // It can fall again after a redrive, but not below nothing.
                u64::try_from(totals.push_dead_count).unwrap_or(u64::MAX),
            ]
        });
        if counted != Some(ledger) {
            wrong.push(format!(
                "post {}: analytics {counted:?}, ledger {ledger:?}",
                post.id
            ));
        }
    }
    if observed.totals.post_count != posts.len() as u64 {
        wrong.push(format!(
            "analytics counts {} posts of {}",
            observed.totals.post_count,
            posts.len()
        ));
    }
    wrong
}

fn pairs<'a>(posts: &'a [Posted], observed: &'a Observed) -> impl Iterator<Item = (&'a Posted, &'a Seen)> {
    posts
        .iter()
        .filter_map(|post| Some((post, observed.posts.get(&post.id)?)))
}

//! Pushes: each is received at least once, and more than once only because of a fault.

use std::collections::HashMap;

use herald_proto::v1::DeliveryState;

use super::observe::Observed;
use crate::{
    workload::{AcceptedPost, Journal, READERS, devices, reader},
    world::World,
};

/// Result of the push check.
pub(super) struct Pushes {
    pub(super) violations: Vec<String>,
    pub(super) received: u64,
    pub(super) repeated: u64,
}

/// Pushes of one chunk that a crash can repeat: sends since the last recorded progress plus sends in flight.
const REPEATS_OF_CHUNK: u64 = 8 + 32;
/// Chunks in flight over all lanes.
const CHUNKS_IN_FLIGHT: u64 = 3 * 32;

pub(super) fn check(posts: &[AcceptedPost], observed: &Observed, world: &World, journal: &Journal) -> Pushes {
    let provider_failed = journal.provider_failures() > 0;
    let deletions = journal.deletions();
    let mut violations = Vec::new();
    if world.sink.rejected() > 0 {
        violations.push(format!(
            "the push sink rejected {} requests as forged or malformed",
            world.sink.rejected()
        ));
    }
    let by_id: HashMap<u64, &AcceptedPost> = posts.iter().map(|post| (post.id, post)).collect();
    let faults = world.log.faults();
    let (mut received, mut repeated) = (0, 0);
    for ((device, post), receipts) in &observed.received {
        received += receipts.times.len() as u64;
        repeated += receipts.times.len() as u64 - 1;
        let owner = device.trim_start_matches(char::is_alphabetic).parse::<usize>();
        let owner = owner.ok().filter(|owner| receipts.recipient == reader(*owner));
        let state = owner.and_then(|owner| observed.posts.get(post)?.push_states.get(&owner));
        if state.is_none() {
            violations.push(format!("{device} received post {post} without being a target"));
        }
        if by_id
            .get(post)
            .is_some_and(|post| !post.text.starts_with(&receipts.text))
        {
            violations.push(format!(
                "{device} received post {post} with the wrong text {:?}",
                receipts.text
            ));
        }
        for pair in receipts.times.windows(2) {
            if !faults.iter().any(|fault| fault.overlaps(pair[0], pair[1])) {
                violations.push(format!(
                    "{device} received post {post} at {} and again at {} without a fault in between",
                    pair[0], pair[1]
                ));
            }
        }
    }
    let bound = faults.len() as u64 * REPEATS_OF_CHUNK * CHUNKS_IN_FLIGHT;
    if repeated > bound {
        violations.push(format!(
            "{repeated} pushes were repeated; {} faults explain at most {bound}",
            faults.len()
        ));
    }
    for post in posts {
        let Some(seen) = observed.posts.get(&post.id) else {
            continue;
        };
        // Some devices may have received the post before its deletion.
        let deleted = seen.deleted && deletions.contains_key(&post.id);
        for r in 0..READERS {
            let Some(state) = seen.push_states.get(&r) else {
                continue;
            };
            let devices = devices(r);
            let receiving = devices
                .iter()
                .filter(|device| {
                    observed
                        .received
                        .contains_key(&(device.name().to_owned(), post.id))
                })
                .count();
            let good = match state {
                // One device is enough if the provider has failed for the other.
                DeliveryState::Delivered => {
                    receiving > 0 && (receiving == devices.len() || provider_failed || deleted)
                }
                DeliveryState::Suppressed => devices.is_empty() || deleted,
                // No push expires within an episode, and dead letters are redriven before the check.
                DeliveryState::Dead
                | DeliveryState::Expired
                | DeliveryState::Pending
                | DeliveryState::Unspecified => false,
            };
            if !good {
                violations.push(format!(
                    "post {}: the push to {} is {state:?}, but {receiving} of {} devices received it",
                    post.id,
                    reader(r),
                    devices.len()
                ));
            }
        }
    }
    Pushes {
        violations,
        received,
        repeated,
    }
}

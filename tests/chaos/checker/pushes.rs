//! Pushes: at least once, and more than once only where a fault explains it.

use std::collections::HashMap;

use herald_proto::v1::DeliveryState;

use super::observe::Observed;
use crate::{
    workload::{Journal, Posted, READERS, devices, reader},
    world::World,
};

/// What was found of pushes.
pub(super) struct Pushes {
    pub(super) wrong: Vec<String>,
    pub(super) received: u64,
    pub(super) repeated: u64,
}

/// Sends between two records of progress of a chunk, and sends that may be under way: what one crash can repeat of a chunk.
const REPEATS_OF_CHUNK: u64 = 8 + 32;
/// Chunks that all lanes may have in hand.
const CHUNKS_IN_HAND: u64 = 3 * 32;

pub(super) fn judge(posts: &[Posted], observed: &Observed, world: &World, journal: &Journal) -> Pushes {
    let provider_failed = journal.provider_failures() > 0;
    let deletions = journal.deletions();
    let mut wrong = Vec::new();
    if world.sink.rejected() > 0 {
        wrong.push(format!(
            "{} pushes were forged or malformed",
            world.sink.rejected()
        ));
    }
    let by_id: HashMap<u64, &Posted> = posts.iter().map(|post| (post.id, post)).collect();
    let faults = world.log.faults();
    let (mut received, mut repeated) = (0, 0);
    for ((device, post), receipts) in &observed.received {
        received += receipts.times.len() as u64;
        repeated += receipts.times.len() as u64 - 1;
        let owner = device.trim_start_matches(char::is_alphabetic).parse::<usize>();
        let owner = owner.ok().filter(|owner| receipts.recipient == reader(*owner));
        let state = owner.and_then(|owner| observed.posts.get(post)?.push_states.get(&owner));
        if state.is_none() {
            wrong.push(format!("{device} got post {post}, which was not for it"));
        }
        if by_id
            .get(post)
            .is_some_and(|known| !known.text.starts_with(&receipts.text))
        {
            wrong.push(format!(
                "{device} got post {post} with the text {:?}",
                receipts.text
            ));
        }
        for pair in receipts.times.windows(2) {
            if !faults.iter().any(|fault| fault.overlaps(pair[0], pair[1])) {
                wrong.push(format!(
                    "{device} got post {post} at {} and {}, and nothing happened between",
                    pair[0], pair[1]
                ));
            }
        }
    }
    let bound = faults.len() as u64 * REPEATS_OF_CHUNK * CHUNKS_IN_HAND;
    if repeated > bound {
        wrong.push(format!(
            "{repeated} pushes were repeated, {} faults explain {bound}",
            faults.len()
        ));
    }
    for post in posts {
        let Some(seen) = observed.posts.get(&post.id) else {
            continue;
        };
        // Some may have got a post before it was deleted.
        let deleted = seen.gone && deletions.contains_key(&post.id);
        for r in 0..READERS {
            let Some(state) = seen.push_states.get(&r) else {
                continue;
            };
            let devices = devices(r);
            let got = devices
                .iter()
                .filter(|device| {
                    observed
                        .received
                        .contains_key(&(device.name().to_owned(), post.id))
                })
                .count();
            let good = match state {
                // One device is enough when the provider has refused another one for good, or for too long.
                DeliveryState::Delivered => got > 0 && (got == devices.len() || provider_failed || deleted),
                DeliveryState::Suppressed => devices.is_empty() || deleted,
                // Nothing is so slow that it expires, and what was given up is redriven in the end.
                DeliveryState::Dead
                | DeliveryState::Expired
                | DeliveryState::Pending
                | DeliveryState::Unspecified => false,
            };
            if !good {
                wrong.push(format!(
                    "post {}: {} is {state:?}, and {got} of {} devices got it",
                    post.id,
                    reader(r),
                    devices.len()
                ));
            }
        }
    }
    Pushes {
        wrong,
        received,
        repeated,
    }
}

//! The ledger against the totals of analytics.

use herald_model::{Channel, PostId};
use herald_store::PostPlan;

use crate::{Auditor, Result, plan::sums};

/// Delivered to timelines; and pushes delivered, suppressed, expired and dead.
pub(crate) type Five = [i64; 5];

/// What analytics counts of a post and what the ledger has, if these differ.
pub(crate) async fn difference(
    auditor: &Auditor,
    post: PostId,
    plan: &PostPlan,
) -> Result<Option<(Five, Five)>> {
    let mut settled = Five::default();
    for chunk in &plan.chunks {
        let sums = sums(chunk);
        match chunk.channel {
            // A timeline has no other outcome that analytics counts.
            Channel::Timeline => settled[0] += sums.delivered.cast_signed(),
            Channel::Push => {
                let push = [sums.delivered, sums.suppressed, sums.expired, sums.dead];
                for (total, sum) in settled[1..].iter_mut().zip(push) {
                    *total += sum.cast_signed();
                }
            }
        }
    }
    let totals = auditor.totals.of_post(post).await?;
    let counts = totals.map(|totals| totals.counts).unwrap_or_default();
    let counted = [
        counts.timeline_delivered,
        counts.push_delivered,
        counts.push_suppressed,
        counts.push_expired,
        counts.push_dead,
    ];
    Ok((counted != settled).then_some((counted, settled)))
}

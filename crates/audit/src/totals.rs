//! Compares the ledger with the totals of analytics.

use herald_model::{Channel, PostId};
use herald_store::PostPlan;

use crate::{Auditor, Result, plan::count_states};

/// Six counts: the post itself; delivered on timelines; delivered, suppressed, expired and dead by push.
pub(crate) type TotalCounts = [i64; 6];

/// The counts of analytics and of the ledger for a post; `None` if they are equal.
pub(crate) async fn compare_totals(
    auditor: &Auditor,
    post: PostId,
    plan: Option<&PostPlan>,
) -> Result<Option<(TotalCounts, TotalCounts)>> {
    let mut settled = TotalCounts::default();
    // It was accepted.
    settled[0] = 1;
    for chunk in plan.iter().flat_map(|plan| &plan.chunks) {
        let sums = count_states(chunk);
        match chunk.channel {
            // Analytics counts no other state of timeline deliveries.
            Channel::Timeline => settled[1] += sums.delivered.cast_signed(),
            Channel::Push => {
                let push = [sums.delivered, sums.suppressed, sums.expired, sums.dead];
                for (total, sum) in settled[2..].iter_mut().zip(push) {
                    *total += sum.cast_signed();
                }
            }
        }
    }
    let totals = auditor.totals.post_totals(post).await?;
    let counts = totals.map(|totals| totals.counts).unwrap_or_default();
    let counted = [
        counts.posts,
        counts.timeline_delivered,
        counts.push_delivered,
        counts.push_suppressed,
        counts.push_expired,
        counts.push_dead,
    ];
    Ok((counted != settled).then_some((counted, settled)))
}

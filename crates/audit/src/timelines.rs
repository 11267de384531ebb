//! Plans against what the timelines have, pair by pair.

use herald_model::UserKey;

use crate::{
    Auditor, Result,
    confirm::{Run, Suspect},
    pairs::{Difference, Pair, compare},
    window::Window,
};

/// Timelines in one read of the store.
const SCAN_USERS: usize = 4_096;

/// Compares the posts of a window with all timelines. What differs is suspect.
pub(crate) async fn compare_all(auditor: &Auditor, window: &mut Window, run: &mut Run<'_>) -> Result<()> {
    if window.posts.is_empty() || !auditor.limits.timelines {
        return Ok(());
    }
    let mut pairs = std::mem::take(&mut window.pairs);
    // Seconds of work for millions of them: not on the threads that answer calls.
    let pairs = tokio::task::spawn_blocking(move || {
        pairs.sort_unstable();
        pairs
    })
    .await?;
    run.summary.timeline_entries += pairs.len() as u64;
    let mut left = &pairs[..];
    let mut after: Option<UserKey> = None;
    let mut places = Vec::new();
    loop {
        let timelines = auditor.timelines.scan(after, SCAN_USERS).await?;
        let Some((last, _)) = timelines.last() else { break };
        after = Some(*last);
        run.pace.rest().await;
        for (user, found) in &timelines {
            // Those with a plan and without a timeline.
            let (before, rest) = left.split_at(left.partition_point(|pair| pair.user() < *user));
            suspect_all(before, window);
            let (own, rest) = rest.split_at(rest.partition_point(|pair| pair.user() <= *user));
            left = rest;

            places.clear();
            places.extend(
                found
                    .iter()
                    .filter_map(|post| window.posts.binary_search(post).ok()),
            );
            let mut difference = Difference::default();
            compare(own, &places, &mut difference);
            let trimmed = if found.len() >= auditor.limits.timeline_entries_max {
                found.first().copied()
            } else {
                None
            };
            for place in difference.missing {
                let post = window.posts[place];
                // A full timeline has let go of what is older than its oldest.
                if trimmed.is_none_or(|oldest| post > oldest) {
                    window.suspects.push(Suspect::Missing(post, *user));
                }
            }
            for place in difference.extra {
                if window.backfilled[place]
                    .iter()
                    .any(|backfill| backfill.contains(*user))
                {
                    run.summary.backfilled += 1;
                } else {
                    window.suspects.push(Suspect::Extra(window.posts[place], *user));
                }
            }
        }
    }
    suspect_all(left, window);
    Ok(())
}

fn suspect_all(pairs: &[Pair], window: &mut Window) {
    for pair in pairs.iter().filter(|pair| pair.is_delivered()) {
        window
            .suspects
            .push(Suspect::Missing(window.posts[pair.place()], pair.user()));
    }
}

//! Compares the outcomes with the timelines, pair by pair.

use herald_model::{UserId, UserKey};

use crate::{
    Auditor, Result,
    confirm::{Run, Suspect},
    isolated,
    pairs::{Difference, Pair, compare},
    window::Window,
};

/// Timelines read at once.
const PAGE: u32 = 4_096;

/// Compares the posts of a window with all timelines. Differences become suspects. Timelines that are incomplete, which
/// are rebuilt when their users read them, are counted and not compared; those of erased users stay empty and are not
/// counted. Those that can't be read are reported.
pub(crate) async fn compare_all(auditor: &Auditor, window: &mut Window, run: &mut Run<'_>) -> Result<()> {
    if window.posts.is_empty() || !auditor.limits.timelines {
        return Ok(());
    }
    let mut pairs = std::mem::take(&mut window.pairs);
    // Sorting millions of pairs takes seconds, so it must not run on the threads of the async runtime.
    let pairs = tokio::task::spawn_blocking(move || {
        pairs.sort_unstable();
        pairs
    })
    .await?;
    run.summary.timeline_entries += pairs.len() as u64;
    let mut left = &pairs[..];
    let mut incomplete_count = 0;
    let mut post_indices = Vec::new();
    let last = auditor.users.last_key().await?.map_or(0, |user| user.0);
    let mut after = 0;
    while after < last {
        let page_end = after.saturating_add(PAGE).min(last);
        let users: Vec<UserKey> = (after + 1..=page_end).map(UserKey).collect();
        after = page_end;
        let timelines = isolated::timelines(auditor, &users).await?;
        run.throttle.pause().await;
        let mut incomplete = Vec::new();
        for (user, timeline) in users.into_iter().zip(timelines) {
            // Recipients that are no users.
            let (before, rest) = left.split_at(left.partition_point(|pair| pair.user() < user));
            suspect_all(before, window);
            let (own, rest) = rest.split_at(rest.partition_point(|pair| pair.user() <= user));
            left = rest;
            let timeline = match timeline {
                Ok(timeline) => timeline,
                Err(reason) => {
                    run.summary.timeline_entries -= own.len() as u64;
                    run.unreadable.add(user, reason);
                    continue;
                }
            };
            if !timeline.complete {
                incomplete.push(user);
                run.summary.timeline_entries -= own.len() as u64;
                continue;
            }

            let found = &timeline.posts;
            post_indices.clear();
            post_indices.extend(
                found
                    .iter()
                    .filter_map(|post| window.posts.binary_search(post).ok()),
            );
            let mut difference = Difference::default();
            compare(own, &post_indices, &mut difference);
            let trimmed = if found.len() >= auditor.limits.timeline_entries_max {
                found.first().copied()
            } else {
                None
            };
            for post_index in difference.missing {
                let post = window.posts[post_index];
                // A full timeline has trimmed the entries before its oldest one.
                if trimmed.is_none_or(|oldest| post > oldest) {
                    window.suspects.push(Suspect::Missing(post, user));
                }
            }
            for post_index in difference.extra {
                if window.backfilled[post_index]
                    .iter()
                    .any(|backfill| backfill.contains(user))
                {
                    run.summary.backfilled += 1;
                } else {
                    window
                        .suspects
                        .push(Suspect::Extra(window.posts[post_index], user));
                }
            }
        }
        incomplete_count += count_without_erased(auditor, &incomplete).await?;
    }
    suspect_all(left, window);
    run.report_unreadable().await?;
    // Each window reads all timelines.
    run.summary.incomplete_timelines = run.summary.incomplete_timelines.max(incomplete_count);
    Ok(())
}

/// Number of these users who are not erased. Nothing completes the timelines of erased users, and nobody reads them.
async fn count_without_erased(auditor: &Auditor, users: &[UserKey]) -> Result<u64> {
    if users.is_empty() {
        return Ok(0);
    }
    let ids = auditor.users.ids(users).await?;
    let is_erased = |id: &Option<UserId>| id.as_ref().is_some_and(UserId::is_placeholder);
    Ok(ids.iter().filter(|id| !is_erased(id)).count() as u64)
}

fn suspect_all(pairs: &[Pair], window: &mut Window) {
    for pair in pairs.iter().filter(|pair| pair.is_delivered()) {
        window
            .suspects
            .push(Suspect::Missing(window.posts[pair.post_index()], pair.user()));
    }
}

//! Whether the checker would notice: it is shown the same mesh with a journal that isn't true, and must complain. Costs
//! nothing, so it is done each time; what can only be broken in a running mesh has a scenario of its own.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    deletions,
    watches::{self, Facts},
};
use crate::workload::{Deletion, Watched};

/// What it would not notice.
pub(super) fn spots(watched: &[Watched], facts: Facts<'_>) -> Vec<String> {
    let checks = [
        (
            "a deletion that was answered and not done",
            forgotten_deletion(facts),
        ),
        ("a deletion that nobody asked for", unasked_deletion(facts)),
        ("a push of a post that was deleted long before", late_push(facts)),
        ("a post that a watcher was not shown", missed(watched, facts)),
        (
            "a post that was shown to the wrong watcher",
            misled(watched, facts),
        ),
    ];
    checks
        .into_iter()
        // Where there is nothing to falsify, nothing can be missed.
        .filter(|(_, noticed)| *noticed == Some(false))
        .map(|(what, _)| format!("{what} would not be noticed"))
        .collect()
}

fn forgotten_deletion(facts: Facts<'_>) -> Option<bool> {
    let post = facts
        .posts
        .iter()
        .find(|post| !facts.deletions.contains_key(&post.id))?;
    let deletion = Deletion {
        answered: Some(Timestamp::now()),
    };
    let mut told = facts.deletions.clone();
    told.insert(post.id, deletion);
    Some(!deletions::posts(facts.posts, facts.observed, &told).is_empty())
}

fn unasked_deletion(facts: Facts<'_>) -> Option<bool> {
    facts.observed.posts.values().find(|seen| seen.gone)?;
    Some(!deletions::posts(facts.posts, facts.observed, &HashMap::new()).is_empty())
}

fn late_push(facts: Facts<'_>) -> Option<bool> {
    let (_, post) = facts.observed.received.keys().next()?;
    let deletion = Deletion {
        answered: Some(Timestamp::UNIX_EPOCH),
    };
    let told = HashMap::from([(*post, deletion)]);
    Some(!deletions::pushes(facts.observed, &told, &[]).is_empty())
}

/// Takes the newest post away: no contract explains that it is missing.
fn missed(watched: &[Watched], facts: Facts<'_>) -> Option<bool> {
    let newest = |watched: &Watched| Some(facts.observed.timelines[watched.reader].first()?.0);
    let mut one = watched
        .iter()
        .find(|watched| newest(watched).is_some_and(|id| watched.entries.contains_key(&id)))?
        .clone();
    let id = newest(&one)?;
    one.entries.remove(&id);
    for shown in &mut one.returns {
        shown.retain(|other| *other != id);
    }
    Some(!watches::judge(&[one], facts).is_empty())
}

/// Shows one watcher what another one was shown who follows more authors.
fn misled(watched: &[Watched], facts: Facts<'_>) -> Option<bool> {
    let most = watched.iter().max_by_key(|watched| watched.entries.len())?;
    let least = watched.iter().min_by_key(|watched| watched.entries.len())?;
    most.entries.keys().find(|id| !least.entries.contains_key(id))?;
    let mut one = least.clone();
    one.entries.extend(most.entries.clone());
    Some(!watches::judge(&[one], facts).is_empty())
}

//! Reads of many rows, of which a damaged one fails only its own.

use std::collections::BTreeSet;

use herald_failure::{Classified, Isolated, isolate};
use herald_model::{Channel, Post, PostId, UserKey};
use herald_store::{Error, TimelineEntries};

use crate::{Auditor, Finding, FindingKind, Repaired, Result, confirm::Run};

/// What was read, or the reason why it can't be.
pub(crate) type Read<T> = std::result::Result<T, String>;

/// Reads timelines, in the order of the users.
pub(crate) async fn timelines(auditor: &Auditor, users: &[UserKey]) -> Result<Vec<Read<TimelineEntries>>> {
    let read = isolate(users.len(), true, |range| auditor.timelines.read(&users[range]));
    in_order(users.len(), read.await)
}

/// Reads archived posts, in the order of the ids.
pub(crate) async fn posts(auditor: &Auditor, ids: &[PostId]) -> Result<Vec<Read<Option<Post>>>> {
    let read = isolate(ids.len(), true, |range| auditor.posts.get(&ids[range]));
    in_order(ids.len(), read.await)
}

fn in_order<T>(count: usize, read: Isolated<Vec<T>, Error>) -> Result<Vec<Read<T>>> {
    match read.stopped {
        Some(Classified::Transient(error)) => return Err(error.into()),
        Some(Classified::Permanent(_)) | None => {}
    }
    let failed = read
        .failed
        .into_iter()
        .map(|(at, reason)| (at, vec![Err(reason)]));
    let done = read.done.into_iter();
    let done = done.map(|(range, rows)| (range.start, rows.into_iter().map(Ok).collect()));
    let mut parts: Vec<(usize, Vec<Read<T>>)> = done.chain(failed).collect();
    parts.sort_unstable_by_key(|(start, _)| *start);
    let rows: Vec<Read<T>> = parts.into_iter().flat_map(|(_, rows)| rows).collect();
    debug_assert_eq!(rows.len(), count, "each item is read or has a reason");
    Ok(rows)
}

/// The timelines of one audit that can't be read. Each window reads all timelines, and reports each of them once.
#[derive(Default)]
pub(crate) struct Unreadable {
    reported: BTreeSet<UserKey>,
    new: Vec<(UserKey, String)>,
}

impl Unreadable {
    pub(crate) fn add(&mut self, user: UserKey, reason: String) {
        if self.reported.insert(user) {
            self.new.push((user, reason));
        }
    }
}

impl Run<'_> {
    /// Reports the new timelines that can't be read, one finding for users with consecutive keys: they share a damaged
    /// block. A repair rebuilds the timelines.
    pub(crate) async fn report_unreadable(&mut self) -> Result<()> {
        let new = std::mem::take(&mut self.unreadable.new);
        for users in new.chunk_by(|(before, _), (after, _)| before.0 + 1 == after.0) {
            let keys: Vec<UserKey> = users.iter().map(|(user, _)| *user).collect();
            let Some((first, reason)) = users.first() else {
                continue;
            };
            let repaired = match &self.repair {
                None => Repaired::NotRequested,
                Some(_) => match self.auditor.timelines.rebuild(&keys).await {
                    Ok(_) => Repaired::Sent,
                    Err(error) => Repaired::Failed(format!("the timelines can't be rebuilt: {error}")),
                },
            };
            let detail = if keys.len() == 1 {
                format!("the timeline can't be read: {reason}")
            } else {
                let others = keys.len() - 1;
                format!("the timelines of the user and of {others} others can't be read: {reason}")
            };
            let finding = Finding {
                kind: FindingKind::Inconsistent,
                post: None,
                channel: Some(Channel::Timeline),
                user: self.user_id(*first).await?,
                chunk: None,
                deliveries: 0,
                detail,
                repaired,
            };
            self.report(finding).await?;
        }
        Ok(())
    }
}

//! Rechecks and reports entries that are missing on timelines.

use std::collections::{BTreeMap, HashSet};

use herald_model::{Channel, PostId, UserKey};

use super::{CurrentState, Run, Suspect};
use crate::{Finding, FindingKind, Repaired, Result, isolated, plan::is_delivered};

/// Timelines read at once.
const PAGE: usize = 1_024;

impl Run<'_> {
    /// Reads the timelines of the suspects again. Returns the users, ascending, whose timeline is complete and still has
    /// no entry of the post.
    pub(super) async fn reread_missing(
        &mut self,
        suspects: &[Suspect],
    ) -> Result<BTreeMap<PostId, Vec<UserKey>>> {
        let mut by_user: BTreeMap<UserKey, Vec<PostId>> = BTreeMap::new();
        for suspect in suspects {
            if let Suspect::Missing(post, user) = suspect {
                by_user.entry(*user).or_default().push(*post);
            }
        }
        let users: Vec<UserKey> = by_user.keys().copied().collect();
        let mut missing: BTreeMap<PostId, Vec<UserKey>> = BTreeMap::new();
        for page in users.chunks(PAGE) {
            let timelines = isolated::timelines(self.auditor, page).await?;
            for (user, timeline) in page.iter().zip(timelines) {
                // One that can't be read is reported as such.
                let Ok(timeline) = timeline else { continue };
                if !timeline.complete {
                    continue;
                }
                for post in &by_user[user] {
                    if timeline.posts.binary_search(post).is_err() {
                        missing.entry(*post).or_default().push(*user);
                    }
                }
            }
            self.throttle.pause().await;
        }
        Ok(missing)
    }

    /// Reports the users on whose timelines a delivered post is missing. A repair rebuilds these timelines. If that
    /// doesn't write the entry, because the timelines of the engine are records and no view, it redrives the chunk.
    pub(super) async fn report_missing(
        &mut self,
        post: PostId,
        users: &[UserKey],
        current: &CurrentState<'_>,
    ) -> Result<()> {
        let chunks: Vec<_> = current
            .plan
            .into_iter()
            .flat_map(|plan| &plan.chunks)
            .filter(|chunk| chunk.channel == Channel::Timeline)
            .collect();
        let delivered: Vec<_> = users
            .iter()
            .filter_map(|user| {
                let chunk = chunks.iter().find(|chunk| is_delivered(chunk, *user))?;
                Some((*user, *chunk))
            })
            .collect();
        let rebuilt = match &mut self.repair {
            Some(repair) => {
                let users: Vec<UserKey> = delivered.iter().map(|(user, _)| *user).collect();
                repair.rebuild(post, &users).await
            }
            None => Ok(HashSet::new()),
        };
        for (user, chunk) in delivered {
            let key = (post, Channel::Timeline, chunk.chunk);
            let repaired = match &rebuilt {
                Ok(rebuilt) if rebuilt.contains(&user) => Repaired::Sent,
                Ok(_) => self.resend(key, chunk).await,
                Err(why) => Repaired::Failed(why.clone()),
            };
            let detail = "delivered according to the ledger, but not on the timeline";
            let finding = Finding {
                user: self.user_id(user).await?,
                repaired,
                ..Finding::of_chunk(FindingKind::Missing, key, 1, detail)
            };
            self.report(finding).await?;
        }
        Ok(())
    }
}

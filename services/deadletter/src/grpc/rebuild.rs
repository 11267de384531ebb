//! Rebuilds timelines for AuditService.

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, stream};
use herald_audit::Auditor;
use herald_model::{UserId, UserKey};
use herald_proto::v1;
use herald_rpc::status;
use herald_store::Rebuilt;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::responses::Responses;

/// Users of one call of the store.
const PAGE: u32 = 64;
/// Calls of the store at the same time.
const CONCURRENCY: usize = 4;
/// Maximum number of users in a request.
const USERS_MAX: usize = 10_000;
/// Minimum time between two progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Whose timelines to rebuild.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// All users after this key, up to the last one.
    All { after: u32, last: u32 },
    /// These users.
    Users(Vec<UserKey>),
}

impl Target {
    /// Reads the target of a request.
    pub(super) async fn parse(
        auditor: &Auditor,
        request: v1::RebuildTimelinesRequest,
    ) -> Result<Self, Status> {
        if request.user_ids.is_empty() {
            let last = auditor.users.last_key().await;
            let last = last.map_err(|e| status::from_store(&e))?.map_or(0, |user| user.0);
            let Ok(after) = u32::try_from(request.after) else {
                return Err(status::invalid(&[(
                    "after",
                    "must be a position of an earlier rebuild",
                )]));
            };
            return Ok(Self::All { after, last });
        }
        if request.after != 0 {
            return Err(status::invalid(&[(
                "after",
                "must not be set together with user_ids",
            )]));
        }
        if request.user_ids.len() > USERS_MAX {
            let description = format!("must be at most {USERS_MAX}, are {}", request.user_ids.len());
            return Err(status::invalid(&[("user_ids", description)]));
        }
        let ids = request.user_ids.into_iter().map(UserId::new);
        let ids: Vec<UserId> = ids
            .collect::<Result<_, _>>()
            .map_err(|error| status::invalid(&[("user_ids", error.to_string())]))?;
        let keys = auditor
            .users
            .find(&ids)
            .await
            .map_err(|e| status::from_store(&e))?;
        let mut users = Vec::with_capacity(keys.len());
        for (id, key) in ids.iter().zip(keys) {
            let Some(key) = key else {
                let message = format!("there is no user {}", id.as_str());
                return Err(status::not_found("USER_NOT_FOUND", message));
            };
            users.push(key);
        }
        users.sort_unstable();
        users.dedup();
        Ok(Self::Users(users))
    }

    fn users(&self) -> u64 {
        match self {
            Self::All { after, last } => last.saturating_sub(*after).into(),
            Self::Users(users) => users.len() as u64,
        }
    }

    /// The users in pages, ascending.
    fn pages(self) -> Box<dyn Iterator<Item = Vec<UserKey>> + Send> {
        match self {
            Self::All { after, last } => Box::new((after..last).step_by(PAGE as usize).map(move |after| {
                let end = after.saturating_add(PAGE).min(last);
                (after + 1..=end).map(UserKey).collect()
            })),
            Self::Users(users) => {
                let pages: Vec<Vec<UserKey>> = users.chunks(PAGE as usize).map(<[UserKey]>::to_vec).collect();
                Box::new(pages.into_iter())
            }
        }
    }
}

/// Rebuilds the timelines, until the caller stops reading or the service shuts down.
pub(super) async fn run(
    auditor: Auditor,
    target: Target,
    mut responses: Responses<v1::RebuildTimelinesResponse>,
    shutdown: CancellationToken,
) {
    let started = Instant::now();
    let resumable = matches!(target, Target::All { .. });
    let mut progress = v1::RebuildTimelinesResponse {
        user_count_total: target.users(),
        position: match target {
            Target::All { after, .. } => after.into(),
            Target::Users(_) => 0,
        },
        ..v1::RebuildTimelinesResponse::default()
    };
    if !responses.send(Ok(progress)).await {
        return;
    }
    let mut reported_at = Instant::now();
    let mut rebuilt_pages = std::pin::pin!(rebuild(&auditor, target));
    loop {
        let page = match shutdown.run_until_cancelled(rebuilt_pages.next()).await {
            None => {
                let message = "the service is shutting down; continue the rebuild after its last position";
                responses.send(Ok(progress)).await;
                responses
                    .send(Err(status::unavailable("SHUTTING_DOWN", message)))
                    .await;
                return;
            }
            Some(None) => break,
            Some(Some(Err(error))) => {
                tracing::warn!(%error, position = progress.position, "a rebuild of timelines failed");
                responses.send(Ok(progress)).await;
                responses.send(Err(status::from_store(&error))).await;
                return;
            }
            Some(Some(Ok(page))) => page,
        };
        let (users, Rebuilt { timelines, entries }) = page;
        progress.user_count += users.len() as u64;
        progress.timeline_count += timelines;
        progress.entry_count += entries;
        if resumable && let Some(last) = users.last() {
            progress.position = last.0.into();
        }
        progress.seconds = started.elapsed().as_secs_f64();
        if reported_at.elapsed() >= PROGRESS_INTERVAL {
            reported_at = Instant::now();
            if !responses.send(Ok(progress)).await {
                return;
            }
        }
    }
    progress.done = true;
    progress.seconds = started.elapsed().as_secs_f64();
    tracing::info!(
        users = progress.user_count,
        timelines = progress.timeline_count,
        entries = progress.entry_count,
        "timelines rebuilt"
    );
    responses.send(Ok(progress)).await;
}

/// Rebuilds pages of users at the same time. The results are in the order of the pages.
fn rebuild(
    auditor: &Auditor,
    target: Target,
) -> impl Stream<Item = herald_store::Result<(Vec<UserKey>, Rebuilt)>> + Send {
    stream::iter(target.pages())
        .map(move |users| async move {
            let rebuilt = auditor.timelines.rebuild(&users).await?;
            Ok((users, rebuilt))
        })
        .buffered(CONCURRENCY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_is_in_one_page() {
        for (after, last) in [
            (0, 0),
            (0, 1),
            (0, 200),
            (7, 71),
            (70, 71),
            (71, 71),
            (90, 71),
            (0, 128),
        ] {
            let target = Target::All { after, last };
            let count = target.users();
            let pages: Vec<_> = target.pages().collect();
            assert!(pages.iter().all(|page| (1..=PAGE as usize).contains(&page.len())));
            let users: Vec<UserKey> = pages.concat();
            assert_eq!(users, (after + 1..=last).map(UserKey).collect::<Vec<_>>());
            assert_eq!(users.len() as u64, count);
        }
        let users: Vec<UserKey> = (1..=100).map(|key| UserKey(3 * key)).collect();
        let pages: Vec<_> = Target::Users(users.clone()).pages().collect();
        assert_eq!((pages.len(), pages.concat()), (2, users));
    }
}

//! The pass over the posts: compares acceptance with the plan, and the plan with the outcomes.
//!
//! A post is in POSTS, in the archive, in the ledger, or in several of them. The pass takes them all, ascending: a post
//! that only the archive has reached nobody.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use herald_mesh::{RawMessage, Subject, streams};
use herald_model::{Channel, Lane, PostId, time::Timestamp};
use herald_store::ChunkState;

use crate::{
    Auditor, Error, Finding, FindingKind, Limits, Result, Scope,
    confirm::{Run, Suspect},
    isolated,
    pairs::Pair,
    plan::{count_states, has_one_version, is_complete, is_consistent, read_plan, unreadable_as_finding},
    summary::ChannelSums,
    timelines, totals,
    window::Window,
};

/// Posts in one batch.
const BATCH: usize = 256;

/// One accepted post.
#[derive(Debug, Clone, Copy)]
struct Accepted {
    id: PostId,
    /// `None` if POSTS no longer has the post.
    lane: Option<Lane>,
    /// When POSTS stored it; `None` if POSTS no longer has it.
    stored_at: Option<Timestamp>,
}

/// Maximum difference of two clocks: that of the gateway, whose time of acceptance retention uses, and the broker's.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_hours(1);

impl Accepted {
    /// Whether retention may have removed the post, although POSTS has it.
    fn may_be_removed(&self, limits: &Limits) -> bool {
        let (Some(keep), Some(stored_at)) = (limits.post_age_max, self.stored_at) else {
            return false;
        };
        Timestamp::now().since(stored_at) + CLOCK_DIFFERENCE_MAX >= keep
    }
}

type Messages = Pin<Box<dyn Stream<Item = herald_mesh::Result<RawMessage>> + Send>>;

/// Ids of posts that a store lists, ascending.
#[derive(Default)]
struct Listed {
    ids: VecDeque<PostId>,
    after: Option<PostId>,
    ended: bool,
}

impl Listed {
    fn new(after: Option<PostId>) -> Self {
        Self {
            after,
            ..Self::default()
        }
    }

    /// Takes the next page in.
    fn extend(&mut self, page: Vec<PostId>) {
        self.ended = page.is_empty();
        self.after = page.last().copied().or(self.after);
        self.ids.extend(page);
    }

    fn needs_page(&self) -> bool {
        self.ids.is_empty() && !self.ended
    }

    /// Takes this post out, if it is the next one.
    fn take(&mut self, post: PostId) {
        if self.ids.front() == Some(&post) {
            self.ids.pop_front();
        }
    }
}

/// Iterates over the posts in scope: posts in POSTS, in the archive, and in the ledger.
pub(crate) struct Pass<'a> {
    auditor: &'a Auditor,
    scope: Scope,
    stream: Messages,
    stream_next: Option<Accepted>,
    archive: Listed,
    ledger: Listed,
    total: u64,
}

impl<'a> Pass<'a> {
    /// Opens the pass.
    ///
    /// # Errors
    /// [`Error::UnknownPost`] for one post that does not exist.
    pub(crate) async fn start(auditor: &'a Auditor, scope: Scope) -> Result<Self> {
        let mesh = &auditor.mesh;
        let range = mesh.sequences(streams::POSTS).await?;
        let (first, last) = range.map_or((1, 0), |range| (range.first.max(1), range.last));
        let (from, to) = match scope {
            Scope::All => (first, last),
            Scope::Since(at) => (mesh.sequence_since(streams::POSTS, at).await?, last),
            Scope::Post(post) => (post.0, post.0),
        };
        let stream: Messages = if to < from {
            Box::pin(futures::stream::empty())
        } else {
            Box::pin(mesh.scan(streams::POSTS, Some("post.v1.created.*"), from, to))
        };
        let mut pass = Self {
            auditor,
            scope,
            stream,
            stream_next: None,
            archive: match scope {
                Scope::All => Listed::new(auditor.first_retained().await?),
                Scope::Since(at) => Listed::new(before(auditor.posts.first_since(at).await?)),
                Scope::Post(post) => Listed::new(before(post)),
            },
            ledger: Listed::new(match scope {
                Scope::Post(post) => before(post),
                // If POSTS has the previous post, that post and all earlier ones were accepted before the scope.
                Scope::Since(_) if mesh.message(streams::POSTS, from - 1).await?.is_some() => {
                    Some(PostId(from - 1))
                }
                Scope::All | Scope::Since(_) => None,
            }),
            total: (to + 1).saturating_sub(from),
        };
        pass.advance_stream().await?;
        if let Scope::Post(post) = scope
            && pass.stream_next.is_none()
            && auditor.posts.get(&[post]).await?.iter().all(Option::is_none)
            && matches!(read_plan(auditor, post).await?, Ok(None))
        {
            return Err(Error::UnknownPost(post));
        }
        Ok(pass)
    }

    /// Checks all posts in scope.
    pub(crate) async fn run(mut self, run: &mut Run<'_>) -> Result<()> {
        run.set_posts_total(self.total);
        loop {
            let mut window = Window::default();
            let mut more = true;
            while more
                && window.pairs.len() < self.auditor.limits.pairs_max
                && window.posts.len() < Pair::POSTS_MAX
            {
                let batch = self.next_batch().await?;
                more = !batch.is_empty();
                Self::check(self.auditor, self.scope, &batch, &mut window, run).await?;
                run.report_progress().await?;
            }
            timelines::compare_all(self.auditor, &mut window, run).await?;
            run.confirm(std::mem::take(&mut window.suspects)).await?;
            if !more {
                return Ok(());
            }
        }
    }

    async fn check(
        auditor: &Auditor,
        scope: Scope,
        batch: &[Accepted],
        window: &mut Window,
        run: &mut Run<'_>,
    ) -> Result<()> {
        let ids: Vec<_> = batch.iter().map(|post| post.id).collect();
        let archived = isolated::posts(auditor, &ids).await?;
        for (post, archived) in batch.iter().zip(archived) {
            let (archived, unreadable) = match archived {
                Ok(archived) => (archived, None),
                Err(reason) => (None, Some(reason)),
            };
            // A post that is only in the ledger and was accepted before `since`.
            if let Scope::Since(since) = scope
                && post.lane.is_none()
                && archived
                    .as_ref()
                    .is_none_or(|archived| archived.accepted_at < since)
            {
                continue;
            }
            if archived.is_none() && unreadable.is_none() && post.may_be_removed(&auditor.limits) {
                continue;
            }
            run.summary.posts += 1;
            let plan = match read_plan(auditor, post.id).await? {
                Ok(plan) => plan,
                Err(unreadable) => {
                    run.report(unreadable).await?;
                    continue;
                }
            };
            if let Some(reason) = &unreadable {
                let detail = format!("the post in the archive can't be read: {reason}");
                run.report(Finding::of_post(FindingKind::Inconsistent, post.id, detail))
                    .await?;
            } else if archived.is_none() {
                window.suspects.push(Suspect::Unarchived(post.id));
            }
            let lane = post.lane.or(archived.as_ref().map(|archived| archived.lane));
            let accepted_at = archived.as_ref().map(|archived| archived.accepted_at);
            // Retention may have removed the post from the ledger and the timelines.
            let past_retention =
                accepted_at.is_some_and(|at| Timestamp::now().since(at) >= auditor.limits.timeline_age_max);
            // A post that was deleted and that POSTS no longer has is owed to nobody.
            let is_deleted = archived
                .as_ref()
                .is_some_and(|archived| archived.deleted_at.is_some());
            let is_nobodys = is_deleted && post.lane.is_none();
            let is_owed = !past_retention && !is_nobodys;
            if is_owed && !plan.as_ref().is_some_and(is_complete) {
                window.suspects.push(Suspect::Unplanned(post.id, lane));
            }
            let post_index = window.posts.len() as u32;
            window.posts.push(post.id);
            window.backfilled.push(Vec::new());
            if plan.is_some() || is_owed {
                match unreadable_as_finding(
                    post.id,
                    "totals",
                    totals::compare_totals(auditor, post.id, plan.as_ref()).await,
                )? {
                    Ok(None) => {}
                    Ok(Some(_)) => window.suspects.push(Suspect::Miscounted(post.id)),
                    Err(unreadable) => run.report(unreadable).await?,
                }
            }
            let Some(plan) = plan else { continue };
            for (channel, chunk, _) in &plan.unplanned {
                let detail = "the ledger has an outcome of a chunk that was not planned";
                let key = (post.id, *channel, *chunk);
                run.report(Finding::of_chunk(FindingKind::Inconsistent, key, 0, detail))
                    .await?;
            }
            if !has_one_version(&plan) {
                let detail = "the slices of the post were planned at different follow versions";
                run.report(Finding::of_post(FindingKind::Inconsistent, post.id, detail))
                    .await?;
            }
            for chunk in &plan.chunks {
                let sums = check_chunk(post.id, chunk, lane, window, run).await?;
                *run.summary.channel_mut(chunk.channel) += sums;
                if sums.pending > 0
                    && let Some(at) = accepted_at
                {
                    let oldest = run.summary.oldest_pending_at.map_or(at, |oldest| oldest.min(at));
                    run.summary.oldest_pending_at = Some(oldest);
                }
                if chunk.channel == Channel::Timeline && auditor.limits.timelines {
                    window.add_pairs(chunk, post_index, !past_retention && !is_deleted);
                }
            }
            if let Some(backfilled) = window.backfilled.last_mut() {
                *backfilled = plan.backfilled;
            }
            run.throttle.pause().await;
        }
        Ok(())
    }

    /// Reads the next posts, ascending; empty at the end.
    async fn next_batch(&mut self) -> Result<Vec<Accepted>> {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH {
            self.fill_lists().await?;
            let listed = [self.archive.ids.front(), self.ledger.ids.front()];
            let next = listed.into_iter().flatten().copied();
            let Some(id) = next.chain(self.stream_next.map(|post| post.id)).min() else {
                break;
            };
            let in_stream = self.stream_next.filter(|post| post.id == id);
            if in_stream.is_some() {
                self.advance_stream().await?;
            }
            self.archive.take(id);
            self.ledger.take(id);
            batch.push(in_stream.unwrap_or(Accepted {
                id,
                lane: None,
                stored_at: None,
            }));
        }
        Ok(batch)
    }

    /// Reads the next page of each list that has no id left.
    async fn fill_lists(&mut self) -> Result<()> {
        let Auditor { posts, ledger, .. } = self.auditor;
        let (limit, only) = match self.scope {
            Scope::Post(post) => (1, Some(post)),
            Scope::All | Scope::Since(_) => (BATCH, None),
        };
        if self.archive.needs_page() {
            let page = posts.list(self.archive.after, limit).await?;
            self.archive.extend(page);
        }
        if self.ledger.needs_page() {
            let page = ledger.posts(self.ledger.after, limit).await?;
            self.ledger.extend(page);
        }
        if let Some(only) = only {
            for list in [&mut self.archive, &mut self.ledger] {
                list.ids.retain(|id| *id == only);
                list.ended = true;
            }
        }
        Ok(())
    }

    async fn advance_stream(&mut self) -> Result<()> {
        self.stream_next = match self.stream.next().await {
            None => None,
            Some(message) => {
                let message = message?;
                Some(Accepted {
                    id: PostId(message.sequence),
                    lane: Subject::parse(&message.subject).and_then(Subject::lane),
                    stored_at: Some(message.published_at),
                })
            }
        };
        Ok(())
    }
}

/// The post after which a list begins with this one.
fn before(post: PostId) -> Option<PostId> {
    post.0.checked_sub(1).map(PostId)
}

impl Auditor {
    /// The post after which the archive has posts that can be on a timeline.
    async fn first_retained(&self) -> Result<Option<PostId>> {
        let oldest = Timestamp::now().minus(self.limits.timeline_age_max);
        Ok(before(self.posts.first_since(oldest).await?))
    }
}

async fn check_chunk(
    post: PostId,
    chunk: &ChunkState,
    lane: Option<Lane>,
    window: &mut Window,
    run: &mut Run<'_>,
) -> Result<ChannelSums> {
    let key = (post, chunk.channel, chunk.chunk);
    if !is_consistent(chunk) || chunk.recipients.chunk_id() != chunk.chunk {
        let detail = "the states of the chunk in the ledger don't match its recipients";
        let targeted = chunk.recipients.len().into();
        run.report(Finding::of_chunk(
            FindingKind::Inconsistent,
            key,
            targeted,
            detail,
        ))
        .await?;
    }
    let sums = count_states(chunk);
    if sums.pending > 0 {
        window.suspects.push(Suspect::Lost(key, lane));
    }
    if sums.dead > 0 {
        window.suspects.push(Suspect::Unexplained(key));
    }
    Ok(sums)
}

//! The pass over the posts: compares acceptance with the plan, and the plan with the outcomes.

use std::{collections::VecDeque, pin::Pin};

use futures::{Stream, StreamExt as _};
use herald_mesh::{RawMessage, Subject, streams};
use herald_model::{Channel, Lane, PostId, time::Timestamp};
use herald_store::ChunkState;

use crate::{
    Auditor, Error, Finding, FindingKind, Result, Scope,
    confirm::{Run, Suspect},
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
}

type Messages = Pin<Box<dyn Stream<Item = herald_mesh::Result<RawMessage>> + Send>>;

/// Iterates over the posts in scope: posts in POSTS and posts that are only in the ledger.
pub(crate) struct Pass<'a> {
    auditor: &'a Auditor,
    scope: Scope,
    stream: Messages,
    stream_next: Option<Accepted>,
    ledger: VecDeque<PostId>,
    ledger_after: Option<PostId>,
    ledger_ended: bool,
    total: u64,
}

impl<'a> Pass<'a> {
    /// Opens the pass.
    ///
    /// # Errors
    /// [`Error::UnknownPost`] for one post that does not exist.
    pub(crate) async fn start(auditor: &'a Auditor, scope: Scope) -> Result<Self> {
        let mesh = &auditor.mesh;
        let last = mesh.last_sequence(streams::POSTS).await?;
        let (from, to) = match scope {
            Scope::All => (1, last),
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
            ledger: VecDeque::new(),
            ledger_after: match scope {
                Scope::Post(post) => post.0.checked_sub(1).map(PostId),
                // If POSTS has the previous post, that post and all earlier ones were accepted before the scope.
                Scope::Since(_) if mesh.message(streams::POSTS, from - 1).await?.is_some() => {
                    Some(PostId(from - 1))
                }
                Scope::All | Scope::Since(_) => None,
            },
            ledger_ended: false,
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
        let archived = auditor.posts.get(&ids).await?;
        for (post, archived) in batch.iter().zip(archived) {
            // A post that is only in the ledger and was accepted before `since`.
            if let Scope::Since(since) = scope
                && post.lane.is_none()
                && archived
                    .as_ref()
                    .is_none_or(|archived| archived.accepted_at < since)
            {
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
            if archived.is_none() {
                window.suspects.push(Suspect::Unarchived(post.id));
            }
            let lane = post.lane.or(archived.as_ref().map(|archived| archived.lane));
            let accepted_at = archived.as_ref().map(|archived| archived.accepted_at);
            // Retention may have removed the post from the ledger and the timelines.
            let past_retention =
                accepted_at.is_some_and(|at| Timestamp::now().since(at) >= auditor.limits.timeline_age_max);
            if !past_retention && !plan.as_ref().is_some_and(is_complete) {
                window.suspects.push(Suspect::Unplanned(post.id, lane));
            }
            // An engine may remove the entries of a deleted post.
            let is_deleted = archived
                .as_ref()
                .is_some_and(|archived| archived.deleted_at.is_some());
            let post_index = window.posts.len() as u32;
            window.posts.push(post.id);
            window.backfilled.push(Vec::new());
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
            match unreadable_as_finding(
                post.id,
                "totals",
                totals::compare_totals(auditor, post.id, &plan).await,
            )? {
                Ok(None) => {}
                Ok(Some(_)) => window.suspects.push(Suspect::Miscounted(post.id)),
                Err(unreadable) => run.report(unreadable).await?,
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
            self.fill_ledger().await?;
            let next = match (self.stream_next, self.ledger.front().copied()) {
                (None, None) => break,
                (Some(post), ledger) if ledger.is_none_or(|ledger| post.id <= ledger) => {
                    if ledger == Some(post.id) {
                        self.ledger.pop_front();
                    }
                    self.advance_stream().await?;
                    post
                }
                (_, ledger) => {
                    self.ledger.pop_front();
                    let Some(id) = ledger else { break };
                    Accepted { id, lane: None }
                }
            };
            batch.push(next);
        }
        Ok(batch)
    }

    async fn fill_ledger(&mut self) -> Result<()> {
        if !self.ledger.is_empty() || self.ledger_ended {
            return Ok(());
        }
        let limit = if matches!(self.scope, Scope::Post(_)) {
            1
        } else {
            BATCH
        };
        let mut posts = self.auditor.ledger.posts(self.ledger_after, limit).await?;
        if let Scope::Post(post) = self.scope {
            posts.retain(|found| *found == post);
            self.ledger_ended = true;
        }
        self.ledger_ended |= posts.is_empty();
        self.ledger_after = posts.last().copied().or(self.ledger_after);
        self.ledger.extend(posts);
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
                })
            }
        };
        Ok(())
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

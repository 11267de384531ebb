//! Rechecks suspects after reading the messages in flight, and reports the findings.

mod missing;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use herald_model::{Channel, Lane, PostId, UserKey};
use herald_store::{ChunkState, PostPlan};
use tokio::sync::mpsc;

use crate::{
    Auditor, Error, Event, Finding, FindingKind, Progress, Repaired, Result, Summary,
    dead_letter_index::DeadLetterIndex,
    in_flight::{ChunkKey, InFlight},
    isolated::Unreadable,
    plan::{count_states, is_complete, pending_recipients, read_plan},
    repair::Repair,
    throttle::Throttle,
    totals,
};

/// Minimum time between two progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// A possible finding, which may turn out to be work in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suspect {
    /// The post is not archived.
    Unarchived(PostId),
    /// The post is not completely planned.
    Unplanned(PostId, Option<Lane>),
    /// The chunk has pending recipients.
    Lost(ChunkKey, Option<Lane>),
    /// The chunk has dead recipients.
    Unexplained(ChunkKey),
    /// The post is not on the timeline.
    Missing(PostId, UserKey),
    /// The post is on the timeline without a plan.
    Extra(PostId, UserKey),
    /// The totals differ from the ledger.
    Miscounted(PostId),
}

impl Suspect {
    fn post(&self) -> PostId {
        match self {
            Self::Unarchived(post)
            | Self::Unplanned(post, _)
            | Self::Lost((post, ..), _)
            | Self::Unexplained((post, ..))
            | Self::Missing(post, _)
            | Self::Extra(post, _)
            | Self::Miscounted(post) => *post,
        }
    }
}

/// A running audit.
pub(crate) struct Run<'a> {
    pub(crate) auditor: &'a Auditor,
    events: &'a mpsc::Sender<Event>,
    pub(crate) repair: Option<Repair<'a>>,
    pub(crate) summary: Summary,
    pub(crate) unreadable: Unreadable,
    pub(crate) throttle: Throttle,
    posts_total: u64,
    started: Instant,
    reported_at: Instant,
}

impl<'a> Run<'a> {
    pub(crate) fn new(auditor: &'a Auditor, repair: bool, events: &'a mpsc::Sender<Event>) -> Self {
        let now = Instant::now();
        Self {
            auditor,
            events,
            repair: repair.then(|| Repair::new(auditor)),
            summary: Summary::default(),
            unreadable: Unreadable::default(),
            throttle: Throttle::new(auditor.limits.work_share),
            posts_total: 0,
            started: now,
            reported_at: now,
        }
    }

    /// Sets the approximate number of posts to check.
    pub(crate) fn set_posts_total(&mut self, total: u64) {
        self.posts_total = total;
    }

    /// Sends the progress, at most once per [`PROGRESS_INTERVAL`].
    pub(crate) async fn report_progress(&mut self) -> Result<()> {
        if self.reported_at.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.reported_at = Instant::now();
        let progress = Progress {
            posts: self.summary.posts,
            posts_total: self.posts_total.max(self.summary.posts),
            deliveries: self.summary.timeline.targeted + self.summary.push.targeted,
        };
        self.send(Event::Progress(progress)).await
    }

    async fn send(&self, event: Event) -> Result<()> {
        self.events.send(event).await.map_err(|_| Error::Abandoned)
    }

    /// Counts and sends a finding.
    pub(crate) async fn report(&mut self, finding: Finding) -> Result<()> {
        *self.summary.findings.entry(finding.kind).or_default() += 1;
        self.summary.repaired += u64::from(finding.repaired == Repaired::Sent);
        self.send(Event::Finding(finding)).await
    }

    /// Ends the audit and returns its summary.
    pub(crate) fn finish(mut self) -> Summary {
        self.summary.took = self.started.elapsed();
        self.summary
    }

    /// Reads the messages in flight, rechecks the suspects against the stores, and reports the remaining ones.
    pub(crate) async fn confirm(&mut self, suspects: Vec<Suspect>) -> Result<()> {
        if suspects.is_empty() {
            return Ok(());
        }
        let in_flight = InFlight::read(self.auditor, &mut self.throttle).await?;
        let dead_letters = DeadLetterIndex::read(&*self.auditor.dead_letters, &mut self.throttle).await?;
        let missing = self.reread_missing(&suspects).await?;
        let mut by_post: BTreeMap<PostId, Vec<Suspect>> = BTreeMap::new();
        for suspect in suspects {
            by_post.entry(suspect.post()).or_default().push(suspect);
        }
        for (post, suspects) in by_post {
            let plan = match read_plan(self.auditor, post).await? {
                Ok(plan) => plan,
                Err(unreadable) => {
                    self.report(unreadable).await?;
                    continue;
                }
            };
            let current = CurrentState {
                chunks: plan
                    .iter()
                    .flat_map(|plan| &plan.chunks)
                    .map(|c| ((c.channel, c.chunk), c))
                    .collect(),
                plan: plan.as_ref(),
                in_flight: &in_flight,
                dead_letters: &dead_letters,
            };
            for suspect in suspects {
                self.recheck(suspect, &current).await?;
            }
            if let Some(users) = missing.get(&post) {
                self.report_missing(post, users, &current).await?;
            }
            self.throttle.pause().await;
            self.report_progress().await?;
        }
        Ok(())
    }

    async fn recheck(&mut self, suspect: Suspect, current: &CurrentState<'_>) -> Result<()> {
        match suspect {
            Suspect::Unarchived(post) => self.recheck_unarchived(post, current).await,
            Suspect::Unplanned(post, lane) => self.recheck_unplanned(post, lane, current).await,
            Suspect::Lost(key, lane) => self.recheck_lost(key, lane, current).await,
            Suspect::Unexplained(key) => self.recheck_unexplained(key, current).await,
            // Rechecked together, for all posts.
            Suspect::Missing(..) => Ok(()),
            Suspect::Extra(post, user) => self.recheck_extra(post, user, current).await,
            Suspect::Miscounted(post) => self.recheck_miscounted(post, current).await,
        }
    }

    async fn recheck_unarchived(&mut self, post: PostId, current: &CurrentState<'_>) -> Result<()> {
        if current.in_flight.is_archiving(post)
            || self.auditor.posts.get(&[post]).await?.iter().all(Option::is_some)
        {
            return Ok(());
        }
        if current.dead_letters.explains_post(post, &["archive"]) {
            return Ok(());
        }
        let detail = "accepted but not in the archive, and no message in flight will archive it";
        let mut finding = Finding::of_post(FindingKind::Unarchived, post, detail);
        if let Some(repair) = &mut self.repair {
            finding.repaired = repair.archive(post).await;
        }
        self.report(finding).await
    }

    async fn recheck_unplanned(
        &mut self,
        post: PostId,
        lane: Option<Lane>,
        current: &CurrentState<'_>,
    ) -> Result<()> {
        if current.plan.is_some_and(is_complete) {
            return Ok(());
        }
        if current.in_flight.is_expanding(post, lane) {
            self.summary.planning_posts += 1;
            return Ok(());
        }
        if current.dead_letters.explains_post(post, &["fanout", "slice"]) {
            self.summary.dead_posts += 1;
            return Ok(());
        }
        let slices = current.plan.map_or(0, |plan| plan.slices.len());
        let detail = format!(
            "accepted but not completely planned ({slices} slices), and no message in flight will plan the rest"
        );
        let mut finding = Finding::of_post(FindingKind::Unplanned, post, detail);
        if let Some(repair) = &mut self.repair {
            finding.repaired = repair.expand(post).await;
        }
        self.report(finding).await
    }

    async fn recheck_lost(
        &mut self,
        key: ChunkKey,
        lane: Option<Lane>,
        current: &CurrentState<'_>,
    ) -> Result<()> {
        let in_flight = current.in_flight;
        // The deadletter service may still mark the chunk dead.
        if in_flight.is_delivering(&key) || in_flight.is_expanding(key.0, lane) || in_flight.dead_letters {
            return Ok(());
        }
        let Some(chunk) = current.chunk(&key) else {
            return Ok(());
        };
        let users = pending_recipients(chunk);
        if users.is_empty() {
            return Ok(());
        }
        let repaired = self.resend(key, chunk).await;
        let ids = self.auditor.users.ids(&users).await?;
        for user in ids {
            let detail = "planned and pending, and no message in flight will deliver it";
            let finding = Finding {
                user,
                repaired: repaired.clone(),
                ..Finding::of_chunk(FindingKind::Lost, key, 1, detail)
            };
            self.report(finding).await?;
        }
        Ok(())
    }

    async fn recheck_unexplained(&mut self, key: ChunkKey, current: &CurrentState<'_>) -> Result<()> {
        if current.in_flight.dead_letters || current.in_flight.is_delivering(&key) {
            return Ok(());
        }
        let dead = current.chunk(&key).map_or(0, |chunk| count_states(chunk).dead);
        if dead == 0 || current.dead_letters.explains_chunk(&key) {
            return Ok(());
        }
        let detail = "dead in the ledger, and no dead letter explains it";
        let mut finding = Finding::of_chunk(FindingKind::Unexplained, key, dead, detail);
        if let (Some(repair), Some(chunk)) = (&mut self.repair, current.chunk(&key)) {
            finding.repaired = repair.write_dead_letter(key, chunk).await;
        }
        self.report(finding).await
    }

    async fn recheck_extra(&mut self, post: PostId, user: UserKey, current: &CurrentState<'_>) -> Result<()> {
        // The entry may have been planned or backfilled since the first check.
        if let Some(plan) = current.plan {
            let mut timeline = plan
                .chunks
                .iter()
                .filter(|chunk| chunk.channel == Channel::Timeline);
            if timeline.any(|chunk| chunk.recipients.contains(user))
                || plan.backfilled.iter().any(|backfill| backfill.contains(user))
            {
                return Ok(());
            }
        }
        let detail = "on the timeline, but neither planned nor backfilled";
        let mut finding = Finding::of_post(FindingKind::Extra, post, detail);
        finding.channel = Some(Channel::Timeline);
        finding.user = self.user_id(user).await?;
        finding.deliveries = 1;
        if self.repair.is_some() {
            finding.repaired = Repaired::Failed("entries are never removed from a timeline".into());
        }
        self.report(finding).await
    }

    async fn recheck_miscounted(&mut self, post: PostId, current: &CurrentState<'_>) -> Result<()> {
        let in_flight = current.in_flight;
        let chunks = || current.plan.iter().flat_map(|plan| &plan.chunks);
        let is_delivering = |chunk: &ChunkState| in_flight.is_delivering(&(post, chunk.channel, chunk.chunk));
        if in_flight.events
            || in_flight.is_counting(post)
            || in_flight.dead_letters
            || chunks().any(is_delivering)
        {
            return Ok(());
        }
        let Some((counted, settled)) = totals::compare_totals(self.auditor, post, current.plan).await? else {
            return Ok(());
        };
        let is_post_counted = counted[0] == settled[0];
        let are_deliveries_counted = counted[1..] == settled[1..];
        if are_deliveries_counted && current.dead_letters.explains_post(post, &["analytics-posts"]) {
            return Ok(());
        }
        let detail = format!(
            "analytics has {counted:?}, the ledger has {settled:?} (post accepted; timeline delivered; push delivered, \
             suppressed, expired, dead)"
        );
        let mut finding = Finding::of_post(FindingKind::Miscounted, post, detail);
        if let Some(repair) = &mut self.repair {
            finding.repaired = Repaired::Sent;
            if !is_post_counted {
                finding.repaired = repair.count_post(post).await;
            }
            if let Some(plan) = current.plan.filter(|_| !are_deliveries_counted)
                && finding.repaired == Repaired::Sent
            {
                finding.repaired = repair.recount(post, plan).await;
            }
        }
        self.report(finding).await
    }

    async fn resend(&mut self, key: ChunkKey, chunk: &ChunkState) -> Repaired {
        match &mut self.repair {
            Some(repair) => repair.resend(key, chunk).await,
            None => Repaired::NotRequested,
        }
    }

    pub(crate) async fn user_id(&self, user: UserKey) -> Result<Option<herald_model::UserId>> {
        Ok(self.auditor.users.ids(&[user]).await?.pop().flatten())
    }
}

/// The state of a post, read after the messages in flight.
struct CurrentState<'a> {
    plan: Option<&'a PostPlan>,
    chunks: HashMap<(Channel, herald_model::ChunkId), &'a ChunkState>,
    in_flight: &'a InFlight,
    dead_letters: &'a DeadLetterIndex,
}

impl<'a> CurrentState<'a> {
    fn chunk(&self, (_, channel, chunk): &ChunkKey) -> Option<&'a ChunkState> {
        self.chunks.get(&(*channel, *chunk)).copied()
    }
}

//! What looked wrong, looked at again.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use herald_model::{Channel, Lane, PostId, UserKey};
use herald_store::{ChunkState, PostPlan};
use tokio::sync::mpsc;

use crate::{
    Auditor, Error, Event, Finding, FindingKind, Progress, Repaired, Result, Summary,
    carried::{Carried, ChunkKey},
    explained::Explained,
    pace::Pace,
    plan::{is_complete, pending, plan_of, sums},
    repair::Repair,
    totals,
};

/// Between two tellings of how far it has come.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What looks wrong and may be on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suspect {
    /// The post is not archived.
    Unarchived(PostId),
    /// The post is not planned, or not to the end.
    Unplanned(PostId, Option<Lane>),
    /// The chunk has pending recipients.
    Lost(ChunkKey, Option<Lane>),
    /// The chunk has dead recipients.
    Unexplained(ChunkKey),
    /// The post is not on the timeline.
    Missing(PostId, UserKey),
    /// The post is on the timeline and shouldn't.
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

/// One audit under way.
pub(crate) struct Run<'a> {
    auditor: &'a Auditor,
    events: &'a mpsc::Sender<Event>,
    pub(crate) repair: Option<Repair<'a>>,
    pub(crate) summary: Summary,
    pub(crate) pace: Pace,
    posts_total: u64,
    started: Instant,
    told: Instant,
}

impl<'a> Run<'a> {
    pub(crate) fn new(auditor: &'a Auditor, repair: bool, events: &'a mpsc::Sender<Event>) -> Self {
        let now = Instant::now();
        Self {
            auditor,
            events,
            repair: repair.then(|| Repair::new(auditor)),
            summary: Summary::default(),
            pace: Pace::new(auditor.limits.work_share),
            posts_total: 0,
            started: now,
            told: now,
        }
    }

    /// So many posts will be checked, about.
    pub(crate) fn expect_posts(&mut self, total: u64) {
        self.posts_total = total;
    }

    /// Tells how far it has come, now and then.
    pub(crate) async fn tell_progress(&mut self) -> Result<()> {
        if self.told.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.told = Instant::now();
        let progress = Progress {
            posts: self.summary.posts,
            posts_total: self.posts_total.max(self.summary.posts),
            deliveries: self.summary.timeline.targeted + self.summary.push.targeted,
        };
        self.tell(Event::Progress(progress)).await
    }

    async fn tell(&self, event: Event) -> Result<()> {
        self.events.send(event).await.map_err(|_| Error::Abandoned)
    }

    /// Tells a finding.
    pub(crate) async fn report(&mut self, finding: Finding) -> Result<()> {
        *self.summary.findings.entry(finding.kind).or_default() += 1;
        self.summary.repaired += u64::from(finding.repaired == Repaired::Sent);
        self.tell(Event::Finding(finding)).await
    }

    /// The end.
    pub(crate) fn finish(mut self) -> Summary {
        self.summary.took = self.started.elapsed();
        self.summary
    }

    /// Looks again at what looked wrong, after what the streams carry.
    pub(crate) async fn confirm(&mut self, suspects: Vec<Suspect>) -> Result<()> {
        if suspects.is_empty() {
            return Ok(());
        }
        let carried = Carried::read(self.auditor, &mut self.pace).await?;
        let explained = Explained::read(&*self.auditor.dead_letters, &mut self.pace).await?;
        let mut by_post: BTreeMap<PostId, Vec<Suspect>> = BTreeMap::new();
        for suspect in suspects {
            by_post.entry(suspect.post()).or_default().push(suspect);
        }
        for (post, suspects) in by_post {
            let plan = match plan_of(self.auditor, post).await? {
                Ok(plan) => plan,
                Err(unreadable) => {
                    self.report(unreadable).await?;
                    continue;
                }
            };
            let looked = Looked {
                chunks: plan
                    .iter()
                    .flat_map(|plan| &plan.chunks)
                    .map(|c| ((c.channel, c.chunk), c))
                    .collect(),
                plan: plan.as_ref(),
                carried: &carried,
                explained: &explained,
            };
            for suspect in suspects {
                self.look_again(suspect, &looked).await?;
            }
            self.pace.rest().await;
            self.tell_progress().await?;
        }
        Ok(())
    }

    async fn look_again(&mut self, suspect: Suspect, looked: &Looked<'_>) -> Result<()> {
        match suspect {
            Suspect::Unarchived(post) => self.unarchived(post, looked).await,
            Suspect::Unplanned(post, lane) => self.unplanned(post, lane, looked).await,
            Suspect::Lost(key, lane) => self.lost(key, lane, looked).await,
            Suspect::Unexplained(key) => self.unexplained(key, looked).await,
            Suspect::Missing(post, user) => self.missing(post, user, looked).await,
            Suspect::Extra(post, user) => self.extra(post, user, looked).await,
            Suspect::Miscounted(post) => self.miscounted(post, looked).await,
        }
    }

    async fn unarchived(&mut self, post: PostId, looked: &Looked<'_>) -> Result<()> {
        if looked.carried.archives(post) || self.auditor.posts.get(&[post]).await?.iter().all(Option::is_some)
        {
            return Ok(());
        }
        if looked.explained.post(post, &["archive"]) {
            return Ok(());
        }
        let detail = "accepted and not in the archive, and no message will put it there";
        let mut finding = Finding::of_post(FindingKind::Unarchived, post, detail);
        if let Some(repair) = &mut self.repair {
            finding.repaired = repair.archive(post).await;
        }
        self.report(finding).await
    }

    async fn unplanned(&mut self, post: PostId, lane: Option<Lane>, looked: &Looked<'_>) -> Result<()> {
        if looked.plan.is_some_and(is_complete) {
            return Ok(());
        }
        if looked.carried.expands(post, lane) {
            self.summary.planning_posts += 1;
            return Ok(());
        }
        if looked.explained.post(post, &["fanout", "slice"]) {
            self.summary.dead_posts += 1;
            return Ok(());
        }
        let slices = looked.plan.map_or(0, |plan| plan.slices.len());
        let detail =
            format!("accepted, {slices} slices planned, not the last one, and no message will plan the rest");
        let mut finding = Finding::of_post(FindingKind::Unplanned, post, detail);
        if let Some(repair) = &mut self.repair {
            finding.repaired = repair.expand(post).await;
        }
        self.report(finding).await
    }

    async fn lost(&mut self, key: ChunkKey, lane: Option<Lane>, looked: &Looked<'_>) -> Result<()> {
        let carried = looked.carried;
        // What was given up is recorded as dead a moment later.
        if carried.delivers(&key) || carried.expands(key.0, lane) || carried.dead_letters {
            return Ok(());
        }
        let Some(chunk) = looked.chunk(&key) else {
            return Ok(());
        };
        let users = pending(chunk);
        if users.is_empty() {
            return Ok(());
        }
        let repaired = self.resend(key, chunk).await;
        let ids = self.auditor.users.ids(&users).await?;
        for user in ids {
            let detail = "planned and pending, and no message will deliver it";
            let finding = Finding {
                user,
                repaired: repaired.clone(),
                ..Finding::of_chunk(FindingKind::Lost, key, 1, detail)
            };
            self.report(finding).await?;
        }
        Ok(())
    }

    async fn unexplained(&mut self, key: ChunkKey, looked: &Looked<'_>) -> Result<()> {
        if looked.carried.dead_letters || looked.carried.delivers(&key) {
            return Ok(());
        }
        let dead = looked.chunk(&key).map_or(0, |chunk| sums(chunk).dead);
        if dead == 0 || looked.explained.chunk(&key) {
            return Ok(());
        }
        let detail = "dead in the ledger, and no dead letter says why";
        let mut finding = Finding::of_chunk(FindingKind::Unexplained, key, dead, detail);
        if let (Some(repair), Some(chunk)) = (&mut self.repair, looked.chunk(&key)) {
            finding.repaired = repair.write_dead_letter(key, chunk).await;
        }
        self.report(finding).await
    }

    async fn missing(&mut self, post: PostId, user: UserKey, looked: &Looked<'_>) -> Result<()> {
        let newest = self
            .auditor
            .timelines
            .newest(user, Some(PostId(post.0 + 1)), 1)
            .await?;
        if newest.first() == Some(&post) {
            return Ok(());
        }
        let chunk = looked.plan.into_iter().flat_map(|plan| &plan.chunks);
        let Some(chunk) = chunk
            .filter(|chunk| chunk.channel == Channel::Timeline)
            .find(|chunk| chunk.recipients.contains(user))
        else {
            return Ok(());
        };
        let key = (post, Channel::Timeline, chunk.chunk);
        let repaired = self.resend(key, chunk).await;
        let finding = Finding {
            user: self.user_id(user).await?,
            repaired,
            ..Finding::of_chunk(
                FindingKind::Missing,
                key,
                1,
                "delivered by the ledger, and not on the timeline",
            )
        };
        self.report(finding).await
    }

    async fn extra(&mut self, post: PostId, user: UserKey, looked: &Looked<'_>) -> Result<()> {
        // Planned or backfilled since.
        if let Some(plan) = looked.plan {
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
        let detail = "on the timeline, and neither planned for it nor backfilled";
        let mut finding = Finding::of_post(FindingKind::Extra, post, detail);
        finding.channel = Some(Channel::Timeline);
        finding.user = self.user_id(user).await?;
        finding.deliveries = 1;
        if self.repair.is_some() {
            finding.repaired = Repaired::Failed("nothing is ever taken off a timeline".into());
        }
        self.report(finding).await
    }

    async fn miscounted(&mut self, post: PostId, looked: &Looked<'_>) -> Result<()> {
        let carried = looked.carried;
        let Some(plan) = looked.plan else { return Ok(()) };
        let delivers = |chunk: &ChunkState| carried.delivers(&(post, chunk.channel, chunk.chunk));
        if carried.events || carried.dead_letters || plan.chunks.iter().any(delivers) {
            return Ok(());
        }
        let Some((counted, settled)) = totals::difference(self.auditor, post, plan).await? else {
            return Ok(());
        };
        let detail = format!(
            "analytics counts {counted:?}, the ledger has {settled:?} (timeline delivered; push delivered, suppressed, \
             expired, dead)"
        );
        let mut finding = Finding::of_post(FindingKind::Miscounted, post, detail);
        if let Some(repair) = &mut self.repair {
            finding.repaired = repair.recount(post, plan).await;
        }
        self.report(finding).await
    }

    async fn resend(&mut self, key: ChunkKey, chunk: &ChunkState) -> Repaired {
        match &mut self.repair {
            Some(repair) => repair.resend(key, chunk).await,
            None => Repaired::NotAsked,
        }
    }

    async fn user_id(&self, user: UserKey) -> Result<Option<herald_model::UserId>> {
        Ok(self.auditor.users.ids(&[user]).await?.pop().flatten())
    }
}

/// The ledger, read again.
struct Looked<'a> {
    plan: Option<&'a PostPlan>,
    chunks: HashMap<(Channel, herald_model::ChunkId), &'a ChunkState>,
    carried: &'a Carried,
    explained: &'a Explained,
}

impl<'a> Looked<'a> {
    fn chunk(&self, (_, channel, chunk): &ChunkKey) -> Option<&'a ChunkState> {
        self.chunks.get(&(*channel, *chunk)).copied()
    }
}

//! One attempt at a chunk: decides what to do with each pending recipient, and sends the pushes.

use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use herald_failure::isolate;
use herald_mesh::Delivery;
use herald_model::{Device, DeviceId, Preferences, UserId, UserKey, time::Timestamp};
use herald_store::{Devices, SuppressedReason};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::{Instrument as _, error};

use crate::{
    Metrics,
    adapters::{Dispatcher, Push, RequestSpans, Turn},
    claim::Claim,
    device_health::update_device,
    domain::{self, Decision, Progress, Reason, Recipient, Sent, Verdict},
    error::AttemptError,
    handler::{Chunk, PushHandler},
};

/// Sends in flight up to which a chunk counts as one that only waits for slow devices.
const SLOW_SENDS_MAX: usize = 64;

/// The stored data of a recipient.
struct RecipientData {
    preferences: Preferences,
    devices: Vec<Device>,
    id: Option<UserId>,
}

/// One push to one device.
struct Job {
    /// Index of the recipient in the chunk.
    index: usize,
    recipient: Arc<UserId>,
    device: Device,
}

/// The sends of one attempt at a chunk.
struct Sends {
    push: Arc<Push>,
    jobs: VecDeque<Job>,
    turn: Arc<Turn>,
}

impl PushHandler {
    /// Settles the recipients that are due, or claims the chunk for `lease` and sends to their devices. If reading a
    /// recipient fails permanently, the recipient is isolated and settled with `bisect`; without it, the attempt fails.
    pub(crate) async fn attempt(
        &self,
        chunk: &Chunk,
        delivery: &Delivery,
        progress: &mut Progress,
        (claim, lease): (&mut Option<Arc<Claim>>, Duration),
        bisect: bool,
    ) -> Result<(), AttemptError> {
        let now = Timestamp::now();
        if now >= progress.expires_at() {
            progress.expire_pending();
            return Ok(());
        }
        if progress.due(now).next().is_none() {
            return Ok(());
        }
        let post = self.posts.read_one(chunk.post).await?;
        let post = post.filter(|post| post.deleted_at.is_none());
        let jobs = self.plan_due(chunk, progress, post.is_none(), bisect).await?;
        match post {
            Some(post) if !jobs.is_empty() => {
                let claim = match claim {
                    Some(claim) => claim,
                    None => claim.insert(self.claim(chunk, progress, lease).await?),
                };
                let push = Push::new(post, chunk.lane, chunk.accepted_at, progress.expires_at());
                let turn = Turn {
                    claim: claim.clone(),
                    // Without the delay queue, each wait outside would spend an attempt of the message.
                    host_wait: delivery.can_wait().await.then(|| self.config.host_wait()),
                    busy_share: chunk.id.0 as f64 / u64::MAX as f64,
                    requests: RequestSpans::new(u64::from(chunk.generation) + delivery.attempt),
                };
                let sends = Sends {
                    push: Arc::new(push),
                    jobs: jobs.into(),
                    turn: Arc::new(turn),
                };
                self.send(chunk, delivery, progress, sends).await
            }
            _ => Ok(()),
        }
    }

    /// Settles the recipients that are due and get no push, and returns the pushes to the others.
    async fn plan_due(
        &self,
        chunk: &Chunk,
        progress: &mut Progress,
        is_deleted: bool,
        bisect: bool,
    ) -> Result<Vec<Job>, AttemptError> {
        let now = Timestamp::now();
        let mut jobs = Vec::new();
        for (index, data) in self.read_due(progress, now, bisect).await? {
            jobs.extend(plan_recipient(chunk, progress, is_deleted, index, data, now));
        }
        Ok(jobs)
    }

    /// Reads the data of the recipients that are due, each with its index in the chunk.
    async fn read_due(
        &self,
        progress: &mut Progress,
        now: Timestamp,
        bisect: bool,
    ) -> Result<Vec<(usize, RecipientData)>, AttemptError> {
        let (indices, users): (Vec<usize>, Vec<UserKey>) = progress
            .due(now)
            .map(|(index, known)| (index, known.user))
            .unzip();
        // Only reads are bisected: they are idempotent, sends are not.
        let isolated = isolate(users.len(), bisect, |part| self.read_recipients(&users[part])).await;
        if let Some(failure) = isolated.stopped {
            return Err(failure.into());
        }
        for (position, reason) in &isolated.failed {
            progress.settle_isolated(indices[*position], reason);
        }
        let read = isolated
            .done
            .into_iter()
            .flat_map(|(part, data)| indices[part].iter().copied().zip(data));
        Ok(read.collect())
    }

    async fn read_recipients(&self, users: &[UserKey]) -> Result<Vec<RecipientData>, AttemptError> {
        let (preferences, devices, ids) = tokio::try_join!(
            self.preferences.of(users),
            self.devices.of(users),
            self.users.ids(users)
        )?;
        let rows = preferences.into_iter().zip(devices).zip(ids);
        Ok(rows
            .map(|((preferences, devices), id)| RecipientData {
                preferences,
                devices,
                id,
            })
            .collect())
    }

    /// Sends the pushes, extends the claim, and records progress periodically. After an error no more requests are
    /// started, but the verdicts of those in flight are still recorded in `progress`.
    ///
    /// A slow device delays nobody: meanwhile, devices that failed are tried again when they are due, and a chunk that
    /// only waits for responses leaves its place to another one.
    async fn send(
        &self,
        chunk: &Chunk,
        delivery: &Delivery,
        progress: &mut Progress,
        sends: Sends,
    ) -> Result<(), AttemptError> {
        let Sends { push, mut jobs, turn } = sends;
        let claim = turn.claim.clone();
        let backoff = self.config.backoff();
        let interval = self.config.settle_interval();
        let mut tick = interval_at(Instant::now() + interval, interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut extend_tick = interval_at(Instant::now() + claim.extend_interval(), claim.extend_interval());
        extend_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Without an end, devices that are slow in turn would keep the chunk here for ever.
        let retry_until = Instant::now() + self.config.request_timeout();
        let mut slow_chunk = None;
        let mut running = JoinSet::new();
        let mut outcome = Ok(());
        loop {
            if outcome.is_err() {
                // No request starts that waits for its turn.
                claim.lose();
            }
            while outcome.is_ok() && running.len() < self.config.sends_per_chunk_max {
                let Some(job) = jobs.pop_front() else { break };
                let sending = run_job(
                    self.dispatcher.clone(),
                    self.devices.clone(),
                    self.metrics.clone(),
                    self.config.disable_failing_days,
                    push.clone(),
                    turn.clone(),
                    job,
                );
                // What it logs and observes names the trace of the chunk.
                running.spawn(sending.in_current_span());
            }
            let (mut due, mut extend) = (false, false);
            tokio::select! {
                joined = running.join_next() => match joined {
                    Some(Ok((index, sent))) => {
                        if sent.verdict == Verdict::Unclaimed && outcome.is_ok() {
                            outcome = Err(AttemptError::ClaimEnded);
                        }
                        progress.record(index, &sent, Timestamp::now(), &backoff, rand::random());
                    }
                    // The recipient stays pending.
                    Some(Err(error)) => error!(%error, post_id = chunk.post.0, "sending a push panicked; the recipient stays pending"),
                    None => return outcome,
                },
                _ = tick.tick() => due = true,
                _ = extend_tick.tick() => extend = true,
            }
            if outcome.is_err() {
                continue;
            }
            if extend {
                outcome = self.extend_claim(chunk, progress, &claim).await;
            }
            if outcome.is_ok() && (due || progress.unrecorded() >= self.config.settle_sends_max) {
                outcome = self.record(chunk, progress, Some(&claim)).await;
            }
            if due && outcome.is_ok() {
                match self.posts.is_deleted(chunk.post).await {
                    Ok(true) => push.mark_deleted(),
                    Ok(false) => {}
                    Err(error) => outcome = Err(error.into()),
                }
            }
            if due && outcome.is_ok() && jobs.is_empty() {
                if Instant::now() < retry_until && progress.due(Timestamp::now()).next().is_some() {
                    match self.plan_due(chunk, progress, push.is_deleted(), false).await {
                        Ok(retries) => jobs.extend(retries),
                        Err(error) => outcome = Err(error),
                    }
                }
                if slow_chunk.is_none()
                    && (1..=SLOW_SENDS_MAX).contains(&running.len())
                    && let Ok(permit) = self.slow_chunks[chunk.lane as usize].try_acquire()
                {
                    slow_chunk = Some(permit);
                    delivery.release_slot();
                }
            }
        }
    }
}

/// Settles a recipient without sending, or returns the pushes to its devices that are due.
fn plan_recipient(
    chunk: &Chunk,
    progress: &mut Progress,
    is_deleted: bool,
    index: usize,
    data: RecipientData,
    now: Timestamp,
) -> Vec<Job> {
    let (enabled, disabled): (Vec<Device>, Vec<Device>) = data
        .devices
        .into_iter()
        .partition(|device| device.disabled.is_none());
    let registered: Vec<DeviceId> = enabled.iter().map(|device| device.id).collect();
    progress.retain_waiting(index, &registered);
    let unwanted = if is_deleted {
        Some(SuppressedReason::PostDeleted)
    } else if !data.preferences.push_enabled {
        Some(SuppressedReason::PushOff)
    } else if data.preferences.muted.contains(&chunk.author) {
        Some(SuppressedReason::Muted)
    } else if enabled.is_empty() && !disabled.is_empty() {
        Some(SuppressedReason::DeviceDisabled)
    } else {
        None
    };
    let recipient = Recipient {
        unwanted,
        registered: &registered,
        known: progress.devices(index),
    };
    match (domain::decide(&recipient, now), data.id) {
        (Decision::Wait, _) => Vec::new(),
        (Decision::Suppress(reason), _) => {
            progress.suppress(index, reason);
            Vec::new()
        }
        // A user without an id can't have requested pushes.
        (Decision::Send(_), None) => {
            progress.suppress(index, SuppressedReason::UnknownUser);
            Vec::new()
        }
        (Decision::Send(targets), Some(id)) => {
            progress.expect_verdicts(index, u32::try_from(targets.len()).unwrap_or(u32::MAX));
            let recipient = Arc::new(id);
            let devices = enabled.into_iter().enumerate();
            devices
                .filter(|(place, _)| targets.contains(place))
                .map(|(_, device)| Job {
                    index,
                    recipient: recipient.clone(),
                    device,
                })
                .collect()
        }
    }
}

/// Sends one push, and changes the device if it is gone or fails for long. Returns the index of the recipient with the
/// result. A panic is a transient error of this device only.
async fn run_job(
    dispatcher: Arc<Dispatcher>,
    devices: Arc<dyn Devices>,
    metrics: Metrics,
    failing_days_max: u32,
    push: Arc<Push>,
    turn: Arc<Turn>,
    job: Job,
) -> (usize, Sent) {
    let Job {
        index,
        recipient,
        device,
    } = job;
    let sending = async {
        let verdict = dispatcher.send(&push, &recipient, &device, &turn).await;
        herald_failpoints::point!("push.sent");
        let provider = dispatcher.provider(&device);
        update_device(&*devices, &metrics, &device, provider, verdict, failing_days_max).await
    };
    let verdict = AssertUnwindSafe(sending).catch_unwind().await;
    let panicked = |_| Verdict::Retry {
        reason: Reason::Panic,
        after: None,
    };
    let sent = dispatcher.describe(&device, verdict.unwrap_or_else(panicked));
    (index, sent)
}

//! One attempt at a chunk: decides what to do with each pending recipient, and sends the pushes.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use herald_failure::isolate;
use herald_model::{Device, DeviceId, Preferences, UserId, UserKey, time::Timestamp};
use herald_store::Devices;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::{error, warn};

use crate::{
    adapters::{Dispatcher, Push},
    domain::{self, Decision, Progress, Provider, Reason, Recipient, Verdict},
    error::AttemptError,
    handler::{Chunk, PushHandler},
};

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

/// The result of a [`Job`].
struct JobResult {
    index: usize,
    device: DeviceId,
    provider: Provider,
    verdict: Verdict,
}

impl PushHandler {
    /// Settles or sends to all pending recipients. If reading a recipient fails permanently, the recipient is isolated
    /// and settled with `bisect`; without it, the attempt fails.
    pub(crate) async fn attempt(
        &self,
        chunk: &Chunk,
        progress: &mut Progress,
        bisect: bool,
    ) -> Result<(), AttemptError> {
        if !progress.is_pending() {
            return Ok(());
        }
        if Timestamp::now() >= chunk.expires_at {
            expire_pending(progress);
            return Ok(());
        }
        let post = self.posts.read_one(chunk.post).await?;
        let post = post.filter(|post| post.deleted_at.is_none());
        let pending = self.read_pending(progress, bisect).await?;
        let mut jobs = Vec::new();
        for (index, data) in pending {
            let device_ids: Vec<DeviceId> = data.devices.iter().map(|device| device.id).collect();
            let recipient = Recipient {
                expired: false,
                post_gone: post.is_none(),
                // A user without an id can't have requested pushes.
                unwanted: !data.preferences.push_enabled
                    || data.preferences.muted.contains(&chunk.author)
                    || data.id.is_none(),
                devices: &device_ids,
                done: progress.done(index),
            };
            match (domain::decide(&recipient), data.id) {
                (Decision::Settle(state), _) => progress.settle(index, state),
                (Decision::Send(targets), Some(id)) => {
                    progress.expect_verdicts(index, u32::try_from(targets.len()).unwrap_or(u32::MAX));
                    let recipient = Arc::new(id);
                    let devices = data.devices.into_iter().enumerate();
                    jobs.extend(
                        devices
                            .filter(|(place, _)| targets.contains(place))
                            .map(|(_, device)| Job {
                                index,
                                recipient: recipient.clone(),
                                device,
                            }),
                    );
                }
                (Decision::Send(_), None) => {
                    error!(
                        post_id = chunk.post.0,
                        "push not sent: its recipient has no user id; the recipient stays pending"
                    );
                }
            }
        }
        match post {
            Some(post) if !jobs.is_empty() => {
                let push = Push::new(post, chunk.lane, chunk.accepted_at, chunk.expires_at);
                self.send(chunk, progress, Arc::new(push), jobs).await
            }
            _ => Ok(()),
        }
    }

    /// Reads the data of the pending recipients, each with its index in the chunk.
    async fn read_pending(
        &self,
        progress: &mut Progress,
        bisect: bool,
    ) -> Result<Vec<(usize, RecipientData)>, AttemptError> {
        let (indices, users): (Vec<usize>, Vec<UserKey>) =
            progress.pending().map(|(index, user, _)| (index, user)).unzip();
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

    /// Sends the pushes, and records progress periodically. After an error no more pushes are sent, but the verdicts of
    /// those in flight are still recorded in `progress`.
    async fn send(
        &self,
        chunk: &Chunk,
        progress: &mut Progress,
        push: Arc<Push>,
        jobs: Vec<Job>,
    ) -> Result<(), AttemptError> {
        let interval = self.config.settle_interval();
        let mut tick = interval_at(Instant::now() + interval, interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut jobs = jobs.into_iter();
        let mut running = JoinSet::new();
        let mut outcome = Ok(());
        loop {
            while outcome.is_ok() && running.len() < self.config.sends_per_chunk_max {
                let Some(job) = jobs.next() else { break };
                running.spawn(run_job(
                    self.dispatcher.clone(),
                    self.devices.clone(),
                    push.clone(),
                    job,
                ));
            }
            let mut due = false;
            tokio::select! {
                joined = running.join_next() => match joined {
                    Some(Ok(result)) => {
                        progress.record(result.index, result.device, result.provider, result.verdict);
                    }
                    // The recipient stays pending.
                    Some(Err(error)) => error!(%error, post_id = chunk.post.0, "sending a push panicked; the recipient stays pending"),
                    None => return outcome,
                },
                _ = tick.tick() => due = true,
            }
            if outcome.is_err() {
                continue;
            }
            if due || progress.unrecorded() >= self.config.settle_sends_max {
                outcome = self.record(chunk, progress).await;
            }
            if due && outcome.is_ok() {
                match self.posts.is_deleted(chunk.post).await {
                    Ok(true) => push.mark_deleted(),
                    Ok(false) => {}
                    Err(error) => outcome = Err(error.into()),
                }
            }
        }
    }
}

/// Settles all pending recipients of an expired push.
fn expire_pending(progress: &mut Progress) {
    let indices: Vec<usize> = progress.pending().map(|(index, _, _)| index).collect();
    for index in indices {
        let recipient = Recipient {
            expired: true,
            post_gone: false,
            unwanted: false,
            devices: &[],
            done: progress.done(index),
        };
        if let Decision::Settle(state) = domain::decide(&recipient) {
            progress.settle(index, state);
        }
    }
}

/// Sends one push, and unregisters the device if it no longer exists. A panic is a transient error of this device only.
async fn run_job(
    dispatcher: Arc<Dispatcher>,
    devices: Arc<dyn Devices>,
    push: Arc<Push>,
    job: Job,
) -> JobResult {
    let Job {
        index,
        recipient,
        device,
    } = job;
    let sending = async {
        let verdict = dispatcher.send(&push, &recipient, &device).await;
        herald_failpoints::point!("push.sent");
        if verdict == Verdict::Gone
            && let Err(error) = devices.unregister(device.user, device.id).await
        {
            // The next push to the device tries again.
            warn!(%error, device_id = device.id.0, "device no longer exists but can't be unregistered");
        }
        verdict
    };
    let verdict = AssertUnwindSafe(sending).catch_unwind().await;
    let panicked = |_| Verdict::Retry {
        reason: Reason::Panic,
        after: None,
    };
    JobResult {
        index,
        device: device.id,
        provider: dispatcher.provider(&device),
        verdict: verdict.unwrap_or_else(panicked),
    }
}

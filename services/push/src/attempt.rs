//! One attempt at a chunk: who is to hear of it, and sending it to them.

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

/// What is known of a recipient.
struct Known {
    preferences: Preferences,
    devices: Vec<Device>,
    id: Option<UserId>,
}

/// One push to one device, to be sent.
struct Job {
    index: usize,
    recipient: Arc<UserId>,
    device: Device,
}

/// What came of a [`Job`].
struct Done {
    index: usize,
    device: DeviceId,
    provider: Provider,
    verdict: Verdict,
}

impl PushHandler {
    /// Decides upon all pending recipients and sends to those who are to hear. With `bisect`, those of whom
    /// nothing can be read because of a permanent failure are given up; without it, that fails the attempt.
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
            expire(progress);
            return Ok(());
        }
        let post = self.posts.read_one(chunk.post).await?;
        let post = post.filter(|post| post.deleted_at.is_none());
        let known = self.know(progress, bisect).await?;
        let mut jobs = Vec::new();
        for (index, known) in known {
            let device_ids: Vec<DeviceId> = known.devices.iter().map(|device| device.id).collect();
            let recipient = Recipient {
                expired: false,
                post_gone: post.is_none(),
                // A user without an id was never given a key, so nobody can have asked.
                unwanted: !known.preferences.push_enabled
                    || known.preferences.muted.contains(&chunk.author)
                    || known.id.is_none(),
                devices: &device_ids,
                done: progress.done(index),
            };
            match (domain::decide(&recipient), known.id) {
                (Decision::Disposition(state), _) => progress.settle(index, state),
                (Decision::Send(left), Some(id)) => {
                    progress.expect(index, u32::try_from(left.len()).unwrap_or(u32::MAX));
                    let recipient = Arc::new(id);
                    let devices = known.devices.into_iter().enumerate();
                    jobs.extend(
                        devices
                            .filter(|(at, _)| left.contains(at))
                            .map(|(_, device)| Job {
                                index,
                                recipient: recipient.clone(),
                                device,
                            }),
                    );
                }
                (Decision::Send(_), None) => error!(post_id = chunk.post.0, "a recipient has no id"),
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

    /// What is known of the pending recipients, each by its place in the chunk.
    async fn know(&self, progress: &mut Progress, bisect: bool) -> Result<Vec<(usize, Known)>, AttemptError> {
        let (places, users): (Vec<usize>, Vec<UserKey>) =
            progress.pending().map(|(place, user, _)| (place, user)).unzip();
        // Reading has no effect, so it can be done part by part, and what is sent is sent at one go.
        let read = isolate(users.len(), bisect, |part| self.read(&users[part])).await;
        if let Some(failure) = read.stopped {
            return Err(failure.into());
        }
        for (index, reason) in &read.failed {
            progress.isolate(places[*index], reason);
        }
        let known = read
            .done
            .into_iter()
            .flat_map(|(part, known)| places[part].iter().copied().zip(known));
        Ok(known.collect())
    }

    async fn read(&self, users: &[UserKey]) -> Result<Vec<Known>, AttemptError> {
        let (preferences, devices, ids) = tokio::try_join!(
            self.preferences.of(users),
            self.devices.of(users),
            self.users.ids(users)
        )?;
        let known = preferences.into_iter().zip(devices).zip(ids);
        Ok(known
            .map(|((preferences, devices), id)| Known {
                preferences,
                devices,
                id,
            })
            .collect())
    }

    /// Sends, and records progress now and then. After a failure nothing more is sent, but what is under way is
    /// heard.
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
                running.spawn(work(
                    self.dispatcher.clone(),
                    self.devices.clone(),
                    push.clone(),
                    job,
                ));
            }
            let mut due = false;
            tokio::select! {
                joined = running.join_next() => match joined {
                    Some(Ok(done)) => progress.record(done.index, done.device, done.provider, done.verdict),
                    // Its recipient stays pending.
                    Some(Err(error)) => error!(%error, post_id = chunk.post.0, "a send panicked"),
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

/// Settles all who are pending: the push's time has run out.
fn expire(progress: &mut Progress) {
    let places: Vec<usize> = progress.pending().map(|(place, _, _)| place).collect();
    for place in places {
        let recipient = Recipient {
            expired: true,
            post_gone: false,
            unwanted: false,
            devices: &[],
            done: progress.done(place),
        };
        if let Decision::Disposition(state) = domain::decide(&recipient) {
            progress.settle(place, state);
        }
    }
}

/// Sends one push, and unregisters the device if it is gone. A panic is a failure like others, of this device only.
async fn work(dispatcher: Arc<Dispatcher>, devices: Arc<dyn Devices>, push: Arc<Push>, job: Job) -> Done {
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
            // The next post will find it gone again.
            warn!(%error, device_id = device.id.0, "a device that is gone was not unregistered");
        }
        verdict
    };
    let verdict = AssertUnwindSafe(sending).catch_unwind().await;
    let panicked = |_| Verdict::Later {
        reason: Reason::Panic,
        after: None,
    };
    Done {
        index,
        device: device.id,
        provider: dispatcher.provider(&device),
        verdict: verdict.unwrap_or_else(panicked),
    }
}

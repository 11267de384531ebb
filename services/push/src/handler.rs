//! One chunk, from the message to its acknowledgement.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use herald_mesh::{Delivery, Handler, Mesh, Settle, Subject};
use herald_model::{
    Channel, ChunkId, Device, DeviceId, Lane, PostId, Recipients, UserId, UserKey, time::Micros,
};
use herald_proto::{mesh_v1, v1};
use herald_store::{Base, Devices, ErrorKind, Ledger, Preferences, Settlement, Users};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::{debug, error, instrument, warn};

use crate::{
    Config, Metrics,
    adapters::{Dispatcher, PostSource, Push, outcome, recorded},
    domain::{self, Decision, Progress, Provider, Recipient, Verdict},
    error::AttemptError,
};

/// How long to leave a chunk alone that another worker has in hand. One that was stopped for longer than the broker waits
/// finds that out when it records; to fetch the chunk again at once would send to the same devices beside the other one.
const OTHERS_WAIT: Duration = Duration::from_secs(30);

/// Works on chunks.
pub(crate) struct Chunks {
    pub(crate) mesh: Mesh,
    pub(crate) posts: PostSource,
    pub(crate) users: Arc<dyn Users>,
    pub(crate) devices: Arc<dyn Devices>,
    pub(crate) preferences: Arc<dyn Preferences>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) metrics: Metrics,
    pub(crate) config: Config,
}

/// A chunk as the domain sees it.
#[derive(Debug)]
struct Chunk {
    post: PostId,
    author: UserKey,
    id: ChunkId,
    lane: Lane,
    recipients: Recipients,
    accepted_at: Micros,
    expires_at: Micros,
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

#[async_trait]
impl Handler for Chunks {
    async fn handle(&self, delivery: &Delivery) -> Settle {
        let chunk = match Chunk::decode(delivery) {
            Ok(chunk) => chunk,
            Err(settle) => return settle,
        };
        let settle = match self.deliver(&chunk, delivery).await {
            Ok(settle) => settle,
            Err(AttemptError::Store(error)) if error.kind() == ErrorKind::Conflict => {
                Settle::retry_after(OTHERS_WAIT, "another worker has recorded meanwhile")
            }
            Err(error) => Settle::retry(error),
        };
        let end = match settle {
            Settle::Ack => "done",
            Settle::Retry { .. } | Settle::Fault { .. } => "retried",
            Settle::Term { .. } => "terminated",
        };
        self.metrics.chunk(chunk.lane, end);
        settle
    }
}

impl Chunk {
    /// Reads a message; the error is how to settle one that makes no sense.
    fn decode(delivery: &Delivery) -> Result<Self, Settle> {
        let Subject::PushDeliver(lane) = delivery.subject else {
            return Err(Settle::term(format_args!(
                "{} is no subject of push",
                delivery.subject
            )));
        };
        let message: mesh_v1::PushChunk = delivery.decode()?;
        let recipients = Recipients::decode(message.recipients, message.recipient_count)
            .map_err(|e| Settle::term(format_args!("malformed recipients: {e}")))?;
        let id = ChunkId(message.chunk_id);
        // The ledger knows the chunk by this id: another one would settle somebody else's deliveries.
        if recipients.chunk_id() != id {
            return Err(Settle::term("the chunk id is not that of its recipients"));
        }
        Ok(Self {
            post: PostId(message.post_id),
            author: UserKey(message.author_key),
            id,
            lane,
            recipients,
            accepted_at: Micros(message.accepted_at_us),
            expires_at: Micros(message.expires_at_us),
        })
    }
}

impl Chunks {
    /// Effect, then ledger, then event; the acknowledgement is the caller's.
    #[instrument(
        name = "push send",
        skip_all,
        fields(post_id = chunk.post.0, chunk_id = %chunk.id, recipients = chunk.recipients.len())
    )]
    async fn deliver(&self, chunk: &Chunk, delivery: &Delivery) -> Result<Settle, AttemptError> {
        let outcome = self.ledger.outcome(chunk.post, Channel::Push, chunk.id).await?;
        let mut progress = Progress::resume(&chunk.recipients, recorded(outcome, &chunk.recipients));
        if delivery.redrive.is_some() {
            progress.owe_again();
        }
        let (before, revision_before) = (progress.counts(), progress.revision());
        let attempted = self.attempt(chunk, &mut progress).await;
        let failures = progress.failures();
        if attempted.is_ok() && delivery.is_last_attempt() {
            progress.give_up();
        }
        // Even after a failure: what was accepted must not be sent again.
        self.record(chunk, &mut progress).await?;
        self.metrics.settled(chunk.lane, progress.counts() - before);
        attempted?;
        // At the end in any case: an earlier attempt may have recorded and died.
        if progress.revision() != revision_before || !progress.is_pending() {
            self.announce(chunk, &progress).await?;
        }

        if progress.is_pending() {
            let remaining = chunk.expires_at.since(Micros::now());
            let after = domain::retry_delay(progress.retry_after(), remaining, self.config.retry_after_max());
            return Ok(Settle::Retry {
                after,
                reason: format!("push is pending: {failures}"),
            });
        }
        // Each recipient who was given up is in a dead letter, also one whom a provider refused at the first attempt.
        if progress.counts().dead > 0 {
            return Ok(Settle::term(format_args!("push gave up: {failures}")));
        }
        Ok(Settle::Ack)
    }

    /// Decides upon all pending recipients and sends to those who are to hear.
    async fn attempt(&self, chunk: &Chunk, progress: &mut Progress) -> Result<(), AttemptError> {
        if !progress.is_pending() {
            return Ok(());
        }
        let pending: Vec<(usize, UserKey, Vec<DeviceId>)> = progress
            .pending()
            .map(|(index, user, done)| (index, user, done.to_vec()))
            .collect();
        if Micros::now() >= chunk.expires_at {
            let nobody = Recipient {
                expired: true,
                post_gone: false,
                unwanted: false,
                devices: &[],
                done: &[],
            };
            for (index, _, done) in &pending {
                if let Decision::Settle(state) = domain::decide(&Recipient { done, ..nobody }) {
                    progress.settle(*index, state);
                }
            }
            return Ok(());
        }
        let keys: Vec<UserKey> = pending.iter().map(|(_, user, _)| *user).collect();
        let (content, preferences, devices, ids) = tokio::try_join!(
            self.posts.content(chunk.post),
            async { Ok(self.preferences.of(&keys).await?) },
            async { Ok(self.devices.of(&keys).await?) },
            async { Ok(self.users.ids(&keys).await?) },
        )?;
        let mut jobs = Vec::new();
        let known = preferences.into_iter().zip(devices).zip(ids);
        for ((index, user, done), ((preferences, devices), id)) in pending.into_iter().zip(known) {
            let device_ids: Vec<DeviceId> = devices.iter().map(|device| device.id).collect();
            let recipient = Recipient {
                expired: false,
                post_gone: content.is_none(),
                // A user without an id was never given a key, so nobody can have asked.
                unwanted: !preferences.push_enabled
                    || preferences.muted.contains(&chunk.author)
                    || id.is_none(),
                devices: &device_ids,
                done: &done,
            };
            match (domain::decide(&recipient), id) {
                (Decision::Settle(state), _) => progress.settle(index, state),
                (Decision::Send(left), Some(id)) => {
                    progress.expect(index, u32::try_from(left.len()).unwrap_or(u32::MAX));
                    let recipient = Arc::new(id);
                    jobs.extend(
                        devices
                            .into_iter()
                            .enumerate()
                            .filter(|(at, _)| left.contains(at))
                            .map(|(_, device)| Job {
                                index,
                                recipient: recipient.clone(),
                                device,
                            }),
                    );
                }
                (Decision::Send(_), None) => error!(user_key = user.0, "a recipient has no id"),
            }
        }
        match content {
            Some(content) if !jobs.is_empty() => {
                let push = Push::new(
                    chunk.post,
                    chunk.lane,
                    content,
                    chunk.accepted_at,
                    chunk.expires_at,
                );
                self.send(chunk, progress, Arc::new(push), jobs).await
            }
            _ => Ok(()),
        }
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
                    Err(error) => outcome = Err(error),
                }
            }
        }
    }

    /// Puts into the ledger what it doesn't have yet.
    async fn record(&self, chunk: &Chunk, progress: &mut Progress) -> Result<(), AttemptError> {
        if !progress.is_changed() {
            return Ok(());
        }
        let settlement = Settlement {
            post: chunk.post,
            channel: Channel::Push,
            chunk: chunk.id,
            base: Base::Revision(progress.revision()),
            outcome: outcome(progress),
            at: Micros::now(),
        };
        let revision = self.ledger.settle(&settlement).await?;
        progress.mark_recorded(revision);
        Ok(())
    }

    /// Publishes the event that tells what the ledger has.
    async fn announce(&self, chunk: &Chunk, progress: &Progress) -> Result<(), AttemptError> {
        let counts = progress.counts();
        let event = mesh_v1::DeliveriesSettled {
            post_id: chunk.post.0,
            author_key: chunk.author.0,
            channel: v1::Channel::Push.into(),
            chunk_id: chunk.id.0,
            delivered_count: counts.delivered,
            suppressed_count: counts.suppressed,
            expired_count: counts.expired,
            dead_count: counts.dead,
            accepted_at_us: chunk.accepted_at.0,
            settled_at_us: Micros::now().0,
            revision: progress.revision(),
        };
        let id = event.message_id();
        let published = self
            .mesh
            .publish(Subject::Settled(Channel::Push), Some(&id), &event)
            .await?;
        debug!(id, duplicate = published.duplicate, "deliveries announced");
        Ok(())
    }
}

/// Sends one push, and unregisters the device if it is gone.
async fn work(dispatcher: Arc<Dispatcher>, devices: Arc<dyn Devices>, push: Arc<Push>, job: Job) -> Done {
    let Job {
        index,
        recipient,
        device,
    } = job;
    let (provider, verdict) = dispatcher.send(&push, &recipient, &device).await;
    if verdict == Verdict::Gone
        && let Err(error) = devices.unregister(device.user, device.id).await
    {
        // The next post will find it gone again.
        warn!(%error, device_id = device.id.0, "a device that is gone was not unregistered");
    }
    Done {
        index,
        device: device.id,
        provider,
        verdict,
    }
}

//! Messages in flight: work that the streams still hold.

use std::collections::HashSet;

use futures::{StreamExt as _, pin_mut};
use herald_mesh::{ConsumerSpec, RawMessage, StreamLag, Subject, Topology, consumers, streams};
use herald_model::{Channel, ChunkId, Lane, PostId};
use herald_proto::mesh_v1::{FanoutSlice, PushChunk, TimelineChunk};

use crate::{Auditor, Result, throttle::Throttle};

/// Identifies a chunk of a post.
pub(crate) type ChunkKey = (PostId, Channel, ChunkId);

/// Work in flight. It may include finished work, but never misses unfinished work: all messages above a consumer's ack
/// floor count, although some of them may be acknowledged.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    /// By lane: posts above the floor may not be expanded yet.
    fanout_floors: [Option<u64>; 3],
    /// Posts above the floor may not be archived yet.
    archive_floor: Option<u64>,
    /// Posts above the floor may not be counted by analytics yet.
    counting_floor: Option<u64>,
    /// Posts with a redriven message in flight that counts them.
    counting: HashSet<PostId>,
    /// Posts with a message in flight that expands them.
    expanding: HashSet<PostId>,
    /// Posts with a redriven message in flight that archives them.
    archiving: HashSet<PostId>,
    /// Chunks with a message in flight that delivers them.
    chunks: HashSet<ChunkKey>,
    /// Whether an advisory or dead letter may be in flight.
    pub(crate) dead_letters: bool,
    /// Whether an event may be in flight to analytics.
    pub(crate) events: bool,
}

impl InFlight {
    /// Reads the streams in the order of processing, so work that moves on during the read is seen in a later stream.
    pub(crate) async fn read(auditor: &Auditor, throttle: &mut Throttle) -> Result<Self> {
        let mut in_flight = Self::default();
        in_flight.read_expansion(auditor, throttle).await?;
        in_flight.read_chunks(auditor, throttle).await?;
        in_flight.dead_letters = !are_idle(auditor, |consumer| {
            [streams::ADVISORIES, streams::DLQ].contains(&consumer.stream.as_str())
        })
        .await?;
        in_flight.events = !are_idle(auditor, |consumer| {
            consumer.stream == streams::EVENTS || consumer.name.ends_with(consumers::ANALYTICS_EVENTS)
        })
        .await?;
        Ok(in_flight)
    }

    /// Whether the expansion of the post may be in flight.
    pub(crate) fn is_expanding(&self, post: PostId, lane: Option<Lane>) -> bool {
        let above = |floor: &Option<u64>| floor.is_some_and(|floor| post.0 > floor);
        self.expanding.contains(&post)
            || match lane {
                Some(lane) => above(&self.fanout_floors[lane_index(lane)]),
                None => self.fanout_floors.iter().any(above),
            }
    }

    /// Whether the archiving of the post may be in flight.
    pub(crate) fn is_archiving(&self, post: PostId) -> bool {
        self.archiving.contains(&post) || self.archive_floor.is_some_and(|floor| post.0 > floor)
    }

    /// Whether analytics may still count the post.
    pub(crate) fn is_counting(&self, post: PostId) -> bool {
        self.counting.contains(&post) || self.counting_floor.is_some_and(|floor| post.0 > floor)
    }

    /// Whether a message that delivers the chunk is in flight.
    pub(crate) fn is_delivering(&self, chunk: &ChunkKey) -> bool {
        self.chunks.contains(chunk)
    }

    async fn read_expansion(&mut self, auditor: &Auditor, throttle: &mut Throttle) -> Result<()> {
        let expanding = |consumer: &ConsumerSpec| {
            [streams::POSTS, streams::SLICES, streams::REDRIVE].contains(&consumer.stream.as_str())
        };
        for (spec, floor, last) in lagging(auditor, expanding).await? {
            if spec.stream == streams::POSTS {
                if spec.name == consumers::ARCHIVE {
                    self.archive_floor = Some(floor);
                }
                if spec.name == consumers::ANALYTICS_POSTS {
                    self.counting_floor = Some(floor);
                }
                for lane in Lane::ALL {
                    if spec.name == consumers::fanout(lane) {
                        self.fanout_floors[lane_index(lane)] = Some(floor);
                    }
                }
                continue;
            }
            for_each_message(auditor, throttle, &spec, floor, last, |message| {
                let Some((subject, sequence)) = message.original() else {
                    return;
                };
                match subject {
                    Subject::PostCreated(_) | Subject::PostDeleted(_) => {
                        let post = PostId(sequence);
                        if spec.name.ends_with(consumers::ARCHIVE) {
                            self.archiving.insert(post);
                        } else if spec.name.ends_with(consumers::ANALYTICS_POSTS) {
                            self.counting.insert(post);
                        } else {
                            self.expanding.insert(post);
                        }
                    }
                    Subject::Slice(_) => {
                        if let Ok(slice) = message.decode::<FanoutSlice>() {
                            self.expanding.insert(PostId(slice.post_id));
                        }
                    }
                    _ => {}
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn read_chunks(&mut self, auditor: &Auditor, throttle: &mut Throttle) -> Result<()> {
        // Delayed messages return from LATER to PUSH, so LATER is read before PUSH, and again after it.
        self.read_delayed(auditor, throttle).await?;
        let delivering = |consumer: &ConsumerSpec| {
            [streams::TIMELINE, streams::PUSH, streams::REDRIVE].contains(&consumer.stream.as_str())
        };
        for (spec, floor, last) in lagging(auditor, delivering).await? {
            for_each_message(auditor, throttle, &spec, floor, last, |message| {
                self.insert(message);
            })
            .await?;
        }
        // Messages that moved from PUSH to LATER during the read.
        self.read_delayed(auditor, throttle).await
    }

    /// Reads the delayed messages in LATER; LATER delivers none to a consumer before it is due.
    async fn read_delayed(&mut self, auditor: &Auditor, throttle: &mut Throttle) -> Result<()> {
        let delayed = auditor.mesh.scan(streams::LATER, None, 1, u64::MAX);
        pin_mut!(delayed);
        while let Some(message) = delayed.next().await {
            self.insert(&message?);
            throttle.pause().await;
        }
        Ok(())
    }

    fn insert(&mut self, message: &RawMessage) {
        let push = || {
            let chunk = message.decode::<PushChunk>().ok()?;
            Some((PostId(chunk.post_id), Channel::Push, ChunkId(chunk.chunk_id)))
        };
        let key = match message.original() {
            Some((Subject::TimelineDeliver(_), _)) => message
                .decode::<TimelineChunk>()
                .ok()
                .map(|chunk| (PostId(chunk.post_id), Channel::Timeline, ChunkId(chunk.chunk_id))),
            Some((Subject::PushDeliver(_), _)) => push(),
            _ => None,
        };
        self.chunks.extend(key);
    }
}

const fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::High => 0,
        Lane::Normal => 1,
        Lane::Low => 2,
    }
}

/// Consumers with outstanding messages. Each comes with its ack floor and the last sequence of its stream; the
/// outstanding messages are in between.
async fn lagging(
    auditor: &Auditor,
    selects: impl Fn(&ConsumerSpec) -> bool,
) -> Result<Vec<(ConsumerSpec, u64, u64)>> {
    let lags = read_lags(auditor, selects).await?;
    let mut lagging = Vec::new();
    for stream in lags {
        for consumer in &stream.consumers {
            if consumer.outstanding_count() > 0
                && let Some(spec) = auditor.topology.consumer(&consumer.consumer)
            {
                lagging.push((spec.clone(), consumer.ack_floor, stream.last_sequence));
            }
        }
    }
    Ok(lagging)
}

/// Whether the selected consumers have no outstanding messages.
async fn are_idle(auditor: &Auditor, selects: impl Fn(&ConsumerSpec) -> bool) -> Result<bool> {
    Ok(read_lags(auditor, selects)
        .await?
        .iter()
        .flat_map(|stream| &stream.consumers)
        .all(|consumer| consumer.outstanding_count() == 0))
}

async fn read_lags(auditor: &Auditor, selects: impl Fn(&ConsumerSpec) -> bool) -> Result<Vec<StreamLag>> {
    let consumers: Vec<_> = auditor
        .topology
        .consumers
        .iter()
        .filter(|spec| selects(spec))
        .cloned()
        .collect();
    let streams = auditor.topology.streams.iter();
    let streams = streams.filter(|stream| consumers.iter().any(|spec| spec.stream == stream.name));
    let selected = Topology {
        streams: streams.cloned().collect(),
        consumers,
    };
    Ok(auditor.mesh.lag(&selected).await?)
}

/// Calls `visit` for the messages of a consumer after `floor`, up to `last`.
async fn for_each_message(
    auditor: &Auditor,
    throttle: &mut Throttle,
    spec: &ConsumerSpec,
    floor: u64,
    last: u64,
    mut visit: impl FnMut(&RawMessage),
) -> Result<()> {
    let messages = auditor
        .mesh
        .scan(&spec.stream, spec.filter.as_deref(), floor + 1, last);
    pin_mut!(messages);
    while let Some(message) = messages.next().await {
        visit(&message?);
        throttle.pause().await;
    }
    Ok(())
}

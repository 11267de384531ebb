//! What the streams still carry: work that is on its way.

use std::collections::HashSet;

use futures::{StreamExt as _, pin_mut};
use herald_mesh::{ConsumerSpec, RawMessage, StreamLag, Subject, Topology, consumers, streams};
use herald_model::{Channel, ChunkId, Lane, PostId};
use herald_proto::mesh_v1::{FanoutSlice, PushChunk, TimelineChunk};

use crate::{Auditor, Result, pace::Pace};

/// Names one chunk of a post.
pub(crate) type ChunkKey = (PostId, Channel, ChunkId);

/// What is on its way. Rather too much than too little: a message above the first one not acknowledged counts, though it may
/// be acknowledged itself.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// Posts above these, by lane, may not be expanded yet.
    fanout_floors: [Option<u64>; 3],
    /// Posts above this may not be archived yet.
    archive_floor: Option<u64>,
    /// Posts whose expansion goes on.
    expanding: HashSet<PostId>,
    /// Posts that are archived again.
    archiving: HashSet<PostId>,
    /// Chunks to be delivered.
    chunks: HashSet<ChunkKey>,
    /// Whether dead letters may be under way.
    pub(crate) dead_letters: bool,
    /// Whether events may not be counted yet.
    pub(crate) events: bool,
}

impl Carried {
    /// Reads the streams in the direction in which work flows: what leaves one while the next is read is seen there.
    pub(crate) async fn read(auditor: &Auditor, pace: &mut Pace) -> Result<Self> {
        let mut carried = Self::default();
        carried.read_expansion(auditor, pace).await?;
        carried.read_chunks(auditor, pace).await?;
        carried.dead_letters = !idle(auditor, |consumer| {
            [streams::ADVISORIES, streams::DLQ].contains(&consumer.stream.as_str())
        })
        .await?;
        carried.events = !idle(auditor, |consumer| {
            consumer.stream == streams::EVENTS || consumer.name.ends_with(consumers::ANALYTICS_EVENTS)
        })
        .await?;
        Ok(carried)
    }

    /// Whether the post may still be expanded.
    pub(crate) fn expands(&self, post: PostId, lane: Option<Lane>) -> bool {
        let above = |floor: &Option<u64>| floor.is_some_and(|floor| post.0 > floor);
        self.expanding.contains(&post)
            || match lane {
                Some(lane) => above(&self.fanout_floors[place(lane)]),
                None => self.fanout_floors.iter().any(above),
            }
    }

    /// Whether the post may still be archived.
    pub(crate) fn archives(&self, post: PostId) -> bool {
        self.archiving.contains(&post) || self.archive_floor.is_some_and(|floor| post.0 > floor)
    }

    /// Whether a message is to deliver the chunk.
    pub(crate) fn delivers(&self, chunk: &ChunkKey) -> bool {
        self.chunks.contains(chunk)
    }

    async fn read_expansion(&mut self, auditor: &Auditor, pace: &mut Pace) -> Result<()> {
        let expands = |consumer: &ConsumerSpec| {
            [streams::POSTS, streams::SLICES, streams::REDRIVE].contains(&consumer.stream.as_str())
        };
        for (spec, floor, last) in busy(auditor, expands).await? {
            if spec.stream == streams::POSTS {
                if spec.name == consumers::ARCHIVE {
                    self.archive_floor = Some(floor);
                }
                for lane in Lane::ALL {
                    if spec.name == consumers::fanout(lane) {
                        self.fanout_floors[place(lane)] = Some(floor);
                    }
                }
                continue;
            }
            each(auditor, pace, &spec, floor, last, |message| {
                let Some((subject, sequence)) = message.original() else {
                    return;
                };
                match subject {
                    Subject::PostCreated(_) | Subject::PostDeleted(_) => {
                        let post = PostId(sequence);
                        if spec.name.ends_with(consumers::ARCHIVE) {
                            self.archiving.insert(post);
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

    async fn read_chunks(&mut self, auditor: &Auditor, pace: &mut Pace) -> Result<()> {
        // Before PUSH, to which it goes back, and after.
        self.read_waiting(auditor, pace).await?;
        let delivers = |consumer: &ConsumerSpec| {
            [streams::TIMELINE, streams::PUSH, streams::REDRIVE].contains(&consumer.stream.as_str())
        };
        for (spec, floor, last) in busy(auditor, delivers).await? {
            each(auditor, pace, &spec, floor, last, |message| self.insert(message)).await?;
        }
        // What left PUSH to wait, meanwhile.
        self.read_waiting(auditor, pace).await
    }

    /// Reads what waits for its time: with no consumer, until it is due.
    async fn read_waiting(&mut self, auditor: &Auditor, pace: &mut Pace) -> Result<()> {
        let waiting = auditor.mesh.scan(streams::LATER, None, 1, u64::MAX);
        pin_mut!(waiting);
        while let Some(message) = waiting.next().await {
            self.insert(&message?);
            pace.rest().await;
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

const fn place(lane: Lane) -> usize {
    match lane {
        Lane::High => 0,
        Lane::Normal => 1,
        Lane::Low => 2,
    }
}

/// The consumers that have something left to do, each with the sequences in which that is: above the first, up to the
/// second.
async fn busy(
    auditor: &Auditor,
    which: impl Fn(&ConsumerSpec) -> bool,
) -> Result<Vec<(ConsumerSpec, u64, u64)>> {
    let lags = lags(auditor, which).await?;
    let mut busy = Vec::new();
    for stream in lags {
        for consumer in &stream.consumers {
            if consumer.outstanding_count() > 0
                && let Some(spec) = auditor.topology.consumer(&consumer.consumer)
            {
                busy.push((spec.clone(), consumer.ack_floor, stream.last_sequence));
            }
        }
    }
    Ok(busy)
}

async fn idle(auditor: &Auditor, which: impl Fn(&ConsumerSpec) -> bool) -> Result<bool> {
    Ok(lags(auditor, which)
        .await?
        .iter()
        .flat_map(|stream| &stream.consumers)
        .all(|consumer| consumer.outstanding_count() == 0))
}

async fn lags(auditor: &Auditor, which: impl Fn(&ConsumerSpec) -> bool) -> Result<Vec<StreamLag>> {
    let consumers: Vec<_> = auditor
        .topology
        .consumers
        .iter()
        .filter(|spec| which(spec))
        .cloned()
        .collect();
    let streams = auditor.topology.streams.iter();
    let streams = streams.filter(|stream| consumers.iter().any(|spec| spec.stream == stream.name));
    let part = Topology {
        streams: streams.cloned().collect(),
        consumers,
    };
    Ok(auditor.mesh.lag(&part).await?)
}

/// Reads the messages of a consumer above a sequence.
async fn each(
    auditor: &Auditor,
    pace: &mut Pace,
    spec: &ConsumerSpec,
    floor: u64,
    last: u64,
    mut take: impl FnMut(&RawMessage),
) -> Result<()> {
    let messages = auditor
        .mesh
        .scan(&spec.stream, spec.filter.as_deref(), floor + 1, last);
    pin_mut!(messages);
    while let Some(message) = messages.next().await {
        take(&message?);
        pace.rest().await;
    }
    Ok(())
}

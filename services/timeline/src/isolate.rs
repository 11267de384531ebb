//! Delivers a chunk part by part, when some of its recipients can't be delivered to.

use std::collections::BTreeSet;

use herald_failure::Classify;
use herald_mesh::Settle;
use herald_model::{Channel, ChunkId, PostId, Recipients, UserKey, time::Micros};
use herald_proto::mesh_v1::TimelineChunk;
use herald_runtime::isolate::{self, Isolated};
use herald_store::{Base, Outcome, Recorded};

use crate::{error::DeliverError, handler::Chunks};

impl Chunks {
    /// Delivers to all but those to whom it fails by a fault, whom it records as dead. A passing failure ends it; who has
    /// the post by then is recorded, and the chunk comes again.
    pub(crate) async fn isolate(
        &self,
        chunk: &TimelineChunk,
        recipients: &Recipients,
    ) -> Result<Settle, DeliverError> {
        let post = PostId(chunk.post_id);
        let recorded = self
            .ledger
            .outcome(post, Channel::Timeline, ChunkId(chunk.chunk_id));
        let recorded = recorded.await?;
        let base = Base::Revision(recorded.as_ref().map_or(0, |recorded| recorded.revision));
        let mut delivered: BTreeSet<UserKey> = match recorded {
            Some(Recorded {
                outcome: Outcome::Mixed { delivered, .. },
                ..
            }) => delivered.iter().collect(),
            Some(Recorded {
                outcome: Outcome::Delivered { .. },
                ..
            }) => recipients.iter().collect(),
            None => BTreeSet::new(),
        };

        let users: Vec<UserKey> = recipients.iter().collect();
        let Isolated {
            good,
            bad,
            fault,
            stopped,
        } = isolate::isolate(users.len(), |part| {
            let part = Recipients::from_sorted(users[part].iter().copied());
            isolate::sorted(self.put(post, part), Classify::is_transient)
        })
        .await;
        let visible_at = Micros::now();
        let reached = Recipients::from_sorted(
            good.iter()
                .flat_map(|(part, ())| users[part.clone()].iter().copied()),
        );
        self.metrics
            .visible(visible_at.since(Micros(chunk.accepted_at_us)), reached.len());
        self.tell_watchers(chunk, &reached).await;

        delivered.extend(&reached);
        // While it isn't done nobody is given up.
        let given_up = if stopped.is_none() { &bad[..] } else { &[] };
        let dead = given_up.iter().map(|index| users[*index]);
        let dead = Recipients::from_sorted(dead.filter(|user| !delivered.contains(user)));
        let dead_count = dead.len();
        let outcome = if delivered.len() == users.len() {
            Outcome::Delivered {
                count: recipients.len(),
            }
        } else {
            Outcome::Mixed {
                delivered: Recipients::from_sorted(delivered),
                suppressed: Recipients::default(),
                expired: Recipients::default(),
                dead,
                partly: Vec::new(),
            }
        };
        self.record(chunk, base, outcome, visible_at).await?;
        if let Some(error) = stopped {
            return Err(error);
        }
        self.metrics.isolated.inc_by(dead_count.into());
        Ok(match fault {
            Some(fault) if dead_count > 0 => Settle::term(format_args!(
                "{fault} (for {dead_count} of {} recipients, isolated)",
                users.len()
            )),
            _ => Settle::Ack,
        })
    }

    async fn put(&self, post: PostId, recipients: Recipients) -> Result<(), DeliverError> {
        Ok(self.timelines.deliver(post, recipients).await?.await?)
    }

    async fn tell_watchers(&self, chunk: &TimelineChunk, reached: &Recipients) {
        let live = TimelineChunk {
            chunk_id: reached.chunk_id().0,
            recipients: reached.as_bytes().clone(),
            recipient_count: reached.len(),
            ..chunk.clone()
        };
        self.watchers.tell(live).await;
    }
}

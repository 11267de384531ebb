//! Dead letters: each must be explained by something that the suite did.

use async_nats::jetstream;
use futures::StreamExt;
use serde_json::Value;

use crate::{workload::Journal, world::World};

/// A message that was given up.
#[derive(Debug)]
pub(super) struct Letter {
    stream: String,
    consumer: String,
    sequence: u64,
    reason: String,
}

/// Reads the advisories; they are there before any service looks at them.
pub(super) async fn read(world: &World) -> Vec<Letter> {
    let client = world.nats.client().await.expect("nats-server answers");
    let stream = jetstream::new(client)
        .get_stream("ADVISORIES")
        .await
        .expect("ADVISORIES");
    let count = stream.cached_info().state.messages;
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let consumer = stream.create_consumer(config).await.expect("a consumer");
    let advisories = consumer.messages().await.expect("messages");
    advisories
        .take(usize::try_from(count).expect("a count"))
        .map(|advisory| {
            let advisory: Value =
                serde_json::from_slice(&advisory.expect("an advisory").payload).expect("an advisory is JSON");
            let text = |field: &str| advisory[field].as_str().unwrap_or_default().to_owned();
            Letter {
                stream: text("stream"),
                consumer: text("consumer"),
                sequence: advisory["stream_seq"].as_u64().unwrap_or_default(),
                reason: text("reason"),
            }
        })
        .collect()
        .await
}

/// Those that nobody asked for.
pub(super) fn unexplained(letters: &[Letter], journal: &Journal) -> Vec<String> {
    letters
        .iter()
        .filter(|letter| !journal.is_poison(&letter.stream, letter.sequence))
        .map(|letter| {
            format!(
                "{} {} of {} was given up: {}",
                letter.stream, letter.sequence, letter.consumer, letter.reason
            )
        })
        .collect()
}

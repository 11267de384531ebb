//! What the server says when a message was given up.

use herald_model::time::Timestamp;
use herald_store::Cause;
use serde::Deserialize;

/// Terminations by the server itself, not by a worker: nats-server 2.11 to 2.15.
const SERVER_MADE: [&str; 2] = [
    "Message deleted by stream limits",
    "Unacknowledged message was deleted",
];

/// The reason of a dead letter without one: the server counts attempts and knows nothing of why they failed.
const ATTEMPTS_USED_UP: &str = "its attempts are used up, and no worker said why";

/// A message was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advisory {
    /// The stream it is, or was, in.
    pub(crate) stream: String,
    /// Who gave it up.
    pub(crate) consumer: String,
    /// Its sequence in the stream.
    pub(crate) sequence: u64,
    /// Attempts that were made.
    pub(crate) attempts: u64,
    /// When.
    pub(crate) failed_at: Timestamp,
    /// Why, as far as the server can tell.
    pub(crate) cause: Cause,
    /// In words.
    pub(crate) reason: String,
}

/// As the server writes it.
#[derive(Debug, Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
    timestamp: String,
    stream: String,
    consumer: String,
    stream_seq: u64,
    #[serde(default)]
    deliveries: u64,
    #[serde(default)]
    reason: String,
}

impl Advisory {
    /// Reads an advisory; the error says why it is none.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let at: jiff::Timestamp = wire
            .timestamp
            .parse()
            .map_err(|_| format!("{:?} is no time", wire.timestamp))?;
        let (cause, reason) = match wire.kind.rsplit('.').next() {
            Some("max_deliver") => (Cause::MaxDeliveries, ATTEMPTS_USED_UP.into()),
            Some("terminated") if SERVER_MADE.contains(&wire.reason.as_str()) => {
                (Cause::Removed, wire.reason)
            }
            Some("terminated") => (Cause::Terminated, wire.reason),
            _ => return Err(format!("{:?} tells of no message given up", wire.kind)),
        };
        Ok(Self {
            stream: wire.stream,
            consumer: wire.consumer,
            sequence: wire.stream_seq,
            attempts: wire.deliveries,
            failed_at: Timestamp(at.as_microsecond()),
            cause,
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terminated(reason: &str) -> String {
        format!(
            r#"{{"type":"io.nats.jetstream.advisory.v1.terminated","id":"x","timestamp":"2026-01-31T08:00:00.123456789Z",
            "stream":"PUSH","consumer":"push-normal","consumer_seq":9,"stream_seq":7,"deliveries":3,"reason":{reason:?}}}"#
        )
    }

    #[test]
    fn both_kinds_are_read() {
        let advisory = Advisory::parse(terminated("push gave up").as_bytes()).unwrap();
        assert_eq!(
            advisory,
            Advisory {
                stream: "PUSH".into(),
                consumer: "push-normal".into(),
                sequence: 7,
                attempts: 3,
                failed_at: Timestamp(1_769_846_400_123_456),
                cause: Cause::Terminated,
                reason: "push gave up".into(),
            }
        );
        let json = r#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"y","timestamp":"2026-01-31T08:00:00Z",
            "stream":"POSTS","consumer":"archive","stream_seq":1,"deliveries":1000}"#;
        let advisory = Advisory::parse(json.as_bytes()).unwrap();
        assert_eq!((advisory.cause, advisory.attempts), (Cause::MaxDeliveries, 1_000));
    }

    #[test]
    fn what_the_server_removed_is_told_from_what_a_worker_gave_up() {
        for reason in SERVER_MADE {
            let advisory = Advisory::parse(terminated(reason).as_bytes()).unwrap();
            assert_eq!((advisory.cause, &advisory.reason[..]), (Cause::Removed, reason));
        }
        let advisory =
            Advisory::parse(terminated("message deleted by stream limits of somebody").as_bytes()).unwrap();
        assert_eq!(advisory.cause, Cause::Terminated);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_advisory_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Advisory::parse(&bytes);
        }
    }

    #[test]
    fn other_advisories_are_refused() {
        let other = terminated("x").replace("v1.terminated", "v1.delivery_exceeded");
        assert!(Advisory::parse(other.as_bytes()).is_err());
        assert!(Advisory::parse(b"{}").is_err());
    }
}

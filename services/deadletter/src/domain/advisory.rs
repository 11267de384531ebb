//! JetStream advisories about messages that were terminated or whose deliveries are exhausted.
//!
//! The format is that of nats-server: `io.nats.jetstream.advisory.v1.max_deliver` and `….terminated`.

use herald_model::time::Timestamp;
use herald_store::Cause;
use serde::Deserialize;

/// Reasons of terminations by the server itself and not by a worker, in nats-server 2.11 to 2.15.
const SERVER_REASONS: [&str; 2] = [
    "Message deleted by stream limits",
    "Unacknowledged message was deleted",
];

/// The reason of a `max_deliver` advisory, which has none: the server counts deliveries and doesn't know their errors.
const DELIVERIES_EXHAUSTED: &str = "deliveries exhausted without a reported reason";

/// The report that a message was terminated or that its deliveries are exhausted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advisory {
    /// The message's stream.
    pub(crate) stream: String,
    /// The consumer of the failed delivery.
    pub(crate) consumer: String,
    /// The message's sequence in the stream.
    pub(crate) sequence: u64,
    /// Deliveries of the message to the consumer.
    pub(crate) attempts: u64,
    /// The time of the advisory.
    pub(crate) failed_at: Timestamp,
    /// The cause, as far as the server reports it.
    pub(crate) cause: Cause,
    /// The reason: the worker's or the server's text.
    pub(crate) reason: String,
}

/// The JSON of an advisory.
#[derive(Debug, Deserialize)]
struct AdvisoryJson {
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
    /// Parses the JSON of an advisory.
    ///
    /// # Errors
    /// The reason why `json` is no such advisory.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let advisory: AdvisoryJson = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let at: jiff::Timestamp = advisory
            .timestamp
            .parse()
            .map_err(|_| format!("invalid timestamp {:?}", advisory.timestamp))?;
        let (cause, reason) = match advisory.kind.rsplit('.').next() {
            Some("max_deliver") => (Cause::MaxDeliveries, DELIVERIES_EXHAUSTED.into()),
            Some("terminated") if SERVER_REASONS.contains(&advisory.reason.as_str()) => {
                (Cause::Removed, advisory.reason)
            }
            Some("terminated") => (Cause::Terminated, advisory.reason),
            _ => return Err(format!("unexpected advisory type {:?}", advisory.kind)),
        };
        Ok(Self {
            stream: advisory.stream,
            consumer: advisory.consumer,
            sequence: advisory.stream_seq,
            attempts: advisory.deliveries,
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
    fn both_types_of_advisory_are_parsed() {
        let advisory = Advisory::parse(terminated("push failed").as_bytes()).unwrap();
        assert_eq!(
            advisory,
            Advisory {
                stream: "PUSH".into(),
                consumer: "push-normal".into(),
                sequence: 7,
                attempts: 3,
                failed_at: Timestamp(1_769_846_400_123_456),
                cause: Cause::Terminated,
                reason: "push failed".into(),
            }
        );
        let json = r#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"y","timestamp":"2026-01-31T08:00:00Z",
            "stream":"POSTS","consumer":"archive","stream_seq":1,"deliveries":1000}"#;
        let advisory = Advisory::parse(json.as_bytes()).unwrap();
        assert_eq!((advisory.cause, advisory.attempts), (Cause::MaxDeliveries, 1_000));
    }

    #[test]
    fn a_removal_by_the_server_differs_from_a_termination_by_a_worker() {
        for reason in SERVER_REASONS {
            let advisory = Advisory::parse(terminated(reason).as_bytes()).unwrap();
            assert_eq!((advisory.cause, &advisory.reason[..]), (Cause::Removed, reason));
        }
        let advisory =
            Advisory::parse(terminated("message deleted by stream limits of somebody").as_bytes()).unwrap();
        assert_eq!(advisory.cause, Cause::Terminated);
    }

    proptest! {
        #[test]
        fn bytes_near_an_advisory_are_one_or_refused(
            json in herald_fuzz::near(Just(terminated("push failed").into_bytes())),
        ) {
            if let Ok(advisory) = Advisory::parse(&json) {
                prop_assert!(advisory.reason.len() <= json.len().max(DELIVERIES_EXHAUSTED.len()));
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
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

//! Reads which sequences a stream has, also while several servers claim to know it.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use futures::StreamExt as _;
use herald_model::time::Timestamp;
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout, timeout_at};

use crate::Mesh;
use crate::connection::API_TIMEOUT;
use crate::error::{Error, ErrorKind, Result};

/// How long to wait for further answers about a stream with several replicas.
const REPLICA_ANSWERS_WAIT: Duration = Duration::from_millis(50);

/// A leader is elected at the earliest four seconds after a majority has heard of the one before. So a leader that a
/// majority has answered within this time is the only one.
pub(crate) const ANSWERED_WITHIN: Duration = Duration::from_secs(3);

/// The sequences of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceRange {
    /// Sequence of the oldest message; of the next one, if there is none.
    pub first: u64,
    /// Sequence of the newest message, even if that was removed; the one before [`SequenceRange::first`] in a stream that
    /// never had a message.
    pub last: u64,
    /// When the newest message was stored; `None` if there has been none.
    pub last_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct StreamInfo {
    config: Option<Config>,
    state: Option<State>,
    cluster: Option<Cluster>,
    error: Option<ApiError>,
}

/// The replicas as the answering server sees them.
#[derive(Deserialize)]
struct Cluster {
    /// Absent while the server knows no leader.
    #[serde(default)]
    leader: String,
    /// All replicas except the answering server, if that is the leader.
    #[serde(default)]
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
struct Replica {
    name: String,
    #[serde(default)]
    offline: bool,
    /// Nanoseconds since the replica was heard of.
    #[serde(default)]
    active: u64,
}

impl Cluster {
    /// Whether the answer is that of the leader, and a majority of the replicas follows it.
    fn is_led(&self, replicas: usize) -> bool {
        let is_leader = !self.leader.is_empty() && self.replicas.iter().all(|one| one.name != self.leader);
        let following = self
            .replicas
            .iter()
            .filter(|one| !one.offline && u128::from(one.active) < ANSWERED_WITHIN.as_nanos());
        is_leader && following.count() + 1 > replicas / 2
    }
}

#[derive(Deserialize)]
struct Config {
    num_replicas: usize,
}

#[derive(Deserialize)]
struct State {
    first_seq: u64,
    last_seq: u64,
    #[serde(with = "time::serde::rfc3339")]
    last_ts: OffsetDateTime,
}

impl From<State> for SequenceRange {
    fn from(state: State) -> Self {
        let last_at = from_server(state.last_ts);
        Self {
            first: state.first_seq,
            last: state.last_seq,
            // A stream without a message has the year 1.
            last_at: (last_at > Timestamp(0)).then_some(last_at),
        }
    }
}

#[derive(Deserialize)]
struct ApiError {
    description: String,
    err_code: Option<u64>,
}

impl Mesh {
    /// Reads the last sequence of a stream; 0 before the first message of a stream that begins at 1.
    ///
    /// # Errors
    /// As [`Mesh::sequences`]; [`ErrorKind::Unavailable`] also when the stream doesn't exist.
    pub async fn last_sequence(&self, stream: &str) -> Result<u64> {
        let found = self.sequences(stream).await?;
        found.map(|found| found.last).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("read stream {stream}: stream not found"),
            )
        })
    }

    /// Reads which sequences a stream has; `None` if it doesn't exist.
    ///
    /// A leader that was partitioned keeps answering with a stale sequence, even some seconds after it rejoined the
    /// cluster, in addition to the new leader; so does a server that knows no leader. For a stream with replicas, this
    /// waits 50 ms for further answers, and takes only those of a leader that a majority follows.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server answers, or no answer is that of the stream's leader.
    pub async fn sequences(&self, stream: &str) -> Result<Option<SequenceRange>> {
        let what = || format!("read stream {stream}");
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::unavailable(what(), error);
        let client = &self.publishing().client;
        let inbox = client.new_inbox();
        let mut answers = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| failed(error.into()))?;
        client
            .publish_with_reply(format!("$JS.API.STREAM.INFO.{stream}"), inbox, "".into())
            .await
            .map_err(|error| failed(error.into()))?;
        let first = timeout(API_TIMEOUT, answers.next())
            .await
            .map_err(|elapsed| failed(elapsed.into()))?;
        let none = |reason: &str| Error::new(ErrorKind::Unavailable, format!("{}: {reason}", what()));
        let first = first.ok_or_else(|| none("no answer"))?;
        let Some(first) = parse(&first.payload, &what())? else {
            return Ok(None);
        };
        if first.replicas <= 1 {
            return Ok(Some(first.sequences));
        }
        let mut newest = first.is_led.then_some(first.sequences);
        let first_at = Instant::now();
        loop {
            let wait = if newest.is_some() {
                REPLICA_ANSWERS_WAIT
            } else {
                API_TIMEOUT
            };
            let Ok(Some(answer)) = timeout_at(first_at + wait, answers.next()).await else {
                break;
            };
            if let Ok(Some(other)) = parse(&answer.payload, &what())
                && other.is_led
                && newest.is_none_or(|newest| newest.last < other.sequences.last)
            {
                newest = Some(other.sequences);
            }
        }
        let newest =
            newest.ok_or_else(|| none("no server is its leader and has the majority of the replicas"))?;
        Ok(Some(newest))
    }
}

/// A time of the server, which has nanoseconds.
pub(crate) fn from_server(time: OffsetDateTime) -> Timestamp {
    Timestamp(i64::try_from(time.unix_timestamp_nanos() / 1_000).unwrap_or(0))
}

/// An answer about a stream.
struct Answer {
    sequences: SequenceRange,
    replicas: usize,
    /// Whether it comes from a leader that a majority follows.
    is_led: bool,
}

/// The answer; `None` if it says that the stream doesn't exist.
fn parse(answer: &[u8], what: &str) -> Result<Option<Answer>> {
    let malformed = |error| Error::unavailable(what, error);
    // Without a responder, the server sends an empty message with a status.
    if answer.is_empty() {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what}: no responders"),
        ));
    }
    let answer: StreamInfo = serde_json::from_slice(answer).map_err(malformed)?;
    match (answer.state, answer.error) {
        (Some(state), None) => {
            let replicas = answer.config.map_or(1, |config| config.num_replicas);
            Ok(Some(Answer {
                sequences: state.into(),
                replicas,
                is_led: answer.cluster.is_some_and(|cluster| cluster.is_led(replicas)),
            }))
        }
        (_, Some(error)) if error.err_code == Some(ErrorCode::STREAM_NOT_FOUND.0) => Ok(None),
        (_, Some(error)) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what}: {}", error.description),
        )),
        (None, None) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what}: malformed answer"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"first_seq":3,"last_seq":7,"last_ts":"2026-01-02T03:04:05.678901234Z"}"#;

    /// Whether an answer about a stream of three replicas, with this cluster state, is taken.
    fn is_led(cluster: &str) -> bool {
        let answer = format!(r#"{{"config":{{"num_replicas":3}},"state":{STATE},"cluster":{cluster}}}"#);
        let answer = parse(answer.as_bytes(), "read").unwrap().unwrap();
        assert_eq!((answer.sequences.last, answer.replicas), (7, 3));
        answer.is_led
    }

    #[test]
    fn only_the_answer_of_a_leader_with_a_majority_is_taken() {
        let replica = |name, rest| format!(r#"{{"name":"{name}","current":true{rest}}}"#);
        let cluster = |leader, one: &str, two: &str| {
            is_led(&format!(
                r#"{{"name":"c","leader":"{leader}","replicas":[{one},{two}]}}"#
            ))
        };
        let near = replica("b", r#","active":400000000"#);
        let far = replica("c", r#","active":3100000000"#);
        let offline = replica("c", r#","active":100,"offline":true"#);
        assert!(cluster("a", &near, &replica("c", r#","active":0"#)));
        // A replica is down: the other one is enough.
        assert!(cluster("a", &near, &far));
        assert!(cluster("a", &near, &offline));
        // A partitioned leader, which hears nobody.
        assert!(!cluster("a", &replica("b", r#","active":4000000000"#), &far));
        assert!(!cluster("a", &far, &offline));
        // Another server than the leader answers.
        assert!(!cluster("c", &near, &replica("c", r#","active":100"#)));
        // A server that knows no leader, or has not joined the group yet.
        assert!(!is_led(&format!(r#"{{"name":"c","replicas":[{near},{near}]}}"#)));
        assert!(!is_led(r#"{"name":"c","leader":"a"}"#));
    }

    #[test]
    fn a_single_server_needs_no_majority() {
        let answer = format!(r#"{{"config":{{"num_replicas":1}},"state":{STATE}}}"#);
        let answer = parse(answer.as_bytes(), "read").unwrap().unwrap();
        assert_eq!(answer.replicas, 1);
        let range = SequenceRange {
            first: 3,
            last: 7,
            last_at: Some(Timestamp(1_767_323_045_678_901)),
        };
        assert_eq!(answer.sequences, range);
    }

    #[test]
    fn a_stream_that_never_had_a_message_has_no_time() {
        let state = br#"{"state":{"first_seq":9,"last_seq":8,"last_ts":"0001-01-01T00:00:00Z"}}"#;
        let sequences = parse(state, "read").unwrap().unwrap().sequences;
        assert_eq!((sequences.first, sequences.last, sequences.last_at), (9, 8, None));
    }

    #[test]
    fn a_missing_stream_is_told_from_an_error() {
        let missing = br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        assert!(parse(missing, "read").unwrap().is_none());
        let offline = br#"{"error":{"code":500,"err_code":10118,"description":"stream is offline"}}"#;
        assert!(parse(offline, "read").is_err());
    }
}

//! Reads the last sequence of a stream, also while two servers claim to lead it.

use std::time::Duration;

use futures::StreamExt as _;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use crate::Mesh;
use crate::connection::API_TIMEOUT;
use crate::error::{Error, ErrorKind, Result};

/// How long to wait for further answers about a stream with several replicas.
const REPLICA_ANSWERS_WAIT: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct StreamInfo {
    config: Option<Config>,
    state: Option<State>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct Config {
    num_replicas: usize,
}

#[derive(Deserialize)]
struct State {
    last_seq: u64,
}

#[derive(Deserialize)]
struct ApiError {
    description: String,
}

impl Mesh {
    /// Reads the last sequence of a stream; 0 before the first message.
    ///
    /// A partitioned leader keeps answering with a stale sequence, even some seconds after it rejoined the cluster, in
    /// addition to the new leader. For a stream with replicas, this waits 50 ms for further answers and returns the
    /// greatest sequence.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the stream doesn't exist or no server answers.
    pub async fn last_sequence(&self, stream: &str) -> Result<u64> {
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
        let (mut last, replicas) = first.map_or_else(
            || {
                Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("{}: no answer", what()),
                ))
            },
            |answer| parse(&answer.payload, &what()),
        )?;
        if replicas > 1 {
            let until = Instant::now() + REPLICA_ANSWERS_WAIT;
            while let Ok(Some(answer)) = timeout_at(until, answers.next()).await {
                if let Ok((other, _)) = parse(&answer.payload, &what()) {
                    last = last.max(other);
                }
            }
        }
        Ok(last)
    }
}

/// Last sequence and number of replicas of the stream.
fn parse(answer: &[u8], what: &str) -> Result<(u64, usize)> {
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
        (Some(state), None) => Ok((
            state.last_seq,
            answer.config.map_or(1, |config| config.num_replicas),
        )),
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

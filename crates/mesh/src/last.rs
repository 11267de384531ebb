//! The end of a stream, also while servers disagree about who leads it.

use std::time::Duration;

use futures::StreamExt as _;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use crate::Mesh;
use crate::connection::API_TIMEOUT;
use crate::error::{Error, ErrorKind, Result};

/// How long to wait for another answer about a stream that has several replicas.
const OTHERS_WAIT: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct Answer {
    config: Option<Config>,
    state: Option<State>,
    error: Option<Refusal>,
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
struct Refusal {
    description: String,
}

impl Mesh {
    /// The last sequence of a stream; 0 before the first message.
    ///
    /// A server that was cut off from its cluster goes on answering for a stream that it led, for some seconds after it is
    /// back even, beside the one that leads now. So of a stream with replicas all answers are heard, and the furthest
    /// counts.
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
            |answer| read(&answer.payload, &what()),
        )?;
        if replicas > 1 {
            let until = Instant::now() + OTHERS_WAIT;
            while let Ok(Some(answer)) = timeout_at(until, answers.next()).await {
                if let Ok((other, _)) = read(&answer.payload, &what()) {
                    last = last.max(other);
                }
            }
        }
        Ok(last)
    }
}

/// The last sequence, and on how many servers the stream is.
fn read(answer: &[u8], what: &str) -> Result<(u64, usize)> {
    let malformed = |error| Error::unavailable(what, error);
    // No server has it: an empty answer with a status.
    if answer.is_empty() {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what}: nobody answers"),
        ));
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(malformed)?;
    match (answer.state, answer.error) {
        (Some(state), None) => Ok((
            state.last_seq,
            answer.config.map_or(1, |config| config.num_replicas),
        )),
        (_, Some(refusal)) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what}: {}", refusal.description),
        )),
        (None, None) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what}: a strange answer"),
        )),
    }
}

//! Snapshots of streams with their consumers, as nats-server makes and restores them.
//!
//! The server sends a compressed archive of the stream in chunks to an inbox, and waits for acknowledgements in between.
//! A restore sends the chunks back (<https://docs.nats.io/running-a-nats-service/nats_admin/jetstream_admin/disaster_recovery>).

use std::time::Duration;

use async_nats::Request;
use bytes::Bytes;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::Mesh;
use crate::error::{Error, ErrorKind, Result};

/// Size of a chunk, bytes.
const CHUNK_BYTES: usize = 128 << 10;
/// Timeout of the next chunk, and of the answer to one.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of the answer to the last chunk: the server unpacks the stream before.
const END_TIMEOUT: Duration = Duration::from_mins(10);

/// What a snapshot needs beside its bytes to be restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// The configuration of the stream, as the server wrote it.
    config: Value,
    /// The state of the stream, as the server wrote it.
    state: Value,
}

impl SnapshotHeader {
    /// Number of messages in the snapshot.
    pub fn message_count(&self) -> u64 {
        self.state["messages"].as_u64().unwrap_or(0)
    }

    /// The last sequence of the stream.
    pub fn last_sequence(&self) -> u64 {
        self.state["last_seq"].as_u64().unwrap_or(0)
    }
}

impl Mesh {
    /// Writes a snapshot of a stream and its consumers, as of now. Publishers and consumers go on.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the stream doesn't exist, the server stops sending, or `to` fails.
    pub async fn snapshot(
        &self,
        stream: &str,
        to: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<SnapshotHeader> {
        let what = || format!("make a snapshot of stream {stream}");
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::unavailable(what(), error);
        let client = &self.publishing().client;
        let inbox = client.new_inbox();
        let mut chunks = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| failed(error.into()))?;
        let request = json!({ "deliver_subject": inbox, "no_consumers": false, "chunk_size": CHUNK_BYTES });
        let answer = self
            .snapshot_request(&format!("$JS.API.STREAM.SNAPSHOT.{stream}"), &request, &what())
            .await?;
        let header = SnapshotHeader {
            config: answer["config"].clone(),
            state: answer["state"].clone(),
        };
        loop {
            let chunk = timeout(CHUNK_TIMEOUT, chunks.next())
                .await
                .map_err(|elapsed| failed(elapsed.into()))?;
            let chunk = chunk.ok_or_else(|| {
                Error::new(
                    ErrorKind::Unavailable,
                    format!("{}: the connection ended", what()),
                )
            })?;
            if chunk.payload.is_empty() {
                if let Some(status) = chunk.status.filter(|status| !status.is_success()) {
                    let reason = chunk.description.unwrap_or_default();
                    let message = format!("{}: {status} {reason}", what());
                    return Err(Error::new(ErrorKind::Unavailable, message));
                }
                break;
            }
            to.write_all(&chunk.payload)
                .await
                .map_err(|error| failed(error.into()))?;
            if let Some(reply) = chunk.reply {
                client
                    .publish(reply, Bytes::new())
                    .await
                    .map_err(|error| failed(error.into()))?;
            }
        }
        to.flush().await.map_err(|error| failed(error.into()))?;
        Ok(header)
    }

    /// Creates a stream and its consumers from a snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] when the stream exists already, or the server refuses the snapshot;
    /// [`ErrorKind::Unavailable`] when it doesn't answer, or `from` fails.
    pub async fn restore_snapshot(
        &self,
        stream: &str,
        header: &SnapshotHeader,
        from: &mut (impl AsyncRead + Unpin + Send),
    ) -> Result<()> {
        let what = || format!("restore stream {stream}");
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::unavailable(what(), error);
        let begun = self
            .snapshot_request(
                &format!("$JS.API.STREAM.RESTORE.{stream}"),
                &json!(header),
                &what(),
            )
            .await?;
        let to = begun["deliver_subject"].as_str().unwrap_or_default().to_owned();
        let client = &self.publishing().client;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let length = from
                .read(&mut buffer)
                .await
                .map_err(|error| failed(error.into()))?;
            // An empty chunk is the end.
            let chunk = Bytes::copy_from_slice(&buffer[..length]);
            let limit = if chunk.is_empty() {
                END_TIMEOUT
            } else {
                CHUNK_TIMEOUT
            };
            let request = Request::new().payload(chunk).timeout(Some(limit));
            let answer = client
                .send_request(to.clone(), request)
                .await
                .map_err(|error| failed(error.into()))?;
            check_answer(&answer.payload, &what())?;
            if length == 0 {
                return Ok(());
            }
        }
    }

    async fn snapshot_request(&self, subject: &str, request: &Value, what: &str) -> Result<Value> {
        let client = &self.publishing().client;
        let answer = client
            .request(subject.to_owned(), request.to_string().into())
            .await
            .map_err(|error| Error::unavailable(what, error))?;
        check_answer(&answer.payload, what)
    }
}

/// The answer of the server; an empty one is a confirmation.
fn check_answer(answer: &[u8], what: &str) -> Result<Value> {
    if answer.is_empty() {
        return Ok(Value::Null);
    }
    let answer: Value = serde_json::from_slice(answer).map_err(|error| Error::unavailable(what, error))?;
    if let Some(description) = answer["error"]["description"].as_str() {
        return Err(Error::new(ErrorKind::Rejected, format!("{what}: {description}")));
    }
    Ok(answer)
}

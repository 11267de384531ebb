//! Compares the streams and consumers of a server with a topology.

use std::fmt;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer;
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use futures::future::try_join_all;
use serde::Serialize;

use crate::Mesh;
use crate::ensure::{consumer_changes, overlay_consumer, stream_changes};
use crate::error::{Error, ErrorKind, Result};
use crate::topology::{ConsumerSpec, StreamSpec, Topology};

/// A stream or consumer that is missing, or differs from its specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Stream name.
    pub stream: String,
    /// Consumer name; `None` for the stream itself.
    pub consumer: Option<String>,
    /// The fields that differ; empty when the stream or consumer is missing.
    pub fields: Vec<FieldDifference>,
}

/// A field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldDifference {
    /// The name that the server has for it.
    pub field: &'static str,
    /// The value on the server.
    pub found: String,
    /// The value of the specification.
    pub wanted: String,
}

impl Difference {
    /// Whether the stream or consumer doesn't exist.
    pub fn is_missing(&self) -> bool {
        self.fields.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.consumer {
            Some(consumer) => write!(f, "consumer {consumer} of stream {}", self.stream)?,
            None => write!(f, "stream {}", self.stream)?,
        }
        if self.is_missing() {
            return f.write_str(" does not exist");
        }
        for (index, difference) in self.fields.iter().enumerate() {
            let separator = if index == 0 { ":" } else { "," };
            let FieldDifference { field, found, wanted } = difference;
            write!(f, "{separator} {field} is {found}, must be {wanted}")?;
        }
        Ok(())
    }
}

impl Mesh {
    /// Compares the streams and consumers of a server with a topology, as [`Mesh::ensure`] would, and changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the server doesn't answer, or not to this user.
    pub async fn verify(&self, topology: &Topology) -> Result<Vec<Difference>> {
        let streams = try_join_all(topology.streams.iter().map(|stream| self.verify_stream(stream)));
        let mut found: Vec<_> = streams.await?.into_iter().flatten().collect();
        let is_there = |consumer: &&ConsumerSpec| {
            let missing = |one: &Difference| one.stream == consumer.stream && one.is_missing();
            !found.iter().any(missing)
        };
        let consumers = topology.consumers.iter().filter(is_there);
        let consumers = try_join_all(consumers.map(|consumer| self.verify_consumer(consumer))).await?;
        found.extend(consumers.into_iter().flatten());
        Ok(found)
    }

    async fn verify_stream(&self, spec: &StreamSpec) -> Result<Option<Difference>> {
        let fields = match self.consuming().jetstream.get_stream(&spec.name).await {
            Ok(found) => {
                let found = &found.cached_info().config;
                let changes = stream_changes(found, &self.overlay_stream(found.clone(), spec));
                if changes.is_empty() {
                    return Ok(None);
                }
                changes
            }
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Vec::new()
                }
                _ => {
                    return Err(Error::unavailable(
                        format_args!("look up stream {}", spec.name),
                        error,
                    ));
                }
            },
        };
        Ok(Some(Difference {
            stream: spec.name.clone(),
            consumer: None,
            fields,
        }))
    }

    pub(crate) async fn verify_consumer(&self, spec: &ConsumerSpec) -> Result<Option<Difference>> {
        let jetstream = &self.consuming().jetstream;
        let what = || format!("look up consumer {} of stream {}", spec.name, spec.stream);
        let stream = jetstream
            .get_stream_no_info(&spec.stream)
            .await
            .map_err(|error| Error::with_source(ErrorKind::Invalid, what(), error))?;
        let fields = match stream.consumer_info(&spec.name).await {
            Ok(consumer::Info { config, paused, .. }) => {
                let mut changes = consumer_changes(&config, &overlay_consumer(config.clone(), spec));
                changes.extend(pause(&config, paused));
                if changes.is_empty() {
                    return Ok(None);
                }
                changes
            }
            Err(error) => match error.kind() {
                ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => Vec::new(),
                _ => return Err(Error::unavailable(what(), error)),
            },
        };
        Ok(Some(Difference {
            stream: spec.stream.clone(),
            consumer: Some(spec.name.clone()),
            fields,
        }))
    }
}

/// A pause is a difference, although an update of the consumer doesn't end it.
fn pause(config: &consumer::Config, paused: bool) -> Option<FieldDifference> {
    let until = config.pause_until.filter(|_| paused)?;
    Some(FieldDifference {
        field: "pause_until",
        found: until.to_string(),
        wanted: "none".into(),
    })
}

//! Creates or updates the streams and consumers of a topology on a server.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, FromConsumer as _};
use async_nats::jetstream::context::{
    ConsumerInfoErrorKind, CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{self, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType};
use futures::stream::{FuturesUnordered, TryStreamExt as _};
use tokio::time::Instant;

use crate::Mesh;
use crate::error::{Error, ErrorKind, Result, kind_of};
use crate::retry::RetryDelay;
use crate::topology::{ConsumerSpec, StreamSpec, Topology};
use crate::{FieldDifference, TopologyMode};

/// How long [`Mesh::ensure`] waits for a cluster that elects a leader, or that not all servers have joined yet.
const UNAVAILABLE_MAX: Duration = Duration::from_secs(30);
/// Delay between its attempts.
const RETRY: RetryDelay = RetryDelay {
    delay_ms_base: 200,
    delay_ms_max: 2_000,
};

impl Mesh {
    /// Creates missing streams and consumers, and updates those that differ from their specification. Fields that the
    /// specification doesn't set (placement, description) are kept. Idempotent, also when several processes call it at
    /// once. Streams are created one by one, in the topology's order, before the consumers. Waits for up to 30 s while
    /// the server can't do it now: a cluster elects a leader, or too few of its servers have started.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] names the stream or consumer, and the fields, that the server refuses to change;
    /// [`ErrorKind::Full`] when the server's storage is too small for the streams' `bytes_max`;
    /// [`ErrorKind::Unavailable`] when the wait was not enough.
    pub async fn ensure(&self, topology: &Topology) -> Result<()> {
        let until = Instant::now() + UNAVAILABLE_MAX;
        patiently(until, async || self.ensure_now(topology).await).await
    }

    async fn ensure_now(&self, topology: &Topology) -> Result<()> {
        for stream in &topology.streams {
            self.ensure_stream(stream).await?;
        }
        let consumers: FuturesUnordered<_> = topology
            .consumers
            .iter()
            .map(|spec| self.ensure_consumer(spec))
            .collect();
        consumers.try_collect().await
    }

    /// Creates a stream that was deleted, and its consumers. Returns whether this process may.
    ///
    /// # Errors
    /// As [`Mesh::ensure`].
    pub async fn restore_stream(&self, topology: &Topology, stream: &str) -> Result<bool> {
        if self.inner.config.topology == TopologyMode::Verify {
            return Ok(false);
        }
        let lost = Topology {
            streams: topology.stream(stream).into_iter().cloned().collect(),
            consumers: topology.consumers_of(stream).cloned().collect(),
        };
        self.ensure_now(&lost).await?;
        Ok(true)
    }

    async fn ensure_stream(&self, spec: &StreamSpec) -> Result<()> {
        let jetstream = &self.consuming().jetstream;
        // Another process can create the stream between the lookup and the create; the second lookup finds it.
        let mut attempts_left = 2;
        loop {
            attempts_left -= 1;
            match jetstream.get_stream(&spec.name).await {
                Ok(found) => {
                    let bytes = found.cached_info().state.bytes;
                    let found = &found.cached_info().config;
                    let wanted = self.overlay_stream(found.clone(), spec);
                    let changes = stream_changes(found, &wanted);
                    warn_if_full(&wanted, bytes);
                    if changes.is_empty() {
                        return Ok(());
                    }
                    jetstream
                        .update_stream(&wanted)
                        .await
                        .map_err(|error| stream_error(spec, &changes, error))?;
                    tracing::info!(stream = spec.name, changes = names(&changes), "stream updated");
                    return Ok(());
                }
                Err(error) => match error.kind() {
                    GetStreamErrorKind::JetStream(error)
                        if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
                    GetStreamErrorKind::JetStream(error) => {
                        return Err(Error::jetstream(
                            format_args!("look up stream {}", spec.name),
                            error,
                        ));
                    }
                    _ => {
                        return Err(Error::unavailable(
                            format_args!("look up stream {}", spec.name),
                            error,
                        ));
                    }
                },
            }
            match jetstream
                .create_stream(stream::Config {
                    first_sequence: (spec.first_sequence > 1).then_some(spec.first_sequence),
                    ..self.overlay_stream(stream::Config::default(), spec)
                })
                .await
            {
                Ok(_) => {
                    tracing::debug!(stream = spec.name, "stream created");
                    return Ok(());
                }
                Err(error)
                    if attempts_left > 0 && error_code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => {}
                Err(error) => return Err(stream_error(spec, &[], error)),
            }
        }
    }

    /// The configuration of a stream with the fields that the specification sets.
    pub(crate) fn overlay_stream(&self, config: stream::Config, spec: &StreamSpec) -> stream::Config {
        let config = overlay_stream(config, spec);
        if !spec.delay_queue {
            return config;
        }
        stream::Config {
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::Old,
            max_bytes: -1,
            // Servers before 2.12 drop this field, so each start would update the stream again. Once set, it stays: no
            // server allows unsetting it.
            allow_message_schedules: config.allow_message_schedules || self.has_schedules(),
            allow_rollup: config.allow_rollup || self.has_schedules(),
            ..config
        }
    }

    /// Makes sure that a consumer that may have been deleted exists.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when it doesn't, and this process may not create it.
    pub(crate) async fn restore_consumer(&self, spec: &ConsumerSpec) -> Result<()> {
        match self.inner.config.topology {
            TopologyMode::Apply => self.ensure_consumer(spec).await,
            TopologyMode::Verify => match self.verify_consumer(spec).await? {
                Some(difference) if difference.is_missing() => {
                    Err(Error::new(ErrorKind::Unavailable, difference.to_string()))
                }
                _ => Ok(()),
            },
        }
    }

    /// Creates or updates one consumer.
    pub(crate) async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<()> {
        let jetstream = &self.consuming().jetstream;
        let what = || format!("consumer {} of stream {}", spec.name, spec.stream);
        let stream = jetstream
            .get_stream_no_info(&spec.stream)
            .await
            .map_err(|error| Error::with_source(ErrorKind::Invalid, what(), error))?;
        let (wanted, changes) = match stream.consumer_info(&spec.name).await {
            Ok(found) => {
                let wanted = overlay_consumer(found.config.clone(), spec);
                let changes = consumer_changes(&found.config, &wanted);
                if changes.is_empty() {
                    return Ok(());
                }
                (wanted, changes)
            }
            Err(error) => match error.kind() {
                ConsumerInfoErrorKind::NotFound => {
                    (overlay_consumer(consumer::Config::default(), spec), vec![])
                }
                ConsumerInfoErrorKind::JetStream(error) => return Err(Error::jetstream(what(), error)),
                ConsumerInfoErrorKind::InvalidName => {
                    return Err(Error::with_source(ErrorKind::Invalid, what(), error));
                }
                _ => return Err(Error::unavailable(what(), error)),
            },
        };
        // Creates or updates the consumer.
        match stream.create_consumer(wanted).await {
            Ok(_) => {
                if changes.is_empty() {
                    tracing::debug!(stream = spec.stream, consumer = spec.name, "consumer created");
                } else {
                    let changes = names(&changes);
                    tracing::info!(
                        stream = spec.stream,
                        consumer = spec.name,
                        changes,
                        "consumer updated"
                    );
                }
                Ok(())
            }
            Err(error) => Err(match error.kind() {
                ConsumerErrorKind::JetStream(error) => match kind_of(&error) {
                    ErrorKind::Rejected => Error::with_source(
                        ErrorKind::Conflict,
                        format_args!(
                            "{}: the server refuses to create or update it ({}); restore the configuration, or delete \
                             the consumer: it then starts again at the stream's first message",
                            what(),
                            describe(&changes)
                        ),
                        error,
                    ),
                    kind => Error::with_source(kind, what(), error),
                },
                _ => Error::unavailable(what(), error),
            }),
        }
    }
}

/// Makes attempts until one succeeds, or fails for another reason than that the server can't do it now, or until a moment.
pub(crate) async fn patiently<T>(until: Instant, mut make: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut attempt = 1;
    loop {
        let error = match make().await {
            Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < until => error,
            done => return done,
        };
        tracing::warn!(attempt, %error, "streams and consumers can't be made yet, trying again");
        tokio::time::sleep(RETRY.random_delay(attempt)).await;
        attempt += 1;
    }
}

/// Warns if a stream that never drops messages for a new one holds more than its limit. That was lowered below what it
/// holds: nothing is lost, but it takes no messages.
fn warn_if_full(wanted: &stream::Config, bytes: u64) {
    let limit = u64::try_from(wanted.max_bytes).unwrap_or(u64::MAX);
    if wanted.discard == DiscardPolicy::New && bytes > limit {
        tracing::warn!(
            stream = wanted.name,
            bytes,
            bytes_max = limit,
            age_seconds_max = wanted.max_age.as_secs(),
            "the stream holds more than its limit: it keeps its messages and refuses new ones until enough of them have \
             reached their maximum age; raise topology.*.bytes_max of the stream to end that now"
        );
    }
}

fn overlay_stream(config: stream::Config, spec: &StreamSpec) -> stream::Config {
    stream::Config {
        name: spec.name.clone(),
        subjects: spec.subjects.clone(),
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: spec.replicas,
        max_age: Duration::from_secs(spec.limits.age_seconds_max),
        max_bytes: i64::try_from(spec.limits.bytes_max).unwrap_or(i64::MAX),
        duplicate_window: spec.dedupe_window,
        allow_direct: true,
        ..config
    }
}

/// The fields that differ, as the server names them.
pub(crate) fn stream_changes(found: &stream::Config, wanted: &stream::Config) -> Vec<FieldDifference> {
    changed_fields([
        field("subjects", &found.subjects, &wanted.subjects),
        field("retention", &found.retention, &wanted.retention),
        field("discard", &found.discard, &wanted.discard),
        field("storage", &found.storage, &wanted.storage),
        field("num_replicas", &found.num_replicas, &wanted.num_replicas),
        field("max_age", &found.max_age, &wanted.max_age),
        field("max_bytes", &found.max_bytes, &wanted.max_bytes),
        field(
            "duplicate_window",
            &found.duplicate_window,
            &wanted.duplicate_window,
        ),
        field("allow_direct", &found.allow_direct, &wanted.allow_direct),
        field(
            "allow_msg_schedules",
            &found.allow_message_schedules,
            &wanted.allow_message_schedules,
        ),
    ])
}

/// The configuration of a consumer with the fields that the specification sets.
pub(crate) fn overlay_consumer(config: consumer::Config, spec: &ConsumerSpec) -> consumer::pull::Config {
    // A push consumer has no pull configuration; the server refuses to change it.
    let config = consumer::pull::Config::try_from_consumer_config(config).unwrap_or_default();
    consumer::pull::Config {
        durable_name: Some(spec.name.clone()),
        name: Some(spec.name.clone()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: spec.ack_wait,
        max_deliver: i64::from(spec.attempts_max),
        filter_subject: spec.filter.clone().unwrap_or_default(),
        filter_subjects: Vec::new(),
        max_ack_pending: i64::from(spec.ack_pending_max),
        ..config
    }
}

pub(crate) fn consumer_changes(
    found: &consumer::Config,
    wanted: &consumer::pull::Config,
) -> Vec<FieldDifference> {
    // A consumer with several filters has them in another field.
    let filters = match found.filter_subject.as_str() {
        "" => found.filter_subjects.join(", "),
        filter => filter.into(),
    };
    changed_fields([
        field("deliver_subject", &found.deliver_subject, &None),
        field("deliver_policy", &found.deliver_policy, &wanted.deliver_policy),
        field("ack_policy", &found.ack_policy, &wanted.ack_policy),
        field("ack_wait", &found.ack_wait, &wanted.ack_wait),
        field("max_deliver", &found.max_deliver, &wanted.max_deliver),
        field("filter_subject", &filters, &wanted.filter_subject),
        field("max_ack_pending", &found.max_ack_pending, &wanted.max_ack_pending),
    ])
}

/// A field, if it differs.
fn field<T: PartialEq + fmt::Debug>(name: &'static str, found: &T, wanted: &T) -> Option<FieldDifference> {
    (found != wanted).then(|| FieldDifference {
        field: name,
        found: format!("{found:?}"),
        wanted: format!("{wanted:?}"),
    })
}

fn changed_fields<const N: usize>(fields: [Option<FieldDifference>; N]) -> Vec<FieldDifference> {
    fields.into_iter().flatten().collect()
}

fn names(changes: &[FieldDifference]) -> String {
    let names: Vec<_> = changes.iter().map(|change| change.field).collect();
    names.join(", ")
}

fn describe(changes: &[FieldDifference]) -> String {
    if changes.is_empty() {
        "new".into()
    } else {
        names(changes)
    }
}

fn error_code(error: &CreateStreamError) -> Option<ErrorCode> {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => Some(error.error_code()),
        _ => None,
    }
}

fn stream_error(spec: &StreamSpec, changes: &[FieldDifference], error: CreateStreamError) -> Error {
    let name = &spec.name;
    let CreateStreamErrorKind::JetStream(jetstream) = error.kind() else {
        return Error::unavailable(format_args!("create or update stream {name}"), error);
    };
    match (kind_of(&jetstream), jetstream.error_code()) {
        (ErrorKind::Full, _) => Error::with_source(
            ErrorKind::Full,
            format_args!(
                "stream {name}: the server's storage is too small for bytes_max {}; lower the streams' bytes_max, or \
                 raise the server's max_file_store",
                spec.limits.bytes_max
            ),
            jetstream,
        ),
        (ErrorKind::Rejected, ErrorCode::STREAM_SUBJECT_OVERLAP) => Error::with_source(
            ErrorKind::Conflict,
            format_args!(
                "stream {name}: its subjects ({}) belong to another stream; delete the other stream, or use a separate \
                 account for Herald",
                spec.subjects.join(", ")
            ),
            jetstream,
        ),
        (ErrorKind::Rejected, _) => Error::with_source(
            ErrorKind::Conflict,
            format_args!(
                "stream {name}: the server refuses to create or update it ({}); restore the configuration, or delete \
                 the stream and its messages",
                describe(changes)
            ),
            jetstream,
        ),
        (kind, _) => Error::with_source(kind, format_args!("create or update stream {name}"), jetstream),
    }
}

//! Checks of streams, and of the servers that have them.

use std::{collections::BTreeMap, time::Duration};

use herald_cli::{output::count, time::approximate};
use herald_mesh::{ConsumerState, Difference, FieldDifference, StreamState, streams};

use super::consumers::{ack_pending_of, backoff};
use crate::doctor::{Finding, Observed, Severity, observed::HealthError};

/// How nats-server words that it froze a stream.
const WRITE_ERROR: &str = "write error";

/// Streams and consumers of which no server tells anything.
pub(in crate::doctor) fn unreadable(observed: &Observed) -> Vec<Finding> {
    let findings = observed.unreadable.iter().map(|reason| {
        Finding::error(
            "unreadable",
            reason,
            "a stream or consumer that has no leader takes and gives no messages; one that this user may not read is not \
             checked",
            "start the servers of the cluster that are down; with a server that restricts its users, run this command as \
             `gateway`",
        )
    });
    findings.collect()
}

/// Streams and consumers that don't exist.
pub(in crate::doctor) fn missing(observed: &Observed) -> Vec<Finding> {
    let missing = observed.differences.iter().filter(|one| one.is_missing());
    let findings = missing.map(|difference| match &difference.consumer {
        Some(consumer) => Finding::error(
            "consumer-missing",
            format!("consumer {consumer} of stream {} does not exist", difference.stream),
            "its workers get no messages, and what waits for them is removed when it reaches the maximum age of the stream",
            "`herald topology apply` makes it, and so does a restart of a process with `nats.topology` = \"apply\"; it \
             begins at the first message of the stream, and repeats change nothing",
        ),
        None if difference.stream == streams::ADVISORIES => Finding::error(
            "stream-missing",
            "stream ADVISORIES does not exist",
            "the server tells only once that it gives up a message, and only to this stream: messages that are given up now \
             become no dead letters",
            "`herald topology apply`, then `herald audit --repair`, which finds the messages that were given up meanwhile",
        ),
        None => Finding::error(
            "stream-missing",
            format!("stream {} does not exist", difference.stream),
            "messages for it are refused, and the messages that it held are lost",
            if difference.stream == streams::POSTS {
                "stop all processes and run `herald recover`: a POSTS that is simply made again would give post ids twice"
            } else {
                "`herald topology apply`, then `herald audit --repair`, which delivers what the lost messages would have \
                 delivered"
            },
        ),
    });
    findings.collect()
}

/// Streams and consumers that differ from the configuration.
pub(in crate::doctor) fn differs(observed: &Observed) -> Vec<Finding> {
    let mut alike: BTreeMap<(bool, String), Vec<Difference>> = BTreeMap::new();
    for difference in observed.differences.iter().filter(|one| !one.is_missing()) {
        let fields: Vec<FieldDifference> = difference
            .fields
            .iter()
            .filter(|field| !is_explained(observed, difference, field.field))
            .cloned()
            .collect();
        if !fields.is_empty() {
            let key = (difference.consumer.is_some(), format!("{fields:?}"));
            alike.entry(key).or_default().push(Difference {
                fields,
                ..difference.clone()
            });
        }
    }
    let findings = alike.into_iter().map(|((is_consumer, _), differences)| {
        Finding::warning(
            if is_consumer {
                "consumer-differs"
            } else {
                "stream-differs"
            },
            describe(&differences),
            "the processes rely on their configuration: what they expect of the stream or consumer doesn't hold",
            "`herald topology apply` changes the server; if the server is right, change `topology` in the configuration of \
             all processes",
        )
    });
    findings.collect()
}

/// Streams, or consumers, that differ in the same fields and values.
fn describe(differences: &[Difference]) -> String {
    let (Some(first), true) = (differences.first(), differences.len() > 1) else {
        return differences.iter().map(ToString::to_string).collect();
    };
    let names = differences
        .iter()
        .map(|one| one.consumer.as_ref().unwrap_or(&one.stream));
    let names: Vec<&str> = names.map(String::as_str).collect();
    let fields = first.fields.iter().map(|field| {
        let FieldDifference { field, found, wanted } = field;
        format!("{field} is {found}, must be {wanted}")
    });
    let kind = if first.consumer.is_some() {
        "consumers"
    } else {
        "streams"
    };
    format!(
        "{kind} {}: {}",
        names.join(", "),
        fields.collect::<Vec<_>>().join(", ")
    )
}

/// Whether another check tells what is wrong with a field.
fn is_explained(observed: &Observed, difference: &Difference, field: &str) -> bool {
    let stream = observed.streams.iter().find(|one| one.name == difference.stream);
    let explained = match (field, &difference.consumer) {
        ("max_age", None) => stream.and_then(|stream| retention_of(observed, stream)),
        ("duplicate_window", None) => {
            return stream.is_some_and(|stream| dedupe_window_of(observed, stream).is_some());
        }
        ("max_ack_pending", Some(name)) => {
            let consumer = observed.consumers.iter().find(|one| one.name == *name);
            consumer
                .and_then(|consumer| ack_pending_of(observed, consumer))
                .filter(|finding| finding.severity != Severity::Note)
        }
        ("pause_until", Some(_)) => return true,
        // The first delay of a back-off replaces it.
        ("ack_wait", Some(name)) => backoff(observed)
            .into_iter()
            .find(|finding| finding.what.starts_with(&format!("consumer {name} "))),
        _ => None,
    };
    explained.is_some()
}

/// A capture stream for advisories that was made after messages could be given up.
pub(in crate::doctor) fn advisories_late(observed: &Observed) -> Vec<Finding> {
    let Some(advisories) = observed
        .streams
        .iter()
        .find(|one| one.name == streams::ADVISORIES)
    else {
        return Vec::new();
    };
    let is_older = |consumer: &&ConsumerState| {
        let stream = observed
            .streams
            .iter()
            .find(|stream| stream.name == consumer.stream);
        let first_at = stream.and_then(|stream| stream.first_at);
        consumer.stream != streams::ADVISORIES
            && consumer.created_at < advisories.created_at
            && first_at.is_some_and(|first_at| first_at < advisories.created_at)
    };
    let older: Vec<&str> = observed
        .consumers
        .iter()
        .filter(is_older)
        .map(|consumer| consumer.name.as_str())
        .collect();
    if older.is_empty() {
        return Vec::new();
    }
    vec![Finding::warning(
        "advisories-late",
        format!(
            "stream ADVISORIES is younger than consumers with messages of that time: {}",
            older.join(", ")
        ),
        "the server tells only once that it gives up a message: what these consumers gave up before the stream existed became \
         no dead letter",
        "`herald audit --repair` finds those messages; this finding ends when the messages of that time have reached the \
         maximum age of their stream",
    )]
}

/// Streams that remove a message before its last attempt.
pub(in crate::doctor) fn retention_short(observed: &Observed) -> Vec<Finding> {
    let streams = observed.streams.iter();
    streams
        .filter_map(|stream| retention_of(observed, stream))
        .collect()
}

fn retention_of(observed: &Observed, stream: &StreamState) -> Option<Finding> {
    let consumers = observed.consumers.iter().filter(|one| one.stream == stream.name);
    let (time, consumer) = consumers
        .filter_map(|consumer| Some((attempts_time(observed, consumer)?, consumer)))
        .max_by_key(|(time, _)| *time)?;
    if stream.age_max.is_zero() || time <= stream.age_max {
        return None;
    }
    Some(Finding::error(
        "retention-shorter-than-retries",
        format!(
            "stream {} removes messages after {}, and the {} attempts of consumer {} take up to {}",
            stream.name,
            approximate(stream.age_max),
            count(consumer.attempts_max.unwrap_or_default()),
            consumer.name,
            approximate(time)
        ),
        "a message that is removed before its last attempt is lost: it becomes no dead letter",
        "`herald topology apply` restores the configured age; or lower `attempts_max` of the consumer",
    ))
}

/// The maximum time of all attempts at a message.
fn attempts_time(observed: &Observed, consumer: &ConsumerState) -> Option<Duration> {
    let retry = observed.topology.consumer(&consumer.name)?.retry;
    let backoff = consumer.backoff.iter().copied().max().unwrap_or_default();
    let attempt = consumer
        .ack_wait
        .max(Duration::from_millis(retry.delay_ms_max))
        .max(backoff);
    let attempts = u32::try_from(consumer.attempts_max?).unwrap_or(u32::MAX);
    Some(attempt.saturating_mul(attempts))
}

/// Streams that forget message ids sooner than publishers repeat messages.
pub(in crate::doctor) fn dedupe_window_short(observed: &Observed) -> Vec<Finding> {
    let mut short: BTreeMap<(Duration, Duration), Vec<&str>> = BTreeMap::new();
    for stream in &observed.streams {
        if let Some(windows) = dedupe_window_of(observed, stream) {
            short.entry(windows).or_default().push(&stream.name);
        }
    }
    let findings = short.into_iter().map(|((found, wanted), streams)| {
        Finding::error(
            "dedupe-window-short",
            format!(
                "{} for {}, and processes rely on {}",
                match streams.as_slice() {
                    [stream] => format!("stream {stream} knows message ids"),
                    streams => format!("streams {} know message ids", streams.join(", ")),
                },
                approximate(found),
                approximate(wanted)
            ),
            "a publish that is repeated after that time is stored twice: a second post, or a second copy of a chunk",
            "`herald topology apply` restores the window; or lower `topology.dedupe_window_seconds` of all processes, which \
             then repeat for a shorter time",
        )
    });
    findings.collect()
}

/// The window of a stream, and the longer one that is wanted.
fn dedupe_window_of(observed: &Observed, stream: &StreamState) -> Option<(Duration, Duration)> {
    let wanted = observed.topology.stream(&stream.name)?.dedupe_window;
    (stream.dedupe_window < wanted).then_some((stream.dedupe_window, wanted))
}

/// Streams with one replica in a cluster.
pub(in crate::doctor) fn single_replica(observed: &Observed) -> Vec<Finding> {
    let single: Vec<&str> = observed
        .streams
        .iter()
        .filter(|stream| stream.cluster.is_some() && stream.replicas < 2)
        .map(|stream| stream.name.as_str())
        .collect();
    if single.is_empty() {
        return Vec::new();
    }
    vec![Finding::warning(
        "single-replica",
        format!(
            "the servers are a cluster, and these streams have one replica: {}",
            single.join(", ")
        ),
        "each of them is on one server: when that stops, the stream stops, and when its disk is lost, its messages are",
        "set `topology.replicas` to 3 in the configuration of all processes and run `herald topology apply`: the server copies \
         the streams while they are in use",
    )]
}

/// Replicas that don't have all messages.
pub(in crate::doctor) fn replica_behind(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    for stream in &observed.streams {
        let Some(cluster) = stream.cluster.as_ref().filter(|_| stream.replicas > 1) else {
            continue;
        };
        if cluster.leader.is_empty() {
            findings.push(Finding::error(
                "stream-without-leader",
                format!("stream {} has no leader", stream.name),
                "it takes and gives no messages until a majority of its servers agree on one",
                "start the servers of the cluster that are down, and look at the log of the others",
            ));
        } else if !cluster.behind.is_empty() {
            findings.push(Finding::warning(
                "replica-behind",
                format!(
                    "stream {} is offline or incomplete on: {}",
                    stream.name,
                    cluster.behind.join(", ")
                ),
                "the loss of one more server stops the stream",
                "start the server, or wait until it has caught up; `nats stream info` shows how far it is",
            ));
        }
    }
    findings
}

/// Streams that a server has frozen, and what else it finds wrong.
pub(in crate::doctor) fn frozen(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    for server in &observed.servers {
        for HealthError { stream, text } in &server.errors {
            findings.push(if text.contains(WRITE_ERROR) {
                Finding::error(
                    "stream-frozen",
                    format!("server {} has frozen a stream after an error of its disk: {text}", server.name),
                    format!(
                        "{} takes no message and no acknowledgement on this server until it is started again",
                        if stream.is_empty() { "it" } else { stream.as_str() }
                    ),
                    "remove the cause (a full, failing or read-only disk), then restart the server; `herald doctor` tells \
                     whether messages were lost",
                )
            } else {
                Finding::warning(
                    "server-unhealthy",
                    format!("server {}: {text}", server.name),
                    "the server itself reports that it can't do its part",
                    "look at the log of the server; a server that has just started may still be catching up",
                )
            });
        }
    }
    findings
}

/// Servers that lose messages with the power.
pub(in crate::doctor) fn fsync(observed: &Observed) -> Vec<Finding> {
    // With replicas on other machines, one of them still has what another one lost.
    if observed.streams.iter().all(|stream| stream.replicas > 1) {
        return Vec::new();
    }
    let notes = observed.servers.iter().filter_map(|server| {
        let interval = server.sync_interval?;
        Some(Finding::note(
            "fsync-interval",
            format!("server {} writes to its disk every {}", server.name, approximate(interval)),
            "a machine that loses power loses the posts that were accepted since; a process that ends loses nothing",
            "three servers on three machines with `topology.replicas` = 3; or `sync_interval: always` \
             (`nats.sync_always` of `herald up`), which costs throughput",
        ))
    });
    notes.collect()
}

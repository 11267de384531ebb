//! Checks of consumers.

use herald_cli::{
    output::{count, counted},
    time::approximate,
};
use herald_mesh::{ConsumerState, consumers, streams};

use crate::doctor::{Finding, Observed, Severity};

/// Consumers with a back-off on the server, which replaces `ack_wait`.
pub(in crate::doctor) fn backoff(observed: &Observed) -> Vec<Finding> {
    let with = observed
        .consumers
        .iter()
        .filter(|consumer| !consumer.backoff.is_empty());
    let findings = with.map(|consumer| {
        let delays: Vec<_> = consumer.backoff.iter().map(|delay| approximate(*delay)).collect();
        let mut what = format!(
            "consumer {} of stream {} has a back-off on the server: {}",
            consumer.name,
            consumer.stream,
            delays.join(", ")
        );
        let entries = consumer.backoff.len() as u64;
        if consumer.attempts_max.is_some_and(|max| entries > max) {
            what += ", which is longer than its attempts";
        }
        Finding::warning(
            "consumer-backoff",
            what,
            "its first delay replaces `ack_wait_seconds`: a message can be delivered to a second worker while the first one \
             still works on it, or wait too long for another one when a worker died. Herald delays its retries itself",
            "remove the back-off: `nats consumer edit --backoff none`, or delete the consumer and run \
             `herald topology apply`; repeats change nothing",
        )
    });
    findings.collect()
}

/// Consumers that allow fewer messages in flight than their workers have room for.
pub(in crate::doctor) fn ack_pending_small(observed: &Observed) -> Vec<Finding> {
    let consumers = observed.consumers.iter();
    consumers
        .filter_map(|consumer| ack_pending_of(observed, consumer))
        .collect()
}

pub(super) fn ack_pending_of(observed: &Observed, consumer: &ConsumerState) -> Option<Finding> {
    let max = consumer.ack_pending_max?;
    let rooms: Vec<u64> = observed
        .processes
        .iter()
        .filter_map(|process| process.about.in_flight_max.get(&consumer.name).copied())
        .collect();
    let (room, largest, workers) = match rooms.as_slice() {
        [] => {
            let own = observed.in_flight_max.get(&consumer.name).copied().unwrap_or(0);
            (own, own, 1)
        }
        rooms => {
            let largest = rooms.iter().copied().max().unwrap_or(0);
            (rooms.iter().sum(), largest, rooms.len() as u64)
        }
    };
    let is_reached = consumer.ack_pending_count >= max && consumer.pending_count > 0;
    let what = if is_reached {
        format!(
            "consumer {} of stream {} has {} messages in flight, all that it allows, and {} wait",
            consumer.name,
            consumer.stream,
            count(max),
            count(consumer.pending_count)
        )
    } else if room > max {
        format!(
            "consumer {} of stream {} gives its workers at most {} messages at a time, and {} for {}",
            consumer.name,
            consumer.stream,
            count(max),
            counted(workers, "worker has room", "workers have room"),
            count(room)
        )
    } else {
        return None;
    };
    // Several workers that could hold more together lose nothing before they do.
    let severity = if is_reached || largest > max {
        Severity::Warning
    } else {
        Severity::Note
    };
    Some(Finding::new(
        severity,
        "ack-pending-small",
        what,
        "the limit is that of the consumer, not of a worker: at the limit, more workers don't make it faster",
        "raise `topology.consumers.*.ack_pending_max` of this consumer above what all its workers hold together, and run \
         `herald topology apply`",
    ))
}

/// An archive that is further behind than a repeated request may be.
pub(in crate::doctor) fn archive_behind(observed: &Observed) -> Vec<Finding> {
    let Some(posts) = observed
        .streams
        .iter()
        .find(|stream| stream.name == streams::POSTS)
    else {
        return Vec::new();
    };
    if observed.archive_age <= posts.dedupe_window {
        return Vec::new();
    }
    vec![Finding::warning(
        "archive-behind",
        format!(
            "consumer {} is {} behind, and stream POSTS knows request ids for {}",
            consumers::ARCHIVE,
            approximate(observed.archive_age),
            approximate(posts.dedupe_window)
        ),
        "gateways archive themselves what the archive lacks; while they can't, they refuse deletions and all posts with \
         a request_id: UNAVAILABLE, ARCHIVE_BEHIND",
        "see why the archive waits (its log, /readyz, the store); more processes with the role archive help against load",
    )]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::{
        doctor::observed::Process,
        server::{About, Config, Role},
    };

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Pods {
        replicas: Option<u64>,
        #[serde(default)]
        autoscaling: Autoscaling,
        #[serde(default)]
        lanes: Vec<Lane>,
    }

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Autoscaling {
        max_replicas: Option<u64>,
    }

    #[derive(Deserialize)]
    struct Lane {
        lanes: Vec<String>,
        autoscaling: Autoscaling,
    }

    /// The processes of an example of the chart when all roles have as many pods as they may.
    fn example() -> Vec<Process> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../helm/herald/examples/ha.yaml");
        let values: serde_json::Value =
            yaml_serde::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut processes = Vec::new();
        for role in Role::WHOLE {
            let pods: Pods = serde_json::from_value(values[role.as_str()].clone()).unwrap();
            let whole = pods.autoscaling.max_replicas.or(pods.replicas);
            let of_lanes = pods
                .lanes
                .into_iter()
                .map(|lane| (lane.lanes, lane.autoscaling.max_replicas));
            let whole = whole.map(|replicas| (Vec::new(), Some(replicas)));
            for (lanes, replicas) in of_lanes.chain(whole) {
                let config = Config {
                    lanes,
                    ..Config::default()
                };
                let about = About::new(&config, &[role].into_iter().collect());
                for _ in 0..replicas.unwrap() {
                    processes.push(Process {
                        name: role.as_str().into(),
                        about: about.clone(),
                        failing: Vec::new(),
                    });
                }
            }
        }
        processes
    }

    #[test]
    fn consumers_have_room_for_the_processes_of_the_example() {
        let mut observed = Observed::with_defaults();
        observed.processes = example();
        let analytics = observed
            .processes
            .iter()
            .filter(|process| process.name == "analytics");
        assert_eq!(analytics.count(), 2);
        assert_eq!(ack_pending_small(&observed), []);
    }

    #[test]
    fn workers_that_could_hold_too_much_are_a_note_until_they_do() {
        let mut observed = Observed::with_defaults();
        observed.processes = example();
        let consumer = |observed: &mut Observed, change: fn(&mut ConsumerState)| {
            let mut all = observed.consumers.iter_mut();
            change(all.find(|one| one.name == consumers::ANALYTICS_EVENTS).unwrap());
            let found = ack_pending_small(observed);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].severity
        };
        let severity = consumer(&mut observed, |one| one.ack_pending_max = Some(8_192));
        assert_eq!(severity, Severity::Note);
        let severity = consumer(&mut observed, |one| {
            one.ack_pending_count = 8_192;
            one.pending_count = 1;
        });
        assert_eq!(severity, Severity::Warning);
        // A single process has room for more.
        let severity = consumer(&mut observed, |one| {
            one.ack_pending_max = Some(8_191);
            one.ack_pending_count = 0;
        });
        assert_eq!(severity, Severity::Warning);
    }
}

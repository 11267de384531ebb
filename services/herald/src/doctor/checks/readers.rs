//! Checks of those who read consumers.

use herald_cli::{
    output::{count, counted},
    time::approximate,
};
use herald_mesh::{ConsumerState, consumers};
use herald_model::Lane;

use crate::doctor::{Finding, Observed, Severity, observed::Late};

/// Consumers that nobody reads.
pub(in crate::doctor) fn unread(observed: &Observed) -> Vec<Finding> {
    // What a pause holds back says nothing about its reader.
    let is_unread =
        |consumer: &&ConsumerState| observed.unread.contains(&consumer.name) && consumer.paused_for.is_zero();
    let unread: Vec<_> = observed.consumers.iter().filter(is_unread).collect();
    let (waited_for, idle): (Vec<&ConsumerState>, Vec<&ConsumerState>) = unread
        .into_iter()
        .partition(|consumer| consumer.pending_count + consumer.ack_pending_count > 0);
    let mut findings: Vec<Finding> = waited_for
        .into_iter()
        .map(|consumer| {
            paused(observed, consumer)
                .or_else(|| busy(observed, consumer))
                .unwrap_or_else(|| without_reader(consumer))
        })
        .collect();
    if !idle.is_empty() {
        let names: Vec<_> = idle.iter().map(|consumer| consumer.name.as_str()).collect();
        findings.push(Finding::note(
            "consumer-unread",
            format!("nobody reads {}, and no message waits for them", names.join(", ")),
            "this is as it should be if an autoscaler starts their workers when there is work",
            "otherwise start processes with the roles that read them",
        ));
    }
    findings
}

fn without_reader(consumer: &ConsumerState) -> Finding {
    let waiting = consumer.pending_count + consumer.ack_pending_count;
    Finding::error(
        "consumer-unread",
        format!(
            "nobody reads consumer {} of stream {}, and {} for it",
            consumer.name,
            consumer.stream,
            counted(waiting, "message waits", "messages wait")
        ),
        "no worker asks for its messages, so they wait until they reach the maximum age of the stream",
        format!(
            "start a process with the role {}, with all lanes between them, or see why those that run are not ready \
             (/readyz). If all their messages in flight wait for another part, such as the store, that part is away",
            role(consumer)
        ),
    )
}

/// Consumers that were paused on the server.
pub(in crate::doctor) fn paused_on_server(observed: &Observed) -> Vec<Finding> {
    let paused = observed.consumers.iter().filter(|one| !one.paused_for.is_zero());
    let findings = paused.map(|consumer| {
        let ConsumerState { stream, name, .. } = consumer;
        let waiting = consumer.pending_count + consumer.ack_pending_count;
        Finding::new(
            if waiting > 0 { Severity::Error } else { Severity::Warning },
            "consumer-paused",
            format!(
                "consumer {name} of stream {stream} is paused for another {}, and {} for it",
                approximate(consumer.paused_for),
                counted(waiting, "message waits", "messages wait")
            ),
            "the server gives its workers nothing until the pause ends, and what waits is removed when it reaches the maximum \
             age of the stream",
            format!("`nats consumer resume {stream} {name}`, or wait for the end if the pause is intended"),
        )
    });
    findings.collect()
}

/// Consumers that workers read, and whose deliveries are later than promised.
pub(in crate::doctor) fn late(observed: &Observed) -> Vec<Finding> {
    // A pause, and a consumer without a reader, are told as such.
    let is_told = |late: &&Late| {
        let mut consumers = observed.consumers.iter();
        let is_paused = consumers.any(|one| one.name == late.consumer && !one.paused_for.is_zero());
        is_paused || observed.unread.contains(&late.consumer)
    };
    let findings = observed.late.iter().filter(|late| !is_told(late)).map(|late| {
        Finding::warning(
            "deliveries-late",
            format!(
                "{} for consumer {}, the oldest since {}; promised are {}",
                counted(late.message_count, "message waits", "messages wait"),
                late.consumer,
                approximate(late.age),
                approximate(late.promise)
            ),
            "these deliveries break the promise; the age counts from the time at which the message was stored",
            "`herald lag --watch` tells whether the workers get on: then wait or add some. Otherwise see their /readyz and log",
        )
    });
    findings.collect()
}

/// Fan-out of a lane that waits until fewer chunks are pending.
fn paused(observed: &Observed, consumer: &ConsumerState) -> Option<Finding> {
    let is_of = |lane: &Lane| [consumers::fanout(*lane), consumers::slice(*lane)].contains(&&*consumer.name);
    let lane = Lane::ALL.into_iter().find(is_of)?;
    if room(observed, consumer) == Some(0) {
        return None;
    }
    let below = [consumers::timeline(lane), consumers::push(lane)];
    let is_below = |one: &&ConsumerState| below.contains(&&*one.name);
    let deepest = observed
        .consumers
        .iter()
        .filter(is_below)
        .max_by_key(|one| one.pending_count)?;
    // A lane that is paused stays so down to half of the limit.
    observed
        .gate
        .should_pause(true, deepest.pending_count)
        .then(|| {
            Finding::note(
                "consumer-paused",
                format!(
                    "fan-out doesn't read consumer {} of stream {} for now: {} wait for {}",
                    consumer.name,
                    consumer.stream,
                    counted(deepest.pending_count, "chunk", "chunks"),
                    deepest.name
                ),
                format!(
                    "fan-out of a lane pauses while {} chunks or more wait (fanout.gate.pending_chunks_max), so that a \
                     backlog consists of posts; it goes on at half of them",
                    count(observed.gate.pending_chunks_max)
                ),
                format!("see whether the workers of {} get on: `herald lag`", deepest.name),
            )
        })
}

/// Workers that have as many messages in hand as they handle at once.
fn busy(observed: &Observed, consumer: &ConsumerState) -> Option<Finding> {
    let room = match room(observed, consumer) {
        Some(room) => room,
        None => observed.slots_max.get(&consumer.name).copied().unwrap_or(0),
    };
    (room > 0 && consumer.ack_pending_count >= room).then(|| {
        Finding::warning(
            "consumer-busy",
            format!(
                "the workers of consumer {} of stream {} have {} in hand and finished none during this check, and {} wait",
                consumer.name,
                consumer.stream,
                counted(consumer.ack_pending_count, "message", "messages"),
                count(consumer.pending_count)
            ),
            "workers that are full ask for no more: their messages take long, wait for another part, such as the store, or \
             the workers hang or have just died",
            format!(
                "repeat this check. If it stays so, see /readyz and the log of the processes with the role {}; more of them \
                 help against load",
                role(consumer)
            ),
        )
    })
}

/// The messages that all processes handle at once; `None` if the processes are not known.
fn room(observed: &Observed, consumer: &ConsumerState) -> Option<u64> {
    if observed.processes.is_empty() {
        return None;
    }
    let all = observed.processes.iter();
    let rooms = all.filter_map(|process| process.about.slots_max.get(&consumer.name));
    Some(rooms.sum())
}

/// The role that reads a consumer.
fn role(consumer: &ConsumerState) -> &'static str {
    let name = consumer.name.strip_prefix("redrive-").unwrap_or(&consumer.name);
    match name.split('-').next().unwrap_or_default() {
        "fanout" | "slice" => "fanout",
        "timeline" => "timeline",
        "push" => "push",
        "archive" => "archive",
        "analytics" => "analytics",
        "later" => "timeline or push",
        _ => "deadletter",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::observed::Process,
        server::{About, Config, Role},
    };

    /// A mesh where one consumer is not read and has one message that waits, after a change.
    fn unread_of(name: &str, change: impl FnOnce(&mut Observed)) -> (String, Severity) {
        let mut observed = Observed::with_defaults();
        observed.unread = vec![name.into()];
        at(&mut observed, name).pending_count = 1;
        change(&mut observed);
        let mut found = unread(&observed);
        assert_eq!(found.len(), 1, "{found:?}");
        let found = found.remove(0);
        (found.id, found.severity)
    }

    fn at<'a>(observed: &'a mut Observed, name: &str) -> &'a mut ConsumerState {
        let mut all = observed.consumers.iter_mut();
        all.find(|one| one.name == name).unwrap()
    }

    fn process(role: Role) -> Process {
        Process {
            name: role.as_str().into(),
            about: About::new(&Config::default(), &[role].into_iter().collect()),
            failing: Vec::new(),
        }
    }

    #[test]
    fn a_paused_lane_is_a_note() {
        let (error, note) = (Severity::Error, Severity::Note);
        for name in ["fanout-low", "slice-low"] {
            assert_eq!(unread_of(name, |_| {}), ("consumer-unread".into(), error));
            for below in ["timeline-low", "push-low"] {
                let found = unread_of(name, |mesh| at(mesh, below).pending_count = 2_049);
                assert_eq!(found, ("consumer-paused".into(), note), "{name} {below}");
                let found = unread_of(name, |mesh| at(mesh, below).pending_count = 2_048);
                assert_eq!(found, ("consumer-unread".into(), error), "{name} {below}");
            }
            let found = unread_of(name, |mesh| at(mesh, "push-high").pending_count = 9_000);
            assert_eq!(found, ("consumer-unread".into(), error), "another lane");
            let found = unread_of(name, |mesh| {
                at(mesh, "push-low").pending_count = 9_000;
                mesh.processes = vec![process(Role::Push)];
            });
            assert_eq!(found, ("consumer-unread".into(), error), "no process has fan-out");
        }
    }

    #[test]
    fn workers_with_full_hands_are_a_warning() {
        let (error, warning) = (Severity::Error, Severity::Warning);
        // Chunks that only wait for slow devices don't count: 32 that don't make a process full.
        for (held, processes, id, severity) in [
            (31, 0, "consumer-unread", error),
            (32, 0, "consumer-busy", warning),
            (32, 1, "consumer-busy", warning),
            (63, 2, "consumer-unread", error),
            (64, 2, "consumer-busy", warning),
        ] {
            let found = unread_of("push-low", |mesh| {
                at(mesh, "push-low").ack_pending_count = held;
                mesh.processes = vec![process(Role::Push); processes];
            });
            assert_eq!(found, (id.into(), severity), "{held} {processes}");
        }
        let found = unread_of("push-low", |mesh| {
            at(mesh, "push-low").ack_pending_count = 32;
            mesh.processes = vec![process(Role::Timeline)];
        });
        assert_eq!(found, ("consumer-unread".into(), error), "no process has push");
    }
}

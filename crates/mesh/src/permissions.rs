//! What each user of the NATS server may do: exactly what its role does with the streams, consumers and subjects of the
//! topology, and nothing else.
//!
//! Consumers name their users in the topology. [`Access::of`] lists the rest: what a role publishes and reads.
//! [`Permissions`] and the part of the topology that a role waits for ([`Topology::used_by`]) both follow from it.

use std::collections::BTreeSet;

use herald_model::Channel;
use serde::Serialize;

use crate::topology::consumers::ConsumerKind;
use crate::topology::{ConsumerSpec, NatsUser, StreamSpec, Topology, streams};
use crate::{Subject, consumers, hops};

/// The subjects that a user may publish to and subscribe to. All others are denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Permissions {
    /// Subjects that it may publish to, the requests to JetStream and acknowledgements included.
    pub publish: BTreeSet<String>,
    /// Subjects that it may subscribe to.
    pub subscribe: BTreeSet<String>,
}

impl NatsUser {
    /// What the user may do with the streams and consumers of a topology.
    pub fn permissions(self, topology: &Topology) -> Permissions {
        let mut permissions = Permissions {
            publish: [
                // Sent to see that the server has received everything before.
                "$JS.API.INFO".to_owned(),
            ]
            .into(),
            subscribe: [format!("{}.>", self.inbox_prefix())].into(),
        };
        let publish = &mut permissions.publish;
        if self == Self::Topology {
            for stream in &topology.streams {
                publish.extend(["CREATE", "UPDATE"].map(|verb| stream_request(verb, &stream.name)));
            }
            for consumer in &topology.consumers {
                let create = consumer_request("CREATE", consumer);
                publish.insert(match &consumer.filter {
                    Some(filter) => format!("{create}.{filter}"),
                    None => create,
                });
            }
        }
        let access = Access::of(self, topology);
        for stream in &access.streams {
            publish.insert(stream_request("INFO", &stream.name));
        }
        for consumer in &access.consumers {
            publish.insert(consumer_request("INFO", consumer));
        }
        for consumer in &access.pulled {
            publish.insert(consumer_request("MSG.NEXT", consumer));
            let (stream, consumer) = (&consumer.stream, &consumer.name);
            // The second form, with the domain and a hash of the account, is opt-in since nats-server 2.14.
            publish.insert(format!("$JS.ACK.{stream}.{consumer}.>"));
            publish.insert(format!("$JS.ACK.*.*.{stream}.{consumer}.>"));
        }
        for stream in &access.messages {
            // By sequence or by subject, from any replica; and from the leader.
            publish.insert(format!("$JS.API.DIRECT.GET.{stream}"));
            publish.insert(stream_request("MSG.GET", stream));
        }
        for stream in &access.erased {
            publish.insert(stream_request("MSG.DELETE", stream));
        }
        for stream in &access.samples {
            publish.insert(format!("$JS.API.DIRECT.GET.{stream}"));
        }
        publish.extend(access.published);
        permissions.subscribe.extend(access.subscribed);
        permissions
    }
}

impl Topology {
    /// The streams and consumers that these users need.
    #[must_use]
    pub fn used_by(&self, users: &[NatsUser]) -> Self {
        let used: Vec<_> = users.iter().map(|user| Access::of(*user, self)).collect();
        let streams = self.streams.iter();
        let streams = streams.filter(|stream| used.iter().any(|access| access.streams.contains(stream)));
        let consumers = self.consumers.iter();
        let consumers =
            consumers.filter(|consumer| used.iter().any(|access| access.consumers.contains(consumer)));
        Self {
            streams: streams.cloned().collect(),
            consumers: consumers.cloned().collect(),
        }
    }

    /// The stream that stores this subject, or all subjects of this pattern.
    fn stream_of(&self, subject: &str) -> Option<&StreamSpec> {
        let covers = |stream: &&StreamSpec| stream.subjects.iter().any(|pattern| covers(pattern, subject));
        self.streams.iter().find(covers)
    }
}

/// What a user does.
#[derive(Default)]
struct Access<'a> {
    /// Streams of everything below. Their state is read.
    streams: Vec<&'a StreamSpec>,
    /// Consumers whose state is read.
    consumers: Vec<&'a ConsumerSpec>,
    /// Consumers whose messages it pulls and settles.
    pulled: Vec<&'a ConsumerSpec>,
    /// Streams whose messages it reads by sequence.
    messages: Vec<&'static str>,
    /// Streams whose messages it deletes when all that is held of a user is erased.
    erased: Vec<&'static str>,
    /// Streams of whose messages it reads some: the oldest that isn't acknowledged, for its age, or a sample.
    samples: Vec<String>,
    /// Subjects that it publishes to.
    published: BTreeSet<String>,
    /// Subjects of core NATS that it subscribes to.
    subscribed: BTreeSet<String>,
}

impl<'a> Access<'a> {
    fn of(user: NatsUser, topology: &'a Topology) -> Self {
        let mut access = Self::default();
        for consumer in topology.consumers.iter().filter(|one| one.users.contains(&user)) {
            access.pull(consumer, topology);
        }
        match user {
            NatsUser::Gateway => {
                access.publish(is(|subject| {
                    matches!(subject, Subject::PostCreated(_) | Subject::PostDeleted(_))
                }));
                access.publish([Subject::LiveTimeline.to_string()]);
                access.subscribed.insert(Subject::LiveTimeline.to_string());
                access.subscribed.insert(hops::SUBJECT.into());
                // The newest message that was seen of each stream is compared with it.
                access.messages.extend(streams::ALL);
                // `herald lag`.
                access.read_lag(topology, |_| true);
            }
            NatsUser::Archive => access.read_stream(topology, streams::POSTS),
            NatsUser::Graph => {
                access.publish(is(|subject| matches!(subject, Subject::TimelineBackfill(_))));
                access.read_stream(topology, streams::POSTS);
                access.read_state(topology, |consumer| consumer.name == consumers::ARCHIVE);
            }
            NatsUser::Fanout => {
                access.publish(is(|subject| {
                    matches!(
                        subject,
                        Subject::TimelineDeliver(_) | Subject::PushDeliver(_) | Subject::Slice(_)
                    )
                }));
                // A lane is paused while too much is pending.
                access.read_state(topology, |consumer| {
                    [streams::TIMELINE, streams::PUSH].contains(&consumer.stream.as_str())
                });
            }
            NatsUser::Timeline => {
                access.publish(is(|subject| subject == Subject::Settled(Channel::Timeline)));
                access.publish([Subject::LiveTimeline.to_string()]);
                access.read_state(topology, |consumer| consumer.name == consumers::ARCHIVE);
            }
            NatsUser::Push => {
                access.publish(is(|subject| subject == Subject::Settled(Channel::Push)));
                access.messages.push(streams::POSTS);
            }
            NatsUser::Analytics => {}
            NatsUser::Deadletter => {
                access.publish([Subject::DeadLetter.to_string()]);
                access.publish(ConsumerKind::ALL.map(ConsumerKind::subject));
                access.publish(is(|subject| matches!(subject, Subject::Settled(_))));
                // A repair publishes the advisory of a message without a dead letter again.
                access.publish([Subject::MaxDeliveries, Subject::Terminated].map(|one| one.to_string()));
                // A dead letter has the message that failed, of any stream, and an audit reads them all.
                access.messages.extend(streams::ALL);
                // An erasure deletes the posts of its user, and the messages that have their texts.
                access.publish(is(|subject| matches!(subject, Subject::PostDeleted(_))));
                access.publish([Subject::LiveTimeline.to_string()]);
                access.erased.extend(streams::WITH_TEXTS);
                access.read_lag(topology, |_| true);
            }
            // How much is pending, and a sample of it by which the recipients are estimated.
            NatsUser::Scaler => access.read_lag(topology, |stream| {
                let work = [
                    streams::POSTS,
                    streams::SLICES,
                    streams::TIMELINE,
                    streams::PUSH,
                    streams::EVENTS,
                    streams::LATER,
                    streams::REDRIVE,
                ];
                work.contains(&stream.name.as_str())
            }),
            NatsUser::Topology => {
                access.streams.extend(&topology.streams);
                access.consumers.extend(&topology.consumers);
            }
        }
        if !access.published.is_empty() {
            // The server refuses a whole message whose publisher may not publish where its hops are reported.
            access.publish([hops::SUBJECT.into()]);
        }
        for subject in &access.published {
            access.streams.extend(topology.stream_of(subject));
        }
        for stream in &access.messages {
            access.streams.extend(topology.stream(stream));
        }
        for consumer in access.pulled.iter().chain(&access.consumers) {
            access.streams.extend(topology.stream(&consumer.stream));
        }
        access.consumers.extend(access.pulled.iter().copied());
        access
    }

    fn publish(&mut self, subjects: impl IntoIterator<Item = String>) {
        self.published.extend(subjects);
    }

    fn pull(&mut self, consumer: &'a ConsumerSpec, topology: &'a Topology) {
        self.pulled.push(consumer);
        if consumer.delay_limits.is_some() {
            self.publish([format!("later.v1.wait.{}.{}.*", consumer.stream, consumer.name)]);
        }
        if consumer.name == consumers::LATER {
            // Back to the streams whose messages wait.
            for waits in topology.consumers.iter().filter(|one| one.delay_limits.is_some()) {
                let filter = waits.filter.as_deref().unwrap_or(">");
                self.publish(is(|subject| covers(filter, subject.as_str())));
            }
        }
    }

    fn read_stream(&mut self, topology: &'a Topology, name: &str) {
        self.streams.extend(topology.stream(name));
    }

    fn read_state(&mut self, topology: &'a Topology, reads: impl Fn(&ConsumerSpec) -> bool) {
        self.consumers
            .extend(topology.consumers.iter().filter(|consumer| reads(consumer)));
    }

    fn read_lag(&mut self, topology: &'a Topology, reads: impl Fn(&StreamSpec) -> bool) {
        for stream in topology.streams.iter().filter(|stream| reads(stream)) {
            self.streams.push(stream);
            self.samples.push(stream.name.clone());
            self.read_state(topology, |consumer| consumer.stream == stream.name);
        }
    }
}

/// The subjects of the mesh that a predicate selects.
fn is(selects: impl Fn(Subject) -> bool) -> impl Iterator<Item = String> {
    let selected = Subject::all().filter(move |subject| selects(*subject));
    selected.map(|subject| subject.to_string())
}

fn stream_request(verb: &str, stream: &str) -> String {
    format!("$JS.API.STREAM.{verb}.{stream}")
}

fn consumer_request(verb: &str, consumer: &ConsumerSpec) -> String {
    format!("$JS.API.CONSUMER.{verb}.{}.{}", consumer.stream, consumer.name)
}

/// Whether a pattern matches a subject, or all subjects of another pattern.
fn covers(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        if wanted == ">" {
            return tokens.next().is_some();
        }
        match tokens.next() {
            Some(">") | None => return false,
            Some(token) if wanted != "*" && wanted != token => return false,
            Some(_) => {}
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TopologyConfig;

    fn topology() -> Topology {
        Topology::new(&TopologyConfig::default()).unwrap()
    }

    fn permissions(user: NatsUser) -> Permissions {
        user.permissions(&topology())
    }

    /// Whether a user may publish to a subject.
    fn may_publish(user: NatsUser, subject: &str) -> bool {
        permissions(user)
            .publish
            .iter()
            .any(|pattern| covers(pattern, subject))
    }

    #[test]
    fn only_the_topology_user_changes_streams_and_consumers_and_nobody_deletes_them() {
        for user in NatsUser::ALL {
            for allowed in &permissions(user).publish {
                let Some(request) = allowed.strip_prefix("$JS.API.") else {
                    continue;
                };
                let reads = [
                    "INFO",
                    "STREAM.INFO.",
                    "STREAM.MSG.GET.",
                    "DIRECT.GET.",
                    "CONSUMER.INFO.",
                ];
                let works = ["CONSUMER.MSG.NEXT."];
                let makes = ["STREAM.CREATE.", "STREAM.UPDATE.", "CONSUMER.CREATE."];
                let erases = streams::WITH_TEXTS.map(|stream| format!("STREAM.MSG.DELETE.{stream}"));
                let starts = |with: &[&str]| with.iter().any(|start| request.starts_with(start));
                assert!(
                    starts(&reads)
                        || starts(&works)
                        || (user == NatsUser::Topology && starts(&makes))
                        || (user == NatsUser::Deadletter && erases.iter().any(|one| one == request)),
                    "{user}: {allowed}"
                );
                let filter = allowed.contains("CONSUMER.CREATE.");
                assert!(filter || !allowed.contains(['*', '>']), "{user}: {allowed}");
            }
        }
    }

    #[test]
    fn each_consumer_is_pulled_and_settled_by_its_users_alone() {
        let topology = topology();
        for consumer in &topology.consumers {
            let (stream, name) = (&consumer.stream, &consumer.name);
            let pull = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}");
            let acks = [
                format!("$JS.ACK.{stream}.{name}.1.7.7.1790230470084404000.0"),
                format!("$JS.ACK._.hash.{stream}.{name}.1.7.7.1790230470084404000.0.token"),
            ];
            for user in NatsUser::ALL {
                let allowed = consumer.users.contains(&user);
                assert_eq!(may_publish(user, &pull), allowed, "{user}: {name}");
                for ack in &acks {
                    assert_eq!(may_publish(user, ack), allowed, "{user}: {ack}");
                }
            }
        }
        // The users of the delay queue are those whose messages wait in it.
        let later = topology.consumer(consumers::LATER).unwrap();
        for consumer in topology.consumers.iter().filter(|one| one.delay_limits.is_some()) {
            assert!(
                consumer.users.iter().all(|user| later.users.contains(user)),
                "{consumer:?}"
            );
        }
    }

    #[test]
    fn a_message_can_be_published_by_the_roles_that_publish_it() {
        use NatsUser::{Deadletter, Fanout, Gateway, Graph, Push, Timeline};

        let publishers = |subject: &str| -> Vec<NatsUser> {
            let users = NatsUser::ALL.into_iter();
            users.filter(|user| may_publish(*user, subject)).collect()
        };
        for (subject, expected) in [
            ("post.v1.created.low", vec![Gateway]),
            ("post.v1.deleted.high", vec![Gateway, Deadletter]),
            ("post.v1.other.high", vec![]),
            ("fanout.v1.slice.normal", vec![Fanout]),
            ("timeline.v1.deliver.low", vec![Fanout, Timeline, Push]),
            ("timeline.v1.backfill.low", vec![Graph, Timeline, Push]),
            ("push.v1.deliver.high", vec![Fanout, Timeline, Push]),
            ("event.v1.settled.timeline", vec![Timeline, Deadletter]),
            ("event.v1.settled.push", vec![Push, Deadletter]),
            ("live.v1.timeline", vec![Gateway, Timeline, Deadletter]),
            ("$JS.API.STREAM.MSG.DELETE.POSTS", vec![Deadletter]),
            ("$JS.API.STREAM.MSG.DELETE.TIMELINE", vec![]),
            ("later.v1.wait.PUSH.push-low.7", vec![Push]),
            ("later.v1.wait.REDRIVE.redrive-timeline.id-7", vec![Timeline]),
            ("later.v1.due.PUSH.push-low", vec![]),
            ("redrive.v1.archive", vec![Deadletter]),
            ("dlq.v1.PUSH.push-low", vec![Deadletter]),
            (
                "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.PUSH.push-low",
                vec![Deadletter],
            ),
            (
                "trace.v1.hops",
                vec![Gateway, Graph, Fanout, Timeline, Push, Deadletter],
            ),
            ("_INBOX_gateway.x", vec![]),
        ] {
            assert_eq!(publishers(subject), expected, "{subject}");
        }
    }

    #[test]
    fn a_user_subscribes_to_its_own_inbox() {
        for user in NatsUser::ALL {
            let mut expected = BTreeSet::from([format!("_INBOX_{user}.>")]);
            if user == NatsUser::Gateway {
                expected.insert("live.v1.timeline".into());
                expected.insert("trace.v1.hops".into());
            }
            assert_eq!(permissions(user).subscribe, expected);
        }
    }

    #[test]
    fn a_role_waits_for_the_streams_that_it_publishes_to_pulls_from_and_reads() {
        let used = |users: &[NatsUser]| {
            let used = topology().used_by(users);
            let streams: Vec<_> = used.streams.into_iter().map(|stream| stream.name).collect();
            (streams.join(" "), used.consumers.len())
        };
        assert_eq!(used(&[NatsUser::Archive]), ("REDRIVE POSTS".into(), 2));
        assert_eq!(used(&[NatsUser::Graph]), ("POSTS TIMELINE".into(), 1));
        assert_eq!(
            used(&[NatsUser::Fanout]),
            ("REDRIVE POSTS SLICES TIMELINE PUSH".into(), 3 + 3 + 2 + 6)
        );
        assert_eq!(
            used(&[NatsUser::Scaler]),
            ("REDRIVE POSTS SLICES TIMELINE PUSH EVENTS LATER".into(), 23)
        );
        assert_eq!(used(&NatsUser::ALL), used(&[NatsUser::Topology]));
        assert_eq!(used(&[NatsUser::Gateway]), used(&[NatsUser::Topology]));
    }

    #[test]
    fn a_pattern_covers_what_it_matches() {
        for (pattern, subject, covered) in [
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.*", "a", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a.*.*", true),
            ("a.>", "a", false),
            ("a.*", "a.>", false),
            ("a.b", "a.*", false),
            ("a.*.*", "a.*.*", true),
        ] {
            assert_eq!(covers(pattern, subject), covered, "{pattern} {subject}");
        }
    }
}

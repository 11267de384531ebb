//! What a process tells of itself at `/about`, on the port of `/readyz`: settings that must fit those of other processes.
//! It has no secret.

use std::collections::BTreeMap;

use axum::{Router, routing::get};
use herald_mesh::{ConsumeOptions, consumers, consumers::ConsumerKind};
use herald_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Config,
    roles::{Role, Roles},
};

/// The answer of `/about`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The version of Herald.
    pub(crate) version: String,
    /// The roles of the process.
    pub(crate) roles: Vec<String>,
    /// Its settings that cut deliveries into chunks, by key.
    pub(crate) chunks: BTreeMap<String, u64>,
    /// Messages that it has in flight at most, by consumer.
    pub(crate) in_flight_max: BTreeMap<String, u64>,
    /// Messages that it handles at once, by consumer: while it has so many, it asks for no more.
    #[serde(default)]
    pub(crate) slots_max: BTreeMap<String, u64>,
    /// Its section `topology`.
    pub(crate) topology: Value,
    /// The time, microseconds since 1970.
    #[serde(default)]
    pub(crate) time_us: i64,
}

impl About {
    /// Describes a process with this configuration and these roles.
    pub(crate) fn new(config: &Config, roles: &Roles) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            roles: roles.iter().map(|role| role.as_str().to_owned()).collect(),
            chunks: chunks(config, roles),
            in_flight_max: in_flight_max(config, roles),
            slots_max: slots_max(config, roles),
            // A configuration that was read is one that can be written.
            topology: serde_json::to_value(&config.topology).unwrap_or_default(),
            time_us: 0,
        }
    }

    /// The route `/about`.
    pub(super) fn route(self) -> Router {
        let answer = move || {
            let about = Self {
                time_us: Timestamp::now().0,
                ..self.clone()
            };
            let json = serde_json::to_string(&about).unwrap_or_default();
            std::future::ready(([("content-type", "application/json")], json))
        };
        Router::new().route("/about", get(answer))
    }
}

fn chunks(config: &Config, roles: &Roles) -> BTreeMap<String, u64> {
    let fanout = &config.fanout;
    let settings = [
        (
            Role::Fanout,
            "fanout.push_chunk_recipients_max",
            u64::from(fanout.push_chunk_recipients_max),
        ),
        (
            Role::Fanout,
            "fanout.slice_recipients_max",
            u64::from(fanout.slice_recipients_max),
        ),
        (
            Role::Graph,
            "graph.export_page_followers",
            config.graph.export_page_followers as u64,
        ),
    ];
    let of_roles = settings.into_iter().filter(|(role, ..)| roles.has(*role));
    of_roles.map(|(_, key, value)| (key.to_owned(), value)).collect()
}

fn in_flight_max(config: &Config, roles: &Roles) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut add = |role: Role, consumer: &str, count: usize| {
        if roles.has(role) {
            all.insert(consumer.to_owned(), count as u64);
        }
    };
    add(Role::Archive, consumers::ARCHIVE, config.archive.in_flight_max);
    add(
        Role::Analytics,
        consumers::ANALYTICS_POSTS,
        config.analytics.posts_in_flight_max,
    );
    add(
        Role::Analytics,
        consumers::ANALYTICS_EVENTS,
        config.analytics.events_in_flight_max,
    );
    for consumer in [consumers::DEADLETTER, consumers::DEAD_LETTERS] {
        add(Role::Deadletter, consumer, config.deadletter.in_flight_max);
    }
    for lane in config.lanes() {
        let fanout = config.fanout.posts_in_flight_max.of(lane);
        add(Role::Fanout, consumers::fanout(lane), fanout);
        add(Role::Fanout, consumers::slice(lane), fanout);
        let timeline = config.timeline.chunks_in_flight_max.of(lane);
        add(Role::Timeline, consumers::timeline(lane), timeline);
        add(Role::Push, consumers::push(lane), config.push.chunks_held_max());
    }
    all
}

fn slots_max(config: &Config, roles: &Roles) -> BTreeMap<String, u64> {
    let mut all = in_flight_max(config, roles);
    let mut add = |role: Role, consumer: &str, count: usize| {
        if roles.has(role) {
            *all.entry(consumer.to_owned()).or_default() += count as u64;
        }
    };
    let (fanout, analytics) = (config.fanout.redrive_in_flight_max, &config.analytics);
    let redrives = [
        (
            Role::Archive,
            ConsumerKind::Archive,
            config.archive.redrive_in_flight_max,
        ),
        (
            Role::Analytics,
            ConsumerKind::AnalyticsPosts,
            analytics.posts_in_flight_max / 4,
        ),
        (
            Role::Analytics,
            ConsumerKind::AnalyticsEvents,
            analytics.events_in_flight_max / 4,
        ),
        (Role::Fanout, ConsumerKind::Fanout, fanout),
        (Role::Fanout, ConsumerKind::Slice, fanout),
        (
            Role::Timeline,
            ConsumerKind::Timeline,
            config.timeline.redrive_chunks_in_flight_max,
        ),
        (
            Role::Push,
            ConsumerKind::Push,
            config.push.redrive_chunks_in_flight_max,
        ),
    ];
    for (role, kind, count) in redrives {
        add(role, consumers::redrive(kind), count.max(1));
    }
    for role in [Role::Timeline, Role::Push] {
        add(role, consumers::LATER, ConsumeOptions::default().in_flight_max);
    }
    if roles.has(Role::Push) {
        // Chunks that only wait for slow devices hold no place of others.
        for lane in config.lanes() {
            let slots = config.push.chunks_in_flight_max as u64;
            all.insert(consumers::push(lane).to_owned(), slots);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use herald_mesh::Topology;

    use super::*;

    #[test]
    fn a_process_tells_the_settings_of_its_roles() {
        let config = Config {
            lanes: vec!["low".into()],
            ..Config::default()
        };
        let about = About::new(&config, &[Role::Fanout, Role::Archive].into_iter().collect());
        let keys: Vec<&str> = about.chunks.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["fanout.push_chunk_recipients_max", "fanout.slice_recipients_max"]
        );
        let consumers: Vec<&str> = about.in_flight_max.keys().map(String::as_str).collect();
        assert_eq!(consumers, ["archive", "fanout-low", "slice-low"]);
        assert_eq!(about.topology["replicas"], 1);
        let whole_config = Config::default();
        let whole = About::new(&whole_config, &Roles::whole());
        assert_eq!(whole.in_flight_max["push-low"], 288);
        assert_eq!(whole.slots_max["push-low"], 32);
        // Timeline and push read it.
        assert_eq!(whole.slots_max["later"], 128);
        let consumers = Topology::new(&whole_config.topology).unwrap().consumers;
        for consumer in consumers {
            let slots = whole.slots_max.get(&consumer.name);
            let slots = slots.unwrap_or_else(|| panic!("{} has no reader", consumer.name));
            assert!(*slots <= consumer.ack_pending_max.into(), "{}", consumer.name);
        }
    }
}

//! The connection to a single server or a cluster.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use parking_lot::RwLock;
use redis::{
    Client, Cmd, ErrorKind as RedisErrorKind, Pipeline, RedisError, ServerErrorKind, Value,
    aio::ConnectionManager,
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
};

use super::{
    TimelinesConfig,
    connector::{Authority, Connector, Reconnect, follow_authority},
    error::redis_error,
    keys::SLOTS,
    script::ScriptCall,
    slots::{SlotRange, read_ranges},
};
use crate::{Error, ErrorKind, Metrics, Result};

/// Maximum number of commands in one pipeline. More would only make one long answer of many short ones.
const PIPELINE_COMMANDS_MAX: usize = 8_192;

/// Maximum number of slots whose commands run at the same time; the commands of one slot run one by one.
const SLOTS_IN_FLIGHT_MAX: usize = 64;

/// Pauses before the repetitions of a command whose slot the nodes of a cluster can't agree on yet.
const MOVED_PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(400),
    Duration::from_secs(1),
];

/// A connection that reconnects by itself. Clones share it.
#[derive(Clone)]
pub(super) enum Server {
    /// A server that is no cluster.
    Single(Arc<Single>),
    /// A cluster.
    Cluster(Arc<Cluster>),
}

pub(super) struct Single {
    connector: Connector,
    connection: RwLock<(Client, ConnectionManager)>,
    metrics: Metrics,
}

pub(super) struct Cluster {
    connector: Connector,
    connection: RwLock<ClusterConnection>,
    ranges: RwLock<Arc<Vec<SlotRange>>>,
    metrics: Metrics,
}

impl Server {
    /// Connects. Detects a cluster.
    pub(super) async fn connect(config: &TimelinesConfig, metrics: &Metrics) -> Result<Self> {
        let connector = Connector::new(config);
        let authority = connector.read_authority()?;
        let single = Arc::new(Single {
            connection: RwLock::new(connector.single(&authority).await?),
            connector,
            metrics: metrics.clone(),
        });
        let server = Self::Single(single.clone());
        let info = server.info(SlotRange::ALL, "cluster").await?;
        if info_value(&info, "cluster_enabled") != Some("1") {
            follow_authority(&single, authority);
            return Ok(server);
        }
        let connector = Connector::new(config);
        let cluster = Arc::new(Cluster {
            connection: RwLock::new(connector.cluster(&authority).await?),
            connector,
            ranges: RwLock::default(),
            metrics: metrics.clone(),
        });
        cluster.refresh().await?;
        follow_authority(&cluster, authority);
        Ok(Self::Cluster(cluster))
    }

    /// The slots by primary. Refreshes what is known about them.
    pub(super) async fn refresh_ranges(&self) -> Result<Arc<Vec<SlotRange>>> {
        match self {
            Self::Single(_) => Ok(Arc::new(vec![SlotRange::ALL])),
            Self::Cluster(cluster) => {
                cluster.refresh().await?;
                Ok(cluster.ranges.read().clone())
            }
        }
    }

    /// The slots by primary, as known.
    pub(super) fn ranges(&self) -> Arc<Vec<SlotRange>> {
        match self {
            Self::Single(_) => Arc::new(vec![SlotRange::ALL]),
            Self::Cluster(cluster) => cluster.ranges.read().clone(),
        }
    }

    /// A section of `INFO` of the primary that has a range.
    pub(super) async fn info(&self, range: SlotRange, section: &str) -> Result<String> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg(section);
        let value = self.run(range.first, cmd).await?;
        redis::from_redis_value(value).map_err(|e| redis_error("read INFO", &RedisError::from(e)))
    }

    /// Runs a command on the primary that has a slot. A command that meets a broken connection is repeated, so running it
    /// twice must change nothing.
    pub(super) async fn run(&self, slot: u16, cmd: Cmd) -> Result<Value> {
        self.try_run(slot, cmd)
            .await
            .map_err(|e| redis_error("use the timelines", &e))
    }

    /// As [`run`](Self::run), but never repeats the command on another connection to a single server: for `WAIT`, which
    /// is about what was sent on its connection.
    pub(super) async fn run_once(&self, slot: u16, cmd: Cmd) -> Result<Value> {
        let value = match self {
            Self::Single(single) => single.run(&cmd).await,
            Self::Cluster(cluster) => cluster.run(slot, cmd).await,
        };
        value.map_err(|e| redis_error("use the timelines", &e))
    }

    async fn try_run(&self, slot: u16, cmd: Cmd) -> std::result::Result<Value, RedisError> {
        let started = Instant::now();
        let answer = match self {
            Self::Single(single) => {
                let sent = single.run(&cmd).await;
                if single.has_reconnected(&sent) {
                    single.run(&cmd).await
                } else {
                    sent
                }
            }
            Self::Cluster(cluster) => cluster.run(slot, cmd).await,
        };
        self.metrics().record_valkey(started, &answer);
        answer
    }

    fn metrics(&self) -> &Metrics {
        match self {
            Self::Single(single) => &single.metrics,
            Self::Cluster(cluster) => &cluster.metrics,
        }
    }

    /// Runs a script: by its hash, or by its text if the server does not know it yet.
    /// `what` completes "can't …" in its error.
    pub(super) async fn run_script(&self, slot: u16, call: &ScriptCall<'_>, what: &str) -> Result<Value> {
        let known = self.try_run(slot, call.command("EVALSHA")).await;
        let result = match known {
            Err(e) if e.kind() == RedisErrorKind::Server(ServerErrorKind::NoScript) => {
                self.try_run(slot, call.command("EVAL")).await
            }
            known => known,
        };
        result.map_err(|e| redis_error(what, &e))
    }

    /// Runs commands, each with its slot, in one pipeline for each primary. Returns the results in the same order.
    /// Commands of one slot run in their order.
    pub(super) async fn pipeline(&self, commands: Vec<(u16, Cmd)>) -> Result<Vec<Value>> {
        let started = Instant::now();
        let result = match self {
            Self::Single(single) => {
                let sent = single.pipeline(&commands).await;
                if single.has_reconnected(&sent) {
                    single.pipeline(&commands).await
                } else {
                    sent
                }
            }
            Self::Cluster(cluster) => self.cluster_pipeline(cluster, commands).await,
        };
        self.metrics().record_valkey(started, &result);
        result.map_err(|e| redis_error("use the timelines", &e))
    }

    async fn cluster_pipeline(
        &self,
        cluster: &Cluster,
        commands: Vec<(u16, Cmd)>,
    ) -> std::result::Result<Vec<Value>, RedisError> {
        let ranges = cluster.ranges.read().clone();
        let mut values = vec![Value::Nil; commands.len()];
        let mut parts: Vec<Vec<usize>> = vec![Vec::new(); ranges.len() + 1];
        for (index, (slot, _)) in commands.iter().enumerate() {
            let range = ranges.iter().position(|range| range.contains(*slot));
            parts[range.unwrap_or(ranges.len())].push(index);
        }
        let sending = parts.into_iter().filter(|part| !part.is_empty()).map(|part| {
            let commands = &commands;
            async move {
                let answers = cluster.pipeline(commands, &part).await;
                (part, answers)
            }
        });
        let mut moved = Vec::new();
        for (part, answers) in join_all(sending).await {
            match answers {
                Ok(answers) => {
                    for (index, answer) in part.into_iter().zip(answers) {
                        match answer.extract_error() {
                            Ok(value) => values[index] = value,
                            Err(e) if e.is_cluster_error() => moved.push(index),
                            Err(e) => return Err(e),
                        }
                    }
                }
                // The client sends a whole pipeline to the node to which one of its slots has moved, where the other
                // slots are not.
                Err(e) if e.is_cluster_error() => moved.extend(part),
                Err(e) => return Err(e),
            }
        }
        if moved.is_empty() {
            return Ok(values);
        }
        // These commands follow redirections one by one, and the next pipeline knows better. Some have been executed
        // already, which changes nothing.
        for (index, value) in self.run_each(&commands, moved).await? {
            values[index] = value;
        }
        if let Err(error) = cluster.refresh().await {
            tracing::warn!(%error, "could not read the slots of the Redis cluster");
        }
        Ok(values)
    }

    /// Runs commands one by one: those of a slot in their order, those of different slots at the same time.
    async fn run_each(
        &self,
        commands: &[(u16, Cmd)],
        indices: Vec<usize>,
    ) -> std::result::Result<Vec<(usize, Value)>, RedisError> {
        let mut slots: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for index in indices {
            slots.entry(commands[index].0).or_default().push(index);
        }
        let running = slots.into_iter().map(|(slot, indices)| async move {
            let mut values = Vec::with_capacity(indices.len());
            for index in indices {
                values.push((index, self.try_run(slot, commands[index].1.clone()).await?));
            }
            Ok::<_, RedisError>(values)
        });
        let values: Vec<_> = stream::iter(running)
            .buffer_unordered(SLOTS_IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        Ok(values.into_iter().flatten().collect())
    }
}

impl Reconnect for Single {
    fn connector(&self) -> &Connector {
        &self.connector
    }

    async fn reconnect(&self, authority: &Authority) -> Result<()> {
        let connection = self.connector.single(authority).await?;
        *self.connection.write() = connection;
        Ok(())
    }
}

impl Reconnect for Cluster {
    fn connector(&self) -> &Connector {
        &self.connector
    }

    async fn reconnect(&self, authority: &Authority) -> Result<()> {
        let connection = self.connector.cluster(authority).await?;
        *self.connection.write() = connection;
        Ok(())
    }
}

impl Single {
    async fn run(&self, cmd: &Cmd) -> std::result::Result<Value, RedisError> {
        let mut connection = self.connection.read().1.clone();
        connection.send_packed_command(cmd).await?.extract_error()
    }

    async fn pipeline(&self, commands: &[(u16, Cmd)]) -> std::result::Result<Vec<Value>, RedisError> {
        let mut values = Vec::with_capacity(commands.len());
        for commands in commands.chunks(PIPELINE_COMMANDS_MAX) {
            let mut pipeline = Pipeline::with_capacity(commands.len());
            for (_, cmd) in commands {
                pipeline.add_command(cmd.clone());
            }
            let mut connection = self.connection.read().1.clone();
            let answers = connection
                .send_packed_commands(&pipeline, 0, commands.len())
                .await?;
            for answer in answers {
                values.push(answer.extract_error()?);
            }
        }
        Ok(values)
    }

    /// Whether a command that has failed is to be sent again, over a new connection: the old one was broken, as after a
    /// restart of the server, or leads to a replica, as after a fail-over. The name of the server may lead to the new
    /// primary by now.
    fn has_reconnected<T>(&self, sent: &std::result::Result<T, RedisError>) -> bool {
        let Err(error) = sent else { return false };
        if error.kind() == RedisErrorKind::Server(ServerErrorKind::ReadOnly) {
            let mut connection = self.connection.write();
            return match self.connector.again(&connection.0) {
                Ok(manager) => {
                    connection.1 = manager;
                    true
                }
                Err(_) => false,
            };
        }
        // The connection manager connects again since the failure, and the next command waits for it.
        error.is_connection_dropped()
    }
}

impl Cluster {
    /// Runs commands of one primary.
    async fn pipeline(
        &self,
        commands: &[(u16, Cmd)],
        indices: &[usize],
    ) -> std::result::Result<Vec<Value>, RedisError> {
        let mut answers = Vec::with_capacity(indices.len());
        for piece in indices.chunks(PIPELINE_COMMANDS_MAX) {
            let mut pipeline = Pipeline::with_capacity(piece.len());
            for index in piece {
                pipeline.add_command(commands[*index].1.clone());
            }
            let route = Route::new(commands[piece[0]].0, SlotAddr::Master);
            let route = SingleNodeRoutingInfo::SpecificNode(route);
            let mut connection = self.connection.read().clone();
            answers.extend(connection.route_pipeline(pipeline, 0, piece.len(), route).await?);
        }
        Ok(answers)
    }

    /// Runs a command. The client follows a few redirections at once; while the nodes tell each other of a slot that
    /// moves, they can redirect in circles, which ends within a second.
    async fn run(&self, slot: u16, cmd: Cmd) -> std::result::Result<Value, RedisError> {
        let mut pauses = MOVED_PAUSES.iter();
        loop {
            let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
            let mut connection = self.connection.read().clone();
            let value = connection
                .route_command(cmd.clone(), RoutingInfo::SingleNode(route))
                .await
                .and_then(Value::extract_error);
            match value {
                Err(e) if e.kind() == RedisErrorKind::Server(ServerErrorKind::Moved) => {
                    let Some(pause) = pauses.next() else { return Err(e) };
                    tokio::time::sleep(*pause).await;
                }
                value => return value,
            }
        }
    }

    async fn refresh(&self) -> Result<()> {
        let mut cmd = redis::cmd("CLUSTER");
        cmd.arg("SLOTS");
        let mut connection = self.connection.read().clone();
        let slots = connection
            .route_command(cmd, RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random))
            .await;
        let slots = slots.map_err(|e| redis_error("read the slots of the Redis cluster", &e))?;
        let mut ranges = read_ranges(&slots).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "can't read the slots of the Redis cluster: malformed answer",
            )
        })?;
        ranges.sort_unstable_by_key(|range| range.first);
        let covered: usize = ranges
            .iter()
            .map(|range| usize::from(range.last - range.first) + 1)
            .sum();
        if covered < usize::from(SLOTS) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("the Redis cluster has only {covered} of {SLOTS} slots: bring back its primaries"),
            ));
        }
        *self.ranges.write() = Arc::new(ranges);
        Ok(())
    }
}

/// The value of a field of `INFO`.
pub(super) fn info_value<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(field, _)| *field == name)
        .map(|(_, value)| value.trim())
}

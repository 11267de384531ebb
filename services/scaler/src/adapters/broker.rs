//! Reads all consumers, and samples their messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::join_all;
use herald_mesh::{ConsumerLag, ConsumerSpec, Mesh, Topology};
use herald_model::time::Timestamp;
use herald_runtime::telemetry::error_chain;
use tokio::time::{Instant, timeout};

use crate::{
    Error,
    adapters::deliveries::{Assumptions, Known},
    config::Config,
    domain::{Failure, Measured, Reading, Scope},
};

/// Time-out of reading one consumer.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the consumers of all scopes.
#[derive(Debug)]
pub(crate) struct Broker {
    mesh: Mesh,
    assumptions: Assumptions,
    sample_interval: Duration,
    sample_messages_max: u64,
    consumers: Vec<Consumer>,
}

#[derive(Debug)]
struct Consumer {
    name: &'static str,
    spec: ConsumerSpec,
    known: Known,
    /// The newest sample of messages.
    sample: Option<Sample>,
    /// Stream sequence of the newest delivery at the last reading.
    delivered_sequence: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    outstanding: u64,
    /// Mean number of deliveries of a message.
    deliveries: f64,
}

impl Broker {
    pub(crate) fn new(
        mesh: Mesh,
        topology: &Topology,
        assumptions: Assumptions,
        config: &Config,
    ) -> Result<Self, Error> {
        let names: BTreeSet<&str> = Scope::all()
            .into_iter()
            .flat_map(Scope::sources)
            .map(|source| source.consumer)
            .collect();
        let consumers = names.into_iter().map(|name| {
            let spec = topology.consumer(name).cloned();
            Ok(Consumer {
                name,
                spec: spec.ok_or(Error::UnknownConsumer(name))?,
                known: assumptions.of_consumer(name),
                sample: None,
                delivered_sequence: None,
            })
        });
        Ok(Self {
            mesh,
            assumptions,
            sample_interval: config.sample_interval(),
            sample_messages_max: config.sample_messages_max,
            consumers: consumers.collect::<Result<_, Error>>()?,
        })
    }

    /// Reads every consumer once. Takes at most [`READ_TIMEOUT`].
    pub(crate) async fn read(&mut self) -> BTreeMap<&'static str, Result<Measured, Failure>> {
        if !self.mesh.is_connected() {
            let down = Failure::Unavailable {
                reason: "the connection to NATS is down".into(),
            };
            let failed = self
                .consumers
                .iter()
                .map(|consumer| (consumer.name, Err(down.clone())));
            return failed.collect();
        }
        let Self {
            mesh,
            assumptions,
            sample_interval,
            sample_messages_max,
            consumers,
        } = self;
        let sampling = Sampling {
            mesh,
            assumptions,
            interval: *sample_interval,
            messages_max: *sample_messages_max,
        };
        let sampling = &sampling;
        let reads = consumers.iter_mut().map(async |consumer| {
            let name = consumer.name;
            let read = timeout(READ_TIMEOUT, sampling.read(consumer))
                .await
                .unwrap_or_else(|_| {
                    let reason = format!(
                        "no answer about consumer {name} within {} s",
                        READ_TIMEOUT.as_secs()
                    );
                    Err(Failure::Unavailable { reason })
                });
            (name, read)
        });
        join_all(reads).await.into_iter().collect()
    }
}

/// What reading a consumer needs.
struct Sampling<'a> {
    mesh: &'a Mesh,
    assumptions: &'a Assumptions,
    interval: Duration,
    messages_max: u64,
}

impl Sampling<'_> {
    async fn read(&self, consumer: &mut Consumer) -> Result<Measured, Failure> {
        let unavailable = |error: herald_mesh::Error| Failure::Unavailable {
            reason: error_chain(&error),
        };
        let lag = self.mesh.lag_of(&consumer.spec).await.map_err(unavailable)?;
        let lag = lag.ok_or_else(|| Failure::Missing {
            stream: consumer.spec.stream.clone(),
            consumer: consumer.spec.name.clone(),
        })?;
        let deliveries = match consumer.known {
            Known::Fixed(deliveries) => deliveries,
            Known::InMessages(assumed) => {
                self.sample(consumer, &lag).await.map_err(unavailable)?;
                consumer.sample.map_or(assumed, |sample| sample.deliveries)
            }
        };
        Ok(Measured {
            reading: to_reading(&lag),
            deliveries,
        })
    }

    /// Samples the messages that are not settled; without any, those that were delivered since the last sample.
    async fn sample(&self, consumer: &mut Consumer, lag: &ConsumerLag) -> Result<(), herald_mesh::Error> {
        let outstanding = lag.outstanding_count();
        let is_due = consumer.sample.is_none_or(|sample| {
            sample.at.elapsed() >= self.interval || outstanding / 2 > sample.outstanding
        });
        let delivered_before = *consumer.delivered_sequence.get_or_insert(lag.delivered_sequence);
        let has_messages = outstanding > 0 || lag.delivered_sequence > delivered_before;
        if !is_due || !has_messages {
            return Ok(());
        }
        let after = if outstanding > 0 {
            lag.ack_floor
        } else {
            delivered_before
        };
        let messages = self.mesh.sample(&consumer.spec, after, self.messages_max).await?;
        if !messages.is_empty() {
            let deliveries: f64 = messages
                .iter()
                .map(|message| self.assumptions.of_message(message))
                .sum();
            consumer.sample = Some(Sample {
                at: Instant::now(),
                outstanding,
                deliveries: deliveries / messages.len() as f64,
            });
        }
        consumer.delivered_sequence = Some(lag.delivered_sequence);
        Ok(())
    }
}

fn to_reading(lag: &ConsumerLag) -> Reading {
    Reading {
        pending: lag.pending_count,
        ack_pending: lag.ack_pending_count,
        delivered: lag.delivered_count,
        delivered_ago: lag.delivered_at.map(|at| Timestamp::now().since(at)),
        oldest: lag.oldest_age,
        paused: !lag.paused_for.is_zero(),
    }
}

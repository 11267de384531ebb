//! Injects faults.

use std::time::Duration;

use async_nats::jetstream;
use tokio::time::sleep;

use super::{Fault, Kills};
use crate::{
    checker::dead_letters,
    workload::{Journal, READERS, devices},
    world::{StartOptions, World},
};

/// Field 1 is a string whose length exceeds the message: no valid message starts like this.
const GARBAGE: &[u8] = b"\x0a\xff\xff\xff\xff\x0fgarbage";
const REDRIVE_LIMIT: Duration = Duration::from_secs(2);
const POISON_LIMIT: Duration = Duration::from_secs(20);
const STEP_DOWN_LIMIT: Duration = Duration::from_secs(20);
const RESTART_LIMIT: Duration = Duration::from_secs(20);

/// Injects a fault, and ends it after its time.
pub(super) async fn inject(world: &mut World, journal: &Journal, fault: &Fault, kills: &mut Kills) {
    if let Fault::Fleet(fault) = fault {
        return super::fleet::inject(world, fault, kills).await;
    }
    let _fault = world.log.begin_fault(fault);
    match fault {
        Fault::Member(fault) => super::members::inject(world, journal, fault, kills).await,
        Fault::Fleet(_) => unreachable!("handled above"),
        Fault::KillHerald { next } => kill_herald(world, next).await,
        Fault::KillNats { down } => {
            kill_nats(world, 0, kills).await;
            sleep(*down).await;
            world.nats.cluster.restart(0).await;
        }
        Fault::KillBoth { down } => {
            kill_nats(world, 0, kills).await;
            kill_herald(world, &StartOptions::default()).await;
            sleep(*down).await;
            world.nats.cluster.restart(0).await;
        }
        Fault::KillLeader { stream, down } => {
            let Some(leader) = world.nats.cluster.leader(stream).await else {
                return;
            };
            world
                .log
                .print(format!("{} led {stream}", world.nats.cluster.name(leader)));
            kill_nats(world, leader, kills).await;
            sleep(*down).await;
            world.nats.cluster.restart(leader).await;
        }
        Fault::StepDown { stream } => {
            // Without a leader right now, there is nothing to step down.
            if let Ok(client) = world.nats.cluster.client().await {
                let request = client.request(format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"), "".into());
                let _ = tokio::time::timeout(STEP_DOWN_LIMIT, request).await;
            }
        }
        Fault::FreezeLeader { stream, time } => {
            let Some(leader) = world.nats.cluster.leader(stream).await else {
                return;
            };
            world
                .log
                .print(format!("{} led {stream}", world.nats.cluster.name(leader)));
            world.nats.cluster.freeze(leader, true);
            sleep(*time).await;
            world.nats.cluster.freeze(leader, false);
        }
        Fault::PartitionLeader { stream, time } => {
            let Some(leader) = world.nats.cluster.leader(stream).await else {
                return;
            };
            world
                .log
                .print(format!("{} led {stream}", world.nats.cluster.name(leader)));
            world.nats.set_partitioned(leader, true).await;
            sleep(*time).await;
            world.nats.set_partitioned(leader, false).await;
        }
        Fault::FreezeHerald { time } => {
            world.herald.freeze(true);
            sleep(*time).await;
            world.herald.freeze(false);
        }
        Fault::FreezeNats { time } => {
            world.nats.cluster.freeze(0, true);
            sleep(*time).await;
            world.nats.cluster.freeze(0, false);
        }
        Fault::Network { toxic, time } => {
            let Some(proxy) = &world.nats_proxy else { return };
            proxy.add_toxic(*toxic).await;
            sleep(*time).await;
            proxy.remove_toxic().await;
        }
        Fault::ProviderAnswers {
            status,
            retry_after,
            one_in,
            time,
        } => {
            let failing: Vec<String> = (0..READERS)
                .step_by(*one_in)
                .flat_map(devices)
                .map(|device| device.name().to_owned())
                .collect();
            journal.record_provider_failure();
            world.sink.fail(&failing, *status, *retry_after);
            sleep(*time).await;
            world.sink.recover(&failing);
        }
        Fault::ProviderHangs { time } => {
            let Some(proxy) = &world.sink.proxy else { return };
            journal.record_provider_failure();
            proxy.add_toxic(crate::world::Toxic::HalfOpen).await;
            sleep(*time).await;
            proxy.remove_toxic().await;
        }
        Fault::ProviderGone { time } => {
            let Some(proxy) = &world.sink.proxy else { return };
            journal.record_provider_failure();
            proxy.set_enabled(false).await;
            sleep(*time).await;
            proxy.set_enabled(true).await;
        }
        Fault::Poison { subject } => publish_poison(world, journal, subject).await,
        Fault::Redrive => {
            // The server may be down; a redrive that has started continues by itself.
            let answer = tokio::time::timeout(REDRIVE_LIMIT, dead_letters::redrive_all(world)).await;
            world.log.print(format!("redrive request: {answer:?}"));
        }
    }
}

pub(super) async fn kill_nats(world: &mut World, server: usize, kills: &mut Kills) {
    world.nats.cluster.kill(server).await;
    kills.nats += 1;
}

/// Kills herald and waits for its next start, so that the next fault finds a process.
async fn kill_herald(world: &World, next: &StartOptions) {
    let starts = world.herald.starts();
    world.herald.kill(next.clone());
    let began = harness::until("herald is started again", RESTART_LIMIT, || async {
        world.herald.starts() > starts
    });
    began.await;
}

async fn publish_poison(world: &World, journal: &Journal, subject: &'static str) {
    // Bypasses the proxy: the sequence of the message must be known.
    let put = async {
        // The context keeps its connection open.
        let broker = jetstream::new(world.nats.cluster.client().await?);
        let sent = broker.publish(subject, GARBAGE.into()).await?;
        Ok::<_, async_nats::Error>(sent.await?)
    };
    match tokio::time::timeout(POISON_LIMIT, put).await {
        Ok(Ok(put)) => journal.record_poison(&put.stream, put.sequence),
        Ok(Err(error)) => journal.record_violation(format!("can't publish poison to {subject}: {error}")),
        Err(_) => journal.record_violation(format!(
            "poison published to {subject} was not acknowledged within {POISON_LIMIT:?}"
        )),
    }
}

//! The hands.

use std::time::Duration;

use async_nats::jetstream;
use tokio::time::sleep;

use super::{Fault, Kills};
use crate::{
    checker::dead_letters,
    workload::{Journal, READERS, devices},
    world::{Life, World, name},
};

/// Field 1 as a string that says it is longer than the message: no message of ours begins so.
const GARBAGE: &[u8] = b"\x0a\xff\xff\xff\xff\x0fgarbage";
const REDRIVE_LIMIT: Duration = Duration::from_secs(2);
const POISON_LIMIT: Duration = Duration::from_secs(20);

/// Does it, and lets go of it.
pub(super) async fn inflict(world: &mut World, journal: &Journal, fault: &Fault, kills: &mut Kills) {
    let _in_force = world.log.begin(fault);
    match fault {
        Fault::KillHerald { next } => kill_herald(world, next).await,
        Fault::KillNats { down } => {
            kill_nats(world, 0, kills).await;
            sleep(*down).await;
            start_nats(world, 0).await;
        }
        Fault::KillBoth { down } => {
            kill_nats(world, 0, kills).await;
            kill_herald(world, &Life::default()).await;
            sleep(*down).await;
            start_nats(world, 0).await;
        }
        Fault::KillLeader { stream, down } => {
            let Some(leader) = world.nats.leader(stream).await else {
                return;
            };
            world.log.say(format!("{} led {stream}", name(leader)));
            kill_nats(world, leader, kills).await;
            sleep(*down).await;
            start_nats(world, leader).await;
        }
        Fault::StepDown { stream } => {
            // That there is no leader to step down right now is as good.
            if let Ok(client) = world.nats.client().await {
                let request = client.request(format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"), "".into());
                let _ = tokio::time::timeout(POISON_LIMIT, request).await;
            }
        }
        Fault::FreezeLeader { stream, time } => {
            let Some(leader) = world.nats.leader(stream).await else {
                return;
            };
            world.log.say(format!("{} led {stream}", name(leader)));
            world.nats.freeze(leader, true);
            sleep(*time).await;
            world.nats.freeze(leader, false);
        }
        Fault::CutLeader { stream, time } => {
            let Some(leader) = world.nats.leader(stream).await else {
                return;
            };
            world.log.say(format!("{} led {stream}", name(leader)));
            world.nats.cut(leader, true).await;
            sleep(*time).await;
            world.nats.cut(leader, false).await;
        }
        Fault::FreezeHerald { time } => {
            world.herald.freeze(true);
            sleep(*time).await;
            world.herald.freeze(false);
        }
        Fault::FreezeNats { time } => {
            world.nats.freeze(0, true);
            sleep(*time).await;
            world.nats.freeze(0, false);
        }
        Fault::Network { toxic, time } => {
            let Some(proxy) = &world.nats_proxy else { return };
            proxy.poison(*toxic).await;
            sleep(*time).await;
            proxy.heal().await;
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
            journal.provider_fails();
            world.sink.fail(&failing, *status, *retry_after);
            sleep(*time).await;
            world.sink.recover(&failing);
        }
        Fault::ProviderHangs { time } => {
            let Some(proxy) = &world.sink.proxy else { return };
            journal.provider_fails();
            proxy.poison(crate::world::Toxic::HalfOpen).await;
            sleep(*time).await;
            proxy.heal().await;
        }
        Fault::ProviderGone { time } => {
            let Some(proxy) = &world.sink.proxy else { return };
            journal.provider_fails();
            proxy.enable(false).await;
            sleep(*time).await;
            proxy.enable(true).await;
        }
        Fault::Poison { subject } => poison(world, journal, subject).await,
        Fault::Redrive => {
            // Whoever asks may find nobody there; what was begun goes on by itself.
            let asked = tokio::time::timeout(REDRIVE_LIMIT, dead_letters::redrive_all(world)).await;
            world.log.say(format!("redrive: {asked:?}"));
        }
    }
}

async fn kill_nats(world: &mut World, server: usize, kills: &mut Kills) {
    let killed = world.nats.servers[server].kill().await;
    killed.expect("nats-server can be killed");
    kills.nats += 1;
}

async fn start_nats(world: &mut World, server: usize) {
    let started = world.nats.servers[server].restart().await;
    started.expect("nats-server starts again");
}

/// Only a life that began can be killed: the last fault may have ended the one before.
async fn kill_herald(world: &World, next: &Life) {
    let lives = world.herald.lives();
    world.herald.kill(next.clone());
    let began = harness::until("herald's next life begins", POISON_LIMIT, || async {
        world.herald.lives() > lives
    });
    began.await;
}

async fn poison(world: &World, journal: &Journal, subject: &'static str) {
    // Not through the poisoned network: what is in the stream must be known for sure.
    let put = async {
        // Its connection lives as long as it does.
        let broker = jetstream::new(world.nats.client().await?);
        let sent = broker.publish(subject, GARBAGE.into()).await?;
        Ok::<_, async_nats::Error>(sent.await?)
    };
    match tokio::time::timeout(POISON_LIMIT, put).await {
        Ok(Ok(put)) => journal.poisoned(&put.stream, put.sequence),
        Ok(Err(error)) => journal.wrong(format!("poison for {subject} was not taken: {error}")),
        Err(_) => journal.wrong(format!("poison for {subject} was not answered")),
    }
}

//! Holds a lane back while the streams below it are deep.

use std::time::Duration;

use herald_mesh::{Mesh, consumers, streams};
use herald_model::Lane;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{config::Gate, domain::hold};

/// Looks at one lane of TIMELINE and PUSH until `shutdown`; the receiver is true while fan-out should take no more posts.
pub(crate) fn watch_gate(
    mesh: Mesh,
    lane: Lane,
    gate: Gate,
    shutdown: CancellationToken,
) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(gate.interval_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A broker that can't be asked takes no chunks either; the gate stays as it is.
            let Ok(pending) = pending(&mesh, lane).await else {
                continue;
            };
            let held = *sender.borrow();
            let hold = hold(held, pending, gate.pending_chunks_max);
            if hold != held {
                tracing::info!(%lane, pending, hold, "fan-out is held back or goes on");
                sender.send_replace(hold);
            }
        }
    }));
    receiver
}

/// The deeper of the two.
async fn pending(mesh: &Mesh, lane: Lane) -> Result<u64, herald_mesh::Error> {
    let timeline = mesh.pending(streams::TIMELINE, consumers::timeline(lane)).await?;
    let push = mesh.pending(streams::PUSH, consumers::push(lane)).await?;
    Ok(timeline.max(push))
}

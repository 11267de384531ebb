//! Pauses a lane while too many chunks are pending in the downstream streams.

use std::time::Duration;

use herald_mesh::{Gate, Mesh, consumers, streams};
use herald_model::Lane;
use herald_runtime::metrics::Gauge;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Polls the pending chunks of one lane of TIMELINE and PUSH until `shutdown`. The receiver is `true` while the lane is
/// paused, and `shown` is 1.
pub(crate) fn watch_gate(
    mesh: Mesh,
    lane: Lane,
    gate: Gate,
    shown: Gauge,
    shutdown: CancellationToken,
) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(gate.interval_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Nothing changes while the broker is unavailable: it accepts no chunks either.
            let Ok(pending) = read_pending(&mesh, lane).await else {
                continue;
            };
            let was_paused = *sender.borrow();
            let paused = gate.should_pause(was_paused, pending);
            if paused != was_paused {
                if paused {
                    tracing::info!(%lane, pending, "fan-out lane paused: too many chunks are pending in TIMELINE or PUSH");
                } else {
                    tracing::info!(%lane, pending, "fan-out lane resumed");
                }
                shown.set(i64::from(paused));
                sender.send_replace(paused);
            }
        }
    }));
    receiver
}

/// The pending chunks of TIMELINE or PUSH, whichever are more.
async fn read_pending(mesh: &Mesh, lane: Lane) -> Result<u64, herald_mesh::Error> {
    let timeline = mesh.pending(streams::TIMELINE, consumers::timeline(lane)).await?;
    let push = mesh.pending(streams::PUSH, consumers::push(lane)).await?;
    Ok(timeline.max(push))
}

//! Changes a device after a push: unregisters or disables devices that are gone, and disables devices that fail for long.

use herald_model::{Device, Disabled, DisabledReason, time::Timestamp};
use herald_store::{Devices, Error};
use tracing::warn;

use crate::{
    Metrics,
    adapters::host,
    domain::{HealthChange, Provider, Reason, Verdict, health_change},
};

/// Changes `device` according to the verdict of a push to it. Acts only on the registration that the push was sent to.
/// If the store fails, the next push to the device tries again.
///
/// Returns the verdict for the recipient. If a device is gone whose registration was renewed meanwhile, the push is
/// retried: the retry is sent to the new registration, or the recipient is suppressed if there is none.
pub(crate) async fn update_device(
    devices: &dyn Devices,
    metrics: &Metrics,
    device: &Device,
    provider: Provider,
    verdict: Verdict,
    failing_days_max: u32,
) -> Verdict {
    let now = Timestamp::now();
    let Some(change) = health_change(device, provider, verdict, now, failing_days_max) else {
        return verdict;
    };
    match apply(devices, metrics, device, change, now, failing_days_max).await {
        Ok(false) if verdict == Verdict::Gone => Verdict::Retry {
            reason: Reason::Status(410),
            after: None,
        },
        Ok(_) => verdict,
        Err(error) => {
            warn!(%error, device_id = device.id.0, "device can't be changed after a push; the next push to it tries again");
            verdict
        }
    }
}

/// Applies a change. False if the registration that the push was sent to is not the current one any more.
async fn apply(
    devices: &dyn Devices,
    metrics: &Metrics,
    device: &Device,
    change: HealthChange,
    now: Timestamp,
    failing_days_max: u32,
) -> Result<bool, Error> {
    let registration = device.registration();
    let reason = match change {
        HealthChange::Unregister => {
            let is_current = devices.unregister_current(registration).await?;
            if is_current {
                metrics.count_device_removed();
                warn!(
                    device_id = device.id.0,
                    host = host(device),
                    "device unregistered: its push service responded that the subscription no longer exists"
                );
            }
            return Ok(is_current);
        }
        HealthChange::RecordSuccess => {
            devices.record_success(registration).await?;
            return Ok(true);
        }
        HealthChange::DisableGone => DisabledReason::Gone,
        HealthChange::RecordFailure => {
            let streak = devices.record_failure(registration, now).await?;
            if streak.is_none_or(|streak| streak.days <= failing_days_max) {
                return Ok(true);
            }
            DisabledReason::Failing
        }
    };
    let disabled = Disabled { reason, at: now };
    let is_current = devices.disable(registration, disabled).await?;
    if is_current {
        metrics.count_device_disabled(reason);
        warn!(
            device_id = device.id.0,
            host = host(device),
            reason = reason.as_str(),
            "device disabled: it gets no pushes until it is registered again or enabled with `herald device enable`"
        );
    }
    Ok(is_current)
}

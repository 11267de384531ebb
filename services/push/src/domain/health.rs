//! What the result of a push means for its device.

use herald_model::{Device, FailingStreak, time::Timestamp};

use super::{Provider, Reason, Verdict};

/// A change of a device after a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HealthChange {
    /// Unregister it: the push service says that the subscription no longer exists.
    Unregister,
    /// Disable it: the webhook says that it no longer exists.
    DisableGone,
    /// Record a failure; disable the device if it has failed on more days than allowed.
    RecordFailure,
    /// Record a success, which ends a failing streak.
    RecordSuccess,
}

/// The change of a device after a push; `None` if the device stays as it is. Only webhooks have failing streaks: a push
/// service that fails for days says nothing about one of its subscriptions.
pub(crate) fn health_change(
    device: &Device,
    provider: Provider,
    verdict: Verdict,
    now: Timestamp,
    failing_days_max: u32,
) -> Option<HealthChange> {
    match (provider, verdict) {
        (Provider::WebPush, Verdict::Gone) => Some(HealthChange::Unregister),
        (Provider::Webhook, Verdict::Gone) => Some(HealthChange::DisableGone),
        (Provider::Webhook, Verdict::Accepted) => device.failing.map(|_| HealthChange::RecordSuccess),
        (
            Provider::Webhook,
            Verdict::Retry {
                reason: Reason::Status(_) | Reason::Timeout | Reason::Connection,
                ..
            }
            | Verdict::Refused(Reason::Status(_)),
        ) => {
            let is_new_day = FailingStreak::with_failure(device.failing, now).is_some();
            // The write that disables a device may have failed.
            let is_due = device
                .failing
                .is_some_and(|streak| streak.days > failing_days_max);
            (is_new_day || is_due).then_some(HealthChange::RecordFailure)
        }
        // Nothing was sent, or the push service failed.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use herald_model::{Address, DeviceId, UserKey};

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    fn retry(reason: Reason) -> Verdict {
        Verdict::Retry { reason, after: None }
    }

    fn device(failing: Option<FailingStreak>) -> Device {
        let address = Address::Webhook {
            url: "https://a.example/".into(),
            secret: vec![1; 24],
        };
        Device {
            failing,
            ..Device::new(DeviceId(1), UserKey(1), address, Timestamp(0))
        }
    }

    fn streak(days: u32, day_started_before: Duration) -> FailingStreak {
        let day_started_at = NOW.minus(day_started_before);
        FailingStreak {
            since: Timestamp(0),
            days,
            day_started_at,
        }
    }

    fn change(device: &Device, provider: Provider, verdict: Verdict) -> Option<HealthChange> {
        health_change(device, provider, verdict, NOW, 3)
    }

    #[test]
    fn only_a_device_that_is_gone_is_removed_or_disabled() {
        let device = device(None);
        assert_eq!(
            change(&device, Provider::WebPush, Verdict::Gone),
            Some(HealthChange::Unregister)
        );
        assert_eq!(
            change(&device, Provider::Webhook, Verdict::Gone),
            Some(HealthChange::DisableGone)
        );
        for verdict in [
            Verdict::Accepted,
            retry(Reason::Status(503)),
            Verdict::Refused(Reason::Status(403)),
            Verdict::Expired,
        ] {
            assert_eq!(change(&device, Provider::WebPush, verdict), None, "{verdict:?}");
        }
    }

    #[test]
    fn a_failure_is_recorded_once_a_day_and_a_success_once() {
        let hour = Duration::from_hours(1);
        let failures = [
            retry(Reason::Status(404)),
            retry(Reason::Timeout),
            retry(Reason::Connection),
            Verdict::Refused(Reason::Status(400)),
        ];
        for failure in failures {
            let change = |failing| change(&device(failing), Provider::Webhook, failure);
            assert_eq!(change(None), Some(HealthChange::RecordFailure));
            assert_eq!(change(Some(streak(1, 23 * hour))), None);
            assert_eq!(
                change(Some(streak(1, 24 * hour))),
                Some(HealthChange::RecordFailure)
            );
            assert_eq!(change(Some(streak(4, hour))), Some(HealthChange::RecordFailure));
        }
        for nothing_sent in [
            retry(Reason::Breaker),
            retry(Reason::Busy),
            retry(Reason::Panic),
            Verdict::Refused(Reason::Endpoint),
            Verdict::Refused(Reason::Device),
            Verdict::Expired,
            Verdict::Deleted,
        ] {
            assert_eq!(
                change(
                    &device(Some(streak(1, 48 * hour))),
                    Provider::Webhook,
                    nothing_sent
                ),
                None,
                "{nothing_sent:?}"
            );
        }
        let accepted = |failing| change(&device(failing), Provider::Webhook, Verdict::Accepted);
        assert_eq!(accepted(None), None);
        assert_eq!(accepted(Some(streak(1, hour))), Some(HealthChange::RecordSuccess));
    }
}

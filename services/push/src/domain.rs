//! Pure decisions: what to do with a recipient, what a response means, how the outcome of a chunk is computed.

mod backoff;
mod breaker;
mod counts;
mod failures;
mod health;
mod progress;
mod speed;

use std::{fmt, time::Duration};

use herald_model::{DeviceId, time::Timestamp};
use herald_store::{DeviceFailure, PendingRecipient, PushFailure, SuppressedReason};

pub(crate) use backoff::{Backoff, busy_delay};
pub(crate) use breaker::{Breaker, BreakerCounts};
pub(crate) use counts::Counts;
pub(crate) use failures::FailureSummary;
pub(crate) use health::{HealthChange, health_change};
pub(crate) use progress::{Progress, WAKE_INTERVAL, Wake};
pub(crate) use speed::{Pace, Speed};

/// A push provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Provider {
    /// A browser's push service.
    WebPush,
    /// A webhook endpoint.
    Webhook,
}

impl Provider {
    /// Name in metrics and in reasons of dead letters.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::WebPush => "web_push",
            Self::Webhook => "webhook",
        }
    }
}

/// Why a push was not accepted. Dead letters are grouped by its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// The provider responded with this HTTP status.
    Status(u16),
    /// The request timed out. The push may have arrived.
    Timeout,
    /// The connection failed or broke. The push may have arrived.
    Connection,
    /// Not sent: the circuit breaker of the host is open.
    Breaker,
    /// Not sent: the host has its share of the requests in flight, and none of them ended in time.
    Busy,
    /// The endpoint is not allowed.
    Endpoint,
    /// The keys of the device are invalid.
    Device,
    /// The send panicked.
    Panic,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Timeout => f.write_str("timeout"),
            Self::Connection => f.write_str("connection"),
            Self::Breaker => f.write_str("breaker"),
            Self::Busy => f.write_str("busy"),
            Self::Endpoint => f.write_str("endpoint"),
            Self::Device => f.write_str("device"),
            Self::Panic => f.write_str("panic"),
        }
    }
}

/// The result of sending to one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The provider accepted the push.
    Accepted,
    /// The device no longer exists: a Web Push device is to be unregistered, a webhook disabled.
    Gone,
    /// Permanent error.
    Refused(Reason),
    /// Transient error: retry.
    Retry {
        /// Why the push was not accepted.
        reason: Reason,
        /// The `Retry-After` of the provider, the remaining time of an open circuit breaker, or the wait for a host
        /// that is busy.
        after: Option<Duration>,
    },
    /// Not sent because the push has expired.
    Expired,
    /// Not sent because the post was deleted.
    Deleted,
    /// Not sent because the claim of the chunk has ended.
    Unclaimed,
}

impl Verdict {
    /// Label in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Gone => "gone",
            Self::Refused(_) => "refused",
            Self::Retry { .. } => "later",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
            Self::Unclaimed => "unclaimed",
        }
    }
}

/// The verdict of an HTTP status. Redirects are not followed, so they are permanent errors.
pub(crate) fn verdict(provider: Provider, status: u16, retry_after: Option<Duration>) -> Verdict {
    let reason = Reason::Status(status);
    match (provider, status) {
        (_, 200..=299) => Verdict::Accepted,
        // A push service responds 404 for an expired subscription (RFC 8030 §7.3). A webhook does so for a while after a
        // bad deployment, so it is gone only if it says so.
        (_, 410) | (Provider::WebPush, 404) => Verdict::Gone,
        // Request Timeout, Too Early, Too Many Requests, server errors
        (Provider::Webhook, 404) | (_, 408 | 425 | 429 | 500..=599) => Verdict::Retry {
            reason,
            after: retry_after,
        },
        _ => Verdict::Refused(reason),
    }
}

/// The verdict about one device, with what a failure names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The device.
    pub(crate) device: DeviceId,
    /// Its provider.
    pub(crate) provider: Provider,
    /// Host of its endpoint, with the port unless it is the default; empty if the endpoint is malformed.
    pub(crate) host: String,
    /// What the provider made of the push.
    pub(crate) verdict: Verdict,
}

impl Sent {
    /// The failure of the device for this reason.
    pub(crate) fn failure(&self, reason: Reason) -> DeviceFailure {
        self.describe(format_args!("{} {reason}", self.provider.as_str()))
    }

    /// The end of the device.
    pub(crate) fn gone(&self) -> DeviceFailure {
        self.describe(format_args!("{} gone", self.provider.as_str()))
    }

    fn describe(&self, reason: fmt::Arguments<'_>) -> DeviceFailure {
        DeviceFailure {
            device: Some(self.device),
            failure: PushFailure::new(&reason.to_string(), &self.host),
        }
    }
}

/// The input of [`decide`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipient<'a> {
    /// Why nothing is to be sent, if so: the post or the user no longer exists, or the user does not want it.
    pub(crate) unwanted: Option<SuppressedReason>,
    /// The devices of the user.
    pub(crate) registered: &'a [DeviceId],
    /// What is known about the devices from earlier attempts.
    pub(crate) known: &'a PendingRecipient,
}

/// What to do with a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Settle the recipient without sending.
    Suppress(SuppressedReason),
    /// Send to these devices: indices into [`Recipient::registered`], at least one.
    Send(Vec<usize>),
    /// All devices wait for their next attempt.
    Wait,
}

/// Decides what to do with a recipient now.
pub(crate) fn decide(recipient: &Recipient<'_>, now: Timestamp) -> Decision {
    if let Some(reason) = recipient.unwanted {
        return Decision::Suppress(reason);
    }
    let known = recipient.known;
    let is_open = |id: &DeviceId| {
        !known.done.contains(id) && !known.failed.iter().any(|failed| failed.device == Some(*id))
    };
    let is_due = |id: &DeviceId| {
        let mut waiting = known.waiting.iter();
        !waiting.any(|retry| retry.device == *id && retry.next_at > now)
    };
    let devices = recipient.registered.iter().enumerate();
    let open: Vec<_> = devices.filter(|(_, id)| is_open(id)).collect();
    if open.is_empty() {
        return Decision::Suppress(SuppressedReason::NoDevice);
    }
    let due = open
        .into_iter()
        .filter(|(_, id)| is_due(id))
        .map(|(index, _)| index);
    match due.collect::<Vec<_>>() {
        due if due.is_empty() => Decision::Wait,
        due => Decision::Send(due),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_verdict() {
        let after = Some(Duration::from_secs(7));
        let retry = |status| Verdict::Retry {
            reason: Reason::Status(status),
            after,
        };
        for provider in [Provider::WebPush, Provider::Webhook] {
            for status in [200, 201, 202, 204, 299] {
                assert_eq!(verdict(provider, status, None), Verdict::Accepted, "{status}");
            }
            assert_eq!(verdict(provider, 410, after), Verdict::Gone);
            for status in [408, 425, 429, 500, 502, 503, 504, 599] {
                assert_eq!(verdict(provider, status, after), retry(status), "{status}");
            }
            for status in [100, 301, 302, 307, 400, 401, 403, 405, 413, 422, 600] {
                assert_eq!(
                    verdict(provider, status, after),
                    Verdict::Refused(Reason::Status(status)),
                    "{status}"
                );
            }
        }
        assert_eq!(verdict(Provider::WebPush, 404, after), Verdict::Gone);
        assert_eq!(verdict(Provider::Webhook, 404, after), retry(404));
    }

    #[test]
    fn only_devices_that_are_open_and_due_are_sent_to() {
        let user = herald_model::UserKey(1);
        let registered = [DeviceId(1), DeviceId(2), DeviceId(3)];
        let now = Timestamp(100);
        let failure = PushFailure::new("webhook timeout", "a.example");
        let mut known = PendingRecipient::new(user);
        let decide = |unwanted, registered: &[DeviceId], known: &PendingRecipient| {
            let recipient = Recipient {
                unwanted,
                registered,
                known,
            };
            decide(&recipient, now)
        };
        assert_eq!(decide(None, &registered, &known), Decision::Send(vec![0, 1, 2]));
        assert_eq!(
            decide(None, &[], &known),
            Decision::Suppress(SuppressedReason::NoDevice)
        );
        assert_eq!(
            decide(Some(SuppressedReason::Muted), &registered, &known),
            Decision::Suppress(SuppressedReason::Muted)
        );
        known.done = vec![DeviceId(1)];
        known.failed = vec![DeviceFailure {
            device: Some(DeviceId(2)),
            failure: failure.clone(),
        }];
        assert_eq!(decide(None, &registered, &known), Decision::Send(vec![2]));
        for (next_at, expected) in [(100, Decision::Send(vec![2])), (101, Decision::Wait)] {
            known.waiting = vec![herald_store::DeviceRetry {
                device: DeviceId(3),
                attempts: 1,
                next_at: Timestamp(next_at),
                failure: failure.clone(),
            }];
            assert_eq!(decide(None, &registered, &known), expected, "{next_at}");
        }
        // The waiting device was removed.
        assert_eq!(
            decide(None, &registered[..2], &known),
            Decision::Suppress(SuppressedReason::NoDevice)
        );
    }
}

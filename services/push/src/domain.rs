//! Pure decisions: what to do with a recipient, what a response means, how the outcome of a chunk is computed.

mod breaker;
mod progress;

use std::{fmt, time::Duration};

use herald_model::{DeliveryState, DeviceId};

pub(crate) use breaker::Breaker;
pub(crate) use progress::{Counts, LedgerState, Progress};

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
    /// The device no longer exists and is to be unregistered.
    Gone,
    /// Permanent error.
    Refused(Reason),
    /// Transient error: retry.
    Retry {
        /// Why the push was not accepted.
        reason: Reason,
        /// The `Retry-After` of the provider, or the remaining time of an open circuit breaker.
        after: Option<Duration>,
    },
    /// Not sent because the push has expired.
    Expired,
    /// Not sent because the post was deleted.
    Deleted,
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
        }
    }
}

/// The verdict of an HTTP status. Redirects are not followed, so they are permanent errors.
pub(crate) fn verdict(status: u16, retry_after: Option<Duration>) -> Verdict {
    let reason = Reason::Status(status);
    match status {
        200..=299 => Verdict::Accepted,
        404 | 410 => Verdict::Gone,
        // Request Timeout, Too Early, Too Many Requests, server errors
        408 | 425 | 429 | 500..=599 => Verdict::Retry {
            reason,
            after: retry_after,
        },
        _ => Verdict::Refused(reason),
    }
}

/// The input of [`decide`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipient<'a> {
    /// The push has expired.
    pub(crate) expired: bool,
    /// The post was deleted or never existed.
    pub(crate) post_gone: bool,
    /// The user has disabled pushes or muted the author.
    pub(crate) unwanted: bool,
    /// The devices of the user.
    pub(crate) devices: &'a [DeviceId],
    /// Devices that accepted the push in earlier attempts.
    pub(crate) done: &'a [DeviceId],
}

/// What to do with a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Settle the recipient without sending.
    Settle(DeliveryState),
    /// Send to these devices: indices into [`Recipient::devices`], at least one.
    Send(Vec<usize>),
}

/// Decides what to do with a recipient. If a device accepted the push earlier, a settled recipient is delivered.
pub(crate) fn decide(recipient: &Recipient<'_>) -> Decision {
    let remaining = || {
        let devices = recipient.devices.iter().enumerate();
        devices
            .filter(|(_, id)| !recipient.done.contains(id))
            .map(|(index, _)| index)
            .collect::<Vec<_>>()
    };
    let state = if recipient.expired {
        DeliveryState::Expired
    } else if recipient.post_gone || recipient.unwanted {
        DeliveryState::Suppressed
    } else {
        match remaining() {
            devices if devices.is_empty() => DeliveryState::Suppressed,
            devices => return Decision::Send(devices),
        }
    };
    Decision::Settle(if recipient.done.is_empty() {
        state
    } else {
        DeliveryState::Delivered
    })
}

/// Delay before the next attempt: the `requested` delay of a provider, limited to the time until the push expires and
/// to `max`. `None` uses the consumer's back-off.
pub(crate) fn retry_delay(
    requested: Option<Duration>,
    until_expiry: Duration,
    max: Duration,
) -> Option<Duration> {
    requested.map(|delay| delay.min(until_expiry).min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_verdict() {
        let after = Some(Duration::from_secs(7));
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(verdict(status, None), Verdict::Accepted, "{status}");
        }
        for status in [404, 410] {
            assert_eq!(verdict(status, after), Verdict::Gone, "{status}");
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert_eq!(
                verdict(status, after),
                Verdict::Retry {
                    reason: Reason::Status(status),
                    after
                },
                "{status}"
            );
        }
        for status in [100, 301, 302, 307, 400, 401, 403, 405, 413, 422, 600] {
            assert_eq!(
                verdict(status, after),
                Verdict::Refused(Reason::Status(status)),
                "{status}"
            );
        }
    }

    #[test]
    fn decisions_have_the_specified_precedence() {
        let devices = [DeviceId(1), DeviceId(2)];
        let open = Recipient {
            expired: false,
            post_gone: false,
            unwanted: false,
            devices: &devices,
            done: &[],
        };
        let settle = |state| Decision::Settle(state);
        assert_eq!(decide(&open), Decision::Send(vec![0, 1]));
        assert_eq!(
            decide(&Recipient {
                done: &devices[..1],
                ..open
            }),
            Decision::Send(vec![1])
        );
        assert_eq!(
            decide(&Recipient {
                done: &devices,
                ..open
            }),
            settle(DeliveryState::Delivered)
        );
        assert_eq!(
            decide(&Recipient { devices: &[], ..open }),
            settle(DeliveryState::Suppressed)
        );
        assert_eq!(
            decide(&Recipient {
                unwanted: true,
                ..open
            }),
            settle(DeliveryState::Suppressed)
        );
        assert_eq!(
            decide(&Recipient {
                post_gone: true,
                ..open
            }),
            settle(DeliveryState::Suppressed)
        );
        assert_eq!(
            decide(&Recipient {
                expired: true,
                post_gone: true,
                ..open
            }),
            settle(DeliveryState::Expired)
        );
        let partial = Recipient {
            done: &devices[..1],
            ..open
        };
        assert_eq!(
            decide(&Recipient {
                expired: true,
                ..partial
            }),
            settle(DeliveryState::Delivered)
        );
        assert_eq!(
            decide(&Recipient {
                post_gone: true,
                ..partial
            }),
            settle(DeliveryState::Delivered)
        );
        assert_eq!(
            decide(&Recipient {
                unwanted: true,
                ..partial
            }),
            settle(DeliveryState::Delivered)
        );
        assert_eq!(
            decide(&Recipient {
                devices: &[],
                ..partial
            }),
            settle(DeliveryState::Delivered)
        );
    }

    #[test]
    fn a_delay_is_limited_by_the_expiry_and_by_the_maximum() {
        let secs = Duration::from_secs;
        assert_eq!(retry_delay(None, secs(60), secs(300)), None);
        assert_eq!(retry_delay(Some(secs(7)), secs(60), secs(300)), Some(secs(7)));
        assert_eq!(retry_delay(Some(secs(70)), secs(60), secs(300)), Some(secs(60)));
        assert_eq!(
            retry_delay(Some(secs(7000)), secs(6000), secs(300)),
            Some(secs(300))
        );
    }
}

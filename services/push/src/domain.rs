//! What to do with a recipient, what an answer means, and what becomes of a chunk. Nothing here sends, stores or waits.

mod breaker;
mod progress;

use std::{fmt, time::Duration};

use herald_model::{DeliveryState, DeviceId};

pub(crate) use breaker::Breaker;
pub(crate) use progress::{Counts, LedgerState, Progress};

/// Who carries a push to a device. More (FCM, APNs) have room here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Provider {
    /// A browser's push service.
    WebPush,
    /// The receiver's own endpoint.
    Webhook,
}

impl Provider {
    /// As it stands in metrics and reasons.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::WebPush => "web_push",
            Self::Webhook => "webhook",
        }
    }
}

/// Why a device was not reached. Its text stands in dead letters, where equal failures are grouped by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// The provider answered with this status.
    Status(u16),
    /// No answer in time. The push may have arrived.
    Timeout,
    /// No connection, or one that broke off. The push may have arrived.
    Connection,
    /// Not tried: the host has failed too often just now.
    Breaker,
    /// The endpoint is not one that may be called.
    Endpoint,
    /// The device's keys, or its user, are no good.
    Device,
    /// Herald's own code failed.
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

/// What came of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The provider has the push.
    Accepted,
    /// The device no longer exists: unregister it.
    Gone,
    /// Refused for good.
    Refused(Reason),
    /// Not this time.
    Later {
        /// Why.
        reason: Reason,
        /// How long the provider asked to wait, if it did.
        after: Option<Duration>,
    },
    /// Not sent, because its time had run out meanwhile.
    Expired,
    /// Not sent, because the post was deleted meanwhile.
    Deleted,
}

impl Verdict {
    /// As it stands in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Gone => "gone",
            Self::Refused(_) => "refused",
            Self::Later { .. } => "later",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
        }
    }
}

/// What a provider's status means. Redirects are not followed, so they refuse.
pub(crate) fn verdict(status: u16, retry_after: Option<Duration>) -> Verdict {
    let reason = Reason::Status(status);
    match status {
        200..=299 => Verdict::Accepted,
        404 | 410 => Verdict::Gone,
        // Request Timeout, Too Early, Too Many Requests
        408 | 425 | 429 | 500..=599 => Verdict::Later {
            reason,
            after: retry_after,
        },
        _ => Verdict::Refused(reason),
    }
}

/// What is known of a recipient before anything is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipient<'a> {
    /// The push's time has run out.
    pub(crate) expired: bool,
    /// The post was deleted, or never was.
    pub(crate) post_gone: bool,
    /// The user doesn't want pushes, or none of this author's.
    pub(crate) unwanted: bool,
    /// The user's devices.
    pub(crate) devices: &'a [DeviceId],
    /// Those that have the push from an earlier attempt.
    pub(crate) done: &'a [DeviceId],
}

/// What to do with a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing is to be sent.
    Disposition(DeliveryState),
    /// These devices, at least one, as indices into [`Recipient::devices`].
    Send(Vec<usize>),
}

/// Decides what to do with a recipient. One who has the push on some device is delivered, whatever came since.
pub(crate) fn decide(recipient: &Recipient<'_>) -> Decision {
    let left = || {
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
        match left() {
            left if left.is_empty() => DeliveryState::Suppressed,
            left => return Decision::Send(left),
        }
    };
    Decision::Disposition(if recipient.done.is_empty() {
        state
    } else {
        DeliveryState::Delivered
    })
}

/// How long to wait before the next attempt: as long as a provider asked for, but not past the end of the push's time
/// (it is settled as expired then) nor longer than a message may be held back. `None`: the usual back-off.
pub(crate) fn retry_delay(asked: Option<Duration>, remaining: Duration, max: Duration) -> Option<Duration> {
    asked.map(|asked| asked.min(remaining).min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_meaning() {
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
                Verdict::Later {
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
    fn a_recipient_is_decided_in_order() {
        let devices = [DeviceId(1), DeviceId(2)];
        let open = Recipient {
            expired: false,
            post_gone: false,
            unwanted: false,
            devices: &devices,
            done: &[],
        };
        let settle = |state| Decision::Disposition(state);
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
    fn a_delay_is_bounded_by_the_end_of_the_push_and_by_the_mesh() {
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

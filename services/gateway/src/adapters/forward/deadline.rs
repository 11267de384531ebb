//! When a forwarded call has taken too long.
//!
//! A call has the deadline of its caller. Without one, a call with one request and one response has the gateway's
//! default. A stream can last for hours, so it has no default deadline. But the service must take each of its requests,
//! and begin the response, within the same time; while the caller prepares the next request, nothing passes. After
//! that, HTTP/2 keepalive ends the response of a process that hangs.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use herald_rpc::status;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tonic::{Status, body::Body};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Units of `grpc-timeout`, with their length.
const UNITS: [(char, Duration); 6] = [
    ('n', Duration::from_nanos(1)),
    ('u', Duration::from_micros(1)),
    ('m', Duration::from_millis(1)),
    ('S', Duration::from_secs(1)),
    ('M', Duration::from_mins(1)),
    ('H', Duration::from_hours(1)),
];
/// Maximum number of digits before the unit.
const DIGITS_MAX: usize = 8;

/// The deadline of a forwarded call.
pub(super) struct Deadline {
    role: &'static str,
    kind: Kind,
}

enum Kind {
    /// The call must have ended. With `default` it came without a deadline.
    End { at: Instant, default: Option<Duration> },
    /// The response must have begun `limit` after the service's turn began.
    Begin {
        turn: watch::Receiver<Turn>,
        limit: Duration,
    },
}

/// Whose turn it is in a stream of requests.
#[derive(Clone, Copy)]
enum Turn {
    /// The gateway waits for the caller's next request.
    Caller,
    /// The service has to take a request, or to answer, since this moment.
    Service(Instant),
}

impl Deadline {
    /// The deadline of a call that arrives now.
    pub(super) fn of(role: &'static str, default: Duration, request: &mut Request<Body>) -> Self {
        let now = Instant::now();
        let kind = if let Some(timeout) = parse(request.headers()) {
            Kind::End {
                at: now + timeout,
                default: None,
            }
        } else if herald_proto::is_unary(request.uri().path()) {
            Kind::End {
                at: now + default,
                default: Some(default),
            }
        } else {
            let (sender, turn) = watch::channel(Turn::Service(now));
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = Body::new(Requests { body, turn: sender });
            Kind::Begin { turn, limit: default }
        };
        Self { role, kind }
    }

    /// Tells the service how much time is left.
    pub(super) fn set_header(&self, headers: &mut HeaderMap) {
        headers.remove(GRPC_TIMEOUT);
        if let Kind::End { at, .. } = self.kind {
            headers.insert(GRPC_TIMEOUT, format(at.saturating_duration_since(Instant::now())));
        }
    }

    /// Waits until the response should have begun; returns the status for the caller.
    pub(super) async fn until_begin(&self) -> Status {
        match &self.kind {
            Kind::End { at, .. } => sleep_until(*at).await,
            Kind::Begin { turn, limit } => until_silent(turn.clone(), *limit).await,
        }
        self.status()
    }

    /// Waits until the response should have ended; returns the status for the caller. Never returns for a stream without
    /// a deadline.
    pub(super) async fn until_end(self) -> Status {
        match self.kind {
            Kind::End { at, .. } => sleep_until(at).await,
            Kind::Begin { .. } => std::future::pending().await,
        }
        self.status()
    }

    /// The status for the caller of a call that has taken too long.
    pub(super) fn status(&self) -> Status {
        let role = self.role;
        status::deadline_exceeded(match &self.kind {
            Kind::End { default: None, .. } => {
                format!(
                    "{role} did not answer before the deadline of the call; the call may have taken effect"
                )
            }
            Kind::End {
                default: Some(default),
                ..
            } => format!(
                "{role} did not answer within {} ms, the time of a call without a deadline \
                 (gateway.forward_deadline_ms); the call may have taken effect",
                default.as_millis()
            ),
            Kind::Begin { limit, .. } => format!(
                "{role} took no request and began no response within {} ms (gateway.forward_deadline_ms); the requests \
                 before may have taken effect",
                limit.as_millis()
            ),
        })
    }
}

/// Waits until it has been the service's turn for `limit`.
async fn until_silent(mut turn: watch::Receiver<Turn>, limit: Duration) {
    loop {
        let now = *turn.borrow_and_update();
        let end = async {
            match now {
                Turn::Service(since) => sleep_until(since + limit).await,
                Turn::Caller => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end => return,
            // Fails when the stream of requests has ended; its last turn is the service's.
            Ok(()) = turn.changed() => {}
        }
    }
}

/// The requests of a stream, as they pass to the service.
struct Requests {
    body: Body,
    turn: watch::Sender<Turn>,
}

impl HttpBody for Requests {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // Polled when the service has taken the previous frame.
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.turn.send_replace(match &frame {
            Poll::Pending => Turn::Caller,
            Poll::Ready(_) => Turn::Service(Instant::now()),
        });
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.turn.send_if_modified(|turn| {
            let waits = matches!(turn, Turn::Caller);
            if waits {
                *turn = Turn::Service(Instant::now());
            }
            waits
        });
    }
}

/// The timeout of a call; `None` without a valid one.
fn parse(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (unit, length) = UNITS.into_iter().find(|(unit, _)| value.ends_with(*unit))?;
    let digits = value.strip_suffix(unit)?;
    let is_number =
        (1..=DIGITS_MAX).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u32 = digits.parse().ok().filter(|_| is_number)?;
    Some(length * count)
}

/// A timeout in the smallest unit that has enough digits for it, but at least milliseconds.
fn format(timeout: Duration) -> HeaderValue {
    let units = UNITS
        .into_iter()
        .filter(|(_, length)| *length >= Duration::from_millis(1));
    let count = |length: Duration| timeout.as_nanos() / length.as_nanos();
    let (unit, length) = units
        .clone()
        .find(|(_, length)| count(*length) < 10_u128.pow(DIGITS_MAX as u32))
        .unwrap_or(UNITS[UNITS.len() - 1]);
    let text = format!("{}{unit}", count(length));
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_str(value).unwrap());
        parse(&headers)
    }

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        assert_eq!(parsed("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parsed("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parsed("99999999H"), Some(Duration::from_hours(99_999_999)));
        for invalid in ["", "m", "250", "250x", "-1m", "+1m", "1.5S", "123456789n"] {
            assert_eq!(parsed(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn a_written_timeout_is_not_longer() {
        for (timeout, text) in [
            (Duration::ZERO, "0m"),
            (Duration::from_micros(1_999), "1m"),
            (Duration::from_secs(30), "30000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_hours(99_999_999), "99999999H"),
        ] {
            assert_eq!(format(timeout), text);
            assert!(parsed(text).unwrap() <= timeout);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_turn_of_the_service_counts() {
        let limit = Duration::from_secs(10);
        let began = Instant::now();
        let (sender, turn) = watch::channel(Turn::Service(began));
        let silent = tokio::spawn(until_silent(turn, limit));
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            sender.send_replace(Turn::Caller);
            tokio::time::sleep(Duration::from_secs(100)).await;
            sender.send_replace(Turn::Service(Instant::now()));
        }
        drop(sender);
        silent.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 3 * 109 + 10);
    }
}

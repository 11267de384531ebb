//! The headers that messages carry beside JetStream's own and the trace context, and what a message that comes another
//! time says about its first.

use async_nats::{HeaderMap, HeaderValue};
use herald_model::time::Timestamp;

use crate::{Redriven, Subject};

/// Names the Protobuf message.
pub(crate) const TYPE: &str = "Herald-Type";
/// `{dead_letter}/{round}`: the dead letter that this message is redriven from, and how often that was done.
pub(crate) const REDRIVE: &str = "Herald-Redrive";
/// The subject that the message had the first time.
pub(crate) const SUBJECT: &str = "Herald-Subject";
/// The sequence that the message had the first time.
pub(crate) const SEQUENCE: &str = "Herald-Sequence";
/// When the message was stored the first time, microseconds since 1970.
pub(crate) const PUBLISHED_AT: &str = "Herald-Published-At";

/// The id that the message was published with the first time.
pub(crate) const ID: &str = "Herald-Id";
/// Attempts made before this message took the place of another one.
pub(crate) const ATTEMPTS: &str = "Herald-Attempts";

pub(crate) const TRACE_PARENT: &str = "traceparent";
pub(crate) const TRACE_STATE: &str = "tracestate";

/// The subject that redriven messages of all kinds have, up to the kind.
pub(crate) const REDRIVE_SUBJECTS: &str = "redrive.v1.";

/// The subjects of messages that wait, up to where they come from.
pub(crate) const LATER_SUBJECTS: &str = "later.v1.";

/// The headers of any message on this subject.
pub(crate) fn typed(subject: Subject) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TYPE, subject.message_type());
    headers
}

/// Adds a header, unless its value can't be one.
pub(crate) fn add(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = value.parse::<HeaderValue>() {
        headers.insert(name, value);
    }
}

/// One header's value.
pub(crate) fn get<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(HeaderValue::as_str)
}

/// How many bytes headers take on the wire, where they count as part of the message.
pub(crate) fn wire_bytes(headers: &HeaderMap) -> usize {
    let values = headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    let lines = values.map(|(name, value)| {
        let name: &str = name.as_ref();
        name.len() + ": ".len() + value.as_str().len() + "\r\n".len()
    });
    "NATS/1.0\r\n".len() + lines.sum::<usize>() + "\r\n".len()
}

/// What a message is to its handler: what it was the first time, if this isn't it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalMessage {
    /// The subject it was published on first.
    pub subject: Subject,
    /// The sequence it had then; of a copy that has waited in LATER, its own.
    pub sequence: u64,
    /// When that was.
    pub published_at: Timestamp,
    /// Attempts that earlier copies of it have had.
    pub attempts_before: u64,
    /// Which redrive it comes from, if it does.
    pub redrive: Option<Redriven>,
}

impl OriginalMessage {
    /// Of a message as it was delivered; the error is why nobody can make sense of it.
    pub(crate) fn read(
        subject: &str,
        sequence: u64,
        published_at: Timestamp,
        headers: Option<&HeaderMap>,
    ) -> Result<Self, String> {
        let header = |name: &str| headers.and_then(|headers| get(headers, name));
        if !subject.starts_with(REDRIVE_SUBJECTS) {
            let number = |name: &str| header(name).and_then(|value| value.parse().ok());
            return Ok(Self {
                subject: Subject::parse(subject).ok_or_else(|| format!("unknown subject {subject}"))?,
                sequence,
                // One that has waited long has another time in its stream.
                published_at: number(PUBLISHED_AT).map_or(published_at, Timestamp),
                attempts_before: number(ATTEMPTS).map_or(0, i64::unsigned_abs),
                redrive: None,
            });
        }
        let redriven = || {
            Some(Self {
                subject: Subject::parse(header(SUBJECT)?)?,
                sequence: header(SEQUENCE)?.parse().ok()?,
                published_at: Timestamp(header(PUBLISHED_AT)?.parse().ok()?),
                attempts_before: 0,
                redrive: Some(Redriven::parse(header(REDRIVE)?)?),
            })
        };
        redriven().ok_or_else(|| format!("a message on {subject} that does not say what it was"))
    }
}

#[cfg(test)]
mod tests {
    use herald_model::Lane;

    use super::*;

    #[test]
    fn a_redriven_message_is_what_it_was_the_first_time() {
        let mut headers = typed(Subject::PushDeliver(Lane::Low));
        for (name, value) in [
            (SUBJECT, "push.v1.deliver.low"),
            (SEQUENCE, "7"),
            (PUBLISHED_AT, "1790230470084404"),
            (REDRIVE, "12/3"),
        ] {
            headers.insert(name, value);
        }
        let read =
            |headers: &HeaderMap| OriginalMessage::read("redrive.v1.push", 100, Timestamp(5), Some(headers));
        let redriven = OriginalMessage {
            subject: Subject::PushDeliver(Lane::Low),
            sequence: 7,
            published_at: Timestamp(1_790_230_470_084_404),
            attempts_before: 0,
            redrive: Some(Redriven {
                dead_letter: 12,
                round: 3,
            }),
        };
        assert_eq!(read(&headers), Ok(redriven));
        // On its first way nobody asks what it was.
        let first = OriginalMessage::read("push.v1.deliver.high", 100, Timestamp(5), Some(&headers)).unwrap();
        assert_eq!(
            (first.subject, first.sequence, first.redrive),
            (Subject::PushDeliver(Lane::High), 100, None)
        );
        for (name, value) in [
            (SUBJECT, "push"),
            (SEQUENCE, "-1"),
            (PUBLISHED_AT, ""),
            (REDRIVE, "12"),
        ] {
            let mut headers = headers.clone();
            headers.insert(name, value);
            assert!(read(&headers).is_err(), "{name}");
        }
        assert!(OriginalMessage::read("redrive.v1.push", 100, Timestamp(5), None).is_err());
        assert!(OriginalMessage::read("strange", 100, Timestamp(5), None).is_err());
    }

    #[test]
    fn a_message_that_waited_goes_on_counting() {
        let mut headers = typed(Subject::PushDeliver(Lane::Low));
        let read = |headers: &HeaderMap| {
            let origin =
                OriginalMessage::read("push.v1.deliver.low", 100, Timestamp(50), Some(headers)).unwrap();
            (origin.sequence, origin.published_at, origin.attempts_before)
        };
        assert_eq!(read(&headers), (100, Timestamp(50), 0));
        headers.insert(ATTEMPTS, "3");
        headers.insert(PUBLISHED_AT, "5");
        assert_eq!(read(&headers), (100, Timestamp(5), 3));
    }

    #[test]
    fn what_cant_be_a_header_is_left_out() {
        let mut headers = HeaderMap::new();
        add(&mut headers, TRACE_STATE, "a\r\nNats-Msg-Id: b");
        add(&mut headers, TRACE_PARENT, "00-1-2-01");
        assert_eq!(headers.len(), 1);
    }
}

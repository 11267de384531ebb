//! Herald's message headers, and the original subject, sequence and time that they record for a redriven or delayed
//! copy.

use async_nats::{HeaderMap, HeaderValue};
use herald_model::time::Timestamp;

use crate::{Redriven, Subject};

/// Protobuf type of the message.
pub(crate) const TYPE: &str = "Herald-Type";
/// `{dead_letter}/{round}`: dead letter id of a redriven message, and the number of the redrive, from 1.
pub(crate) const REDRIVE: &str = "Herald-Redrive";
/// Subject of the first publish.
pub(crate) const SUBJECT: &str = "Herald-Subject";
/// Sequence of the first publish.
pub(crate) const SEQUENCE: &str = "Herald-Sequence";
/// Time of the first publish, microseconds since 1970.
pub(crate) const PUBLISHED_AT: &str = "Herald-Published-At";

/// Message id of the first publish.
pub(crate) const ID: &str = "Herald-Id";
/// Attempts of earlier copies.
pub(crate) const ATTEMPTS: &str = "Herald-Attempts";
/// Number of the wait that made the copy.
pub(crate) const WAITS: &str = "Herald-Waits";
/// Message id of a copy in the delay queue.
pub(crate) const COPY: &str = "Herald-Copy";

/// `traceparent` of the first publish of a message that comes from the delay queue.
pub(crate) const FIRST_TRACE_PARENT: &str = "Herald-First-Trace-Parent";
/// Where the server reports its hops of a message (NATS ADR-41).
pub(crate) const TRACE_DESTINATION: &str = "Nats-Trace-Dest";

pub(crate) const TRACE_PARENT: &str = "traceparent";
pub(crate) const TRACE_STATE: &str = "tracestate";

/// Prefix of the subjects of redriven messages; the consumer kind follows.
pub(crate) const REDRIVE_SUBJECTS: &str = "redrive.v1.";

/// Prefix of the subjects in the delay queue.
pub(crate) const LATER_SUBJECTS: &str = "later.v1.";

/// Headers with the type of a message on this subject.
pub(crate) fn with_type(subject: Subject) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TYPE, subject.message_type());
    headers
}

/// Adds a header; skips a value that is not a valid header value.
pub(crate) fn add(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = value.parse::<HeaderValue>() {
        headers.insert(name, value);
    }
}

/// Value of a header.
pub(crate) fn get<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(HeaderValue::as_str)
}

/// Size of the headers on the wire, bytes. The server counts them as part of the message.
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

/// First publish of a message. For a message that is not a redriven or delayed copy, that is the message itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalMessage {
    /// Subject of the first publish.
    pub subject: Subject,
    /// Sequence of the first publish; for a copy from the delay queue, the copy's own.
    pub sequence: u64,
    /// Time of the first publish.
    pub published_at: Timestamp,
    /// Attempts of earlier copies.
    pub previous_attempts: u64,
    /// The redrive, for a redriven message.
    pub redrive: Option<Redriven>,
}

impl OriginalMessage {
    /// Reads the subject and the headers of a delivered message.
    ///
    /// # Errors
    /// The reason why the subject is unknown or the headers are malformed.
    pub(crate) fn parse(
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
                // A copy from the delay queue has a later time in its stream.
                published_at: number(PUBLISHED_AT).map_or(published_at, Timestamp),
                previous_attempts: number(ATTEMPTS).map_or(0, i64::unsigned_abs),
                redrive: None,
            });
        }
        let redriven = || {
            Some(Self {
                subject: Subject::parse(header(SUBJECT)?)?,
                sequence: header(SEQUENCE)?.parse().ok()?,
                published_at: Timestamp(header(PUBLISHED_AT)?.parse().ok()?),
                previous_attempts: 0,
                redrive: Some(Redriven::parse(header(REDRIVE)?)?),
            })
        };
        redriven().ok_or_else(|| format!("missing or malformed origin headers on {subject}"))
    }
}

#[cfg(test)]
mod tests {
    use herald_model::Lane;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{Delivery, trace};

    #[test]
    fn a_redriven_message_has_the_subject_sequence_and_time_of_its_first_publish() {
        let mut headers = with_type(Subject::PushDeliver(Lane::Low));
        for (name, value) in [
            (SUBJECT, "push.v1.deliver.low"),
            (SEQUENCE, "7"),
            (PUBLISHED_AT, "1790230470084404"),
            (REDRIVE, "12/3"),
        ] {
            headers.insert(name, value);
        }
        let read =
            |headers: &HeaderMap| OriginalMessage::parse("redrive.v1.push", 100, Timestamp(5), Some(headers));
        let redriven = OriginalMessage {
            subject: Subject::PushDeliver(Lane::Low),
            sequence: 7,
            published_at: Timestamp(1_790_230_470_084_404),
            previous_attempts: 0,
            redrive: Some(Redriven {
                dead_letter: 12,
                round: 3,
            }),
        };
        assert_eq!(read(&headers), Ok(redriven));
        // The headers matter on redrive subjects only.
        let first =
            OriginalMessage::parse("push.v1.deliver.high", 100, Timestamp(5), Some(&headers)).unwrap();
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
        assert!(OriginalMessage::parse("redrive.v1.push", 100, Timestamp(5), None).is_err());
        assert!(OriginalMessage::parse("strange", 100, Timestamp(5), None).is_err());
    }

    #[test]
    fn a_delayed_copy_keeps_the_attempts_and_the_time_of_its_first_publish() {
        let mut headers = with_type(Subject::PushDeliver(Lane::Low));
        let read = |headers: &HeaderMap| {
            let origin =
                OriginalMessage::parse("push.v1.deliver.low", 100, Timestamp(50), Some(headers)).unwrap();
            (origin.sequence, origin.published_at, origin.previous_attempts)
        };
        assert_eq!(read(&headers), (100, Timestamp(50), 0));
        headers.insert(ATTEMPTS, "3");
        headers.insert(PUBLISHED_AT, "5");
        assert_eq!(read(&headers), (100, Timestamp(5), 3));
    }

    #[test]
    fn an_invalid_header_value_is_skipped() {
        let mut headers = HeaderMap::new();
        add(&mut headers, TRACE_STATE, "a\r\nNats-Msg-Id: b");
        add(&mut headers, TRACE_PARENT, "00-1-2-01");
        assert_eq!(headers.len(), 1);
    }

    fn headers_of(values: &[(usize, String)]) -> HeaderMap {
        const NAMES: [&str; 12] = [
            TYPE,
            REDRIVE,
            SUBJECT,
            SEQUENCE,
            PUBLISHED_AT,
            ID,
            ATTEMPTS,
            WAITS,
            COPY,
            FIRST_TRACE_PARENT,
            TRACE_PARENT,
            TRACE_STATE,
        ];
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            add(&mut headers, NAMES[name % NAMES.len()], value);
        }
        headers
    }

    /// What headers have, a part of it, and anything else.
    fn value() -> impl Strategy<Value = String> {
        let valid = prop::sample::select(vec![
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "push.v1.deliver.low",
            "redrive.v1.push",
            "12/3",
            "18446744073709551615",
            "-9223372036854775808",
            "4294967295",
            "vendor=value,other=1",
        ]);
        let near = herald_fuzz::near(valid.prop_map(|value| value.as_bytes().to_vec()));
        near.prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    proptest! {
        #[test]
        fn any_headers_are_read_or_refused(
            values in vec((any::<usize>(), value()), 0..14),
            subject in prop_oneof![Just("redrive.v1.push"), Just("push.v1.deliver.low"), Just("later.v1.due.PUSH.push-low")],
        ) {
            let headers = headers_of(&values);
            if let Ok(origin) = OriginalMessage::parse(subject, 7, Timestamp(5), Some(&headers)) {
                prop_assert_eq!(origin.redrive.is_some(), subject == "redrive.v1.push");
            }
            prop_assert!(wire_bytes(&headers) >= 12);
            let mut delivery = Delivery::without_consumer(Subject::PushDeliver(Lane::Low), 7, Vec::new());
            delivery.headers = Some(headers.clone());
            let _ = (delivery.waits(), delivery.id(), delivery.link());
            let _ = trace::is_sampled(&headers);
        }
    }
}

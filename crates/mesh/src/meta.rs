//! Delivery metadata in the reply subject of a message.

use herald_model::time::Timestamp;

/// Metadata of a reply subject, `$JS.ACK.[domain.account.]stream.consumer.attempt.sequence.consumer
/// sequence.time.pending`, possibly with further tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) attempt: u64,
    pub(crate) sequence: u64,
    pub(crate) published_at: Timestamp,
    pub(crate) pending: u64,
}

impl Meta {
    pub(crate) fn parse(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let count = rest.split('.').count();
        let mut tokens = rest.split('.').skip(match count {
            7 => 2,
            9.. => 4,
            _ => return None,
        });
        let mut number = || tokens.next()?.parse::<u64>().ok();
        let (attempt, sequence, _consumer_sequence, nanos, pending) =
            (number()?, number()?, number()?, number()?, number()?);
        Some(Self {
            attempt,
            sequence,
            published_at: Timestamp(i64::try_from(nanos / 1_000).ok()?),
            pending,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_reply_subject_is_parsed_or_refused(
            reply in herald_fuzz::near(
                Just(b"$JS.ACK.hub.hash.POSTS.archive.3.100.7.18446744073709551615.42.token".to_vec()),
            ),
        ) {
            if let Some(meta) = Meta::parse(&String::from_utf8_lossy(&reply)) {
                prop_assert!(meta.published_at.0 >= 0);
            }
        }
    }

    #[test]
    fn both_forms_of_reply_subjects_are_parsed() {
        let read = Some(Meta {
            attempt: 3,
            sequence: 100,
            published_at: Timestamp(1_790_230_470_084_404),
            pending: 42,
        });
        assert_eq!(
            Meta::parse("$JS.ACK.POSTS.archive.3.100.7.1790230470084404000.42"),
            read
        );
        assert_eq!(
            Meta::parse("$JS.ACK._.hash.POSTS.archive.3.100.7.1790230470084404000.42"),
            read
        );
        assert_eq!(
            Meta::parse("$JS.ACK.hub.hash.POSTS.archive.3.100.7.1790230470084404000.42.token.more"),
            read
        );
        assert_eq!(
            Meta::parse("$JS.ACK.POSTS.archive.3.100.7.1790230470084404000"),
            None
        );
        assert_eq!(
            Meta::parse("$JS.ACK.POSTS.archive.3.x.7.1790230470084404000.42"),
            None
        );
        assert_eq!(Meta::parse("_INBOX.abc"), None);
    }
}

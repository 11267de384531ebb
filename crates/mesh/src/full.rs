//! Describes why a full stream refuses a message: the stream, the limit, and the setting that raises it.

/// Streams by the first token of their subjects, with the section of their settings.
const STREAMS: [(&str, &str); 8] = [
    ("post", "posts"),
    ("fanout", "slices"),
    ("timeline", "timeline"),
    ("push", "push"),
    ("event", "events"),
    ("later", "later"),
    ("dlq", "dlq"),
    ("redrive", "redrive"),
];

/// Describes the refusal of a publish. `reason` is the server's text.
pub(crate) fn describe(subject: &str, reason: &str) -> String {
    let first = subject.split('.').next().unwrap_or_default();
    let section = STREAMS.iter().find(|(token, _)| *token == first);
    let Some((_, section)) = section else {
        return format!("the stream of {subject} is full");
    };
    let stream = section.to_uppercase();
    if reason.contains("no space left") {
        format!(
            "the disk of nats-server is full, so stream {stream} refuses messages: free some space or enlarge the disk"
        )
    } else if reason.contains("maximum bytes") || reason.contains("maximum messages") {
        format!(
            "stream {stream} is full: raise topology.{section}.bytes_max, or lower topology.{section}.age_seconds_max"
        )
    } else {
        format!(
            "the storage limit of nats-server (max_file_store) is reached, so stream {stream} refuses messages: raise the \
             limit, or lower topology.{section}.age_seconds_max"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TopologyConfig, topology::Topology};

    #[test]
    fn the_limit_and_its_setting_are_named() {
        assert!(
            describe("post.v1.created.low", "maximum bytes exceeded")
                .starts_with("stream POSTS is full: raise topology.posts.bytes_max")
        );
        assert!(
            describe("dlq.v1.PUSH.push-low", "no space left on device")
                .contains("disk of nats-server is full")
        );
        assert!(describe("event.v1.settled.push", "insufficient resources").contains("max_file_store"));
    }

    #[test]
    fn each_stream_that_receives_publishes_is_known() {
        let topology = Topology::new(&TopologyConfig::default()).unwrap();
        for stream in topology
            .streams
            .iter()
            .filter(|stream| stream.name != "ADVISORIES")
        {
            for subject in &stream.subjects {
                let text = describe(subject, "maximum bytes exceeded");
                assert!(
                    text.starts_with(&format!("stream {} is full", stream.name)),
                    "{text}"
                );
            }
        }
    }
}

//! The payload of a push.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use herald_model::{Lane, Post, PostId, PushContent, UserId, time::Timestamp};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use unicode_segmentation::GraphemeCursor;

/// Limit of the text in a payload, characters.
const SNIPPET_CHARS_MAX: usize = 200;

/// Bytes of the hash in a topic: 32 characters of base64url.
const TOPIC_HASH_BYTES: usize = 24;

/// A post to send to devices.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) post: PostId,
    pub(crate) lane: Lane,
    pub(crate) author_id: UserId,
    pub(crate) links: Vec<String>,
    pub(crate) accepted_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    content: PushContent,
    snippet: String,
    accepted_time: String,
    deleted: AtomicBool,
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    timestamp: &'a str,
    data: Data<'a>,
}

#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Serialize)]
struct Data<'a> {
    post_id: u64,
    author_id: &'a str,
    recipient_id: &'a str,
    text: &'a str,
    links: &'a [String],
    accepted_time: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    push_title: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    push_collapse_key: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    push_data: &'a BTreeMap<String, String>,
}

impl Push {
    pub(crate) fn new(post: Post, lane: Lane, accepted_at: Timestamp, expires_at: Timestamp) -> Self {
        let accepted_time =
            jiff::Timestamp::from_microsecond(accepted_at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        Self {
            post: post.id,
            lane,
            author_id: post.author_id,
            links: post.links,
            content: post.push,
            accepted_at,
            expires_at,
            snippet: truncate(post.text),
            accepted_time: accepted_time.to_string(),
            deleted: AtomicBool::new(false),
        }
    }

    /// Names the pushes that replace each other while they are unseen: those of the same author and collapse key, or else
    /// the repeats of this push. At most 32 base64url characters (RFC 8030 §5.4).
    pub(crate) fn topic(&self) -> String {
        if self.content.collapse_key.is_empty() {
            return format!("post-{}", self.post);
        }
        let mut hash = Sha256::new();
        hash.update(self.author_id.as_str());
        // User ids have no control characters.
        hash.update([0]);
        hash.update(&self.content.collapse_key);
        BASE64_URL_SAFE_NO_PAD.encode(&hash.finalize()[..TOPIC_HASH_BYTES])
    }

    /// Marks the post as deleted; no more pushes are sent.
    pub(crate) fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Relaxed)
    }

    /// The event as JSON. It is the same at every attempt.
    pub(crate) fn json(&self, recipient: &UserId) -> Vec<u8> {
        self.encode(recipient, &self.snippet, &self.links)
    }

    /// The event as JSON of up to `bytes_max` bytes. Drops links from the end, then truncates the text.
    pub(crate) fn json_within(&self, recipient: &UserId, bytes_max: usize) -> Vec<u8> {
        let mut text = &self.snippet[..];
        let mut links = &self.links[..];
        loop {
            let json = self.encode(recipient, text, links);
            let excess = json.len().saturating_sub(bytes_max);
            if excess == 0 || (links.is_empty() && text.is_empty()) {
                return json;
            }
            if let Some((_, fewer)) = links.split_last() {
                links = fewer;
            } else {
                // One byte of text is up to six bytes of JSON, so this never removes too much.
                let end = text.len().saturating_sub(excess.div_ceil(6));
                text = until_grapheme(text, end);
            }
        }
    }

    fn encode(&self, recipient: &UserId, text: &str, links: &[String]) -> Vec<u8> {
        let event = Event {
            r#type: "post.created",
            timestamp: &self.accepted_time,
            data: Data {
                post_id: self.post.0,
                author_id: self.author_id.as_str(),
                recipient_id: recipient.as_str(),
                text,
                links,
                accepted_time: &self.accepted_time,
                push_title: &self.content.title,
                push_collapse_key: &self.content.collapse_key,
                push_data: &self.content.data,
            },
        };
        // Serialising strings and numbers to memory can't fail.
        serde_json::to_vec(&event).unwrap_or_default()
    }
}

/// Truncates a text to at most [`SNIPPET_CHARS_MAX`] after a whole grapheme cluster, with an ellipsis at the end: an
/// emoji, a flag or a letter with its accents is never cut into parts.
fn truncate(mut text: String) -> String {
    let mut from_last = text
        .char_indices()
        .skip(SNIPPET_CHARS_MAX - 1)
        .map(|(index, _)| index);
    if let (Some(last), Some(_)) = (from_last.next(), from_last.next()) {
        text.truncate(until_grapheme(&text, last).len());
        text.push('…');
    }
    text
}

/// The start of a text: its grapheme clusters that end at or before the byte `end`. A first cluster that is longer is cut
/// between characters.
fn until_grapheme(text: &str, end: usize) -> &str {
    let end = text.floor_char_boundary(end);
    let mut cursor = GraphemeCursor::new(end, text.len(), true);
    // A cursor over the whole text needs no more context, so it can't fail.
    let is_boundary = cursor.is_boundary(text, 0).unwrap_or(true);
    let start = if is_boundary {
        end
    } else {
        cursor.prev_boundary(text, 0).ok().flatten().unwrap_or(0)
    };
    &text[..if start == 0 { end } else { start }]
}

#[cfg(test)]
pub(crate) mod tests {
    use herald_model::UserKey;

    use super::*;

    pub(crate) fn push(text: &str, links: Vec<String>) -> Push {
        let accepted_at = Timestamp(1_700_000_000_250_000);
        let post = Post {
            id: PostId(7),
            author: UserKey(1),
            author_id: UserId::new("107").unwrap(),
            request_id: "request".into(),
            text: text.into(),
            links,
            media_urls: Vec::new(),
            lane: Lane::Normal,
            accepted_at,
            push_ttl: std::time::Duration::from_hours(1),
            push: PushContent::default(),
            deleted_at: None,
        };
        let expires_at = accepted_at.plus(std::time::Duration::from_hours(1));
        Push::new(post, Lane::Normal, accepted_at, expires_at)
    }

    fn recipient() -> UserId {
        UserId::new("a\"b").unwrap()
    }

    #[test]
    fn the_payload_has_all_fields_of_the_event() {
        let push = push("hi", vec!["https://example.com/".into()]);
        let json: serde_json::Value = serde_json::from_slice(&push.json(&recipient())).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "type": "post.created",
                "timestamp": "2023-11-14T22:13:20.25Z",
                "data": {
                    "post_id": 7,
                    "author_id": "107",
                    "recipient_id": "a\"b",
                    "text": "hi",
                    "links": ["https://example.com/"],
                    "accepted_time": "2023-11-14T22:13:20.25Z",
                },
            })
        );
    }

    /// A push with content; `character` fills every field up to its bounds.
    fn push_with_content(character: &str) -> Push {
        let data = (10..26).map(|n| (n.to_string(), character.repeat(768 / 16 / character.len() - 2)));
        let mut push = push(&"x".repeat(200), vec!["https://example.com/".into()]);
        push.author_id = UserId::new("\"".repeat(128)).unwrap();
        push.content = PushContent {
            title: character.repeat(120),
            collapse_key: character.repeat(64 / character.len()),
            data: data.collect(),
        };
        push
    }

    #[test]
    fn the_content_of_the_author_is_in_the_payload() {
        let mut push = push("hi", vec![]);
        push.content = PushContent {
            title: "Goal!".into(),
            collapse_key: "match 7".into(),
            data: [("score".into(), "1:0".into())].into(),
        };
        let json: serde_json::Value = serde_json::from_slice(&push.json(&recipient())).unwrap();
        assert_eq!(json["data"]["push_title"], "Goal!");
        assert_eq!(json["data"]["push_collapse_key"], "match 7");
        assert_eq!(json["data"]["push_data"], serde_json::json!({"score": "1:0"}));
    }

    #[test]
    fn the_largest_content_leaves_room_for_text() {
        let recipient = UserId::new("\\".repeat(128)).unwrap();
        for character in ["x", "\"", "\u{1f600}"] {
            let json = push_with_content(character).json_within(&recipient, 3_500);
            assert!(json.len() <= 3_500, "{}", json.len());
            let parsed: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert!(parsed["data"]["text"].as_str().unwrap().len() >= 100);
            assert_eq!(parsed["data"]["push_data"].as_object().unwrap().len(), 16);
        }
    }

    #[test]
    fn pushes_of_the_same_author_and_collapse_key_have_one_topic() {
        let topic = |author: &str, key: &str, post: u64| {
            let mut push = push("hi", vec![]);
            push.post = PostId(post);
            push.author_id = UserId::new(author).unwrap();
            push.content.collapse_key = key.into();
            push.topic()
        };
        assert_eq!(topic("107", "", 7), "post-7");
        assert_eq!(topic("107", "match", 7), topic("107", "match", 8));
        assert_ne!(topic("107", "match", 7), topic("107", "other", 7));
        assert_ne!(topic("107", "match", 7), topic("108", "match", 7));
        for topic in [topic("107", "", u64::MAX), topic("107", "a b ü", 7)] {
            assert!((1..=32).contains(&topic.len()), "{topic}");
            let url_safe = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            assert!(topic.bytes().all(url_safe), "{topic}");
        }
    }

    #[test]
    fn a_long_text_is_truncated_to_200_characters() {
        assert_eq!(truncate("ä".repeat(200)), "ä".repeat(200));
        let truncated = truncate("ä".repeat(201));
        assert_eq!(truncated.chars().count(), 200);
        assert!(truncated.ends_with("ä…"));
        assert_eq!(truncate(String::new()), "");
    }

    #[test]
    fn a_text_is_truncated_after_a_whole_grapheme_cluster() {
        for cluster in ["👩‍👩‍👧‍👦", "🇨🇭", "👍🏽", "e\u{301}", "\u{1100}\u{1161}\u{11a8}", "\r\n"]
        {
            let chars = cluster.chars().count();
            for shift in 0..chars {
                let text = format!("{}{}", "x".repeat(shift), cluster.repeat(200));
                let truncated = truncate(text);
                let kept = truncated.strip_suffix('…').unwrap();
                let clusters = &kept[shift..];
                assert_eq!(clusters, cluster.repeat(clusters.len() / cluster.len()), "{kept}");
                let length = truncated.chars().count();
                assert!(
                    (SNIPPET_CHARS_MAX - chars + 1..=SNIPPET_CHARS_MAX).contains(&length),
                    "{length}"
                );

                let push = push(&truncated, vec![]);
                for bytes_max in 300..320 {
                    let json = push.json_within(&recipient(), bytes_max);
                    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
                    let text = &json["data"]["text"].as_str().unwrap();
                    assert_eq!(text[shift.min(text.len())..].len() % cluster.len(), 0, "{text}");
                }
            }
        }
        // A cluster without end can't be kept whole.
        let endless = format!("a{}", "\u{301}".repeat(300));
        assert_eq!(truncate(endless).chars().count(), SNIPPET_CHARS_MAX);
    }

    #[test]
    fn links_are_dropped_before_the_text_is_truncated() {
        let links: Vec<String> = (0..4)
            .map(|n| format!("https://example.com/{}", "x".repeat(900 + n)))
            .collect();
        let push = push(&"\u{1}ü".repeat(100), links);
        let all = push.json(&recipient());
        assert!(all.len() > 3_500);
        let some = push.json_within(&recipient(), 3_500);
        assert!(some.len() <= 3_500);
        let parsed: serde_json::Value = serde_json::from_slice(&some).unwrap();
        assert_eq!(parsed["data"]["links"].as_array().unwrap().len(), 2);
        assert_eq!(parsed["data"]["text"].as_str().unwrap().chars().count(), 200);

        let little = push.json_within(&recipient(), 400);
        assert!(little.len() <= 400);
        let parsed: serde_json::Value = serde_json::from_slice(&little).unwrap();
        assert!(parsed["data"]["links"].as_array().unwrap().is_empty());
        assert!(parsed["data"]["text"].as_str().unwrap().starts_with("\u{1}ü"));
        assert_eq!(push.json_within(&recipient(), 1 << 20), all);
    }
}

//! Output of posts for `herald timeline`, `herald watch` and `herald posts`.

use std::{collections::BTreeMap, fmt::Write as _};

use console::Style;
use herald_cli::{
    failure::printable,
    output::{Show, lane_name},
    time::{ago, rfc3339},
};
use herald_model::Lane;
use herald_proto::v1;
use serde::Serialize;

/// A post of a timeline.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
pub(crate) struct Post {
    pub(crate) post_id: u64,
    pub(crate) author_id: String,
    pub(crate) text: String,
    pub(crate) links: Vec<String>,
    pub(crate) media_urls: Vec<String>,
    pub(crate) lane: &'static str,
    pub(crate) accepted_time: Option<String>,
    pub(crate) push_title: String,
    pub(crate) push_collapse_key: String,
    pub(crate) push_data: BTreeMap<String, String>,
    #[serde(skip)]
    accepted: Option<prost_types::Timestamp>,
}

impl From<v1::Post> for Post {
    fn from(post: v1::Post) -> Self {
        Self {
            post_id: post.post_id,
            author_id: post.author_id,
            text: post.text,
            links: post.links,
            media_urls: post.media_urls,
            lane: lane_name(post.lane),
            accepted_time: rfc3339(post.accepted_time.as_ref()),
            accepted: post.accepted_time,
            push_title: post.push_title,
            push_collapse_key: post.push_collapse_key,
            push_data: post.push_data,
        }
    }
}

impl Show for Post {
    fn text(&self) -> String {
        let dim = Style::new().dim();
        let mut text = format!("{}", Style::new().bold().apply_to(printable(&self.author_id)));
        if self.lane != Lane::Normal.as_str() {
            let _ = write!(text, "  {}", Style::new().yellow().apply_to(self.lane));
        }
        let when = ago(self.accepted.as_ref());
        let _ = write!(
            text,
            "  {}",
            dim.apply_to(format!("post {}, {when}", self.post_id))
        );
        for line in self.text.lines() {
            let _ = write!(text, "\n  {}", printable(line));
        }
        for url in self.links.iter().chain(&self.media_urls) {
            let _ = write!(text, "\n  {}", dim.apply_to(printable(url)));
        }
        text
    }
}

/// The posts of timeline entries, in their order. Entries without a post are skipped.
pub(crate) fn posts(entries: Vec<v1::TimelineEntry>) -> Vec<Post> {
    entries
        .into_iter()
        .filter_map(|entry| entry.post)
        .map(Post::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_post_are_escaped() {
        let post = Post::from(v1::Post {
            text: "a\u{1b}[2Jb\nc".into(),
            ..v1::Post::default()
        });
        let text = console::strip_ansi_codes(&post.text()).into_owned();
        assert!(text.ends_with("\n  a\\u{1b}[2Jb\n  c"), "{text:?}");
    }
}

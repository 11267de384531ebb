//! A post as it is submitted: its fields are checked before anything else happens.

use herald_model::{Lane, PushContent, UserId, UserKey, time::Timestamp};
use herald_posts::NO_KEY;
use herald_proto::{mesh_v1, v1};
use herald_rpc::{fields::Violations, status};
use tonic::Status;

use crate::domain;

/// A validated post.
#[derive(Debug)]
pub(super) struct NewPost {
    pub(super) author: UserId,
    pub(super) request_id: Option<String>,
    pub(super) lane: Lane,
    pub(super) text: String,
    pub(super) links: Vec<String>,
    pub(super) media_urls: Vec<String>,
    pub(super) push_ttl_seconds: u32,
    pub(super) push: PushContent,
}

/// Validates a request; the error names every invalid field.
pub(super) fn parse(request: v1::SubmitPostRequest) -> Result<NewPost, Status> {
    let mut violations = Violations::new();
    let request_id = match request.request_id.as_str() {
        "" => None,
        id => violations.take("request_id", domain::parse_request_id(id)),
    };
    let author = violations.user_id("author_id", request.author_id);
    violations.take("text", domain::check_text(&request.text));
    for (field, urls) in [("links", &request.links), ("media_urls", &request.media_urls)] {
        for (field, description) in domain::check_urls(field, urls) {
            violations.add(field, description);
        }
    }
    let lane = herald_proto::lane(request.lane);
    violations.check(
        "lane",
        lane.is_some(),
        "must be LANE_HIGH, LANE_NORMAL or LANE_LOW",
    );
    let push_ttl = match request.push_ttl {
        None => Some(domain::PUSH_TTL_DEFAULT),
        Some(ttl) => violations.take("push_ttl", herald_model::parse_push_ttl(ttl.seconds, ttl.nanos)),
    };
    violations.take("push_title", domain::check_push_title(&request.push_title));
    violations.take(
        "push_collapse_key",
        domain::check_collapse_key(&request.push_collapse_key),
    );
    violations.take("push_data", domain::check_push_data(&request.push_data));
    violations.into_result()?;
    // Without violations all three are `Some`.
    let (Some(author), Some(lane), Some(push_ttl)) = (author, lane, push_ttl) else {
        return Err(status::invalid(&[("post", "is not valid")]));
    };
    Ok(NewPost {
        author,
        request_id,
        lane,
        text: request.text,
        links: request.links,
        media_urls: request.media_urls,
        push_ttl_seconds: u32::try_from(push_ttl.as_secs()).unwrap_or(u32::MAX),
        push: PushContent {
            title: request.push_title,
            collapse_key: request.push_collapse_key,
            data: request.push_data,
        },
    })
}

impl NewPost {
    /// The message that the post is published as.
    pub(super) fn into_message(
        self,
        author: Option<UserKey>,
        request_id: String,
        at: Timestamp,
    ) -> mesh_v1::PostCreated {
        mesh_v1::PostCreated {
            author_key: author.unwrap_or(NO_KEY).0,
            author_id: self.author.into_string(),
            request_id,
            text: self.text,
            links: self.links,
            media_urls: self.media_urls,
            lane: v1::Lane::from(self.lane).into(),
            accepted_at_us: at.0,
            push_ttl_seconds: self.push_ttl_seconds,
            push_title: self.push.title,
            push_collapse_key: self.push.collapse_key,
            push_data: self.push.data,
        }
    }
}

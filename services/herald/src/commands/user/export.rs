//! `herald user export`

use std::collections::BTreeMap;

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Output, lane_name},
    time::rfc3339,
};
use herald_proto::v1::{
    DeviceState, ExportUserRequest, ExportUserResponse, ExportedDevice, ExportedDeviceKind, ExportedPost,
    export_user_response::Record,
};
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  herald user export 107 > 107.jsonl

  The texts of the posts:
    herald user export 107 | jq -r 'select(.kind == \"post\") | .text'

  How much there is of each kind:
    herald user export 107 | jq -r .kind | sort | uniq -c";

/// Write all that is held of a user to standard output, one JSON object a line
///
/// The `kind` of an object is `user`, `preferences`, `device`, `following`, `follower`, `muted_author`, `post` or
/// `timeline_entry`. A deleted post has its `deleted_time`, as long as its text is held. Keys and secrets of devices
/// are left out. The export is no snapshot: what changes meanwhile may be in it or not. It is complete if the exit code
/// is 0.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The user id
    #[arg(value_name = "USER")]
    user: String,
}

/// A line of the export.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    User { user_id: String },
    Preferences { push_enabled: bool },
    Device(Device),
    Following { user_id: String, notify: bool },
    Follower { user_id: String, notify: bool },
    MutedAuthor { author_id: String },
    Post(Post),
    TimelineEntry { post_id: u64 },
}

#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
struct Device {
    device_id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    endpoint: String,
    state: &'static str,
    registered_time: Option<String>,
}

#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
struct Post {
    post_id: u64,
    text: String,
    links: Vec<String>,
    media_urls: Vec<String>,
    lane: &'static str,
    accepted_time: Option<String>,
    push_title: String,
    push_collapse_key: String,
    push_data: BTreeMap<String, String>,
    deleted: bool,
    deleted_time: Option<String>,
}

impl From<ExportedDevice> for Device {
    fn from(device: ExportedDevice) -> Self {
        Self {
            kind: match device.kind() {
                ExportedDeviceKind::WebPush => "web_push",
                ExportedDeviceKind::Webhook => "webhook",
                ExportedDeviceKind::Unspecified => "unknown",
            },
            state: match device.state() {
                DeviceState::Enabled => "enabled",
                DeviceState::Disabled => "disabled",
                DeviceState::Unspecified => "unknown",
            },
            registered_time: rfc3339(device.registered_time.as_ref()),
            device_id: device.device_id,
            endpoint: device.endpoint,
        }
    }
}

impl From<ExportedPost> for Post {
    fn from(exported: ExportedPost) -> Self {
        let post = exported.post.unwrap_or_default();
        Self {
            post_id: post.post_id,
            text: post.text,
            links: post.links,
            media_urls: post.media_urls,
            lane: lane_name(post.lane),
            accepted_time: rfc3339(post.accepted_time.as_ref()),
            push_title: post.push_title,
            push_collapse_key: post.push_collapse_key,
            push_data: post.push_data,
            deleted: exported.deleted_time.is_some(),
            deleted_time: rfc3339(exported.deleted_time.as_ref()),
        }
    }
}

impl Line {
    /// `None` for a record of a newer server.
    fn of(response: ExportUserResponse) -> Option<Self> {
        Some(match response.record? {
            Record::User(user) => Self::User {
                user_id: user.user_id,
            },
            Record::Preferences(preferences) => Self::Preferences {
                push_enabled: preferences.push_enabled,
            },
            Record::Device(device) => Self::Device(device.into()),
            Record::Following(follow) => Self::Following {
                user_id: follow.user_id,
                notify: follow.notify,
            },
            Record::Follower(follow) => Self::Follower {
                user_id: follow.user_id,
                notify: follow.notify,
            },
            Record::MutedAuthor(muted) => Self::MutedAuthor {
                author_id: muted.author_id,
            },
            Record::Post(post) => Self::Post(post.into()),
            Record::TimelineEntry(entry) => Self::TimelineEntry {
                post_id: entry.post_id,
            },
        })
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    // No deadline: the duration depends on the number of records.
    let request = tonic::Request::new(ExportUserRequest { user_id: args.user });
    let mut records = client.user_data().export_user(request).await?.into_inner();
    while let Some(record) = records.message().await? {
        let line = Line::of(record).ok_or_else(|| {
            Failure::failed("the server sent a record that this version of herald does not know")
        })?;
        let mut line = serde_json::to_string(&line)
            .map_err(|error| Failure::failed(format!("a record can't be serialized as JSON: {error}")))?;
        line.push('\n');
        Output::write(&line)?;
    }
    Ok(())
}

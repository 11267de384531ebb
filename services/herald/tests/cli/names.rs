//! The JSON output has the names of the API.

use std::collections::BTreeSet;

use herald_proto::v1::{
    AuditFinding, AuditSummary, AuditedChannel, Channel, ChannelDelivery, GetDeliveryResponse, Redrive,
    run_audit_response::Event,
};
use prost::Message as _;
use serde_json::Value;

use crate::{
    run::herald,
    server::{Server, post},
};

/// Names that the API doesn't have, with the reason.
const LOCAL: [(&str, &str); 24] = [
    ("deleted", "DeletePost answers without a field"),
    ("removed", "UnregisterDevice answers without a field"),
    ("line_count", "a line of a file"),
    ("line", "a line of a file"),
    ("header", "a header row of a file"),
    ("field", "a field of google.rpc.BadRequest"),
    ("elapsed_seconds", "measured by the command"),
    ("follows_per_second", "measured by the command"),
    ("deliveries_per_second", "measured by the command"),
    ("finding_count", "the sum of findings"),
    ("findings_by_kind", "findings as an object by kind"),
    ("timeline", "a channel, in an object by channel"),
    ("push", "a channel, in an object by channel"),
    ("payload_base64", "payload, as text"),
    ("push_ttl_seconds", "a field of the payload"),
    (
        "undelivered_more",
        "whether there is a next_undelivered_page_token",
    ),
    ("lost", "a kind, in an object by kind"),
    ("targeted", "a count of delivery in earlier versions"),
    ("delivered", "a count of delivery in earlier versions"),
    ("suppressed", "a count of delivery in earlier versions"),
    ("expired", "a count of delivery in earlier versions"),
    ("pending", "a count of delivery in earlier versions"),
    ("dead", "a count of delivery in earlier versions"),
    ("no_device", "a reason, in an object by reason"),
];

/// The names of all fields and oneofs of the API.
fn api_names() -> BTreeSet<String> {
    let files = prost_types::FileDescriptorSet::decode(herald_proto::API_DESCRIPTORS).unwrap();
    let files = files.file.into_iter();
    let messages = files
        .filter(|file| file.package() == "herald.v1")
        .flat_map(|file| file.message_type);
    messages
        .flat_map(|message| {
            let fields = message.field.into_iter().filter_map(|field| field.name);
            fields.chain(message.oneof_decl.into_iter().filter_map(|oneof| oneof.name))
        })
        .collect()
}

fn collect_names(json: &Value, names: &mut BTreeSet<String>) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields {
                names.insert(name.clone());
                // The payload has the names of its own message.
                if name != "payload_json" {
                    collect_names(value, names);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_names(value, names)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_output_has_the_names_of_the_api() {
    let server = Server::start().await;
    server.add_page([post(1, "text")], "");
    server.set_deliveries([GetDeliveryResponse {
        channels: vec![ChannelDelivery {
            channel: Channel::Push.into(),
            ..ChannelDelivery::default()
        }],
        ..GetDeliveryResponse::default()
    }]);
    server.add_audit([
        Event::Finding(AuditFinding::default()),
        Event::Summary(AuditSummary {
            channels: vec![AuditedChannel {
                channel: Channel::Timeline.into(),
                ..AuditedChannel::default()
            }],
            ..AuditSummary::default()
        }),
    ]);
    server.add_redrive([Redrive::default()]);
    server.reject_follow(0, "author_id", "is not welcome");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "1 2\n").unwrap();
    let file = file.path().to_str().unwrap();
    let commands: [&[&str]; 28] = [
        &["post", "-a", "107", "-t", "hi"],
        &["posts", "list", "107"],
        &["posts", "get", "1", "2", "3"],
        &["delete", "1", "-a", "107"],
        &["follow", "1", "107"],
        &["following", "1", "107"],
        &["unfollow", "1", "107"],
        &["import", "follows", file],
        &["device", "add", "1", "--webhook", "https://example.com/hook"],
        &["device", "list", "1"],
        &["device", "remove", "1", "d1"],
        &["prefs", "get", "1"],
        &["prefs", "set", "1", "--push", "off"],
        &["timeline", "1"],
        &["delivery", "1"],
        &["delivery", "1", "--recipients", "push"],
        &["stats", "1"],
        &["stats"],
        &["lag"],
        &["audit"],
        &["dlq", "list"],
        &["dlq", "groups"],
        &["dlq", "show", "17"],
        &["dlq", "redrive", "--all", "--dry-run"],
        &["dlq", "cancel", "4"],
        &["dlq", "discard", "--all", "--dry-run"],
        &["dlq", "discard", "17", "--yes"],
        &["dlq", "log"],
    ];
    let api = api_names();
    for command in commands {
        let done = herald(&server.url, &[command, &["--output", "json"]].concat()).await;
        assert!(done.code <= 1 && !done.stdout.is_empty(), "{command:?}: {done:?}");
        let mut names = BTreeSet::new();
        for line in done.stdout.lines() {
            collect_names(&serde_json::from_str(line).unwrap(), &mut names);
        }
        let is_known = |name: &String| api.contains(name) || LOCAL.iter().any(|(local, _)| local == name);
        let unknown: Vec<_> = names.iter().filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "{command:?}: {unknown:?}");
    }
}

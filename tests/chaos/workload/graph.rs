//! The initial social graph and the devices.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use harness::Clients;
use herald_proto::v1;

use crate::world::PushSink;

/// Number of authors. All readers follow author 0, whose posts are therefore sliced.
pub(crate) const AUTHORS: usize = 8;
/// Number of readers: more than the recipients of one slice.
pub(crate) const READERS: usize = 1_200;
/// Readers from this number on change their follows during the load.
pub(super) const MOVING_FROM: usize = 1_000;

/// Relation of a reader to an author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Relation {
    None,
    Follows,
    /// Follows with pushes.
    Notified,
}

/// A reader's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    Webhook(String),
    WebPush(String),
}

impl Device {
    /// Name of the device at the push sink.
    pub(crate) fn name(&self) -> &str {
        let (Self::Webhook(name) | Self::WebPush(name)) = self;
        name
    }
}

pub(crate) fn author(n: usize) -> String {
    format!("author{n}")
}

pub(crate) fn reader(n: usize) -> String {
    format!("reader{n}")
}

/// Relation before the load.
pub(crate) fn initial_relation(reader: usize, author: usize) -> Relation {
    let follows = author == 0 || (reader * 7 + author * 3).is_multiple_of(6);
    let notified = (reader * 5 + author) % 7 < 2;
    match (follows, notified) {
        (false, _) => Relation::None,
        (true, false) => Relation::Follows,
        (true, true) => Relation::Notified,
    }
}

/// Devices of a reader: none, one of either kind, or both.
pub(crate) fn devices(reader: usize) -> Vec<Device> {
    let webhook = Device::Webhook(format!("hook{reader}"));
    let web_push = Device::WebPush(format!("web{reader}"));
    match reader % 8 {
        0 => vec![webhook, web_push],
        1 | 2 => vec![webhook],
        3 => vec![web_push],
        _ => Vec::new(),
    }
}

/// Imports the graph and registers the devices.
pub(crate) async fn prepare(clients: &Clients, sink: &PushSink) {
    let relations = (0..READERS).flat_map(|r| (0..AUTHORS).map(move |a| (r, a, initial_relation(r, a))));
    let follows: Vec<_> = relations
        .filter(|(_, _, relation)| *relation != Relation::None)
        .map(|(r, a, relation)| follow(r, a, relation))
        .collect();
    let batch = v1::ImportFollowsRequest { follows };
    let answer = clients
        .graph()
        .import_follows(tokio_stream::iter([batch]))
        .await
        .expect("the graph is imported")
        .into_inner();
    assert_eq!(answer.failed_count, 0);
    for r in 0..READERS {
        for device in devices(r) {
            let request = v1::RegisterDeviceRequest {
                user_id: reader(r),
                address: Some(address(sink, &device)),
            };
            clients
                .devices()
                .register_device(request)
                .await
                .expect("a device is registered");
        }
    }
}

pub(super) fn follow(r: usize, a: usize, relation: Relation) -> v1::Follow {
    v1::Follow {
        follower_id: reader(r),
        author_id: author(a),
        notify: Some(relation == Relation::Notified),
    }
}

fn address(sink: &PushSink, device: &Device) -> v1::register_device_request::Address {
    match device {
        Device::Webhook(name) => {
            let webhook = sink.webhook(name);
            v1::register_device_request::Address::Webhook(v1::Webhook {
                url: webhook.url,
                secret: webhook.secret,
            })
        }
        Device::WebPush(name) => {
            let subscription = sink.subscription(name);
            v1::register_device_request::Address::WebPush(v1::WebPush {
                endpoint: subscription.endpoint,
                p256dh: BASE64URL.encode(&subscription.p256dh),
                auth: BASE64URL.encode(&subscription.auth),
            })
        }
    }
}

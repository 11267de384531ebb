//! Who follows whom before the faults begin, and who has which device.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use harness::Clients;
use herald_proto::v1;

use crate::world::PushSink;

/// Author 0 is followed by everybody, so that a post of theirs takes slices.
pub(crate) const AUTHORS: usize = 8;
/// More than one slice holds.
pub(crate) const READERS: usize = 1_200;
/// The last readers' follows change all the time.
pub(super) const MOVING_FROM: usize = 1_000;

/// What a reader is to an author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tie {
    None,
    Follows,
    /// Follows and wants a push.
    Bell,
}

/// A reader's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    Webhook(String),
    WebPush(String),
}

impl Device {
    /// Its name at the sink.
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

/// The tie before the faults.
pub(crate) fn tie(reader: usize, author: usize) -> Tie {
    let follows = author == 0 || (reader * 7 + author * 3).is_multiple_of(6);
    let bell = (reader * 5 + author) % 7 < 2;
    match (follows, bell) {
        (false, _) => Tie::None,
        (true, false) => Tie::Follows,
        (true, true) => Tie::Bell,
    }
}

/// A reader's devices: none, one of either kind, or both.
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

/// Loads the graph and registers the devices.
pub(crate) async fn prepare(clients: &Clients, sink: &PushSink) {
    let ties = (0..READERS).flat_map(|r| (0..AUTHORS).map(move |a| (r, a, tie(r, a))));
    let follows: Vec<_> = ties
        .filter(|(_, _, tie)| *tie != Tie::None)
        .map(|(r, a, tie)| follow(r, a, tie))
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

pub(super) fn follow(r: usize, a: usize, tie: Tie) -> v1::Follow {
    v1::Follow {
        follower_id: reader(r),
        author_id: author(a),
        notify: tie == Tie::Bell,
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

//! `herald why`.

use herald_proto::v1::{
    Channel, ChannelRecipient, DeliveryState, DeviceFailure, ExplainDeliveryRequest, ExplainDeliveryResponse,
    ListDeadLettersRequest, Recipient, SuppressedReason, WaitingDevice,
};

use crate::{
    run::herald,
    server::{Server, time},
};

fn on(channel: Channel, recipient: Recipient) -> ChannelRecipient {
    ChannelRecipient {
        channel: channel.into(),
        recipient: Some(recipient),
    }
}

fn in_state(state: DeliveryState) -> Recipient {
    Recipient {
        user_id: "cat".into(),
        state: state.into(),
        ..Recipient::default()
    }
}

/// A post on the user's timeline, with this push.
fn explanation(push: Option<Recipient>) -> ExplainDeliveryResponse {
    let timeline = on(Channel::Timeline, in_state(DeliveryState::Delivered));
    let push = push.map(|push| on(Channel::Push, push));
    ExplainDeliveryResponse {
        post_id: 17,
        user_id: "cat".into(),
        planned: true,
        author_id: "107".into(),
        push_expire_time: Some(time(3_600)),
        channels: [timeline].into_iter().chain(push).collect(),
    }
}

fn failure(device: &str, reason: &str) -> DeviceFailure {
    DeviceFailure {
        device_id: device.into(),
        host: "hooks.example.org".into(),
        reason: reason.into(),
    }
}

async fn text(server: &Server) -> String {
    herald(&server.url, &["why", "17", "cat"]).await.ok().stdout
}

async fn json(server: &Server) -> serde_json::Value {
    let arguments = ["why", "17", "cat", "--output", "json"];
    herald(&server.url, &arguments).await.ok().json()
}

#[tokio::test]
async fn a_suppressed_push_has_its_reason() {
    let server = Server::start().await;
    for (reason, name, sentence) in [
        (SuppressedReason::NoDevice, "no_device", "cat has no device"),
        (SuppressedReason::Muted, "muted", "cat has muted 107"),
        (
            SuppressedReason::PushOff,
            "push_off",
            "cat has switched pushes off",
        ),
        (
            SuppressedReason::PostDeleted,
            "post_deleted",
            "the post was deleted",
        ),
        (
            SuppressedReason::DeviceGone,
            "device_gone",
            "each device of cat is gone",
        ),
        (
            SuppressedReason::DeviceDisabled,
            "device_disabled",
            "`herald device list cat`",
        ),
        (SuppressedReason::UnknownUser, "unknown_user", "no user id"),
        (
            SuppressedReason::Inactive,
            "inactive",
            "rebuilt when cat reads it again",
        ),
        (
            SuppressedReason::Drowning,
            "drowning",
            "only a part of their posts",
        ),
    ] {
        server.set_explanation(explanation(Some(Recipient {
            suppressed_reason: reason.into(),
            ..in_state(DeliveryState::Suppressed)
        })));
        let text = text(&server).await;
        assert!(
            text.contains("timeline: delivered\npush: suppressed because "),
            "{text}"
        );
        assert!(text.contains(sentence), "{text}");
        assert_eq!(json(&server).await["channels"]["push"]["suppressed_reason"], name);
    }
    let request = server.calls::<ExplainDeliveryRequest>().remove(0);
    assert_eq!((request.post_id, request.user_id.as_str()), (17, "cat"));
}

#[tokio::test]
async fn a_pending_push_names_the_waiting_devices() {
    let server = Server::start().await;
    server.set_explanation(explanation(Some(Recipient {
        accepted_device_ids: vec!["2".into()],
        waiting_devices: vec![WaitingDevice {
            failure: Some(failure("3", "webhook status 503")),
            attempt_count: 4,
            next_attempt_time: Some(time(60)),
        }],
        ..in_state(DeliveryState::Pending)
    })));
    assert_eq!(
        text(&server).await.trim_end(),
        "timeline: delivered\n\
         push: pending because 1 device waits for the next attempt; attempts continue until the push expires at \
         2026-01-31T09:00:00Z\n  \
         device 2: its provider accepted the push\n  \
         device 3 at hooks.example.org: webhook status 503; 4 failed attempts, next at 2026-01-31T08:01:00Z"
    );
    let waiting = &json(&server).await["channels"]["push"]["waiting_devices"][0];
    assert_eq!(
        *waiting,
        serde_json::json!({
            "device_id": "3",
            "host": "hooks.example.org",
            "reason": "webhook status 503",
            "attempt_count": 4,
            "next_attempt_time": "2026-01-31T08:01:00Z",
        })
    );
    server.set_explanation(explanation(Some(in_state(DeliveryState::Pending))));
    assert!(text(&server).await.contains("not tried yet"));
}

#[tokio::test]
async fn a_dead_push_names_its_dead_letter() {
    let server = Server::start().await;
    server.set_explanation(explanation(Some(Recipient {
        failures: vec![failure("3", "webhook status 400")],
        ..in_state(DeliveryState::Dead)
    })));
    let text = text(&server).await;
    let id = json(&server).await["channels"]["push"]["dead_letter_id"].clone();
    assert!(id.is_u64(), "{id}");
    assert!(
        text.contains(&format!(
            "push: dead: dead letter {id}; see `herald dlq show {id}`"
        )) && text.contains("device 3 at hooks.example.org: webhook status 400"),
        "{text}"
    );
    let filter = server.calls::<ListDeadLettersRequest>().remove(0).filter.unwrap();
    assert_eq!((filter.post_id, filter.channel()), (17, Channel::Push));
}

#[tokio::test]
async fn an_expired_push_names_the_last_failures() {
    let server = Server::start().await;
    server.set_explanation(explanation(Some(Recipient {
        failures: vec![failure("3", "webhook timeout")],
        ..in_state(DeliveryState::Expired)
    })));
    let text = text(&server).await;
    assert!(
        text.contains("push: expired because") && text.contains("webhook timeout"),
        "{text}"
    );
}

#[tokio::test]
async fn who_is_not_a_recipient_is_told_why() {
    let server = Server::start().await;
    server.set_explanation(explanation(None));
    let without_bell = text(&server).await;
    assert!(
        without_bell.contains("push: not a recipient: cat had no notifications on for 107"),
        "{without_bell}"
    );
    let stranger = ExplainDeliveryResponse {
        channels: Vec::new(),
        ..explanation(None)
    };
    server.set_explanation(stranger.clone());
    let text_of_stranger = text(&server).await;
    assert!(
        text_of_stranger.contains("timeline: not a recipient: cat did not follow 107"),
        "{text_of_stranger}"
    );
    assert_eq!(json(&server).await["channels"], serde_json::json!({}));
    server.set_explanation(ExplainDeliveryResponse {
        planned: false,
        ..stranger
    });
    assert!(text(&server).await.contains("timeline: not planned yet"));
}

#[tokio::test]
async fn an_unknown_post_is_exit_code_4() {
    let server = Server::start().await;
    assert_eq!(herald(&server.url, &["why", "17", "cat"]).await.code, 4);
}

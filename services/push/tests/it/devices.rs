//! Devices that are gone, and devices that fail for long.

use std::{collections::HashMap, time::Duration};

use herald_model::{Address, Device, DisabledReason, UserKey, time::Timestamp};
use herald_push_sink::InjectedFailure;
use herald_store::SuppressedReason;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::harness::{Herald, numbers, until};

const DAY: Duration = Duration::from_hours(24);

fn failure(status: u16, times: Option<u32>) -> InjectedFailure {
    InjectedFailure {
        status: status.try_into().unwrap(),
        retry_after: None,
        times,
    }
}

async fn devices(herald: &Herald, user: UserKey) -> Vec<Device> {
    herald.stores.devices.of(&[user]).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_webhook_that_responds_404_is_retried_and_stays_registered() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    let hook = herald.webhook(user, "hook").await;
    herald.sink.fail("hook", failure(404, Some(2)));
    let post = herald.post("hello").await;
    herald.push(post, &[user]).await;
    until(async || numbers(herald.counts(post).await) == [1, 0, 0, 0, 0]).await;
    assert_eq!(herald.sink.summary().failed, 2);
    // The success has ended the failing streak.
    assert_eq!(devices(&herald, user).await, [hook]);
}

#[tokio::test]
async fn a_webhook_that_responds_410_is_disabled_until_it_is_registered_again() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    let hook = herald.webhook(user, "hook").await;
    herald.sink.fail("hook", failure(410, Some(1)));
    for reason in [SuppressedReason::DeviceGone, SuppressedReason::DeviceDisabled] {
        let post = herald.post("hello").await;
        let chunk = herald.push(post, &[user]).await;
        let counts = herald.settled(chunk).await;
        assert_eq!(numbers(counts), [0, 1, 0, 0, 0]);
        assert_eq!(counts.suppressed_by.iter().collect::<Vec<_>>(), [(reason, 1)]);
    }
    // The second post was not sent.
    assert_eq!(herald.sink.summary().failed, 1);
    assert!(herald.received().is_empty());
    let disabled = devices(&herald, user).await[0].disabled.unwrap();
    assert_eq!(disabled.reason, DisabledReason::Gone);
    assert!(Timestamp::now().since(disabled.at) < Duration::from_mins(1));
    let metrics = herald.metrics.open_metrics();
    assert!(
        metrics.contains(r#"herald_push_devices_disabled_total{reason="gone"} 1"#),
        "{metrics}"
    );

    let again = herald.webhook(user, "hook").await;
    assert_eq!((again.id, again.disabled), (hook.id, None));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_webhook_without_a_success_for_days_is_disabled() {
    let herald = Herald::start().await;
    let [failing, recovering] = [herald.user("failing").await, herald.user("recovering").await];
    for (user, name, days) in [(failing, "failing", 3), (recovering, "recovering", 2)] {
        let registration = herald.webhook(user, name).await.registration();
        for day in 0..days {
            let at = Timestamp::now().minus(DAY * (days - day));
            herald
                .stores
                .devices
                .record_failure(registration, at)
                .await
                .unwrap();
        }
        herald.sink.fail(name, failure(500, Some(1)));
    }
    let post = herald.post("hello").await;
    herald.push(post, &[failing, recovering]).await;
    // The third day of failures is not too many, the fourth is.
    until(async || numbers(herald.counts(post).await) == [1, 1, 0, 0, 0]).await;
    assert_eq!(herald.received(), HashMap::from([("recovering".to_owned(), 1)]));
    let device = &devices(&herald, failing).await[0];
    assert_eq!(device.disabled.unwrap().reason, DisabledReason::Failing);
    let device = &devices(&herald, recovering).await[0];
    assert_eq!((device.disabled, device.failing), (None, None));
}

#[tokio::test]
async fn a_late_response_does_not_change_a_device_that_was_renewed_meanwhile() {
    let herald = Herald::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let subscription = herald.sink.subscription("browser");
    let addresses = [
        Address::Webhook {
            url: url.clone(),
            secret: vec![1; 24],
        },
        Address::WebPush {
            endpoint: url,
            p256dh: subscription.p256dh,
            auth: subscription.auth,
        },
    ];
    for (name, address) in ["a", "b"].into_iter().zip(addresses) {
        let user = herald.user(name).await;
        let register = || {
            herald
                .stores
                .devices
                .register(user, address.clone(), Timestamp::now())
        };
        register().await.unwrap();
        let post = herald.post("hello").await;
        let chunk = herald.push(post, &[user]).await;
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.read_u8().await.unwrap();
        // The request was sent to the first registration; the response comes after the second one.
        let renewed = register().await.unwrap();
        let response = b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        connection.write_all(response).await.unwrap();
        // The push is tried again on the new registration.
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.read_u8().await.unwrap();
        let response = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        connection.write_all(response).await.unwrap();
        assert_eq!(herald.settled(chunk).await.delivered, 1);
        assert_eq!(devices(&herald, user).await, [renewed]);
    }
}

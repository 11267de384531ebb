//! Creation of dead letters.

use herald_mesh::{Subject, streams};
use herald_model::{Channel, DeviceId, Lane, PostId, Recipients, time::Timestamp};
use herald_proto::{
    mesh_v1::{DeliveriesSettled, DlqEntry, PushChunk},
    v1::{self, DeadLetterCause, DeadLetterPayload, DeadLetterState},
};
use herald_store::{
    DeviceRetry, ExpectedRevision, Outcome, OutcomeDetails, PendingRecipient, PushFailure, Settlement,
};
use prost::Message as _;

use crate::harness::{Harness, Verdict, dead_letters, dlq_entry, get, redrive, until};

/// A message is terminated because of its dead recipients, while others wait in a copy of the next generation.
#[tokio::test(flavor = "multi_thread")]
async fn recipients_that_wait_in_a_copy_are_not_in_the_dead_letter() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let chunk = harness.plan(9, &["ann", "bob", "cat"]).await;
    let recipients = Recipients::decode(chunk.recipients.clone(), chunk.recipient_count).unwrap();
    let users: Vec<_> = recipients.iter().collect();
    let outcome = Outcome::Mixed {
        delivered: Recipients::default(),
        suppressed: Recipients::default(),
        expired: Recipients::default(),
        dead: Recipients::from_sorted([users[0]]),
        details: OutcomeDetails {
            generation: 1,
            pending: vec![PendingRecipient {
                waiting: vec![DeviceRetry {
                    device: DeviceId(5),
                    attempts: 1,
                    next_at: Timestamp::now(),
                    failure: PushFailure::new("webhook status 503", "hooks.example.com"),
                }],
                ..PendingRecipient::new(users[1])
            }],
            ..OutcomeDetails::default()
        },
    };
    let settlement = Settlement {
        post: PostId(9),
        channel: Channel::Push,
        chunk: recipients.chunk_id(),
        base: ExpectedRevision::Revision(0),
        outcome,
        at: Timestamp::now(),
        keep_claim: None,
    };
    harness.stores.ledger.settle(&settlement).await.unwrap();
    harness.set_verdict(Verdict::Term("push failed: webhook status 400: 1"));
    harness.publish(&chunk).await;
    let dead_letter = dead_letters(&service.client, 1).await.remove(0);
    let counts = async || {
        let counts = harness.stores.ledger.counts(PostId(9)).await.unwrap().unwrap();
        (counts.push.dead, counts.push.pending)
    };
    // The third recipient was not tried, so it died with the message.
    until(async || counts().await == (2, 1)).await;
    let shown = get(&service.client, dead_letter.dead_letter_id).await;
    assert_eq!(shown.undelivered_user_ids.len(), 2);
    assert_eq!(shown.dead_letter.unwrap().undelivered_count, 2);

    // The copy dies too.
    let copy = PushChunk {
        retry_generation: 1,
        ..chunk
    };
    let subject = Subject::PushDeliver(Lane::Normal);
    harness.mesh.publish(subject, None, &copy).await.unwrap();
    until(async || counts().await == (3, 0)).await;
}

/// Hosts and devices are named, and don't make a group each.
#[tokio::test(flavor = "multi_thread")]
async fn failures_at_different_hosts_are_one_group() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let author = harness.author().await;
    for (sequence, hosts) in [(1, "a.example (2)"), (2, "b.example (1), c.example (1), 4 more")] {
        let entry = DlqEntry {
            reason: format!(
                "push failed: webhook status 503: 2 (hosts \"{hosts}\", devices \"{sequence}, 77\")"
            ),
            ..dlq_entry(author, sequence)
        };
        harness.publish_dead_letter(&entry, &sequence.to_string()).await;
    }
    let groups: std::collections::HashSet<_> = dead_letters(&service.client, 2)
        .await
        .into_iter()
        .map(|dead_letter| dead_letter.group_id)
        .collect();
    assert_eq!(groups.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_message_becomes_a_dead_letter_with_all_details() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let chunk = harness.plan(9, &["ann", "bob", "cat"]).await;
    harness.set_verdict(Verdict::Term("push failed: webhook status 503: 3"));
    let sequence = harness.publish(&chunk).await;

    let dead_letter = dead_letters(&service.client, 1).await.remove(0);
    assert_eq!(dead_letter.state(), DeadLetterState::Open);
    assert_eq!(
        (
            &dead_letter.stream[..],
            &dead_letter.consumer[..],
            &dead_letter.kind[..]
        ),
        ("PUSH", "push-normal", "push")
    );
    assert_eq!((dead_letter.sequence, dead_letter.attempt_count), (sequence, 1));
    assert_eq!(dead_letter.subject, "push.v1.deliver.normal");
    assert_eq!(dead_letter.message_type, "herald.mesh.v1.PushChunk");
    assert_eq!(dead_letter.cause(), DeadLetterCause::Terminated);
    assert_eq!(dead_letter.reason, "push failed: webhook status 503: 3");
    assert_eq!((dead_letter.post_id, &dead_letter.author_id[..]), (9, "author"));
    assert_eq!(
        (dead_letter.channel(), dead_letter.lane()),
        (v1::Channel::Push, v1::Lane::Normal)
    );
    assert_eq!(
        (dead_letter.recipient_count, dead_letter.undelivered_count),
        (3, 3)
    );
    assert!(dead_letter.publish_time.is_some());
    assert_eq!(dead_letter.first_failure_time, dead_letter.last_failure_time);

    let shown = get(&service.client, dead_letter.dead_letter_id).await;
    assert_eq!(shown.payload, chunk.encode_to_vec());
    assert_eq!(shown.undelivered_user_ids, ["ann", "bob", "cat"]);
    assert_eq!(shown.next_undelivered_page_token, "");
    let json: serde_json::Value = serde_json::from_str(&shown.payload_json).unwrap();
    assert_eq!(json["postId"], "9", "{json}");
    let header = |name: &str| {
        shown
            .headers
            .iter()
            .find(|header| header.name == name)
            .map(|header| &header.value[..])
    };
    assert_eq!(header("Herald-Type"), Some("herald.mesh.v1.PushChunk"));
    assert_eq!(
        header("Nats-Msg-Id"),
        Some(&format!("9/push/{:016x}", chunk.chunk_id)[..])
    );

    // The ledger marks the recipients dead, and an event for analytics is published.
    until(async || {
        let counts = harness.stores.ledger.counts(PostId(9)).await.unwrap().unwrap();
        (counts.push.dead, counts.push.pending) == (3, 0)
    })
    .await;
    until(async || harness.mesh.last_sequence(streams::EVENTS).await.unwrap() == 1).await;
    let event = harness.mesh.message(streams::EVENTS, 1).await.unwrap().unwrap();
    let event: DeliveriesSettled = event.decode().unwrap();
    let [chunk] = event.chunks[..] else {
        panic!("{event:?}")
    };
    assert_eq!((chunk.post_id, chunk.dead_count, chunk.revision), (9, 3, 1));
    // Sampled every 10 s.
    until(async || harness.metric("herald_deadletter_open") == 1).await;
    assert_eq!(harness.metric("herald_deadletter_visible_seconds_count"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_advisory_creates_no_second_dead_letter() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let chunk = harness.plan(9, &["ann"]).await;
    harness.set_verdict(Verdict::Term("no"));
    let sequence = harness.publish(&chunk).await;
    let dead_letter = dead_letters(&service.client, 1).await.remove(0);

    // A second advisory within the dedupe window of DLQ, and an entry with another message id, as after the window.
    harness
        .publish_advisory("PUSH", "push-normal", sequence, Some("no"))
        .await;
    let first = harness
        .mesh
        .message(streams::DLQ, dead_letter.dead_letter_id)
        .await
        .unwrap()
        .unwrap();
    harness
        .publish_dead_letter(&first.decode().unwrap(), "after the window")
        .await;
    until(async || harness.metric("herald_deadletter_repeats_total") == 2).await;
    assert_eq!(dead_letters(&service.client, 1).await, [dead_letter]);
    let counts = harness.stores.ledger.counts(PostId(9)).await.unwrap().unwrap();
    assert_eq!(counts.push.dead, 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_in_dlq_that_is_missing_in_the_store_is_written_after_a_crash() {
    let harness = Harness::start().await;
    // The service died after the publish to DLQ and before the write to the store.
    let author = harness.author().await;
    harness
        .publish_dead_letter(&dlq_entry(author, 5), "PUSH/push-normal/5")
        .await;
    harness
        .publish_advisory("PUSH", "push-normal", 5, Some("again"))
        .await;
    let service = harness.run().await;
    let dead_letter = dead_letters(&service.client, 1).await.remove(0);
    assert_eq!(dead_letter.reason, "push failed: webhook status 503: 5");
    until(async || harness.metric("herald_deadletter_repeats_total") == 1).await;
    dead_letters(&service.client, 1).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_gone_becomes_a_dead_letter_without_payload() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    harness.publish_advisory("PUSH", "push-low", 77, None).await;
    harness
        .publish_advisory("PUSH", "push-low", 78, Some("Message deleted by stream limits"))
        .await;
    let mut dead_letters = dead_letters(&service.client, 2).await;
    dead_letters.sort_by_key(|dead_letter| dead_letter.sequence);
    for dead_letter in &dead_letters {
        assert_eq!(dead_letter.payload(), DeadLetterPayload::Gone);
        assert_eq!((dead_letter.post_id, dead_letter.publish_time), (0, None));
        assert_eq!(dead_letter.attempt_count, 3);
    }
    assert_eq!(dead_letters[0].cause(), DeadLetterCause::MaxDeliveries);
    assert_eq!(dead_letters[1].cause(), DeadLetterCause::Removed);
    let error = redrive(
        &service.client,
        crate::harness::select_ids([dead_letters[0].dead_letter_id]),
        None,
    )
    .await
    .unwrap_err();
    // The subject is unknown too.
    assert_eq!(crate::calls::reason(&error), "NOT_REDRIVABLE");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_message_is_kept_unchanged() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Strange", "header");
    headers.insert(
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    );
    let garbage = b"\x0a\xff\xff\xff\xff\x0fgarbage".as_slice();
    harness
        .nats
        .publish_with_headers("push.v1.deliver.high", headers, garbage.into())
        .await
        .unwrap();
    harness.nats.flush().await.unwrap();
    let dead_letter = dead_letters(&service.client, 1).await.remove(0);
    assert_eq!(dead_letter.cause(), DeadLetterCause::Unreadable);
    assert!(
        dead_letter.reason.contains("undecodable"),
        "{}",
        dead_letter.reason
    );
    assert_eq!(dead_letter.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(dead_letter.payload_byte_count, garbage.len() as u64);
    let shown = get(&service.client, dead_letter.dead_letter_id).await;
    assert_eq!(shown.payload, garbage);
    assert_eq!(shown.payload_json, "");
    assert!(
        shown
            .headers
            .iter()
            .any(|header| header.name == "Strange" && header.value == "header")
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_advisories_are_ignored_and_malformed_ones_become_dead_letters() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    harness
        .publish_advisory("PUSH", "somebody-elses", 1, Some("x"))
        .await;
    harness
        .publish_advisory("ORDERS", "push-normal", 1, Some("x"))
        .await;
    until(async || harness.metric("herald_deadletter_ignored_total") == 2).await;
    harness
        .nats
        .publish(
            "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.PUSH.push-normal",
            "no advisory".into(),
        )
        .await
        .unwrap();
    let dead_letter = dead_letters(&service.client, 1).await.remove(0);
    assert_eq!(
        (&dead_letter.stream[..], &dead_letter.kind[..]),
        ("ADVISORIES", "deadletter")
    );
    assert_eq!(
        get(&service.client, dead_letter.dead_letter_id).await.payload,
        b"no advisory"
    );
    // A malformed entry in DLQ becomes a dead letter too.
    harness
        .nats
        .publish("dlq.v1.PUSH.push-normal", "no dead letter".into())
        .await
        .unwrap();
    let dead_letter = dead_letters(&service.client, 2).await.remove(1);
    assert_eq!(
        (&dead_letter.stream[..], &dead_letter.kind[..]),
        ("DLQ", "dead-letters")
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_to_copy_is_redriven_from_its_stream() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    // A DLQ entry has the trace state twice, as a field and as a header, and is too large. The message and its redrive
    // have it once and are not. Field 9 is unknown, so the message decodes.
    let trace_state = "x".repeat(60_000);
    let field = harness.nats.server_info().max_payload as u64 - 90_000;
    let mut payload = harness.plan(9, &["ann"]).await.encode_to_vec();
    prost::encoding::encode_key(9, prost::encoding::WireType::LengthDelimited, &mut payload);
    prost::encoding::encode_varint(field, &mut payload);
    payload.extend(std::iter::repeat_n(b'x', usize::try_from(field).unwrap()));
    harness.set_verdict(Verdict::Term("too much"));
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("tracestate", trace_state);
    harness
        .nats
        .publish_with_headers("push.v1.deliver.normal", headers, payload.clone().into())
        .await
        .unwrap();
    harness.nats.flush().await.unwrap();
    let dead_letter = dead_letters(&service.client, 1).await.remove(0);
    assert_eq!(dead_letter.payload(), DeadLetterPayload::TooLarge);
    assert_eq!((dead_letter.post_id, dead_letter.recipient_count), (9, 1));

    harness.set_verdict(Verdict::Ack);
    let done = redrive(
        &service.client,
        crate::harness::select_ids([dead_letter.dead_letter_id]),
        None,
    )
    .await
    .unwrap();
    assert_eq!((done.resolved_count, done.skipped_count), (1, 0));
    let received = harness.received().pop().unwrap();
    assert_eq!(received.dead_letter, Some((dead_letter.dead_letter_id, 1)));
    assert_eq!(received.payload.len(), payload.len());
    service.stop().await;
}

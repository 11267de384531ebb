//! Redrives of dead letters.

use herald_mesh::{Disposition, Subject, streams};
use herald_model::{Lane, PostId};
use herald_proto::v1::{self, DeadLetterOperationState, DeadLetterState};
use prost::Message as _;

use crate::{
    calls::reason,
    harness::{
        Harness, Verdict, dead_letters, get, in_state, list_all, redrive, select_all, select_ids, until,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_redriven_once_to_the_consumer_that_failed() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    let chunk = harness.plan(9, &["ann", "bob"]).await;
    harness.set_verdict(Verdict::Term("no"));
    let sequence = harness.publish(&chunk).await;
    let dead_letter = dead_letters(client, 1).await.remove(0).dead_letter_id;

    harness.set_verdict(Verdict::Ack);
    let done = redrive(client, select_ids([dead_letter]), None).await.unwrap();
    assert_eq!(done.state(), DeadLetterOperationState::Done);
    assert_eq!(
        (done.selected_count, done.sent_count, done.resolved_count),
        (1, 1, 1)
    );
    assert_eq!((done.failed_count, done.in_flight_count), (0, 0));
    assert_eq!((&done.actor[..], done.rate_max), ("ops@host", 500));

    let received = harness.received();
    assert_eq!(received.len(), 2, "{received:?}");
    assert_eq!(received[1].subject, Subject::PushDeliver(Lane::Normal));
    assert_eq!(
        (received[1].sequence, received[1].dead_letter),
        (sequence, Some((dead_letter, 1)))
    );
    assert_eq!(received[1].payload, received[0].payload);

    let shown = get(client, dead_letter).await;
    let resolved = shown.dead_letter.unwrap();
    assert_eq!(resolved.state(), DeadLetterState::Resolved);
    assert_eq!(
        (resolved.redrive_count, resolved.redrive_id),
        (1, done.redrive_id)
    );
    assert_eq!(shown.operations.len(), 1);
    assert_eq!(
        (shown.operations[0].operation_id, &shown.operations[0].actor[..]),
        (done.redrive_id, "ops@host")
    );

    // A second redrive is refused and changes nothing.
    let again = redrive(client, select_ids([dead_letter]), None)
        .await
        .unwrap_err();
    assert_eq!(reason(&again), "ALREADY_REDRIVEN");
    let nothing = redrive(client, select_all(), None).await.unwrap();
    assert_eq!(
        (nothing.selected_count, nothing.state()),
        (0, DeadLetterOperationState::Done)
    );
    assert_eq!(harness.received().len(), 2);
    assert_eq!(harness.metric("herald_deadletter_resolved_total"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_fails_again_is_reopened_with_the_new_reason() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.create_dead_letters(client, 1..=3).await;
    harness.plan(2, &["ann"]).await;
    harness.set_verdict(Verdict::Term("still no"));
    let done = redrive(client, select_ids([2]), None).await.unwrap();
    assert_eq!(
        (done.state(), done.resolved_count, done.failed_count),
        (DeadLetterOperationState::Done, 0, 1)
    );
    let open = get(client, 2).await.dead_letter.unwrap();
    assert_eq!((open.state(), open.redrive_count), (DeadLetterState::Open, 1));
    assert_eq!(open.reason, "still no");
    assert_eq!(open.attempt_count, 20, "attempts of the redrive don't count");
    assert!(open.last_failure_time.unwrap().seconds > open.first_failure_time.unwrap().seconds);
    // The redrive ended with this failure, not when the dead letter was sent.
    let instant = |at: prost_types::Timestamp| (at.seconds, at.nanos);
    assert!(
        instant(done.end_time.unwrap()) >= instant(open.last_failure_time.unwrap()),
        "{done:?}"
    );
    // The DLQ entry of the failed redrive creates no other dead letter.
    assert_eq!(dead_letters(client, 3).await.len(), 3);

    harness.set_verdict(Verdict::Ack);
    let done = redrive(client, select_all(), None).await.unwrap();
    assert_eq!((done.resolved_count, done.failed_count), (3, 0));
    assert_eq!(harness.redriven(), [(1, 1), (2, 1), (2, 2), (3, 1)]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_dead_letters_are_reopened_and_the_others_resolved() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.create_dead_letters(client, 1..=100).await;
    harness.set_verdict(Verdict::Decide(|delivery| {
        let dead_letter = delivery.redrive.map_or(0, |redriven| redriven.dead_letter);
        if dead_letter.is_multiple_of(10) {
            Disposition::term("no")
        } else {
            Disposition::Ack
        }
    }));
    let done = redrive(client, select_all(), Some(0)).await.unwrap();
    assert_eq!(
        (done.state(), done.resolved_count, done.failed_count),
        (DeadLetterOperationState::Done, 90, 10)
    );
    let failed: Vec<u64> = (1..=10).map(|ten| ten * 10).collect();
    assert_eq!(in_state(client, DeadLetterState::Open).await, failed);
    let dead_letters = list_all(client).await;
    assert_eq!(dead_letters.len(), 100);
    assert!(
        dead_letters
            .iter()
            .filter(|dead_letter| failed.contains(&dead_letter.dead_letter_id))
            .all(|dead_letter| dead_letter.reason == "no" && dead_letter.redrive_count == 1)
    );
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 100);
    let expected: Vec<_> = (1..=100).map(|id| (id, 1)).collect();
    assert_eq!(harness.redriven(), expected, "each is sent once");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_redrives_of_the_same_dead_letters_send_each_once() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.create_dead_letters(client, 1..=700).await;
    let redrives = (0..3).map(|_| redrive(client, select_all(), Some(0)));
    let done: Vec<_> = futures::future::join_all(redrives)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(done.iter().map(|done| done.resolved_count).sum::<u64>(), 700);
    for done in &done {
        assert_eq!(
            done.sent_count + done.skipped_count,
            done.selected_count,
            "{done:?}"
        );
    }
    let expected: Vec<_> = (1..=700).map(|id| (id, 1)).collect();
    assert_eq!(harness.redriven(), expected);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_failures_stop_a_redrive_and_the_rest_stays_open() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.create_dead_letters(client, 1..=1_500).await;
    harness.set_verdict(Verdict::Term("not fixed"));
    let done = redrive(client, select_all(), Some(10)).await.unwrap();
    assert_eq!(done.state(), DeadLetterOperationState::Stopped);
    assert!(
        done.reason.ends_with("dead letters failed again"),
        "{}",
        done.reason
    );
    assert!(
        done.failed_count >= 10 && done.sent_count <= 512,
        "a failing redrive sends at most 512: {done:?}"
    );
    assert_eq!(done.failed_count, done.sent_count);
    let open = in_state(client, DeadLetterState::Open).await;
    assert_eq!(open.len(), 1_000, "the page size");
    let untouched = get(client, 1_500).await.dead_letter.unwrap();
    assert_eq!(
        (untouched.state(), untouched.redrive_count),
        (DeadLetterState::Open, 0)
    );
    assert_eq!(harness.redriven().len() as u64, done.sent_count);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_reports_the_selection_and_changes_nothing() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.create_dead_letters(client, 1..=5).await;
    harness.publish_advisory("PUSH", "push-low", 77, None).await;
    let before = dead_letters(client, 6).await;
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(select_all()),
        dry_run: true,
        rate_max: 10,
        ..Default::default()
    };
    let mut answers = client
        .clone()
        .redrive_dead_letters(request)
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(answers.message().await.unwrap().is_none());
    let redrive = answer.redrive.unwrap();
    assert_eq!((redrive.redrive_id, redrive.selected_count), (0, 5));
    assert_eq!(redrive.rate_max, 10);
    assert_eq!(
        redrive.excluded_count, 1,
        "a dead letter without payload can't be redriven"
    );
    assert_eq!(answer.groups.len(), 1);
    assert_eq!(answer.groups[0].dead_letter_count, 5);
    assert_eq!(answer.groups[0].reason, "push failed: webhook status 503: #");
    assert_eq!(dead_letters(client, 6).await, before);
    let mut other = client.clone();
    let audit_log = other.list_operations(v1::ListOperationsRequest::default()).await;
    assert_eq!(audit_log.unwrap().into_inner().operations, []);
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_can_be_cancelled() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let mut client = service.client.clone();
    harness.create_dead_letters(&client, 1..=200).await;
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(select_all()),
        rate_max: 20,
        ..Default::default()
    };
    let mut progress = client.redrive_dead_letters(request).await.unwrap().into_inner();
    let begun = progress.message().await.unwrap().unwrap().redrive.unwrap();
    let mut cancel = tonic::Request::new(v1::CancelRedriveRequest {
        redrive_id: begun.redrive_id,
    });
    cancel
        .metadata_mut()
        .insert("herald-actor", "bob".parse().unwrap());
    let stopped = client.cancel_redrive(cancel).await.unwrap().into_inner();
    assert_eq!(
        stopped.redrive.unwrap().state(),
        DeadLetterOperationState::Cancelled
    );
    let mut last = begun.clone();
    while let Some(answer) = progress.message().await.unwrap() {
        last = answer.redrive.unwrap();
    }
    assert_eq!(
        (last.state(), &last.reason[..]),
        (DeadLetterOperationState::Cancelled, "stopped by bob")
    );
    assert_eq!(last.in_flight_count, 0);
    assert!(last.sent_count < 200, "{last:?}");
    let open = in_state(&client, DeadLetterState::Open).await;
    assert_eq!(open.len() as u64 + last.resolved_count, 200);

    let again = v1::CancelRedriveRequest {
        redrive_id: begun.redrive_id,
    };
    let again = client.cancel_redrive(again).await.unwrap().into_inner();
    assert_eq!(again.redrive.unwrap().reason, "stopped by bob");
    let audit_log = client
        .list_operations(v1::ListOperationsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let kinds: Vec<_> = audit_log
        .operations
        .iter()
        .map(v1::DeadLetterOperation::kind)
        .collect();
    assert_eq!(
        kinds,
        [
            v1::DeadLetterOperationKind::Cancel,
            v1::DeadLetterOperationKind::Redrive
        ]
    );
    assert_eq!(
        audit_log.operations[0].redrive.as_ref().unwrap().redrive_id,
        begun.redrive_id
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undelivered_recipients_come_from_the_ledger() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    let users: Vec<String> = (0..250).map(|n| format!("user-{n:03}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let chunk = harness.plan(9, &users).await;
    harness.set_verdict(Verdict::Term("no"));
    harness.publish(&chunk).await;
    let dead_letter = dead_letters(client, 1).await.remove(0);
    assert_eq!(dead_letter.undelivered_count, 250);
    // The recipients are pending until the ledger step of the dead letter is done.
    until(async || {
        let counts = harness.stores.ledger.counts(PostId(9)).await.unwrap();
        counts.unwrap().push.dead == 250
    })
    .await;
    let shown = get(client, dead_letter.dead_letter_id).await;
    assert_eq!(shown.undelivered_user_ids.len(), 100);
    let mut undelivered = shown.undelivered_user_ids;
    let mut token = shown.next_undelivered_page_token;
    while !token.is_empty() {
        let request = v1::ListUndeliveredRecipientsRequest {
            dead_letter_id: dead_letter.dead_letter_id,
            page_size: 70,
            page_token: token,
        };
        let page = client
            .clone()
            .list_undelivered_recipients(request)
            .await
            .unwrap()
            .into_inner();
        assert!(
            page.recipients
                .iter()
                .all(|one| one.state() == v1::DeliveryState::Dead)
        );
        undelivered.extend(page.recipients.into_iter().map(|one| one.user_id));
        token = page.next_page_token;
    }
    undelivered.sort();
    assert_eq!(undelivered, users);

    // Recipients that are delivered in another way are no longer undelivered.
    let recorded = harness
        .stores
        .ledger
        .outcome(
            PostId(9),
            herald_model::Channel::Push,
            herald_model::ChunkId(chunk.chunk_id),
        )
        .await
        .unwrap()
        .unwrap();
    let herald_store::Outcome::Mixed {
        suppressed,
        expired,
        dead,
        details,
        ..
    } = recorded.outcome
    else {
        panic!("{recorded:?}")
    };
    let reached = herald_model::Recipients::from_sorted(dead.iter().take(200));
    let left = herald_model::Recipients::from_sorted(dead.iter().skip(200));
    let settlement = herald_store::Settlement {
        post: PostId(9),
        channel: herald_model::Channel::Push,
        chunk: herald_model::ChunkId(chunk.chunk_id),
        base: herald_store::ExpectedRevision::Revision(recorded.revision),
        outcome: herald_store::Outcome::Mixed {
            delivered: reached,
            suppressed,
            expired,
            dead: left,
            details,
        },
        at: herald_model::time::Timestamp::now(),
        keep_claim: None,
    };
    harness.stores.ledger.settle(&settlement).await.unwrap();
    until(async || dead_letters(client, 1).await[0].undelivered_count == 50).await;
    assert_eq!(
        get(client, dead_letter.dead_letter_id)
            .await
            .undelivered_user_ids
            .len(),
        50
    );
    service.stop().await;
}

/// The message of another program has no space left for the headers of a redrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_the_broker_refuses_keeps_its_original_reason() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.create_dead_letters(client, 100..=100).await;
    // Field 9 is unknown, so the message decodes.
    let mut payload = harness.plan(9, &["ann"]).await.encode_to_vec();
    let left = harness.nats.server_info().max_payload - payload.len() - 4;
    prost::encoding::encode_key(9, prost::encoding::WireType::LengthDelimited, &mut payload);
    prost::encoding::encode_varint(left as u64, &mut payload);
    payload.resize(payload.len() + left, b'x');
    harness.set_verdict(Verdict::Term("status 503"));
    harness
        .nats
        .publish("push.v1.deliver.normal", payload.into())
        .await
        .unwrap();
    let dead_letter = dead_letters(client, 2).await.remove(1).dead_letter_id;
    let undelivered = get(client, dead_letter)
        .await
        .dead_letter
        .unwrap()
        .undelivered_count;
    assert_eq!(undelivered, 1);

    harness.set_verdict(Verdict::Ack);
    for round in [1, 2] {
        let done = redrive(client, select_ids([dead_letter]), None).await.unwrap();
        assert_eq!(
            (done.state(), done.resolved_count, done.failed_count),
            (DeadLetterOperationState::Done, 0, 1)
        );
        let open = get(client, dead_letter).await.dead_letter.unwrap();
        assert_eq!(
            (open.state(), open.redrive_count, open.undelivered_count),
            (DeadLetterState::Open, round, 1)
        );
        assert!(
            open.reason
                .starts_with("can't be redriven: the broker refuses it: publish to redrive.v1.push: "),
            "{}",
            open.reason
        );
        assert!(
            open.reason.ends_with("; original failure: status 503"),
            "{}",
            open.reason
        );
    }
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 0);

    // It has a group of its own, and doesn't prevent the redrive of the other dead letter.
    let mut other = client.clone();
    let groups = other.list_groups(v1::ListGroupsRequest::default()).await;
    let groups = groups.unwrap().into_inner().groups;
    assert!(
        groups
            .iter()
            .any(|group| group.dead_letter_count == 1 && group.reason.starts_with("can't be redriven: ")),
        "{groups:?}"
    );
    let done = redrive(client, select_all(), None).await.unwrap();
    assert_eq!((done.resolved_count, done.failed_count), (1, 1));
    service.stop().await;
}

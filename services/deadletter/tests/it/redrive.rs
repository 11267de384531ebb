//! Dead letters on their second way.

use herald_mesh::{Disposition, Subject, streams};
use herald_model::{Lane, PostId};
use herald_proto::v1::{self, DeadLetterState, RedriveState};
use prost::Message as _;

use crate::{
    calls::reason,
    harness::{Harness, Verdict, all, dead_letters, everything, get, ids, in_state, redrive, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_goes_back_to_the_consumer_that_failed_once() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    let chunk = harness.plan(9, &["ann", "bob"]).await;
    harness.tell(Verdict::Term("no"));
    let sequence = harness.publish(&chunk).await;
    let dead_letter = dead_letters(client, 1).await.remove(0).dead_letter_id;

    harness.tell(Verdict::Ack);
    let done = redrive(client, ids([dead_letter]), None).await.unwrap();
    assert_eq!(done.state(), RedriveState::Done);
    assert_eq!(
        (done.frozen_count, done.sent_count, done.resolved_count),
        (1, 1, 1)
    );
    assert_eq!((done.failed_count, done.in_flight_count), (0, 0));
    assert_eq!((&done.actor[..], done.rate_max), ("ops@host", 500));

    let seen = harness.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(seen[1].subject, Subject::PushDeliver(Lane::Normal));
    assert_eq!(
        (seen[1].sequence, seen[1].dead_letter),
        (sequence, Some((dead_letter, 1)))
    );
    assert_eq!(seen[1].payload, seen[0].payload);

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

    // Again: refused, and nothing happens.
    let again = redrive(client, ids([dead_letter]), None).await.unwrap_err();
    assert_eq!(reason(&again), "ALREADY_REDRIVEN");
    let nothing = redrive(client, everything(), None).await.unwrap();
    assert_eq!((nothing.frozen_count, nothing.state()), (0, RedriveState::Done));
    assert_eq!(harness.seen().len(), 2);
    assert_eq!(harness.metric("herald_deadletter_resolved_total"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_again_is_open_again_with_the_new_reason() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=3).await;
    harness.plan(2, &["ann"]).await;
    harness.tell(Verdict::Term("still no"));
    let done = redrive(client, ids([2]), None).await.unwrap();
    assert_eq!(
        (done.state(), done.resolved_count, done.failed_count),
        (RedriveState::Done, 0, 1)
    );
    let open = get(client, 2).await.dead_letter.unwrap();
    assert_eq!((open.state(), open.redrive_count), (DeadLetterState::Open, 1));
    assert_eq!(open.reason, "still no");
    assert_eq!(open.attempt_count, 20, "those of the redrive don't count");
    assert!(open.last_failure_time.unwrap().seconds > open.first_failure_time.unwrap().seconds);
    // One dead letter still: what DLQ has of the redrive is about this one.
    assert_eq!(dead_letters(client, 3).await.len(), 3);

    harness.tell(Verdict::Ack);
    let done = redrive(client, everything(), None).await.unwrap();
    assert_eq!((done.resolved_count, done.failed_count), (3, 0));
    assert_eq!(harness.redriven(), [(1, 1), (2, 1), (2, 2), (3, 1)]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_fail_are_open_again_and_the_others_done() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=100).await;
    harness.tell(Verdict::By(|delivery| {
        let dead_letter = delivery.redrive.map_or(0, |redriven| redriven.dead_letter);
        if dead_letter.is_multiple_of(10) {
            Disposition::term("no")
        } else {
            Disposition::Ack
        }
    }));
    let done = redrive(client, everything(), Some(0)).await.unwrap();
    assert_eq!(
        (done.state(), done.resolved_count, done.failed_count),
        (RedriveState::Done, 90, 10)
    );
    let failed: Vec<u64> = (1..=10).map(|ten| ten * 10).collect();
    assert_eq!(in_state(client, DeadLetterState::Open).await, failed);
    let dead_letters = all(client).await;
    assert_eq!(dead_letters.len(), 100);
    assert!(
        dead_letters
            .iter()
            .filter(|dead_letter| failed.contains(&dead_letter.dead_letter_id))
            .all(|dead_letter| dead_letter.reason == "no" && dead_letter.redrive_count == 1)
    );
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 100);
    let expected: Vec<_> = (1..=100).map(|id| (id, 1)).collect();
    assert_eq!(harness.redriven(), expected, "each was tried once");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redrives_of_the_same_dead_letters_at_the_same_time_deliver_each_once() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=700).await;
    let redrives = (0..3).map(|_| redrive(client, everything(), Some(0)));
    let done: Vec<_> = futures::future::join_all(redrives)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(done.iter().map(|done| done.resolved_count).sum::<u64>(), 700);
    for done in &done {
        assert_eq!(
            done.sent_count + done.skipped_count,
            done.frozen_count,
            "{done:?}"
        );
    }
    let expected: Vec<_> = (1..=700).map(|id| (id, 1)).collect();
    assert_eq!(harness.redriven(), expected);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_failures_stop_a_redrive_and_the_rest_stays() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=1_500).await;
    harness.tell(Verdict::Term("not mended"));
    let done = redrive(client, everything(), Some(10)).await.unwrap();
    assert_eq!(done.state(), RedriveState::Stopped);
    assert!(
        done.reason.ends_with("dead letters failed again"),
        "{}",
        done.reason
    );
    assert!(
        done.failed_count >= 10 && done.sent_count <= 512,
        "a failing redrive begins with a few: {done:?}"
    );
    assert_eq!(done.failed_count, done.sent_count);
    let open = in_state(client, DeadLetterState::Open).await;
    assert_eq!(open.len(), 1_000, "a page of them");
    let untouched = get(client, 1_500).await.dead_letter.unwrap();
    assert_eq!(
        (untouched.state(), untouched.redrive_count),
        (DeadLetterState::Open, 0)
    );
    assert_eq!(harness.redriven().len() as u64, done.sent_count);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_changes_nothing() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=5).await;
    harness.advise("PUSH", "push-low", 77, None).await;
    let before = dead_letters(client, 6).await;
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(everything()),
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
    assert_eq!((redrive.redrive_id, redrive.frozen_count), (0, 5));
    assert_eq!(redrive.rate_max, 10);
    assert_eq!(redrive.excluded_count, 1, "what is gone can't be redriven");
    assert_eq!(answer.groups.len(), 1);
    assert_eq!(answer.groups[0].dead_letter_count, 5);
    assert_eq!(answer.groups[0].reason, "push gave up: webhook status 503: #");
    assert_eq!(dead_letters(client, 6).await, before);
    let mut other = client.clone();
    let history = other.list_operations(v1::ListOperationsRequest::default()).await;
    assert_eq!(history.unwrap().into_inner().operations, []);
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_can_be_stopped() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let mut client = service.client.clone();
    harness.fill(&client, 1..=200).await;
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(everything()),
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
    assert_eq!(stopped.redrive.unwrap().state(), RedriveState::Cancelled);
    let mut last = begun.clone();
    while let Some(answer) = progress.message().await.unwrap() {
        last = answer.redrive.unwrap();
    }
    assert_eq!(
        (last.state(), &last.reason[..]),
        (RedriveState::Cancelled, "stopped by bob")
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
    let history = client
        .list_operations(v1::ListOperationsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let kinds: Vec<_> = history
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
        history.operations[0].redrive.as_ref().unwrap().redrive_id,
        begun.redrive_id
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_says_who_is_owed_at_each_moment() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    let users: Vec<String> = (0..250).map(|n| format!("user-{n:03}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let chunk = harness.plan(9, &users).await;
    harness.tell(Verdict::Term("no"));
    harness.publish(&chunk).await;
    let dead_letter = dead_letters(client, 1).await.remove(0);
    assert_eq!(dead_letter.owed_count, 250);
    // Pending until the dead letter's second step is done.
    until(async || {
        let counts = harness.stores.ledger.counts(PostId(9)).await.unwrap();
        counts.unwrap().push.dead == 250
    })
    .await;
    let shown = get(client, dead_letter.dead_letter_id).await;
    assert_eq!(shown.owed_user_ids.len(), 100);
    let mut owed = shown.owed_user_ids;
    let mut token = shown.next_owed_page_token;
    while !token.is_empty() {
        let request = v1::ListOwedRecipientsRequest {
            dead_letter_id: dead_letter.dead_letter_id,
            page_size: 70,
            page_token: token,
        };
        let page = client
            .clone()
            .list_owed_recipients(request)
            .await
            .unwrap()
            .into_inner();
        assert!(
            page.recipients
                .iter()
                .all(|one| one.state() == v1::DeliveryState::Dead)
        );
        owed.extend(page.recipients.into_iter().map(|one| one.user_id));
        token = page.next_page_token;
    }
    owed.sort();
    assert_eq!(owed, users);

    // Somebody is reached in another way: the dead letter owes the rest.
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
        partial,
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
            partial,
        },
        at: herald_model::time::Timestamp::now(),
    };
    harness.stores.ledger.settle(&settlement).await.unwrap();
    until(async || dead_letters(client, 1).await[0].owed_count == 50).await;
    assert_eq!(
        get(client, dead_letter.dead_letter_id).await.owed_user_ids.len(),
        50
    );
    service.stop().await;
}

/// Somebody else's message, without the room that herald leaves for what a redrive adds.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_the_broker_refuses_says_so_and_keeps_why_it_was_given_up() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 100..=100).await;
    // Field 9 is nobody's, so the message can be read.
    let mut payload = harness.plan(9, &["ann"]).await.encode_to_vec();
    let left = harness.nats.server_info().max_payload - payload.len() - 4;
    prost::encoding::encode_key(9, prost::encoding::WireType::LengthDelimited, &mut payload);
    prost::encoding::encode_varint(left as u64, &mut payload);
    payload.resize(payload.len() + left, b'x');
    harness.tell(Verdict::Term("status 503"));
    harness
        .nats
        .publish("push.v1.deliver.normal", payload.into())
        .await
        .unwrap();
    let dead_letter = dead_letters(client, 2).await.remove(1).dead_letter_id;
    let owed = get(client, dead_letter).await.dead_letter.unwrap().owed_count;
    assert_eq!(owed, 1);

    harness.tell(Verdict::Ack);
    for round in [1, 2] {
        let done = redrive(client, ids([dead_letter]), None).await.unwrap();
        assert_eq!(
            (done.state(), done.resolved_count, done.failed_count),
            (RedriveState::Done, 0, 1)
        );
        let open = get(client, dead_letter).await.dead_letter.unwrap();
        assert_eq!(
            (open.state(), open.redrive_count, open.owed_count),
            (DeadLetterState::Open, round, 1)
        );
        assert!(
            open.reason
                .starts_with("can't be redriven: the broker refuses it: publish to redrive.v1.push: "),
            "{}",
            open.reason
        );
        assert!(open.reason.ends_with("; given up: status 503"), "{}", open.reason);
    }
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 0);

    // It is a group by itself, and keeps none of the others from theirs.
    let mut other = client.clone();
    let groups = other.list_groups(v1::ListGroupsRequest::default()).await;
    let groups = groups.unwrap().into_inner().groups;
    assert!(
        groups
            .iter()
            .any(|group| group.dead_letter_count == 1 && group.reason.starts_with("can't be redriven: ")),
        "{groups:?}"
    );
    let done = redrive(client, everything(), None).await.unwrap();
    assert_eq!((done.resolved_count, done.failed_count), (1, 1));
    service.stop().await;
}

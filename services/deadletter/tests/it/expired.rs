//! Redrives of pushes past their time to live, and dry runs of many groups.

use std::time::Duration;

use herald_model::time::Timestamp;
use herald_proto::{mesh_v1::PushChunk, v1};
use prost::Message as _;
use tonic::Code;

use crate::{
    calls::reason,
    harness::{Client, Harness, Verdict, dead_letters, dlq_entry, get, select_all, total, until},
};

/// Redrives all dead letters, and returns the last response.
async fn redrive_all(
    client: &Client,
    dry_run: bool,
    push_ttl: Option<i64>,
) -> Result<v1::RedriveDeadLettersResponse, tonic::Status> {
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(select_all()),
        dry_run,
        push_ttl: push_ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    let mut responses = client.clone().redrive_dead_letters(request).await?.into_inner();
    let mut last = None;
    while let Some(response) = responses.message().await? {
        last = Some(response);
    }
    Ok(last.expect("a response"))
}

/// Publishes two push chunks, one past its time to live, and waits for their dead letters.
async fn fail_two_chunks(harness: &Harness, client: &Client) -> PushChunk {
    harness.set_verdict(Verdict::Term("status 400"));
    let mut expired = harness.plan(9, &["ann", "bob"]).await;
    expired.expires_at_us = Timestamp::now().minus(Duration::from_secs(1)).0;
    harness.publish(&expired).await;
    harness.publish(&harness.plan(10, &["ann"]).await).await;
    let listed = dead_letters(client, 2).await;
    let of_expired = listed.iter().find(|one| one.post_id == 9).unwrap();
    assert_eq!(
        of_expired.push_expire_time,
        Some(herald_proto::timestamp_to_proto(Timestamp(expired.expires_at_us)))
    );
    harness.set_verdict(Verdict::Ack);
    expired
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_tells_how_many_pushes_have_expired() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    let expired = fail_two_chunks(&harness, client).await;

    let preview = redrive_all(client, true, None).await.unwrap().redrive.unwrap();
    assert_eq!((preview.selected_count, preview.expired_count), (2, 1));
    let preview = redrive_all(client, true, Some(60))
        .await
        .unwrap()
        .redrive
        .unwrap();
    assert_eq!((preview.selected_count, preview.expired_count), (2, 0));
    assert_eq!(preview.push_ttl.unwrap().seconds, 60);

    let done = redrive_all(client, false, None).await.unwrap().redrive.unwrap();
    assert_eq!((done.resolved_count, done.expired_count), (2, 1));
    assert_eq!(done.push_ttl, None);
    // The message is the original one: its worker counts the pushes as expired.
    let payloads: Vec<_> = harness.received().into_iter().map(|one| one.payload).collect();
    let original = expired.encode_to_vec();
    assert_eq!(payloads.iter().filter(|payload| **payload == original).count(), 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_gives_a_new_time_to_live() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    let expired = fail_two_chunks(&harness, client).await;
    let before = Timestamp::now();
    let done = redrive_all(client, false, Some(3_600))
        .await
        .unwrap()
        .redrive
        .unwrap();
    assert_eq!((done.resolved_count, done.expired_count), (2, 0));
    assert_eq!(done.push_ttl.unwrap().seconds, 3_600);
    let redriven: Vec<_> = harness
        .received()
        .into_iter()
        .filter(|one| one.dead_letter.is_some())
        .map(|one| PushChunk::decode(&one.payload[..]).unwrap())
        .collect();
    assert_eq!(redriven.len(), 2);
    let ttl = Duration::from_hours(1);
    for chunk in &redriven {
        let expires_at = Timestamp(chunk.expires_at_us);
        assert!(expires_at >= before.plus(ttl) && expires_at <= Timestamp::now().plus(ttl));
    }
    let of_expired = redriven.iter().find(|chunk| chunk.post_id == 9).unwrap();
    let unchanged = PushChunk {
        expires_at_us: expired.expires_at_us,
        ..of_expired.clone()
    };
    assert_eq!(unchanged, expired);

    for out_of_range in [0, 28 * 86_400 + 1] {
        let error = redrive_all(client, true, Some(out_of_range)).await.unwrap_err();
        assert_eq!(
            (error.code(), &reason(&error)[..]),
            (Code::InvalidArgument, "INVALID_FIELD")
        );
    }
    service.stop().await;
}

/// Recipients of the same chunk that wait after the redrive have the new time to live too.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_fails_again_keeps_its_new_time_to_live() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    let expired = fail_two_chunks(&harness, client).await;
    harness.set_verdict(Verdict::Term("status 400"));
    let before = Timestamp::now();
    let failed = redrive_all(client, false, Some(3_600)).await.unwrap();
    assert_eq!(failed.redrive.unwrap().failed_count, 2);
    harness.set_verdict(Verdict::Ack);

    let preview = redrive_all(client, true, None).await.unwrap().redrive.unwrap();
    assert_eq!((preview.selected_count, preview.expired_count), (2, 0));
    let done = redrive_all(client, false, None).await.unwrap().redrive.unwrap();
    assert_eq!((done.resolved_count, done.expired_count), (2, 0));
    let received = harness.received();
    let mut chunks = received
        .iter()
        .map(|one| PushChunk::decode(&one.payload[..]).unwrap());
    let last = chunks.rfind(|chunk| chunk.post_id == expired.post_id);
    assert!(Timestamp(last.unwrap().expires_at_us) >= before.plus(Duration::from_hours(1)));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_has_the_largest_groups_and_the_number_of_all() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    let author = harness.author().await;
    let publishing = (1..=1_003_u64).map(async |sequence| {
        let mut entry = dlq_entry(author, sequence);
        // Numbers don't tell groups apart, letters do. The last three dead letters are of one group.
        let number = sequence.min(1_001).to_string().into_bytes();
        let word: String = number
            .iter()
            .map(|digit| char::from(digit - b'0' + b'g'))
            .collect();
        entry.reason = format!("push failed: {word}");
        harness.publish_dead_letter(&entry, &sequence.to_string()).await;
    });
    futures::future::join_all(publishing).await;
    until(async || total(client).await == 1_003).await;

    let preview = redrive_all(client, true, None).await.unwrap();
    assert_eq!((preview.groups.len(), preview.group_count), (1_000, 1_001));
    assert_eq!(preview.groups[0].dead_letter_count, 3);
    assert_eq!(preview.redrive.unwrap().selected_count, 1_003);
    let request = v1::DiscardDeadLettersRequest {
        selection: Some(select_all()),
        dry_run: true,
    };
    let preview = client
        .clone()
        .discard_dead_letters(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((preview.groups.len(), preview.group_count), (1_000, 1_001));
    assert_eq!(preview.discarded_count, 1_003);
    assert_eq!(get(client, 1).await.dead_letter.unwrap().redrive_count, 0);
    service.stop().await;
}

//! Failed messages become dead letters, which operators list, show, redrive and discard with the command line.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use futures::TryStreamExt as _;
use harness::{Clients, Herald, Options, ack_wait_variables, until, until_some};
use herald_mesh::{Mesh, RawMessage, streams};
use herald_proto::v1::{self, DeadLetterOperationState, DeadLetterState};
use herald_push_sink::{InjectedFailure, Running};
use http::StatusCode;
use serde_json::Value;

use crate::HERALD;

const LIMIT: Duration = Duration::from_mins(1);

/// Ann follows bob with notifications and has a webhook at the sink.
async fn subscribe_ann_to_bob(herald: &Herald, sink: &Running) {
    herald.cli(&["follow", "ann", "bob", "--notify"]).await;
    let webhook = sink.webhook("ann");
    let added = [
        "device",
        "add",
        "ann",
        "--webhook",
        &webhook.url,
        "--secret",
        &webhook.secret,
    ];
    herald.cli(&added).await;
}

fn private_endpoints_allowed() -> Options {
    Options {
        arguments: vec!["--allow-private-endpoints".into()],
        ..Options::default()
    }
}

async fn list_dead_letters(herald: &Herald, state: &str) -> Vec<Value> {
    let page = [
        "dlq",
        "list",
        "--oldest-first",
        "--page-size",
        "1000",
        "--state",
        state,
    ];
    let page = herald.cli(&page).await;
    page["dead_letters"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_message_becomes_a_dead_letter_at_once() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let broker = jetstream::new(herald.broker().await);
    let garbage = b"\x0a\xff\xff\xff\xff\x0fgarbage".as_slice();
    let published = broker.publish("timeline.v1.deliver.normal", garbage.into());
    published.await.unwrap().await.unwrap();
    let sent = Instant::now();
    let clients = herald.clients().await;
    let dead_letter = until_some("the dead letter is listed", LIMIT, || async {
        let mut client = clients.dead_letters();
        let listed = client
            .list_dead_letters(v1::ListDeadLettersRequest::default())
            .await;
        listed.unwrap().into_inner().dead_letters.pop()
    })
    .await;
    // Printed, not asserted: the promise of 2 s doesn't hold on an overloaded test machine.
    eprintln!("poison message to dead letter: {:?}", sent.elapsed());
    assert_eq!(dead_letter.cause(), v1::DeadLetterCause::Unreadable);

    let listed = list_dead_letters(&herald, "open").await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["consumer"], "timeline-normal");
    let id = dead_letter.dead_letter_id.to_string();
    let shown = herald.cli(&["dlq", "show", &id]).await;
    assert_eq!(shown["payload_base64"], "Cv////8PZ2FyYmFnZQ==");

    // A redrive can't make the message decodable: the dead letter is open again, and the redrive reports a failure.
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(v1::DeadLetterSelection {
            dead_letter_ids: vec![dead_letter.dead_letter_id],
            ..Default::default()
        }),
        ..Default::default()
    };
    let redrive = redrive(&clients, request).await;
    assert_eq!(
        (redrive.resolved_count, redrive.failed_count),
        (0, 1),
        "{redrive:?}"
    );
    let discarded = herald.cli(&["dlq", "discard", &id, "--yes"]).await;
    assert_eq!(discarded["discarded_count"], 1);
    let log = herald.cli(&["dlq", "log"]).await;
    let kinds: Vec<_> = log["operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|operation| &operation["kind"])
        .collect();
    assert_eq!(kinds, ["discard", "redrive"], "{log}");
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
}

/// Redrives dead letters and returns the outcome.
async fn redrive(clients: &Clients, request: v1::RedriveDeadLettersRequest) -> v1::Redrive {
    let mut answers = clients
        .dead_letters()
        .redrive_dead_letters(request)
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await.unwrap() {
        last = answer.redrive;
    }
    last.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_is_redriven_and_delivered_once() {
    let herald = Herald::start(HERALD, private_endpoints_allowed()).await;
    let sink = Running::start().await.unwrap();
    subscribe_ann_to_bob(&herald, &sink).await;
    let refuse = InjectedFailure {
        status: StatusCode::BAD_REQUEST,
        retry_after: None,
        times: None,
    };
    sink.fail("ann", refuse);
    let posted = herald
        .cli(&["post", "--author", "bob", "--text", "refused"])
        .await;
    let post = posted["post_id"].as_u64().unwrap();

    let dead_letter = until_some("the dead letter is listed", LIMIT, || async {
        list_dead_letters(&herald, "open").await.pop()
    })
    .await;
    assert_eq!(dead_letter["post_id"], post);
    assert_eq!(dead_letter["author_id"], "bob");
    assert_eq!(
        (&dead_letter["channel"], &dead_letter["undelivered_count"]),
        (&"push".into(), &1.into())
    );
    assert!(
        dead_letter["reason"]
            .as_str()
            .unwrap()
            .contains("webhook status 400"),
        "{dead_letter}"
    );
    let id = dead_letter["dead_letter_id"].to_string();
    let shown = herald.cli(&["dlq", "show", &id]).await;
    assert_eq!(shown["undelivered_user_ids"], serde_json::json!(["ann"]));
    let delivery = |state: &'static str| {
        let (herald, post) = (&herald, post.to_string());
        async move { herald.cli(&["delivery", &post]).await["channels"]["push"][format!("{state}_count")].clone() }
    };
    assert_eq!(delivery("dead").await, 1);

    let group = dead_letter["group_id"].as_str().unwrap();
    let plan = herald
        .cli(&["dlq", "redrive", "--group", group, "--dry-run"])
        .await;
    assert_eq!(
        (&plan["selected_count"], plan["groups"].as_array().unwrap().len()),
        (&1.into(), 1)
    );
    sink.recover("ann");
    let done = herald.cli(&["dlq", "redrive", "--group", group]).await;
    assert_eq!(
        (&done["state"], &done["resolved_count"]),
        (&"done".into(), &1.into()),
        "{done}"
    );
    let received = sink.wait_for(1).await;
    assert_eq!(
        (received[0].post_id, &received[0].recipient_id[..]),
        (post, "ann")
    );
    let resolved = list_dead_letters(&herald, "resolved").await;
    assert_eq!(
        (&resolved[0]["undelivered_count"], &resolved[0]["redrive_count"]),
        (&0.into(), &1.into())
    );
    assert_eq!(
        (delivery("delivered").await, delivery("dead").await),
        (1.into(), 0.into())
    );

    // A second redrive is refused, and no device receives the push twice.
    let server = ("HERALD_OPERATOR_SERVER", &*herald.operator_url());
    let again = harness::run(HERALD, &["dlq", "redrive", &id], &[server]).await;
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("ALREADY_REDRIVEN"), "{again:?}");
    let clients = herald.clients().await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    assert_eq!((sink.summary().received, sink.summary().duplicates), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_continues_after_a_kill() {
    const POSTS: usize = 200;
    let options = Options {
        variables: ack_wait_variables(5),
        ..private_endpoints_allowed()
    };
    let mut herald = Herald::start(HERALD, options).await;
    let sink = Running::start().await.unwrap();
    subscribe_ann_to_bob(&herald, &sink).await;
    let refuse = InjectedFailure {
        status: StatusCode::BAD_REQUEST,
        retry_after: None,
        times: None,
    };
    sink.fail("ann", refuse);
    let clients = herald.clients().await;
    for number in 0..POSTS {
        let request = v1::SubmitPostRequest {
            author_id: "bob".into(),
            text: format!("post {number}"),
            ..Default::default()
        };
        clients.posts().submit_post(request).await.unwrap();
    }
    until("each post has its dead letter", LIMIT, || async {
        list_dead_letters(&herald, "open").await.len() == POSTS
    })
    .await;

    sink.recover("ann");
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(v1::DeadLetterSelection {
            all: true,
            ..Default::default()
        }),
        rate_max: 100,
        ..Default::default()
    };
    let mut answers = clients
        .dead_letters()
        .redrive_dead_letters(request)
        .await
        .unwrap()
        .into_inner();
    let begun = answers.message().await.unwrap().unwrap().redrive.unwrap();
    sink.wait_for(20).await;
    herald.kill().await;
    assert!(
        sink.summary().received < POSTS as u64,
        "the redrive ended before the kill"
    );

    herald.restart().await;
    let clients = herald.clients().await;
    let request = v1::GetRedriveRequest {
        redrive_id: begun.redrive_id,
    };
    let done = until_some("the redrive is done", LIMIT, || async {
        let answer = clients.dead_letters().get_redrive(request).await.unwrap();
        answer.into_inner().redrive.filter(|redrive| {
            redrive.state() != DeadLetterOperationState::Running && redrive.in_flight_count == 0
        })
    })
    .await;
    assert_eq!(done.state(), DeadLetterOperationState::Done);
    assert_eq!(
        (done.resolved_count, done.failed_count),
        (POSTS as u64, 0),
        "{done:?}"
    );
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    let filter = v1::DeadLetterFilter {
        state: DeadLetterState::Resolved.into(),
        ..Default::default()
    };
    let request = v1::ListDeadLettersRequest {
        filter: Some(filter),
        page_size: 1_000,
        ..Default::default()
    };
    let resolved = clients
        .dead_letters()
        .list_dead_letters(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(resolved.dead_letters.len(), POSTS);
    // Each dead letter was published to REDRIVE once, although the kill may have lost the record of it. A push may have
    // been received twice only if the kill was between the device's answer and the ledger.
    assert!(
        resolved
            .dead_letters
            .iter()
            .all(|dead_letter| dead_letter.redrive_count == 1 && dead_letter.undelivered_count == 0)
    );
    let mut received: BTreeMap<u64, u32> = BTreeMap::new();
    for push in sink.entries() {
        *received.entry(push.post_id).or_default() += 1;
    }
    assert_eq!(received.len(), POSTS);
    let mesh = Mesh::connect(&herald_mesh::Config::at(herald.nats()))
        .await
        .unwrap();
    let messages: Vec<RawMessage> = mesh
        .scan(streams::REDRIVE, None, 1, u64::MAX)
        .try_collect()
        .await
        .unwrap();
    let mut sent: BTreeMap<u64, u32> = BTreeMap::new();
    for message in messages {
        *sent.entry(message.redriven().unwrap().dead_letter).or_default() += 1;
    }
    assert_eq!(sent.len(), POSTS);
    assert!(sent.values().all(|count| *count == 1), "{sent:?}");
}

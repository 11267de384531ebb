//! WatchTimeline.

use herald_gateway::Config;
use herald_model::Recipients;
use herald_proto::v1::{self, watch_timeline_response::Event};
use tonic::{Code, Streaming, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::harness::{Setup, World, reason, until, within};

type Answers = Streaming<v1::WatchTimelineResponse>;

async fn watch(world: &World, user: &str, snapshot_size: i32, token: &str) -> Answers {
    let request = v1::WatchTimelineRequest {
        user_id: user.into(),
        snapshot_size,
        resume_token: token.into(),
    };
    world
        .timelines()
        .watch_timeline(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(answers: &mut Answers) -> v1::WatchTimelineResponse {
    within("an answer", answers.message())
        .await
        .unwrap()
        .expect("the stream goes on")
}

fn id(entry: &v1::TimelineEntry) -> u64 {
    entry.post.as_ref().unwrap().post_id
}

/// The ids of a snapshot, and the token after it.
async fn snapshot(answers: &mut Answers) -> (Vec<u64>, String) {
    let answer = next(answers).await;
    match answer.event {
        Some(Event::Snapshot(snapshot)) => (snapshot.entries.iter().map(id).collect(), answer.resume_token),
        other => panic!("no snapshot: {other:?}"),
    }
}

/// The id of an entry, and the token after it.
async fn entry(answers: &mut Answers) -> (u64, String) {
    let answer = next(answers).await;
    match answer.event {
        Some(Event::Entry(entry)) => (id(&entry), answer.resume_token),
        other => panic!("no entry: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_gets_a_snapshot_then_live_entries_and_goes_on_where_it_was() {
    let world = World::start().await;
    for text in ["one", "two", "three"] {
        let post = world.post("107", text).await;
        world.deliver(post, "reader", true).await;
    }
    let mut answers = watch(&world, "reader", 2, "").await;
    assert_eq!(snapshot(&mut answers).await.0, [3, 2]);
    assert_eq!(world.metrics.watchers.get(), 1);

    let four = world.post("107", "four").await;
    let five = world.post("107", "five").await;
    let six = world.post("107", "six").await;
    // Somebody else's entry is not shown, and a repeated message shows nothing twice.
    world.deliver(five, "other", true).await;
    world.deliver(four, "reader", true).await;
    world.deliver(four, "reader", true).await;
    world.deliver(six, "reader", true).await;
    assert_eq!(entry(&mut answers).await.0, four);
    let (last, token) = entry(&mut answers).await;
    assert_eq!(last, six);
    drop(answers);
    until("the watch ends", async || world.metrics.watchers.get() == 0).await;

    // Five becomes visible late, after the greater six; seven is new.
    let seven = world.post("107", "seven").await;
    world.deliver(five, "reader", true).await;
    world.deliver(seven, "reader", true).await;
    let mut resumed = watch(&world, "reader", 1, &token).await;
    let (missed, token) = snapshot(&mut resumed).await;
    assert_eq!(missed, [seven, five]);
    // Nothing new: nothing again.
    let mut resumed = watch(&world, "reader", 1, &token).await;
    assert_eq!(snapshot(&mut resumed).await.0, Vec::<u64>::new());
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_leaves_out_muted_authors_and_deleted_posts() {
    let world = World::start().await;
    let mut answers = watch(&world, "reader", 0, "").await;
    assert_eq!(snapshot(&mut answers).await.0, Vec::<u64>::new());
    let mute = v1::UpdatePreferencesRequest {
        user_id: "reader".into(),
        mute_author_ids: vec!["loud".into()],
        ..Default::default()
    };
    world.preferences().update_preferences(mute).await.unwrap();
    let loud = world.post("loud", "LOUD").await;
    let gone = world.post("quiet", "gone").await;
    let fine = world.post("quiet", "fine").await;
    world
        .posts()
        .delete_post(v1::DeletePostRequest {
            post_id: gone,
            author_id: String::new(),
        })
        .await
        .unwrap();
    for post in [loud, gone, fine] {
        world.deliver(post, "reader", true).await;
    }
    assert_eq!(entry(&mut answers).await.0, fine);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_has_heartbeats_and_finds_what_no_message_told() {
    let config = Config {
        heartbeat_ms: 100,
        ..Config::default()
    };
    let world = World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await;
    let mut answers = watch(&world, "reader", 0, "").await;
    snapshot(&mut answers).await;
    assert!(matches!(
        next(&mut answers).await.event,
        Some(Event::Heartbeat(_))
    ));
    let post = world.post("107", "unannounced").await;
    world.deliver(post, "reader", false).await;
    let found = loop {
        let answer = next(&mut answers).await;
        if let Some(Event::Entry(entry)) = answer.event {
            break id(&entry);
        }
    };
    assert_eq!(found, post);
    assert_eq!(world.metrics.live_entries_recovered.get(), 1);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_ended_and_misses_nothing() {
    let config = Config {
        watch_queue_max: 4,
        ..Setup::default().config
    };
    let world = World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await;
    // A small window, so that little is on its way when the reader stops.
    let channel = Endpoint::from_shared(format!("http://{}", world.address))
        .unwrap()
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .connect_lazy();
    let mut client = v1::timeline_service_client::TimelineServiceClient::new(channel);
    let request = v1::WatchTimelineRequest {
        user_id: "reader".into(),
        ..Default::default()
    };
    let mut answers = client.watch_timeline(request).await.unwrap().into_inner();
    let (_, mut token) = snapshot(&mut answers).await;

    let mut sent = Vec::new();
    let text = "x".repeat(10_000);
    while world.metrics.watchers_slow.get() == 0 {
        assert!(sent.len() < 1_000, "memory without end");
        let post = world.post("107", &text).await;
        world.deliver(post, "reader", true).await;
        sent.push(post);
    }
    let mut got = Vec::new();
    let status = loop {
        match within("the stream's end", answers.message()).await {
            Ok(Some(answer)) => {
                token = answer.resume_token;
                if let Some(Event::Entry(entry)) = answer.event {
                    got.push(id(&entry));
                }
            }
            Ok(None) => panic!("ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "SLOW_READER")
    );
    assert!(status.get_details_retry_info().is_some());
    assert!(got.len() < sent.len());
    let mut resumed = watch(&world, "reader", 0, &token).await;
    let (mut rest, _) = snapshot(&mut resumed).await;
    rest.reverse();
    got.extend(rest);
    assert_eq!(got, sent);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_only_so_many_watchers_and_a_shutdown_ends_them() {
    let config = Config {
        watchers_max: 1,
        ..Setup::default().config
    };
    let world = World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await;
    let mut answers = watch(&world, "reader", 0, "").await;
    snapshot(&mut answers).await;
    let request = v1::WatchTimelineRequest {
        user_id: "other".into(),
        ..Default::default()
    };
    let status = world.timelines().watch_timeline(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "TOO_MANY_WATCHERS")
    );

    world.shutdown.cancel();
    let status = within("the end", answers.message()).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watchers_share_one_subscription() {
    let world = World::start().await;
    let mut watches = Vec::new();
    for i in 0..50 {
        let mut answers = watch(&world, &format!("reader-{}", i % 25), 0, "").await;
        snapshot(&mut answers).await;
        watches.push(answers);
    }
    let mut keys = Vec::new();
    for i in 0..25 {
        keys.push(world.key(&format!("reader-{i}")).await);
    }
    keys.sort();
    let recipients = Recipients::from_sorted(keys);
    let post = world.post("107", "to all").await;
    world
        .stores
        .timelines
        .deliver(post_id(post), recipients.clone())
        .await
        .unwrap()
        .await
        .unwrap();
    world.publish_live(post, &recipients).await;
    for answers in &mut watches {
        assert_eq!(entry(answers).await.0, post);
    }
    assert_eq!(world.metrics.live_chunks.get(), 1, "one subscription");
    assert_eq!(world.metrics.live_entries.get(), 50);
    world.stop().await.unwrap();
}

fn post_id(id: u64) -> herald_model::PostId {
    herald_model::PostId(id)
}

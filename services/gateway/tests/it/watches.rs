//! WatchTimeline.

use herald_gateway::Config;
use herald_model::{PostId, Recipients, UserId, time::Timestamp};
use herald_proto::v1::{self, watch_timeline_response::Event};
use herald_store::Archived;
use tonic::{Code, Streaming, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::harness::{Setup, World, reason, wait_until, with_timeout};

type Responses = Streaming<v1::WatchTimelineResponse>;

async fn watch(world: &World, user: &str, snapshot_size: i32, token: &str) -> Responses {
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

async fn next_response(responses: &mut Responses) -> v1::WatchTimelineResponse {
    with_timeout("a response", responses.message())
        .await
        .unwrap()
        .expect("the stream continues")
}

fn id(entry: &v1::TimelineEntry) -> u64 {
    entry.post.as_ref().unwrap().post_id
}

/// Receives a snapshot; returns its ids and its token.
async fn snapshot(responses: &mut Responses) -> (Vec<u64>, String) {
    let response = next_response(responses).await;
    match response.event {
        Some(Event::Snapshot(snapshot)) => (snapshot.entries.iter().map(id).collect(), response.resume_token),
        other => panic!("no snapshot: {other:?}"),
    }
}

/// Receives an entry; returns its id and its token.
async fn entry(responses: &mut Responses) -> (u64, String) {
    let response = next_response(responses).await;
    match response.event {
        Some(Event::Entry(entry)) => (id(&entry), response.resume_token),
        other => panic!("no entry: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sends_a_snapshot_then_live_entries_and_can_be_resumed() {
    let world = World::start().await;
    for text in ["one", "two", "three"] {
        let post = world.post("107", text).await;
        world.deliver(post, "reader", true).await;
    }
    let mut responses = watch(&world, "reader", 2, "").await;
    assert_eq!(snapshot(&mut responses).await.0, [3, 2]);
    assert_eq!(world.metrics.watchers.get(), 1);

    let four = world.post("107", "four").await;
    let five = world.post("107", "five").await;
    let six = world.post("107", "six").await;
    // Entries of other users are not sent, and a repeated live message sends no duplicate.
    world.deliver(five, "other", true).await;
    world.deliver(four, "reader", true).await;
    world.deliver(four, "reader", true).await;
    world.deliver(six, "reader", true).await;
    assert_eq!(entry(&mut responses).await.0, four);
    let (last, token) = entry(&mut responses).await;
    assert_eq!(last, six);
    drop(responses);
    wait_until("the watch ends", async || world.metrics.watchers.get() == 0).await;

    // Five becomes visible late, after the greater six; seven is new.
    let seven = world.post("107", "seven").await;
    world.deliver(five, "reader", true).await;
    world.deliver(seven, "reader", true).await;
    let mut resumed = watch(&world, "reader", 1, &token).await;
    let (missed, token) = snapshot(&mut resumed).await;
    assert_eq!(missed, [seven, five]);
    // A second resume without new posts sends an empty snapshot.
    let mut resumed = watch(&world, "reader", 1, &token).await;
    assert_eq!(snapshot(&mut resumed).await.0, Vec::<u64>::new());
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_an_unknown_user_makes_none_and_shows_its_first_posts() {
    let world = World::start().await;
    let post = world.post("107", "known").await;
    let last = world.stores.users.last_key().await.unwrap();
    let mut early = watch(&world, "newcomer", 0, "").await;
    let mut second = watch(&world, "newcomer", 0, "").await;
    for responses in [&mut early, &mut second] {
        assert_eq!(snapshot(responses).await.0, Vec::<u64>::new());
    }
    assert_eq!(world.metrics.watchers.get(), 2);
    assert_eq!(world.stores.users.last_key().await.unwrap(), last);

    // The first post is in the store when its live message is lost or comes before the key is known.
    world.deliver(post, "newcomer", false).await;
    assert_eq!(entry(&mut early).await.0, post);
    assert_eq!(entry(&mut second).await.0, post);
    // From then on the watch is like any other.
    let next = world.post("107", "next").await;
    world.deliver(next, "newcomer", true).await;
    assert_eq!(entry(&mut early).await.0, next);
    drop((early, second));
    wait_until("the watches end", async || world.metrics.watchers.get() == 0).await;
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_skips_muted_authors_and_deleted_posts() {
    let world = World::start().await;
    let mut responses = watch(&world, "reader", 0, "").await;
    assert_eq!(snapshot(&mut responses).await.0, Vec::<u64>::new());
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
            any_author: true,
            ..Default::default()
        })
        .await
        .unwrap();
    for post in [loud, gone, fine] {
        world.deliver(post, "reader", true).await;
    }
    assert_eq!(entry(&mut responses).await.0, fine);
    world.stop().await.unwrap();
}

/// Receives a removal; returns its post id and reason, and its token.
async fn removal(responses: &mut Responses) -> ((u64, v1::RemovalReason), String) {
    let response = next_response(responses).await;
    match response.event {
        Some(Event::Removal(removal)) => ((removal.post_id, removal.reason()), response.resume_token),
        other => panic!("no removal: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_of_entries_that_are_taken_back_and_so_does_a_resume() {
    // Comparisons with the store are a minute apart, so live messages bring the removals.
    let world = World::start().await;
    let gone = world.post("quiet", "gone").await;
    let loud = world.post("loud", "LOUD").await;
    for post in [gone, loud] {
        world.deliver(post, "reader", false).await;
    }
    let mut responses = watch(&world, "reader", 0, "").await;
    let (ids, before) = snapshot(&mut responses).await;
    assert_eq!(ids, [loud, gone]);
    let unseen = world.post("quiet", "deleted before it is sent").await;
    let live = world.post("quiet", "live").await;
    world.deliver(live, "reader", true).await;
    assert_eq!(entry(&mut responses).await.0, live);

    let delete = async |post_id| {
        let request = v1::DeletePostRequest {
            post_id,
            any_author: true,
            ..Default::default()
        };
        world.posts().delete_post(request).await.unwrap();
    };
    let deleted = v1::RemovalReason::Deleted;
    delete(unseen).await;
    delete(gone).await;
    assert_eq!(removal(&mut responses).await.0, (gone, deleted));
    delete(live).await;
    assert_eq!(removal(&mut responses).await.0, (live, deleted));
    let mute = v1::UpdatePreferencesRequest {
        user_id: "reader".into(),
        mute_author_ids: vec!["loud".into()],
        ..Default::default()
    };
    world.preferences().update_preferences(mute).await.unwrap();
    let (muted, after) = removal(&mut responses).await;
    assert_eq!(muted, (loud, v1::RemovalReason::Muted));

    // A resume sends the removals that its token lacks.
    let mut resumed = watch(&world, "reader", 0, &before).await;
    assert_eq!(snapshot(&mut resumed).await.0, Vec::<u64>::new());
    assert_eq!(removal(&mut resumed).await.0, (gone, deleted));
    assert_eq!(removal(&mut resumed).await.0.0, loud);
    let mut resumed = watch(&world, "reader", 0, &after).await;
    assert_eq!(snapshot(&mut resumed).await.0, Vec::<u64>::new());
    let next = world.post("quiet", "next").await;
    world.deliver(next, "reader", true).await;
    assert_eq!(entry(&mut resumed).await.0, next);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_with_the_store_finds_a_removal_whose_live_message_was_lost() {
    let world = World::start_with(Setup {
        config: Config {
            heartbeat_ms: 200,
            ..Config::default()
        },
        ..Setup::default()
    })
    .await;
    let post = world.post("quiet", "gone").await;
    world.deliver(post, "reader", false).await;
    let mut responses = watch(&world, "reader", 0, "").await;
    assert_eq!(snapshot(&mut responses).await.0, [post]);
    world.wait_until_archived().await;
    let deletion = Archived::Deleted {
        post: post_id(post),
        at: Timestamp::now(),
    };
    world.stores.posts.archive(&[deletion]).await.unwrap();
    let removed = loop {
        match next_response(&mut responses).await.event.unwrap() {
            Event::Heartbeat(_) => {}
            Event::Removal(removal) => break removal,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (removed.post_id, removed.reason()),
        (post, v1::RemovalReason::Deleted)
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_watch_sends_heartbeats_and_recovers_lost_live_messages() {
    let config = Config {
        heartbeat_ms: 100,
        ..Config::default()
    };
    let world = World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await;
    let mut responses = watch(&world, "reader", 0, "").await;
    snapshot(&mut responses).await;
    assert!(matches!(
        next_response(&mut responses).await.event,
        Some(Event::Heartbeat(_))
    ));
    let post = world.post("107", "unannounced").await;
    world.deliver(post, "reader", false).await;
    let found = loop {
        let response = next_response(&mut responses).await;
        if let Some(Event::Entry(entry)) = response.event {
            break id(&entry);
        }
    };
    assert_eq!(found, post);
    assert_eq!(world.metrics.live_entries_recovered.get(), 1);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_ended_and_misses_nothing_after_a_resume() {
    let config = Config {
        watch_queue_max: 4,
        ..Setup::default().config
    };
    let world = World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await;
    // A small flow-control window limits the bytes in flight when the reader stops.
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
    let mut responses = client.watch_timeline(request).await.unwrap().into_inner();
    let (_, mut token) = snapshot(&mut responses).await;

    let mut sent = Vec::new();
    let text = "x".repeat(10_000);
    while world.metrics.watchers_slow.get() == 0 {
        assert!(sent.len() < 1_000, "the queue must be bounded");
        let post = world.post("107", &text).await;
        world.deliver(post, "reader", true).await;
        sent.push(post);
    }
    let mut got = Vec::new();
    let status = loop {
        match with_timeout("the end of the stream", responses.message()).await {
            Ok(Some(response)) => {
                token = response.resume_token;
                if let Some(Event::Entry(entry)) = response.event {
                    got.push(id(&entry));
                }
            }
            Ok(None) => panic!("the stream ended without a status"),
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
async fn watchers_are_limited_and_a_shutdown_ends_them() {
    let config = Config {
        watchers_max: 1,
        ..Setup::default().config
    };
    let world = World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await;
    let mut responses = watch(&world, "reader", 0, "").await;
    snapshot(&mut responses).await;
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
    let status = with_timeout("the end of the stream", responses.message())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watchers_share_one_subscription() {
    let world = World::start().await;
    let mut keys = Vec::new();
    for i in 0..25 {
        keys.push(world.key(&format!("reader-{i}")).await);
    }
    let mut watches = Vec::new();
    for i in 0..50 {
        let mut responses = watch(&world, &format!("reader-{}", i % 25), 0, "").await;
        snapshot(&mut responses).await;
        watches.push(responses);
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
        .durable
        .await
        .unwrap();
    world.publish_live(post, &recipients).await;
    for responses in &mut watches {
        assert_eq!(entry(responses).await.0, post);
    }
    assert_eq!(world.metrics.live_chunks.get(), 1, "one subscription");
    assert_eq!(world.metrics.live_entries.get(), 50);
    world.stop().await.unwrap();
}

fn post_id(id: u64) -> herald_model::PostId {
    herald_model::PostId(id)
}

/// The post was read for one watcher, and then deleted through another gateway, whose live message has not arrived.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_another_watcher_got_is_not_sent_after_its_deletion() {
    let world = World::start().await;
    let mut first = watch(&world, "first", 1, "").await;
    let mut second = watch(&world, "second", 1, "").await;
    snapshot(&mut first).await;
    snapshot(&mut second).await;
    let post = world.post("107", "text").await;
    world.deliver(post, "first", true).await;
    assert_eq!(entry(&mut first).await.0, post);
    wait_until("the post is archived", async || {
        world.stores.posts.get(&[PostId(post)]).await.unwrap()[0].is_some()
    })
    .await;
    let deletion = Archived::Deleted {
        post: PostId(post),
        at: Timestamp::now(),
    };
    world.stores.posts.archive(&[deletion]).await.unwrap();
    world.deliver(post, "second", true).await;
    let later = world.post("107", "later").await;
    world.deliver(later, "second", true).await;
    assert_eq!(entry(&mut second).await.0, later);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_an_erased_user_ends() {
    let world = World::start_with(Setup {
        config: Config {
            heartbeat_ms: 100,
            ..Setup::default().config
        },
        ..Setup::default()
    })
    .await;
    for user in ["reader", "other"] {
        world.key(user).await;
    }
    let mut erased = watch(&world, "reader", 0, "").await;
    let mut other = watch(&world, "other", 0, "").await;
    snapshot(&mut erased).await;
    snapshot(&mut other).await;
    let user = UserId::new("reader").unwrap();
    let begun = world.stores.erasures.begin(&user, "ops", Timestamp::now()).await;
    assert!(begun.unwrap().is_some());
    let ended = loop {
        match with_timeout("the end", erased.message()).await {
            Ok(response) => assert!(
                matches!(response.unwrap().event, Some(Event::Heartbeat(_))),
                "nothing is sent"
            ),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::NotFound);
    assert_eq!(reason(&ended), "USER_ERASED");
    let post = world.post("107", "text").await;
    world.deliver(post, "other", true).await;
    loop {
        let response = next_response(&mut other).await;
        match response.event {
            Some(Event::Entry(entry)) => break assert_eq!(id(&entry), post),
            other => assert!(matches!(other, Some(Event::Heartbeat(_))), "{other:?}"),
        }
    }
    world.stop().await.unwrap();
}

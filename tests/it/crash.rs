//! Processes are killed under load: every accepted post is on every follower's timeline exactly once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use harness::{Clients, Herald, Options, ack_wait_variables, until};
use herald_proto::v1::{self, post_service_client::PostServiceClient};
use tonic::{Code, transport::Endpoint};

use crate::HERALD;

/// Limit for all accepted posts to settle after the last fault; includes AckWait and back-off.
const LIMIT: Duration = Duration::from_mins(2);
/// The ack wait of 2 s, and time for a slow machine. With an ack wait of 30 s the post came after 29 s.
const SHOWN_AGAIN_LIMIT: Duration = Duration::from_secs(15);
const AUTHORS: usize = 8;
const READERS: usize = 300;
/// Concurrent writers.
const WRITERS: usize = 8;

/// An AckWait so short that messages of a killed process are redelivered within the test.
pub(crate) fn options() -> Options {
    Options {
        variables: ack_wait_variables(5),
        ..Options::default()
    }
}

fn reader(n: usize) -> String {
    format!("reader{n}")
}

/// Whether a reader follows an author. No two authors have the same followers.
fn follows(reader: usize, author: usize) -> bool {
    !reader.is_multiple_of(author + 2)
}

async fn import_follows(clients: &Clients) {
    let follows =
        (0..READERS).flat_map(|r| (0..AUTHORS).filter(move |a| follows(r, *a)).map(move |a| (r, a)));
    let follows = follows
        .map(|(r, a)| v1::Follow {
            follower_id: reader(r),
            author_id: format!("author{a}"),
            notify: None,
        })
        .collect();
    let batch = v1::ImportFollowsRequest { follows };
    let answer = clients
        .graph()
        .import_follows(tokio_stream::iter([batch]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.failed_count, 0);
}

/// Accepted posts: id → author.
type Accepted = Arc<Mutex<BTreeMap<u64, usize>>>;

/// Submits posts until `stop` is set. Each post is retried with the same request id until it is accepted, so each post
/// is exactly one obligation whatever happened to the earlier attempts.
async fn write_posts(
    url: String,
    writer: usize,
    accepted: Accepted,
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    let channel = Endpoint::from_shared(url).unwrap().connect_lazy();
    let posts = PostServiceClient::new(channel);
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let author = (writer + n) % AUTHORS;
        let request = v1::SubmitPostRequest {
            request_id: uuid::Uuid::new_v4().to_string(),
            author_id: format!("author{author}"),
            text: format!("post {n} of writer {writer}"),
            ..Default::default()
        };
        n += 1;
        loop {
            let mut call = tonic::Request::new(request.clone());
            call.set_timeout(Duration::from_secs(2));
            match posts.clone().submit_post(call).await {
                Ok(answer) => {
                    let before = accepted
                        .lock()
                        .unwrap()
                        .insert(answer.into_inner().post_id, author);
                    assert_eq!(before, None, "two requests got the same post id");
                    count.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(status) => assert!(
                    !matches!(
                        status.code(),
                        Code::InvalidArgument | Code::Internal | Code::DataLoss
                    ),
                    "a fault must not be reported as an error of the request: {status:?}"
                ),
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Compares every timeline with the accepted posts; returns the differences.
async fn wrong_timelines(clients: &Clients, accepted: &BTreeMap<u64, usize>) -> Vec<String> {
    stream::iter(0..READERS)
        .map(|r| {
            let clients = clients.clone();
            async move {
                let found = read_timeline(&clients, &reader(r)).await;
                let mut wanted: Vec<u64> = accepted
                    .iter()
                    .filter(|(_, a)| follows(r, **a))
                    .map(|(id, _)| *id)
                    .collect();
                wanted.reverse();
                wanted.truncate(800);
                (found != wanted).then(|| {
                    let missing: Vec<_> = wanted.iter().filter(|id| !found.contains(id)).take(5).collect();
                    let extra: Vec<_> = found.iter().filter(|id| !wanted.contains(id)).take(5).collect();
                    format!(
                        "{}: {} found, {} expected, missing {missing:?}, extra {extra:?}",
                        reader(r),
                        found.len(),
                        wanted.len()
                    )
                })
            }
        })
        .buffer_unordered(16)
        .filter_map(|wrong| async move { wrong })
        .collect()
        .await
}

async fn read_timeline(clients: &Clients, user: &str) -> Vec<u64> {
    let mut posts = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListTimelineRequest {
            user_id: user.into(),
            page_size: 200,
            page_token,
        };
        let page = clients
            .timelines()
            .list_timeline(request)
            .await
            .unwrap()
            .into_inner();
        posts.extend(
            page.entries
                .into_iter()
                .filter_map(|entry| entry.post)
                .map(|post| post.post_id),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return posts;
        }
    }
}

/// Injects `fault` `rounds` times under load, each time after more posts were accepted; then checks everything. Returns
/// the mesh.
pub(crate) async fn inject_under_load(
    mut herald: Herald,
    rounds: usize,
    fault: impl AsyncFn(&mut Herald),
) -> Herald {
    import_follows(&herald.clients().await).await;
    let (accepted, count) = (Accepted::default(), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| {
            tokio::spawn(write_posts(
                herald.url(),
                n,
                accepted.clone(),
                count.clone(),
                stop.clone(),
            ))
        })
        .collect();
    for round in 0..rounds {
        let goal = count.load(Ordering::Relaxed) + 60;
        until(
            &format!("posts are accepted before fault {round}"),
            LIMIT,
            || async { count.load(Ordering::Relaxed) >= goal },
        )
        .await;
        fault(&mut herald).await;
    }
    let goal = count.load(Ordering::Relaxed) + 60;
    until("posts are accepted after the last fault", LIMIT, || async {
        count.load(Ordering::Relaxed) >= goal
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        tokio::time::timeout(LIMIT, writer)
            .await
            .expect("a writer stops in time")
            .unwrap();
    }

    let clients = herald.clients().await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    let mut accepted = accepted.lock().unwrap().clone();
    assert!(accepted.len() >= 60 * rounds, "too few posts were accepted");
    assert_eq!(
        wrong_timelines(&clients, &accepted).await,
        Vec::<String>::new(),
        "{}",
        herald.log()
    );
    for post_id in accepted.keys().copied() {
        let delivery = clients
            .deliveries()
            .get_delivery(v1::GetDeliveryRequest { post_id })
            .await
            .unwrap()
            .into_inner();
        let timeline = delivery
            .channels
            .iter()
            .find(|c| c.channel() == v1::Channel::Timeline)
            .unwrap();
        assert_eq!(timeline.targeted_count, timeline.delivered_count, "{delivery:?}");
    }

    // Negative control: the checker must detect an unexpected post and a missing post.
    let first = *accepted.keys().next().unwrap();
    let author = accepted.remove(&first).unwrap();
    assert!(
        !wrong_timelines(&clients, &accepted).await.is_empty(),
        "an unexpected post is not detected"
    );
    accepted.insert(first, author);
    accepted.insert(u64::MAX, 0);
    assert!(
        !wrong_timelines(&clients, &accepted).await.is_empty(),
        "a missing post is not detected"
    );
    herald
}

#[tokio::test(flavor = "multi_thread")]
async fn herald_killed_under_load_loses_and_repeats_nothing() {
    let herald = Herald::start(HERALD, options()).await;
    inject_under_load(herald, 3, async |herald| {
        herald.kill().await;
        herald.restart().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_server_killed_under_load_loses_and_repeats_nothing() {
    let herald = Herald::start(HERALD, options()).await;
    // Only one kill: the supervisor restarts nats-server with another process id, which is not reported.
    inject_under_load(herald, 1, async |herald| herald.kill_nats()).await;
}

/// A chunk is readable before it is durable and acknowledged. The process that has it dies: another one gets the chunk
/// after the ack wait of the default configuration.
#[tokio::test(flavor = "multi_thread")]
async fn a_shown_post_is_shown_again_seconds_after_a_kill() {
    let flush_late = ("HERALD_STORE__TIMELINES__FLUSH_INTERVAL_MS", "1000");
    let options = Options {
        variables: vec![(flush_late.0.into(), flush_late.1.into())],
        ..Options::default()
    };
    let mut herald = Herald::start(HERALD, options).await;
    let clients = herald.clients().await;
    herald.cli(&["follow", "ann", "bob"]).await;
    let request = v1::SubmitPostRequest {
        author_id: "bob".into(),
        text: "shown".into(),
        ..Default::default()
    };
    let post = clients.posts().submit_post(request).await.unwrap().into_inner();
    until("the post is shown", LIMIT, || async {
        read_timeline(&clients, "ann").await == [post.post_id]
    })
    .await;
    herald.kill().await;
    herald.restart().await;
    let clients = herald.clients().await;
    until("the post is shown again", SHOWN_AGAIN_LIMIT, || async {
        read_timeline(&clients, "ann").await == [post.post_id]
    })
    .await;
}

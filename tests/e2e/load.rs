//! Posts from outside of the cluster, and the check that each of them has arrived.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use harness::Clients;
use herald_proto::v1;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

/// Authors who post.
pub(crate) const AUTHORS: usize = 4;
/// Readers. Each follows some authors; the first [`DEVICES`] have a device and get pushes of these authors.
pub(crate) const READERS: usize = 300;
/// Readers with a device: so few that the log of the receiver of their pushes stays below the size at which kubelet rotates it.
pub(crate) const DEVICES: usize = 4;
/// Time limit of one attempt at a call.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Time limit of a post with all its attempts.
const POST_LIMIT: Duration = Duration::from_mins(1);
/// Pause before the next attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Interval at which a reader looks for new posts.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) fn author(n: usize) -> String {
    format!("author{n}")
}

pub(crate) fn reader(n: usize) -> String {
    format!("reader{n}")
}

/// Whether a reader follows an author.
pub(crate) fn follows(reader: usize, author: usize) -> bool {
    author == 0 || (reader + author).is_multiple_of(3)
}

/// The public API, at one address.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    clients: Clients,
}

impl Api {
    /// Connects when it is used first, and again when the connection breaks.
    pub(crate) fn new(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(2))
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_lazy();
        Self {
            clients: Clients {
                // Operators' calls are made in a pod of the gateway: the policies close the operator port.
                operators: channel.clone(),
                channel,
            },
        }
    }

    /// Calls until there is an answer.
    pub(crate) async fn call<T, F>(
        &self,
        what: &str,
        limit: Duration,
        call: impl Fn(Clients) -> F,
    ) -> (T, u64)
    where
        F: Future<Output = Result<T, tonic::Status>>,
    {
        let end = Instant::now() + limit;
        let mut failed = 0;
        loop {
            let answer = tokio::time::timeout(CALL_LIMIT, call(self.clients.clone())).await;
            let error = match answer {
                Ok(Ok(answer)) => return (answer, failed),
                Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => {
                    panic!("{what}: {status}")
                }
                Ok(Err(status)) => status.to_string(),
                Err(_) => format!("no answer within {CALL_LIMIT:?}"),
            };
            assert!(
                Instant::now() < end,
                "{what} failed for {limit:?} in spite of {failed} retries: {error}"
            );
            failed += 1;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Imports who follows whom.
    pub(crate) async fn import_follows(&self) {
        let pairs = (0..READERS).flat_map(|r| (0..AUTHORS).map(move |a| (r, a)));
        let follows: Vec<_> = pairs
            .filter(|(r, a)| follows(*r, *a))
            .map(|(r, a)| v1::Follow {
                follower_id: reader(r),
                author_id: author(a),
                notify: Some(r < DEVICES),
            })
            .collect();
        let call = |clients: Clients| {
            let batch = v1::ImportFollowsRequest {
                follows: follows.clone(),
            };
            async move { clients.graph().import_follows(tokio_stream::iter([batch])).await }
        };
        let (answer, _) = self.call("ImportFollows", POST_LIMIT, call).await;
        assert_eq!(answer.into_inner().failed_count, 0);
    }

    /// Posts until it is accepted. Returns its id and the number of failed attempts.
    async fn post(&self, of: usize, text: &str) -> (u64, u64) {
        let request = v1::SubmitPostRequest {
            request_id: uuid::Uuid::new_v4().to_string(),
            author_id: author(of),
            text: text.into(),
            ..Default::default()
        };
        self.call("SubmitPost", POST_LIMIT, |clients| {
            let request = request.clone();
            async move { Ok(clients.posts().submit_post(request).await?.into_inner().post_id) }
        })
        .await
    }

    /// The post ids of a whole timeline, newest first.
    pub(crate) async fn timeline(&self, of: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListTimelineRequest {
                user_id: reader(of),
                page_size: 100,
                page_token: page_token.clone(),
            };
            let (page, _) = self
                .call("ListTimeline", POST_LIMIT, |clients| {
                    let request = request.clone();
                    async move { Ok(clients.timelines().list_timeline(request).await?.into_inner()) }
                })
                .await;
            ids.extend(
                page.entries
                    .iter()
                    .filter_map(|entry| Some(entry.post.as_ref()?.post_id)),
            );
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return ids;
            }
        }
    }
}

/// What was accepted.
#[derive(Debug, Default)]
pub(crate) struct Accepted {
    /// Author of each post.
    pub(crate) posts: Mutex<BTreeMap<u64, usize>>,
    /// When the answers to posts came.
    at: Mutex<BTreeMap<u64, Instant>>,
    /// Attempts that failed and were repeated.
    pub(crate) failed_attempts: AtomicU64,
    /// The longest time that a post took with all its attempts, milliseconds.
    longest_ms: AtomicU64,
    /// Times from the answer to a post until it was on a timeline, milliseconds.
    visible_ms: Mutex<Vec<u64>>,
}

impl Accepted {
    pub(crate) fn len(&self) -> usize {
        self.posts.lock().len()
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_millis(self.longest_ms.load(Ordering::Relaxed))
    }

    /// A percentile of the times until posts were visible.
    pub(crate) fn visible(&self, percent: usize) -> Duration {
        percentile(self.visible_ms.lock().clone(), percent)
    }

    fn record(&self, id: u64, of: usize, started: Instant, failed: u64) {
        let took = started.elapsed().as_millis() as u64;
        self.longest_ms.fetch_max(took, Ordering::Relaxed);
        self.failed_attempts.fetch_add(failed, Ordering::Relaxed);
        self.at.lock().insert(id, Instant::now());
        let before = self.posts.lock().insert(id, of);
        assert_eq!(before, None, "two posts got the id {id}");
    }
}

/// A percentile of times in milliseconds.
pub(crate) fn percentile(mut times: Vec<u64>, percent: usize) -> Duration {
    times.sort_unstable();
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    Duration::from_millis(times.get(index).copied().unwrap_or(0))
}

/// Authors that post, and a reader that looks, until stopped.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts the load; `pause` is the pause of each author between two posts.
    pub(crate) fn start(api: &Api, accepted: &Arc<Accepted>, name: &'static str, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for of in 0..AUTHORS {
            let (api, accepted, stop) = (api.clone(), Arc::clone(accepted), Arc::clone(&stop));
            tasks.spawn(async move {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let started = Instant::now();
                    let text = format!("post {n} of {name}");
                    let (id, failed) = api.post(of, &text).await;
                    accepted.record(id, of, started, failed);
                    tokio::time::sleep(pause).await;
                }
            });
        }
        let (api, accepted, stopped) = (api.clone(), Arc::clone(accepted), Arc::clone(&stop));
        tasks.spawn(async move { look(&api, &accepted, &stopped).await });
        Self { stop, tasks }
    }

    /// Stops the authors and waits for the answers to their last posts.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("the load does not fail");
        }
    }
}

/// Measures how long posts of author 0, whom all follow, take until a timeline shows them.
async fn look(api: &Api, accepted: &Accepted, stop: &AtomicBool) {
    let mut seen: BTreeSet<u64> = accepted.posts.lock().keys().copied().collect();
    while !stop.load(Ordering::Relaxed) {
        let shown: BTreeSet<u64> = api.timeline(READERS - 1).await.into_iter().collect();
        let at = accepted.at.lock().clone();
        for id in shown {
            if let Some(since) = at.get(&id)
                && seen.insert(id)
            {
                let ms = since.elapsed().as_millis() as u64;
                accepted.visible_ms.lock().push(ms);
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Publishes posts as fast as possible, several at a time.
pub(crate) async fn burst(api: &Api, accepted: &Arc<Accepted>, name: &str, count: usize) {
    const AT_A_TIME: usize = 32;
    let mut tasks = JoinSet::new();
    for worker in 0..AT_A_TIME {
        let (api, accepted, name) = (api.clone(), Arc::clone(accepted), name.to_owned());
        tasks.spawn(async move {
            for n in (worker..count).step_by(AT_A_TIME) {
                let started = Instant::now();
                let of = n % AUTHORS;
                let (id, failed) = api.post(of, &format!("post {n} of {name}")).await;
                accepted.record(id, of, started, failed);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("all posts are accepted");
    }
}

/// Compares the timelines of all readers with the accepted posts. Returns what is wrong.
pub(crate) async fn wrong_timelines(api: &Api, accepted: &Accepted) -> Vec<String> {
    let posts = accepted.posts.lock().clone();
    let mut wrong = Vec::new();
    for r in 0..READERS {
        let shown = api.timeline(r).await;
        let expected: Vec<u64> = posts
            .iter()
            .rev()
            .filter(|(_, of)| follows(r, **of))
            .map(|(id, _)| *id)
            .collect();
        // A timeline keeps the newest 800 posts.
        let expected = &expected[..expected.len().min(800)];
        if shown != expected {
            let missing = expected.iter().filter(|id| !shown.contains(id)).count();
            let (has, wants) = (shown.len(), expected.len());
            wrong.push(format!(
                "{} has {has} posts instead of {wants}, {missing} are missing",
                reader(r)
            ));
        }
    }
    wrong
}

//! Readers who watch their timelines, and come back with their last token whenever the stream ends or falls silent.
//!
//! They never read the timeline beside that, so that whatever a watch does not bring is seen to be missing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use herald_proto::v1::{self, watch_timeline_response::Event};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::Status;

use super::{CALL_LIMIT, Journal, RETRY_DELAY, blames_the_request, reader};
use crate::world::{HEARTBEAT, World};

/// Those who watch: the first six follow the big author only, the others four or five authors. None of them moves.
const WATCHERS: [usize; 10] = [1, 2, 4, 5, 7, 8, 3, 9, 6, 12];
/// A stream that is silent for so long is dead.
const SILENCE_MAX: Duration = HEARTBEAT.saturating_mul(5);
/// For all first snapshots.
const START_LIMIT: Duration = Duration::from_secs(30);
/// As many as an answer can hold.
const SNAPSHOT_SIZE: i32 = 200;

/// What was shown to one watcher.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watched {
    pub(crate) reader: usize,
    /// By post.
    pub(crate) entries: BTreeMap<u64, Shown>,
    /// For each return with a token of which more was shown than before the last one, which posts these were.
    pub(crate) returns: Vec<Vec<u64>>,
    /// When a stream fell silent, and when it was given up for it.
    pub(crate) silences: Vec<(Timestamp, Timestamp)>,
    snapshots: u64,
}

/// How a post was shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) text: String,
    pub(crate) at: Timestamp,
}

/// Watchers who go on until they are dropped: also when the load has ended, for what comes late.
pub(crate) struct Watchers {
    watched: Vec<Arc<Mutex<Watched>>>,
    _tasks: JoinSet<()>,
}

impl Watchers {
    /// Starts them; on return each has its first snapshot.
    pub(crate) async fn start(world: &World, journal: &Arc<Journal>) -> Self {
        let mut watched = Vec::new();
        let mut tasks = JoinSet::new();
        for reader in WATCHERS {
            let one = Arc::new(Mutex::new(Watched {
                reader,
                ..Watched::default()
            }));
            watched.push(one.clone());
            let watcher = Watcher {
                timelines: world.clients().timelines(),
                journal: journal.clone(),
                watched: one,
                token: String::new(),
            };
            tasks.spawn(watcher.run());
        }
        let started = || async { watched.iter().all(|watched| watched.lock().snapshots > 0) };
        harness::until("each watcher has a snapshot", START_LIMIT, started).await;
        Self {
            watched,
            _tasks: tasks,
        }
    }

    /// What they were shown so far.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        self.watched
            .iter()
            .map(|watched| watched.lock().clone())
            .collect()
    }
}

struct Watcher {
    timelines: v1::timeline_service_client::TimelineServiceClient<tonic::transport::Channel>,
    journal: Arc<Journal>,
    watched: Arc<Mutex<Watched>>,
    /// Of the last answer.
    token: String,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            if !self.token.is_empty() {
                let mut watched = self.watched.lock();
                // A server that is down is tried again and again.
                if watched.returns.last().map(Vec::len) != Some(watched.entries.len()) {
                    let shown = watched.entries.keys().copied().collect();
                    watched.returns.push(shown);
                }
            }
            if let Err(status) = self.watch().await
                && blames_the_request(status.code())
            {
                self.journal
                    .wrong(format!("WatchTimeline was answered with {status:?}"));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// One stream, until it ends.
    async fn watch(&mut self) -> Result<(), Status> {
        let request = v1::WatchTimelineRequest {
            user_id: reader(self.watched.lock().reader),
            snapshot_size: SNAPSHOT_SIZE,
            resume_token: self.token.clone(),
        };
        let call = self.timelines.watch_timeline(request);
        let Ok(answers) = tokio::time::timeout(CALL_LIMIT, call).await else {
            return Ok(());
        };
        let mut answers = answers?.into_inner();
        let mut first = true;
        loop {
            let since = Timestamp::now();
            match tokio::time::timeout(SILENCE_MAX, answers.message()).await {
                Ok(Ok(Some(answer))) => self.take(answer, first),
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(status)) => return Err(status),
                Err(_) => {
                    let silence = (since, Timestamp::now());
                    self.watched.lock().silences.push(silence);
                    return Ok(());
                }
            }
            first = false;
        }
    }

    fn take(&mut self, answer: v1::WatchTimelineResponse, first: bool) {
        let mut watched = self.watched.lock();
        let name = reader(watched.reader);
        if first != matches!(answer.event, Some(Event::Snapshot(_))) {
            let what = format!("the snapshot of {name} did not come first and once");
            self.journal.wrong(what);
        }
        let entries = match answer.event {
            Some(Event::Snapshot(snapshot)) => {
                watched.snapshots += 1;
                snapshot.entries
            }
            Some(Event::Entry(entry)) => vec![entry],
            Some(Event::Heartbeat(_)) | None => Vec::new(),
        };
        let posts: Vec<v1::Post> = entries.into_iter().filter_map(|entry| entry.post).collect();
        if !posts.is_sorted_by(|newer, older| newer.post_id > older.post_id) {
            self.journal
                .wrong(format!("{name} was given a snapshot that is out of order"));
        }
        for post in posts {
            let shown = Shown {
                text: post.text,
                at: Timestamp::now(),
            };
            // The token tells what was shown, so not even a return brings it again.
            if watched.entries.insert(post.post_id, shown).is_some() {
                let id = post.post_id;
                self.journal
                    .wrong(format!("post {id} was shown to {name}, who watches, twice"));
            }
        }
        self.token = answer.resume_token;
    }
}

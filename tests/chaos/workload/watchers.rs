//! Readers who watch their timelines, and resume with the last token when the stream ends or is silent.
//!
//! Watchers never call ListTimeline, so the checker detects each post that a watch doesn't deliver.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use herald_proto::v1::{self, watch_timeline_response::Event};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::Status;

use super::{CALL_LIMIT, Journal, RETRY_DELAY, is_client_error, reader};
use crate::world::{HEARTBEAT, World};

/// Readers who watch, all with fixed follows: six follow only the big author, the others four or five authors.
const WATCHERS: [usize; 10] = [1, 2, 4, 5, 7, 8, 3, 9, 6, 12];
/// Silence after which a watcher ends the stream and resumes.
const SILENCE_MAX: Duration = HEARTBEAT.saturating_mul(5);
/// Time limit for all first snapshots.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Maximum snapshot size.
const SNAPSHOT_SIZE: i32 = 200;

/// What one watcher received.
#[derive(Debug, Clone, Default)]
pub(crate) struct WatchRecord {
    pub(crate) reader: usize,
    /// By post id.
    pub(crate) entries: BTreeMap<u64, ReceivedEntry>,
    /// Posts received before each resume; a resume without new posts since the last one is not repeated.
    pub(crate) resumes: Vec<Vec<u64>>,
    /// Start and end of each silence that ended a stream.
    pub(crate) silences: Vec<(Timestamp, Timestamp)>,
    snapshots: u64,
}

/// A received entry.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedEntry {
    pub(crate) text: String,
    pub(crate) at: Timestamp,
}

/// Running watchers. They continue after the end of the load, for late posts, until dropped.
pub(crate) struct Watchers {
    watched: Vec<Arc<Mutex<WatchRecord>>>,
    _tasks: JoinSet<()>,
}

impl Watchers {
    /// Starts the watchers. On return each has its first snapshot.
    pub(crate) async fn start(world: &World, journal: &Arc<Journal>) -> Self {
        let mut watched = Vec::new();
        let mut tasks = JoinSet::new();
        for reader in WATCHERS {
            let one = Arc::new(Mutex::new(WatchRecord {
                reader,
                ..WatchRecord::default()
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

    /// Copies of what the watchers received so far.
    pub(crate) fn watched(&self) -> Vec<WatchRecord> {
        self.watched
            .iter()
            .map(|watched| watched.lock().clone())
            .collect()
    }
}

struct Watcher {
    timelines: v1::timeline_service_client::TimelineServiceClient<tonic::transport::Channel>,
    journal: Arc<Journal>,
    watched: Arc<Mutex<WatchRecord>>,
    /// Resume token of the last answer.
    token: String,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            if !self.token.is_empty() {
                let mut watched = self.watched.lock();
                // Failed attempts while the server is down count as one resume.
                if watched.resumes.last().map(Vec::len) != Some(watched.entries.len()) {
                    let shown = watched.entries.keys().copied().collect();
                    watched.resumes.push(shown);
                }
            }
            if let Err(status) = self.watch().await
                && is_client_error(status.code())
            {
                self.journal
                    .record_violation(format!("WatchTimeline returned {status:?} for a valid request"));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Reads one stream until it ends or is silent.
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
            let what = format!("the watch of {name} did not start with exactly one snapshot");
            self.journal.record_violation(what);
        }
        let entries = match answer.event {
            Some(Event::Snapshot(snapshot)) => {
                watched.snapshots += 1;
                snapshot.entries
            }
            Some(Event::Entry(entry)) => vec![entry],
            Some(Event::Removal(_) | Event::Heartbeat(_)) | None => Vec::new(),
        };
        let posts: Vec<v1::Post> = entries.into_iter().filter_map(|entry| entry.post).collect();
        if !posts.is_sorted_by(|newer, older| newer.post_id > older.post_id) {
            self.journal
                .record_violation(format!("the watch of {name} returned an unordered snapshot"));
        }
        for post in posts {
            let shown = ReceivedEntry {
                text: post.text,
                at: Timestamp::now(),
            };
            // The resume token records received posts, so a resume must not repeat them.
            if watched.entries.insert(post.post_id, shown).is_some() {
                let id = post.post_id;
                self.journal
                    .record_violation(format!("watcher {name} received post {id} twice"));
            }
        }
        self.token = answer.resume_token;
    }
}

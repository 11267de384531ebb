//! The load: writers, deleters, users who follow and unfollow, readers and watchers; and the journal of their answers.

mod deleters;
mod graph;
mod journal;
mod movers;
mod readers;
mod second_requests;
mod watchers;
mod writers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use harness::Clients;
use tokio::task::JoinSet;
use tonic::{Code, Status};

pub(crate) use self::{
    graph::{AUTHORS, READERS, Relation, author, devices, initial_relation, prepare, reader},
    journal::{AcceptedPost, Change, Deletion, Journal},
    watchers::{WatchRecord, Watchers},
};
use crate::world::World;

/// Timeout of one attempt of a call.
const CALL_LIMIT: Duration = Duration::from_secs(2);
/// Delay between two attempts of a call.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Time limit for the calls in flight after the end of the faults.
const STOP_LIMIT: Duration = Duration::from_mins(2);

/// Amount of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) writers: usize,
    /// Interval of the posts of one writer.
    pub(crate) pace: Duration,
    pub(crate) movers: usize,
    pub(crate) readers: usize,
}

impl Load {
    /// Half the usual posts: the processes of a fleet share the processors of one machine.
    pub(crate) const FLEET: Self = Self {
        writers: 8,
        pace: Duration::from_millis(500),
        movers: 4,
        readers: 2,
    };
}

impl Default for Load {
    fn default() -> Self {
        Self {
            writers: 8,
            pace: Duration::from_millis(250),
            movers: 4,
            readers: 2,
        }
    }
}

/// The running load.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

/// Context of one task of the load.
#[derive(Clone)]
struct Worker {
    clients: Clients,
    journal: Arc<Journal>,
    stop: Arc<AtomicBool>,
    seed: u64,
}

impl Running {
    /// Starts the load on a mesh after [`prepare`].
    pub(crate) fn start(world: &World, journal: &Arc<Journal>, load: Load, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        // Each task has its own connection, as clients have.
        let worker = |n: usize| Worker {
            clients: world.clients(),
            journal: journal.clone(),
            stop: stop.clone(),
            seed: seed.wrapping_add(n as u64),
        };
        for n in 0..load.writers {
            tasks.spawn(writers::write_posts(worker(n), n, load.pace));
        }
        tasks.spawn(writers::repeat_requests(worker(1_000)));
        tasks.spawn(deleters::delete_posts(worker(4_000)));
        for n in 0..load.movers {
            tasks.spawn(movers::change_follows(worker(2_000 + n), n, load.movers));
        }
        for n in 0..load.readers {
            tasks.spawn(readers::read_timelines(worker(3_000 + n)));
        }
        Self { stop, tasks }
    }

    /// Signals the tasks to stop and waits for their calls in flight. A timeout is a violation.
    pub(crate) async fn stop(mut self, journal: &Journal) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("a task of the load panicked");
            }
        };
        if tokio::time::timeout(STOP_LIMIT, ended).await.is_err() {
            journal.record_violation(format!(
                "calls in flight were not answered within {STOP_LIMIT:?} after the last fault"
            ));
        }
    }
}

impl Worker {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Retries a call until it succeeds. A status that blames the request is a violation, because a fault is an error
    /// of the server.
    async fn retry_until_answered<T, F>(&self, what: &str, mut call: impl FnMut(Clients) -> F) -> T
    where
        F: Future<Output = Result<T, Status>>,
    {
        loop {
            let answer = tokio::time::timeout(CALL_LIMIT, call(self.clients.clone())).await;
            match answer {
                Ok(Ok(answer)) => return answer,
                Ok(Err(status)) if is_client_error(status.code()) => {
                    self.journal
                        .record_violation(format!("{what} returned {status:?} for a valid request"));
                }
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}

fn is_client_error(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated
    )
}

//! The load: writers, authors who delete, followers who come and go, readers and watchers; and the journal of all that they were promised.

mod deleters;
mod due;
mod graph;
mod journal;
mod movers;
mod readers;
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
    graph::{AUTHORS, READERS, Tie, author, devices, prepare, reader, tie},
    journal::{Change, Deletion, Journal, Posted},
    watchers::{Watched, Watchers},
};
use crate::world::World;

/// How long one try of a call may take before it is repeated.
const CALL_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries of a call, so that a server that is down isn't asked in a loop.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// For the calls under way to be answered once the faults are over.
const STOP_LIMIT: Duration = Duration::from_mins(2);

/// How much load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) writers: usize,
    /// Between the posts of one writer.
    pub(crate) pace: Duration,
    pub(crate) movers: usize,
    pub(crate) readers: usize,
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

/// Load that runs until it is stopped.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

/// What every task of the load has.
#[derive(Clone)]
struct Worker {
    clients: Clients,
    journal: Arc<Journal>,
    stop: Arc<AtomicBool>,
    seed: u64,
}

impl Running {
    /// Starts the load on a mesh that was [`prepare`]d.
    pub(crate) fn start(world: &World, journal: &Arc<Journal>, load: Load, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        // Each task has a connection of its own, as clients have.
        let worker = |n: usize| Worker {
            clients: world.clients(),
            journal: journal.clone(),
            stop: stop.clone(),
            seed: seed.wrapping_add(n as u64),
        };
        for n in 0..load.writers {
            tasks.spawn(writers::write(worker(n), n, load.pace));
        }
        tasks.spawn(writers::repeat(worker(1_000)));
        tasks.spawn(deleters::delete(worker(4_000)));
        for n in 0..load.movers {
            tasks.spawn(movers::come_and_go(worker(2_000 + n), n, load.movers));
        }
        for n in 0..load.readers {
            tasks.spawn(readers::read(worker(3_000 + n)));
        }
        Self { stop, tasks }
    }

    /// Lets each task finish what it is at, and waits for that.
    pub(crate) async fn stop(mut self, journal: &Journal) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("a task of the load panicked");
            }
        };
        if tokio::time::timeout(STOP_LIMIT, ended).await.is_err() {
            journal.wrong(format!(
                "calls were not answered within {STOP_LIMIT:?} after the last fault"
            ));
        }
    }
}

impl Worker {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Calls until it is answered, as a careful client does. A fault is the server's: an answer that blames the request
    /// is wrong.
    async fn insist<T, F>(&self, what: &str, mut call: impl FnMut(Clients) -> F) -> T
    where
        F: Future<Output = Result<T, Status>>,
    {
        loop {
            let answer = tokio::time::timeout(CALL_LIMIT, call(self.clients.clone())).await;
            match answer {
                Ok(Ok(answer)) => return answer,
                Ok(Err(status)) if blames_the_request(status.code()) => {
                    self.journal.wrong(format!("{what} was answered with {status:?}"));
                }
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}

fn blames_the_request(code: Code) -> bool {
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

//! Group commit: the writes of concurrent callers share a statement, a round trip and a flush of the server's log.
//!
//! A job that arrives while no batch is in flight is written at once. Jobs that arrive meanwhile wait, and the next
//! batch takes all of them, so batches grow with the load. A job is written even if its caller stops waiting.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{Error, ErrorKind, Result};

/// Maximum number of queued jobs. Further callers wait for a place in the queue.
const QUEUE: usize = 1_024;

/// Bounds of the batches.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_field_names, reason = "all are maxima")]
pub(crate) struct BatchLimits {
    /// Maximum number of jobs in a batch.
    pub(crate) jobs_max: usize,
    /// A batch takes no more jobs once their weight reaches this value.
    pub(crate) weight_max: usize,
    /// Maximum number of batches that are written at the same time.
    pub(crate) in_flight_max: usize,
}

/// Writes a batch: one result for each job, in order. An error is the result of all jobs.
type Work<J, R> = dyn Fn(Vec<Arc<J>>) -> BoxFuture<'static, Result<Vec<Result<R>>>> + Send + Sync;

type Waiting<J, R> = (J, oneshot::Sender<Result<R>>);

/// Collects jobs into batches. When it is dropped, the queued jobs are written first.
pub(crate) struct Batcher<J, R> {
    queue: mpsc::Sender<Waiting<J, R>>,
}

impl<J: Send + Sync + 'static, R: Send + 'static> Batcher<J, R> {
    /// Starts the task that collects jobs. Must be called inside of the runtime that runs the work.
    ///
    /// When a batch fails with an error that is not transient, each of its jobs is written alone, so that one bad job
    /// fails only itself.
    pub(crate) fn start(
        limits: BatchLimits,
        weigh: impl Fn(&J) -> usize + Send + 'static,
        work: impl Fn(Vec<Arc<J>>) -> BoxFuture<'static, Result<Vec<Result<R>>>> + Send + Sync + 'static,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(collect(waiting, limits, weigh, Arc::new(work)));
        Self { queue }
    }

    /// Queues a job and returns its result once it is written.
    pub(crate) async fn run(&self, job: J) -> Result<R> {
        let (answer, answered) = oneshot::channel();
        self.queue.send((job, answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

async fn collect<J: Send + Sync + 'static, R: Send + 'static>(
    mut waiting: mpsc::Receiver<Waiting<J, R>>,
    limits: BatchLimits,
    weigh: impl Fn(&J) -> usize,
    work: Arc<Work<J, R>>,
) {
    let permits = Arc::new(Semaphore::new(limits.in_flight_max));
    while let Some((job, answer)) = waiting.recv().await {
        // The permit comes before the batch: jobs that arrive while it is awaited join the batch.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        // Callers that the last batch has answered have their next job ready.
        tokio::task::yield_now().await;
        let mut weight = weigh(&job);
        let mut jobs = vec![Arc::new(job)];
        let mut answers = vec![answer];
        while jobs.len() < limits.jobs_max
            && weight < limits.weight_max
            && let Ok((job, answer)) = waiting.try_recv()
        {
            weight += weigh(&job);
            jobs.push(Arc::new(job));
            answers.push(answer);
        }
        tokio::spawn(write(Arc::clone(&work), jobs, answers, permit));
    }
}

async fn write<J: Send + Sync + 'static, R: Send + 'static>(
    work: Arc<Work<J, R>>,
    jobs: Vec<Arc<J>>,
    answers: Vec<oneshot::Sender<Result<R>>>,
    _permit: OwnedSemaphorePermit,
) {
    let error = match run(&*work, jobs.clone()).await {
        Ok(results) => {
            for (answer, result) in answers.into_iter().zip(results) {
                // The caller may have stopped waiting.
                let _ = answer.send(result);
            }
            return;
        }
        Err(error) => error,
    };
    let is_transient = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Full);
    if is_transient || jobs.len() == 1 {
        let message = error.to_string();
        for answer in answers {
            let _ = answer.send(Err(Error::new(error.kind(), message.clone())));
        }
        return;
    }
    for (job, answer) in jobs.into_iter().zip(answers) {
        let result = run(&*work, vec![job]).await;
        let _ = answer.send(result.and_then(|mut results| results.pop().unwrap_or_else(|| Err(closed()))));
    }
}

async fn run<J, R>(work: &Work<J, R>, jobs: Vec<Arc<J>>) -> Result<Vec<Result<R>>> {
    let done = AssertUnwindSafe(async { work(jobs).await }).catch_unwind().await;
    done.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Corrupt,
            "a write to the store panicked: see the panic message in the log",
        ))
    })
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is shutting down")
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        jobs_max: 8,
        weight_max: 1_000,
        in_flight_max: 2,
    };

    #[tokio::test]
    async fn each_job_gets_its_own_result_and_batches_are_bounded() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sizes);
        let batcher = Batcher::start(
            LIMITS,
            |_| 1,
            move |jobs: Vec<Arc<u32>>| {
                seen.lock().push(jobs.len());
                let odd = |job: &u32| match job % 2 {
                    0 => Ok(2 * job),
                    _ => Err(Error::new(ErrorKind::Conflict, "odd")),
                };
                async move { Ok(jobs.iter().map(|job| odd(job)).collect()) }.boxed()
            },
        );
        let results = futures::future::join_all((0..100).map(|n| batcher.run(n))).await;
        for (n, result) in (0..).zip(results) {
            match result {
                Ok(double) => assert_eq!(double, 2 * n),
                Err(error) => assert_eq!((n % 2, error.kind()), (1, ErrorKind::Conflict)),
            }
        }
        let sizes = sizes.lock();
        assert!(sizes.iter().all(|size| *size <= 8), "{sizes:?}");
        assert!(sizes.len() < 100, "no two jobs shared a batch");
    }

    #[tokio::test]
    async fn a_bad_job_fails_only_itself() {
        let batcher = Batcher::start(
            LIMITS,
            |_| 1,
            |jobs: Vec<Arc<u32>>| {
                async move {
                    assert!(jobs.iter().all(|job| **job != 5), "on purpose");
                    if jobs.iter().any(|job| **job == 7) {
                        return Err(Error::new(ErrorKind::Corrupt, "seven"));
                    }
                    Ok(jobs.iter().map(|_| Ok(())).collect())
                }
                .boxed()
            },
        );
        let results = futures::future::join_all((0..20).map(|n| batcher.run(n))).await;
        let failed: Vec<usize> = (0..20).filter(|n| results[*n].is_err()).collect();
        assert_eq!(failed, [5, 7]);
    }

    #[tokio::test]
    async fn queued_jobs_are_written_after_the_batcher_is_dropped() {
        let (done, mut written) = mpsc::unbounded_channel();
        let batcher = Batcher::start(
            LIMITS,
            |_| 1,
            move |jobs: Vec<Arc<u32>>| {
                let done = done.clone();
                async move {
                    for job in &jobs {
                        done.send(**job).unwrap();
                    }
                    Ok(jobs.iter().map(|_| Ok(())).collect())
                }
                .boxed()
            },
        );
        for n in 0..20 {
            // Polled once, so that the job is queued, then dropped.
            let mut run = Box::pin(batcher.run(n));
            let _ = futures::poll!(&mut run);
        }
        drop(batcher);
        let mut all = Vec::new();
        while let Some(n) = written.recv().await {
            all.push(n);
        }
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
    }
}

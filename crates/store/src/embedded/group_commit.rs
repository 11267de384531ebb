//! Group commit: one thread does the writes of one store, batch by batch.
//!
//! Writes that read before they write must not overlap. A queue avoids a lock that is held during fsync: each batch
//! takes the waiting jobs, does them in order and commits them together, so concurrent writers share one fsync. A job
//! is done even if its caller stops waiting.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::shared_error::with_sources;
use crate::{Error, ErrorKind, Result};

/// Maximum number of queued jobs. Further callers wait for a place in the queue.
const QUEUE: usize = 1_024;

type Waiting<J, R> = (J, oneshot::Sender<Result<R>>);

/// The writer thread of one store and its queue. Dropping it does the queued jobs first.
pub(super) struct GroupCommit<J, R> {
    queue: Option<mpsc::Sender<Waiting<J, R>>>,
    thread: Option<JoinHandle<()>>,
    /// Number of batches that are readable, or about to be.
    readable: Readable,
    /// Number of batches that were committed or failed.
    done: watch::Receiver<u64>,
}

/// Counts the batches of a [`GroupCommit`] that are readable, or about to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Readable(Arc<AtomicU64>);

impl Readable {
    /// Says that the batch will be readable from now on: before the first of its writes.
    pub(super) fn mark(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl<J: Send + 'static, R: Send + 'static> GroupCommit<J, R> {
    /// Starts the thread. `work` does the jobs of a batch in order and returns one result for each; an error of `work`
    /// is the result of all of them. A batch takes no more jobs once their weight reaches `weight_max`.
    pub(super) fn start(
        name: &str,
        weight_max: usize,
        weigh: impl Fn(&J) -> usize + Send + 'static,
        mut work: impl FnMut(Vec<J>) -> Result<Vec<Result<R>>> + Send + 'static,
    ) -> Result<Self> {
        Self::start_marking(name, weight_max, weigh, move |jobs, readable| {
            readable.mark();
            work(jobs)
        })
    }

    /// Like [`start`](Self::start), for `work` that prepares its writes for long: it calls [`Readable::mark`] before it
    /// writes, so that [`wait_durable`](Self::wait_durable) doesn't wait for a batch that nobody can have read.
    pub(super) fn start_marking(
        name: &str,
        weight_max: usize,
        weigh: impl Fn(&J) -> usize + Send + 'static,
        mut work: impl FnMut(Vec<J>, &Readable) -> Result<Vec<Result<R>>> + Send + 'static,
    ) -> Result<Self> {
        let (queue, mut waiting) = mpsc::channel::<Waiting<J, R>>(QUEUE);
        let readable = Readable::default();
        let counter = readable.clone();
        let (finished, done) = watch::channel(0);
        let thread = std::thread::Builder::new()
            .name(format!("store-{name}"))
            .spawn(move || {
                while let Some((job, answer)) = waiting.blocking_recv() {
                    let mut weight = weigh(&job);
                    let mut jobs = vec![job];
                    let mut answers = vec![answer];
                    while weight < weight_max
                        && let Ok((job, answer)) = waiting.try_recv()
                    {
                        weight += weigh(&job);
                        jobs.push(job);
                        answers.push(answer);
                    }
                    let done = catch_unwind(AssertUnwindSafe(|| work(jobs, &counter))).unwrap_or_else(|_| {
                        Err(Error::new(
                            ErrorKind::Corrupt,
                            "a write to the store panicked: see the panic message in the log",
                        ))
                    });
                    finished.send_replace(counter.count());
                    answer_all(answers, done);
                }
            })
            .map_err(|e| {
                Error::with_source(
                    ErrorKind::Unavailable,
                    "can't start a writer thread of the store",
                    e,
                )
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            readable,
            done,
        })
    }

    /// Queues a job and returns its result once it is durable.
    pub(super) async fn run(&self, job: J) -> Result<R> {
        let closed = || Error::new(ErrorKind::Unavailable, "the store is shutting down");
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        let (answer, answered) = oneshot::channel();
        queue.send((job, answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Waits until everything that was readable before this call is durable: a batch is readable before its fsync.
    pub(super) async fn wait_durable(&self) -> Result<()> {
        let readable = self.readable.count();
        if *self.done.borrow() >= readable {
            return Ok(());
        }
        let mut done = self.done.clone();
        done.wait_for(|done| *done >= readable)
            .await
            .map(drop)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the store is shutting down"))
    }
}

/// Sends each job its result; an error of the whole batch goes to every job.
fn answer_all<R>(answers: Vec<oneshot::Sender<Result<R>>>, done: Result<Vec<Result<R>>>) {
    match done {
        Ok(done) => {
            for (answer, result) in answers.into_iter().zip(done) {
                // The caller may have stopped waiting.
                let _ = answer.send(result);
            }
        }
        Err(error) => {
            let text = with_sources(&error);
            for answer in answers {
                let _ = answer.send(Err(Error::new(error.kind(), text.clone())));
            }
        }
    }
}

impl<J, R> Drop for GroupCommit<J, R> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // Panics of jobs are caught in the thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn each_job_gets_its_own_result() {
        let writes = GroupCommit::start(
            "test",
            10,
            |_: &u32| 1,
            |jobs| {
                Ok(jobs
                    .into_iter()
                    .map(|n| {
                        if n == 3 {
                            Err(Error::new(ErrorKind::LimitExceeded, "three"))
                        } else {
                            Ok(2 * n)
                        }
                    })
                    .collect())
            },
        )
        .unwrap();
        let answers = futures::future::join_all((0..100).map(|n| writes.run(n))).await;
        for (n, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(double) => assert_eq!(double as usize, 2 * n),
                Err(error) => assert_eq!((n, error.kind()), (3, ErrorKind::LimitExceeded)),
            }
        }
    }

    #[tokio::test]
    async fn a_panic_fails_its_batch_and_not_the_next() {
        let writes = GroupCommit::start(
            "test",
            1,
            |_: &u32| 1,
            |jobs| {
                assert_ne!(jobs[0], 0, "on purpose");
                Ok(jobs.into_iter().map(Ok).collect())
            },
        )
        .unwrap();
        assert_eq!(writes.run(0).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(writes.run(1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn dropping_does_the_queued_jobs_first() {
        let done = Arc::new(Mutex::new(0));
        let count = Arc::clone(&done);
        let writes = GroupCommit::start(
            "test",
            1,
            |_: &u32| 1,
            move |jobs| {
                *count.lock().unwrap() += jobs.len();
                Ok(jobs.into_iter().map(Ok).collect())
            },
        )
        .unwrap();
        for n in 0..20 {
            // Polled once, so that the job is queued, then dropped.
            let mut run = Box::pin(writes.run(n));
            let _ = futures::poll!(&mut run);
        }
        drop(writes);
        assert_eq!(*done.lock().unwrap(), 20);
    }
}

//! One thread that does the writes of one part of the store, round by round.
//!
//! Writes that read before they write must not overlap. Instead of a lock held over an fsync there is a queue: a round
//! takes all that waits, works it off in order and commits it at once, so writers that come together share one fsync.
//! A caller that goes away changes nothing: its write is done all the same.

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

/// How many writes can wait; more wait before the queue.
const QUEUE: usize = 1_024;

type Waiting<J, R> = (J, oneshot::Sender<Result<R>>);

/// The writes of one part of the store. When it is dropped, those that wait are done first.
pub(super) struct GroupCommit<J, R> {
    queue: Option<mpsc::Sender<Waiting<J, R>>>,
    thread: Option<JoinHandle<()>>,
    started: Arc<AtomicU64>,
    done: watch::Receiver<u64>,
}

impl<J: Send + 'static, R: Send + 'static> GroupCommit<J, R> {
    /// Starts the thread. `work` does the jobs of a round in order and answers each; its own error answers all of them.
    /// A round takes no more jobs once those in it weigh `weight_max`.
    pub(super) fn start(
        name: &str,
        weight_max: usize,
        weigh: impl Fn(&J) -> usize + Send + 'static,
        mut work: impl FnMut(Vec<J>) -> Result<Vec<Result<R>>> + Send + 'static,
    ) -> Result<Self> {
        let (queue, mut waiting) = mpsc::channel::<Waiting<J, R>>(QUEUE);
        let started = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&started);
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
                    let round = counter.fetch_add(1, Ordering::AcqRel) + 1;
                    let done = catch_unwind(AssertUnwindSafe(|| work(jobs))).unwrap_or_else(|_| {
                        Err(Error::new(ErrorKind::Corrupt, "a write to the store panicked"))
                    });
                    finished.send_replace(round);
                    answer_all(answers, done);
                }
            })
            .map_err(|e| {
                Error::with_source(ErrorKind::Unavailable, "can't start a thread of the store", e)
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            started,
            done,
        })
    }

    /// Does a job and answers once it is durable.
    pub(super) async fn run(&self, job: J) -> Result<R> {
        let closed = || Error::new(ErrorKind::Unavailable, "the store is shutting down");
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        let (answer, answered) = oneshot::channel();
        queue.send((job, answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Waits until all that could be read before this call is durable: a round can be read a little before it is.
    pub(super) async fn settled(&self) -> Result<()> {
        let started = self.started.load(Ordering::Acquire);
        if *self.done.borrow() >= started {
            return Ok(());
        }
        let mut done = self.done.clone();
        done.wait_for(|done| *done >= started)
            .await
            .map(drop)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the store is shutting down"))
    }
}

/// Gives each job its answer; an error of the whole round goes to all of them.
fn answer_all<R>(answers: Vec<oneshot::Sender<Result<R>>>, done: Result<Vec<Result<R>>>) {
    match done {
        Ok(done) => {
            for (answer, result) in answers.into_iter().zip(done) {
                // Whoever asked may have gone away.
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
            // A panic in it was answered already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn jobs_are_answered_in_order_each_with_its_own() {
        let rounds = GroupCommit::start(
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
        let answers = futures::future::join_all((0..100).map(|n| rounds.run(n))).await;
        for (n, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(double) => assert_eq!(double as usize, 2 * n),
                Err(error) => assert_eq!((n, error.kind()), (3, ErrorKind::LimitExceeded)),
            }
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_next_job_is_done() {
        let rounds = GroupCommit::start(
            "test",
            1,
            |_: &u32| 1,
            |jobs| {
                assert_ne!(jobs[0], 0, "on purpose");
                Ok(jobs.into_iter().map(Ok).collect())
            },
        )
        .unwrap();
        assert_eq!(rounds.run(0).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(rounds.run(1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_waits_is_done_before_the_end() {
        let done = Arc::new(Mutex::new(0));
        let count = Arc::clone(&done);
        let rounds = GroupCommit::start(
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
            // Polled once, so that it is in the queue, then dropped.
            let mut run = Box::pin(rounds.run(n));
            let _ = futures::poll!(&mut run);
        }
        drop(rounds);
        assert_eq!(*done.lock().unwrap(), 20);
    }
}

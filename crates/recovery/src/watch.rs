//! Watches the streams while a gateway runs.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    Checker, Error, Problem, Problems, Result,
    check::{CHECK_DELAY, CHECKS, LOST},
};

/// Why posts are refused.
type Reason = Option<String>;

/// Compares the streams with the store, at the start and then every second. Clones share what was found.
#[derive(Clone)]
pub struct StreamWatch {
    checker: Checker,
    reason: Arc<Mutex<Reason>>,
}

impl StreamWatch {
    /// Compares streams and store. A missing stream is made again by [`StreamWatch::run`]. While the store is away,
    /// posts are refused if POSTS never had a message: it can have been made anew beside an old store.
    ///
    /// # Errors
    /// [`Problems`] that need a recovery as the inner error; the outer one if the streams can't be read.
    pub async fn start(checker: Checker) -> Result<Result<Self, Problems>> {
        let watch = Self {
            checker,
            reason: Arc::default(),
        };
        let mut checks_left = CHECKS;
        loop {
            checks_left -= 1;
            match watch.checker.check().await {
                Ok(problems) if problems.iter().all(Problem::can_be_made_again) => {
                    watch.note(&problems);
                    break;
                }
                Ok(problems) if checks_left == 0 => return Ok(Err(Problems(problems))),
                Err(Error::Store(error)) if error.is_away() => {
                    tracing::warn!(%error, "the store is away: the streams are compared with it later");
                    watch.check_for_messages().await?;
                    break;
                }
                Err(Error::Mesh(error)) if checks_left == 0 => {
                    *watch.reason.lock() = Some(format!("the streams can't be read: {error}"));
                    break;
                }
                Err(error @ Error::Store(_)) => return Err(error),
                // The leader of a stream is elected, or can be elected and not know its end yet.
                Ok(_) | Err(_) => tokio::time::sleep(CHECK_DELAY).await,
            }
        }
        Ok(Ok(watch))
    }

    /// Checks whether posts are accepted.
    ///
    /// # Errors
    /// The reason why they are refused.
    pub fn accepts_posts(&self) -> Result<(), String> {
        match &*self.reason.lock() {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    /// Compares every second, and makes missing streams again if this process may. Never returns.
    pub async fn run(self) {
        let mut suspected = Vec::new();
        loop {
            tokio::time::sleep(CHECK_DELAY).await;
            match self.check_again(&mut suspected).await {
                Ok(()) => {}
                // The readiness of the process tells about the broker and the store.
                Err(error) => tracing::debug!(%error, "the streams can't be compared with the store"),
            }
        }
    }

    /// Believes a problem that the check before had found, too: the leader of a stream can be elected and not know its
    /// end yet.
    async fn check_again(&self, suspected: &mut Vec<Problem>) -> Result<()> {
        let found = self.checker.check().await?;
        let is_suspected = |problem: &&Problem| suspected.iter().any(|one| one.stream() == problem.stream());
        let believed: Vec<Problem> = found.iter().filter(is_suspected).cloned().collect();
        self.note(&believed);
        if found.iter().any(Problem::can_be_made_again)
            && let Err(error) = self.make_again(&found).await
        {
            tracing::warn!(%error, "a missing stream can't be made again yet");
        }
        *suspected = found;
        Ok(())
    }

    async fn make_again(&self, problems: &[Problem]) -> Result<()> {
        let topology = self.checker.topology_to_make().await?;
        for stream in problems
            .iter()
            .filter(|one| one.can_be_made_again())
            .filter_map(Problem::stream)
        {
            if self.checker.mesh.restore_stream(&topology, stream).await? {
                tracing::error!(stream, "{LOST}");
            }
        }
        Ok(())
    }

    /// The store can't tell whether POSTS is the stream that it knows; one with messages is.
    async fn check_for_messages(&self) -> Result<()> {
        let last = self
            .checker
            .mesh
            .last_sequence(herald_mesh::streams::POSTS)
            .await?;
        if last == 0 {
            *self.reason.lock() = Some(
                "stream POSTS is empty, and the store can't be reached to tell whether it has posts whose ids would be \
                 used again"
                    .into(),
            );
        }
        Ok(())
    }

    fn note(&self, problems: &[Problem]) {
        let reason = (!problems.is_empty()).then(|| Problems(problems.to_vec()).to_string());
        let mut stored = self.reason.lock();
        if *stored != reason {
            if let Some(reason) = &reason {
                tracing::error!(reason, "posts are refused: the streams are damaged");
            } else {
                tracing::info!("the streams are sound");
            }
            *stored = reason;
        }
    }
}

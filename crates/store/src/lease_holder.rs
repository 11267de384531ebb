//! Work of which all processes together run one: the holder of a lease runs it.

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{ErrorKind, Fence, Leases};

/// Duration of a lease unless another is chosen. A process that died is replaced within it.
pub const LEASE_DURATION: Duration = Duration::from_secs(10);

/// A lease that this process holds, for the work that it guards. Clones are about the same holding.
#[derive(Debug, Clone)]
pub struct HeldLease {
    fence: Fence,
    lost: CancellationToken,
    ends_at: Arc<Mutex<Instant>>,
}

impl HeldLease {
    /// The fence of this holding, for the writes that the lease guards.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Cancelled when the lease is lost or the process shuts down: the work ends then.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether the lease lasts. It lasts while the work ends at a shutdown. It does not in a process that was paused and
    /// has not noticed the end of the lease yet. Ask before each effect that the store doesn't fence.
    pub fn lasts(&self) -> bool {
        Instant::now() < *self.ends_at.lock()
    }
}

/// Acquires a lease, renews it while the work runs, and releases it.
pub struct LeaseHolder {
    leases: Arc<dyn Leases>,
    name: String,
    holder: String,
    duration: Duration,
}

/// Why a lease was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// It has a newer holder, or was released.
    Fenced,
    /// It could not be renewed until its end.
    Ended,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fenced => "it has a newer holder",
            Self::Ended => "it could not be renewed in time",
        })
    }
}

impl LeaseHolder {
    /// A holder of a lease, with an id of its own ([`holder_id`]).
    pub fn new(leases: Arc<dyn Leases>, name: impl Into<String>, duration: Duration) -> Self {
        Self {
            leases,
            name: name.into(),
            holder: holder_id(),
            duration,
        }
    }

    /// Runs the work whenever this process holds the lease, until `stop` is cancelled. The work runs until
    /// [`HeldLease::lost`] is cancelled, and is started again when the lease is gained again. At shutdown the lease is
    /// renewed until the work has ended, then released. If the work ends earlier by itself, the lease is released, and
    /// acquired again later.
    ///
    /// *Invariant:* the end of a lease is counted from before the call that acquired or renewed it, so this process
    /// sees the end before the store does.
    pub async fn run<F: Future<Output = ()>>(&self, stop: &CancellationToken, work: impl Fn(HeldLease) -> F) {
        while let Some(held) = self.acquire(stop).await {
            tracing::info!(
                lease = self.name,
                holder = self.holder,
                token = held.fence.token,
                "lease acquired; this process does its work"
            );
            match self.run_once(&held, stop, work(held.clone())).await {
                Some(loss) => {
                    tracing::warn!(lease = self.name, token = held.fence.token, %loss, "lease lost; its work ended");
                }
                None => self.release(&held.fence).await,
            }
            stop.run_until_cancelled(sleep(Self::jittered(self.duration / 6)))
                .await;
        }
    }

    /// Waits for the lease. `None` at shutdown.
    async fn acquire(&self, stop: &CancellationToken) -> Option<HeldLease> {
        let mut failing = false;
        while !stop.is_cancelled() {
            // Counted from before the call.
            let ends_at = Instant::now() + self.duration;
            let acquiring = timeout_at(
                ends_at,
                self.leases.acquire(&self.name, &self.holder, self.duration),
            );
            match stop.run_until_cancelled(acquiring).await? {
                Ok(Ok(Some(fence))) => {
                    return Some(HeldLease {
                        fence,
                        lost: CancellationToken::new(),
                        ends_at: Arc::new(Mutex::new(ends_at)),
                    });
                }
                Ok(Ok(None)) => failing = false,
                // Logged once for each outage.
                Ok(Err(error)) if !failing => {
                    failing = true;
                    tracing::warn!(lease = self.name, %error, "lease can't be acquired; retrying");
                }
                Err(_) if !failing => {
                    failing = true;
                    tracing::warn!(
                        lease = self.name,
                        "the store does not answer; retrying to acquire the lease"
                    );
                }
                Ok(Err(_)) | Err(_) => {}
            }
            stop.run_until_cancelled(sleep(Self::jittered(self.duration / 6)))
                .await;
        }
        None
    }

    /// Runs the work while the lease is renewed. Returns why the lease was lost; `None` if it is still held.
    async fn run_once(
        &self,
        held: &HeldLease,
        stop: &CancellationToken,
        work: impl Future<Output = ()>,
    ) -> Option<Loss> {
        let mut work = pin!(work);
        let mut renewing = pin!(self.renew_until_lost(held));
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                loss = &mut renewing => {
                    *held.ends_at.lock() = Instant::now();
                    held.lost.cancel();
                    work.await;
                    return Some(loss);
                }
                () = &mut work => return None,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    held.lost.cancel();
                }
            }
        }
    }

    /// Renews a lease at a third of its duration until it is lost.
    async fn renew_until_lost(&self, held: &HeldLease) -> Loss {
        let mut pause = self.duration / 3;
        loop {
            let ends_at = *held.ends_at.lock();
            sleep_until((Instant::now() + pause).min(ends_at)).await;
            let before = Instant::now();
            if before >= ends_at {
                return Loss::Ended;
            }
            match timeout_at(ends_at, self.leases.renew(&held.fence, self.duration)).await {
                Ok(Ok(())) => {
                    *held.ends_at.lock() = before + self.duration;
                    pause = self.duration / 3;
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Fenced => return Loss::Fenced,
                Ok(Err(error)) => {
                    tracing::debug!(lease = self.name, %error, "lease not renewed; retrying");
                    pause = self.duration / 12;
                }
                Err(_) => return Loss::Ended,
            }
        }
    }

    async fn release(&self, fence: &Fence) {
        // Without a release the lease ends by itself.
        match timeout(self.duration / 3, self.leases.release(fence)).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, token = fence.token, "lease released"),
            Ok(Err(error)) => {
                tracing::info!(lease = self.name, %error, "lease not released; it ends by itself");
            }
            Err(_) => tracing::info!(lease = self.name, "lease not released in time; it ends by itself"),
        }
    }

    /// A random duration of 1 to 2 times `base`, so that processes don't ask at the same time.
    fn jittered(base: Duration) -> Duration {
        base.mul_f64(1.0 + rand::random::<f64>())
    }
}

/// A name for a holder that no other has: host, process and a random number.
pub fn holder_id() -> String {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    format!("{host}-{}-{:08x}", std::process::id(), rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        Error, Result,
        embedded::{Config, Embedded},
    };

    const DURATION: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(30);

    /// Leases of the embedded engine, whose store can stop answering.
    struct Silent {
        inner: Arc<dyn Leases>,
        hanging: AtomicBool,
        failing: AtomicBool,
    }

    impl Silent {
        fn new(inner: Arc<dyn Leases>) -> Arc<Self> {
            Arc::new(Self {
                inner,
                hanging: AtomicBool::new(false),
                failing: AtomicBool::new(false),
            })
        }

        async fn answer(&self) -> Result<()> {
            if self.hanging.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.failing.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Unavailable, "injected fault"));
            }
            Ok(())
        }
    }

    #[async_trait]
    impl Leases for Silent {
        async fn acquire(&self, name: &str, holder: &str, duration: Duration) -> Result<Option<Fence>> {
            self.answer().await?;
            self.inner.acquire(name, holder, duration).await
        }

        async fn renew(&self, fence: &Fence, duration: Duration) -> Result<()> {
            self.answer().await?;
            self.inner.renew(fence, duration).await
        }

        async fn release(&self, fence: &Fence) -> Result<()> {
            self.answer().await?;
            self.inner.release(fence).await
        }
    }

    struct World {
        store: Embedded,
        _dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = Config {
                data_dir: dir.path().into(),
                ..Config::default()
            };
            Self {
                store: Embedded::open(&config).unwrap(),
                _dir: dir,
            }
        }

        fn leases(&self) -> Arc<dyn Leases> {
            self.store.stores().leases
        }
    }

    /// Starts a holder whose work sends its lease and then waits for its loss.
    fn start(
        leases: Arc<dyn Leases>,
        stop: &CancellationToken,
    ) -> (mpsc::UnboundedReceiver<HeldLease>, tokio::task::JoinHandle<()>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let stop = stop.clone();
        let running = tokio::spawn(async move {
            let holder = LeaseHolder::new(leases, "work", DURATION);
            holder
                .run(&stop, |held| {
                    let sender = sender.clone();
                    async move {
                        let lost = held.lost().clone();
                        sender.send(held).unwrap();
                        lost.cancelled().await;
                    }
                })
                .await;
        });
        (receiver, running)
    }

    async fn next(receiver: &mut mpsc::UnboundedReceiver<HeldLease>) -> HeldLease {
        timeout(LIMIT, receiver.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_stopped_holder_releases_its_lease() {
        let world = World::new();
        let (stop, other_stop) = (CancellationToken::new(), CancellationToken::new());
        let (mut gained, running) = start(world.leases(), &stop);
        let first = next(&mut gained).await;
        assert!(first.lasts());
        let (mut other_gained, other_running) = start(world.leases(), &other_stop);
        // The lease is renewed, so the other doesn't get it.
        assert!(timeout(DURATION * 2, other_gained.recv()).await.is_err());
        assert!(first.lasts());
        stop.cancel();
        running.await.unwrap();
        let second = next(&mut other_gained).await;
        assert!(second.fence().token > first.fence().token);
        assert!(world.leases().renew(first.fence(), DURATION).await.is_err());
        other_stop.cancel();
        other_running.await.unwrap();
    }

    #[tokio::test]
    async fn the_lease_of_a_dead_holder_is_taken_over() {
        let world = World::new();
        let stop = CancellationToken::new();
        let (mut gained, running) = start(world.leases(), &stop);
        let first = next(&mut gained).await;
        let (mut other_gained, _other_running) = start(world.leases(), &stop);
        running.abort();
        let second = next(&mut other_gained).await;
        assert!(second.fence().token > first.fence().token);
        // Without a renewal the first lease has ended by the clock of its process too.
        assert!(!first.lasts());
        stop.cancel();
    }

    #[tokio::test]
    async fn a_holder_that_can_not_renew_stops_before_another_starts_and_starts_again() {
        let world = World::new();
        for silence in [true, false] {
            let stop = CancellationToken::new();
            let silent = Silent::new(world.leases());
            let (mut gained, running) = start(silent.clone(), &stop);
            let first = next(&mut gained).await;
            let other_stop = CancellationToken::new();
            let (mut other_gained, other_running) = start(world.leases(), &other_stop);
            let fault = if silence { &silent.hanging } else { &silent.failing };
            fault.store(true, Ordering::SeqCst);
            let second = next(&mut other_gained).await;
            assert!(!first.lasts());
            timeout(LIMIT, first.lost().cancelled()).await.unwrap();
            assert!(second.lasts());

            fault.store(false, Ordering::SeqCst);
            other_stop.cancel();
            other_running.await.unwrap();
            let third = next(&mut gained).await;
            assert!(third.fence().token > second.fence().token);
            stop.cancel();
            running.await.unwrap();
        }
    }

    #[tokio::test]
    async fn no_two_holders_work_at_once() {
        let world = World::new();
        let working = Arc::new(AtomicUsize::new(0));
        let rounds = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let holders: Vec<_> = (0..4)
            .map(|_| {
                let (leases, stop) = (world.leases(), stop.clone());
                let (working, rounds) = (working.clone(), rounds.clone());
                tokio::spawn(async move {
                    let holder = LeaseHolder::new(leases, "work", DURATION / 4);
                    let work = |_| {
                        let (working, rounds) = (working.clone(), rounds.clone());
                        async move {
                            assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0);
                            tokio::task::yield_now().await;
                            assert_eq!(working.fetch_sub(1, Ordering::SeqCst), 1);
                            rounds.fetch_add(1, Ordering::SeqCst);
                        }
                    };
                    holder.run(&stop, work).await;
                })
            })
            .collect();
        timeout(LIMIT, async {
            while rounds.load(Ordering::SeqCst) < 20 {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        stop.cancel();
        for holder in holders {
            holder.await.unwrap();
        }
    }

    #[test]
    fn holders_have_different_ids() {
        assert_ne!(holder_id(), holder_id());
        assert!(holder_id().contains(&std::process::id().to_string()));
    }
}

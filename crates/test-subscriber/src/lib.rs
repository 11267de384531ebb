//! A tracing subscriber for the thread of one test, beside tests of other threads that have none.

use std::sync::LazyLock;

use tracing::{Dispatch, Subscriber, dispatcher::DefaultGuard, subscriber::NoSubscriber};

/// A second dispatcher, which takes nothing.
///
/// As long as a process has had one dispatcher alone, tracing asks the thread that reaches a callsite first whether
/// anyone is interested in it, and keeps the answer for all threads. A thread without a subscriber answers no.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

/// Makes `subscriber` that of this thread until the guard is dropped.
///
/// Unlike [`tracing::subscriber::set_default`], it sees every callsite, whichever thread reaches it first.
#[must_use = "without the guard the subscriber is gone"]
pub fn set_for_thread(subscriber: impl Subscriber + Send + Sync + 'static) -> DefaultGuard {
    LazyLock::force(&SECOND);
    tracing::subscriber::set_default(subscriber)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tracing::{Event, Metadata, span};

    use super::*;

    struct Counts(Arc<AtomicUsize>);

    impl Subscriber for Counts {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_callsite_that_another_thread_reached_first_is_seen() {
        fn callsite() {
            tracing::info!("seen");
        }
        let seen = Arc::new(AtomicUsize::new(0));
        let _subscriber = set_for_thread(Counts(seen.clone()));
        std::thread::spawn(callsite).join().unwrap();
        callsite();
        assert_eq!(seen.load(Ordering::Relaxed), 1);
    }
}

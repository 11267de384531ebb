//! Threads for databases that nobody waits for on a post's way.

use std::thread;

/// How nice they are: beside busy threads each gets a tenth of a processor.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Opens something so that the threads which it starts leave the processors to others: they inherit that from the one that
/// starts them. Only Linux tells threads from their process; elsewhere they are like all others.
pub(super) fn opened_nice<T: Send>(open: impl FnOnce() -> T + Send) -> T {
    let opening = || {
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "the threads of a database are like all others");
        }
        open()
    };
    thread::scope(|scope| {
        let opened = scope.spawn(opening).join();
        opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::nice;

    use super::*;

    #[test]
    fn what_is_opened_has_nice_threads_and_the_opener_stays_as_it_is() {
        let before = nice(0).unwrap();
        let started = opened_nice(|| thread::spawn(|| nice(0).unwrap()));
        assert_eq!(started.join().unwrap(), before + NICENESS);
        assert_eq!(nice(0).unwrap(), before);
    }
}

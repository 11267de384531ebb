//! Bisects a failing batch: finds the items that fail permanently and makes the call for all others.

use std::{fmt, iter, ops::Range, panic::AssertUnwindSafe};

use futures::FutureExt as _;

use crate::{Classified, Classify, panic_reason};

/// Result of [`isolate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolated<T, E> {
    /// Ranges of items for which the call succeeded, ascending, each with its result.
    pub done: Vec<(Range<usize>, T)>,
    /// Items that fail permanently, ascending, each with the reason.
    pub failed: Vec<(usize, String)>,
    /// The failure that stopped the run: a transient one, or any failure without bisection. Items neither in `done` nor
    /// in `failed` were not completed.
    pub stopped: Option<Classified<E>>,
}

impl<T, E> Isolated<T, E> {
    /// Whether the call succeeded for every item.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.stopped.is_none()
    }
}

/// Makes `call` for the items `0..count`. With `bisect`, a range whose call fails permanently is halved until the
/// failing items are found, and a transient failure stops the run. Without `bisect`, any failure stops the run. A panic
/// is a permanent failure.
///
/// `call` gets a range of items. After a failure it is repeated for parts of the range, so it must be idempotent. It is
/// called at most `2 * count` times, about `2 * log2(count)` times per failing item.
pub async fn isolate<T, E, F>(
    count: usize,
    bisect: bool,
    mut call: impl FnMut(Range<usize>) -> F,
) -> Isolated<T, E>
where
    E: Classify + fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut isolated = Isolated {
        done: Vec::new(),
        failed: Vec::new(),
        stopped: None,
    };
    // A stack, so that items are called in ascending order.
    let mut parts: Vec<Range<usize>> = iter::once(0..count).filter(|all| !all.is_empty()).collect();
    while let Some(part) = parts.pop() {
        match attempt(call(part.clone())).await {
            Ok(done) => isolated.done.push((part, done)),
            Err(Classified::Permanent(_)) if bisect && part.len() > 1 => {
                let middle = part.start + part.len().div_ceil(2);
                parts.extend([middle..part.end, part.start..middle]);
            }
            Err(Classified::Permanent(reason)) if bisect => isolated.failed.push((part.start, reason)),
            Err(failure) => {
                isolated.stopped = Some(failure);
                break;
            }
        }
    }
    isolated
}

async fn attempt<T, E>(call: impl Future<Output = Result<T, E>>) -> Result<T, Classified<E>>
where
    E: Classify + fmt::Display,
{
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(outcome) => Ok(outcome?),
        Err(panic) => Err(Classified::Permanent(panic_reason(&*panic))),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeSet, future::ready};

    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::FailureClass;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Error {
        Unavailable,
        Corrupt,
    }

    impl fmt::Display for Error {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Debug::fmt(self, f)
        }
    }

    impl Classify for Error {
        fn class(&self) -> FailureClass {
            match self {
                Self::Unavailable => FailureClass::Transient,
                Self::Corrupt => FailureClass::Permanent,
            }
        }
    }

    #[test]
    fn a_failure_is_classified_and_a_panic_is_permanent() {
        let fail = |error| block_on(attempt(ready(Err::<(), _>(error))));
        assert_eq!(
            fail(Error::Unavailable),
            Err(Classified::Transient(Error::Unavailable))
        );
        assert_eq!(fail(Error::Corrupt), Err(Classified::Permanent("Corrupt".into())));
        let panicked = block_on(attempt::<(), Error>(async { panic!("of {}", 7) }));
        assert_eq!(panicked, Err(Classified::Permanent("panic: of 7".into())));
        assert_eq!(block_on(attempt(ready(Ok::<_, Error>(1)))), Ok(1));
    }

    #[test]
    fn one_failing_item_of_many_costs_few_calls() {
        let calls = Cell::new(0);
        let isolated = block_on(isolate(4_096, true, |part: Range<usize>| {
            calls.set(calls.get() + 1);
            ready(if part.contains(&2_500) {
                Err(Error::Corrupt)
            } else {
                Ok(())
            })
        }));
        assert_eq!(isolated.failed, [(2_500, "Corrupt".into())]);
        assert_eq!(
            isolated.done.iter().map(|(part, ())| part.len()).sum::<usize>(),
            4_095
        );
        assert_eq!(calls.get(), 25);
    }

    #[test]
    fn without_bisection_a_failure_stops_after_one_call() {
        let calls = Cell::new(0);
        let isolated = block_on(isolate(10, false, |_| {
            calls.set(calls.get() + 1);
            ready(Err::<(), _>(Error::Corrupt))
        }));
        assert_eq!(isolated.stopped, Some(Classified::Permanent("Corrupt".into())));
        assert!(isolated.done.is_empty() && isolated.failed.is_empty() && !isolated.is_complete());
        assert_eq!(calls.get(), 1);
    }

    proptest! {
        /// Every item before the stop is in exactly one list, and in the right one; a completed item is never called
        /// again.
        #[test]
        fn each_item_is_done_or_failed(
            count in 0_usize..300,
            bad in prop::collection::btree_set(0_usize..300, 0..20),
            panicking in any::<bool>(),
            stop_at in prop::option::of(1_usize..200),
        ) {
            let calls = Cell::new(0);
            let isolated = block_on(isolate(count, true, |part: Range<usize>| {
                calls.set(calls.get() + 1);
                let (stopped, bad) = (Some(calls.get()) == stop_at, &bad);
                async move {
                    assert!(!part.is_empty());
                    if stopped {
                        return Err(Error::Unavailable);
                    }
                    let is_bad = bad.range(part.clone()).next().is_some();
                    assert!(!(is_bad && panicking), "on purpose");
                    if is_bad { Err(Error::Corrupt) } else { Ok(part) }
                }
            }));
            let mut seen: Vec<usize> = isolated.failed.iter().map(|(item, _)| *item).collect();
            let failed: BTreeSet<usize> = seen.iter().copied().collect();
            for (part, done) in &isolated.done {
                prop_assert_eq!(part, done);
                prop_assert!(bad.range(part.clone()).next().is_none());
                seen.extend(part.clone());
            }
            seen.sort_unstable();
            let end = seen.len();
            prop_assert_eq!(seen, (0..end).collect::<Vec<_>>());
            let expected: BTreeSet<usize> = bad.iter().copied().filter(|item| *item < end).collect();
            prop_assert_eq!(failed, expected);
            match isolated.stopped {
                None => prop_assert_eq!(end, count),
                Some(failure) => prop_assert_eq!(failure, Classified::Transient(Error::Unavailable)),
            }
            prop_assert!(calls.get() <= 2 * count);
        }
    }
}

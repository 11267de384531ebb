//! Finds the few of many that a call fails for, and does it for the rest.
//!
//! A chunk is done as a whole, so one recipient whose row can't be read would keep thousands from theirs. When a chunk has
//! failed by a fault, its handler calls [`isolate`], which tries halves, quarters, and so on down to single ones. Only a
//! [`Failure::Fault`] is looked into: a store that is away fails for all, and is waited for.

use std::{fmt, future::Future, ops::Range, panic::AssertUnwindSafe};

use futures::FutureExt;
use herald_failure::panic_reason;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure<E> {
    /// Waiting may mend it.
    Passing(E),
    /// Waiting doesn't mend it: what was called says so, or it panicked. In words, for the log and the dead letter.
    Fault(String),
}

/// Makes a call and sorts out how it fails. A panic is a fault.
pub async fn sorted<T, E: fmt::Display>(
    call: impl Future<Output = Result<T, E>>,
    is_passing: impl Fn(&E) -> bool,
) -> Result<T, Failure<E>> {
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if is_passing(&error) => Err(Failure::Passing(error)),
        Ok(Err(error)) => Err(Failure::Fault(error.to_string())),
        Err(panic) => Err(Failure::Fault(panic_reason(&*panic))),
    }
}

/// What came of [`isolate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolated<T, E> {
    /// The parts that went well, ascending, with what the call gave.
    pub good: Vec<(Range<usize>, T)>,
    /// Those that fail by themselves, ascending.
    pub bad: Vec<usize>,
    /// Why the first of them fails.
    pub fault: Option<String>,
    /// The passing failure that ended it before its time: what comes after the good and the bad ones was not tried.
    pub stopped: Option<E>,
}

/// Does a call that has failed for all of `count` items again, part by part, from the first to the last: a part that
/// fails by a fault is halved, until it is one item. `call` gets the part's range. At most `2 * count` calls, and few when
/// few are bad: some `2 * log2(count)` for each.
pub async fn isolate<T, E, C, F>(count: usize, mut call: C) -> Isolated<T, E>
where
    C: FnMut(Range<usize>) -> F,
    F: Future<Output = Result<T, Failure<E>>>,
{
    let mut isolated = Isolated {
        good: Vec::new(),
        bad: Vec::new(),
        fault: None,
        stopped: None,
    };
    // The last one is next.
    let mut parts = halves(0..count);
    while let Some(part) = parts.pop() {
        match call(part.clone()).await {
            Ok(done) => isolated.good.push((part, done)),
            Err(Failure::Fault(_)) if part.len() > 1 => parts.extend(halves(part)),
            Err(Failure::Fault(reason)) => {
                isolated.bad.push(part.start);
                isolated.fault.get_or_insert(reason);
            }
            Err(Failure::Passing(error)) => {
                isolated.stopped = Some(error);
                break;
            }
        }
    }
    isolated
}

/// The later half first; what can't be halved as it is.
fn halves(part: Range<usize>) -> Vec<Range<usize>> {
    let middle = part.start + part.len().div_ceil(2);
    let mut halves = vec![middle..part.end, part.start..middle];
    halves.retain(|half| !half.is_empty());
    halves
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeSet, future::ready};

    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn failures_are_sorted() {
        let fail = |text: &'static str| block_on(sorted(ready(Err::<(), _>(text)), |e| *e == "busy"));
        assert_eq!(fail("busy"), Err(Failure::Passing("busy")));
        assert_eq!(fail("corrupt"), Err(Failure::Fault("corrupt".into())));
        let panics = async { panic!("of {}", 7) };
        let panicked = block_on(sorted(panics, |_: &&str| true));
        assert_eq!(panicked, Err::<(), _>(Failure::Fault("panic: of 7".into())));
        assert_eq!(block_on(sorted(ready(Ok::<_, &str>(1)), |_| true)), Ok(1));
    }

    #[test]
    fn one_of_many_costs_few_calls() {
        let calls = Cell::new(0);
        let isolated = block_on(isolate(4_096, |part: Range<usize>| {
            calls.set(calls.get() + 1);
            ready(if part.contains(&2_500) {
                Err(Failure::<()>::Fault("ill".into()))
            } else {
                Ok(())
            })
        }));
        assert_eq!(
            (&isolated.bad[..], isolated.fault.as_deref()),
            (&[2_500][..], Some("ill"))
        );
        assert_eq!(
            isolated.good.iter().map(|(part, ())| part.len()).sum::<usize>(),
            4_095
        );
        assert_eq!(calls.get(), 24);
    }

    proptest! {
        /// The good and the bad ones are all of them, or all up to where it was stopped; each is what it is, and none is
        /// called for again after it went well.
        #[test]
        fn each_item_is_good_or_bad(
            count in 0_usize..300,
            bad in prop::collection::btree_set(0_usize..300, 0..20),
            panicking in any::<bool>(),
            stop_at in prop::option::of(1_usize..200),
        ) {
            let calls = Cell::new(0);
            let isolated = block_on(isolate(count, |part: Range<usize>| {
                calls.set(calls.get() + 1);
                let (stopped, bad) = (Some(calls.get()) == stop_at, &bad);
                sorted(
                    async move {
                        assert!(!part.is_empty());
                        if stopped {
                            return Err("away");
                        }
                        let is_bad = bad.range(part.clone()).next().is_some();
                        assert!(!(is_bad && panicking), "on purpose");
                        if is_bad { Err("corrupt") } else { Ok(part) }
                    },
                    |error| *error == "away",
                )
            }));
            let mut seen: Vec<usize> = isolated.bad.clone();
            for (part, done) in &isolated.good {
                prop_assert_eq!(part, done);
                prop_assert!(bad.range(part.clone()).next().is_none());
                seen.extend(part.clone());
            }
            seen.sort_unstable();
            let end = seen.len();
            prop_assert_eq!(seen, (0..end).collect::<Vec<_>>());
            let expected: BTreeSet<usize> = bad.iter().copied().filter(|item| *item < end).collect();
            prop_assert!(isolated.bad.iter().eq(&expected));
            prop_assert_eq!(isolated.fault.is_some(), !isolated.bad.is_empty());
            match isolated.stopped {
                None => prop_assert_eq!(end, count),
                Some(error) => prop_assert_eq!(error, "away"),
            }
            prop_assert!(calls.get() <= 2 * count);
        }
    }
}

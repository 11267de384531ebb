//! Whether the clock can be trusted to remove data.
//!
//! A clock that is far ahead for some minutes, such as after a start without network time, must not remove data of
//! weeks. A clock alone can't tell a jump from a time in which nothing ran, so each round of retention records its time,
//! and after a gap the clock has to go on steadily for a while before anything is removed: a wrong clock is usually
//! corrected within that time, which is a jump again. Data that is removed later harms nobody.

use std::time::Duration;

use herald_model::time::Timestamp;

/// Greatest difference to the last recorded time that is no jump.
pub const CLOCK_STEP_MAX: Duration = Duration::from_hours(1);

/// Longest pause after a jump.
const PAUSE_MAX: Duration = Duration::from_hours(72);

/// What the clock allows retention to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockCheck {
    /// To remove data.
    Steady,
    /// Nothing until the clock has gone on steadily up to `until`: it has just jumped.
    Jumped {
        /// The time that it was compared with.
        from: Timestamp,
        /// The end of the pause by this clock.
        until: Timestamp,
    },
    /// Nothing until then: it has jumped before.
    Settling {
        /// The end of the pause by this clock.
        until: Timestamp,
    },
}

/// The recorded time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeenClock {
    /// The last time that was seen.
    pub(crate) seen_at: Timestamp,
    /// From when on data may be removed.
    pub(crate) settled_at: Timestamp,
}

impl SeenClock {
    /// Nothing jumped so far.
    pub(crate) fn new(seen_at: Timestamp) -> Self {
        Self {
            seen_at,
            settled_at: Timestamp(i64::MIN),
        }
    }

    /// Compares the time with the recorded one, and with that of another clock if there is one. Returns what to record.
    pub(crate) fn observe(self, now: Timestamp, other: Option<Timestamp>) -> (Self, ClockCheck) {
        let distance = |at: &Timestamp| now.0.abs_diff(at.0);
        let farthest = [Some(self.seen_at), other]
            .into_iter()
            .flatten()
            .max_by_key(distance);
        let jump = farthest.filter(|at| distance(at) > CLOCK_STEP_MAX.as_micros() as u64);
        if let Some(from) = jump {
            let until = now.plus(pause(Duration::from_micros(distance(&from))));
            let seen = Self {
                seen_at: now,
                settled_at: until,
            };
            return (seen, ClockCheck::Jumped { from, until });
        }
        let seen = Self {
            seen_at: now.max(self.seen_at),
            ..self
        };
        let check = if now < self.settled_at {
            ClockCheck::Settling {
                until: self.settled_at,
            }
        } else {
            ClockCheck::Steady
        };
        (seen, check)
    }
}

/// The pause after a jump: an eighth of it, so that a machine that is off at night does not wait all day.
fn pause(jump: Duration) -> Duration {
    (jump / 8).clamp(CLOCK_STEP_MAX, PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const START: Timestamp = Timestamp(1_700_000_000_000_000);

    /// The clock that was seen at the start, and is asked each minute of `hours` beginning with `at`.
    fn minutes(mut seen: SeenClock, at: Timestamp, hours: u32) -> (SeenClock, ClockCheck) {
        let mut check = ClockCheck::Steady;
        for minute in 0..=60 * hours {
            (seen, check) = seen.observe(at.plus(Duration::from_mins(1) * minute), None);
        }
        (seen, check)
    }

    #[test]
    fn a_steady_clock_is_trusted() {
        let (seen, check) = minutes(SeenClock::new(START), START, 24);
        assert_eq!(check, ClockCheck::Steady);
        assert_eq!(seen.seen_at, START.plus(24 * HOUR));
        // Small corrections in both directions.
        assert_eq!(seen.observe(START.plus(25 * HOUR), None).1, ClockCheck::Steady);
        assert_eq!(seen.observe(START.plus(23 * HOUR), None).1, ClockCheck::Steady);
    }

    #[test]
    fn a_clock_that_is_ahead_for_a_while_removes_nothing() {
        let ahead = START.plus(40 * 24 * HOUR);
        let (seen, check) = SeenClock::new(START).observe(ahead, None);
        let until = ahead.plus(72 * HOUR);
        assert_eq!(check, ClockCheck::Jumped { from: START, until });
        let (seen, check) = minutes(seen, ahead, 71);
        assert_eq!(check, ClockCheck::Settling { until });
        // Corrected.
        let back = START.plus(71 * HOUR);
        let (seen, check) = seen.observe(back, None);
        assert!(matches!(check, ClockCheck::Jumped { .. }));
        assert!(matches!(minutes(seen, back, 71).1, ClockCheck::Settling { .. }));
        assert_eq!(minutes(seen, back, 73).1, ClockCheck::Steady);
    }

    #[test]
    fn after_a_time_without_a_process_the_pause_is_an_eighth_of_it() {
        for (off, pause) in [(2, 1), (16, 2), (64, 8), (24 * 60, 72)] {
            let on = START.plus(off * HOUR);
            let (seen, check) = SeenClock::new(START).observe(on, None);
            let until = on.plus(pause * HOUR);
            assert_eq!(check, ClockCheck::Jumped { from: START, until }, "{off}");
            assert_eq!(minutes(seen, on, pause).1, ClockCheck::Steady, "{off}");
        }
    }

    #[test]
    fn two_clocks_that_differ_remove_nothing() {
        let other = START.plus(3 * HOUR);
        let (seen, check) = SeenClock::new(START).observe(START, Some(other));
        assert!(matches!(check, ClockCheck::Jumped { from, .. } if from == other));
        assert!(matches!(
            seen.observe(START, Some(START)).1,
            ClockCheck::Settling { .. }
        ));
    }
}

//! How much work a scope has.

/// The work of a scope. A delivery is a recipient of a post on a channel; for archive and analytics, a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct State {
    /// Deliveries that wait for a worker or are in its hands.
    pub(crate) pending: f64,
    /// Deliveries that arrive in a second.
    pub(crate) arrivals: f64,
    /// Deliveries that one process does in a second; greater than 0.
    pub(crate) process_rate: f64,
    /// Age of the oldest message that is not acknowledged, seconds.
    pub(crate) oldest_seconds: f64,
    /// Whether a worker is needed: there are messages, or there were some a short time ago.
    pub(crate) active: bool,
    /// Whether fan-out holds a lane back.
    pub(crate) held: bool,
}

impl State {
    /// The work of one process in seconds: the pending deliveries, or those that arrive within the target if these are more.
    ///
    /// Divided by the target it is the number of processes that keep the promise. A backlog needs `pending / (rate × target)`
    /// processes to be done within the target. Workers that keep up have no backlog, but `arrivals / rate` of them are
    /// needed to go on. With that many, a backlog of less than `arrivals × target` keeps nobody waiting for longer than the
    /// target, so the two are not added.
    pub(crate) fn work_seconds(&self, target_seconds: f64, work_seconds_max: f64) -> f64 {
        let arriving = self.arrivals * target_seconds;
        (self.pending.max(arriving) / self.process_rate).clamp(0.0, work_seconds_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: State = State {
        pending: 0.0,
        arrivals: 0.0,
        process_rate: 100.0,
        oldest_seconds: 0.0,
        active: false,
        held: false,
    };

    fn processes(state: State, target: f64) -> f64 {
        (state.work_seconds(target, 1_000.0) / target).ceil()
    }

    #[test]
    fn work_divided_by_the_target_is_the_number_of_processes_in_time() {
        assert!((IDLE.work_seconds(5.0, 1_000.0)).abs() < f64::EPSILON);
        let backlog = State {
            pending: 10_000.0,
            ..IDLE
        };
        // 100 seconds of work are done within 5 by 20 processes, within 50 by 2.
        assert!((backlog.work_seconds(5.0, 1_000.0) - 100.0).abs() < f64::EPSILON);
        assert!((processes(backlog, 5.0) - 20.0).abs() < f64::EPSILON);
        assert!((processes(backlog, 50.0) - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn workers_that_keep_up_are_not_scaled_away() {
        let steady = State {
            pending: 3.0,
            arrivals: 290.0,
            ..IDLE
        };
        for target in [1.0, 5.0, 60.0] {
            assert!((processes(steady, target) - 3.0).abs() < f64::EPSILON, "{target}");
        }
    }

    #[test]
    fn the_work_is_bounded() {
        let huge = State {
            pending: f64::MAX,
            ..IDLE
        };
        assert!((huge.work_seconds(5.0, 1_000.0) - 1_000.0).abs() < f64::EPSILON);
    }
}

//! How fast a host responds: a slow one gets a small share of the requests in flight.

/// Requests in a row, slow ones less fast ones, that change the pace of a host.
const EVIDENCE_MAX: u32 = 16;

/// What a host has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It has not responded yet.
    Unknown,
    /// It responds in time.
    Fast,
    /// It responds late or never.
    Slow,
}

/// Decides about the pace of one host from its requests.
#[derive(Debug)]
pub(crate) struct Speed {
    pace: Pace,
    /// Slow requests less fast ones, 0 to [`EVIDENCE_MAX`].
    slow: u32,
}

impl Default for Speed {
    fn default() -> Self {
        Self {
            pace: Pace::Unknown,
            slow: 0,
        }
    }
}

impl Speed {
    /// The pace of the host.
    pub(crate) fn pace(&self) -> Pace {
        self.pace
    }

    /// Counts a request that has no response after the time of a slow one.
    pub(crate) fn count_slow(&mut self) {
        self.slow = match self.pace {
            Pace::Unknown => EVIDENCE_MAX,
            Pace::Fast | Pace::Slow => EVIDENCE_MAX.min(self.slow + 1),
        };
        if self.slow == EVIDENCE_MAX {
            self.pace = Pace::Slow;
        }
    }

    /// Counts a response in time, whatever its status.
    pub(crate) fn count_fast(&mut self) {
        self.slow = self.slow.saturating_sub(1);
        if self.slow == 0 {
            self.pace = Pace::Fast;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_it_showed_last() {
        let mut speed = Speed::default();
        assert_eq!(speed.pace(), Pace::Unknown);
        speed.count_fast();
        assert_eq!(speed.pace(), Pace::Fast);
        for _ in 0..EVIDENCE_MAX - 1 {
            speed.count_slow();
            assert_eq!(speed.pace(), Pace::Fast);
        }
        speed.count_slow();
        assert_eq!(speed.pace(), Pace::Slow);
        for _ in 0..EVIDENCE_MAX - 1 {
            speed.count_fast();
            assert_eq!(speed.pace(), Pace::Slow);
        }
        speed.count_fast();
        assert_eq!(speed.pace(), Pace::Fast);
    }

    #[test]
    fn a_host_whose_first_request_hangs_is_slow() {
        let mut speed = Speed::default();
        speed.count_slow();
        assert_eq!(speed.pace(), Pace::Slow);
    }
}

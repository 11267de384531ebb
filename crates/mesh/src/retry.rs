//! Back-off between attempts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Exponential back-off with full jitter: the delay of the `n`-th retry is uniform between 0 and `base × 2ⁿ⁻¹`, at most
/// `max`. Full jitter spreads the retries of messages that failed together over the whole interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryDelay {
    /// Maximum delay of the first retry, milliseconds; at least 1.
    pub delay_ms_base: u64,
    /// Maximum delay of every retry, milliseconds; at least the base. A delayed message counts towards
    /// `ack_pending_max`, so keep this around 30 seconds.
    pub delay_ms_max: u64,
}

impl Default for RetryDelay {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl RetryDelay {
    pub(crate) const DEFAULT: Self = Self {
        delay_ms_base: 500,
        delay_ms_max: 30_000,
    };

    /// Maximum delay after this attempt, from 1.
    pub fn ceiling(&self, attempt: u64) -> Duration {
        let doublings = u32::try_from(attempt.saturating_sub(1))
            .unwrap_or(u32::MAX)
            .min(63);
        Duration::from_millis(
            self.delay_ms_base
                .saturating_mul(1 << doublings)
                .min(self.delay_ms_max),
        )
    }

    /// Delay after this attempt, from 1: `share`, from 0 to 1, of the maximum.
    pub fn delay(&self, attempt: u64, share: f64) -> Duration {
        let share = if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            1.0
        };
        self.ceiling(attempt).mul_f64(share)
    }

    /// Random delay after this attempt, from 1.
    pub fn random_delay(&self, attempt: u64) -> Duration {
        self.delay(attempt, rand::random())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_delay_is_below_its_ceiling_and_the_ceiling_grows_to_the_maximum(
            base in 1..10_000_u64, max in 1..1_000_000_u64, attempt in any::<u64>(), share in any::<f64>(),
        ) {
            let curve = RetryDelay { delay_ms_base: base, delay_ms_max: max };
            prop_assert!(curve.delay(attempt, share) <= curve.ceiling(attempt));
            prop_assert!(curve.ceiling(attempt) <= curve.ceiling(attempt.saturating_add(1)));
            prop_assert!(curve.ceiling(attempt) <= Duration::from_millis(max));
            prop_assert_eq!(curve.ceiling(64), Duration::from_millis(max));
        }

        #[test]
        fn the_whole_range_is_used(attempt in 1..100_u64) {
            let curve = RetryDelay::default();
            prop_assert_eq!(curve.delay(attempt, 0.0), Duration::ZERO);
            prop_assert_eq!(curve.delay(attempt, 1.0), curve.ceiling(attempt));
        }
    }

    #[test]
    fn the_default_doubles_from_half_a_second_to_half_a_minute() {
        let ceilings = (1..=8)
            .map(|attempt| RetryDelay::default().ceiling(attempt).as_millis())
            .collect::<Vec<_>>();
        assert_eq!(
            ceilings,
            [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]
        );
    }
}

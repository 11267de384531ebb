//! What can be set.

use serde::{Deserialize, Serialize};

/// The deadletter service's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Advisories and dead letters handled at a time, each; 1 to 32,768. A letter carries what the message carried, up to
    /// the broker's largest message.
    pub in_flight_max: usize,
    /// Letters of one redrive that may be on their way at a time; 256 to 65,536. More of them make a redrive faster, and
    /// its stop later.
    pub redrive_in_flight_max: u64,
    /// Redrives that may run at a time; 1 to 1,000.
    pub redrives_max: usize,
    /// The audit that goes on all the time.
    pub patrol: Patrol,
}

/// A small audit of the newest posts, every now and then, told as metrics; `herald audit` is the thorough one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patrol {
    /// From one round to the next, seconds; 1 to 86,400. 0: no rounds.
    pub interval_seconds: u64,
    /// How far back a round goes, seconds; 60 to 86,400. A round reads what the ledger knows of each post of that time.
    pub window_seconds: u64,
    /// How much of the time a round works, percent; 1 to 100. Less is gentler to posts, and makes a round take longer.
    pub work_percent_max: u8,
}

impl Default for Patrol {
    fn default() -> Self {
        Self {
            interval_seconds: 60,
            window_seconds: 600,
            work_percent_max: 10,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_flight_max: 512,
            redrive_in_flight_max: 16_384,
            redrives_max: 16,
            patrol: Patrol::default(),
        }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        let check = |field: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(format!("deadletter.{field} must be {min} to {max}, is {value}"))
            }
        };
        check("in_flight_max", self.in_flight_max as u64, 1, 32_768)?;
        check("redrive_in_flight_max", self.redrive_in_flight_max, 256, 65_536)?;
        check("redrives_max", self.redrives_max as u64, 1, 1_000)?;
        check("patrol.interval_seconds", self.patrol.interval_seconds, 0, 86_400)?;
        check("patrol.window_seconds", self.patrol.window_seconds, 60, 86_400)?;
        check(
            "patrol.work_percent_max",
            self.patrol.work_percent_max.into(),
            1,
            100,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_bounds_is_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        let config = Config {
            redrives_max: 0,
            ..Config::default()
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .starts_with("deadletter.redrives_max must be 1 to")
        );
    }
}

//! Bounds of numbers in settings.

use std::{
    fmt::Display,
    ops::{Bound, RangeBounds},
};

/// Checks a setting against its bounds. The error names key, bounds and value.
pub fn within<T: PartialOrd + Display>(
    key: &str,
    value: &T,
    bounds: &impl RangeBounds<T>,
) -> Result<(), String> {
    if bounds.contains(value) {
        return Ok(());
    }
    let expected = match (bounds.start_bound(), bounds.end_bound()) {
        (Bound::Included(min), Bound::Included(max)) => format!("{min} to {max}"),
        (Bound::Included(min), _) => format!("at least {min}"),
        (_, Bound::Included(max)) => format!("at most {max}"),
        _ => "within other bounds".into(),
    };
    Err(format!("{key} must be {expected}, is {value}"))
}

/// Checks settings against their bounds, and returns the first error from the function that it stands in.
///
/// The keys are made from the fields' names, so an error always names the setting that it is about. The crates that
/// derive such checks either leave out the value (`garde`) or give no readable sentence (`validator`).
///
/// ```
/// struct Gate { interval_ms: u64 }
/// struct Config { threads: usize, gate: Gate }
///
/// fn validate(config: &Config) -> Result<(), String> {
///     herald_runtime::bounds!("fanout", config, {
///         threads: 1..=64,
///         gate.interval_ms: 10..,
///     });
///     Ok(())
/// }
///
/// let config = Config { threads: 1, gate: Gate { interval_ms: 9 } };
/// assert_eq!(validate(&config), Err("fanout.gate.interval_ms must be at least 10, is 9".into()));
/// ```
#[macro_export]
macro_rules! bounds {
    ($section:literal, $config:expr, { $($($field:ident).+ : $bounds:expr),+ $(,)? }) => {
        $($crate::config::within(
            concat!($section $(, ".", stringify!($field))+),
            &$config.$($field).+,
            &($bounds),
        )?;)+
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_key_bounds_and_value() {
        assert_eq!(within("a.b", &1, &(1..=3)), Ok(()));
        assert_eq!(within("a.b", &3, &(1..=3)), Ok(()));
        assert_eq!(
            within("a.b", &4, &(1..=3)),
            Err("a.b must be 1 to 3, is 4".into())
        );
        assert_eq!(
            within("a.b", &0, &(1..)),
            Err("a.b must be at least 1, is 0".into())
        );
        assert_eq!(
            within("a.b", &4, &(..=3)),
            Err("a.b must be at most 3, is 4".into())
        );
    }
}

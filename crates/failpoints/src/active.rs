//! What the macros call when failpoints are compiled in.

use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// Sets the points as the environment variable `FAILPOINTS` says, for the life of the process.
///
/// # Panics
/// When the variable makes no sense: a test that asked for a fault must not pass without it.
pub fn from_environment() {
    // Dropping it would switch all of them off.
    std::mem::forget(fail::FailScenario::setup());
}

/// Does what was set for this point; true when its error is to be returned.
pub async fn hit(name: impl AsRef<str>) -> bool {
    let name = name.as_ref();
    let Some(argument) = argument(name) else {
        return false;
    };
    match argument.split_once(' ') {
        None if argument == "kill" => die(name).await,
        None if argument == "error" => true,
        Some(("delay", ms)) if let Ok(ms) = ms.parse() => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            false
        }
        _ => panic!("failpoint {name} can't {argument:?}"),
    }
}

/// Whether a negative control is on for this point.
pub fn is_sabotaged(name: &str) -> bool {
    argument(name).is_some()
}

fn argument(name: &str) -> Option<String> {
    fail::eval(name, Option::unwrap_or_default)
}

/// Returns at most to other tasks, for the moment that the signal takes.
async fn die(name: &str) -> bool {
    // The log of a process that died tells where.
    eprintln!("failpoint {name}: kill");
    if let Err(error) = kill_process(getpid(), Signal::KILL) {
        panic!("failpoint {name} can't kill its process: {error}");
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fallible() -> Result<u32, &'static str> {
        crate::point!("test.error", "failed");
        Ok(1)
    }

    #[tokio::test]
    async fn a_point_does_what_was_set_and_nothing_otherwise() {
        assert_eq!(fallible().await, Ok(1));
        fail::cfg("test.error", "1*off->1*return(error)").unwrap();
        assert_eq!(fallible().await, Ok(1));
        assert_eq!(fallible().await, Err("failed"));
        assert_eq!(fallible().await, Ok(1));

        fail::cfg("test.delay", "return(delay 20)").unwrap();
        let start = std::time::Instant::now();
        crate::point!("test.delay");
        assert!(start.elapsed() >= Duration::from_millis(20));

        assert!(!crate::sabotaged!("test.rule"));
        fail::cfg("test.rule", "return").unwrap();
        assert!(crate::sabotaged!("test.rule"));
    }
}

//! The functions behind the macros when failpoints are compiled in.

use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// Configures the failpoints from the environment variable `FAILPOINTS`, for the life of the process.
///
/// # Panics
/// If the variable can't be parsed: a test that requested a fault must not pass without it.
pub fn from_environment() {
    // Dropping the scenario would switch all failpoints off.
    std::mem::forget(fail::FailScenario::setup());
}

/// Runs the action of a failpoint. Returns whether the caller must return its error.
pub async fn hit(name: impl AsRef<str>) -> bool {
    let name = name.as_ref();
    let Some(argument) = argument(name) else {
        return false;
    };
    match argument.split_once(' ') {
        None if argument == "kill" => kill(name).await,
        None if argument == "error" => true,
        Some(("delay", ms)) if let Ok(ms) = ms.parse() => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            false
        }
        _ => panic!("failpoint {name}: unknown action {argument:?}, use kill, error or delay <milliseconds>"),
    }
}

/// Whether a negative control is enabled at this failpoint.
pub fn is_sabotaged(name: &str) -> bool {
    argument(name).is_some()
}

fn argument(name: &str) -> Option<String> {
    fail::eval(name, Option::unwrap_or_default)
}

/// Kills the process. Never returns; other tasks can run until the signal arrives.
async fn kill(name: &str) -> bool {
    // Shows in the log where the process died.
    eprintln!("failpoint {name}: kill");
    if let Err(error) = kill_process(getpid(), Signal::KILL) {
        panic!("failpoint {name}: can't kill the process: {error}");
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
    async fn a_failpoint_runs_its_configured_action_only() {
        assert_eq!(fallible().await, Ok(1));
        fail::cfg("test.error", "1*off->1*return(error)").unwrap();
        assert_eq!(fallible().await, Ok(1));
        assert_eq!(fallible().await, Err("failed"));
        assert_eq!(fallible().await, Ok(1));

        fail::cfg("test.delay", "return(delay 20)").unwrap();
        let start = std::time::Instant::now();
        crate::point!("test.delay");
        assert!(start.elapsed() >= Duration::from_millis(20));

        assert!(!crate::negative_control!("test.rule"));
        fail::cfg("test.rule", "return").unwrap();
        assert!(crate::negative_control!("test.rule"));
    }
}

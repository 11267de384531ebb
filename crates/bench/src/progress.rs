//! Progress bars on standard error, shown on a terminal only.

use herald_cli::{failure::Failure, output::Output};
use indicatif::ProgressBar;

/// Shows progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) output: Output,
}

impl Progress {
    /// A progress bar. Length 0 shows a message and the elapsed time instead.
    pub(super) fn bar(self, what: &'static str, length: u64) -> ProgressBar {
        let template = if length == 0 {
            "{prefix}: {msg} {elapsed}"
        } else {
            "{prefix} {wide_bar} {human_pos}/{human_len} {eta}"
        };
        let bar = self.output.progress_bar(Some(length), template);
        bar.set_prefix(what);
        bar
    }

    /// Shows the progress of a step until its work ends.
    pub(super) async fn step<T>(
        self,
        what: &'static str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let bar = self.bar(what, 0);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        let done = work.await;
        bar.finish_and_clear();
        done
    }
}

//! The suite's own command line, which also takes what `cargo test` passes to every test.

use std::time::Duration;

use clap::Parser;

/// Hurts a real mesh under load and checks that nothing is lost and nothing comes twice
#[derive(Debug, Parser)]
#[command(name = "chaos")]
pub(crate) struct Arguments {
    /// Run the scenario of random faults for this long, as 30s, 20m or 4h, in episodes that are checked one by one
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) long: Option<Duration>,

    /// Run the scenario of random faults until this many processes were killed
    #[arg(long, value_name = "N", conflicts_with = "long")]
    pub(crate) kills: Option<u64>,

    /// Repeat the run that printed this seed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Run only the scenario of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Option<String>,

    /// Keep logs and data also of what went well
    #[arg(long)]
    pub(crate) keep: bool,

    /// Print the names of the scenarios
    #[arg(long)]
    pub(crate) list: bool,

    /// Run only the scenarios whose name holds one of these
    #[arg(value_name = "FILTER")]
    pub(crate) filters: Vec<String>,

    #[command(flatten)]
    harness: Harness,
}

/// Arguments of the standard test harness.
#[expect(clippy::struct_excessive_bools, reason = "they are somebody else's flags")]
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Of cargo test")]
struct Harness {
    /// Match filters exactly
    #[arg(long)]
    exact: bool,

    /// Leave out the scenarios whose name holds this
    #[arg(long, value_name = "FILTER")]
    skip: Vec<String>,

    /// Run only ignored tests, of which there are none here
    #[arg(long, conflicts_with = "include_ignored")]
    ignored: bool,

    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(short, long, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(short = 'Z', hide = true)]
    unstable: Vec<String>,
}

impl Arguments {
    /// Whether a scenario is to be run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        if self.harness.ignored || self.harness.skip.iter().any(|skip| name.contains(skip.as_str())) {
            return false;
        }
        if let Some(only) = &self.only {
            return only == name;
        }
        let matches = |filter: &String| {
            if self.harness.exact {
                filter == name
            } else {
                name.contains(filter.as_str())
            }
        };
        self.filters.is_empty() || self.filters.iter().any(matches)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, seconds) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        _ => return Err("must be a number with s, m or h".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "must be a number with s, m or h".to_owned())?;
    Ok(Duration::from_secs(number * seconds))
}

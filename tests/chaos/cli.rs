//! Command line of the suite. It also accepts the arguments that `cargo test` passes to every test.

use std::time::Duration;

use clap::Parser;

/// Inject faults into a real mesh under load and check that no delivery is lost or duplicated
#[derive(Debug, Parser)]
#[command(name = "chaos")]
pub(crate) struct Arguments {
    /// Run one scenario (`faults`, or that of --only) for this long, for example 30s, 20m or 4h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) long: Option<Duration>,

    /// Run one scenario (`faults`, or that of --only) until this many processes were killed
    #[arg(long, value_name = "N", conflicts_with = "long")]
    pub(crate) kills: Option<u64>,

    /// Seed of the faults and the load, as printed by an earlier run [default: random]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Run only the scenario with this name
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Option<String>,

    /// Keep logs and data of successful scenarios too
    #[arg(long)]
    pub(crate) keep: bool,

    /// List the scenarios and exit
    #[arg(long)]
    pub(crate) list: bool,

    /// Run only scenarios whose name contains one of these strings
    #[arg(value_name = "FILTER")]
    pub(crate) filters: Vec<String>,

    #[command(flatten)]
    harness: Harness,
}

/// Arguments of the standard test harness.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the flags of the standard test harness"
)]
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of cargo test")]
struct Harness {
    /// Match whole names instead of substrings
    #[arg(long)]
    exact: bool,

    /// Skip scenarios whose name contains this string
    #[arg(long, value_name = "FILTER")]
    skip: Vec<String>,

    /// Run only ignored tests; the suite has none
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
    /// Whether the arguments select a scenario.
    pub(crate) fn selects(&self, name: &str) -> bool {
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
        _ => return Err("must be a number followed by s, m or h".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "must be a number followed by s, m or h".to_owned())?;
    Ok(Duration::from_secs(number * seconds))
}

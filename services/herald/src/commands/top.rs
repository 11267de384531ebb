//! `herald top`: the overview of a mesh, live.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Output, Show},
    time,
};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    sources::Source,
    stop,
    top::{Overview, Reader, Screen, Servers, draw},
};

/// The HTTP port of `herald up`.
const METRICS: &str = "http://127.0.0.1:7701";
/// Keys that are typed and not handled yet.
const KEYS_MAX: usize = 64;
/// Consumers that a page scrolls.
const PAGE: usize = 8;

const LONG: &str = "\
Shows how a mesh is doing, live, on a terminal of 80 × 24 or more: posts, deliveries and pushes per second, the latencies of \
timelines and pushes against their promises, the lag of each consumer and how long it takes to work it off, and open dead \
letters. `q` quits; the arrow keys and Page Up and Down scroll the consumers.

Streams, consumers and dead letters come from --operator-server, totals from --server; rates and latencies from /metrics of each process, as differences \
over the last 30 s. The consumer with the oldest message comes first. DRAIN is the lag divided by the acknowledgements per \
second: `never` if nothing is acknowledged. A source that can't be read is shown as `away` with the reason, never as zero.

With --output json, one object is printed per interval: `read_time`; `sources` with the `error` of each that is away; \
`posts_per_second`, `timeline_deliveries_per_second`, `pushes_per_second`; `latencies` by `channel` with `promise_seconds`, \
`p50_seconds`, `p99_seconds`, `within_promise` (0 to 1) and `count`; `dead_letters` with `open_count` and `group_count`; \
`last_24_hours`; `consumers` with `pending_count`, `ack_pending_count`, `oldest_age_seconds`, `acknowledged_per_second` and \
`drain_seconds`; `streams` with `fullness` (0 to 1). What could not be read is null, and its source has an `error`; quantiles \
and `within_promise` are null, too, while nothing was delivered in the last 30 s (`count` is 0).";

const EXAMPLES: &str = "\
Examples:
  Of `herald up`:
    herald top
  Of many processes; the name has the addresses of all of them:
    herald top --server http://gateway:7700 --operator-server http://gateway:7702 \\
        --metrics http://herald-processes:7701
  The 99th percentile of pushes, in a script:
    herald top --output json | jq '.latencies[] | select(.channel == \"push\") | .p99_seconds'";

/// Show rates, latencies, lag and dead letters live
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The HTTP port of the processes, http://HOST:PORT; repeat it for each
    ///
    /// A name is resolved to all its addresses at each reading, so the name of a headless Service stands for all its pods.
    #[arg(long, value_name = "URL", default_value = METRICS)]
    metrics: Vec<Source>,

    /// The interval between readings, 200ms to 1m
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = time::positive_duration)]
    interval: Duration,
}

impl Show for Overview {
    fn text(&self) -> String {
        String::new()
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if !(Duration::from_millis(200)..=Duration::from_mins(1)).contains(&args.interval) {
        return Err(Failure::usage("--interval must be from 200ms to 1m"));
    }
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if !context.output.is_json() && !is_terminal {
        return Err(Failure::usage(
            "`herald top` needs a terminal for its input and output: use --output json, which prints one object per interval",
        ));
    }
    let servers = Servers {
        public: context.global.server.clone(),
        operators: context.global.operator_server.clone(),
        caller: context.caller()?,
    };
    let reader = Reader::start(&servers, args.interval, args.metrics);
    if context.output.is_json() {
        stop::run_until_signal(Box::pin(print(reader, args.interval, context.output))).await
    } else {
        let server = context.global.server.clone();
        stop::run_until_signal(Box::pin(show(reader, args.interval, server))).await
    }
}

/// Prints an object per interval.
async fn print(mut reader: Reader, period: Duration, output: Output) -> Result<(), Failure> {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        output.show(&reader.read().await)?;
    }
}

/// Restores the terminal, also after an error or a signal.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws an overview per interval until `q`.
async fn show(mut reader: Reader, period: Duration, server: String) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io("the terminal can't be used", &error);
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let _restore = Restore;
    let mut keys = keys();
    // A reading goes on while keys are handled.
    let (sender, mut overviews) = mpsc::channel(1);
    let reading = tokio::spawn(async move {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if sender.send(reader.read().await).await.is_err() {
                return;
            }
        }
    });
    let _reading = AbortOnDropHandle::new(reading);
    let mut screen = Screen { server, scrolled: 0 };
    let mut overview: Option<Overview> = None;
    loop {
        tokio::select! {
            event = keys.recv() => match event {
                None => return Ok(()),
                Some(Event::Key(key)) if quits(key) => return Ok(()),
                Some(Event::Key(key)) => scroll(&mut screen.scrolled, key),
                Some(_) => {}
            },
            Some(read) = overviews.recv() => overview = Some(read),
        }
        if let Some(overview) = &overview {
            let drawn = terminal.draw(|frame| draw(frame, overview, &mut screen));
            drawn.map_err(failed)?;
        }
    }
}

/// Reads the keyboard on a thread of its own, which ends with the process or when nobody listens.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

fn quits(key: KeyEvent) -> bool {
    let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release && (is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// Drawing keeps it within the table.
fn scroll(scrolled: &mut usize, key: KeyEvent) {
    *scrolled = match key.code {
        KeyCode::Up | KeyCode::Char('k') => scrolled.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => *scrolled + 1,
        KeyCode::PageUp => scrolled.saturating_sub(PAGE),
        KeyCode::PageDown => *scrolled + PAGE,
        KeyCode::Home => 0,
        _ => *scrolled,
    };
}

//! Draws the overview; 80 × 24 is enough.

use std::time::Duration;

use herald_cli::{
    output::{count, counted},
    time::approximate,
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Row, Table},
};

use super::overview::{Consumer, Latency, Overview};

/// What stands in place of a number that could not be read.
const AWAY: &str = "away";
/// Lines for sources that are away; the others are counted.
const AWAY_LINES_MAX: usize = 3;
/// Fullness of a stream that is marked.
const FULL_MIN: f64 = 0.8;

/// What the person at the terminal has chosen.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    /// The server, as on the command line.
    pub(crate) server: String,
    /// Consumers that are scrolled away.
    pub(crate) scrolled: usize,
}

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, overview: &Overview, screen: &mut Screen) {
    let away = away_lines(overview);
    let [head, rates, latencies, consumers, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(5),
        Constraint::Length(4),
        Constraint::Fill(1),
        Constraint::Length(away.len() as u16 + 1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(title(overview, screen)), head);
    frame.render_widget(Paragraph::new(rate_lines(overview)), rates);
    draw_latencies(frame, latencies, &overview.latencies);
    draw_consumers(frame, consumers, overview, &mut screen.scrolled);
    let mut lines = away;
    lines.push(Line::styled(
        "q quits   ↑↓ scroll consumers   rates and latencies of the last 30 s",
        dim(),
    ));
    frame.render_widget(Paragraph::new(lines), foot);
}

fn title(overview: &Overview, screen: &Screen) -> Line<'static> {
    // The time of day of an RFC 3339 time.
    let time = overview.read_time.get(11..19).unwrap_or_default().to_owned();
    Line::from(vec![
        Span::styled("herald top", bold()),
        Span::raw(format!("   {}   {time} UTC", screen.server)),
    ])
}

fn rate_lines(overview: &Overview) -> Vec<Line<'static>> {
    let row = |name: &'static str, rate: Option<f64>, total: Option<u64>| {
        let total = total.map_or_else(|| AWAY.into(), count);
        Line::from(vec![
            Span::raw(format!("{name:<24}")),
            Span::raw(format!("{:>14}/s", rate.map_or_else(|| AWAY.into(), number))),
            Span::styled(format!("{total:>20} in 24 h"), dim()),
        ])
    };
    let day = overview.last_24_hours.as_ref();
    let dead = match &overview.dead_letters {
        None => Span::styled(AWAY, warning()),
        Some(dead) if dead.open_count == 0 => Span::raw("none open"),
        Some(dead) => Span::styled(
            format!(
                "{} open in {}: herald dlq groups",
                count(dead.open_count),
                counted(dead.group_count, "group", "groups")
            ),
            warning(),
        ),
    };
    vec![
        row("posts", overview.posts_per_second, day.map(|day| day.post_count)),
        row(
            "timeline deliveries",
            overview.timeline_deliveries_per_second,
            day.map(|day| day.timeline_delivered_count),
        ),
        row(
            "pushes",
            overview.pushes_per_second,
            day.map(|day| day.push_delivered_count),
        ),
        Line::from(vec![Span::raw(format!("{:<24}", "dead letters")), dead]),
    ]
}

fn draw_latencies(frame: &mut Frame<'_>, area: Rect, latencies: &[Latency]) {
    let rows = latencies.iter().map(|latency| {
        let number = |seconds: Option<f64>| match (latency.count, seconds) {
            (None, _) => AWAY.into(),
            (_, None) => "-".into(),
            (_, Some(seconds)) => duration(seconds),
        };
        let is_broken = latency
            .p99_seconds
            .is_some_and(|p99| p99 > latency.promise_seconds);
        let within = match (latency.count, latency.within_promise) {
            (None, _) => AWAY.into(),
            (_, None) => "-".into(),
            (_, Some(share)) => format!("{:.2}%", share * 100.0),
        };
        let cells = [
            latency.channel.to_owned(),
            right(number(latency.p50_seconds), 10),
            right(number(latency.p99_seconds), 10),
            right(duration(latency.promise_seconds), 10),
            right(within, 10),
        ];
        Row::new(cells).style(if is_broken { bad() } else { Style::new() })
    });
    let widths = [
        Constraint::Length(24),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    let header = ["LATENCY", "       P50", "       P99", "   PROMISE", "    WITHIN"];
    frame.render_widget(
        Table::new(rows, widths).header(Row::new(header).style(bold())),
        area,
    );
}

fn draw_consumers(frame: &mut Frame<'_>, area: Rect, overview: &Overview, scrolled: &mut usize) {
    let [table, rest] = Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(area);
    let Some(consumers) = &overview.consumers else {
        frame.render_widget(
            Paragraph::new(Line::styled("consumers and streams: away", warning())),
            table,
        );
        return;
    };
    let room = usize::from(table.height.saturating_sub(1));
    // No further than to the end.
    *scrolled = (*scrolled).min(consumers.len().saturating_sub(room));
    let first = *scrolled;
    let shown = &consumers[first..consumers.len().min(first + room)];
    let rows = shown.iter().map(|consumer| {
        let cells = [
            consumer.consumer.clone(),
            right(count(consumer.pending_count), 13),
            right(count(consumer.ack_pending_count), 9),
            right(age(consumer.oldest_age_seconds), 8),
            right(number(consumer.acknowledged_per_second), 9),
            right(drain(consumer), 9),
        ];
        let is_stuck = consumer.lag() > 0 && consumer.drain_seconds.is_none();
        Row::new(cells).style(if is_stuck { warning() } else { Style::new() })
    });
    let widths = [
        Constraint::Min(22),
        Constraint::Length(13),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(9),
    ];
    let header = [
        "CONSUMER",
        "      PENDING",
        "  UNACKED",
        "  OLDEST",
        "  ACKED/S",
        "    DRAIN",
    ];
    frame.render_widget(
        Table::new(rows, widths).header(Row::new(header).style(bold())),
        table,
    );
    frame.render_widget(Paragraph::new(rest_line(overview, consumers, shown)), rest);
}

/// What is not in the table: the other consumers, and the fullest stream.
fn rest_line(overview: &Overview, consumers: &[Consumer], shown: &[Consumer]) -> Line<'static> {
    let hidden = consumers.len() - shown.len();
    let lag = |consumers: &[Consumer]| consumers.iter().map(Consumer::lag).fold(0, u64::saturating_add);
    let mut spans = Vec::new();
    if hidden > 0 {
        let text = format!(
            "… {} with a lag of {}   ",
            counted(hidden as u64, "more consumer", "more consumers"),
            count(lag(consumers).saturating_sub(lag(shown)))
        );
        spans.push(Span::styled(text, dim()));
    }
    let fullest = overview.streams.as_ref().and_then(|streams| streams.first());
    if let Some((stream, fullness)) = fullest.and_then(|stream| Some((&stream.stream, stream.fullness?))) {
        let style = if fullness >= FULL_MIN { bad() } else { dim() };
        spans.push(Span::styled(
            format!("fullest stream: {stream} {:.0}%", fullness * 100.0),
            style,
        ));
    }
    Line::from(spans)
}

/// The sources that can't be read, and why.
fn away_lines(overview: &Overview) -> Vec<Line<'static>> {
    let away: Vec<_> = overview
        .sources
        .iter()
        .filter_map(|source| Some((&source.source, source.error.as_ref()?)))
        .collect();
    let mut lines: Vec<_> = away
        .iter()
        .take(AWAY_LINES_MAX)
        .map(|(source, error)| Line::styled(format!("away: {source}: {error}"), warning()))
        .collect();
    if away.len() > AWAY_LINES_MAX {
        let more = counted(
            (away.len() - AWAY_LINES_MAX) as u64,
            "more source",
            "more sources",
        );
        lines.push(Line::styled(format!("away: {more}"), warning()));
    }
    lines
}

fn right(text: impl AsRef<str>, width: usize) -> String {
    format!("{:>width$}", text.as_ref())
}

/// A rate: with a decimal if it is small.
fn number(rate: f64) -> String {
    if rate > 0.0 && rate < 100.0 {
        format!("{rate:.1}")
    } else {
        count(rate.round() as u64)
    }
}

fn duration(seconds: f64) -> String {
    if (1.0..10.0).contains(&seconds) {
        return format!("{seconds:.1} s");
    }
    approximate(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

fn age(seconds: f64) -> String {
    if seconds > 0.0 {
        duration(seconds)
    } else {
        "-".into()
    }
}

fn drain(consumer: &Consumer) -> String {
    match consumer.drain_seconds {
        _ if consumer.lag() == 0 => "-".into(),
        Some(seconds) if seconds < 1.0 => "< 1 s".into(),
        Some(seconds) => duration(seconds),
        None => "never".into(),
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn warning() -> Style {
    Style::new().fg(Color::Yellow)
}

fn bad() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::top::overview::{Day, DeadLetters, SourceState, Stream};

    fn overview() -> Overview {
        let consumer = |number: u64| Consumer {
            consumer: format!("redrive-analytics-posts-{number}"),
            stream: "REDRIVE".into(),
            pending_count: 10_000_000 / (number + 1),
            ack_pending_count: 8_192,
            oldest_age_seconds: 100.0 - number as f64,
            acknowledged_per_second: if number == 1 { 0.0 } else { 12_345.6 },
            drain_seconds: (number != 1).then_some(810.0),
        };
        Overview {
            read_time: "2026-01-31T08:15:00.123Z".into(),
            sources: vec![SourceState {
                source: "lag".into(),
                error: None,
            }],
            posts_per_second: Some(1.25),
            timeline_deliveries_per_second: Some(1_234_567.0),
            pushes_per_second: Some(0.0),
            latencies: vec![
                Latency {
                    channel: "timeline",
                    promise_seconds: 30.0,
                    p50_seconds: Some(0.012),
                    p99_seconds: Some(1.25),
                    within_promise: Some(0.99994),
                    count: Some(1_000.0),
                },
                Latency {
                    channel: "push",
                    promise_seconds: 5.0,
                    p50_seconds: None,
                    p99_seconds: None,
                    within_promise: None,
                    count: Some(0.0),
                },
            ],
            dead_letters: Some(DeadLetters {
                open_count: 1_234,
                group_count: 2,
            }),
            last_24_hours: Some(Day {
                post_count: 100_000,
                timeline_delivered_count: 100_000_000,
                push_delivered_count: 0,
            }),
            consumers: Some((0..25).map(consumer).collect()),
            streams: Some(vec![Stream {
                stream: "POSTS".into(),
                fullness: Some(0.42),
                message_count: 7,
            }]),
        }
    }

    /// The lines of a terminal of this size.
    fn drawn(overview: &Overview, scrolled: usize, (width, height): (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let mut screen = Screen {
            server: "http://127.0.0.1:7700".into(),
            scrolled,
        };
        terminal.draw(|frame| draw(frame, overview, &mut screen)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells = buffer.content().chunks(usize::from(width));
        cells
            .map(|row| {
                row.iter()
                    .map(ratatui::buffer::Cell::symbol)
                    .collect::<String>()
                    .trim_end()
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn everything_fits_80_by_24() {
        let lines = drawn(&overview(), 0, (80, 24));
        assert_eq!(
            lines.join("\n"),
            "\
herald top   http://127.0.0.1:7700   08:15:00 UTC

posts                              1.2/s             100,000 in 24 h
timeline deliveries          1,234,567/s         100,000,000 in 24 h
pushes                               0/s                   0 in 24 h
dead letters            1,234 open in 2 groups: herald dlq groups

LATENCY                         P50        P99    PROMISE     WITHIN
timeline                      12 ms      1.2 s       30 s     99.99%
push                              -          -      5.0 s          -

CONSUMER                          PENDING   UNACKED   OLDEST   ACKED/S     DRAIN
redrive-analytics-posts-0      10,000,000     8,192    1 min    12,346    13 min
redrive-analytics-posts-1       5,000,000     8,192    1 min         0     never
redrive-analytics-posts-2       3,333,333     8,192    1 min    12,346    13 min
redrive-analytics-posts-3       2,500,000     8,192    1 min    12,346    13 min
redrive-analytics-posts-4       2,000,000     8,192    1 min    12,346    13 min
redrive-analytics-posts-5       1,666,666     8,192    1 min    12,346    13 min
redrive-analytics-posts-6       1,428,571     8,192    1 min    12,346    13 min
redrive-analytics-posts-7       1,250,000     8,192    1 min    12,346    13 min
redrive-analytics-posts-8       1,111,111     8,192    1 min    12,346    13 min
redrive-analytics-posts-9       1,000,000     8,192    1 min    12,346    13 min
… 15 more consumers with a lag of 8,992,772   fullest stream: POSTS 42%
q quits   ↑↓ scroll consumers   rates and latencies of the last 30 s"
        );
    }

    #[test]
    fn a_larger_terminal_shows_more_and_a_small_one_scrolls() {
        let lines = drawn(&overview(), 0, (120, 50));
        let all = lines
            .iter()
            .filter(|line| line.starts_with("redrive-analytics-posts-"));
        assert_eq!(all.count(), 25);
        assert!(
            !lines.iter().any(|line| line.contains("more consumer")),
            "{lines:?}"
        );
        // No further than to the end.
        let lines = drawn(&overview(), 1_000, (120, 24));
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("redrive-analytics-posts-24 ")),
            "{lines:?}"
        );
        for size in [(40, 10), (10, 3), (1, 1)] {
            drawn(&overview(), 0, size);
        }
    }

    #[test]
    fn what_is_away_is_no_zero() {
        let error = || Some("connection refused".to_owned());
        let sources = ["http://127.0.0.1:7701", "lag", "dead letters", "totals"];
        let away = Overview {
            sources: sources
                .map(|source| SourceState {
                    source: source.into(),
                    error: error(),
                })
                .into(),
            posts_per_second: None,
            timeline_deliveries_per_second: None,
            pushes_per_second: None,
            latencies: crate::top::overview::latencies(&crate::top::window::Activity::default()),
            dead_letters: None,
            last_24_hours: None,
            consumers: None,
            streams: None,
            ..overview()
        };
        let lines = drawn(&away, 0, (80, 24));
        let text = lines.join("\n");
        // The first line has the time.
        assert!(lines[1..].iter().all(|line| !line.contains(" 0")), "{text}");
        for line in [
            "posts                             away/s                away in 24 h",
            "dead letters            away",
            "timeline                       away       away       30 s       away",
            "consumers and streams: away",
            "away: http://127.0.0.1:7701: connection refused",
            "away: 1 more source",
        ] {
            assert!(
                lines.iter().any(|found| found == line),
                "{line:?} is missing:\n{text}"
            );
        }
    }
}

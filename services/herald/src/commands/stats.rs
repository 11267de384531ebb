//! `herald stats`

use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::{Show, Size, Table, count},
    time::{self, from_proto, rfc3339, to_proto},
};
use herald_proto::v1::{self, GetPostStatsRequest, GetTotalsRequest};
use jiff::Timestamp;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  The last 24 hours, per hour:
    herald stats

  A week, or one day:
    herald stats --since 7d
    herald stats --since 2026-01-31T00:00:00Z --until 2026-02-01T00:00:00Z

  One post:
    herald stats 17";

/// Print totals of a time range, or of one post
///
/// The totals come from the analytics service and lag behind the deliveries by some seconds. Use `herald delivery` for
/// the exact state of a post's deliveries.
///
/// Hours and columns that don't fit the terminal are left out, the earliest hours first; without a terminal its size is
/// 80 × 24. JSON output is always complete.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of a post; prints its totals instead of a time range
    #[arg(value_name = "POST")]
    post_id: Option<u64>,

    /// The start of the range: an age such as 7d, or an RFC 3339 time; rounded down to the hour
    #[arg(long, value_name = "WHEN", default_value = "24h", value_parser = time::time_or_age, conflicts_with = "post_id")]
    since: Timestamp,

    /// The end of the range: an age, or an RFC 3339 time; rounded up to the hour [default: now]
    #[arg(long, value_name = "WHEN", value_parser = time::time_or_age, conflicts_with = "post_id")]
    until: Option<Timestamp>,

    /// Print all hours and columns, also those that don't fit the terminal
    #[arg(long)]
    all: bool,
}

/// Columns that are left out on a narrow terminal, the first one first.
const UNIMPORTANT: [&str; 4] = ["push suppressed", "push expired", "deleted", "timeline dead"];

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Totals {
    #[serde(rename = "post_count")]
    posts: u64,
    #[serde(rename = "deleted_post_count")]
    deleted_posts: u64,
    #[serde(rename = "timeline_delivered_count")]
    timeline_delivered: u64,
    #[serde(rename = "push_delivered_count")]
    push_delivered: u64,
    #[serde(rename = "push_suppressed_count")]
    push_suppressed: u64,
    #[serde(rename = "push_expired_count")]
    push_expired: u64,
    #[serde(rename = "push_dead_count")]
    push_dead: i64,
    #[serde(rename = "timeline_dead_count")]
    timeline_dead: i64,
}

impl From<Option<v1::Totals>> for Totals {
    fn from(totals: Option<v1::Totals>) -> Self {
        let totals = totals.unwrap_or_default();
        Self {
            posts: totals.post_count,
            deleted_posts: totals.deleted_post_count,
            timeline_delivered: totals.timeline_delivered_count,
            push_delivered: totals.push_delivered_count,
            push_suppressed: totals.push_suppressed_count,
            push_expired: totals.push_expired_count,
            push_dead: totals.push_dead_count,
            timeline_dead: totals.timeline_dead_count,
        }
    }
}

impl Totals {
    /// A table whose first column has this name.
    fn table(first: &'static str) -> Table {
        Table::new(&[
            first,
            ">posts",
            ">deleted",
            ">timeline",
            ">timeline dead",
            ">push",
            ">push suppressed",
            ">push expired",
            ">push dead",
        ])
    }

    fn add(self, other: Self) -> Self {
        Self {
            posts: self.posts + other.posts,
            deleted_posts: self.deleted_posts + other.deleted_posts,
            timeline_delivered: self.timeline_delivered + other.timeline_delivered,
            push_delivered: self.push_delivered + other.push_delivered,
            push_suppressed: self.push_suppressed + other.push_suppressed,
            push_expired: self.push_expired + other.push_expired,
            push_dead: self.push_dead + other.push_dead,
            timeline_dead: self.timeline_dead + other.timeline_dead,
        }
    }

    fn row(&self, first: String) -> Vec<String> {
        vec![
            first,
            count(self.posts),
            count(self.deleted_posts),
            count(self.timeline_delivered),
            format_signed(self.timeline_dead),
            count(self.push_delivered),
            count(self.push_suppressed),
            count(self.push_expired),
            format_signed(self.push_dead),
        ]
    }
}

/// Formats a count of dead deliveries; it is negative in an hour in which redrives retried more dead deliveries than
/// new ones died.
fn format_signed(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", count(number.unsigned_abs()))
}

#[derive(Debug, Serialize)]
struct Range {
    totals: Totals,
    hours: Vec<Hour>,
    /// The size to fit; `None` for all rows and columns.
    #[serde(skip)]
    size: Option<Size>,
}

#[derive(Debug, Serialize)]
struct Hour {
    start_time: Option<String>,
    totals: Totals,
    #[serde(skip)]
    start: Option<Timestamp>,
}

impl Show for Range {
    fn text(&self) -> String {
        let mut table = Totals::table("hour (UTC)");
        // The header, the total and the prompt need three lines.
        let room = self
            .size
            .map_or(usize::MAX, |size| size.height.saturating_sub(3).max(2));
        let (earlier, shown) = if self.hours.len() <= room {
            (&[][..], &self.hours[..])
        } else {
            self.hours.split_at(self.hours.len() - (room - 1))
        };
        if !earlier.is_empty() {
            let sum = earlier
                .iter()
                .map(|hour| hour.totals)
                .fold(Totals::default(), Totals::add);
            table.row(sum.row(format!("{} earlier hours", earlier.len())));
        }
        for hour in shown {
            let start = hour
                .start
                .map(|start| start.strftime("%Y-%m-%d %H:%M").to_string());
            table.row(hour.totals.row(start.unwrap_or_default()));
        }
        table.row(self.totals.row("total".into()));
        if let Some(size) = self.size {
            table.fit(size.width, &UNIMPORTANT);
        }
        table.render()
    }
}

#[derive(Debug, Serialize)]
struct PostStats {
    post_id: u64,
    author_id: String,
    totals: Totals,
    timeline_latency_ms_max: u64,
    push_latency_ms_max: u64,
    /// The size to fit; `None` for all columns.
    #[serde(skip)]
    size: Option<Size>,
}

impl Show for PostStats {
    fn text(&self) -> String {
        let mut table = Totals::table("post");
        table.row(self.totals.row(self.post_id.to_string()));
        if let Some(size) = self.size {
            table.fit(size.width, &UNIMPORTANT);
        }
        let latency = |ms: u64| {
            if ms == 0 {
                "-".into()
            } else {
                format!("{} ms", count(ms))
            }
        };
        format!(
            "{}\n\nauthor {}\nhighest timeline latency {}, highest push latency {}",
            table.render(),
            printable(&self.author_id),
            latency(self.timeline_latency_ms_max),
            latency(self.push_latency_ms_max),
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let size = (!args.all).then(Size::of_stdout);
    if let Some(post_id) = args.post_id {
        let request = client.request(GetPostStatsRequest { post_id });
        let stats = client.analytics().get_post_stats(request).await?.into_inner();
        return context.output.show(&PostStats {
            post_id: stats.post_id,
            author_id: stats.author_id,
            totals: stats.totals.into(),
            timeline_latency_ms_max: stats.timeline_latency_ms_max,
            push_latency_ms_max: stats.push_latency_ms_max,
            size,
        });
    }
    let request = client.request(GetTotalsRequest {
        start_time: Some(to_proto(args.since)),
        end_time: args.until.map(to_proto),
    });
    let totals = client.analytics().get_totals(request).await?.into_inner();
    let hours = totals.hours.into_iter().map(|hour| Hour {
        start_time: rfc3339(hour.start_time.as_ref()),
        start: from_proto(hour.start_time.as_ref()),
        totals: hour.totals.into(),
    });
    context.output.show(&Range {
        totals: totals.totals.into(),
        hours: hours.collect(),
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals() -> Totals {
        Totals {
            posts: 100_000,
            timeline_delivered: 100_000_000,
            push_delivered: 10_000_000,
            ..Totals::default()
        }
    }

    #[test]
    fn a_day_fits_80_columns_and_24_lines_and_adds_up() {
        let hours = (0..25).map(|hour| Hour {
            start_time: None,
            totals: totals(),
            start: Some(Timestamp::from_second(1_769_846_400 + hour * 3_600).unwrap()),
        });
        let range = Range {
            totals: totals(),
            hours: hours.collect(),
            size: Some(Size::DEFAULT),
        };
        let text = range.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 23, "{text}");
        for line in &lines {
            assert!(console::measure_text_width(line) <= 80, "{line}");
        }
        // 20 of 25 hours are shown.
        assert!(
            lines[1].starts_with("5 earlier hours") && lines[1].contains("500,000"),
            "{text}"
        );
        assert!(lines[21].starts_with("2026-02-01 08:00"), "{text}");
        assert!(lines[22].starts_with("total"), "{text}");

        let all = Range { size: None, ..range }.text();
        assert_eq!(all.lines().count(), 27, "{all}");
        assert!(all.contains("PUSH SUPPRESSED"), "{all}");
    }
}

//! Report of the deliveries benchmark.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use herald_cli::output::Show;
use serde::Serialize;

use super::cpu::Cpu;
use super::engine::RedisMemory;
use super::reads;
use super::verify::{AuditSums, LedgerSums, StoreSums};

/// Distribution of latencies, milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Percentiles {
    /// Number of samples.
    pub(super) count: u64,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Percentiles {
    /// From a histogram in microseconds.
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |micros: u64| micros as f64 / 1_000.0;
        Self {
            count: histogram.len(),
            p50: ms(histogram.value_at_quantile(0.50)),
            p95: ms(histogram.value_at_quantile(0.95)),
            p99: ms(histogram.value_at_quantile(0.99)),
            max: ms(histogram.max()),
        }
    }
}

/// Report of the deliveries benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) users: u32,
    pub(super) authors: u32,
    pub(super) follows: u64,
    pub(super) posts: u64,
    /// Requested posts per second; `None`: as fast as possible.
    pub(super) rate: Option<f64>,
    pub(super) ready_seconds: f64,
    pub(super) import_seconds: f64,
    pub(super) imported_per_second: f64,
    pub(super) accepted_per_second: f64,
    pub(super) deliveries: u64,
    /// Measured from the first submit until every delivery is durable and acknowledged.
    pub(super) deliveries_per_second: f64,
    pub(super) seconds: f64,
    /// From the scheduled time to the answer; empty without a rate.
    pub(super) submit_ms: Percentiles,
    /// From the scheduled time until a watcher of the timeline has the post.
    pub(super) visible_ms: Percentiles,
    /// The same for the big author's post, which `visible_ms` excludes.
    pub(super) big_author_visible_ms: Percentiles,
    /// From the scheduled time until the device has received the push.
    pub(super) push_ms: Percentiles,
    /// From the scheduled time to the page of a timeline.
    pub(super) list_ms: Option<Percentiles>,
    pub(super) lists: Option<reads::Sums>,
    pub(super) pushes: u64,
    /// Pushes divided by `seconds`.
    pub(super) pushes_per_second: f64,
    pub(super) push_duplicates: u64,
    /// From the first submit until all deliveries are archived and analysed.
    pub(super) cpu: Cpu,
    pub(super) cpu_us_per_delivery: f64,
    pub(super) rss_mb_max: f64,
    /// Memory of the private Redis.
    pub(super) redis: Option<RedisMemory>,
    /// Data of the private Redis divided by the entries on timelines.
    pub(super) redis_bytes_per_entry: Option<f64>,
    /// Of the server, and of private servers.
    pub(super) disk_mb: f64,
    pub(super) disk_bytes_per_delivery: f64,
    pub(super) ledger: LedgerSums,
    /// Result of the server's audit.
    pub(super) audit: AuditSums,
    /// `None`: not checked.
    pub(super) store: Option<StoreSums>,
    /// Whether graph, ledger and store agree on every delivery.
    pub(super) verified: bool,
}

impl Show for Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name:<22}{value}");
        };
        line(
            "graph",
            format!(
                "{} users, {} authors, {} follows",
                self.users, self.authors, self.follows
            ),
        );
        line("ready after", format!("{:.2} s", self.ready_seconds));
        line(
            "import",
            format!(
                "{:.1} s, {:.0} follows/s",
                self.import_seconds, self.imported_per_second
            ),
        );
        let rate = self
            .rate
            .map_or("as fast as possible".to_owned(), |rate| format!("at {rate}/s"));
        line(
            "posts",
            format!(
                "{} {rate}, accepted {:.0}/s",
                self.posts, self.accepted_per_second
            ),
        );
        line(
            "deliveries",
            format!(
                "{} in {:.1} s, {:.0}/s",
                self.deliveries, self.seconds, self.deliveries_per_second
            ),
        );
        line("submit", format_percentiles(&self.submit_ms));
        line("accept to visible", format_percentiles(&self.visible_ms));
        if self.big_author_visible_ms.count > 0 {
            line(
                "  of the big author",
                format_percentiles(&self.big_author_visible_ms),
            );
        }
        line("accept to push", format_percentiles(&self.push_ms));
        if let (Some(list_ms), Some(lists)) = (&self.list_ms, &self.lists) {
            line("list", format_percentiles(list_ms));
            line(
                "lists",
                format!(
                    "{:.1} entries each, {} without a text, {} timelines were being rebuilt",
                    lists.entries as f64 / (list_ms.count.max(1) as f64),
                    lists.without_text,
                    lists.rebuilding
                ),
            );
        }
        if self.pushes > 0 {
            line(
                "pushes",
                format!(
                    "{}, {:.0}/s, {} received more than once",
                    self.pushes, self.pushes_per_second, self.push_duplicates
                ),
            );
        }
        line(
            "processor time",
            format!(
                "{:.2} µs per delivery: herald {:.1} s, nats-server {:.1} s, PostgreSQL {:.1} s, Redis {:.1} s, load {:.1} s",
                self.cpu_us_per_delivery,
                self.cpu.herald_s,
                self.cpu.nats_s,
                self.cpu.postgres_s,
                self.cpu.redis_s,
                self.cpu.load_s
            ),
        );
        line("maximum memory", format!("{:.0} MB", self.rss_mb_max));
        if let Some(redis) = self.redis {
            let per_entry = self
                .redis_bytes_per_entry
                .map_or(String::new(), |bytes| format!(", {bytes:.2} bytes an entry"));
            line(
                "Redis",
                format!(
                    "{:.1} MB of data{per_entry}; {:.0} MB in use, process {:.0} MB",
                    redis.dataset_mb, redis.used_mb, redis.rss_mb
                ),
            );
        }
        line(
            "disk",
            format!(
                "{:.0} MB, {:.1} bytes per delivery",
                self.disk_mb, self.disk_bytes_per_delivery
            ),
        );
        line(
            "audit",
            format!(
                "{} deliveries in {:.2} s, {:.0}/s, {} findings",
                self.audit.deliveries,
                self.audit.seconds,
                self.audit.deliveries_per_second,
                self.audit.findings
            ),
        );
        let store = match self.store {
            Some(store) => format!(
                "{} on timelines, {} missing, {} extra",
                store.deliveries, store.missing, store.extra
            ),
            None => "store not checked".to_owned(),
        };
        let verdict = if self.verified { "ok" } else { "FAILED" };
        line(
            "checked",
            format!(
                "{verdict}: {} wrong posts in the ledger; {store}",
                self.ledger.wrong_posts
            ),
        );
        text.truncate(text.trim_end().len());
        text
    }
}

/// Formats a distribution in one line.
pub(super) fn format_percentiles(p: &Percentiles) -> String {
    if p.count == 0 {
        return "not measured".to_owned();
    }
    format!(
        "p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, max {:.1} ms ({} samples)",
        p.p50, p.p95, p.p99, p.max, p.count
    )
}

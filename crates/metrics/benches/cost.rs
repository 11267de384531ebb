//! The cost of metrics: what a message of the mesh records, and the text of `/metrics`.
//!
//! `cargo bench -p herald-metrics`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use herald_metrics::{Counter, Family, Shared, seconds_family, traced_seconds};
use rustix::time::{ClockId, clock_gettime};

type Labels = [(&'static str, String); 2];

fn main() {
    let shared = Shared::new();
    let messages: Counter = Counter::default();
    let calls = seconds_family::<[(&'static str, &'static str); 2]>();
    let published = Family::<[(&'static str, &'static str); 2], Counter>::default();
    let visible = traced_seconds();
    shared.register(|registry| {
        registry.register("bench_messages", "Messages", messages.clone());
        registry.register("bench_call_seconds", "Calls", calls.clone());
        registry.register("bench_published", "Publishes", published.clone());
        registry.register("bench_visible_seconds", "Latency", visible.clone());
    });
    let call = |operation| {
        calls
            .get_or_create(&[("operation", operation), ("result", "ok")])
            .observe(Instant::now().elapsed().as_secs_f64());
    };
    // A timeline chunk: settled and timed, three calls of the store, a publish, a latency, deliveries.
    let chunk = time(1_000_000, || {
        messages.inc();
        messages.inc_by(4_096);
        for operation in [
            "timelines_deliver",
            "ledger_settle",
            "ledger_outcome",
            "process",
            "publish",
        ] {
            call(operation);
        }
        published
            .get_or_create(&[("stream", "EVENTS"), ("result", "stored")])
            .inc();
        visible.observe(Duration::from_millis(7), None);
    });
    println!("what a timeline chunk records: {} ns", chunk.as_nanos());

    // As many histograms as a busy process has; the number of users is in no metric.
    let shared = Shared::new();
    let family = seconds_family::<Labels>();
    shared.register(|registry| registry.register("bench_seconds", "Times", family.clone()));
    for index in 0..150 {
        let labels = [
            ("operation", format!("operation_{index}")),
            ("result", "ok".to_owned()),
        ];
        family.get_or_create(&labels).observe(0.01);
    }
    let lines = shared.open_metrics().lines().count();
    let open_metrics = time(200, || drop(black_box(shared.open_metrics())));
    let prometheus = time(200, || drop(black_box(shared.prometheus())));
    println!(
        "{lines} lines: {} us as OpenMetrics, {} us as Prometheus text",
        open_metrics.as_micros(),
        prometheus.as_micros()
    );
}

/// Mean processor time of one run: other programs of the machine don't count.
fn time(runs: u32, mut run: impl FnMut()) -> Duration {
    let started = processor_time();
    for _ in 0..runs {
        run();
    }
    processor_time().saturating_sub(started) / runs
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

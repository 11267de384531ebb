//! Reads what the overview shows: broker state, dead letters and totals over gRPC, rates and latencies from `/metrics`.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use futures::join;
use herald_cli::{
    caller::Caller,
    client::{Client, OperatorClient},
    failure::Failure,
    time::duration_to_proto,
};
use herald_proto::v1::{
    self, DeadLetterFilter, DeadLetterState, GetTotalsRequest, ListGroupsRequest, StreamLag, WatchLagRequest,
};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    overview::{Consumer, Day, DeadLetters, Overview, SourceState, Stream, drain_seconds, latencies},
    samples::Samples,
    window::{WINDOW, Window},
};
use crate::sources::{Answer, Asker, Source};

/// Limit of a call for one reading.
const LIMIT: Duration = Duration::from_secs(3);
/// Pause before a stream of lag that ended is opened again.
const PAUSE: Duration = Duration::from_secs(1);
/// Interval at which totals are read: they change slowly, and cost a scan.
const TOTALS_INTERVAL: Duration = Duration::from_secs(10);

/// The newest reading of the lag, and when it came; or why there is none.
type Lag = Result<(Instant, Vec<StreamLag>), String>;

/// The addresses of a server's ports.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    /// The public port.
    pub(crate) public: String,
    /// The operator port.
    pub(crate) operators: String,
    /// How to call them.
    pub(crate) caller: Caller,
}

/// A connection that is made at its first use. A failed one is made again.
struct Connected<C> {
    url: String,
    caller: Caller,
    client: Option<C>,
}

/// Reads overviews.
pub(crate) struct Reader {
    public: Connected<Client>,
    operators: Connected<OperatorClient>,
    sources: Vec<Source>,
    asker: Asker,
    window: Window,
    lag: watch::Receiver<Lag>,
    watching: JoinHandle<()>,
    /// The acknowledgement rates of the readings in the window.
    rates: VecDeque<(Instant, BTreeMap<String, f64>)>,
    totals: Option<(Instant, Result<Day, String>)>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl<C: Clone> Connected<C> {
    fn to(url: String, caller: &Caller) -> Self {
        Self {
            url,
            caller: Caller {
                deadline: LIMIT,
                ..caller.clone()
            },
            client: None,
        }
    }

    async fn client(
        &mut self,
        connect: impl AsyncFnOnce(&str, Caller) -> Result<C, Failure>,
    ) -> Result<C, Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = connect(&self.url, self.caller.clone()).await?;
        self.client = Some(client.clone());
        Ok(client)
    }
}

impl Reader {
    /// Starts to watch the lag at a server. `sources`: the HTTP ports of the processes.
    pub(crate) fn start(servers: &Servers, interval: Duration, sources: Vec<Source>) -> Self {
        let (sender, lag) = watch::channel(Err("no reading yet".into()));
        let operators = || Connected::to(servers.operators.clone(), &servers.caller);
        Self {
            watching: tokio::spawn(watch_lag(operators(), interval, sender)),
            public: Connected::to(servers.public.clone(), &servers.caller),
            operators: operators(),
            sources,
            asker: Asker::default(),
            window: Window::default(),
            lag,
            rates: VecDeque::new(),
            totals: None,
        }
    }

    /// Reads everything once.
    pub(crate) async fn read(&mut self) -> Overview {
        let (public, operators) = (&mut self.public, &mut self.operators);
        let (asker, sources) = (&mut self.asker, &self.sources);
        let with_totals = (self.totals.as_ref()).is_none_or(|(at, _)| at.elapsed() >= TOTALS_INTERVAL);
        let totals = async {
            if with_totals {
                Some(day(public).await)
            } else {
                None
            }
        };
        let answers = asker.ask(sources, "/metrics", false);
        // The first reading of the lag; later ones come by themselves.
        let (lag, is_first) = (&mut self.lag, self.totals.is_none());
        let first = async {
            if is_first {
                let _ = timeout(LIMIT, lag.changed()).await;
            }
        };
        let (dead_letters, totals, answers, ()) = join!(dead_letters(operators), totals, answers, first);
        if let Some(totals) = totals {
            self.totals = Some((Instant::now(), totals));
        }
        let mut states = Vec::new();
        let mut state = |source: String, error: Option<&String>| {
            states.push(SourceState {
                source,
                error: error.cloned(),
            });
        };
        let mut processes = Vec::new();
        for Answer {
            name,
            body,
            received_at,
            ..
        } in answers
        {
            state(name.clone(), body.as_ref().err());
            if let Ok(text) = body {
                processes.push((name, received_at, Samples::parse(&text)));
            }
        }
        self.window.add(Instant::now(), processes);
        let activity = self.window.activity();
        let lag = self.lag.borrow_and_update().clone();
        state("lag".into(), lag.as_ref().err());
        state("dead letters".into(), dead_letters.as_ref().err());
        let totals = self.totals.clone().map(|(_, totals)| totals);
        state(
            "totals".into(),
            totals.as_ref().and_then(|totals| totals.as_ref().err()),
        );
        let (consumers, streams) = if let Ok((at, lag)) = lag {
            self.average(at, &lag);
            (Some(self.consumers(&lag)), Some(streams(&lag)))
        } else {
            self.rates.clear();
            (None, None)
        };
        Overview {
            read_time: Timestamp::now().to_string(),
            sources: states,
            posts_per_second: activity.posts_per_second,
            timeline_deliveries_per_second: activity.timeline_deliveries_per_second,
            pushes_per_second: activity.pushes_per_second,
            latencies: latencies(&activity),
            dead_letters: dead_letters.ok(),
            last_24_hours: totals.and_then(Result::ok),
            consumers,
            streams,
        }
    }

    /// Adds the rates of a reading.
    fn average(&mut self, at: Instant, lag: &[StreamLag]) {
        if self.rates.back().is_none_or(|(last, _)| *last < at) {
            let consumers = lag.iter().flat_map(|stream| &stream.consumers);
            let rates = consumers.map(|one| (one.consumer.clone(), one.acknowledged_per_second));
            self.rates.push_back((at, rates.collect()));
        }
        while self
            .rates
            .front()
            .is_some_and(|(first, _)| at.saturating_duration_since(*first) >= WINDOW)
        {
            self.rates.pop_front();
        }
    }

    fn rate(&self, consumer: &str) -> f64 {
        let rates = self.rates.iter().filter_map(|(_, rates)| rates.get(consumer));
        let (count, sum) = rates.fold((0, 0.0), |(count, sum), rate| (count + 1, sum + rate));
        sum / f64::from(count.max(1))
    }

    fn consumers(&self, lag: &[StreamLag]) -> Vec<Consumer> {
        let consumers = lag.iter().flat_map(|stream| {
            let consumers = stream.consumers.iter();
            consumers.map(|one| {
                let rate = self.rate(&one.consumer);
                let lag = one.pending_count.saturating_add(one.ack_pending_count);
                Consumer {
                    consumer: one.consumer.clone(),
                    stream: stream.stream.clone(),
                    pending_count: one.pending_count,
                    ack_pending_count: one.ack_pending_count,
                    oldest_age_seconds: one.oldest_age_seconds,
                    acknowledged_per_second: rate,
                    drain_seconds: drain_seconds(lag, rate),
                }
            })
        });
        let mut consumers: Vec<_> = consumers.collect();
        consumers.sort_by(|a, b| {
            b.oldest_age_seconds
                .total_cmp(&a.oldest_age_seconds)
                .then(b.lag().cmp(&a.lag()))
                .then(b.acknowledged_per_second.total_cmp(&a.acknowledged_per_second))
                .then(a.consumer.cmp(&b.consumer))
        });
        consumers
    }
}

fn streams(lag: &[StreamLag]) -> Vec<Stream> {
    let streams = lag.iter().map(|stream| Stream {
        stream: stream.stream.clone(),
        fullness: (stream.byte_count_max > 0)
            .then(|| stream.byte_count as f64 / stream.byte_count_max as f64),
        message_count: stream.message_count,
    });
    let mut streams: Vec<_> = streams.collect();
    streams.sort_by(|a, b| {
        let fullness = |stream: &Stream| stream.fullness.unwrap_or(0.0);
        fullness(b).total_cmp(&fullness(a))
    });
    streams
}

/// Keeps the newest reading of the lag, and reads it again from the begin when the stream ends.
async fn watch_lag(mut server: Connected<OperatorClient>, interval: Duration, newest: watch::Sender<Lag>) {
    loop {
        let failed = follow_lag(&mut server, interval, &newest).await;
        // The one that is shown would be taken for a fresh one.
        let reason = failed.map_or_else(
            |failure| failure.message().to_owned(),
            |()| "the server ended the stream".into(),
        );
        let _ = newest.send_replace(Err(reason));
        sleep(PAUSE).await;
    }
}

async fn follow_lag(
    server: &mut Connected<OperatorClient>,
    interval: Duration,
    newest: &watch::Sender<Lag>,
) -> Result<(), Failure> {
    let request = WatchLagRequest {
        interval: Some(duration_to_proto(interval)),
    };
    let client = server.client(OperatorClient::connect).await?;
    let mut readings = client.mesh().watch_lag(request).await?.into_inner();
    loop {
        match timeout(interval + LIMIT, readings.message()).await {
            Ok(Ok(Some(reading))) => {
                let _ = newest.send_replace(Ok((Instant::now(), reading.streams)));
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(status)) => return Err(status.into()),
            Err(_) => {
                return Err(Failure::failed(format!(
                    "no reading within {} s",
                    LIMIT.as_secs()
                )));
            }
        }
    }
}

async fn dead_letters(server: &mut Connected<OperatorClient>) -> Result<DeadLetters, String> {
    let client = server
        .client(OperatorClient::connect)
        .await
        .map_err(|failure| message(&failure))?;
    let request = ListGroupsRequest {
        filter: Some(DeadLetterFilter {
            state: DeadLetterState::Open.into(),
            ..DeadLetterFilter::default()
        }),
        page_size: 1,
    };
    let answer = client.dead_letters().list_groups(client.request(request)).await;
    let groups = answer.map_err(reason)?.into_inner();
    Ok(DeadLetters {
        open_count: groups.dead_letter_count,
        group_count: groups.group_count,
    })
}

async fn day(server: &mut Connected<Client>) -> Result<Day, String> {
    let client = server
        .client(Client::connect)
        .await
        .map_err(|failure| message(&failure))?;
    let answer = client
        .analytics()
        .get_totals(client.request(GetTotalsRequest::default()))
        .await;
    let totals: v1::Totals = answer.map_err(reason)?.into_inner().totals.unwrap_or_default();
    Ok(Day {
        post_count: totals.post_count,
        timeline_delivered_count: totals.timeline_delivered_count,
        push_delivered_count: totals.push_delivered_count,
    })
}

fn reason(status: tonic::Status) -> String {
    message(&status.into())
}

fn message(failure: &Failure) -> String {
    failure.message().to_owned()
}

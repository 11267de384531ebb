//! `herald round-trip`: sends one post through a running mesh.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use clap::ValueHint;
use herald_cli::{
    client::Client,
    context::Context,
    failure::{Failure, Kind, printable},
    output::Show,
};
use herald_proto::v1::{
    Channel, DeletePostRequest, Device, ExplainDeliveryRequest, Follow, FollowRequest, ListTimelineRequest,
    SubmitPostRequest, UnfollowRequest, Webhook, register_device_request::Address,
};
use herald_push_sink::{Keys, Sink};
use herald_runtime::shutdown;
use serde::Serialize;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LONG: &str = "\
Checks a running mesh from end to end. A new user follows a new author, with a webhook at this command as the device; the \
author posts; the command waits until the post is on the follower's timeline and its push has come, and prints how long \
each step took. Then it removes the device and the follow and deletes the post. Exit code 1 names the step that failed.

Push processes must reach this command: --sink-url is its address for them. A private address, such as that of a pod, is \
refused unless the server has `gateway.endpoints.allow_private` and `push.endpoints.allow_private`; --without-push leaves \
the push out.";

const EXAMPLES: &str = "\
Examples:
  herald round-trip --server http://herald-gateway:7700 \\
      --sink-listen 0.0.0.0:8090 --sink-url http://$POD_IP:8090
  herald round-trip --without-push --timeout-seconds 20 --output json";

/// First and longest delay between two looks at the timeline, and between two attempts at a call.
const LOOK_MIN: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(250);
/// Limit of the removal of what was made.
const CLEAN_LIMIT: Duration = Duration::from_secs(15);
/// Name of the webhook, the last segment of its URL.
const SINK_NAME: &str = "round-trip";

/// Send a post through a running mesh: follow, post, timeline, push
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The listen address of the receiver of the push, IP:PORT [default: a free port of this machine alone]
    #[arg(long, value_name = "ADDRESS")]
    sink_listen: Option<SocketAddr>,

    /// The base URL under which push processes reach the receiver [default: http:// and the listen address]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    sink_url: Option<String>,

    /// Check the timeline alone
    #[arg(long, conflicts_with_all = ["sink_listen", "sink_url"])]
    without_push: bool,

    /// The limit of all steps together, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    timeout_seconds: u64,
}

/// The result.
#[derive(Debug, Serialize)]
struct RoundTrip {
    post_id: u64,
    author_id: String,
    follower_id: String,
    /// From the call until the post was accepted.
    accepted_ms: f64,
    /// From the call until the timeline had the post.
    timeline_ms: f64,
    /// From the call until the push had come.
    #[serde(skip_serializing_if = "Option::is_none")]
    push_ms: Option<f64>,
}

impl Show for RoundTrip {
    fn text(&self) -> String {
        let push = match self.push_ms {
            Some(ms) => format!("pushed after {ms:.0} ms"),
            None => "without push".into(),
        };
        format!(
            "post {}: accepted after {:.0} ms, on the timeline after {:.0} ms, {push}",
            self.post_id, self.accepted_ms, self.timeline_ms
        )
    }
}

/// What has to be removed.
#[derive(Debug, Default)]
struct Made {
    follow: bool,
    device: Option<Device>,
    post_id: Option<u64>,
}

/// One run.
struct Trip {
    author_id: String,
    follower_id: String,
    until: Instant,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let stop =
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    let sink = if args.without_push {
        None
    } else {
        Some(listen(&args, &stop).await?)
    };
    let id = Uuid::new_v4().simple();
    let trip = Trip {
        author_id: format!("round-trip-author-{id}"),
        follower_id: format!("round-trip-follower-{id}"),
        until: Instant::now() + Duration::from_secs(args.timeout_seconds),
    };
    let mut made = Made::default();
    let going = async {
        let client = trip
            .step("connect", async || context.client().await.map(Some))
            .await?;
        let done = trip.go(&client, sink.as_ref(), &mut made).await;
        Ok::<_, Failure>((client, done))
    };
    let Some(gone) = stop.run_until_cancelled(going).await else {
        // The future was dropped, so what it had made is known.
        if let Ok(client) = context.client().await {
            trip.clean(&client, made).await?;
        }
        return Err(Failure::new(Kind::Interrupted, "interrupted"));
    };
    let (client, done) = gone?;
    let cleaned = trip.clean(&client, made).await;
    let done = done?;
    cleaned?;
    context.output.show(&done)
}

/// Starts the receiver.
async fn listen(args: &Args, stop: &CancellationToken) -> Result<Sink, Failure> {
    let address = args.sink_listen.unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
    if args.sink_url.is_none() && address.ip().is_unspecified() {
        return Err(Failure::usage(format!(
            "--sink-url must be set, because --sink-listen {address} is no address that push processes can reach"
        )));
    }
    let listening = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, address) = listening
        .await
        .map_err(|error| Failure::io(format!("can't listen on {address} (--sink-listen)"), &error))?;
    let url = args.sink_url.clone().unwrap_or(format!("http://{address}"));
    let sink =
        Sink::new(&url, Keys::generate()).map_err(|error| Failure::usage(format!("--sink-url: {error}")))?;
    tokio::spawn(sink.clone().serve(listener, stop.clone()));
    Ok(sink)
}

impl Trip {
    /// Makes the steps. `made` has what was made when one of them fails.
    async fn go(&self, client: &Client, sink: Option<&Sink>, made: &mut Made) -> Result<RoundTrip, Failure> {
        let follow = Follow {
            follower_id: self.follower_id.clone(),
            author_id: self.author_id.clone(),
            notify: Some(sink.is_some()),
        };
        self.step("follow", async || {
            let request = FollowRequest {
                follow: Some(follow.clone()),
            };
            client.graph().follow(client.request(request)).await?;
            Ok(Some(()))
        })
        .await?;
        made.follow = true;
        if let Some(sink) = sink {
            let webhook = sink.webhook(SINK_NAME);
            let device = self
                .step("device", async || {
                    let address = Address::Webhook(Webhook {
                        url: webhook.url.clone(),
                        secret: webhook.secret.clone(),
                    });
                    client
                        .register_device(self.follower_id.clone(), address)
                        .await
                        .map(Some)
                })
                .await?;
            made.device = Some(device);
        }
        let post = SubmitPostRequest {
            // A repeated call is the same post.
            request_id: Uuid::new_v4().to_string(),
            author_id: self.author_id.clone(),
            text: "round trip".into(),
            ..SubmitPostRequest::default()
        };
        let posted = Instant::now();
        let since = || posted.elapsed().as_secs_f64() * 1e3;
        let post_id = self
            .step("post", async || {
                let call = client.posts().submit_post(client.request(post.clone())).await?;
                Ok(Some(call.into_inner().post_id))
            })
            .await?;
        made.post_id = Some(post_id);
        let accepted_ms = since();
        let on_timeline = async {
            self.step("timeline", async || self.is_on_timeline(client, post_id).await)
                .await?;
            Ok::<_, Failure>(since())
        };
        let pushed = async {
            let Some(sink) = sink else { return Ok(None) };
            self.pushed(client, sink, post_id).await?;
            Ok::<_, Failure>(Some(since()))
        };
        let (timeline_ms, push_ms) = tokio::join!(on_timeline, pushed);
        Ok(RoundTrip {
            post_id,
            author_id: self.author_id.clone(),
            follower_id: self.follower_id.clone(),
            accepted_ms,
            timeline_ms: timeline_ms?,
            push_ms: push_ms?,
        })
    }

    /// Looks at the timeline; `None` while it lacks the post.
    async fn is_on_timeline(&self, client: &Client, post_id: u64) -> Result<Option<()>, Failure> {
        let request = ListTimelineRequest {
            user_id: self.follower_id.clone(),
            ..ListTimelineRequest::default()
        };
        let page = client
            .timelines()
            .list_timeline(client.request(request))
            .await?
            .into_inner();
        let mut posts = page.entries.iter().filter_map(|entry| entry.post.as_ref());
        Ok(posts.any(|post| post.post_id == post_id).then_some(()))
    }

    /// Waits for the push.
    async fn pushed(&self, client: &Client, sink: &Sink, post_id: u64) -> Result<(), Failure> {
        match timeout(self.left(), sink.wait_for(1)).await {
            Ok(received) if received.iter().any(|entry| entry.post_id == post_id) => Ok(()),
            Ok(_) => Err(failed("push", "the push that came is of another post")),
            Err(_) => {
                let why = timeout(CLEAN_LIMIT, self.why_not(client, sink, post_id)).await;
                let why = why.unwrap_or_else(|_| "the server does not say why in time".into());
                Err(failed("push", &format!("no push came in time: {why}")))
            }
        }
    }

    /// Why no push has come.
    async fn why_not(&self, client: &Client, sink: &Sink, post_id: u64) -> String {
        let rejected = sink.summary().rejected;
        if rejected > 0 {
            return format!("{rejected} came with a wrong signature");
        }
        let request = ExplainDeliveryRequest {
            post_id,
            user_id: self.follower_id.clone(),
        };
        let explained = client
            .deliveries()
            .explain_delivery(client.request(request))
            .await;
        let explained = match explained {
            Ok(response) => response.into_inner(),
            Err(status) => return Failure::from(status).message().to_owned(),
        };
        let push = explained
            .channels
            .into_iter()
            .find(|one| one.channel() == Channel::Push);
        let Some(recipient) = push.and_then(|push| push.recipient) else {
            return "fan-out has not planned it yet; see `herald lag`".into();
        };
        let state = recipient
            .state()
            .as_str_name()
            .trim_start_matches("DELIVERY_STATE_");
        let waiting = recipient.waiting_devices.iter();
        let waiting = waiting.filter_map(|device| device.failure.as_ref());
        match waiting.chain(&recipient.failures).next() {
            Some(failure) => format!(
                "it is {}, because {} answers: {}",
                state.to_lowercase(),
                printable(&failure.host),
                printable(&failure.reason)
            ),
            None => format!("it is {}; see `herald lag`", state.to_lowercase()),
        }
    }

    /// Removes what was made. Tries all of it; the error names the first that remains.
    async fn clean(&self, client: &Client, made: Made) -> Result<(), Failure> {
        let device = async {
            match made.device {
                Some(device) => crate::pushes::remove_devices(vec![device], client).await,
                None => Ok(()),
            }
        };
        let follow = async {
            if !made.follow {
                return Ok(());
            }
            let request = UnfollowRequest {
                follower_id: self.follower_id.clone(),
                author_id: self.author_id.clone(),
            };
            client.graph().unfollow(client.request(request)).await?;
            Ok::<_, Failure>(())
        };
        let post = async {
            let Some(post_id) = made.post_id else {
                return Ok(());
            };
            let request = DeletePostRequest {
                post_id,
                author_id: self.author_id.clone(),
                ..DeletePostRequest::default()
            };
            client.posts().delete_post(client.request(request)).await?;
            Ok::<_, Failure>(())
        };
        let cleaning = async { tokio::join!(device, follow, post) };
        let (device, follow, post) = timeout(CLEAN_LIMIT, cleaning)
            .await
            .map_err(|_| failed("clean up", "the device, follow and post were not removed in time"))?;
        for (step, removed) in [
            ("remove device", device),
            ("unfollow", follow),
            ("delete post", post),
        ] {
            removed.map_err(|failure| at(step, failure))?;
        }
        Ok(())
    }

    /// Repeats a call until it gives a value, while it fails in a way that ends by itself.
    async fn step<T>(
        &self,
        name: &str,
        mut call: impl AsyncFnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let mut delay = LOOK_MIN;
        let mut last = None;
        loop {
            match timeout(self.left(), call()).await {
                Ok(Ok(Some(value))) => return Ok(value),
                Ok(Err(failure)) if !passes(failure.kind()) => return Err(at(name, failure)),
                Ok(Err(failure)) => last = Some(failure),
                // Not yet.
                Ok(Ok(None)) | Err(_) => {}
            }
            if self.left().is_zero() {
                return Err(last.map_or_else(|| failed(name, "not done in time"), |last| at(name, last)));
            }
            tokio::time::sleep(delay.min(self.left())).await;
            delay = (delay * 2).min(LOOK_MAX);
        }
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// Whether a failure can end by itself. A user is not found until the follow is visible everywhere.
fn passes(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Unreachable | Kind::Overloaded | Kind::TimedOut | Kind::NotFound
    )
}

/// Adds the step to a failure.
fn at(step: &str, failure: Failure) -> Failure {
    failure.during(&format!("step {step}")).with_kind(Kind::Failed)
}

/// The failure of a step.
fn failed(step: &str, reason: &str) -> Failure {
    Failure::failed(format!("step {step}: {reason}"))
}

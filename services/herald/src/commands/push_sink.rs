//! `herald push-sink`

use std::{
    fs,
    io::{self, BufRead, ErrorKind},
    net::SocketAddr,
    path::PathBuf,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use clap::{ValueEnum, ValueHint};
use futures::{StreamExt, stream};
use herald_cli::{
    client::Client,
    context::Context,
    failure::{self, Failure},
    output::{Output, Show, Table, count, counted},
};
use herald_proto::v1::{Device, ListDevicesRequest, WebPush, Webhook, register_device_request::Address};
use herald_push_sink::{Entry, Keys, Sink, Summary};
use herald_runtime::shutdown;
use serde::Serialize;
use tokio::{net::TcpListener, sync::broadcast::Receiver};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::pushes::{self, REGISTRATIONS_MAX, Received};

const EXAMPLES: &str = "\
Examples:
  Receive and print the pushes of three users; Ctrl-C removes their devices and prints the summary:
    herald push-sink --register 1 2 3

  Web Push, for every user in a file:
    herald push-sink --register-from users.txt --as web-push

  Inject failures: answer the first two pushes of each user with 503:
    herald push-sink --register 1 --fail-first 2 --fail-status 503

  In a test: stop after 1,045 pushes and print the summary as JSON:
    herald push-sink --register-from users.txt --count 1045 --output json | tail -1

The server must accept devices with plain-http and private addresses: start `herald up`, or `herald serve` of
gateway and of push, with --allow-private-endpoints";

/// Receive pushes, verify them and measure their latency
///
/// A receiver for tests. It verifies the signature of webhooks (Standard Webhooks) and the VAPID token of Web Push
/// messages, decrypts the messages, and measures the latency from the acceptance of the post to the arrival of the
/// push. A message that fails verification is rejected and counted. Register devices with --register, or manually with
/// the commands printed at the start. Ctrl-C stops the receiver and prints a summary.
///
/// With --output json each line has an `event`: `listening`, `push` (unless --quiet) or `summary`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The listen address, IP:PORT; port 0 picks a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7799")]
    listen: SocketAddr,

    /// The base URL under which the server reaches this receiver [default: http:// and the listen address]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    public_url: Option<String>,

    /// Print only the summary, not each push
    #[arg(long)]
    quiet: bool,

    /// Register this receiver as a device of these user ids
    #[arg(long, value_name = "USER", num_args = 1..)]
    register: Vec<String>,

    /// Register this receiver for the user ids in a file, one per line; `-` reads standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    register_from: Option<PathBuf>,

    /// The kind of device to register
    #[arg(long = "as", value_name = "KIND", value_enum, default_value_t)]
    kind: Kind,

    /// Keep the registered devices on exit; a later start with the same --keys and --listen receives their pushes
    #[arg(long)]
    keep_devices: bool,

    /// The file of the receiver's keys, created if missing; devices that are kept then stay valid after a restart
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    keys: Option<PathBuf>,

    /// Answer the first COUNT pushes of each registered user with the status of --fail-status
    #[arg(long, value_name = "COUNT")]
    fail_first: Option<u32>,

    /// The HTTP status of injected failures, 300 or higher
    #[arg(long, value_name = "STATUS", default_value = "503", value_parser = parse_status, requires = "fail_first")]
    fail_status: http::StatusCode,

    /// Stop after this many pushes [default: run until Ctrl-C]
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[default]
    Webhook,
    WebPush,
}

/// Clap value parser for the status of an injected failure.
fn parse_status(text: &str) -> Result<http::StatusCode, String> {
    let status: http::StatusCode = text.parse().map_err(|_| "not an HTTP status".to_owned())?;
    if status.as_u16() >= 300 {
        Ok(status)
    } else {
        Err("not an error status; use 300 or higher".into())
    }
}

/// A line of the output.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Listening(Listening),
    Summary(Summary),
}

/// The addresses and keys of the receiver.
#[derive(Debug, Serialize)]
struct Listening {
    address: SocketAddr,
    /// The URL of a device called NAME.
    webhook_url: String,
    webhook_secret: String,
    web_push_endpoint: String,
    p256dh: String,
    auth: String,
    registered: usize,
}

impl Show for Event {
    fn text(&self) -> String {
        match self {
            Self::Listening(listening) => format!(
                "listening on {}, {}\n\nto register a device manually, use a different NAME for each device:\n  \
                 herald device add USER --webhook {} --secret {}\n  \
                 herald device add USER --web-push {} --p256dh {} --auth {}\n",
                listening.address,
                counted(
                    listening.registered as u64,
                    "device registered",
                    "devices registered"
                ),
                listening.webhook_url,
                listening.webhook_secret,
                listening.web_push_endpoint,
                listening.p256dh,
                listening.auth,
            ),
            Self::Summary(summary) => {
                let mut table = Table::new(&[
                    ">received",
                    ">duplicates",
                    ">rejected",
                    ">failed",
                    ">p50 ms",
                    ">p95 ms",
                    ">p99 ms",
                    ">max ms",
                ]);
                let counts = [
                    summary.received,
                    summary.duplicates,
                    summary.rejected,
                    summary.failed,
                ]
                .map(count);
                let latencies = &summary.latency_ms;
                let latencies = [latencies.p50, latencies.p95, latencies.p99, latencies.max];
                table.row(counts.into_iter().chain(latencies.map(|ms| format!("{ms:.1}"))));
                table.render()
            }
        }
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let users = read_users(&args)?;
    let keys = match &args.keys {
        Some(path) => Keys::load_or_create(path).map_err(sink_failure)?,
        None => Keys::generate(),
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| {
            let failure = Failure::io(format!("can't listen on {}", args.listen), &error);
            if error.kind() == ErrorKind::AddrInUse {
                failure.hint("another process uses the port: name another address with --listen (port 0 picks a free port)")
            } else {
                failure
            }
        })?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::io("can't read the listen address", &error))?;
    let url = args
        .public_url
        .clone()
        .unwrap_or_else(|| format!("http://{address}"));
    let sink = Sink::new(&url, keys).map_err(sink_failure)?;
    let mut pushes = sink.subscribe();

    let stop =
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(sink.clone().serve(listener, shutdown.clone()));

    // Register after the listener is up: a push can arrive at once.
    let mut registered = Vec::new();
    let mut outcome = register(&args, users, &sink, context, &stop, &mut registered).await;
    if outcome.is_ok() {
        let receiving = async {
            context
                .output
                .show(&Event::Listening(listening(&sink, address, registered.len())))?;
            receive(&args, &sink, &mut pushes, context.output).await
        };
        outcome = stop.run_until_cancelled(receiving).await.unwrap_or(Ok(()));
    }
    // The devices are removed first, so that no push is sent to a closed port.
    let removed = if args.keep_devices || registered.is_empty() {
        Ok(())
    } else {
        let client = context.client().await;
        match client {
            Ok(client) => pushes::remove_devices(registered, &client).await,
            Err(failure) => Err(failure.during("the registered devices were not removed")),
        }
    };
    shutdown.cancel();
    serving
        .await
        .map_err(|error| Failure::failed(error.to_string()))?
        .map_err(sink_failure)?;
    outcome?;
    while !args.quiet
        && let Ok(entry) = pushes.try_recv()
    {
        context.output.show(&Received::from(entry))?;
    }
    context.output.show(&Event::Summary(sink.summary()))?;
    removed
}

/// Prints pushes until `--count` of them were received.
async fn receive(
    args: &Args,
    sink: &Sink,
    received: &mut Receiver<Entry>,
    output: Output,
) -> Result<(), Failure> {
    let printing = async {
        if args.quiet {
            std::future::pending().await
        } else {
            pushes::print(received, output).await
        }
    };
    let counting = async {
        match args.count {
            Some(count) => drop(sink.wait_for(count).await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = counting => Ok(()),
        outcome = printing => outcome,
    }
}

fn sink_failure(error: herald_push_sink::Error) -> Failure {
    Failure::from(anyhow::Error::new(error))
}

/// The users of --register and --register-from.
fn read_users(args: &Args) -> Result<Vec<String>, Failure> {
    let mut users = args.register.clone();
    if let Some(path) = &args.register_from {
        let failure = |error| Failure::io(format!("can't read {}", path.display()), &error);
        let input: Box<dyn BufRead> = if path.as_os_str() == "-" {
            Box::new(io::stdin().lock())
        } else {
            Box::new(io::BufReader::new(fs::File::open(path).map_err(failure)?))
        };
        for line in input.lines() {
            let line = line.map_err(failure)?;
            let user = line.trim();
            if !user.is_empty() && !user.starts_with('#') {
                users.push(user.to_owned());
            }
        }
    }
    if users.is_empty() && args.fail_first.is_some() {
        return Err(Failure::usage(
            "--fail-first needs registered users: give --register or --register-from",
        ));
    }
    Ok(users)
}

fn listening(sink: &Sink, address: SocketAddr, registered: usize) -> Listening {
    let (webhook, subscription) = (sink.webhook("NAME"), sink.subscription("NAME"));
    Listening {
        address,
        webhook_url: webhook.url,
        webhook_secret: webhook.secret,
        web_push_endpoint: subscription.endpoint,
        p256dh: BASE64URL.encode(subscription.p256dh),
        auth: BASE64URL.encode(subscription.auth),
        registered,
    }
}

/// The URL path segment of a user: the id if it is URL-safe, else its hash.
fn path_segment(user: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_~".contains(c);
    if user.chars().all(plain) {
        user.to_owned()
    } else {
        format!("~{:016x}", xxh3_64(user.as_bytes()))
    }
}

/// Registers a device for each user, and adds it to `registered`, also when another registration fails. After `stop` it
/// starts no registration, and waits for those in flight.
async fn register(
    args: &Args,
    users: Vec<String>,
    sink: &Sink,
    context: &Context,
    stop: &CancellationToken,
    registered: &mut Vec<Device>,
) -> Result<(), Failure> {
    let Some(first) = users.first() else {
        return Ok(());
    };
    let client = context.client().await?;
    if args.kind == Kind::WebPush {
        expect_vapid_key(&client, first, sink).await?;
    }
    let register = |user: String| {
        let name = path_segment(&user);
        if args.fail_first.is_some() {
            let failure = herald_push_sink::InjectedFailure {
                status: args.fail_status,
                retry_after: None,
                times: args.fail_first,
            };
            sink.fail(&name, failure);
        }
        let address = match args.kind {
            Kind::Webhook => {
                let webhook = sink.webhook(&name);
                Address::Webhook(Webhook {
                    url: webhook.url,
                    secret: webhook.secret,
                })
            }
            Kind::WebPush => {
                let subscription = sink.subscription(&name);
                Address::WebPush(WebPush {
                    endpoint: subscription.endpoint,
                    p256dh: BASE64URL.encode(subscription.p256dh),
                    auth: BASE64URL.encode(subscription.auth),
                })
            }
        };
        let client = &client;
        async move {
            client
                .register_device(user, address)
                .await
                .map_err(|failure| match failure.kind() {
                    failure::Kind::Usage => {
                        failure.hint("start the server with `herald up --allow-private-endpoints`")
                    }
                    _ => failure,
                })
        }
    };
    let users = stream::iter(users).take_until(stop.cancelled());
    let mut devices = Box::pin(users.map(register).buffer_unordered(REGISTRATIONS_MAX));
    let mut outcome = Ok(());
    while let Some(device) = devices.next().await {
        match device {
            Ok(device) => registered.push(device),
            Err(failure) => outcome = outcome.and(Err(failure)),
        }
    }
    outcome
}

/// Reads the server's VAPID public key; the sink then rejects pushes signed with another key.
async fn expect_vapid_key(client: &Client, user: &str, sink: &Sink) -> Result<(), Failure> {
    let request = client.request(ListDevicesRequest {
        user_id: user.to_owned(),
    });
    let key = client
        .devices()
        .list_devices(request)
        .await?
        .into_inner()
        .vapid_public_key;
    let key = BASE64URL.decode(key.trim_end_matches('='));
    sink.expect_vapid_key(
        key.map_err(|_| Failure::failed("the server's VAPID public key is not base64url"))?,
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_segments_are_url_safe() {
        assert_eq!(path_segment("107"), "107");
        let name = path_segment("a/b c");
        assert!(name.starts_with('~') && name.len() == 17, "{name}");
        assert_ne!(name, path_segment("a/b d"));
    }

    #[test]
    fn only_error_statuses_are_accepted() {
        assert_eq!(parse_status("410"), Ok(http::StatusCode::GONE));
        assert!(parse_status("200").is_err());
        assert!(parse_status("teapot").is_err());
    }
}

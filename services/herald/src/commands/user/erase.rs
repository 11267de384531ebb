//! `herald user erase`

use std::time::Duration;

use herald_cli::{
    confirm,
    context::Context,
    failure::{Failure, Kind, printable},
    output::Show,
};
use herald_proto::v1::EraseUserRequest;
use herald_runtime::shutdown;
use indicatif::ProgressBar;
use serde::Serialize;

use super::Erasure;
use crate::commands::dlq::with_actor;

const EXAMPLES: &str = "\
Examples:
  herald user erase 107

  In a script, without confirmation:
    herald user erase 107 --yes --output json | jq .counts

  Start the erasure and leave it to the server:
    herald user erase 107 --yes --no-wait";

/// Interval between two pictures of the spinner.
const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// Erase all that is held of a user: posts, follows, devices, preferences, timeline and the user id
///
/// Stop acting for the user first: a call that names the user id later creates a new user. First every process forgets
/// the user id. With PostgreSQL that takes a second or two, and up to 65 seconds if a process was killed or can't reach
/// the database. A call that begins later acts for the new user. What is accepted for the user id meanwhile can be
/// erased or stay: a process that has forgotten the id already takes it for that of a new user.
///
/// Posts, follows and devices are removed then, texts and the timeline when messages in flight are settled. It goes on
/// in the server, also if this command is stopped. What remains is a record of the erasure without the user id: `herald
/// user erasures` lists it. Copies that left Herald are not erased: backups, the files of analytics, and pushes that
/// were sent.
///
/// Asks for confirmation on a terminal; any answer but yes is exit code 1. Without a terminal --yes is required.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The user id
    #[arg(value_name = "USER")]
    user: String,

    /// Skip the confirmation
    #[arg(long, short = 'y')]
    yes: bool,

    /// Return when every process has forgotten the user id; the server goes on with the rest
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    erasure: Erasure,
}

impl Show for Outcome {
    fn text(&self) -> String {
        let erasure = &self.erasure;
        if erasure.is_complete() {
            format!("erased: {}", erasure.counts.text())
        } else {
            format!(
                "erasure {} is running; `herald user erasures` shows when it is complete",
                erasure.erasure_id
            )
        }
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let user = printable(&args.user);
    if !args.yes {
        if !confirm::can_ask() {
            return Err(Failure::usage("erasing can't be undone: confirm it with --yes"));
        }
        let question = format!(
            "Erase all that is held of user {user}: posts, follows, devices, preferences, timeline and the user id? \
             This can't be undone."
        );
        if !confirm::ask(&question)? {
            return Err(Failure::failed("nothing was erased: not confirmed"));
        }
    }
    let client = context.operator_client().await?;
    // No deadline: an erasure waits until messages in flight are settled.
    let request = tonic::Request::new(EraseUserRequest { user_id: args.user });
    let stop =
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    let mut user_data = client.user_data();
    let mut responses = tokio::select! {
        responses = user_data.erase_user(with_actor(request)) => responses?.into_inner(),
        () = stop.cancelled() => return Err(stopped(None)),
    };
    let bar = context.output.progress_bar(None, "{spinner} {msg}");
    bar.set_message("waiting until every process has forgotten the user id");
    // The first answer can take a minute.
    bar.enable_steady_tick(SPINNER_INTERVAL);
    let mut erasure_id = None;
    let outcome = loop {
        let response = tokio::select! {
            response = responses.message() => response,
            () = stop.cancelled() => break Err(stopped(erasure_id)),
        };
        match response {
            Ok(Some(response)) => {
                let Some(erasure) = response.erasure.map(Erasure::from) else {
                    break Err(Failure::failed("the server's response has no erasure"));
                };
                erasure_id = Some(erasure.erasure_id);
                show_progress(&bar, &erasure);
                if args.no_wait || erasure.is_complete() {
                    break Ok(erasure);
                }
            }
            Ok(None) => {
                break Err(Failure::failed(
                    "the server ended the call before the erasure was complete",
                ));
            }
            Err(status) => break Err(Failure::from(status)),
        }
    };
    bar.finish_and_clear();
    match outcome {
        Ok(erasure) => context.output.show(&Outcome { erasure }),
        Err(failure) if failure.kind() == Kind::Interrupted => Err(failure),
        Err(failure) => Err(failure
            .hint("the server goes on with the erasure; `herald user erasures` shows when it is complete")),
    }
}

/// The failure of a command that a signal stopped.
fn stopped(erasure_id: Option<u64>) -> Failure {
    let (message, hint) = match erasure_id {
        Some(id) => (
            format!("stopped by a signal; erasure {id} goes on in the server"),
            "see `herald user erasures`",
        ),
        None => (
            "stopped by a signal before the server answered".into(),
            "`herald user erasures` shows whether the erasure was recorded; it is safe to run this command again",
        ),
    };
    Failure::new(Kind::Interrupted, message).hint(hint)
}

fn show_progress(bar: &ProgressBar, erasure: &Erasure) {
    bar.set_message(format!(
        "erasure {} goes on in the server: {}",
        erasure.erasure_id,
        erasure.counts.text()
    ));
}

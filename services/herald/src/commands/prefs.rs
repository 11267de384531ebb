//! `herald prefs`

use clap::{Subcommand, ValueEnum};
use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::Show,
};
use herald_proto::v1::{GetPreferencesRequest, Preferences, UpdatePreferencesRequest};
use prost_types::FieldMask;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  herald prefs get 1

  Turn all pushes off:
    herald prefs set 1 --push off

  Mute two authors and unmute a third:
    herald prefs set 1 --mute 107 --mute 42 --unmute 3";

const GET_EXAMPLES: &str = "\
Examples:
  herald prefs get 1
  herald prefs get 1 --output json | jq -r '.muted_author_ids[]'";

const SET_EXAMPLES: &str = "\
Examples:
  herald prefs set 1 --push off
  herald prefs set 1 --mute 107 --mute 42 --unmute 3";

/// Read and change a user's preferences: pushes and muted authors
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print a user's preferences, or the defaults if none are set
    #[command(after_long_help = GET_EXAMPLES)]
    Get {
        /// The id of the user
        #[arg(value_name = "USER")]
        user_id: String,
    },
    /// Change a user's preferences; omitted ones keep their value
    #[command(after_long_help = SET_EXAMPLES)]
    Set(Change),
}

#[derive(Debug, clap::Args)]
#[group(id = "change", multiple = true)]
struct Change {
    /// The id of the user
    #[arg(value_name = "USER")]
    user_id: String,

    /// Turn all pushes to the user on or off
    #[arg(long, value_name = "ON|OFF", required_unless_present_any = ["mute", "unmute"])]
    push: Option<Switch>,

    /// Mute an author: their posts are neither shown nor pushed; repeatable, at most 1,000 muted authors per user
    #[arg(long, value_name = "AUTHOR")]
    mute: Vec<String>,

    /// Unmute an author; repeatable
    #[arg(long, value_name = "AUTHOR")]
    unmute: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Serialize)]
struct UserPreferences {
    user_id: String,
    push_enabled: bool,
    muted_author_ids: Vec<String>,
}

impl UserPreferences {
    fn new(user_id: String, preferences: Option<Preferences>) -> Result<Self, Failure> {
        let Preferences {
            push_enabled,
            muted_author_ids,
        } = preferences.ok_or_else(|| Failure::failed("the server's response has no preferences"))?;
        Ok(Self {
            user_id,
            push_enabled,
            muted_author_ids,
        })
    }
}

impl Show for UserPreferences {
    fn text(&self) -> String {
        let push = if self.push_enabled { "on" } else { "off" };
        let muted = match self.muted_author_ids.as_slice() {
            [] => "nobody".to_owned(),
            ids => ids.iter().map(|id| printable(id)).collect::<Vec<_>>().join(", "),
        };
        format!(
            "user   {}\npush   {push}\nmuted  {muted}",
            printable(&self.user_id)
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let result = match args.action {
        Action::Get { user_id } => {
            let request = client.request(GetPreferencesRequest {
                user_id: user_id.clone(),
            });
            let response = client.preferences().get_preferences(request).await?.into_inner();
            UserPreferences::new(user_id, response.preferences)?
        }
        Action::Set(Change {
            user_id,
            push,
            mute,
            unmute,
        }) => {
            let request = client.request(UpdatePreferencesRequest {
                user_id: user_id.clone(),
                update_mask: push.map(|_| FieldMask {
                    paths: vec!["push_enabled".into()],
                }),
                preferences: push.map(|switch| Preferences {
                    push_enabled: matches!(switch, Switch::On),
                    ..Preferences::default()
                }),
                mute_author_ids: mute,
                unmute_author_ids: unmute,
            });
            let response = client
                .preferences()
                .update_preferences(request)
                .await?
                .into_inner();
            UserPreferences::new(user_id, response.preferences)?
        }
    };
    context.output.show(&result)
}

//! `herald key`

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::{Show, Table},
    time::{ago, duration, duration_to_proto, from_proto, rfc3339},
};
use herald_proto::v1::{CreateKeyRequest, Key, ListKeysRequest, RevokeKeyRequest, Scope};
use jiff::Timestamp;
use serde::Serialize;

use super::rotate_storage;

const EXAMPLES: &str = "\
Examples:
  The first key, with the root key of `herald up --auth`:
    export HERALD_TOKEN_FILE=herald-data/root-key
    herald key create web --scopes post,read,graph,devices

  Replace a key: create the next one with the same name, change its users, revoke the old one:
    herald key create web --scopes post,read,graph,devices
    herald key list
    herald key revoke 0123456789abcdef";

const LIST_EXAMPLES: &str = "\
Examples:
  herald key list
  herald key list --output json | jq -r '.keys[] | select(.state == \"valid\") | .name'";

const REVOKE_EXAMPLES: &str = "\
Examples:
  herald key revoke 0123456789abcdef";

const CREATE_EXAMPLES: &str = "\
Examples:
  herald key create web --scopes post,read
  herald key create ops --scopes operate,audit,scale --expires 90d
  herald key create ci --scopes post --output json | jq -r .token";

/// Create, list and revoke API keys; rotate the storage key
///
/// Programs call a server with authentication (`auth.enabled`, or `herald up --auth`) with an API key. Its scopes say what
/// it may do; its name stands in the history of redrives and discards. `create`, `list` and `revoke` need a key with the scope
/// `operate`; `rotate-storage` is about the key that devices are encrypted with, and needs access to the store.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create an API key and print it, once: the server keeps only a hash
    #[command(after_long_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List the API keys, the oldest first
    #[command(after_long_help = LIST_EXAMPLES)]
    List,
    /// Revoke an API key for good; within 10 s no server takes it that reaches the store
    #[command(after_long_help = REVOKE_EXAMPLES)]
    Revoke {
        /// The id of the key: 16 hexadecimal digits
        #[arg(value_name = "ID")]
        key_id: String,
    },
    RotateStorage(rotate_storage::Args),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// The name of the key: letters, digits, `.`, `_` and `-`; several keys can have one name
    #[arg(value_name = "NAME")]
    name: String,

    /// What the key allows; only scopes that the caller has
    #[arg(long, value_name = "SCOPE", value_delimiter = ',', required = true)]
    scopes: Vec<ScopeName>,

    /// The time until the key expires, 1m to 3650d, such as 90d [default: it doesn't expire]
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    expires: Option<Duration>,
}

/// A scope on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScopeName {
    /// Submit and delete posts
    Post,
    /// Read posts, timelines, follows, deliveries and statistics
    Read,
    /// Follow, unfollow and import follows
    Graph,
    /// Read and change devices and preferences
    Devices,
    /// Dead letters, rebuilds of timelines, keys, and the export and erasure of users
    Operate,
    /// Audits, and the history of operations and erasures
    Audit,
    /// The lag of consumers
    Scale,
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Post => Self::Post,
            ScopeName::Read => Self::Read,
            ScopeName::Graph => Self::Graph,
            ScopeName::Devices => Self::Devices,
            ScopeName::Operate => Self::Operate,
            ScopeName::Audit => Self::Audit,
            ScopeName::Scale => Self::Scale,
        }
    }
}

#[derive(Debug, Serialize)]
struct KeyView {
    key_id: String,
    name: String,
    scopes: Vec<String>,
    state: &'static str,
    create_time: Option<String>,
    expire_time: Option<String>,
    revoke_time: Option<String>,
    #[serde(skip)]
    created: Option<prost_types::Timestamp>,
}

impl KeyView {
    fn new(key: Key) -> Self {
        let scopes = key.scopes().map(|scope| {
            let name = scope.as_str_name();
            name.trim_start_matches("SCOPE_").to_lowercase()
        });
        let is_expired = from_proto(key.expire_time.as_ref()).is_some_and(|end| end <= Timestamp::now());
        Self {
            scopes: scopes.collect(),
            state: match key.revoke_time {
                Some(_) => "revoked",
                None if is_expired => "expired",
                None => "valid",
            },
            create_time: rfc3339(key.create_time.as_ref()),
            expire_time: rfc3339(key.expire_time.as_ref()),
            revoke_time: rfc3339(key.revoke_time.as_ref()),
            created: key.create_time,
            key_id: key.key_id,
            name: key.name,
        }
    }
}

/// Clap value parser of `--expires`, with the bounds of the server.
fn lifetime(text: &str) -> Result<Duration, String> {
    const MIN: Duration = Duration::from_mins(1);
    const MAX: Duration = Duration::from_hours(24 * 3_650);
    let length = duration(text)?;
    if (MIN..=MAX).contains(&length) {
        Ok(length)
    } else {
        Err("must be 1m to 3650d".into())
    }
}

#[derive(Debug, Serialize)]
struct Created {
    #[serde(flatten)]
    key: KeyView,
    token: String,
}

impl Show for Created {
    fn text(&self) -> String {
        let end = self.key.expire_time.as_deref().unwrap_or("never");
        format!(
            "key      {}\nname     {}\nscopes   {}\nexpires  {end}\n\n{}\n\nThis is the key. It is shown once; keep it secret.",
            printable(&self.key.key_id),
            printable(&self.key.name),
            self.key.scopes.join(","),
            printable(&self.token),
        )
    }
}

#[derive(Debug, Serialize)]
struct Keys {
    keys: Vec<KeyView>,
}

impl Show for Keys {
    fn text(&self) -> String {
        if self.keys.is_empty() {
            return "no keys".into();
        }
        let mut table = Table::new(&["key", "name", "state", "created", "expires", "scopes"]);
        for key in &self.keys {
            table.row([
                printable(&key.key_id),
                printable(&key.name),
                key.state.into(),
                ago(key.created.as_ref()),
                key.expire_time.clone().unwrap_or_else(|| "never".into()),
                key.scopes.join(","),
            ]);
        }
        table.render()
    }
}

#[derive(Debug, Serialize)]
struct Revoked {
    #[serde(flatten)]
    key: KeyView,
}

impl Show for Revoked {
    fn text(&self) -> String {
        format!(
            "revoked the key {} ({})",
            printable(&self.key.key_id),
            printable(&self.key.name)
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if let Action::RotateStorage(args) = &args.action {
        return rotate_storage::run(args, context).await;
    }
    let client = context.operator_client().await?;
    let no_key = || Failure::failed("the server's response has no key");
    match args.action {
        Action::RotateStorage(_) => Ok(()),
        Action::Create(CreateArgs {
            name,
            scopes,
            expires,
        }) => {
            let request = CreateKeyRequest {
                name,
                scopes: scopes
                    .into_iter()
                    .map(|scope| Scope::from(scope).into())
                    .collect(),
                ttl: expires.map(duration_to_proto),
            };
            let response = client
                .keys()
                .create_key(client.request(request))
                .await?
                .into_inner();
            context.output.show(&Created {
                key: KeyView::new(response.key.ok_or_else(no_key)?),
                token: response.token,
            })
        }
        Action::List => {
            let request = client.request(ListKeysRequest {});
            let response = client.keys().list_keys(request).await?.into_inner();
            context.output.show(&Keys {
                keys: response.keys.into_iter().map(KeyView::new).collect(),
            })
        }
        Action::Revoke { key_id } => {
            let request = client.request(RevokeKeyRequest { key_id });
            let response = client.keys().revoke_key(request).await?.into_inner();
            context.output.show(&Revoked {
                key: KeyView::new(response.key.ok_or_else(no_key)?),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lifetime_of_a_key_has_bounds() {
        for text in ["5s", "59s", "3651d"] {
            assert_eq!(lifetime(text), Err("must be 1m to 3650d".into()), "{text}");
        }
        assert_eq!(lifetime("1m"), Ok(Duration::from_mins(1)));
        assert_eq!(lifetime("3650d"), Ok(Duration::from_hours(24 * 3_650)));
    }
}

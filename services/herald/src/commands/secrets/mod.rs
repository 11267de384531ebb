//! `herald secrets`: credentials in Kubernetes that nobody has to make up.

mod ensure;
mod kubernetes;
mod spec;
mod value;

use std::{path::PathBuf, time::Duration};

use clap::{Subcommand, ValueHint};
use herald_cli::{context::Context, failure::Failure, output::Show};
use serde::Serialize;

use ensure::{Change, Ensured};
use kubernetes::{Access, Api};
use spec::Spec;

const EXAMPLES: &str = "\
Examples:
  herald secrets ensure --spec /etc/herald/secrets.json
  kubectl proxy --port 8001 &
  herald secrets ensure --spec secrets.json --api-server http://127.0.0.1:8001";

const LONG: &str = "\
Creates the Kubernetes Secrets of a specification that don't exist, and adds the keys that they lack. A key that is there is \
never changed, except the public key of an NKey, which follows its seed. Any number of runs, also at the same time, end with \
the same Secrets. It runs in a pod, as its service account, which needs these rights on `secrets` in the namespace: create, \
and get and patch of the named ones. While the API server is away, it tries again for --timeout-seconds.

The specification is JSON:
  {\"namespace\":\"herald\",\"labels\":{},\"annotations\":{},\"secrets\":[
    {\"name\":\"herald-postgresql\",\"entries\":[{\"key\":\"password\",\"kind\":\"password\"}]},
    {\"name\":\"herald-vapid\",\"entries\":[{\"key\":\"private-key\",\"kind\":\"vapid\"}]},
    {\"name\":\"herald-nats-push\",\"entries\":[{\"key\":\"seed\",\"kind\":\"nkey\"}]},
    {\"name\":\"herald-nats-users\",\"entries\":[{\"key\":\"NATS_NKEY_PUSH\",\"kind\":\"nkey-public\",
      \"of\":{\"secret\":\"herald-nats-push\",\"key\":\"seed\"}}]}]}

Kinds:
  password     32 letters and digits
  vapid        a VAPID private key, for push.vapid_private_key
  storage-key  a storage key, for store.encryption.key
  nkey         the seed of an NKey of a NATS user, for nats.nkey_seed
  nkey-public  the public key of the seed that `of` names";

/// Create credentials in Kubernetes that don't exist yet
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create the Secrets of a specification that don't exist, and add the keys that they lack
    #[command(long_about = LONG, after_long_help = EXAMPLES)]
    Ensure(Ensure),
}

#[derive(Debug, clap::Args)]
struct Ensure {
    /// The specification of the Secrets, a JSON file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    spec: PathBuf,

    /// The API server; http:// only on this machine, such as `kubectl proxy` [default: that of the pod's cluster]
    #[arg(long, value_name = "URL")]
    api_server: Option<String>,

    /// The directory with the service account's `token` and `ca.crt`
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = kubernetes::SERVICE_ACCOUNT)]
    service_account: PathBuf,

    /// How long to try again while the API server is away, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout_seconds: u64,
}

/// The result; no value of a secret is in it.
#[derive(Debug, Serialize)]
struct Result {
    namespace: String,
    secrets: Vec<Ensured>,
}

impl Show for Result {
    fn text(&self) -> String {
        let lines = self.secrets.iter().map(|secret| {
            let what = match secret.change {
                Change::Created => format!("created with {}", secret.keys.join(", ")),
                Change::Changed => format!("got {}", secret.keys.join(", ")),
                Change::Unchanged => "unchanged".into(),
            };
            format!("secret {}/{}: {what}", self.namespace, secret.name)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> std::result::Result<(), Failure> {
    let Action::Ensure(ensure) = &args.action;
    let text = std::fs::read_to_string(&ensure.spec).map_err(|error| {
        Failure::usage(format!(
            "--spec {}: can't be read: {error}",
            ensure.spec.display()
        ))
    })?;
    let spec = Spec::parse(&text)
        .map_err(|reason| Failure::usage(format!("--spec {}: {reason}", ensure.spec.display())))?;
    let access = match &ensure.api_server {
        Some(url) => Access::at(url, &ensure.service_account),
        None => Access::of_pod(&ensure.service_account),
    };
    let api = Api::new(access.map_err(Failure::usage)?, &spec.namespace)
        .map_err(|error| Failure::failed(error.to_string()))?;
    let limit = Duration::from_secs(ensure.timeout_seconds);
    let secrets = ensure::run(&api, &spec, limit)
        .await
        .map_err(|error| error.failure())?;
    context.output.show(&Result {
        namespace: spec.namespace,
        secrets,
    })
}

//! `herald device`

use std::io;

use clap::{Subcommand, ValueHint};
use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::{Show, Table},
    time::{ago, rfc3339},
};
use herald_proto::v1::{
    Device, ListDevicesRequest, UnregisterDeviceRequest, WebPush, Webhook, device,
    register_device_request::Address,
};
use serde::{Deserialize, Serialize};

/// Largest standard input. A subscription has about 500 bytes, a secret less than 100.
const STDIN_BYTES_MAX: u64 = 64 << 10;

const EXAMPLES: &str = "\
Examples:
  A webhook; Herald generates the signing secret and prints it once:
    herald device add 1 --webhook https://example.com/herald

  A browser's subscription, as returned by PushSubscription.toJSON():
    herald device add 1 --web-push - < subscription.json

  List the devices, remove one:
    herald device list 1
    herald device remove 1 DEVICE";

const ADD_EXAMPLES: &str = "\
Examples:
  herald device add 1 --webhook https://example.com/herald
  herald device add 1 --webhook https://example.com/herald --secret - < secret.txt

  herald device add 1 --web-push '{\"endpoint\":\"https://push.example/x\",\"keys\":{\"p256dh\":\"…\",\"auth\":\"…\"}}'
  herald device add 1 --web-push https://push.example/x --p256dh BNc… --auth 8eD…";

const LIST_EXAMPLES: &str = "\
Examples:
  herald device list 1

  The VAPID public key, the applicationServerKey of a browser's subscription:
    herald device list 1 --output json | jq -r .vapid_public_key";

const REMOVE_EXAMPLES: &str = "\
Examples:
  herald device remove 1 3";

/// Add, list and remove the devices that receive a user's pushes
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Add(Add),
    /// List a user's devices, oldest first, and the server's VAPID public key
    #[command(after_long_help = LIST_EXAMPLES)]
    List {
        /// The id of the user
        #[arg(value_name = "USER")]
        user_id: String,
    },
    /// Remove one device
    #[command(after_long_help = REMOVE_EXAMPLES)]
    Remove {
        /// The id of the user
        #[arg(value_name = "USER")]
        user_id: String,
        /// The id of the device, as printed by `device add` and `device list`
        #[arg(value_name = "DEVICE")]
        device_id: String,
    },
}

/// Register a device: a webhook or a browser's push subscription
///
/// Adding a registered address again updates the device and keeps its id. A user can have at most 32 devices.
#[derive(Debug, clap::Args)]
#[command(after_long_help = ADD_EXAMPLES)]
struct Add {
    /// The id of the user
    #[arg(value_name = "USER")]
    user_id: String,

    /// The URL that receives POST requests, signed according to Standard Webhooks; https, or http if the server allows
    /// it
    #[arg(
        long,
        value_name = "URL",
        value_hint = ValueHint::Url,
        required_unless_present = "web_push",
        conflicts_with = "web_push"
    )]
    webhook: Option<String>,

    /// The webhook's signing secret, `whsec_` and base64; by default Herald generates one
    ///
    /// `-` reads it from standard input. Prefer `-`: other users of the machine can read the command line.
    #[arg(
        long,
        value_name = "SECRET",
        conflicts_with = "web_push",
        allow_hyphen_values = true
    )]
    secret: Option<String>,

    /// A push subscription: its JSON, `-` for JSON from standard input, or its endpoint URL with --p256dh and --auth
    #[arg(long, value_name = "JSON|-|URL")]
    web_push: Option<String>,

    /// The public key (p256dh) of the subscription, base64url
    #[arg(long, value_name = "KEY", requires = "web_push", allow_hyphen_values = true)]
    p256dh: Option<String>,

    /// The authentication secret (auth) of the subscription, base64url
    #[arg(long, value_name = "KEY", requires = "web_push", allow_hyphen_values = true)]
    auth: Option<String>,
}

/// The JSON of a browser's `PushSubscription.toJSON()`.
#[derive(Debug, Deserialize)]
struct Subscription {
    endpoint: String,
    keys: Keys,
}

#[derive(Debug, Deserialize)]
struct Keys {
    p256dh: String,
    auth: String,
}

/// The output of a device.
#[derive(Debug, Serialize)]
struct DeviceOutput {
    device_id: String,
    user_id: String,
    kind: &'static str,
    endpoint: String,
    /// Set only if Herald has just generated it.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    registered_time: Option<String>,
    #[serde(skip)]
    registered: Option<prost_types::Timestamp>,
}

impl From<Device> for DeviceOutput {
    fn from(device: Device) -> Self {
        let (kind, endpoint, secret) = match device.address {
            Some(device::Address::WebPush(push)) => ("web_push", push.endpoint, None),
            Some(device::Address::Webhook(hook)) => ("webhook", hook.url, Some(hook.secret)),
            None => ("unknown", String::new(), None),
        };
        Self {
            device_id: device.device_id,
            user_id: device.user_id,
            kind,
            endpoint,
            secret: secret.filter(|secret| !secret.is_empty()),
            registered_time: rfc3339(device.registered_time.as_ref()),
            registered: device.registered_time,
        }
    }
}

impl Show for DeviceOutput {
    fn text(&self) -> String {
        let (id, endpoint) = (printable(&self.device_id), printable(&self.endpoint));
        let text = format!("device {id} of {} pushes to {endpoint}", printable(&self.user_id));
        match &self.secret {
            Some(secret) => format!("{text}\nsigning secret, shown only once: {}", printable(secret)),
            None => text,
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    devices: Vec<DeviceOutput>,
    vapid_public_key: String,
}

impl Show for List {
    fn text(&self) -> String {
        let key = format!("VAPID public key: {}", printable(&self.vapid_public_key));
        if self.devices.is_empty() {
            return format!("no devices\n\n{key}");
        }
        let mut table = Table::new(&["device", "kind", "registered", "endpoint"]);
        for device in &self.devices {
            table.row([
                printable(&device.device_id),
                device.kind.into(),
                ago(device.registered.as_ref()),
                printable(&device.endpoint),
            ]);
        }
        format!("{}\n\n{key}", table.render())
    }
}

#[derive(Debug, Serialize)]
struct Removal {
    user_id: String,
    device_id: String,
    removed: bool,
}

impl Show for Removal {
    fn text(&self) -> String {
        format!(
            "device {} of {} removed",
            printable(&self.device_id),
            printable(&self.user_id)
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.action {
        Action::Add(add) => {
            let (user_id, address) = add.into_user_and_address()?;
            let device = context.client().await?.register_device(user_id, address).await?;
            context.output.show(&DeviceOutput::from(device))
        }
        Action::List { user_id } => {
            let client = context.client().await?;
            let request = client.request(ListDevicesRequest { user_id });
            let response = client.devices().list_devices(request).await?.into_inner();
            context.output.show(&List {
                devices: response.devices.into_iter().map(DeviceOutput::from).collect(),
                vapid_public_key: response.vapid_public_key,
            })
        }
        Action::Remove { user_id, device_id } => {
            let client = context.client().await?;
            let request = UnregisterDeviceRequest {
                user_id: user_id.clone(),
                device_id: device_id.clone(),
            };
            client
                .devices()
                .unregister_device(client.request(request))
                .await?;
            context.output.show(&Removal {
                user_id,
                device_id,
                removed: true,
            })
        }
    }
}

impl Add {
    /// The user and the address of the device.
    fn into_user_and_address(self) -> Result<(String, Address), Failure> {
        let Some(web_push) = self.web_push else {
            let url = self.webhook.unwrap_or_default();
            let secret = match self.secret.as_deref() {
                Some("-") => read_stdin("the secret")?.trim().to_owned(),
                secret => secret.unwrap_or_default().to_owned(),
            };
            return Ok((self.user_id, Address::Webhook(Webhook { url, secret })));
        };
        let json = match web_push.as_str() {
            "-" => read_stdin("the subscription")?,
            text if text.trim_start().starts_with('{') => web_push,
            _ => {
                let (Some(p256dh), Some(auth)) = (self.p256dh, self.auth) else {
                    return Err(Failure::usage(
                        "a subscription endpoint needs its keys: give --p256dh and --auth",
                    ));
                };
                return Ok((
                    self.user_id,
                    Address::WebPush(WebPush {
                        endpoint: web_push,
                        p256dh,
                        auth,
                    }),
                ));
            }
        };
        if self.p256dh.is_some() || self.auth.is_some() {
            return Err(Failure::usage(
                "the subscription's JSON has the keys: omit --p256dh and --auth",
            ));
        }
        let Subscription { endpoint, keys } = serde_json::from_str(&json).map_err(|error| {
            Failure::usage(format!("the subscription is invalid: {error}"))
                .hint(r#"give {"endpoint":"https://…","keys":{"p256dh":"…","auth":"…"}}"#)
        })?;
        Ok((
            self.user_id,
            Address::WebPush(WebPush {
                endpoint,
                p256dh: keys.p256dh,
                auth: keys.auth,
            }),
        ))
    }
}

/// Reads `name` from standard input.
fn read_stdin(name: &str) -> Result<String, Failure> {
    io::read_to_string(io::Read::take(io::stdin(), STDIN_BYTES_MAX))
        .map_err(|error| Failure::io(format!("can't read {name} from standard input"), &error))
}

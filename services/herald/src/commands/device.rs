//! `herald device`

use std::{io, time::Duration};

use clap::{Subcommand, ValueHint};
use herald_cli::{
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Show, Table, shell_quoted},
    time::{self, ago, rfc3339},
};
use herald_proto::v1::{
    Device, DeviceState, DisabledReason, EnableDeviceRequest, ListDevicesRequest, RotateWebhookSecretRequest,
    UnregisterDeviceRequest, WebPush, Webhook, device, register_device_request::Address,
};
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use tonic::Status;

use crate::json_error;

/// Largest standard input. A subscription has about 500 bytes, a secret less than 100.
const STDIN_BYTES_MAX: u64 = 64 << 10;

const EXAMPLES: &str = "\
Examples:
  A webhook; Herald generates the signing secret and prints it once:
    herald device add 1 --webhook https://example.com/herald

  A browser's subscription, as returned by PushSubscription.toJSON():
    herald device add 1 --web-push - < subscription.json

  List the devices, enable a disabled one, remove one:
    herald device list 1
    herald device enable 1 DEVICE
    herald device remove 1 DEVICE

  Replace the signing secret of a webhook; the old secret signs too for 24 hours:
    herald device rotate-secret 1 DEVICE";

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

const ENABLE_EXAMPLES: &str = "\
Examples:
  herald device enable 1 3";

const ROTATE_EXAMPLES: &str = "\
Examples:
  Herald generates the new secret and prints it once; the old one signs too for 24 hours:
    herald device rotate-secret 1 3

  The old secret has leaked: use it no more:
    herald device rotate-secret 1 3 --overlap 0s

  A secret of your own:
    herald device rotate-secret 1 3 --secret - < secret.txt";

const REMOVE_EXAMPLES: &str = "\
Examples:
  herald device remove 1 3";

/// Add, list, enable and remove the devices that receive a user's pushes
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
    /// Enable a device that was disabled because it was gone or failed for days
    #[command(after_long_help = ENABLE_EXAMPLES)]
    Enable {
        /// The id of the user
        #[arg(value_name = "USER")]
        user_id: String,
        /// The id of the device, as printed by `device add` and `device list`
        #[arg(value_name = "DEVICE")]
        device_id: String,
    },
    RotateSecret(RotateSecret),
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

/// Replace the signing secret of a webhook
///
/// Each push is signed with the new secret and, for a time, with the old one too, so that the receiver can change over. A
/// secret before the old one is not used any more.
#[derive(Debug, clap::Args)]
#[command(after_long_help = ROTATE_EXAMPLES)]
struct RotateSecret {
    /// The id of the user
    #[arg(value_name = "USER")]
    user_id: String,

    /// The id of the device, as printed by `device add` and `device list`
    #[arg(value_name = "DEVICE")]
    device_id: String,

    /// The new secret, `whsec_` and base64; by default Herald generates one
    ///
    /// `-` reads it from standard input. Prefer `-`: other users of the machine can read the command line.
    #[arg(long, value_name = "SECRET", allow_hyphen_values = true)]
    secret: Option<String>,

    /// How long the old secret signs too, at most 7d; 0s for a secret that others have learnt
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = time::duration)]
    overlap: Duration,
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
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failing_since_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_secret_expire_time: Option<String>,
    #[serde(skip)]
    times: Times,
}

/// The times of a device, for relative times in texts.
#[derive(Debug)]
struct Times {
    registered: Option<Timestamp>,
    disabled: Option<Timestamp>,
    failing_since: Option<Timestamp>,
}

impl From<Device> for DeviceOutput {
    fn from(device: Device) -> Self {
        let (state, disabled_reason) = match (device.state, device.disabled_reason()) {
            (state, _) if state != DeviceState::Disabled as i32 => ("enabled", None),
            (_, DisabledReason::Gone) => ("disabled", Some("gone")),
            (_, DisabledReason::Failing) => ("disabled", Some("failing")),
            (_, DisabledReason::Unspecified) => ("disabled", None),
        };
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
            state,
            disabled_reason,
            disabled_time: rfc3339(device.disabled_time.as_ref()),
            failing_since_time: rfc3339(device.failing_since_time.as_ref()),
            previous_secret_expire_time: rfc3339(device.previous_secret_expire_time.as_ref()),
            times: Times {
                registered: device.registered_time,
                disabled: device.disabled_time,
                failing_since: device.failing_since_time,
            },
        }
    }
}

impl DeviceOutput {
    /// The state in a few words.
    fn state_text(&self) -> String {
        let reason = match (self.state, self.disabled_reason) {
            ("disabled", Some("gone")) => "disabled: responded 410 (Gone)",
            ("disabled", Some(_)) => "disabled: failed for days",
            (state, _) => state,
        };
        match (&self.times.disabled, &self.times.failing_since) {
            (Some(time), _) => format!("{reason}, {}", ago(Some(time))),
            (None, Some(time)) => format!("{reason}, first of its failures {}", ago(Some(time))),
            (None, None) => reason.to_owned(),
        }
    }
}

impl Show for DeviceOutput {
    fn text(&self) -> String {
        let (id, endpoint) = (printable(&self.device_id), printable(&self.endpoint));
        let user = printable(&self.user_id);
        let mut text = format!("device {id} of {user} pushes to {endpoint}");
        if self.times.disabled.is_some() || self.times.failing_since.is_some() {
            text = format!("{text}\n{}", self.state_text());
        }
        if let Some(time) = &self.previous_secret_expire_time {
            text = format!("{text}\nthe secret before signs too until {time}");
        }
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
        let mut table = Table::new(&["device", "kind", "registered", "state", "endpoint"]);
        for device in &self.devices {
            table.row([
                printable(&device.device_id),
                device.kind.into(),
                ago(device.times.registered.as_ref()),
                device.state_text(),
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
        Action::Enable { user_id, device_id } => {
            let client = context.client().await?;
            let hint = list_hint(&user_id);
            let request = client.request(EnableDeviceRequest { user_id, device_id });
            let response = client.devices().enable_device(request).await.map_err(hint)?;
            let device = response.into_inner().device.ok_or_else(no_device)?;
            context.output.show(&DeviceOutput::from(device))
        }
        Action::RotateSecret(args) => {
            let hint = list_hint(&args.user_id);
            let request = RotateWebhookSecretRequest {
                user_id: args.user_id,
                device_id: args.device_id,
                secret: read_secret(args.secret)?,
                overlap: Some(time::duration_to_proto(args.overlap)),
            };
            let client = context.client().await?;
            let request = client.request(request);
            let response = client
                .devices()
                .rotate_webhook_secret(request)
                .await
                .map_err(hint)?;
            let device = response.into_inner().device.ok_or_else(no_device)?;
            context.output.show(&DeviceOutput::from(device))
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
                .await
                .map_err(list_hint(&user_id))?;
            context.output.show(&Removal {
                user_id,
                device_id,
                removed: true,
            })
        }
    }
}

/// Turns the answer to a call about one device into a failure; for a missing device it says how to find the right id.
fn list_hint(user_id: &str) -> impl FnOnce(Status) -> Failure + use<> {
    let hint = format!(
        "list the user's devices with `herald device list {}`",
        shell_quoted(user_id)
    );
    move |status| {
        let failure = Failure::from(status);
        match failure.kind() {
            Kind::NotFound => failure.hint(hint),
            _ => failure,
        }
    }
}

impl Add {
    /// The user and the address of the device.
    fn into_user_and_address(self) -> Result<(String, Address), Failure> {
        let Some(web_push) = self.web_push else {
            let url = self.webhook.unwrap_or_default();
            let secret = read_secret(self.secret)?;
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
            Failure::usage(format!(
                "the subscription is invalid: {}",
                json_error::without_values(&error)
            ))
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

/// The secret of an argument: empty without one, from standard input for `-`.
fn read_secret(argument: Option<String>) -> Result<String, Failure> {
    match argument {
        Some(argument) if argument == "-" => Ok(read_stdin("the secret")?.trim().to_owned()),
        argument => Ok(argument.unwrap_or_default()),
    }
}

fn no_device() -> Failure {
    Failure::failed("the server's response has no device")
}

/// Reads `name` from standard input.
fn read_stdin(name: &str) -> Result<String, Failure> {
    io::read_to_string(io::Read::take(io::stdin(), STDIN_BYTES_MAX))
        .map_err(|error| Failure::io(format!("can't read {name} from standard input"), &error))
}

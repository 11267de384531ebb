//! DeviceService.

use std::sync::Arc;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use herald_model::{Address, Device, DeviceId, DisabledReason, UserId, UserKey, time::Timestamp};
use herald_proto::v1::{self, device_service_server::DeviceService, register_device_request};
use herald_push_endpoint::{Policy, parse_url};
use herald_rpc::{fields, fields::Violations, status};
use herald_store::{DEVICES_PER_USER_MAX, Devices, ErrorKind, SECRET_OVERLAP, Users};
use rand::RngCore as _;
use tonic::{Request, Response, Status};

use crate::{Vapid, domain};

/// Length of a generated webhook secret, bytes.
const SECRET_BYTES: usize = 32;

/// Implements DeviceService.
pub(crate) struct DeviceApi {
    users: Arc<dyn Users>,
    devices: Arc<dyn Devices>,
    endpoints: Policy,
    vapid: Vapid,
}

impl DeviceApi {
    pub(crate) fn new(
        users: Arc<dyn Users>,
        devices: Arc<dyn Devices>,
        endpoints: Policy,
        vapid: Vapid,
    ) -> Self {
        Self {
            users,
            devices,
            endpoints,
            vapid,
        }
    }

    /// The key of a user and the id of a device in a request. Whether the user has the device is not checked.
    async fn find(&self, user_id: &str, device_id: &str) -> Result<(UserKey, DeviceId), Status> {
        let mut violations = Violations::new();
        let user = violations.user_id("user_id", user_id);
        let device = violations.take("device_id", parse_device_id(device_id));
        violations.into_result()?;
        let (Some(user), Some(device)) = (user, device) else {
            return Err(device_not_found());
        };
        match super::find_user(&*self.users, user).await? {
            Some(user) => Ok((user, device)),
            None => Err(device_not_found()),
        }
    }
}

/// A validated registration.
#[derive(Debug)]
enum NewAddress {
    /// An address with all its keys.
    Complete(Address),
    /// A webhook for which the caller names no secret.
    WebhookWithoutSecret { url: String },
}

/// Validates a request; the error names every invalid field.
fn parse(request: v1::RegisterDeviceRequest, policy: Policy) -> Result<(UserId, NewAddress), Status> {
    use register_device_request::Address as RequestedAddress;

    let mut violations = Violations::new();
    let user = violations.user_id("user_id", request.user_id);
    let address = match request.address {
        None => {
            violations.add("address", "must be a web_push or a webhook");
            None
        }
        Some(RequestedAddress::WebPush(requested)) => {
            let endpoint = violations.take("web_push.endpoint", parse_url(&requested.endpoint, policy));
            let p256dh = violations.take("web_push.p256dh", domain::parse_p256dh(&requested.p256dh));
            let auth = violations.take("web_push.auth", domain::parse_web_push_auth(&requested.auth));
            endpoint.zip(p256dh.zip(auth)).map(|(endpoint, (p256dh, auth))| {
                NewAddress::Complete(Address::WebPush {
                    endpoint: endpoint.into(),
                    p256dh,
                    auth,
                })
            })
        }
        Some(RequestedAddress::Webhook(requested)) => {
            let url = violations.take("webhook.url", parse_url(&requested.url, policy));
            let url = url.map(String::from);
            if requested.secret.is_empty() {
                url.map(|url| NewAddress::WebhookWithoutSecret { url })
            } else {
                let secret = domain::parse_webhook_secret(&requested.secret);
                let secret = violations.take("webhook.secret", secret);
                url.zip(secret)
                    .map(|(url, secret)| NewAddress::Complete(Address::Webhook { url, secret }))
            }
        }
    };
    violations.into_result()?;
    // Without violations both are `Some`.
    user.zip(address)
        .ok_or_else(|| status::invalid(&[("address", "is not valid")]))
}

fn parse_device_id(text: &str) -> Result<DeviceId, &'static str> {
    let id = text.parse().map(DeviceId);
    id.map_err(|_| "must be a device id, a decimal number")
}

fn device_not_found() -> Status {
    status::not_found("DEVICE_NOT_FOUND", "the user has no such device")
}

/// Refuses an endpoint that no push can reach with the server's configuration.
fn check_reachable(address: &Address, vapid: &Vapid) -> Result<(), Status> {
    let is_web_push = matches!(address, Address::WebPush { .. });
    if is_web_push && !vapid.has_subject && domain::requires_vapid_subject(address.url()) {
        return Err(status::failed_precondition(
            "VAPID_SUBJECT_MISSING",
            "Apple's push service refuses pushes without a contact of the sender: set push.vapid_subject of the server \
             to a mailto: or https: URL, restart the server, and register the device again",
        ));
    }
    Ok(())
}

fn generate_secret() -> Vec<u8> {
    let mut secret = vec![0; SECRET_BYTES];
    rand::rng().fill_bytes(&mut secret);
    secret
}

/// Converts a device. The webhook secret is included only in the response to the call that generated it.
fn to_v1(device: Device, user_id: String, with_webhook_secret: bool) -> v1::Device {
    let now = Timestamp::now();
    let address = match device.address {
        Address::WebPush { endpoint, p256dh, .. } => v1::device::Address::WebPush(v1::WebPush {
            endpoint,
            p256dh: URL_SAFE_NO_PAD.encode(p256dh),
            auth: String::new(),
        }),
        Address::Webhook { url, secret } => v1::device::Address::Webhook(v1::Webhook {
            url,
            secret: if with_webhook_secret {
                format!("{}{}", domain::WEBHOOK_SECRET_PREFIX, STANDARD.encode(secret))
            } else {
                String::new()
            },
        }),
    };
    let (state, reason) = match device.disabled.map(|disabled| disabled.reason) {
        None => (v1::DeviceState::Enabled, v1::DisabledReason::Unspecified),
        Some(DisabledReason::Gone) => (v1::DeviceState::Disabled, v1::DisabledReason::Gone),
        Some(DisabledReason::Failing) => (v1::DeviceState::Disabled, v1::DisabledReason::Failing),
    };
    let previous_expires_at = device.previous_secret.map(|previous| previous.expires_at);
    v1::Device {
        device_id: device.id.0.to_string(),
        user_id,
        registered_time: Some(herald_proto::timestamp_to_proto(device.registered_at)),
        address: Some(address),
        state: state.into(),
        disabled_reason: reason.into(),
        disabled_time: device
            .disabled
            .map(|disabled| herald_proto::timestamp_to_proto(disabled.at)),
        failing_since_time: device
            .failing
            .map(|streak| herald_proto::timestamp_to_proto(streak.since)),
        previous_secret_expire_time: previous_expires_at
            .filter(|expires_at| *expires_at > now)
            .map(herald_proto::timestamp_to_proto),
    }
}

#[tonic::async_trait]
impl DeviceService for DeviceApi {
    async fn register_device(
        &self,
        request: Request<v1::RegisterDeviceRequest>,
    ) -> Result<Response<v1::RegisterDeviceResponse>, Status> {
        let (user, address) = parse(request.into_inner(), self.endpoints)?;
        if let NewAddress::Complete(address) = &address {
            check_reachable(address, &self.vapid)?;
        }
        let user_id = user.as_str().to_owned();
        let user = super::intern_user(&*self.users, user).await?;
        let now = Timestamp::now();
        let (registered, generated) = match address {
            NewAddress::Complete(address) => (self.devices.register(user, address, now).await, None),
            NewAddress::WebhookWithoutSecret { url } => {
                let secret = generate_secret();
                let registered = self.devices.register_webhook(user, url, secret.clone(), now);
                (registered.await, Some(secret))
            }
        };
        let device = registered.map_err(|e| match e.kind() {
            ErrorKind::LimitExceeded => {
                let message =
                    format!("a user can have at most {DEVICES_PER_USER_MAX} devices; unregister one first");
                status::quota("TOO_MANY_DEVICES", "devices", message)
            }
            _ => status::from_store(&e),
        })?;
        let is_new_secret =
            matches!(&device.address, Address::Webhook { secret, .. } if Some(secret) == generated.as_ref());
        let device = Some(to_v1(device, user_id, is_new_secret));
        Ok(Response::new(v1::RegisterDeviceResponse { device }))
    }

    async fn enable_device(
        &self,
        request: Request<v1::EnableDeviceRequest>,
    ) -> Result<Response<v1::EnableDeviceResponse>, Status> {
        let v1::EnableDeviceRequest { user_id, device_id } = request.into_inner();
        let (user, device) = self.find(&user_id, &device_id).await?;
        let enabled = self.devices.enable(user, device).await;
        match enabled.map_err(|e| status::from_store(&e))? {
            Some(device) => Ok(Response::new(v1::EnableDeviceResponse {
                device: Some(to_v1(device, user_id, false)),
            })),
            None => Err(device_not_found()),
        }
    }

    async fn rotate_webhook_secret(
        &self,
        request: Request<v1::RotateWebhookSecretRequest>,
    ) -> Result<Response<v1::RotateWebhookSecretResponse>, Status> {
        let request = request.into_inner();
        let mut violations = Violations::new();
        let secret = if request.secret.is_empty() {
            Some(generate_secret())
        } else {
            violations.take("secret", domain::parse_webhook_secret(&request.secret))
        };
        let overlap = match request.overlap {
            Some(overlap) => {
                violations.take("overlap", domain::parse_overlap(overlap.seconds, overlap.nanos))
            }
            None => Some(SECRET_OVERLAP),
        };
        violations.into_result()?;
        let (user, device) = self.find(&request.user_id, &request.device_id).await?;
        let (Some(secret), Some(overlap)) = (secret, overlap) else {
            return Err(status::invalid(&[("secret", "is not valid")]));
        };
        let previous_expires_at = Timestamp::now().plus(overlap);
        let rotated = self
            .devices
            .rotate_secret(user, device, secret, previous_expires_at);
        match rotated.await.map_err(|e| status::from_store(&e))? {
            Some(device) => Ok(Response::new(v1::RotateWebhookSecretResponse {
                device: Some(to_v1(device, request.user_id, request.secret.is_empty())),
            })),
            None => Err(status::not_found(
                "DEVICE_NOT_FOUND",
                "the user has no such webhook",
            )),
        }
    }

    async fn unregister_device(
        &self,
        request: Request<v1::UnregisterDeviceRequest>,
    ) -> Result<Response<v1::UnregisterDeviceResponse>, Status> {
        let v1::UnregisterDeviceRequest { user_id, device_id } = request.into_inner();
        let (user, device) = self.find(&user_id, &device_id).await?;
        let removed = self.devices.unregister(user, device).await;
        if removed.map_err(|e| status::from_store(&e))? {
            Ok(Response::new(v1::UnregisterDeviceResponse {}))
        } else {
            Err(device_not_found())
        }
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        let user_id = request.into_inner().user_id;
        let user = fields::user_id("user_id", user_id.as_str())?;
        let vapid_public_key = self.vapid.public_key.get().cloned().ok_or_else(|| {
            let message = "the VAPID key is not known until the store can be reached; retry later";
            status::unavailable("STORE_UNAVAILABLE", message)
        })?;
        let devices = match super::find_user(&*self.users, user).await? {
            None => Vec::new(),
            Some(user) => {
                let devices = self
                    .devices
                    .of(&[user])
                    .await
                    .map_err(|e| status::from_store(&e))?;
                devices
                    .into_iter()
                    .flatten()
                    .map(|device| to_v1(device, user_id.clone(), false))
                    .collect()
            }
        };
        Ok(Response::new(v1::ListDevicesResponse {
            devices,
            vapid_public_key,
        }))
    }
}

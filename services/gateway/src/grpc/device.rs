//! DeviceService.

use std::sync::Arc;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use herald_model::{Address, Device, DeviceId, UserId, time::Timestamp};
use herald_proto::v1::{self, device_service_server::DeviceService, register_device_request};
use herald_push_endpoint::{Policy, check_url};
use herald_rpc::{fields, fields::Violations, status};
use herald_store::{DEVICES_PER_USER_MAX, Devices, ErrorKind, Users};
use rand::RngCore as _;
use tonic::{Request, Response, Status};

use crate::domain;

/// Length of a generated webhook secret, bytes.
const SECRET_BYTES: usize = 32;

/// Implements DeviceService.
pub(crate) struct DeviceApi {
    users: Arc<dyn Users>,
    devices: Arc<dyn Devices>,
    endpoints: Policy,
    vapid_public_key: String,
}

impl DeviceApi {
    pub(crate) fn new(
        users: Arc<dyn Users>,
        devices: Arc<dyn Devices>,
        endpoints: Policy,
        vapid_public_key: String,
    ) -> Self {
        Self {
            users,
            devices,
            endpoints,
            vapid_public_key,
        }
    }
}

/// A validated registration.
#[derive(Debug)]
struct NewDevice {
    user: UserId,
    address: Address,
    /// Whether the webhook secret was generated here and must be returned to the caller.
    secret_generated: bool,
}

/// Validates a request; the error names every invalid field.
fn parse(request: v1::RegisterDeviceRequest, policy: Policy) -> Result<NewDevice, Status> {
    use register_device_request::Address as RequestedAddress;

    let mut violations = Violations::new();
    let user = violations.user_id("user_id", request.user_id);
    let (address, secret_generated) = match request.address {
        None => {
            violations.add("address", "must be a web_push or a webhook");
            (None, false)
        }
        Some(RequestedAddress::WebPush(requested)) => {
            violations.take("web_push.endpoint", check_url(&requested.endpoint, policy));
            let p256dh = violations.take("web_push.p256dh", domain::parse_p256dh(&requested.p256dh));
            let auth = violations.take("web_push.auth", domain::parse_web_push_auth(&requested.auth));
            let keys = p256dh.zip(auth);
            (
                keys.map(|(p256dh, auth)| Address::WebPush {
                    endpoint: requested.endpoint,
                    p256dh,
                    auth,
                }),
                false,
            )
        }
        Some(RequestedAddress::Webhook(requested)) => {
            violations.take("webhook.url", check_url(&requested.url, policy));
            let generate = requested.secret.is_empty();
            let secret = if generate {
                Some(generate_secret())
            } else {
                violations.take("webhook.secret", domain::parse_webhook_secret(&requested.secret))
            };
            (
                secret.map(|secret| Address::Webhook {
                    url: requested.url,
                    secret,
                }),
                generate,
            )
        }
    };
    violations.into_result()?;
    // Without violations both are `Some`.
    let (Some(user), Some(address)) = (user, address) else {
        return Err(status::invalid(&[("address", "is not valid")]));
    };
    Ok(NewDevice {
        user,
        address,
        secret_generated,
    })
}

fn generate_secret() -> Vec<u8> {
    let mut secret = vec![0; SECRET_BYTES];
    rand::rng().fill_bytes(&mut secret);
    secret
}

/// Converts a device. The webhook secret is included only in the response to the registration that generated it.
fn to_v1(device: Device, user_id: String, with_webhook_secret: bool) -> v1::Device {
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
    v1::Device {
        device_id: device.id.0.to_string(),
        user_id,
        registered_time: Some(herald_proto::timestamp_to_proto(device.registered_at)),
        address: Some(address),
    }
}

#[tonic::async_trait]
impl DeviceService for DeviceApi {
    async fn register_device(
        &self,
        request: Request<v1::RegisterDeviceRequest>,
    ) -> Result<Response<v1::RegisterDeviceResponse>, Status> {
        let new = parse(request.into_inner(), self.endpoints)?;
        let user_id = new.user.as_str().to_owned();
        let user = super::intern_user(&*self.users, new.user).await?;
        let registered = self.devices.register(user, new.address, Timestamp::now()).await;
        let device = registered.map_err(|e| match e.kind() {
            ErrorKind::LimitExceeded => {
                let message =
                    format!("a user can have at most {DEVICES_PER_USER_MAX} devices; unregister one first");
                status::quota("TOO_MANY_DEVICES", "devices", message)
            }
            _ => status::from_store(&e),
        })?;
        let device = Some(to_v1(device, user_id, new.secret_generated));
        Ok(Response::new(v1::RegisterDeviceResponse { device }))
    }

    async fn unregister_device(
        &self,
        request: Request<v1::UnregisterDeviceRequest>,
    ) -> Result<Response<v1::UnregisterDeviceResponse>, Status> {
        let request = request.into_inner();
        let mut violations = Violations::new();
        let user = violations.user_id("user_id", request.user_id);
        let device = request
            .device_id
            .parse()
            .map(DeviceId)
            .map_err(|_| "must be a device id, a decimal number");
        let device = violations.take("device_id", device);
        violations.into_result()?;
        let not_found = || status::not_found("DEVICE_NOT_FOUND", "the user has no such device");
        let (Some(user), Some(device)) = (user, device) else {
            return Err(not_found());
        };
        let Some(user) = super::find_user(&*self.users, user).await? else {
            return Err(not_found());
        };
        let removed = self
            .devices
            .unregister(user, device)
            .await
            .map_err(|e| status::from_store(&e))?;
        if removed {
            Ok(Response::new(v1::UnregisterDeviceResponse {}))
        } else {
            Err(not_found())
        }
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        let user_id = request.into_inner().user_id;
        let user = fields::user_id("user_id", user_id.as_str())?;
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
            vapid_public_key: self.vapid_public_key.clone(),
        }))
    }
}

//! The device service of the fake server.

use herald_proto::v1::{device_service_server::DeviceService, *};
use tonic::{Request, Response};

use super::{RpcResult, Server, time};

#[tonic::async_trait]
impl DeviceService for Server {
    async fn register_device(
        &self,
        request: Request<RegisterDeviceRequest>,
    ) -> RpcResult<RegisterDeviceResponse> {
        let request = self.record(request)?;
        let address = request.address.map(|address| match address {
            register_device_request::Address::WebPush(push) => device::Address::WebPush(push),
            register_device_request::Address::Webhook(hook) => {
                let made = hook.secret.is_empty();
                let secret = if made { "whsec_made" } else { "" };
                device::Address::Webhook(Webhook {
                    url: hook.url,
                    secret: secret.into(),
                })
            }
        });
        let device = Device {
            device_id: "d1".into(),
            user_id: request.user_id,
            registered_time: Some(time(0)),
            address,
            state: DeviceState::Enabled.into(),
            ..Device::default()
        };
        Ok(Response::new(RegisterDeviceResponse { device: Some(device) }))
    }

    async fn enable_device(&self, request: Request<EnableDeviceRequest>) -> RpcResult<EnableDeviceResponse> {
        let request = self.record(request)?;
        let device = Some(webhook_device(request.user_id, ""));
        Ok(Response::new(EnableDeviceResponse { device }))
    }

    async fn rotate_webhook_secret(
        &self,
        request: Request<RotateWebhookSecretRequest>,
    ) -> RpcResult<RotateWebhookSecretResponse> {
        let request = self.record(request)?;
        let secret = if request.secret.is_empty() {
            "whsec_made"
        } else {
            ""
        };
        let device = Some(Device {
            previous_secret_expire_time: Some(time(7_200)),
            ..webhook_device(request.user_id, secret)
        });
        Ok(Response::new(RotateWebhookSecretResponse { device }))
    }

    async fn unregister_device(
        &self,
        request: Request<UnregisterDeviceRequest>,
    ) -> RpcResult<UnregisterDeviceResponse> {
        self.record(request)?;
        Ok(Response::new(UnregisterDeviceResponse {}))
    }

    async fn list_devices(&self, request: Request<ListDevicesRequest>) -> RpcResult<ListDevicesResponse> {
        let user_id = self.record(request)?.user_id;
        let disabled = Device {
            device_id: "d2".into(),
            state: DeviceState::Disabled.into(),
            disabled_reason: DisabledReason::Gone.into(),
            disabled_time: Some(time(3_600)),
            ..webhook_device(user_id.clone(), "")
        };
        Ok(Response::new(ListDevicesResponse {
            devices: vec![webhook_device(user_id, ""), disabled],
            vapid_public_key: "BKey".into(),
        }))
    }
}

fn webhook_device(user_id: String, secret: &str) -> Device {
    let hook = Webhook {
        url: "https://example.com/hook".into(),
        secret: secret.into(),
    };
    Device {
        device_id: "d1".into(),
        user_id,
        registered_time: Some(time(0)),
        address: Some(device::Address::Webhook(hook)),
        state: DeviceState::Enabled.into(),
        ..Device::default()
    }
}

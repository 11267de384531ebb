//! Sends one push to one device.

use herald_model::{Address, Device, UserId, time::Timestamp};
use herald_push_endpoint::{Policy, check_parsed};
use url::Url;

use super::{
    Push, Vapid,
    admission::Admission,
    client::{Client, ProviderError},
    sender::{Message, Sender},
    web_push::WebPush,
    webhook::Webhooks,
};
use crate::{
    Config, Error, Metrics,
    claim::Claim,
    domain::{Provider, Reason, Sent, Verdict},
};

/// Sends pushes to devices.
pub(crate) struct Dispatcher {
    client: Client,
    admission: Admission,
    endpoints: Policy,
    web_push: WebPush,
    webhooks: Webhooks,
    metrics: Metrics,
}

impl Dispatcher {
    pub(crate) fn new(config: &Config, vapid: Vapid, metrics: Metrics) -> Result<Self, Error> {
        Ok(Self {
            client: Client::new(config)?,
            admission: Admission::new(config),
            endpoints: config.endpoints,
            web_push: WebPush { vapid },
            webhooks: Webhooks,
            metrics,
        })
    }

    /// Sends a push to a device once admission control permits it, if the claim of its chunk still lasts then.
    pub(crate) async fn send(
        &self,
        push: &Push,
        recipient: &UserId,
        device: &Device,
        claim: &Claim,
    ) -> Verdict {
        let sender = self.sender(&device.address);
        let provider = sender.provider();
        let verdict = self.attempt_send(sender, push, recipient, device, claim).await;
        self.metrics.record_send(provider, verdict);
        if verdict == Verdict::Accepted {
            self.metrics
                .observe_accepted(push.lane, Timestamp::now().since(push.accepted_at));
        }
        verdict
    }

    /// The verdict about a device, with its provider and host.
    pub(crate) fn describe(&self, device: &Device, verdict: Verdict) -> Sent {
        Sent {
            device: device.id,
            provider: self.provider(device),
            host: host(device),
            verdict,
        }
    }

    /// The provider that delivers pushes to a device.
    pub(crate) fn provider(&self, device: &Device) -> Provider {
        self.sender(&device.address).provider()
    }

    fn sender(&self, address: &Address) -> &dyn Sender {
        match address {
            Address::WebPush { .. } => &self.web_push,
            Address::Webhook { .. } => &self.webhooks,
        }
    }

    async fn attempt_send(
        &self,
        sender: &dyn Sender,
        push: &Push,
        recipient: &UserId,
        device: &Device,
        claim: &Claim,
    ) -> Verdict {
        // Checked again because the device may have been registered under another policy, and because the resolver does
        // not see a literal IP address.
        let refused = Verdict::Refused(Reason::Endpoint);
        let Ok(url) = Url::parse(device.address.url()) else {
            return refused;
        };
        if check_parsed(&url, self.endpoints).is_err() {
            return refused;
        }
        let origin = url.origin().ascii_serialization();
        let permit = match self.admission.acquire(push.lane, &origin).await {
            Ok(permit) => permit,
            Err(wait) => {
                return Verdict::Retry {
                    reason: Reason::Breaker,
                    after: Some(wait),
                };
            }
        };
        // The permit may have taken long.
        let now = Timestamp::now();
        if push.is_deleted() {
            return Verdict::Deleted;
        }
        if now >= push.expires_at {
            return Verdict::Expired;
        }
        let message = Message {
            push,
            recipient,
            device,
            url: &url,
            now,
        };
        let request = match sender.request(message).await {
            Ok(request) => request,
            Err(reason) => return Verdict::Refused(reason),
        };
        if !claim.lasts() {
            return Verdict::Unclaimed;
        }
        let timer = self.metrics.start_request(sender.provider());
        let response = self.client.post(url, request).await;
        drop(timer);
        let verdict = match response {
            Ok(response) => sender.verdict(response),
            Err(ProviderError::Transient(reason)) => Verdict::Retry { reason, after: None },
            Err(ProviderError::Permanent(reason)) => Verdict::Refused(reason),
        };
        permit.report(&verdict);
        verdict
    }
}

/// The host of a device's endpoint, with the port unless it is the default; empty if the endpoint is malformed. For logs
/// and the ledger: the path can be a secret.
pub(crate) fn host(device: &Device) -> String {
    let url = Url::parse(device.address.url()).ok();
    let host = |url: Url| {
        let host = url.host_str()?;
        Some(match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        })
    };
    url.and_then(host).unwrap_or_default()
}

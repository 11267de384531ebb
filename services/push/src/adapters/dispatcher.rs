//! Brings one push to one device.

use herald_model::{Address, Device, UserId, time::Timestamp};
use herald_push_endpoint::{Policy, check_parsed};
use url::Url;

use super::{
    Push, Vapid,
    client::{Client, ProviderError},
    gates::Gates,
    sender::{Message, Sender},
    web_push::WebPush,
    webhook::Webhooks,
};
use crate::{
    Config, Error, Metrics,
    domain::{Provider, Reason, Verdict},
};

/// Brings pushes to devices.
pub(crate) struct Dispatcher {
    client: Client,
    gates: Gates,
    endpoints: Policy,
    web_push: WebPush,
    webhooks: Webhooks,
    metrics: Metrics,
}

impl Dispatcher {
    pub(crate) fn new(config: &Config, vapid: Vapid, metrics: Metrics) -> Result<Self, Error> {
        Ok(Self {
            client: Client::new(config)?,
            gates: Gates::new(config),
            endpoints: config.endpoints,
            web_push: WebPush { vapid },
            webhooks: Webhooks,
            metrics,
        })
    }

    /// Sends a push to a device, when it is its turn.
    pub(crate) async fn send(&self, push: &Push, recipient: &UserId, device: &Device) -> Verdict {
        let sender = self.sender(&device.address);
        let provider = sender.provider();
        let verdict = self.attempt(sender, push, recipient, device).await;
        self.metrics.sent(provider, verdict);
        if verdict == Verdict::Accepted {
            self.metrics
                .accepted(push.lane, Timestamp::now().since(push.accepted_at));
        }
        verdict
    }

    /// Who carries pushes to a device.
    pub(crate) fn provider(&self, device: &Device) -> Provider {
        self.sender(&device.address).provider()
    }

    fn sender(&self, address: &Address) -> &dyn Sender {
        match address {
            Address::WebPush { .. } => &self.web_push,
            Address::Webhook { .. } => &self.webhooks,
        }
    }

    async fn attempt(
        &self,
        sender: &dyn Sender,
        push: &Push,
        recipient: &UserId,
        device: &Device,
    ) -> Verdict {
        // Checked again: it may have been registered under another policy, and a literal address asks no resolver.
        let refused = Verdict::Refused(Reason::Endpoint);
        let Ok(url) = Url::parse(device.address.url()) else {
            return refused;
        };
        if check_parsed(&url, self.endpoints).is_err() {
            return refused;
        }
        let origin = url.origin().ascii_serialization();
        let pass = match self.gates.enter(push.lane, &origin).await {
            Ok(pass) => pass,
            Err(wait) => {
                return Verdict::Later {
                    reason: Reason::Breaker,
                    after: Some(wait),
                };
            }
        };
        // It may have waited long.
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
        let under_way = self.metrics.request(sender.provider());
        let answer = self.client.post(url, request).await;
        drop(under_way);
        let verdict = match answer {
            Ok(answer) => sender.verdict(answer),
            Err(ProviderError::Later(reason)) => Verdict::Later { reason, after: None },
            Err(ProviderError::Refused(reason)) => Verdict::Refused(reason),
        };
        pass.report(&verdict);
        verdict
    }
}

//! The push provider: records each push and can inject failures.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use herald_push_sink::{Entry, InjectedFailure, Keys, Sink, Subscription, Webhook};
use jiff::Timestamp;
use parking_lot::Mutex;
use reqwest::StatusCode;
use tokio::{net::TcpListener, sync::broadcast::error::RecvError, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Proxy, Toxiproxy};

/// Device name and post id.
pub(crate) type ReceiptKey = (String, u64);

/// Pushes of one post to one device.
#[derive(Debug, Clone)]
pub(crate) struct Receipts {
    pub(crate) recipient: String,
    pub(crate) text: String,
    pub(crate) times: Vec<Timestamp>,
}

/// A push sink, behind a proxy if toxiproxy is available.
pub(crate) struct PushSink {
    sink: Sink,
    pub(crate) proxy: Option<Proxy>,
    received: Arc<Mutex<HashMap<ReceiptKey, Receipts>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl PushSink {
    pub(crate) async fn start(toxiproxy: Option<&Toxiproxy>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let own: SocketAddr = listener.local_addr().expect("an address");
        let proxy = match toxiproxy {
            Some(toxiproxy) => Some(toxiproxy.proxy("sink", &own.to_string()).await),
            None => None,
        };
        let address = proxy.as_ref().map_or(own, Proxy::address);
        let sink = Sink::new(&format!("http://{address}"), Keys::generate()).expect("a sink");
        let serving = sink.clone().serve(listener, CancellationToken::new());
        let received = Arc::<Mutex<HashMap<ReceiptKey, Receipts>>>::default();
        let recorded = received.clone();
        let mut entries = sink.subscribe();
        let tasks = vec![
            tokio::spawn(async move { serving.await.expect("the sink serves") }),
            // The sink keeps only the newest entries, and a long run has more.
            tokio::spawn(async move {
                loop {
                    match entries.recv().await {
                        Ok(entry) => record_receipt(&mut recorded.lock(), entry),
                        Err(RecvError::Lagged(missed)) => {
                            panic!("{missed} pushes were not recorded: the receipt task is too slow")
                        }
                        Err(RecvError::Closed) => return,
                    }
                }
            }),
        ];
        Self {
            sink,
            proxy,
            received,
            tasks,
        }
    }

    pub(crate) fn webhook(&self, device: &str) -> Webhook {
        self.sink.webhook(device)
    }

    pub(crate) fn subscription(&self, device: &str) -> Subscription {
        self.sink.subscription(device)
    }

    /// Answers pushes to these devices with a status.
    pub(crate) fn fail(&self, devices: &[String], status: u16, retry_after: Option<Duration>) {
        let failure = InjectedFailure {
            status: StatusCode::from_u16(status).expect("a status"),
            retry_after,
            times: None,
        };
        for device in devices {
            self.sink.fail(device, failure);
        }
    }

    /// Accepts pushes to these devices again.
    pub(crate) fn recover(&self, devices: &[String]) {
        for device in devices {
            self.sink.recover(device);
        }
    }

    /// Pushes received so far.
    pub(crate) fn received(&self) -> HashMap<ReceiptKey, Receipts> {
        self.received.lock().clone()
    }

    /// Requests rejected as forged or malformed; must be 0.
    pub(crate) fn rejected(&self) -> u64 {
        self.sink.summary().rejected
    }
}

impl Drop for PushSink {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn record_receipt(received: &mut HashMap<ReceiptKey, Receipts>, entry: Entry) {
    let Entry {
        name,
        post_id,
        recipient_id,
        text,
        received_time,
        ..
    } = entry;
    let receipts = received.entry((name, post_id)).or_insert_with(|| Receipts {
        recipient: recipient_id,
        text,
        times: Vec::new(),
    });
    receipts.times.push(received_time);
}

//! The gRPC client of the commands.

use std::{fmt, time::Duration};

use herald_proto::v1::{
    Device, RegisterDeviceRequest, analytics_service_client::AnalyticsServiceClient,
    audit_service_client::AuditServiceClient, dead_letter_service_client::DeadLetterServiceClient,
    delivery_service_client::DeliveryServiceClient, device_service_client::DeviceServiceClient,
    graph_service_client::GraphServiceClient, mesh_service_client::MeshServiceClient,
    post_service_client::PostServiceClient, preference_service_client::PreferenceServiceClient,
    register_device_request::Address, timeline_service_client::TimelineServiceClient,
};
use herald_runtime::trace::Inject;
use tonic::{
    Request,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::failure::Failure;

/// Limit for establishing the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 pings, and the time after which a connection without an answer to a ping is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Largest response. A page of a timeline has at most 200 posts of about 110 KB each.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// A connection to one server. Clones share it.
#[derive(Clone)]
pub struct Client {
    channel: TracedChannel,
    deadline: Duration,
}

/// Sends the trace context with each call.
type TracedChannel = InterceptedService<Channel, Inject>;

impl Client {
    /// Connects to `server` (`http://HOST:PORT`). [`Client::request`] sets `deadline` on each unary call.
    ///
    /// # Errors
    /// `Unreachable` if no connection is established within 5 s.
    pub async fn connect(server: &str, deadline: Duration) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(server.to_owned())
            .map_err(|_| Failure::usage(format!("{server} is not a valid server address")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .user_agent(concat!("herald-cli/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Failure::failed(error.to_string()))?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Failure::no_server(server, &error))?;
        Ok(Self {
            channel: InterceptedService::new(channel, Inject),
            deadline,
        })
    }

    /// Wraps a message of a unary call and sets the deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    /// Registers a device of a user at this address.
    pub async fn register_device(&self, user_id: String, address: Address) -> Result<Device, Failure> {
        let request = self.request(RegisterDeviceRequest {
            user_id,
            address: Some(address),
        });
        let response = self.devices().register_device(request).await?.into_inner();
        response
            .device
            .ok_or_else(|| Failure::failed("the server's response has no device"))
    }

    /// The client of the post service.
    pub fn posts(&self) -> PostServiceClient<TracedChannel> {
        PostServiceClient::new(self.channel.clone())
    }

    /// The client of the graph service.
    pub fn graph(&self) -> GraphServiceClient<TracedChannel> {
        GraphServiceClient::new(self.channel.clone())
    }

    /// The client of the device service.
    pub fn devices(&self) -> DeviceServiceClient<TracedChannel> {
        DeviceServiceClient::new(self.channel.clone())
    }

    /// The client of the preference service.
    pub fn preferences(&self) -> PreferenceServiceClient<TracedChannel> {
        PreferenceServiceClient::new(self.channel.clone())
    }

    /// The client of the timeline service.
    pub fn timelines(&self) -> TimelineServiceClient<TracedChannel> {
        TimelineServiceClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// The client of the delivery service.
    pub fn deliveries(&self) -> DeliveryServiceClient<TracedChannel> {
        DeliveryServiceClient::new(self.channel.clone())
    }

    /// The client of the analytics service.
    pub fn analytics(&self) -> AnalyticsServiceClient<TracedChannel> {
        AnalyticsServiceClient::new(self.channel.clone())
    }

    /// The client of the dead-letter service.
    pub fn dead_letters(&self) -> DeadLetterServiceClient<TracedChannel> {
        DeadLetterServiceClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// The client of the audit service.
    pub fn audit(&self) -> AuditServiceClient<TracedChannel> {
        AuditServiceClient::new(self.channel.clone())
    }

    /// The client of the mesh service: streams and consumer lag.
    pub fn mesh(&self) -> MeshServiceClient<TracedChannel> {
        MeshServiceClient::new(self.channel.clone())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

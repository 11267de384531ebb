//! The way to a server.

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

/// How long to wait for somebody to answer at the server's address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that answers no ping for this long is broken, whatever the network says.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A page of a timeline holds at most 200 posts of some 110 KB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Connected to one server.
#[derive(Clone)]
pub struct Client {
    traced: Traced,
    deadline: Duration,
}

type Traced = InterceptedService<Channel, Inject>;

impl Client {
    /// Connects; fails at once when nobody listens at `server`. Each call without a stream gets `deadline`.
    pub async fn connect(server: &str, deadline: Duration) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(server.to_owned())
            .map_err(|_| Failure::usage(format!("{server} is not a server's address")))?
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
            traced: InterceptedService::new(channel, Inject),
            deadline,
        })
    }

    /// A call with the deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    /// Registers a user's device at this address.
    pub async fn register_device(&self, user_id: String, address: Address) -> Result<Device, Failure> {
        let request = self.request(RegisterDeviceRequest {
            user_id,
            address: Some(address),
        });
        let response = self.devices().register_device(request).await?.into_inner();
        response
            .device
            .ok_or_else(|| Failure::failed("the server answered without the device"))
    }

    /// Submits, reads and deletes posts.
    pub fn posts(&self) -> PostServiceClient<Traced> {
        PostServiceClient::new(self.traced.clone())
    }

    /// Follows.
    pub fn graph(&self) -> GraphServiceClient<Traced> {
        GraphServiceClient::new(self.traced.clone())
    }

    /// Devices that pushes go to.
    pub fn devices(&self) -> DeviceServiceClient<Traced> {
        DeviceServiceClient::new(self.traced.clone())
    }

    /// Preferences of users.
    pub fn preferences(&self) -> PreferenceServiceClient<Traced> {
        PreferenceServiceClient::new(self.traced.clone())
    }

    /// Timelines.
    pub fn timelines(&self) -> TimelineServiceClient<Traced> {
        TimelineServiceClient::new(self.traced.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Deliveries of posts.
    pub fn deliveries(&self) -> DeliveryServiceClient<Traced> {
        DeliveryServiceClient::new(self.traced.clone())
    }

    /// Totals and statistics of posts.
    pub fn analytics(&self) -> AnalyticsServiceClient<Traced> {
        AnalyticsServiceClient::new(self.traced.clone())
    }

    /// Dead letters.
    pub fn dead_letters(&self) -> DeadLetterServiceClient<Traced> {
        DeadLetterServiceClient::new(self.traced.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// The auditor.
    pub fn audit(&self) -> AuditServiceClient<Traced> {
        AuditServiceClient::new(self.traced.clone())
    }

    /// Streams and the lag of their consumers.
    pub fn mesh(&self) -> MeshServiceClient<Traced> {
        MeshServiceClient::new(self.traced.clone())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

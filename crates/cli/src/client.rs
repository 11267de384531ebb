//! The gRPC clients of the commands.

use std::{fmt, time::Duration};

use herald_proto::v1::{
    Device, RegisterDeviceRequest, analytics_service_client::AnalyticsServiceClient,
    audit_service_client::AuditServiceClient, dead_letter_service_client::DeadLetterServiceClient,
    delivery_service_client::DeliveryServiceClient, device_service_client::DeviceServiceClient,
    graph_service_client::GraphServiceClient, key_service_client::KeyServiceClient,
    mesh_service_client::MeshServiceClient, post_service_client::PostServiceClient,
    preference_service_client::PreferenceServiceClient, register_device_request::Address,
    timeline_service_client::TimelineServiceClient, user_data_service_client::UserDataServiceClient,
};
use herald_runtime::tls::ClientTls;
use tonic::{
    Request,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::{
    caller::{Caller, CallerTls, Credential, Sent, unusable_file},
    failure::Failure,
    port::Port,
};

/// Limit for establishing the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 pings, and the time after which a connection without an answer to a ping is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Largest response. A page of a timeline has at most 200 posts of about 110 KB each.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// A connection to the public API of one server. Clones share it.
#[derive(Clone)]
pub struct Client {
    channel: TracedChannel,
    deadline: Duration,
}

/// A connection to the operator port of one server. Clones share it.
#[derive(Clone)]
pub struct OperatorClient {
    channel: TracedChannel,
    deadline: Duration,
}

/// Sends the trace context and the credential with each call.
type TracedChannel = InterceptedService<Channel, Sent>;

/// Connects to a port at `server`.
async fn connect(
    server: &str,
    port: Port,
    credential: Credential,
    tls: &CallerTls,
) -> Result<TracedChannel, Failure> {
    let mut endpoint = Endpoint::from_shared(server.to_owned())
        .map_err(|_| Failure::usage(format!("{server} is not a valid server address")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .user_agent(concat!("herald-cli/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| Failure::failed(error.to_string()))?;
    if endpoint.uri().scheme_str() == Some("https") {
        let host = endpoint.uri().host().unwrap_or_default().to_owned();
        let tls = match tls {
            CallerTls::Files(files) => ClientTls::open(files).map_err(|error| unusable_file(&error))?,
            CallerTls::Made(made) => made.clone(),
        };
        endpoint = tls
            .apply(endpoint, &host)
            .map_err(|error| Failure::usage(format!("{server} is not a valid server address: {error}")))?;
    } else {
        tls.refuse_for_plain(server, port)?;
    }
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| Failure::no_server(server, port, &error))?;
    Ok(InterceptedService::new(channel, Sent(credential)))
}

/// Wraps a message of a unary call and sets the deadline.
fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

impl Client {
    /// Connects to `server` (`http://HOST:PORT` or `https://HOST:PORT`). [`Client::request`] sets the deadline on each unary
    /// call.
    ///
    /// # Errors
    /// `Unreachable` if no connection is established within 5 s.
    pub async fn connect(server: &str, caller: impl Into<Caller>) -> Result<Self, Failure> {
        let Caller {
            deadline,
            credential,
            tls,
        } = caller.into();
        let channel = connect(server, Port::Public, credential, &tls).await?;
        Ok(Self { channel, deadline })
    }

    /// Wraps a message of a unary call and sets the deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        request(message, self.deadline)
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
}

impl OperatorClient {
    /// Connects to the operator port at `server` (`http://HOST:PORT` or `https://HOST:PORT`). [`OperatorClient::request`] sets
    /// the deadline on each unary call.
    ///
    /// # Errors
    /// `Unreachable` if no connection is established within 5 s.
    pub async fn connect(server: &str, caller: impl Into<Caller>) -> Result<Self, Failure> {
        let Caller {
            deadline,
            credential,
            tls,
        } = caller.into();
        let channel = connect(server, Port::Operators, credential, &tls).await?;
        Ok(Self { channel, deadline })
    }

    /// Wraps a message of a unary call and sets the deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        request(message, self.deadline)
    }

    /// The client of the dead-letter service.
    pub fn dead_letters(&self) -> DeadLetterServiceClient<TracedChannel> {
        DeadLetterServiceClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// The client of the audit service.
    pub fn audit(&self) -> AuditServiceClient<TracedChannel> {
        AuditServiceClient::new(self.channel.clone())
    }

    /// The client of the key service.
    pub fn keys(&self) -> KeyServiceClient<TracedChannel> {
        KeyServiceClient::new(self.channel.clone())
    }

    /// The client of the user data service: exports and erasures.
    pub fn user_data(&self) -> UserDataServiceClient<TracedChannel> {
        UserDataServiceClient::new(self.channel.clone())
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

impl fmt::Debug for OperatorClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorClient")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

//! Common setup of the benchmarks: a server, a social graph, devices, and timeline watchers.

use std::{path::PathBuf, sync::Arc, time::Instant};

use clap::ValueEnum;
use herald_cli::{
    caller::Credential,
    client::{Client, OperatorClient},
    context::Context,
    failure::Failure,
};
use herald_proto::v1::{CreateKeyRequest, Scope};
use herald_push_sink::Running;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::{
    engine::{self, Engine},
    graph::{Graph, Shape},
    load,
    observe::Watchers,
    progress::Progress,
    server::Server,
};

/// Number of the author with `--big-author` followers.
pub(super) const BIG_AUTHOR: u32 = 0;

/// Arguments of all benchmarks.
#[derive(Debug, clap::Args)]
pub(super) struct Setup {
    /// Users in the graph
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2..=100_000_000))]
    pub(super) users: u32,

    /// Mean followers per author
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) followers: u32,

    /// Distribution of followers over authors
    #[arg(long, value_enum, default_value_t = ShapeArg::PowerLaw)]
    pub(super) shape: ShapeArg,

    /// Users who post [default: 1,000, or all users if fewer]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) authors: Option<u32>,

    /// Share of users with a device who want pushes, 0 to 1
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub(super) push_share: f64,

    /// Timelines of random followers to watch for the visible latency
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub(super) watchers: u32,

    /// Seed of the graph and of the choice of authors
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,

    /// Data directory of the server; must be empty and is not removed [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Call with an API key that is made for the benchmark, with all scopes
    ///
    /// The credential of the command (--token-file, HERALD_TOKEN) makes it. For servers with authentication: with
    /// HERALD_AUTH__ENABLED=true in the environment, a root key in HERALD_AUTH__ROOT_KEY and the same one in
    /// HERALD_TOKEN.
    #[arg(long)]
    api_key: bool,

    #[command(flatten)]
    pub(super) engine: engine::Args,

    /// Options of the server, after `--`
    #[arg(last = true, value_name = "OPTION")]
    pub(super) up: Vec<String>,
}

/// Distribution of followers over authors.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ShapeArg {
    /// A few authors have very many followers, most have few.
    PowerLaw,
    /// Each author has the same number of followers.
    Fixed,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

/// Clap value parser for rates.
pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("must be a number greater than 0".into()),
    }
}

/// Makes an API key with all scopes.
async fn create_key(operators: &OperatorClient) -> Result<Credential, Failure> {
    let scopes = [
        Scope::Post,
        Scope::Read,
        Scope::Graph,
        Scope::Devices,
        Scope::Operate,
        Scope::Audit,
        Scope::Scale,
    ];
    let request = operators.request(CreateKeyRequest {
        name: "bench".into(),
        scopes: scopes.map(i32::from).into(),
        ttl: None,
    });
    let created = operators.keys().create_key(request).await?;
    Credential::new(&created.into_inner().token)
}

/// A loaded mesh, ready for measurements.
pub(super) struct World<S = Server> {
    pub(super) server: S,
    pub(super) client: Client,
    pub(super) operators: OperatorClient,
    pub(super) graph: Arc<Graph>,
    pub(super) sink: Running,
    pub(super) watchers: Watchers,
    pub(super) import_seconds: f64,
    pub(super) data: Data,
}

impl World {
    /// Stops the server and returns its data for further checks.
    pub(super) async fn stop(self) -> Result<Data, Failure> {
        self.server.stop().await?;
        Ok(self.data)
    }

    /// Disk usage of the server and of private servers, MB.
    pub(super) fn disk_mb(&self) -> f64 {
        self.server.disk_mb() + self.data.engine.disk_mb()
    }
}

/// Data of a server; drop removes what is temporary.
pub(super) struct Data {
    pub(super) dir: PathBuf,
    pub(super) engine: Engine,
    _temporary: TempDir,
}

impl Setup {
    /// Number of users who post.
    pub(super) fn authors(&self) -> u32 {
        self.authors.unwrap_or(1_000).min(self.users)
    }

    /// Starts a server and watchers, imports the graph and registers devices.
    pub(super) async fn start(
        &self,
        big_author: Option<u32>,
        progress: Progress,
        context: &Context,
    ) -> Result<World, Failure> {
        let graph = self.generate_graph(big_author)?;
        let data = self.prepare().await?;
        let environment = data.engine.environment();
        let starting = Server::start(&data.dir, &self.up, &environment, context);
        let server = progress.step("starting a server", starting).await?;
        let mut caller = context.caller()?;
        if self.api_key {
            let operators = OperatorClient::connect(server.operator_url(), caller.clone()).await?;
            caller.credential = create_key(&operators).await?;
        }
        let client = Client::connect(server.url(), caller.clone()).await?;
        let operators = OperatorClient::connect(server.operator_url(), caller).await?;
        self.load(server, (client, operators), graph, data, progress)
            .await
    }

    /// Makes a data directory and starts the engine's private servers.
    pub(super) async fn prepare(&self) -> Result<Data, Failure> {
        let temporary = tempfile::Builder::new()
            .prefix("herald-bench-")
            .tempdir()
            .map_err(|error| Failure::io("can't create a temporary directory", &error))?;
        let dir = self
            .data_dir
            .clone()
            .unwrap_or_else(|| temporary.path().join("data"));
        if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Failure::usage(format!(
                "{} is not empty; choose an empty data directory",
                dir.display()
            )));
        }
        Ok(Data {
            dir,
            engine: self.engine.start().await?,
            _temporary: temporary,
        })
    }

    /// Imports the graph, registers devices, and starts watchers.
    pub(super) async fn load<S>(
        &self,
        server: S,
        (client, operators): (Client, OperatorClient),
        graph: Graph,
        data: Data,
        progress: Progress,
    ) -> Result<World<S>, Failure> {
        let graph = Arc::new(graph);
        let importing = Instant::now();
        let bar = progress.bar("importing follows", graph.follow_count());
        let imported = bar.clone();
        load::import_graph(&client, &graph, self.push_share, move |n| imported.inc(n)).await?;
        bar.finish_and_clear();
        let import_seconds = importing.elapsed().as_secs_f64();

        let sink = Running::start()
            .await
            .map_err(|error| Failure::failed(format!("can't start the push sink: {error}")))?;
        self.register_devices(&graph, &client, &sink, progress).await?;
        let watchers = Watchers::start(&client, &self.choose_followers(&graph, self.watchers)).await?;
        Ok(World {
            server,
            client,
            operators,
            graph,
            sink,
            watchers,
            import_seconds,
            data,
        })
    }

    pub(super) fn generate_graph(&self, big_author: Option<u32>) -> Result<Graph, Failure> {
        if big_author.is_some() && self.authors() < 2 {
            return Err(Failure::usage(
                "--big-author needs other authors: set --authors to 2 or more".to_owned(),
            ));
        }
        let followers_max = self.followers.max(big_author.unwrap_or(0));
        if followers_max >= self.users {
            return Err(Failure::usage(format!(
                "--users {} are too few for {followers_max} followers: raise --users, or lower --followers and --big-author",
                self.users
            )));
        }
        let shape = match self.shape {
            ShapeArg::PowerLaw => Shape::PowerLaw,
            ShapeArg::Fixed => Shape::Fixed,
        };
        Ok(Graph::generate(
            self.users,
            self.authors(),
            self.followers,
            shape,
            big_author,
            self.seed,
        ))
    }

    /// Randomly chosen followers, without duplicates.
    pub(super) fn choose_followers(&self, graph: &Graph, count: u32) -> Vec<u32> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0x0077_6174_6368);
        let mut chosen: Vec<u32> = (0..count)
            .filter_map(|_| {
                let followers = &graph.followers[rng.random_range(0..graph.followers.len())];
                (!followers.is_empty()).then(|| followers[rng.random_range(0..followers.len())])
            })
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    async fn register_devices(
        &self,
        graph: &Graph,
        client: &Client,
        sink: &Running,
        progress: Progress,
    ) -> Result<(), Failure> {
        if self.push_share == 0.0 {
            return Ok(());
        }
        let mut users: Vec<u32> = graph.followers.iter().flatten().copied().collect();
        users.sort_unstable();
        users.dedup();
        let users = users
            .into_iter()
            .filter(|user| load::wants_push(*user, self.push_share));
        let webhook = |user| {
            let made = sink.webhook(&Graph::id(user));
            herald_proto::v1::Webhook {
                url: made.url,
                secret: made.secret,
            }
        };
        progress
            .step(
                "registering devices",
                load::register_webhooks(client, users, webhook),
            )
            .await
    }
}

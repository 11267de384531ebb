//! `herald doctor`: each trap on a real server gives its finding and no other, and a healthy mesh gives none.

mod away;
mod meshes;
mod servers;
mod traps;

use std::time::Duration;

use async_nats::jetstream;
use harness::{Output, run};
use herald_local_nats::{Config as NatsConfig, Server as Nats};
use serde_json::Value;

use crate::HERALD;

const LIMIT: Duration = Duration::from_mins(1);

/// What the command found.
#[derive(Debug)]
struct Report {
    code: i32,
    json: Value,
}

impl Report {
    async fn of(arguments: &[&str], variables: &[(String, String)]) -> Self {
        let mut all = vec!["doctor", "--output", "json"];
        all.extend(arguments);
        let done = herald(&all, variables).await;
        let json = serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        Self {
            code: done.code,
            json,
        }
    }

    /// The ids of errors and warnings, each once.
    fn ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self.of_severity(|severity| severity != "note");
        ids.dedup();
        ids
    }

    fn notes(&self) -> Vec<&str> {
        self.of_severity(|severity| severity == "note")
    }

    fn of_severity(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let findings = self.json["findings"].as_array().unwrap().iter();
        let mut ids: Vec<&str> = findings
            .filter(|finding| is_wanted(finding["severity"].as_str().unwrap()))
            .map(|finding| finding["id"].as_str().unwrap())
            .collect();
        ids.sort_unstable();
        ids
    }

    /// What the first finding with this id says.
    fn what(&self, id: &str) -> &str {
        let mut findings = self.json["findings"].as_array().unwrap().iter();
        let finding = findings.find(|finding| finding["id"] == id);
        let finding = finding.unwrap_or_else(|| panic!("{id} is not found: {self:?}"));
        for field in ["why", "remedy"] {
            assert!(
                finding[field].as_str().is_some_and(|text| !text.is_empty()),
                "{finding}"
            );
        }
        finding["what"].as_str().unwrap()
    }

    /// The ids that were not checked.
    fn unchecked(&self) -> Vec<&str> {
        let unchecked = self.json["not_checked"].as_array().unwrap().iter();
        unchecked
            .flat_map(|one| one["ids"].as_array().unwrap())
            .map(|id| id.as_str().unwrap())
            .collect()
    }

    /// Asserts that these are the findings, errors and warnings, and that the exit code says so.
    fn assert_ids(&self, ids: &[&str]) {
        assert_eq!(self.ids(), ids, "{:#}", self.json);
        assert_eq!(self.code, i32::from(!ids.is_empty()), "{:#}", self.json);
    }
}

async fn herald(arguments: &[&str], variables: &[(String, String)]) -> Output {
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    run(HERALD, arguments, &variables).await
}

/// A nats-server with the streams and consumers of Herald, and no process.
struct Broker {
    nats: Nats,
    jetstream: jetstream::Context,
    variables: Vec<(String, String)>,
}

impl Broker {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts with settings that are environment variables.
    async fn start_with(variables: &[(&str, &str)]) -> Self {
        let nats = Nats::start(NatsConfig::default()).await.unwrap();
        let client = async_nats::connect(nats.client_url()).await.unwrap();
        let mut all = vec![("HERALD_NATS__URL".to_owned(), nats.client_url())];
        all.extend(
            variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let broker = Self {
            nats,
            jetstream: jetstream::new(client),
            variables: all,
        };
        broker.apply().await;
        broker
    }

    async fn apply(&self) {
        let done = herald(&["topology", "apply"], &self.variables).await;
        assert_eq!(done.code, 0, "{done:?}");
    }

    async fn doctor(&self) -> Report {
        let monitor = self.nats.monitor_url();
        Report::of(
            &["--monitor", &monitor, "--data-dir", "/nonexistent"],
            &self.variables,
        )
        .await
    }

    async fn publish(&self, subject: &str, body: Vec<u8>) -> Result<(), String> {
        let sent = self.jetstream.publish(subject.to_owned(), body.into()).await;
        let stored = sent.map_err(|error| error.to_string())?.await;
        stored.map(drop).map_err(|error| error.to_string())
    }

    /// Changes the configuration of a stream behind Herald's back.
    async fn change_stream(&self, name: &str, change: impl FnOnce(&mut jetstream::stream::Config)) {
        let stream = self.jetstream.get_stream(name).await.unwrap();
        let mut config = stream.cached_info().config.clone();
        change(&mut config);
        self.jetstream.update_stream(&config).await.unwrap();
    }

    /// Changes the configuration of a consumer behind Herald's back.
    async fn change_consumer(
        &self,
        stream: &str,
        name: &str,
        change: impl FnOnce(&mut jetstream::consumer::pull::Config),
    ) -> Result<(), String> {
        use jetstream::consumer::FromConsumer as _;
        let stream = self.jetstream.get_stream(stream).await.unwrap();
        let info = stream.consumer_info(name).await.unwrap();
        let mut config = jetstream::consumer::pull::Config::try_from_consumer_config(info.config).unwrap();
        change(&mut config);
        let changed = stream.create_consumer(config).await;
        changed.map(drop).map_err(|error| error.to_string())
    }
}

//! A mesh with a user of whom something of each kind is held.

use std::{path::Path, time::Duration};

use async_nats::jetstream;
use futures::TryStreamExt as _;
use harness::{Clients, Herald, Options, Output, run, until};
use herald_mesh::{Mesh, streams};
use herald_proto::v1;
use herald_push_sink::{Running, Webhook};
use serde_json::Value;

use crate::HERALD;

pub(super) const LIMIT: Duration = Duration::from_mins(1);

/// The user who is exported and erased.
pub(super) const AUTHOR: &str = "marmalade-bob";
/// Part of each text of the user.
pub(super) const SECRET_TEXT: &str = "quince";

pub(super) struct World {
    pub(super) herald: Herald,
    pub(super) clients: Clients,
    _sink: Running,
    webhook: Webhook,
}

/// Ids of posts.
pub(super) struct Posts {
    pub(super) shown: u64,
    pub(super) deleted: u64,
    pub(super) of_eve: u64,
}

impl World {
    pub(super) async fn start() -> Self {
        Self::start_with(Vec::new()).await
    }

    pub(super) async fn start_with(variables: Vec<(String, String)>) -> Self {
        let options = Options {
            arguments: vec!["--allow-private-endpoints".into()],
            variables,
            ..Options::default()
        };
        let herald = Herald::start(HERALD, options).await;
        let sink = Running::start().await.unwrap();
        Self {
            clients: herald.clients().await,
            webhook: sink.webhook(AUTHOR),
            _sink: sink,
            herald,
        }
    }

    pub(super) fn webhook_url(&self) -> String {
        self.webhook.url.clone()
    }

    pub(super) fn webhook_secret(&self) -> String {
        self.webhook.secret.clone()
    }

    /// A connection with the rights of all roles.
    pub(super) async fn mesh(&self) -> Mesh {
        Mesh::connect(&herald_mesh::Config::at(self.herald.nats()))
            .await
            .unwrap()
    }

    /// Runs a command as a person does, with text output.
    pub(super) async fn run(&self, arguments: &[&str]) -> Output {
        let (server, operators) = (self.herald.url(), self.herald.operator_url());
        let variables = [
            ("HERALD_SERVER", server.as_str()),
            ("HERALD_OPERATOR_SERVER", operators.as_str()),
        ];
        run(HERALD, arguments, &variables).await
    }

    /// Posts as a user with the default lane; returns the id.
    pub(super) async fn post(&self, author: &str, text: &str) -> u64 {
        let request = v1::SubmitPostRequest {
            author_id: author.into(),
            text: text.into(),
            ..v1::SubmitPostRequest::default()
        };
        let posted = self.clients.posts().submit_post(request).await;
        posted.unwrap().into_inner().post_id
    }

    /// Makes something of each kind that is held of the user.
    pub(super) async fn fill(&self) -> Posts {
        let herald = &self.herald;
        herald.cli(&["follow", "ann", AUTHOR]).await;
        herald.cli(&["follow", "carl", AUTHOR, "--notify"]).await;
        herald.cli(&["follow", AUTHOR, "eve", "--notify"]).await;
        herald.cli(&["prefs", "set", AUTHOR, "--push", "off"]).await;
        herald.cli(&["prefs", "set", AUTHOR, "--mute", "mallory"]).await;
        let device = [
            "device",
            "add",
            AUTHOR,
            "--webhook",
            &self.webhook.url,
            "--secret",
            &self.webhook.secret,
        ];
        herald.cli(&device).await;
        let shown = self.post(AUTHOR, &format!("{SECRET_TEXT} 1")).await;
        let deleted = self.post(AUTHOR, &format!("{SECRET_TEXT} 2")).await;
        let of_eve = self.post("eve", "of eve").await;
        until("no consumer has messages left", LIMIT, || self.clients.is_idle()).await;
        herald
            .cli(&["delete", &deleted.to_string(), "--author", AUTHOR])
            .await;
        until("no consumer has messages left", LIMIT, || self.clients.is_idle()).await;
        Posts {
            shown,
            deleted,
            of_eve,
        }
    }

    pub(super) async fn erase(&self) -> Value {
        self.herald.cli(&["user", "erase", AUTHOR, "--yes"]).await
    }

    /// Waits until the mesh is idle and an audit of all posts finds nothing.
    pub(super) async fn assert_sound(&self) {
        until("no consumer has messages left", LIMIT, || self.clients.is_idle()).await;
        let audit = self.run(&["audit"]).await;
        assert_eq!(audit.code, 0, "{audit:?}");
    }

    /// The messages of all streams that have this text in their payload, headers or subject, as stream and sequence.
    pub(super) async fn messages_with(&self, text: &str) -> Vec<(String, u64)> {
        messages_with(&self.herald.nats(), self.herald.broker().await, text).await
    }
}

/// The messages of all streams that have a text.
pub(super) async fn messages_with(url: &str, client: async_nats::Client, text: &str) -> Vec<(String, u64)> {
    let mesh = Mesh::connect(&herald_mesh::Config::at(url)).await.unwrap();
    let names: Vec<String> = jetstream::new(client).stream_names().try_collect().await.unwrap();
    assert!(names.iter().any(|name| name == streams::POSTS), "{names:?}");
    let mut found = Vec::new();
    for name in names {
        let mut messages = std::pin::pin!(mesh.scan(&name, None, 1, u64::MAX));
        while let Some(message) = messages.try_next().await.unwrap() {
            let has = |bytes: &[u8]| contains(bytes, text);
            let in_headers = message
                .headers()
                .any(|(name, value)| has(name.as_bytes()) || has(value.as_bytes()));
            if in_headers || has(&message.payload) || message.subject.contains(text) {
                found.push((name.clone(), message.sequence));
            }
        }
    }
    found
}

pub(super) fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The files below a directory that have a text.
pub(super) fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if contains(&std::fs::read(&path).unwrap_or_default(), text) {
            found.push(path.display().to_string());
        }
    }
    found
}

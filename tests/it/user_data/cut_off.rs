//! Posts of an erased user whose gateway was cut off from NATS: their publishes have failed and are stored later.

use std::time::Duration;

use futures::future::join_all;
use harness::{Forwarder, Process, until};
use herald_mesh::{Mesh, streams};
use herald_proto::v1;
use serde_json::Value;
use tonic::Code;

use super::{
    cluster::{self, DATABASE, erase},
    late::{complete, message, publish},
    world::{self, AUTHOR, LIMIT, SECRET_TEXT, messages_with},
};
use crate::{HERALD, serve_cluster::World};

const POSTS: usize = 40;
/// An erasure waits until the cache of the killed process has ended.
const ERASE_LIMIT: Duration = Duration::from_mins(3);
/// Kills the archive when it has committed a post of an erased user, before another erasure is recorded.
const KILL: &str = "archive.late-post=return(kill)";

fn with(mut variables: Vec<(String, String)>, name: &str, value: &str) -> Vec<(String, String)> {
    variables.retain(|(known, _)| known != name);
    variables.push((name.into(), value.into()));
    variables
}

/// Whether the database has posts with the text.
async fn has_texts(world: &World) -> bool {
    let check = format!(
        "DO $$ BEGIN IF EXISTS (SELECT FROM herald.posts WHERE position('{SECRET_TEXT}'::bytea IN body) > 0) THEN \
         RAISE 'text'; END IF; END $$"
    );
    world.postgres.run_in(DATABASE, &check).await.is_err()
}

fn sum(erasures: &[Value], name: &str) -> u64 {
    let counts = erasures.iter().map(|erasure| erasure["counts"][name].as_u64());
    counts.map(Option::unwrap).sum()
}

/// Processes on one broker, and a gateway that reaches it through a forwarder.
struct CutOff {
    world: World,
    /// All roles except the archive.
    process: Process,
    forwarder: Forwarder,
    gateway: Process,
    mesh: Mesh,
}

impl CutOff {
    async fn start() -> Option<Self> {
        let world = World::start().await?;
        let roles = "gateway,graph,fanout,timeline,push,analytics,deadletter";
        let process = world.serve(roles, &[]).await;
        let forwarder = Forwarder::start(world.nats.port()).await;
        let nats = format!("nats://{}", forwarder.address());
        let variables = with(world.variables(), "HERALD_NATS__URL", &nats);
        let peers = ["graph", "analytics", "deadletter"].map(|role| format!("{role}=http://127.0.0.1:1"));
        let arguments: Vec<_> = peers.iter().flat_map(|peer| ["--peer", peer]).collect();
        let gateway = Process::start(HERALD, "gateway", &arguments, &variables).await;
        let config = herald_mesh::Config::at(world.nats.client_url());
        Some(Self {
            mesh: Mesh::connect(&config).await.unwrap(),
            world,
            process,
            forwarder,
            gateway,
        })
    }

    /// Freezes the connection of the gateway, which has the author in its cache, while posts are published.
    async fn post_in_vain(&self) {
        self.process.cli(&["follow", "ann", AUTHOR]).await;
        cluster::post(&self.gateway, AUTHOR, SECRET_TEXT).await;
        until("the post is archived", LIMIT, || has_texts(&self.world)).await;
        self.forwarder.freeze();
        let clients = self.gateway.clients().await;
        let posting = (0..POSTS).map(|number| {
            let mut posts = clients.posts();
            async move {
                let request = v1::SubmitPostRequest {
                    author_id: AUTHOR.into(),
                    text: format!("{SECRET_TEXT} late {number}"),
                    ..v1::SubmitPostRequest::default()
                };
                posts.submit_post(request).await.unwrap_err().code()
            }
        });
        assert_eq!(join_all(posting).await, vec![Code::Unavailable; POSTS]);
    }

    async fn last(&self) -> u64 {
        self.mesh.last_sequence(streams::POSTS).await.unwrap()
    }

    /// Waits until all posts are erased, and checks that nothing is left of those after a message of POSTS.
    async fn assert_erased(&self, before: u64) {
        let count = POSTS as u64;
        let listed = async || self.process.cli(&["user", "erasures"]).await;
        until("the posts are erased", ERASE_LIMIT, async || {
            let listed = listed().await;
            sum(listed["erasures"].as_array().unwrap(), "post_count") == count + 1
        })
        .await;
        let erasures = complete(listed, 2).await;
        assert_eq!(
            (sum(&erasures, "post_count"), sum(&erasures, "message_count")),
            (count + 1, count + 1),
            "{erasures:?}"
        );
        let idle = self.process.clients().await;
        until("no consumer has messages left", LIMIT, || idle.is_idle()).await;
        assert!(!has_texts(&self.world).await);
        let url = self.world.nats.client_url();
        let client = async_nats::connect(&url).await.unwrap();
        assert_eq!(messages_with(&url, client, SECRET_TEXT).await, []);
        let last = self.last().await;
        assert!(last >= before + count, "{before} {last}");
        for clients in [&idle, &self.gateway.clients().await] {
            for post_id in before + 1..=last {
                let got = clients.posts().get_post(v1::GetPostRequest { post_id }).await;
                assert_eq!(got.unwrap_err().code(), Code::NotFound, "{post_id}");
            }
        }
        self.audit().await;
    }

    async fn audit(&self) {
        let audit = self.process.cli(&["audit"]).await;
        assert_eq!(audit["summary"]["finding_count"], 0, "{audit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_of_a_gateway_that_was_cut_off_are_erased_although_the_archive_was_killed() {
    let Some(cut_off) = CutOff::start().await else {
        return;
    };
    let world = &cut_off.world;
    let killed = with(world.variables(), "FAILPOINTS", KILL);
    let mut archive = Process::start(HERALD, "archive", &[], &killed).await;
    cut_off.post_in_vain().await;
    erase(&cut_off.process, AUTHOR).await;
    assert!(!has_texts(world).await);
    let before = cut_off.last().await;
    cut_off.forwarder.thaw();
    archive.wait().await;
    assert!(has_texts(world).await);
    cut_off.audit().await;
    let _archive = world.serve("archive", &[]).await;
    cut_off.assert_erased(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_of_a_gateway_that_was_cut_off_are_erased_once_when_they_come_during_the_erasure() {
    let Some(cut_off) = CutOff::start().await else {
        return;
    };
    let world = &cut_off.world;
    let _archives = tokio::join!(world.serve("archive", &[]), world.serve("archive", &[]));
    cut_off.post_in_vain().await;
    let before = cut_off.last().await;
    // It returns when the gateway has forgotten the author.
    let begun = ["user", "erase", AUTHOR, "--yes", "--no-wait"];
    cut_off.process.cli(&begun).await;
    cut_off.forwarder.thaw();
    cut_off.assert_erased(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_posts_are_erased_although_herald_up_was_killed_when_they_were_archived() {
    let kill = ("FAILPOINTS".to_owned(), KILL.to_owned());
    let mut world = world::World::start_with(vec![kill]).await;
    let posts = world.fill().await;
    let mesh = world.mesh().await;
    let like = message(&mesh, posts.shown).await;
    world.erase().await;
    let late = publish(&mesh, &like, &format!("{SECRET_TEXT} late")).await;
    world.herald.exited().await;
    world.herald.options_mut().variables.clear();
    world.herald.restart().await;
    world.clients = world.herald.clients().await;
    let erasures = complete(async || world.herald.cli(&["user", "erasures"]).await, 2).await;
    assert_eq!(erasures.len(), 2, "{erasures:?}");
    assert_eq!(erasures[0]["counts"]["post_count"], 1, "{erasures:?}");
    assert_eq!(world.messages_with(SECRET_TEXT).await, []);
    let request = v1::GetPostRequest { post_id: late };
    let got = world.clients.posts().get_post(request).await;
    assert_eq!(got.unwrap_err().code(), Code::NotFound);
    world.assert_sound().await;
}

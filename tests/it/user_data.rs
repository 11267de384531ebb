//! Exports and erases all that is held of a user, with a complete mesh.

pub(crate) mod cluster;
mod cut_off;
mod erased;
mod interrupted;
pub(crate) mod late;
mod world;

use serde_json::Value;

use self::world::{AUTHOR, SECRET_TEXT, World};

/// The records of an export of one kind.
fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["kind"] == kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_what_was_put_in_and_no_secrets() {
    let world = World::start().await;
    let posts = world.fill().await;
    let lines = world.run(&["user", "export", AUTHOR]).await;
    assert_eq!(lines.code, 0, "{lines:?}");
    assert!(!lines.stdout.contains(&world.webhook_secret()), "{lines:?}");
    let records: Vec<Value> = lines
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();

    assert_eq!(records[0], serde_json::json!({"kind": "user", "user_id": AUTHOR}));
    assert_eq!(of_kind(&records, "preferences")[0]["push_enabled"], false);
    let devices = of_kind(&records, "device");
    assert_eq!(devices.len(), 1);
    assert_eq!(
        (&devices[0]["type"], &devices[0]["endpoint"]),
        (&"webhook".into(), &world.webhook_url().into())
    );
    let follow = |record: &Value| (record["user_id"].clone(), record["notify"].clone());
    let following: Vec<_> = of_kind(&records, "following").into_iter().map(follow).collect();
    assert_eq!(following, [("eve".into(), true.into())]);
    let mut followers: Vec<_> = of_kind(&records, "follower")
        .into_iter()
        .map(|record| record["user_id"].as_str().unwrap())
        .collect();
    followers.sort_unstable();
    assert_eq!(followers, ["ann", "carl"]);
    assert_eq!(of_kind(&records, "muted_author")[0]["author_id"], "mallory");
    let exported: Vec<_> = of_kind(&records, "post")
        .into_iter()
        .map(|post| {
            (
                post["post_id"].as_u64().unwrap(),
                post["deleted"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(exported, [(posts.shown, false), (posts.deleted, true)]);
    for post in of_kind(&records, "post") {
        assert!(post["text"].as_str().unwrap().contains(SECRET_TEXT), "{post}");
    }
    assert_eq!(
        of_kind(&records, "timeline_entry")[0]["post_id"],
        posts.of_eve,
        "{records:?}"
    );
    assert_eq!(records.len(), 1 + 1 + 1 + 1 + 2 + 1 + 2 + 1, "{records:?}");

    let unknown = world.run(&["user", "export", "nobody"]).await;
    assert_ne!(unknown.code, 0);
    assert!(unknown.stderr.contains("there is no such user"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_is_confirmed_and_of_a_known_user() {
    let world = World::start().await;
    let unconfirmed = world.run(&["user", "erase", AUTHOR]).await;
    assert_eq!(unconfirmed.code, 2, "{unconfirmed:?}");
    assert!(unconfirmed.stderr.contains("--yes"), "{unconfirmed:?}");
    let unknown = world.run(&["user", "erase", "nobody", "--yes"]).await;
    assert!(unknown.stderr.contains("there is no such user"), "{unknown:?}");
    let none = world.herald.cli(&["user", "erasures"]).await;
    assert_eq!(none["erasures"], serde_json::json!([]));
}

//! Changes of the graph: one transaction a batch of calls.

use std::{collections::BTreeMap, sync::Arc};

use herald_model::time::Timestamp;

use super::effects::{self, Changed, Current, Edge};
use crate::{
    FollowChange, FollowEffect, Result,
    cluster::postgres::{Attempt, Postgres, Transaction},
};

const LOCK_AUTHORS: &str = "
    SELECT author, version FROM herald.follow_authors WHERE author = ANY($1) ORDER BY author FOR UPDATE";

/// Makes missing rows of authors, in a transaction of its own. Ascending, so that two of them that make the same rows
/// wait for each other in one direction only.
const CREATE_AUTHORS: &str = "
    INSERT INTO herald.follow_authors (author, version, followers, notify)
    SELECT author, 0, 0, 0 FROM unnest($1::bigint[]) author ORDER BY 1
    ON CONFLICT DO NOTHING";

const CURRENT_EDGES: &str = "
    SELECT author, follower, since, notify
    FROM unnest($1::bigint[], $2::bigint[]) asked (author, follower)
    JOIN herald.follow_edges USING (author, follower) WHERE until IS NULL";

const END_EDGES: &str = "
    UPDATE herald.follow_edges edge SET until = ended.until, ended_at = $5
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) ended (author, follower, since, until)
    WHERE edge.author = ended.author AND edge.follower = ended.follower AND edge.since = ended.since";

const BEGIN_EDGES: &str = "
    INSERT INTO herald.follow_edges (author, follower, since, notify)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::boolean[])";

const RAISE_VERSIONS: &str = "
    UPDATE herald.follow_authors author
    SET version = raised.version, followers = followers + raised.more, notify = notify + raised.more_notify
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) raised (author, version, more, more_notify)
    WHERE author.author = raised.author";

const ADD_MOMENT: &str = "
    INSERT INTO herald.follow_moments (at, authors, versions, author_count)
    VALUES ($1, $2, $3, cardinality($2::bigint[]))";

/// The changes of the row of an author.
#[derive(Default)]
struct Raised {
    version: i64,
    more: i64,
    more_notify: i64,
}

/// Applies the changes of concurrent calls in order and returns the effects of each call.
pub(super) async fn apply_calls(
    postgres: &Postgres,
    calls: &[Arc<Vec<FollowChange>>],
) -> Result<Vec<Result<Vec<FollowEffect>>>> {
    let changes: Vec<FollowChange> = calls.iter().flat_map(|call| call.iter().copied()).collect();
    let effects = apply(postgres, &changes).await?;
    let mut rest = &effects[..];
    Ok(calls
        .iter()
        .map(|call| {
            let (these, others) = rest.split_at(call.len());
            rest = others;
            Ok(these.to_vec())
        })
        .collect())
}

async fn apply(postgres: &Postgres, changes: &[FollowChange]) -> Result<Vec<FollowEffect>> {
    let mut edges: Vec<Edge> = changes.iter().map(effects::edge_of).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut authors: Vec<i64> = edges.iter().map(|(author, _)| *author).collect();
    authors.dedup();
    postgres
        .call("change follows", || async {
            let mut transaction = postgres.begin_lookups().await?;
            let mut versions = lock_authors(&mut transaction, &authors).await?;
            if versions.len() < authors.len() {
                // Rows that this transaction made could not be locked in order with those that others make meanwhile.
                transaction.rollback().await?;
                create_authors(postgres, &authors, &versions).await?;
                transaction = postgres.begin_lookups().await?;
                versions = lock_authors(&mut transaction, &authors).await?;
            }
            let current = current_edges(&mut transaction, &edges).await?;
            let (effects, changed) = effects::apply(changes, &current);
            if !changed.is_empty() {
                write(&mut transaction, &versions, &changed).await?;
                transaction.commit().await?;
            }
            Ok(effects)
        })
        .await
}

/// Locks the rows of those of `authors` that have one, and returns their versions.
async fn lock_authors(transaction: &mut Transaction, authors: &[i64]) -> Attempt<BTreeMap<i64, i64>> {
    let rows: Vec<(i64, i64)> = sqlx::query_as(LOCK_AUTHORS)
        .bind(authors)
        .fetch_all(&mut **transaction)
        .await?;
    Ok(rows.into_iter().collect())
}

/// Makes the rows of those of `authors`, which ascend, that are not among `known`.
async fn create_authors(postgres: &Postgres, authors: &[i64], known: &BTreeMap<i64, i64>) -> Attempt<()> {
    let missing: Vec<i64> = authors
        .iter()
        .copied()
        .filter(|author| !known.contains_key(author))
        .collect();
    sqlx::query(CREATE_AUTHORS)
        .bind(missing)
        .execute(postgres.pool())
        .await?;
    Ok(())
}

/// Those of `edges` that exist. Their authors are locked, so they do not change until the transaction ends.
async fn current_edges(transaction: &mut Transaction, edges: &[Edge]) -> Attempt<BTreeMap<Edge, Current>> {
    let (authors, followers): (Vec<i64>, Vec<i64>) = edges.iter().copied().unzip();
    let rows: Vec<(i64, i64, i64, bool)> = sqlx::query_as(CURRENT_EDGES)
        .bind(authors)
        .bind(followers)
        .fetch_all(&mut **transaction)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(author, follower, since, notify)| ((author, follower), Current { since, notify }))
        .collect())
}

/// Writes changed edges, which ascend, at the next version of their authors.
async fn write(
    transaction: &mut Transaction,
    versions: &BTreeMap<i64, i64>,
    changed: &[Changed],
) -> Attempt<()> {
    let now = Timestamp::now().0;
    let mut raised: BTreeMap<i64, Raised> = BTreeMap::new();
    let mut ended: (Vec<i64>, Vec<i64>, Vec<i64>, Vec<i64>) = Default::default();
    let mut begun: (Vec<i64>, Vec<i64>, Vec<i64>, Vec<bool>) = Default::default();
    for change in changed {
        let (author, follower) = change.edge;
        let version = versions.get(&author).copied().unwrap_or_default() + 1;
        let row = raised.entry(author).or_default();
        row.version = version;
        if let Some(before) = change.before {
            row.more -= 1;
            row.more_notify -= i64::from(before.notify);
            ended.extend([(author, follower, before.since, version)]);
        }
        if let Some(notify) = change.after {
            row.more += 1;
            row.more_notify += i64::from(notify);
            begun.extend([(author, follower, version, notify)]);
        }
    }
    if !ended.0.is_empty() {
        sqlx::query(END_EDGES)
            .bind(ended.0)
            .bind(ended.1)
            .bind(ended.2)
            .bind(ended.3)
            .bind(now)
            .execute(&mut **transaction)
            .await?;
    }
    if !begun.0.is_empty() {
        sqlx::query(BEGIN_EDGES)
            .bind(begun.0)
            .bind(begun.1)
            .bind(begun.2)
            .bind(begun.3)
            .execute(&mut **transaction)
            .await?;
    }
    let authors: Vec<i64> = raised.keys().copied().collect();
    let versions: Vec<i64> = raised.values().map(|row| row.version).collect();
    let more: Vec<i64> = raised.values().map(|row| row.more).collect();
    let more_notify: Vec<i64> = raised.values().map(|row| row.more_notify).collect();
    sqlx::query(RAISE_VERSIONS)
        .bind(&authors)
        .bind(&versions)
        .bind(more)
        .bind(more_notify)
        .execute(&mut **transaction)
        .await?;
    sqlx::query(ADD_MOMENT)
        .bind(now)
        .bind(authors)
        .bind(versions)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

//! Reading of dead letters.

use std::collections::HashMap;

use herald_model::Channel;
use sqlx::{Postgres as Sql, QueryBuilder};

use super::row::{COLUMNS, DeadLetterRow, number, text};
use crate::{
    DEAD_LETTER_GROUPS_MAX, DeadLetter, DeadLetterFilter, DeadLetterGroup, DeadLetterGroups, DeadLetterId,
    DeadLetterPage, Order, Result,
    cluster::postgres::{Attempt, Postgres, keys, ledger::SNAPSHOT},
    embedded::dead_letters::row::{CAUSES, STATES, variant},
};

/// Maximum number of dead letters that one call of `scan` examines.
const SCAN_DEAD_LETTERS_MAX: usize = 10_000;

/// Reads dead letters by id.
pub(super) async fn get(postgres: &Postgres, ids: &[DeadLetterId]) -> Result<Vec<Option<DeadLetter>>> {
    let numbers: Vec<i64> = ids.iter().map(|id| id.0.cast_signed()).collect();
    let rows: Vec<DeadLetterRow> = postgres
        .call("read dead letters", async || {
            let mut query = QueryBuilder::<Sql>::new(format!("SELECT {COLUMNS} FROM herald.dead_letters"));
            query.push(" WHERE id = ANY(").push_bind(&numbers).push(")");
            Ok(query.build_query_as().fetch_all(postgres.pool()).await?)
        })
        .await?;
    let mut found: HashMap<i64, DeadLetter> = HashMap::new();
    for row in rows {
        found.insert(row.id, row.decode()?);
    }
    Ok(numbers.iter().map(|id| found.get(id).cloned()).collect())
}

/// Reads a page of dead letters that match.
pub(super) async fn scan(
    postgres: &Postgres,
    filter: &DeadLetterFilter,
    order: Order,
    after: Option<DeadLetterId>,
    limit: usize,
) -> Result<DeadLetterPage> {
    let limit = limit.min(SCAN_DEAD_LETTERS_MAX);
    let candidates = Candidates { filter, order, after };
    let (rows, next): (Vec<DeadLetterRow>, Option<i64>) = postgres
        .call("list dead letters", async || {
            let mut snapshot = postgres.pool().begin_with(SNAPSHOT).await?;
            let rows: Vec<DeadLetterRow> = candidates
                .matches(limit)
                .build_query_as()
                .persistent(false)
                .fetch_all(&mut *snapshot)
                .await?;
            let next = if rows.len() >= limit {
                rows.last().map(|row| row.id)
            } else {
                candidates
                    .last_examined()
                    .build_query_scalar()
                    .persistent(false)
                    .fetch_optional(&mut *snapshot)
                    .await?
            };
            snapshot.commit().await?;
            Ok((rows, next))
        })
        .await?;
    Ok(DeadLetterPage {
        dead_letters: rows
            .into_iter()
            .filter_map(DeadLetterRow::decode_or_skip)
            .collect(),
        next: next.map(|id| DeadLetterId(id.cast_unsigned())),
    })
}

/// The dead letters that a page examines: those with the filter's most selective indexed value.
struct Candidates<'a> {
    filter: &'a DeadLetterFilter,
    order: Order,
    after: Option<DeadLetterId>,
}

impl Candidates<'_> {
    /// Selects up to `limit` matching rows of the candidates.
    fn matches(&self, limit: usize) -> QueryBuilder<Sql> {
        let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM ("));
        self.push(&mut query, "*");
        query.push(format!(" LIMIT {SCAN_DEAD_LETTERS_MAX}) c"));
        push_filter(&mut query, self.filter);
        query
            .push(" ORDER BY id ")
            .push(self.direction())
            .push(format!(" LIMIT {limit}"));
        query
    }

    /// Selects the last candidate of this page, if more can follow.
    fn last_examined(&self) -> QueryBuilder<Sql> {
        let mut query = QueryBuilder::new("");
        self.push(&mut query, "id");
        query.push(format!(" OFFSET {} LIMIT 1", SCAN_DEAD_LETTERS_MAX - 1));
        query
    }

    fn push(&self, query: &mut QueryBuilder<Sql>, columns: &str) {
        query.push(format!("SELECT {columns} FROM herald.dead_letters WHERE true"));
        let DeadLetterFilter {
            group,
            post,
            author,
            state,
            ..
        } = self.filter;
        if let Some(group) = group {
            query.push(" AND failure_group = ").push_bind(group.cast_signed());
        } else if let Some(post) = post {
            query.push(" AND post = ").push_bind(post.0.cast_signed());
        } else if let Some(author) = author {
            query.push(" AND author = ").push_bind(i64::from(author.0));
        } else if let Some(state) = state {
            query.push(" AND state = ").push_bind(number(&STATES, state));
        }
        if let Some(after) = self.after {
            query
                .push(match self.order {
                    Order::NewestFirst => " AND id < ",
                    Order::OldestFirst => " AND id > ",
                })
                .push_bind(keys::bigint(after.0));
        }
        query.push(" ORDER BY id ").push(self.direction());
    }

    fn direction(&self) -> &'static str {
        match self.order {
            Order::NewestFirst => "DESC",
            Order::OldestFirst => "ASC",
        }
    }
}

/// Adds the conditions of a filter.
fn push_filter(query: &mut QueryBuilder<Sql>, filter: &DeadLetterFilter) {
    let DeadLetterFilter {
        stream,
        consumer,
        cause,
        reason,
        group,
        author,
        post,
        channel,
        state,
        since,
        until,
    } = filter;
    query.push(" WHERE true");
    if let Some(stream) = stream {
        query.push(" AND stream = ").push_bind(text(stream));
    }
    if let Some(consumer) = consumer {
        query.push(" AND consumer = ").push_bind(text(consumer));
    }
    if let Some(cause) = cause {
        query.push(" AND cause = ").push_bind(number(&CAUSES, cause));
    }
    if let Some(reason) = reason {
        query
            .push(" AND strpos(reason, ")
            .push_bind(text(reason))
            .push(") > 0");
    }
    if let Some(group) = group {
        query.push(" AND failure_group = ").push_bind(group.cast_signed());
    }
    if let Some(author) = author {
        query.push(" AND author = ").push_bind(i64::from(author.0));
    }
    if let Some(post) = post {
        query.push(" AND post = ").push_bind(post.0.cast_signed());
    }
    if let Some(channel) = channel {
        query
            .push(" AND channel = ")
            .push_bind(number(&Channel::ALL, channel));
    }
    if let Some(state) = state {
        query.push(" AND state = ").push_bind(number(&STATES, state));
    }
    if let Some(since) = since {
        query.push(" AND last_failed_at >= ").push_bind(since.0);
    }
    if let Some(until) = until {
        query.push(" AND last_failed_at < ").push_bind(until.0);
    }
}

/// Counts the dead letters that match, by group.
pub(super) async fn groups(postgres: &Postgres, filter: &DeadLetterFilter) -> Result<DeadLetterGroups> {
    let rows = postgres
        .call("group dead letters", async || read_groups(postgres, filter).await)
        .await?;
    let total = rows.first().map_or(0, |row| row.8.cast_unsigned());
    let groups = rows
        .into_iter()
        .map(|(group, kind, cause, reason, count, first, last, example, _)| {
            Ok(DeadLetterGroup {
                group: group.cast_unsigned(),
                kind,
                cause: variant(&CAUSES, cause.cast_unsigned().into())?,
                reason,
                dead_letters: count.cast_unsigned(),
                first_failed_at: herald_model::time::Timestamp(first),
                last_failed_at: herald_model::time::Timestamp(last),
                example: DeadLetterId(example.cast_unsigned()),
            })
        });
    Ok(DeadLetterGroups::from_counted(
        groups.collect::<Result<_>>()?,
        total,
    ))
}

/// Group, kind, cause, reason, count, first and last failure, newest dead letter, count of all groups.
type GroupRow = (i64, String, i16, String, i64, i64, i64, i64, i64);

async fn read_groups(postgres: &Postgres, filter: &DeadLetterFilter) -> Attempt<Vec<GroupRow>> {
    // Kind, cause and reason are equal in a group, whose id is their hash.
    let mut query = QueryBuilder::<Sql>::new(
        "SELECT failure_group, min(kind), min(cause), min(group_reason), count(*),
            min(first_failed_at), max(last_failed_at), max(id), (sum(count(*)) OVER ())::bigint
        FROM herald.dead_letters",
    );
    push_filter(&mut query, filter);
    query.push(format!(
        " GROUP BY failure_group ORDER BY min(id) LIMIT {DEAD_LETTER_GROUPS_MAX}"
    ));
    Ok(query
        .build_query_as()
        .persistent(false)
        .fetch_all(postgres.pool())
        .await?)
}

//! Records of backfills, by post for audits and by recipient for rebuilds of timelines.

use herald_model::{PostId, Recipients};

use crate::{Result, cluster::postgres::Postgres};

/// Records a backfill of the posts that have no record of these recipients yet. The record of one that is repeated gets a
/// new time, because the posts may have been delivered only now, and a repair of timelines goes by this time.
pub(super) async fn record(postgres: &Postgres, posts: &[PostId], recipients: &Recipients) -> Result<()> {
    // A repetition that runs at the same time can record the same posts in a second backfill, which changes nothing for
    // those who read them.
    const SQL: &str = "
        WITH new AS (
            SELECT DISTINCT p.post FROM unnest($1::bigint[]) AS p (post)
            WHERE p.post >= (SELECT first_post FROM herald.ledger_trim)
                AND NOT EXISTS (SELECT FROM herald.backfill_posts b WHERE b.post = p.post AND b.chunk = $2)
        ), backfill AS (
            INSERT INTO herald.backfills (posts, last_post, recipients_count, recipients)
            SELECT array_agg(post ORDER BY post), max(post), $3, $4 FROM new HAVING count(*) > 0
            RETURNING id
        ), by_post AS (
            INSERT INTO herald.backfill_posts (post, chunk, backfill)
            SELECT post, $2, id FROM new, backfill ORDER BY post
            ON CONFLICT DO NOTHING
        ), repeated AS (
            UPDATE herald.backfills SET at = now() WHERE at < now() - interval '10 minutes' AND id IN (
                SELECT backfill FROM herald.backfill_posts WHERE post = ANY($1) AND chunk = $2
            )
        )
        INSERT INTO herald.backfill_recipients (recipient, backfill)
        SELECT recipient, id FROM unnest($5::bigint[]) AS r (recipient), backfill";
    let posts: Vec<i64> = posts.iter().map(|post| post.0.cast_signed()).collect();
    let users: Vec<i64> = recipients.iter().map(|user| user.0.into()).collect();
    postgres
        .call("record a backfill in the ledger", async || {
            sqlx::query(SQL)
                .bind(&posts)
                .bind(recipients.chunk_id().0.cast_signed())
                .bind(recipients.len().cast_signed())
                .bind(&recipients.as_bytes()[..])
                .bind(&users)
                .execute(postgres.pool())
                .await?;
            Ok(())
        })
        .await
}

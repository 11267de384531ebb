-- State of the timelines in Valkey or Redis. The timelines themselves are not in PostgreSQL.

-- The oldest post that timelines show.
CREATE TABLE herald.timelines_retention (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    oldest_kept bigint NOT NULL
);
INSERT INTO herald.timelines_retention (oldest_kept) VALUES (0);

-- Last day (since 1970) on which each user read, when the user came back after a long time, and since when workers may
-- not have written the user's timeline: NULL after a return (µs, this server's clock).
CREATE TABLE herald.timelines_activity (
    user_key bigint PRIMARY KEY,
    day integer NOT NULL,
    returned_at bigint,
    suppressed_since bigint
);
CREATE INDEX timelines_activity_returned_at ON herald.timelines_activity (returned_at) WHERE returned_at IS NOT NULL;
CREATE INDEX timelines_activity_suppressed_since ON herald.timelines_activity (suppressed_since)
    WHERE suppressed_since IS NOT NULL;

-- Users who follow too many authors.
CREATE TABLE herald.timelines_drowning (
    user_key bigint PRIMARY KEY,
    following integer NOT NULL
);

-- What each range of slots of Redis had at the last look: the run id of its primary and the last acknowledged beat (µs,
-- this server's clock).
CREATE TABLE herald.timelines_shards (
    first_slot integer PRIMARY KEY,
    last_slot integer NOT NULL,
    run_id text NOT NULL,
    beat bigint NOT NULL
);

-- Losses of writes: those of these slots from a time on may be missing until repaired.
CREATE TABLE herald.timelines_losses (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    first_slot integer NOT NULL,
    last_slot integer NOT NULL,
    since bigint NOT NULL,
    found_at bigint NOT NULL,
    repaired_at bigint
);
CREATE INDEX timelines_losses_open ON herald.timelines_losses (id) WHERE repaired_at IS NULL;

-- Users, follows, posts, devices and preferences.

-- Identity of this database, made once.
CREATE TABLE herald.store (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO herald.store DEFAULT VALUES;

-- Greatest key in use. A transaction that makes keys locks the row until it commits, so that keys are dense.
CREATE TABLE herald.counters (
    name text PRIMARY KEY,
    last bigint NOT NULL
) WITH (fillfactor = 20);
INSERT INTO herald.counters (name, last) VALUES ('users', 0);

-- The dictionary of users. Rows never change.
CREATE TABLE herald.users (
    key bigint PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);

-- Counts and version of each author's followers. A transaction that changes follows locks the rows of its authors.
CREATE TABLE herald.follow_authors (
    author bigint PRIMARY KEY,
    version bigint NOT NULL,
    followers bigint NOT NULL,
    notify bigint NOT NULL,
    -- Versions before this one can't be read any more.
    trimmed_version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

-- The edges of the graph, a row an interval of versions: an edge is in version v of its author if
-- since <= v AND (until IS NULL OR until > v). An unfollow ends the interval, a change of `notify` ends it and starts
-- another.
CREATE TABLE herald.follow_edges (
    author bigint NOT NULL,
    follower bigint NOT NULL,
    since bigint NOT NULL,
    until bigint,
    ended_at bigint,
    notify boolean NOT NULL,
    PRIMARY KEY (author, follower, since) INCLUDE (until, notify)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX follow_edges_by_follower ON herald.follow_edges (follower, author, since) INCLUDE (until, notify);
CREATE INDEX follow_edges_ended ON herald.follow_edges (ended_at) WHERE ended_at IS NOT NULL;

-- Versions by the time of their creation, a row a transaction: what retention trims from the history.
CREATE TABLE herald.follow_moments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at bigint NOT NULL,
    authors bigint[] NOT NULL,
    versions bigint[] NOT NULL,
    author_count int NOT NULL
);
CREATE INDEX follow_moments_by_time ON herald.follow_moments (at);

-- Posts. A row without author and body is a deletion that came before its post.
CREATE TABLE herald.posts (
    id bigint PRIMARY KEY,
    author bigint,
    accepted_at bigint,
    -- The post as protobuf.
    body bytea,
    deleted_at bigint
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX posts_by_author ON herald.posts (author, id) WHERE body IS NOT NULL AND deleted_at IS NULL;

-- The post that a request created. Request ids are bytes, because text can't have the character U+0000.
CREATE TABLE herald.post_requests (
    author bigint NOT NULL,
    request_id bytea NOT NULL,
    post bigint NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (author, request_id)
);
CREATE INDEX post_requests_by_time ON herald.post_requests (at);

-- All devices of a user, as protobuf, because a user has few.
CREATE TABLE herald.devices (
    user_key bigint PRIMARY KEY,
    devices bytea NOT NULL,
    has_web_push boolean NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX devices_with_web_push ON herald.devices (user_key) WHERE has_web_push;
CREATE SEQUENCE herald.device_ids;

-- The preferences of a user, as protobuf; no row for the defaults.
CREATE TABLE herald.preferences (
    user_key bigint PRIMARY KEY,
    preferences bytea NOT NULL
) WITH (fillfactor = 70);

-- Single values, such as the VAPID public key that Web Push devices were registered with.
CREATE TABLE herald.settings (
    name text PRIMARY KEY,
    value bytea NOT NULL
);

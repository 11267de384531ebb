-- The newest message of each stream of the broker that Herald has seen.
CREATE TABLE herald.stream_marks (
    stream text PRIMARY KEY,
    sequence bigint NOT NULL,
    -- When the stream stored the message, microseconds since 1970.
    published_at bigint NOT NULL
);

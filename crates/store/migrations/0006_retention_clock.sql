-- The time that retention has seen, in microseconds since 1970. A clock that jumps removes nothing.

-- One row, once retention has run.
CREATE TABLE herald.retention_clock (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Of the process that ran last.
    seen_at bigint NOT NULL,
    -- From when on data may be removed.
    settled_at bigint NOT NULL
);

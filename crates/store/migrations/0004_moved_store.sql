-- The embedded store whose data was moved into this database, and how far the move is.

-- One row, if there was a move. Herald does not start while `finished_at` is NULL.
CREATE TABLE herald.moved_store (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- The id in the data directory of the embedded store.
    source text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);

-- How far each part of the data is, written with its rows.
CREATE TABLE herald.moved_parts (
    part text PRIMARY KEY,
    -- Position in the embedded store: what follows is not moved yet. NULL at the beginning.
    position bytea,
    rows bigint NOT NULL DEFAULT 0,
    done boolean NOT NULL DEFAULT false
);

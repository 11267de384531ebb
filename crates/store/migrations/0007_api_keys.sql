-- API keys, at most 1,000. Times are microseconds since 1970.

CREATE TABLE herald.api_keys (
    -- 64 random bits.
    id bigint PRIMARY KEY,
    name text NOT NULL,
    -- SHA-256 of the secret, which is nowhere.
    secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    -- A bit a scope.
    scopes integer NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    revoked_at bigint
);

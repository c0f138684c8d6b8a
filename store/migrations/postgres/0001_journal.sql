-- The truth (D1, D2). One counter row orders everything; see docs/decisions/0001.

CREATE SCHEMA IF NOT EXISTS journal;

CREATE TABLE journal.meta (
    id          BIGINT PRIMARY KEY CHECK (id = 1),
    epoch       BIGINT NOT NULL,                 -- raised when a restored journal is recovered (D5)
    min_reader  BIGINT NOT NULL,                 -- builds with a lower schema version refuse to start
    halted      TEXT                              -- why writes are stopped, null while they are not
);
INSERT INTO journal.meta VALUES (1, 1, 1, NULL);

CREATE TABLE journal.counter (
    id          BIGINT PRIMARY KEY CHECK (id = 1),
    position    BIGINT NOT NULL,
    at          BIGINT NOT NULL,                 -- time of the last event, ms
    batch_hash  BYTEA NOT NULL,
    definition  BIGINT NOT NULL                  -- of the newest schema or resource type of any tenant; 0: none
) WITH (fillfactor = 10);
INSERT INTO journal.counter VALUES (1, 0, 0, decode(repeat('00', 32), 'hex'), 0);

CREATE TABLE journal.event (
    position        BIGINT PRIMARY KEY,
    event_id        TEXT COLLATE "C" NOT NULL,
    commit_id       TEXT COLLATE "C" NOT NULL,
    tenant          TEXT COLLATE "C" NOT NULL,
    resource_type   TEXT COLLATE "C" NOT NULL,
    id              TEXT COLLATE "C" NOT NULL,
    version         BIGINT NOT NULL CHECK (version >= 1),
    kind            TEXT COLLATE "C" NOT NULL,
    schema_version  BIGINT NOT NULL,
    at              BIGINT NOT NULL,
    actor           TEXT COLLATE "C" NOT NULL,
    cause           TEXT COLLATE "C" NOT NULL,
    key_id          TEXT,                         -- null: the payload is not sealed
    payload         BYTEA NOT NULL CHECK (length(payload) <= 524288),
    body_hash       BYTEA NOT NULL,
    chain_hash      BYTEA NOT NULL,
    previous_of_entity BIGINT NOT NULL,
    previous_of_tenant BIGINT NOT NULL,
    UNIQUE (tenant, id, version)
);

CREATE TABLE journal.batch (
    last_position   BIGINT PRIMARY KEY,
    first_position  BIGINT NOT NULL CHECK (first_position <= last_position),
    merkle_root     BYTEA NOT NULL,
    hash            BYTEA NOT NULL                 -- over the previous batch's hash, the bounds and the root
);

CREATE TABLE journal.tenant_head (
    tenant      TEXT COLLATE "C" PRIMARY KEY,
    position    BIGINT NOT NULL,
    events      BIGINT NOT NULL,
    chain_hash  BYTEA NOT NULL,
    definition  BIGINT NOT NULL                  -- of its newest schema or resource type; 0: none
);

CREATE TABLE journal.commit_log (                 -- requests with an Idempotency-Key, and commits without events
    commit_id       TEXT COLLATE "C" PRIMARY KEY,
    tenant          TEXT COLLATE "C" NOT NULL,
    at              BIGINT NOT NULL,
    first_position  BIGINT NOT NULL,             -- 0: the commit changed nothing
    last_position   BIGINT NOT NULL,
    fingerprint     BYTEA,                         -- keyed hash of the request, for Idempotency-Key
    receipt         TEXT COLLATE "C" NOT NULL                 -- streams and versions, no content
);

CREATE INDEX commit_log_at ON journal.commit_log (at);

CREATE TABLE journal.state (
    tenant          TEXT COLLATE "C" NOT NULL,
    id              TEXT COLLATE "C" NOT NULL,
    resource_type   TEXT COLLATE "C" NOT NULL,
    version         BIGINT NOT NULL CHECK (version >= 1),
    created         BIGINT NOT NULL,
    modified        BIGINT NOT NULL CHECK (modified >= created),
    position        BIGINT NOT NULL,             -- of its last event
    key_id          TEXT,
    document        BYTEA,                         -- null exactly for a tombstone
    deleted         BIGINT NOT NULL CHECK (deleted IN (0, 1)),
    PRIMARY KEY (tenant, id),
    CHECK ((document IS NULL) = (deleted = 1))
);
CREATE INDEX state_type ON journal.state (tenant, resource_type, id);

CREATE TABLE journal.link (
    tenant      TEXT COLLATE "C" NOT NULL,
    attribute   TEXT COLLATE "C" NOT NULL,                    -- members, manager, …
    from_id     TEXT COLLATE "C" NOT NULL,
    to_id       TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, attribute, from_id, to_id)
);
CREATE INDEX link_back ON journal.link (tenant, to_id, attribute, from_id);

CREATE TABLE journal.lookup (
    tenant      TEXT COLLATE "C" NOT NULL,
    kind        TEXT COLLATE "C" NOT NULL,                    -- User.userName, Group.displayName, …
    value       BYTEA NOT NULL,                    -- keyed hash, never the value (D9)
    owner       TEXT COLLATE "C" NOT NULL,
    scope       TEXT COLLATE "C" NOT NULL CHECK (scope IN ('', owner)),    -- empty: no other owner may have the value
    PRIMARY KEY (tenant, owner, kind, value)
);
CREATE UNIQUE INDEX lookup_value ON journal.lookup (tenant, kind, value, scope);

CREATE TABLE journal.secret (
    tenant      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,                    -- password, credential, …
    key_id      TEXT,                             -- null: sealed with the tenant's key
    sealed      BYTEA NOT NULL,
    PRIMARY KEY (tenant, id, name)
);

CREATE TABLE journal.token (
    digest      BYTEA PRIMARY KEY,                 -- SHA-256 of the whole token
    tenant      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,                    -- stream id of the token
    connection  TEXT COLLATE "C" NOT NULL,
    scopes      TEXT COLLATE "C" NOT NULL,
    expires     BIGINT
);
CREATE INDEX token_stream ON journal.token (tenant, id);

CREATE TABLE journal.pending_removal (                    -- what a delete left to the janitor (D4)
    tenant      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,                    -- the deleted entity
    PRIMARY KEY (tenant, id)
);

CREATE TABLE journal.bus_epoch (
    epoch           BIGINT PRIMARY KEY,
    stream          TEXT COLLATE "C" NOT NULL,
    stream_created  TEXT COLLATE "C" NOT NULL,                -- as the server reports it: another time is another stream
    offset_         BIGINT NOT NULL,             -- position − stream sequence
    at              BIGINT NOT NULL
);

CREATE TABLE journal.lease (
    name        TEXT COLLATE "C" PRIMARY KEY,
    owner       TEXT COLLATE "C" NOT NULL,
    until       BIGINT NOT NULL
);

CREATE TABLE journal.checkpoint (
    size        BIGINT PRIMARY KEY,               -- position of the last event it covers
    edge        BYTEA NOT NULL,                 -- right edge of the Merkle tree, to go on from
    note        TEXT COLLATE "C" NOT NULL,              -- the signed checkpoint as it is handed out
    at          BIGINT NOT NULL
);

CREATE TABLE journal.recovery (                      -- how each journal epoch after the first began (D5)
    epoch       BIGINT PRIMARY KEY,
    base        BIGINT NOT NULL,                  -- positions above it were given anew
    at          BIGINT NOT NULL
);

-- The truth (D1, D2). One counter row orders everything; see docs/decisions/0001.

CREATE TABLE meta (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    epoch       INTEGER NOT NULL,                 -- raised when a restored journal is recovered (D5)
    min_reader  INTEGER NOT NULL,                 -- builds with a lower schema version refuse to start
    halted      TEXT                              -- why writes are stopped, null while they are not
) STRICT;
INSERT INTO meta VALUES (1, 1, 1, NULL);

CREATE TABLE counter (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    position    INTEGER NOT NULL,
    at          INTEGER NOT NULL,                 -- time of the last event, ms
    batch_hash  BLOB NOT NULL,
    definition  INTEGER NOT NULL                  -- of the newest schema or resource type of any tenant; 0: none
) STRICT;
INSERT INTO counter VALUES (1, 0, 0, zeroblob(32), 0);

CREATE TABLE event (
    position        INTEGER PRIMARY KEY,
    event_id        TEXT NOT NULL,
    commit_id       TEXT NOT NULL,
    tenant          TEXT NOT NULL,
    resource_type   TEXT NOT NULL,
    id              TEXT NOT NULL,
    version         INTEGER NOT NULL CHECK (version >= 1),
    kind            TEXT NOT NULL,
    schema_version  INTEGER NOT NULL,
    at              INTEGER NOT NULL,
    actor           TEXT NOT NULL,
    cause           TEXT NOT NULL,
    key_id          TEXT,                         -- null: the payload is not sealed
    payload         BLOB NOT NULL CHECK (length(payload) <= 524288),
    body_hash       BLOB NOT NULL,
    chain_hash      BLOB NOT NULL,
    previous_of_entity INTEGER NOT NULL,
    previous_of_tenant INTEGER NOT NULL,
    UNIQUE (tenant, id, version)
) STRICT;

CREATE TABLE batch (
    last_position   INTEGER PRIMARY KEY,
    first_position  INTEGER NOT NULL CHECK (first_position <= last_position),
    merkle_root     BLOB NOT NULL,
    hash            BLOB NOT NULL                 -- over the previous batch's hash, the bounds and the root
) STRICT;

CREATE TABLE tenant_head (
    tenant      TEXT PRIMARY KEY,
    position    INTEGER NOT NULL,
    events      INTEGER NOT NULL,
    chain_hash  BLOB NOT NULL,
    definition  INTEGER NOT NULL                  -- of its newest schema or resource type; 0: none
) STRICT, WITHOUT ROWID;

CREATE TABLE commit_log (                         -- requests with an Idempotency-Key, and commits without events
    commit_id       TEXT PRIMARY KEY,
    tenant          TEXT NOT NULL,
    at              INTEGER NOT NULL,
    first_position  INTEGER NOT NULL,             -- 0: the commit changed nothing
    last_position   INTEGER NOT NULL,
    fingerprint     BLOB,                         -- keyed hash of the request, for Idempotency-Key
    receipt         TEXT NOT NULL                 -- streams and versions, no content
) STRICT, WITHOUT ROWID;

CREATE INDEX commit_log_at ON commit_log (at);

CREATE TABLE state (
    tenant          TEXT NOT NULL,
    id              TEXT NOT NULL,
    resource_type   TEXT NOT NULL,
    version         INTEGER NOT NULL CHECK (version >= 1),
    created         INTEGER NOT NULL,
    modified        INTEGER NOT NULL CHECK (modified >= created),
    position        INTEGER NOT NULL,             -- of its last event
    key_id          TEXT,
    document        BLOB,                         -- null exactly for a tombstone
    deleted         INTEGER NOT NULL CHECK (deleted IN (0, 1)),
    PRIMARY KEY (tenant, id),
    CHECK ((document IS NULL) = (deleted = 1))
) STRICT;                                       -- with rowids: documents are larger than index cells
CREATE INDEX state_type ON state (tenant, resource_type, id);

CREATE TABLE link (
    tenant      TEXT NOT NULL,
    attribute   TEXT NOT NULL,                    -- members, manager, …
    from_id     TEXT NOT NULL,
    to_id       TEXT NOT NULL,
    PRIMARY KEY (tenant, attribute, from_id, to_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX link_back ON link (tenant, to_id, attribute, from_id);

CREATE TABLE lookup (
    tenant      TEXT NOT NULL,
    kind        TEXT NOT NULL,                    -- User.userName, Group.displayName, …
    value       BLOB NOT NULL,                    -- keyed hash, never the value (D9)
    owner       TEXT NOT NULL,
    scope       TEXT NOT NULL CHECK (scope IN ('', owner)),    -- empty: no other owner may have the value
    PRIMARY KEY (tenant, owner, kind, value)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX lookup_value ON lookup (tenant, kind, value, scope);

CREATE TABLE secret (
    tenant      TEXT NOT NULL,
    id          TEXT NOT NULL,
    name        TEXT NOT NULL,                    -- password, credential, …
    key_id      TEXT,                             -- null: sealed with the tenant's key
    sealed      BLOB NOT NULL,
    PRIMARY KEY (tenant, id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
    digest      BLOB PRIMARY KEY,                 -- SHA-256 of the whole token
    tenant      TEXT NOT NULL,
    id          TEXT NOT NULL,                    -- stream id of the token
    connection  TEXT NOT NULL,
    scopes      TEXT NOT NULL,
    expires     INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX token_stream ON token (tenant, id);

CREATE TABLE pending_removal (                    -- what a delete left to the janitor (D4)
    tenant      TEXT NOT NULL,
    id          TEXT NOT NULL,                    -- the deleted entity
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE bus_epoch (
    epoch           INTEGER PRIMARY KEY,
    stream          TEXT NOT NULL,
    stream_created  TEXT NOT NULL,                -- as the server reports it: another time is another stream
    offset_         INTEGER NOT NULL,             -- position − stream sequence
    at              INTEGER NOT NULL
) STRICT;

CREATE TABLE lease (
    name        TEXT PRIMARY KEY,
    owner       TEXT NOT NULL,
    until       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE checkpoint (
    size        INTEGER PRIMARY KEY,               -- position of the last event it covers
    edge        BLOB NOT NULL,                 -- right edge of the Merkle tree, to go on from
    note        TEXT NOT NULL,              -- the signed checkpoint as it is handed out
    at          INTEGER NOT NULL
) STRICT;

CREATE TABLE recovery (                      -- how each journal epoch after the first began (D5)
    epoch       INTEGER PRIMARY KEY,
    base        INTEGER NOT NULL,                  -- positions above it were given anew
    at          INTEGER NOT NULL
) STRICT;

-- Delivery (D12): one lane per downstream app and entity. What deliveries learned (remote ids, attempts)
-- is known nowhere else; everything else here can be planned again from the journal.

CREATE TABLE planner (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    position        INTEGER NOT NULL CHECK (position >= 0),
    journal_epoch   INTEGER NOT NULL              -- whose positions and versions the lanes hold (D5)
) STRICT;
INSERT INTO planner VALUES (1, 0, 1);

CREATE TABLE lane (
    tenant              TEXT NOT NULL,
    app                 TEXT NOT NULL,
    id                  TEXT NOT NULL,
    resource_type       TEXT NOT NULL,
    kind                TEXT NOT NULL CHECK (kind IN ('state', 'log')),
    wanted_version      INTEGER NOT NULL,
    wanted_position     INTEGER NOT NULL,
    applied_version     INTEGER NOT NULL CHECK (applied_version BETWEEN 0 AND wanted_version),
    applied_position    INTEGER NOT NULL,
    state               TEXT NOT NULL CHECK (state IN ('due', 'leased', 'idle', 'waiting', 'quarantined')),
    due_at              INTEGER,                  -- when someone should look at it, ms
    lease_fence         INTEGER NOT NULL,         -- how often it was leased
    lease_owner         TEXT,
    lease_until         INTEGER,
    attempts            INTEGER NOT NULL CHECK (attempts >= 0),    -- failures in a row
    runs                INTEGER NOT NULL CHECK (runs >= 0),        -- attempts recorded since the beginning
    remote_id           TEXT,
    remote_home         TEXT,                     -- whose id it is: it means nothing to another target
    applied_hash        BLOB,                     -- keyed hash of the content the target has
    last_error          TEXT,
    deleted             INTEGER NOT NULL CHECK (deleted IN (0, 1)),
    -- The lease during which someone else may have written, too: only a later lease may call it done.
    resync_fence        INTEGER,
    -- A group whose members are being sent as of this version, page by page after this id.
    snapshot_version    INTEGER,
    snapshot_after      TEXT,
    PRIMARY KEY (tenant, app, id),
    CHECK ((state = 'leased') = (lease_owner IS NOT NULL)),
    CHECK ((state = 'leased') = (lease_until IS NOT NULL)),
    CHECK ((state IN ('due', 'leased', 'waiting')) = (due_at IS NOT NULL)),
    CHECK (state <> 'leased' OR due_at = lease_until),
    CHECK (state NOT IN ('idle', 'waiting') OR applied_version = wanted_version),
    CHECK ((snapshot_version IS NULL) = (snapshot_after IS NULL)),
    CHECK ((remote_id IS NULL) = (remote_home IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX lane_due ON lane (tenant, app, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX lane_leased ON lane (tenant, app, lease_until) WHERE state = 'leased';
CREATE INDEX lane_quarantined ON lane (tenant, app, id) WHERE state = 'quarantined';
CREATE INDEX lane_remote ON lane (tenant, app, remote_id) WHERE remote_id IS NOT NULL;

CREATE TABLE pending_member (                     -- a reference whose target has no remote id yet
    tenant      TEXT NOT NULL,
    app         TEXT NOT NULL,
    member_id   TEXT NOT NULL,
    group_id    TEXT NOT NULL,                    -- the entity that refers to it
    attribute   TEXT NOT NULL,                    -- members, manager, …
    parked      INTEGER NOT NULL CHECK (parked IN (0, 1)),  -- the target refuses it: no wake-up
    PRIMARY KEY (tenant, app, member_id, group_id, attribute)
) STRICT, WITHOUT ROWID;
CREATE INDEX pending_member_group ON pending_member (tenant, app, group_id);

CREATE TABLE attempt (
    tenant      TEXT NOT NULL,
    app         TEXT NOT NULL,
    id          TEXT NOT NULL,
    number      INTEGER NOT NULL,                 -- the lane's 1st, 2nd, … attempt; the last 20 are kept
    at          INTEGER NOT NULL,
    outcome     TEXT NOT NULL,
    status      INTEGER,                          -- of HTTP, if there was an answer
    duration_ms INTEGER NOT NULL,
    detail      TEXT NOT NULL,                    -- at most 4 KiB, without secrets and personal values
    PRIMARY KEY (tenant, app, id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE target (                             -- the breaker and the rate of an app
    tenant      TEXT NOT NULL,
    app         TEXT NOT NULL,
    open_until  INTEGER,                          -- nothing is sent before this moment, then one lane probes
    failures    INTEGER NOT NULL CHECK (failures >= 0),      -- in a row
    reason      TEXT,
    free_at     INTEGER NOT NULL,                 -- when the requests sent so far are paid for, µs
    PRIMARY KEY (tenant, app),
    CHECK ((failures > 0) = (open_until IS NOT NULL)),
    CHECK ((failures > 0) = (reason IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE sweep (                              -- work on all lanes of an app, page by page
    tenant          TEXT NOT NULL,
    app             TEXT NOT NULL,
    ordinal         INTEGER NOT NULL,             -- users before groups
    resource_type   TEXT NOT NULL,                -- empty for a removal
    mode            TEXT NOT NULL CHECK (mode IN ('backfill', 'replay', 'resend', 'remove')),
    kind            TEXT NOT NULL CHECK (kind IN ('state', 'log')),
    after           TEXT NOT NULL,
    PRIMARY KEY (tenant, app, ordinal)
) STRICT, WITHOUT ROWID;

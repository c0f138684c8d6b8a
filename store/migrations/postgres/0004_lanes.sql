-- Delivery (D12): one lane per downstream app and entity. What deliveries learned (remote ids, attempts)
-- is known nowhere else; everything else here can be planned again from the journal.

CREATE SCHEMA IF NOT EXISTS lanes;

CREATE TABLE lanes.planner (
    id              BIGINT PRIMARY KEY CHECK (id = 1),
    position        BIGINT NOT NULL CHECK (position >= 0),
    journal_epoch   BIGINT NOT NULL              -- whose positions and versions the lanes hold (D5)
);
INSERT INTO lanes.planner VALUES (1, 0, 1);

CREATE TABLE lanes.lane (
    tenant              TEXT COLLATE "C" NOT NULL,
    app                 TEXT COLLATE "C" NOT NULL,
    id                  TEXT COLLATE "C" NOT NULL,
    resource_type       TEXT COLLATE "C" NOT NULL,
    kind                TEXT COLLATE "C" NOT NULL CHECK (kind IN ('state', 'log')),
    wanted_version      BIGINT NOT NULL,
    wanted_position     BIGINT NOT NULL,
    applied_version     BIGINT NOT NULL CHECK (applied_version BETWEEN 0 AND wanted_version),
    applied_position    BIGINT NOT NULL,
    state               TEXT COLLATE "C" NOT NULL CHECK (state IN ('due', 'leased', 'idle', 'waiting', 'quarantined')),
    due_at              BIGINT,                  -- when someone should look at it, ms
    lease_fence         BIGINT NOT NULL,         -- how often it was leased
    lease_owner         TEXT COLLATE "C",
    lease_until         BIGINT,
    attempts            BIGINT NOT NULL CHECK (attempts >= 0),    -- failures in a row
    runs                BIGINT NOT NULL CHECK (runs >= 0),        -- attempts recorded since the beginning
    remote_id           TEXT COLLATE "C",
    remote_home         TEXT COLLATE "C",         -- whose id it is: it means nothing to another target
    applied_hash        BYTEA,                     -- keyed hash of the content the target has
    last_error          TEXT COLLATE "C",
    deleted             BIGINT NOT NULL CHECK (deleted IN (0, 1)),
    -- The lease during which someone else may have written, too: only a later lease may call it done.
    resync_fence        BIGINT,
    -- A group whose members are being sent as of this version, page by page after this id.
    snapshot_version    BIGINT,
    snapshot_after      TEXT COLLATE "C",
    PRIMARY KEY (tenant, app, id),
    CHECK ((state = 'leased') = (lease_owner IS NOT NULL)),
    CHECK ((state = 'leased') = (lease_until IS NOT NULL)),
    CHECK ((state IN ('due', 'leased', 'waiting')) = (due_at IS NOT NULL)),
    CHECK (state <> 'leased' OR due_at = lease_until),
    CHECK (state NOT IN ('idle', 'waiting') OR applied_version = wanted_version),
    CHECK ((snapshot_version IS NULL) = (snapshot_after IS NULL)),
    CHECK ((remote_id IS NULL) = (remote_home IS NULL))
);
CREATE INDEX lane_due ON lanes.lane (tenant, app, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX lane_leased ON lanes.lane (tenant, app, lease_until) WHERE state = 'leased';
CREATE INDEX lane_quarantined ON lanes.lane (tenant, app, id) WHERE state = 'quarantined';
CREATE INDEX lane_remote ON lanes.lane (tenant, app, remote_id) WHERE remote_id IS NOT NULL;

CREATE TABLE lanes.pending_member (                     -- a reference whose target has no remote id yet
    tenant      TEXT COLLATE "C" NOT NULL,
    app         TEXT COLLATE "C" NOT NULL,
    member_id   TEXT COLLATE "C" NOT NULL,
    group_id    TEXT COLLATE "C" NOT NULL,                    -- the entity that refers to it
    attribute   TEXT COLLATE "C" NOT NULL,                    -- members, manager, …
    parked      BIGINT NOT NULL CHECK (parked IN (0, 1)),  -- the target refuses it: no wake-up
    PRIMARY KEY (tenant, app, member_id, group_id, attribute)
);
CREATE INDEX pending_member_group ON lanes.pending_member (tenant, app, group_id);

CREATE TABLE lanes.attempt (
    tenant      TEXT COLLATE "C" NOT NULL,
    app         TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    number      BIGINT NOT NULL,                 -- the lane's 1st, 2nd, … attempt; the last 20 are kept
    at          BIGINT NOT NULL,
    outcome     TEXT COLLATE "C" NOT NULL,
    status      BIGINT,                          -- of HTTP, if there was an answer
    duration_ms BIGINT NOT NULL,
    detail      TEXT COLLATE "C" NOT NULL,                    -- at most 4 KiB, without secrets and personal values
    PRIMARY KEY (tenant, app, id, number)
);

CREATE TABLE lanes.target (                             -- the breaker and the rate of an app
    tenant      TEXT COLLATE "C" NOT NULL,
    app         TEXT COLLATE "C" NOT NULL,
    open_until  BIGINT,                          -- nothing is sent before this moment, then one lane probes
    failures    BIGINT NOT NULL CHECK (failures >= 0),      -- in a row
    reason      TEXT COLLATE "C",
    free_at     BIGINT NOT NULL,                 -- when the requests sent so far are paid for, µs
    PRIMARY KEY (tenant, app),
    CHECK ((failures > 0) = (open_until IS NOT NULL)),
    CHECK ((failures > 0) = (reason IS NOT NULL))
);

CREATE TABLE lanes.sweep (                              -- work on all lanes of an app, page by page
    tenant          TEXT COLLATE "C" NOT NULL,
    app             TEXT COLLATE "C" NOT NULL,
    ordinal         BIGINT NOT NULL,             -- users before groups
    resource_type   TEXT COLLATE "C" NOT NULL,                -- empty for a removal
    mode            TEXT COLLATE "C" NOT NULL CHECK (mode IN ('backfill', 'replay', 'resend', 'remove')),
    kind            TEXT COLLATE "C" NOT NULL CHECK (kind IN ('state', 'log')),
    after           TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, app, ordinal)
);

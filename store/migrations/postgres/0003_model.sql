-- Read models (D11): everything here can be rebuilt from the journal.
--
-- Two equal sets of tables, _a and _b: one is live, the other is empty or being rebuilt. SQL text takes
-- the letter from the pointer; a rebuild ends by changing it.

CREATE SCHEMA IF NOT EXISTS model;

CREATE TABLE model.pointer (
    id              BIGINT PRIMARY KEY CHECK (id = 1),
    live            TEXT COLLATE "C" NOT NULL CHECK (live IN ('a', 'b')),
    generation      BIGINT NOT NULL,
    journal_epoch   BIGINT NOT NULL,              -- whose positions the rows hold (D5)
    index_format    BIGINT NOT NULL               -- which build's index rows they are
);
INSERT INTO model.pointer VALUES (1, 'a', 1, 1, 1);

CREATE TABLE model.checkpoint (
    slot        TEXT COLLATE "C" PRIMARY KEY CHECK (slot IN ('a', 'b')),
    position    BIGINT NOT NULL CHECK (position >= 0)
);
INSERT INTO model.checkpoint VALUES ('a', 0), ('b', 0);

CREATE TABLE model.rebuild (
    id              BIGINT PRIMARY KEY CHECK (id = 1),
    run             TEXT COLLATE "C" NOT NULL,              -- a fence: an older run's next page is refused
    slot            TEXT COLLATE "C" NOT NULL CHECK (slot IN ('a', 'b')),
    phase           TEXT COLLATE "C" NOT NULL CHECK (phase IN ('copying', 'following')),
    journal_epoch   BIGINT NOT NULL,
    index_format    BIGINT NOT NULL
);

CREATE TABLE model.path (                         -- numbers for attribute keys, never given again
    number      BIGINT PRIMARY KEY,
    name        TEXT COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE model.resource_a (
    tenant          TEXT COLLATE "C" NOT NULL,
    id              TEXT COLLATE "C" NOT NULL,
    resource_type   TEXT COLLATE "C" NOT NULL,
    version         BIGINT NOT NULL,
    position        BIGINT NOT NULL,              -- of the last event folded in
    origin          BIGINT NOT NULL,              -- of the event that created it: the order of lists
    created         BIGINT NOT NULL,
    modified        BIGINT NOT NULL,
    deleted         BIGINT NOT NULL CHECK (deleted IN (0, 1)),
    display         TEXT COLLATE "C",                       -- displayName as written
    document        TEXT COLLATE "C",                       -- null exactly for a tombstone
    PRIMARY KEY (tenant, id),
    CHECK ((document IS NULL) = (deleted = 1))
);
CREATE INDEX resource_a_type ON model.resource_a (tenant, resource_type, origin) WHERE deleted = 0;
CREATE INDEX resource_a_modified ON model.resource_a (tenant, resource_type, modified, id) WHERE deleted = 0;

CREATE TABLE model.indexed_a (                    -- attributes that were asked for (decision 0008): only they have rows
    tenant      TEXT COLLATE "C" NOT NULL,
    path        BIGINT NOT NULL,
    after       TEXT COLLATE "C",                             -- null: complete; else rows are there up to this id
    PRIMARY KEY (tenant, path)
);

CREATE TABLE model.attribute_a (
    tenant      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    path        BIGINT NOT NULL,
    element     BIGINT NOT NULL,                  -- of a list: the primary one is 0, else the first
    ordinal     BIGINT NOT NULL,                  -- values of one path in one element
    value       TEXT COLLATE "C" NOT NULL CHECK (length(value) <= 256),
    rest        TEXT COLLATE "C" CHECK (rest IS NULL OR length(value) = 256),   -- what follows the first 256 characters
    PRIMARY KEY (tenant, id, path, element, ordinal)
);
CREATE INDEX attribute_a_value ON model.attribute_a (tenant, path, value, id);

CREATE TABLE model.link_a (
    tenant      TEXT COLLATE "C" NOT NULL,
    attribute   TEXT COLLATE "C" NOT NULL,
    from_id     TEXT COLLATE "C" NOT NULL,
    to_id       TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, attribute, from_id, to_id)
);
CREATE INDEX link_a_back ON model.link_a (tenant, attribute, to_id, from_id);

CREATE TABLE model.parked_a (                     -- entities whose events could not be applied (D11)
    tenant      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    position    BIGINT NOT NULL,                  -- of the event that failed
    reason      TEXT COLLATE "C" NOT NULL,
    links_lost  BIGINT NOT NULL CHECK (links_lost IN (0, 1)),   -- only a rebuild brings them back
    PRIMARY KEY (tenant, id)
);

CREATE TABLE model.resource_b (
    tenant          TEXT COLLATE "C" NOT NULL,
    id              TEXT COLLATE "C" NOT NULL,
    resource_type   TEXT COLLATE "C" NOT NULL,
    version         BIGINT NOT NULL,
    position        BIGINT NOT NULL,              -- of the last event folded in
    origin          BIGINT NOT NULL,              -- of the event that created it: the order of lists
    created         BIGINT NOT NULL,
    modified        BIGINT NOT NULL,
    deleted         BIGINT NOT NULL CHECK (deleted IN (0, 1)),
    display         TEXT COLLATE "C",                       -- displayName as written
    document        TEXT COLLATE "C",                       -- null exactly for a tombstone
    PRIMARY KEY (tenant, id),
    CHECK ((document IS NULL) = (deleted = 1))
);
CREATE INDEX resource_b_type ON model.resource_b (tenant, resource_type, origin) WHERE deleted = 0;
CREATE INDEX resource_b_modified ON model.resource_b (tenant, resource_type, modified, id) WHERE deleted = 0;

CREATE TABLE model.indexed_b (                    -- attributes that were asked for (decision 0008): only they have rows
    tenant      TEXT COLLATE "C" NOT NULL,
    path        BIGINT NOT NULL,
    after       TEXT COLLATE "C",                             -- null: complete; else rows are there up to this id
    PRIMARY KEY (tenant, path)
);

CREATE TABLE model.attribute_b (
    tenant      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    path        BIGINT NOT NULL,
    element     BIGINT NOT NULL,                  -- of a list: the primary one is 0, else the first
    ordinal     BIGINT NOT NULL,                  -- values of one path in one element
    value       TEXT COLLATE "C" NOT NULL CHECK (length(value) <= 256),
    rest        TEXT COLLATE "C" CHECK (rest IS NULL OR length(value) = 256),   -- what follows the first 256 characters
    PRIMARY KEY (tenant, id, path, element, ordinal)
);
CREATE INDEX attribute_b_value ON model.attribute_b (tenant, path, value, id);

CREATE TABLE model.link_b (
    tenant      TEXT COLLATE "C" NOT NULL,
    attribute   TEXT COLLATE "C" NOT NULL,
    from_id     TEXT COLLATE "C" NOT NULL,
    to_id       TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, attribute, from_id, to_id)
);
CREATE INDEX link_b_back ON model.link_b (tenant, attribute, to_id, from_id);

CREATE TABLE model.parked_b (                     -- entities whose events could not be applied (D11)
    tenant      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    position    BIGINT NOT NULL,                  -- of the event that failed
    reason      TEXT COLLATE "C" NOT NULL,
    links_lost  BIGINT NOT NULL CHECK (links_lost IN (0, 1)),   -- only a rebuild brings them back
    PRIMARY KEY (tenant, id)
);

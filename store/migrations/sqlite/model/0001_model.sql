-- Read models (D11): everything here can be rebuilt from the journal.
--
-- Two equal sets of tables, _a and _b: one is live, the other is empty or being rebuilt. SQL text takes
-- the letter from the pointer; a rebuild ends by changing it.

CREATE TABLE pointer (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    live            TEXT NOT NULL CHECK (live IN ('a', 'b')),
    generation      INTEGER NOT NULL,
    journal_epoch   INTEGER NOT NULL,              -- whose positions the rows hold (D5)
    index_format    INTEGER NOT NULL               -- which build's index rows they are
) STRICT;
INSERT INTO pointer VALUES (1, 'a', 1, 1, 1);

CREATE TABLE checkpoint (
    slot        TEXT PRIMARY KEY CHECK (slot IN ('a', 'b')),
    position    INTEGER NOT NULL CHECK (position >= 0)
) STRICT, WITHOUT ROWID;
INSERT INTO checkpoint VALUES ('a', 0), ('b', 0);

CREATE TABLE rebuild (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    run             TEXT NOT NULL,              -- a fence: an older run's next page is refused
    slot            TEXT NOT NULL CHECK (slot IN ('a', 'b')),
    phase           TEXT NOT NULL CHECK (phase IN ('copying', 'following')),
    journal_epoch   INTEGER NOT NULL,
    index_format    INTEGER NOT NULL
) STRICT;

CREATE TABLE path (                         -- numbers for attribute keys, never given again
    number      INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE resource_a (
    tenant          TEXT NOT NULL,
    id              TEXT NOT NULL,
    resource_type   TEXT NOT NULL,
    version         INTEGER NOT NULL,
    position        INTEGER NOT NULL,              -- of the last event folded in
    origin          INTEGER NOT NULL,              -- of the event that created it: the order of lists
    created         INTEGER NOT NULL,
    modified        INTEGER NOT NULL,
    deleted         INTEGER NOT NULL CHECK (deleted IN (0, 1)),
    display         TEXT,                       -- displayName as written
    document        TEXT,                       -- null exactly for a tombstone
    PRIMARY KEY (tenant, id),
    CHECK ((document IS NULL) = (deleted = 1))
) STRICT;
CREATE INDEX resource_a_type ON resource_a (tenant, resource_type, origin) WHERE deleted = 0;
CREATE INDEX resource_a_modified ON resource_a (tenant, resource_type, modified, id) WHERE deleted = 0;

CREATE TABLE indexed_a (                    -- attributes that were asked for (decision 0008): only they have rows
    tenant      TEXT NOT NULL,
    path        INTEGER NOT NULL,
    after       TEXT,                             -- null: complete; else rows are there up to this id
    PRIMARY KEY (tenant, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE attribute_a (
    tenant      TEXT NOT NULL,
    id          TEXT NOT NULL,
    path        INTEGER NOT NULL,
    element     INTEGER NOT NULL,                  -- of a list: the primary one is 0, else the first
    ordinal     INTEGER NOT NULL,                  -- values of one path in one element
    value       TEXT NOT NULL CHECK (length(value) <= 256),
    rest        TEXT CHECK (rest IS NULL OR length(value) = 256),   -- what follows the first 256 characters
    PRIMARY KEY (tenant, id, path, element, ordinal)
) STRICT, WITHOUT ROWID;
CREATE INDEX attribute_a_value ON attribute_a (tenant, path, value, id);

CREATE TABLE link_a (
    tenant      TEXT NOT NULL,
    attribute   TEXT NOT NULL,
    from_id     TEXT NOT NULL,
    to_id       TEXT NOT NULL,
    PRIMARY KEY (tenant, attribute, from_id, to_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX link_a_back ON link_a (tenant, attribute, to_id, from_id);

CREATE TABLE parked_a (                     -- entities whose events could not be applied (D11)
    tenant      TEXT NOT NULL,
    id          TEXT NOT NULL,
    position    INTEGER NOT NULL,                  -- of the event that failed
    reason      TEXT NOT NULL,
    links_lost  INTEGER NOT NULL CHECK (links_lost IN (0, 1)),   -- only a rebuild brings them back
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE resource_b (
    tenant          TEXT NOT NULL,
    id              TEXT NOT NULL,
    resource_type   TEXT NOT NULL,
    version         INTEGER NOT NULL,
    position        INTEGER NOT NULL,              -- of the last event folded in
    origin          INTEGER NOT NULL,              -- of the event that created it: the order of lists
    created         INTEGER NOT NULL,
    modified        INTEGER NOT NULL,
    deleted         INTEGER NOT NULL CHECK (deleted IN (0, 1)),
    display         TEXT,                       -- displayName as written
    document        TEXT,                       -- null exactly for a tombstone
    PRIMARY KEY (tenant, id),
    CHECK ((document IS NULL) = (deleted = 1))
) STRICT;
CREATE INDEX resource_b_type ON resource_b (tenant, resource_type, origin) WHERE deleted = 0;
CREATE INDEX resource_b_modified ON resource_b (tenant, resource_type, modified, id) WHERE deleted = 0;

CREATE TABLE indexed_b (                    -- attributes that were asked for (decision 0008): only they have rows
    tenant      TEXT NOT NULL,
    path        INTEGER NOT NULL,
    after       TEXT,                             -- null: complete; else rows are there up to this id
    PRIMARY KEY (tenant, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE attribute_b (
    tenant      TEXT NOT NULL,
    id          TEXT NOT NULL,
    path        INTEGER NOT NULL,
    element     INTEGER NOT NULL,                  -- of a list: the primary one is 0, else the first
    ordinal     INTEGER NOT NULL,                  -- values of one path in one element
    value       TEXT NOT NULL CHECK (length(value) <= 256),
    rest        TEXT CHECK (rest IS NULL OR length(value) = 256),   -- what follows the first 256 characters
    PRIMARY KEY (tenant, id, path, element, ordinal)
) STRICT, WITHOUT ROWID;
CREATE INDEX attribute_b_value ON attribute_b (tenant, path, value, id);

CREATE TABLE link_b (
    tenant      TEXT NOT NULL,
    attribute   TEXT NOT NULL,
    from_id     TEXT NOT NULL,
    to_id       TEXT NOT NULL,
    PRIMARY KEY (tenant, attribute, from_id, to_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX link_b_back ON link_b (tenant, attribute, to_id, from_id);

CREATE TABLE parked_b (                     -- entities whose events could not be applied (D11)
    tenant      TEXT NOT NULL,
    id          TEXT NOT NULL,
    position    INTEGER NOT NULL,                  -- of the event that failed
    reason      TEXT NOT NULL,
    links_lost  INTEGER NOT NULL CHECK (links_lost IN (0, 1)),   -- only a rebuild brings them back
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

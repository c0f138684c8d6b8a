-- Keys, apart from what they seal (D9). A destroyed key stays as a tombstone: "erased" is never "missing".

CREATE TABLE tenant_key (
    tenant      TEXT PRIMARY KEY,
    wrapped     BLOB NOT NULL                     -- by the root key
) STRICT, WITHOUT ROWID;

CREATE TABLE subject_key (
    key_id      TEXT PRIMARY KEY,
    tenant      TEXT NOT NULL,
    wrapped     BLOB,                             -- by the tenant's key; null once destroyed
    made        INTEGER NOT NULL,
    destroyed   INTEGER,
    CHECK ((wrapped IS NULL) = (destroyed IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_key (
    number      INTEGER PRIMARY KEY,
    origin      TEXT NOT NULL,               -- the log's name in checkpoints
    public      BLOB NOT NULL,
    wrapped     BLOB,                            -- by the root key; null once another key follows
    introduced  TEXT,                        -- the statement of the key before it
    made        INTEGER NOT NULL,
    retired     INTEGER,
    CHECK ((wrapped IS NULL) = (retired IS NOT NULL))
) STRICT;

-- Keys, apart from what they seal (D9). A destroyed key stays as a tombstone: "erased" is never "missing".

CREATE SCHEMA IF NOT EXISTS keys;

CREATE TABLE keys.tenant_key (
    tenant      TEXT COLLATE "C" PRIMARY KEY,
    wrapped     BYTEA NOT NULL                     -- by the root key
);

CREATE TABLE keys.subject_key (
    key_id      TEXT COLLATE "C" PRIMARY KEY,
    tenant      TEXT COLLATE "C" NOT NULL,
    wrapped     BYTEA,                             -- by the tenant's key; null once destroyed
    made        BIGINT NOT NULL,
    destroyed   BIGINT,
    CHECK ((wrapped IS NULL) = (destroyed IS NOT NULL))
);

CREATE TABLE keys.audit_key (
    number      BIGINT PRIMARY KEY,
    origin      TEXT COLLATE "C" NOT NULL,               -- the log's name in checkpoints
    public      BYTEA NOT NULL,
    wrapped     BYTEA,                            -- by the root key; null once another key follows
    introduced  TEXT COLLATE "C",                        -- the statement of the key before it
    made        BIGINT NOT NULL,
    retired     BIGINT,
    CHECK ((wrapped IS NULL) = (retired IS NOT NULL))
);

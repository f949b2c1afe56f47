-- Keys: what the contract knows of a key beyond the document's table, every version of it, and what is under way in the HSM.

ALTER TYPE public.key_status_enum ADD VALUE IF NOT EXISTS 'expired';

ALTER TABLE quantum_keys.quantum_key_store
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN status SET NOT NULL,
    ADD COLUMN service_id VARCHAR(100) NOT NULL DEFAULT '',
    ADD COLUMN device_id VARCHAR(255) NOT NULL DEFAULT '',
    ADD COLUMN version INTEGER NOT NULL DEFAULT 1 CHECK (version BETWEEN 1 AND 1000000),
    ADD COLUMN min_decrypt_version INTEGER NOT NULL DEFAULT 1 CHECK (min_decrypt_version BETWEEN 1 AND version),
    ADD COLUMN lifetime_days INTEGER NOT NULL DEFAULT 365 CHECK (lifetime_days BETWEEN 1 AND 3650),
    ADD COLUMN rotation_days INTEGER NOT NULL DEFAULT 0 CHECK (rotation_days BETWEEN 0 AND 3650),
    ADD COLUMN next_rotation_at TIMESTAMPTZ,
    -- Until then one process rotates it; the others pass it by.
    ADD COLUMN rotation_claimed_until TIMESTAMPTZ,
    -- Uses of the newest version, taken in blocks by the processes that use it: never fewer than there were.
    ADD COLUMN use_limit BIGINT NOT NULL DEFAULT 0 CHECK (use_limit BETWEEN 0 AND 4294967295),
    ADD COLUMN uses BIGINT NOT NULL DEFAULT 0 CHECK (uses >= 0),
    ADD COLUMN revoked_at TIMESTAMPTZ,
    ADD COLUMN revoke_reason VARCHAR(255),
    -- When the HSM had destroyed the private halves of a revoked key; until then it is asked again.
    ADD COLUMN destroyed_at TIMESTAMPTZ,
    ADD COLUMN companion_key_id UUID,
    -- The platform's own keys (tokens, checkpoints): nothing that a caller hands in is signed with them.
    ADD COLUMN platform BOOLEAN NOT NULL DEFAULT false,
    ADD CHECK (purpose <> 'both'),
    ADD CHECK ((key_type = 'master') = (parent_key_id IS NULL)),
    ADD CHECK ((key_type = 'service') = (service_id <> '')),
    ADD CHECK ((key_type = 'device') = (device_id <> '')),
    ADD CHECK ((status = 'revoked') = (revoked_at IS NOT NULL)),
    -- A parent is of the same organisation: the reference names both.
    ADD UNIQUE (organization_id, key_id),
    ADD FOREIGN KEY (organization_id, parent_key_id) REFERENCES quantum_keys.quantum_key_store (organization_id, key_id);

CREATE TABLE quantum_keys.key_versions (
    organization_id UUID NOT NULL,
    key_id UUID NOT NULL,
    version INTEGER NOT NULL CHECK (version BETWEEN 1 AND 1000000),
    public_key BYTEA NOT NULL,
    key_handle VARCHAR(255) NOT NULL UNIQUE,
    entropy VARCHAR(255) NOT NULL, -- names of the sources with the state of their health tests
    hsm_operation_id VARCHAR(255) NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (key_id, version),
    FOREIGN KEY (organization_id, key_id) REFERENCES quantum_keys.quantum_key_store (organization_id, key_id)
);

-- Written before the HSM is asked for a new key and deleted by the transaction that stores the key: what stays here was
-- never acknowledged. Once it is marked abandoned it cannot be stored any more, and the HSM's key is destroyed.
CREATE TABLE quantum_keys.key_intents (
    key_id UUID PRIMARY KEY,
    organization_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP,
    abandoned BOOLEAN NOT NULL DEFAULT false
);
CREATE INDEX idx_key_intents_created ON quantum_keys.key_intents (created_at);

CREATE INDEX idx_quantum_keys_org_created ON quantum_keys.quantum_key_store (organization_id, created_at DESC, key_id DESC);
CREATE INDEX idx_quantum_keys_parent ON quantum_keys.quantum_key_store (parent_key_id) WHERE parent_key_id IS NOT NULL;
CREATE INDEX idx_quantum_keys_next_rotation ON quantum_keys.quantum_key_store (next_rotation_at)
    WHERE status = 'active' AND next_rotation_at IS NOT NULL;
CREATE INDEX idx_quantum_keys_undestroyed ON quantum_keys.quantum_key_store (revoked_at)
    WHERE status = 'revoked' AND destroyed_at IS NULL;
-- The platform has one key of each kind at a time, however many processes start at once.
CREATE UNIQUE INDEX idx_quantum_keys_platform ON quantum_keys.quantum_key_store (organization_id, key_type, service_id, algorithm)
    WHERE platform AND status <> 'revoked';

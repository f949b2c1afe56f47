-- The audit trail as a hash chain for each organisation, its signed checkpoints, and what alarms need.
-- docs/audit.md writes down which bytes are hashed and signed.

-- All operations of the contract (quantum/v1/audit_service.proto). The type is made anew instead of extended, because a
-- label added by ALTER TYPE cannot be used before its transaction ends, and the indexes below use them.
CREATE TYPE public.quantum_operation_enum_2 AS ENUM (
    'keygen', 'encrypt', 'decrypt', 'sign', 'verify', 'rotate', 'rewrap', 'revoke', 'expire', 'manage', 'ceremony', 'call'
);
ALTER TABLE quantum_audit.quantum_operations_log
    ALTER COLUMN operation TYPE public.quantum_operation_enum_2 USING operation::text::public.quantum_operation_enum_2;
DROP TYPE public.quantum_operation_enum;
ALTER TYPE public.quantum_operation_enum_2 RENAME TO quantum_operation_enum;

-- Nothing wrote records before this migration: the chain begins with the first one.
ALTER TABLE quantum_audit.quantum_operations_log
    ALTER COLUMN organization_id SET NOT NULL,
    ALTER COLUMN operation_timestamp SET NOT NULL,
    ADD COLUMN reason VARCHAR(64) GENERATED ALWAYS AS (nullif(split_part(error_details, ':', 1), '')) STORED,
    ADD COLUMN sequence BIGINT NOT NULL CHECK (sequence > 0),
    ADD COLUMN previous_hash BYTEA NOT NULL CHECK (octet_length(previous_hash) = 32),
    ADD COLUMN record_hash BYTEA NOT NULL CHECK (octet_length(record_hash) = 32);
CREATE UNIQUE INDEX idx_quantum_audit_chain ON quantum_audit.quantum_operations_log (organization_id, sequence);
CREATE INDEX idx_quantum_audit_key ON quantum_audit.quantum_operations_log (organization_id, key_id, sequence)
    WHERE key_id IS NOT NULL;
CREATE INDEX idx_quantum_audit_user ON quantum_audit.quantum_operations_log (organization_id, user_id, sequence)
    WHERE user_id IS NOT NULL;
-- What alarms count: failed key generations, and requests for keys.
CREATE INDEX idx_quantum_audit_keygen_failures
    ON quantum_audit.quantum_operations_log (organization_id, operation_timestamp)
    WHERE operation = 'keygen' AND result = 'failure';
CREATE INDEX idx_quantum_audit_key_requests ON quantum_audit.quantum_operations_log (organization_id, operation_timestamp)
    WHERE operation IN ('keygen', 'rotate', 'rewrap', 'revoke', 'manage');

-- Where each chain ends. Its row's lock orders the writers.
CREATE TABLE quantum_audit.chain_heads (
    organization_id UUID PRIMARY KEY,
    sequence BIGINT NOT NULL DEFAULT 0 CHECK (sequence >= 0),
    record_hash BYTEA NOT NULL DEFAULT decode(repeat('00', 32), 'hex') CHECK (octet_length(record_hash) = 32)
) WITH (fillfactor = 50); -- updated by every batch: room on the page keeps the updates away from the index

-- Signed statements of where a chain's head was.
CREATE TABLE quantum_audit.checkpoints (
    organization_id UUID NOT NULL,
    sequence BIGINT NOT NULL CHECK (sequence > 0),
    record_hash BYTEA NOT NULL CHECK (octet_length(record_hash) = 32),
    created_at TIMESTAMPTZ NOT NULL,
    key_id UUID NOT NULL,
    key_version INTEGER NOT NULL CHECK (key_version > 0),
    algorithm VARCHAR(50) NOT NULL,
    signature BYTEA NOT NULL,
    PRIMARY KEY (organization_id, sequence)
);

-- Append-only, whatever the role may do.
CREATE FUNCTION quantum_audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is append-only: % on % is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = '42501';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON quantum_audit.quantum_operations_log
    FOR EACH ROW EXECUTE FUNCTION quantum_audit.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON quantum_audit.quantum_operations_log
    FOR EACH STATEMENT EXECUTE FUNCTION quantum_audit.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON quantum_audit.checkpoints
    FOR EACH ROW EXECUTE FUNCTION quantum_audit.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON quantum_audit.checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION quantum_audit.refuse_change();
CREATE TRIGGER no_delete BEFORE DELETE ON quantum_audit.chain_heads
    FOR EACH ROW EXECUTE FUNCTION quantum_audit.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON quantum_audit.chain_heads
    FOR EACH STATEMENT EXECUTE FUNCTION quantum_audit.refuse_change();
CREATE TRIGGER only_forward BEFORE UPDATE ON quantum_audit.chain_heads
    FOR EACH ROW WHEN (NEW.organization_id <> OLD.organization_id OR NEW.sequence <= OLD.sequence)
    EXECUTE FUNCTION quantum_audit.refuse_change();

-- Security events: the contract's kinds, a place in the organisation's stream, and what makes an alarm sound once.
ALTER TYPE public.security_event_type_enum RENAME VALUE 'multiple_key_requests' TO 'excessive_key_requests';
ALTER TYPE public.security_event_type_enum ADD VALUE 'replica_repaired';
ALTER TYPE public.security_event_type_enum ADD VALUE 'entropy_failure';
ALTER TYPE public.security_event_type_enum ADD VALUE 'audit_chain_broken';
ALTER TYPE public.security_event_type_enum ADD VALUE 'hsm_token_replay';
ALTER TYPE public.security_event_type_enum ADD VALUE 'organization_violation';
ALTER TABLE quantum_security.security_events
    ALTER COLUMN organization_id SET NOT NULL,
    ALTER COLUMN event_timestamp SET NOT NULL,
    ADD COLUMN position BIGINT NOT NULL CHECK (position > 0),
    ADD COLUMN window_key VARCHAR(160); -- one event of a kind for each; NULL: no limit
CREATE UNIQUE INDEX idx_security_events_stream ON quantum_security.security_events (organization_id, position);
CREATE UNIQUE INDEX idx_security_events_window
    ON quantum_security.security_events (organization_id, event_type, window_key);
CREATE INDEX idx_security_events_latest
    ON quantum_security.security_events (organization_id, event_type, event_timestamp DESC);
CREATE TABLE quantum_security.event_heads (
    organization_id UUID PRIMARY KEY,
    position BIGINT NOT NULL CHECK (position > 0)
) WITH (fillfactor = 50);

-- When an organisation's people work, in its own time zone. No row, or no hours: no events about unusual hours.
-- hours: [{"weekday": 1 to 7 (Monday is 1), "start_minute": 0 to 1439, "end_minute": 1 to 1440}, ...]
CREATE TABLE quantum_security.business_hours (
    organization_id UUID PRIMARY KEY,
    time_zone VARCHAR(64) NOT NULL DEFAULT 'UTC', -- IANA name
    hours JSONB NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(hours) = 'array'),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP
);

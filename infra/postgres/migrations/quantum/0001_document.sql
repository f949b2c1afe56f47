-- The quantum security database (port 5433): the document's schemas, enums, tables and indexes.
-- TIMESTAMPTZ instead of TIMESTAMP, for the reason given in ../main/0001_document.sql.

CREATE SCHEMA quantum_security;
CREATE SCHEMA quantum_audit;
CREATE SCHEMA quantum_keys;

-- Values from the document's flow 3 (key generation, audit logging) and its error severities.
CREATE TYPE public.quantum_key_type_enum AS ENUM ('master', 'service', 'device');
CREATE TYPE public.key_purpose_enum AS ENUM ('encryption', 'signing', 'both');
CREATE TYPE public.key_status_enum AS ENUM ('active', 'rotated', 'revoked');
CREATE TYPE public.quantum_operation_enum AS ENUM ('keygen', 'encrypt', 'decrypt', 'sign', 'verify');
CREATE TYPE public.operation_result_enum AS ENUM ('success', 'failure', 'partial');
CREATE TYPE public.security_event_type_enum AS ENUM (
    'key_generation_failures', 'unusual_key_access', 'multiple_key_requests', 'hsm_disconnection', 'key_rotation_failure'
);
CREATE TYPE public.severity_level_enum AS ENUM ('critical', 'high', 'medium', 'low');

-- Quantum key management
CREATE TABLE quantum_keys.quantum_key_store (
    key_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id UUID NOT NULL,
    key_type public.quantum_key_type_enum NOT NULL,
    algorithm VARCHAR(50) NOT NULL,
    public_key BYTEA NOT NULL,
    key_handle VARCHAR(255) NOT NULL, -- HSM reference
    security_level VARCHAR(10) NOT NULL,
    purpose public.key_purpose_enum NOT NULL,
    parent_key_id UUID REFERENCES quantum_keys.quantum_key_store (key_id),
    created_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    expires_at TIMESTAMPTZ NOT NULL,
    rotated_at TIMESTAMPTZ,
    status public.key_status_enum DEFAULT 'active',
    metadata JSONB
);

-- Quantum operations audit trail
CREATE TABLE quantum_audit.quantum_operations_log (
    audit_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    operation public.quantum_operation_enum NOT NULL,
    key_id UUID,
    user_id UUID,
    organization_id UUID,
    service_id VARCHAR(100),
    operation_timestamp TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    source_ip INET,
    user_agent TEXT,
    correlation_id UUID,
    operation_data JSONB,
    result public.operation_result_enum NOT NULL,
    processing_time_ms INTEGER,
    error_details TEXT,
    hsm_operation_id VARCHAR(255)
);

-- Quantum security events
CREATE TABLE quantum_security.security_events (
    event_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    event_type public.security_event_type_enum NOT NULL,
    severity public.severity_level_enum NOT NULL,
    key_id UUID,
    user_id UUID,
    organization_id UUID,
    event_timestamp TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    event_data JSONB NOT NULL,
    response_action TEXT,
    resolved_at TIMESTAMPTZ,
    correlation_id UUID
);

-- The document's indexes
CREATE INDEX idx_quantum_keys_org_type_status ON quantum_keys.quantum_key_store (organization_id, key_type, status);
CREATE INDEX idx_quantum_keys_expires_at ON quantum_keys.quantum_key_store (expires_at) WHERE status = 'active';
CREATE INDEX idx_quantum_audit_timestamp ON quantum_audit.quantum_operations_log (operation_timestamp DESC);
CREATE INDEX idx_quantum_audit_correlation ON quantum_audit.quantum_operations_log (correlation_id);
CREATE INDEX idx_security_events_severity_timestamp ON quantum_security.security_events (severity, event_timestamp DESC);
-- Flow 3 also looks a key up by its handle; no two keys share one.
CREATE UNIQUE INDEX idx_quantum_keys_key_handle ON quantum_keys.quantum_key_store (key_handle);

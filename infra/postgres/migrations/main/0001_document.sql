-- The main database (port 5432): the document's schemas, enums, tables and indexes, and what the house adds to them.
--
-- Where this differs from the document's text, and why:
-- * TIMESTAMPTZ instead of TIMESTAMP. A TIMESTAMP holds whatever the session's zone made of the clock; two services in two zones would
--   then disagree about one event. TIMESTAMPTZ is the same eight bytes and one instant everywhere.
-- * organization_id on everything that belongs to a tenant, without a default: whoever writes says whose row it is.
-- * The foreign key to a person names the organisation as well, so that a row cannot join one tenant's event to another tenant's person.
-- * Erasing a person erases their templates, events and profile (ON DELETE CASCADE).

CREATE SCHEMA behaviorguard;
CREATE SCHEMA ai_services;
CREATE SCHEMA monitoring;

-- The document names these types without a schema, so they live where every search path finds them.
CREATE TYPE public.user_status AS ENUM ('active', 'locked', 'suspended', 'erased');
CREATE TYPE public.biometric_type_enum AS ENUM ('face', 'fingerprint');
CREATE TYPE public.threat_level_enum AS ENUM ('normal', 'suspicious', 'threat', 'critical');
-- Addition: what an analyst concluded (VerdictKind in protos/behaviorguard/threat/v1/threat.proto).
CREATE TYPE public.verdict_kind_enum AS ENUM ('takeover', 'genuine', 'inconclusive');

-- Addition: tenants.
CREATE TABLE behaviorguard.organizations (
    organization_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name VARCHAR(255) UNIQUE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP
);
-- The one organisation of an embedded installation. Its id is fixed so that settings, tests and clients can name it.
INSERT INTO behaviorguard.organizations (organization_id, name)
VALUES ('00000000-0000-4000-8000-000000000001', 'Default organisation');

-- Users and authentication
CREATE TABLE behaviorguard.users (
    user_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    email VARCHAR(255) UNIQUE NOT NULL,
    password_hash VARCHAR(255),
    quantum_enabled BOOLEAN DEFAULT false,
    created_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    status public.user_status DEFAULT 'active',
    -- Additions
    organization_id UUID NOT NULL REFERENCES behaviorguard.organizations (organization_id),
    trial_expires_at TIMESTAMPTZ,  -- set for a throwaway person of StartTrial: erased after this time; NULL for real people
    UNIQUE (organization_id, user_id)  -- what the tenant-safe foreign keys below refer to
);
CREATE INDEX idx_users_trial_expiry ON behaviorguard.users (trial_expires_at) WHERE trial_expires_at IS NOT NULL;

-- Biometric templates (encrypted)
CREATE TABLE ai_services.biometric_templates (
    template_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id UUID NOT NULL,
    biometric_type public.biometric_type_enum NOT NULL,
    encrypted_template BYTEA NOT NULL,
    quantum_key_id UUID NOT NULL,
    quality_score DECIMAL(3,2),
    device_id VARCHAR(255),
    created_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    expires_at TIMESTAMPTZ,
    algorithm VARCHAR(50) DEFAULT 'Kyber768',
    security_level VARCHAR(10) DEFAULT 'NIST-L3',
    -- Addition
    organization_id UUID NOT NULL,
    FOREIGN KEY (organization_id, user_id) REFERENCES behaviorguard.users (organization_id, user_id) ON DELETE CASCADE
);

-- Threat detection events
CREATE SEQUENCE ai_services.threat_event_positions;
CREATE TABLE ai_services.threat_events (
    event_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id UUID NOT NULL,
    session_id UUID,
    threat_score DECIMAL(4,3) NOT NULL,
    threat_level public.threat_level_enum NOT NULL,
    anomaly_score DECIMAL(4,3),
    sequence_threat_score DECIMAL(4,3),
    pattern_anomaly_score DECIMAL(4,3),
    ml_confidence DECIMAL(4,3),
    processing_time_ms INTEGER,
    morpheus_pipeline_version VARCHAR(50),
    event_data JSONB,
    recommendations TEXT[],
    correlation_id UUID,
    created_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP,
    processed_at TIMESTAMPTZ,
    -- Additions
    organization_id UUID NOT NULL,
    -- Place in the alert stream; the resume token of WatchAlerts. The trigger below makes positions become visible in their own order.
    stream_position BIGINT NOT NULL DEFAULT nextval('ai_services.threat_event_positions'),
    occurred_at TIMESTAMPTZ,   -- when the sender saw it
    accepted_at TIMESTAMPTZ,   -- when the threat service accepted it
    features JSONB,            -- the 15 features, in the document's order
    simulated_features TEXT[] NOT NULL DEFAULT '{}',  -- names of the features that rest on simulated values
    reasons JSONB NOT NULL DEFAULT '[]',              -- the strongest reasons, strongest first
    model_versions JSONB NOT NULL DEFAULT '[]',
    verdict_kind public.verdict_kind_enum,  -- NULL while nobody has concluded
    verdict_note VARCHAR(2000),
    verdict_analyst VARCHAR(255),
    verdict_recorded_at TIMESTAMPTZ,
    FOREIGN KEY (organization_id, user_id) REFERENCES behaviorguard.users (organization_id, user_id) ON DELETE CASCADE,
    CHECK ((verdict_kind IS NULL) = (verdict_recorded_at IS NULL))
);
ALTER SEQUENCE ai_services.threat_event_positions OWNED BY ai_services.threat_events.stream_position;

-- Two writers that draw positions 1 and 2 may commit in the order 2, 1: a reader that has seen 2 would never look for 1 again. Each
-- inserting statement therefore first takes a lock that lasts until its transaction ends (one batch writes at a time; batches are short).
CREATE FUNCTION ai_services.order_alert_stream() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ai_services.threat_event_positions'));
    RETURN NULL;
END
$$;
CREATE TRIGGER order_alert_stream BEFORE INSERT ON ai_services.threat_events
    FOR EACH STATEMENT EXECUTE FUNCTION ai_services.order_alert_stream();

-- Behavioral profiles
CREATE TABLE ai_services.behavioral_profiles (
    profile_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id UUID NOT NULL UNIQUE,  -- one profile a person
    baseline_behavior JSONB NOT NULL,
    risk_score DECIMAL(4,3) DEFAULT 0.5,
    last_analysis TIMESTAMPTZ,
    pattern_fingerprint VARCHAR(255),
    anomaly_threshold DECIMAL(4,3) DEFAULT 0.7,
    created_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    -- Additions
    organization_id UUID NOT NULL,
    evidence_version INTEGER,         -- version of the layout of baseline_vectors
    baseline_vectors BYTEA,           -- what is learnt of the person: packed little-endian float32, layout by evidence_version
    last_threat_score DECIMAL(4,3),
    last_anomaly TIMESTAMPTZ,         -- when the last event above anomaly_threshold was scored
    session_count INTEGER NOT NULL DEFAULT 0,
    average_session_seconds REAL NOT NULL DEFAULT 0,
    revision BIGINT NOT NULL DEFAULT 0,  -- rises with each write: a writer that read an older one must read again
    FOREIGN KEY (organization_id, user_id) REFERENCES behaviorguard.users (organization_id, user_id) ON DELETE CASCADE
);

-- The document's indexes
CREATE INDEX idx_biometric_templates_user_type ON ai_services.biometric_templates (user_id, biometric_type);
CREATE INDEX idx_threat_events_user_score ON ai_services.threat_events (user_id, threat_score DESC);
CREATE INDEX idx_threat_events_timestamp ON ai_services.threat_events (created_at DESC);
CREATE INDEX idx_behavioral_profiles_risk ON ai_services.behavioral_profiles (risk_score DESC);
-- Additions: the alert stream, and paging through one tenant's or one person's events, newest first.
CREATE UNIQUE INDEX idx_threat_events_stream ON ai_services.threat_events (organization_id, stream_position);
CREATE INDEX idx_threat_events_page ON ai_services.threat_events (organization_id, created_at DESC, event_id DESC);
CREATE INDEX idx_threat_events_user_page ON ai_services.threat_events (user_id, created_at DESC, event_id DESC);

-- Sessions whose tokens were ended before their time. A row may be forgotten when no token of the session can hold any
-- more: see docs/tokens.md.

CREATE TABLE quantum_security.token_revocations (
    organization_id UUID NOT NULL,
    session_id UUID NOT NULL,
    revoked_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (organization_id, session_id),
    CHECK (expires_at > revoked_at)
);

-- ListRevocations pages by it; what every process reads to catch up.
CREATE INDEX idx_token_revocations_listed
    ON quantum_security.token_revocations (organization_id, revoked_at DESC, session_id DESC);
CREATE INDEX idx_token_revocations_expires_at ON quantum_security.token_revocations (expires_at);
CREATE INDEX idx_token_revocations_revoked_at ON quantum_security.token_revocations (revoked_at);

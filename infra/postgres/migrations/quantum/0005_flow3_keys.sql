-- The document writes the table of keys twice. quantum_key_store is the one of its database section; this is flow 3's, over
-- the same rows, with the audit trail that it wants beside each key: what was done to the key, not every use of it.
CREATE VIEW quantum_keys.quantum_keys AS
SELECT k.key_id, k.organization_id, k.key_type, k.algorithm, k.public_key, k.key_handle, k.security_level, k.created_at,
    k.expires_at, k.status, coalesce((
        SELECT jsonb_agg(jsonb_build_object('audit_id', a.audit_id, 'operation', a.operation, 'result', a.result,
            'timestamp', a.operation_timestamp, 'service_id', a.service_id, 'user_id', a.user_id) ORDER BY a.sequence)
        FROM quantum_audit.quantum_operations_log a
        WHERE a.organization_id = k.organization_id AND a.key_id = k.key_id
            AND a.operation IN ('keygen', 'rotate', 'rewrap', 'revoke', 'expire', 'manage')), '[]') AS audit_trail
FROM quantum_keys.quantum_key_store k;

-- Who may do what in the quantum security database. Runs after the migrations at every start; the result is the same each time.
DO $$ BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO bg_quantum, bg_monitoring', current_database());
END $$;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO bg_quantum, bg_monitoring;

-- quantum: keys and events are its own. The audit trail may be written and read, never changed or shortened.
GRANT USAGE ON SCHEMA quantum_keys, quantum_audit, quantum_security TO bg_quantum;
GRANT SELECT, INSERT, UPDATE ON quantum_keys.quantum_key_store, quantum_security.security_events TO bg_quantum;
GRANT SELECT, INSERT ON quantum_keys.key_versions TO bg_quantum;
GRANT SELECT, INSERT, UPDATE, DELETE ON quantum_keys.key_intents TO bg_quantum;
GRANT SELECT, INSERT ON quantum_audit.quantum_operations_log, quantum_audit.checkpoints TO bg_quantum;
GRANT SELECT, INSERT, UPDATE ON quantum_audit.chain_heads, quantum_security.event_heads TO bg_quantum;
REVOKE UPDATE, DELETE, TRUNCATE ON quantum_audit.quantum_operations_log, quantum_audit.checkpoints FROM bg_quantum;
REVOKE DELETE, TRUNCATE ON quantum_audit.chain_heads FROM bg_quantum;
GRANT SELECT, INSERT, UPDATE, DELETE ON quantum_security.business_hours TO bg_quantum;
GRANT SELECT, INSERT, UPDATE, DELETE ON quantum_security.token_revocations TO bg_quantum;

-- monitoring: what happened and how fast, no key and no person.
GRANT USAGE ON SCHEMA quantum_audit, quantum_security TO bg_monitoring;
GRANT SELECT (audit_id, operation, organization_id, operation_timestamp, result, processing_time_ms)
    ON quantum_audit.quantum_operations_log TO bg_monitoring;
GRANT SELECT (event_id, event_type, severity, organization_id, event_timestamp, resolved_at)
    ON quantum_security.security_events TO bg_monitoring;

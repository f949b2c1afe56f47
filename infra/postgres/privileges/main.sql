-- Who may do what in the main database. Runs after the migrations at every start; the result is the same each time.
-- A service that is not named here may do nothing. `current_database()` carries a suffix in tests, hence the format().
DO $$ BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO bg_threat, bg_identity, bg_mobile, bg_monitoring', current_database());
END $$;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO bg_threat, bg_identity, bg_mobile, bg_monitoring;  -- the enum types

-- threat: events and profiles are its own. Of people it may know that they exist and whether they are active, never how they sign in;
-- it may create and erase throwaway people of trials, and no others.
GRANT USAGE ON SCHEMA behaviorguard, ai_services TO bg_threat;
GRANT SELECT ON behaviorguard.organizations TO bg_threat;
GRANT SELECT (user_id, organization_id, status, trial_expires_at, created_at) ON behaviorguard.users TO bg_threat;
GRANT INSERT (user_id, email, organization_id, trial_expires_at, status) ON behaviorguard.users TO bg_threat;
GRANT DELETE ON behaviorguard.users TO bg_threat;
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_services.threat_events, ai_services.behavioral_profiles TO bg_threat;
GRANT USAGE ON SEQUENCE ai_services.threat_event_positions TO bg_threat;

-- identity: people and their templates.
GRANT USAGE ON SCHEMA behaviorguard, ai_services TO bg_identity;
GRANT SELECT ON behaviorguard.organizations TO bg_identity;
GRANT SELECT, INSERT, UPDATE, DELETE ON behaviorguard.users, ai_services.biometric_templates TO bg_identity;

-- mobile: keeps nothing here yet; it may check that a person exists.
GRANT USAGE ON SCHEMA behaviorguard TO bg_mobile;
GRANT SELECT (user_id, organization_id, status) ON behaviorguard.users TO bg_mobile;

-- monitoring: counts and scores, nobody's behaviour or secrets.
GRANT USAGE ON SCHEMA ai_services, monitoring TO bg_monitoring;
GRANT SELECT (event_id, organization_id, threat_level, threat_score, processing_time_ms, created_at, processed_at)
    ON ai_services.threat_events TO bg_monitoring;

-- Column rights cannot tell one row from another: row security confines threat's writes on people to trials.
ALTER TABLE behaviorguard.users ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS everybody_reads ON behaviorguard.users;
CREATE POLICY everybody_reads ON behaviorguard.users FOR SELECT USING (true);
DROP POLICY IF EXISTS identity_writes ON behaviorguard.users;
CREATE POLICY identity_writes ON behaviorguard.users TO bg_identity USING (true) WITH CHECK (true);
DROP POLICY IF EXISTS threat_starts_trials ON behaviorguard.users;
CREATE POLICY threat_starts_trials ON behaviorguard.users FOR INSERT TO bg_threat WITH CHECK (trial_expires_at IS NOT NULL);
DROP POLICY IF EXISTS threat_ends_trials ON behaviorguard.users;
CREATE POLICY threat_ends_trials ON behaviorguard.users FOR DELETE TO bg_threat USING (trial_expires_at IS NOT NULL);

"""The quantum service (port 3005): keys, templates, tokens and the audit trail."""

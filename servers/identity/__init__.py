"""The identity service: who a person is, by face, fingerprint, document and session."""

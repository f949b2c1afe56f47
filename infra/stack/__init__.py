"""The embedded stack: stores, broker, supervisor."""

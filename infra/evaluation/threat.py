"""Takeover detection, measured the way it runs: real recordings through samples, profiles, scorer and levels, event by event."""

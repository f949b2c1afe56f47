"""Kafka in, scored alerts out: reads `threat-events`, scores each event with three models, writes `threat-alerts`."""

VERSION = "0.1.0"
"""Version of the pipeline, written into every alert."""

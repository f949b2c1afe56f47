"""Measurements of speed: load, relay and end-to-end latency, each in processes of its own."""

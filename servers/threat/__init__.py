"""The threat service (port 3002): behaviour in, explained alerts out.

`intake` takes an event to the broker, `results` brings the pipeline's alert back into the stores, `watch` carries it
to those who follow.
"""

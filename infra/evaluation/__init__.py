"""Evaluation on recordings of real people: readers, protocol, metrics."""

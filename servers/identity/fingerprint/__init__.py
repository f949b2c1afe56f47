"""Fingerprints: from an image to minutiae, and how alike two sets of minutiae are.

`extractor.extract` reads an image, `matcher.compare` compares two templates, `iso19794` writes and reads the standard
record. `docs/fingerprints.md` has the method, its sources and what was measured.
"""

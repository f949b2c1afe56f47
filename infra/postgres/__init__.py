"""The databases' schemas and rights."""

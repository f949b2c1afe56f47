"""Recorded sessions of real people, played into the running system as if they happened now."""

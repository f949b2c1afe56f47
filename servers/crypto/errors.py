"""What the primitives refuse, as types. No text holds key material, plaintext or anything that tells failures to open
apart."""

from __future__ import annotations


class CryptoError(ValueError):
    """Input that a primitive refuses; the text says which and what would fit, and is safe to show."""


class UnsupportedAlgorithmError(CryptoError):
    """The algorithm is unknown, or is not of the kind that the operation needs."""


class SecurityLevelError(CryptoError):
    """The algorithm cannot give the security level that was asked for, or the level is unknown."""


class KeyMaterialError(CryptoError):
    """A seed or public key has the wrong size, or is not a valid encoding."""


class CiphertextError(CryptoError):
    """A KEM ciphertext has the wrong size or is not a valid encoding.

    A ciphertext of the right size that was made for another key gives another shared secret instead (implicit
    rejection, FIPS 203).
    """


class ContextError(CryptoError):
    """A signature's context string is too long, or the algorithm takes none."""


class OpenError(CryptoError):
    """A sealed box does not open; the same for every reason."""

    def __init__(self) -> None:
        super().__init__("the box does not open with this key, info and associated data")


class ProviderUnavailableError(CryptoError):
    """The crypto provider is unknown, or what it needs is not installed; the text says how to get it."""

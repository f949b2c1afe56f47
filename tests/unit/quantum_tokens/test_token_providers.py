"""Tokens are the same, whichever library checks them."""

from __future__ import annotations

import pytest
from behaviorguard.client.tokens import read_token

from servers.crypto.errors import ProviderUnavailableError
from servers.crypto.provider import provider_named
from servers.quantum.jwks import ALGORITHMS
from servers.quantum.signatures import Check, SignatureVerifier
from tests.support.tokens import LocalIssuer, claims


@pytest.mark.parametrize("name", ["cryptography", "oqs"])
async def test_both_libraries_accept_and_refuse_the_same(name: str) -> None:
    try:
        provider = provider_named(name)
    except ProviderUnavailableError as error:
        pytest.skip(str(error))
    issuer = LocalIssuer()
    checks = [
        Check(
            (algorithm := ALGORITHMS[part.algorithm]),
            issuer.newest(algorithm).public_key,
            part.signing_input,
            part.signature,
        )
        for part in read_token(issuer.hybrid(claims())).signatures
    ]
    verifier = SignatureVerifier(provider)
    try:
        assert await verifier.all_hold(checks)
        for place, check in enumerate(checks):
            spoilt = Check(check.algorithm, check.public_key, check.message + b"x", check.signature)
            assert not await verifier.all_hold([*checks[:place], spoilt, *checks[place + 1 :]])
            short = Check(check.algorithm, check.public_key[:-1], check.message, check.signature)
            assert not await verifier.all_hold([*checks[:place], short, *checks[place + 1 :]])
    finally:
        verifier.close()

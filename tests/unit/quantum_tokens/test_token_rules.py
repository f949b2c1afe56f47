"""Issuing and checking tokens, with keys and sessions in memory."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.client.tokens import ED_DSA, ML_DSA_65, TokenProblem, TokenVerifier, VerificationKeys, read_token
from google.protobuf.json_format import MessageToDict

from servers.crypto.algorithms import Algorithm
from servers.crypto.cryptography_provider import CryptographyProvider
from servers.mesh.errors import MeshError
from servers.quantum.jwks import TokenKeys, json_web_key, kid_of
from servers.quantum.signatures import SignatureVerifier
from servers.quantum.tokens import TokenOrder, Tokens
from tests.support.loop import loop_never_blocked
from tests.support.tokens import AUDIENCE, NOW, ORGANIZATION, SESSION, USER, LocalIssuer, claims, general

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from servers.quantum.platform_keys import PlatformKey
    from servers.quantum.ports import Signed, SignItem

ORDER = TokenOrder(USER, ORGANIZATION, SESSION, (AUDIENCE,), ("admin",), ("pwd",), "phone-1")


@dataclass
class Sessions:
    """Ended sessions, in memory."""

    over: set[tuple[str, str]] = field(default_factory=set)
    failure: MeshError | None = None

    async def ended(self, organization_id: str, session_id: str) -> bool:
        if self.failure is not None:
            raise self.failure
        return (organization_id, session_id) in self.over


class Stage:
    """The rules with everything around them in memory."""

    def __init__(self) -> None:
        self.issuer = LocalIssuer("stage")
        self.now = float(NOW)
        self.sessions = Sessions()
        self.verifier = SignatureVerifier(CryptographyProvider(), threads=1, waiting=64)
        self.keys = TokenKeys(self.issuer, clock=lambda: self.now)
        self.tokens = Tokens(
            self.keys,
            self.issuer,
            self.verifier,
            self.sessions,
            issuer="behaviorguard",
            clock_skew_s=60.0,
            clock=lambda: self.now,
        )

    async def problem(self, token: str, *, accept_classical: bool = True) -> TokenProblem | None:
        return (await self.tokens.check(token, AUDIENCE, accept_classical=accept_classical)).problem

    async def jwks(self) -> dict[str, Any]:
        return {"keys": [MessageToDict(json_web_key(key)) for key in await self.keys.published()]}


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.verifier.close()


async def test_what_is_issued_holds_here_and_elsewhere(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    elsewhere = TokenVerifier(VerificationKeys.from_jwks(await stage.jwks()), AUDIENCE, accept_classical=True)
    for token, secured in ((issued.hybrid, True), (issued.classical, False)):
        verdict = await stage.tokens.check(token, AUDIENCE, accept_classical=True)
        assert verdict.problem is None
        assert verdict.quantum_secured is secured
        found = elsewhere.verify(token, now=NOW)
        assert found.claims == verdict.claims
        assert found.quantum_secured is secured
        assert found.claims.token_id == issued.token_id
        assert found.claims.roles == ("admin",)
        assert found.claims.device_id == "phone-1"
        assert found.claims.expires_at - found.claims.issued_at == issued.expires_in_s == 3600
    assert len(issued.hybrid) < 5_500


async def test_one_request_to_the_hsm_signs_all(stage: Stage) -> None:
    await stage.tokens.issue(ORDER)
    await stage.tokens.issue(TokenOrder(USER, ORGANIZATION, SESSION, (AUDIENCE,), hybrid=False))
    assert stage.issuer.requests == [3, 1]


async def test_the_quantum_signature_is_the_tokens_own(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    part = read_token(issued.hybrid).signatures[1]
    assert issued.quantum_key is not None
    assert issued.quantum_signature == part.signature
    assert part.key_id == kid_of(issued.quantum_key)
    key = CryptographyProvider().verifying_key(Algorithm.ML_DSA_65, issued.quantum_key.public_key)
    assert key.verify(part.signing_input, part.signature)
    assert not key.verify(part.signing_input, part.signature, b"bg-message/v1:")


async def test_no_part_of_a_hybrid_token_is_a_classical_one(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    for part in read_token(issued.hybrid).signatures:
        compact = part.signing_input.decode() + "." + issued.hybrid.split('"signature":"')[1].partition('"')[0]
        assert await stage.problem(compact) is TokenProblem.MALFORMED


async def test_classical_tokens_are_refused_unless_asked_for(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    assert await stage.problem(issued.classical, accept_classical=False) is TokenProblem.MALFORMED
    assert await stage.problem(issued.hybrid, accept_classical=False) is None


async def test_times_and_audience_and_issuer(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    for now, expected in ((NOW + 3599, None), (NOW + 3600, TokenProblem.EXPIRED), (NOW - 61, TokenProblem.EXPIRED)):
        stage.now = now
        assert await stage.problem(issued.hybrid) is expected
    stage.now = NOW
    verdict = await stage.tokens.check(issued.hybrid, "threat", accept_classical=False)
    assert verdict.problem is TokenProblem.MALFORMED
    assert await stage.problem(stage.issuer.hybrid(claims(issuer="somebody"))) is TokenProblem.MALFORMED


async def test_an_ended_session_gets_and_keeps_no_token(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    stage.sessions.over.add((ORGANIZATION, SESSION))
    assert await stage.problem(issued.hybrid) is TokenProblem.REVOKED
    assert await stage.problem(issued.classical) is TokenProblem.REVOKED
    with pytest.raises(MeshError) as refusal:
        await stage.tokens.issue(ORDER)
    assert refusal.value.reason == ErrorReason.ERROR_REASON_WRONG_STATE


async def test_another_organisation_does_not_end_the_session(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    stage.sessions.over.add(("44444444-4444-4444-8444-444444444444", SESSION))
    assert await stage.problem(issued.hybrid) is None


async def test_when_revocations_are_unknown_nothing_is_accepted(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    stage.sessions.failure = MeshError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
    with pytest.raises(MeshError):
        await stage.problem(issued.hybrid)
    assert await stage.problem("x") is TokenProblem.MALFORMED


async def test_tokens_of_an_older_version_hold_until_they_end(stage: Stage) -> None:
    old = await stage.tokens.issue(TokenOrder(USER, ORGANIZATION, SESSION, (AUDIENCE,), lifetime_s=86_400))
    for algorithm in (Algorithm.ED25519, Algorithm.ML_DSA_65):
        stage.issuer.rotate(algorithm, datetime.fromtimestamp(NOW + 10, UTC))
    new = await stage.tokens.issue(ORDER)
    assert {part.key_id[-2:] for part in read_token(new.hybrid).signatures} == {".2"}
    assert {part.key_id[-2:] for part in read_token(old.hybrid).signatures} == {".1"}
    assert await stage.problem(new.hybrid) is await stage.problem(old.hybrid) is None
    assert len((await stage.jwks())["keys"]) == 4
    stage.now = NOW + 86_399
    assert await stage.problem(old.hybrid) is None
    stage.now = NOW + 86_400
    assert await stage.problem(old.hybrid) is TokenProblem.EXPIRED
    stage.now = NOW + 10 + 86_400 + 601
    keys = (await stage.jwks())["keys"]
    assert [key["kid"][-2:] for key in keys] == [".2", ".2"]


async def test_a_revoked_key_signs_nothing_that_counts(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    assert await stage.problem(issued.hybrid) is None
    stage.issuer.rotate(Algorithm.ML_DSA_65, datetime.fromtimestamp(NOW, UTC))
    del stage.issuer.held[Algorithm.ML_DSA_65][1]  # the platform's keys no longer name it
    assert await stage.problem(issued.hybrid) is TokenProblem.MALFORMED
    assert await stage.problem(issued.classical) is None


async def test_a_version_below_the_least_one_signs_nothing_that_counts(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    stage.issuer.rotate(Algorithm.ED25519, datetime.fromtimestamp(NOW, UTC))
    held = stage.issuer.held[Algorithm.ED25519]
    held[1] = replace(held[1], decrypts=False)
    assert await stage.problem(issued.hybrid) is TokenProblem.MALFORMED
    assert await stage.problem(issued.classical) is TokenProblem.MALFORMED


async def test_a_key_under_another_algorithm_is_not_found(stage: Stage) -> None:
    ed = stage.issuer.newest(Algorithm.ED25519)
    assert await stage.keys.find(kid_of(ed), ED_DSA) is not None
    assert await stage.keys.find(kid_of(ed), ML_DSA_65) is None
    assert await stage.keys.find(kid_of(ed).replace(".1", ".9"), ED_DSA) is None


async def test_keys_that_cannot_be_read_are_unavailable(stage: Stage) -> None:
    issued = await stage.tokens.issue(ORDER)
    assert await stage.problem(issued.hybrid) is None

    async def away(service_id: str, algorithm: Algorithm) -> Sequence[PlatformKey]:
        raise MeshError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")

    stage.issuer.versions = away  # type: ignore[method-assign]  # fails
    with pytest.raises(MeshError) as refusal:
        await stage.problem(issued.hybrid)
    assert refusal.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (ErrorReason.ERROR_REASON_HSM_SEALED, ErrorReason.ERROR_REASON_HSM_SEALED),
        (ErrorReason.ERROR_REASON_NOT_FOUND, ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE),
    ],
)
async def test_an_hsm_that_does_not_sign_refuses_the_whole_token(
    stage: Stage, reason: ErrorReason.ValueType, told: ErrorReason.ValueType
) -> None:
    sign_many = stage.issuer.sign_many

    async def last_fails(items: Sequence[SignItem]) -> list[Signed | MeshError]:
        return [*(await sign_many(items))[:-1], MeshError(reason, "no")]

    stage.issuer.sign_many = last_fails  # type: ignore[method-assign]  # fails
    with pytest.raises(MeshError) as refusal:
        await stage.tokens.issue(ORDER)
    assert refusal.value.reason == told


async def test_many_are_checked_together_and_none_is_mixed_up(stage: Stage) -> None:
    good = (await stage.tokens.issue(ORDER)).hybrid
    payload, ed, dsa = stage.issuer.parts(claims())
    bad = general(
        payload,
        [ed, {**dsa, "signature": dsa["signature"][:-4] + ("AAAA" if dsa["signature"][-4:] != "AAAA" else "BBBB")}],
    )
    wanted = [(index % 3 == 0) for index in range(48)]
    found = await asyncio.gather(*(stage.problem(bad if wrong else good) for wrong in wanted))
    assert [problem is TokenProblem.MALFORMED for problem in found] == wanted


async def test_too_many_waiting_checks_are_refused_and_the_rest_answered(stage: Stage) -> None:
    token = (await stage.tokens.issue(ORDER)).hybrid
    results = await asyncio.gather(*(stage.problem(token) for _ in range(120)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, MeshError)]
    assert refused
    assert all(error.reason == ErrorReason.ERROR_REASON_OVERLOADED for error in refused)
    assert sum(result is None for result in results) == 120 - len(refused)
    assert stage.verifier.waiting == 0


async def test_whoever_gives_up_costs_nothing(stage: Stage) -> None:
    token = (await stage.tokens.issue(ORDER)).hybrid
    tasks = [asyncio.create_task(stage.problem(token)) for _ in range(40)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None for result in results[1::2])
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])


async def test_nothing_of_a_token_is_logged_or_shown(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        issued = await stage.tokens.issue(ORDER)
        verdict = await stage.tokens.check(issued.hybrid, AUDIENCE, accept_classical=False)
        await stage.problem(issued.hybrid[:-9])
    shown = caplog.text + repr((issued, verdict, ORDER, verdict.claims))
    assert USER not in shown
    assert issued.classical[-20:] not in shown
    assert issued.hybrid[20:60] not in shown


async def test_checking_many_tokens_never_holds_the_loop(stage: Stage) -> None:
    token = (await stage.tokens.issue(ORDER)).hybrid
    assert await stage.problem(token) is None
    with loop_never_blocked():
        for _ in range(3):
            assert set(await asyncio.gather(*(stage.problem(token) for _ in range(48)))) == {None}

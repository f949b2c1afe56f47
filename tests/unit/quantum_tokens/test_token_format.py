"""The form of tokens and the offline verifier: whatever is not exactly a token of ours is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.client.tokens import (
    CLASSICAL_TYPE,
    ED_DSA,
    HYBRID_TYPE,
    ML_DSA_65,
    TokenProblem,
    TokenRejectedError,
    TokenVerifier,
    VerificationKeys,
    encode,
    read_revocations,
    read_token,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jwcrypto import jwk  # type: ignore[import-untyped]  # it ships no types
from jwcrypto import jws as other
from jwcrypto.common import json_encode  # type: ignore[import-untyped]  # as above

from servers.crypto.algorithms import Algorithm
from servers.quantum import jws
from servers.quantum.jwks import kid_of
from tests.support.tokens import AUDIENCE, NOW, SESSION, LocalIssuer, claims, general

if TYPE_CHECKING:
    from collections.abc import Callable

    from behaviorguard.client.tokens import VerifiedToken

ISSUER = LocalIssuer()
KEYS = ISSUER.verification_keys()
HYBRID = ISSUER.hybrid(claims())
CLASSICAL = ISSUER.classical(claims())
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
MEMBERS = ["payload", "signatures", "protected", "signature", "header", "crit"]
OTHER_ALGORITHMS = ["EdDSA", "ML-DSA-65"]


def verify(token: str, *, now: float = NOW + 1, **changes: Any) -> VerifiedToken:
    demanded: dict[str, Any] = {"audience": AUDIENCE, "accept_classical": True, **changes}
    return TokenVerifier(KEYS, **demanded).verify(token, now=now)


def problem_of(token: str, **changes: Any) -> TokenProblem:
    with pytest.raises(TokenRejectedError) as refusal:
        verify(token, **changes)
    return refusal.value.problem


def refused(token: str, **changes: Any) -> bool:
    return problem_of(token, **changes) is TokenProblem.MALFORMED


def test_both_kinds_are_accepted_and_told_apart() -> None:
    hybrid, classical = verify(HYBRID), verify(CLASSICAL)
    assert hybrid.quantum_secured
    assert not classical.quantum_secured
    assert hybrid.claims == classical.claims == claims()


def test_a_classical_token_needs_to_be_asked_for() -> None:
    assert refused(CLASSICAL, accept_classical=False)
    assert verify(HYBRID, accept_classical=False).quantum_secured


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(HYBRID) - 1), bit=st.integers(0, 6))
def test_no_bit_of_a_hybrid_token_may_change(place: int, bit: int) -> None:
    changed = HYBRID[:place] + chr(ord(HYBRID[place]) ^ (1 << bit)) + HYBRID[place + 1 :]
    assert refused(changed)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, len(CLASSICAL) - 1), letter=st.sampled_from(ALPHABET + '.=\n {}"\\é\0'))
def test_no_character_of_a_classical_token_may_change(place: int, letter: str) -> None:
    if CLASSICAL[place] == letter:
        return
    assert refused(CLASSICAL[:place] + letter + CLASSICAL[place + 1 :])


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, len(HYBRID)), letter=st.sampled_from([*ALPHABET, " ", "\n", ",", '"', "{", "=", "\t"]))
def test_nothing_may_be_put_in(place: int, letter: str) -> None:
    assert refused(HYBRID[:place] + letter + HYBRID[place:])


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, len(HYBRID) - 1), length=st.integers(1, 5000))
def test_nothing_may_be_left_out(start: int, length: int) -> None:
    assert refused(HYBRID[:start] + HYBRID[start + length :])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_refused_as_malformed(text: str) -> None:
    assert refused(text)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=10)),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(MEMBERS),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_refused_as_malformed(value: object) -> None:
    assert refused(json.dumps(value, separators=(",", ":")))


PAYLOAD, ED, DSA = ISSUER.parts(claims())
ARRANGEMENTS: dict[str, str] = {
    "ML-DSA stripped": general(PAYLOAD, [ED]),
    "EdDSA stripped": general(PAYLOAD, [DSA]),
    "no signature": general(PAYLOAD, []),
    "swapped": general(PAYLOAD, [DSA, ED]),
    "EdDSA twice": general(PAYLOAD, [ED, ED]),
    "ML-DSA twice": general(PAYLOAD, [DSA, DSA]),
    "a third": general(PAYLOAD, [ED, DSA, ED]),
    "signatures exchanged": general(
        PAYLOAD, [{**ED, "signature": DSA["signature"]}, {**DSA, "signature": ED["signature"]}]
    ),
    "headers exchanged": general(
        PAYLOAD, [{**ED, "protected": DSA["protected"]}, {**DSA, "protected": ED["protected"]}]
    ),
    "unprotected header": general(PAYLOAD, [{**ED, "header": {}}, DSA]),  # type: ignore[dict-item]  # on purpose
    "unknown member": general(PAYLOAD, [ED, DSA], extra=1),
    "unknown member of a signature": general(PAYLOAD, [{**ED, "x": "y"}, DSA]),
    "pretty": json.dumps(json.loads(HYBRID), indent=1),
    "other order": json.dumps({"signatures": [ED, DSA], "payload": PAYLOAD}, separators=(",", ":")),
    "member twice": HYBRID.replace('{"payload"', '{"payload":"","payload"', 1),
    "escaped": HYBRID.replace('"payload"', '"\\u0070ayload"', 1),
    "flattened": json.dumps({"payload": PAYLOAD, **DSA}, separators=(",", ":")),
    "padded": general(PAYLOAD + "=", [ED, DSA]),
    "space before": " " + HYBRID,
    "newline after": HYBRID + "\n",
    "byte order mark": "\ufeff" + HYBRID,
    "surrogate": HYBRID + "\ud800",
    "huge": HYBRID + "A" * 1_000_000,
    "deep": "[" * 16_000,
    "deep object": '{"payload":' * 1_400,
    "empty": "",
    "stripped to compact": f"{ED['protected']}.{PAYLOAD}.{ED['signature']}",
    "ML-DSA alone as compact": f"{DSA['protected']}.{PAYLOAD}.{DSA['signature']}",
    "classical in general form": general(
        PAYLOAD,
        [
            ISSUER.signed_part(
                Algorithm.ED25519, jws.classical_header(kid_of(ISSUER.newest(Algorithm.ED25519))), PAYLOAD
            ),
            DSA,
        ],
    ),
    "detached payload": general("", [ED, DSA]),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_other_arrangements_are_refused(name: str) -> None:
    assert refused(ARRANGEMENTS[name])


def _headers() -> dict[str, dict[str, Any]]:
    kid = kid_of(ISSUER.newest(Algorithm.ED25519))
    quantum = kid_of(ISSUER.newest(Algorithm.ML_DSA_65))
    good = {"alg": ED_DSA, "kid": kid, "typ": HYBRID_TYPE}
    return {
        "none": {**good, "alg": "none"},
        "None": {**good, "alg": "None"},
        "HS256": {**good, "alg": "HS256"},
        "another case": {**good, "alg": "eddsa"},
        "Ed25519": {**good, "alg": "Ed25519"},
        "ML-DSA-65 under EdDSA's key": {**good, "alg": ML_DSA_65},
        "the other key's kid": {**good, "kid": quantum},
        "a version that is not there": {**good, "kid": kid.replace(".1", ".2")},
        "version zero": {**good, "kid": kid.replace(".1", ".0")},
        "no version": {**good, "kid": kid.partition(".")[0]},
        "upper case": {**good, "kid": kid.upper()},
        "a path": {**good, "kid": "../../etc/passwd"},
        "no kid": {"alg": ED_DSA, "typ": HYBRID_TYPE},
        "no typ": {"alg": ED_DSA, "kid": kid},
        "JWT": {**good, "typ": "JWT"},
        "classical": {**good, "typ": CLASSICAL_TYPE},
        "crit": {**good, "crit": ["exp"]},
        "b64": {**good, "b64": False},
        "jwk": {**good, "jwk": {"kty": "OKP"}},
        "jku": {**good, "jku": "https://example.org"},
        "other order": {"typ": HYBRID_TYPE, "alg": ED_DSA, "kid": kid},
    }


@pytest.mark.parametrize("name", _headers())
def test_a_well_signed_token_with_another_header_is_refused(name: str) -> None:
    header = encode(json.dumps(_headers()[name], separators=(",", ":")).encode())
    assert refused(general(PAYLOAD, [ISSUER.signed_part(Algorithm.ED25519, header, PAYLOAD), DSA]))


@pytest.mark.parametrize("name", [name for name in _headers() if name != "classical"])
def test_a_well_signed_classical_token_with_another_header_is_refused(name: str) -> None:
    header = encode(json.dumps(_headers()[name], separators=(",", ":")).encode())
    part = ISSUER.signed_part(Algorithm.ED25519, header, PAYLOAD)
    assert refused(f"{header}.{PAYLOAD}.{part['signature']}")


def test_white_space_in_a_header_is_refused() -> None:
    header = encode(
        json.dumps({"alg": ED_DSA, "kid": kid_of(ISSUER.newest(Algorithm.ED25519)), "typ": HYBRID_TYPE}).encode()
    )
    assert refused(general(PAYLOAD, [ISSUER.signed_part(Algorithm.ED25519, header, PAYLOAD), DSA]))


def test_bits_beyond_the_last_byte_are_refused() -> None:
    """Two spellings of the same bytes: a lax decoder takes both."""
    signature = ED["signature"]
    twin = signature[:-1] + ALPHABET[ALPHABET.index(signature[-1]) ^ 1]
    assert base64.urlsafe_b64decode(twin + "==") == base64.urlsafe_b64decode(signature + "==")
    assert refused(general(PAYLOAD, [{**ED, "signature": twin}, DSA]))


def _claims_json(**changes: Any) -> bytes:
    said = json.loads(base64.urlsafe_b64decode(PAYLOAD + "=="))
    said.update(changes)
    return json.dumps({name: value for name, value in said.items() if value is not ...}).encode()


BAD_CLAIMS: dict[str, bytes] = {
    "not JSON": b"hello",
    "not UTF-8": b'{"iss":"\xff"}',
    "a list": b"[]",
    "a member twice": b'{"sub":"x",' + _claims_json()[1:],
    "deep": b"[" * 5000,
    "empty": b"{}",
    "unknown member": _claims_json(admin=True),
    "missing member": _claims_json(sid=...),
    "fraction": _claims_json(exp=float(NOW + 3600)),
    "text for time": _claims_json(exp=str(NOW + 3600)),
    "true for time": _claims_json(iat=True),
    "not a number": _claims_json().replace(str(NOW + 3600).encode(), b"NaN"),
    "huge time": _claims_json(exp=10**30),
    "negative": _claims_json(nbf=-1),
    "a longer life than any": _claims_json(exp=NOW + 86_401),
    "ends before it begins": _claims_json(exp=NOW),
    "valid before it was issued": _claims_json(nbf=NOW - 1),
    "audience as text": _claims_json(aud=AUDIENCE),
    "no audience": _claims_json(aud=[]),
    "nine audiences": _claims_json(aud=[AUDIENCE, *map(str, range(8))]),
    "audience twice": _claims_json(aud=[AUDIENCE, AUDIENCE]),
    "user no UUID": _claims_json(sub="anna"),
    "user in upper case": _claims_json(sub=claims().user_id.upper()),
    "session null": _claims_json(sid=None),
    "roles as text": _claims_json(roles="admin"),
    "another issuer": _claims_json(iss="somebody"),
}


@pytest.mark.parametrize("name", BAD_CLAIMS)
def test_well_signed_claims_of_another_form_are_refused(name: str) -> None:
    assert refused(ISSUER.hybrid(BAD_CLAIMS[name]))


@pytest.mark.parametrize(
    ("now", "problem"),
    [
        (NOW - 61, TokenProblem.EXPIRED),
        (NOW - 60, None),
        (NOW, None),
        (NOW + 3599.9, None),
        (NOW + 3600, TokenProblem.EXPIRED),
        (NOW + 90_000, TokenProblem.EXPIRED),
    ],
)
def test_times_hold_to_the_second(now: float, problem: TokenProblem | None) -> None:
    if problem is None:
        assert verify(HYBRID, now=now).claims.expires_at == NOW + 3600
    else:
        assert problem_of(HYBRID, now=now) is problem


def test_the_audience_must_be_named() -> None:
    assert verify(HYBRID, audience="threat").quantum_secured
    assert refused(HYBRID, audience="identity")
    assert refused(HYBRID, audience="mob")


def test_an_ended_session_is_refused() -> None:
    ended = read_revocations(json.dumps({"revocations": [{"sessionId": SESSION.upper()}], "nextPageToken": ""}))
    assert problem_of(HYBRID, revoked_sessions=ended) is TokenProblem.REVOKED
    assert problem_of(CLASSICAL, revoked_sessions=ended) is TokenProblem.REVOKED


def test_a_list_of_ended_sessions_must_be_whole() -> None:
    first, last = {"revocations": [{"sessionId": "1"}], "nextPageToken": "x"}, {"revocations": [{"sessionId": "2"}]}
    assert read_revocations(first, json.dumps(last)) == {"1", "2"}
    with pytest.raises(ValueError, match="all its pages"):
        read_revocations(first)


@pytest.mark.parametrize("document", ["", "[]", "{}", '{"error":"no"}', '{"revocations":[{}]}', '{"revocations":[1]}'])
def test_what_is_no_list_of_ended_sessions_is_not_taken_for_an_empty_one(document: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        read_revocations(document)
    assert not isinstance(error.value, json.JSONDecodeError)


def test_another_issuers_keys_accept_nothing() -> None:
    keys = LocalIssuer("two").verification_keys()
    with pytest.raises(TokenRejectedError):
        TokenVerifier(keys, AUDIENCE).verify(HYBRID, now=NOW)


def _jwks(change: Callable[[list[dict[str, Any]]], None]) -> dict[str, Any]:
    document = json.loads(json.dumps(ISSUER.jwks()))
    change(document["keys"])
    return dict(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda keys: keys[0].update(x=keys[0]["x"][:-1]),
        lambda keys: keys[0].update(x=None),
        lambda keys: keys[0].update(crv="Ed448"),
        lambda keys: keys[1].update(kid=keys[0]["kid"]),
        lambda keys: keys[1].update(pub=keys[1]["pub"] + "="),
        lambda keys: keys[1].update(use="enc"),
        lambda keys: keys[1].update(kid=""),
    ],
)
def test_a_damaged_key_set_is_refused(change: Callable[[list[dict[str, Any]]], None]) -> None:
    with pytest.raises(ValueError, match="key set"):
        VerificationKeys.from_jwks(_jwks(change))


@pytest.mark.parametrize("document", ["", "[]", "{}", '{"keys":{}}', '{"keys":[1]}', "\xff", "[" * 100_000])
def test_what_is_no_key_set_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="the document"):
        VerificationKeys.from_jwks(document)


def test_keys_of_other_kinds_are_passed_over() -> None:
    keys = VerificationKeys.from_jwks(
        _jwks(lambda keys: keys.extend([{"kty": "RSA", "kid": "1"}, {"kty": "AKP", "alg": "ML-DSA-87", "kid": "2"}]))
    )
    assert len(keys) == 2


@pytest.mark.parametrize("token", [HYBRID, CLASSICAL])
def test_another_implementation_verifies_each_signature(token: str) -> None:
    for key in ISSUER.jwks()["keys"]:
        if token is CLASSICAL and key["kty"] == "AKP":
            continue
        seen = other.JWS()
        seen.allowed_algs = OTHER_ALGORITHMS
        seen.deserialize(token)
        seen.verify(jwk.JWK(**key))
        assert json.loads(seen.payload)["sub"] == claims().user_id


def test_a_token_of_another_implementation_is_accepted() -> None:
    """jwcrypto writes members in its own order, so its signatures are put in ours."""
    payload = jws.claims_payload(claims())
    signatures = []
    for algorithm, jose in ((Algorithm.ED25519, ED_DSA), (Algorithm.ML_DSA_65, ML_DSA_65)):
        key = ISSUER.newest(algorithm)
        seed = _seed(key.key_handle)
        member = (
            {"d": seed, "x": encode(key.public_key)}
            if jose == ED_DSA
            else {"priv": seed, "pub": encode(key.public_key)}
        )
        kind = {"kty": "OKP", "crv": "Ed25519"} if jose == ED_DSA else {"kty": "AKP", "alg": ML_DSA_65}
        signer = other.JWS(base64.urlsafe_b64decode(payload + "=="))
        signer.allowed_algs = OTHER_ALGORITHMS
        signer.add_signature(
            jwk.JWK(**kind, **member), jose, json_encode({"alg": jose, "kid": kid_of(key), "typ": HYBRID_TYPE})
        )
        made = json.loads(signer.serialize())
        signatures.append({"protected": made["protected"], "signature": made["signature"]})
    assert verify(general(payload, signatures)).quantum_secured


def _seed(handle: str) -> str:
    return encode(hashlib.sha256(handle.encode()).digest())


@pytest.mark.parametrize(
    "name", ["ML-DSA stripped", "swapped", "EdDSA twice", "unprotected header", "pretty", "stripped to compact"]
)
def test_what_another_implementation_accepts_and_we_refuse(name: str) -> None:
    """Each of these verifies with one key in jwcrypto, as RFC 7515 allows; the strict form is ours."""
    seen = other.JWS()
    seen.allowed_algs = OTHER_ALGORITHMS
    seen.deserialize(ARRANGEMENTS[name])
    seen.verify(jwk.JWK(**ISSUER.jwks()["keys"][0]))
    assert refused(ARRANGEMENTS[name])


def test_nothing_of_a_token_is_told() -> None:
    chooser = random.Random(1)  # noqa: S311 -- places in a text
    for token in (HYBRID, CLASSICAL):
        signed = read_token(token)
        for _ in range(30):
            place = chooser.randrange(len(token))
            with pytest.raises(TokenRejectedError) as refusal:
                verify(token[:place] + chooser.choice(ALPHABET + "!") * 2 + token[place + 1 :])
            said = str(refusal.value) + repr(refusal.value)
            assert claims().user_id not in said
            assert not any(token[at : at + 12] in said for at in range(0, len(token) - 12, 7))
            assert refusal.value.__cause__ is None
        assert claims().user_id not in repr((signed, verify(token)))


def test_the_verifier_needs_no_server_and_no_cryptography_until_it_checks() -> None:
    program = (
        "import sys, behaviorguard.client.tokens as tokens; "
        "assert not {'servers', 'infra', 'cryptography'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_a_verifier_without_an_audience_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="audience"):
        TokenVerifier(KEYS, "")


def test_claims_are_compared_whole() -> None:
    assert replace(claims(), device_id="phone-1") != claims()
    assert verify(ISSUER.hybrid(claims(device_id="phone-1"))).claims.device_id == "phone-1"

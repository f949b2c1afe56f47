"""What keys may do, and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from servers.crypto.algorithms import Algorithm
from servers.quantum.keys import (
    Key,
    KeyPurpose,
    KeyRuleError,
    KeyStatus,
    KeyType,
    KeyVersion,
    NewKey,
    next_rotation,
    purpose_of,
    require_purpose,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def key(**changes: object) -> Key:
    plain = Key(
        key_id="11111111-0000-4000-8000-000000000000",
        organization_id="22222222-0000-4000-8000-000000000000",
        key_type=KeyType.SERVICE,
        algorithm=Algorithm.ML_KEM_768,
        purpose=KeyPurpose.ENCRYPTION,
        status=KeyStatus.ACTIVE,
        versions=(KeyVersion(2, b"new", "b", NOW), KeyVersion(1, b"old", "a", NOW)),
        min_decrypt_version=1,
        parent_key_id="33333333-0000-4000-8000-000000000000",
        service_id="identity",
        device_id="",
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
        rotated_at=None,
        revoked_at=None,
        next_rotation_at=None,
        rotation_days=0,
        lifetime_days=1,
        use_limit=0,
        uses=0,
        companion_key_id="",
        platform=False,
        metadata={},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # names and types are Key's own


def test_the_hierarchy_has_three_levels() -> None:
    order = [KeyType.MASTER, KeyType.SERVICE, KeyType.DEVICE]
    for upper, first in enumerate(order):
        for lower, second in enumerate(order):
            assert first.stands_above(second) == (upper < lower)


def test_an_active_key_expires_at_its_end_noticed_or_not() -> None:
    assert key().status_at(NOW + timedelta(hours=23)) is KeyStatus.ACTIVE
    assert key().status_at(NOW + timedelta(days=1)) is KeyStatus.EXPIRED
    assert key(status=KeyStatus.EXPIRED).status_at(NOW) is KeyStatus.EXPIRED
    assert key(status=KeyStatus.REVOKED).status_at(NOW + timedelta(days=9)) is KeyStatus.REVOKED


def test_versions_are_found_by_number() -> None:
    assert key().newest.number == 2
    assert key().version(1) == KeyVersion(1, b"old", "a", NOW)
    assert key().version(3) is None


def test_uses_are_counted_down_to_nothing() -> None:
    assert key(uses=9).uses_left is None
    assert key(use_limit=10, uses=9).uses_left == 1
    assert key(use_limit=5, uses=9).uses_left == 0


@pytest.mark.parametrize("algorithm", [each for each in Algorithm if each is not Algorithm.ED25519])
def test_a_companion_does_what_the_key_does_not_at_its_level(algorithm: Algorithm) -> None:
    order = NewKey("o", KeyType.SERVICE, algorithm, KeyPurpose.BOTH, service_id="s", use_limit=3)
    companion = order.companion()
    assert {purpose_of(algorithm), companion.purpose} == {KeyPurpose.ENCRYPTION, KeyPurpose.SIGNING}
    assert companion.algorithm.security_level == algorithm.security_level
    assert (companion.service_id, companion.use_limit) == ("s", 3)


def test_a_purpose_must_fit_the_algorithm() -> None:
    require_purpose(Algorithm.X_WING, KeyPurpose.ENCRYPTION)
    require_purpose(Algorithm.ML_DSA_87, KeyPurpose.BOTH)
    with pytest.raises(KeyRuleError, match="does not sign"):
        require_purpose(Algorithm.ML_KEM_1024, KeyPurpose.SIGNING)
    with pytest.raises(KeyRuleError, match="does not encrypt"):
        require_purpose(Algorithm.ML_DSA_65, KeyPurpose.ENCRYPTION)


def test_a_schedule_counts_from_the_last_time() -> None:
    assert next_rotation(NOW, 0) is None
    assert next_rotation(NOW, 2) == NOW + timedelta(days=2)

"""The development authority: what it writes, when it renews, who can read it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from infra import pki

if TYPE_CHECKING:
    from pathlib import Path


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    pki.ensure_authority(folder)
    files = pki.issue(folder, "threat")
    assert folder.stat().st_mode & 0o777 == 0o700
    for key in (folder / "ca.key", files.key):
        assert key.stat().st_mode & 0o777 == 0o600
    assert not list(folder.glob("*.new"))


def test_what_is_good_is_kept(tmp_path: Path) -> None:
    authority = pki.ensure_authority(tmp_path).read_bytes()
    leaf = pki.issue(tmp_path, "threat").cert.read_bytes()
    assert pki.ensure_authority(tmp_path).read_bytes() == authority
    assert pki.issue(tmp_path, "threat").cert.read_bytes() == leaf


def test_a_leaf_is_renewed_before_its_end(tmp_path: Path) -> None:
    pki.ensure_authority(tmp_path)
    early = pki.issue(tmp_path, "threat", now=datetime.now(UTC) - timedelta(days=61)).cert.read_bytes()
    assert pki.days_left(tmp_path / "threat.crt") < 30
    assert pki.issue(tmp_path, "threat").cert.read_bytes() != early
    assert pki.days_left(tmp_path / "threat.crt") > 89


@pytest.mark.parametrize("damage", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_damaged_or_foreign_is_replaced(tmp_path: Path, damage: str) -> None:
    pki.ensure_authority(tmp_path)
    files = pki.issue(tmp_path, "threat")
    files.cert.write_text(damage)
    pki.issue(tmp_path, "threat")
    for name in ("ca.key", "ca.crt"):
        (tmp_path / name).write_text(damage)
        authority = x509.load_pem_x509_certificate(pki.ensure_authority(tmp_path).read_bytes())
        leaf = x509.load_pem_x509_certificate(pki.issue(tmp_path, "threat").cert.read_bytes())
        leaf.verify_directly_issued_by(authority)


@pytest.mark.parametrize("name", ["", "../threat", "Threat", "a b", "1st", "x" * 64])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    pki.ensure_authority(tmp_path)
    with pytest.raises(ValueError, match="lower-case"):
        pki.issue(tmp_path, name)

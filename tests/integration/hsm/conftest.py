"""HSMs for the tests: each over both back ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.hsm import HsmRig, softhsm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["software", "pkcs11"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, pki: Path) -> HsmRig:
    """Three empty modules, and one of the back ends."""
    backend = softhsm() if request.param == "pkcs11" else {}
    return HsmRig(tmp_path / "hsm", pki, backend)


@pytest.fixture
def software_rig(tmp_path: Path, pki: Path) -> HsmRig:
    """Three empty modules and the software store, for what does not depend on the back end."""
    return HsmRig(tmp_path / "hsm", pki)
